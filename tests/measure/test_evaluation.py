"""Measures of explanations, against arithmetic by hand, plain loops and what must hold for any network."""

import functools
import statistics

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lrp_book import models
from lrp_jax import plan, relevance, rules
from lrp_jax.errors import InputError
from lrp_jax.evaluation import (
    area_over_perturbation_curve,
    confidence_band,
    permuted,
    pixel_flipping,
    randomise,
    rank_agreement,
    sparsity,
    top_overlap,
)


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def sum_of_samples(x):
    return x.reshape(len(x), -1).sum(1, keepdims=True)


def dense_network(seed=0):
    return models.DenseNetwork(hidden=(12, 8), input_shape=(4, 3, 2), classes=3, rngs=nnx.Rngs(seed))


# Pixel flipping


def test_pixel_flipping_by_hand():
    # f(x) = x_1 + 2 x_2 + 3 x_3 at (1, 1, 1) is 6; in the order 3, 1, 2 it falls to 3, 2 and 0.
    # The second sample (2, 0, 1) has f = 5; in the order 1, 2, 3 it falls to 3, 3 and 0.
    model = lambda x: (x * jnp.array([1.0, 2.0, 3.0])).sum(1, keepdims=True)
    x = jnp.array([[1.0, 1.0, 1.0], [2.0, 0.0, 1.0]])
    order = jnp.array([[0.5, -1.0, 2.0], [3.0, 2.0, 1.0]])
    np.testing.assert_array_equal(pixel_flipping(model, x, order, 0, steps=3), [[6, 3, 2, 0], [5, 3, 3, 0]])
    # the replacement 1 changes the first sample nowhere, the second to (1, 0, 1), (1, 1, 1) and (1, 1, 1)
    curve = pixel_flipping(model, x, order, 0, steps=3, replacement=1.0)
    np.testing.assert_array_equal(curve, [[6, 6, 6, 6], [5, 4, 6, 6]])


def test_steps_and_fraction_by_hand():
    x = jnp.arange(1.0, 11.0)[None]  # 10, 9, ... are taken from the sum 55
    curve = pixel_flipping(sum_of_samples, x, x, 0, steps=4)  # 2.5 pixels a step: 2 (to even), 5, 8 (7.5), 10
    np.testing.assert_array_equal(curve, [[55, 55 - 19, 55 - 40, 55 - 52, 0]])
    curve = pixel_flipping(sum_of_samples, x, x, 0, steps=2, fraction=0.4)  # 2 and 4 pixels
    np.testing.assert_array_equal(curve, [[55, 36, 21]])


