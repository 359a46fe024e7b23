"""Every rule on every kind of layer, against the dense oracle."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import jit_by_day, quick_jit
from jax import lax
from naive import oracle

from lrp_jax import composites, ledger, lrp, plan, rules
from lrp_jax import relevance as relevance_of
from lrp_jax.errors import InputError, RuleError

RULES = {
    "zero": (rules.Zero, oracle.zero, {}),
    "epsilon": (rules.Epsilon, oracle.epsilon, {"epsilon": 1e-2}),
    "epsilon, small": (rules.Epsilon, oracle.epsilon, {"epsilon": 1e-6}),
    "gamma": (rules.Gamma, oracle.gamma, {"gamma": 0.25, "stabilizer": 1e-6}),
    "gamma, large": (rules.Gamma, oracle.gamma, {"gamma": 10.0, "stabilizer": 0.1}),
    "alpha-beta": (rules.AlphaBeta, oracle.alpha_beta, {"alpha": 2.0, "beta": 1.0, "stabilizer": 1e-6}),
    "alpha-beta, 1.5": (rules.AlphaBeta, oracle.alpha_beta, {"alpha": 1.5, "beta": 0.5, "stabilizer": 0.1}),
    "z+": (rules.ZPlus, oracle.zplus, {"stabilizer": 1e-6}),
    "w^2": (rules.WSquare, oracle.wsquare, {"stabilizer": 1e-6}),
    "flat": (rules.Flat, oracle.flat, {"stabilizer": 1e-6}),
    "z-box": (rules.ZBox, oracle.zbox, {"low": -3.0, "high": 4.0, "stabilizer": 1e-6}),
    "norm": (rules.Norm, lambda *args, stabilizer, bias: oracle.epsilon(*args, stabilizer, bias), {"stabilizer": 1e-6}),
}


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def conv(x, w, layout, **options):
    return lax.conv_general_dilated(x, w, dimension_numbers=layout, **options)


CHANNELS_LAST = ("NHWC", "HWIO", "NHWC")
CHANNELS_FIRST = ("NCHW", "OIHW", "NCHW")

# The linear map, the shapes of its weight and its input, and that in which a bias for each output feature is added.
LAYERS = {
    "dense": (lambda x, w: x @ w, (5, 4), (5,), (4,)),
    "dense, weight first": (lambda x, w: w @ x, (4, 5), (5,), (4,)),
    "dense, several axes": (lambda x, w: jnp.einsum("abc,cbd->ad", x, w), (3, 2, 4), (2, 2, 3), (4,)),
    "dense, batch axis": (lambda x, w: jnp.einsum("abc,bcd->abd", x, w), (2, 3, 4), (2, 2, 3), (1, 2, 4)),
    "conv 1-D": (
        partial(conv, layout=("NHC", "HIO", "NHC"), window_strides=(1,), padding="SAME"),
        (3, 2, 4),
        (1, 6, 2),
        (4,),
    ),
    "conv 2-D": (
        partial(conv, layout=CHANNELS_LAST, window_strides=(1, 1), padding="SAME"),
        (3, 3, 2, 4),
        (1, 5, 5, 2),
        (4,),
    ),
    "conv 2-D valid, strided": (
        partial(conv, layout=CHANNELS_LAST, window_strides=(2, 1), padding="VALID"),
        (3, 2, 2, 4),
        (1, 6, 5, 2),
        (4,),
    ),
    "conv 2-D, channels first": (
        partial(conv, layout=CHANNELS_FIRST, window_strides=(1, 1), padding=((1, 0), (0, 2))),
        (4, 2, 3, 3),
        (1, 2, 5, 4),
        (4, 1, 1),
    ),
    "conv 2-D, kernel dilated": (
        partial(conv, layout=CHANNELS_LAST, window_strides=(1, 1), padding="SAME", rhs_dilation=(2, 3)),
        (2, 2, 2, 3),
        (1, 6, 6, 2),
        (3,),
    ),
    "conv 2-D, grouped": (
        partial(
            conv,
            layout=CHANNELS_LAST,
            window_strides=(1, 1),
            padding="SAME",
            feature_group_count=2,
        ),
        (3, 3, 2, 6),
        (1, 4, 4, 4),
        (6,),
    ),
    "conv 2-D, depthwise": (
        partial(
            conv,
            layout=CHANNELS_LAST,
            window_strides=(2, 2),
            padding="SAME",
            feature_group_count=4,
        ),
        (3, 3, 1, 4),
        (1, 5, 5, 4),
        (4,),
    ),
    "conv 2-D, transposed": (
        lambda x, w: lax.conv_transpose(x, w, (2, 2), "SAME", dimension_numbers=CHANNELS_LAST),
        (3, 3, 2, 3),
        (1, 3, 3, 2),
        (3,),
    ),
    "conv 3-D": (
        partial(conv, layout=("NDHWC", "DHWIO", "NDHWC"), window_strides=(1, 2, 1), padding="SAME"),
        (2, 2, 2, 2, 3),
        (1, 3, 4, 3, 2),
        (3,),
    ),
}


def linear_map(layer_name):
    """The linear map with its weight, made before it is called."""
    fun, weight_shape, *_ = LAYERS[layer_name]
    weight = normal(1, *weight_shape)
    return lambda x: fun(x, weight)


BIASES = {
    "no bias": lambda z, bias: z,
    "bias": lambda z, bias: z + bias,
    "batch norm": lambda z, bias: (z + bias - 0.3 * bias) * (1 + bias) + 2 * bias,
    "scaled and negated": lambda z, bias: -((bias - z) / (2 + bias)) * 3.0,
}


@dataclass(frozen=True)
class Dense:
    """A layer with its bias, as a matrix."""

    layer: Callable[[jax.Array], jax.Array]
    x: jax.Array
    seed: jax.Array
    z: jax.Array
    jacobian: np.ndarray
    shift: np.ndarray

    def naively(self, rule, **options):
        relevance = np.asarray(self.seed * self.z).ravel()
        return rule(self.jacobian, self.shift, np.asarray(self.x).ravel(), relevance, **options)


def as_matrix(layer_name, bias_name, x):
    """A layer of the table with its bias, and the same as a matrix."""
    linear, (*_, bias_shape) = linear_map(layer_name), LAYERS[layer_name]
    bias = normal(3, *bias_shape)
    layer = lambda x: BIASES[bias_name](linear(x), bias)
    of_a_vector = lambda v: layer(v.reshape(x.shape)).ravel()
    z, jacobian, shift = quick_jit(
        lambda zeros: (layer(x), jax.jacobian(of_a_vector)(zeros), of_a_vector(zeros)),
    )(jnp.zeros(x.size))
    return Dense(layer, x, normal(4, *z.shape), z, np.asarray(jacobian), np.asarray(shift))


def maps_of(dense, choices):
    """The value and the map of every rule, by one program: most of the time of a test is that of compiling."""

    def explain(x, seed):
        found = {}
        for name, rule in choices.items():
            value, propagate = jax.vjp(lrp(dense.layer, rule), x)
            found[name] = value, propagate(seed)[0]
        return found

    return quick_jit(explain)(dense.x, dense.seed)


@cache
def layer_with_a_zero(layer_name, bias_name):
    """A layer with its bias, and an input of which one element is zero."""
    x = normal(2, *LAYERS[layer_name][-2])
    return as_matrix(layer_name, bias_name, x.at[(0,) * x.ndim].set(0.0))


@cache
def layer_and_maps(layer_name, bias_name, treatment):
    """A layer, and its value and map for every rule."""
    dense = layer_with_a_zero(layer_name, bias_name)
    choices = {name: rule(**parameters, bias=treatment) for name, (rule, _, parameters) in RULES.items()}
    return dense, maps_of(dense, choices)


TREATMENTS = ("absorb", "ignore", "distribute")
OF_BIASES = [
    pytest.param(bias_name, treatment, id=f"{bias_name}-{treatment}" if bias_name != "no bias" else bias_name)
    for bias_name in BIASES
    for treatment in (("absorb",) if bias_name == "no bias" else TREATMENTS)
]


@pytest.mark.sampled(11, "layer_name", "bias_name", "treatment")
@pytest.mark.parametrize("rule_name", RULES)
@pytest.mark.parametrize(("bias_name", "treatment"), OF_BIASES)
@pytest.mark.parametrize("layer_name", LAYERS)
def test_rule_agrees_with_dense_oracle(float64, layer_name, bias_name, treatment, rule_name):
    dense, maps = layer_and_maps(layer_name, bias_name, treatment)
    value, relevance = maps[rule_name]
    np.testing.assert_allclose(value, dense.z, rtol=1e-12)  # not to the bit: fused, it rounds otherwise
    _, naive, parameters = RULES[rule_name]
    expected = dense.naively(naive, **parameters, bias=treatment)
    error = np.abs(np.asarray(relevance).ravel() - expected).max() / np.abs(expected).max()
    assert error < 1e-9, error


# The axes of the output over which a stabilizer is relative: those of the features, of which an image has all.
FEATURES = {"dense, several axes": (-1,), "dense, batch axis": (-2, -1)}


STABILIZED = {
    name: (rule, naive, parameters, [key for key in parameters if key in ("epsilon", "stabilizer")])
    for name, (rule, naive, parameters) in RULES.items()
}


@cache
def layer_and_maps_by_default(layer_name):
    """A layer with a bias, and its map for every rule with the default stabilizer."""
    dense = as_matrix(layer_name, "bias", normal(2, *LAYERS[layer_name][-2]))
    choices = {
        name: rule(**{key: value for key, value in parameters.items() if key not in stabilizers})
        for name, (rule, _, parameters, stabilizers) in STABILIZED.items()
    }
    return dense, choices, maps_of(dense, choices)


@pytest.mark.sampled(5, "layer_name")
@pytest.mark.parametrize("rule_name", RULES)
@pytest.mark.parametrize("layer_name", LAYERS)
def test_default_stabilizer_is_relative_to_the_features(float64, layer_name, rule_name):
    dense, choices, maps = layer_and_maps_by_default(layer_name)
    axes = FEATURES.get(layer_name, tuple(range(dense.z.ndim)))

    def stabilizer(denominator):
        squares = np.mean(denominator.reshape(dense.z.shape) ** 2, axes, keepdims=True)
        return 1e-6 * np.broadcast_to(np.sqrt(squares), dense.z.shape).ravel()

    _, naive, parameters, stabilizers = STABILIZED[rule_name]
    options = parameters | dict.fromkeys(stabilizers, stabilizer)
    expected = dense.naively(naive, **options, bias=choices[rule_name].bias)
    error = np.abs(np.asarray(maps[rule_name][1]).ravel() - expected).max() / np.abs(expected).max()
    assert error < 1e-11, error


def test_relative_epsilon_by_hand(float64):
    # z = (3, 4) for one sample and ten times that for the other; the root mean squares are sqrt(12.5) and ten times it.
    weight = jnp.array([[3.0, 4.0]])
    explained = lrp(lambda x: x @ weight, rules.Epsilon(0.1, relative=True))
    relevance = jit_by_day(jax.grad(lambda x: explained(x).sum()))(jnp.array([[1.0], [10.0]]))
    one = 3 * 3 / (3 + 0.1 * np.sqrt(12.5)) + 4 * 4 / (4 + 0.1 * np.sqrt(12.5))
    np.testing.assert_allclose(relevance.ravel(), [one, 10 * one], rtol=1e-12)


def test_relative_epsilon_without_bias_measures_z_without_bias(float64):
    x, weight = normal(2, 3), normal(1, 3, 2)

    def maps(bias, treatment):  # for a starting relevance of one at every output
        _, propagate = jax.vjp(lrp(lambda x: x @ weight + bias, rules.Epsilon(0.5, True, treatment)), x)
        return propagate(1 / (x @ weight + bias))[0]

    ignored, without = jit_by_day(lambda: (maps(9.0, "ignore"), maps(0.0, "absorb")))()
    np.testing.assert_allclose(ignored, without, rtol=1e-12)


@pytest.mark.parametrize("layer_name", ["conv 1-D", "conv 2-D, channels first", "dense"])
def test_relative_epsilon_does_not_depend_on_the_batch(float64, layer_name):
    linear, (*_, shape, _) = linear_map(layer_name), LAYERS[layer_name]
    samples = normal(5, 3, *(shape[1:] if layer_name != "dense" else shape))
    explained = lrp(linear, rules.Epsilon(0.3, relative=True))

    def maps_of(explained):
        return jit_by_day(lambda x: jax.vjp(explained, x)[1](jnp.ones_like(linear(x)))[0])

    maps = maps_of(explained)
    np.testing.assert_allclose(maps(samples)[:1], maps(samples[:1]), rtol=1e-12)
    assert jnp.abs(maps(samples) - maps_of(lrp(linear, rules.Zero()))(samples)).max() > 1e-3


@pytest.mark.parametrize(
    ("low", "high"),
    [((-3.0, -4.0), (5.0, 4.0)), (np.full((4, 4, 1), -3.0), np.arange(16.0).reshape(4, 4, 1) + 3)],
    ids=["per channel", "per pixel"],
)
def test_z_box_with_bounds_for_channels_and_pixels(float64, low, high):
    layer = partial(conv, w=normal(1, 3, 3, 2, 3), layout=CHANNELS_LAST, window_strides=(1, 1), padding="SAME")
    x = normal(6, 1, 4, 4, 2)
    explained = lrp(layer, rules.ZBox(low, high, stabilizer=1e-6))
    flat_layer = lambda v: layer(v.reshape(x.shape)).ravel()
    of_matrix = jax.jacobian(flat_layer)
    run = lambda x: (explained(x), jax.grad(lambda x: explained(x).sum())(x), of_matrix(jnp.zeros(x.size)))
    z, relevance, jacobian = map(np.asarray, jit_by_day(run)(x))
    bounds = {
        name: np.broadcast_to(np.asarray(bound), x.shape).ravel() for name, bound in (("low", low), ("high", high))
    }
    expected = oracle.zbox(
        jacobian, np.zeros(z.size), np.asarray(x).ravel(), np.asarray(z).ravel(), stabilizer=1e-6, **bounds
    )
    np.testing.assert_allclose(relevance.ravel(), expected, rtol=1e-9, atol=1e-12)


def test_rules_with_arrays_can_be_compared_and_hashed():
    assert rules.ZBox(np.zeros(3), np.ones(3)) == rules.ZBox((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert hash(rules.ZBox(np.zeros(3), np.ones(3))) == hash(rules.ZBox((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rules.AlphaBeta(2.0, 2.0), "alpha - beta must be 1.*multiplied by 0 in every layer.*beta=1"),
        (lambda: rules.AlphaBeta(0.5, -0.5), "beta must be"),
        (lambda: rules.AlphaBeta(-0.5, -1.5), "alpha must be"),
        (lambda: rules.Epsilon(-1.0), r"Epsilon\(epsilon=-1.0\)"),
        (lambda: rules.Gamma(-0.1), "gamma must be"),
        (lambda: rules.Flat(float("nan")), "stabilizer must be"),
        (lambda: rules.ZBox(1.0, 0.0), "low must not be larger than high"),
        (lambda: rules.Epsilon(bias="drop"), "bias='drop'.*absorb, ignore, distribute"),
    ],
)
def test_parameter_that_makes_no_sense(make, message):
    with pytest.raises(RuleError, match=message):
        make()


@pytest.mark.parametrize(
    "rule",
    [rules.Gamma, rules.AlphaBeta, rules.ZPlus, rules.WSquare, rules.Flat, rules.Norm, partial(rules.ZBox, 0, 1)],
)
def test_stabilizer_is_not_negative(rule):
    with pytest.raises(RuleError, match=r"stabilizer=-1e-06\): stabilizer must be"):
        rule(stabilizer=-1e-6)


@pytest.mark.parametrize("rule", [rules.Epsilon(bias="distribute"), rules.WSquare(bias="distribute")])
def test_bias_distributed_in_single_precision_stays_so_where_double_is_switched_on(float64, rule):
    kernel, bias, x = (normal(*shape).astype(jnp.float32) for shape in [(1, 3, 2, 4), (2, 4), (3, 1, 6, 2)])
    layer = lambda x: lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC")) + bias
    assert jax.grad(lambda x: lrp(layer, rule)(x).sum())(x).dtype == jnp.float32


def test_pass_needs_equal_shapes():
    with pytest.raises(RuleError, match=r"\(5,\) to \(4,\)\. Choose another rule for it\."):
        jax.grad(lambda x: lrp(linear_map("dense"), rules.Pass())(x).sum())(jnp.ones(5))


def test_pass_passes_relevance_on():
    weight = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    _, propagate = jax.vjp(lrp(lambda x: x @ weight, rules.Pass()), jnp.array([1.0, 1.0]))
    np.testing.assert_allclose(propagate(jnp.array([1.0, 10.0]))[0], [4.0, 60.0])


def test_bfloat16_and_float16_stay_what_they_are():
    for dtype in (jnp.bfloat16, jnp.float16):
        weight, x = normal(1, 5, 4).astype(dtype), normal(2, 3, 5).astype(dtype)
        for rule in (rules.Epsilon(), rules.Gamma(), rules.ZBox(-4.0, 4.0)):
            explain = jax.grad(lambda x, rule=rule, weight=weight: lrp(lambda x: x @ weight, rule)(x)[:, 0].sum())
            relevance = jit_by_day(explain)(x)
            assert relevance.dtype == dtype
            assert jnp.isfinite(relevance).all()


@pytest.mark.parametrize(("low", "high"), [(-np.inf, 1.0), (0.0, np.inf), (np.nan, 1.0)])
def test_bounds_of_z_box_are_finite(low, high):
    with pytest.raises(RuleError, match=r"ZBox\(low=.*the bounds must be finite numbers"):
        rules.ZBox(low, high)


def test_bounds_of_z_box_may_be_equal_where_an_input_never_changes():
    x, weight = jnp.array([1.0, 0.5]), jnp.array([[2.0], [1.0]])
    relevance = jax.grad(lambda x: lrp(lambda x: x @ weight, rules.ZBox((1.0, 0.0), (1.0, 1.0)))(x)[0])(x)
    np.testing.assert_allclose(relevance, [0.0, 2.5], atol=1e-5)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gamma_keeps_what_arrives_at_an_output_of_zero(sign):
    weight = sign * jnp.array([[1.0], [-1.0]])
    network = lambda x: jnp.exp(x @ weight) @ jnp.ones(1)
    rules_of_both = [(composites.last, rules.Flat()), (composites.any_layer, rules.Gamma(1.0))]
    # The flat layer gives relevance to an output that has no sign.
    relevance = jax.grad(lambda x: lrp(network, rules_of_both)(x))(jnp.array([2.0, 2.0]))
    np.testing.assert_array_equal(relevance, [0.0, 0.0])


def test_gamma_without_bias_goes_by_the_sign_that_the_output_has_without_it():
    # z = 1 - 2 = -1 without the bias of 3, which lets the relu pass 2: sn = 2 / (-1 - 2), wn = (1, -2).
    weight = jnp.array([[1.0], [-1.0]])
    network = lambda x: jax.nn.relu(x @ weight + 3.0)
    relevance = jax.grad(lambda x: lrp(network, rules.Gamma(1.0, bias="ignore"))(x)[0])(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(relevance, [-2 / 3, 8 / 3], atol=1e-5)


@pytest.mark.parametrize("rule", [rules.Epsilon, rules.Gamma])
def test_parameters_are_finite_and_the_bias_is_one_of_three(rule):
    with pytest.raises(RuleError, match=rf"^{rule.__name__}\(\w+=inf\)"):
        rule(float("inf"))
    with pytest.raises(RuleError, match=rf"^{rule.__name__}\(bias='spread'\): bias must be one of"):
        rule(bias="spread")


@pytest.mark.parametrize("scale", [lambda sum: sum, lambda sum: sum * 1.0, lambda sum: -(sum * -1.0)])
def test_terms_that_cancel_in_an_input_get_relevance_of_both_signs(scale):
    # The input x0 + x1 = 0 carries none, but its ratio w R / z = 3 * 2 / 2 reaches both terms.
    weight = jnp.array([[3.0], [1.0]])
    network = lambda x: jnp.stack([scale(x[0] + x[1]), x[2]]) @ weight
    relevance = jax.grad(lambda x: lrp(network, rules.Zero())(x)[0])(jnp.array([1.0, -1.0, 2.0]))
    np.testing.assert_allclose(relevance, [3.0, -3.0, 2.0], atol=1e-5)


@pytest.mark.parametrize("rule", [rules.Epsilon(), rules.Norm(), rules.Gamma()], ids=["epsilon", "norm", "gamma"])
def test_scale_behind_a_flip_belongs_to_the_weight(float64, rule):
    # Only the default stabilizer tells: it is relative to the output with its scale.
    weight, scale, x, seed = normal(1, 5, 4), normal(2, 4), normal(3, 2, 5), normal(4, 2, 4)
    maps = lambda network: jit_by_day(lambda x: jax.vjp(lrp(network, rule), x)[1](seed)[0])(x)
    flipped = maps(lambda x: (x @ weight)[:, ::-1] * scale)
    np.testing.assert_allclose(flipped, maps(lambda x: x @ (weight[:, ::-1] * scale)), rtol=1e-12)


# Rules that have one number, and a network with a scan, a checkpoint and a branch.

SWEPT = {
    "gamma": lambda number: rules.Gamma(number),
    "epsilon": lambda number: rules.Epsilon(number, bias="distribute"),
    "relative epsilon": lambda number: rules.Epsilon(number, relative=True),
    "stabilizer of alpha-beta": lambda number: rules.AlphaBeta(2.0, 1.0, stabilizer=number),
    "stabilizer of z+": lambda number: rules.ZPlus(number, "ignore"),
    "stabilizer of w^2": lambda number: rules.WSquare(number, "absorb"),
    "a composite": lambda number: [
        (composites.first, rules.Gamma(number)),
        (composites.any_layer, rules.Epsilon(number)),
    ],
    "a preset": lambda number: composites.EpsilonGammaBox(-9.0, 9.0, epsilon=number, gamma=number),
}
NUMBERS = (0.1, 0.7, 9.0)


def deep_network():
    weights, kernel, bias = normal(1, 2, 4, 4), normal(2, 4, 3), normal(3, 4)

    @jax.checkpoint
    def block(h, weight):
        return jax.nn.relu(h @ weight + bias), None

    def network(x):
        h, _ = lax.scan(block, x @ weights[1], weights)
        return lax.cond(h.sum() > 0, lambda h: h @ kernel, lambda h: -h @ kernel, block(h, weights[0])[0])

    return network


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", SWEPT)
def test_numbers_of_rules_are_traced_and_vmapped(float64, name):
    network, make, x, numbers = deep_network(), SWEPT[name], normal(5, 3, 4), jnp.array(NUMBERS)
    value = lambda number, x: lrp(network, make(number))(x)[:, 1].sum()
    maps = jax.grad(value, argnums=1)
    right = quick_jit(lambda x: jnp.stack([maps(number, x) for number in NUMBERS]))(x)
    assert np.ptp(right, axis=0).max() > 1e-3
    sum_of_maps = jax.grad(lambda x: jax.vmap(value, (0, None))(numbers, x).sum())
    explained = jax.vmap(lambda number: relevance_of(network, x, 1, make(number)).relevance)
    found = quick_jit(lambda: (jax.vmap(maps, (0, None))(numbers, x), explained(numbers), sum_of_maps(x)))()
    for array, expected in zip(found, (right, right, right.sum(0)), strict=True):
        np.testing.assert_allclose(array, expected, rtol=1e-9, atol=1e-9)


def test_derivative_by_gamma(float64):
    # R = x (w + gamma w+) / (z + gamma z+) z with x = (2, 1), w = (3, -1), z = 5, z+ = 6.
    weight, x = jnp.array([[3.0], [-1.0]]), jnp.array([2.0, 1.0])
    second = lambda gamma: jax.grad(lambda x: lrp(lambda x: x @ weight, rules.Gamma(gamma, 0.0))(x)[0])(x)[1]
    np.testing.assert_allclose(jit_by_day(jax.value_and_grad(second))(0.5), [-1 / 8 * 5, 6 / 8**2 * 5])
    of_a_rule = jax.grad(lambda rule: relevance_of(lambda x: x @ weight, x[None], 0, rule).relevance[0, 1])
    np.testing.assert_allclose(of_a_rule(rules.Gamma(0.5, 0.0)).gamma, 6 / 8**2 * 5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float64])
def test_a_traced_number_leaves_the_dtype_as_it_is(float64, dtype):
    weight, x = normal(1, 4, 3).astype(dtype), normal(2, 2, 4).astype(dtype)
    maps = lambda gamma: jax.grad(lambda x: lrp(lambda x: x @ weight, rules.Gamma(gamma))(x).sum())(x)
    assert jax.jit(maps)(jnp.array(0.1, jnp.float32)).dtype == dtype
    np.testing.assert_allclose(jax.jit(maps)(0.5).astype(float), maps(0.5).astype(float), rtol=1e-2)
    np.testing.assert_array_equal(jax.jit(maps)(jnp.array(1, jnp.uint8)), jax.jit(maps)(1.0))


@dataclass(frozen=True)
class Raised(rules.Rule):
    """A rule of a user's own whose number may be traced."""

    form = rules.Form.RELEVANCE
    traced = ("power",)
    power: float = 1.0

    def shares(self, layer, relevance):
        w, ones = jnp.abs(layer.w) ** self.power, jnp.ones_like(layer.x)
        return [rules.Share(ones, w, 0.0, relevance / layer.linear(ones, w))]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("make", [*list(SWEPT.values()), Raised], ids=[*SWEPT, "a rule of one's own"])
