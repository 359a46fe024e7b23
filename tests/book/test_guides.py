"""The code of a guide is a script that runs anywhere: it needs what is installed, and nothing of the book.

The default run executes some of the scripts, and asks of all whether they define what they use.
"""

import os
import subprocess
import sys

import pytest
from myst_nb.core.read import read_myst_markdown_notebook
from nightly import NIGHTLY
from test_book import GUIDES, ROOT

BLOCKED = """\
import importlib.abc, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"lrp_book", "myst_nb", "IPython"}:
            raise ModuleNotFoundError(f"a script has no {name}")

sys.meta_path.insert(0, Blocked())
"""
RUN_ALL = """
import os, runpy

for folder in sys.argv[1:]:
    os.chdir(folder)
    runpy.run_path(os.path.join(folder, "guide.py"), run_name="__main__")
print(len(sys.argv[1:]), "ran")
"""


def visible_code(page):
    """What a reader can copy from a page, cell after cell."""
    cells = read_myst_markdown_notebook((ROOT / f"{page}.md").read_text()).cells
    shown = [
        cell
        for cell in cells
        if cell.cell_type == "code" and not {"remove-cell", "remove-input"} & set(cell.metadata.get("tags", []))
    ]
    return "\n\n".join(cell.source for cell in shown)


@pytest.mark.parametrize("page", GUIDES)
def test_guide_shows_no_bookkeeping(page):
    assert "glue" not in visible_code(page)
    assert "lrp_book" not in visible_code(page)


@pytest.mark.parametrize("page", GUIDES)
def test_guide_defines_every_name_that_it_uses(page):
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "E9,F63,F7,F82", "-"]
    ran = subprocess.run(command, input=visible_code(page), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


# Each in a process of its own every night (make nightly), by day every fourth, one after the other in one process.
PROCESSES = [[page] for page in GUIDES] if NIGHTLY else [GUIDES[::4]]


@pytest.mark.parametrize("pages", PROCESSES, ids=" ".join)
def test_guide_pastes_into_a_script(pages, tmp_path):
    for page in pages:
        (tmp_path / page).mkdir(parents=True)
        (tmp_path / page / "guide.py").write_text(visible_code(page))
    (tmp_path / "all.py").write_text(BLOCKED + RUN_ALL)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
    command = [sys.executable, "all.py", *(str(tmp_path / page) for page in pages)]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == f"{len(pages)} ran"