def loop_of_pixel_flipping(model, image, order, target, steps, replacement):
    """Replaces one pixel, with all its channels, after the other."""
    image, replacement = np.array(image), np.broadcast_to(replacement, image.shape)
    pixels = sorted(np.ndindex(*order.shape), key=lambda pixel: -order[pixel])
    images = [image.copy()]
    for step in range(steps):
        for pixel in pixels[step * len(pixels) // steps : (step + 1) * len(pixels) // steps]:
            image[pixel] = replacement[pixel]
        images.append(image.copy())
    return model(np.stack(images))[:, target]


@pytest.mark.parametrize(("steps", "replacement"), [(12, 0.0), (6, np.linspace(0, 1, 6).reshape(3, 2))])
def test_pixel_flipping_is_the_loop_over_pixels(steps, replacement):
    network, x = dense_network(), random(3, 4, 3, 2)
    order = np.array(random(3, 4, 3, seed=1))
    order[:, 1] = 0.5  # some pixels are equal
    targets = [0, 2, 1]
    found = pixel_flipping(network, x, order, targets, steps=steps, replacement=replacement)
    assert (found.shape, found.dtype) == ((3, steps + 1), x.dtype)
    for i, target in enumerate(targets):
        expected = loop_of_pixel_flipping(network, x[i], order[i], target, steps, replacement)
        np.testing.assert_allclose(found[i], expected, atol=1e-5)


def test_a_channel_is_replaced_on_its_own_if_its_relevance_is_given():
    x = jnp.array([[[[1.0, 10.0]], [[100.0, 1000.0]]]])  # two pixels with two channels, 1111 in all
    each = jnp.array([[[[1.0, 4.0]], [[2.0, 3.0]]]])
    curve = pixel_flipping(sum_of_samples, x, each, 0, steps=4)  # 10, 1000, 100, 1
    np.testing.assert_array_equal(curve, [[1111, 1101, 101, 1, 0]])
    together = pixel_flipping(sum_of_samples, x, each.sum(-1), 0, steps=2)  # 5 and 5: the first comes first
    np.testing.assert_array_equal(together, [[1111, 1100, 0]])


def test_channels_that_are_first_are_replaced_together():
    x = jnp.array([[[[1.0, 100.0, 10.0]], [[2.0, 200.0, 20.0]]]])  # two channels of three pixels, 333 in all
    curve = pixel_flipping(sum_of_samples, x, jnp.array([[[1.0, 3.0, 2.0]]]), 0, steps=3)
    np.testing.assert_array_equal(curve, [[333, 33, 3, 0]])
    with pytest.raises(InputError, match=r"or leaves out the last dimensions or the channels, but it has \(1, 2, 3\)"):
        pixel_flipping(sum_of_samples, jnp.ones((1, 2, 2, 3)), jnp.ones((1, 2, 3)), 0, steps=2)


def test_the_order_of_a_linear_models_own_contributions_is_the_best_of_all(float64):
    """Every curve ends at the same output; the true order is the lowest at each step, the reverse the highest."""
    weight, x = random(20, 2), random(4, 20, seed=1)
    model = lambda x: x @ weight
    true = relevance(model, x, 1, rules.Zero()).relevance
    flip = functools.partial(pixel_flipping, model, x, target=1, steps=20)
    best, worst = flip(true), flip(-true)
    area = area_over_perturbation_curve(best)
    for seed in range(5):
        curve = flip(random(4, 20, seed=seed + 2))
        assert (best <= curve + 1e-12).all()
        assert (curve <= worst + 1e-12).all()
        assert (area > area_over_perturbation_curve(curve)).all()
        np.testing.assert_allclose(curve[:, -1], 0, atol=1e-12)
    # what is gone and what is still there are complements
    np.testing.assert_allclose(best + worst[:, ::-1], jnp.broadcast_to(model(x)[:, 1:], best.shape), atol=1e-12)


def test_the_target_stays_that_of_the_unchanged_input():
    x = jnp.array([[2.0, 1.0]])  # without the first pixel the second output is the largest
    np.testing.assert_array_equal(pixel_flipping(lambda x: x, x, x, steps=2), [[2, 0, 0]])


def test_pixel_flipping_within_jit_and_with_models_of_equal_structure(compiled):
    x, order = random(5, 4, 3, 2), random(5, 4, 3, seed=1)  # as many samples as in no other test
    first = pixel_flipping(dense_network(0), x, order, 1, steps=3)
    second = pixel_flipping(dense_network(1), x, order, 1, steps=3)
    assert compiled.count("_pixel_flipping") == 1  # for both
    assert jnp.abs(first - second).max() > 1e-3
    within = jax.jit(lambda x, order: pixel_flipping(dense_network(1), x, order, 1, steps=3))(x, order)
    np.testing.assert_allclose(within, second, atol=1e-5)


def test_memory_does_not_grow_with_the_steps():
    x = jnp.ones((8, 4096))
    weights = jnp.ones((4096, 64))

    def temporary(steps):
        flip = lambda x: pixel_flipping(lambda x: jnp.tanh(x @ weights), x, x, 0, steps=steps)
        return jax.jit(flip).lower(x).compile().memory_analysis().temp_size_in_bytes

    few, many = temporary(40), temporary(4000)  # 4000 copies of x would need 500 MB
    assert many < few + 10_000_000


def test_the_area_over_the_perturbation_curve_by_hand():
    # ((5 - 5) + (5 - 3) + (5 - 4)) / 3 = 1 and ((2 - 2) + (2 - 2) + (2 + 4)) / 3 = 2
    np.testing.assert_allclose(area_over_perturbation_curve(jnp.array([[5.0, 3, 4], [2, 2, -4]])), [1, 2], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"relevance": np.ones((2, 4))}, r"x of shape \(2, 3\).* but it has \(2, 4\)"),
        ({"relevance": np.ones(2)}, r"An explanation has the shape \(samples, ...\)"),
        ({"relevance": np.array([[1, np.nan, 2]] * 2)}, "NaN or infinity"),
        ({"x": np.ones((2, 3), np.uint8)}, "floating-point numbers, but it has .* uint8"),
        ({"target": 3}, "from 0 to 2"),
        ({"steps": 0}, "from 1 to 3, the number of pixels that are replaced, but it is 0"),
        ({"steps": 3, "fraction": 0.5}, "from 1 to 2"),
        ({"fraction": 0.0}, "more than 0 and at most 1, but it is 0.0"),
        ({"fraction": 1.5}, "more than 0 and at most 1, but it is 1.5"),
        ({"replacement": np.ones(4)}, r"The replacement has the shape \(4,\)"),
    ],
)
def test_pixel_flipping_with_what_does_not_fit(options, message):
    given = {"x": np.ones((2, 3), "float32"), "relevance": np.ones((2, 3)), "target": 0, "steps": 1} | options
    with pytest.raises(InputError, match=message):
        pixel_flipping(lambda x: x, **given)


