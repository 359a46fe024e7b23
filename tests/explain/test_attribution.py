"""`relevance`, `plan` and `ledger`: the doors besides `lrp`."""

import collections
import copy
import functools
import io
import json
import pickle
import re
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import jit_by_day
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from lrp_jax import Explanation, LRPError, baselines, composites, ledger, lrp, plan, relevance, rules, treatments
from lrp_jax.core.forms import Form
from lrp_jax.errors import InputError, LRPWarning, ModelError, StoreError
from lrp_jax.explain_dataset import explain_dataset


class Network(nnx.Module):
    def __init__(self, dtype=jnp.float32):
        options = {"rngs": nnx.Rngs(0), "param_dtype": dtype, "bias_init": nnx.initializers.normal(0.3)}
        self.first = nnx.Conv(1, 4, (3, 3), **options)
        self.second = nnx.Conv(4, 3, (3, 3), **options)
        self.head = nnx.Linear(3 * 9, 3, **options)

    def __call__(self, x):
        x = nnx.max_pool(nnx.relu(self.first(x)), (2, 2), (2, 2))
        x = checkpoint_name(nnx.relu(self.second(x)), "features")
        return self.head(x.reshape(len(x), -1))


@pytest.fixture
def network():
    return Network()


@pytest.fixture
def images():
    return jax.random.normal(jax.random.key(0), (5, 6, 6, 1))


def test_index_for_all_samples_and_one_for_each(network, images):
    explained = lrp(network, rules.Epsilon())
    expected = jit_by_day(jax.grad(lambda x: explained(x)[:, 2].sum()))(images)
    explanation = relevance(network, images, 2, rules.Epsilon())
    np.testing.assert_allclose(explanation.output, network(images), rtol=1e-5)
    np.testing.assert_allclose(explanation.relevance, expected, atol=1e-6)
    mixed = relevance(network, images, [2, 2, 0, 1, 2], rules.Epsilon()).relevance
    np.testing.assert_allclose(mixed[jnp.array([0, 1, 4])], expected[jnp.array([0, 1, 4])], atol=1e-6)
    assert jnp.abs(mixed[2] - expected[2]).max() > 1e-3


def test_default_target_is_the_largest_output_and_default_rules_are_epsilon_plus(network, images):
    explanation = relevance(network, images)
    expected = relevance(network, images, network(images).argmax(-1), composites.EpsilonPlus())
    np.testing.assert_array_equal(explanation.relevance, expected.relevance)


def test_all_classes_at_once(network, images):
    every = relevance(network, images, "all", rules.Epsilon()).relevance
    assert every.shape == (3, *images.shape)
    for target in range(3):
        np.testing.assert_allclose(
            every[target], relevance(network, images, target, rules.Epsilon()).relevance, atol=1e-6
        )


def test_mask_weights_the_outputs(network, images):
    mask = jnp.zeros((5, 3)).at[:, 0].set(1.0).at[:, 1].set(-2.0)
    every = relevance(network, images, "all", rules.Epsilon()).relevance
    masked = relevance(network, images, mask, rules.Epsilon()).relevance
    np.testing.assert_allclose(masked, every[0] - 2 * every[1], atol=1e-5)


def test_function_of_the_output(network, images):
    difference = relevance(network, images, lambda output: output[:, 0] - output[:, 1], rules.Zero())
    every = relevance(network, images, "all", rules.Zero()).relevance
    np.testing.assert_allclose(difference.relevance, every[0] - every[1], atol=1e-5)
    assert difference.output.shape == (5, 3)


@pytest.mark.parametrize("target", [1, [0, 1, 2, 1, 0], "all", None])
def test_batches_give_the_same_maps(network, images, target):
    whole = relevance(network, images, target, rules.Epsilon(), at=["first"])
    parts = relevance(network, images, target, rules.Epsilon(), at=["first"], batch_size=2, progress=False)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), whole.relevance, parts.relevance)
    np.testing.assert_allclose(whole.at["first"], parts.at["first"], atol=1e-6)
    np.testing.assert_allclose(whole.output, parts.output, atol=1e-6)


def test_hidden_layers_and_named_values(float64):
    network, x = Network(jnp.float64), jax.random.normal(jax.random.key(0), (5, 6, 6, 1))
    explanation = relevance(network, x, 1, rules.Zero(bias="ignore"), at=["first", "features", "head"])
    logits = explanation.output[:, 1]
    assert explanation.at["first"].shape == (5, 6, 6, 4)
    np.testing.assert_allclose(explanation.at["head"][:, 1], logits)
    for hidden in explanation.at.values():
        np.testing.assert_allclose(hidden.reshape(5, -1).sum(1), logits, rtol=1e-9)


def test_relevance_through_chosen_channels(float64):
    network, x = Network(jnp.float64), jax.random.normal(jax.random.key(0), (5, 6, 6, 1))
    parts = [relevance(network, x, 1, rules.Epsilon(), given={"first": np.eye(4)[i]}).relevance for i in range(4)]
    np.testing.assert_allclose(sum(parts), relevance(network, x, 1, rules.Epsilon()).relevance, atol=1e-12)
    chosen = relevance(network, x, 1, rules.Epsilon(), at=["first"]).at["first"][..., 2]
    through = relevance(network, x, 1, rules.Zero(bias="ignore"), given={"first": np.eye(4)[2]}).relevance
    total = relevance(network, x, 1, rules.Zero(bias="ignore"), at=["first"]).at["first"][..., 2]
    np.testing.assert_allclose(through.sum(), total.sum(), rtol=1e-9)
    assert chosen.shape == total.shape


def test_linen_and_plain_functions():
    module = nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(2)])
    x = jnp.array([[1.0, -2.0]])
    variables = module.init(jax.random.key(0), x)
    bound = functools.partial(module.apply, variables)
    linen = relevance(bound, x, 0, rules.Zero(), at=["layers_0"])
    plain = relevance(lambda x: module.apply(variables, x), x, 0, rules.Zero())
    np.testing.assert_allclose(linen.relevance, plain.relevance, rtol=1e-6)
    assert set(linen.at) == {"layers_0"}


LOW = jax.random.normal(jax.random.key(1), (5, 6))
HIGH = jax.random.normal(jax.random.key(2), (6, 2))
SAMPLES = jax.random.normal(jax.random.key(3), (3, 5))


class Typed:
    """As a model of Keras: it has a dtype, and is no pytree."""

    def __init__(self, dtype):
        self.dtype = dtype
        self.low, self.high = {"w": LOW}, {"w": HIGH}

    def __call__(self, x):
        return jax.nn.relu(x @ self.low["w"]) @ self.high["w"]

    def double(self):
        self.high = {"w": 2 * self.high["w"]}


