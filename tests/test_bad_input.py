"""What is refused: every row of the tables on the page `book/errors.md`, and what looks alike and is not refused."""

import builtins
import functools
import importlib
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lrp_jax import composites, errors, ledger, lrp, mark, operations, plan, relevance, rules
from lrp_jax.errors import InputError, LRPWarning, ModelError, RuleError
from lrp_jax.forms import Form

PAGE = Path(__file__).parents[1] / "book" / "errors.md"
ROWS = dict(re.findall(r"^\| (.+?) \| `(\w+)` \| .+ \|$", PAGE.read_text(), re.MULTILINE))

WEIGHT = jax.random.normal(jax.random.key(0), (4, 3))
X = jax.random.normal(jax.random.key(1), (5, 4))
IMAGES = jax.random.normal(jax.random.key(2), (3, 6, 6, 4))
CANCELLING = np.float32([[1.0], [-1.0], [1.0], [-0.9999]])
NOT_FINITE = operations.Treatment("infinite", {Form.RATIO: lambda call: (call.cotangents[0] * jnp.inf,)})


def network(x):
    return jax.nn.relu(x @ WEIGHT)


def with_parameters(parameters, x):
    return x @ parameters["dense"]["kernel"] + parameters["dense"]["bias"]


# Modules in training mode, unless they are switched.


class NNXModule(nnx.Module):
    def __init__(self, norm=True, rate=0.0):
        self.linear = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
        self.norm = nnx.BatchNorm(3, rngs=nnx.Rngs(0)) if norm else None
        self.dropout = nnx.Dropout(rate, rngs=nnx.Rngs(0))

    def __call__(self, x):
        x = self.linear(x)
        return self.dropout(self.norm(x) if self.norm else x)


class LinenModule(nn.Module):
    norm: nn.Module | None = None
    rate: float = 0.0
    is_training: bool = True

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(3)(x)
        x = self.norm(x) if self.norm else x
        return nn.Dropout(self.rate, deterministic=not self.is_training)(x)


def linen(x=X, keys=True, mutable=("batch_stats",), **options):
    """A function of x, and nothing but x, whose updated statistics are thrown away."""
    module = LinenModule(**options)
    variables = module.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, x)
    rngs = {"dropout": jax.random.key(2)} if keys else None
    if not mutable:
        return lambda x: module.apply(variables, x, rngs=rngs)
    return lambda x: module.apply(variables, x, rngs=rngs, mutable=list(mutable))[0]


class EquinoxModule(eqx.Module):
    linear: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout

    def __init__(self, rate):
        self.linear = eqx.nn.Linear(4, 3, key=jax.random.key(0))
        self.norm = eqx.nn.BatchNorm(3, "batch", mode="batch")
        self.dropout = eqx.nn.Dropout(rate)

    def __call__(self, x, state, key):
        x, state = self.norm(self.linear(x), state)
        return self.dropout(x, key=key), state


def equinox(rate=0.0, inference=False, norm_inference=False):
    module, state = eqx.nn.make_with_state(EquinoxModule)(rate)
    run = lambda module: jax.vmap(module, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))
    keys = jax.random.split(jax.random.key(1), len(X))
    _, state = run(module)(X, state, keys)
    module = eqx.nn.inference_mode(module) if inference else module
    if norm_inference:
        module = eqx.tree_at(lambda module: module.norm, module, eqx.nn.inference_mode(module.norm))
    return lambda x: run(module)(x, state, keys[: len(x)])[0]


def haiku(is_training):
    transformed = hk.transform_with_state(lambda x, train: hk.Linear(3)(hk.BatchNorm(True, True, 0.9)(x, train)))
    parameters, state = transformed.init(jax.random.key(0), X, True)
    return lambda x: transformed.apply(parameters, state, None, x, is_training)[0]


class WithCache(nnx.Module):
    def __init__(self):
        self.cache = nnx.Variable(jnp.zeros((5, 4)))

    def __call__(self, x):
        self.cache[...] = self.cache[...] + x
        return self.cache[...] @ WEIGHT


class WithMemory:
    last = None

    def __call__(self, x):
        last, self.last = self.last, x
        return (x if last is None else x + last) @ WEIGHT


def appending(hidden):
    def model(x):
        hidden.append(network(x))
        return hidden[-1]

    return model


@dataclass(frozen=True)
class OwnRule(rules.Rule):
    """LRP-0 with a function of the input in place of it."""

    part: Callable

    def shares(self, layer, relevance):
        x = self.part(layer.x)
        return [rules.Share(x, layer.w, 0.0, relevance / rules.stabilize(layer.linear(x, layer.w), 1e-9))]


class OwnRuleInRelevance(OwnRule):
    form = rules.Form.RELEVANCE


