"""The book on paper. Needs `make pdf` before."""

import re

import pytest
from pypdf import PdfReader
from pypdf.generic import IndirectObject
from test_book import CHAPTERS, PAGES, ROOT

pytestmark = pytest.mark.browser

PDF = ROOT / "_build" / "book.pdf"


@pytest.fixture(scope="module")
def pdf():
    if not PDF.exists():
        pytest.skip(f"{PDF} is missing: run make pdf first")
    return PdfReader(PDF)


@pytest.fixture(scope="module")
def words(pdf):
    """The words of every page."""
    return [page.extract_text().split() for page in pdf.pages]


def titles(outline):
    """The bookmarks, those below others included."""
    for entry in outline:
        yield from titles(entry) if isinstance(entry, list) else [entry.title]


def resolved(value):
    return value.get_object() if isinstance(value, IndirectObject) else value


def fonts(page):
    return [resolved(font) for font in resolved(resolved(page["/Resources"]).get("/Font", {})).values()]


def is_embedded(font):
    if font["/Subtype"] == "/Type3":  # its glyphs are drawn by the file itself
        return True
    descendants = resolved(font.get("/DescendantFonts", [font]))
    descriptor = resolved(resolved(descendants[0])["/FontDescriptor"])
    return any(key in descriptor for key in ("/FontFile", "/FontFile2", "/FontFile3"))


def heading(page):
    """The title of a page of the book, as its source has it."""
    return next(line for line in (ROOT / f"{page}.md").read_text().splitlines() if line.startswith("# "))[2:]


def test_every_page_of_the_book_has_a_bookmark(pdf):
    bookmarks = list(titles(pdf.outline))
    for page in PAGES:
        assert any(bookmark.endswith(heading(page)) for bookmark in bookmarks), heading(page)


def test_bookmarks_are_those_of_a_reader(pdf):
    found = list(titles(pdf.outline))
    assert len(found) > 100
    assert [title for title in found if re.search(r"([a-z]{4,}.*)\1$", title)] == []  # none is doubled


def test_no_page_is_empty(pdf, words):
    empty = [i for i, page in enumerate(words, 1) if len(page) < 3 and not pdf.pages[i - 1].images]
    assert empty == []


def test_structure_is_tagged_for_screen_readers(pdf):
    assert resolved(pdf.trailer["/Root"]["/MarkInfo"])["/Marked"]
    assert "/StructTreeRoot" in pdf.trailer["/Root"]
    assert pdf.trailer["/Root"]["/Lang"] == "en"


def test_every_font_is_embedded(pdf):
    found = [font for page in pdf.pages for font in fonts(page)]
    assert len(found) > 100
    assert [font["/BaseFont"] for font in found if not is_embedded(font)] == []


def test_every_page_is_numbered(words):
    for number, page in enumerate(words, 1):
        assert str(number) in (page[0], page[-1])


def test_number_of_pages_is_that_of_a_book(pdf):
    assert 20 * len(CHAPTERS) < len(pdf.pages) < 350


def test_solutions_are_open(words):
    text = " ".join(word for page in words for word in page)
    assert "recursion of backpropagation" in text  # of the first solution in the recap
