"""The page "Draw a digit" in Chromium, against Python. Needs `make book` before, Chromium and the extra `dev`."""

import re
from urllib.parse import unquote

import jax.numpy as jnp
import numpy as np
import pytest
from explorers import BUILT, GAMMA, RULES, foreign_requests, last, nameless_controls, opened, recorded, shown_on_paper

from lrp_book import datasets, models, training
from lrp_jax import composites, relevance, rules

pytestmark = pytest.mark.book

SEVEN = [(0.3, 0.2), (0.7, 0.2), (0.6, 0.4), (0.5, 0.6), (0.45, 0.85)]
SMALL_FOUR = [(0.2, 0.1), (0.15, 0.3), (0.35, 0.3), (0.32, 0.15), (0.36, 0.5)]


@pytest.fixture(scope="module")
def opened_page(browser):
    return opened(browser, "draw.html", "draw", viewport={"width": 1280, "height": 900})


@pytest.fixture
def page(opened_page):
    """The page with all controls as they are at first."""
    opened_page.evaluate("document.getElementById('draw').reset()")
    return opened_page


@pytest.fixture(scope="module")
def phone(browser):
    return opened(browser, "draw.html", "draw", viewport={"width": 390, "height": 844}, has_touch=True)


@pytest.fixture(scope="module")
def network():
    return training.load_or_train(models.ConvolutionalNetwork, datasets.mnist(), progress=False).model


def on_screen(page, points):
    box = page.locator("[data-part=pad]").bounding_box()
    return [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]


def draw(page, points):
    start, *rest = on_screen(page, points)
    page.mouse.move(*start)
    page.mouse.down()
    for point in rest:
        page.mouse.move(*point, steps=8)
    page.mouse.up()


def assert_is_that_of_python(result, network, rule):
    image = jnp.asarray(result["image"], jnp.float32).reshape(1, 28, 28, 1)
    expected = relevance(network, image, result["class"], rule)
    values = np.asarray(result["relevance"]).reshape(28, 28)
    largest = float(jnp.abs(expected.relevance).max())
    assert largest > 0
    np.testing.assert_allclose(values, expected.relevance[0, ..., 0], atol=1e-4 * largest, rtol=0)
    scores = np.asarray(expected.output[0])
    np.testing.assert_allclose(result["logits"], scores, atol=1e-4 * np.abs(scores).max(), rtol=0)


@pytest.mark.parametrize("name", RULES)
def test_map_of_a_drawing_is_that_of_python(page, network, name):
    draw(page, SEVEN)
    page.get_by_label("Rule", exact=True).select_option(name)
    assert_is_that_of_python(last(page, rule=name, **{"class": 7}), network, RULES[name])


@pytest.mark.parametrize(
    ("slider", "name", "rule"), [("Epsilon", "LRP-ε", rules.Epsilon), ("Gamma", "LRP-γ", rules.Gamma)]
)
def test_map_follows_the_slider_and_the_class(page, network, slider, name, rule):
    draw(page, SEVEN)
    page.get_by_label("Rule", exact=True).select_option(name)
    before = last(page, **{"class": 7})
    page.get_by_role("radio", name=re.compile(r"^\s*2(\s|$)")).check()
    page.get_by_label(slider).fill("0.5")
    result = last(page, **{"class": 2})
    assert result[slider.lower()] == pytest.approx(10**0.5)
    assert np.abs(np.subtract(result["relevance"], before["relevance"])).max() > 0.01
    assert_is_that_of_python(result, network, rule(10**0.5))


def test_drawing_is_normalised_as_mnist_is(page):
    draw(page, SMALL_FOUR)
    image = np.asarray(last(page)["image"]).reshape(28, 28)
    rows, columns = np.mgrid[:28, :28] + 0.5
    assert (image * rows).sum() / image.sum() == pytest.approx(14, abs=0.02)
    assert (image * columns).sum() / image.sum() == pytest.approx(14, abs=0.02)
    inked = np.flatnonzero(image.max(1))
    assert 20 <= inked[-1] - inked[0] + 1 <= 21  # the box lies between pixels
    assert image.max() == pytest.approx(1, abs=0.03)
    assert ((image > 0) & (image < 1)).any()


