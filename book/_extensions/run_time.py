"""Sphinx extension: every executed page but the front page says under its title how long its execution took."""

from typing import Any

from docutils import nodes
from myst_nb.sphinx_ import NbMetadataCollector
from sphinx.application import Sphinx


def state_run_time(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Puts the seconds that the notebook cache has noted below the title of the page."""
    executed = NbMetadataCollector.get_exec_data(app.env, docname)
    if docname != app.config.root_doc and executed and executed["runtime"] is not None:
        title = next(doctree.findall(nodes.title))
        seconds = max(1, round(executed["runtime"]))
        sentence = f"The code of this page ran in {seconds} second{'s' * (seconds != 1)}."
        title.parent.insert(1, nodes.paragraph(text=sentence, classes=["run-time"]))


def setup(app: Sphinx) -> dict[str, Any]:
    """Connects the extension to Sphinx."""
    app.connect("doctree-resolved", state_run_time)
    return {"parallel_read_safe": True}
