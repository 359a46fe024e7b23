"""The sources of the book refer to what exists. How they run and what becomes of them: `test_built_book.py`."""

import ast
import base64
import gzip
import hashlib
import importlib.util
import inspect
import itertools
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jupytext
import pytest
import yaml
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from myst_nb.core.read import read_myst_markdown_notebook
from pybtex.database import parse_file

import lrp_jax

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
        figure = cell.metadata["mystnb"]["figure"]
        assert figure["name"].startswith("fig-")
        assert len(figure["caption"].split()) > 5
        # Drawings describe themselves.
        drawings = r"^(Drawing|SlidingKernel|under_rules|hand_taylor\.\w+|hand_step\.training_step)\("
        if not re.search(drawings, cell.source, re.MULTILINE):
            assert len(cell.metadata["mystnb"]["image"]["alt"].split()) > 5


def test_contents_lists_every_page():
    assert {f"book/{path.stem}" for path in BOOK.glob("*.md")} == set(PAGES)


def test_bring_your_own_model_shows_every_door_with_what_it_prints_and_draws():
    page = (BOOK / "bring_your_model.md").read_text()
    included = re.findall(r"^```\{(?:literalinclude|figure)\} \.\./tests/doors/(\S+)$", page, re.MULTILINE)
    doors = [path.stem for path in (ROOT / "tests" / "doors" / "expected").glob("*.txt")]
    shown = [file for door in doors for file in (f"{door}.py", f"expected/{door}.txt", f"expected/{door}.png")]
    assert sorted(included) == sorted(shown)
    assert all((ROOT / "tests" / "doors" / file).is_file() for file in shown)


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


@pytest.fixture(scope="module")
def execution_cache():
    return extension("execution_cache")


FRONT_MATTER = """\
---
jupytext:
  text_representation:
    format_name: myst
kernelspec:
  display_name: Python 3
  name: python3
---
"""


def page_of(code):
    return f"{FRONT_MATTER}\n# A page\n\n```{{code-cell}} python\n:tags: [hide-input]\n\n{code}\n```\n"


PROJECT = {
    "constraints.txt": "jax==0.10.2",
    "pyproject.toml": "version = '0.2.0'",
    "lrp_jax/__init__.py": "from lrp_jax import rules\nfrom lrp_jax.core.transform import lrp",
    "lrp_jax/errors.py": "class LRPError(Exception):\n    'Base of all.'",
    "lrp_jax/rules.py": "from lrp_jax.errors import LRPError\ndef epsilon():\n    'A rule.'\n    return 1  # a number",
    "lrp_jax/core/__init__.py": "",
    "lrp_jax/core/transform.py": "from lrp_jax.rules import epsilon\nlrp = epsilon()",
    "book/lrp_book/__init__.py": "DATA = 'data'",
    "book/lrp_book/datasets/__init__.py": "from lrp_book.datasets.files import read",
    "book/lrp_book/datasets/files.py": "import lrp_jax.errors as errors\nread = 'mnist'",
    "book/lrp_book/models.py": "import numpy",
    "book/data/mnist/images.gz": "digits",
    "book/data/mnist/README.md": "Digits.",
    "book/data/results.json": "[]",
    "book/measured/times.json": "[1]",
}
USES_OF_THE_PROJECT = {
    "rules": "%matplotlib inline\nfrom lrp_jax import lrp",
    "data": "from lrp_book.datasets import read",
    "networks": "from lrp_book import models",
    "documentation": "from lrp_jax.rules import epsilon\nprint(epsilon.__doc__)",
    "results": "from lrp_book import DATA\nopen(f'{DATA}/results.json')",
    "measured": "open('measured/times.json')",
    "versions": "from importlib.metadata import version",
}


@pytest.fixture
def changed_pages(execution_cache, tmp_path):
    """Which pages get another key when a file of the project has another text."""

    def write(file, text):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)

    def keys():
        return {name: execution_cache.page_key(page_of(code), tmp_path) for name, code in USES_OF_THE_PROJECT.items()}

    def changed(file, text):
        before = keys()
        write(file, text)
        return {name for name, key in keys().items() if key != before[name]}

    for file, text in PROJECT.items():
        write(file, text)
    return changed


