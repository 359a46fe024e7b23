"""Sphinx extension: each entry of the bibliography is an item of a list to screen readers too.

Docutils gives the entries the role `doc-biblioentry`, which is deprecated since DPUB-ARIA 1.1 and no item of a list.
"""

from typing import Any

from sphinx.application import Sphinx


def make_items(_app: Sphinx, _pagename: str, _template: str, context: dict[str, Any], _doctree: Any) -> None:
    """Replaces the role of the entries."""
    if "body" in context:
        context["body"] = context["body"].replace('role="doc-biblioentry"', 'role="listitem"')


def setup(app: Sphinx) -> dict[str, Any]:
    """Connects the extension to Sphinx."""
    app.connect("html-page-context", make_items)
    return {"parallel_read_safe": True}
