"""One document for a file on paper, made of the pages that were built for the screen."""

import html
import os
import posixpath
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import matplotlib
from bs4 import BeautifulSoup, Tag
from volumes import Volume

STYLE = Path(__file__).with_name("paper.css")
ON_SCREEN_ONLY = """
    .headerlink, .viewcode-link, .definition, .run-time, .only-dark, .toctree-wrapper, .sd-stretched-link, script,
    noscript, link, form, .tag_hide-input > details, .hand-network > input, .hand-network > label, .comparison input,
    .comparison-dark
"""
REFERRING = ["for", "headers", "aria-describedby", "aria-labelledby", "aria-controls"]
OPENING = "About this book"
SOLUTIONS = "Solutions to the exercises"
FACES = {
    "STIXGeneral.ttf": "font-family: Book",
    "STIXGeneralItalic.ttf": "font-family: Book; font-style: italic",
    "STIXGeneralBol.ttf": "font-family: Book; font-weight: bold",
    "STIXGeneralBolIta.ttf": "font-family: Book; font-weight: bold; font-style: italic",
    "DejaVuSansMono.ttf": "font-family: Code",
    "DejaVuSansMono-Bold.ttf": "font-family: Code; font-weight: bold",
    "DejaVuSansMono-Oblique.ttf": "font-family: Code; font-style: italic",
}


def write_document(volume: Volume, built: Path, path: Path, imprint: str) -> None:
    """Writes the document of a file.

    Args:
        volume: What it has.
        built: The folder of the built book.
        path: Where to write it.
        imprint: What stands at the foot of the cover.
    """
    sheets = {page: _sheet(built, page, path.parent) for page in volume.pages}
    if volume.opening:
        _shorten_opening(sheets[volume.opening])
    _move_solutions(sheets)
    _mend_links(sheets)
    body = "".join(f'<section class="sheet" id="{_name(page)}">{sheet}</section>' for page, sheet in sheets.items())
    path.write_text(
        '<!DOCTYPE html><html lang="en" data-theme="light"><head><meta charset="utf-8">'
        f"<title>{html.escape(volume.title)}</title>{_head(built, volume, path.parent)}"
        f"<style>{_faces()}{_running_heads(volume, sheets)}</style></head><body>{_cover(volume, sheets, imprint)}"
        '<main class="bd-main"><div class="bd-content"><div class="bd-article-container">'
        f"{_contents(volume, sheets)}{body}</div></div></main></body></html>"
    )


def _sheet(built: Path, page: str, folder: Path) -> Tag:
    """What a page says, and below it the pages of the reference that it lists, one for every function and class."""
    article = _article(built, page)
    details = {name: _article(built, name) for name in _details(article, page)}
    for name, part in {page: article, **details}.items():
        _name_apart(part, name)
    for part in details.values():
        part.h1.name = "h3"
    for image in article.select('img[src]:not([src^="data:"])'):
        image["src"] = Path(os.path.relpath(built / page / ".." / image["src"], folder)).as_posix()
    article.extend(details.values())
    return article


def _article(built: Path, page: str) -> Tag:
    """What a page says, without what only a screen can show."""
    soup = BeautifulSoup((built / f"{page}.html").read_text(), "html.parser")
    article = soup.select_one("article.bd-article > section")
    for element in article.select(ON_SCREEN_ONLY):
        element.decompose()
    return article


def _details(article: Tag, page: str) -> list[str]:
    """The pages that a page of the reference lists."""
    links = [link["href"] for link in article.select(".names td:first-child a[href]")]
    return list(dict.fromkeys(_page(page, link) for link in links))


def _page(page: str, link: str) -> str:
    """The page to which a link of a page leads."""
    path = urldefrag(link).url.removesuffix(".html")
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) if path else page


def _name(page: str, anchor: str = "") -> str:
    """The name of a place in the document."""
    return re.sub(r"[^\w-]", "-", f"{page}--{anchor}" if anchor else page)


def _name_apart(article: Tag, page: str) -> None:
    """Gives the places of a page names that no other page has, and its links the names of where they lead."""
    for heading in article.find_all(["h2", "h3", "h4", "h5", "h6"]):
        if heading.parent.get("id"):  # a section may begin at the foot of the page before its heading's
            heading["id"] = heading.parent["id"]
            del heading.parent["id"]
    seen: set[str] = set()
    for element in article.find_all(id=True):
        if element["id"] in seen:
            del element["id"]
        else:
            seen.add(element["id"])
            element["id"] = _name(page, element["id"])
    for element in article.find_all(lambda tag: any(name in tag.attrs for name in REFERRING)):
        for name in set(REFERRING) & set(element.attrs):
            words = " ".join(element[name]) if isinstance(element[name], list) else element[name]
            element[name] = " ".join(_name(page, word) for word in words.split())
    for link in article.find_all("a", href=True):
        if not urlsplit(link["href"]).scheme:
            link["href"] = "#" + _name(_page(page, link["href"]), unquote(urldefrag(link["href"]).fragment))