def test_a_curve_of_another_shape():
    with pytest.raises(InputError, match=r"has the shape \(samples, steps \+ 1\), but this has \(3,\)"):
        area_over_perturbation_curve(jnp.ones(3))


# Confidence bands


def test_a_confidence_band_is_the_percentiles_of_resampled_means(float64):
    values = random(30, 2) * jnp.array([1.0, 3.0])
    key = jax.random.key(1)
    band = confidence_band(values, key=key, level=0.9, resamples=200)
    drawn = jax.vmap(lambda one: jax.random.randint(one, (30,), 0, 30))(jax.random.split(key, 200))
    means = [np.mean([np.asarray(values)[i] for i in one], axis=0) for one in np.asarray(drawn)]
    np.testing.assert_allclose(band.mean, np.asarray(values).mean(0), atol=1e-12)
    np.testing.assert_allclose([band.low, band.high], np.percentile(means, [5, 95], axis=0), atol=1e-12)


def test_a_confidence_band_is_as_wide_as_theory_says():
    """For a mean of n numbers of deviation s, about 1.96 s / sqrt(n) to each side."""
    values = random(400, 3) * 2 + jnp.array([0.0, 5.0, 1e4])
    band = confidence_band(values, key=jax.random.key(1), resamples=2000)
    expected = 1.96 * np.asarray(values, float).std(0) / 20
    np.testing.assert_allclose(band.high - band.mean, expected, rtol=0.12)
    np.testing.assert_allclose(band.mean - band.low, expected, rtol=0.12)
    wider = confidence_band(values, key=jax.random.key(1), level=0.99, resamples=2000)
    assert (wider.high > band.high).all()
    assert (wider.low < band.low).all()


def test_a_confidence_band_of_equal_samples_has_no_width_and_its_key_fixes_it():
    equal = confidence_band(jnp.ones((400, 3)), key=jax.random.key(0), resamples=2000)
    np.testing.assert_array_equal(equal, np.ones((3, 3)))
    values = random(400, 3)
    first, again, other = (confidence_band(values, key=jax.random.key(seed), resamples=2000) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first.low != other.low).all()


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (np.ones((1, 3)), {}, r"two or more samples in the first dimension, not \(1, 3\)"),
        (np.float32(1), {}, "two or more samples"),
        (np.ones(3), {"level": 95}, "a probability between 0 and 1, but it is 95"),
        (np.ones(3), {"resamples": 0}, "resamples must be at least 1"),
    ],
)
def test_a_confidence_band_of_what_does_not_fit(values, options, message):
    with pytest.raises(InputError, match=message):
        confidence_band(values, key=jax.random.key(0), **options)


# Randomisation of models


LAYERS = ["layers.0", "layers.1", "layers.2"]


def kernels(network):
    return [np.asarray(layer.kernel[...]) for layer in network.layers]


def is_changed(network, original):
    return [bool((a != b).any()) for a, b in zip(kernels(network), kernels(original), strict=True)]


def test_cascading_and_independent_randomisation():
    network = dense_network()
    before = kernels(network)
    cascade = randomise(network, LAYERS, key=jax.random.key(0))
    assert list(cascade) == ["layers.2", "layers.1", "layers.0"]
    assert [is_changed(one, network) for one in cascade.values()] == [
        [False, False, True],
        [False, True, True],
        [True, True, True],
    ]
    alone = randomise(network, LAYERS, key=jax.random.key(0), cascade=False)
    assert [is_changed(one, network) for one in alone.values()] == [
        [False, False, True],
        [False, True, False],
        [True, False, False],
    ]
    for layer in LAYERS:  # the same random numbers in both
        i = LAYERS.index(layer)
        np.testing.assert_array_equal(kernels(alone[layer])[i], kernels(cascade[layer])[i])
    assert all((a == b).all() for a, b in zip(before, kernels(network), strict=True))  # the given model is as it was


def test_a_randomised_module_runs_and_is_explained():
    network, x = dense_network(), random(2, 4, 3, 2)
    randomised = randomise(network, LAYERS, key=jax.random.key(0))["layers.0"]
    assert type(randomised) is models.DenseNetwork
    assert jnp.abs(randomised(x) - network(x)).max() > 0.1
    maps = [relevance(model, x, 0, rules.Epsilon()).relevance for model in (network, randomised)]
    assert (rank_agreement(*maps) < 0.9).all()


