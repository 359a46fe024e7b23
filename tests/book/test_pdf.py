"""The book on paper. Needs `make pdf` before."""

import functools
import itertools
import re
import unicodedata

import jupytext
import pytest
from bs4 import BeautifulSoup
from pypdf import PdfReader
from pypdf.generic import IndirectObject
from test_book import CHAPTERS, CONFIG, EXECUTED, PAGES, PARTS, ROOT

pytestmark = pytest.mark.browser

BUILD = ROOT / "_build"
SOURCES = {page: (ROOT / f"{page}.md").read_text() for page in PAGES}
TOP = 790  # points above the foot of the paper: running heads stand higher, and nothing else
MIDDLE = 421
BOUND = {"book": 90, "reference": 250}  # pages: of the chapters alone, and of the whole reference


def squeezed(text):
    """A text without the spaces, hyphens and ligatures that a layout adds."""
    return re.sub(r"[\s\u00ad\u2010-]", "", unicodedata.normalize("NFKC", text))


def heading(page):
    """The title of a page of the book, as its source has it."""
    return next(line for line in SOURCES[page].splitlines() if line.startswith("# "))[2:]


def resolved(value):
    return value.get_object() if isinstance(value, IndirectObject) else value


def read(page):
    """The text of a page, and its lines from the top: how high they stand, and what they say without spaces."""
    pieces = []

    def note(piece, matrix, text_matrix, _font, _size):
        x, y = text_matrix[4:6]
        if piece.strip():
            across, up = (x * matrix[i] + y * matrix[i + 2] + matrix[i + 4] for i in (0, 1))
            pieces.append((round(up), across, squeezed(piece)))

    text = page.extract_text(visitor_text=note)
    rows = itertools.groupby(sorted(pieces, key=lambda piece: (-piece[0], piece[1])), key=lambda piece: piece[0])
    return text, [(up, "".join(piece for *_, piece in row)) for up, row in rows]


@functools.cache
class Printed:
    """A file, and what its pages say."""

    def __init__(self, name):
        path = BUILD / f"{name}.pdf"
        if not path.exists():
            pytest.skip(f"{path} is missing: run make pdf first")
        self.name = name
        self.pdf = PdfReader(path)
        self.texts, self.rows = zip(*map(read, self.pdf.pages), strict=True)
        self.squeezed = [squeezed(text) for text in self.texts]
        self.document = BeautifulSoup((BUILD / "paper" / f"{name}.html").read_text(), "html.parser")

    def page_of(self, bookmark):
        return self.pdf.get_destination_page_number(bookmark) + 1

    @property
    def sheets(self):
        """The bookmarks of what begins on a new page, after the cover."""
        return [bookmark for bookmark in self.pdf.outline if not isinstance(bookmark, list)][1:]

    @property
    def contents(self):
        """The lines of the contents: a title, and the number of its page."""
        end = self.page_of(self.sheets[1]) - 1
        lines = "\n".join(self.texts[1:end]).splitlines()
        found = [re.fullmatch(r"(?:[\d.]+\.\s*)?(.*\D)\s*?(\d+)", line.strip()) for line in lines]
        entries = [(match[1].strip(), int(match[2])) for match in found if match]
        return [(title, number) for title, number in entries if title != self.sheets[0].title]  # a running head

    def links(self):
        """The number of the page and the annotation of every link."""
        for number, page in enumerate(self.pdf.pages, 1):
            for annotation in map(resolved, resolved(page.get("/Annots", []))):
                if annotation["/Subtype"] == "/Link":
                    yield number, annotation


@pytest.fixture(scope="module", params=["book", "reference"])
def printed(request):
    return Printed(request.param)


@pytest.fixture(scope="module")
def book():
    return Printed("book")


def bookmarks(outline):
    """The bookmarks, those below others included."""
    for entry in outline:
        yield from bookmarks(entry) if isinstance(entry, list) else [entry]


def fonts(page):
    return [resolved(font) for font in resolved(resolved(page["/Resources"]).get("/Font", {})).values()]


