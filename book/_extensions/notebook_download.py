"""Sphinx extension: every executed chapter can be downloaded as a notebook that runs elsewhere too.

The chapters are written in Markdown, which Jupyter opens with jupytext and Colab not at all.
"""

import contextlib
import os
from pathlib import Path
from typing import Any

import nbformat
from jupyter_cache import get_cache
from sphinx.application import Sphinx

INSTALL = """\
# Where the book is not installed, in Colab for example, this fetches its repository and installs what the page needs.
try:
    import lrp_book
except ImportError:
    !git clone --quiet --depth 1 {address} lrp-jax-repository
    %pip install --quiet --editable "./lrp-jax-repository[book]"
    import os, sys
    repository = os.path.abspath("lrp-jax-repository")
    sys.path[:0] = [repository, os.path.join(repository, "book")]  # an installation is not seen before the next start
"""
EXPLAIN = """\
# This page needs the library and the book's package: start Jupyter with `make lab` in a copy of the repository.
import lrp_book
"""


def repository_address() -> str | None:
    """Returns where the repository can be fetched, if the build says that it is published."""
    return os.environ.get("LRP_JAX_URL")


def published_notebook(executed: Path, cache: str) -> nbformat.NotebookNode:
    """Returns a chapter with its outputs, and a first cell that installs what it needs."""
    notebook = nbformat.read(executed, as_version=4)
    with contextlib.suppress(KeyError):  # myst-nb writes a page that it took from the cache without its outputs
        _, notebook = get_cache(cache).merge_match_into_notebook(notebook)
    if "kernelspec" in notebook.metadata:
        notebook.metadata.kernelspec.display_name = "Python 3"  # without the page's key into the cache
    address = repository_address()
    first = nbformat.v4.new_code_cell(INSTALL.format(address=address) if address else EXPLAIN, id="install")
    notebook.cells.insert(0, first)
    return notebook


def offer_notebook(app: Sphinx, pagename: str, _template: str, context: dict[str, Any], _doctree: Any) -> None:
    """Puts the executed notebook beside the page, for the theme's download button."""
    executed = Path(app.outdir).parent / "jupyter_execute" / f"{pagename}.ipynb"
    if executed.exists():
        published = Path(app.outdir) / "_sources" / f"{pagename}.ipynb"
        env: Any = app.env
        published.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(published_notebook(executed, env.mystnb_config.execution_cache_path), published)
        context["ipynb_source"] = f"{pagename}.ipynb"


def setup(app: Sphinx) -> dict[str, Any]:
    """Connects the extension to Sphinx, ahead of the theme, which makes the buttons."""
    app.connect("html-page-context", offer_notebook, priority=400)
    return {"parallel_read_safe": True}
