"""The built book as a browser shows it: from the disk, without a network. Needs `make book` before, and Chromium."""

import contextlib
import functools
import itertools
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect
from test_book import PAGES
from test_built_book import HTML

pytestmark = pytest.mark.browser

OF_THE_REFERENCE = ["book/api/lrp_jax.relevance", "book/api/lrp_jax.Explanation", "book/api/lrp_jax.ledger"]
FILES = [*PAGES, *OF_THE_REFERENCE, "genindex", "prf-prf", "py-modindex", "search"]
MODES = ["light", "dark"]
HEIGHTS = {1280: 900, 390: 844}
PAPER = 703  # CSS pixels: the width of A4 between margins of 12 mm
PRINTED = 1280  # from a window of this width


def of_one_visit(file, *others):
    """A case of a test. Those of one file run in one process, which then opens each page once."""
    return pytest.param(file, *others, marks=pytest.mark.xdist_group(file))


everywhere = pytest.mark.parametrize(
    ("file", "mode", "width"), [of_one_visit(*case) for case in itertools.product(FILES, MODES, HEIGHTS)]
)
every_file = pytest.mark.parametrize("file", [of_one_visit(file) for file in FILES])

STANDARDS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
THEME_DEFECTS = ["nav.bd-links summary"]  # a button that unfolds the contents: a picture without a name

SEEN = """() => {
  const all = selector => [...document.querySelectorAll(selector)];
  const start = element => element.outerHTML.slice(0, 200);
  const isShown = element => element.checkVisibility({visibilityProperty: true})
    && element.getBoundingClientRect().width > 0 && !element.closest(".bd-sidebar-secondary");
  const scrolls = element => getComputedStyle(element).overflowX != "visible";
  const isInside = element => element && (scrolls(element) || isInside(element.parentElement));
  return {
    mode: document.documentElement.dataset.theme,
    width: document.documentElement.scrollWidth,
    sticksOut: all("main *").filter(element => isShown(element) && !isInside(element.parentElement)
      && element.getBoundingClientRect().right > innerWidth + 1).map(start),
    scrolling: all("main *").filter(element => isShown(element) && scrolls(element) && element.clientWidth > 0
      && element.scrollWidth > element.clientWidth + 1).map(start),
    untypeset: all(".math").filter(formula => !formula.querySelector("mjx-container > svg")
      || formula.querySelector("[data-mml-node=merror]")).map(formula => formula.textContent),
    unspoken: all("mjx-container").filter(formula => !formula.querySelector("mjx-assistive-mml math")).map(start),
    uncaptioned: all("figure:has(> figcaption)").filter(figure => isShown(figure) && !isShown(figure.lastElementChild))
      .map(start),
    dark: all("img.only-dark").filter(isShown).map(start),
    images: all("img").filter(isShown).map(({src, naturalWidth, alt}) => ({src, naturalWidth, alt})),
    icons: all("svg.svg-inline--fa").filter(isShown).length,
    emptyIcons: all("i[class*='fa-'], svg.svg-inline--fa:not(:has(path))").map(start),
    failedFonts: [...document.fonts].filter(font => font.status == "error").map(font => font.family),
    chrome: all("header, footer, nav, button, dialog, .sidebar").filter(isShown)
      .filter(element => !element.closest(".onlyprint")).map(start),
    background: getComputedStyle(document.body).backgroundColor,
    folded: all("main .admonition.toggle, main details:not(.tag_hide-input > details)")
      .filter(element => !isShown(element.lastElementChild)).map(start),
    foldedCode: all(".tag_hide-input > details").filter(isShown).map(start),
  };
}"""


@contextlib.contextmanager
def opened(browser, file, mode="light", width=1280):
    """A page whose formulas and icons are drawn, and what it complained about and asked for."""
    viewport = {"width": width, "height": HEIGHTS[width]}
    with contextlib.closing(browser.new_context(viewport=viewport, color_scheme=mode, offline=True)) as context:
        page = context.new_page()
        complaints, requests = [], []
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda request: complaints.append(f"{request.url} failed: {request.failure}"))
        page.on("request", lambda request: requests.append(request.url))
        path = HTML / f"{file}.html"
        assert path.exists(), f"{path} is missing: run make book first"
        page.goto(path.as_uri())
        page.evaluate("window.MathJax?.startup.promise")
        page.wait_for_function("document.documentElement.classList.contains('fontawesome-i2svg-complete')")
        yield page, complaints, requests