def _shorten_opening(article: Tag) -> None:
    """Leaves out what the cover and the contents say: the title, and the sections that list pages."""
    article.h1.string = OPENING
    for section in article.find_all("section"):
        if section.select_one("td:first-child a.reference.internal"):
            section.decompose()


def _move_solutions(sheets: dict[str, Tag]) -> None:
    """Moves the solutions of all exercises to a sheet of their own; an exercise says on which page its solution is."""
    sheet = BeautifulSoup(f"<section><h1>{SOLUTIONS}</h1></section>", "html.parser").section
    for page, article in list(sheets.items()):
        solutions = article.select("div.solution")
        if solutions:
            sheet.append(_parsed(f'<h2 id="{_name(page, SOLUTIONS)}">{article.h1.decode_contents()}</h2>'))
        for solution in solutions:
            exercise = article.find(id=solution.select_one(".admonition-title a")["href"].removeprefix("#"))
            link = f'<a href="#{solution["id"]}">Solution on page {_page_of(solution["id"])}</a>'
            exercise.append(_parsed(f'<p class="where-solved">{link}</p>'))
            sheet.append(solution.extract())
    if sheet.h2:
        sheets[SOLUTIONS] = sheet


def _parsed(text: str) -> Tag:
    return BeautifulSoup(text, "html.parser").find()


def _page_of(target: str) -> str:
    """Where the number of a page will stand, once it is known."""
    return f'<span class="page-number" data-of="{target}"></span>'


def _mend_links(sheets: Mapping[str, Tag]) -> None:
    """Makes links to what the document does not have plain text."""
    places = {_name(page) for page in sheets}
    places |= {element["id"] for sheet in sheets.values() for element in sheet.find_all(id=True)}
    for sheet in sheets.values():
        for link in sheet.find_all("a", href=True):
            if link["href"].startswith("#") and link["href"][1:] not in places:
                link.unwrap()


def _cover(volume: Volume, sheets: Mapping[str, Tag], imprint: str) -> str:
    image = sheets[volume.opening].find("img") if volume.opening else None
    picture = f'<img src="{image["src"]}" alt="">' if image else ""
    return (
        f'<header class="cover"><h1>{html.escape(volume.title)}</h1>'
        f'<p class="subtitle">{html.escape(volume.subtitle)}</p>{picture}'
        f'<p class="imprint">{html.escape(imprint)}</p></header>'
    )


def _contents(volume: Volume, sheets: Mapping[str, Tag]) -> str:
    sections = frozenset[str]().union(*(part.sections for part in volume.parts))
    captions = {part.pages[0]: part.caption for part in volume.parts}
    lines = ""
    for page, sheet in sheets.items():
        if page in captions:
            lines += f'<p class="contents-part">{captions[page]}</p>'
        depth = 1 if page in sections else 0
        lines += _line(sheet.h1, _name(page), depth)
        sections_of_page = [] if page == volume.opening else sheet.find_all("h2")
        lines += "".join(_line(heading, heading["id"], depth + 1) for heading in sections_of_page)
    return f'<nav class="sheet table-of-contents" aria-label="Contents"><h1>Contents</h1>{lines}</nav>'


def _line(heading: Tag, target: str, depth: int) -> str:
    """A line of the contents."""
    title = _parsed(f"<span>{heading.decode_contents()}</span>")
    number = title.select_one(".section-number")
    number_text = number.extract().get_text().strip() if number else ""
    return (
        f'<p class="contents-line contents-{depth}"><a href="#{target}">'
        f'<span class="contents-number">{number_text}</span> {title} {_page_of(target)}</a></p>'
    )


def _head(built: Path, volume: Volume, folder: Path) -> str:
    """The style sheets of the built book and those of paper, and what typesets the formulas."""
    page = next(page for page in volume.pages if "mathjax/" in (built / f"{page}.html").read_text())
    head = BeautifulSoup((built / f"{page}.html").read_text(), "html.parser").head
    files = [link["href"] for link in head.select('link[rel="stylesheet"]')]
    files += [head.select_one('script[src*="mathjax/"]')["src"]]
    *styles, program = [os.path.relpath(built / page / ".." / file.split("?")[0], folder) for file in files]
    links = "".join(f'<link rel="stylesheet" href="{path}">' for path in [*styles, os.path.relpath(STYLE, folder)])
    return f'{links}{head.find("script", string=re.compile("MathJax"))}<script defer src="{program}"></script>'


def _faces() -> str:
    """The fonts, which come with matplotlib, so that the pages are the same everywhere."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return "".join(f"@font-face {{ src: url({(folder / file).as_uri()}); {face} }}\n" for file, face in FACES.items())


def _running_heads(volume: Volume, sheets: Mapping[str, Tag]) -> str:
    """Above each left page stands the title of the book, above each right page that of the chapter."""
    style = f'@page :left {{ @top-right {{ content: "{volume.title}" }} }}\n'
    for page, sheet in sheets.items():
        title = " ".join(sheet.h1.get_text().split()).replace('"', r"\"")
        style += f'@page {_name(page)}:right {{ @top-left {{ content: "{title}" }} }}\n'
        style += f"#{_name(page)} {{ page: {_name(page)} }}\n"
    return style
