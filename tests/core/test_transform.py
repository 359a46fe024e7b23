"""`lrp` through the doors that users take."""

import functools
import json
import re
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from apart import run_apart
from compiling import jit_by_day
from flax import nnx
from jax import lax

from lrp_jax import LRPError, composites, lrp, plan, relevance, rules
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
    variables = jax.jit(module.init, static_argnames="train")(jax.random.key(1), x, train=False)
    explained = lrp(module.apply, rules.Zero(), argnums=1)
    of = lambda apply: jit_by_day(jax.value_and_grad(lambda x: apply(variables, x, train=False)[0, 1]))(x)
    (logits, relevance), (expected, gradient) = of(explained), of(module.apply)
    np.testing.assert_allclose(logits, expected, rtol=1e-6)
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
    maps = jit_by_day(jax.grad(lambda x: explained(x)[:, 1].sum()))(x)
    variants = (
        jax.jit(jax.vmap(jax.grad(one))),
        jax.vmap(jax.grad(one)),
        jax.vmap(jax.jit(jax.grad(one))),
        jax.vmap(jax.grad(jax.checkpoint(one))),
        lambda x: lax.map(jax.grad(one), x),
    )
    for found in jit_by_day(lambda x: [variant(x) for variant in variants])(x):
        np.testing.assert_allclose(found, maps, rtol=1e-9, atol=1e-12)


def test_gradient_of_a_loss_on_the_map_matches_finite_differences(float64):
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 2))
    definition, state = nnx.split(Residual(use_bias=True, rngs=nnx.Rngs(0)))
    explained = lrp(lambda state, x: nnx.merge(definition, state)(x), rules.Epsilon(1e-2), argnums=1)

    @jit_by_day
    def loss(state):
        return (jax.grad(lambda x: explained(state, x)[0, 1])(x) ** 2).sum()

    leaves, tree = jax.tree.flatten(state)
    random = np.random.default_rng(5)
    direction = [random.normal(size=leaf.shape) for leaf in leaves]
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
    once = jit_by_day(jax.jacrev(total))
    again, forward = jit_by_day(lambda x: (jax.jacrev(once)(x), jax.jacfwd(once)(x)))(x)
    step = 1e-6 * np.eye(6).reshape(6, 3, 2)
    numeric = jit_by_day(jax.vmap(lambda d: (once(x + d) - once(x - d)) / 2e-6))(step)
    assert abs(again).max() > 0.1
    np.testing.assert_allclose(again, forward, atol=1e-12)
    np.testing.assert_allclose(again, jnp.moveaxis(numeric, 0, -1).reshape(again.shape), atol=1e-6)


# A shard_map within the model.

FIRST, SECOND, SCALE = (np.random.default_rng(3).normal(size=shape) for shape in ((6, 8), (8, 3), (8,)))
PARAMETERS = {"first": FIRST, "second": SECOND, "scale": SCALE}  # of both signs
OF_FIRST = composites.Composite([(composites.first, rules.ZBox(-1.0, 1.0)), (composites.any_layer, rules.AlphaBeta())])


def layered(parameters, x):
    x = jax.nn.relu((x @ parameters["first"] - 0.1) * parameters["scale"])
    step = lambda carry, _: (jax.nn.relu(carry @ (jnp.ones((8, 8)) - 0.5)), None)
    x = jax.lax.scan(step, x, None, length=2)[0]
    return jax.nn.softmax(x @ parameters["second"])


def in_columns(p, x):
    return jax.nn.relu((x @ p["first"] - 0.1) * p["scale"]) @ p["second"]


def shares(mesh, is_checked):
    """The function with its samples shared out, and with its features shared out."""
    samples = lambda parameters, x: jax.shard_map(
        layered, mesh=mesh, in_specs=(jax.P(), jax.P("axis")), out_specs=jax.P("axis"), check_vma=is_checked
    )(parameters, x)
    columns = {"first": jax.P(None, "axis"), "second": jax.P("axis"), "scale": jax.P("axis")}
    both = lambda p, x: lax.psum(in_columns(p, x), "axis")
    features = lambda parameters, x: jax.shard_map(
        both, mesh=mesh, in_specs=(columns, jax.P()), out_specs=jax.P(), check_vma=is_checked
    )(parameters, x)
    return samples, features


