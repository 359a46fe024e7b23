"""The chapters execute, and what they refer to exists."""

import importlib.util
import re
from pathlib import Path

import jupytext
import pytest
import yaml
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from pybtex.database import parse_file

ROOT = Path(__file__).parents[1]
BOOK = ROOT / "book"
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text())
PAGES = [TOC["root"]] + [page["file"] for part in TOC["parts"] for page in part["chapters"]]
CHAPTERS = [page["file"] for page in TOC["parts"][0]["chapters"]]
EXECUTED = [page for page in PAGES if "{code-cell}" in (ROOT / f"{page}.md").read_text()]


def figure_cells(notebook):
    return [cell for cell in notebook.cells if "figure" in cell.metadata.get("mystnb", {})]


def outputs_an_image(cell):
    return any("image/png" in output.get("data", {}) for output in cell.get("outputs", []))


@pytest.mark.parametrize("chapter", EXECUTED)
def test_chapter_executes(chapter):
    notebook = jupytext.read(ROOT / f"{chapter}.md")
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(BOOK)}})
    try:
        client.execute()
    except CellExecutionError as error:
        pytest.fail(re.sub(r"\x1b\[[0-9;]*m", "", str(error)), pytrace=False)

    drawn = [cell.id for cell in notebook.cells if outputs_an_image(cell)]
    assert drawn == [cell.id for cell in figure_cells(notebook)], "every cell that draws is a figure"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_figures_have_name_caption_and_alternative_text(chapter):
    cells = figure_cells(jupytext.read(ROOT / f"{chapter}.md"))
    assert cells
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
    (tmp_path / "lrp_jax" / "rules.py").write_text("epsilon = 1")
    return tmp_path


@pytest.mark.parametrize("file", ["constraints.txt", "lrp_jax/rules.py", "lrp_jax/new.py"])
def test_editing_the_package_asks_for_new_execution(execution_cache, project, file):
    before = execution_cache.package_state(project)
    (project / file).write_text("epsilon = 2")
    assert execution_cache.package_state(project) != before


def test_importing_the_package_does_not_ask_for_new_execution(execution_cache, project):
    before = execution_cache.package_state(project)
    (project / "lrp_jax" / "__pycache__").mkdir()
    (project / "lrp_jax" / "__pycache__" / "rules.pyc").write_text("compiled")
    assert execution_cache.package_state(project) == before
