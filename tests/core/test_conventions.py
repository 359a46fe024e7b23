"""The conventions on constants, functions of one value, and factors, with numbers.

Relevance depends on what a network computes, not on how it is written. Each expected value is worked out in numpy from
the definition: c is the cotangent of a value in ratio form, relevance over value.

- A constant keeps its share: a sum passes c on unchanged.
- A function of one value passes on c (f(u) - f(0)) / u, and c f'(0) at u = 0; where f(0) is not finite, c f'(u).
- Of two live factors a normaliser is held before a gate, a gate before a signal; two of a kind get half each.
- A softmax passes relevance on by its own derivative, as does what is computed from one.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import assert_close
from compiling import jit_by_day, quick_jit
from flax import nnx
from jax import lax, nn
from jax.ad_checkpoint import checkpoint_name
from jax.lax import stop_gradient as held
from naive.layers import shares_of
from nightly import NIGHTLY

from lrp_jax import composites, ledger, lrp, plan, relevance, rules

pytestmark = pytest.mark.usefixtures("float64")

# All ways every night (make nightly).
WAYS = ("plain", "three samples, compiled")[0 if NIGHTLY else 1 :]


def received(fun, x, rule=None, way=None):
    """What each element of x receives of the sum of the function's outputs."""
    rule = rules.Zero() if rule is None else rule
    x = jnp.asarray(x, jnp.float64)
    if way is None:
        return jit_by_day(jax.grad(lrp(lambda x: jnp.sum(fun(x)), rule)))(x)
    if way == "plain":
        return jax.grad(lrp(lambda x: jnp.sum(fun(x)), rule))(x)
    if way == "jit":
        return jax.jit(jax.grad(lrp(lambda x: jnp.sum(jax.jit(fun)(x)), rule)))(x)
    # The other samples hold other numbers, which must not matter.
    batch = jnp.stack([1.5 * x + 0.25, x, -x + 0.125])
    explain = jax.grad(lambda batch: lrp(jax.vmap(lambda x: jnp.sum(fun(x))), rule)(batch).sum())
    return quick_jit(explain)(batch)[1]


def cases(table):
    """Parametrises with the entries of a table: name -> a tuple of arguments."""
    return pytest.mark.parametrize("case", table.values(), ids=table)


every_way = pytest.mark.parametrize("way", WAYS)

# Functions of one value

U = np.array([0.5, -2.0, 3.0])


def sigmoid(u):
    return 1 / (1 + np.exp(-u))


def normal_cdf(u):
    return np.array([(1 + math.erf(v / np.sqrt(2))) / 2 for v in np.ravel(u)]).reshape(np.shape(u))


def approximate_gelu(u):
    return u / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3)))


def softplus(u):
    return np.logaddexp(u, 0)


def hard_sigmoid(u):
    return np.clip(u / 6 + 0.5, 0, 1)


# Zero at zero: one to one, what saturates included.
ZERO_AT_ZERO = {
    "relu": (nn.relu, np.maximum(U, 0)),
    "relu6 beyond 6": (nn.relu6, [8.0, -1.0, 6.5], [6.0, 0.0, 6.0]),
    "clip beyond its bounds": (lambda x: jnp.clip(x, -1.0, 1.0), [8.0, -3.0, 0.5], [1.0, -1.0, 0.5]),
    "hard tanh": (nn.hard_tanh, np.clip(U, -1, 1)),
    "leaky relu": (nn.leaky_relu, np.where(U > 0, U, 0.01 * U)),
    "elu": (nn.elu, np.where(U > 0, U, np.expm1(U))),
    "tanh": (jnp.tanh, np.tanh(U)),
    "tanh by exponentials": (lambda x: (jnp.exp(2 * x) - 1) / (jnp.exp(2 * x) + 1), np.tanh(U)),
    "sine": (jnp.sin, np.sin(U)),
    "absolute value": (jnp.abs, np.abs(U)),
    "square": (jnp.square, U**2),
    "cube by products": (lambda x: x * x * x, U**3),
    "step times u": (lambda x: x * (x > 0), np.maximum(U, 0)),
    "step in float times u": (lambda x: (x > 0).astype(x.dtype) * x, np.maximum(U, 0)),
    "u where positive": (lambda x: jnp.where(x > 0, x, 0.0), np.maximum(U, 0)),
    "half of u + |u|": (lambda x: (x + jnp.abs(x)) / 2, np.maximum(U, 0)),
    "straight-through rounding": (lambda x: x + held(jnp.round(x) - x), [1.4, 2.6], [1.0, 3.0]),
    "straight-through sign": (lambda x: x + held(jnp.sign(x) - x), [1.4, -2.6], [1.0, -1.0]),
    "silu": (nn.silu, U * sigmoid(U)),
    "u over 1 + exp(-u)": (lambda x: x / (1 + jnp.exp(-x)), U * sigmoid(U)),
    "exact gelu": (functools.partial(nn.gelu, approximate=False), U * normal_cdf(U)),
    "exact gelu by erf": (lambda x: 0.5 * x * (1 + lax.erf(x / np.sqrt(2))), U * normal_cdf(U)),
    "approximate gelu": (nn.gelu, approximate_gelu(U)),
    "hard swish": (nn.hard_swish, U * hard_sigmoid(U)),
    "hard swish by relu6": (lambda x: x * nn.relu6(x + 3) / 6, U * hard_sigmoid(U)),
    "hard swish by clip": (lambda x: x * jnp.clip(x / 6 + 0.5, 0, 1), U * hard_sigmoid(U)),
    "mish": (nn.mish, U * np.tanh(softplus(U))),
    "sigmoid less a half": (lambda x: nn.sigmoid(x) - 0.5, sigmoid(U) - 0.5),
    "softplus less log 2": (lambda x: nn.softplus(x) - np.log(2), softplus(U) - np.log(2)),
    "log1p": (jnp.log1p, [0.5, 2.0], np.log([1.5, 3.0])),
    "log of 1 + u": (lambda x: jnp.log(1 + x), [0.5, 2.0], np.log([1.5, 3.0])),
    "expm1": (jnp.expm1, np.expm1(U)),
    "u over 1 + |u|": (nn.soft_sign, U / (1 + np.abs(U))),
    "root": (jnp.sqrt, [0.25, 4.0], [0.5, 2.0]),
}


@pytest.mark.sampled(3)
@every_way
@cases(ZERO_AT_ZERO)
def test_function_that_is_zero_at_zero_passes_all(case, way):
    fun, *x, expected = case
    assert_close(received(fun, x[0] if x else U, way=way), expected)


def test_root_with_a_guard_passes_all_but_what_the_guard_adds():
    assert_close(received(lambda x: jnp.sqrt(x + 1e-12), [0.25, 4.0]), [0.5, 2.0], 1e-5)


# Not zero at zero: f(0) is a constant that keeps its share.
SHIFTED = {
    "sigmoid": (nn.sigmoid, sigmoid(U) - 0.5),
    "1 / (1 + exp(-u))": (lambda x: 1 / (1 + jnp.exp(-x)), sigmoid(U) - 0.5),
    "(1 + tanh(u / 2)) / 2": (lambda x: (1 + jnp.tanh(x / 2)) / 2, sigmoid(U) - 0.5),
    "1 - sigmoid(-u)": (lambda x: 1 - nn.sigmoid(-x), sigmoid(U) - 0.5),
    "exp(log_sigmoid)": (lambda x: jnp.exp(nn.log_sigmoid(x)), sigmoid(U) - 0.5),
    "exp(u) / (1 + exp(u))": (lambda x: jnp.exp(x) / (1 + jnp.exp(x)), sigmoid(U) - 0.5),
    "hard sigmoid": (nn.hard_sigmoid, [0.5, -2.0, 2.0], hard_sigmoid(np.array([0.5, -2.0, 2.0])) - 0.5),
    "sigmoid(u + 3)": (lambda x: nn.sigmoid(x + 3.0), sigmoid(U + 3) - sigmoid(3.0)),
    "log_sigmoid": (nn.log_sigmoid, np.log(sigmoid(U)) - np.log(0.5)),
    "exp": (jnp.exp, np.exp(U) - 1),
    "exp2": (jnp.exp2, 2**U - 1),
    "cosine": (jnp.cos, np.cos(U) - 1),
    "softplus": (nn.softplus, softplus(U) - np.log(2)),
    "log(1 + exp(u))": (lambda x: jnp.log(1 + jnp.exp(x)), softplus(U) - np.log(2)),
    "log1p(exp(u))": (lambda x: jnp.log1p(jnp.exp(x)), softplus(U) - np.log(2)),
    "logaddexp(u, 0)": (lambda x: jnp.logaddexp(x, 0.0), softplus(U) - np.log(2)),
    "-log_sigmoid(-u)": (lambda x: -nn.log_sigmoid(-x), softplus(U) - np.log(2)),
    "root of 8 + exp(u)": (lambda x: jnp.sqrt(8 + jnp.exp(x)), (np.exp(U) - 1) / np.sqrt(np.exp(U) + 8)),
    "1 / (u + 9)": (lambda x: 1 / (x + 9.0), 1 / (U + 9) - 1 / 9),
    "gelu + 1": (lambda x: nn.gelu(x) + 1.0, approximate_gelu(U)),
}


@every_way
@cases(SHIFTED)
def test_value_at_zero_keeps_its_share(case, way):
    fun, *x, expected = case
    assert_close(received(fun, x[0] if x else U, way=way), expected)


# At u = 0 it is c f'(0), where x and its partner have opposite signs.
AT_ZERO = {
    "gelu": (functools.partial(nn.gelu, approximate=False), 0.5),
    "silu": (nn.silu, 0.5),
    "tanh": (jnp.tanh, 1.0),
    "sigmoid": (nn.sigmoid, 0.25),
    "1 / (1 + exp(-u))": (lambda u: 1 / (1 + jnp.exp(-u)), 0.25),
    "softplus": (nn.softplus, 0.5),
    "exp": (jnp.exp, 1.0),
    "hard swish": (nn.hard_swish, 0.5),
    "relu": (nn.relu, 0.0),
    "relu by maximum": (lambda u: jnp.maximum(u, 0.0), 0.0),
    "relu by clip": (lambda u: jnp.clip(u, 0.0), 0.0),
    "relu by where": (lambda u: jnp.where(u > 0, u, 0.0), 0.0),
    "relu by step": (lambda u: u * (u > 0), 0.0),
    "relu by an array of zeros": (lambda u: jnp.maximum(u, jnp.zeros(u.shape)), 0.0),
    "identity": (lambda u: u, 1.0),
}


@every_way
@cases(AT_ZERO)
def test_function_at_zero_passes_its_slope(case, way):
    fun, slope = case
    assert_close(received(lambda x: fun(x[0] + x[1]), [1.0, -1.0], way=way), [slope, -slope])


NEAR_ZERO = {name: AT_ZERO[name] for name in ("gelu", "silu", "sigmoid", "softplus", "exp", "1 / (1 + exp(-u))")}


@pytest.mark.parametrize("u", [1e-12, -1e-9, 1e-6, -1e-4])
@cases(NEAR_ZERO)
def test_function_near_zero_passes_its_slope(case, u):
    fun, slope = case
    assert_close(received(lambda x: fun(x[0] + x[1]), [1.0 + u, -1.0]), [slope * (1 + u), -slope], 2e-4)


