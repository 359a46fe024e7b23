"""What a model, a target, `reduce`, a rule or a treatment reads is read at every call, and compiled only once."""

import functools
import itertools
import types
import weakref
from dataclasses import dataclass
from tempfile import mkdtemp
from typing import NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from keras_like import Dense
from nightly import NIGHTLY

from lrp_jax import baselines, ledger, lrp, plan, relevance, rules, treatments
from lrp_jax.composites import Composite, Selector, any_layer, conv, first, index, last, name, with_treatment
from lrp_jax.errors import StoreError
from lrp_jax.evaluation import pixel_flipping
from lrp_jax.explain_dataset import explain_dataset

# Every model is linear: x @ w. What the functions of the library return follows by hand.
X = np.array([[1.0, 2.0]], np.float32)
OLD, NEW = np.array([[1.0], [1.0]], np.float32), np.array([[5.0], [-3.0]], np.float32)


class Held(NamedTuple):
    """A model, and what changes its weight."""

    model: object
    change: object


def in_a_dictionary():
    weights = {"w": jnp.asarray(OLD)}
    return Held(lambda x: x @ weights["w"], lambda w: weights.update(w=jnp.asarray(w)))


def in_a_list_of_dictionaries():
    weights = [{"w": jnp.asarray(OLD)}]
    return Held(lambda x: x @ weights[0]["w"], lambda w: weights[0].update(w=jnp.asarray(w)))


def in_a_variable():
    weight = jnp.asarray(OLD)

    def change(w):
        nonlocal weight
        weight = jnp.asarray(w)

    return Held(lambda x: x @ weight, change)


GLOBAL = jnp.asarray(OLD)


def in_a_global():
    def change(w):
        global GLOBAL
        GLOBAL = jnp.asarray(w)

    return Held(lambda x: x @ GLOBAL, change)


settings = types.ModuleType("settings")


def in_a_module_of_python():
    settings.weight = jnp.asarray(OLD)
    return Held(lambda x: x @ settings.weight, lambda w: setattr(settings, "weight", jnp.asarray(w)))


def in_numpy():
    weight = OLD.copy()
    return Held(lambda x: x @ weight, lambda w: np.copyto(weight, w))


def in_numpy_of_double_precision():
    weight = OLD.astype(np.float64)
    return Held(lambda x: x @ weight, lambda w: np.copyto(weight, w))


class Plain:
    def __init__(self):
        self.w = jnp.asarray(OLD)

    def __call__(self, x):
        return x @ self.w


def in_an_attribute():
    model = Plain()
    return Held(model, lambda w: setattr(model, "w", jnp.asarray(w)))


def behind_a_bound_method():
    model = Plain()
    return Held(model.__call__, lambda w: setattr(model, "w", jnp.asarray(w)))


def in_an_attribute_of_an_attribute():
    model = types.SimpleNamespace(part=Plain())
    return Held(lambda x: model.part(x), lambda w: setattr(model.part, "w", jnp.asarray(w)))


class OfTheClass:
    w = jnp.asarray(OLD)

    def __call__(self, x):
        return x @ self.w


def in_an_attribute_of_the_class():
    return Held(OfTheClass(), lambda w: setattr(OfTheClass, "w", jnp.asarray(w)))


@dataclass
class Record:
    w: jax.Array

    def __call__(self, x):
        return x @ self.w


def in_a_dataclass():
    model = Record(jnp.asarray(OLD))
    return Held(model, lambda w: setattr(model, "w", jnp.asarray(w)))


def in_a_module_of_nnx():
    model = nnx.Linear(2, 1, use_bias=False, rngs=nnx.Rngs(0))
    model.kernel[...] = jnp.asarray(OLD)

    def change(w):
        model.kernel[...] = jnp.asarray(w)

    return Held(model, change)


def in_a_module_of_nnx_in_a_lambda():
    model, change = in_a_module_of_nnx()
    return Held(lambda x: model(x), change)


