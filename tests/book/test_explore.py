"""The part "Explore" of the chapter on LRP for CNNs in Chromium, against Python. Needs `make book` before."""

import jax.numpy as jnp
import numpy as np
import pytest
from explorers import EPSILON, RULES, foreign_requests, last, nameless_controls, opened, shown_on_paper

from lrp_book import datasets, models, training
from lrp_book.comparison import palettes
from lrp_jax import composites, relevance, rules

pytestmark = pytest.mark.book

LAYERS = ["dense.1", "dense.0", "convolutions.1", "convolutions.0"]


def opened_chapter(browser, **options):
    return opened(browser, "lrp_for_cnns.html", "explore", **options)


@pytest.fixture(scope="module")
def opened_page(browser):
    return opened_chapter(browser, viewport={"width": 1280, "height": 900})


@pytest.fixture
def page(opened_page):
    """The page with all controls as they are at first."""
    opened_page.evaluate("document.getElementById('explore').reset()")
    opened_page.get_by_role("button", name="sample digit 3").click()
    return opened_page


@pytest.fixture(scope="module")
def network():
    return training.load_or_train(models.ConvolutionalNetwork, datasets.mnist(), progress=False).model


def expected(network, result, rule):
    test = datasets.mnist().test
    index = np.flatnonzero(test.labels == result["digit"])[1]
    image = datasets.as_float(test.images[index : index + 1])
    return relevance(network, image, result["class"], rule, at=LAYERS)


def assert_is_that_of_python(result, network, rule):
    explanation = expected(network, result, rule)
    by_layer = {name: explanation.at[name] for name in LAYERS} | {"pixels": explanation.relevance}
    values = by_layer[result["layer"]].ravel()
    largest = float(jnp.abs(values).max())
    assert largest > 0
    np.testing.assert_allclose(result["relevance"], values, atol=1e-4 * largest, rtol=0)
    score = float(jnp.abs(explanation.output).max())
    np.testing.assert_allclose(result["sums"], [v.sum() for v in by_layer.values()], atol=1e-3 * score, rtol=0)


@pytest.mark.parametrize("layer", [*LAYERS, "pixels"])
@pytest.mark.parametrize("name", RULES)
def test_relevance_of_every_layer_is_that_of_python(page, network, name, layer):
    page.get_by_label("Rule", exact=True).select_option(name)
    page.get_by_role("radio", name=layer).check()
    assert_is_that_of_python(last(page, rule=name, layer=layer, **{"class": 3}), network, RULES[name])


def test_class_digit_and_sliders_are_followed(page, network):
    page.get_by_role("button", name="sample digit 5").click()
    page.get_by_label("Rule", exact=True).select_option("EpsilonGammaBox")
    page.get_by_label("Class, and its score").select_option("6")
    page.get_by_label("Epsilon").fill("-1.5")
    page.get_by_label("Gamma").fill("0.5")
    result = last(page, digit=5, **{"class": 6})
    assert_is_that_of_python(result, network, composites.EpsilonGammaBox(0.0, 1.0, 10**-1.5, 10**0.5))


def test_keyboard_alone_steps_back_through_the_layers(page, network):
    page.get_by_role("radio", name="pixels").focus()
    seen = []
    for _ in range(4):
        page.keyboard.press("ArrowUp")
        seen.append(last(page)["layer"])
    assert seen == LAYERS[::-1]
    for key in ["Tab", "4", "Tab", "End", "Tab", "End", "Tab", "Home"]:  # class, rule, epsilon, gamma
        page.keyboard.press(key)
    result = last(page, rule="EpsilonGammaBox", epsilon=10, layer="dense.1", **{"class": 4})
    assert result["gamma"] == pytest.approx(0.01)
    assert_is_that_of_python(result, network, composites.EpsilonGammaBox(0.0, 1.0, 10.0, 0.01))


def test_all_layers_are_drawn_at_once(page):
    pictures = "Array.from(document.querySelectorAll('#explore label canvas'), (canvas) => canvas.toDataURL())"
    last(page, rule="LRP-γ")
    before = page.evaluate(pictures)
    assert len(set(before)) == len(LAYERS) + 1
    page.get_by_label("Rule", exact=True).select_option("LRP-0")
    last(page, rule="LRP-0")
    changed = [one != other for one, other in zip(before, page.evaluate(pictures), strict=True)]
    assert changed == [False, True, True, True, True]  # in dense.1 there is the explained score alone, under every rule


def test_maps_stand_on_the_ground_of_the_page_in_both_modes(page):
    corner = "[...document.querySelector('#explore [data-part=map]').getContext('2d').getImageData(0, 0, 1, 1).data]"
    for mode, below, above in palette_ends():
        page.evaluate(f"document.documentElement.dataset.theme = '{mode}'")
        last(page)
        assert page.evaluate(corner)[:3] in (below, above)  # zero, on either side of the middle
    page.evaluate("document.documentElement.dataset.theme = 'light'")


def palette_ends():
    """The modes, and the two colours next to zero in each."""
    return [(mode, *its[127:129].tolist()) for mode, its in zip(("dark", "light"), palettes(256)[::-1], strict=True)]


def test_bars_have_one_scale_for_all_digits(page):
    for digit in (3, 1):
        page.get_by_role("button", name=f"sample digit {digit}").click()
        sums = last(page, digit=digit)["sums"]
        widths = page.evaluate(
            "Array.from(document.querySelectorAll('#explore .explorer-bar'), (bar) => parseFloat(bar.style.width))"
        )
        assert widths == pytest.approx([min(2.5 * abs(value), 50) for value in sums], abs=1e-3)


def test_sentence_says_how_much_of_the_score_is_left(page, network):
    page.get_by_label("Rule", exact=True).select_option("LRP-ε")
    result = last(page)
    explanation = expected(network, result, rules.Epsilon(EPSILON))
    percent = float(100 * explanation.relevance.sum() / explanation.output[0, 3])
    sentence = page.locator("#explore [role=status]").inner_text()
    assert sentence.startswith("Under LRP-ε the relevance for the 3 begins with its score")
    assert sentence.endswith(f"{percent:.1f} % of the score.")
    scores = page.get_by_label("Class, and its score").locator("option").all_inner_texts()
    assert [float(text.split()[-1].replace("\u2212", "-")) for text in scores[1:]] == pytest.approx(
        explanation.output[0].tolist(), abs=0.051
    )


def test_change_takes_less_than_a_tenth_of_a_second(page):
    last(page)
    before = page.evaluate("explained.length")
    for value in ("-1", "0", "0.5", "1"):
        page.get_by_label("Gamma").fill(value)
        page.wait_for_timeout(300)
    times = page.evaluate(f"explained.slice({before}).map((result) => result.milliseconds)")
    assert len(times) >= 4
    assert np.median(times) < 100


def test_every_control_has_a_name(page):
    number, nameless = nameless_controls(page, "explore")
    assert number > 20
    assert nameless == []


def test_paper_shows_the_figure_and_not_the_controls(page):
    assert shown_on_paper(page, "#explore", "#fig-flow img.only-light") == [False, True]


def test_nothing_is_wider_than_a_phone_and_all_comes_from_the_book(browser):
    phone = opened_chapter(browser, viewport={"width": 390, "height": 844}, has_touch=True)
    assert phone.evaluate("document.documentElement.scrollWidth") == 390
    assert foreign_requests(phone) == []