# f(0) is not finite, guarded or not: the derivative.
WITHOUT_VALUE_AT_ZERO = {
    "log": (jnp.log, [0.5, 2.0], [1.0, 1.0]),
    "log with a floor": (lambda x: jnp.log(jnp.maximum(x, 1e-9)), [0.5, 2.0], [1.0, 1.0]),
    "log with a clip": (lambda x: jnp.log(jnp.clip(x, 1e-7)), [0.5, 2.0], [1.0, 1.0]),
    "log of x + 1e-9": (lambda x: jnp.log(x + 1e-9), [0.5, 2.0], [1.0, 1.0]),
    "log of x + 1e-4": (lambda x: jnp.log(x + 1e-4), [0.5, 2.0], [0.5 / 0.5001, 2 / 2.0001]),
    "log2": (jnp.log2, [0.5, 2.0], np.ones(2) / np.log(2)),
    "1 / x": (lambda x: 1 / x, [0.5, 2.0], [-2.0, -0.5]),
    "reciprocal": (jnp.reciprocal, [0.5, 2.0], [-2.0, -0.5]),
    "x^-2": (lambda x: x**-2.0, [0.5, 2.0], [-8.0, -0.5]),
    "3 + log": (lambda x: 3 + jnp.log(x), [0.5, 2.0], [1.0, 1.0]),
    "1 / root": (lambda x: lax.rsqrt(x), [0.25, 4.0], [-1.0, -0.25]),
}


@every_way
@cases(WITHOUT_VALUE_AT_ZERO)
def test_function_without_a_value_at_zero_passes_its_derivative(case, way):
    fun, x, expected = case
    if way != "plain":
        fun = lambda x, fun=fun: fun(jnp.abs(x))
    assert_close(received(fun, x, way=way), expected, 1e-8)


# A piecewise-linear function of one value, however it is written: f(u) - f'(u) u is what its constants add.
BENT = {
    "max(u, 0.4)": (lambda x, k: jnp.maximum(x, 0.4 + k), U * (U > 0.4)),
    "relu(u - 0.4) + 0.4": (lambda x, k: nn.relu(x - (0.4 + k)) + 0.4, U * (U > 0.4)),
    "relu(u + 0.1)": (lambda x, k: nn.relu(x + (0.1 + k)), U * (U > -0.1)),
    "relu(0.1 + u) by where": (lambda x, k: jnp.where((0.1 + k) + x > 0, (0.1 + k) + x, 0.0), U * (U > -0.1)),
    "relu(u + 0.1) by a step": (lambda x, k: (x + (0.1 + k)) * (x + (0.1 + k) > 0), U * (U > -0.1)),
    "relu(u + 0.1) by clip": (lambda x, k: jnp.clip(x + (0.1 + k), 0.0), U * (U > -0.1)),
    "2 - relu(u)": (lambda x, k: nn.relu((2.0 + k) - nn.relu(x)), [-0.5, 0.0, 0.0]),
    "u + 0.1": (lambda x, k: x + (0.1 + k), U),
    "0.1 - u": (lambda x, k: (0.1 + k) - x, -U),
    "|u + 0.1|": (lambda x, k: jnp.abs(x + (0.1 + k)), U * np.sign(U + 0.1)),
    "leaky relu of u - 1": (lambda x, k: nn.leaky_relu(x - (1.0 + k), 0.25), U * np.where(U > 1, 1, 0.25)),
    "standardised": (lambda x, k: nn.relu((x - (0.3 + k)) / (0.2 + k)), U / 0.2 * (U > 0.3)),
}
NUMBER_OR_ARRAY = {"number": 0.0, "0-d array": np.zeros(()), "array": np.zeros(3), "one row": np.zeros((1,))}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("k", NUMBER_OR_ARRAY.values(), ids=NUMBER_OR_ARRAY)
@cases(BENT)
def test_constants_of_a_piecewise_linear_function_keep_their_share(case, k):
    fun, expected = case
    assert_close(received(lambda x: fun(x, k), U), expected)
    assert_close(received(lambda x: fun(x, k), U, way="jit"), expected)


def test_saturated_minimum_with_a_constant_keeps_the_secant():
    # min(u, 1) is zero at zero: at u = 3 its value 1 goes to u, as relu6 beyond 6.
    assert_close(received(lambda x: jnp.minimum(x, 1.0), [3.0]), [1.0])


BEFORE_A_SMOOTH_FUNCTION = {
    "gelu": (functools.partial(nn.gelu, approximate=False), lambda u: u * normal_cdf(u)),
    "silu": (nn.silu, lambda u: u * sigmoid(u)),
    "silu by hand": (lambda u: u / (1 + jnp.exp(-u)), lambda u: u * sigmoid(u)),
    "tanh": (jnp.tanh, np.tanh),
    "hard swish": (nn.hard_swish, lambda u: u * hard_sigmoid(u)),
    "relu6": (nn.relu6, lambda u: np.clip(u, 0, 6)),
    "square": (jnp.square, np.square),
    "cube": (lambda u: u**3, lambda u: u**3),
}


@pytest.mark.parametrize("k", NUMBER_OR_ARRAY.values(), ids=NUMBER_OR_ARRAY)
@cases(BEFORE_A_SMOOTH_FUNCTION)
def test_addend_before_a_function_that_is_zero_at_zero_keeps_its_share(case, k):
    # f(x + b) = (x + b) f(x + b) / (x + b): x receives its part of the sum.
    fun, in_numpy = case
    assert_close(received(lambda x: fun(x + (0.1 + k)), U), U / (U + 0.1) * in_numpy(U + 0.1))


@pytest.mark.parametrize("k", NUMBER_OR_ARRAY.values(), ids=NUMBER_OR_ARRAY)
def test_addend_below_a_root_or_a_power_keeps_its_share(k):
    assert_close(received(lambda x: jnp.sqrt(x + (9.0 + k)), U), U / np.sqrt(U + 9))
    assert_close(received(lambda x: (x + (9.0 + k)) ** 1.7, U), U * (U + 9) ** 0.7)


# Functions of a value and a constant array: f(u) - f(0) is passed on, and u f'(u) where f(0) is not finite.
E = np.array([2.0, 3.0, 0.5])
BESIDE_ARRAYS = {
    "power": (lambda x: jnp.abs(x) ** E, np.abs(U) ** E),
    "exponent": (lambda x: E**x, E**U - 1),
    "negative power": (lambda x: jnp.abs(x) ** -E, -E * np.abs(U) ** -E),
    "angle": (lambda x: jnp.arctan2(E, x), np.arctan2(E, U) - np.pi / 2),
}


@cases(BESIDE_ARRAYS)
def test_function_of_a_value_and_an_array_passes_on_what_it_adds_to_its_value_at_zero(case):
    fun, share = case
    assert_close(received(fun, U), share)


def test_function_of_a_value_and_an_array_at_zero_passes_on_its_slope():
    # 2**(x0 + x1) is 1 where the sum is 0, with slope log(2).
    assert_close(received(lambda x: np.array([2.0]) ** (x[:1] + x[1:]), [1.0, -1.0]), np.log(2) * np.array([1.0, -1.0]))


ADDENDS = {
    "x + b": (lambda x, b: x + b, 1.0),
    "b + x": (lambda x, b: b + x, 1.0),
    "x - b": (lambda x, b: x - b, 1.0),
    "b - x": (lambda x, b: b - x, -1.0),
    "jnp.add": (lambda x, b: jnp.add(x, b), 1.0),
    "one after the other": (lambda x, b: (x + 0.5 * b) + 0.5 * b, 1.0),
    "sum of a stack": (lambda x, b: jnp.stack([x, jnp.broadcast_to(b, x.shape)]).sum(0), 1.0),
    "behind a reshape": (lambda x, b: (x.reshape(1, -1) + jnp.reshape(jnp.broadcast_to(b, x.shape), (1, -1)))[0], 1.0),
    "a row at a time": (lambda x, b: jax.vmap(jnp.add)(x, jnp.broadcast_to(b, x.shape)), 1.0),
    "in bfloat16 and back": (lambda x, b: x + b.astype(jnp.bfloat16).astype(x.dtype), 1.0),
    "held value": (lambda x, b: x + held(x * b), 1.0),
}


@every_way
@cases(ADDENDS)
def test_addend_keeps_its_share(case, way):
    fun, sign = case
    b, w = jnp.array([0.5, -0.25, 2.0]), np.array([2.0, -1.0, 0.5])
    assert_close(received(lambda x: fun(x, b) * w, U, way=way), sign * U * w)
    at_zero = np.array([0.0, 1.0, -1.0])
    assert_close(received(lambda x: fun(x, b) * w, at_zero, way=way), sign * at_zero * w)


def test_relevance_stays_bounded_as_an_input_goes_to_zero():
    b, w = jnp.array([0.5, -0.25, 2.0]), jnp.array([2.0, -1.0, 0.5])
    for u in (1e-3, 1e-8, 1e-300, 0.0):
        assert_close(received(lambda x: (x + b) * w, [u, 1.0, 1.0]), [2 * u, -1.0, 0.5])
        assert_close(received(lambda x: nn.relu(x + b) * w, [u, 1.0, 1.0]), [2 * u, -1.0, 0.5])


# Who is held in a product of two live factors

GATES = {
    "sigmoid": nn.sigmoid,
    "1 / (1 + exp(-u))": lambda u: 1 / (1 + jnp.exp(-u)),
    "(1 + tanh(u / 2)) / 2": lambda u: (1 + jnp.tanh(u / 2)) / 2,
    "tanh(u / 2) / 2 + 1/2": lambda u: jnp.tanh(0.5 * u) * 0.5 + 0.5,
    "hard sigmoid by relu6": lambda u: nn.relu6(u + 3) / 6,
    "hard sigmoid by clip": lambda u: jnp.clip(u / 6 + 0.5, 0, 1),
    "hard sigmoid by maximum and minimum": lambda u: jnp.maximum(0, jnp.minimum(1, u / 6 + 0.5)),
    "hard sigmoid": nn.hard_sigmoid,
    "hard sigmoid by select": lambda u: jnp.select([u < -3, u > 3], [jnp.zeros_like(u), jnp.ones_like(u)], u / 6 + 0.5),
    "hard sigmoid by numbers": lambda u: jnp.where(abs(u) < 3, u / 6 + 0.5, jnp.where(u > 0, 1.0, 0.0)),
    "exp(log_sigmoid)": lambda u: jnp.exp(nn.log_sigmoid(u)),
    "expit under jit": jax.jit(jax.scipy.special.expit),
    "1 - sigmoid(-u)": lambda u: 1 - nn.sigmoid(-u),
    "exp(u) / (exp(u) + 1)": lambda u: jnp.exp(u) / (jnp.exp(u) + 1),
    "1 + erf": lambda u: 0.5 * (1 + lax.erf(u / np.sqrt(2))),
    "erfc(-u)": lambda u: 0.5 * lax.erfc(-u / np.sqrt(2)),
    "normal distribution": jax.scipy.stats.norm.cdf,
    "sigmoid of u + 3": lambda u: nn.sigmoid(u + 3.0),
    "sigmoid of 2 u, twice": lambda u: 2 * nn.sigmoid(2 * u),
    "sigmoid in single precision": lambda u: nn.sigmoid(u.astype(jnp.float32)).astype(u.dtype),
}
SIDES = {
    "right": lambda x, g: x[0] * g(x[1]),
    "left": lambda x, g: g(x[1]) * x[0],
    "reshaped": lambda x, g: (x[:1].reshape(1, 1) * g(x[1:]).reshape(1, 1)).sum(),
    "broadcast": lambda x, g: (x[:1, None] * jnp.broadcast_to(g(x[1:])[None], (1, 1))).sum(),
    "reshaped before": lambda x, g: (x[:1] * g(x[1:].reshape(1, 1))[0]).sum(),
    "with a constant between": lambda x, g: 0.5 * (x[0] * (2.0 * g(x[1]))),
    "indexed": lambda x, g: g(x)[1] * x[0],
    "transposed": lambda x, g: (x[None, :1].T * g(x[None, 1:]).T).sum(),
}


