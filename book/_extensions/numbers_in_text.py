"""Sphinx extension: the numbers that a run puts into a sentence are written as the rest of the book writes numbers.

Formats of Python write 1.6e-07 and a hyphen; readers expect 1.6 × 10⁻⁷ and a minus sign.
"""

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

from lrp_book.numbers import typeset


def write_numbers(_app: Sphinx, doctree: nodes.document) -> None:
    """Rewrites the numbers that the run has put into the text of a page."""
    for pasted in doctree.findall(nodes.inline):
        if "pasted-text" in pasted["classes"]:
            pasted.children = [nodes.Text(typeset(pasted.astext()))]


def setup(app: Sphinx) -> dict[str, Any]:
    """Connects the extension to Sphinx."""
    app.connect("doctree-read", write_numbers)
    return {"parallel_read_safe": True}
