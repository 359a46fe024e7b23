"""Relevance worked out by hand. The arithmetic stands in the comments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import jit_by_day
from flax import nnx
from jax import lax

from lrp_jax import composites, lrp, rules, treatments

pytestmark = pytest.mark.usefixtures("float64")


def relevance(fun, x, rules_=rules.Zero()):  # noqa: B008
    """The relevance of x for the sum of the function's outputs."""
    return jit_by_day(jax.grad(lambda x: lrp(fun, rules_)(x).sum()))(jnp.asarray(x, jnp.float64))


def dense(weight, bias=0.0):
    weight = np.asarray(weight, np.float64).reshape(len(weight), -1)
    return lambda x: x @ weight + bias


def test_residual_sum():
    # x = (2, 4). Layer: (2 + 2 * 4, 2 - 4) = (10, -2). Sum: (12, 2).
    # R = 12 of the first output: 2 go to the skip connection, 10 to the layer, which passes on (2, 8).
    # R = 2 of the second output: 4 go to the skip connection, -2 to the layer, which passes on (2, -4).
    # x_1: 2 + 2 + 2 = 6. x_2: 8 + 4 - 4 = 8.
    layer = dense([[1.0, 1.0], [2.0, -1.0]])
    np.testing.assert_allclose(relevance(lambda x: x + layer(x), [2.0, 4.0]), [6.0, 8.0])


def test_residual_sum_above_a_rule_that_gives_relevance_to_zeros():
    # x = (0, 4), layer: 2 * 0 + 3 * 4 = 12, skip connection: x_2 = 4, sum 16.
    # 4 go to the skip connection, so to x_2; 12 go to the layer and are spread evenly: 6 and 6. In all (6, 10).
    layer = dense([2.0, 3.0])
    found = relevance(lambda x: layer(x) + x[1:], [0.0, 4.0], rules.Flat(stabilizer=0.0))
    np.testing.assert_allclose(found, [6.0, 10.0])


@pytest.mark.parametrize(
    ("treatment", "expected"),
    [
        # Windows (3, 1) and (2, 2), their maxima R = 3 and R = 2.
        (treatments.winner_takes_all, [3.0, 0.0, 2.0, 0.0]),  # the first of equals wins
        (treatments.pooled_in_proportion, [3 * 3 / 4, 3 * 1 / 4, 1.0, 1.0]),
        (treatments.pooled_evenly, [1.5, 1.5, 1.0, 1.0]),
    ],
    ids=["winner", "proportional", "even"],
)
def test_max_pooling(treatment, expected):
    pool = lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (2,), (2,), "VALID")
    composite = composites.with_treatment(rules.Zero(), "reduce_window_max", treatment)
    np.testing.assert_allclose(relevance(pool, [3.0, 1.0, 2.0, 2.0], composite), expected, rtol=1e-5)


def test_overlapping_average_pooling():
    # Windows (1, 3) and (3, 5): means 2 and 4. R = 2 is split 0.5 : 1.5, R = 4 is split 1.5 : 2.5.
    pool = lambda x: lax.reduce_window(x, 0.0, lax.add, (2,), (1,), "VALID") / 2
    np.testing.assert_allclose(relevance(pool, [1.0, 3.0, 5.0]), [0.5, 1.5 + 1.5, 2.5])


def test_layer_norm():
    # x = (1, 2, 6), mean 3, centred (-2, -1, 3), variance (4 + 1 + 9) / 3 = 14 / 3 = s^2.
    # The third output is R = 3 / s. s is held constant: centred_3 = 3 gets all of R, and
    # centred_3 = 2/3 x_3 - 1/3 x_1 - 1/3 x_2 = 4 - 1/3 - 2/3 shares it as (-1/3, -2/3, 4) / 3 * R.
    norm = nnx.LayerNorm(3, epsilon=0.0, rngs=nnx.Rngs(0))
    expected = np.array([-1 / 3, -2 / 3, 4.0]) / np.sqrt(14 / 3)
    np.testing.assert_allclose(relevance(lambda x: norm(x)[2], [1.0, 2.0, 6.0]), expected, rtol=1e-5)


