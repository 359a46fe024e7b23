"""Sphinx extension: every executed page says under its title how long its execution took, and one lists all."""

from pathlib import Path
from typing import Any

from docutils import nodes
from myst_nb.sphinx_ import NbMetadataCollector
from sphinx.application import Sphinx


def state_run_time(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Puts the seconds that the notebook cache has noted below the title of the page."""
    executed = NbMetadataCollector.get_exec_data(app.env, docname)
    if executed and executed["runtime"] is not None:
        title = next(doctree.findall(nodes.title))
        seconds = max(1, round(executed["runtime"]))
        sentence = f"The code of this page ran in {seconds} second{'s' * (seconds != 1)}."
        title.parent.insert(1, nodes.paragraph(text=sentence, classes=["run-time"]))


def pages_with_the_list(app: Sphinx, env: Any) -> list[str]:
    """The pages that list the run times of all, which are written again when others were executed."""
    return [page for page in env.found_docs if "{nb-exec-table}" in Path(env.doc2path(page)).read_text()]


def setup(app: Sphinx) -> dict[str, Any]:
    """Connects the extension to Sphinx."""
    app.connect("doctree-resolved", state_run_time)
    app.connect("env-updated", pages_with_the_list)
    return {"parallel_read_safe": True}