@pytest.mark.sampled(11)
@pytest.mark.parametrize("side", SIDES.values(), ids=SIDES)
@pytest.mark.parametrize("gate", GATES.values(), ids=GATES)
def test_gate_takes_nothing(gate, side):
    x = jnp.array([2.0, 0.7])
    expected = [2.0 * float(gate(x[1])), 0.0]
    assert_close(received(lambda x: side(x, gate), x, rules.Epsilon(1e-12)), expected, 1e-6)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("gate", GATES.values(), ids=GATES)
def test_gate_behind_a_layer_takes_nothing(gate):
    # Squeeze and excitation: the gate is computed from the mean of what it gates, by a layer with a bias.
    x, w, b = jnp.array([[[1.0, 2.0], [3.0, -1.0]]]), jnp.array([[1.0, 0.5], [-1.0, 2.0]]), jnp.array([0.2, -0.1])
    excited = lambda x: x * gate(x.mean(1) @ w + b)[:, None, :]
    assert_close(received(excited, x), np.asarray(excited(x)), 1e-6)


SIGNALS = {
    "silu": nn.silu,
    "u * sigmoid(u)": lambda u: u * nn.sigmoid(u),
    "sigmoid(u) * u": lambda u: nn.sigmoid(u) * u,
    "hard swish": nn.hard_swish,
    "u * relu6(u + 3) / 6": lambda u: u * nn.relu6(u + 3) / 6,
    "u * (relu6(u + 3) / 6)": lambda u: u * (nn.relu6(u + 3) / 6),
    "u * clip(u / 6 + 0.5)": lambda u: u * jnp.clip(u / 6 + 0.5, 0, 1),
    "u / (1 + exp(-u))": lambda u: u / (1 + jnp.exp(-u)),
    "u * tanh(softplus(u))": lambda u: u * jnp.tanh(nn.softplus(u)),
}


@pytest.mark.parametrize("signal", SIGNALS.values(), ids=SIGNALS)
def test_value_with_its_own_gate_receives_all(signal):
    x = jnp.array([2.0, 0.7])
    assert_close(received(lambda x: signal(x[1]), x), [0.0, float(signal(x[1]))])


@pytest.mark.parametrize("gate", ["silu", "hard swish", "u / (1 + exp(-u))"])
def test_two_signals_get_half_each(gate):
    # SwiGLU and its like: silu is zero at zero and so a signal, as is the value that it multiplies.
    x, fun = jnp.array([2.0, 0.7]), SIGNALS[gate]
    value = float(x[0] * fun(x[1]))
    assert_close(received(lambda x: x[0] * fun(x[1]), x), [value / 2, value / 2])
    assert_close(received(lambda x: fun(x[1]) * x[0], x), [value / 2, value / 2])


HELD = {
    "two signals": (lambda x: x[0] * x[1], [2.0, 0.7], [0.7, 0.7]),
    "two signals, relu6": (lambda x: nn.relu6(x[0]) * nn.relu6(x[1]), [2.0, 0.7], [0.7, 0.7]),
    "relu6 is a signal": (lambda x: nn.relu6(x[0]) * nn.sigmoid(x[1]), [2.0, 0.7], [2 * sigmoid(0.7), 0.0]),
    "clip to (0, 1) is a signal": (
        lambda x: jnp.clip(x[0], 0, 1) * nn.sigmoid(x[1]),
        [0.5, 0.7],
        [0.5 * sigmoid(0.7), 0.0],
    ),
    "tanh is a signal": (lambda x: jnp.tanh(x[0]) * nn.sigmoid(x[1]), [2.0, 0.7], [np.tanh(2) * sigmoid(0.7), 0.0]),
    "exp is no gate": (lambda x: x[0] * jnp.exp(x[1]), [2.0, 0.7], [np.exp(0.7), np.exp(0.7) - 1]),
    "softplus is no gate": (
        lambda x: x[0] * nn.softplus(x[1]),
        [2.0, 0.7],
        [softplus(0.7), softplus(0.7) - np.log(2)],
    ),
    "hard sigmoid gate": (lambda x: x[0] * nn.relu6(x[1] + 3) / 6, [2.0, 0.6], [1.2, 0.0]),
    "two gates": (
        lambda x: nn.sigmoid(x[0]) * nn.sigmoid(x[1]),
        [2.0, 0.7],
        [
            (sigmoid(2.0) - 0.5) * sigmoid(0.7) / 2,
            (sigmoid(0.7) - 0.5) * sigmoid(2.0) / 2,
        ],
    ),
    "normaliser before a gate": (
        lambda x: nn.sigmoid(x[0]) * lax.rsqrt(x[1] ** 2 + 1),
        [2.0, 0.7],
        [(sigmoid(2.0) - 0.5) / np.sqrt(1.49), 0.0],
    ),
    "gate over a root": (
        lambda x: nn.sigmoid(x[0]) / jnp.sqrt(x[1] ** 2 + 1),
        [2.0, 0.7],
        [(sigmoid(2.0) - 0.5) / np.sqrt(1.49), 0.0],
    ),
    "norm by its length": (lambda x: (x / jnp.sqrt((x**2).sum() + 1e-9))[0], [3.0, 4.0], [0.6, 0.0]),
    "norm by jnp.linalg.norm": (lambda x: (x / jnp.linalg.norm(x))[0], [3.0, 4.0], [0.6, 0.0]),
    "norm with a floor": (lambda x: (x / jnp.maximum(jnp.linalg.norm(x), 1e-6))[0], [3.0, 4.0], [0.6, 0.0]),
    "norm times rsqrt": (lambda x: (x * lax.rsqrt((x**2).sum() + 1e-9))[0], [3.0, 4.0], [0.6, 0.0]),
    "rsqrt times x": (lambda x: (lax.rsqrt((x**2).sum() + 1e-9) * x)[0], [3.0, 4.0], [0.6, 0.0]),
    "norm by exp(-log / 2)": (lambda x: (x * jnp.exp(-0.5 * jnp.log((x**2).sum())))[0], [3.0, 4.0], [0.6, 0.0]),
    "over the sum of absolute values": (lambda x: (x / jnp.abs(x).sum())[0], [3.0, -1.0], [0.75, 0.0]),
    "over 1 + the sum of absolute values": (lambda x: (x / (1 + jnp.abs(x).sum()))[0], [3.0, -1.0], [0.6, 0.0]),
    "over the largest absolute value": (lambda x: (x / jnp.abs(x).max())[1], [4.0, -1.0], [0.0, -0.25]),
    "over the sum of relus": (lambda x: (nn.relu(x) / (nn.relu(x).sum() + 1.0))[0], [3.0, 1.0], [0.6, 0.0]),
    "silu over a root": (
        lambda x: nn.silu(x[0]) / jnp.sqrt(x[1] ** 2 + 1),
        [2.0, 0.7],
        [2 * sigmoid(2.0) / np.sqrt(1.49), 0.0],
    ),
}


@every_way
@cases(HELD)
def test_of_two_factors_normaliser_is_held_before_gate_before_signal(case, way):
    fun, x, expected = case
    assert_close(received(fun, x, way=way), expected, 1e-8)


def global_response(x, gain, shift):
    """Global response normalisation (ConvNeXt V2) over (pixels, channels)."""
    size = jnp.sqrt((x**2).sum(0, keepdims=True) + 1e-9)
    return gain * (x * (size / (size.mean(-1, keepdims=True) + 1e-6))) + shift + x


def test_quotient_of_norms_is_a_statistic_and_held():
    x = np.random.default_rng(0).normal(size=(5, 3))
    gain, shift, v = np.array([0.5, -1.0, 2.0]), np.array([0.3, 0.1, -0.2]), np.array([1.0, 2.0, -1.0])
    size = np.sqrt((x**2).sum(0) + 1e-9)
    expected = x * (gain * size / (size.mean() + 1e-6) + 1) * v
    assert_close(received(lambda x: global_response(x, gain, shift) * v, x), expected)


# Softmax in every spelling: its Jacobian

Z, V = np.array([1.0, -0.5, 2.0]), np.array([1.0, 2.0, -1.0])


def softmax(z):
    return np.exp(z) / np.exp(z).sum(-1, keepdims=True)


def by_jacobian(z, p, v):
    return z * p * (v - (p * v).sum(-1, keepdims=True))


def guarded_softmax(x, axis=-1, eps=1e-12):
    e = jnp.exp(x - held(x.max(axis, keepdims=True)))
    return e / (e.sum(axis, keepdims=True) + eps)


def softmax_of_segments(x, segments, number):
    """As in a graph, where the edges that end at one node share a softmax."""
    e = jnp.exp(x - jax.ops.segment_max(x, segments, number)[segments])
    return e / jax.ops.segment_sum(e, segments, number)[segments]


def softmax_of_a_segment(x):
    e, place = jnp.exp(x), jnp.zeros(x.shape[-1], int)
    return e / jnp.zeros((*x.shape[:-1], 1)).at[..., place].add(e)[..., place]


SOFTMAX = {
    "jax.nn.softmax": nn.softmax,
    "by hand": lambda x: jnp.exp(x) / jnp.exp(x).sum(-1, keepdims=True),
    "one exponential": lambda x: (lambda e: e / e.sum(-1, keepdims=True))(jnp.exp(x)),
    "times the reciprocal": lambda x: jnp.exp(x) * (1 / jnp.exp(x).sum(-1, keepdims=True)),
    "times the power -1": lambda x: jnp.exp(x) * jnp.exp(x).sum(-1, keepdims=True) ** -1.0,
    "less a held maximum": guarded_softmax,
    "exp(log_softmax)": lambda x: jnp.exp(nn.log_softmax(x)),
    "exp(x - logsumexp(x))": lambda x: jnp.exp(x - nn.logsumexp(x, -1, keepdims=True)),
    "exp2": lambda x: (lambda e: e / e.sum(-1, keepdims=True))(jnp.exp2(x / np.log(2))),
    "a power of 10": lambda x: (lambda e: e / e.sum(-1, keepdims=True))(10.0 ** (x / np.log(10))),
    "a power of exponentials": lambda x: (lambda e: e / e.sum(-1, keepdims=True))(jnp.exp(x / 3) ** 3),
    "a product of exponentials": lambda x: (lambda e: e / e.sum(-1, keepdims=True))(jnp.exp(x / 4) * jnp.exp(x * 0.75)),
    "a quotient of exponentials": lambda x: (lambda e: e / e.sum(-1, keepdims=True))(jnp.exp(x / 2) / jnp.exp(-x / 2)),
    "where everywhere": lambda x: nn.softmax(x, where=jnp.ones(x.shape, bool)),
    "under jit": jax.jit(lambda x: nn.softmax(x)),
    "sum of a segment": softmax_of_a_segment,
    "product of matrices as sum": lambda x: jnp.exp(x) / (jnp.exp(x) @ jnp.ones((x.shape[-1], 1))),
}


@every_way
@pytest.mark.parametrize("fun", SOFTMAX.values(), ids=SOFTMAX)
def test_softmax_passes_relevance_by_its_jacobian(fun, way):
    expected = by_jacobian(Z, softmax(Z), V)
    assert_close(received(lambda x: fun(x) @ V, Z, way=way), expected, 1e-8)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("fun", SOFTMAX.values(), ids=SOFTMAX)
def test_softmax_along_rows_under_attention_rules(fun):
    z = np.random.default_rng(1).normal(size=(4, 3))
    expected = by_jacobian(z, softmax(z), V)
    for rule in (composites.AttnLRP(1e-12), rules.ZPlus(), rules.Epsilon(1e-12)):
        assert_close(received(lambda x: (fun(x) * V).sum(-1), z, rule), expected, 1e-8)