class Transformer:
    """As a model of Hugging Face: its parameters are in an attribute, and its output has a name."""

    dtype = jnp.dtype("float32")

    def __init__(self):
        self._params = {"low": {"w": LOW}, "high": {"w": HIGH}}

    def __call__(self, x):
        return {"logits": jax.nn.relu(x @ self._params["low"]["w"]) @ self._params["high"]["w"]}

    def double(self):
        self._params["high"]["w"] = 2 * self._params["high"]["w"]


class Container:
    """Holds a module of Linen with its variables."""

    def __init__(self):
        self.module = nn.Dense(2, use_bias=False, dtype=jnp.float32)
        self.variables = {"params": {"kernel": LOW[:, :2]}}

    def __call__(self, x):
        return self.module.bind(self.variables)(x)

    def double(self):
        self.variables["params"]["kernel"] = 2 * self.variables["params"]["kernel"]


def through_the_network(factor=1.0):
    """The relevance for the first output of the network by LRP-0."""
    x, low, high = (np.asarray(array, np.float64) for array in (SAMPLES, LOW, HIGH))
    return factor * x * ((x @ low > 0) * high[:, 0] @ low.T)


def first_logit(output):
    return (output["logits"] if isinstance(output, dict) else output)[:, 0]


@pytest.mark.parametrize("make", [lambda: Typed("float32"), lambda: Typed(None), Transformer, Container])
def test_model_with_a_dtype_is_no_array(make, tmp_path):
    model = make()
    expected = SAMPLES * LOW[:, 0] if isinstance(model, Container) else through_the_network()
    for spelling in (model, model.__call__, functools.partial(model), jax.jit(lambda x: model(x))):
        explanation = relevance(spelling, SAMPLES, first_logit, rules.Zero())
        np.testing.assert_allclose(explanation.relevance, expected, rtol=1e-4, atol=1e-5)
        gradient = jax.grad(lambda x, spelling=spelling: first_logit(lrp(spelling, rules.Zero())(x)).sum())(SAMPLES)
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)
    kinds = [row[1] for row in plan(model, SAMPLES, rules.Zero()).rows]
    assert kinds.count("dense") == 1 + (not isinstance(model, Container))
    np.testing.assert_allclose(ledger(model, SAMPLES, first_logit, rules.Zero()).inputs, expected.sum(), rtol=1e-4)
    stored = explain_dataset(
        model, np.asarray(SAMPLES), tmp_path / "maps", first_logit, rules.Zero(), batch_size=2, progress=False
    )
    np.testing.assert_allclose(stored["relevance"].read().result(), expected, rtol=1e-4, atol=1e-5)
    if not isinstance(model, Transformer):  # whose output has a name
        attribution = baselines.gradient_times_input(model, SAMPLES, 0)
        np.testing.assert_allclose(attribution, expected, rtol=1e-4, atol=1e-5)
    model.double()
    explanation = relevance(model, SAMPLES, first_logit, rules.Zero())
    np.testing.assert_allclose(explanation.relevance, 2 * expected, rtol=1e-4, atol=1e-5)


def test_module_of_linen_that_is_bound():
    module = nn.Dense(2, bias_init=nn.initializers.normal(1.0), dtype=jnp.float32)
    variables = module.init(jax.random.key(0), SAMPLES)
    bound, x = module.bind(variables), SAMPLES
    expected = x * variables["params"]["kernel"][:, 1]
    np.testing.assert_allclose(relevance(bound, x, 1, rules.Zero()).relevance, expected, rtol=1e-5)
    np.testing.assert_allclose(jax.grad(lambda x: lrp(bound, rules.Zero())(x)[:, 1].sum())(x), expected, rtol=1e-5)
    np.testing.assert_allclose(ledger(bound, x, 1, rules.Zero()).bias, 3 * variables["params"]["bias"][1], rtol=1e-4)
    np.testing.assert_allclose(baselines.gradient_times_input(bound, x, 1), expected, rtol=1e-5)


def test_names_of_classes_are_no_arrays():
    """An array of strings is no array of JAX, and stays where it is."""
    network = functools.partial(lambda names, weight, x: x @ weight[:, : len(names)], np.array(["cat", "dog"]), LOW)
    np.testing.assert_allclose(relevance(network, SAMPLES, 0, rules.Zero()).relevance, SAMPLES * LOW[:, 0], rtol=1e-5)


class Two(nn.Module):
    def setup(self):
        self.low, self.high = nn.Dense(6), nn.Dense(2)

    def __call__(self, x):
        return self.high(nn.relu(self.low(x)))


class TwoOfNNX(nnx.Module):
    def __init__(self):
        self.low, self.high = (nnx.Linear(*sizes, rngs=nnx.Rngs(0)) for sizes in ((5, 6), (6, 2)))

    def __call__(self, x):
        return self.high(nnx.relu(self.low(x)))

    def logits(self, x):
        return self(x)


class TwoOfEquinox(eqx.Module):
    low: eqx.nn.Linear
    high: eqx.nn.Linear

    def __init__(self):
        self.low, self.high = (eqx.nn.Linear(*sizes, key=jax.random.key(0)) for sizes in ((5, 6), (6, 2)))

    def __call__(self, x):
        return self.high(jax.nn.relu(self.low(x)))


class TwoThatAreGiven(nn.Module):
    """The names of its parameters come from its fields, and those of the lists within them."""

    body: nn.Module
    high: nn.Module

    def __call__(self, x):
        return self.high(self.body(x))


def two_layers(weights, x):
    return jax.nn.relu(x @ weights["low"]["w"]) @ weights["high"]["w"]


@functools.cache
def spellings():
    weights = {"low": {"w": LOW}, "high": {"w": HIGH}}
    module, of_nnx, of_equinox, instance = Two(), TwoOfNNX(), TwoOfEquinox(), Typed("float32")
    variables = module.init(jax.random.key(0), SAMPLES)
    return {
        "closure": lambda x: two_layers(weights, x),
        "partial": functools.partial(two_layers, weights),
        "partial of JAX": jax.tree_util.Partial(two_layers, weights),
        "partial by keyword": functools.partial(lambda x, weights: two_layers(weights, x), weights=weights),
        "instance": instance,
        "bound method": instance.__call__,
        "NNX": of_nnx,
        "method of NNX": of_nnx.logits,
        "vmap of Equinox": jax.vmap(of_equinox),
        "filter_vmap of Equinox": eqx.filter_vmap(of_equinox),
        "vmap of a lambda": jax.vmap(lambda x: of_equinox(x)),
        "Linen, partial": functools.partial(module.apply, variables),
        "Linen, bound": module.bind(variables),
        "Linen, bound in a lambda": lambda x: module.bind(variables)(x),
        "Linen, bound method": module.bind(variables).__call__,
        "jit of a partial": jax.jit(functools.partial(two_layers, weights)),
        "partial of a jit": functools.partial(jax.jit(two_layers), weights),
        "jit of an instance": jax.jit(instance),
        "checkpoint": jax.checkpoint(lambda x: two_layers(weights, x)),
        "partial of a checkpoint": functools.partial(jax.checkpoint(two_layers), weights),
    }