@pytest.fixture(scope="module")
def seen(browser):
    """What can be seen on a page, in one mode and width, and on paper."""

    @functools.cache
    def seen(file, mode, width):
        with opened(browser, file, mode, width) as (page, complaints, requests):
            found = page.evaluate(SEEN) | {"complaints": complaints, "requests": requests}
            if width == PRINTED:
                found["printed"] = on_paper(page)
            return found

    return seen


def on_paper(page):
    """What can be seen on a page once it is printed."""
    page.set_viewport_size({"width": PAPER, "height": 1000})
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    return page.evaluate(SEEN)


@everywhere
def test_page_follows_the_mode_and_reports_no_error(seen, file, mode, width):
    assert seen(file, mode, width)["mode"] == mode
    assert seen(file, mode, width)["complaints"] == []


@everywhere
def test_page_asks_for_nothing_outside_the_book(seen, file, mode, width):
    requests = seen(file, mode, width)["requests"]
    assert len(requests) > 10
    assert [url for url in requests if not url.startswith((f"{HTML.as_uri()}/", "data:", "blob:"))] == []


@everywhere
def test_page_does_not_scroll_sideways(seen, file, mode, width):
    assert seen(file, mode, width)["width"] <= width
    assert seen(file, mode, width)["sticksOut"] == []


@everywhere
def test_every_image_is_shown_and_has_alternative_text(seen, file, mode, width):
    for image in seen(file, mode, width)["images"]:
        assert image["naturalWidth"] > 0, image
        assert image["alt"], image
    assert seen(file, mode, width)["uncaptioned"] == []
    assert mode == "dark" or seen(file, mode, width)["dark"] == []


@everywhere
def test_every_formula_is_typeset_and_can_be_read_aloud(seen, file, mode, width):
    assert seen(file, mode, width)["untypeset"] == []
    assert seen(file, mode, width)["unspoken"] == []


@everywhere
def test_icons_are_shown(seen, file, mode, width):
    assert seen(file, mode, width)["icons"] > 3
    assert seen(file, mode, width)["emptyIcons"] == []
    assert seen(file, mode, width)["failedFonts"] == []


@every_file
@pytest.mark.parametrize("mode", MODES)
def test_printed_page_is_white_and_nothing_is_cut_or_folded_but_code(seen, file, mode):
    printed = seen(file, mode, PRINTED)["printed"]
    assert printed["background"] == "rgb(255, 255, 255)"
    assert printed["width"] <= PAPER
    assert printed["sticksOut"] == []
    assert printed["scrolling"] == []
    assert printed["folded"] == printed["foldedCode"] == []
    assert printed["dark"] == []
    assert printed["uncaptioned"] == []


@every_file
def test_printed_page_is_without_the_theme_around_it(seen, file):
    assert seen(file, "light", PRINTED)["printed"]["chrome"] == []


@pytest.mark.accessibility
@every_file
@pytest.mark.parametrize(("mode", "width"), [("light", 1280), ("dark", 390)])
def test_page_is_accessible(browser, file, mode, width):
    with opened(browser, file, mode, width) as (page, _, _):
        page.evaluate("document.querySelectorAll('main details').forEach(details => details.open = true)")
        page.evaluate("document.querySelectorAll('main .toggle-button-hidden').forEach(button => button.click())")
        page.wait_for_timeout(400)  # the theme makes what can be scrolled reachable by keyboard after 300 ms
        options = {"runOnly": STANDARDS, "resultTypes": ["violations"], "preload": False}
        results = Axe().run(page, {"exclude": THEME_DEFECTS}, options)
    assert results.violations_count == 0, results.generate_report()