P = softmax(Z)
OF_SOFTMAX = {
    "(e @ v) / sum": (lambda x: (jnp.exp(x) @ V) / jnp.exp(x).sum(), by_jacobian(Z, P, V)),
    "(e * v).sum() / sum": (lambda x: (jnp.exp(x) * V).sum() / jnp.exp(x).sum(), by_jacobian(Z, P, V)),
    "e / (sum + 0.5)": (
        lambda x: (jnp.exp(x) / (jnp.exp(x).sum() + 0.5)) @ V,
        (lambda e: Z * e * (V - (e * V).sum()))(np.exp(Z) / (np.exp(Z).sum() + 0.5)),
    ),
    "sharpened: p^2 / sum(p^2)": (
        lambda x: (nn.softmax(x) ** 2 / (nn.softmax(x) ** 2).sum()) @ V,
        2 * by_jacobian(Z, softmax(2 * Z), V),
    ),
    "sharpened: p^3 / sum(p^3)": (
        lambda x: (nn.softmax(x) ** 3 / (nn.softmax(x) ** 3).sum()) @ V,
        3 * by_jacobian(Z, softmax(3 * Z), V),
    ),
    "the largest two of it, over their sum": (
        lambda x: (lambda p: (p / p.sum()) @ V[:2])(lax.top_k(nn.softmax(x), 2)[0]),
        by_jacobian(Z[[2, 0]], softmax(Z[[2, 0]]), V[:2])[[1, 0]] @ np.eye(3)[[0, 2]],
    ),
    "two of it, over their sum": (
        lambda x: (lambda p: (p / (p.sum() + 1e-20)) @ V[:2])(nn.softmax(x)[:2]),
        np.append(by_jacobian(Z[:2], softmax(Z[:2]), V[:2]), 0.0),
    ),
    "two of it, times one over their sum": (
        lambda x: (lambda p: (p * (1 / p.sum())) @ V)(jnp.where(np.arange(3) < 2, jnp.exp(nn.log_softmax(x)), 0.0)),
        np.append(by_jacobian(Z[:2], softmax(Z[:2]), V[:2]), 0.0),
    ),
    "posterior: softmax times likelihood, over their sum": (
        lambda x: (lambda p: (p / p.sum()) @ V)(nn.softmax(x) * jnp.exp(2 * x[::-1])),
        (lambda s: s + 2 * s[::-1])((lambda z: by_jacobian(z, softmax(z), V) / z)(Z + 2 * Z[::-1])) * Z,
    ),
    "exponentials of two values": (
        lambda x: (lambda e: (e / e.sum()) @ V)(jnp.exp(x)[:, None][:, 0] * jnp.exp(2 * x[::-1])),
        (lambda s: s + 2 * s[::-1])((lambda z: by_jacobian(z, softmax(z), V) / z)(Z + 2 * Z[::-1])) * Z,
    ),
    "the logarithm of their sum": (
        lambda x: jnp.log((jnp.exp(x) * jnp.exp(2 * x[::-1])).sum()),
        (lambda p: p + 2 * p[::-1])(softmax(Z + 2 * Z[::-1])) * Z,
    ),
    "temperature 2": (lambda x: nn.softmax(x / 2) @ V, by_jacobian(Z / 2, softmax(Z / 2), V)),
    "masked by where": (
        lambda x: nn.softmax(jnp.where(jnp.array([True, True, False]), x, -jnp.inf)) @ V,
        np.append(by_jacobian(Z[:2], softmax(Z[:2]), V[:2]), 0.0),
    ),
    "of two segments": (
        lambda x: softmax_of_segments(x, np.array([0, 1, 0]), 2) @ V,
        by_jacobian(Z[[0, 2]], softmax(Z[[0, 2]]), V[[0, 2]]) @ np.eye(3)[[0, 2]],
    ),
    "masked by a product": (
        lambda x: (lambda e: e / e.sum())(jnp.exp(x) * jnp.array([1.0, 1.0, 0.0])) @ V,
        np.append(by_jacobian(Z[:2], softmax(Z[:2]), V[:2]), 0.0),
    ),
    "masked by an addend": (
        lambda x: nn.softmax(x + jnp.array([0.0, 0.0, -jnp.inf])) @ V,
        np.append(by_jacobian(Z[:2], softmax(Z[:2]), V[:2]), 0.0),
    ),
    "with a position added": (
        lambda x: nn.softmax(x + jnp.array([0.5, 0.0, -1.0])) @ V,
        by_jacobian(Z, softmax(Z + np.array([0.5, 0.0, -1.0])), V),
    ),
    "log_softmax": (lambda x: nn.log_softmax(x)[0], Z * (np.eye(3)[0] - P)),
    "logsumexp": (nn.logsumexp, Z * P),
    "log(sum(exp))": (lambda x: jnp.log(jnp.exp(x).sum()), Z * P),
    "log mean exp": (lambda x: nn.logsumexp(x) - jnp.log(3.0), Z * P),
    "log(mean(exp))": (lambda x: jnp.log(jnp.exp(x).mean()), Z * P),
    "smooth maximum at temperature 2": (lambda x: 2 * nn.logsumexp(x / 2), Z * softmax(Z / 2)),
}


@every_way
@cases(OF_SOFTMAX)
def test_what_is_computed_from_a_softmax(case, way):
    fun, expected = case
    assert_close(received(fun, Z, way=way), expected, 1e-8)


def test_sum_of_gates_over_a_segment_is_held():
    segments = np.array([0, 1, 0])
    gates = lambda x: jax.ops.segment_sum(nn.sigmoid(x), segments, 2)[segments]
    assert_close(received(lambda x: (gates(x) * x) @ V, Z), np.asarray(gates(jnp.asarray(Z))) * Z * V, 1e-8)


# LRP-0 is gradient times input for every network of linear operations, relu and its like, and constants

RNG = np.random.default_rng(0)
X5 = RNG.normal(size=(5, 4))
W, W2, OUT = RNG.normal(size=(4, 6)), RNG.normal(size=(6, 6)), RNG.normal(size=(6, 3))
B, G = RNG.normal(size=(2, 6))
B2, NUMBERS = RNG.normal(size=6), RNG.normal(size=(5, 6))
RELU = nn.relu
NETWORKS = {
    "pixels standardised inside, numbers": lambda x: RELU((x - 0.3) / 0.2 @ W + B) @ OUT,
    "pixels standardised inside, arrays": lambda x: RELU((x - B[:4]) / (1 + G[:4] ** 2) @ W + B) @ OUT,
    "pixels standardised inside, lists": lambda x: RELU((x - np.array([0.1, 0.2, 0.3, 0.4])) * 5 @ W) @ OUT,
    "positions added": lambda x: RELU((x + jnp.arange(20.0).reshape(5, 4)) @ W) @ OUT,
    "integer positions added": lambda x: RELU((x + jnp.arange(20).reshape(5, 4)) @ W) @ OUT,
    "bias as a number": lambda x: RELU(x @ W + 0.5) @ OUT,
    "bias as an integer": lambda x: RELU(x @ W + 1) @ OUT,
    "bias in front": lambda x: RELU(B + x @ W) @ OUT,
    "bias subtracted": lambda x: RELU(x @ W - B) @ OUT,
    "layer subtracted from its bias": lambda x: RELU(B - x @ W) @ OUT,
    "batch norm behind a relu": lambda x: RELU(RELU(x @ W) * G + B) @ OUT,
    "batch norm in four steps": lambda x: RELU((RELU(x @ W) - B) / (1 + G**2) * G + B2) @ OUT,
    "number behind a relu": lambda x: RELU(RELU(x @ W) + 0.1) @ OUT,
    "number minus a relu": lambda x: RELU(0.5 - RELU(x @ W)) @ OUT,
    "array minus a relu": lambda x: RELU(0.5 * jnp.ones(6) - RELU(x @ W)) @ OUT,
    "constant at the end": lambda x: RELU(x @ W) @ OUT + 7.0,
    "array at the end": lambda x: RELU(x @ W) @ OUT + B[:3],
    "two branches, one shifted": lambda x: (RELU(x @ W + B) + RELU(x @ W - 1.0)) @ OUT,
    "residual with a shift": lambda x: (lambda h: (h + RELU(h * G + B) @ W2) @ OUT)(x @ W),
    "concatenated, then shifted": lambda x: RELU(jnp.concatenate([x @ W, x @ W], 1) + np.r_[B, G]) @ np.r_[OUT, OUT],
    "shift for each row": lambda x: RELU(x @ W + NUMBERS) @ OUT,
    "leaky relu, shifted": lambda x: nn.leaky_relu(x @ W + B, 0.2) @ OUT,
    "absolute value, shifted": lambda x: jnp.abs(RELU(x @ W) + B) @ OUT,
    "maximum of two layers": lambda x: jnp.maximum(x @ W + B, x @ W2[:4] - G) @ OUT,
    "maximum with an array": lambda x: jnp.maximum(x @ W, B) @ OUT,
    "minimum of two layers with numbers": lambda x: jnp.minimum(x @ W + 0.1, x @ W2[:4] - 0.2) @ OUT,
    "maxout": lambda x: RELU((x @ W + B).reshape(5, 3, 2).max(-1) + B[:3]) @ OUT[:3],
    "parametric relu": lambda x: jnp.where(x @ W + B > 0, x @ W + B, G * (x @ W + B)) @ OUT,
    "relu by a step": lambda x: (lambda h: (h * (h > 0)) @ OUT)(x @ W + B),
    "relu by clip, two shifts": lambda x: jnp.clip(x @ W + 0.2 + B, 0) @ OUT,
    "scaled twice": lambda x: RELU((x @ W * G + B) * B2 - 0.3) @ OUT,
    "mean of rows": lambda x: RELU(x @ W + B).mean(0, keepdims=True) @ OUT + 1.0,
    "computed weight": lambda x: RELU(x @ (W * 2 - 1) + B.sum()) @ OUT,
    "vmap over rows": lambda x: jax.vmap(lambda r: RELU(r @ W + B) @ OUT + 0.5)(x),
    "scan over rows": lambda x: lax.scan(lambda c, r: (RELU(c + r @ W + B), None), jnp.ones(6), x)[0][None] @ OUT,
    "checkpoint": lambda x: jax.checkpoint(lambda x: RELU(x @ W + B))(x) @ OUT,
    "piece under jit": lambda x: jax.jit(lambda x: RELU(x @ W + 0.5))(x) @ OUT,
    "class token": lambda x: RELU(jnp.concatenate([jnp.ones((1, 4)), x]) @ W + B).mean(0, keepdims=True) @ OUT,
    "padded with a number": lambda x: RELU(jnp.pad(x, ((0, 0), (1, 1)), constant_values=0.5) @ W2 + B) @ OUT,
    "clamped shift between two constants": lambda x: RELU(1.0 - RELU(0.5 - RELU(x @ W + B))) @ OUT,
}


@pytest.mark.sampled(11)
@pytest.mark.parametrize("compiled_whole", [False, True], ids=["", "jit"])
@cases(NETWORKS)
def test_lrp_0_is_gradient_times_input(case, compiled_whole):
    first_class = lambda f: lambda x: f(x)[:, 0].sum()
    explain = jax.grad(first_class(lambda x: lrp(case, rules.Zero())(x)))
    expected = X5 * jit_by_day(jax.grad(first_class(case)))(jnp.asarray(X5))
    assert_close((jax.jit if compiled_whole else jit_by_day)(explain)(X5), expected, 1e-9)


@pytest.mark.parametrize("name", ["positions added", "batch norm behind a relu", "residual with a shift", "maxout"])
def test_lrp_0_is_gradient_times_input_where_inputs_are_zero(name):
    x, fun = np.where(np.arange(20).reshape(5, 4) % 3 == 0, 0.0, X5), NETWORKS[name]
    first_class = lambda x: fun(x)[:, 0]
    expected = x * jax.jit(jax.grad(lambda x: first_class(x).sum()))(x)
    assert_close(received(first_class, x), expected, 1e-9)


# The bias of a layer, whoever else reads what is computed before it

BW, BB, BX = np.array([[1.0], [3.0]]), np.array([5.0]), np.array([[2.0, 1.0]])


