"""The built book, as its reader has it: every chapter ran, every page holds together. Needs `make book` before."""

import functools
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import jupytext
import nbformat
import pytest
from bs4 import BeautifulSoup
from test_book import CHAPTERS, EXECUTED, GUIDES, PAGES, ROOT, extension, figure_cells

from lrp_book.numbers import typeset

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
    pictures = content(page).select(
        "div.cell :is(img:not(.only-dark, .comparison img), .comparison, .hand-network, .sliding-kernel)"
    )
    assert [picture for picture in pictures if picture.find_parent("figure") is None] == []
    assert len(pictures) == len(figure_cells(jupytext.read(ROOT / f"{page}.md").cells))


@pytest.mark.parametrize("page", [page for page in [*CHAPTERS, *GUIDES] if page in EXECUTED])
def test_page_states_its_run_time(page):
    sentence = content(page).select_one("p.run-time").text
    assert int("".join(filter(str.isdigit, sentence))) > 0


@functools.cache
def notebook(page):
    """The notebook that the page offers."""
    (link,) = html(page).select("a[href$='.ipynb']")
    assert link.has_attr("download")
    return nbformat.read((HTML / page).parent / link["href"], as_version=4)


PICTURES = {"image/svg+xml", "image/png", "image/jpeg", "text/html"}
CODE_AND_FORMULAS = r"^```.*?^```|\$\$.*?\$\$|(`+)(?!`).*?(?<!`)\1(?!`)|\$[^$\n]+\$"


