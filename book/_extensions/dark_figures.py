"""Sphinx extension: every figure that a cell or a measurement draws as SVG gets a second version, for dark pages."""

import os
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

from lrp_book.figures import for_dark_pages


def add_dark_versions(app: Sphinx, doctree: nodes.document) -> None:
    """Puts the dark version beside each SVG of a cell, and beside those of `measured`."""
    written = Path(app.outdir).parent / "jupyter_execute"
    for image in list(doctree.findall(nodes.image)):
        light = Path(app.env.relfn2path(image["uri"])[1])
        if light.suffix == ".svg" and {"jupyter_execute", "measured"} & set(light.parts):
            folder = light.parent if "jupyter_execute" in light.parts else written
            dark = folder / light.with_suffix(".dark.svg").name
            folder.mkdir(exist_ok=True)
            dark.write_text(for_dark_pages(light.read_text()))
            twin = image.deepcopy()
            twin["uri"] = os.path.relpath(dark, Path(app.env.doc2path(app.env.docname)).parent)
            image["classes"].append("only-light")
            twin["classes"].append("only-dark")
            image.parent.insert(image.parent.index(image) + 1, twin)


def setup(app: Sphinx) -> dict[str, Any]:
    """Connects the extension to Sphinx, before it collects the images of a page."""
    app.connect("doctree-read", add_dark_versions, priority=100)
    return {"parallel_read_safe": True}