def printed(x):
    z = x @ BW
    jax.debug.print("z={}", z.sum())
    return z + BB


def printed_whole(x):
    z = x @ BW
    jax.debug.print("z={}", z)
    return z + BB


def sharded(x):
    return lax.with_sharding_constraint(x @ BW, jax.sharding.SingleDeviceSharding(jax.devices()[0])) + BB


def read_by_a_dead_value(x):
    z = x @ BW
    jnp.tanh(z).sum()
    return z + BB


def compared(x):
    z = x @ BW
    return jnp.where(z > -100, z + BB, z)


def half(x):
    return x.astype(jnp.bfloat16).astype(jnp.float64)


BIASES = {
    "x @ w + b": lambda x: x @ BW + BB,
    "b + x @ w": lambda x: BB + x @ BW,
    "number": lambda x: x @ BW + 5.0,
    "integer": lambda x: x @ BW + 5,
    "in two parts": lambda x: x @ BW + 2.0 + 3.0,
    "subtracted": lambda x: x @ BW - (-BB),
    "minus a negative layer": lambda x: BB - x @ -jnp.asarray(BW),
    "named": lambda x: checkpoint_name(x @ BW, "z") + BB,
    "sharding constraint": sharded,
    "optimisation barrier": lambda x: lax.optimization_barrier(x @ BW) + BB,
    "cast": lambda x: (x.astype(jnp.bfloat16) @ BW.astype(jnp.bfloat16)).astype(jnp.float64) + BB,
    "slice": lambda x: (x @ jnp.concatenate([BW, BW], 1))[:, :1] + BB,
    "split": lambda x: jnp.split(x @ jnp.concatenate([BW, BW], 1), 2, 1)[1] + BB,
    "unstacked": lambda x: jnp.unstack((x @ jnp.concatenate([BW, BW], 1))[..., None], axis=1)[0] + BB,
    "picked": lambda x: jnp.take(x @ jnp.concatenate([BW, BW], 1), 1, 1)[:, None] + BB,
    "dynamic slice": lambda x: lax.dynamic_slice_in_dim(x @ jnp.concatenate([BW, BW], 1), 1, 1, 1) + BB,
    "in place": lambda x: (x @ BW).at[:].add(BB),
    "subtracted in place": lambda x: (x @ BW).at[:, jnp.array([0])].subtract(-BB),
    "behind a new axis": lambda x: ((x @ BW)[..., None] + BB[:, None])[..., 0],
    "behind a transposition": lambda x: ((x @ BW).T + BB[:, None]).T,
    "behind a flip": lambda x: (x @ jnp.concatenate([BW, 0 * BW], 1))[:, ::-1][:, 1:] + BB,
    "cast, new axis and flip under jit": lambda x: jax.jit(lambda z: jnp.flip(half(z)[:, None], 2) + BB)(x @ BW)[:, 0],
    "number behind moves under jit": lambda x: jax.jit(lambda z: z.reshape(-1, 1, 1)[::-1] + 5.0)(x @ BW)[::-1, 0],
    "number under a checkpoint": lambda x: jax.checkpoint(jax.jit(lambda z: jnp.squeeze(z[None], 0) + 5.0))(x @ BW),
    "number as an argument of a helper": lambda x: jax.jit(lambda z, k: jnp.expand_dims(z, 1) + k)(x @ BW, 5.0)[:, 0],
    "batch norm before": lambda x: (x @ BW * 2.0 + 1.0) / 2.0 + 4.5,
    "piece under jit": lambda x: jax.jit(lambda x: x @ BW)(x) + BB,
    "printed sum": printed,
    "printed": printed_whole,
    "read by a dead value": read_by_a_dead_value,
    "compared": compared,
    "einsum": lambda x: jnp.einsum("nf,fg->ng", x, BW) + BB,
    "vmap": jax.vmap(lambda r: r @ BW + BB),
    "nnx.Linear": None,
}


def linear_module():
    layer = nnx.Linear(2, 1, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    layer.kernel[...], layer.bias[...] = jnp.asarray(BW), jnp.asarray(BB)
    return layer


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("bias", "expected"),
    [("absorb", [[2.0, 3.0]]), ("ignore", [[4.0, 6.0]]), ("distribute", [[4.5, 5.5]])],
)
@pytest.mark.parametrize("name", BIASES)
def test_constant_behind_a_layer_is_its_bias(name, bias, expected):
    # Contributions 2 and 3, b = 5, R = 10: by 10, by 5, and with half of the bias's 5 each.
    fun = linear_module() if name == "nnx.Linear" else BIASES[name]
    assert_close(received(fun, BX, rules.Zero(bias=bias)), expected)


def test_bias_of_a_layer_that_is_also_an_output():
    def two_outputs(x):
        z = x @ BW
        return z + BB, z

    for seeds, expected in (((1.0, 0.0), [[2.0, 3.0]]), ((0.0, 1.0), [[2.0, 3.0]]), ((2.0, -1.0), [[2.0, 3.0]])):
        cotangents = tuple(jnp.full((1, 1), seed) for seed in seeds)
        _, transpose = jax.vjp(lrp(two_outputs, rules.Zero()), jnp.asarray(BX))
        assert_close(transpose(cotangents)[0], expected)
    _, transpose = jax.vjp(lrp(two_outputs, rules.Zero(bias="ignore")), jnp.asarray(BX))
    # The layer with its bias gives 10, without it 5; z has no bias of its own.
    assert_close(transpose((jnp.ones((1, 1)), jnp.zeros((1, 1))))[0], [[4.0, 6.0]])
    assert_close(transpose((jnp.zeros((1, 1)), jnp.ones((1, 1))))[0], [[2.0, 3.0]])


def test_bias_of_a_layer_whose_value_is_asked_for():
    fun = lambda x: checkpoint_name(x @ BW, "z") + BB
    assert_close(relevance(fun, jnp.asarray(BX), 0, rules.Zero(), at=["z"]).relevance, [[2.0, 3.0]])


def test_layer_that_is_read_in_two_places_has_a_bias_for_each():
    # z = 5. Once with b = 5 and once with b = -4: 10 and 1. Without their biases both give all of it: 11 by 2 : 3.
    fun = lambda x: (lambda z: (z + 5.0) + (z - 4.0))(x @ BW)
    assert_close(received(fun, BX, rules.Zero(bias="ignore")), np.array([[2.0, 3.0]]) * 11 / 5)
    assert_close(received(fun, BX, rules.Zero()), [[4.0, 6.0]])


def test_shift_behind_a_concatenation_is_no_bias():
    # It is an addend of its own and keeps its share also where biases are ignored.
    fun = lambda x: jnp.concatenate([x @ BW, x @ BW], 1) + np.array([5.0, -4.0])
    for bias in ("absorb", "ignore"):
        assert_close(received(fun, BX, rules.Zero(bias=bias)), [[4.0, 6.0]])


# A constant inside of an operation that broadcasts

BX3, BB4, BV4 = np.array([[1.0, 2.0, 6.0]]), np.array([1.0, -2.0, 3.0, 4.0]), np.array([1.0, 2.0, -1.0, 1.0])
BROADCASTS = {
    "mean + b": (lambda x: (x.mean(-1, keepdims=True) + BB4) @ BV4, 3.0),
    "b + mean": (lambda x: (BB4 + x.mean(-1, keepdims=True)) @ BV4, 3.0),
    "b - mean": (lambda x: -((BB4 - x.mean(-1, keepdims=True)) @ BV4) + 2 * BB4 @ BV4, 3.0),
    "mean - b": (lambda x: (x.mean(-1, keepdims=True) - BB4) @ BV4, 3.0),
    "mean * b": (lambda x: (x.mean(-1, keepdims=True) * BB4) @ BV4, BB4 @ BV4),
    "b * mean": (lambda x: (BB4 * x.mean(-1, keepdims=True)) @ BV4, BB4 @ BV4),
    "mean / b": (lambda x: (x.mean(-1, keepdims=True) / BB4) @ BV4, (BV4 / BB4).sum()),
    "max(mean, b)": (lambda x: jnp.maximum(x.mean(-1, keepdims=True), BB4 + 0.5) @ BV4, 3.0),
    "where(mask, mean, b)": (
        lambda x: jnp.where(np.array([True, False, True, True]), x.mean(-1, keepdims=True), BB4) @ BV4,
        1.0,
    ),
    "lax.add of one element and many": (
        lambda x: lax.add(x.mean(-1, keepdims=True), jnp.asarray(BB4[None])) @ BV4,
        3.0,
    ),
    "scalar + b": (lambda x: (x.mean() + BB4) @ BV4, 3.0),
}


@every_way
@cases(BROADCASTS)
def test_constant_that_an_operation_broadcasts_to(case, way):
    fun, factor = case
    assert_close(received(fun, BX3, rules.Epsilon(1e-12), way), BX3 / 3 * factor)


# Norms, however they are written: the statistic is held, the shift keeps its share

NORM_X = np.random.default_rng(0).normal(size=(3, 6))
GAIN, SHIFT = np.random.default_rng(2).normal(size=(2, 6)) + np.array([[0.5], [0.0]])
READ = np.random.default_rng(3).normal(size=(6, 2))
EPS = 1e-5


def moments(x):
    return x.mean(-1, keepdims=True), x.var(-1, keepdims=True)


def layer_norm_module(x):
    return nnx.LayerNorm(6, epsilon=EPS, rngs=nnx.Rngs(0), param_dtype=jnp.float64)(x)


def rms_norm_module(x):
    return nnx.RMSNorm(6, epsilon=EPS, rngs=nnx.Rngs(0), param_dtype=jnp.float64)(x)


def by_moments(spelling):
    return lambda x: spelling(x, *moments(x))