def explain(model, x=X, target=0, rule=None, **options):
    return relevance(model, x, target, rule, **options)


def branching(x):
    return network(x) if x.sum() > 0 else network(-x)


def pickled(path):
    import pickle

    path.write_bytes(pickle.dumps({"bias": 1}))


def read_weights(path, **tensors):
    """Writes tensors to a file and reads it as that of a network with a bias of three numbers, all zero."""
    from safetensors.numpy import save_file

    save_file(tensors, path)
    return read_as_bias(path)


def read_as_bias(path):
    from lrp_jax.pretrained import read_safetensors

    return read_safetensors(path, {"bias": (3,)}, sha256="0" * 64)


# By row: what is done (with a path to a file that does not exist, if it takes one) and what the message says; or the
# test elsewhere that stands for the row.
CASES = {
    # The input and the target.
    "`x` is a single number": (lambda: explain(network, jnp.float32(3)), r"x\[None\]"),
    "`x` is one sample, without the dimension for samples": (lambda: explain(network, X[0]), r"\(3,\).*x\[None\]"),
    "`x` has a shape that the model does not take": (
        lambda: explain(network, X[:, :3]),
        r"(?s)contracting.*called with x: float32\[5, 3\].*samples in the first",
    ),
    "The arrays of `x` have different numbers of samples": (
        lambda: explain(lambda x: network(x["a"]), {"a": X, "b": X[:2]}),
        r"first dimension, but these differ: \{2, 5\}",
    ),
    "`x` holds integers that are not looked up in an embedding, or whose size meets a live value": (
        lambda: explain(network, jnp.ones((5, 4), jnp.uint8)),
        r"embedding.*astype\('float32'\)",
    ),
    "`x` holds complex numbers": (lambda: explain(network, X + 1j), r"complex64"),
    "`x` holds truth values": (lambda: explain(network, X > 0), r"bool.*astype\('float32'\)"),
    "`x` is a list of numbers, and no array": (
        lambda: explain(network, [[1.0, 2.0, 3.0, 4.0]]),
        r"x\[0\]\[0\] is no array, but a float. Pass jnp.asarray\(x\)",
    ),
    "`x` holds strings": (lambda: explain(network, {"image": X, "name": "cat"}), r"x\['name'\] is no array, but a str"),
    "`x` is None": (lambda: explain(network, None), "holds no array"),
    "`x` is NaN or infinite somewhere": (
        lambda: explain(network, X.at[0, 0].set(jnp.nan).at[1, 1].set(jnp.inf)),
        "2 values of x are NaN or infinite",
    ),
    "The target is no class": (lambda: explain(network, target=3), "from 0 to 2, for 3 classes, but it is 3"),
    "There are more or fewer targets than samples": (
        lambda: explain(network, target=[0, 1]),
        "5 samples, but 2 targets",
    ),
    "The target is not an integer": (lambda: explain(network, target=0.5), "is an integer"),
    "The target holds something else than numbers": (
        lambda: explain(network, target=["cat"] * 5),
        "is no class index",
    ),
    "The target is a comparison, an argmax, or held constant": (
        lambda: explain(network, target=lambda output: (output > 0.5).astype(jnp.float32)),
        r"What the target returns does not depend on the output .*'convert_element_type' at .*test_bad_input.py:\d+",
    ),
    "The target has no return": (lambda: explain(network, target=lambda output: None), "returns nothing.*return"),
    "A mask has another shape than the output": (
        lambda: explain(network, target=jnp.ones((5, 4))),
        r"\(5, 3\), but it has \(5, 4\)",
    ),
    "A hidden layer does not exist": (
        lambda: explain(network, at=["head"]),
        "'head' does not exist. There are: dense_0",
    ),
    "A factor in `given` does not broadcast to its layer": (
        lambda: explain(network, given={"dense_0": jnp.ones(7)}),
        r"given\['dense_0'\] has the shape \(7,\), which does not broadcast to \(5, 3\)",
    ),
    "`batch_size` is 0": (lambda: explain(network, batch_size=0), "at least 1, but it is 0"),
    "`argnums` names an argument that the call does not have": (
        lambda: lrp(network, rules.Zero(), argnums=1)(X),
        r"argnums=\(1,\).*1 were given",
    ),
    "A derivative with regard to the parameters of `lrp(fun)`": (
        lambda: jax.grad(lrp(lambda weight, x: (x @ weight).sum(), rules.Zero(), argnums=1))(WEIGHT, X),
        "differentiate the original function",
    ),
    # The model.
    "It cannot be called": (lambda: explain(WEIGHT), "cannot be called"),
    "Flax NNX: batch normalisation in training mode": (
        lambda: explain(NNXModule()),
        r"changes its state.*norm.mean, norm.var.*training mode.*model.eval\(\)",
    ),
    "Flax NNX: dropout is active": (
        lambda: lrp(NNXModule(norm=False, rate=0.5), rules.Zero())(X),
        r"dropout is active at .*test_bad_input.py:\d+.*model.eval\(\)",
    ),
    "Flax NNX: a module in training mode inside of a function": (
        lambda: (lambda module: explain(lambda x: module(x)))(NNXModule()),
        r"training mode, or changes its state at .*test_bad_input.py:\d+.*BatchStat.*model.eval\(\)",
    ),
    "Flax Linen: batch normalisation updates its statistics": (
        lambda: explain(linen(norm=nn.BatchNorm(use_running_average=False), mutable=())),
        r"training mode.*\"mean\".*batch_stats.*use_running_average=True",
    ),
    "Flax Linen: batch statistics, the updates thrown away": (
        lambda: lrp(linen(norm=nn.BatchNorm(use_running_average=False)), rules.Zero())(X),
        r"statistics of this batch at .*test_bad_input.py:\d+.*LinenModule.*use_running_average=True",
    ),
    "Flax Linen: dropout is active": (
        lambda: explain(linen(rate=0.5)),
        r"dropout is active at .*test_bad_input.py:\d+.*Dropout_0.*deterministic=True",
    ),
    "Flax Linen: dropout without a key": (
        lambda: explain(linen(rate=0.5, keys=False)),
        r"training mode.*PRNG.*deterministic=True",
    ),
    "Equinox: batch normalisation in training mode": (
        lambda: explain(equinox()),
        r"statistics of this batch.*inference_mode\(model\)",
    ),
    "Equinox: dropout is active": (
        lambda: explain(equinox(rate=0.5, norm_inference=True)),
        r"dropout is active.*inference_mode\(model\)",
    ),
    "Haiku: batch normalisation in training mode": (
        lambda: explain(haiku(True)),
        r"statistics of this batch.*is_training=False",
    ),
    "It keeps a cache that changes while it runs": (lambda: explain(WithCache()), "changes its state .* cache"),
    "It keeps an array in an attribute": (lambda: explain(WithMemory()), "keeps what it computes in last, .* return"),
    "It appends arrays to a list": (
        lambda: lrp(appending([]), rules.Zero())(X),
        r"keeps what it computes in hidden\[0\], .* return",
    ),
    "It branches on a value in Python": (
        lambda: lrp(branching, rules.Zero())(X),
        r"value of an array in Python at .*test_bad_input.py:\d+ \(branching\).*jax.lax.cond",
    ),
    "It turns an array into a Python number or a NumPy array": (
        lambda: explain(lambda x: network(np.asarray(x))),
        "value of an array in Python at .*jnp",
    ),
    "It selects with a mask as an index": (
        lambda: explain(lambda x: network(x[x[:, 0] > 0])),
        "value of an array in Python at .*jnp.where",
    ),
    "Its output is an argmax": (lambda: explain(lambda x: network(x).argmax(-1)), r"int32\[5\], is not diff.*logits"),
    "Its output is a comparison, turned into floats": (
        lambda: lrp(lambda x: (network(x) > 0).astype(jnp.float32), rules.Zero())(X),
        r"'convert_element_type' at .*test_bad_input.py:\d+.*comparison",
    ),
    "Its output does not depend on `x`": (lambda: explain(lambda x: jnp.ones((5, 3))), "does not depend on x"),
    "It returns fewer outputs than there are samples": (
        lambda: explain(lambda x: network(x)[:2]),
        "2 outputs for 5 samples",
    ),
    "It returns something else than samples and classes": (
        lambda: explain(lambda x: (network(x), x)),
        r"\(samples, classes\).*function of the output",
    ),
    "Its parameters are NaN": (
        lambda: explain(
            functools.partial(with_parameters, {"dense": {"kernel": WEIGHT, "bias": jnp.full(3, jnp.nan)}})
        ),
        r"Parameters of the model are NaN: \S*dense.bias\.",
    ),
    "Its values overflow": (
        lambda: explain(lambda x: jnp.exp(1e4 * x) @ WEIGHT),
        r"NaN or infinite, first in 'exp' at .*test_bad_input.py:\d+",
    ),
    "It has an operation without a treatment": (
        lambda: lrp(lambda x: jax.lax.linalg.lu(x)[0], rules.Zero())(X[:4]),
        r"'lu' at .*test_bad_input.py:\d+.*with_treatment\(rules, 'lu', treatment\)",
    ),
    "It has a loop of unknown length": (
        lambda: explain(lambda x: jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: c + 1, network(x))),
        r"'while' at .*test_bad_input.py:\d+",
    ),
    "It calculates with complex numbers": (
        lambda: explain(lambda x: jnp.fft.fft(x).real @ WEIGHT),
        r"at .*test_bad_input.py:\d+.*complex numbers",
    ),
    "A mark has no effect": (
        lambda: explain(lambda x: mark.gate(network(x))),
        r"mark.gate at .*test_bad_input.py:\d+ .* has no effect",
    ),
    "A value that is marked as the input is something else": (
        lambda: explain(lambda x: mark.input(network(x))),
        r"mark.input marks at .*test_bad_input.py:\d+ .* the layer 'dense_0' at",
    ),
    # Rules and composites.
    "alpha - beta is not 1": (lambda: rules.AlphaBeta(2.0, 0.5), "multiplied by 1.5 in every layer.*take beta=1"),
    "epsilon is negative": (lambda: rules.Epsilon(-1e-6), "epsilon=-1e-06.*not negative"),
    "epsilon is infinite or NaN": (lambda: rules.Epsilon(float("inf")), "epsilon=inf"),
    "epsilon is no number": (lambda: rules.Epsilon("1e-6"), "epsilon='1e-6'.*must be a number"),
    "low is larger than high": (lambda: rules.ZBox(1.0, 0.0), "Swap them"),
    "A bound of z-box is infinite": (lambda: rules.ZBox(-float("inf"), 1.0), "must be finite"),
    "The bounds of z-box do not broadcast to the input": (
        lambda: explain(network, rule=rules.ZBox((0.0, 0.0), (1.0, 1.0))),
        r"bounds of shape \(2,\) do not broadcast to the layer's input, \(5, 4\)",
    ),
    "`x` is outside of the bounds of z-box": (
        lambda: explain(network, jnp.array([[0.0, 1.0, 0.5, 1.5], [-0.5, 2.0, 0.0, 1.0]]), 0, rules.ZBox(0.0, 1.0)),
        r"^3 values are outside of the bounds \[0.0, 1.0\] of ZBox in the layer 'dense_0'.*from -0.5 to 2\.",
    ),
    "The treatment of the bias does not exist": (
        lambda: rules.Epsilon(bias="drop"),
        "bias must be one of absorb, ignore, distribute",
    ),
    "Pass is given to a layer that changes the shape": (
        lambda: explain(network, rule=rules.Pass()),
        r"maps \(5, 4\) to \(5, 3\)",
    ),
    "A selector matches no layer": (
        lambda: explain(network, rule=[(composites.conv, rules.ZPlus()), (composites.any_layer, rules.Epsilon())]),
        r"conv matches no layer. The layers are:\n  0: dense_0",
    ),
    "A selector, and a function without layers": (
        lambda: explain(jnp.tanh, rule=[(composites.name("head"), rules.Zero())]),
        r"name\('head'\) matches no layer. The function has no layers",
    ),
    "A treatment matches no operation": (
        lambda: explain(network, rule=composites.with_treatment(rules.Zero(), "gelu", operations.smooth)),
        "treatment for 'gelu' matches nothing. There are: ",
    ),
    "A mark is put at a place that there is not": (
        lambda: explain(network, rule=composites.with_mark(rules.Zero(), "head", mark.gate)),
        r"with_mark\('head', mark.gate\) matches no layer .*There are: dense_0",
    ),
    "A function is left without a layer, and the rules are for layers": (
        lambda: explain(lambda x: x @ jnp.ones((4, 3)), rule=rules.ZPlus()),
        r"no layer that rules could be for. The product at .*test_bad_input.py:\d+.*made by the function itself",
    ),
    "A layer has no rule": (lambda: explain(network, rule=[]), r"No rule for the layer 'dense_0'.*any_layer"),
    "A rule gives relevance whatever the input, and does not say so": (
        lambda: explain(network, rule=OwnRule(jnp.ones_like)),
        r"OwnRule returns a share whose x is not the layer's input.*form = Form.RELEVANCE",
    ),
    "The class of a rule in place of a rule": (
        lambda: composites.Composite([(composites.dense, rules.Epsilon)]),
        r"Did you mean Epsilon\(\)\?",
    ),
    "A pair without a rule": (lambda: composites.Composite([rules.Epsilon()]), "is no pair"),
    "Something that is no selector": (lambda: composites.Composite([(3, rules.Zero())]), "3 selects no layers"),
    "A pattern that is no regular expression": (lambda: composites.name("("), r"name\('\('\).*regular expression"),
    # Relevance.
    "Relevance grows more than 1,000-fold on its way": (
        lambda: explain(lambda x: x @ CANCELLING, jnp.ones((1, 4)), 0, rules.Zero()),
        r"sample 0 has .* times .*dense_0 \(dense\), where it grows",
    ),
    "A ledger that does not close": (
        lambda: ledger(jnp.tanh, X, 0, composites.with_treatment(rules.Zero(), "tanh", NOT_FINITE)),
        "does not close.*treatment of your own",
    ),
    "A ledger of a modified gradient": (
        lambda: ledger(network, X, 0, composites.GuidedBackprop()),
        "no account of guided backpropagation",
    ),
    # Files.
    "A file of weights is truncated": (
        lambda path: (path.write_bytes(b"123"), read_as_bias(path)),
        "3 bytes.*truncated",
    ),
    "A file of weights is a pickle": (lambda path: (pickled(path), read_as_bias(path)), "no safetensors file"),
    "A file of weights holds a tensor of another shape": (
        lambda path: read_weights(path, bias=np.zeros(4, np.float32)),
        r"file: the tensor 'bias' has the shape \(4,\), expected \(3,\)",
    ),
    "A file of weights is that of another network": (
        lambda path: read_weights(path, kernel=np.zeros((4, 3), np.float32)),
        r"file holds the weights of another network: it has no tensor 'bias', expected with shape \(3,\)",
    ),
    "A file of weights holds other values": (
        lambda path: read_weights(path, bias=np.zeros(3, np.float32)),
        r"file has tensors .* but other values: its SHA-256 is \w{64}, expected 0{64}",
    ),
    "A checkpoint is damaged": "test_training.test_damaged_checkpoint_is_named",
    "A checkpoint is that of another training": "test_training.test_checkpoint_of_another_network_is_refused",
    "The names of the classes are truncated": "test_pretrained.test_truncated_names_are_refused",
    "An original file of a data set is damaged": "test_datasets.test_damaged_original_file_is_named",
    "The prepared copy of a data set is truncated": "test_datasets.test_truncated_prepared_copy_is_reported",
    "A store holds the explanations of another run": "test_explain_dataset.test_store_of_another_run_is_refused",
}


