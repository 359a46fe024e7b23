"""Sphinx extension: every executed page can be downloaded as a notebook that is whole, and runs elsewhere too.

The pages are written in MyST, whose roles and directives Jupyter and Colab do not know. In the notebook their text is
plain Markdown, with the references and the numbers that the page shows. What a page notes for its text by `glue`, the
notebook keeps in a dictionary, and prints below each section, so that a rerun shows its own numbers beside the text.
"""

import ast
import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
from jupyter_cache import get_cache
from page_markdown import ELSEWHERE, Block, Cell, Heading, Page, Text, attachment, blocks, publications_of
from sphinx.application import Sphinx

BOOK = """\
# Where the book is not installed, in Colab for example, this fetches its repository and installs what the page needs.
try:
    import lrp_book
except ImportError:
    !git clone --quiet --depth 1 {address} lrp-jax-repository
    %pip install --quiet --editable "./lrp-jax-repository[book]"
    import os, sys
    repository = os.path.abspath("lrp-jax-repository")
    sys.path[:0] = [repository, os.path.join(repository, "book")]  # an installation is not seen before the next start
"""
BOOK_HERE = """\
# This page needs the library and the book's package: start Jupyter with `make lab` in a copy of the repository.
import lrp_book
"""
LIBRARY = """\
# Where the library is not installed, in Colab for example, this installs it with what the page uses besides.
try:
    import lrp_jax
except ImportError:
    %pip install --quiet "lrp-jax[large] @ git+{address}" equinox flax matplotlib optax
"""
LIBRARY_HERE = """\
# This page needs the library, with Flax, Equinox, Optax and Matplotlib: `pip install -e '.[book]'` in a copy of the
# repository installs all of them.
import lrp_jax
"""
IMPORT = "from myst_nb import glue"
NOTE, NUMBERS_OF = "from lrp_book.noted import note", "from lrp_book.noted import numbers_of"
STYLE = "from lrp_book import figures\n\nfigures.use()"
NUMBERS = "in_text = {}  # the numbers in the text, as this run computes them"
NUMBERED = re.compile(r"\{glue:text\}`([^`:]+):?([^`]*)`")
COMMAND = re.compile(r"^[%!].*", re.MULTILINE)
WITHIN_QUOTATION = re.compile(r"\n\n(?=> (?!\*\*|\*Proof))")  # but for where another theorem begins
HIDDEN = {"hide-input", "hide-cell", "remove-cell", "remove-input"}


def repository_address() -> str | None:
    """Returns where the repository can be fetched, if the build says that it is published."""
    return os.environ.get("LRP_JAX_URL")


def executed_notebook(executed: Path, cache: str) -> nbformat.NotebookNode:
    """Returns the notebook of a page with its outputs."""
    notebook = nbformat.read(executed, as_version=4)
    with contextlib.suppress(KeyError):  # myst-nb writes a page that it took from the cache without its outputs
        _, notebook = get_cache(cache).merge_match_into_notebook(notebook)
    return without_style(notebook)


