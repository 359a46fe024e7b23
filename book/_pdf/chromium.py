"""The browser that prints the book."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

BROWSERS = ["chromium", "chromium-browser", "google-chrome"]
ARGUMENTS = """
    --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update
    --disable-sync
""".split()


@contextmanager
def opened(document: Path) -> Iterator[Page]:
    """Opens a document as it is printed, with its formulas typeset."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        sys.exit(f"Printing needs a browser, one of {', '.join(BROWSERS)}.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        tab = browser.new_context(offline=True).new_page()
        tab.set_default_timeout(600_000)
        tab.emulate_media(media="print")
        tab.goto(document.resolve().as_uri())
        tab.evaluate("window.MathJax?.startup.promise")
        tab.evaluate("Promise.all([...document.images].map((image) => image.decode()))")
        yield tab
        browser.close()


def as_pdf(tab: Page) -> bytes:
    """Prints what a tab shows as a tagged PDF with bookmarks, on the paper that its style sheets name."""
    return tab.pdf(prefer_css_page_size=True, print_background=True, tagged=True, outline=True)
