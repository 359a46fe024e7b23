"""Every rule on every kind of layer, against the dense oracle."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from compiling import quick_jit
from jax import lax

from lrp_jax import composites, lrp, rules
from lrp_jax.errors import RuleError

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


@pytest.mark.sampled(5)
@pytest.mark.parametrize("bias_name", BIASES)
@pytest.mark.parametrize("layer_name", LAYERS)
def test_rules_agree_with_dense_oracle(float64, layer_name, bias_name):
    linear, (*_, input_shape, bias_shape) = linear_map(layer_name), LAYERS[layer_name]
    bias = normal(3, *bias_shape)
    layer = lambda x: BIASES[bias_name](linear(x), bias)
    x = normal(2, *input_shape)
    x = x.at[tuple(0 for _ in input_shape)].set(0.0)

    flat_layer = lambda v: layer(v.reshape(input_shape)).ravel()
    jacobian = np.asarray(jax.jacobian(flat_layer)(jnp.zeros(x.size)))
    shift = np.asarray(flat_layer(jnp.zeros(x.size)))
    z = layer(x)
    seed = normal(4, *z.shape)

    choices = [
        (name, naive, {**parameters, "bias": treatment}, rule(**parameters, bias=treatment))
        for name, (rule, naive, parameters) in RULES.items()
        for treatment in (("absorb",) if bias_name == "no bias" else ("absorb", "ignore", "distribute"))
    ]

    @quick_jit
    def explain(x, seed):
        found = []
        for *_, rule in choices:
            value, propagate = jax.vjp(lrp(layer, rule), x)
            found.append((value, propagate(seed)[0]))
        return found

    for (name, naive, options, _), (value, relevance) in zip(choices, explain(x, seed), strict=True):
        np.testing.assert_allclose(value, z, rtol=1e-12)  # not to the bit: see test_windows.py
        expected = naive(jacobian, shift, np.asarray(x).ravel(), np.asarray(seed * z).ravel(), **options)
        error = np.abs(np.asarray(relevance).ravel() - expected).max() / np.abs(expected).max()
        assert error < 1e-9, f"{name}, bias {options['bias']}: {error}"


# The axes of the output over which a stabilizer is relative: those of the features, of which an image has all.
FEATURES = {"dense, several axes": (-1,), "dense, batch axis": (-2, -1)}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("layer_name", LAYERS)
def test_default_stabilizer_is_relative_to_the_features(float64, layer_name):
    linear, (*_, input_shape, bias_shape) = linear_map(layer_name), LAYERS[layer_name]
    bias, x = normal(3, *bias_shape), normal(2, *input_shape)
    layer = lambda x: linear(x) + bias
    z = layer(x)
    seed = normal(4, *z.shape)
    flat_layer = lambda v: layer(v.reshape(input_shape)).ravel()
    jacobian = np.asarray(jax.jacobian(flat_layer)(jnp.zeros(x.size)))
    shift = np.asarray(flat_layer(jnp.zeros(x.size)))
    axes = FEATURES.get(layer_name, tuple(range(z.ndim)))

    def stabilizer(denominator):
        squares = np.mean(denominator.reshape(z.shape) ** 2, axes, keepdims=True)
        return 1e-6 * np.broadcast_to(np.sqrt(squares), z.shape).ravel()

    for name, (rule, naive, parameters) in RULES.items():
        given = {key: stabilizer for key in parameters if key in ("epsilon", "stabilizer")}
        others = {key: value for key, value in parameters.items() if key not in given}
        _, propagate = jax.vjp(lrp(layer, rule(**others)), x)
        options = {**others, **given, "bias": rule(**others).bias}
        expected = naive(jacobian, shift, np.asarray(x).ravel(), np.asarray(seed * z).ravel(), **options)
        error = np.abs(np.asarray(propagate(seed)[0]).ravel() - expected).max() / np.abs(expected).max()
        assert error < 1e-11, f"{name}: {error}"


def test_relative_epsilon_by_hand(float64):
    # z = (3, 4) for one sample and ten times that for the other; the root mean squares are sqrt(12.5) and ten times it.
    weight = jnp.array([[3.0, 4.0]])
    z, propagate = jax.vjp(lrp(lambda x: x @ weight, rules.Epsilon(0.1, relative=True)), jnp.array([[1.0], [10.0]]))
    (relevance,) = propagate(jnp.ones_like(z))
    one = 3 * 3 / (3 + 0.1 * np.sqrt(12.5)) + 4 * 4 / (4 + 0.1 * np.sqrt(12.5))
    np.testing.assert_allclose(relevance.ravel(), [one, 10 * one], rtol=1e-12)


def test_relative_epsilon_without_bias_measures_z_without_bias(float64):
    x, weight = normal(2, 3), normal(1, 3, 2)

    def maps(bias, treatment):  # for a starting relevance of one at every output
        _, propagate = jax.vjp(lrp(lambda x: x @ weight + bias, rules.Epsilon(0.5, True, treatment)), x)
        return propagate(1 / (x @ weight + bias))[0]

    np.testing.assert_allclose(maps(9.0, "ignore"), maps(0.0, "absorb"), rtol=1e-12)


@pytest.mark.parametrize("layer_name", ["conv 1-D", "conv 2-D, channels first", "dense"])
def test_relative_epsilon_does_not_depend_on_the_batch(float64, layer_name):
    linear, (*_, shape, _) = linear_map(layer_name), LAYERS[layer_name]
    samples = normal(5, 3, *(shape[1:] if layer_name != "dense" else shape))
    explained = lrp(linear, rules.Epsilon(0.3, relative=True))

    def maps(x):
        z, propagate = jax.vjp(explained, x)
        return propagate(jnp.ones_like(z))[0]

    np.testing.assert_allclose(maps(samples)[:1], maps(samples[:1]), rtol=1e-12)
    assert (
        jnp.abs(maps(samples) - jax.vjp(lrp(linear, rules.Zero()), samples)[1](linear(samples) * 0 + 1)[0]).max() > 1e-3
    )


@pytest.mark.parametrize(
    ("low", "high"),
    [((-3.0, -4.0), (5.0, 4.0)), (np.full((4, 4, 1), -3.0), np.arange(16.0).reshape(4, 4, 1) + 3)],
    ids=["per channel", "per pixel"],
)
def test_z_box_with_bounds_for_channels_and_pixels(float64, low, high):
    layer = partial(conv, w=normal(1, 3, 3, 2, 3), layout=CHANNELS_LAST, window_strides=(1, 1), padding="SAME")
    x = normal(6, 1, 4, 4, 2)
    z, propagate = jax.vjp(lrp(layer, rules.ZBox(low, high, stabilizer=1e-6)), x)
    flat_layer = lambda v: layer(v.reshape(x.shape)).ravel()
    jacobian = np.asarray(jax.jacobian(flat_layer)(jnp.zeros(x.size)))
    bounds = {
        name: np.broadcast_to(np.asarray(bound), x.shape).ravel() for name, bound in (("low", low), ("high", high))
    }
    expected = oracle.zbox(
        jacobian, np.zeros(z.size), np.asarray(x).ravel(), np.asarray(z).ravel(), stabilizer=1e-6, **bounds
    )
    np.testing.assert_allclose(propagate(jnp.ones_like(z))[0].ravel(), expected, rtol=1e-9, atol=1e-12)


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


def test_pass_hands_relevance_on():
    weight = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    _, propagate = jax.vjp(lrp(lambda x: x @ weight, rules.Pass()), jnp.array([1.0, 1.0]))
    np.testing.assert_allclose(propagate(jnp.array([1.0, 10.0]))[0], [4.0, 60.0])


def test_bfloat16_and_float16_stay_what_they_are():
    for dtype in (jnp.bfloat16, jnp.float16):
        weight, x = normal(1, 5, 4).astype(dtype), normal(2, 3, 5).astype(dtype)
        for rule in (rules.Epsilon(), rules.Gamma(), rules.ZBox(-4.0, 4.0)):
            relevance = jax.grad(lambda x, rule=rule, weight=weight: lrp(lambda x: x @ weight, rule)(x)[:, 0].sum())(x)
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
    # The flat layer hands relevance to an output that has no sign.
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
    maps = lambda network: jax.vjp(lrp(network, rule), x)[1](seed)[0]
    flipped = maps(lambda x: (x @ weight)[:, ::-1] * scale)
    np.testing.assert_allclose(flipped, maps(lambda x: x @ (weight[:, ::-1] * scale)), rtol=1e-12)
