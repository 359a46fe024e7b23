"""Sphinx extension: every public function and class has a page of its own, under the name that users import.

The page of the library lists them. It says of which modules with a block

    ```{names} lrp_jax.rules
    ```

whose lines, if there are any, name what else belongs there. In place of the block stand the text of the module and a
table with a line for each name. The pages are written before Sphinx looks for its sources. What differs in its case
alone, such as `ledger` and `Ledger`, shares a page, since some file systems would keep one of two.
"""

import functools
import importlib
import inspect
import re
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer

INDEX = "book/api"
BLOCK = re.compile(r"^```\{names\} ?(?P<modules>[^\n]*)\n(?P<others>(?:[\w.]+\n)*)```$", re.MULTILINE)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
PAGE = """\
---
orphan: true
---

# {title}

[The library](../api.md) / {group}

{entries}
"""
ENTRY = """\
```{{eval-rst}}
.. auto{kind}:: {name}
{options}
```
"""
OPTIONS = {"function": "", "class": "   :members:", "exception": "   :members:", "data": ""}


@dataclass(frozen=True)
class Entry:
    """A public name.

    Attributes:
        name: As users import it.
        home: Where the object is defined: also a name of it, and once an anchor on the page of the library.
        kind: What it is, as the directives of Sphinx call it.
        summary: The first sentence of its documentation.
    """

    name: str
    home: str
    kind: str
    summary: str


def groups(index: str) -> dict[str, list[Entry]]:
    """Returns the public names that the page of the library lists, by heading.

    Args:
        index: The source of the page.
    """
    found: dict[str, list[Entry]] = {}
    for block in BLOCK.finditer(index):
        found.setdefault(heading_above(index, block.start()), []).extend(entries_of(block))
    return found


def heading_above(index: str, position: int) -> str:
    """Returns the last heading before a position."""
    return HEADING.findall(index, 0, position)[-1]


def entries_of(block: re.Match[str]) -> list[Entry]:
    """Returns what a block lists."""
    names = [f"{module}.{name}" for module in block["modules"].split() for name in public_names(module)]
    return [entry_of(name) for name in [*names, *block["others"].split()]]


def public_names(module_name: str) -> list[str]:
    """Returns the functions, classes and documented values that a module offers."""
    module = importlib.import_module(module_name)
    if hasattr(module, "__all__"):
        names = [name for name in module.__all__ if not inspect.ismodule(getattr(module, name))]
        return sorted(names, key=lambda name: (name.lower(), name.istitle()))
    documented = documented_values(module_name)
    own = [name for name, value in vars(module).items() if is_defined_in(module, value) or name in documented]
    return [name for name in own if not name.startswith("_")]


