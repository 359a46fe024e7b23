"""Writes a page of the book, with all references resolved, as Markdown that any Jupyter shows.

The text of a page names figures, equations and publications by roles of MyST, and its numbers come from the run. Sphinx
has resolved all of these in the page's document tree, which is why that is read here, and not the source.
"""

import base64
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urljoin

from docutils import nodes
from sphinx_proof.nodes import proof_node

ELSEWHERE = "*This part of the page runs in the book only, in your browser.*"
LIST_ITEM = re.compile(r"^(\s*)(\d*)([-+#>.)])(?=\s|$)", re.MULTILINE)  # what begins a line like an item of a list


class Text(NamedTuple):
    """A block of Markdown: its text, the line of the source, and the files that it shows, by their names."""

    text: str
    line: int
    files: Mapping[str, Path] = {}


class Heading(NamedTuple):
    """The heading of a section, and the line of the source."""

    text: str
    line: int


class Cell(NamedTuple):
    """A code cell, by its number in the page's notebook."""

    number: int


Block = Text | Heading | Cell


@dataclass(frozen=True)
class Publication:
    """What a citation shows."""

    authors: str
    year: str
    address: str | None


@dataclass
class Page:
    """A page, as the writers of its nodes know it.

    Attributes:
        source: The file of the page.
        images: The folder from which image paths count.
        numbers: The numbers of figures, equations, exercises and so on: by kind, then by anchor.
        publications: What a citation shows, by its link.
        address: Where the page is published; None if it is not known.
        cited: What the page cites, each in full with its link: filled in by the writers.
        line: The line of the source that was reached: filled in by the writers.
    """

    source: Path
    images: Path
    numbers: Mapping[str, Mapping[str, tuple[int, ...]]]
    publications: Mapping[str, Publication]
    address: str | None = None
    cited: dict[str, str] = field(default_factory=dict)
    line: int = 0

    def number(self, node: nodes.Element) -> str:
        """Returns the number of a figure, an equation or the like; an empty text if it has none."""
        found = (numbers[name] for numbers in self.numbers.values() for name in node["ids"] if name in numbers)
        return ".".join(map(str, next(found, ())))


def blocks(node: nodes.Node, page: Page) -> Iterator[Block]:
    """Yields the blocks of a node, in their order on the page."""
    if isinstance(node, nodes.Element):
        if node.line and node.source and Path(node.source) == page.source:
            page.line = node.line
        for kind in type(node).__mro__:
            if kind in BLOCKS:
                yield from BLOCKS[kind](node, page)
                return
        if isinstance(node, nodes.TextElement):
            yield from _paragraph(node, page)
            return
    for child in node.children:
        yield from blocks(child, page)


def inline(node: nodes.Node, page: Page) -> str:
    """Returns a node within a paragraph as Markdown."""
    if isinstance(node, nodes.Text):
        return _escaped(str(node))
    for kind in type(node).__mro__:
        if kind in INLINE:
            return INLINE[kind](node, page)
    return _children(node, page)


def _children(node: nodes.Node, page: Page) -> str:
    return "".join(inline(child, page) for child in node.children)


def _escaped(text: str) -> str:
    text = re.sub(r"([\\`*$<])", r"\\\1", text)
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)


def _around(mark: str) -> Callable[[Any, Page], str]:
    return lambda node, page: f"{mark}{_children(node, page)}{mark}"


def _literal(node: nodes.literal, _page: Page) -> str:
    text = node.astext()
    fence = "``" if "`" in text else "`"
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _math(node: nodes.math, _page: Page) -> str:
    return f"${' '.join(node.astext().split())}$"


def _inline(node: nodes.inline, page: Page) -> str:
    classes = node["classes"]
    if "definition" in classes:  # of a term, beside its link
        return ""
    if "bibtex-citation" in classes:
        return _citation(node, page)
    return _children(node, page)


def _citation(node: nodes.inline, page: Page) -> str:
    """(Bach et al., 2015), or Bach et al. (2015) where the sentence names the authors."""
    named = not node.astext().startswith("[")
    parts = []
    for child in node.children:
        publication = page.publications.get(child.get("refuri")) if isinstance(child, nodes.reference) else None
        if publication is None:
            parts.append(inline(child, page).replace("[", "(").replace("]", ")"))
            continue
        label = publication.year if named else f"{publication.authors}, {publication.year}"
        parts.append(_link(label, publication.address))
        page.cited[child["refuri"]] = _linked(child["reftitle"], publication)
    return "".join(parts)


def _linked(reference: str, publication: Publication) -> str:
    text, _, doi = reference.rpartition(" doi:")
    return f"{_escaped(text)} {_link('doi:' + doi.rstrip('.'), publication.address)}." if text else _escaped(reference)


def _link(text: str, address: str | None) -> str:
    return f"[{text}]({address})" if address else text