def test_every_row_of_the_page_has_its_case():
    assert list(ROWS) == list(CASES)


@pytest.mark.parametrize("row", CASES)
def test_row_of_the_page(row, tmp_path):
    case = CASES[row]
    if isinstance(case, str):
        module, _, name = case.partition(".")
        assert callable(getattr(importlib.import_module(module), name))
        return
    bad, message = case
    kind = getattr(errors, ROWS[row], None) or getattr(builtins, ROWS[row])
    expected = pytest.warns if issubclass(kind, Warning) else pytest.raises
    with expected(kind, match=message):
        bad(tmp_path / "file") if bad.__code__.co_argcount else bad()


@pytest.mark.parametrize("transform", [lambda model: model, jax.vmap, jax.jit], ids=["plain", "vmap", "jit"])
@pytest.mark.parametrize(
    ("part", "is_input"),
    [
        (lambda x: x, True),
        (lambda x: jnp.maximum(x, 0), True),
        (lambda x: jnp.where(jnp.abs(x) > jnp.abs(x).mean(), x, 0), True),
        (jnp.zeros_like, True),
        (jnp.ones_like, False),
        (jnp.abs, False),
        (lambda x: 2 * x, False),
        (lambda x: x - x.min(), False),
        (lambda x: np.full(x.shape, 0.5, np.float32), False),
    ],
    ids=["x", "positive part", "largest", "zeros", "ones", "size", "scaled", "shifted", "numbers"],
)
def test_rule_that_forgets_its_form_is_found_out(part, is_input, transform):
    x = 2 * X - 1
    explain = lambda rule: jax.grad(lambda x: lrp(transform(network), rule)(x).sum())(x)
    in_relevance = explain(OwnRuleInRelevance(part))
    if is_input:
        np.testing.assert_allclose(explain(OwnRule(part)), in_relevance, rtol=1e-4, atol=1e-6)
    else:
        with pytest.raises(RuleError, match=r"form = Form\.RELEVANCE"):
            explain(OwnRule(part))