def test_layer_norm_with_a_shift():
    # x = (1, 5), centred (-2, 2), deviation 2: (-1, 1), times (3, -2), plus (5, 1): (2, -1). 4 * 2 + 2 * -1 = 6.
    # The ratios 4 and 2 go through the shift unchanged, which keeps 4 * 5 + 2 * 1 = 22; times the scale over the
    # deviation they are 6 and -2, less their mean 2 they are 4 and -4: R = (1 * 4, 5 * -4) = 4 - 20 = -16 = 6 - 22.
    norm = lambda x: (x - x.mean()) / jnp.sqrt(x.var()) * jnp.array([3.0, -2.0]) + jnp.array([5.0, 1.0])
    np.testing.assert_allclose(relevance(lambda x: norm(x) @ jnp.array([4.0, 2.0]), [1.0, 5.0]), [4.0, -20.0])


def test_sigmoid_and_softplus_and_exponential():
    # What they are at zero, 1/2, ln 2 and 1, is a constant that keeps its share: the evidence keeps its sign.
    x = np.log([3.0, 1 / 3])
    np.testing.assert_allclose(relevance(jax.nn.sigmoid, x), [3 / 4 - 1 / 2, 1 / 4 - 1 / 2])
    np.testing.assert_allclose(relevance(jax.nn.softplus, x), np.log([4 / 2, 4 / 3 / 2]))
    np.testing.assert_allclose(relevance(jnp.exp, x), [3 - 1, 1 / 3 - 1])


def test_logarithm():
    # It has no value at zero: gradient times input, x / x.
    np.testing.assert_allclose(relevance(jnp.log, [2.0, 0.5]), [1.0, 1.0])


def test_position_added_to_the_input():
    # x + p = (3, 1), w = (2, -1): 5 is explained. x receives (1 * 2, 2 * -1), the positions keep 2 * 2 + 1 = 5.
    network = lambda x: (x + jnp.array([2.0, -1.0])) @ jnp.array([2.0, -1.0])
    np.testing.assert_allclose(relevance(network, [1.0, 2.0]), [2.0, -2.0])