def maps_in_shares(fun, x):
    """The maps of three rules, and a derivative of a map by the parameters."""
    of = lambda rule: jax.grad(lambda x: lrp(fun, rule, argnums=1)(PARAMETERS, x)[:, 1].sum())
    loss = lambda p: (jax.grad(lambda x: lrp(fun, rules.Zero(), argnums=1)(p, x)[:, 1].sum())(x) ** 2).sum()
    return [of(rule)(x) for rule in (OF_FIRST, rules.Epsilon(0.1), rules.Flat())], jax.grad(loss)(PARAMETERS)


def all_maps_in_shares(functions, x):
    """The maps of several functions, by one program: most of the time of a test is that of compiling."""
    return jax.tree.map(np.asarray, jax.jit(lambda x: [maps_in_shares(fun, x) for fun in functions])(x))


def in_shares(devices, x, of_samples, of_features, whole):
    """How much the maps differ from those without a shard_map, and what is refused."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), "axis")
    functions, expected, refused = [], [], []
    for is_checked in (True, False):
        samples, features = shares(mesh, is_checked)
        functions.append(samples)
        expected.append(of_samples)
        if devices == 1:
            functions.append(features)
            expected.append(of_features)
        else:
            with pytest.raises(UnsupportedOperationError) as error:
                maps_in_shares(features, x)
            refused.append(str(error.value))
    samples, _ = shares(mesh, True)
    bound = functools.partial(samples, PARAMETERS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = np.asarray(relevance(bound, x, 1, OF_FIRST).relevance)
    pairs = zip(*map(jax.tree.leaves, ([*all_maps_in_shares(functions, x), found], [*expected, whole])), strict=True)
    differences = [float(abs(found - right).max() / abs(right).max()) for found, right in pairs]
    counted = int(re.search(r"(\d+) values are outside", " ".join(str(warning.message) for warning in caught))[1])
    rows = [row[1] for row in plan(bound, x, OF_FIRST).rows]
    return differences, refused, counted, int((abs(x) > 1).sum()), rows


def print_in_shares():
    jax.config.update("jax_enable_x64", True)
    x = jax.random.normal(jax.random.key(1), (4, 6))
    expected = all_maps_in_shares([layered, in_columns], x)
    whole = np.asarray(relevance(functools.partial(layered, PARAMETERS), x, 1, OF_FIRST).relevance)
    print(json.dumps({devices: in_shares(devices, x, *expected, whole) for devices in (1, 2)}))


@functools.cache
def found_in_shares():
    call = "import test_transform; test_transform.print_in_shares()"
    return json.loads(run_apart(call, "--xla_force_host_platform_device_count=2"))


@pytest.mark.parametrize("devices", [1, 2])
def test_shard_map_within_the_model(devices):
    differences, refused, counted, outside, rows = found_in_shares()[str(devices)]
    assert max(differences) < 1e-9
    assert counted == outside > 0
    assert rows[0] == "shard_map"
    assert rows.count("dense") == 2
    assert len(refused) == (2 if devices == 2 else 0)
    assert all("several devices compute parts of one sample" in message for message in refused)


def test_nothing_is_promoted_where_the_user_forbids_it(images):
    kernel, head = jax.random.normal(jax.random.key(1), (3, 3, 2, 3)), jax.random.normal(jax.random.key(2), (27, 2))
    rule = [(composites.first, rules.ZBox([-3.0, -4.0], [3.0, 4.0])), (composites.any_layer, rules.Gamma(0.25))]

    def network(x):
        x = lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = lax.reduce_window(jax.nn.relu(x), -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return x.reshape(2, 27) @ head

    explain = lambda: jax.grad(lambda x: lrp(network, rule)(x)[0, 1])(images)
    expected = explain()
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        np.testing.assert_allclose(explain(), expected, rtol=1e-6)


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