@pytest.mark.parametrize("door", [relevance, ledger])
@pytest.mark.parametrize(
    "target",
    [
        lambda output: output.argmax(-1),
        lambda output: jax.nn.one_hot(output.argmax(-1), 3),
        jax.lax.stop_gradient,
        lambda output: (output[:, 0] > output[:, 1]).astype(output.dtype),
        lambda output: {"nothing": ()},
    ],
    ids=["argmax", "one-hot", "held", "comparison", "empty"],
)
def test_target_of_which_nothing_is_explained(door, target):
    with pytest.raises(InputError, match=r"^(What )?[Tt]he target"):
        door(network, X, target, rules.Zero())


@pytest.mark.parametrize("target", [2**32, 2**70, -1, np.int64(2**32), np.array([0, 0, 0, 2**32, 0])], ids=repr)
def test_target_that_32_bits_do_not_hold_is_no_other_class(target):
    with pytest.raises(InputError, match="target"):
        relevance(network, X, target)


def test_the_cause_is_kept():
    with pytest.raises(ModelError) as raised:
        explain(branching)
    assert isinstance(raised.value.__cause__, jax.errors.TracerBoolConversionError)


def test_error_of_the_model_itself_keeps_its_type():
    class OwnError(Exception):
        pass

    def model(x):
        raise OwnError("too small")

    with pytest.raises(OwnError, match="too small"):
        lrp(model, rules.Zero())(X)