def prose(page):
    """The text of a notebook, without code and formulas."""
    texts = "\n\n".join(cell.source for cell in notebook(page).cells if cell.cell_type == "markdown")
    return re.sub(CODE_AND_FORMULAS, "", texts, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", EXECUTED)
def test_notebook_of_a_page_can_be_downloaded_with_its_figures(page):
    nbformat.validate(notebook(page))
    cells = [cell for cell in notebook(page).cells if "figure" in cell.metadata.get("mystnb", {})]
    assert len(cells) == len(figure_cells(jupytext.read(ROOT / f"{page}.md").cells))
    for cell in cells:
        assert any(PICTURES & set(output.get("data", {})) for output in cell.outputs)
    for caption in content(page).select("figure .caption-number"):
        assert f"**{caption.text.strip()}.**" in prose(page)


@pytest.mark.parametrize("page", EXECUTED)
def test_text_of_a_notebook_is_whole(page):
    text = "\n".join(cell.source for cell in notebook(page).cells if cell.cell_type == "markdown")
    assert re.findall(r"\{[\w:.-]+\}`|^ *[`:]{3,}\{.*|<!--|\[\]\(|\]\(\)|scrapbook", text, re.MULTILINE) == []
    addresses = re.findall(r"\]\(([^)]*)\)", prose(page))
    assert [address for address in addresses if not address.startswith(("https://", "http://", "attachment:"))] == []
    for cell in notebook(page).cells:
        shown = {address.removeprefix("attachment:") for address in re.findall(r"\((attachment:[^)]*)\)", cell.source)}
        assert shown == set(cell.get("attachments", {}))


@pytest.mark.parametrize("page", EXECUTED)
def test_notebook_says_what_the_page_says(page):
    """Every word and number of the paragraphs of a page stands in its notebook, in the same order."""

    def words(text):
        return re.findall(r"\w+", text)

    text = BeautifulSoup(str(content(page)), "html.parser")
    for left_out in text.select(
        ".math, .definition, .cell, .bibtex-citation, form, .explorer, noscript, script, code, .sd-card"
    ):
        left_out.decompose()
    have = iter(words(re.sub(r"\]\([^)]*\)|\\(?=\W)|_(?=\W)", " ", prose(page))))
    for paragraph in text.select("section > p:not(.admonition-title)"):
        assert [word for word in words(paragraph.text.replace("_", " ")) if word not in have] == []


BOOKKEEPING = re.compile(r"\b(glue|note)\b\(|import (glue|note)\b")


@pytest.mark.parametrize("page", EXECUTED)
def test_numbers_of_the_text_are_computed_in_the_notebook(page):
    assert [
        cell for cell in notebook(page).cells if cell.cell_type == "code" and re.search(BOOKKEEPING, cell.source)
    ] == []
    source = (ROOT / f"{page}.md").read_text()
    named = set(re.findall(r"\{glue:text\}`([^`:]+):?([^`]*)`", source))
    cells = [cell for cell in notebook(page).cells if "numbers" in cell.metadata.get("tags", [])]
    shown = "\n".join(cell.source for cell in cells)
    assert set(re.findall(r'^    \("(.*)", "(.*)"\),$', shown, re.MULTILINE)) == named
    for line in "".join(cell.outputs[0].text for cell in cells).splitlines():
        assert typeset(line.rpartition("  ")[2].strip()) in prose(page)


@pytest.mark.parametrize("page", EXECUTED)
def test_numbers_of_the_text_have_powers_of_ten_and_minus_signs(page):
    numbers = [pasted.text for pasted in content(page).select(".pasted-text")]
    assert [number for number in numbers if re.match(r"-\d|[\d.]+e[-+]", number)] == []


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


FETCHED_LINKS = {"stylesheet", "preload", "modulepreload", "prefetch", "preconnect", "dns-prefetch", "icon", "manifest"}


def everything(pattern):
    """Every file of the book of this kind, those of the theme and of MathJax included."""
    paths = sorted(HTML.rglob(pattern))
    assert paths != [], f"no {pattern} in {HTML}: run make book first"
    return paths


def is_elsewhere(address):
    return urlsplit(address.strip()).netloc != ""


def test_no_page_loads_anything_from_another_host():
    loads = "script[src], img[src], iframe[src], source[src], video[src], audio[src], embed[src], track[src]"
    for path in everything("*.html"):
        page = parsed(path)
        sources = [element["src"] for element in page.select(loads)]
        sources += [element["data"] for element in page.select("object[data]")]
        sources += [link["href"] for link in page.select("link[href]") if set(link["rel"]) & FETCHED_LINKS]
        assert [source for source in sources if is_elsewhere(source)] == [], path


def test_no_style_sheet_loads_anything_from_another_host():
    for path in everything("*.css"):
        addresses = re.findall(r"""(?:url\(|@import)\s*["']?([^"')]+)""", path.read_text())
        assert [address for address in addresses if is_elsewhere(address)] == [], path


# Each script that stands in a page itself, and not in a file: who writes it, and what it does.
INLINE_SCRIPTS = [
    # pydata-sphinx-theme: light or dark, as last chosen, before anything is drawn.
    r"""document\.documentElement\.dataset\.mode = localStorage\.getItem\("mode"\) \|\| "auto";
    document\.documentElement\.dataset\.theme = localStorage\.getItem\("theme"\) \|\| "auto";""",
    # pydata-sphinx-theme: the name of the page, and that the search waits for the enter key.
    r"DOCUMENTATION_OPTIONS\.pagename = '[\w/.-]+';",
    r"DOCUMENTATION_OPTIONS\.search_as_you_type = false;",
    # pydata-sphinx-theme: the cursor stands in the field of the search page.
    r"""// Activate the search field on page load
    let searchInput = document\.querySelector\("form\.bd-search input"\);
    if \(searchInput\) \{
        searchInput\.focus\(\);
        searchInput\.select\(\);
        console\.log\("[^"]+"\);
    \}""",
    # Sphinx: the index of proofs begins collapsed.
    r"DOCUMENTATION_OPTIONS\.COLLAPSE_INDEX = true;",
    # sphinx-togglebutton: its settings.
    r"let toggleHint(Show|Hide) = 'Click to (show|hide)';",
    r"let toggleOpenOnPrint = 'true';",
    r"var togglebuttonSelector = '\.toggle, \.admonition\.dropdown';",
    # sphinx.ext.mathjax: the settings of _config.yml.
    r"window\.MathJax = \{[^;<]*\}",
    # lrp_book.sliding_kernel: the arrow keys move a kernel, also in a notebook that was downloaded.
    r"""\(\(\) => \{
  const steps = \{[^}]*\};
  const drawing = document\.getElementById\("[\w-]+"\);
  drawing\.addEventListener\("keydown", \(event\) => \{[\w\s().,;=&|!?:+"'`$\[\]{}-]*\}\);
\}\)\(\);""",
]
# sphinx-book-theme: the buttons of a page for the full screen, and to print.
EVENT_HANDLERS = {"toggleFullScreen()", "window.print()"}
# lrp_book.comparison: moves the line between a photograph and its map, also in a notebook that was downloaded.
EVENT_HANDLERS |= {"this.parentNode.style.setProperty('--line', this.value + '%')"}


def test_no_script_stands_in_a_page_but_those_that_are_known():
    for path in everything("*.html"):
        for script in parsed(path).select("script:not([src])"):
            if script.get("type", "text/javascript") in {"", "module", "importmap", "text/javascript"}:
                known = [pattern for pattern in INLINE_SCRIPTS if re.fullmatch(pattern, script.text.strip())]
                assert len(known) == 1, f"{path}: {script}"


def test_no_element_of_a_page_runs_a_script_but_those_that_are_known():
    for path in everything("*.html"):
        for element in parsed(path).find_all(True):
            handlers = [value for name, value in element.attrs.items() if name.startswith("on")]
            assert set(handlers) <= EVENT_HANDLERS, f"{path}: {element}"
            assert not str(element.get("href", "")).strip().lower().startswith("javascript:"), f"{path}: {element}"


def test_no_script_sets_a_cookie():
    for path in [*everything("*.js"), *everything("*.html")]:
        assert re.search(r"\.cookie\b|\bcookieStore\b", path.read_text()) is None, path


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


REFERENCE = [
    f"book/api/{title}" for title in extension("reference_pages").pages((ROOT / "book" / "api.md").read_text())
]


def test_reference_links_every_function_and_class_to_its_source():
    for page in REFERENCE:
        signatures = content(page).select("dl.py > dt.sig:first-child")
        described = [signature for signature in signatures if signature.find_parent("dl").find_parent("dl") is None]
        assert described, page
        for signature in described:
            if "data" not in signature.find_parent("dl")["class"]:
                path, _, name = signature.select_one("a:has(.viewcode-link)")["href"].partition("#")
                assert signature["id"].endswith(f".{name}")
                assert name in anchors((HTML / "book" / "api" / path).resolve())


@pytest.mark.parametrize("page", REFERENCE)
def test_page_of_the_reference_holds_together(page):
    test_every_link_into_the_book_leads_somewhere(page)
    test_every_reference_is_resolved(page)


def test_library_page_leads_to_every_public_name_and_keeps_its_former_anchors():
    rows = content("book/api").select(".names tbody tr")
    assert len(rows) > 100
    for row in rows:
        page = (HTML / "book" / row.select_one("a")["href"]).resolve()
        marks = [mark["id"] for mark in row.select("span[id]")]  # none where the name stands above, too
        assert marks == [] or marks[0] in anchors(page)
    former = {"lrp_jax.explain.relevance.relevance", "lrp_jax.core.transform.lrp", "lrp_jax.rules.Epsilon"}
    assert former <= anchors(HTML / "book" / "api.html")


def test_ledger_and_the_class_that_it_returns_share_a_page():
    assert len({page.lower() for page in REFERENCE}) == len(REFERENCE)
    assert {"lrp_jax.ledger", "lrp_jax.Ledger"} <= anchors(HTML / "book" / "api" / "lrp_jax.ledger.html")


def test_formulas_are_typeset_where_there_are_some_and_mathjax_is_loaded_nowhere_else():
    for path in everything("*.html"):
        loads = any("mathjax" in script["src"] for script in parsed(path).select("script[src]"))
        assert loads == bool(parsed(path).select(".math")), path


def test_landing_page_has_three_doors():
    doors = content("book/index").select(".sd-card")
    assert [door.select_one(".sd-card-title").text.strip() for door in doors] == ["Read", "Rerun", "Import"]
    assert [door.select_one("a[href]")["href"] for door in doors] == [
        "recap.html",
        "colophon.html",
        "explain_your_model.html",
    ]