@pytest.mark.parametrize("spelling", spellings())
def test_layer_has_one_name_in_every_spelling_and_at_every_door(spelling):
    model = spellings()[spelling]
    composite = [(composites.name("^low$"), rules.Epsilon()), (composites.name("^high$"), rules.Zero())]
    rows = [(row[0], row[3]) for row in plan(model, SAMPLES, composite).rows if row[1] == "dense"]
    assert [path for path, _ in rows] == ["low", "high"]
    explained = jax.eval_shape(lambda x: relevance(model, x, 0, composite, at=["low", "high"]).at, SAMPLES)
    assert {name: array.shape for name, array in explained.items()} == {"low": (3, 6), "high": (3, 2)}
    jax.eval_shape(jax.grad(lambda x: lrp(model, composite)(x)[:, 0].sum()), SAMPLES)
    assert [row.path for row in ledger(model, SAMPLES, 0, composite).rows if row.kind == "dense"] == ["high", "low"]


@pytest.mark.parametrize("spelling", ["apply", "bound", "bound in a lambda", "bound, once called"])
def test_layers_that_a_module_of_linen_was_given_have_the_names_of_its_parameters(spelling):
    module = TwoThatAreGiven(nn.Sequential([nn.Dense(6), nn.relu]), nn.Dense(2))
    variables = module.init(jax.random.key(0), SAMPLES)
    bound = module.bind(variables)
    if spelling == "bound, once called":
        bound(SAMPLES)
    model = {"apply": functools.partial(module.apply, variables), "bound in a lambda": lambda x: bound(x)}.get(
        spelling, bound
    )
    assert [row[0] for row in plan(model, SAMPLES).rows if row[1] == "dense"] == ["body.layers_0", "high"]


def test_parameters_among_the_arguments_have_the_names_of_those_that_are_held():
    composite = [(composites.name("^low$"), rules.Epsilon()), (composites.name("^high$"), rules.Zero())]
    module, weights = Two(), {"low": {"w": LOW}, "high": {"w": HIGH}}
    variables = module.init(jax.random.key(0), SAMPLES)
    calls = {
        two_layers: (weights, SAMPLES),
        module.apply: (variables, SAMPLES),
        lambda model, x: jax.vmap(model)(x): (TwoOfEquinox(), SAMPLES),
        lambda model, x: model(x): (TwoOfNNX(), SAMPLES),
    }
    for function, arguments in calls.items():
        explained = lrp(function, composite, argnums=1)
        jax.eval_shape(jax.grad(lambda *args, explained=explained: explained(*args)[:, 0].sum(), 1), *arguments)
    explained = functools.partial(lrp(two_layers, composite, argnums=1), weights)
    jax.eval_shape(jax.grad(lambda x: explained(x)[:, 0].sum()), SAMPLES)


def test_weights_of_one_module_have_names_of_their_own():
    step, ends = {"in": LOW, "again": jnp.eye(6)}, [HIGH, jnp.eye(2)]

    def network(weights, x):
        hidden = x @ weights["cell"]["in"]
        for _ in range(2):
            hidden = jnp.tanh(hidden @ weights["cell"]["again"])
        return hidden @ weights["ends"][0] @ weights["ends"][1] @ weights["one"]["w"] @ weights["head"]

    model = functools.partial(network, {"cell": step, "ends": ends, "one": {"w": jnp.eye(2)}, "head": jnp.eye(2)})
    names = [row[0] for row in plan(model, SAMPLES, rules.Epsilon()).rows if row[1] == "dense"]
    assert names == ["cell.in", "cell.again", "cell.again'", "ends.0", "ends.1", "one", "head"]


def newton_schulz(w, steps):
    w = w / jnp.linalg.norm(w)
    for _ in range(steps):
        w = 1.5 * w - 0.5 * w @ (w.T @ w)
    return w


def test_names_of_computed_weights():
    """Each of 40 steps reads the one before four times: 4 ** 40 ways lead to the parameter."""

    def network(weights, x):
        return x @ newton_schulz(weights["low"]["w"], 40) @ weights["high"]["w"]

    start = time.process_time()
    named = functools.partial(network, {"low": {"w": LOW}, "high": {"w": HIGH}})
    assert [row[0] for row in plan(named, SAMPLES, rules.Epsilon()).rows] == ["low", "high"]
    without = functools.partial(network, {"low": {"w": np.asarray(LOW)}, "high": {"w": HIGH}})
    unnamed = plan(lambda x: x @ newton_schulz(LOW, 40), SAMPLES, rules.Epsilon())
    assert [row[0] for row in unnamed.rows] == ["dense_0"]
    assert [row[0] for row in plan(without, SAMPLES, rules.Epsilon()).rows] == ["low", "high"]
    assert time.process_time() - start < 60


def repeated(step, x, times=3000):
    for _ in range(times):
        x = step(x)
    return x


@pytest.mark.parametrize(
    "network",
    [
        lambda x: x @ repeated(lambda w: w * 0.999 + 0.001, LOW, 1500),
        lambda x: x @ LOW + repeated(lambda c: c + 1.0, jnp.zeros(6)),
        lambda x: x @ LOW + repeated(lambda c: jax.lax.add(c, 1.0), jnp.float32(0)),
        lambda x: repeated(lambda h: h * 1.001, x @ LOW),
        lambda x: repeated(lambda h: jax.lax.max(h, 0.0), x @ LOW),
    ],
)
def test_thousands_of_operations_in_a_row(network):
    start = time.process_time()
    assert sum(row[1] == "dense" for row in plan(network, SAMPLES, rules.Epsilon()).rows) == 1
    assert time.process_time() - start < 60


CHAINS = {
    "gelu": (jax.nn.gelu, 600, {"function of 4800 operations": 1}),
    "two kinks": (lambda h: jnp.abs(h) - 1.0, 600, {"abs": 600, "sub": 600}),
    "gate": (lambda h: h * jax.nn.sigmoid(h @ SQUARE), 600, {"gate": 600}),
    "beside a norm": (
        lambda h: h * jnp.abs(h).sum(-1, keepdims=True),
        600,
        {"mul": 600, "abs": 600, "reduce_sum": 600, "broadcast_in_dim": 1200},
    ),
}
SQUARE = jnp.eye(6)


@pytest.mark.parametrize(("step", "times", "kinds"), CHAINS.values(), ids=CHAINS)
def test_hundreds_of_functions_in_a_row(step, times, kinds):
    start = time.process_time()
    rows = plan(lambda x: repeated(step, x @ LOW, times), SAMPLES, rules.Epsilon()).rows
    assert collections.Counter(row[1] for row in rows) == {"dense": 1} | kinds
    assert time.process_time() - start < 30