def in_variables_of_linen():
    module, variables = nn.Dense(1, use_bias=False), {"params": {"kernel": jnp.asarray(OLD)}}
    return Held(lambda x: module.apply(variables, x), lambda w: variables.update(params={"kernel": jnp.asarray(w)}))


def in_a_model_of_keras():
    model = Dense("dense", OLD)
    return Held(model, model.variables[0].assign)


def in_a_model_of_keras_in_a_lambda():
    model, change = in_a_model_of_keras()
    return Held(lambda x: model(x), change)


def in_a_partial():
    weights = {"w": jnp.asarray(OLD)}
    return Held(
        functools.partial(lambda weights, x: x @ weights["w"], weights), lambda w: weights.update(w=jnp.asarray(w))
    )


def in_a_module_of_equinox_in_a_box():
    linear = eqx.nn.Linear(2, 1, use_bias=False, key=jax.random.key(0))
    box = [eqx.tree_at(lambda linear: linear.weight, linear, jnp.asarray(OLD.T))]

    def change(w):
        box[0] = eqx.tree_at(lambda linear: linear.weight, linear, jnp.asarray(w.T))

    return Held(lambda x: jax.vmap(box[0])(x), change)


def in_a_function_under_jit():
    weights = {"w": jnp.asarray(OLD)}
    return Held(
        lambda x: jax.jit(lambda x: jax.jit(lambda x: x @ weights["w"])(x))(x),
        lambda w: weights.update(w=jnp.asarray(w)),
    )


# JAX keeps what it has traced of a function that a scan, a cond or a checkpoint runs: here it is new for each call.


def in_a_branch_under_jit():
    weights = {"w": jnp.asarray(OLD)}

    def model(x):
        product = jax.jit(lambda x: x @ weights["w"])
        return jax.lax.cond(x.sum() > -100, lambda x: product(x), lambda x: 0 * product(x), x)

    return Held(model, lambda w: weights.update(w=jnp.asarray(w)))


def in_a_loop_under_jit():
    weights = {"w": jnp.asarray(OLD)}

    def model(x):
        step = lambda carry, x: (carry, jax.jit(lambda x: x @ weights["w"])(x))
        return jax.lax.scan(step, 0.0, x)[1]

    return Held(model, lambda w: weights.update(w=jnp.asarray(w)))


def in_a_checkpoint_under_jit():
    weights = {"w": jnp.asarray(OLD)}
    return Held(
        lambda x: jax.checkpoint(lambda x: jax.jit(lambda x: x @ weights["w"])(x))(x),
        lambda w: weights.update(w=jnp.asarray(w)),
    )


def in_a_function_with_its_own_derivative():
    weights = {"w": jnp.asarray(OLD)}

    def model(x):
        product = jax.custom_vjp(lambda x: x @ weights["w"])
        product.defvjp(lambda x: (x @ weights["w"], None), lambda _, cotangent: (cotangent @ weights["w"].T,))
        return product(x)

    return Held(model, lambda w: weights.update(w=jnp.asarray(w)))


HOLDERS = [
    in_a_dictionary,
    in_a_list_of_dictionaries,
    in_a_variable,
    in_a_global,
    in_a_module_of_python,
    in_numpy,
    in_numpy_of_double_precision,
    in_an_attribute,
    behind_a_bound_method,
    in_an_attribute_of_an_attribute,
    in_an_attribute_of_the_class,
    in_a_dataclass,
    in_a_module_of_nnx,
    in_a_module_of_nnx_in_a_lambda,
    in_variables_of_linen,
    in_a_model_of_keras,
    in_a_model_of_keras_in_a_lambda,
    in_a_partial,
    in_a_module_of_equinox_in_a_box,
    in_a_function_under_jit,
    in_a_branch_under_jit,
    in_a_loop_under_jit,
    in_a_checkpoint_under_jit,
    in_a_function_with_its_own_derivative,
]


def explain_to_a_new_store(model):
    return explain_dataset(model, X, mkdtemp(), 0, rules.Zero(), progress=False)["relevance"].read().result()


