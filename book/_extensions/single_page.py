"""Sphinx extension: what is written to the pages of the book is also written to the single page that is printed.

Sphinx uses the writers for `singlehtml` alone as soon as one extension has registered one, and some do for a few nodes.
"""

from typing import Any

from sphinx.application import Sphinx


def share_writers(app: Sphinx) -> None:
    """Gives the single page the writers of all extensions."""
    writers = app.registry.translation_handlers
    writers["singlehtml"] = {**writers.get("html", {}), **writers.get("singlehtml", {})}


def setup(app: Sphinx) -> dict[str, Any]:
    """Connects the extension to Sphinx."""
    app.connect("builder-inited", share_writers)
    return {"parallel_read_safe": True}
