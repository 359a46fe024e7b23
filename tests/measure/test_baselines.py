"""Explanations to compare relevance with, against arithmetic by hand, plain loops and what theory says of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lrp_jax import relevance, rules
from lrp_jax.baselines import (
    gradient,
    gradient_times_input,
    integrated_gradients,
    mean_replacement,
    occlusion,
    smoothgrad,
)
from lrp_jax.errors import InputError

METHODS = {
    "gradient": gradient,
    "gradient_times_input": gradient_times_input,
    "integrated_gradients": functools.partial(integrated_gradients, steps=3),
    "smoothgrad": functools.partial(smoothgrad, key=jax.random.key(0), samples=3),
    "occlusion": functools.partial(occlusion, window=2),
    "mean_replacement": mean_replacement,
}
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)

WEIGHT = jnp.array([[1.0, -1.0], [3.0, 2.0], [-2.0, 0.0]])


def linear(x):
    return x @ WEIGHT.astype(x.dtype)


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


@pytest.fixture(scope="module")
def network():
    """A convolution, a relu, max pooling and a dense layer, for images of 6 x 5 pixels with 2 channels."""

    class Network(nnx.Module):
        def __init__(self):
            self.convolution = nnx.Conv(2, 3, (3, 3), rngs=nnx.Rngs(0))
            self.dense = nnx.Linear(18, 3, rngs=nnx.Rngs(1))

        def __call__(self, x):
            return self.upper(self.lower(x))

        def lower(self, x):
            return nnx.max_pool(nnx.relu(self.convolution(x)), (2, 2), (2, 2))

        def upper(self, hidden):
            return self.dense(hidden.reshape(len(hidden), -1))

    return Network()


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(3).uniform(size=(3, 6, 5, 2)), jnp.float32)


# By hand: f = x w with w = (1, 3, -2) for class 0 and (-1, 2, 0) for class 1


def test_a_linear_model_by_hand():
    x = jnp.array([[2.0, 1.0, 6.0]])
    np.testing.assert_array_equal(gradient(linear, x, 0), [[1, 3, -2]])
    np.testing.assert_array_equal(gradient_times_input(linear, x, 0), [[2, 3, -12]])
    # from the baseline (1, 1, 1): (1 * 1, 3 * 0, -2 * 5)
    np.testing.assert_allclose(integrated_gradients(linear, x, 0, baseline=1.0), [[1, 0, -10]], atol=1e-5)
    # without noise, and with noise too, the gradient is the weight
    np.testing.assert_allclose(smoothgrad(linear, x, 0, key=jax.random.key(0)), [[1, 3, -2]], rtol=1e-6)
    # the mean is 3: (1 * -1, 3 * -2, -2 * 3)
    np.testing.assert_array_equal(mean_replacement(linear, x, 0), [[-1, -6, -6]])
    # windows (2, 1) and (1, 6): 2 + 3 = 5 and 3 - 12 = -9 disappear; the middle sees both
    np.testing.assert_array_equal(occlusion(linear, x, 0, window=2), [[5, -2, -9]])
    # with the value 1 in the window: 5 - 4 = 1 and -9 - 1 = -10
    np.testing.assert_array_equal(occlusion(linear, x, 0, window=2, value=1.0), [[1, -4.5, -10]])


def test_mean_replacement_of_two_relus_by_hand():
    # f(x) = relu(x_1 - x_2) + relu(x_2 - 1). At x = (4, 2), f = 2 + 1 = 3, and the mean is 3.
    # x_1 = 3: f(3, 2) = 1 + 1 = 2, a drop of 1. x_2 = 3: f(4, 3) = 1 + 2 = 3, a drop of 0.
    def model(x):
        return (nnx.relu(x[:, :1] - x[:, 1:]) + nnx.relu(x[:, 1:] - 1)).reshape(-1, 1)

    np.testing.assert_array_equal(mean_replacement(model, jnp.array([[4.0, 2.0]]), 0), [[1, 0]])


def test_integrated_gradients_of_a_relu_by_hand():
    # f(x) = relu(x - 1) from 0 to 3: the gradient is 0 on a third of the way and 1 on two thirds, 3 * 2/3 = 2.
    # Six midpoints 0.25, 0.75, 1.25, ... 2.75: four of six are above 1, so that the sum is exact.
    attribution = integrated_gradients(lambda x: nnx.relu(x - 1), jnp.array([[3.0]]), 0, steps=6)
    np.testing.assert_allclose(attribution, [[2]], rtol=1e-6)


# What theory says


def test_for_a_linear_model_all_are_lrp_0(float64):
    """Without bias, and for mean replacement with an input of mean zero."""
    weight, x = random(4, 3), random(5, 4, seed=1)
    x = x - x.mean(1, keepdims=True)
    model = lambda x: x @ weight
    expected = relevance(model, x, 2, rules.Zero()).relevance
    np.testing.assert_allclose(expected, x * weight[:, 2], atol=1e-12)
    for found in (
        gradient_times_input(model, x, 2),
        integrated_gradients(model, x, 2, steps=1),
        occlusion(model, x, 2, window=1),
        mean_replacement(model, x, 2),
    ):
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_mean_replacement_parts_from_lrp_0_where_the_mean_is_not_zero(float64):
    weight, x = random(4, 3), random(5, 4, seed=1) + 1
    model = lambda x: x @ weight
    expected = weight[:, 2] * (x - x.mean(1, keepdims=True))
    np.testing.assert_allclose(mean_replacement(model, x, 2), expected, atol=1e-12)
    assert jnp.abs(expected - relevance(model, x, 2, rules.Zero()).relevance).max() > 0.1


def test_without_biases_gradient_times_input_and_integrated_gradients_from_zero_are_lrp_0(float64):
    """A network of relus is linear on the line from zero to the input."""
    first, second, x = random(4, 6), random(6, 2, seed=1), random(5, 4, seed=2)
    model = lambda x: nnx.relu(x @ first) @ second
    expected = relevance(model, x, 0, rules.Zero()).relevance
    np.testing.assert_allclose(gradient_times_input(model, x, 0), expected, atol=1e-12)
    np.testing.assert_allclose(integrated_gradients(model, x, 0, steps=2), expected, atol=1e-12)
    assert jnp.abs(expected - mean_replacement(model, x, 0)).max() > 0.1


def test_integrated_gradients_are_complete(float64):
    first, second, x, baseline = random(4, 6), random(6, 2, seed=1), random(5, 4, seed=2), random(4, seed=3)
    model = lambda x: jnp.tanh(x @ first) @ second
    difference = (model(x) - model(baseline[None]))[:, 1]

    def error(steps):
        found = integrated_gradients(model, x, 1, baseline=baseline, steps=steps)
        return float(jnp.abs(found.sum(1) - difference).max())

    assert error(2) > 1e-2
    assert error(1000) < 1e-5
    assert error(200) / error(1000) == pytest.approx(25, rel=0.1)  # the midpoint rule is of second order


def test_smoothgrad_is_the_gradient_without_noise_and_the_smoothed_models_with_it(float64):
    # E (x + s n)^3 = x^3 + 3 s^2 x for Gaussian n, so its gradient is 3 x^2 + 3 s^2; the range of (1, 3) is 2, s = 1.
    x, key = jnp.array([[1.0, 3.0]]), jax.random.key(5)
    model = lambda x: (x**3).sum(1, keepdims=True)
    np.testing.assert_allclose(smoothgrad(model, x, 0, key=key, noise=0.0), 3 * x**2)
    found = smoothgrad(model, x, 0, key=key, samples=20_000, noise=0.5)
    np.testing.assert_allclose(found, 3 * x**2 + 3, rtol=0.02)
    np.testing.assert_array_equal(found, smoothgrad(model, x, 0, key=key, samples=20_000, noise=0.5))
    assert jnp.abs(found - smoothgrad(model, x, 0, key=jax.random.key(6), samples=20_000, noise=0.5)).max() > 0


def test_smoothgrad_scales_the_noise_to_each_sample():
    constant = jnp.ones((1, 3))  # has no range, gets no noise
    x = jnp.concatenate([constant, jnp.array([[0.0, 1.0, 2.0]])])
    model = lambda x: (x**3).sum(1, keepdims=True)
    difference = jnp.abs(smoothgrad(model, x, 0, key=jax.random.key(0), samples=4) - gradient(model, x, 0)).max(1)
    np.testing.assert_allclose(difference[0], 0, atol=1e-6)
    assert difference[1] > 0.01


# Against plain loops


def test_occlusion_promotes_no_shapes():
    weight, x = np.float32([[1, 2, 3], [4, 5, 6]]), jnp.float32([[[2, 1, 0], [1, 2, 3]]])
    with jax.numpy_rank_promotion("raise"):
        found = occlusion(lambda x: (x * weight[None]).sum((1, 2)), x, window=1)
    np.testing.assert_allclose(found, x * weight, rtol=1e-6)


def loop_of_occlusion(model, x, target, window, stride, value):
    """Hides a window of an image at a time, with two loops over its position."""
    x, value = np.asarray(x), np.broadcast_to(value, x.shape)
    total, count = np.zeros(x.shape[:3]), np.zeros(x.shape[1:3])
    starts = [
        sorted({min(start, size - width) for start in range(0, size, step)})
        for size, width, step in zip(x.shape[1:3], window, stride, strict=True)
    ]
    output = np.asarray(model(x))[:, target]
    for top in starts[0]:
        for left in starts[1]:
            place = np.s_[:, top : top + window[0], left : left + window[1]]
            changed = x.copy()
            changed[place] = value[place]
            total[place] += (output - np.asarray(model(changed))[:, target])[:, None, None]
            count[place[1:]] += 1
    return np.broadcast_to((total / count)[..., None], x.shape)


@pytest.mark.parametrize(
    ("window", "stride", "value"),
    [
        ((2, 2), (1, 1), 0.0),
        ((3, 2), (2, 2), 0.5),  # the last window in each dimension has a shorter way
        ((6, 5), (1, 1), 0.0),  # everything at once
        ((4, 1), (3, 1), np.linspace(0, 1, 10).reshape(5, 2)),
    ],
)
def test_occlusion_is_the_loop_over_windows(network, images, window, stride, value):
    found = occlusion(network, images, 1, window=window, stride=stride, value=value)
    expected = loop_of_occlusion(network, images, 1, window, stride, value)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(expected).max() > 1e-2


@pytest.mark.parametrize("channel_axis", [None, 0, -3])
def test_a_window_covers_the_channels_wherever_they_are(channel_axis):
    random = np.random.default_rng(0)
    x, weights = random.random((2, 3, 5, 6)), random.normal(size=(90, 2))
    last = lambda x: np.asarray(x).transpose(0, 3, 1, 2).reshape(len(x), -1) @ weights
    expected = loop_of_occlusion(last, x.transpose(0, 2, 3, 1), 1, (2, 3), (1, 2), 0.0).transpose(0, 3, 1, 2)
    weights = jnp.asarray(weights, jnp.float32)
    first = lambda x: x.reshape(len(x), -1) @ weights
    options = {"window": (2, 3), "stride": (1, 2), "channel_axis": channel_axis}
    np.testing.assert_allclose(occlusion(first, np.float32(x), 1, **options), expected, atol=1e-5)


def test_a_number_is_a_square_window_and_an_equal_stride(network, images):
    found = occlusion(network, images, 0, window=2, stride=2)
    np.testing.assert_array_equal(found, occlusion(network, images, 0, window=(2, 2), stride=(2, 2)))


def test_mean_replacement_is_the_loop_over_pixels_and_channels(network, images):
    found = np.asarray(mean_replacement(network, images, 2))
    for sample, image in enumerate(np.asarray(images)):
        changed = np.repeat(image.reshape(1, -1), image.size, axis=0)
        np.fill_diagonal(changed, image.mean())
        drop = network(image[None])[0, 2] - network(changed.reshape(-1, *image.shape))[:, 2]
        np.testing.assert_allclose(found[sample].ravel(), drop, atol=1e-6)
    assert np.abs(found).max() > 1e-2


def test_mean_replacement_of_a_hidden_layer(network, images):
    """The layer above it is linear, so that the drop is weight (value - mean)."""
    hidden = network.lower(images)
    found = mean_replacement(network.upper, hidden, 1)
    assert found.shape == hidden.shape == (3, 3, 2, 3)
    weight = network.dense.kernel[...][:, 1].reshape(3, 2, 3)
    expected = weight * (hidden - hidden.mean((1, 2, 3), keepdims=True))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_more_perturbed_inputs_than_fit_into_a_batch(float64):
    x = random(3, 401)  # 401 copies of 3 inputs, a prime number: the last batch is not full
    weight = random(401, 2, seed=1)
    found = mean_replacement(lambda x: x @ weight, x, 0)
    np.testing.assert_allclose(found, weight[:, 0] * (x - x.mean(1, keepdims=True)), atol=1e-12)


# Targets, shapes, dtypes, transformations


@each_method
def test_targets(method):
    x = random(3, 3)
    first, second = (method(jnp.tanh, x, target) for target in (0, 1))
    np.testing.assert_allclose(method(jnp.tanh, x, [1, 0, 1])[1], first[1], rtol=1e-6)
    np.testing.assert_allclose(method(jnp.tanh, x, np.array([1, 0, 1]))[2], second[2], rtol=1e-6)
    mask = np.tile([1, -1, 0], (3, 1))  # the difference of two classes
    np.testing.assert_allclose(method(jnp.tanh, x, mask), first - second, atol=1e-6)
    np.testing.assert_array_equal(method(jnp.tanh, x), method(jnp.tanh, x, x.argmax(1)))


def test_the_largest_output_is_that_of_the_unchanged_input():
    # f = x with x = (2, 1): the first output. Without x_1 the second output is larger, but f_1 drops from 2 to 0.
    np.testing.assert_array_equal(occlusion(lambda x: x, jnp.array([[2.0, 1.0]]), window=1), [[2, 0]])


@each_method
def test_shape_and_dtype_of_the_input(method, network, images):
    found = method(network, images, 0)
    assert (found.shape, found.dtype) == (images.shape, images.dtype)
    half = method(linear, jnp.ones((2, 3), jnp.bfloat16), 0)
    assert (half.shape, half.dtype) == ((2, 3), jnp.bfloat16)


@pytest.mark.parametrize("method", [gradient, METHODS["integrated_gradients"], METHODS["occlusion"]])
def test_each_sample_is_explained_on_its_own_and_within_jit(method):
    x = random(3, 3)
    whole = method(jnp.tanh, x, 1)
    within_jit = jax.jit(lambda x, target: method(jnp.tanh, x, target))(x, jnp.array([1, 1, 1]))
    np.testing.assert_allclose(within_jit, whole, atol=1e-6)
    np.testing.assert_allclose(method(jnp.tanh, x[1:2], 1), whole[1:2], atol=1e-6)


def test_equal_structures_are_compiled_once(images, compiled):
    def explain(seed):
        model = nnx.Linear(2, 3, rngs=nnx.Rngs(seed))
        return integrated_gradients(model, images[:, 0, 0], 0)

    first = explain(0)
    assert jnp.abs(explain(1) - first).max() > 1e-3
    assert compiled.count("_integrated_gradients") == 1


# Bad input


@each_method
@pytest.mark.parametrize(
    ("x", "target", "message"),
    [
        (np.ones((2, 3), int), 0, r"floating-point numbers, but it has \(2, 3\) and int32"),
        (np.ones(3, "float32"), 0, r"give a single sample a dimension with x\[None\]"),
        (np.ones((2, 3), "float32"), 2, "must be from 0 to 1"),
        (np.ones((2, 3), "float32"), [0, 1, 0], "2 samples, but 3 targets"),
        (np.ones((2, 3), "float32"), "all", "no single output for each sample"),
        (np.ones((2, 3), "float32"), lambda output: output[:, 0], "Pass class indices"),
    ],
)
def test_inputs_that_do_not_fit(method, x, target, message):
    with pytest.raises(InputError, match=message):
        method(linear, x, target)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (integrated_gradients, {"steps": 0}, "steps must be at least 1, but it is 0"),
        (integrated_gradients, {"baseline": np.ones(4)}, r"The baseline has the shape \(4,\).*\(2, 3\) of x"),
        (smoothgrad, {"key": jax.random.key(0), "samples": 0}, "samples must be at least 1"),
        (smoothgrad, {"key": jax.random.key(0), "noise": -0.1}, "fraction of the range of a sample, but it is -0.1"),
        (occlusion, {"window": 4}, r"window of \(4,\) with a stride of \(1,\) does not fit samples of shape \(3,\)"),
        (occlusion, {"window": 2, "stride": 3}, "1 <= stride <= window <= size"),
        (occlusion, {"window": 2, "stride": 0}, "1 <= stride <= window <= size"),
        (occlusion, {"window": (2, 2)}, r"of which there are 1, but they are \(2, 2\)"),
        (occlusion, {"window": (2,), "stride": (1, 1)}, r"but they are \(2,\) and \(1, 1\)"),
        (occlusion, {"window": 2, "value": np.ones((2, 2))}, r"The value has the shape \(2, 2\)"),
    ],
)
def test_options_that_do_not_fit(method, options, message):
    with pytest.raises(InputError, match=message):
        method(linear, jnp.ones((2, 3)), 0, **options)