# For each way to explain, the same by hand.
DOORS = {
    "relevance": (lambda model: relevance(model, X, 0, rules.Zero()).relevance, lambda w: X * w.T),
    "relevance in batches": (
        lambda model: relevance(model, jnp.tile(X, (3, 1)), 0, rules.Zero(), batch_size=2, progress=False).relevance,
        lambda w: np.tile(X * w.T, (3, 1)),
    ),
    "ledger": (lambda model: [[ledger(model, X, 0, rules.Zero()).inputs]], lambda w: X @ w),
    "lrp": (lambda model: jax.grad(lambda x: lrp(model, rules.Zero())(x).sum())(X), lambda w: X * w.T),
    "gradient": (lambda model: baselines.gradient(model, X, 0), lambda w: w.T),
    "gradient_times_input": (lambda model: baselines.gradient_times_input(model, X, 0), lambda w: X * w.T),
    "integrated_gradients": (
        lambda model: baselines.integrated_gradients(model, X, 0, steps=2),
        lambda w: X * w.T,
    ),
    "smoothgrad": (
        lambda model: baselines.smoothgrad(model, X, 0, key=jax.random.key(0), samples=2),
        lambda w: w.T,
    ),
    "occlusion": (lambda model: baselines.occlusion(model, X, 0, window=1), lambda w: X * w.T),
    "mean_replacement": (lambda model: baselines.mean_replacement(model, X, 0), lambda w: (X - X.mean()) * w.T),
    "pixel_flipping": (
        lambda model: pixel_flipping(model, X, X, 0, steps=2),
        lambda w: np.array([[X[0] @ w[:, 0], X[0, 0] * w[0, 0], 0.0]]),
    ),
    "explain_dataset": (explain_to_a_new_store, lambda w: X * w.T),
}


@pytest.mark.sampled(13)
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("holder", HOLDERS, ids=lambda holder: holder.__name__.replace("_", " "))
def test_weights_are_those_of_this_moment(holder, door, compiled):
    explain, by_hand = DOORS[door]
    model, change = holder()
    change(OLD)
    np.testing.assert_allclose(explain(model), by_hand(OLD), rtol=1e-5, atol=1e-6)
    compiled.clear()
    change(NEW)
    np.testing.assert_allclose(explain(model), by_hand(NEW), rtol=1e-5, atol=1e-6)
    if door not in ("lrp", "explain_dataset"):  # the first is not compiled as a whole, the second creates arrays
        assert [program for program in compiled if program not in ("dot_general", "matmul")] == []


def test_models_of_the_same_text_hold_their_own_arrays():
    def model(seed):
        weight = jax.random.normal(jax.random.key(seed), (2, 3))
        return weight, lambda x: x @ weight

    for weight, network in map(model, range(3)):
        np.testing.assert_allclose(relevance(network, X, 1, rules.Zero()).relevance, X * weight[:, 1], rtol=1e-5)


def test_plan_names_what_the_model_holds_now():
    part = {"lower": {"w": jnp.ones((2, 2))}}
    parts = [part["lower"]]
    box = {"encoder": parts[0]}
    model = lambda x: x @ next(iter(box.values()))["w"]
    assert plan(model, X).rows[0][0] == "encoder"
    box["decoder"] = {"w": jnp.zeros((2, 2))}
    del box["encoder"]
    assert plan(model, X).rows[0][0] == "decoder"


def test_a_layer_has_the_same_name_for_all():
    weights = {"low": {"w": jnp.ones((2, 4))}, "high": {"w": jnp.ones((4, 1))}}
    model = lambda x: jax.nn.relu(x @ weights["low"]["w"]) @ weights["high"]["w"]
    composite = [(name("^low$"), rules.Flat()), (name("^high$"), rules.Zero())]
    expected = relevance(model, X, 0, composite, at=["low"])
    assert [row[0] for row in plan(model, X, composite).rows if row[1] == "dense"] == ["low", "high"]
    transformed = jax.grad(lambda x: lrp(model, composite)(x).sum())(X)
    np.testing.assert_allclose(transformed, expected.relevance, rtol=1e-6)
    np.testing.assert_allclose(expected.at["low"], [[3.0] * 4])


