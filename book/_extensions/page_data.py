"""Sphinx extension: data that the scripts of a page read are a file of their own, which another page can load."""

import json
import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

DATA = re.compile(r'<script type="application/json" id="(?P<name>[\w-]+)">(?P<data>.*?)</script>', re.DOTALL)
FOLDER = "interactive"


def move_data(app: Sphinx, page: str, _template: str, context: dict[str, Any], _doctree: Any) -> None:
    """Writes the data in a page as scripts that put it back, and lets the page load these."""

    def moved(element: re.Match[str]) -> str:
        path = Path(app.outdir, FOLDER, f"{element['name']}.js")
        path.parent.mkdir(exist_ok=True)
        path.write_text(script(element["name"], element["data"]))
        return f'<script src="{"../" * page.count("/")}{FOLDER}/{path.name}"></script>'

    if app.builder.name == "html" and "body" in context:
        context["body"] = DATA.sub(moved, context["body"])


def script(name: str, data: str) -> str:
    """Returns a script that puts data into a page as an element of that name; on a disk, pages read scripts alone."""
    properties = json.dumps({"type": "application/json", "id": name, "textContent": data})
    return f'document.currentScript.after(Object.assign(document.createElement("script"), {properties}));\n'


def setup(app: Sphinx) -> dict[str, Any]:
    """Connects the extension to Sphinx."""
    app.connect("html-page-context", move_data)
    return {"parallel_read_safe": True}
