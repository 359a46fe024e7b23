"""The sources of the book refer to what exists. How they run and what becomes of them: `test_built_book.py`."""

import base64
import gzip
import hashlib
import importlib.util
import itertools
import re
from pathlib import Path

import jupytext
import pytest
import yaml
from pybtex.database import parse_file

ROOT = Path(__file__).parents[1]
BOOK = ROOT / "book"
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text())
PARTS = [
    [page["file"] for chapter in part["chapters"] for page in [chapter, *chapter.get("sections", [])]]
    for part in TOC["parts"]
]
PAGES = [TOC["root"], *itertools.chain(*PARTS)]
CHAPTERS, GUIDES, *_ = PARTS
EXECUTED = [page for page in PAGES if "{code-cell}" in (ROOT / f"{page}.md").read_text()]


def figure_cells(cells):
    return [cell for cell in cells if "figure" in cell["metadata"].get("mystnb", {})]


@pytest.mark.parametrize("page", EXECUTED)
def test_figures_have_name_caption_and_alternative_text(page):
    cells = figure_cells(jupytext.read(ROOT / f"{page}.md").cells)
    assert cells or page not in [*CHAPTERS, *GUIDES]
    for cell in cells:
        figure, image = cell.metadata["mystnb"]["figure"], cell.metadata["mystnb"]["image"]
        assert figure["name"].startswith("fig-")
        assert len(figure["caption"].split()) > 5
        assert len(image["alt"].split()) > 5


def test_contents_lists_every_page():
    assert {f"book/{path.stem}" for path in BOOK.glob("*.md")} == set(PAGES)


def test_everything_cited_is_in_the_references_and_nothing_else():
    text = "\n".join(path.read_text() for path in BOOK.glob("*.md"))
    cited = {key.strip() for keys in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", text) for key in keys.split(",")}
    entries = parse_file(str(BOOK / "references.bib")).entries
    assert cited == set(entries)
    assert [key for key, entry in entries.items() if "doi" not in entry.fields] == []


def test_formulas_are_typeset_from_the_book_itself():
    mathjax = Path(CONFIG["sphinx"]["config"]["mathjax_path"]).relative_to("..")
    assert (BOOK / "_html_extra" / mathjax).is_file()


def test_what_the_pages_run_is_the_published_runtime():
    text = (BOOK / "_html_extra" / "interactive" / "ort-wasm-simd.js").read_text()
    runtime = gzip.decompress(base64.b64decode(text.split('"')[1]))
    of_the_npm_package = "f533b5f21790563d7556c611c3835ac65848ee326da2689aac54ed7d9cc8c6a4"
    assert hashlib.sha256(runtime).hexdigest() == of_the_npm_package


@pytest.fixture
def execution_cache():
    path = BOOK / "_extensions" / "execution_cache.py"
    spec = importlib.util.spec_from_file_location("execution_cache", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def project(tmp_path):
    (tmp_path / "constraints.txt").write_text("jax==0.10.2")
    (tmp_path / "lrp_jax").mkdir()
    (tmp_path / "book").mkdir()
    (tmp_path / "lrp_jax" / "rules.py").write_text("epsilon = 1")
    return tmp_path


@pytest.mark.parametrize("file", ["constraints.txt", "lrp_jax/rules.py", "lrp_jax/new.py", "book/module.py"])
def test_editing_the_package_or_a_module_of_the_book_asks_for_new_execution(execution_cache, project, file):
    before = execution_cache.package_state(project)
    (project / file).write_text("epsilon = 2")
    assert execution_cache.package_state(project) != before


def test_importing_the_package_does_not_ask_for_new_execution(execution_cache, project):
    before = execution_cache.package_state(project)
    (project / "lrp_jax" / "__pycache__").mkdir()
    (project / "lrp_jax" / "__pycache__" / "rules.pyc").write_text("compiled")
    assert execution_cache.package_state(project) == before