# What else is read at every call.


def test_target_reads_its_arrays_at_every_call():
    weights = {"v": jnp.array([1.0, 0.0])}
    model = lambda x: x * jnp.array([2.0, 3.0])
    target = lambda output: output @ weights["v"]
    np.testing.assert_allclose(relevance(model, X, target, rules.Zero()).relevance, [[2.0, 0.0]])
    weights["v"] = jnp.array([0.0, -1.0])
    np.testing.assert_allclose(relevance(model, X, target, rules.Zero()).relevance, [[0.0, -6.0]])
    assert ledger(model, X, target, rules.Zero()).explained == -6.0
    np.testing.assert_allclose(
        relevance(model, jnp.tile(X, (3, 1)), target, rules.Zero(), batch_size=2, progress=False).relevance,
        [[0.0, -6.0]] * 3,
    )


SCALE = {"factor": 1.0}


@dataclass(frozen=True)
class Scaled(rules.Epsilon):
    """A rule of a user's own that reads a number or an array elsewhere."""

    def propagate(self, layer, cotangent, arriving):
        return super().propagate(layer, cotangent, arriving) * SCALE["factor"]


def test_rule_reads_its_arrays_at_every_call(compiled):
    model = lambda x: x @ jnp.asarray(NEW)
    for factor in (1.0, 2.0, jnp.asarray(3.0), jnp.asarray(4.0)):
        SCALE["factor"] = factor
        compiled.clear()
        explanation = relevance(model, X, 0, Scaled(0.0))
        np.testing.assert_allclose(explanation.relevance, [[factor * 5.0, factor * -6.0]], rtol=1e-5)
    assert "explain_in_trace" not in compiled  # the two arrays are arguments of one program


def test_treatment_reads_its_arrays_at_every_call(compiled):
    scale = {"factor": jnp.ones(())}
    backward = lambda call: (call.cotangents[0] * scale["factor"],)
    own = treatments.Treatment("scaled", dict.fromkeys(treatments.Form, backward))
    composite = with_treatment(rules.Zero(), "tanh", own)
    model = lambda x: jnp.tanh(x) * 1.0
    expected = relevance(model, X, 0, composite).relevance
    assert expected.any()
    compiled.clear()
    scale["factor"] = 3 * jnp.ones(())
    np.testing.assert_allclose(relevance(model, X, 0, composite).relevance, 3 * expected, rtol=1e-6)
    assert "explain_in_trace" not in compiled


def test_selector_of_ones_own_reads_what_it_says_at_every_call():
    chosen = {0}
    own = Selector(lambda layer: layer.index in chosen, "chosen")
    composite = Composite([(own, rules.Flat()), (any_layer, rules.Zero())], strict=False)
    model = lambda x: x @ jnp.asarray(NEW)
    np.testing.assert_allclose(relevance(model, X, 0, composite).relevance, [[-0.5, -0.5]], rtol=1e-5)
    chosen.clear()
    np.testing.assert_allclose(relevance(model, X, 0, composite).relevance, [[5.0, -6.0]], rtol=1e-5)


def test_store_of_old_arrays_is_refused(tmp_path):
    held = {"weight": jnp.asarray(NEW), "target": jnp.ones(1), "reduce": jnp.ones(2)}

    def explain(store):
        model = lambda x: x @ held["weight"]
        target = lambda output: output @ held["target"]
        reduce = lambda maps: maps * held["reduce"]
        stored = explain_dataset(model, X, store, target, rules.Zero(), reduce=reduce, progress=False)
        return stored["relevance"].read().result()

    np.testing.assert_allclose(explain(tmp_path / "first"), [[5.0, -6.0]])
    np.testing.assert_allclose(explain(tmp_path / "first"), [[5.0, -6.0]])
    for number, part in enumerate(held):
        held[part] = 2 * held[part]
        with pytest.raises(StoreError, match="differ"):
            explain(tmp_path / "first")
        np.testing.assert_allclose(explain(tmp_path / part), 2 ** (number + 1) * np.array([[5.0, -6.0]]))


# Nothing is compiled twice.

