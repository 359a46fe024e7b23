"""The built book, as its reader has it: every chapter ran, every page holds together. Needs `make book` before."""

import functools
from pathlib import Path
from urllib.parse import unquote, urlsplit

import jupytext
import nbformat
import pytest
from bs4 import BeautifulSoup
from test_book import CHAPTERS, EXECUTED, GUIDES, PAGES, ROOT, figure_cells

pytestmark = pytest.mark.book

HTML = ROOT / "_build" / "html"


def html(page):
    path = HTML / f"{page}.html"
    assert path.exists(), f"{path} is missing: run make book first"
    return parsed(path)


@functools.cache
def parsed(path):
    return BeautifulSoup(path.read_text(), "html.parser")


@functools.cache
def anchors(path):
    return {element.get("id") or element.get("name") for element in parsed(path).select("[id], a[name]")}


def content(page):
    """The page without the theme around it."""
    return html(page).select_one("article.bd-article")


@pytest.mark.parametrize("page", EXECUTED)
def test_page_ran_without_an_error_and_draws_figures_only(page):
    cells = content(page).select("div.cell")
    assert len(cells) > 0
    assert content(page).select("div.cell .traceback") == []
    pictures = content(page).select("div.cell img")
    assert [picture for picture in pictures if picture.find_parent("figure") is None] == []
    assert len(pictures) == len(figure_cells(jupytext.read(ROOT / f"{page}.md").cells))


@pytest.mark.parametrize("page", [*CHAPTERS, *GUIDES])
def test_page_states_its_run_time(page):
    sentence = content(page).select_one("p.run-time").text
    assert int("".join(filter(str.isdigit, sentence))) > 0


@pytest.mark.parametrize("page", EXECUTED)
def test_notebook_of_a_page_can_be_downloaded_with_its_figures(page):
    (link,) = {link["href"] for link in html(page).select("a[href$='.ipynb']")}
    notebook = nbformat.read((HTML / page).parent / link, as_version=4)
    assert "import lrp_jax" in notebook.cells[0].source
    cells = [cell for cell in notebook.cells if "figure" in cell.metadata.get("mystnb", {})]
    assert len(cells) == len(figure_cells(jupytext.read(ROOT / f"{page}.md").cells))
    for cell in cells:
        assert any("image/png" in output.get("data", {}) for output in cell.outputs)
    assert any(cell.get("outputs") for cell in notebook.cells)


@pytest.mark.parametrize("page", PAGES)
def test_every_figure_is_numbered_captioned_and_described(page):
    for figure in content(page).select("figure"):
        assert figure.select_one("figcaption .caption-number").text.startswith("Fig.")
        assert len(figure.select_one("figcaption .caption-text").text.split()) > 5
    for image in content(page).select("img"):
        assert len(image["alt"].split()) > 5


@pytest.mark.parametrize("page", PAGES)
def test_every_link_into_the_book_leads_somewhere(page):
    here = HTML / f"{page}.html"
    for link in html(page).select("a[href]"):
        target = urlsplit(link["href"])
        if target.scheme or link["href"] == "#":
            continue
        path = (here.parent / unquote(target.path)).resolve() if target.path else here
        assert path.exists(), link
        if target.fragment and path.suffix == ".html":
            assert unquote(target.fragment) in anchors(path), link


@pytest.mark.parametrize("page", PAGES)
def test_nothing_is_loaded_from_another_host(page):
    loads = [("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src")]
    sources = [element.get(key) or "" for name, key in loads for element in html(page).select(f"{name}[{key}]")]
    sources += [link["href"] for link in html(page).select("link[rel=stylesheet], link[rel=preload], link[rel=icon]")]
    assert [source for source in sources if urlsplit(source).netloc] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_reference_is_resolved(page):
    text = content(page)
    assert text.select(".problematic, .system-message, .pending_xref") == []
    assert "{glue" not in text.text
    assert "{numref}" not in text.text
    assert "{eq}" not in text.text


def test_every_figure_of_a_chapter_is_listed_by_slide():
    listed = {Path(urlsplit(link["href"]).path).name + "#" + urlsplit(link["href"]).fragment
              for link in content("book/slides").select("a.reference")}  # fmt: skip
    figures = {
        f"{Path(page).name}.html#{figure['id']}" for page in CHAPTERS for figure in content(page).select("figure[id]")
    }
    assert figures - listed == set()


def test_terms_show_their_definition():
    entries = {term["id"]: term.find_next("dd").text for term in content("book/glossary").select("dt[id]")}
    links = [(page, word.parent) for page in PAGES for word in content(page).select("a > .std-term")]
    assert {page for page, _ in links} >= {"book/index", *GUIDES[:1]}
    for page, link in links:
        shown = content(page).find(id=link["aria-describedby"])
        assert link.find_next_sibling() is shown
        assert shown.text.split() == entries[urlsplit(link["href"]).fragment].split()


def test_reference_links_every_function_and_class_to_its_source():
    signatures = content("book/api").select("dl.py.function > dt, dl.py.class > dt")
    assert len(signatures) > 50
    for signature in signatures:
        link = signature.select_one("a:has(.viewcode-link)")
        path, _, name = link["href"].partition("#")
        assert signature["id"].endswith(f".{name}")
        assert name in anchors((HTML / "book" / path).resolve())


def test_landing_page_has_three_doors():
    doors = content("book/index").select(".sd-card")
    assert [door.select_one(".sd-card-title").text.strip() for door in doors] == ["Read", "Rerun", "Import"]
    assert [door.select_one("a[href]")["href"] for door in doors] == [
        "recap.html",
        "colophon.html",
        "explain_your_model.html",
    ]