LAYER_NORMS = {
    "rsqrt": by_moments(lambda x, m, v: (x - m) * lax.rsqrt(v + EPS)),
    "/ sqrt": by_moments(lambda x, m, v: (x - m) / jnp.sqrt(v + EPS)),
    "** -0.5": by_moments(lambda x, m, v: (x - m) * (v + EPS) ** -0.5),
    "/ ** 0.5": by_moments(lambda x, m, v: (x - m) / (v + EPS) ** 0.5),
    "* (1 / sqrt)": by_moments(lambda x, m, v: (x - m) * (1 / jnp.sqrt(v + EPS))),
    "jnp.power": by_moments(lambda x, m, v: (x - m) / jnp.power(v + EPS, 0.5)),
    "exp(-log / 2)": by_moments(lambda x, m, v: (x - m) * jnp.exp(-jnp.log(v + EPS) / 2)),
    "reciprocal": by_moments(lambda x, m, v: (x - m) * jnp.reciprocal(jnp.sqrt(v + EPS))),
    "x s - m s": by_moments(lambda x, m, v: x * lax.rsqrt(v + EPS) - m * lax.rsqrt(v + EPS)),
    "gain first": by_moments(lambda x, m, v: GAIN * (x - m) / jnp.sqrt(v + EPS) / GAIN),
    "statistic on the left": by_moments(lambda x, m, v: lax.rsqrt(v + EPS) * (x - m)),
    "E[x2] - E[x]2": lambda x: (
        (x - x.mean(-1, keepdims=True))
        / jnp.sqrt((x * x).mean(-1, keepdims=True) - x.mean(-1, keepdims=True) ** 2 + EPS)
    ),
    "mean of squares of what is centred": lambda x: (lambda c: c / jnp.sqrt((c * c).mean(-1, keepdims=True) + EPS))(
        x - x.mean(-1, keepdims=True)
    ),
    "sums and numbers": lambda x: (lambda c: c / jnp.sqrt((c**2).sum(-1, keepdims=True) / 6 + EPS))(
        x - x.sum(-1, keepdims=True) / 6
    ),
    "jax.nn.standardize": lambda x: nn.standardize(x, -1, epsilon=EPS),
    "nnx.LayerNorm": layer_norm_module,
    "vmap over rows": jax.vmap(lambda r: (r - r.mean()) / jnp.sqrt(r.var() + EPS)),
    "statistic under jit": lambda x: (
        (x - x.mean(-1, keepdims=True)) * jax.jit(lambda v: lax.rsqrt(v + EPS))(x.var(-1, keepdims=True))
    ),
    "transposed": lambda x: (lambda y: ((y - y.mean(0)) / jnp.sqrt(y.var(0) + EPS)).T)(x.T),
    "held by the model": by_moments(lambda x, m, v: (x - m) * held(lax.rsqrt(v + EPS))),
}
RMS_NORMS = {
    "rsqrt": lambda x: x * lax.rsqrt((x * x).mean(-1, keepdims=True) + EPS),
    "/ sqrt": lambda x: x / jnp.sqrt((x**2).mean(-1, keepdims=True) + EPS),
    "** -0.5": lambda x: x * (jnp.square(x).mean(-1, keepdims=True) + EPS) ** -0.5,
    "* (1 / sqrt)": lambda x: x * (1 / jnp.sqrt((x * x).mean(-1, keepdims=True) + EPS)),
    "exp(-log / 2)": lambda x: x * jnp.exp(-0.5 * jnp.log((x * x).mean(-1, keepdims=True) + EPS)),
    "dot product": lambda x: x / jnp.sqrt(jnp.einsum("nf,nf->n", x, x)[:, None] / 6 + EPS),
    "nnx.RMSNorm": rms_norm_module,
    "under jit": jax.jit(lambda x: x * lax.rsqrt((x * x).mean(-1, keepdims=True) + EPS)),
}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("rule", [composites.AttnLRP(1e-12), rules.Zero()], ids=["AttnLRP", "zero"])
@pytest.mark.parametrize("norm", LAYER_NORMS.values(), ids=LAYER_NORMS)
def test_layer_norm_is_linear_with_its_deviation_held(norm, rule):
    deviation = np.sqrt(NORM_X.var(1, keepdims=True) + EPS)
    c = GAIN * READ[:, 0] / deviation
    expected = NORM_X * (c - c.mean(1, keepdims=True))
    for model in (lambda x: norm(x) * GAIN @ READ, lambda x: (norm(x) * GAIN + SHIFT) @ READ):
        assert_close(relevance(model, jnp.asarray(NORM_X), 0, rule).relevance, expected, 1e-7)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("norm", RMS_NORMS.values(), ids=RMS_NORMS)
def test_rms_norm_is_a_scale(norm):
    root = np.sqrt((NORM_X**2).mean(1, keepdims=True) + EPS)
    expected = NORM_X * GAIN * READ[:, 0] / root
    for model in (lambda x: norm(x) * GAIN @ READ, lambda x: (norm(x) * GAIN + SHIFT) @ READ):
        assert_close(relevance(model, jnp.asarray(NORM_X), 0, composites.AttnLRP(1e-12)).relevance, expected, 1e-7)


@pytest.mark.parametrize("norm", ["/ (std + e)", "/ norm"])
def test_norm_with_its_epsilon_elsewhere(norm):
    if norm == "/ norm":
        c = GAIN * READ[:, 0] / np.sqrt((NORM_X**2).mean(1, keepdims=True))
        expected = NORM_X * c
        fun = lambda x: x / (jnp.linalg.norm(x, axis=-1, keepdims=True) / np.sqrt(6))
    else:
        c = GAIN * READ[:, 0] / (NORM_X.std(1, keepdims=True) + EPS)
        expected = NORM_X * (c - c.mean(1, keepdims=True))
        fun = lambda x: (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + EPS)
    model = lambda x: (fun(x) * GAIN + SHIFT) @ READ
    assert_close(relevance(model, jnp.asarray(NORM_X), 0, composites.AttnLRP(1e-12)).relevance, expected, 1e-7)


@pytest.mark.parametrize("kind", ["group", "instance", "weight standardised"])
def test_norm_over_pixels_with_a_shift(kind):
    x = np.random.default_rng(5).normal(size=(2, 3, 3, 4))
    gain, shift, v = np.random.default_rng(6).normal(size=(3, 4))
    pixels = np.arange(9.0).reshape(3, 3)  # the sum of what is centred would be zero
    if kind == "weight standardised":
        # A statistic of parameters is a parameter.
        model = lambda x: jnp.einsum("nijc,c->n", x, (v - v.mean()) / v.std())
        expected = x * (v - v.mean()) / v.std()
        assert_close(received(model, x), expected)
        return
    groups = 2 if kind == "group" else 4
    split = x.reshape(2, 9, groups, 4 // groups)
    deviation = np.sqrt(split.var((1, 3), keepdims=True) + EPS)
    c = np.broadcast_to(pixels[..., None] * gain * v, x.shape).reshape(split.shape) / deviation
    expected = (split * (c - c.mean((1, 3), keepdims=True))).reshape(x.shape)

    def model(x):
        y = x.reshape(2, 9, groups, -1)
        y = (y - y.mean((1, 3), keepdims=True)) / jnp.sqrt(y.var((1, 3), keepdims=True) + EPS)
        return (pixels * ((y.reshape(x.shape) * gain + shift) @ v)).sum((1, 2))

    assert_close(received(model, x), expected, 1e-8)


WIDTH = 24


def deep_parameters(depth, seed=0):
    rng = np.random.default_rng(seed)
    gains, shifts = rng.normal(size=(2, depth, WIDTH))
    return gains, shifts, rng.normal(size=(depth, WIDTH, WIDTH)) / 6, rng.normal(size=(WIDTH, 3))


def standardised(x, still=lambda v: v):
    return (x - x.mean(-1, keepdims=True)) / still(jnp.sqrt(x.var(-1, keepdims=True) + 1e-6))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("order", ["before", "behind"])
@pytest.mark.parametrize("depth", [1, 4, 8])
def test_deep_layer_norms_with_shifts_agree_with_the_gradient_form(depth, order):
    """X times the gradient, with the deviation and GELU's factor held: constants absorb their share of each sum."""
    gains, shifts, ws, out = deep_parameters(depth)

    def network(x, gelu, still):
        for g, b, w in zip(gains, shifts, ws, strict=True):
            if order == "before":
                x = x + gelu(standardised(x, still) * g + b) @ w
            else:
                x = standardised(x + gelu(x) @ w, still) * g + b
        return x @ out

    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, WIDTH)))
    exact = functools.partial(nn.gelu, approximate=False)
    by_gradient = lambda x: network(x, lambda z: z * held(jax.scipy.stats.norm.cdf(z)), held)
    expected = x * jit_by_day(jax.grad(lambda x: by_gradient(x)[:, 0].sum()))(x)
    plain = lambda x: network(x, exact, lambda v: v)
    for rule in (rules.Zero(), rules.Epsilon(1e-12), composites.AttnLRP(1e-12)):
        assert_close(relevance(plain, x, 0, rule).relevance, expected, 1e-6)


@pytest.mark.parametrize("depth", [2, 16])
@pytest.mark.parametrize("spelling", ["arrays", "numbers", "batch norm in four steps"])
def test_preactivation_blocks_agree_with_gradient_times_input(depth, spelling):
    gains, shifts, ws, out = deep_parameters(depth, 2)
    first = np.random.default_rng(3).normal(size=(WIDTH, WIDTH)) / 5

    def norm(x, g, b):
        if spelling == "numbers":
            return x * float(g[0]) + float(b[0])
        return x * g + b if spelling == "arrays" else ((x - b) / (1 + b**2)) * (g * 2) + g

    def network(x):
        x = x @ first
        for g, b, w in zip(gains, shifts, ws, strict=True):
            x = x + nn.relu(norm(x, g, b)) @ w / 2
        return x @ out

    x = jnp.asarray(np.random.default_rng(4).normal(size=(4, WIDTH)) + 1.0)
    expected = x * jit_by_day(jax.grad(lambda x: network(x)[:, 0].sum()))(x)
    assert_close(relevance(network, x, 0, rules.Zero()).relevance, expected, 1e-7)


# The same values under other types and names

SIGNED = np.array([[1.0, 2.0], [-1.0, 1.0], [2.0, -1.0], [1.0, 1.0]])
POSITIVE = np.array([[1.0, 2.0, 3.0, 4.0]])


def contributions_apart(h, rule):
    """What z+, alpha-beta and gamma give to h at a layer without bias, explained output 0 (Andéol et al. 2021)."""
    matrix = SIGNED[:, :1].T
    return shares_of(rule, matrix, matrix != 0, np.zeros(1), h, np.zeros(1, int)).matrix @ (matrix @ h)


