"""The sources of the book refer to what exists. How they run and what becomes of them: `test_built_book.py`."""

import base64
import gzip
import hashlib
import importlib.util
import itertools
import re
from pathlib import Path

import jupytext
import nbformat
import pytest
import yaml
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from pybtex.database import parse_file

ROOT = Path(__file__).parents[2]
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


def extension(name):
    """One of the book's own Sphinx extensions."""
    spec = importlib.util.spec_from_file_location(name, BOOK / "_extensions" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def execution_cache():
    return extension("execution_cache")


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


@pytest.fixture
def chapter(tmp_path):
    """A chapter as myst-nb writes it when its outputs are in the cache."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# One"), nbformat.v4.new_code_cell("1")])
    nbformat.write(notebook, tmp_path / "one.ipynb")
    notebook.cells[1].outputs = [nbformat.v4.new_output("execute_result", {"text/plain": "1"}, execution_count=1)]
    cache = get_cache(tmp_path / "cache")
    cache.cache_notebook_bundle(CacheBundleIn(notebook, "one.md"), check_validity=False)
    return tmp_path / "one.ipynb"


def test_downloaded_chapter_has_the_outputs_that_the_cache_holds(chapter):
    published = extension("notebook_download").published_notebook(chapter, str(chapter.parent / "cache"))
    nbformat.validate(published)
    assert published.cells[-1].outputs[0].data["text/plain"] == "1"


def test_downloaded_chapter_installs_the_package_from_where_it_is_published(chapter, monkeypatch):
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://git.example")
    monkeypatch.setenv("GITHUB_REPOSITORY", "someone/book")
    published = extension("notebook_download").published_notebook(chapter, str(chapter.parent / "cache"))
    first = published.cells[0].source
    assert "git clone --quiet --depth 1 https://git.example/someone/book " in first
    assert first.index("import lrp_jax") < first.index("except ImportError") < first.index("%pip install")


def test_downloaded_chapter_of_an_unpublished_book_says_where_it_runs(chapter, monkeypatch):
    monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
    published = extension("notebook_download").published_notebook(chapter, str(chapter.parent / "cache"))
    assert "make lab" in published.cells[0].source