def test_another_number_compiles_nothing(make, compiled):
    weight, x = normal(1, 4, 3), normal(2, 5, 4)
    network = lambda x: jax.nn.relu(x @ weight) @ jnp.asarray(weight).T
    for door in (relevance_of, ledger):
        door(network, x, 0, make(0.3))
        compiled.clear()
        others = () if make is Raised else (2, np.float32(0.2), np.int64(1), jnp.array(0.4))
        for number in (*NUMBERS, *others):
            door(network, x, 0, make(number))
        assert [name for name in compiled if "explain" in name or "sums" in name] == []
    explain = jax.jit(lambda rule: relevance_of(network, x, 0, rule).relevance)
    maps = [explain(composites.as_composite(make(number))) for number in NUMBERS]
    assert explain._cache_size() == 1
    expected = [relevance_of(network, x, 0, make(number)).relevance for number in NUMBERS]
    np.testing.assert_allclose(np.stack(maps), np.stack(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "number", [np.float64(0.25), np.float32(0.25), np.array(0.25), jnp.array(0.25), jnp.bfloat16(0.25)]
)
def test_scalars_of_numpy_and_jax_are_numbers(number):
    for make in (rules.Gamma, rules.Epsilon, rules.ZPlus):
        assert make(number) == make(0.25)
        assert hash(make(number)) == hash(make(0.25))
        assert repr(make(number)) == repr(make(0.25))
    assert rules.Gamma(np.int64(1)) == rules.Gamma(1) == rules.Gamma(1.0)
    assert rules.AlphaBeta(np.float32(1.7), np.float32(0.7)).shares  # they differ by 1 up to rounding


@pytest.mark.parametrize(
    "number",
    [
        True,
        np.True_,
        "0.25",
        math.nan,
        np.float32(-1),
        -1,
        np.array([0.25]),
        jnp.ones((2, 3)),
        1j,
        jnp.array(True),
        [1.0],
    ],
    ids=repr,
)
@pytest.mark.parametrize(
    ("rule", "name"), [(rules.Gamma, "gamma"), (rules.Epsilon, "epsilon"), (rules.AlphaBeta, "alpha")]
)
def test_what_is_no_number_is_refused(rule, name, number):
    with pytest.raises(InputError, match=rf"^{rule.__name__}\({name}=.*\): {name} must be (a|one) number"):
        rule(**{name: number})


def test_numbers_that_must_be_known_say_so():
    with pytest.raises(
        RuleError, match=r"alpha=float32\[\]\): alpha is traced.*which products are computed.*loop in Pyth"
    ):
        jax.jit(lambda alpha: jnp.zeros(0) if rules.AlphaBeta(alpha, 1.0) else None)(2.0)
    with pytest.raises(RuleError, match=r"AlphaBeta\(beta=float32\[\]\): beta is traced"):
        jax.vmap(lambda beta: jnp.zeros(0) if rules.AlphaBeta(2.0, beta) else None)(jnp.ones(2))
    with pytest.raises(RuleError, match=r"ZBox\(high=.*high is traced.*Make the rule outside of jax.jit"):
        jax.jit(lambda high: jnp.zeros(0) if rules.ZBox(0.0, (1.0, high)) else None)(2.0)
    with pytest.raises(RuleError, match=r"Gamma\(gamma=float32\[3\]\): gamma must be one number.*jax.vmap"):
        jax.jit(lambda gamma: jnp.zeros(0) if rules.Gamma(gamma) else None)(jnp.ones(3))
    several = jax.tree.map(lambda number: number * jnp.ones(3), rules.Gamma(0.5))
    with pytest.raises(RuleError, match=r"gamma=float32\[3\]"):
        relevance_of(lambda x: x @ jnp.asarray(np.ones((4, 3))), jnp.ones((3, 4)), 0, several)


@dataclass(frozen=True)
class OwnWords(rules.Zero):
    """A rule that says of itself how it is written."""

    def __repr__(self):
        return "my own LRP-0"


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (rules.Epsilon(), "Epsilon()"),
        (rules.Epsilon(0.25, relative=True), "Epsilon(epsilon=0.25, relative=True)"),
        (rules.Flat(bias="absorb"), "Flat(bias='absorb')"),
        (rules.ZBox(0.0, 1.0), "ZBox(low=0.0, high=1.0)"),
        (OwnWords(), "my own LRP-0"),
    ],
)
def test_rule_is_written_with_what_is_not_the_default(rule, expected):
    assert str(rule) == expected


