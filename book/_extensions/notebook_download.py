"""Sphinx extension: every executed chapter can be downloaded as a notebook.

The chapters are written in Markdown, which Jupyter opens with jupytext and Colab not at all.
"""

import shutil
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx


def offer_notebook(app: Sphinx, pagename: str, _template: str, context: dict[str, Any], _doctree: Any) -> None:
    """Puts the executed notebook beside the page, for the theme's download button."""
    executed = Path(app.outdir).parent / "jupyter_execute" / f"{pagename}.ipynb"
    if executed.exists():
        published = Path(app.outdir) / "_sources" / f"{pagename}.ipynb"
        published.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(executed, published)
        context["ipynb_source"] = f"{pagename}.ipynb"


def setup(app: Sphinx) -> dict[str, Any]:
    """Connects the extension to Sphinx, ahead of the theme, which makes the buttons."""
    app.connect("html-page-context", offer_notebook, priority=400)
    return {"parallel_read_safe": True}
