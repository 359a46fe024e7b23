"""Prints the built book with Chromium into two files: `python book/_pdf/print.py _build/html _build`.

A file is printed at least twice: only what was printed once shows on which pages its headings stand.
"""

import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import yaml
from chromium import as_pdf, opened
from document import write_document
from playwright.sync_api import Page
from pypdf import PdfReader, PdfWriter
from pypdf.generic import DictionaryObject, NameObject, TextStringObject
from volumes import Volume, volumes

ROOT = Path(__file__).parents[2]
TEXT = 168, 260  # width and height of what is printed on a page, in millimetres: those of paper.css
FLOATS = Path(__file__).with_name("floats.js").read_text()
PASSES = 5  # two are enough as long as the numbers move nothing to another page, three if they move it once

FILL_IN = """(numbers) => document.querySelectorAll(".page-number")
  .forEach((element) => { element.textContent = numbers[element.dataset.of]; })"""

HEADINGS = """() => [...document.querySelectorAll("h1, h2, h3, h4, h5, h6, [role=heading]")]
  .filter((heading) => heading.checkVisibility()).map((heading) => heading.textContent)"""


def main(built: Path, folder: Path) -> None:
    """Writes the files of the book.

    Args:
        built: The folder of the built book.
        folder: Where to write them; what they are printed from is written to its folder `paper`.
    """
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    (folder / "paper").mkdir(exist_ok=True)
    for name, volume in volumes(ROOT).items():
        document = folder / "paper" / f"{name}.html"
        write_document(volume, built, document, f"{config['author']} · version {version('lrp_jax')}")
        with opened(document) as tab:
            tab.set_viewport_size({"width": round(TEXT[0] / 25.4 * 96), "height": 1000})
            tab.evaluate(FLOATS, TEXT[1])
            printed = print_with_numbers(tab)
            headings = tab.evaluate(HEADINGS)
        finish(printed, headings, volume, config["author"]).write(folder / f"{name}.pdf")


def print_with_numbers(tab: Page) -> bytes:
    """Prints a document until the numbers of pages in it are those of its pages."""
    numbers: Mapping[str, int] = {}
    for _ in range(PASSES):
        printed = as_pdf(tab)
        found = page_numbers(PdfReader(io.BytesIO(printed)))
        if found == numbers:
            return printed
        numbers = found
        tab.evaluate(FILL_IN, numbers)
    sys.exit(f"Printed {PASSES} times, and the numbers in the contents still move the headings to other pages.")


def page_numbers(pdf: PdfReader) -> dict[str, int]:
    """The number of the page of each place to which a link leads."""
    places = {name: pdf.get_destination_page_number(place) for name, place in pdf.named_destinations.items()}
    return {name.removeprefix("/"): index + 1 for name, index in places.items() if index is not None}


def finish(printed: bytes, headings: Sequence[str], volume: Volume, author: str) -> PdfWriter:
    """Gives what was printed its title and bookmarks with the words of their headings.

    Chromium joins or doubles these words where a line of a heading ends. It also writes the time into the file, which
    would differ each time.

    Args:
        printed: What Chromium wrote.
        headings: The words of all headings.
        volume: What was printed.
        author: Who wrote it.
    """
    writer = PdfWriter(clone_from=io.BytesIO(printed))
    entries = list(_bookmarks(writer.root_object["/Outlines"].get_object()))
    for entry, heading in zip(entries, headings, strict=True):
        entry[NameObject("/Title")] = TextStringObject(" ".join(heading.split()))
    writer.metadata = {"/Title": ": ".join(filter(None, [volume.title, volume.subtitle])), "/Author": author}
    writer.set_page_label(0, 0, prefix="Cover")
    writer.set_page_label(1, len(writer.pages) - 1, style="/D", start=2)
    writer.page_layout, writer.page_mode = "/TwoPageRight", "/UseOutlines"
    writer.create_viewer_preferences().display_doctitle = True
    return writer


def _bookmarks(parent: DictionaryObject) -> Iterator[DictionaryObject]:
    entry = parent.get("/First")
    while entry is not None:
        yield entry.get_object()
        yield from _bookmarks(entry.get_object())
        entry = entry.get_object().get("/Next")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