@pytest.mark.parametrize("door", [relevance, ledger, plan])
def test_every_door_refuses_training_mode(door):
    with pytest.raises(ModelError, match="training mode"):
        door(NNXModule(rate=0.5), X)


@pytest.mark.parametrize("door", [relevance, ledger])
def test_every_door_refuses_nan(door):
    model = functools.partial(with_parameters, {"dense": {"kernel": WEIGHT * jnp.nan, "bias": jnp.ones(3)}})
    with pytest.raises(ModelError, match=r"dense\.kernel"):
        door(model, X, 0)
    with pytest.raises(InputError, match="1 values of x"):
        door(network, X.at[0, 0].set(jnp.nan), 0)


def test_nan_that_a_function_closes_over_is_named_by_its_line():
    weight = WEIGHT.at[0].set(jnp.nan)
    with pytest.raises(ModelError, match=r"a constant of shape \(4, 3\), read at .*test_bad_input.py:\d+"):
        explain(lambda x: x @ weight)


def test_nan_that_the_rule_would_hide_is_refused():
    # Gamma compares z with 0, which is false for NaN: without a check these outputs just got no relevance.
    with pytest.raises(ModelError, match="NaN"):
        explain(lambda x: x @ WEIGHT.at[0, 1].set(jnp.nan), rule=rules.Gamma())


