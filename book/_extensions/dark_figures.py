"""Sphinx extension: every figure that a cell draws as SVG gets a second version, which dark pages show."""

from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

from lrp_book.figures import for_dark_pages


def add_dark_versions(app: Sphinx, doctree: nodes.document) -> None:
    """Puts the dark version beside each SVG that was written for a cell."""
    for image in list(doctree.findall(nodes.image)):
        light = Path(app.env.relfn2path(image["uri"])[1])
        if light.suffix == ".svg" and "jupyter_execute" in light.parts:
            dark = light.with_suffix(".dark.svg")
            dark.write_text(for_dark_pages(light.read_text()))
            twin = image.deepcopy()
            twin["uri"] = image["uri"].removesuffix(".svg") + ".dark.svg"
            image["classes"].append("only-light")
            twin["classes"].append("only-dark")
            image.parent.insert(image.parent.index(image) + 1, twin)


def setup(app: Sphinx) -> dict[str, Any]:
    """Connects the extension to Sphinx, before it collects the images of a page."""
    app.connect("doctree-read", add_dark_versions, priority=100)
    return {"parallel_read_safe": True}