def test_image_of_a_sample_is_that_of_the_test_set(page):
    page.get_by_role("button", name="sample digit 5").click()
    image = np.round(255 * np.asarray(last(page)["image"])).reshape(28, 28)
    test = datasets.mnist().test
    same = (np.asarray(test.images)[..., 0] == image).all((1, 2))
    assert list(np.asarray(test.labels)[same]) == [5]


def test_stroke_takes_less_than_a_tenth_of_a_second(page):
    draw(page, SEVEN)
    last(page)
    before = page.evaluate("explained.length")
    draw(page, SMALL_FOUR)
    last(page)
    times = page.evaluate(f"explained.slice({before}).map((result) => result.milliseconds)")
    assert len(times) >= 10
    assert np.median(times) < 100


def test_finger_draws_and_the_page_stays_in_place(phone):
    session = phone.context.new_cdp_session(phone)
    at = phone.evaluate("scrollY")
    for kind, point in zip(["touchStart", *["touchMove"] * 4], on_screen(phone, SEVEN), strict=True):
        x, y = point
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    last(phone, **{"class": 7})
    assert phone.evaluate("scrollY") == at


def test_map_stands_on_the_screen_with_the_drawing_and_nothing_is_wider(phone):
    assert phone.evaluate("document.documentElement.scrollWidth") == 390
    pad, chart = (phone.locator(f"[data-part={part}]").bounding_box() for part in ("pad", "map"))
    assert chart["y"] + chart["height"] - pad["y"] < 844 - 100


def test_keyboard_alone_explains_a_sample(page, network):
    page.get_by_role("button", name="sample digit 4").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")  # to the next sample
    for _ in range(5):
        page.keyboard.press("Tab")  # past the others, to the classes
    page.keyboard.press("ArrowDown")  # the class 0
    page.keyboard.press("Tab")
    page.keyboard.press("End")  # the last rule
    page.keyboard.press("Tab")
    page.keyboard.press("End")  # the largest epsilon
    result = last(page, rule="EpsilonGammaBox", epsilon=10, **{"class": 0})
    assert_is_that_of_python(result, network, composites.EpsilonGammaBox(0.0, 1.0, 10.0, GAMMA))
    status = page.get_by_role("status").filter(has_text="relevance").inner_text()
    assert status.startswith("The network sees a 4")
    assert "the 0 sums to" in status


def test_every_control_has_a_name(page):
    number, nameless = nameless_controls(page, "draw")
    assert number > 25
    assert nameless == []


def test_paper_shows_the_figure_and_not_the_controls(page):
    assert shown_on_paper(page, "#draw", "#fig-draw img.only-light") == [False, True]


def test_everything_comes_from_the_book(page):
    assert foreign_requests(page) == []
    assert any(url.endswith("interactive/ort-wasm-simd.js") for url in page.requested)


def test_front_page_loads_the_drawing_on_a_click(browser, network):
    page = recorded(browser, "index.html", viewport={"width": 1280, "height": 900})
    before = list(page.requested)
    assert not any("draw-data" in url or "ort" in url for url in before)
    assert shown_on_paper(page, "#draw-offer", "#draw") == [False, False]
    page.get_by_role("button", name="Draw a digit here").click()
    page.wait_for_function("explained.length > 0", timeout=60_000)
    assert_is_that_of_python(last(page, rule="LRP-γ"), network, RULES["LRP-γ"])
    assert page.evaluate("document.activeElement.ariaLabel") == "sample digit 0"
    assert not page.locator("#draw-offer").is_visible()
    assert foreign_requests(page) == []
    loaded = sum(
        (BUILT / unquote(url).removeprefix(BUILT.as_uri() + "/")).stat().st_size
        for url in page.requested
        if url.startswith(BUILT.as_uri()) and url not in before
    )
    assert f"about {loaded / 1e6:.0f} MB" in (BUILT / "book" / "index.html").read_text()
    draw(page, SEVEN)
    assert_is_that_of_python(last(page, rule="LRP-γ"), network, RULES["LRP-γ"])