def without_style(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Returns the notebook with the usual style of figures, if that of the book is all that it needs of `lrp_book`."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and "lrp_book" in cell.source]
    if len(cells) == 1 and STYLE in cells[0].source and cells[0].source.count("lrp_book") == 1:
        cells[0].source = cells[0].source.replace(STYLE, "%matplotlib inline")
    return notebook


def published_notebook(notebook: nbformat.NotebookNode, doctree: Any, page: Page) -> nbformat.NotebookNode:
    """Returns the notebook that can be downloaded.

    Args:
        notebook: The executed notebook of the page.
        doctree: The document tree of the page, with all references resolved.
        page: What its text refers to.
    """
    cells = [first_cell(notebook)]
    text: list[Text | Heading] = []
    for block in with_numbers(with_removed_cells(list(blocks(doctree, page)), notebook), notebook, page.source):
        if text and not isinstance(block, Text):
            cells.append(text_cell(text, len(cells)))
            text = []
        if isinstance(block, nbformat.NotebookNode):
            add_numbers(cells, block)
        elif isinstance(block, Cell):
            cells += code_cells(notebook.cells[block.number])
        elif not (text and block.text == text[-1].text == ELSEWHERE):  # may be in several parts
            text.append(block)
    if page.cited:
        text += [Heading("## References", page.line), *(Text(f"- {entry}", page.line) for entry in page.cited.values())]
    cells += [text_cell(text, len(cells))] if text else []
    published = nbformat.v4.new_notebook(cells=cells)
    published.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    published.metadata.language_info = {"name": "python"}
    return published


def add_numbers(cells: list[nbformat.NotebookNode], numbers: nbformat.NotebookNode) -> None:
    """Adds a cell that prints numbers, joined with one before it that the page does not show and that notes them."""
    last = next(i for i in reversed(range(len(cells))) if cells[i].cell_type == "code")
    if "remove-cell" in cells[last].metadata.get("tags", []) and "in_text[" in cells[last].source:
        numbers.source = f"{cells.pop(last).source}\n\n{numbers.source}"
    cells.append(numbers)


def first_cell(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Returns a cell that installs what a notebook needs, or says how to."""
    needs_book = any("lrp_book" in cell.source for cell in notebook.cells if cell.cell_type == "code")
    address = repository_address()
    published, here = (BOOK, BOOK_HERE) if needs_book else (LIBRARY, LIBRARY_HERE)
    return nbformat.v4.new_code_cell(published.format(address=address) if address else here, id="install")


def text_cell(text: list[Text | Heading], number: int) -> nbformat.NotebookNode:
    """Returns a cell of Markdown, with the images that it shows."""
    source = WITHIN_QUOTATION.sub("\n>\n", "\n\n".join(block.text for block in text))
    cell = nbformat.v4.new_markdown_cell(source, id=f"text-{number}")
    files = {name: file for block in text if isinstance(block, Text) for name, file in block.files.items()}
    if files:
        cell.attachments = {name: attachment(file) for name, file in files.items()}
    return cell


def with_removed_cells(page: list[Block], notebook: nbformat.NotebookNode) -> Iterator[Block]:
    """Yields the blocks of a page with the cells that the page does not show, each in its place in the source."""
    lines = notebook.metadata.source_map
    shown = {block.number for block in page if isinstance(block, Cell)}
    removed = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code" and i not in shown]
    for block in page:
        line = lines[block.number] if isinstance(block, Cell) else block.line
        while removed and lines[removed[0]] < line:
            yield Cell(removed.pop(0))
        yield block
    yield from map(Cell, removed)


def with_numbers(
    page: Iterator[Block], notebook: nbformat.NotebookNode, source: Path
) -> Iterator[Block | nbformat.NotebookNode]:
    """Yields the blocks of a page with a cell below each section that prints the numbers of its text."""
    named = numbers_named(source)
    values: dict[str, Any] = {}
    for block in page:
        if isinstance(block, Heading):
            yield from numbers_cell(named, values, block.line)
        if isinstance(block, Cell):
            values |= noted(notebook.cells[block.number])
        yield block
    yield from numbers_cell(named, values, len(source.read_text().splitlines()) + 1)


class Named(NamedTuple):
    """A number that the text names: by what name, in which format, and the line where it does."""

    name: str
    form: str
    line: int


def numbers_named(source: Path) -> list[Named]:
    """Returns the numbers that the text of a page names, in their order."""
    lines = enumerate(source.read_text().splitlines(), 1)
    return [Named(match[1], match[2], line) for line, text in lines for match in NUMBERED.finditer(text)]


def numbers_cell(named: list[Named], values: Mapping[str, Any], end: int) -> Iterator[nbformat.NotebookNode]:
    """Yields a cell that prints the numbers named above a line, and takes them off the list: those that are known."""
    known = [number for number in named if number.line < end and number.name in values]
    named[:] = [number for number in named if number not in known]
    now = dict.fromkeys((number.name, number.form) for number in known)
    if now:
        width = max(len(name) for name, _ in now)
        shown = "\n".join(f"    ({json.dumps(name, ensure_ascii=False)}, {json.dumps(form)})," for name, form in now)
        line = f'f"{{name:<{width}}}  {{in_text[name]:{{form}}}}"'
        source = (
            "# The numbers of this section, as this run computed them.\n"
            f'print("\\n".join({line} for name, form in [\n{shown}\n]))'
        )
        printed = "".join(f"{name:<{width}}  {values[name]:{form}}\n" for name, form in now)
        yield nbformat.v4.new_code_cell(
            source,
            id=f"numbers-{end}",
            metadata={"jupyter": {"source_hidden": True}, "tags": ["numbers"]},
            outputs=[nbformat.v4.new_output("stream", name="stdout", text=printed)],
        )


def noted(cell: nbformat.NotebookNode) -> dict[str, Any]:
    """Returns the numbers and words that a cell notes for the text."""
    glued = [output for output in cell.outputs if "scrapbook" in output.get("metadata", {})]
    return {output.metadata.scrapbook.name: value_of(output) for output in glued}


def value_of(output: nbformat.NotebookNode) -> Any:
    """Returns the value of which an output is the text."""
    (text,) = (text for kind, text in output.data.items() if kind.endswith("text/plain"))
    return ast.literal_eval(re.sub(r"^[\w.]+\((.*?)(, dtype=\w+)?\)$", r"\1", text))  # np.float64(1.5), Array(1.5, ...)


def code_cells(cell: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """Returns a code cell without its bookkeeping; none if nothing else is in it."""
    tags = set(cell.metadata.get("tags", []))
    source = without_glue(cell.source)
    if not source or ("remove-cell" in tags and only_checks(source)):
        return []
    cell = cell.copy()
    cell.source = source
    cell.outputs = [output for output in cell.outputs if is_shown(output)]
    if tags & HIDDEN:
        cell.metadata = nbformat.from_dict({**cell.metadata, "jupyter": {"source_hidden": True}})
    return [cell]


def is_shown(output: nbformat.NotebookNode) -> bool:
    """Whether the page shows an output: neither what is noted for the text, nor warnings and progress bars."""
    return "scrapbook" not in output.get("metadata", {}) and output.get("name") != "stderr"


def only_checks(source: str) -> bool:
    """Whether a cell asserts, and does nothing else."""
    return all(isinstance(statement, ast.Assert) for statement in parsed(source).body)


def parsed(source: str) -> ast.Module:
    """Returns the syntax tree of a cell, without the commands of Jupyter in it."""
    return ast.parse(COMMAND.sub("pass", source))


def without_glue(source: str) -> str:
    """Returns the source of a cell that notes in a dictionary what the page glues into its text."""
    if "glue" not in source and "note" not in source:
        return source
    source = with_dictionary(source) if IMPORT in source or NOTE in source else source
    lines = source.splitlines()
    calls = [(node, node.value) for node in ast.walk(parsed(source)) if isinstance(node, ast.Expr)]
    for statement, call in sorted(calls, key=lambda call: call[0].lineno, reverse=True):
        if not isinstance(call, ast.Call) or ast.unparse(call.func) not in {"glue", "note"}:
            continue
        arguments = [str(ast.get_source_segment(source, argument)) for argument in call.args]
        if ast.unparse(call.func) == "note":
            noted = f"in_text.update(numbers_of({arguments[0]}))"
        else:
            name, value = arguments
            noted = f"in_text[{name}] = " + (f"({value})" if "\n" in value else value)
        lines[statement.lineno - 1 : statement.end_lineno] = [" " * statement.col_offset + noted]
    return "\n".join(lines)


def with_dictionary(source: str) -> str:
    """Returns the source of a cell with a dictionary for the numbers below its imports, and without that of `glue`."""
    lines = source.splitlines()
    imports = [node for node in parsed(source).body if isinstance(node, ast.Import | ast.ImportFrom)]
    lines.insert(imports[-1].end_lineno or 0, f"\n{NUMBERS}")
    lines = [NUMBERS_OF if line == NOTE else line for line in lines if line != IMPORT]
    return "\n".join(lines).strip()


def page_of(app: Sphinx, pagename: str) -> Page:
    """Returns what the text of a page refers to."""
    env: Any = app.env
    builder: Any = app.builder
    bibliography = env.get_domain("cite")
    links = {
        f"{builder.get_relative_uri(pagename, citation.bibliography_key.docname)}#{citation.citation_id}": citation.key
        for citation in bibliography.citations
    }
    base = app.config.html_baseurl
    return Page(
        source=Path(env.doc2path(pagename)),
        images=Path(app.srcdir),
        numbers=builder.fignumbers,
        publications=publications_of(links, bibliography.bibdata.data.entries),
        address=f"{base.rstrip('/')}/{builder.get_target_uri(pagename)}" if base else None,
    )


def offer_notebook(app: Sphinx, pagename: str, _template: str, context: dict[str, Any], doctree: Any) -> None:
    """Puts the notebook beside the page, for the theme's download button."""
    executed = Path(app.outdir).parent / "jupyter_execute" / f"{pagename}.ipynb"
    if executed.exists() and doctree is not None:
        env: Any = app.env
        notebook = executed_notebook(executed, env.mystnb_config.execution_cache_path)
        published = Path(app.outdir) / "_sources" / f"{pagename}.ipynb"
        published.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(published_notebook(notebook, doctree, page_of(app, pagename)), published)
        context["ipynb_source"] = f"{pagename}.ipynb"


def setup(app: Sphinx) -> dict[str, Any]:
    """Connects the extension to Sphinx, ahead of the theme, which makes the buttons."""
    app.connect("html-page-context", offer_notebook, priority=400)
    return {"parallel_read_safe": True}
