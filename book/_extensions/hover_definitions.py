"""Sphinx extension: the definition of a term appears beside its link, under the pointer or the keyboard's focus.

The definition stands in the page, hidden by the style sheet. So it needs no script, and formulas in it are typeset.
"""

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.writers.html5 import HTML5Translator


class DefinedTerm(nodes.reference):
    """A link to a term whose definition follows it."""


def visit(translator: HTML5Translator, node: DefinedTerm) -> None:
    """Writes the link so that screen readers find the definition."""
    translator.visit_reference(node)
    translator.body[-1] = translator.body[-1].replace("<a ", f'<a aria-describedby="{node["described_by"]}" ', 1)


def depart(translator: HTML5Translator, node: DefinedTerm) -> None:
    """Ends the link."""
    translator.depart_reference(node)


def definition_of(env: BuildEnvironment, name: str) -> list[nodes.Node]:
    """The content of a term's definition in the glossary."""
    docname, anchor = env.domains["std"].objects["term", name]
    terms = env.get_doctree(docname).findall(nodes.term)
    (entry,) = (term.parent for term in terms if anchor in term["ids"])
    return [child.deepcopy() for paragraph in entry.findall(nodes.paragraph) for child in paragraph.children]


def show_definitions(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Puts its definition behind every link to a term."""
    if app.builder.format != "html":
        return
    names = {anchor: name for (kind, name), (_, anchor) in app.env.domains["std"].objects.items() if kind == "term"}
    links = [word.parent for word in doctree.findall(nodes.inline) if "std-term" in word["classes"]]
    for number, link in enumerate(links):
        name = names[link.get("refid") or link["refuri"].rpartition("#")[2]]
        identifier = f"definition-{docname.rpartition('/')[2]}-{number}"
        definition = nodes.inline("", "", *definition_of(app.env, name), ids=[identifier], classes=["definition"])
        term = DefinedTerm("", "", *link.children, **link.attributes, described_by=identifier)
        link.parent.replace(link, [term, definition])


def setup(app: Sphinx) -> dict[str, Any]:
    """Connects the extension to Sphinx."""
    app.add_node(DefinedTerm, html=(visit, depart))
    app.connect("doctree-resolved", show_definitions)
    return {"parallel_read_safe": True}