def is_embedded(font):
    if font["/Subtype"] == "/Type3":  # its glyphs are drawn by the file itself
        return True
    descendants = resolved(font.get("/DescendantFonts", [font]))
    descriptor = resolved(resolved(descendants[0])["/FontDescriptor"])
    return any(key in descriptor for key in ("/FontFile", "/FontFile2", "/FontFile3"))


def code(page, *, folded):
    """The long lines of the code of a page that is folded, or that is seen."""
    cells = jupytext.reads(SOURCES[page], fmt="md:myst").cells
    for cell in cells:
        tags = cell.metadata.get("tags", [])
        is_seen = cell.cell_type == "code" and not {"remove-cell", "remove-input"} & {*tags}
        if is_seen and ("hide-input" in tags) == folded:
            yield from (squeezed(line) for line in cell.source.splitlines() if len(squeezed(line)) > 30)


def test_every_page_is_in_one_of_the_files(book):
    others = Printed("reference")
    assert [sheet.title for sheet in others.sheets if heading(PARTS[1][0]) in sheet.title]
    for file, pages in [(book, CHAPTERS), (others, [page for part in PARTS[1:] for page in part])]:
        titles = [bookmark.title for bookmark in file.sheets]
        found = [next(i for i, title in enumerate(titles) if title.endswith(heading(page))) for page in pages]
        assert found == sorted(found)


def test_contents_say_where_each_heading_stands(printed):
    contents = printed.contents
    expected = len(printed.document.select(".contents-line"))
    assert len(contents) > 0.95 * expected > 50  # a few lines have formulas, which are drawn
    for title, number in contents:
        assert squeezed(title) in printed.squeezed[number - 1], (title, number)
    pages = [number for _, number in contents]
    assert pages == sorted(pages)


def test_contents_lead_to_the_pages_that_they_name(printed):
    end = printed.page_of(printed.sheets[1])
    places = printed.pdf.named_destinations
    lead = [places[link["/Dest"]] for number, link in printed.links() if number < end]
    named = [number for _, number in printed.contents]
    assert set(named) <= {printed.pdf.get_destination_page_number(place) + 1 for place in lead}


def test_every_page_has_its_number_and_its_running_head(printed):
    starts = [(printed.page_of(sheet), sheet.title) for sheet in printed.sheets]
    for number, rows in enumerate(printed.rows[1:], 2):
        chapter = [title for start, title in starts if start <= number][-1]
        head = f"{number}{CONFIG['title']}" if number % 2 == 0 else f"{chapter}{number}"
        assert [row for up, row in rows if up > TOP] == [squeezed(head)], number


def test_chapters_begin_on_new_pages(printed):
    for sheet in printed.sheets:
        first = next(row for up, row in printed.rows[printed.page_of(sheet) - 1] if up < TOP)
        assert squeezed(sheet.title).startswith(first), sheet.title


def test_number_of_pages_is_that_of_a_book(printed):
    pages = len(printed.pdf.pages)
    if printed.name == "book":
        titles = [sheet.title for sheet in printed.sheets]
        after = next(i for i, title in enumerate(titles) if title.endswith(heading(CHAPTERS[-1]))) + 1
        first = next(sheet for sheet in printed.sheets if sheet.title.endswith(heading(CHAPTERS[0])))
        pages = printed.page_of(printed.sheets[after]) - printed.page_of(first)
    assert BOUND[printed.name] / 2 < pages < BOUND[printed.name]


def test_folded_code_is_left_out_and_all_other_code_is_printed(book):
    text = "".join(book.squeezed)
    seen = [line for page in CHAPTERS for line in code(page, folded=False)]
    folded = {line for page in CHAPTERS if page in EXECUTED for line in code(page, folded=True)} - {*seen}
    assert [line for line in folded if line in text and not any(line in other for other in seen)] == []
    missing = [line for line in seen if line not in text]
    assert min(len(folded), len(seen)) > 100  # there is something to look for
    assert len(missing) < 0.05 * len(seen), missing  # lines that a new page divides