@pytest.mark.parametrize(("wrap", "times"), [(jax.jit, 150), (jax.checkpoint, 50)])
def test_calls_within_calls(wrap, times):
    def network(x):
        return jax.nn.relu(x @ LOW)

    for _ in range(times):
        network = (lambda inner: lambda x: wrap(inner)(x))(network)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20 * limit)  # for the trace by JAX, which is deep itself
    try:
        closed = jax.make_jaxpr(network)(SAMPLES)
    finally:
        sys.setrecursionlimit(limit)

    def flat(x):
        return jax.core.eval_jaxpr(closed.jaxpr, closed.consts, x)[0]

    expected = SAMPLES * ((SAMPLES @ LOW > 0)[:, :1] * LOW[:, 0])
    np.testing.assert_allclose(relevance(flat, SAMPLES, 0, rules.Zero()).relevance, expected, rtol=1e-4, atol=1e-5)


def test_value_whose_name_is_that_of_several():
    def network(x):
        for weight in (LOW, LOW.T, LOW):
            x = checkpoint_name(jax.nn.relu(x @ weight), "hidden")
        return checkpoint_name(x @ HIGH, "logits")

    for options in ({"at": ["hidden"]}, {"given": {"hidden": jnp.ones(6)}}):
        with pytest.raises(InputError, match=r"'hidden' is the name of 3 values, .*There are: .*logits"):
            relevance(network, SAMPLES, 0, rules.Zero(), **options)
    assert relevance(network, SAMPLES, 0, rules.Zero(), at=["logits"]).at["logits"].shape == (3, 2)


def test_named_value_that_several_biases_are_added_to(float64):
    """It is in two pieces, one for each bias, whose relevance is added up."""
    x, low, high = (np.asarray(array, np.float64) for array in (SAMPLES, LOW, HIGH))

    def network(x):
        z = checkpoint_name(x @ low, "z")
        return jax.nn.relu(z + 0.5) @ high + jax.nn.relu(z - 0.25) @ high[::-1]

    z = x @ low
    expected = z * ((z > -0.5) * high[:, 0] + (z > 0.25) * high[::-1, 0])
    explanation = relevance(network, jnp.asarray(x), 0, rules.Zero(), at=["z"])
    np.testing.assert_allclose(explanation.at["z"], expected, atol=1e-10)
    halved = relevance(network, jnp.asarray(x), 0, rules.Zero(), given={"z": 0.5}).relevance
    np.testing.assert_allclose(halved, explanation.relevance / 2, atol=1e-10)


def test_named_value_inside_of_a_scan():
    def network(x):
        step = lambda h, w: (checkpoint_name(jax.nn.relu(h @ w), "hidden"), None)
        return jax.lax.scan(step, x, jnp.stack([LOW[:, :5], LOW[:, 1:]]))[0] @ LOW

    with pytest.raises(InputError, match=r"'hidden' is inside a scan or a cond"):
        relevance(network, SAMPLES, 0, rules.Zero(), at=["hidden"])


@pytest.mark.sampled(2)
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("samples", [1, 3, 4])
def test_factors_for_hidden_values_have_the_samples_first(axis, samples, float64):
    """Whatever the order of dimensions within the model: they are what `at` returns."""
    x = np.random.default_rng(0).normal(size=(samples, 4, 5))
    low, high = np.asarray(LOW, np.float64), np.asarray(HIGH, np.float64)

    def network(x):
        inner = jax.vmap(lambda x: checkpoint_name(jax.nn.relu(x @ low), "hidden"), out_axes=axis)
        return jnp.moveaxis(inner(x), axis, 0).sum(1) @ high

    whole = relevance(network, x, 0, rules.Zero(), at=["hidden"])
    hidden = np.maximum(np.asarray(x) @ low, 0) * high[:, 0]
    np.testing.assert_allclose(whole.at["hidden"], hidden, atol=1e-10)
    run = functools.partial(relevance, network, x, 0, rules.Zero(), progress=False)
    ones = np.ones_like(whole.at["hidden"])
    mask = np.random.default_rng(1).uniform(size=ones.shape)
    expected = np.asarray(x) * ((np.asarray(x) @ low > 0) * high[:, 0] * mask @ low.T)
    for batch_size in (None, 2):
        np.testing.assert_allclose(run(given={"hidden": ones}, batch_size=batch_size).relevance, whole.relevance)
        found = run(given={"hidden": mask}, batch_size=batch_size, at=["hidden"])
        np.testing.assert_allclose(found.relevance, expected, atol=1e-10)
    np.testing.assert_allclose(jax.jit(lambda x: run(given={"hidden": mask}).relevance)(x), expected, atol=1e-10)
    parts = [np.asarray(run(given={"hidden": np.eye(6)[i]}).relevance) for i in range(6)]
    np.testing.assert_allclose(sum(parts), whole.relevance, atol=1e-10)


def test_factors_under_vmap_of_an_axis_in_the_middle(float64):
    """The samples are last within the model."""
    x, low, high = (jnp.asarray(array, float) for array in (SAMPLES, LOW, HIGH))

    def network(x):
        one = lambda x: jax.nn.relu(x @ low)
        hidden = checkpoint_name(jax.vmap(one, in_axes=1, out_axes=1)(x.T), "hidden")  # of shape (6, samples)
        return jax.vmap(lambda h: h @ high, in_axes=1)(hidden)

    mask = jax.random.uniform(jax.random.key(0), (3, 6))
    found = relevance(network, x, 0, rules.Zero(), given={"hidden": mask}).relevance
    np.testing.assert_allclose(found, x * ((x @ low > 0) * high[:, 0] * mask @ low.T), atol=1e-10)
    with pytest.raises(InputError, match=r"given\['hidden'\] has the shape \(6, 3\), .* to \(3, 6\)"):
        relevance(network, x, 0, rules.Zero(), given={"hidden": mask.T})


def test_table_shows_square_brackets_in_rich():
    console = pytest.importorskip("rich.console")
    network = functools.partial(lambda weights, x: x @ weights["blocks[bold]"]["w"], {"blocks[bold]": {"w": LOW}})
    for shown in (plan(network, SAMPLES, rules.Zero()), ledger(network, SAMPLES, 0, rules.Zero())):
        with console.Console(width=200, file=io.StringIO(), record=True) as terminal:
            terminal.print(shown)
        assert "blocks[bold]" in terminal.export_text()