def test_rms_norm():
    # x = (3, 4), mean square 12.5. The root is held constant, and every output hands its relevance to its input.
    norm = nnx.RMSNorm(2, epsilon=0.0, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(relevance(norm, [3.0, 4.0]), np.array([3.0, 4.0]) / np.sqrt(12.5))


def test_softmax():
    # x = (ln 2, ln 6), s = (1/4, 3/4). Explained: 8 s_2 = 6, so R = (0, 6), and R_i = x_i (R_i - s_i * 6):
    # R_1 = ln 2 (0 - 1.5), R_2 = ln 6 (6 - 4.5).
    found = relevance(lambda x: 8 * jax.nn.softmax(x)[1], np.log([2.0, 6.0]))
    np.testing.assert_allclose(found, [-1.5 * np.log(2), 1.5 * np.log(6)])


def test_log_softmax():
    # x = (ln 2, ln 6), log s_2 = ln 6 - ln(2 + 6). Gradient times input: x_i ([i = 2] - s_i), with s = (1/4, 3/4).
    found = relevance(lambda x: jax.nn.log_softmax(x)[1], np.log([2.0, 6.0]))
    np.testing.assert_allclose(found, [-np.log(2) / 4, np.log(6) / 4])


def test_sigmoid_gate():
    # sigmoid(0) * 6 = 3: the gate gets nothing, the signal all.
    np.testing.assert_allclose(relevance(lambda x: jax.nn.sigmoid(x[0]) * x[1], [0.0, 6.0]), [0.0, 3.0])


@pytest.mark.parametrize("function", [jax.nn.silu, jax.nn.gelu, lambda x: jax.nn.gelu(x, approximate=False)])
def test_gated_activation(function):
    # y = x * gate(x): the gate is held constant, so that x_i gets y_i: 2 sigmoid(2) for silu.
    expected = [function(2.0), function(-1.0)]
    np.testing.assert_allclose(relevance(function, [2.0, -1.0]), expected)
    written_out = lambda x: x * jax.nn.sigmoid(x)
    np.testing.assert_allclose(relevance(written_out, [2.0]), [2 / (1 + np.exp(-2))])


def test_long_short_term_memory_cell():
    # Forget gate sigmoid(0) = 1/2, old state 4; input gate sigmoid(0) = 1/2, candidate tanh(atanh(1/2)) = 1/2:
    # state c = 2 + 1/4. Output: sigmoid(0) tanh(c) = R. The state gets R, and shares it as 2 : 1/4.
    def cell(x):
        forget, old, enter, candidate, leave = x
        state = jax.nn.sigmoid(forget) * old + jax.nn.sigmoid(enter) * jnp.tanh(candidate)
        return jax.nn.sigmoid(leave) * jnp.tanh(state)

    found = relevance(cell, [0.0, 4.0, 0.0, np.arctanh(0.5), 0.0])
    expected = np.tanh(2.25) / 2 * np.array([0.0, 8 / 9, 0.0, 1 / 9, 0.0])
    np.testing.assert_allclose(found, expected)


def test_product_of_live_values():
    # 2 * 3 = 6 is halved; ((2 * 3) * 4) = 24 is halved, and the half of the product is halved once more.
    np.testing.assert_allclose(relevance(lambda x: x[0] * x[1], [2.0, 3.0]), [3.0, 3.0])
    np.testing.assert_allclose(relevance(lambda x: (x[0] * x[1]) * x[2], [2.0, 3.0, 4.0]), [6.0, 6.0, 12.0])


def test_matrix_product_of_live_values():
    # (1, 2) . (3, 4) = 3 + 8 = 11: each of the two terms is halved.
    np.testing.assert_allclose(relevance(lambda x: x[0] @ x[1], [[1.0, 2.0], [3.0, 4.0]]), [[1.5, 4.0], [1.5, 4.0]])


def test_epsilon():
    # z = 2 * 1 - 1 * 3 = -1, stabilised: -1 - 1 = -2. R = -1 is shared as 2 / -2 * -1 = 1 and -3 / -2 * -1 = -1.5.
    np.testing.assert_allclose(relevance(dense([1.0, -3.0]), [2.0, 1.0], rules.Epsilon(1.0)), [1.0, -1.5])


def test_alpha_beta():
    # x = (2, 2, -1), w = (3, -1, 2), b = 1: contributions 6, -2, -2 and 1; z = 3, zp = 7, zn = -4.
    # R_1 = 2 * 3 * 6/7 = 36/7; R_2 = R_3 = -1 * 3 * -2/-4 = -3/2. The bias keeps 2 * 3 * 1/7 = 6/7: in all 3.
    found = relevance(dense([3.0, -1.0, 2.0], 1.0), [2.0, 2.0, -1.0], rules.AlphaBeta(stabilizer=0.0))
    np.testing.assert_allclose(found, [36 / 7, -3 / 2, -3 / 2])


def test_z_plus_with_a_negative_input():
    # Contributions 2 * 3 = 6, 2 * -1 = -2, -1 * -2 = 2; z = 6, zp = 8. R = 6 is shared as 6/8, 0, 2/8.
    found = relevance(dense([3.0, -1.0, -2.0]), [2.0, 2.0, -1.0], rules.ZPlus(stabilizer=0.0))
    np.testing.assert_allclose(found, [4.5, 0.0, 1.5])


def test_gamma_with_a_positive_output():
    # Contributions 3 and -2, z = 1. With gamma = 1 the positive one counts twice: 6 - 2 = 4. R = (6/4, -2/4).
    found = relevance(dense([3.0, -1.0]), [1.0, 2.0], rules.Gamma(1.0, stabilizer=0.0))
    np.testing.assert_allclose(found, [1.5, -0.5])


def test_gamma_with_a_negative_output():
    # Contributions -3 and 2, z = -1. With gamma = 1 the negative one counts twice: -6 + 2 = -4.
    # R = -1 is shared as -6/-4 * -1 = -1.5 and 2/-4 * -1 = 0.5.
    found = relevance(dense([-3.0, 1.0]), [1.0, 2.0], rules.Gamma(1.0, stabilizer=0.0))
    np.testing.assert_allclose(found, [-1.5, 0.5])


def test_z_box():
    # x = (0.5, 0) in [0, 1], w = (2, -4): R = 1. z = 1 - 0 * 2 - 1 * -4 = 5.
    # R_1 = (1 - 0) / 5 = 0.2; R_2 = (0 - 1 * -4) / 5 = 0.8.
    found = relevance(dense([2.0, -4.0]), [0.5, 0.0], rules.ZBox(0.0, 1.0, stabilizer=0.0))
    np.testing.assert_allclose(found, [0.2, 0.8])


def test_z_box_with_bounds_for_each_input():
    # x = (1, 2), low = (-1, 0), high = (1, 4), w = (1, -1): R = -1. z = (1 - 2) - (-1 * 1) - (4 * -1) = 4.
    # R_1 = (1 - -1) / 4 * -1 = -0.5; R_2 = (-2 - 4 * -1) / 4 * -1 = -0.5.
    found = relevance(dense([1.0, -1.0]), [1.0, 2.0], rules.ZBox((-1.0, 0.0), (1.0, 4.0), stabilizer=0.0))
    np.testing.assert_allclose(found, [-0.5, -0.5])


def test_w_square():
    # w = (1, -2): R = 5 - 2 = 3 is shared as 1 : 4, whatever the inputs.
    found = relevance(dense([1.0, -2.0]), [5.0, 1.0], rules.WSquare(stabilizer=0.0))
    np.testing.assert_allclose(found, [0.6, 2.4])


@pytest.mark.parametrize(
    ("bias", "expected"),
    [
        # x = (2, 1), w = (1, 3), b = 5: contributions 2, 3 and 5, R = z = 10.
        ("absorb", [2.0, 3.0]),  # 10 * 2/10 and 10 * 3/10; the bias keeps 5
        ("ignore", [4.0, 6.0]),  # 10 * 2/5 and 10 * 3/5
        ("distribute", [4.5, 5.5]),  # as absorb, and 5/2 of the bias for each
    ],
)
def test_bias(bias, expected):
    np.testing.assert_allclose(relevance(dense([1.0, 3.0], 5.0), [2.0, 1.0], rules.Zero(bias=bias)), expected)


@pytest.mark.parametrize(
    ("bias", "expected"),
    [
        # Layer 3 * 2 = 6; batch norm with mean 1, variance 4, scale 4, offset 1: (6 - 1) / 2 * 4 + 1 = 11.
        # Folded: weight 3 * 4 / 2 = 6, bias -1 / 2 * 4 + 1 = -1; contributions 12 and -1.
        ("absorb", 12.0),
        ("ignore", 11.0),
    ],
)
def test_batch_norm_after_a_layer(bias, expected):
    layer = dense([3.0])
    found = relevance(lambda x: (layer(x) - 1.0) / 2.0 * 4.0 + 1.0, [2.0], rules.Zero(bias=bias))
    np.testing.assert_allclose(found, [expected])


# x = (1, 1). Hidden: (2, 1, -2), after the relu (2, 1, 0). Output: 3 * 2 - 5 * 1 + 2 * 0 = 1. The cotangent of the
# hidden values is (3, -5, 2).
HIDDEN = [[1.0, -1.0, -1.0], [1.0, 2.0, -1.0]]
OUT = [3.0, -5.0, 2.0]


@pytest.mark.parametrize(
    ("rules_", "expected"),
    [
        # Gradient times input: (3, -5, 0) times the weights is (3 + 5, 3 - 10); the input is (1, 1).
        (rules.Zero(), [8.0, -7.0]),
        # Guided backpropagation drops the negative -5 and the inactive third: (3, 0, 0) gives (3, 3).
        (composites.GuidedBackprop(), [3.0, 3.0]),
        # The deconvolutional network drops the negative -5 alone: (3, 0, 2) gives (3 - 2, 3 - 2).
        (composites.Deconvnet(), [1.0, 1.0]),
    ],
    ids=["gradient times input", "guided", "deconvnet"],
)
def test_backpropagation_through_a_relu(rules_, expected):
    network = lambda x: dense(OUT)(jax.nn.relu(dense(HIDDEN)(x)))
    np.testing.assert_allclose(relevance(network, [1.0, 1.0], rules_), expected)


def test_two_layers_with_z_plus():
    # x = (1, 2). Hidden: (1 + 4, 1 - 2) = (5, -1), after the relu (5, 0). Output: 2 * 5 = 10, all of it to the first
    # hidden value, which shares it as 1 : 4.
    first, second = dense([[1.0, 1.0], [2.0, -1.0]]), dense([2.0, 3.0])
    network = lambda x: second(jax.nn.relu(first(x)))
    found = relevance(network, [1.0, 2.0], rules.ZPlus(stabilizer=0.0))
    np.testing.assert_allclose(found, [2.0, 8.0])
