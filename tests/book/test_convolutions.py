"""Convolutions as matrices, their translations and costs, and the drawing of a sliding kernel."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lrp_book import convolutions
from lrp_book.models import ConvolutionalNetwork
from lrp_book.sliding_kernel import SlidingKernel


@pytest.fixture(scope="module")
def network():
    return ConvolutionalNetwork(filters=(2, 3), rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(0).random((3, 28, 28, 1)), jnp.float32)


def test_matrices_compute_what_convolutions_do(network, images):
    found = convolutions.by_matrices(network)
    np.testing.assert_allclose(found.logits(images), network(images), atol=1e-4)
    assert [matrix.shape for matrix in found.matrices] == [(784, 24 * 24 * 2), (12 * 12 * 2, 8 * 8 * 3)]
    assert np.count_nonzero(found.matrices[0]) == 25 * 24 * 24 * 2


def test_parts_of_the_channels_add_up(images):
    kernel = jnp.asarray(np.random.default_rng(1).normal(size=(5, 5, 2, 4)), jnp.float32)
    x = jnp.concatenate([images, 2 * images], axis=-1)
    parts = convolutions.parts_of_channels(x, kernel)
    assert parts.shape == (3, 24, 24, 2, 4)
    np.testing.assert_allclose(parts.sum(axis=-2), convolutions.convolve(x, kernel), atol=1e-4)


def test_maps_of_a_block_follow_moves_by_its_stride_and_no_others(network):
    image = jnp.zeros((1, 28, 28, 1)).at[0, 10:18, 9:15].set(1.0)
    block = lambda x: convolutions.stages(network, x)[1]
    assert convolutions.mismatch(block, image, 2, stride=2) < 1e-6
    assert convolutions.mismatch(block, image, 1, stride=2) > 0.01


def test_images_move_in_both_directions():
    image = jnp.arange(9.0).reshape(1, 3, 3, 1)
    np.testing.assert_array_equal(convolutions.move(image, -1, 1)[0, ..., 0], [[0, 3, 4], [0, 6, 7], [0, 0, 0]])


def test_gradients_of_centres_stay_in_their_receptive_fields(network, images):
    sides = [np.ptp(np.argwhere(one), axis=0) + 1 for one in convolutions.gradients_of_centres(network, images)]
    np.testing.assert_array_equal(sides, [[5, 5], [6, 6], [14, 14], [16, 16]])


def test_costs_are_counted(network):
    costs = convolutions.costs_of(network)
    assert costs.parameters["convolution 2"] == 3 * (25 * 2 + 1)
    assert costs.operations["convolution 1"] == 24 * 24 * 2 * 25
    assert costs.as_dense["convolution 1"] == (784 + 1) * 24 * 24 * 2
    assert costs.table().rows[-1][1] == sum(
        leaf.size for leaf in nnx.to_flat_state(nnx.state(network, nnx.Param)).leaves
    )


@pytest.fixture(scope="module")
def drawing():
    image = np.arange(20).reshape(4, 5) % 7
    return SlidingKernel("drawing", image, [[1, 0], [0, -2]], shown=(1, 2))


def test_each_output_of_a_sliding_kernel_can_be_reached_and_says_its_products(drawing):
    places = re.findall(
        r'data-row="(\d)" data-column="(\d)" role="img" tabindex="(-?\d)" aria-label="([^"]*)"', drawing._repr_html_()
    )
    assert len(places) == 3 * 4
    assert [place[:2] for place in places if place[2] == "0"] == [("1", "2")]
    image = np.asarray(drawing.image)
    for row, column, _, spoken in places:
        patch = image[int(row) :, int(column) :][:2, :2]
        assert spoken.startswith(f"Row {int(row) + 1}, column {int(column) + 1}: {patch[0, 0]} × 1 + ")
        assert spoken.endswith(f"= {patch[0, 0] - 2 * patch[1, 1]}".replace("-", "−"))


def test_a_sliding_kernel_writes_no_minus_zero(drawing):
    assert ">−0<" not in drawing._repr_html_()