def test_integers_end_at_their_embedding(float64):
    class Bag(nnx.Module):
        def __init__(self):
            self.embedding = nnx.Embed(7, 4, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
            self.head = nnx.Linear(4, 2, use_bias=False, rngs=nnx.Rngs(1), param_dtype=jnp.float64)

        def __call__(self, tokens):
            return self.head(self.embedding(tokens).mean(1))

    tokens = jnp.array([[1, 2, 3], [4, 4, 0]])
    bag = Bag()
    explanation = relevance(bag, tokens, 1, rules.Zero())
    # Every token adds a third of its embedding's product with the weight.
    expected = (bag.embedding.embedding[...][tokens] @ bag.head.kernel[...])[..., 1] / 3
    np.testing.assert_allclose(explanation.relevance, expected, rtol=1e-9)
    assert [row[0] for row in plan(bag, tokens).layers().rows] == ["embedding", "head"]
    one_hot = lambda tokens: jax.nn.one_hot(tokens, 7).mean(1) @ bag.embedding.embedding[...]
    assert plan(lambda tokens: bag.head(one_hot(tokens)), tokens).layers().rows[-1][0] == "head"


def test_same_shapes_are_compiled_once(network, compiled):
    images = jax.random.normal(jax.random.key(0), (11, 6, 6, 1))  # as many as in no other test
    relevance(network, images, 0, rules.Epsilon())
    assert compiled.count("explain_arrays") == 1
    nnx.update(network, jax.tree.map(lambda value: value * 2, nnx.state(network)))
    second = relevance(network, images + 1, 2, rules.Epsilon())
    assert compiled.count("explain_arrays") == 1
    np.testing.assert_allclose(second.output, network(images + 1), rtol=1e-4, atol=1e-5)
    relevance(network, images[:9], 2, rules.Epsilon())
    assert compiled.count("explain_arrays") == 2


@pytest.mark.parametrize(("number", "target"), [(6, None), (7, 1), (8, [0, 1] * 4)])
def test_an_explanation_is_one_program(compiled, number, target):
    weight, images = np.ones((17, 2), np.float32), np.ones((number, 17), np.float32)  # in no other test
    relevance(lambda x: x @ weight, images, target, rules.Epsilon())
    assert compiled == ["explain_arrays"]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (3, "from 0 to 2"),
        (-1, "from 0 to 2"),
        ([0, 1], "5 samples, but 2 targets"),
        (0.5, "integer"),
        ("every", "'every' is none"),
        (np.zeros((5, 4)), r"\(5, 3\), but it has \(5, 4\)"),
    ],
)
def test_target_that_does_not_fit(network, images, target, message):
    with pytest.raises(InputError, match=message):
        relevance(network, images, target)


def test_output_without_classes_needs_a_function(images):
    with pytest.raises(InputError, match="function of the output"):
        relevance(lambda x: x.sum((1, 2, 3)), images, 0)


def test_unknown_hidden_layer_lists_the_names(network, images):
    with pytest.raises(InputError, match=r"'third' does not exist. There are: first, second, features, head"):
        relevance(network, images, 0, at=["third"])


def test_output_that_does_not_depend_on_the_input(images):
    with pytest.raises(ModelError, match="nothing is to explain"):
        relevance(lambda x: jnp.ones((5, 2)) * jax.lax.stop_gradient(x).sum(), images, 0)


def test_all_errors_derive_from_one():
    assert all(issubclass(error, LRPError) for error in (InputError, composites.SelectorError))


def test_plan_shows_every_layer(network, images):
    table = plan(network, images, composites.EpsilonPlusFlat())
    for shown in (table, table.operations()):
        text, page = str(shown), shown._repr_html_()
        for expected in ("first", "second", "head", "Flat(", "ZPlus(", "Epsilon(", "not negative"):
            assert expected in text
            assert expected in page
        assert ("reduce_window_max" in text, "relu" in page) == (shown is not table,) * 2
    assert table.rows[0][:3] == ("first", "conv", "(5, 6, 6, 4)")
    assert [row[0] for row in table.layers().rows] == ["first", "second", "head"]
    assert table.operations().rows == table.rows
    assert f"Plan: 3 layers; .operations() shows {len(table.rows) - 3} more rows" in str(table)


def test_plan_shows_products_that_are_halved_and_treatments_of_the_users_own():
    attention = lambda x: jax.nn.softmax((x @ LOW) @ (x @ LOW).mT) @ jnp.tanh(x @ LOW)
    table = plan(attention, SAMPLES[None], composites.AttnLRP())
    assert [row[1] for row in table.layers().rows] == ["dense", "dot_general", "dot_general"]
    assert [row[3] for row in table.layers().rows[1:]] == ["half to each factor"] * 2
    assert str(table).startswith("Plan: 1 layer, 2 products of which each factor gets a part; .operations() shows")
    held = plan(attention, SAMPLES[None], composites.CPLRP())
    assert [row[1] for row in held.layers().rows] == ["dense"]
    own = composites.with_treatment(composites.CPLRP(), "tanh", treatments.proportional)
    assert [row[1] for row in plan(attention, SAMPLES[None], own).layers().rows] == ["dense", "tanh"]
    parts = plan(lambda x: (x @ LOW).prod(-1, keepdims=True), SAMPLES, rules.Zero())
    assert [row[3] for row in parts.layers().rows[1:]] == ["the same part to each factor"]
    assert str(plan(lambda x: x @ LOW, SAMPLES, rules.Zero())).startswith("Plan: 1 layer\n")