SIGNED_INTEGERS = {
    "signs": (lambda x, dtype: nn.relu(x) * jnp.array([1, -1, 1, -1], dtype), np.array([1.0, -2.0, 3.0, -4.0])),
    "signs computed": (
        lambda x, dtype: nn.relu(x) * (1 - 2 * (jnp.arange(4) % 2)).astype(dtype),
        np.array([1.0, -2.0, 3.0, -4.0]),
    ),
    "negated": (lambda x, dtype: -nn.relu(x) * jnp.array([1, 1, 1, 1], dtype), -POSITIVE[0]),
    "int8": (
        lambda x, dtype: nn.relu(x) * jnp.array([1, -1, 1, -1], jnp.int8).astype(dtype),
        np.array([1.0, -2.0, 3.0, -4.0]),
    ),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", [np.int32, np.float64], ids=["integers", "floats"])
@pytest.mark.parametrize(
    "rule",
    [rules.ZPlus(0.0), rules.AlphaBeta(stabilizer=0.0), rules.Gamma(0.5, 0.0)],
    ids=["z+", "alpha-beta", "gamma"],
)
@cases(SIGNED_INTEGERS)
def test_signs_of_integers_are_known_not_believed(case, rule, dtype):
    fun, hidden = case
    expected = contributions_apart(hidden, rule)[None]
    assert_close(received(lambda x: (fun(x, dtype) @ SIGNED)[:, 0], POSITIVE, rule), expected)


@pytest.mark.parametrize(
    "rule",
    [rules.ZPlus(0.0), rules.AlphaBeta(stabilizer=0.0), rules.Gamma(0.5, 0.0)],
    ids=["z+", "alpha-beta", "gamma"],
)
@pytest.mark.parametrize("dtype", [np.int32, np.float64], ids=["integers", "floats"])
def test_negative_offsets_keep_their_share_whatever_their_type(rule, dtype):
    offset = np.arange(-6, -2).astype(dtype)
    hidden = POSITIVE[0] + offset
    expected = contributions_apart(hidden, rule) / hidden * POSITIVE
    assert_close(received(lambda x: ((nn.relu(x) + offset) @ SIGNED)[:, 0], POSITIVE, rule), expected)


@pytest.mark.parametrize("name", ["relu", "sigmoid", "softplus", "square", "exp", "gelu", "silu", "softmax"])
def test_name_of_a_function_says_nothing(name):
    function = lambda y: y**3 - y
    named = lambda y: function(y)
    named.__name__ = name
    u = np.array([2.0, -3.0])
    expected = [(u[1] ** 3 - u[1]) * u[0] / 2] * 2
    assert_close(received(lambda x: x[0] * jax.jit(named)(x[1]), u), expected)
    x = jnp.array([[0.5, 2.0, -3.0, 0.1]])
    hidden = np.asarray(function(x))[0]
    found = received(lambda x: (jax.jit(named)(x) @ SIGNED)[:, 0], x, rules.ZPlus(0.0))
    assert_close(found, contributions_apart(hidden, rules.ZPlus(0.0))[None])


def test_gate_under_jit_with_another_name():
    def cube(y):
        return nn.sigmoid(2 * y)

    expected = [2.0 * sigmoid(6.0), 0.0]
    assert_close(received(lambda x: x[0] * jax.jit(cube)(x[1]), [2.0, 3.0]), expected)
    assert_close(received(lambda x: x[0] * cube(x[1]), [2.0, 3.0]), expected)


HIDDEN, READ_OUT = np.array([[1.0, -1.0, -1.0], [1.0, 2.0, -1.0]]), np.array([[3.0], [-5.0], [2.0]])
RELUS = {
    "jax.nn.relu": nn.relu,
    "maximum": lambda x: jnp.maximum(x, 0),
    "maximum with an array": lambda x: jnp.maximum(x, jnp.zeros_like(x)),
    "zero first": lambda x: jnp.maximum(0.0, x),
    "where": lambda x: jnp.where(x > 0, x, 0),
    "where with >=": lambda x: jnp.where(x >= 0, x, 0),
    "where the other way": lambda x: jnp.where(x <= 0, 0, x),
    "x * (x > 0)": lambda x: x * (x > 0),
    "clip": lambda x: jnp.clip(x, 0),
    "lax.clamp": lambda x: lax.clamp(0.0, x, jnp.inf),
    "(x + |x|) / 2": lambda x: (x + jnp.abs(x)) / 2,
    "-minimum(-x, 0)": lambda x: -jnp.minimum(-x, 0),
    "x - minimum(x, 0)": lambda x: x - jnp.minimum(x, 0),
    "under jit, renamed": jax.jit(lambda values: jnp.maximum(values, 0)),
    "elu with alpha 0": lambda x: nn.leaky_relu(x, 0.0),
    "select": lambda x: lax.select(x > 0, x, jnp.zeros_like(x)),
    "vmap": jax.vmap(jax.vmap(lambda x: jnp.maximum(x, 0.0))),
    "stack": lambda x: jnp.stack([jnp.zeros_like(x), x]).max(0),
    "concatenation": lambda x: jnp.concatenate([x[..., None], jnp.zeros((*x.shape, 1))], -1).max(-1),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("relu", RELUS.values(), ids=RELUS)
def test_modified_gradients_know_a_relu_in_every_spelling(relu):
    # As in test_by_hand: hidden (2, 1, -2), the cotangent of the relu's output is (3, -5, 2).
    network = lambda x: relu(x @ HIDDEN) @ READ_OUT
    for composite, expected in ((composites.GuidedBackprop(), [[3.0, 3.0]]), (composites.Deconvnet(), [[1.0, 1.0]])):
        assert_close(received(network, [[1.0, 1.0]], composite), expected)
    assert_close(received(network, [[1.0, 1.0]], rules.Zero()), [[8.0, -7.0]])
    assert_close(received(network, [[1.0, 1.0]], rules.ZPlus(0.0)), [[0.5, 0.5]])


@pytest.mark.parametrize("relu", RELUS.values(), ids=RELUS)
def test_modified_gradients_know_a_shifted_relu(relu):
    network = lambda x: relu(x @ HIDDEN + np.array([0.5, -4.0, 3.0])) @ READ_OUT
    # Hidden (2.5, -3, 1): guided backpropagation hands (3, 0, 2) on, to 3 - 2 each.
    assert_close(received(network, [[1.0, 1.0]], composites.GuidedBackprop()), [[1.0, 1.0]])


# Relevance form, below rules that give relevance to positions whatever their value: one to one

BELOW_A_FLAT_RULE = {
    "standardised by numbers": lambda x: (x - 0.3) / 0.2,
    "standardised by arrays": lambda x: (x - np.array([0.1, -0.2, 0.3])) / np.array([0.5, 2.0, 1.0]),
    "positions": lambda x: x + jnp.arange(3.0),
    "scaled": lambda x: x * np.array([2.0, -1.0, 0.5]),
    "exp": jnp.exp,
    "sigmoid": nn.sigmoid,
    "softplus, shifted": lambda x: nn.softplus(x + 0.1),
    "relu": nn.relu,
    "relu of a shift": lambda x: nn.relu(x - 1.0),
    "gelu": nn.gelu,
    "log": lambda x: jnp.log(jnp.maximum(x + 10, 1e-3)),
    "cast": lambda x: x.astype(jnp.float32).astype(jnp.float64),
}


@pytest.mark.sampled(3)
@every_way
@pytest.mark.parametrize("fun", BELOW_A_FLAT_RULE.values(), ids=BELOW_A_FLAT_RULE)
def test_relevance_form_passes_addends_and_functions_one_to_one(fun, way):
    weight = np.array([[1.0], [-2.0], [0.5]])
    x = np.array([0.0, 1.0, -0.5])
    value = float((fun(jnp.asarray(x)) @ weight)[0])
    assert_close(received(lambda x: fun(x) @ weight, x, rules.Flat(stabilizer=0.0), way), np.full(3, value / 3), 1e-7)
    squares = weight[:, 0] ** 2
    expected = value * squares / squares.sum()
    assert_close(received(lambda x: fun(x) @ weight, x, rules.WSquare(stabilizer=0.0), way), expected, 1e-7)


def test_relevance_form_keeps_half_precision_where_a_mask_is_multiplied():
    weight, mask, x = jnp.ones((3, 2), jnp.bfloat16), jnp.array([1.0, 0.0, 2.0], jnp.bfloat16), jnp.arange(1.0, 4.0)
    explain = jax.grad(lambda x: lrp(lambda x: ((x * mask) @ weight)[0], rules.Flat(stabilizer=0.0))(x))
    found = explain(x.astype(jnp.bfloat16))
    assert found.dtype == jnp.bfloat16
    assert_close(found.astype(jnp.float64), np.array([7.0, 0.0, 7.0]) / 3, 1e-2)


def test_standardising_inside_of_a_model_does_not_disturb_the_box():
    # Pixels in (0, 1), standardised to (-1.5, 3.5): the box is in the units that the layer reads.
    weight, x = np.array([[2.0], [-1.0], [0.5]]), np.array([0.0, 1.0, 0.5])
    u, low, high = (x - 0.3) / 0.2, -1.5, 3.5
    numerators = weight[:, 0] * u - np.maximum(weight[:, 0], 0) * low - np.minimum(weight[:, 0], 0) * high
    expected = numerators / numerators.sum() * (u @ weight[:, 0])
    box = rules.ZBox(low, high, stabilizer=0.0)
    assert_close(received(lambda x: (x - 0.3) / 0.2 @ weight, x, box), expected)
    assert_close(received(lambda x: (x - np.full(3, 0.3)) / np.full(3, 0.2) @ weight, x, box), expected)


def test_value_that_is_read_by_rules_of_both_kinds_has_two_cotangents():
    # h = x + 3. A flat layer reads h: R = v / 2 each, one to one. LRP-0 reads h: gradient times input, x_i w_i.
    flat, proportional = np.array([[2.0], [-1.0]]), np.array([[0.5], [3.0]])
    rule = [(composites.index[0], rules.Flat(stabilizer=0.0)), (composites.any_layer, rules.Zero())]
    read_twice = lambda h: h @ flat + h @ proportional
    for x in (np.array([1.0, -2.0]), np.array([0.0, 1.0]), np.array([-3.0, 1e-9])):
        for shift in (3.0, np.array([3.0, 3.0]), np.array([3.0, -1.0])):
            found = received(functools.partial(lambda shift, x: read_twice(x + shift), shift), x, rule)
            assert_close(found, ((x + shift) @ flat)[0] / 2 + x * proportional[:, 0])


def test_a_reader_does_not_change_what_the_relevance_of_another_one_does():
    # sigmoid(x) is read by a z-box and by LRP-0: one to one for the first, less f(0) for the second.
    boxed, proportional = np.array([[2.0], [-1.0]]), np.array([[0.5], [3.0]])
    x = np.array([0.7, -1.2])
    s = sigmoid(x)
    numerators = boxed[:, 0] * s - np.maximum(boxed[:, 0], 0) * 0 - np.minimum(boxed[:, 0], 0) * 1
    expected = numerators / numerators.sum() * (s @ boxed[:, 0]) + (s - 0.5) * proportional[:, 0]
    rule = [(composites.index[0], rules.ZBox(0.0, 1.0, stabilizer=0.0)), (composites.any_layer, rules.Zero())]
    fun = lambda x: (lambda h: h @ boxed + h @ proportional)(nn.sigmoid(x))
    assert_close(received(fun, x, rule), expected)
    assert_close(received(fun, x, rule, "jit"), expected)


# Maxima: one convention for ties, the first in row-major order; a tie with a constant goes to the constant

TIES = {
    "max": (lambda x: x.max(), [2.0, 5.0, 5.0], [0.0, 5.0, 0.0]),
    "max along an axis": (
        lambda x: x.reshape(2, 2).max(0).sum(),
        [3.0, 1.0, 3.0, 1.0],
        [3.0, 1.0, 0.0, 0.0],
    ),
    "max over two axes": (lambda x: x.reshape(2, 2).max((0, 1)), [1.0, 3.0, 3.0, 3.0], [0.0, 3.0, 0.0, 0.0]),
    "min": (lambda x: x.min(), [2.0, 1.0, 1.0], [0.0, 1.0, 0.0]),
    "maximum of two": (lambda x: jnp.maximum(x[0], x[1]), [2.0, 2.0], [2.0, 0.0]),
    "minimum of two": (lambda x: jnp.minimum(x[0], x[1]), [2.0, 2.0], [2.0, 0.0]),
    "maximum with the same number": (lambda x: jnp.maximum(x, 2.0).sum(), [2.0, 3.0], [0.0, 3.0]),
    "maximum with an equal array": (lambda x: jnp.maximum(x, np.array([2.0, 1.0])).sum(), [2.0, 3.0], [0.0, 3.0]),
    "relu at zero": (lambda x: nn.relu(x[0] + x[1]), [1.0, -1.0], [0.0, 0.0]),
    "relu at zero, of a number": (
        lambda x: (lambda u: jnp.where(u >= 0, u, 0.0))(x[0] + x[1]),
        [1.0, -1.0],
        [0.0, 0.0],
    ),
    "relu at zero, stacked": (
        lambda x: jnp.stack([x[0] + x[1], jnp.zeros(())]).max(),
        [1.0, -1.0],
        [0.0, 0.0],
    ),
    "relu at zero, side by side": (
        lambda x: jnp.concatenate([x[:1] + x[1:], jnp.zeros(2)]).max(),
        [1.0, -1.0],
        [0.0, 0.0],
    ),
    "relu6 of stacks": (
        lambda x: jnp.stack([jnp.stack([x, jnp.zeros(2)], 1).max(1), jnp.full(2, 6.0)]).min(0).sum(),
        [8.0, -1.0],
        [6.0, 0.0],
    ),
    "the first of three beside a constant": (
        lambda x: jnp.stack([x[:1], jnp.full(1, 2.0), x[1:2], x[2:]]).max(0).sum(),
        [1.0, 3.0, 3.0],
        [0.0, 3.0, 0.0],
    ),
    "cummax": (lambda x: lax.cummax(x).sum(), [2.0, 2.0, 1.0], [6.0, 0.0, 0.0]),
    "top 2 of equals": (lambda x: lax.top_k(x, 2)[0].sum(), [2.0, 3.0, 2.0], [2.0, 3.0, 0.0]),
    "sort": (lambda x: jnp.sort(x)[-1], [3.0, 3.0, 1.0], [0.0, 3.0, 0.0]),
    "max pooling": (
        lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (2,), (2,), "VALID").sum(),
        [2.0, 2.0, 1.0, 3.0],
        [2.0, 0.0, 0.0, 3.0],
    ),
    "overlapping max pooling": (
        lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (2,), (1,), "VALID").sum(),
        [2.0, 2.0, 1.0],
        [2.0, 2.0, 0.0],
    ),
    "nnx.max_pool": (
        lambda x: nnx.max_pool(x.reshape(1, 2, 2, 1), (2, 2), (2, 2)).sum(),
        [1.0, 4.0, 4.0, 0.0],
        [0.0, 4.0, 0.0, 0.0],
    ),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("way", [None, "jit"], ids=["plain", "jit"])
@cases(TIES)
def test_ties_go_to_the_first(case, way):
    fun, x, expected = case
    assert_close(received(fun, x, way=way), expected)


# The account

LEDGER_X, LEDGER_WEIGHT = np.array([[1.0, 2.0]]), np.array([[2.0], [-1.0]])


MAPPED = {
    "hard_tanh": jax.nn.hard_tanh,
    "relu6": jax.nn.relu6,
    "hard_swish": jax.nn.hard_swish,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "leaky_relu": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "celu": jax.nn.celu,
    "selu": jax.nn.selu,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "sparse_plus": jax.nn.sparse_plus,
    "clip": lambda x: jnp.clip(x, -1, 2),
    "where": lambda x: jnp.where(x > 0.5, x, 0.5),
    "where, squared": lambda x: jnp.where(x > 1, x**2, x) + 1.0,
    "heaviside": lambda x: x * jnp.heaviside(x, 0.0),
    "where, in two steps": lambda x: jnp.where(x > 1, 1.0, jnp.where(x < -1, -1.0, x) + 0.25),
}
MAPS = {
    "over the samples": jax.vmap,
    "over the features": functools.partial(jax.vmap, in_axes=1, out_axes=1),
    "over both": lambda fun: jax.vmap(jax.vmap(fun), in_axes=1, out_axes=1),
    "of a helper under jit": lambda fun: jax.vmap(jax.jit(fun), in_axes=1, out_axes=1),
    "under a checkpoint": lambda fun: jax.checkpoint(jax.vmap(fun, in_axes=1, out_axes=1)),
}


@functools.cache
def maps_of_functions(way):
    """The map of every function that is mapped in one way, behind nothing and behind a layer, by one program."""
    order = MAPS[way] if way else lambda fun: fun
    x = jnp.asarray([[0.0, 3.0, -3.0, 0.25], [7.0, -0.5, 1.0, -1.0]])
    weight = jnp.asarray([[2.0, -1.0, 0.5, 1.0]] * 3 + [[-1.0, 0.3, 1.0, -2.0]])
    target = lambda output: (output * jnp.arange(1.0, 5.0)).sum(1)

    @quick_jit
    def explain(x):
        found = {}
        for name, fun in MAPPED.items():
            found[name] = relevance(order(fun), x, target, composites.Composite([])).relevance
            behind = lambda x, fun=fun: order(fun)(x @ weight)
            found[f"{name} behind a layer"] = relevance(behind, x, target, rules.ZPlus()).relevance
        return found

    return explain(x)


@pytest.mark.sampled(3, "way")
@pytest.mark.parametrize("way", MAPS)
@pytest.mark.parametrize("name", MAPPED)
def test_function_under_vmap_is_the_same_function(name, way):
    for case in (name, f"{name} behind a layer"):
        found, expected = maps_of_functions(way)[case], maps_of_functions(None)[case]
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12, err_msg=case)


