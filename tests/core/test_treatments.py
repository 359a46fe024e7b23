"""Every operation that is not a layer, with relevance that arrives in either form."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import jit_by_day
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import sparse

import lrp_jax
from lrp_jax import composites, lrp, rules, treatments
from lrp_jax.core.primitives import summary_of
from lrp_jax.errors import UnsupportedOperationError

pytestmark = pytest.mark.usefixtures("float64")

WEIGHT = np.random.default_rng(5).normal(size=(6, 6))
NEGATIVE = -WEIGHT
MEAN, SCALE, OFFSET = np.random.default_rng(6).uniform(0.5, 1.5, size=(3, 6)) * np.array([1, -1, 1, 1, -1, 1])


def example():
    """Signed values, none of them zero, without equals."""
    return jax.random.normal(jax.random.key(0), (4, 6))


def relevance_from_ratio(fun, x, rule=rules.Zero()):  # noqa: B008
    """Relevance of x for the sum of all outputs, each with a weight of its own: the seed is in ratio form."""

    def explain(x):
        value, propagate = jax.vjp(lrp(fun, rule), x)
        weights = seed(value)
        return value, weights, propagate(weights)[0]

    return jit_by_day(explain)(x)


def relevance_from_relevance(fun, x):
    """Relevance of x with a flat layer above, so that every output of `fun` starts with the same relevance."""
    ones = jnp.ones(jax.eval_shape(fun, x).size)
    above = lambda x: fun(x).ravel() @ ones
    total, relevance = jit_by_day(jax.value_and_grad(lrp(above, rules.Flat(stabilizer=0.0))))(x)
    return total / ones.size, relevance


def seed(value):
    return jax.tree.map(lambda leaf: 1.5 + jnp.sin(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape), value)


def assert_close(actual, expected, tolerance=1e-12):
    assert actual.shape == expected.shape
    assert abs(actual - expected).max() <= tolerance * max(abs(expected).max(), 1e-300)


STRUCTURAL = {
    "reshape": lambda x: x.reshape(3, 8),
    "transpose": lambda x: x.T,
    "slice": lambda x: x[1:3, ::2],
    "pad": lambda x: jnp.pad(x, ((1, 0), (0, 2))),
    "pad inside and crop": lambda x: lax.pad(x, 0.0, ((-1, 2, 0), (0, 0, 1))),
    "concatenate": lambda x: jnp.concatenate([x, x[:, :2]], 1),
    "concatenate with a constant": lambda x: jnp.concatenate([x, jnp.ones((4, 1))], 1),
    "stack": lambda x: jnp.stack([x[0], x[2]]),
    "gather": lambda x: x[jnp.array([0, 2, 2])],
    "take": lambda x: jnp.take(x, jnp.array([5, 0]), axis=1),
    "take along axis": lambda x: jnp.take_along_axis(x, jnp.argsort(x, 1), 1),
    "diagonal": jnp.diagonal,
    "broadcast": lambda x: jnp.broadcast_to(x[None, :, :1], (2, 4, 3)),
    "tile": lambda x: jnp.tile(x, (2, 1)),
    "repeat": lambda x: jnp.repeat(x, 2, axis=0),
    "rev": lambda x: x[::-1],
    "roll": lambda x: jnp.roll(x, 1, 1),
    "select with a constant": lambda x: jnp.where(jnp.arange(6) % 2 == 0, x, 1.0),
    "select by value": lambda x: jnp.where(x > 0, x, x[::-1]),
    "lower triangle": jnp.tril,
    "sort": lambda x: jnp.sort(x, 1),
    "top k": lambda x: lax.top_k(x, 2)[0],
    "reduce max": lambda x: x.max(1),
    "reduce min": lambda x: x.min(0),
    "maximum": lambda x: jnp.maximum(x, x[::-1]),
    "cumulative maximum": lambda x: lax.cummax(x, 1),
    "max pooling": lambda x: nnx.max_pool(x[None, :, :, None], (2, 2), (1, 2), padding="SAME"),
    "dynamic slice": lambda x: lax.dynamic_slice(x, (1, 2), (2, 3)),
    "dynamic slice at a live place": lambda x: lax.dynamic_slice(x, (jnp.argmax(x[:, 0]), 2), (1, 3)),
    "dynamic update": lambda x: lax.dynamic_update_slice(x, x[:1, :2], (2, 2)),
    "scatter": lambda x: x.at[0, 1].set(3.0),
    "split": lambda x: jnp.concatenate(jnp.split(x, 2, 1)[::-1], 1),
    "squeeze": lambda x: x[:1].squeeze(0),
    "expand": lambda x: x[:, None],
    "optimisation barrier": lambda x: lax.optimization_barrier(x),
    "named": lambda x: checkpoint_name(x, "here"),
    "relu": jax.nn.relu,
    "relu by hand": lambda x: jnp.where(x > 0, x, 0),
    "dropout that is switched off": nnx.Dropout(0.5, deterministic=True),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", STRUCTURAL)
def test_structural_operation_moves_relevance_with_the_values(name):
    fun, x = STRUCTURAL[name], example()
    pulled_back = jit_by_day(lambda cotangent: jax.vjp(fun, x)[1](cotangent)[0])
    value, weights, relevance = relevance_from_ratio(fun, x)
    assert (value == fun(x)).all()
    assert_close(relevance, pulled_back(weights) * x)
    each, relevance = relevance_from_relevance(fun, x)
    # A relu passes relevance on also where it is inactive, which only a rule that ignores activations sends there.
    expected = each * jnp.ones_like(x) if "relu" in name else pulled_back(jnp.full(value.shape, each))
    assert_close(relevance, expected)


PROPORTIONAL = {
    "add": lambda x: x + x[::-1],
    "subtract": lambda x: x[:2] - x[2:],
    "sum": lambda x: x.sum(1),
    "sum of all": lambda x: x.sum().reshape(1),
    "mean": lambda x: x.mean(0),
    "weighted mean": lambda x: (x * jnp.asarray(SCALE)).mean(1),
    "cumulative sum": lambda x: x.cumsum(1),
    "average pooling": lambda x: nnx.avg_pool(x[None, :, :, None], (2, 2)),
    "average pooling of what is there": lambda x: nnx.avg_pool(
        x[None, :, :, None], (3, 3), (2, 2), padding="SAME", count_include_pad=False
    ),
    "scatter-add": lambda x: x.at[0].add(x[1]),
    "segment sum": lambda x: jax.ops.segment_sum(x, jnp.array([0, 1, 1, 0]), 2),
    "associative scan": lambda x: lax.associative_scan(jnp.add, x),
    "scatter-sub": lambda x: x.at[0].subtract(x[1]),
    "scatter-mul": lambda x: x.at[:, jnp.array([0, 2])].mul(np.array([4.0, -0.5])),
    "Fourier transform": lambda x: jnp.fft.rfft(x).real,
    "Fourier transform along both axes": lambda x: jnp.fft.fft2(x).imag[1:2],
    "amplitudes of a Fourier transform": lambda x: jnp.abs(jnp.fft.rfft(x)),
    "filter": lambda x: jnp.fft.irfft(jnp.fft.rfft(x) * np.array([1, 0.5 + 0.2j, 0.2, 0.1]), 6),
    "filter of one half": lambda x: jnp.fft.ifft(jnp.fft.fft(x[:2]) + 1j * jnp.fft.fft(x[2:])).real,
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", PROPORTIONAL)
def test_proportional_operation_splits_relevance(name):
    fun, x = PROPORTIONAL[name], example()
    pulled_back = jit_by_day(lambda cotangent: jax.vjp(fun, x)[1](cotangent)[0])
    value, weights, relevance = relevance_from_ratio(fun, x)
    # One by one the operations round otherwise than a function such as `mean`, which JAX compiles as a whole.
    assert_close(value, fun(x))
    assert (jax.jit(lrp(fun, rules.Zero()))(x) == jax.jit(fun)(x)).all()
    assert_close(relevance, pulled_back(weights) * x)
    np.testing.assert_allclose(relevance.sum(), (weights * value).sum(), rtol=1e-12)
    each, relevance = relevance_from_relevance(fun, x)
    np.testing.assert_allclose(relevance.sum(), each * value.size, rtol=1e-9)  # nothing is stabilised on the way
    assert_close(relevance, x * pulled_back(each / value), 1e-9)


ONE_TO_ONE = {
    "relu6": jax.nn.relu6,
    "hard swish": jax.nn.hard_swish,
    "leaky relu": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "celu": jax.nn.celu,
    "selu": jax.nn.selu,
    "gelu": jax.nn.gelu,
    "exact gelu": functools.partial(jax.nn.gelu, approximate=False),
    "silu": jax.nn.silu,
    "mish": jax.nn.mish,
    "tanh": jnp.tanh,
    "hard tanh": jax.nn.hard_tanh,
    "clip": lambda x: jnp.clip(x, -0.5, 0.7),
    "abs": jnp.abs,
    "square": jnp.square,
    "cube": lambda x: x**3,
    "sine": jnp.sin,
    "error function": lax.erf,
    "negation": lambda x: -x,
    "cast": lambda x: x.astype(jnp.float32).astype(jnp.float64),
    "straight through": lambda x: x + lax.stop_gradient(jnp.round(x) - x),
    "parametric relu": lambda x: jnp.where(x >= 0, x, SCALE * x),
    "constant gate": lambda x: x * jax.nn.sigmoid(SCALE),
    "own gate": lambda x: x * jax.nn.sigmoid(3 * x + 1),
    "own exact gelu gate": lambda x: x * (1 + lax.erf(x / np.sqrt(2))) / 2,
    "gate of a neighbour": lambda x: x * jax.nn.sigmoid(x[::-1]),
    "division by the root mean square": lambda x: x / jnp.sqrt((x**2).mean(1, keepdims=True) + 1e-6),
    "division by the norm": lambda x: x / jnp.linalg.norm(x, axis=1, keepdims=True),
    "division by a norm with a floor": lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-3),
}
# What of its value a constant keeps: the value at zero, or the constant's own share of a sum.
SHIFTED = {
    "softplus": (jax.nn.softplus, lambda x, y: np.log(2)),
    "log sigmoid": (jax.nn.log_sigmoid, lambda x, y: -np.log(2)),
    "sigmoid": (jax.nn.sigmoid, lambda x, y: 0.5),
    "exp": (jnp.exp, lambda x, y: 1.0),
    "cosine": (jnp.cos, lambda x, y: 1.0),
    "reciprocal": (lambda x: 1 / (x + 9.0), lambda x, y: 1 / 9),
    "power": (lambda x: (x + 9.0) ** 1.7, lambda x, y: 9 / (x + 9) * y),
    "root": (lambda x: jnp.sqrt(x + 9.0), lambda x, y: 9 / (x + 9) * y),
    "logarithm": (lambda x: jnp.log1p(x + 9.0), lambda x, y: 9 / (x + 9) * y),
    "input normalisation": (lambda x: (x - 0.5) / 0.25, lambda x, y: -2.0),
    "input normalisation by channel": (lambda x: (x - MEAN) / SCALE, lambda x, y: -MEAN / SCALE),
    "reversed subtraction": (lambda x: MEAN - x, lambda x, y: MEAN),
    "batch norm": (
        lambda x: (x - MEAN) * (SCALE * lax.rsqrt(jnp.asarray(SCALE**2) + 1e-5)) + OFFSET,
        lambda x, y: OFFSET - MEAN * SCALE / np.sqrt(SCALE**2 + 1e-5),
    ),
    "batch norm, then relu6": (
        lambda x: jax.nn.relu6((x - MEAN) * SCALE + OFFSET),
        lambda x, y: y * (OFFSET - MEAN * SCALE) / ((x - MEAN) * SCALE + OFFSET),
    ),
    "residual sum with a shift": (lambda x: x + (jax.nn.relu(x) + OFFSET), lambda x, y: OFFSET),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ONE_TO_ONE)
def test_elementwise_function_that_is_zero_at_zero_passes_relevance_one_to_one(name):
    fun, x = ONE_TO_ONE[name], 3 * example()
    value, weights, relevance = relevance_from_ratio(fun, x)
    np.testing.assert_allclose(value, fun(x), rtol=1e-14)
    assert_close(relevance, weights * value, 1e-6 if name == "cast" or "own" in name else 1e-12)
    each, relevance = relevance_from_relevance(fun, x)
    assert_close(relevance, jnp.full(x.shape, each), 1e-9)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", SHIFTED)
def test_constants_keep_their_share_in_ratio_form_alone(name):
    (fun, kept), x = SHIFTED[name], 2 * example()
    value, weights, relevance = relevance_from_ratio(fun, x)
    np.testing.assert_allclose(value, fun(x), rtol=1e-14)
    assert_close(relevance, weights * (value - kept(np.asarray(x), np.asarray(value))), 1e-9)
    if name != "residual sum with a shift":
        each, relevance = relevance_from_relevance(fun, x)
        assert_close(relevance, jnp.full(x.shape, each), 1e-9)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ["relu6", "tanh", "gelu", *SHIFTED])
def test_input_of_zero_receives_nothing_in_ratio_form_and_its_part_in_relevance_form(name):
    fun, x = ONE_TO_ONE[name] if name in ONE_TO_ONE else SHIFTED[name][0], jnp.zeros((1, 6))
    _, _, relevance = relevance_from_ratio(fun, x)
    assert not relevance.any()
    if fun(x).sum() and name != "residual sum with a shift":
        each, relevance = relevance_from_relevance(fun, x)
        assert_close(relevance, jnp.full(x.shape, each), 1e-9)


def test_gated_linear_unit_gives_all_to_the_signal():
    x = example()
    value, weights, relevance = relevance_from_ratio(jax.nn.glu, x)
    assert_close(relevance[:, :3], weights * value)
    assert not relevance[:, 3:].any()


CONSTANT_WEIGHT = lambda x: x @ WEIGHT
# Programs with structure, and the same function written out.
CONTROL = {
    "scan with carry and stacked outputs": (
        lambda x: lax.scan(lambda c, row: (jnp.tanh(c @ WEIGHT + row), 2 * c + row), x[0], x[1:]),
        lambda x: functools.reduce(
            lambda state, row: (
                jnp.tanh(state[0] @ WEIGHT + row),
                jnp.concatenate([state[1], (2 * state[0] + row)[None]]),
            ),
            x[2:],
            (jnp.tanh(x[0] @ WEIGHT + x[1]), (2 * x[0] + x[1])[None]),
        ),
    ),
    "scan with the input as carry": (
        lambda x: lax.scan(lambda c, w: (jax.nn.relu(c @ w), c.sum()), x, jnp.stack([WEIGHT, NEGATIVE, WEIGHT])),
        lambda x: (
            jax.nn.relu(jax.nn.relu(jax.nn.relu(x @ WEIGHT) @ NEGATIVE) @ WEIGHT),
            jnp.stack([x.sum(), jax.nn.relu(x @ WEIGHT).sum(), jax.nn.relu(jax.nn.relu(x @ WEIGHT) @ NEGATIVE).sum()]),
        ),
    ),
    "reversed scan": (
        lambda x: lax.scan(lambda c, row: (c + row @ WEIGHT, c), jnp.zeros(6), x, reverse=True)[0],
        lambda x: (x[::-1] @ WEIGHT)[0] + (x[::-1] @ WEIGHT)[1] + (x[::-1] @ WEIGHT)[2] + (x[::-1] @ WEIGHT)[3],
    ),
    "scan inside a scan": (
        lambda x: lax.scan(
            lambda c, _: (lax.scan(lambda d, __: (jnp.tanh(d @ WEIGHT), None), c, length=2)[0], None), x, length=2
        )[0],
        lambda x: jnp.tanh(jnp.tanh(jnp.tanh(jnp.tanh(x @ WEIGHT) @ WEIGHT) @ WEIGHT) @ WEIGHT),
    ),
    "for loop": (
        lambda x: lax.fori_loop(0, 2, lambda _, c: jnp.tanh(c @ WEIGHT), x),
        lambda x: jnp.tanh(jnp.tanh(x @ WEIGHT) @ WEIGHT),
    ),
    "map": (
        lambda x: lax.map(lambda row: jnp.tanh(row @ WEIGHT), x),
        lambda x: jnp.tanh(x @ WEIGHT),
    ),
    "cond": (
        lambda x: lax.cond(x.sum() > -99, lambda x: jnp.tanh(x @ WEIGHT), lambda x: jax.nn.relu(x), x),
        lambda x: jnp.tanh(x @ WEIGHT),
    ),
    "switch": (
        lambda x: lax.switch(jnp.argmax(x[0]) * 0 + 1, [jax.nn.relu, lambda x: jnp.tanh(x @ WEIGHT), jnp.abs], x),
        lambda x: jnp.tanh(x @ WEIGHT),
    ),
    "cond in a scan": (
        lambda x: lax.scan(
            lambda c, i: (lax.cond(i > 0, lambda c: jnp.tanh(c @ WEIGHT), lambda c: 2 * c + 1, c), None),
            x,
            jnp.arange(2),
        )[0],
        lambda x: jnp.tanh((2 * x + 1) @ WEIGHT),
    ),
    "checkpoint": (
        lambda x: jax.checkpoint(lambda x: jnp.tanh(x @ WEIGHT))(x) @ WEIGHT,
        lambda x: jnp.tanh(x @ WEIGHT) @ WEIGHT,
    ),
    "nested jit": (
        lambda x: jax.jit(lambda x: jax.jit(jnp.tanh)(x @ WEIGHT) + jax.jit(jnp.exp)(x))(x),
        lambda x: jnp.tanh(x @ WEIGHT) + jnp.exp(x),
    ),
    "jit of an elementwise function with an array": (
        lambda x: jax.jit(lambda x: jnp.where(jnp.asarray(SCALE > 1), x, 7.0) * SCALE + OFFSET)(x) @ WEIGHT,
        lambda x: (lax.select(jnp.tile(SCALE > 1, (4, 1)), x, jnp.full(x.shape, 7.0)) * SCALE + OFFSET) @ WEIGHT,
    ),
    "vmap": (
        jax.vmap(lambda row: jnp.tanh(row @ WEIGHT)[::-1]),
        lambda x: jnp.tanh(x @ WEIGHT)[:, ::-1],
    ),
    "vmap over weights": (
        lambda x: jax.vmap(lambda x, w: x @ w, in_axes=(None, 0))(x, jnp.stack([WEIGHT, NEGATIVE])),
        lambda x: jnp.stack([x @ WEIGHT, x @ NEGATIVE]),
    ),
    "vmap of a scan": (
        jax.vmap(lambda row: lax.scan(lambda c, _: (jnp.tanh(c @ WEIGHT), None), row, length=2)[0]),
        lambda x: jnp.tanh(jnp.tanh(x @ WEIGHT) @ WEIGHT),
    ),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("rule", [rules.Zero(), rules.Flat()], ids=["ratio", "relevance"])
@pytest.mark.parametrize("name", CONTROL)
def test_program_with_structure_is_the_function_written_out(name, rule):
    (fun, written_out), x = CONTROL[name], example()
    value, _, relevance = relevance_from_ratio(fun, x, rule)
    expected_value, _, expected = relevance_from_ratio(written_out, x, rule)
    for leaf, other in zip(jax.tree.leaves(value), jax.tree.leaves(fun(x)), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-12)
    assert jax.tree.all(jax.tree.map(jnp.allclose, value, expected_value))
    assert relevance.any()
    assert_close(relevance, expected, 1e-9)
    assert_close(relevance_from_ratio(jax.jit(fun), x, rule)[2], relevance, 1e-10)


def test_custom_derivatives_are_replaced():
    @jax.custom_jvp
    def doubled(x):
        return 2 * x @ WEIGHT

    @jax.custom_vjp
    def tripled(x):
        return 3 * x @ WEIGHT

    doubled.defjvp(lambda primals, tangents: (doubled(*primals), jnp.zeros_like(primals[0])))
    tripled.defvjp(lambda x: (tripled(x), None), lambda _, cotangent: (jnp.zeros_like(cotangent),))
    x = example()
    for factor, fun in ((2, doubled), (3, tripled)):
        assert not jax.grad(lambda x, fun=fun: fun(x).sum())(x).any()
        _, _, relevance = relevance_from_ratio(fun, x, rules.Flat())
        _, _, expected = relevance_from_ratio(lambda x, factor=factor: factor * x @ WEIGHT, x, rules.Flat())
        assert_close(relevance, expected)


def test_custom_derivative_of_one_elementwise_function_is_replaced():
    @jax.custom_jvp
    def bent(x):
        return jnp.where(x > 0, x, 0.5 * x)

    bent.defjvp(lambda primals, tangents: (bent(*primals), jax.nn.sigmoid(primals[0]) * tangents[0]))
    x = example()
    value, weights, relevance = relevance_from_ratio(bent, x)
    assert_close(relevance, weights * value)


def test_several_inputs_and_outputs_in_pytrees():
    def network(inputs, scale, extra):
        hidden = inputs["a"] @ WEIGHT + inputs["b"][0]
        return {"sum": hidden.sum() + extra, "parts": (scale * hidden, inputs["b"][1] ** 2), "constant": scale}

    inputs = {"a": example(), "b": [example()[0], example()[1]]}
    explained = lrp(network, rules.Zero(), argnums=(0, 2))
    value, propagate = jax.vjp(lambda inputs, extra: explained(inputs, 2.0, extra), inputs, 5.0)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, value, network(inputs, 2.0, 5.0)))
    cotangents = {"sum": 1.0, "parts": (jnp.zeros((4, 6)), jnp.ones(6)), "constant": 0.0}
    relevance, extra = propagate(cotangents)
    hidden = example() @ WEIGHT + example()[0]
    np.testing.assert_allclose(extra, 5.0)
    assert_close(relevance["a"], example() * WEIGHT.sum(1))
    assert_close(relevance["b"][0], hidden.shape[0] * example()[0])
    assert_close(relevance["b"][1], example()[1] ** 2)


def test_an_output_that_is_an_input():
    x = example()
    _, propagate = jax.vjp(lrp(lambda x: (x, x @ WEIGHT), rules.Zero()), x)
    (relevance,) = propagate((jnp.ones((4, 6)), jnp.ones((4, 6))))
    assert_close(relevance, x + x * WEIGHT.sum(1))


def test_stop_gradient_ends_relevance():
    x = example()
    fun = lambda x: jnp.concatenate([x[:2], lax.stop_gradient(x[2:])]) @ WEIGHT
    value, weights, relevance = relevance_from_ratio(fun, x)
    assert not relevance[2:].any()
    np.testing.assert_allclose(relevance[:2].sum(), (weights * value)[:2].sum())


def softmax_written_out(x):
    exponentials = jnp.exp(x - x.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


@pytest.mark.parametrize("shift", [0.0, 1e3], ids=["plain", "large values"])
def test_softmax_and_logarithm_of_a_sum_are_gradient_times_input(shift):
    x = example() + shift
    for fun in (
        jax.nn.softmax,
        jax.nn.log_softmax,
        functools.partial(jax.nn.logsumexp, axis=1),
        functools.partial(jax.nn.softmax, where=jnp.arange(6) != 2),
        softmax_written_out,
    ):
        _, weights, relevance = relevance_from_ratio(fun, x)
        expected = jax.vjp(fun, x)[1](weights)[0] * x
        assert_close(relevance, expected, 1e-9)


def test_product_halves_relevance():
    x = example()
    value, weights, relevance = relevance_from_ratio(lambda x: x[:2] * x[2:], x)
    assert_close(relevance, jnp.concatenate([weights * value, weights * value]) / 2)
    value, weights, relevance = relevance_from_ratio(lambda x: x @ x.T, x)
    np.testing.assert_allclose(relevance.sum(), (weights * value).sum())


FACTORS = np.array([[2.0, -3.0, 4.0], [0.0, 5.0, 1.0], [0.0, 0.0, 2.0]])
PRODUCTS = {
    "prod": (lambda x: x.prod(1), [[-8, -8, -8], [0, 0, 0], [0, 0, 0]]),
    "prod over two axes": (lambda x: x.reshape(-1, 1, 3).prod((1, 2)), [[-8, -8, -8], [0, 0, 0], [0, 0, 0]]),
    # 2, -6 and -24: all, a half and a third of them.
    "cumprod": (lambda x: jnp.cumprod(x, 1).sum(1), [[2 - 3 - 8, -3 - 8, -8], [0, 0, 0], [0, 0, 0]]),
    # -24, -12 and 4; 0, 5 and 1; 0, 0 and 2.
    "cumprod from the end": (
        lambda x: lax.cumprod(x, 1, reverse=True).sum(1),
        [[-8, -8 - 6, -8 - 6 + 4], [0, 2.5, 2.5 + 1], [0, 0, 2]],
    ),
    "with a constant": (
        lambda x: jnp.concatenate([x, jnp.full_like(x[:, :1], 2.0)], 1).prod(1),
        [[-12] * 3, [0] * 3, [0] * 3],
    ),
}


@pytest.mark.parametrize("compiled", [False, True])
def test_product_gives_the_same_part_to_each_factor(compiled):
    for name, (fun, expected) in PRODUCTS.items():
        model = (jax.jit if compiled else lambda fun: fun)(lambda x, fun=fun: fun(x)[:, None])
        x = jnp.asarray(FACTORS)
        for start in (0, 1, 2):  # one sample and more
            found = lrp_jax.relevance(model, x[start:], 0, rules.Zero()).relevance
            np.testing.assert_allclose(found, np.asarray(expected, float)[start:], rtol=1e-6, err_msg=name)
        book = lrp_jax.ledger(model, x, 0, rules.Zero())
        assert abs(book.unaccounted) < 1e-5, name
        assert abs(book.inputs - np.sum(expected)) < 1e-4, name


LOGARITHMS = {
    "logsumexp": lambda x: jax.nn.logsumexp(x, 1),
    "less log n": lambda x: jax.nn.logsumexp(x, 1) - np.log(4),
    "log of a mean": lambda x: jnp.log(jnp.exp(x).mean(1)),
    "with its maximum": lambda x: jnp.log(jnp.exp(x - x.max(1, keepdims=True)).mean(1)) + x.max(1),
    "with a number": lambda x: jnp.log(jnp.exp(x - 5.0).mean(1)) + 5.0,
    "where": lambda x: jax.nn.logsumexp(x, 1, where=jnp.array([True, False, True, True])),
    "mean where": lambda x: jnp.log(jnp.mean(jnp.exp(x), 1, where=jnp.array([True, False, True, True]))),
    "b": lambda x: jax.nn.logsumexp(x, 1, b=jnp.array([1.0, 0.5, 2.0, 0.1])),
    "with a temperature": lambda x: 2 * jax.nn.logsumexp(x / 2, 1) - 2 * jnp.log(4.0),
    "smallest": lambda x: -jax.nn.logsumexp(-x, 1),
    "in twos": lambda x: jnp.log2(jnp.exp2(x).sum(1)),
    "logaddexp": lambda x: jnp.logaddexp(x[:, 0], x[:, 1]),
    "logaddexp in twos": lambda x: jnp.logaddexp2(x[:, 0], x[:, 1]),
    "logaddexp of three": lambda x: jnp.logaddexp(jnp.logaddexp(x[:, 0], x[:, 3]), x[:, 2]),
    "so far": lambda x: lax.cumlogsumexp(x, 1).sum(1),
}


@functools.cache
def maps_of_logarithms(way):
    """The map of every logarithm, and its gradient times the input, by one program."""

    @jit_by_day
    def explain(x):
        maps = {}
        for name, fun in LOGARITHMS.items():
            model = {"plain": fun, "jit": jax.jit(fun), "vmap": jax.vmap(lambda r, fun=fun: fun(r[None])[0])}[way]
            found = lrp_jax.relevance(lambda x, model=model: model(x)[:, None], x, 0, rules.Zero()).relevance
            maps[name] = found, x * jax.grad(lambda x, fun=fun: fun(x).sum())(x)
        return maps

    return explain(jnp.asarray([[0.5, -1.0, 2.0, 0.3], [0.0, 1.0, 1.0, 3.0], [-2.0, -2.0, 0.0, -2.0]]))


@pytest.mark.parametrize("way", ["plain", "jit", "vmap"])
@pytest.mark.parametrize("name", LOGARITHMS)
def test_logarithm_of_a_sum_of_exponentials_is_gradient_times_input(name, way):
    np.testing.assert_allclose(*maps_of_logarithms(way)[name], rtol=1e-5, atol=1e-6)


COMPLEX, SPARSE = np.ones((6, 2), complex), sparse.BCOO.fromdense(np.eye(6))
REFUSED = {
    "custom_linear_solve": lambda x: jnp.linalg.solve(WEIGHT, x.T),
    "igamma": lambda x: jax.scipy.special.gammainc(x**2, x**2 + 1),
}


@pytest.mark.parametrize("name", REFUSED)
def test_operation_without_treatment_is_refused(name):
    message = rf"'{name}' at .*test_treatments.py:\d+ .*with_treatment\(rules, '{name}', treatment\)"
    with pytest.raises(UnsupportedOperationError, match=message):
        lrp(REFUSED[name], rules.Zero())(example())


def test_refusal_says_where_and_what_to_do():
    def cumulative(x):
        with jax.named_scope("encoder"):
            return REFUSED["igamma"](x)

    for fun, place in ((cumulative, r"\(\S*<lambda>\), in encoder"), (REFUSED["igamma"], r"\(\S*<lambda>\)")):
        with pytest.raises(UnsupportedOperationError) as refusal:
            lrp(fun, rules.Zero())(example())
        message = str(refusal.value)
        assert re.search(rf"'igamma' at \S+test_treatments\.py:\d+ {place}: lrp_jax has no treatment for it", message)
        assert "lrp_jax.treatments has those that there are." in message


def test_summary_says_whether_there_is_a_treatment():
    assert summary_of("reduce_sum").startswith("split in proportion")
    assert summary_of("igamma") == "refused"


def test_refused_operation_gets_a_treatment():
    rules_ = composites.with_treatment(rules.Zero(), "igamma", treatments.smooth)
    x = example()
    fun = lambda x: jax.scipy.special.gammainc(x, jnp.exp(x))
    _, weights, relevance = relevance_from_ratio(lambda x: fun(jnp.abs(x) + 0.5), x, rules_)
    assert jnp.isfinite(relevance).all()
    assert weights.shape == x.shape


def test_operation_that_relevance_does_not_reach_is_not_refused():
    x = example()
    fun = lambda x: (x @ WEIGHT, jnp.prod(lax.stop_gradient(x)), lax.while_loop(lambda c: c < 3, lambda c: c + 1, 0))
    value, propagate = jax.vjp(lambda x: lrp(fun, rules.Zero())(x)[0], x)
    assert_close(propagate(value)[0], x * (value @ WEIGHT.T))


@pytest.mark.parametrize("name", ["square", "sigmoid", "relu"])
def test_sign_of_a_function_is_not_taken_from_its_name(name):
    function = lambda x: x * jnp.abs(x)
    named = lambda x: function(x)
    named.__name__ = name
    x = example()
    assert (function(x) < 0).any()
    _, _, relevance = relevance_from_ratio(lambda x: jax.jit(named)(x) @ WEIGHT, x, rules.AlphaBeta())
    _, _, expected = relevance_from_ratio(lambda x: function(x) @ WEIGHT, x, rules.AlphaBeta())
    assert_close(relevance, expected)


def test_printing_inside_of_a_model(capfd):
    def network(x):
        jax.debug.print("hidden values: {}", x.shape[0] + 0 * x[0, 0])
        return x @ WEIGHT

    _, _, relevance = relevance_from_ratio(network, example())
    _, _, expected = relevance_from_ratio(CONSTANT_WEIGHT, example())
    jax.effects_barrier()
    assert_close(relevance, expected)
    assert "hidden values: 4" in capfd.readouterr().out


@pytest.mark.parametrize("treatment", [treatments.pooled_in_proportion, treatments.pooled_evenly])
def test_pooling_in_single_precision_stays_so_where_double_is_switched_on(treatment):
    x = jnp.arange(1.0, 5.0, dtype=jnp.float32)
    pool = lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (2,), (2,), "VALID").sum()
    rule = composites.with_treatment(rules.Zero(), "reduce_window_max", treatment)
    relevance = jax.grad(lrp(pool, rule))(x)
    assert relevance.dtype == jnp.float32
    assert relevance.sum() == pytest.approx(2 + 4, rel=1e-5)


def test_pooling_over_many_elements_gives_all_to_the_largest():
    x = jax.random.normal(jax.random.key(0), (1, 20, 20, 1))
    pool = lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 9, 9, 1), (1, 9, 9, 1), "VALID")
    _, weights, relevance = relevance_from_ratio(pool, x)
    np.testing.assert_allclose(relevance, x * jax.vjp(pool, x)[1](weights)[0])
    assert (relevance != 0).sum() == 4


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_product_with_a_held_value_is_split_in_proportion(kind):
    def network(x):
        if kind == "dense":
            return x @ lax.stop_gradient(x.T)
        return lax.conv(x[None, None], lax.stop_gradient(x[None, None, :2, :2]), (1, 1), "VALID")

    x = example()
    _, weights, relevance = relevance_from_ratio(network, x)
    np.testing.assert_allclose(relevance, x * jax.vjp(network, x)[1](weights)[0], rtol=1e-12)


def test_smaller_of_two_live_values_gets_all():
    x = example()
    smaller = lambda x: jnp.minimum(x[:2], x[2:])
    _, weights, relevance = relevance_from_ratio(smaller, x)
    expected = jnp.concatenate([jnp.where(x[:2] < x[2:], weights, 0), jnp.where(x[2:] < x[:2], weights, 0)])
    np.testing.assert_allclose(relevance, x * expected)


def test_gate_that_is_shifted_by_a_difference_takes_nothing():
    x = example()
    gated = lambda x: x[:2] * (jnp.tanh(x[2:]) - (-1.0))
    _, _, relevance = relevance_from_ratio(gated, x)
    assert (relevance[2:] == 0).all()
    assert (relevance[:2] != 0).all()


@pytest.mark.parametrize(
    ("fun", "circumstance"),
    [
        (
            lambda x: jnp.linalg.cholesky(x @ x.T),
            r"with 1 operand\(s\) that depend on the explained input\. If you know",
        ),
        (lambda x: jnp.exp(lax.complex(x, x)).real, r"has no treatment for it with complex numbers\. .* jnp\.real"),
        (
            lambda x: (lax.complex(x, x) @ COMPLEX).real,
            r"'dot_general' .* has no treatment for it with complex numbers\. .* jnp\.real",
        ),
        (
            lambda x: x @ SPARSE,
            r"'bcoo_dot_general' .*matrix\.todense\(\).*treatments\.proportional",
        ),
        (lambda x: x[:2].at[0].mul(x[2]), r"'scatter-mul' .*with 2 operand\(s\) .* If you know"),
    ],
)
def test_refusal_says_under_which_circumstance(fun, circumstance):
    with pytest.raises(UnsupportedOperationError, match=circumstance):
        relevance_from_ratio(fun, example())


def test_scalar_that_an_elementwise_function_spreads_gets_all_that_its_copies_get():
    spread = jax.jit(lambda s: jax.nn.silu(jnp.broadcast_to(s, (3,))))
    value, weights, relevance = relevance_from_ratio(lambda x: spread(x[0, 0]), example())
    assert relevance[0, 0] == pytest.approx((weights * value).sum())
    assert (relevance.ravel()[1:] == 0).all()