LEDGER_RULES = {
    "zero": rules.Zero(),
    "epsilon": rules.Epsilon(0.1),
    "gamma": rules.Gamma(),
    "alpha-beta": rules.AlphaBeta(),
    "w^2, bias": rules.WSquare(bias="absorb"),
    "ignored": rules.Epsilon(0.1, bias="ignore"),
    "composite": composites.EpsilonGammaBox(-4.0, 4.0),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", LEDGER_RULES)
def test_ledger_closes(float64, name):
    network, x = Network(jnp.float64), jax.random.normal(jax.random.key(0), (2, 6, 6, 1))
    book = ledger(network, x, 1, LEDGER_RULES[name])
    maps = relevance(network, x, 1, LEDGER_RULES[name])
    np.testing.assert_allclose(book.explained, maps.output[:, 1].sum())
    np.testing.assert_allclose(book.inputs, maps.relevance.sum())
    assert abs(book.unaccounted) < 1e-9 * abs(book.explained)
    assert [row.path for row in book.rows if row.kind in ("dense", "conv")] == ["head", "second", "first"]


def test_ledger_names_the_layer_that_lost_most():
    # z = 2 + 3 + 10: the bias keeps 10 of 15.
    weight = jnp.array([[1.0], [3.0]])
    book = ledger(lambda x: x @ weight + 10.0, jnp.array([[2.0, 1.0]]), 0, rules.Zero())
    assert (book.explained, book.inputs, book.bias) == (15.0, 5.0, 10.0)
    assert "Most was lost in dense_0 (dense): 10 to the bias" in book.verdict
    # With epsilon = 15 the stabiliser takes half of everything.
    book = ledger(lambda x: x @ weight + 10.0, jnp.array([[2.0, 1.0]]), 0, rules.Epsilon(15.0))
    assert (book.inputs, book.bias, book.stabilizer) == (2.5, 5.0, 7.5)
    assert "sum" in str(book)


@pytest.mark.parametrize(("rule", "bias"), [(rules.Gradient(), 2.0), (rules.Pass(), 0.0)], ids=["gradient", "pass"])
def test_ledger_of_a_rule_that_divides_nothing(rule, bias):
    # z = (1 + 3 + 2, 2): by the gradient the bias keeps 2 of the 6 of the first output; passed on, it keeps nothing.
    weight = jnp.array([[1.0, 2.0], [3.0, 0.0]])
    network = lambda x: x @ weight + jnp.array([2.0, 0.0])
    book = ledger(network, jnp.array([[1.0, 1.0]]), 0, rule)
    assert (book.explained, book.inputs, book.bias) == (6.0, 6.0 - bias, bias)


def test_ledger_accounts_for_dropped_branches(float64):
    # Concatenation with a constant: its share, 3 of 3 + 4, stays with it.
    network = lambda x: jnp.concatenate([x, jnp.full((1, 1), 3.0)], 1).sum(1, keepdims=True)
    book = ledger(network, jnp.array([[4.0]]), 0, rules.Zero())
    assert (book.explained, book.inputs, book.constants, book.unaccounted) == (7.0, 4.0, 3.0, 0.0)


def test_ledger_of_all_classes_is_refused(network, images):
    with pytest.raises(InputError, match="one target at a time"):
        ledger(network, images, "all")


def test_checkpointed_layers_have_the_relevance_of_plain_ones(float64):
    first, second = jax.random.normal(jax.random.key(0), (4, 6)), jax.random.normal(jax.random.key(1), (6, 3))
    x = jax.random.normal(jax.random.key(2), (5, 4))

    def block(x):
        return jax.nn.relu(x @ first + 0.1)

    def network(block):
        return lambda x: jax.nn.relu(checkpoint_name(block(x), "features") - 0.05) @ second

    composite = [(composites.first, rules.ZBox(-4.0, 4.0)), (composites.any_layer, rules.Gamma())]
    plain = relevance(network(block), x, 1, composite, at=["features"])
    checkpointed = relevance(network(jax.checkpoint(block)), x, 1, composite)
    on_the_way = relevance(network(jax.checkpoint(block)), x, 1, composite, at=["features"])
    np.testing.assert_allclose(checkpointed.relevance, plain.relevance, rtol=1e-12)
    np.testing.assert_allclose(on_the_way.relevance, plain.relevance, rtol=1e-12)
    np.testing.assert_allclose(on_the_way.at["features"], plain.at["features"], rtol=1e-12)


def test_ledger_of_numpy_arrays_within_the_bounds_of_a_box():
    weights, x = np.array([[1.0, -2.0], [3.0, 1.0]], np.float32), np.array([[0.25, 0.5]], np.float32)
    account = ledger(lambda x: x @ weights, x, 0, [(composites.first, rules.ZBox(0.0, 1.0))])
    assert account.inputs == pytest.approx(0.25 + 3 * 0.5, rel=1e-5)


def cancelling(x):
    """The difference of two inputs, and a millionth of one: nearly all cancels."""
    return x @ jnp.array(WEIGHT_THAT_CANCELS)


WEIGHT_THAT_CANCELS = np.array([[1.0], [-1.0 + 1e-6]])


def test_relevance_that_explodes_is_reported_with_the_place(float64):
    # R = (1, -1 + 1e-6) from z = 1e-6: two million times as much absolute relevance as there was.
    x = jnp.array([[3.0, 1.0], [1.0, 1.0]])
    with pytest.warns(LRPWarning, match=r"sample 1 has 2e\+06 times.*dense_0 \(dense\), where it grows 2e\+06-fold"):
        explanation = relevance(cancelling, x, 0, rules.Zero())
    np.testing.assert_allclose(explanation.growth, [2.0, 2e6], rtol=1e-3)
    with pytest.warns(LRPWarning, match="sample 1"):
        batched = relevance(cancelling, x, 0, rules.Zero(), batch_size=1, progress=False)
    np.testing.assert_array_equal(batched.growth, explanation.growth)


NEIGHBOURS = jnp.array([[0.0, 1.0], [1.0, 0.0]])


@pytest.mark.parametrize(("target", "growth"), [(0, [4e6, 1.0]), (jnp.eye(2)[:, :1], [2e6, 2e6])], ids=["all", "one"])
def test_relevance_that_explodes_in_a_graph_whose_nodes_are_no_samples(float64, target, growth):
    # Each node reads the other one. The first has z = 1e-6 and hands on (1, -1 + 1e-6), the second 3 - 1.
    nodes = jnp.array([[3.0, 1.0], [1.0, 1.0]])
    with pytest.warns(LRPWarning, match=r"sample 0 has \de\+06 times.*dense_1 \(dense\), where it grows 2e\+06-fold"):
        explanation = relevance(lambda x: cancelling(NEIGHBOURS @ x), nodes, target, rules.Zero())
    np.testing.assert_allclose(explanation.growth, growth, rtol=1e-3)


def test_growth_of_nodes_of_which_one_is_explained(float64):
    # What is explained is 2, and 3 and -1 arrive, at the other node.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, nodes = lambda x: cancelling(NEIGHBOURS @ x), jnp.array([[3.0, 1.0], [1.0, 1.0]])
        explanation = relevance(model, nodes, jnp.array([[0.0], [1.0]]), rules.Zero())
    np.testing.assert_allclose(explanation.growth, [2.0, 2.0], rtol=1e-3)


def test_growth_is_known_under_jit_and_silent(float64):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explanation = jax.jit(lambda x: relevance(cancelling, x, 0, rules.Zero()))(jnp.array([[1.0, 1.0]]))
    np.testing.assert_allclose(explanation.growth, [2e6], rtol=1e-3)


def test_relevance_that_a_bias_keeps_does_not_explode(float64):
    # z = 3000 - 2999.999, of which the input brings 3000 and the bias takes nearly all back.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explanation = relevance(lambda x: x @ BIASED[0] + BIASED[1], jnp.array([[3000.0]]), 0, rules.Zero())
    assert explanation.growth[0] > 1e5


BIASED = jnp.ones((1, 1)), -2999.999


def test_ledger_refuses_modified_gradients():
    with pytest.raises(InputError, match="no account of guided backpropagation"):
        ledger(cancelling, jnp.ones((1, 2)), 0, composites.GuidedBackprop())


def test_ledger_of_a_treatment_that_returns_nonsense_does_not_close():
    nonsense = treatments.Treatment("ten times too much", {Form.RATIO: lambda call: (10 * call.cotangents[0],)})
    rules_with_it = composites.with_treatment(rules.Zero(), "tanh", nonsense)
    book = ledger(lambda x: jnp.tanh(x @ BIASED[0]), jnp.array([[0.5]]), 0, rules_with_it)
    (row,) = (row for row in book.rows if row.kind == "tanh")
    assert row.growth > 9
    assert abs(book.unaccounted) < 1e-4 * abs(row.passed_on)


HIDDEN_WEIGHTS = np.random.default_rng(5).normal(size=(5, 4)), np.random.default_rng(6).normal(size=(4, 2))


def of_one_sample(x):
    low, high = map(jnp.asarray, HIDDEN_WEIGHTS)
    return high.T @ checkpoint_name(jax.nn.relu(low.T @ x), "hidden")


@pytest.mark.parametrize("number", [3, 4])  # as many as there are features, too
@pytest.mark.parametrize("batch_size", [None, 2])
def test_hidden_values_under_vmap_have_the_samples_first(float64, number, batch_size):
    x = np.random.default_rng(7).normal(size=(number, 5))
    expected = np.maximum(x @ HIDDEN_WEIGHTS[0], 0)[..., None] * HIDDEN_WEIGHTS[1]
    options = {"at": ["hidden"], "batch_size": batch_size, "progress": False}
    one = relevance(jax.vmap(of_one_sample), jnp.asarray(x), 1, rules.Zero(), **options)
    np.testing.assert_allclose(one.at["hidden"], expected[..., 1], rtol=1e-9, atol=1e-12)
    every = relevance(jax.vmap(of_one_sample), jnp.asarray(x), "all", rules.Zero(), **options)
    np.testing.assert_allclose(every.at["hidden"], np.moveaxis(expected, -1, 0), rtol=1e-9, atol=1e-12)
    within = jax.jit(lambda x: relevance(jax.vmap(of_one_sample), x, 1, rules.Zero(), at=["hidden"]).at["hidden"])
    np.testing.assert_allclose(within(x), expected[..., 1], rtol=1e-9, atol=1e-12)


def test_hidden_values_of_a_model_for_one_number_of_samples_stay_as_they_are(float64):
    model = lambda x: jax.vmap(of_one_sample)(x.reshape(4, 5))
    found = relevance(model, jnp.ones((4, 5)), 1, rules.Zero(), at=["hidden"]).at["hidden"]
    assert found.shape == (4, 4)


def mixed_input_network():
    weight, table = jax.random.normal(jax.random.key(1), (4, 3)), jax.random.normal(jax.random.key(2), (7, 3))

    def network(x):
        looked_up = checkpoint_name(table[x["tokens"]], "looked up").mean(1)
        return jax.nn.relu(x["parts"][0] @ weight + looked_up).astype(x["parts"][1].dtype) + x["parts"][1]

    x = {
        "tokens": jnp.array([[1, 2], [6, 0]]),
        "parts": (jnp.ones((2, 4)), jnp.ones((2, 3), jnp.bfloat16)),
    }
    return network, x


SAVED_RULES = [
    rules.Gamma(0.1),
    composites.EpsilonGammaBox(-1.0, 2.0, epsilon=0.3),
    composites.Composite([(~composites.first | composites.index[0], rules.Epsilon(0.1, bias="ignore"))]),
]


@pytest.mark.parametrize("composite", SAVED_RULES, ids=["rule", "preset", "selectors"])
def test_explanation_goes_through_files_pickles_and_programs(composite, tmp_path):
    network, x = mixed_input_network()
    explanation = relevance(network, x, 1, composite, at=["looked up"])
    explanation.save(tmp_path / "file.lrp")
    assert [path.name for path in tmp_path.iterdir()] == ["file.lrp"]
    loaded = Explanation.load(tmp_path / "file.lrp")
    for found in (loaded, pickle.loads(pickle.dumps(explanation)), copy.deepcopy(explanation)):
        assert jax.tree.structure(found) == jax.tree.structure(explanation)
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(explanation), strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
        assert found.rules == explanation.rules == composites.as_composite(composite)
    in_program = jax.jit(lambda x: relevance(network, x, 1, composite, at=["looked up"]))(x)
    assert in_program.rules == explanation.rules
    first = jax.tree.map(lambda array: array[:1], explanation)
    assert (first.relevance["tokens"].shape, first.rules) == ((1, 2), explanation.rules)


def test_explanation_with_a_traced_number_holds_it_as_an_array(tmp_path):
    weight, x = jax.random.normal(jax.random.key(1), (4, 3)), jnp.ones((2, 4))
    explain = lambda gamma: relevance(lambda x: jax.nn.relu(x @ weight), x, 0, rules.Gamma(gamma))
    explanation = jax.jit(explain)(0.5)
    np.testing.assert_allclose(explanation.relevance, explain(0.5).relevance, rtol=1e-5, atol=1e-6)
    assert explanation.rules == explain(0.5).rules
    again = relevance(lambda x: jax.nn.relu(x @ weight), x, 0, explanation.rules)
    np.testing.assert_allclose(again.relevance, explanation.relevance, rtol=1e-5, atol=1e-6)
    explanation.save(tmp_path / "file")
    assert Explanation.load(tmp_path / "file").rules == explain(0.5).rules
    several = jax.vmap(explain)(jnp.array([0.5, 2.0, 8.0]))
    assert (several.relevance.shape, several.rules.rules[0][1].gamma.shape) == ((3, 2, 4), (3,))


def test_a_file_is_read_by_numpy_alone(tmp_path):
    network, x = mixed_input_network()
    explanation = relevance(network, x, 1, rules.Gamma(0.1), at=["looked up"])
    explanation.save(tmp_path / "file.npz")
    program = """if True:
        import json, sys
        import numpy as np
        archive = np.load(sys.argv[1])
        structure = json.loads(archive["structure"].item())
        found = {"version": structure["lrp_jax"], "entries": sorted(set(archive) - {"structure"})}
        found["tokens"] = archive["relevance['tokens']"].tolist()
        found["half precision"] = archive["relevance['parts'][1]"].tolist()
        found["gamma"] = structure["content"]["Explanation"]["rules"]["composites.Composite"]["rules"]["tuple"][0]
        assert "jax" not in sys.modules and "ml_dtypes" not in sys.modules
        print(json.dumps(found))
    """
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, tmp_path / "file.npz"], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert found["version"] == 1
    assert {"output", "growth", "at['looked up']", "x['parts'][0]", "relevance['parts'][1]"} <= set(found["entries"])
    np.testing.assert_array_equal(np.float32(found["tokens"]), explanation.relevance["tokens"])
    assert explanation.relevance["parts"][1].dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.float32(found["half precision"]), explanation.relevance["parts"][1])
    assert "0.1" in str(found["gamma"])


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "int4", "uint4"])
def test_dtypes_that_numpy_lacks_are_kept(name, tmp_path):
    values = np.array([-3, 0, 1, 7] if name != "uint4" else [0, 1, 7, 15]).astype(jnp.dtype(name))
    Explanation(values, None).save(tmp_path / "file")
    with np.load(tmp_path / "file") as archive:
        np.testing.assert_array_equal(archive["output"], values.astype(np.float32))
    loaded = Explanation.load(tmp_path / "file").output
    assert loaded.dtype == name
    np.testing.assert_array_equal(loaded, values)