def _reference(node: nodes.reference, page: Page) -> str:
    if "sd-stretched-link" in node["classes"]:  # of a card, whose text has it too
        return ""
    text = _children(node, page)
    address = node.get("refuri", "")
    if "://" in address or address.startswith("mailto:"):
        return _link(text, address)
    if not address or address.startswith("#"):
        return text
    if page.address:
        return _link(text, urljoin(page.address, address))
    is_title = any("std-doc" in child["classes"] for child in node.children if isinstance(child, nodes.Element))
    return f"*{text}*" if is_title else text


def _is_twin(node: nodes.image) -> bool:
    """Whether an image is a second version of the one before it, for dark pages."""
    return "only-dark" in node["classes"]


def _image(node: nodes.image, page: Page) -> str:
    return "" if _is_twin(node) else f"![{node.get('alt', '')}](attachment:{Path(node['uri']).name})"


def _raw_inline(node: nodes.raw, _page: Page) -> str:
    return ""


INLINE: dict[type, Callable[[Any, Page], str]] = {
    nodes.emphasis: _around("*"),
    nodes.strong: _around("**"),
    nodes.literal: _literal,
    nodes.math: _math,
    nodes.inline: _inline,
    nodes.reference: _reference,
    nodes.image: _image,
    nodes.raw: _raw_inline,
    nodes.superscript: lambda node, page: f"<sup>{_children(node, page)}</sup>",
    nodes.subscript: lambda node, page: f"<sub>{_children(node, page)}</sub>",
    nodes.target: lambda node, page: "",
}


def _nothing(_node: nodes.Node, _page: Page) -> Iterator[Block]:
    return iter(())


def _paragraph(node: nodes.Element, page: Page) -> Iterator[Block]:
    text = _children(node, page).strip()
    if text:
        files = {
            Path(image["uri"]).name: _file(image, page) for image in node.findall(nodes.image) if not _is_twin(image)
        }
        yield Text(LIST_ITEM.sub(r"\1\2\\\3", text), page.line, files)


def _file(image: nodes.image, page: Page) -> Path:
    return page.images / next(iter(image["candidates"].values()))


def _title(node: nodes.title, page: Page) -> Iterator[Block]:
    depth, parent = 0, node.parent
    while parent is not None:
        depth += isinstance(parent, nodes.section)
        parent = parent.parent
    yield Heading(f"{'#' * depth} {_children(node, page).strip()}", page.line)


def _list(node: nodes.Element, page: Page) -> Iterator[Block]:
    is_numbered = isinstance(node, nodes.enumerated_list)
    for number, item in enumerate(node.children, node.get("start", 1)):
        mark = f"{number}. " if is_numbered else "- "
        first = True
        for block in (block for child in item.children for block in blocks(child, page)):
            if isinstance(block, Text):
                lines = block.text.split("\n")
                indented = ["".join((" " * len(mark), line)) if line else line for line in lines]
                start = mark if first else " " * len(mark)
                block = block._replace(text="\n".join([start + lines[0], *indented[1:]]))
                first = False
            yield block


def _definitions(node: nodes.definition_list, page: Page) -> Iterator[Block]:
    for item in node.children:
        terms = ", ".join(_children(term, page).strip() for term in item.findall(nodes.term))
        yield Text(f"**{terms}**", page.line)
        for definition in item.findall(nodes.definition):
            yield from _quoted(definition.children, page)


def _code(node: nodes.literal_block, page: Page) -> Iterator[Block]:
    language = node.get("language", "")
    fence = "````" if "```" in node.astext() else "```"
    yield Text(f"{fence}{'' if language in ('default', 'none') else language}\n{node.astext()}\n{fence}", page.line)


def _equation(node: nodes.math_block, page: Page) -> Iterator[Block]:
    text = " ".join(node.astext().split())  # in one line: within a quotation each other one would begin with its mark
    number = page.number(node)
    tag = rf" \tag{{{number}}}" if number else ""
    if r"\\" in text and r"\begin" not in text:
        text = rf"\begin{{split}} {text} \end{{split}}"
    yield Text(f"$${text}{tag}$$", page.line)


def _table(node: nodes.table, page: Page) -> Iterator[Block]:
    rows = [[_entry(entry, page) for entry in row.findall(nodes.entry)] for row in node.findall(nodes.row)]
    heads = [len(list(head.findall(nodes.row))) for head in node.findall(nodes.thead)]
    if not heads:
        rows.insert(0, [""] * len(rows[0]))
    first = next(iter(node.findall(nodes.row)))
    rule = ["---:" if "text-right" in entry["classes"] else "---" for entry in first.findall(nodes.entry)]
    for title in node.findall(nodes.title):
        yield Text(_numbered("Table", node, page, _children(title, page)), page.line)
    lines = [rows[0], rule, *rows[1:]]
    yield Text("\n".join(f"| {' | '.join(line)} |" for line in lines), page.line)


def _entry(node: nodes.entry, page: Page) -> str:
    texts = (block.text for child in node.children for block in blocks(child, page) if isinstance(block, Text))
    return "<br>".join(texts).replace("\n", " ").replace("|", r"\|")