MASKS_OF_NUMBERS = {
    "a new dimension": lambda x: jnp.where(x[:, 0] > 0, 2.0, 0.5)[:, None],
    "transposed": lambda x: jnp.where(x > 0, 2.0, 0.5)[:, :1].T.T,
    "reshaped": lambda x: jnp.where(x.reshape(-1) > 0, 2.0, 0.5).reshape(x.shape)[:, :1],
    "repeated": lambda x: jnp.repeat(jnp.where(x[:, :1] > 0, 2.0, 0.5), 2, 1),
}


@pytest.mark.parametrize("name", MASKS_OF_NUMBERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_mask_made_of_python_numbers_that_is_moved(name, dtype):
    # The conversion of a Python number to its own dtype is in the function, and is no operation.
    x, weight = np.array([[1.0, -2.0], [-3.0, 5.0]], dtype), np.array([[2.0, 1.0], [3.0, 4.0]], dtype)
    found = jax.grad(lambda x: lrp(lambda x: (x @ weight) * MASKS_OF_NUMBERS[name](x), rules.Zero())(x)[:, 0].sum())(x)
    assert_close(found, x * weight[:, 0] * np.where(x[:, :1] > 0, 2.0, 0.5), 1e-6)


def test_mask_and_value_that_are_moved_alike():
    x = jnp.asarray([[0.0, 3.0, -3.0], [0.7, -0.5, 1.0]])
    expected = relevance(lambda x: jnp.where(x > 0.5, x, 0.5), x, 1).relevance
    for move, back in (
        (lambda a: a.T, lambda a: a.T),
        (lambda a: a[:, None], lambda a: a[:, 0]),
        (lambda a: a.reshape(3, 2)[::-1], lambda a: a[::-1].reshape(2, 3)),
    ):
        moved = lambda x, move=move, back=back: back(jnp.where(move(x > 0.5), move(x), 0.5))
        assert_close(relevance(moved, x, 1).relevance, expected)


def test_mask_that_is_found_by_argmax_under_vmap():
    cases = lambda x: jnp.piecewise(x, [x < 0, x >= 2], [lambda v: -v, 2.0, lambda v: v])
    x = jnp.asarray([[0.5, 3.0, -3.0], [0.7, -0.5, 1.0]])
    expected = relevance(cases, x, 0).relevance
    assert_close(relevance(jax.vmap(cases, in_axes=1, out_axes=1), x, 0).relevance, expected)


MASK = np.array([1.0, 0.0, 1.0, 0.0])
NOTHING_GETS_THROUGH = {
    "where(False, x, 0)": lambda x: jnp.where(False, x, 0.0),
    "where(True, 0, x)": lambda x: jnp.where(True, 0.0, x),
    "a mask of False": lambda x: jnp.where(jnp.zeros(x.shape, bool), x, 0.0),
    "a mask that is held": lambda x: jnp.where(np.zeros(x.shape, bool), x, 0.0),
    "select_n with a number": lambda x: lax.select_n(jnp.int32(0), jnp.zeros_like(x), x, jnp.sin(x)),
    "cond": lambda x: lax.cond(False, jnp.sin, jnp.zeros_like, x),
    "switch": lambda x: lax.switch(1, [jnp.sin, jnp.zeros_like, jnp.cos], x),
    "cond under jit": lambda x: jax.jit(lambda x: lax.cond(jnp.int32(2) > 3, jnp.sin, jnp.zeros_like, x))(x),
    "cond under a checkpoint": jax.checkpoint(lambda x: lax.cond(True, jnp.zeros_like, jnp.sin, x)),
    "times False": lambda x: x * False,
    "times a mask": lambda x: x * np.zeros(x.shape[1]),
    "a condition that is never met": lambda x: jnp.where((x > 0) & False, x, 0.0),
    "clip to a number": lambda x: jnp.clip(x, 0.0, 0.0),
}


NOTHING_RULES = {
    "flat": rules.Flat(),
    "w^2": rules.WSquare(),
    "z-box": rules.ZBox(-3.0, 3.0),
    "z+": rules.ZPlus(),
}


@functools.cache
def maps_where_nothing_gets_through(rule):
    """The maps of all models where nothing gets through to the last two features, and of one that is constant there."""
    x = jnp.asarray([[1.0, -2.0, 0.5, 2.0], [-1.0, 0.3, 0.7, -2.5], [0.0, 1.0, 1.0, 1.0]])
    weight = jnp.asarray([[1.0, 2.0], [-1.0, 0.5], [0.3, 1.5], [2.0, 0.7]])
    models = {
        name: lambda x, fun=fun: jnp.concatenate([x[:, :2], fun(x[:, 2:])], 1) @ weight
        for name, fun in NOTHING_GETS_THROUGH.items()
    }
    models["expected"] = lambda x: jnp.where(np.arange(4) < 2, x, 0.0) @ weight
    explain = lambda x: {name: relevance(model, x, 0, rule).relevance for name, model in models.items()}
    return quick_jit(explain)(x)


@pytest.mark.parametrize("rule", NOTHING_RULES.values(), ids=NOTHING_RULES)
@pytest.mark.parametrize("name", NOTHING_GETS_THROUGH)
def test_nothing_gets_through_what_does_not_depend_on_the_input(name, rule):
    # What a rule gives to the other positions stays with the constants there.
    maps = maps_where_nothing_gets_through(rule)
    np.testing.assert_allclose(maps[name], maps["expected"], rtol=1e-9, atol=1e-12)
    assert not np.asarray(maps[name])[:, 2:].any()


def test_branch_that_is_known_is_the_function_itself():
    x, weight = jnp.asarray([[1.0, -2.0]]), jnp.asarray([[1.0, 2.0], [-1.0, 0.5]])
    branches = [jnp.sin, lambda x: x @ weight, jnp.zeros_like]
    rows = plan(lambda x: lax.switch(1, branches, x) + jnp.asarray([1.0, 2.0]), x, rules.ZPlus()).rows
    assert [row[1] for row in rows] == ["dense"]
    chosen = lambda x: lax.cond(x.sum() > 9, jnp.zeros_like, lambda x: x @ weight, x)  # one returns a constant
    assert_close(relevance(chosen, x, 0, rules.Zero()).relevance, [[1.0, 2.0]])


def test_ledger_says_what_constants_kept():
    # x + b = (1.5, 0.75), w = (2, -1): 2.25 explained; x receives (2, -1), the constant 0.5 * 2 - (-0.25) ... = 1.25.
    b, w = jnp.array([0.5, -0.25]), np.array([[2.0], [-1.0]])
    book = ledger(lambda x: (x + b) @ w, jnp.array([[1.0, 1.0]]), 0, rules.Zero())
    assert_close([book.explained, book.inputs, book.constants, book.unaccounted], [2.25, 1.0, 1.25, 0.0])


KEPT = {
    # explained, the inputs, what constants keep
    "sigmoid": (lambda x: nn.sigmoid(x) @ LEDGER_WEIGHT, (sigmoid(LEDGER_X) - 0.5) @ LEDGER_WEIGHT, 0.5),
    "position and bias of a norm": (
        lambda x: ((x + 1.0) * 2.0 - 3.0) @ LEDGER_WEIGHT,
        2 * LEDGER_X @ LEDGER_WEIGHT,
        -1.0,
    ),
    "constant that won a maximum": (
        lambda x: jnp.maximum(x, np.array([0.0, 4.0])) @ LEDGER_WEIGHT,
        [2 * LEDGER_X[0, 0]],
        -4.0,
    ),
    "class token": (
        lambda x: jnp.concatenate([jnp.full((1, 1), 3.0), x[:, 1:]], 1) @ LEDGER_WEIGHT,
        [-LEDGER_X[0, 1]],
        6.0,
    ),
}


@cases(KEPT)
def test_ledger_has_a_column_for_constants(case):
    fun, arrived, kept = case
    book = ledger(fun, jnp.asarray(LEDGER_X), 0, rules.Zero())
    assert_close(book.inputs, float(np.ravel(arrived)[0]))
    assert_close(book.constants, kept)
    assert_close(book.explained, float(fun(jnp.asarray(LEDGER_X))[0, 0]))
    assert abs(book.unaccounted) < 1e-9


@pytest.mark.parametrize(("black", "expected"), [(0.0, [0.0, 6.0]), (1.0, [-2.0, 6.0])])
def test_constants_can_be_passed_over_as_elsewhere(black, expected):
    # The old way, to compare with others: ((x - 2) / 0.5) goes one to one, and to nobody where x is zero.
    composite = composites.Composite([(composites.any_layer, rules.Zero())], constants="pass")
    fun = lambda x: ((x - np.full(2, 2.0)) / 0.5) @ np.ones((2, 1))
    assert_close(received(fun, [black, 5.0], composite), expected)