def test_rules_are_pytrees_of_their_numbers():
    assert jax.tree.leaves([rules.Gamma(0.5, 1e-3), rules.Epsilon(), rules.AlphaBeta(), rules.ZBox(0, 1)]) == [
        0.5,
        1e-3,
    ]
    assert jax.tree.map(lambda number: 2 * number, rules.Gamma(0.5, bias="ignore")) == rules.Gamma(1.0, bias="ignore")
    assert jax.tree.structure(rules.Gamma(0.5)) != jax.tree.structure(rules.Gamma(0.5, bias="ignore"))
    assert jax.jit(lambda rule: rule)(rules.Gamma(0.5)) == rules.Gamma(0.5)


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        ("0", 1.0, r"ZBox\(low='0'\): low must be a number, or an array"),
        (0.0, None, r"ZBox\(high=None\): high must be a number"),
        (False, True, r"low must be a number"),
        (0.0, 1j, r"high must be a number"),
        ((0.0, (1.0, 2.0)), 3.0, r"low must be a number, or an array or nested tuples of numbers: .*inhomogeneous"),
        ((), (), r"low must be a number"),
        ((0.0, 0.0), (1.0, 1.0, 1.0), r"low of shape \(2,\) and high of shape \(3,\) do not fit"),
        (0.0, np.nan, "must be finite"),
        ((0.0, 2.0), 1.0, "low must not be larger than high"),
    ],
)
def test_bounds_of_another_kind_are_refused(low, high, message):
    with pytest.raises(RuleError, match=message):
        rules.ZBox(low, high)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("shape", [(3,), (2, 1, 4), (2, 4), (1, 1, 4)])
def test_bounds_that_do_not_broadcast_are_refused_before_anything_runs(shape, samples):
    weight, x = normal(1, 4, 3), jnp.ones((samples, 4))
    rule = rules.ZBox(np.zeros(shape), np.ones(shape))
    for door in (lrp(lambda x: x @ weight, rule), lambda x: plan(lambda x: x @ weight, x, rule)):
        with pytest.raises(
            RuleError, match=rf"bounds of shape .* do not broadcast .*'dense_0', of shape \({samples}, 4\)"
        ):
            door(x)