@pytest.mark.parametrize(
    ("file", "old", "new", "pages"),
    [
        ("lrp_jax/rules.py", "return 1", "return 2", {"rules", "documentation"}),
        ("lrp_jax/rules.py", "'A rule.'", "'The rule.'", {"documentation"}),
        ("lrp_jax/rules.py", "    'A rule.'\n", "", {"documentation"}),
        ("lrp_jax/rules.py", "a number", "the number", {"documentation"}),
        ("lrp_jax/errors.py", "Exception", "ValueError", {"rules", "data", "documentation"}),
        ("lrp_jax/core/transform.py", "epsilon()", "epsilon() + 1", {"rules"}),
        ("lrp_jax/__init__.py", "from lrp_jax import rules\n", "", set()),
        ("book/lrp_book/datasets/files.py", "mnist", "mnist.npz", {"data"}),
        ("book/lrp_book/datasets/__init__.py", "files import", "other import", {"data"}),
        ("book/lrp_book/models.py", "import numpy", "import numpy, lrp_jax", {"networks"}),
        ("book/data/mnist/images.gz", "digits", "other digits", {"data"}),
        ("book/data/mnist/README.md", "Digits", "Other digits", set()),
        ("book/data/results.json", "[]", "[1]", {"results"}),
        ("book/measured/times.json", "[1]", "[2]", {"measured"}),
        ("pyproject.toml", "0.2.0", "0.3.0", {"versions"}),
        ("constraints.txt", "0.10.2", "0.11.0", set(USES_OF_THE_PROJECT)),
    ],
)
def test_an_edit_executes_the_pages_that_reach_it_and_no_others(changed_pages, file, old, new, pages):
    assert old in PROJECT[file]
    assert changed_pages(file, PROJECT[file].replace(old, new)) == pages


def test_what_is_newly_imported_counts_from_then_on(changed_pages):
    assert changed_pages("lrp_jax/new.py", "number = 1") == set()
    assert changed_pages("book/lrp_book/models.py", "def network():\n    from lrp_jax import new") == {"networks"}
    assert changed_pages("lrp_jax/new.py", "number = 2") == {"networks"}


def test_every_page_with_code_has_a_key_and_reaches_what_it_uses(execution_cache):
    reached = {}
    for page in PAGES:
        text = (ROOT / f"{page}.md").read_text()
        assert (execution_cache.page_key(text) is not None) == (page in EXECUTED)
        modules = execution_cache.modules_reached(execution_cache.page_code(text), ROOT)
        reached[page.removeprefix("book/")] = {path.relative_to(ROOT).as_posix() for path in modules}
    assert {"lrp_jax/rules.py", "lrp_jax/core/transform.py", "book/lrp_book/training.py"} <= reached["recap"]
    assert {"book/lrp_book/training.py", "lrp_jax/errors.py"} <= reached["implementation"]
    assert reached["testing"] == {"book/lrp_book/__init__.py"}


def test_outputs_are_those_of_the_page_in_its_present_state(execution_cache, tmp_path, monkeypatch):
    (tmp_path / "one.md").write_text(page_of("1"))
    (tmp_path / "prose.md").write_text("# Prose")
    env = SimpleNamespace(found_docs={"one", "prose"}, doc2path=lambda page: tmp_path / f"{page}.md")
    cache = get_cache(tmp_path / "cache")

    def notebook():
        source = [(tmp_path / "one.md").read_text()]
        execution_cache.name_kernel(SimpleNamespace(env=env), "one", source)
        assert len(source[0].splitlines()) == len(page_of("1").splitlines())
        return read_myst_markdown_notebook(source[0])

    assert execution_cache.pages_to_read(None, env, set(), set(), set()) == ["one"]
    assert execution_cache.pages_to_read(None, env, set(), set(), set()) == []
    cache.cache_notebook_bundle(CacheBundleIn(notebook(), "one.md"), check_validity=False)
    cache.match_cache_notebook(notebook())
    monkeypatch.setattr(execution_cache.sys, "version", "3.99")
    assert execution_cache.pages_to_read(None, env, set(), set(), set()) == ["one"]
    with pytest.raises(KeyError):
        cache.match_cache_notebook(notebook())


@pytest.mark.parametrize("page", EXECUTED)
def test_what_the_code_of_a_page_imports_exists(execution_cache, page):
    code = execution_cache.page_code((ROOT / f"{page}.md").read_text())
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in execution_cache.PACKAGES:
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name) or importlib.import_module(f"{node.module}.{alias.name}")


def test_pages_find_the_data_from_any_folder():
    assert [page for page in EXECUTED if re.search(r"""["'](\./)?data/""", (ROOT / f"{page}.md").read_text())] == []
    command = [sys.executable, "-c", "import lrp_book; assert (lrp_book.DATA / 'mnist').is_dir()"]
    subprocess.run(command, check=True, cwd="/", env=os.environ | {"PYTHONPATH": str(BOOK)})