def test_search_from_the_disk_finds_the_page_about_root_points(browser):
    with opened(browser, "book/index") as (page, complaints, requests):
        page.keyboard.press("Control+k")
        page.keyboard.type("root point")
        page.keyboard.press("Enter")
        page.wait_for_url("**/search.html?*")
        expect(page.locator("#search-results")).to_contain_text("Search finished")
        assert page.locator("#search-results li").count() > 1
        page.locator("#search-results a", has_text="Deep Taylor").first.click()
        page.wait_for_url("**/deep_taylor.html*")
    assert complaints == []
    assert [url for url in requests if not url.startswith(HTML.as_uri())] == []


@pytest.mark.parametrize("press", [lambda button: button.click(), lambda button: button.press("Enter")])
def test_solution_opens_by_mouse_and_keyboard(browser, press):
    with opened(browser, "book/recap") as (page, _, _):
        solution = page.locator(".solution").first
        expect(solution.locator("p").last).to_be_hidden()
        press(solution.locator("button.toggle-button"))
        expect(solution.locator("p").last).to_be_visible()


def test_first_page_leads_into_the_book(browser):
    with opened(browser, "search") as (page, complaints, _):
        page.goto((HTML / "index.html").as_uri())
        page.wait_for_url("**/book/index.html")
    assert complaints == []


def test_front_page_loads_less_than_a_megabyte(browser):
    with opened(browser, "book/index") as (page, _, requests):
        page.wait_for_load_state("networkidle")
        files = {Path(unquote(urlsplit(url).path)) for url in requests if url.startswith("file:")}
        assert page.locator(".comparison img").count() == 9  # which are part of the page
    assert sum(file.stat().st_size for file in files) < 1_000_000


def test_line_between_photograph_and_map_follows_the_arrow_keys(browser):
    with opened(browser, "book/index") as (page, _, _):
        page.locator(".comparison input").first.focus()
        for _ in range(20):
            page.keyboard.press("ArrowLeft")
        shown = "element => getComputedStyle(element).clipPath"
        assert page.locator(".comparison-map").first.evaluate(shown) == "inset(0px 0px 0px 30%)"
        assert page.locator(".comparison-map").last.evaluate(shown) == "inset(0px 0px 0px 50%)"
        page.emulate_media(media="print")
        assert page.locator(".comparison-map").first.evaluate(shown) == "none"


FORMER = {
    "lrp_jax.relevance": "lrp_jax.relevance.html#lrp_jax.relevance",
    "lrp_jax.explain.relevance.relevance": "lrp_jax.relevance.html#lrp_jax.relevance",
    "lrp_jax.explain.ledger.Ledger.verdict": "lrp_jax.ledger.html#lrp_jax.Ledger.verdict",
    "lrp_jax.core.forms.Form": "lrp_jax.rules.Form.html#lrp_jax.rules.Form",
}


@pytest.mark.parametrize("anchor", FORMER)
def test_former_links_into_the_reference_lead_to_the_page_of_the_name(browser, anchor):
    with opened(browser, "book/api") as (page, complaints, _):
        page.goto("about:blank")
        page.goto(f"{(HTML / 'book' / 'api.html').as_uri()}#{anchor}")
        page.wait_for_url(f"**/api/{FORMER[anchor]}")
        assert page.evaluate("document.getElementById(decodeURIComponent(location.hash.slice(1))) !== null")
    assert complaints == []


SEARCHED = {
    "BatchNorm": "Recipes",
    "segmentation": "Recipes",
    "install": "Recipes",
    "save": "Recipes",
    "photograph": "Recipes",
    "LSTM": "Recipes",
    "zennit": "Coming from",
    "pixel_flipping": "pixel_flipping",
}


@pytest.mark.parametrize("word", SEARCHED)
def test_search_finds_what_a_user_looks_for(browser, word):
    with opened(browser, "search") as (page, complaints, _):
        page.goto(f"{(HTML / 'search.html').as_uri()}?q={word}")
        expect(page.locator("#search-results")).to_contain_text("Search finished")
        first = page.locator("#search-results li a").all_inner_texts()[:6]
    assert any(SEARCHED[word] in title for title in first), first
    assert complaints == []
