"""Sphinx extension: a page is executed again when something has changed that its code reaches, and only then.

The notebook cache finds the outputs of a page by its cells and its kernel, and would keep numbers of an older library.
So the name of the kernel gets a key of all that the cells depend on besides: the modules of the library and of the book
that they import, directly or through others, without docstrings and comments; the files of the book's data and of its
measurements that these name; the pinned versions and Python's. Where the cells print documentation, docstrings and
comments count, too.
"""

import ast
import functools
import hashlib
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from IPython.core.inputtransformer2 import TransformerManager
from myst_nb.core.read import read_myst_markdown_notebook
from sphinx.application import Sphinx

from lrp_book.source_code import code_of

ROOT = Path(__file__).parents[2]
PACKAGES = {"lrp_jax": ".", "lrp_book": "book"}  # the folder of each
PRINTS_DOCUMENTATION = re.compile(r"\b(__doc__|getdoc|getsource|help|pinfo2?)\b")  # pinfo: IPython's question mark
KERNEL = re.compile(r"^(kernelspec:\n  display_name: Python 3)$", re.MULTILINE)


def page_key(page: str, root: Path = ROOT) -> str | None:
    """Returns a hash of what the code of a page depends on, but for itself; None if there is no code.

    Args:
        page: The source of the page.
        root: The folder of the repository.
    """
    code = page_code(page)
    if not code:
        return None
    read = str if PRINTS_DOCUMENTATION.search(code) else code_of_module
    modules = {path: read(path.read_text()) for path in modules_reached(code, root)}
    texts = {root / "constraints.txt": (root / "constraints.txt").read_text(), **modules}
    if "importlib.metadata" in code:  # the library's own version among them
        texts[root / "pyproject.toml"] = (root / "pyproject.toml").read_text()
    data = data_named([code, *modules.values()], root)
    contents = {path: text.encode() for path, text in texts.items()} | {path: path.read_bytes() for path in data}
    key = hashlib.sha256(sys.version.encode())
    for path, content in sorted(contents.items()):
        key.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode())
        key.update(content)
    return key.hexdigest()[:16]


def page_code(page: str) -> str:
    """Returns the code of a page's cells as one Python module."""
    cells = (cell.source for cell in read_myst_markdown_notebook(page).cells if cell.cell_type == "code")
    return "\n".join(TransformerManager().transform_cell(cell) for cell in cells)


def modules_reached(code: str, root: Path) -> set[Path]:
    """Returns the modules of the library and of the book that code imports, and what these import in their turn.

    Of what a package gathers in its `__init__`, only the names that are asked for lead on.
    """
    reached: set[Path] = set()
    codes = [code]
    while codes:
        found = {module_of(name, root) for _, name in imports(codes.pop())} - {None, *reached}
        reached |= found
        codes += [code_of_module(path.read_text()) for path in found]
    return reached


def module_of(name: str, root: Path) -> Path | None:
    """Returns the module that a dotted name is, or in which it is defined; None if it is none of ours."""
    parts = name.split(".")
    if parts[0] not in PACKAGES:
        return None
    place = root.joinpath(PACKAGES[parts[0]], *parts)
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if path.is_file():
            return path
    package, _, own_name = name.rpartition(".")
    path = module_of(package, root) if package else None
    if path is not None and path.name == "__init__.py":
        for bound, imported in imports(code_of_module(path.read_text())):
            if bound == own_name and imported != name:
                return module_of(imported, root)
    return path


code_of_module = functools.cache(code_of)


@functools.cache
def imports(code: str) -> tuple[tuple[str, str], ...]:
    """Returns the names that code imports: each as it is bound, and in full."""

    def found() -> Iterator[tuple[str, str]]:
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Import):
                yield from ((alias.asname or alias.name, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield from ((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)

    return tuple(found())


def data_named(codes: Iterable[str], root: Path) -> set[Path]:
    """Returns the files of the book's data and measurements whose own name, or whose folder's, stands in code."""
    text = "\n".join(codes)
    folders = (root / "book" / "data", root / "book" / "measured")
    entries = [entry for folder in folders for entry in folder.glob("*") if entry.name in text]
    files = (path for entry in entries for path in (entry.rglob("*") if entry.is_dir() else [entry]))
    return {path for path in files if path.is_file() and path.suffix != ".md"}


def pages_to_read(app: Sphinx, env: Any, *_changes: set[str]) -> list[str]:
    """Notes the key of every page; returns the pages that have another one than at the last build."""
    before = getattr(env, "execution_keys", {})
    env.execution_keys = {page: page_key(Path(env.doc2path(page)).read_text()) for page in env.found_docs}
    return [page for page, key in env.execution_keys.items() if key != before.get(page)]


def name_kernel(app: Sphinx, page: str, source: list[str]) -> None:
    """Puts the key of a page into the name of its kernel, without another line in the source."""
    env: Any = app.env
    source[0] = KERNEL.sub(rf"\1, {env.execution_keys[page]}", source[0], count=1)


def setup(app: Sphinx) -> dict[str, Any]:
    """Connects the extension to Sphinx."""
    app.connect("env-get-outdated", pages_to_read)
    app.connect("source-read", name_kernel)
    return {"parallel_read_safe": True, "env_version": 1}