def test_architecture_page_names_every_class_of_the_core():
    text = (BOOK / "architecture.md").read_text()
    trees = [ast.parse(path.read_text()) for path in (ROOT / "lrp_jax" / "core").glob("*.py")]
    classes = {node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}
    assert {name for name in classes if not name.startswith("_") and f"`{name}`" not in text} == set()


def test_every_public_name_has_a_page():
    """Whatever the modules of the library offer, and whoever adds to them."""
    reference = extension("reference_pages")
    pages = reference.pages((BOOK / "api.md").read_text())
    documented = {entry.home for on_it in pages.values() for _, entry in on_it}
    modules = ["lrp_jax", *(f"lrp_jax.{module.name}" for module in pkgutil.iter_modules(lrp_jax.__path__))]
    public = [module for module in modules if module not in {"lrp_jax.core", "lrp_jax.explain"}]
    assert len(public) > 8
    for module in map(importlib.import_module, public):
        names = getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")])
        for name in names:
            value = getattr(module, name)
            own = getattr(module, "__all__", None) or getattr(value, "__module__", None) == module.__name__
            if (inspect.isclass(value) or inspect.isfunction(value)) and own:
                assert f"{value.__module__}.{value.__qualname__}" in documented, f"{module.__name__}.{name}"


MODULE = """
class Ledger:
    'Where it went.'
def ledger():
    'Accounts for it. And more.'
def _private(): ...
limit = 3
'The largest | of all.'
"""


@pytest.fixture
def reference(tmp_path, monkeypatch):
    """The extension that makes the pages of the reference, for a small package."""
    (tmp_path / "lrp_small.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "lrp_small", raising=False)
    yield extension("reference_pages")
    sys.modules.pop("lrp_small", None)


INDEX = "# The library\n\n## Small things\n\n```{names} lrp_small\n```\n"


def test_code_and_tables_in_the_text_of_a_module_are_directives():
    text = ["So:", "", "    def f(x):", "", "        return x", "", "1. One:", "", "   | a | b |", "   | --- | --- |",
            "   | 1 | `2` |", "", "2. Two, with", "   more."]  # fmt: skip
    assert extension("reference_pages").in_restructured_text(text) == [
        "So:", "", ".. code-block:: python", "", *text[2:8], "   .. list-table::", "      :header-rows: 1", "",
        "      * - a", "        - b", "      * - 1", "        - `2`", *text[11:],
    ]  # fmt: skip


def test_a_public_name_gets_a_page_by_itself_and_what_differs_in_its_case_shares_one(reference):
    pages = reference.pages(INDEX)
    names = {title: [entry.name for _, entry in on_it] for title, on_it in pages.items()}
    assert names == {
        "lrp_small.ledger": ["lrp_small.ledger", "lrp_small.Ledger"],
        "lrp_small.limit": ["lrp_small.limit"],
    }
    page = reference.written("lrp_small.ledger", pages["lrp_small.ledger"])
    assert "# lrp_small.ledger\n\n[The library](../api.md) / Small things\n" in page
    assert page.index(".. autofunction:: lrp_small.ledger") < page.index(
        ".. autoclass:: lrp_small.Ledger\n   :members:"
    )


def test_the_page_of_the_library_has_a_line_for_each_name(reference):
    source = [INDEX]
    reference.list_names(None, "book/api", source)
    assert "| [`ledger`](api/lrp_small.ledger.md) | Accounts for it. |" in re.sub("<[^>]*>", "", source[0])
    assert "| [`Ledger`](api/lrp_small.ledger.md) | Where it went. |" in re.sub("<[^>]*>", "", source[0])
    assert (
        '<span id="lrp_small.limit"></span>[`limit`](api/lrp_small.limit.md) | The largest \\| of all. |' in source[0]
    )


@pytest.fixture(scope="module")
def page_weight():
    return extension("page_weight")


def test_icons_that_no_page_shows_are_taken_out(page_weight):
    bars, bolt = 'bars:[448,512,[],"f0c9","M0 96"],', '"bolt-alt":[448,512,[9889,"zap"],"f0e7","M1"],'
    script = f'i={{{bars}{bolt}cat:[5,6,[],"f6be",["a","b"]]}};'
    assert page_weight.script_with(script, {"bars"}) == f"i={{{bars}}};"
    assert page_weight.script_with(script, {"zap"}) == f"i={{{bolt}}};"
    sheet = '.fa-bars:before,.fa-navicon:before{content:"x"}.fa-cat:before{content:"y"}a{b:c}'
    assert page_weight.sheet_with(sheet, {"navicon"}) == '.fa-bars:before,.fa-navicon:before{content:"x"}a{b:c}'
