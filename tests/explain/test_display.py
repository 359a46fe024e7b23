"""How an explanation shows itself in a notebook."""

import base64
import io
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from bs4 import BeautifulSoup
from jax.ad_checkpoint import checkpoint_name
from PIL import Image

from lrp_jax import relevance, rules
from lrp_jax.composites import Composite, name


def shown(explanation):
    """The tables that a notebook gets."""
    return BeautifulSoup(explanation._repr_html_(), "html.parser").select("table")


def cells(table):
    return [[cell.text for cell in row.select("td")] for row in table.select("tbody tr")]


def pictures(table):
    """The pixels of the pictures."""
    sources = [image["src"].removeprefix("data:image/png;base64,") for image in table.select("img")]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(source))).convert("RGB"), int) for source in sources]


def test_image_and_map_are_shown_in_colours_of_their_sign():
    weight = jnp.array([[1.0, -1.0], [0.0, 0.5]])[None]
    explanation = relevance(lambda x: (x * weight).sum((1, 2))[:, None], jnp.ones((1, 2, 2)), 0, rules.Zero())
    (table,) = shown(explanation)
    image, heatmap = pictures(table)
    assert image.shape == heatmap.shape == (2, 2, 3)
    red, _, blue = np.moveaxis(heatmap, -1, 0)
    np.testing.assert_array_equal(np.sign(np.where(abs(red - blue) > 20, red - blue, 0)), [[1, -1], [0, 1]])


def test_pictures_have_alternative_text():
    (table,) = shown(relevance(lambda x: x.sum((1, 2, 3))[:, None], jnp.ones((1, 2, 2, 3)), 0))
    assert [image["alt"] for image in table.select("img")] == ["Picture of the input", "Picture of the relevance"]


def test_largest_outputs_and_sum_of_the_relevance_are_named():
    weight = jnp.array([[1.0, 5.0, 3.0, 2.0]])
    (table,) = shown(relevance(lambda x: x @ weight, jnp.array([[2.0]]), 2, rules.Zero()))
    assert cells(table) == [["0: 2", "0: 6", "1: 10, 2: 6, 3: 4", "6"]]


def test_of_a_batch_the_first_samples_are_shown():
    (table,) = shown(relevance(lambda x: x, jnp.arange(20.0).reshape(10, 2), 1, rules.Zero()))
    assert len(cells(table)) == 4
    assert table.caption.text.startswith("Relevance of 10 samples, of which 4 are shown.")


def test_of_all_classes_the_map_of_the_largest_output_is_shown():
    (table,) = shown(
        relevance(lambda x: x @ jnp.diag(jnp.array([3.0, 1.0])), jnp.array([[1.0, 2.0]]), "all", rules.Zero())
    )
    assert cells(table)[0][1] == "0: 3, 1: 0"


def test_rules_are_shown_and_text_is_escaped():
    composite = Composite([(name("<b>|dense"), rules.Zero()), (name(""), rules.Epsilon())])
    weight = jnp.ones((2, 2))
    explanation = relevance(lambda x: x @ weight, jnp.ones((1, 2)), 0, composite)
    assert "<b>" not in explanation._repr_html_()
    assert f"{name('<b>|dense')}: Zero" in shown(explanation)[0].caption.text


def test_hidden_values_are_listed():
    def network(x):
        return checkpoint_name(x @ jnp.ones((2, 3)), "middle") @ jnp.ones((3, 2))

    _, hidden = shown(relevance(network, jnp.ones((1, 2)), 0, rules.Zero(), at=["middle"]))
    assert cells(hidden) == [["middle", "(1, 3)", "6"]]


def test_input_of_several_arrays_is_listed():
    x = {"left": jnp.ones((2, 3)), "right": 2 * jnp.ones((2, 1))}
    (table,) = shown(relevance(lambda x: x["left"].sum(1, keepdims=True) + x["right"], x, 0, rules.Zero()))
    assert cells(table) == [["left", "(2, 3)", "6"], ["right", "(2, 1)", "4"]]


def test_without_matplotlib_there_is_a_table_of_numbers(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.image", None)
    (table,) = shown(relevance(lambda x: x.reshape(1, 4), jnp.arange(4.0).reshape(1, 2, 2), 3, rules.Zero()))
    assert table.select("img") == []
    assert cells(table)[0][1] == "(1, 1): 3, (0, 0): 0, (0, 1): 0"


@pytest.mark.parametrize("shape", [(1, 5), (1, 1, 7), (1, 4, 4), (1, 4, 4, 1), (1, 4, 4, 3), (1, 2, 3, 4, 5)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_inputs_of_every_shape_are_shown(shape, dtype):
    (table,) = shown(relevance(lambda x: x.reshape(1, -1), jnp.ones(shape, dtype), 0))
    assert len(table.select("img")) == 2 * (len(shape) in (3, 4) and shape[1] > 1)


def test_channels_first_are_shown_as_an_image():
    image = jnp.stack([jnp.eye(5), jnp.zeros((5, 5)), jnp.zeros((5, 5))])[None]
    (table,) = shown(relevance(lambda x: x.sum((1, 2, 3))[:, None], image, 0))
    picture, heatmap = pictures(table)
    np.testing.assert_array_equal(picture[..., 0], 255 * np.eye(5))
    np.testing.assert_array_equal(heatmap[..., 0] > heatmap[..., 2] + 20, np.eye(5, dtype=bool))


@pytest.mark.parametrize("target", [None, 0, "all"])
def test_empty_batch_is_shown(target):
    weight = jnp.ones((2, 3))
    (table,) = shown(relevance(lambda x: x @ weight, jnp.zeros((0, 2)), target, rules.Zero()))
    assert cells(table) == []
    assert table.caption.text.startswith("Relevance of 0 samples")
