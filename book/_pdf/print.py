"""Prints the single page of the book to a PDF file with Chromium: `python book/_pdf/print.py PAGE.html BOOK.pdf`."""

import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from playwright.sync_api import sync_playwright
from pypdf import PdfWriter
from pypdf.generic import DictionaryObject, NameObject, TextStringObject

BROWSERS = ["chromium", "chromium-browser", "google-chrome"]
ARGUMENTS = """
    --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update
    --disable-sync
""".split()
FOOTER = '<p style="font: 8pt sans-serif; text-align: center; width: 100%"><span class="pageNumber"></span></p>'

HEADINGS = """() => [...document.querySelectorAll("h1, h2, h3, h4, h5, h6, [role=heading]")]
  .filter((heading) => heading.checkVisibility()).map((heading) => heading.innerText)"""


def print_page(page: Path, pdf: Path) -> None:
    """Writes a page, once its formulas are typeset, as a tagged PDF with bookmarks."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        sys.exit(f"Printing needs a browser, one of {', '.join(BROWSERS)}.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        tab = browser.new_context(offline=True).new_page()
        tab.goto(page.resolve().as_uri(), timeout=300_000)
        tab.evaluate("window.MathJax?.startup.promise")
        tab.pdf(
            path=pdf,
            format="A4",
            scale=0.8,  # of the 12 points of a page on the screen
            margin={"top": "15mm", "bottom": "18mm", "left": "12mm", "right": "12mm"},
            print_background=True,
            display_header_footer=True,
            header_template="<span></span>",
            footer_template=FOOTER,
            tagged=True,
            outline=True,
        )
        tab.emulate_media(media="print")
        headings = tab.evaluate(HEADINGS)
        browser.close()
    mend_bookmarks(pdf, headings)


def mend_bookmarks(pdf: Path, headings: Sequence[str]) -> None:
    """Gives bookmarks the words of their headings, which Chromium joins or doubles where a line of a heading ends."""
    writer = PdfWriter(clone_from=pdf)
    entries = list(_bookmarks(writer.root_object["/Outlines"].get_object()))
    for entry, heading in zip(entries, headings, strict=True):
        entry[NameObject("/Title")] = TextStringObject(" ".join(heading.split()))
    writer.write(pdf)


def _bookmarks(parent: DictionaryObject) -> Iterator[DictionaryObject]:
    entry = parent.get("/First")
    while entry is not None:
        yield entry.get_object()
        yield from _bookmarks(entry.get_object())
        entry = entry.get_object().get("/Next")


if __name__ == "__main__":
    print_page(Path(sys.argv[1]), Path(sys.argv[2]))