def test_every_exercise_says_on_which_page_it_is_solved(book):
    exercises = [line for page in CHAPTERS for line in re.findall(r"^[:`]+\{exercise\}", SOURCES[page], re.MULTILINE)]
    found = [
        (number, int(page))
        for number, text in enumerate(book.texts, 1)
        for page in re.findall(r"Solution on page\s+(\d+)", text)
    ]
    assert len(found) == len(exercises) > 20
    for number, page in found:
        assert page > number
        assert "SolutiontoExercise" in book.squeezed[page - 1]


def test_every_figure_is_printed(book):
    captions = [caption.get_text() for caption in book.document.select("figcaption .caption-number")]
    assert len(captions) == len(set(captions)) > 40
    text = "".join(book.squeezed)
    assert [caption for caption in captions if squeezed(caption) not in text] == []


def test_drawings_show_all_their_steps(book):
    steps = book.document.select(".hand-step p")
    assert len(steps) > 10
    text = "".join(book.squeezed)
    assert [step.get_text() for step in steps if squeezed(step.get_text()) not in text] == []


def test_no_box_and_no_heading_stands_alone_at_the_foot_of_a_page(printed):
    heads = printed.document.select(".admonition-title, h1, h2, h3")
    titles = {squeezed(head.get_text()) for head in heads if not head.select(".math")} - {""}
    assert len(titles) > 100
    assert [number for number, rows in enumerate(printed.rows[1:], 2) if rows[-1][1] in titles] == []


def test_no_page_of_the_chapters_is_left_half_empty_but_their_last(book):
    ends = {book.page_of(sheet) - 1 for sheet in book.sheets}
    inner = set(range(book.page_of(book.sheets[2]), book.page_of(book.sheets[-1]))) - ends
    assert [number for number in sorted(inner) if book.rows[number - 1][-1][0] > MIDDLE] == []


def test_links_lead_to_places_in_the_file_or_to_other_sites(printed):
    places = printed.pdf.named_destinations
    inside, outside = 0, 0
    for _, link in printed.links():
        if "/Dest" in link:
            assert link["/Dest"] in places
            inside += 1
        else:
            assert re.match("https?://|mailto:", link["/A"]["/URI"]), link["/A"]["/URI"]
            outside += 1
    assert inside > 200
    assert outside > 30


def test_links_lead_from_chapter_to_chapter(book):
    starts = sorted(book.page_of(sheet) for sheet in book.sheets)
    chapter = lambda page: sum(start <= page for start in starts)
    places = book.pdf.named_destinations
    across = {
        (chapter(number), chapter(book.pdf.get_destination_page_number(places[link["/Dest"]]) + 1))
        for number, link in book.links()
        if "/Dest" in link
    }
    assert len([pair for pair in across if 2 < pair[0] != pair[1] > 2]) > 15


def test_every_page_of_the_book_has_a_bookmark_with_the_words_of_its_heading(printed):
    found = [bookmark.title for bookmark in bookmarks(printed.pdf.outline)]
    assert len(found) > 100
    assert [title for title in found if re.search(r"([a-z]{4,}.*)\1$", title)] == []  # none is doubled


def test_file_says_what_it_is_and_not_when_it_was_printed(printed):
    metadata = printed.pdf.metadata
    assert metadata.title.startswith(CONFIG["title"])
    assert metadata.author == CONFIG["author"]
    assert not {"/CreationDate", "/ModDate"} & set(metadata)
    assert printed.pdf.page_labels == ["Cover", *map(str, range(2, len(printed.pdf.pages) + 1))]


def test_no_page_is_empty(printed):
    empty = [i for i, page in enumerate(printed.squeezed, 1) if len(page) < 80 and not printed.pdf.pages[i - 1].images]
    assert empty == []


def test_structure_is_tagged_for_screen_readers(printed):
    root = printed.pdf.trailer["/Root"]
    assert resolved(root["/MarkInfo"])["/Marked"]
    assert "/StructTreeRoot" in root
    assert root["/Lang"] == "en"


def test_every_font_is_embedded(printed):
    found = [font for page in printed.pdf.pages for font in fonts(page)]
    assert len(found) > 100
    assert [font["/BaseFont"] for font in found if not is_embedded(font)] == []