# Dropout and batch statistics in every place of a program.


def dropout(x, key=None):
    key = jax.random.key(0) if key is None else key
    return jnp.where(jax.random.bernoulli(key, 0.5, x.shape), 2 * x, 0)


def batch_norm(x, axes=0):
    return (x - x.mean(axes)) / jnp.sqrt(x.var(axes) + 1e-5)


IN_TRAINING_MODE = {
    "plain": lambda part: part,
    "jit": jax.jit,
    "checkpoint": jax.checkpoint,
    "cond": lambda part: lambda x: jax.lax.cond(x.sum() > 0, part, jnp.tanh, x),
    "scan": lambda part: lambda x: jax.lax.scan(lambda carry, _: (part(carry), None), x, length=2)[0],
    "scan over steps": lambda part: (
        lambda x: jax.lax.scan(lambda carry, step: (carry, part(step)), 0.0, jnp.stack([x, -x]))[1].sum(0)
    ),
}


@pytest.mark.parametrize("place", IN_TRAINING_MODE)
@pytest.mark.parametrize(
    ("part", "message"), [(dropout, "dropout is active"), (batch_norm, "statistics of this batch")]
)
def test_training_mode_is_found_in_every_place(place, part, message):
    model = lambda x: IN_TRAINING_MODE[place](part)(x) @ WEIGHT
    with pytest.raises(ModelError, match=rf"{message} at .*test_bad_input.py:\d+"):
        lrp(model, rules.Epsilon())(X)


DROPOUTS = {
    "a mask that multiplies": lambda x: x * jax.random.bernoulli(jax.random.key(0), 0.5, x.shape) @ WEIGHT,
    "a key for each sample": lambda x: jax.vmap(dropout)(x, jax.random.split(jax.random.key(0), len(x))) @ WEIGHT,
    "whole channels": lambda x: x * jax.random.bernoulli(jax.random.key(0), 0.5, (1, x.shape[1])) @ WEIGHT,
    "of attention": lambda x: (
        jax.nn.softmax(x @ x.T) * (jax.random.bernoulli(jax.random.key(0), 0.5, (len(x), len(x))) / 0.5) @ x @ WEIGHT
    ),
    "an older key": lambda x: dropout(x, jax.random.PRNGKey(0)) @ WEIGHT,
}


@pytest.mark.parametrize("name", DROPOUTS)
def test_dropout_is_found(name):
    with pytest.raises(ModelError, match="dropout is active"):
        plan(DROPOUTS[name], X)


