"""Figures of the book: the same bytes each time, a version for dark pages, the network of the hand calculations."""

import base64
import io
import re

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from lrp_book import figures
from lrp_book.hand_network import Drawing, Step
from lrp_book.numbers import as_text
from lrp_book.tables import Table
from lrp_jax.plotting import heatmap


def images_of(svg):
    found = re.findall(r"data:image/png;base64,([^\"]+)", svg)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB")) for one in found]


def map_as_svg(values, **options):
    figure = Figure()
    heatmap(values, figure.subplots(), **options)
    return figures.as_svg(figure)


def test_a_figure_has_the_same_bytes_each_time():
    draw = lambda: map_as_svg(np.eye(3))
    assert draw() == draw()


def test_an_image_is_stored_pixel_by_pixel():
    (image,) = images_of(map_as_svg(np.eye(3)))
    assert image.shape == (3, 3, 3)


def test_zero_is_the_ground_of_a_dark_page_and_signs_keep_their_colours():
    svg = map_as_svg([[1.0, 0.0], [-1.0, 0.5]])
    (dark,) = images_of(figures.for_dark_pages(svg))
    np.testing.assert_allclose(dark[0, 1], 0x12, atol=2)  # no colour of 256 is exactly zero
    assert dark[0, 0, 0] > dark[0, 0, 2]  # red above blue
    assert dark[1, 0, 2] > dark[1, 0, 0]
    assert dark[0, 0].sum() > dark[1, 1].sum() > dark[0, 1].sum()  # the more relevance, the lighter


def test_a_photograph_stays_as_it_is_on_a_dark_page():
    figure = Figure()
    figure.subplots().imshow(np.random.default_rng(0).random((8, 8, 3)))
    svg = figures.as_svg(figure)
    np.testing.assert_array_equal(images_of(figures.for_dark_pages(svg))[0], images_of(svg)[0])


@pytest.mark.parametrize("colour", [figures.INK, figures.MUTED, figures.GRID, "#000000", "#808080"])
def test_lines_contrast_with_a_dark_page_as_with_a_light_one(colour):
    dark = re.search(r"#\w{6}", figures.for_dark_pages(f'<path style="stroke: {colour}"/>'))[0]

    def contrast(one, ground):
        luminances = sorted(luminance(mpl.colors.to_rgb(c)) + 0.05 for c in (one, ground))
        return luminances[1] / luminances[0]

    assert contrast(dark, figures.DARK[figures.PAPER]) > 0.6 * contrast(colour, figures.PAPER)


def luminance(colour):
    """Relative luminance, as WCAG 2 defines it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return np.dot([0.2126, 0.7152, 0.0722], linear)


def test_ids_that_look_like_colours_are_left_alone():
    svg = '<use xlink:href="#mabcdef0123"/><g clip-path="url(#pabcdef0123)"/>'
    assert figures.for_dark_pages(svg) == svg


def test_edges_of_the_hand_network_are_as_wide_as_what_flows_and_have_its_sign():
    flows = [[[6.0, 4.0], [-3.0, 0.0]], [[3.0], [5.0]]]
    shown = Drawing("test", [Step("Back", "It flows.", [[10, -3], [3, 5], [8]], flows, backward=True)])._repr_html_()
    edges = re.findall(r'class="hand-(for|against)" stroke-width="([\d.]+)"', shown)
    signs, widths = zip(*edges, strict=True)
    assert signs == ("for", "for", "against", "for", "for")
    np.testing.assert_allclose(np.array(widths, float) / 13, np.array([6, 4, 3, 3, 5]) / 6, atol=0.01)
    assert shown.count("hand-idle") - shown.count(".hand-idle") == 1
    assert 'aria-label="Back: It flows."' in shown
    assert "−3" in shown


def test_a_table_escapes_texts_and_writes_numbers():
    shown = Table(["a < b", "share"], [["<b>", 0.5], [None, -1e-7]])._repr_html_()
    assert "a &lt; b" in shown
    assert "&lt;b&gt;" in shown
    assert '<td class="number">−10⁻⁷</td>' in shown


@pytest.mark.parametrize(
    ("number", "text"),
    [
        *[(0.0, "0"), (-0.5, "−0.5"), (5, "5"), (123456.0, "123,456")],
        *[(1e6, "10⁶"), (-2e-5, "−2\xa0×\xa010⁻⁵"), (float("-inf"), "−∞"), (float("nan"), "not a number")],
    ],
)
def test_numbers_of_tables(number, text):
    assert as_text(number) == text
