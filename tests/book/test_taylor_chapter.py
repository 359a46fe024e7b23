"""What the chapter on deep Taylor decomposition measures, and its calculations by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lrp_book import datasets, digit_pairs, disguise, fitted_relevance, hand_taylor, models, root_points, sums_of_rules
from lrp_book.bands import Band
from lrp_book.numbers import typeset
from lrp_jax import composites, lrp, relevance, rules

IMAGES = jax.random.uniform(jax.random.key(0), (3, 28, 28, 1))
LABELS = jnp.array([0, 1, 2])


@pytest.fixture(scope="module")
def dense():
    return models.DenseNetwork(hidden=(12, 8), use_bias=False, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def split():
    random = np.random.default_rng(0)
    return datasets.Split(random.integers(0, 255, (200, 28, 28, 1), dtype=np.uint8), np.arange(200) % 10)


def test_taylor_step_of_the_hand_network():
    # (2, 1) - 5/8 (5, -2) = (-9/8, 9/4), where only the second hidden neuron, 2 x_1 + x_2, is not closed yet.
    at_x, at_root, back = hand_taylor.taylor_step("name").steps
    assert at_x.values == [[2, 1], [1, 5], [8]]
    assert at_root.values == [[-1.125, 2.25], [0, 0], [0]]
    assert back.values == [[6.25, -1.25], [0, 5], [8]]  # 2 (2 + 9/8) and 1 - 9/4; the other 3 are the remainder
    np.testing.assert_allclose(back.edges[0], [[0, 6.25], [0, -1.25]])


@pytest.mark.parametrize(
    ("domain", "rule", "inputs"),
    [
        ({}, rules.WSquare(), [5.5, 2.5]),
        ({"low": 0.0}, rules.ZPlus(), [7, 1]),
        ({"low": 0.0, "high": 2.0}, rules.ZBox(0.0, 2.0), [6, 2]),
    ],
)
def test_taylor_steps_of_the_hand_neurons_are_rules(domain, rule, inputs):
    (step,) = hand_taylor.deep_taylor("name", {"rule": domain}).steps
    assert step.values == [inputs, [3, 5], [8]]
    by_rules = lrp(hand_taylor.network, [(composites.first, rule), (composites.any_layer, rules.ZPlus())])
    np.testing.assert_allclose(jax.grad(by_rules)(jnp.array([2.0, 1.0])), inputs, atol=1e-4)


def test_taylor_steps_at_every_neuron_are_the_composite(dense):
    *hidden, last = [layer.kernel[...] for layer in dense.layers]
    label = int(dense(IMAGES[:1])[0].argmax())
    found = root_points.by_taylor_steps([*hidden, last[:, label : label + 1]], IMAGES[0])
    expected = relevance(dense, IMAGES[:1], label, composites.DeepTaylor(0.0, 1.0)).relevance[0]
    assert root_points.difference(found, expected) < 1e-3


def test_root_at_black_leaves_nothing_over_and_is_lrp_0(dense):
    labels = dense(IMAGES).argmax(-1)
    found = root_points.three_lines(dense, IMAGES, labels, jnp.zeros((10, 28, 28, 1)))
    assert found["black"].found.all()
    np.testing.assert_allclose(found["black"].remainder, 0, atol=1e-2)
    expected = relevance(dense, IMAGES, labels, rules.Zero()).relevance
    assert root_points.difference(found["black"].relevance, expected) < 1e-3
    assert root_points.distances(IMAGES, found["black"]) == pytest.approx(100, abs=0.01)


def test_neurons_without_a_root_are_counted_by_hand():
    network = models.DenseNetwork(hidden=(3,), input_shape=(1, 1, 1), classes=1, rngs=nnx.Rngs(0))
    first, last = network.layers
    first.kernel[...], first.bias[...] = jnp.array([[2.0, -1.0, 1.0]]), jnp.array([1.0, 0.5, 0.0])
    last.kernel[...], last.bias[...] = jnp.array([[1.0], [0.0], [-1.0]]), jnp.array([-1.0])
    # At 1 the sums are 3, -0.5 and 1; at 0 and 1, the least that each can be is 1, -0.5 and 0. Above, 3 - 1 - 1 = 1.
    hidden, output = root_points.rootless(network, jnp.ones((1, 1, 1, 1)))
    assert hidden[1:] == (2, 1)
    assert hidden.positive == pytest.approx(200 / 3, abs=1e-3)
    assert output == (0, 1, 0)


def test_relevance_is_lost_where_a_bias_alone_makes_a_neuron_active():
    network = models.ConvolutionalNetwork(filters=(2,), hidden=(), rngs=nnx.Rngs(1))
    network.convolutions[0].bias[...] = jnp.array([0.5, 0.5])
    images = IMAGES.at[:, :, 14:].set(0)
    labels = network(images).argmax(-1)
    lost = sums_of_rules.lost_at_black_windows(network, images, labels, rules.ZPlus(bias="ignore"))
    assert float(jnp.abs(lost.total).min()) > 0.01
    np.testing.assert_allclose(lost.total, lost.at_black, rtol=1e-3)


def test_shares_of_the_neuron_of_the_chapter():
    rows = {name: values for name, *values in sums_of_rules.rows_of_neuron((2.0, 1.0), (2.0, -1.0))}
    assert rows["z-box"] == [2, 1, 3, 2.286, 1.143, 3.429]  # with b = 1: 4 / 7 and 2 / 7 of 4
    assert rows["LRP-γ"][:3] == [3.75, -0.75, 3]
    assert rows["LRP-α₂β₁"][:3] == [6, -3, 3]


def test_disguised_network_is_the_same_function_and_shows_the_face(dense):
    face = disguise.smiling_face()
    same = disguise.disguised(dense, face)
    np.testing.assert_allclose(same(IMAGES), dense(IMAGES), atol=1e-3)
    labels = dense(IMAGES).argmax(-1)
    maps = relevance(same, IMAGES, labels, composites.DeepTaylor(0.0, 1.0)).relevance
    assert float(jnp.where(face[..., None] > 0, maps, 0).sum() / maps.sum()) > 0.8


def test_pairs_hold_a_wanted_digit_where_they_say_so(split):
    pairs = digit_pairs.digit_pairs(split, 50, seed=0)
    assert pairs.images.shape == (50, 28 * 56)
    assert 10 < pairs.present.sum() < 40
    digits = {image.tobytes(): label for image, label in zip(split.images[..., 0], split.labels, strict=True)}
    halves = np.round(255 * np.asarray(pairs.images)).astype(np.uint8).reshape(50, 28, 2, 28)
    for half, present, on_left in zip(halves, pairs.present, pairs.on_left, strict=True):
        wanted = [digits[half[:, side].tobytes()] < 4 for side in (0, 1)]
        assert wanted == ([on_left, not on_left] if present else [False, False])


def test_detector_keeps_biases_that_inhibit_and_its_relevance_is_conserved(split):
    detector = digit_pairs.trained_detector(split, steps=3, seed=0)
    assert all((layer.d[...] <= 0).all() for layer in detector.layers)
    x = digit_pairs.digit_pairs(split, 20, seed=1).images
    layers = fitted_relevance.layers_of(detector, x)
    for layer in (1, 2):
        np.testing.assert_allclose(layers[layer].relevance.sum(1), detector(x)[:, 0], rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(layers[1].above, layers[2].relevance)


def test_training_free_model_is_exact_at_x(split):
    detector = digit_pairs.PairDetector(nnx.Rngs(0))
    layers = fitted_relevance.layers_of(detector, digit_pairs.digit_pairs(split, 5, seed=1).images)
    way = fitted_relevance.on_the_way(detector, 2, layers[2], None)
    np.testing.assert_allclose(way.true[:, 0], 1, rtol=1e-4)
    np.testing.assert_allclose(way.predicted[:, 0], 1, rtol=1e-4)
    assert way.error()[0] == pytest.approx(0, abs=0.01)


def test_band_as_text():
    assert Band(97.94, 97.6, 98.45).as_text(1, 1) == "97.9 (97.6 to 98.5)"


def test_rules_of_a_layer_are_taylor_steps_and_a_neuron_without_a_root_would_show():
    keys = jax.random.split(jax.random.key(1), 4)
    x, c = jax.random.uniform(keys[0], (10,)), jax.random.uniform(keys[3], (6,))
    w, b = jax.random.normal(keys[1], (10, 6)), jax.random.uniform(keys[2], (6,))
    assert max(root_points.errors_of_rules(x, w, -b, c).values()) < 1e-4
    assert np.isnan(root_points.errors_of_rules(x, w, 20 * b, c)["z-plus"])


def test_numbers_of_the_lines_are_those_of_the_table(dense):
    labels = dense(IMAGES).argmax(-1)
    found = root_points.three_lines(dense, IMAGES, labels, jnp.zeros((10, 28, 28, 1)))
    numbers = root_points.numbers_of_lines(found, IMAGES)
    for name, share, distance, remainder in root_points.rows_of_lines(found, IMAGES):
        assert [numbers[f"{name}-{key}"] for key in ("found", "distance", "remainder")] == [share, distance, remainder]
    lowest = float(found["downhill"].root.min())
    assert numbers["root-lowest"] == typeset(f"{lowest:.2f}")
    assert numbers["rival-beyond"] == 0  # the rival's mean is black here, at which the root lies