def is_defined_in(module: ModuleType, value: Any) -> bool:
    """Whether a value is a function or a class of this module."""
    return (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__ == module.__name__


@functools.cache
def documented_values(module_name: str) -> Mapping[str, str]:
    """Returns what a module says of the values in it that are neither functions nor classes."""
    documented = ModuleAnalyzer.for_module(module_name).find_attr_docs()
    return {name: "\n".join(lines) for (owner, name), lines in documented.items() if not owner}


def entry_of(name: str) -> Entry:
    """Returns what is known of a public name."""
    module_name, _, own_name = name.rpartition(".")
    value = getattr(importlib.import_module(module_name), own_name)
    if inspect.isclass(value) or inspect.isfunction(value):
        is_class = "exception" if inspect.isclass(value) and issubclass(value, BaseException) else "class"
        kind = is_class if inspect.isclass(value) else "function"
        return Entry(name, f"{value.__module__}.{value.__qualname__}", kind, first_sentence(inspect.getdoc(value)))
    home = home_of(own_name, value) or module_name
    documentation = documented_values(home).get(own_name)
    if documentation is None and typing.get_origin(value) is Literal:
        documentation = f"One of {', '.join(f'`{choice!r}`' for choice in typing.get_args(value))}."
    return Entry(name, f"{home}.{own_name}", "data", first_sentence(documentation))


def home_of(own_name: str, value: Any) -> str | None:
    """Returns the module that documents a value which is neither a function nor a class."""
    modules = [name for name, module in sorted(sys.modules.items()) if name.startswith("lrp_")
               and vars(module).get(own_name) is value]  # fmt: skip
    return next((module for module in modules if own_name in documented_values(module)), None)


def first_sentence(documentation: str | None) -> str:
    """Returns the first sentence of a documentation on one line."""
    paragraph = " ".join((documentation or "").split("\n\n")[0].split())
    return re.split(r"(?<=[.!?]) (?=[A-Z`])", paragraph)[0]


def pages(index: str) -> dict[str, list[tuple[str, Entry]]]:
    """Returns the pages by title: what stands on each, with the heading under which the page of the library lists it.

    An object with several public names has one page, under the first.
    """
    found: dict[str, list[tuple[str, Entry]]] = {}
    titles: dict[str, str] = {}
    homes: set[str] = set()
    for group, entries in groups(index).items():
        functions_first = sorted(entries, key=lambda entry: entry.kind != "function")
        for entry in functions_first:
            if entry.home not in homes:
                title = titles.setdefault(entry.name.lower(), entry.name)
                found.setdefault(title, []).append((group, entry))
                homes.add(entry.home)
    return found


def title_of(index: str) -> dict[str, str]:
    """Returns the title of the page on which each object stands, by where the object is defined."""
    return {entry.home: title for title, on_it in pages(index).items() for _, entry in on_it}


def written(title: str, on_it: list[tuple[str, Entry]]) -> str:
    """Returns the source of a page."""
    entries = [ENTRY.format(kind=entry.kind, name=entry.name, options=OPTIONS[entry.kind]) for _, entry in on_it]
    return PAGE.format(title=title, group=on_it[0][0], entries="\n".join(entries))


def write_pages(app: Sphinx) -> None:
    """Writes the pages that have changed, and removes those whose names there are no longer."""
    folder = Path(app.srcdir, INDEX)
    folder.mkdir(exist_ok=True)
    sources = {f"{title}.md": written(title, on_it) for title, on_it in pages(index_of(app)).items()}
    for path in folder.glob("*.md"):
        if path.name not in sources:
            path.unlink()
    for name, source in sources.items():
        if not (folder / name).exists() or (folder / name).read_text() != source:
            (folder / name).write_text(source)


def index_of(app: Sphinx) -> str:
    """Returns the source of the page of the library."""
    return Path(app.srcdir, f"{INDEX}.md").read_text()


def list_names(app: Sphinx, page: str, source: list[str]) -> None:
    """Puts the text of a module and the table of its names in place of each block."""
    if page == INDEX:
        titles, anchors = title_of(source[0]), set[str]()
        source[0] = BLOCK.sub(lambda block: "\n".join(listed(block, titles, anchors)), source[0])


def listed(block: re.Match[str], titles: Mapping[str, str], anchors: set[str]) -> Iterator[str]:
    """Yields the lines that stand in place of a block.

    Args:
        block: The block.
        titles: The title of the page on which each object stands.
        anchors: Those that the page has so far; grows.
    """
    yield from (f"```{{eval-rst}}\n.. automodule:: {module}\n```\n" for module in block["modules"].split())
    yield ":::{div} names\n| Name | What it is |\n| --- | --- |"
    for entry in entries_of(block):
        new = [anchor for anchor in dict.fromkeys([entry.name, entry.home]) if anchor not in anchors]
        anchors.update(new)
        marked = "".join(f'<span id="{anchor}"></span>' for anchor in new)
        own_name = entry.name.rpartition(".")[2]
        summary = re.sub(r"([|*<$\\])", r"\\\1", entry.summary)
        yield f"| {marked}[`{own_name}`](api/{titles[entry.home]}.md) | {summary} |"
    yield ":::"


def set_code_and_tables(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Marks the code and the tables in the text of a module, which are written as in Markdown, for Sphinx."""
    if what == "module":
        lines[:] = in_restructured_text(lines)


def in_restructured_text(lines: Sequence[str]) -> list[str]:
    """Returns lines in which indented code and tables of Markdown are directives.

    Example:
        >>> in_restructured_text(["So:", "", "    f(x)", "", "| a | b |", "| --- | --- |", "| 1 | 2 |"])[2:4]
        ['.. code-block:: python', '']
    """
    found: list[str] = []
    for line, before in zip(lines, ["", *lines], strict=False):
        indent = line[: len(line) - len(line.lstrip())]
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if line.lstrip().startswith("|"):
            if not before.strip():
                found += [f"{indent}.. list-table::", f"{indent}   :header-rows: 1", ""]
            if set(cells) != {"---"}:
                found += [
                    f"{indent}   {mark} - {cell}" for mark, cell in zip("*" + " " * len(cells), cells, strict=False)
                ]
            continue
        if line.startswith("    ") and not before.strip() and (not found or not _is_code(found)):
            found += [".. code-block:: python", ""]
        found.append(line)
    return found


def _is_code(lines: Sequence[str]) -> bool:
    """Whether the last line that is not empty is indented like code."""
    return next((line for line in reversed(lines) if line.strip()), "").startswith("    ")


def setup(app: Sphinx) -> dict[str, Any]:
    """Connects the extension to Sphinx, ahead of the search for sources."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-process-docstring", set_code_and_tables)
    app.connect("source-read", list_names)
    return {"parallel_read_safe": True}
