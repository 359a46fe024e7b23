"""Opens the interactive parts of the built book in Chromium, and reads what they explained."""

from test_book import ROOT

from lrp_jax import composites, rules

BUILT = ROOT / "_build" / "html"
EPSILON, GAMMA = 10**-0.6, 10**-0.6  # where the sliders stand at first
RULES = {
    "LRP-0": rules.Zero(),
    "LRP-ε": rules.Epsilon(EPSILON),
    "LRP-γ": rules.Gamma(GAMMA),
    "z⁺": rules.ZPlus(),
    "EpsilonPlusFlat": composites.EpsilonPlusFlat(EPSILON),
    "EpsilonGammaBox": composites.EpsilonGammaBox(0.0, 1.0, EPSILON, GAMMA),
}


def recorded(browser, name, **options):
    """The page of that name, which notes what it asks for and what its form explains."""
    path = BUILT / "book" / name
    assert path.exists(), f"{path} is missing: run make book first"
    page = browser.new_context(**options).new_page()
    page.requested = []
    page.on("request", lambda asked: page.requested.append(asked.url))
    page.add_init_script(
        "globalThis.explained = [];"
        "addEventListener('explained', (event) => explained.push(event.detail), true)"
    )  # fmt: skip
    page.goto(path.as_uri())
    return page


def opened(browser, name, form, **options):
    """The page of that name, once its form has explained something and stands on the screen."""
    page = recorded(browser, name, **options)
    page.evaluate("window.MathJax.startup.promise")  # formulas above the form move it
    page.evaluate(f"document.getElementById('{form}').scrollIntoView({{behavior: 'instant'}})")
    page.wait_for_function("explained.length > 0", timeout=60_000)
    return page


def last(page, **wanted):
    """What the page explained last, once it has caught up with what was done and shows what is wanted."""
    page.wait_for_timeout(500)
    result = page.evaluate("explained.at(-1)")
    assert {key: result[key] for key in wanted} == wanted
    return result


def nameless_controls(page, form):
    """The number of controls of a form, and those that a screen reader has no name for."""
    controls = page.locator(f"#{form} :is(button, input, select, canvas:not([aria-hidden]), output)")
    nameless = controls.evaluate_all(
        "(all) => all.filter((one) => !(one.ariaLabel || one.textContent.trim() || one.labels[0].textContent.trim()))"
        ".map((one) => one.outerHTML)"
    )
    return controls.count(), nameless


def shown_on_paper(page, *selectors):
    """Which of these are visible when the page is printed."""
    page.emulate_media(media="print")
    shown = [page.locator(selector).is_visible() for selector in selectors]
    page.emulate_media(media="screen")
    return shown


def foreign_requests(page):
    """What the page asked for that is not the book's."""
    return [url for url in page.requested if not url.startswith((BUILT.as_uri(), "blob:", "data:"))]