def _numbered(kind: str, node: nodes.Element, page: Page, text: str) -> str:
    number = page.number(node)
    return f"**{kind} {number}.** {text.strip()}" if number else text.strip()


def _figure(node: nodes.figure, page: Page) -> Iterator[Block]:
    """A figure; of one that a cell draws, the cell shows the picture."""
    is_drawn = any(parent.get("nb_element") == "cell_code_output" for parent in _ancestors(node))
    for child in node.children:
        if isinstance(child, nodes.caption):
            yield Text(_numbered("Fig.", node, page, _children(child, page)), page.line)
        elif not is_drawn:
            yield from blocks(child, page)


def _ancestors(node: nodes.Node) -> Iterator[nodes.Element]:
    while node.parent is not None:
        node = node.parent
        yield node


def _block_image(node: nodes.image, page: Page) -> Iterator[Block]:
    if not _is_twin(node):
        yield Text(_image(node, page), page.line, {Path(node["uri"]).name: _file(node, page)})


def _raw(node: nodes.raw, page: Page) -> Iterator[Block]:
    if "html" in node["format"].split() and ("<form" in node.astext() or "<script" in node.astext()):
        yield Text(ELSEWHERE, page.line)


def _container(node: nodes.container, page: Page) -> Iterator[Block]:
    if node.get("nb_element") == "cell_code":
        yield Cell(node["cell_index"])
        for figure in node.findall(nodes.figure):
            yield from blocks(figure, page)
    elif node.get("design_component") in ("card-title", "tab-label"):
        yield Text(f"**{_children(node, page).strip()}**", page.line)
    else:
        for child in node.children:
            yield from blocks(child, page)


def _admonition(node: nodes.Element, page: Page) -> Iterator[Block]:
    """A note, a theorem, an exercise or the like: a quotation with a title, around the cells in it."""
    titles = [child for child in node.children if isinstance(child, nodes.title)]
    number = page.number(node)
    name = f"{node.get('realtype') or node.get('type')} {number} ".capitalize() if number else ""
    if titles:
        text = " ".join(_children(titles[0], page).split())
        yield Text(f"> **{name}{text}**", page.line)
    elif type(node) is not nodes.admonition:  # of a note, a warning and so on
        yield Text(f"> **{type(node).__name__.capitalize()}**", page.line)
    yield from _quoted([child for child in node.children if child not in titles], page)


def _proof(node: nodes.Element, page: Page) -> Iterator[Block]:
    for block in (block for child in node.children for block in blocks(child, page)):
        if isinstance(block, Text):
            block = block._replace(text=block.text.replace("> Proof. ", "> *Proof.* ", 1))
        yield block


def _quoted(children: list[nodes.Node], page: Page) -> Iterator[Block]:
    for block in (block for child in children for block in blocks(child, page)):
        if isinstance(block, Text):
            block = block._replace(text="\n".join(f"> {line}".rstrip() for line in block.text.split("\n")))
        yield block


BLOCKS: dict[type, Callable[[Any, Page], Iterator[Block]]] = {
    nodes.paragraph: _paragraph,
    nodes.rubric: lambda node, page: iter([Text(f"**{_children(node, page)}**", page.line)]),
    nodes.title: _title,
    nodes.bullet_list: _list,
    nodes.enumerated_list: _list,
    nodes.definition_list: _definitions,
    nodes.literal_block: _code,
    nodes.math_block: _equation,
    nodes.table: _table,
    nodes.figure: _figure,
    nodes.image: _block_image,
    nodes.raw: _raw,
    nodes.container: _container,
    proof_node: _proof,
    nodes.Admonition: _admonition,
    nodes.block_quote: lambda node, page: _quoted(node.children, page),
    nodes.transition: lambda node, page: iter([Text("---", page.line)]),
    nodes.compound: _nothing,  # the table of contents
    nodes.Invisible: _nothing,
    nodes.Inline: _paragraph,
}


def publications_of(citations: Mapping[str, str], entries: Mapping[str, Any]) -> dict[str, Publication]:
    """Returns what citations show.

    Args:
        citations: The key of each publication, by the link to it.
        entries: The entries of the bibliography in the form of pybtex, by their keys.
    """
    return {link: _publication(entries[key]) for link, key in citations.items()}


def _publication(entry: Any) -> Publication:
    names = [" ".join([*person.prelast_names, *person.last_names]) for person in entry.persons["author"]]
    authors = " and ".join(names) if len(names) < 3 else f"{names[0]} et al."
    doi = entry.fields.get("doi")
    return Publication(authors, entry.fields["year"], f"https://doi.org/{doi}" if doi else entry.fields.get("url"))


def attachment(file: Path) -> dict[str, str]:
    """Returns an image as a cell of a notebook carries it."""
    kind = {".svg": "image/svg+xml", ".jpg": "image/jpeg"}.get(file.suffix, f"image/{file.suffix[1:]}")
    return {kind: base64.b64encode(file.read_bytes()).decode()}