def test_values_are_permuted_unless_drawn_otherwise():
    network = dense_network()
    randomised = randomise(network, LAYERS[1:2], key=jax.random.key(0))["layers.1"]
    old, new = kernels(network)[1], kernels(randomised)[1]
    assert (old != new).any()
    np.testing.assert_array_equal(np.sort(old, axis=None), np.sort(new, axis=None))
    draw = lambda key, array: nnx.initializers.normal(7.0)(key, array.shape, array.dtype)
    drawn = kernels(randomise(network, LAYERS[1:2], key=jax.random.key(0), draw=draw)["layers.1"])[1]
    assert drawn.std() == pytest.approx(7, rel=0.5)


def test_permuted_keeps_the_values_and_depends_on_the_key():
    array = jnp.arange(24.0).reshape(2, 3, 4)
    first, second = (permuted(jax.random.key(seed), array) for seed in (0, 1))
    assert first.shape == array.shape
    assert (first != second).any()
    np.testing.assert_array_equal(jnp.sort(first.ravel()), array.ravel())


def test_names_of_layers_are_those_of_the_plan():
    """In a Linen module bound to its variables, and in the order in which the layers run."""

    class Module(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2, name="a")(nn.relu(nn.Dense(3, name="b")(x)))

    x = random(2, 4)
    variables = Module().init(jax.random.key(0), x)
    model = functools.partial(Module().apply, variables)
    layers = [row[0] for row in plan(model, x).rows if row[1] == "dense"]
    assert layers == ["b", "a"]
    randomised = randomise(model, layers, key=jax.random.key(1))
    assert list(randomised) == ["a", "b"]
    assert jnp.abs(randomised["b"](x) - model(x)).max() > 1e-3
    only = randomise(variables, ["a"], key=jax.random.key(1))["a"]["params"]
    assert (only["a"]["kernel"] != variables["params"]["a"]["kernel"]).any()
    assert only["b"]["kernel"] is variables["params"]["b"]["kernel"]
    np.testing.assert_array_equal(only["a"]["kernel"], randomised["a"].args[0]["params"]["a"]["kernel"])


def test_a_name_is_a_whole_part_of_the_path_and_only_floating_point_arrays_change():
    tree = {"layer": {"w": jnp.arange(9.0), "steps": jnp.arange(9)}, "layer1": jnp.arange(9.0), "rate": 0.5}
    found = randomise(tree, ["layer"], key=jax.random.key(0))["layer"]
    assert (found["layer"]["w"] != tree["layer"]["w"]).any()
    assert found["layer"]["steps"] is tree["layer"]["steps"]
    assert found["layer1"] is tree["layer1"]
    assert found["rate"] == 0.5


@pytest.mark.parametrize(
    ("layers", "options", "message"),
    [
        (["first"], {}, r"'first' has no parameters. There are: layers.0.bias, layers.0.kernel"),
        (["layers.0", "layers.0"], {}, "'layers.0' is given more than once"),
        (["layers.1"], {"draw": lambda key, array: array[:1]}, r"draw returned the shape .* for 'layers.1.bias'"),
    ],
)
def test_randomisation_with_what_does_not_fit(layers, options, message):
    with pytest.raises(InputError, match=message):
        randomise(dense_network(), layers, key=jax.random.key(0), **options)


# Agreement


def mean_ranks(values):
    """1 + how many are smaller + half of how many others are equal."""
    return [1 + sum(b < a for b in values) + (sum(b == a for b in values) - 1) / 2 for a in values]


def test_rank_agreement_by_hand():
    # ranks (1, 2, 3, 4) and (2, 1, 4, 3): differences 1, 1, 1, 1, so 1 - 6 * 4 / (4 * 15) = 0.6
    np.testing.assert_allclose(rank_agreement(jnp.array([[1.0, 2, 3, 4]]), jnp.array([[5.0, 0, 9, 7]])), 0.6, rtol=1e-6)
    # ranks (1.5, 1.5, 3) and (1, 2, 3): (-0.5 * -1 - 0.5 * 0 + 1 * 1) / sqrt(1.5 * 2) = 1.5 / sqrt(3)
    found = rank_agreement(jnp.array([[0.0, 0, 1]]), jnp.array([[1.0, 2, 3]]))
    np.testing.assert_allclose(found, 1.5 / 3**0.5, rtol=1e-6)