def test_names_that_no_entry_can_have_are_kept(tmp_path):
    maps = {"a/../b": jnp.ones(2), "c\\d": jnp.zeros(3), "é": jnp.ones(1), "x\0": jnp.ones(4)}
    Explanation(jnp.ones(1), maps).save(tmp_path / "file")
    loaded = Explanation.load(tmp_path / "file").relevance
    assert {name: array.shape for name, array in loaded.items()} == {name: a.shape for name, a in maps.items()}


def test_double_precision_is_kept_where_jax_would_cut_it_off(tmp_path):
    Explanation(np.array([0.1, np.nan]), {"x": [np.arange(3), (), None]}).save(tmp_path / "file")
    loaded = Explanation.load(tmp_path / "file")
    np.testing.assert_array_equal(loaded.output, np.array([0.1, np.nan]))
    assert (loaded.output.dtype, loaded.relevance["x"][0].dtype) == (np.float64, np.int64)
    assert loaded.relevance["x"][1:] == [(), None]


@dataclass(frozen=True)
class OwnRule(rules.Zero):
    """A rule of a user's own."""


Pair = collections.namedtuple("Pair", "left right")


@pytest.mark.parametrize(
    ("whole", "message"),
    [
        (OwnRule(), r"OwnRule cannot be saved: it is OwnRule\(bias='absorb'\)"),
        (composites.as_composite(OwnRule()), r"Composite.rules\[0\]\[1\] cannot be saved: it is OwnRule"),
        (
            composites.Composite([(lambda layer: True, rules.Zero())]),
            r"Composite.rules\[0\]\[0\].matches cannot be saved: it is <function",
        ),
        (
            composites.with_treatment(rules.Zero(), "tanh", treatments.Treatment("own")),
            r"Composite.treatments\['tanh'\] cannot be saved",
        ),
        (Explanation(None, Pair(1, 2)), r"Explanation.relevance cannot be saved: it is Pair\(left=1, right=2\)"),
        (Explanation(None, {"a": jax.random.key(0)}), r"relevance\['a'\] cannot be saved: .* random key.*key_data"),
        (Explanation(np.array(["a"]), None), "Explanation.output cannot be saved: .*not of numbers"),
    ],
    ids=["rule", "composite", "selector", "treatment", "named tuple", "key", "strings"],
)
def test_what_cannot_be_saved_is_named(whole, message, tmp_path):
    with pytest.raises(InputError, match=message):
        whole.save(tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_what_is_traced_cannot_be_saved(tmp_path):
    with pytest.raises(InputError, match=r"Explanation.output cannot be saved: it is traced.*outside of jax.jit"):
        jax.jit(lambda x: Explanation(x, x).save(tmp_path / "file"))(jnp.ones(2))


def test_file_holds_public_names_alone(tmp_path):
    rule = composites.Composite([(composites.first, rules.Gamma(0.1))], input_form=Form.RATIO)
    Explanation(np.ones(2), np.ones(2), rules=rule).save(tmp_path / "file")
    with np.load(tmp_path / "file") as archive:
        text = archive["structure"].item().decode()
    names = set(re.findall(r'"([\w.]*\b[A-Z]\w*)":', text))
    assert names == {
        "Explanation",
        "Form",
        "composites.Composite",
        "composites.Predicate",
        "composites.Selector",
        "rules.Gamma",
    }


def test_path_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "missing" / "file", str(tmp_path / "folder")):
        with pytest.raises(StoreError, match=f"{re.escape(str(path))}' cannot be written"):
            rules.Zero().save(path)
    assert [path.name for path in tmp_path.rglob("*")] == ["folder"]


