"""Photographs with their maps under a line that the reader moves."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from lrp_book import figures
from lrp_book.comparison import Comparison, Panel


@pytest.fixture(scope="module")
def shown():
    relevance = np.array([[2.0, 0.0], [-1.0, 9.0]])
    panel = Panel("a <cat>", np.full((2, 2, 3), 0.5, np.float32), relevance, 2.0, ('A "cat".', "Red ears."))
    return Comparison([panel])._repr_html_()


def picture(shown, kind):
    found = re.search(rf'class="{kind}" alt="[^"]*" src="data:image/\w+;base64,([^"]+)"', shown)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(found[1]))).convert("RGB")).astype(int)


def test_colours_have_the_sign_of_relevance_and_the_ground_of_either_mode_at_zero(shown):
    light, dark = picture(shown, "comparison-light"), picture(shown, "comparison-dark")
    for image in (light, dark):
        assert image[0, 0, 0] > image[0, 0, 2]
        assert image[1, 0, 2] > image[1, 0, 0]
    np.testing.assert_array_equal(light[1, 1], light[0, 0])  # beyond the limit
    np.testing.assert_allclose(light[0, 1], 247, atol=1)  # the middle of RdBu_r
    np.testing.assert_allclose(dark[0, 1], int(figures.DARK[figures.PAPER][1:3], 16), atol=3)


def test_the_line_is_moved_by_a_labelled_control_and_every_picture_is_described(shown):
    assert re.findall(r'<input type="range"[^>]* aria-label="([^"]+)"', shown)[0].startswith("a &lt;cat&gt;: ")
    assert re.findall(r'alt="([^"]*)"', shown) == ["A &quot;cat&quot;.", "Red ears.", "Red ears."]


def test_it_needs_no_file_and_no_script_of_another_place(shown):
    assert "<script" not in shown
    assert set(re.findall(r'(?:src="|href="|url\()(\w+):', shown)) == {"data"}


def test_nothing_is_cut_off_on_paper(shown):
    style = shown[: shown.index("</style>")]
    screen, paper = style.split("@media print")[0], style.split("@media print")[1]
    assert "clip-path" not in screen.split("@media screen")[0]
    assert "clip-path" not in paper
    assert ".comparison input { display: none; }" in paper
