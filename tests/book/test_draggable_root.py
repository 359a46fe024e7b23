"""The neuron of chapter 5 whose root can be dragged, in Python and in Chromium, against the rules of the library."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrp_book.draggable_root import DraggableRoot
from lrp_jax import lrp, rules
from lrp_jax.deep_taylor import neuron_root, taylor_relevance

pytestmark = pytest.mark.book

X, W = (2.0, 1.0), (2.0, -1.0)
WEIGHTS = jnp.array(W)
NEURON = DraggableRoot(X, W, (0.0, 0.0), (3.0, 3.0))
DOMAINS = {"w²": {}, "z⁺": {"low": 0.0}, "z-box": {"low": 0.0, "high": 3.0}}


def neuron(x):
    return jax.nn.relu(x @ WEIGHTS)


def relevance_by(rule):
    return np.asarray(jax.grad(lrp(neuron, rule))(jnp.array(X)))


@pytest.mark.parametrize(
    ("name", "by_hand"), [("w²", (2.4, 0.6)), ("z⁺", (3, 0)), ("z-box", (2, 1)), ("LRP-0", (4, -1))]
)
def test_shares_are_those_by_hand(name, by_hand):
    np.testing.assert_allclose(NEURON.shares(name), by_hand, atol=1e-3)


@pytest.mark.parametrize("name", DOMAINS)
def test_root_is_the_one_that_a_search_finds(name):
    root = neuron_root(jnp.array(X), jnp.array(W), **DOMAINS[name]).root
    np.testing.assert_allclose(NEURON.root(name), root, atol=1e-3)
    step = taylor_relevance(neuron, jnp.array(X), root)
    np.testing.assert_allclose(NEURON.shares(name), step.relevance, atol=1e-3)


@pytest.fixture(scope="module")
def opened(browser, tmp_path_factory, request):
    """The drawing alone on a page, with its script and a list of what it showed."""
    script = request.config.rootpath / "book" / "_html_extra" / "interactive" / "draggable_root.js"
    path = tmp_path_factory.mktemp("drawing") / "drawing.html"
    path.write_text(
        '<!doctype html><meta charset="utf-8"><script>globalThis.explained = [];'
        'addEventListener("explained", (event) => explained.push(event.detail), true)</script>'
        f"{NEURON._repr_html_()}<script>{script.read_text()}</script>"
    )
    page = browser.new_page(viewport={"width": 900, "height": 700})
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(path.as_uri())
    yield page
    assert errors == []
    page.close()


@pytest.fixture
def page(opened):
    """The drawing as it is at first."""
    opened.evaluate("document.getElementById('draggable-root').reset()")
    opened.wait_for_timeout(50)
    return opened


def last(page):
    return page.evaluate("explained.at(-1)")


def handle(page, name):
    return page.locator(f"[data-handle={name}]")


def drag(page, name, by):
    """Drags a handle by a distance in the units of the inputs."""
    box = handle(page, name).bounding_box()
    scale = page.locator("svg[role=group]").bounding_box()["width"] / 4.5
    start = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(start[0] + scale * by[0], start[1] - scale * by[1], steps=5)
    page.mouse.up()


def assert_is_that_of_the_rule(result, rule):
    np.testing.assert_allclose(result["relevance"], relevance_by(rule), atol=1e-3)
    np.testing.assert_allclose(np.dot(result["root"], W), 0, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "rule"),
    [("w²", rules.WSquare()), ("z⁺", rules.ZPlus()), ("z-box", rules.ZBox(0.0, 3.0)), ("LRP-0", rules.Zero())],
)
def test_script_computes_what_the_rules_do(page, name, rule):
    page.get_by_role("radio", name=name, exact=True).check()
    assert_is_that_of_the_rule(last(page), rule)


def test_box_is_resized_by_dragging_and_its_rule_follows(page):
    drag(page, "left", (0.8, 0.5))
    drag(page, "upper", (0.0, -1.2))
    result = last(page)
    assert result["rule"] == "z-box"
    np.testing.assert_allclose(result["low"], [0.8, 0.0], atol=0.02)
    np.testing.assert_allclose(result["high"], [3.0, 1.8], atol=0.02)
    assert_is_that_of_the_rule(result, rules.ZBox(tuple(result["low"]), tuple(result["high"])))
    assert result["inBox"] == (2 * result["low"][0] - result["high"][1] <= 0)  # as the theorem of the chapter says


def test_two_sides_of_the_box_make_no_difference(page):
    before = last(page)["relevance"]
    drag(page, "right", (0.5, 0.0))
    drag(page, "lower", (0.0, 0.4))
    result = last(page)
    assert result["high"][0] == pytest.approx(3.5, abs=0.02)
    assert result["low"][1] == pytest.approx(0.4, abs=0.02)
    np.testing.assert_allclose(result["relevance"], before, atol=1e-9)


def test_dragged_root_stays_on_its_line_and_the_shares_are_its_taylor_step(page):
    drag(page, "root", (-0.7, 0.3))
    result = last(page)
    assert result["rule"] == "your own"
    assert result["root"] != [1, 2]
    np.testing.assert_allclose(np.dot(result["root"], W), 0, atol=1e-9)
    step = WEIGHTS * (jnp.array(X) - jnp.array(result["root"]))
    np.testing.assert_allclose(result["relevance"], step, atol=1e-5)
    assert sum(result["relevance"]) == pytest.approx(3)


def test_keyboard_moves_the_root_and_the_box(page):
    handle(page, "root").focus()
    page.keyboard.press("ArrowRight")
    result = last(page)
    np.testing.assert_allclose(result["root"], [1.1, 2.2], atol=1e-9)
    assert handle(page, "root").get_attribute("aria-valuenow") == "1.10"
    handle(page, "upper").focus()
    for _ in range(30):
        page.keyboard.press("ArrowDown")
    result = last(page)
    assert result["high"] == [3, 1]  # never below x
    assert result["rule"] == "z-box"
    assert_is_that_of_the_rule(result, rules.ZBox((0.0, 0.0), (3.0, 1.0)))
    assert "relevance (3, 0)" in page.get_by_role("status").inner_text()


def test_box_without_room_has_no_root(page):
    for name, key in (("left", "ArrowRight"), ("upper", "ArrowDown")):
        handle(page, name).focus()
        for _ in range(30):
            page.keyboard.press(key)
    assert not last(page)["hasRoot"]
    assert "no way to a root" in page.get_by_role("status").inner_text()


def test_drawing_fits_a_phone_and_stays_off_paper(page):
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.emulate_media(media="print")
    assert not page.locator("#draggable-root").is_visible()
    page.emulate_media(media="screen")
    page.set_viewport_size({"width": 900, "height": 700})