def test_rank_agreement_is_the_correlation_of_mean_ranks(float64):
    a, b = (jnp.round(2 * random(6, 5, 4, seed=seed)) / 2 for seed in (0, 1))  # with ties
    expected = [
        statistics.correlation(mean_ranks(one.ravel().tolist()), mean_ranks(other.ravel().tolist()))
        for one, other in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(rank_agreement(a, b), expected, atol=1e-12)
    assert np.abs(expected).max() > 0.1


def test_rank_agreement_sees_only_the_order():
    a, b = random(3, 50), random(3, 50, seed=1)
    np.testing.assert_array_equal(rank_agreement(a, jnp.exp(a)), 1)
    np.testing.assert_array_equal(rank_agreement(a, -a), -1)
    np.testing.assert_allclose(rank_agreement(a, b), rank_agreement(b, a), rtol=1e-6)
    assert jnp.isnan(rank_agreement(a, jnp.ones_like(a))).all()
    many = random(1, 150_528)  # an image of 224 x 224 pixels
    np.testing.assert_allclose(rank_agreement(many, many**3), 1, atol=1e-6)
    assert abs(rank_agreement(many, random(1, 150_528, seed=1))[0]) < 0.02


def test_top_overlap_by_hand_and_against_sets():
    a = jnp.array([[5.0, 4, 3, 2, 1], [1, 1, 1, 1, 1]])
    b = jnp.array([[5.0, 1, 4, 2, 3], [0, 0, 0, 1, 2]])
    # of 5 * 0.4 = 2: {0, 1} and {0, 2} have one in common; the first of the equal {0, 1} and {4, 3} none
    np.testing.assert_array_equal(top_overlap(a, b, 0.4), [0.5, 0])
    np.testing.assert_array_equal(top_overlap(a, b, 1.0), [1, 1])
    np.testing.assert_array_equal(top_overlap(a, b, 1e-6), [1, 0])  # at least one
    a, b = random(4, 6, 5), random(4, 6, 5, seed=1)
    expected = []
    for one, other in zip(a, b, strict=True):
        best = [set(sorted(range(30), key=lambda i: -values[i])[:9]) for values in (one.ravel(), other.ravel())]
        expected.append(len(best[0] & best[1]) / 9)
    np.testing.assert_allclose(top_overlap(a, b, 0.3), expected, rtol=1e-6)


def test_top_overlap_of_random_orders_is_the_fraction():
    overlap = top_overlap(random(200, 100), random(200, 100, seed=1), 0.2)
    assert float(overlap.mean()) == pytest.approx(0.2, abs=0.02)


def test_sparsity_by_hand_and_by_its_definition(float64):
    # the Gini index is half the mean absolute difference over the mean: (0, 1, 3): pairs 1, 3, 2 twice, 12 / 9 / 2
    # = 2/3, over 4/3: 0.5
    np.testing.assert_allclose(sparsity(jnp.array([[1.0, 0.0, -3.0]])), 0.5, atol=1e-12)
    np.testing.assert_allclose(sparsity(jnp.array([[2.0, -2, 2, 2], [0, 0, 7, 0]])), [0, 0.75], atol=1e-12)
    maps = np.asarray(random(5, 4, 3))
    expected = [np.abs(np.subtract.outer(a, a)).mean() / (2 * a.mean()) for a in np.abs(maps).reshape(5, -1)]
    np.testing.assert_allclose(sparsity(maps), expected, atol=1e-12)
    np.testing.assert_allclose(sparsity(-3 * maps), expected, atol=1e-12)
    assert jnp.isnan(sparsity(jnp.zeros((1, 3)))).all()


@pytest.mark.parametrize("measure", [rank_agreement, functools.partial(top_overlap, fraction=0.5)])
def test_explanations_that_cannot_be_compared(measure):
    maps = jnp.ones((2, 3))
    with pytest.raises(InputError, match=r"same shape to be compared, but they have \(2, 3\) and \(2, 4\)"):
        measure(maps, jnp.ones((2, 4)))
    with pytest.raises(InputError, match="holds NaN or infinity"):
        measure(maps, maps.at[0, 1].set(jnp.inf))
    with pytest.raises(InputError, match=r"shape \(samples, ...\) and is not empty, but this has \(3,\)"):
        measure(maps[0], maps[0])


def test_fractions_and_maps_that_make_no_sense():
    maps = jnp.ones((2, 3))
    with pytest.raises(InputError, match="more than 0 and at most 1, but it is 20"):
        top_overlap(maps, maps, 20)
    with pytest.raises(InputError, match=r"not empty, but this has \(0, 3\)"):
        sparsity(maps[:0])