BATCH_NORMS = {
    "product with the inverse": lambda x: (x - x.mean(0)) * jax.lax.rsqrt(x.var(0) + 1e-5) @ WEIGHT,
    "of an image": lambda x: (batch_norm(x, (0, 1, 2)).mean((1, 2))) @ WEIGHT,
    "channels first": lambda x: (
        (lambda y: (y - y.mean((0, 2, 3), keepdims=True)) / jnp.sqrt(y.var((0, 2, 3), keepdims=True) + 1e-5))(
            jnp.moveaxis(x, -1, 1)
        ).mean((2, 3))
        @ WEIGHT
    ),
    "behind a convolution": lambda x: batch_norm(
        jax.lax.conv_general_dilated(
            x, jnp.ones((2, 2, 4, 4)), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
        (0, 1, 2),
    ).reshape(len(x), -1),
    "of an embedding": lambda x: batch_norm(jnp.concatenate([x, x], 1)[..., 0, :3].mean(1)),
}


@pytest.mark.parametrize("name", BATCH_NORMS)
@pytest.mark.parametrize("samples", [1, 3])
def test_batch_statistics_are_found(name, samples):
    x = X if name == "product with the inverse" else IMAGES
    with pytest.raises(ModelError, match="statistics of this batch"):
        plan(BATCH_NORMS[name], x[:samples])


def test_batch_statistics_of_embedded_integers_are_found():
    table = jax.random.normal(jax.random.key(0), (7, 4))
    with pytest.raises(ModelError, match="statistics of this batch"):
        plan(lambda tokens: batch_norm(table[tokens].mean(1)) @ WEIGHT, jnp.array([[1, 2, 3], [4, 5, 6]]))


# What looks like training mode and is none.


def evaluated():
    module = NNXModule(rate=0.5)
    module.eval()
    return module


def noise(draw):
    return lambda x: x * draw(jax.random.key(0), x.shape) @ WEIGHT


def one_image(x):
    """An instance normalisation of one image, without a dimension for the samples."""
    return batch_norm(x, (0, 1)).mean((0, 1)) @ WEIGHT


NOT_IN_TRAINING_MODE = {
    "NNX, evaluated": (evaluated(), X),
    "Linen, with running averages": (
        linen(norm=nn.BatchNorm(use_running_average=True), is_training=False, rate=0.5),
        X,
    ),
    "Equinox, in inference mode": (equinox(rate=0.5, inference=True), X),
    "Haiku, not training": (haiku(False), X),
    "layer norm": (linen(IMAGES, norm=nn.LayerNorm()), IMAGES),
    "group norm": (linen(IMAGES, norm=nn.GroupNorm(3)), IMAGES),
    "instance norm": (linen(IMAGES, norm=nn.InstanceNorm()), IMAGES),
    "root mean square norm": (linen(IMAGES, norm=nn.RMSNorm()), IMAGES),
    "instance norm of one image": (one_image, IMAGES[0]),
    "instance norm of each image": (jax.vmap(one_image), IMAGES),
    "layer norm of one vector": (lambda x: batch_norm(x) @ WEIGHT, X[0]),
    "layer norm, one sample": (linen(IMAGES, norm=nn.LayerNorm()), IMAGES[:1]),
    "standardisation by one number": (lambda x: batch_norm(x, (0, 1)) @ WEIGHT, X),
    "mean of the samples subtracted": (lambda x: (x - x.mean(0)) @ WEIGHT, X),
    "tokens that attend to each other": (lambda x: batch_norm(x + jax.nn.softmax(x @ x.T) @ x) @ WEIGHT, X),
    "weight normalisation": (lambda x: x @ (WEIGHT / jnp.sqrt((WEIGHT**2).sum(0))), X),
    "noise added": (lambda x: (x + jax.random.normal(jax.random.key(0), x.shape)) @ WEIGHT, X),
    "noise that multiplies": (noise(jax.random.normal), X),
    "truncated noise": (noise(lambda key, shape: jax.random.truncated_normal(key, -1, 1, shape)), X),
    "gamma noise": (noise(lambda key, shape: jax.random.gamma(key, 1.0, shape)), X),
    "random weights": (lambda x: x @ jax.random.normal(jax.random.key(0), WEIGHT.shape), X),
    "random mask of the weights": (
        lambda x: x @ (WEIGHT * jax.random.bernoulli(jax.random.key(0), 0.5, WEIGHT.shape)),
        X,
    ),
    "mask drawn outside": (
        functools.partial(lambda mask, x: x * mask @ WEIGHT, jax.random.bernoulli(jax.random.key(0), 0.5, (4,))),
        X,
    ),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", NOT_IN_TRAINING_MODE)
def test_inference_mode_is_not_refused(name):
    model, x = NOT_IN_TRAINING_MODE[name]
    np.testing.assert_allclose(lrp(model, rules.Epsilon())(x), model(x), rtol=1e-5, atol=1e-6)


def test_globals_whose_keys_have_no_order_are_no_hindrance():
    options = {1: "a", "b": 2.0}
    model = lambda x: network(x) * options["b"]
    np.testing.assert_allclose(explain(model).output, 2 * network(X), rtol=1e-6)


def test_module_may_count_and_note():
    class Counting(nnx.Module):
        def __init__(self):
            self.calls = nnx.Variable(jnp.zeros((), jnp.int32))

        def __call__(self, x):
            self.calls[...] += 1
            self.hidden = nnx.Intermediate(x)
            return network(x)

    module = Counting()
    np.testing.assert_allclose(explain(module).output, network(X), rtol=1e-6)
    assert module.calls[...] == 0


# The bounds of z-box.


@pytest.fixture
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_values_outside_of_all_batches_are_counted():
    with pytest.warns(LRPWarning, match="^3 values are outside") as caught:
        explain(network, jnp.array([[0, 0, 2, 0], [0, 0, 2, 0], [-1, 0, 0, 0.0]]), 0, rules.ZBox(0, 1), batch_size=2)
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_bounds_per_channel_and_behind_a_normalisation():
    # What counts is the input of the layer, 2 x - 1: 3, 1, -1, 0 in the only sample.
    rule = rules.ZBox((-1.0, -1.0, -1.0, 0.5), (1.0, 2.0, 1.0, 1.0))
    with pytest.warns(LRPWarning, match="^2 values are outside .* from -1 to 3"):
        ledger(lambda x: network(2 * x - 1), jnp.array([[2.0, 1.0, 0.0, 0.5]]), 0, rule)


LOOPS = {
    "under a checkpoint": jax.checkpoint(network),
    "in a scan": lambda x: jax.lax.map(network, x),
    "in the carry of a scan": lambda x: jax.lax.scan(lambda c, _: (c + network(x), None), 0 * x[:, :3], None, 1)[0],
    "in a scan under a checkpoint": lambda x: jax.lax.scan(jax.checkpoint(lambda c, r: (c, network(r))), 0.0, x)[1],
    "in a branch": lambda x: jax.lax.cond(x.sum() > 0, network, lambda x: x[:, :3], x),
    "in a branch in a scan": lambda x: jax.lax.map(
        lambda r: jax.lax.switch((r.sum() > 0) + 0, [lambda r: r[:3], network, network], r), x
    ),
}


@pytest.mark.parametrize("place", LOOPS)
def test_values_outside_of_the_bounds_are_counted_in_loops_and_branches(place):
    x = jnp.array([[0.0, 1.0, 0.5, 1.5], [-0.5, 2.0, 0.0, 1.0]])
    rule = [(composites.first, rules.ZBox(0.0, 1.0)), (composites.any_layer, rules.ZPlus())]
    if place == "in a branch in a scan":
        rule = rules.ZBox(0.0, 1.0)
    with pytest.warns(LRPWarning, match=r"^3 values are outside .* 'dense_0'.*from -0\.5 to 2\.") as caught:
        explain(LOOPS[place], x, 0, rule)
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_values_in_a_branch_that_is_not_taken_are_not_counted(no_warnings):
    model = lambda x: jax.lax.cond(x.sum() > 99, network, lambda x: x[:, :3] + 0.0 * x.sum(), x)
    explain(model, jnp.array([[0.0, 1.0, 0.5, 1.5]]), 0, rules.ZBox(0.0, 1.0))


def test_values_within_rounding_of_the_bounds_are_inside(no_warnings):
    x = jnp.array([[0.1, 0.7, 0.2, 0.3]])
    explain(lambda x: network((x - 0.1) / 0.3), x, 0, rules.ZBox(0.0, 2.0))
    explain(network, X, 0, rules.ZBox(X.min(), X.max()))


def test_inside_of_jit_nothing_is_looked_at(no_warnings):
    explained = jax.jit(lambda x: explain(network, x, 0, rules.ZBox(0.0, 1.0)).relevance)
    assert explained(X).shape == X.shape
    assert "is_finite" not in explained.lower(X).compile().as_text()


def test_reduction_over_a_named_axis():
    split = lambda x: jax.nn.relu(jax.lax.psum(x @ WEIGHT, "parts"))
    model = jax.vmap(lrp(split, rules.Epsilon()), axis_name="parts")
    np.testing.assert_allclose(model(jnp.stack([X, 2 * X]))[0], 3 * jnp.maximum(X @ WEIGHT, 0), rtol=1e-5, atol=1e-5)


def test_mask_that_a_checkpoint_applies_to_weights_is_no_dropout():
    mask = lambda: jax.random.bernoulli(jax.random.key(0), 0.5, WEIGHT.shape)
    model = lambda x: jax.checkpoint(lambda x, mask: x @ (WEIGHT * mask))(x, mask())
    np.testing.assert_allclose(lrp(model, rules.Epsilon())(X), model(X), rtol=1e-5, atol=1e-6)
