"""The direction of imports: what `make lint` refuses, and what no contract of its own says."""

import ast
import graphlib
import shutil
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
OPTIONAL = {"rich"}


def linted(folder):
    """What the linter of imports says of the library in a folder."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_contracts_are_kept():
    done = linted(ROOT)
    assert done.returncode == 0, done.stdout


WRONG = {
    "core": ("core/ranges.py", "from lrp_jax.composites import first", "lrp_jax.core.graph -> lrp_jax.core.ranges"),
    "a rule": ("rules.py", "from lrp_jax import plotting", "lrp_jax.rules -> lrp_jax.plotting"),
    "for type checkers": (
        "core/forms.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from lrp_jax.explain.relevance import Explanation",
        "lrp_jax.core.forms -> lrp_jax.explain.relevance",
    ),
    "in a function": (
        "explain/display.py",
        "def explained():\n    from lrp_jax.explain.relevance import Explanation",
        "lrp_jax.explain.display -> lrp_jax.explain.relevance",
    ),
    "a picture": ("plotting/text.py", "from lrp_jax import composites", "lrp_jax.plotting.text -> lrp_jax.composites"),
    "an explanation": (
        "explain/checks.py",
        "from lrp_jax import baselines",
        "lrp_jax.explain.checks -> lrp_jax.baselines",
    ),
    "an error": ("errors.py", "from lrp_jax.core import fast", "lrp_jax.errors -> lrp_jax.core.fast"),
    "a module without a layer": ("explain/other.py", "", "lrp_jax.explain"),
}


@pytest.mark.parametrize(("path", "line", "named"), WRONG.values(), ids=WRONG.keys())
def test_wrong_import_is_refused(tmp_path, path, line, named):
    shutil.copytree(ROOT / "lrp_jax", tmp_path / "lrp_jax", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "lrp_jax" / path).open("a") as file:
        file.write(f"\n{line}\n")
    done = linted(tmp_path)
    assert done.returncode == 1
    assert named in done.stdout


def test_no_two_modules_need_each_other():
    graph = grimp.build_graph("lrp_jax", cache_dir=None)
    imported = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    graphlib.TopologicalSorter(imported).prepare()  # raises CycleError


@pytest.mark.parametrize("path", sorted((ROOT / "lrp_jax").rglob("*.py")), ids=str)
def test_only_optional_packages_are_imported_in_a_function(path):
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    inside = [node for function in functions for node in ast.walk(function)]
    names = [node.module for node in inside if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in inside if isinstance(node, ast.Import) for alias in node.names]
    assert {name.split(".")[0] for name in names} <= OPTIONAL
