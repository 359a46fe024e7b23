"""Data in a page become a script of its own, which puts them back."""

import json
import re

from sphinx.application import Sphinx

DATA = '{"rules": ["LRP-γ"], "text": "a </p> b"}'


def test_data_of_a_page_become_a_script_that_puts_them_back(tmp_path):
    (tmp_path / "guides").mkdir()
    (tmp_path / "index.rst").write_text("Title\n=====\n\n.. toctree::\n\n   guides/draw\n")
    element = f'<script type="application/json" id="draw-data">{DATA}</script>'
    (tmp_path / "guides" / "draw.rst").write_text(f"Draw\n====\n\n.. raw:: html\n\n   {element}\n")
    settings = {"extensions": ["page_data"], "root_doc": "index", "html_theme": "basic"}
    Sphinx(
        tmp_path, None, tmp_path / "html", tmp_path / "doctrees", "html", confoverrides=settings, status=None
    ).build()
    page = (tmp_path / "html" / "guides" / "draw.html").read_text()
    assert "application/json" not in page
    assert '<script src="../interactive/draw-data.js"></script>' in page
    script = (tmp_path / "html" / "interactive" / "draw-data.js").read_text()
    properties = json.loads(re.search(r"\{.*\}", script).group())
    assert properties == {"type": "application/json", "id": "draw-data", "textContent": DATA}
