"""`lrp` through the doors that users take."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from lrp_jax import LRPError, lrp, rules
from lrp_jax.errors import InputError, UnsupportedOperationError

ALL_RULES = [rules.Zero(), rules.Epsilon(), rules.ZPlus(), rules.Flat()]


class Residual(nnx.Module):
    """Convolution, batch norm, pooling and a residual sum, as an NNX module."""

    def __init__(self, *, use_bias: bool, rngs: nnx.Rngs):
        options = {"use_bias": use_bias, "rngs": rngs, "param_dtype": jnp.float64}
        self.first = nnx.Conv(2, 4, (3, 3), **options)
        self.norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs, param_dtype=jnp.float64)
        self.second = nnx.Conv(4, 4, (3, 3), **options)
        self.head = nnx.Linear(4 * 4 * 4, 3, **options)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.first(x)))
        x = x + nnx.relu(self.second(x))
        x = nnx.avg_pool(nnx.max_pool(x, (2, 2), (2, 2)), (2, 2), padding="SAME")
        return self.head(x.reshape(x.shape[0], -1))


class LinenNetwork(nn.Module):
    """The same kind of network in Linen."""

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3))(x)))
        x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


@pytest.fixture
def images():
    return jax.random.normal(jax.random.key(0), (2, 8, 8, 2))


@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda rule: type(rule).__name__)
def test_value_is_that_of_the_function(float64, rule):
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 2))
    model = Residual(use_bias=True, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(lrp(model, rule)(x), model(x))
    np.testing.assert_array_equal(jax.jit(lrp(model, rule))(x), jax.jit(lambda x: model(x))(x))


@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda rule: type(rule).__name__)
def test_relevance_of_a_network_without_biases_is_conserved(float64, rule):
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 2))
    model = Residual(use_bias=False, rngs=nnx.Rngs(0))
    logit, relevance = jax.value_and_grad(lambda x: lrp(model, rule)(x)[0, 1])(x)
    stabilizers_share = 0 if rule == rules.Zero() else 1e-3
    np.testing.assert_allclose(relevance.sum(), logit, rtol=1e-9 + stabilizers_share)
    assert not relevance[1].any()


def test_zero_on_a_relu_network_is_gradient_times_input(float64):
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 2))
    model = Residual(use_bias=True, rngs=nnx.Rngs(0))
    relevance = jax.grad(lambda x: lrp(model, rules.Zero())(x).sum())(x)
    gradient = jax.grad(lambda x: model(x).sum())(x)
    np.testing.assert_allclose(relevance, gradient * x, atol=1e-12)


def test_cotangent_times_value_is_the_initial_relevance():
    weight = jnp.array([[1.0, 2.0], [3.0, -1.0]])
    x = jnp.array([1.0, 1.0])  # z = (4, 1)
    _, propagate = jax.vjp(lrp(lambda x: x @ weight, rules.Zero()), x)
    (relevance,) = propagate(jnp.array([2.0, 5.0]))
    # R = (2 * 4, 5 * 1); R_1 = 1/4 * 8 + 2/1 * 5 = 12, R_2 = 3/4 * 8 - 1/1 * 5 = 1
    np.testing.assert_allclose(relevance, [12.0, 1.0], rtol=1e-6)


def test_residual_sum_by_hand():
    # y = x + 3 x = 4 x: a quarter of the relevance flows through the sum's first operand, the rest through the layer.
    weight = jnp.array([[3.0]])
    relevance = jax.grad(lambda x: lrp(lambda x: (x + x @ weight).sum(), rules.Zero())(x))(jnp.array([2.0]))
    np.testing.assert_allclose(relevance, [8.0])
    # With the flat rule in the layer the parts stay the same: y = 8, of which x brings 2 and the layer 6.
    relevance = jax.grad(lambda x: lrp(lambda x: (x + x @ weight).sum(), rules.Flat())(x))(jnp.array([2.0]))
    np.testing.assert_allclose(relevance, [8.0], rtol=1e-5)


def test_flat_gives_relevance_to_inputs_that_are_zero():
    weight = jnp.ones((4, 1))
    x = jnp.array([4.0, 0.0, 0.0, 0.0])
    relevance = jax.grad(lambda x: lrp(lambda x: jax.nn.relu(x @ weight)[0], rules.Flat())(x))(x)
    np.testing.assert_allclose(relevance, [1.0, 1.0, 1.0, 1.0], rtol=1e-5)


def test_max_pooling_gives_all_to_the_winner_and_ties_to_the_first():
    x = jnp.array([[[[3.0], [1.0], [2.0], [2.0]]]])
    pooled = lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2, 1), (1, 1, 2, 1), "VALID").sum()
    relevance = jax.grad(lrp(pooled, rules.Zero()))(x)
    np.testing.assert_allclose(relevance.ravel(), [3.0, 0.0, 2.0, 0.0])


def test_average_pooling_splits_in_proportion():
    x = jnp.array([[[[3.0], [1.0]]]])
    relevance = jax.grad(lrp(lambda x: nnx.avg_pool(x, (1, 2)).sum(), rules.Zero()))(x)
    np.testing.assert_allclose(relevance.ravel(), [1.5, 0.5])


def test_saturated_activation_passes_all_relevance():
    # relu6(9) = 6: the gradient is 0 there, the relevance is 6.
    relevance = jax.grad(lrp(lambda x: jax.nn.relu6(x).sum(), rules.Zero()))(jnp.array([9.0, -1.0]))
    np.testing.assert_allclose(relevance, [6.0, 0.0])


def test_value_of_a_function_at_zero_is_a_constant_that_keeps_its_share():
    relevance = jax.grad(lrp(lambda x: jax.nn.sigmoid(x).sum(), rules.Zero()))(jnp.log(jnp.array([1.0, 3.0, 1 / 3])))
    np.testing.assert_allclose(relevance, [0.0, 1 / 4, -1 / 4], atol=1e-7)


def test_input_normalisation_keeps_the_relevance_of_black_pixels_where_a_rule_gives_them_some():
    # ((0 - 2) + (5 - 2)) / 0.5 = 2. Flat gives half to each pixel, whatever its value; of LRP-0 the constants keep
    # (-2 - 2) / 0.5 = -8, and 5 / 0.5 = 10 go to the pixel that is not black.
    weight = jnp.array([[1.0], [1.0]])
    x = jnp.array([0.0, 5.0])
    for rule, expected in ((rules.Flat(), [1.0, 1.0]), (rules.Zero(), [0.0, 10.0])):
        relevance = jax.grad(lambda x, rule=rule: lrp(lambda x: ((x - 2.0) / 0.5) @ weight, rule)(x)[0])(x)
        np.testing.assert_allclose(relevance, expected, rtol=1e-5)


def test_linen_apply_with_static_keyword():
    module = LinenNetwork()
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 2))
    variables = module.init(jax.random.key(1), x, train=False)
    explained = lrp(module.apply, rules.Zero(), argnums=1)
    logits, relevance = jax.value_and_grad(lambda x: explained(variables, x, train=False)[0, 1])(x)
    gradient = jax.grad(lambda x: module.apply(variables, x, train=False)[0, 1])(x)
    np.testing.assert_allclose(logits, module.apply(variables, x, train=False)[0, 1], rtol=1e-6)
    np.testing.assert_allclose(relevance, gradient * x, atol=1e-5)


def test_several_arguments_and_pytrees():
    weights = {"a": jnp.ones((2, 1)), "b": jnp.array([[2.0], [0.0]])}
    fun = lambda inputs, extra: (inputs["a"] @ weights["a"] + inputs["b"] @ weights["b"] + extra).sum()
    inputs = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([3.0, 4.0])}
    explained, extra = jax.grad(lrp(fun, rules.Zero(), argnums=(0, 1)), argnums=(0, 1))(inputs, jnp.array([5.0]))
    np.testing.assert_allclose(explained["a"], [1.0, 2.0], rtol=1e-6)
    np.testing.assert_allclose(explained["b"], [6.0, 0.0], rtol=1e-6)
    np.testing.assert_allclose(extra, [5.0], rtol=1e-6)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda rule: type(rule).__name__)
def test_jit_vmap_and_checkpoint_agree(float64, rule):
    x = jax.random.normal(jax.random.key(0), (3, 8, 8, 2))
    explained = lrp(Residual(use_bias=True, rngs=nnx.Rngs(0)), rule)
    one = lambda image: explained(image[None])[0, 1]
    maps = jax.grad(lambda x: explained(x)[:, 1].sum())(x)
    for variant in (
        jax.vmap(jax.grad(one)),
        jax.jit(jax.vmap(jax.grad(one))),
        jax.vmap(jax.jit(jax.grad(one))),
        jax.vmap(jax.grad(jax.checkpoint(one))),
        lambda x: lax.map(jax.grad(one), x),
    ):
        np.testing.assert_allclose(variant(x), maps, rtol=1e-9, atol=1e-12)


def test_gradient_of_a_loss_on_the_map_matches_finite_differences(float64):
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 2))
    definition, state = nnx.split(Residual(use_bias=True, rngs=nnx.Rngs(0)))
    explained = lrp(lambda state, x: nnx.merge(definition, state)(x), rules.Epsilon(1e-2), argnums=1)

    def loss(state):
        return (jax.grad(lambda x: explained(state, x)[0, 1])(x) ** 2).sum()

    leaves, tree = jax.tree.flatten(state)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    direction = [jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    step = 1e-6
    shifted = [
        tree.unflatten([leaf + sign * step * d for leaf, d in zip(leaves, direction, strict=True)]) for sign in (1, -1)
    ]
    numeric = (loss(shifted[0]) - loss(shifted[1])) / (2 * step)
    exact = sum((d * g).sum() for d, g in zip(direction, jax.tree.leaves(jax.grad(loss)(state)), strict=True))
    np.testing.assert_allclose(exact, numeric, rtol=1e-5)


def test_derivative_with_regard_to_parameters_is_refused():
    explained = lrp(lambda weight, x: (x @ weight).sum(), rules.Zero(), argnums=1)
    with pytest.raises(LRPError, match="explained arguments"):
        jax.grad(explained)(jnp.ones((2, 1)), jnp.ones(2))


def hidden(x):
    return jax.nn.relu(x @ jnp.array([[1.0, -2.0], [3.0, 1.0]])) @ jnp.array([[2.0], [-1.0]])


def looped(x):
    step = lambda carry, _: (carry + jax.checkpoint(lrp(hidden, rules.Epsilon(0.1)))(x), None)
    return lax.scan(step, jnp.zeros((len(x), 1)), None, length=2)[0]


DOORS = {
    "plain": lrp(hidden, rules.Epsilon(0.1)),
    "jit": jax.jit(lrp(hidden, rules.Epsilon(0.1))),
    "vmap": jax.vmap(lrp(hidden, rules.Epsilon(0.1))),
    "vmap of jit": jax.vmap(jax.jit(lrp(hidden, rules.Epsilon(0.1)))),
    "loop": looped,
}


@pytest.mark.parametrize("door", DOORS)
def test_forward_mode_says_what_to_do(door):
    explained, x = DOORS[door], jnp.array([[1.0, 3.0], [-1.0, 3.0], [0.5, -4.0]])
    modes = {
        "jvp": lambda x: jax.jvp(explained, (x,), (x,)),
        "linearize": lambda x: jax.linearize(explained, x)[1](x),
        "grad of jvp": jax.grad(lambda x: jax.jvp(explained, (x,), (x,))[1].sum()),
    }
    runs = [*modes.values(), *map(jax.jit, modes.values())]
    if door in {"plain", "vmap"}:
        runs.append(jax.jacfwd(explained))
    for run in runs:
        with pytest.raises(InputError, match=r"backwards, .* with jax\.grad, jax\.vjp or jax\.jacrev"):
            run(x)


@pytest.mark.parametrize("door", DOORS)
def test_second_derivatives_agree_in_every_mode(float64, door):
    x = jnp.array([[1.0, 3.0], [-1.0, 3.0], [0.5, -4.0]])
    total = lambda x: DOORS[door](x).sum()
    again, forward = jax.jacrev(jax.jacrev(total))(x), jax.jacfwd(jax.jacrev(total))(x)
    step = 1e-6 * jnp.eye(6).reshape(6, 3, 2)
    numeric = jax.vmap(lambda d: (jax.grad(total)(x + d) - jax.grad(total)(x - d)) / 2e-6)(step)
    assert abs(again).max() > 0.1
    np.testing.assert_allclose(again, forward, atol=1e-12)
    np.testing.assert_allclose(again, jnp.moveaxis(numeric, 0, -1).reshape(again.shape), atol=1e-6)


def test_unsupported_operation_is_named_with_its_line():
    def network(x):
        return jax.lax.linalg.lu(x)[0]  # the line that the message names

    with pytest.raises(UnsupportedOperationError, match=r"'lu'.*test_transform.py:\d+ \(.*network\)"):
        lrp(network, rules.Zero())(jnp.eye(5))


def test_integers_are_refused():
    with pytest.raises(LRPError, match=r"int32.*float32"):
        lrp(lambda x: x * 2.0, rules.Zero())(jnp.arange(3))


def test_argnums_beyond_the_call_is_refused():
    with pytest.raises(LRPError, match="argnums"):
        lrp(lambda x: x, rules.Zero(), argnums=1)(jnp.ones(3))
