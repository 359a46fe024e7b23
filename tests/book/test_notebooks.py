"""Every notebook that the built book offers runs from top to bottom, and prints the numbers of its text again."""

import re
import shutil

import nbformat
import pytest
from nbclient import NotebookClient
from test_book import EXECUTED
from test_built_book import HTML

pytestmark = pytest.mark.notebooks

SECONDS = 1800  # of a cell: the first chapters train networks


@pytest.mark.parametrize("page", EXECUTED)
def test_downloaded_notebook_runs(page, tmp_path):
    name = page.rpartition("/")[2]
    shutil.copy(HTML / "_sources" / f"{page}.ipynb", tmp_path / f"{name}.ipynb")
    notebook = nbformat.read(tmp_path / f"{name}.ipynb", as_version=4)
    before = printed_numbers(notebook)
    NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": str(tmp_path)}}).execute()
    after = printed_numbers(notebook)
    assert [name for name, _ in after] == [name for name, _ in before]


def printed_numbers(notebook):
    """The names and numbers that the cells below the sections print."""
    cells = [cell for cell in notebook.cells if "numbers" in cell.metadata.get("tags", [])]
    printed = [output.text for cell in cells for output in cell.outputs if output.get("name") == "stdout"]
    lines = "".join(printed).splitlines()  # and no warnings
    return [re.fullmatch(r"(.+?)  +(\S.*)", line).groups() for line in lines]