def written(path, **arrays):
    with path.open("wb") as file:
        np.savez(file, **arrays)


def structure(content, version=1):
    return json.dumps({"lrp_jax": version, "content": content})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-200]), "damaged"),
        (lambda path: path.write_bytes(b""), "damaged"),
        (lambda path: path.write_bytes(pickle.dumps([1])), "damaged"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"Gamma", b"Gamna")), "damaged"),
        (lambda path: written(path, relevance=np.ones(2)), "no file that save has written"),
        (lambda path: written(path, structure=structure({"os.system": "ls"})), "no file that save has written"),
        (lambda path: written(path, structure=structure({"rules.jax": {}})), "no file that save has written"),
        (lambda path: written(path, structure=structure({"rules.Gamma": {"gamma": -1}})), "damaged"),
        (lambda path: written(path, structure=structure({"new": []}, version=2)), "a later version of lrp_jax"),
        (lambda path: rules.Zero().save(path), "holds a Zero, and no Gamma: call Zero.load"),
        (lambda path: path.unlink(), "There is no file"),
        (lambda path: (path.unlink(), path.mkdir()), "no file that save has written"),
    ],
    ids=["short", "empty", "pickle", "bit", "archive", "code", "module", "number", "later", "other", "none", "folder"],
)
def test_file_that_is_none_is_refused(spoil, message, tmp_path):
    path = tmp_path / "file"
    rules.Gamma(0.1).save(path)
    spoil(path)
    with pytest.raises(StoreError, match=f"{re.escape(str(path))}.*{message}|{message} .*{re.escape(str(path))}"):
        rules.Gamma.load(path)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("bias", ["absorb", "ignore", "distribute"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_ledger_says_where_there_are_no_contributions_of_a_sign(float64, samples, bias, sign):
    # All contributions have one sign: alpha-beta (2, 1) has nothing to subtract from, or nothing to double.
    weight, x = sign * jnp.array([[1.0], [3.0]]), jnp.array([[2.0, 1.0], [1.0, 0.5], [4.0, 2.0]])[:samples]
    network = lambda x: x @ weight
    book = ledger(network, x, 0, rules.AlphaBeta(2.0, 1.0, bias=bias))
    missing = -book.explained if sign > 0 else 2 * book.explained
    np.testing.assert_allclose(book.not_conserved, missing, rtol=1e-9)
    assert abs(book.stabilizer) < 1e-5 * abs(book.explained)
    assert f"{missing:.6g}, for which there are no contributions of that sign." in book.verdict
    assert abs(book.unaccounted) < 1e-9 * abs(book.explained)
    of_zplus = ledger(network, x, 0, rules.ZPlus(bias=bias))
    np.testing.assert_allclose(of_zplus.not_conserved, 0.0 if sign > 0 else book.explained, rtol=1e-9)


def test_ledger_keeps_the_stabilizer_apart_from_what_has_no_contributions(float64):
    # The first output has both signs, the second has positive ones alone; stabilizer 1: 2 R zp/(zp+1) - R zn/(zn-1).
    weight, x = jnp.array([[1.0, 1.0], [-3.0, 3.0]]), jnp.array([[2.0, 1.0]])
    book = ledger(lambda x: x @ weight, x, lambda output: output.sum(), rules.AlphaBeta(2.0, 1.0, stabilizer=1.0))
    passed_on = -1 * (2 * 2 / 3 - 3 / 4) + 5 * 2 * 5 / 6
    np.testing.assert_allclose(book.inputs, passed_on)
    np.testing.assert_allclose(book.not_conserved, -5.0)
    np.testing.assert_allclose(book.stabilizer, 4.0 - passed_on + 5.0)