WEIGHT = jnp.ones((2, 3))


def network(x):
    return jax.nn.relu(x @ WEIGHT)


def calls_back(function):
    return lambda x: (jax.debug.callback(function, x), x @ WEIGHT)[1]


def calling(function):
    return lambda value: function(value) if value is None else None


def scaled_outside(*held):
    """A model that multiplies what it holds outside of JAX; `itself` is held in a circle."""

    def itself(value):
        return value * held[0] if held else itself(value)

    def model(x):
        shape = jax.ShapeDtypeStruct((1, 3), jnp.float32)
        return x @ WEIGHT * jax.pure_callback(lambda ones: itself(ones), shape, jnp.ones((1, 3)))

    return model


FRESH = {
    "a function as model": lambda: relevance(lambda x: jax.nn.relu(x @ WEIGHT), X, 0, rules.Zero()),
    "vmap as model": lambda: relevance(jax.vmap(lambda x: jax.nn.relu(x @ WEIGHT)), X, 0, rules.Zero()),
    "jit as model": lambda: relevance(jax.jit(lambda x: jax.nn.relu(x @ WEIGHT)), X, 0, rules.Zero()),
    "partial as model": lambda: relevance(functools.partial(lambda w, x: x @ w, WEIGHT), X, 0, rules.Zero()),
    "gelu": lambda: relevance(lambda x: jax.nn.gelu(x @ WEIGHT), X, 0, rules.Zero()),
    "a checkpoint with a policy": lambda: relevance(
        jax.checkpoint(lambda x: x @ WEIGHT, policy=jax.checkpoint_policies.save_only_these_names("a")), X, 0
    ),
    "a print": lambda: relevance(lambda x: (jax.debug.print("{}", x.shape), x @ WEIGHT)[1], X, 0, rules.Zero()),
    "a callback": lambda: relevance(calls_back(lambda value: None), X, 0, rules.Zero()),
    "a callback that calls": lambda: relevance(calls_back(calling(network)), X, 0, rules.Zero()),
    "a pure callback": lambda: relevance(scaled_outside(2.0), X, 0, rules.Zero()),
    "a function as target": lambda: relevance(network, X, lambda output: output[:, 0], rules.Zero()),
    "a function as target of a ledger": lambda: ledger(network, X, lambda output: output[:, 0], rules.Zero()),
    "name": lambda: relevance(network, X, 0, [(name("dense"), rules.Zero())]),
    "both": lambda: relevance(network, X, 0, [(~conv & first | last, rules.Zero())]),
    "index": lambda: relevance(network, X, 0, [(index[0], rules.Zero())]),
    "slice": lambda: relevance(network, X, 0, [(index[-3:], rules.Zero())]),
    "a predicate": lambda: relevance(network, X, 0, [(lambda layer: True, rules.Zero())]),
    "a baseline": lambda: baselines.integrated_gradients(lambda x: x @ WEIGHT, X, None),
    "flipping": lambda: pixel_flipping(lambda x: x @ WEIGHT, X, X, None, steps=2),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("label", FRESH)
def test_the_same_said_anew_compiles_nothing(label, compiled):
    FRESH[label]()
    compiled.clear()
    for _ in range(2):
        FRESH[label]()
    assert compiled == []


def test_other_programs_are_told_apart():
    """A constant, a parameter of an operation, a dtype, the wiring: each makes another program."""
    functions = [
        lambda x: 2.0 * x,
        lambda x: 3.0 * x,
        lambda x: 2.0 * x[:, ::-1],
        lambda x: jnp.roll(2.0 * x, 1, 1),
        lambda x: 2.0 * x - 0.0 * x,
        lambda x: -2.0 * x,
        lambda x: 2.0 * x * jnp.array([1.0, 0.0]),
        lambda x: 2.0 * x * jnp.array([0.0, 1.0]),
        lambda x: jnp.where(x > 1.5, 2.0 * x, 0.0),
        lambda x: jnp.where(x < 1.5, 2.0 * x, 0.0),
        lambda x: (2.0 * x).astype(jnp.float16).astype(jnp.float32) * 1.5,
        lambda x: jax.lax.fori_loop(0, 3, lambda _, x: 2.0 * x, x),
        lambda x: jax.lax.fori_loop(0, 4, lambda _, x: 2.0 * x, x),
    ]
    for function, _ in itertools.product(functions, range(2)):
        for target in (0, 1):
            mask = jnp.eye(2)[target]
            np.testing.assert_allclose(
                relevance(function, X, target, rules.Zero()).relevance.sum(), (function(X) * mask).sum(), rtol=1e-5
            )


def test_callbacks_are_told_apart_by_what_they_hold():
    for factor in (2.0, 3.0):
        found = relevance(scaled_outside(factor), X, 0, rules.Zero()).relevance
        np.testing.assert_allclose(found, factor * X)
    logs = [], []
    for log in logs:
        relevance(calls_back(lambda value, log=log: log.append(value)), X, 0, rules.Zero())
    jax.effects_barrier()
    assert [len(log) for log in logs] == [1, 1]


def test_selectors_are_equal_by_what_they_say():
    assert name("a") & conv == name("a") & conv
    assert hash(~index[1:3] | first) == hash(~index[1:3] | first)
    different = [name("a"), name("b"), name("a") & conv, name("a") | conv, ~name("a"), index[0], index[0:1], conv, last]
    assert len(set(different)) == len(different)


# Nothing is kept.


@pytest.mark.parametrize("door", ["relevance", "gradient", "pixel_flipping", "ledger"])
def test_memory_is_flat(door, collected):
    explain, _ = DOORS[door]
    weights = {}
    numbers = []
    for turn in range(300 if NIGHTLY and door == "relevance" else 30):
        weights["w"] = jnp.full((2, 1), float(turn + 1))
        explain(lambda x: x @ weights["w"])
        if turn % 10 == 9:
            collected()
            numbers.append(len(jax.live_arrays()))
    assert numbers[-1] <= numbers[1]


class Forgotten:
    def __init__(self, seed):
        self.w = jax.random.normal(jax.random.key(seed), (2, 1))

    def __call__(self, x):
        return jax.nn.relu(jax.jit(lambda x: x @ self.w)(x))


@pytest.mark.parametrize("door", [door for door in DOORS if door != "explain_dataset"])
def test_a_model_is_forgotten(door, collected):
    explain, _ = DOORS[door]
    references = []
    for seed in range(3):
        model = Forgotten(seed)
        explain(model)
        references += [weakref.ref(model), weakref.ref(model.w)]
        del model
    collected()
    assert [reference() for reference in references] == [None] * len(references)


# Under the transformations of JAX, the arrays that a model holds are those of the trace around it.


@pytest.mark.parametrize("held", ["in a closure", "in an argument"])
def test_relevance_under_jit_and_vmap_follows_the_weights(held):
    def explain(w):
        model = (lambda x: x @ w) if held == "in a closure" else functools.partial(lambda w, x: x @ w, w)
        return relevance(model, X, 0, rules.Zero()).relevance

    both = jnp.stack([OLD, NEW])
    np.testing.assert_allclose(jax.vmap(explain)(both), X * both.mT, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(explain)(NEW), X * NEW.T, rtol=1e-5)
    # The relevance x * w has the derivative x with regard to w.
    np.testing.assert_allclose(jax.grad(lambda w: explain(w).sum())(jnp.asarray(NEW)), X.T, rtol=1e-5)


def test_what_jax_itself_has_compiled_in_is_what_the_model_computes():
    """A function under `jax.jit` keeps what it had read; its relevance is that of its value."""
    weights = {"w": jnp.asarray(OLD)}
    model = jax.jit(lambda x: x @ weights["w"])
    before = model(X)
    weights["w"] = jnp.asarray(NEW)
    explanation = relevance(model, X, 0, rules.Zero())
    np.testing.assert_array_equal(explanation.output, model(X))
    np.testing.assert_array_equal(explanation.output, before)
    np.testing.assert_allclose(explanation.relevance.sum(), explanation.output.sum())
