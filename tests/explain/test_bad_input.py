"""What is refused: every row of the tables on the page `book/errors.md`, and what looks alike and is not refused."""

import builtins
import functools
import importlib
import re
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras_like
import numpy as np
import pytest
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from matplotlib.figure import Figure

from lrp_book import errors as book_errors
from lrp_jax import (
    baselines,
    composites,
    errors,
    evaluation,
    ledger,
    lrp,
    mark,
    plan,
    plotting,
    relevance,
    rules,
    target,
    treatments,
)
from lrp_jax.core.forms import Form
from lrp_jax.errors import InputError, LRPWarning, ModelError, RuleError
from lrp_jax.explain_dataset import explain_dataset

PAGE = Path(__file__).parents[2] / "book" / "errors.md"
ROWS = dict(re.findall(r"^\| (.+?) \| `(\w+)` \| .+ \|$", PAGE.read_text(), re.MULTILINE))

KEY = jax.random.key(0)
WEIGHT = jax.random.normal(KEY, (4, 3))
X = jax.random.normal(jax.random.key(1), (5, 4))
IMAGES = jax.random.normal(jax.random.key(2), (3, 6, 6, 4))
CANCELLING = np.float32([[1.0], [-1.0], [1.0], [-0.9999]])
NOT_FINITE = treatments.Treatment("infinite", {Form.RATIO: lambda call: (call.cotangents[0] * jnp.inf,)})


def network(x):
    return jax.nn.relu(x @ WEIGHT)


def tensor_parallel(x):
    mesh, features = jax.sharding.AbstractMesh((2,), ("features",)), jax.P(None, "features")
    parts = lambda x, weight: jax.lax.psum(x @ weight, "features")
    return jax.shard_map(parts, mesh=mesh, in_specs=(features, jax.P("features")), out_specs=jax.P())(x, WEIGHT)


class TorchModule:
    __module__ = "torch.nn.modules.module"

    def __call__(self, x):
        raise AssertionError

    def forward(self, x):
        raise TypeError("linear(): argument 'input' (position 1) must be Tensor, not JitTracer")


TORCH_MODULE = TorchModule()


class OfTwoInputs(keras_like.Model):
    inputs = (types.SimpleNamespace(name="image"), types.SimpleNamespace(name="text"))

    def call(self, x):
        raise ValueError("Output with path `` is not connected to `inputs`")


def hk_dropout(x):
    dropout = hk.transform(lambda x: hk.dropout(hk.next_rng_key(), 0.5, x @ WEIGHT))
    return dropout.apply({}, None, x)


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


def variables_of(module, x):
    """Positive numbers as the variables of a module of Linen: nothing is compiled for them."""
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(module.init, {"params": KEY, "dropout": KEY}, x)
    return jax.tree.map(lambda leaf: generator.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype), shapes)


def linen(x=X, keys=True, mutable=("batch_stats",), **options):
    """A function of x, and nothing but x, whose updated statistics are thrown away."""
    module = LinenModule(**options)
    variables = variables_of(module, x)
    rngs = {"dropout": KEY} if keys else None
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
    parameters, state = jax.jit(transformed.init, static_argnums=2)(KEY, X, True)
    return lambda x: transformed.apply(parameters, state, None, x, is_training)[0]


def keras_model(built=True, weight=None):
    model = keras_like.Dense("dense", WEIGHT)
    model.built = built
    if weight is not None:
        model.variables[0].stored = weight
    return model


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


@dataclass
class ChangingRule(rules.Rule):
    """A rule that is not frozen."""

    power: float = 1.0


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


def repeated(x):
    hidden = checkpoint_name(jax.nn.relu(x @ WEIGHT), "hidden")
    return checkpoint_name(jax.nn.relu(hidden @ WEIGHT.T), "hidden")


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
    from lrp_book.pretrained import read_safetensors

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
        r"their numbers differ: 5 in x\['a'\], 2 in x\['b'\].*array\[None\], x\), and pass jax\.vmap\(model\)",
    ),
    "`x` holds integers that are not looked up in an embedding, or whose size meets a live value": (
        lambda: explain(network, jnp.ones((5, 4), jnp.uint8)),
        r"embedding.*astype\('float32'\)",
    ),
    "`x` holds complex numbers": (lambda: explain(network, X + 1j), r"complex64"),
    "`x` holds truth values": (
        lambda: explain(network, X > 0),
        r"bool.*astype\('float32'\)\. A mask stays outside .*lambda x: model\(x, mask\)",
    ),
    "`x` is a list of numbers, not an array": (
        lambda: explain(network, [[1.0, 2.0, 3.0, 4.0]]),
        r"x\[0\]\[0\] is no array of numbers, but a float. Pass jnp.asarray\(x\)",
    ),
    "The model and `x` are in each other's place": (
        lambda: relevance(X, network),
        "x is no array of numbers, but a function. The model is the first argument, and x the second",
    ),
    "`x` holds strings": (
        lambda: explain(network, {"image": X, "name": "cat"}),
        r"x\['name'\] is no array of numbers, but a str",
    ),
    "`x` is None": (lambda: explain(network, None), "holds no array"),
    "`x` is a shape without numbers": (
        lambda: explain(network, jax.ShapeDtypeStruct((5, 4), jnp.float32)),
        "ShapeDtypeStruct, which has no numbers.*Pass an array",
    ),
    "`x` is a masked array": (lambda: explain(network, np.ma.masked_array(X, X > 0)), "holds a masked array"),
    "`x` holds dates, texts or objects": (
        lambda: explain(network, np.array([["2020-01-01"] * 4], "datetime64[D]")),
        r"but an array of datetime64\[D\] of shape \(1, 4\)",
    ),
    "`x` is larger than the memory": (
        lambda: explain(network, np.broadcast_to(np.float32(1), (2**38, 4))),
        "too large for the memory.*a part at a time",
    ),
    "`x` is NaN or infinite somewhere": (
        lambda: explain(network, X.at[0, 0].set(jnp.nan).at[1, 1].set(jnp.inf)),
        "2 values of x are NaN or infinite",
    ),
    "The target is not a class": (lambda: explain(network, target=3), "from 0 to 2, for 3 classes, but it is 3"),
    "There are more or fewer targets than samples": (
        lambda: explain(network, target=[0, 1]),
        "5 samples, but 2 targets",
    ),
    "The target is not an integer": (lambda: explain(network, target=0.5), "is an integer"),
    "The target holds something other than numbers": (
        lambda: explain(network, target=["cat"] * 5),
        "The target must be real numbers, but it is a list",
    ),
    "The target is a comparison, an argmax, or held constant": (
        lambda: explain(network, target=lambda output: (output > 0.5).astype(jnp.float32)),
        r"What the target returns does not depend on the output .*'convert_element_type' at .*test_bad_input.py:\d+",
    ),
    "The target does not take exactly one argument": (
        lambda: explain(network, target=lambda output, label: output),
        "The target .* can be called with output alone: missing .*'label'",
    ),
    "The target raises an error": (
        lambda: explain(lambda x: {"class": network(x)}, target=lambda output: output["box"]),
        r"(?s)box.*target raised this when it was called with the model's output: \{'class': 'float32\[5, 3\]'\}",
    ),
    "The target has no return": (lambda: explain(network, target=lambda output: None), "returns nothing.*return"),
    "A mask has another shape than the output": (
        lambda: explain(network, target=jnp.ones((5, 4))),
        r"\(5, 3\), but it has \(5, 4\)",
    ),
    "A rule or a composite is in the place of the target": (
        lambda: explain(network, target=rules.Zero()),
        r"Did you mean rules=Zero\(\)\?",
    ),
    "A class is in the place of the rules": (lambda: relevance(network, X, None, 2), r"Did you mean target=2\?"),
    "No class, or more than one, has the name in `target.name`": (
        lambda: explain(network, target=target.name("tabbi", ["tabby", "lynx"])),
        r"No class has the name 'tabbi'. Did you mean 'tabby'\?",
    ),
    "`target.name` has another number of classes than the output": (
        lambda: explain(network, target=target.name("lynx", ["tabby", "lynx"])),
        "There are 2 names, but the model returns 3 classes",
    ),
    "`target.at` has more places than the output has dimensions, or an index that does not exist": (
        lambda: explain(network, target=target.at[3]),
        r"target.at\[3\] does not fit .*\(5, 3\): an index in dimension 1 is from 0 to 2",
    ),
    "The array in `target.mask` does not broadcast to the output": (
        lambda: explain(network, target=target.mask(jnp.ones(4))),
        r"\(4,\), and broadcasts neither to the output's, \(5, 3\), nor to that of one sample's output, \(3,\)",
    ),
    "The output has more dimensions, and the target is a class": (
        lambda: explain(lambda x: network(x)[..., None], target=2),
        r"choose an entry with target.at\[2, 0\]",
    ),
    "A hidden layer does not exist": (
        lambda: explain(network, at=["head"]),
        "'head' does not exist. There are: dense_0",
    ),
    "A factor in `given` does not broadcast to its layer": (
        lambda: explain(network, given={"dense_0": jnp.ones(7)}),
        r"given\['dense_0'\] has the shape \(7,\), which does not broadcast to \(5, 3\)",
    ),
    "A name in `at` or `given` is that of several values": (
        lambda: explain(repeated, at=["hidden"]),
        r"'hidden' is the name of 2 values, .*checkpoint_name",
    ),
    "`at` is a name, not a list of names": (lambda: explain(network, at="dense_0"), r"Pass at=\['dense_0'\]"),
    "`given` is not a mapping from names to factors": (
        lambda: explain(network, given=["dense_0"]),
        r"is a mapping from names to factors, but it is a list\. Pass given=\{'name': mask\}",
    ),
    "A factor in `given` is not an array of numbers": (
        lambda: explain(network, given={"dense_0": "all"}),
        r"given\['dense_0'\] must be real numbers, but it is a str",
    ),
    "`batch_size` is 0": (lambda: explain(network, batch_size=0), "at least 1, but it is 0"),
    "`batch_size` is not an integer": (lambda: explain(network, batch_size=1.5), r"an integer .*but it is 1\.5"),
    "`argnums` is neither an integer nor a sequence of integers": (
        lambda: lrp(network, rules.Zero(), argnums="x"),
        "argnums must be an integer .*'x'",
    ),
    "`argnums` names an argument that the call does not have": (
        lambda: lrp(network, rules.Zero(), argnums=1)(X),
        r"argnums=\(1,\).*1 were given",
    ),
    '`inference` is neither `"checked"` nor `"assumed"`': (
        lambda: explain(network, inference="training"),
        '"checked" or "assumed", but it is \'training\'',
    ),
    "A derivative with regard to the parameters of `lrp(fun)`": (
        lambda: jax.grad(lrp(lambda weight, x: (x @ weight).sum(), rules.Zero(), argnums=1))(WEIGHT, X),
        "differentiate the original function",
    ),
    "A derivative of `lrp(fun)` in forward mode, such as `jax.jvp` or `jax.jacfwd`": (
        lambda: jax.jvp(lrp(network, rules.Zero()), (X,), (X,)),
        "backwards, .* with jax.grad, jax.vjp or jax.jacrev",
    ),
    # The model.
    "It cannot be called": (lambda: explain(WEIGHT), "The model must be a function, but it is an array"),
    "It is a class, not an instance of it": (
        lambda: explain(NNXModule),
        "is the class NNXModule, .* NNXModule\\(...\\)",
    ),
    "It is a PyTorch module": (lambda: explain(TorchModule()), r"PyTorch module TorchModule.*torchax.extract_jax"),
    "It is a function that calls a PyTorch module": (
        lambda: explain(lambda x: TORCH_MODULE.forward(x)),
        r"calls a PyTorch module at .*test_bad_input.py:\d+.* torchax\.extract_jax",
    ),
    "It is the two functions that Haiku makes": (
        lambda: explain(hk.without_apply_rng(hk.transform(lambda x: hk.Linear(3)(x)))),
        r"is a Transformed, .*functools\.partial\(network\.apply, params\)",
    ),
    "It is an `apply` without parameters": (
        lambda: explain(hk.transform(lambda x: hk.Linear(3)(x)).apply),
        r"missing.*'rng'\. Its first argument, params, .*functools\.partial\(network\.apply, params\), with None",
    ),
    "It is an `apply` of Haiku that lacks the key": (
        lambda: explain(functools.partial(hk.transform(lambda x: hk.Linear(3)(x)).apply, {})),
        r"missing.*'x'\. Its first argument, rng, is a key: functools\.partial\(network\.apply, params, None\)",
    ),
    "It is an `apply` of Haiku that lacks the state": (
        lambda: explain(functools.partial(hk.transform_with_state(lambda x: hk.Linear(3)(x)).apply, {})),
        r"missing.*'rng'\. Its first argument is a state\..*lambda x: network\.apply\(params, state, None, x\)\[0\]",
    ),
    "`x` is a tuple, and the model takes several arguments": (
        lambda: relevance(lambda x, y: x @ WEIGHT + y, (X, X[:, :3])),
        r"missing.*'y'\. If the 2 parts of x .*lambda x: model\(\*x\)",
    ),
    "`x` is a dictionary, and the model takes its entries as arguments": (
        lambda: relevance(lambda x, y: x @ WEIGHT + y, {"x": X, "y": X[:, :3]}),
        r"missing.*'y'\. If the entries of x .*lambda x: model\(\*\*x\)",
    ),
    "Keras: a model that has not been built": (
        lambda: explain(keras_model(built=False)),
        "no weights yet.*Call it once",
    ),
    "Keras: a model that does not run on JAX": (
        lambda: explain(keras_model(weight=[1.0])),
        r"does not run on JAX: its weight kernel is a list\..*KERAS_BACKEND to jax",
    ),
    "Keras: a layer that changes its state without `training`": (
        lambda: explain(keras_like.Model("network", keras_like.BatchNorm("norm", np.zeros(4), asks=False))),
        r"network changes its state .*training=False: norm\.moving_mean",
    ),
    "Keras: other inputs than the model has": (
        lambda: explain(OfTwoInputs("network", keras_like.Dense("dense", WEIGHT))),
        r"has the inputs image, text, but it was called with x: float32\[5, 4\]\. Let x be a list of them",
    ),
    "Flax Linen: a module without its variables": (
        lambda: explain(nn.Dense(3)),
        r"Linen module without its variables\. Pass functools\.partial\(module\.apply, variables\)",
    ),
    "Flax Linen: a bound module under `jax.jit`": (
        lambda: explain(jax.jit(nn.Dense(3).bind({"params": {"kernel": WEIGHT, "bias": WEIGHT[0]}}))),
        r"bound to its variables, under jax\.jit.*jax\.jit\(lambda x: module\.apply",
    ),
    "Flax Linen: parameters without their collection": (
        lambda: explain(functools.partial(nn.Dense(3).apply, {"kernel": WEIGHT, "bias": WEIGHT[0]})),
        r'lack a collection.*\{"params": params',
    ),
    "It does not take exactly one argument": (
        lambda: explain(with_parameters),
        "The model .*: missing a required argument: 'x'",
    ),
    "It returns something that is not an array": (lambda: explain(lambda x: (network(x), "cat")), "returns a str"),
    "It returns nothing": (lambda: explain(lambda x: None), "returns None, and no array: is its return missing"),
    "It returns several arrays": (
        lambda: explain(lambda x: {"box": x.sum(1), "class": network(x)}),
        r"'class': \(5, 3\).*lambda x: model\(x\)\['class'\], .*lambda output: output\['class'\]\[:, 0\]",
    ),
    "It returns no classes": (lambda: explain(lambda x: x @ WEIGHT[:, :0]), r"no classes, but \(5, 0\)"),
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
    "Flax NNX: a module with `nnx.RNN` or `nnx.scan` inside of a function": (
        lambda: (lambda module: explain(lambda x: module(x[:, None])[:, 0]))(
            nnx.RNN(nnx.SimpleCell(4, 3, rngs=nnx.Rngs(0)))
        ),
        r"changes its state at .*different trace level.*lambda x: nnx\.clone\(model\)\(x\)",
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
    "Equinox: dropout without a key": (
        lambda: explain(jax.vmap(eqx.nn.Sequential([eqx.nn.Linear(4, 3, key=KEY), eqx.nn.Dropout(0.5)]))),
        r"training mode.*requires a key.* mode\. Switch.*eqx\.nn\.inference_mode\(model\)",
    ),
    "Haiku: batch normalisation in training mode": (
        lambda: explain(haiku(True)),
        r"statistics of this batch.*is_training=False",
    ),
    "Haiku: dropout without a key": (
        lambda: explain(hk_dropout),
        r"training mode.*non-None PRNGKey.*is_training=False for Haiku",
    ),
    "A mask or noise is drawn in it, and multiplies": (
        lambda: explain(lambda x: x * jnp.floor(0.5 + jax.random.uniform(jax.random.key(0), x.shape)) @ WEIGHT),
        r'dropout is active at .*test_bad_input.py:\d+.*draw it outside of the model, or pass inference="assumed"',
    ),
    "It normalises over its first dimension, which is not that of samples": (
        lambda: lrp(lambda nodes: batch_norm(nodes) @ WEIGHT, rules.Zero())(X),
        r'statistics of this batch at .*test_bad_input.py:\d+.*nodes of a graph.*pass inference="assumed"',
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
    "It returns something other than samples and classes": (
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
        r"'while' at .*test_bad_input.py:\d+.*not known how often it runs\. Write it with jax\.lax\.scan",
    ),
    "In a `jax.shard_map` several devices compute parts of one sample": (
        lambda: explain(tensor_parallel),
        r"shard_map at .*test_bad_input.py:\d+ .*'psum.*' at .*test_bad_input.py:\d+.*leave the shard_map out",
    ),
    "It calculates with complex numbers, and not linearly": (
        lambda: explain(lambda x: jnp.exp(jnp.fft.fft(x)).real @ WEIGHT),
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
    "epsilon is not a number": (lambda: rules.Epsilon("1e-6"), "epsilon='1e-6'.*must be a number"),
    "gamma is several numbers": (lambda: rules.Gamma(np.ones(3)), r"gamma=float64\[3\].*one number.*jax.vmap"),
    "alpha or beta is traced": (
        lambda: jax.vmap(lambda alpha: rules.AlphaBeta(alpha, alpha - 1))(jnp.ones(3)),
        "alpha is traced, and cannot be.*which products are computed.*loop in Python",
    ),
    "low is larger than high": (lambda: rules.ZBox(1.0, 0.0), "Swap them"),
    "A bound of z-box is infinite": (lambda: rules.ZBox(-float("inf"), 1.0), "must be finite"),
    "A bound of z-box is not a number": (lambda: rules.ZBox(None, 1.0), r"ZBox\(low=None\): low must be a number"),
    "The bounds of z-box do not broadcast to each other": (
        lambda: rules.ZBox((0.0, 0.0), (1.0, 1.0, 1.0)),
        r"low of shape \(2,\) and high of shape \(3,\) do not fit",
    ),
    "The bounds of z-box do not broadcast to the input": (
        lambda: explain(network, rule=rules.ZBox((0.0, 0.0), (1.0, 1.0))),
        r"bounds of shape \(2,\) \(low\) do not broadcast to the input of the layer 'dense_0', of shape \(5, 4\)",
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
        lambda: explain(network, rule=composites.with_treatment(rules.Zero(), "gelu", treatments.smooth)),
        "treatment for 'gelu' matches nothing. There are: ",
    ),
    "A mark is put at a place that does not exist": (
        lambda: explain(network, rule=composites.with_mark(rules.Zero(), "head", mark.gate)),
        r"with_mark\('head', mark.gate\) matches no layer .*There are: dense_0",
    ),
    "The function has no layer, and the rules are for layers": (
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
    "A rule of your own can change": (
        lambda: lrp(network, ChangingRule()),
        r"frozen=True\)' above 'class ChangingRule'",
    ),
    "A selector raises something": (
        lambda: lrp(network, [(lambda layer: layer.size, rules.Zero())])(X),
        "The selector <lambda> raised .*AttributeError.* for the layer 'dense_0'",
    ),
    "A pair without a rule": (lambda: composites.Composite([rules.Epsilon()]), "is no pair"),
    "Something that is not a selector": (lambda: composites.Composite([(3, rules.Zero())]), "3 selects no layers"),
    "A pattern that is not a regular expression": (lambda: composites.name("("), r"name\('\('\).*regular expression"),
    # Relevance.
    "Relevance grows more than 1,000-fold on its way": (
        lambda: explain(lambda x: x @ CANCELLING, jnp.ones((1, 4)), 0, rules.Zero()),
        r"sample 0 has .* times .*dense_0 \(dense\), where it grows",
    ),
    "Less than 5 % of what is explained arrives at the input": (
        lambda: explain(lambda x: network(x) + 1e4, X, 0, rules.Zero()),
        "Relevance vanishes: .* that are explained arrive at the input, .*lrp_jax.ledger",
    ),
    "A ledger that does not close": (
        lambda: ledger(jnp.tanh, X, 0, composites.with_treatment(rules.Zero(), "tanh", NOT_FINITE)),
        "does not close.*treatment of your own",
    ),
    "A ledger of a modified gradient": (
        lambda: ledger(network, X, 0, composites.GuidedBackprop()),
        "no account of guided backpropagation",
    ),
    "A ledger inside of `jax.jit`": (
        lambda: jax.jit(lambda x: ledger(network, x, 0, rules.Zero()).inputs)(X),
        r"numbers, .* outside of jax\.jit",
    ),
    # Arguments of the other functions.
    "What should be an array is not one, or holds something other than real numbers": (
        lambda: baselines.gradient(network, np.array([["a"]])),
        r"x must be real numbers, but it is an array of <U1 of shape \(1, 1\)",
    ),
    "What should be a number is not one, or is out of range": (
        lambda: evaluation.top_overlap(X, X, "half"),
        "fraction is a fraction of the inputs, .* at most 1, but it is 'half'",
    ),
    "A number of steps or samples is not a positive integer": (
        lambda: baselines.integrated_gradients(network, X, 0, steps=2.5),
        "steps must be an integer up to 2147483647, but it is 2.5",
    ),
    "What should be a key is not one": (
        lambda: baselines.smoothgrad(network, X, 0, key=0),
        r"jax\.random\.key\(0\), but it is an int",
    ),
    "An image or a map holds no numbers": (
        lambda: plotting.heatmap([["red", "blue"]], Figure().subplots()),
        "The relevance must be real numbers, but it is a list",
    ),
    "Images and maps differ in size": (
        lambda: plotting.grid(np.zeros((1, 2, 3)), np.zeros((1, 3, 2)), ["a"]),
        r"The images have \(2, 3\) pixels, but the maps \(3, 2\)",
    ),
    "It cannot be told where the channels of a picture or a series are": (
        lambda: plotting.heatmap(np.zeros((3, 5, 3))),
        r"cannot be told where the channels are\. Pass channel_axis=-1",
    ),
    "A map has other proportions than the image below it": (
        lambda: plotting.overlay(np.zeros((20, 30)), np.zeros((10, 10))),
        "whose proportions are others. Pass the image as it went into the model",
    ),
    "The number of names of classes, or of words, does not fit": (
        lambda: plotting.words(["a"], [1.0, 2.0]),
        "There are 2 words, but 1 tokens",
    ),
    "What is drawn into is not an axes": (
        lambda: plotting.heatmap([[1.0]], Figure()),
        "ax must be axes .* it is a Figure",
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
    "A checkpoint cannot be written where it belongs": (
        "test_training.test_directory_that_cannot_be_written_is_refused_before_the_training"
    ),
    "A checkpoint cannot be written after the training": (
        "test_training.test_network_is_returned_though_the_disk_is_full"
    ),
    "The names of the classes are truncated": "test_pretrained.test_truncated_names_are_refused",
    "The names of the classes are others, or not in UTF-8": "test_pretrained.test_other_names_are_refused",
    "An original file of a data set is damaged": "test_datasets.test_damaged_original_file_is_named",
    "The prepared copy of a data set is truncated": "test_datasets.test_truncated_prepared_copy_is_reported",
    "The prepared copy of a data set holds other images or labels": (
        "test_datasets.test_prepared_copy_with_other_images_is_reported"
    ),
    "The description of a prepared data set is damaged": "test_datasets.test_damaged_description_is_reported",
    "A data set cannot be written where it belongs": "test_datasets.test_file_in_the_place_of_the_data_folder",
    "A store holds the explanations of another run": "test_explain_dataset.test_store_of_another_run_is_refused",
    "A store holds the explanations of other data": (
        "test_explain_dataset.test_other_data_with_the_same_first_sample_are_refused"
    ),
    "A store is damaged, or a part of it was lost": (
        "test_explain_dataset.test_flipped_bit_in_any_chunk_is_found_on_opening"
    ),
    "A store that is being continued is damaged": (
        "test_explain_dataset.test_what_is_damaged_or_lost_is_explained_again"
    ),
    "The metadata of a store are damaged": "test_explain_dataset.test_damaged_metadata_are_named",
    "A store cannot be written": "test_explain_dataset.test_full_disk",
    "A source has fewer elements than it says": "test_explain_dataset.test_source_that_drops_a_record_is_refused",
    "`target_of` does not return a class": "test_explain_dataset.test_target_of_returns_a_class",
    "`reduce` or `prepare` returns nothing": "test_explain_dataset.test_what_does_not_fit",
    "tqdm is not installed, and a progress bar is to be shown": (
        "test_explain_dataset.test_progress_bar_is_not_needed"
    ),
    "matplotlib is not installed, and a picture is to be drawn": (
        "test_plotting.test_grid_without_matplotlib_names_the_extra"
    ),
    "Something that cannot be saved, such as a rule of your own": (
        lambda path: composites.as_composite(OwnRule(None)).save(path),
        r"Composite.rules\[0\]\[1\] cannot be saved: it is OwnRule",
    ),
    "A path that cannot be written": (
        lambda path: rules.Zero().save(path / "missing" / "file"),
        "cannot be written: there is no folder .*Make it first",
    ),
    "A picture as PNG under the ending of another format": "test_pictures.test_to_png_writes_what_plot_draws",
    "A file of an explanation, a composite or a rule is damaged, or is not such a file": (
        lambda path: (path.write_bytes(b"123"), rules.Rule.load(path)),
        "no file that save has written, or is damaged",
    ),
    "It was written by a later version": "test_attribution.test_file_that_is_none_is_refused",
}


def test_every_row_of_the_page_has_its_case():
    assert list(ROWS) == list(CASES)


@pytest.mark.parametrize("row", CASES)
def test_row_of_the_page(row, tmp_path, monkeypatch):
    case = CASES[row]
    if isinstance(case, str):
        monkeypatch.syspath_prepend(Path(__file__).parents[1] / "book")
        module, _, name = case.partition(".")
        assert callable(getattr(importlib.import_module(module), name))
        return
    bad, message = case
    kind = next(getattr(place, ROWS[row]) for place in (errors, builtins, book_errors) if hasattr(place, ROWS[row]))
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


FIXED = 2.0 * jax.random.bernoulli(jax.random.key(0), 0.5, X.shape)
KEEP = {
    "relevance": lambda **options: relevance(masked, X, 0, rules.Zero(), **options).relevance,
    "relevance, in batches": lambda **options: (
        relevance(jax.vmap(lambda x: masked(x[None])[0]), X, 0, rules.Zero(), batch_size=2, **options).relevance
    ),
    "ledger": lambda **options: ledger(masked, X, 0, rules.Zero(), **options).inputs,
    "plan": lambda **options: len(plan(masked, X, rules.Zero(), **options).rows),
    "lrp": lambda **options: jax.grad(lambda x: lrp(masked, rules.Zero(), **options)(x)[:, 0].sum())(X),
    "gradient": lambda **options: baselines.gradient(masked, X, 0, **options) * X,
    "gradient times input": lambda **options: baselines.gradient_times_input(masked, X, 0, **options),
    "integrated gradients": lambda **options: baselines.integrated_gradients(masked, X, 0, steps=2, **options),
    "smoothgrad": lambda **options: baselines.smoothgrad(masked, X, 0, key=jax.random.key(0), samples=2, **options) * X,
    "occlusion": lambda **options: baselines.occlusion(masked, X, 0, window=1, **options),
    "mean replacement": lambda **options: baselines.mean_replacement(masked, X, 0, **options),
    "pixel flipping": lambda **options: evaluation.pixel_flipping(masked, X, X, 0, steps=2, **options)[:, 0],
}


def masked(x):
    return x * (2.0 * jax.random.bernoulli(jax.random.key(0), 0.5, X.shape))[: len(x)] @ WEIGHT


@pytest.mark.parametrize("door", KEEP)
def test_every_door_assumes_inference_mode(door):
    with pytest.raises(ModelError, match=r'training mode.*dropout.*pass inference="assumed"'):
        KEEP[door]()
    for wrong in ("eval", None, True):
        with pytest.raises(InputError, match=f"inference must be .* but it is {wrong!r}"):
            KEEP[door](inference=wrong)
    found = KEEP[door](inference="assumed")
    mask = FIXED if "batches" not in door else FIXED[:1]
    expected = X * mask * WEIGHT[:, 0]
    if door == "plan":
        assert found == 2  # the mask and the layer
    elif door == "ledger":
        np.testing.assert_allclose(found, expected.sum(), rtol=1e-5)
    elif door == "pixel flipping":
        np.testing.assert_allclose(found, expected.sum(1), rtol=1e-5)
    elif door == "mean replacement":
        mean = X.mean(1, keepdims=True)
        np.testing.assert_allclose(found, (X - mean) * mask * WEIGHT[:, 0], rtol=1e-4, atol=1e-5)
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_data_set_of_a_model_that_is_assumed_to_be_in_inference_mode(tmp_path):
    mask = lambda x: x * (2.0 * jax.random.bernoulli(jax.random.key(0), 0.5, (4,))) @ WEIGHT
    with pytest.raises(ModelError, match=r'dropout.*pass inference="assumed"'):
        explain_dataset(mask, np.asarray(X), tmp_path / "a", 0, rules.Zero(), progress=False)
    with pytest.raises(InputError, match="inference must be"):
        explain_dataset(mask, np.asarray(X), tmp_path / "a", 0, rules.Zero(), progress=False, inference="eval")
    stored = explain_dataset(
        mask, np.asarray(X), tmp_path / "b", 0, rules.Zero(), batch_size=2, progress=False, inference="assumed"
    )
    expected = relevance(mask, X, 0, rules.Zero(), inference="assumed").relevance
    np.testing.assert_allclose(stored["relevance"].read().result(), expected, rtol=1e-5, atol=1e-6)


def test_value_of_inference_is_looked_at_before_the_call():
    with pytest.raises(InputError, match="inference must be"):
        lrp(network, rules.Zero(), inference="off")


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


def noise(draw):
    return lambda x: x * draw(jax.random.key(0), x.shape) @ WEIGHT


def uniform(x, key=None):
    return jax.random.uniform(jax.random.key(0) if key is None else key, x.shape)


DROPOUTS = {
    "a mask that multiplies": lambda x: x * jax.random.bernoulli(jax.random.key(0), 0.5, x.shape) @ WEIGHT,
    "a key for each sample": lambda x: jax.vmap(dropout)(x, jax.random.split(jax.random.key(0), len(x))) @ WEIGHT,
    "whole channels": lambda x: x * jax.random.bernoulli(jax.random.key(0), 0.5, (1, x.shape[1])) @ WEIGHT,
    "of attention": lambda x: (
        jax.nn.softmax(x @ x.T) * (jax.random.bernoulli(jax.random.key(0), 0.5, (len(x), len(x))) / 0.5) @ x @ WEIGHT
    ),
    "an older key": lambda x: dropout(x, jax.random.PRNGKey(0)) @ WEIGHT,
    "floor, after": lambda x: (x * jnp.floor(0.7 + uniform(x)) / 0.7) @ WEIGHT,
    "floor, before": lambda x: (x / 0.7) * jnp.floor(0.7 + uniform(x)) @ WEIGHT,
    "ceil": lambda x: x * jnp.ceil(uniform(x) - 0.3) @ WEIGHT,
    "rounded": lambda x: x * jnp.round(uniform(x)) @ WEIGHT,
    "sign": lambda x: x * (1 + jnp.sign(uniform(x) - 0.5)) @ WEIGHT,
    "a comparison, cast": lambda x: x * (uniform(x) < 0.7).astype(x.dtype) / 0.7 @ WEIGHT,
    "where": lambda x: jnp.where(uniform(x) < 0.7, x / 0.7, 0) @ WEIGHT,
    "integers": lambda x: x * jax.random.randint(jax.random.key(0), x.shape, 0, 2) @ WEIGHT,
    "chosen numbers": lambda x: x * jax.random.choice(jax.random.key(0), jnp.array([0.0, 2.0]), x.shape) @ WEIGHT,
    "a quotient": lambda x: x / (1 / jax.random.bernoulli(jax.random.key(0), 0.5, x.shape)) @ WEIGHT,
    "einsum": lambda x: jnp.einsum("nf,f->nf", x, jnp.floor(0.7 + uniform(x[0]))) @ WEIGHT,
    "masks drawn in a loop": lambda x: (
        (x * jax.lax.map(lambda key: jnp.floor(0.7 + uniform(x[0], key)), jax.random.split(jax.random.key(0), len(x))))
        @ WEIGHT
    ),
    "stochastic depth": lambda x: (
        jax.lax.cond(jax.random.bernoulli(jax.random.key(0)), jnp.tanh, lambda x: x, x) @ WEIGHT
    ),
    "by the value": lambda x: jnp.where(jax.nn.sigmoid(x) > uniform(x), x, 0) @ WEIGHT,
    "a key as an argument": functools.partial(
        lambda key, x: x * jnp.floor(0.7 + uniform(x, key)) @ WEIGHT, jax.random.key(1)
    ),
    "in a piece": lambda x: mark.piece(dropout, treatments.smooth)(x) @ WEIGHT,
    "Gaussian noise that multiplies": noise(lambda key, shape: 1 + 0.3 * jax.random.normal(key, shape)),
    "truncated noise that multiplies": noise(lambda key, shape: jax.random.truncated_normal(key, -1, 1, shape)),
    "gamma noise that multiplies": noise(lambda key, shape: jax.random.gamma(key, 1.0, shape)),
    "a sampled latent": lambda x: (x + jnp.exp(x) * jax.random.normal(jax.random.key(0), x.shape)) @ WEIGHT,
}


@pytest.mark.parametrize("name", DROPOUTS)
def test_dropout_is_found(name):
    with pytest.raises(ModelError, match="dropout is active"):
        plan(DROPOUTS[name], X)


W4 = jax.random.normal(jax.random.key(3), (4, 4))


def normalised_by(inverse, variance=lambda x: x.var(0)):
    return lambda x: (x - x.mean(0)) * inverse(variance(x) + 1e-5)


def linen_over_axis():
    norm = nn.BatchNorm(use_running_average=False, axis_name="batch")
    variables = variables_of(norm, X)
    one = lambda x: norm.apply(variables, x.mean((0, 1)), mutable=["batch_stats"])[0] @ WEIGHT
    return jax.vmap(one, axis_name="batch")


def batch_norm_over_axis(x, together=False):
    if together:
        mean, square = jnp.split(jax.lax.pmean(jnp.concatenate([x, x**2]), "batch"), 2)
    else:
        mean, square = jax.lax.pmean(x, "batch"), jax.lax.pmean(x**2, "batch")
    return (x - mean) / jnp.sqrt(square - mean**2 + 1e-5)


def convolution(x):
    return jax.lax.conv_general_dilated(
        x, jnp.ones((2, 2, 4, 4)), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


SPELLINGS = {
    "power": normalised_by(lambda v: v**-0.5),
    "array as the power": normalised_by(lambda v: jnp.power(v, jnp.array(-0.5))),
    "1 / sqrt": normalised_by(lambda v: 1 / jnp.sqrt(v)),
    "1 / (sqrt + epsilon)": normalised_by(lambda v: 1 / (jnp.sqrt(v) + 0.1)),
    "logarithm": normalised_by(lambda v: jnp.exp(-jnp.log(v) / 2)),
    "mean of squares less square of the mean": normalised_by(jax.lax.rsqrt, lambda x: (x**2).mean(0) - x.mean(0) ** 2),
    "the same, with products, and not below zero": normalised_by(
        lambda v: v**-0.5, lambda x: jnp.maximum((x * x).mean(0) - x.mean(0) * x.mean(0), 0)
    ),
    "matrix products": normalised_by(
        jax.lax.rsqrt, lambda x: jnp.einsum("nf,nf->f", x - x.mean(0), x - x.mean(0)) / len(x)
    ),
    "weights of the samples": normalised_by(
        jax.lax.rsqrt, lambda x: jnp.full(len(x), 1 / len(x)) @ (x - x.mean(0)) ** 2
    ),
    "no division by zero": lambda x: (x - x.mean(0)) / jnp.where(x.std(0) == 0, 1, x.std(0)),
    "statistics held": lambda x: (
        (x - jax.lax.stop_gradient(x.mean(0))) / jax.lax.stop_gradient(jnp.sqrt(x.var(0) + 1e-5))
    ),
    "scale and shift": lambda x: (
        x * (W4[0] / jnp.sqrt(x.var(0) + 1e-5)) + (W4[1] - x.mean(0) * W4[0] / jnp.sqrt(x.var(0) + 1e-5))
    ),
    "folded into the weight": lambda x: x @ (jax.lax.rsqrt(x.var(0) + 1e-5)[:, None] * W4),
    "jax.nn.standardize": lambda x: jax.nn.standardize(x, 0),
    "under jit": jax.jit(lambda x: normalised_by(lambda v: v**-0.5)(x)),
    "behind a relu": lambda x: normalised_by(jax.lax.rsqrt, lambda x: (x**2).mean(0) - x.mean(0) ** 2)(jax.nn.relu(x)),
}

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
    "of merged positions": lambda x: batch_norm(x.reshape(-1, 4)).reshape(len(x), 36, 4).mean(1) @ WEIGHT,
    "of one channel": lambda x: batch_norm(x[..., :1], (0, 1, 2)).reshape(len(x), -1),
    "in two steps": lambda x: (
        (lambda d: d * jax.lax.rsqrt((d**2).mean((1, 2)).mean(0) + 1e-5))(x - x.mean((0, 1, 2))).mean((1, 2)) @ WEIGHT
    ),
    "Linen, over an axis of a map": linen_over_axis(),
    "channels first, keeping dimensions": lambda x: (
        (lambda y: y / y.std((np.int64(0), 2, 3), keepdims=True))(jnp.moveaxis(x, -1, 1)).mean((2, 3)) @ WEIGHT
    ),
    "behind a loop over the samples": lambda x: batch_norm(jax.lax.map(lambda image: image.mean((0, 1)), x)) @ WEIGHT,
    "from a branch": lambda x: (
        (lambda mean, variance: (x - mean) / jnp.sqrt(variance + 1e-5))(
            *jax.lax.cond(x.sum() > 0, lambda x: (x.mean((0, 1, 2)), x.var((0, 1, 2))), lambda x: (W4[0], W4[1]), x)
        ).mean((1, 2))
        @ WEIGHT
    ),
    "in a piece": lambda x: mark.piece(lambda x: batch_norm(x.mean((1, 2))), treatments.smooth)(x) @ WEIGHT,
    "chosen columns": lambda x: batch_norm(x.mean((1, 2))[:, jnp.array([3, 1, 2, 0])]) @ WEIGHT,
    "of the last token": lambda x: batch_norm(x[jnp.arange(len(x)), 2].mean(1)) @ WEIGHT,
    "under vmap": lambda x: jax.vmap(lambda x: batch_norm_over_axis(x) @ WEIGHT, axis_name="batch")(x.mean((1, 2))),
    "under vmap, the moments together": lambda x: jax.vmap(
        lambda x: batch_norm_over_axis(x, together=True) @ WEIGHT, axis_name="batch"
    )(x.mean((1, 2))),
    **{
        f"spelling: {name}": lambda x, spelling=spelling: spelling(jnp.tanh(x.mean((1, 2)) @ W4)) @ WEIGHT
        for name, spelling in SPELLINGS.items()
    },
}


@pytest.mark.parametrize("name", BATCH_NORMS)
@pytest.mark.parametrize("samples", [1, 3])
def test_batch_statistics_are_found(name, samples):
    x = X if name == "product with the inverse" else IMAGES
    with pytest.raises(ModelError, match="statistics of this batch"):
        plan(BATCH_NORMS[name], x[:samples])


@pytest.mark.parametrize("together", [False, True])
def test_batch_statistics_over_an_axis_of_a_map_outside_are_found(together):
    model = lambda x: batch_norm_over_axis(x, together=together) @ WEIGHT
    with pytest.raises(ModelError, match="statistics of this batch"):
        jax.vmap(lrp(model, rules.Zero()), axis_name="batch")(X)
    tensor_parallel = lambda x: (
        (x - jax.lax.pmean(x.mean(), "parts")) * jax.lax.rsqrt(jax.lax.pmean((x**2).mean(), "parts"))
    )
    jax.eval_shape(jax.vmap(lrp(lambda x: tensor_parallel(x) @ WEIGHT, rules.Epsilon()), axis_name="parts"), X)


def test_batch_statistics_of_what_returns_an_image_are_found():
    # A convolution shows that the first dimension is that of its batch.
    model = lambda x: convolution(batch_norm(convolution(x), (0, 1, 2)))
    with pytest.raises(ModelError, match="statistics of this batch"):
        lrp(model, rules.Epsilon())(IMAGES)


def test_batch_statistics_behind_a_thousand_operations_are_found():
    def variance(x):
        found = x.var(0)
        for _ in range(1200):
            found = found + 1e-5
        return found

    with pytest.raises(ModelError, match="statistics of this batch"):
        plan(lambda x: (x - x.mean(0)) * jax.lax.rsqrt(variance(x)) @ WEIGHT, X)


def test_batch_statistics_of_embedded_integers_are_found():
    table = jax.random.normal(jax.random.key(0), (7, 4))
    with pytest.raises(ModelError, match="statistics of this batch"):
        plan(lambda tokens: batch_norm(table[tokens].mean(1)) @ WEIGHT, jnp.array([[1, 2, 3], [4, 5, 6]]))


# What looks like training mode and is none.


def evaluated():
    module = NNXModule(rate=0.5)
    module.eval()
    return module


def one_image(x):
    """An instance normalisation of one image, without a dimension for the samples."""
    return batch_norm(x, (0, 1)).mean((0, 1)) @ WEIGHT


SWITCHED = {
    "NNX, evaluated": evaluated,
    "Linen, with running averages": functools.partial(
        linen, norm=nn.BatchNorm(use_running_average=True), is_training=False, rate=0.5
    ),
    "Equinox, in inference mode": functools.partial(equinox, rate=0.5, inference=True),
    "Haiku, not training": functools.partial(haiku, False),
}
NOT_IN_TRAINING_MODE = {
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


SERIES = jax.random.normal(jax.random.key(4), (8, 4))
ADJACENCY = jax.random.uniform(jax.random.key(5), (8, 8))
NODES = jnp.arange(8)


def graph_norm(x, alpha=0.7):
    shifted = x - alpha * x.mean(0)
    return 1.3 * shifted / jnp.sqrt((shifted**2).mean(0) + 1e-5)


def attended(x):
    return jax.nn.softmax(x @ x.T) @ x


def recurrent(x):
    def step(state, x):
        state = jnp.tanh(x + state @ W4)
        return state, state

    return jax.lax.scan(step, jnp.zeros(4), x)


def convolved(x):
    return convolution(x[None])[0]


# Statistics over the first dimension, which is not that of samples, without a dimension for them.
OF_ONE_SAMPLE = {
    "instance norm, pooled": (lambda x: batch_norm(x, (0, 1)).mean((0, 1)) @ WEIGHT, IMAGES[0]),
    "instance norm of each pixel": (lambda x: batch_norm(x, (0, 1)) @ WEIGHT, IMAGES[0]),
    "instance norm between convolutions": (lambda x: convolved(batch_norm(convolved(x), (0, 1))), IMAGES[0]),
    "instance norm, flattened": (lambda x: batch_norm(x, (0, 1)).reshape(-1) @ jnp.ones((144, 3)), IMAGES[0]),
    "instance norm, then rows": (lambda x: convolved(batch_norm(x, (0, 1))).mean(1) @ WEIGHT, IMAGES[0]),
    "group norm, channels first": (
        lambda x: (
            (
                lambda y: (
                    (y - y.mean((1, 2, 3), keepdims=True)) / jnp.sqrt(y.var((1, 2, 3), keepdims=True) + 1e-5)
                ).reshape(4, -1)
            )(jnp.moveaxis(x, -1, 0).reshape(2, 2, 6, 6)).mean(1)
            @ WEIGHT
        ),
        IMAGES[0],
    ),
    "attention to neighbours": (
        lambda x: (
            (lambda h: graph_norm(jax.nn.softmax(jnp.where(ADJACENCY > 0.5, h @ h.T, -1e9)) @ h))(x @ W4) @ WEIGHT
        ),
        SERIES,
    ),
    "graph norm, pooled": (lambda x: jnp.tanh(graph_norm(x @ W4)).mean(0) @ WEIGHT, SERIES),
    "graph norm behind neighbours": (lambda x: graph_norm(ADJACENCY @ x @ W4) @ WEIGHT, SERIES),
    "graph norm before neighbours": (lambda x: ADJACENCY @ graph_norm(x @ W4) @ WEIGHT, SERIES),
    "graph norm, and a residual": (lambda x: (x + jax.nn.relu(graph_norm(ADJACENCY @ x @ W4))) @ WEIGHT, SERIES),
    "graph norm, and edges": (
        lambda x: jax.ops.segment_sum(graph_norm(x @ W4)[NODES], (NODES + 1) % 8, 8) @ WEIGHT,
        SERIES,
    ),
    "series of one variable": (lambda x: batch_norm(x) @ jnp.ones((8, 3)), SERIES[:, 0]),
    "series, flattened": (lambda x: batch_norm(x).reshape(-1) @ jnp.ones((32, 3)), SERIES),
    "series, recurrent": (lambda x: recurrent(batch_norm(x))[0] @ WEIGHT, SERIES),
    "series, recurrent, each step": (lambda x: recurrent(batch_norm(x))[1] @ WEIGHT, SERIES),
    "series, pooled": (lambda x: jax.nn.relu(batch_norm(x) @ W4).mean(0) @ WEIGHT, SERIES),
    "series, the last step": (lambda x: jax.nn.relu(batch_norm(x) @ W4)[-1] @ WEIGHT, SERIES),
    "series, convolved": (
        lambda x: (
            jax.lax.conv_general_dilated(
                batch_norm(x)[None], jnp.ones((3, 4, 4)), (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
            )[0]
            @ WEIGHT
        ),
        SERIES,
    ),
    "norm over tokens": (lambda x: batch_norm(x + attended(x)) @ WEIGHT, SERIES),
    "mixed tokens": (lambda x: (batch_norm(x) + ADJACENCY @ x) @ WEIGHT, SERIES),
    "layer norm, channels first": (lambda x: W4 @ batch_norm(x), SERIES.T),
}


@pytest.mark.parametrize("name", OF_ONE_SAMPLE)
def test_statistics_of_one_sample_are_not_refused(name):
    model, x = OF_ONE_SAMPLE[name]
    jax.eval_shape(lrp(model, rules.Epsilon()), x)
    plan(jax.vmap(model), jnp.stack([x, 2 * x]), rules.Epsilon())


OVER_THE_FIRST_DIMENSION = {
    "neighbours": (lambda x: graph_norm(ADJACENCY @ x @ W4) @ WEIGHT, SERIES),
    "softmax": (lambda x: x * jax.nn.softmax(x @ W4, 0) @ WEIGHT, X),
    "efficient attention": (lambda x: jax.nn.softmax(x, 1) @ (jax.nn.softmax(x, 0).T @ x) @ WEIGHT, X),
    "slots": (lambda x: (lambda a: (a / a.sum(0)).T @ x)(jax.nn.softmax(x @ x.T)) @ WEIGHT, X),
    "linear attention": (
        lambda x: (lambda q: q @ (q.T @ x) / (q @ q.sum(0))[:, None])(jax.nn.elu(x) + 1) @ WEIGHT,
        X,
    ),
    "contrastive norm": (lambda x: jax.nn.standardize(x - 0.1 * attended(x)) @ WEIGHT, X),
    "largest": (lambda x: (x - x.max(0)) @ WEIGHT, X),
    "divided by the largest": (lambda x: x / jnp.abs(x).max(0) @ WEIGHT, X),
    "largest beside each": (
        lambda x: jnp.concatenate([x, jnp.broadcast_to(x.max(0), x.shape)], 1) @ jnp.ones((8, 3)),
        X,
    ),
    "mean behind a layer": (lambda x: (x @ W4 + x.mean(0) @ W4) @ WEIGHT, X),
    "gates of the mean": (lambda x: x * jax.nn.sigmoid(x.mean(0) @ W4) @ WEIGHT, X),
    "response norm": (
        lambda x: x * (lambda norm: norm / (norm.mean() + 1e-6))(jnp.sqrt((x**2).sum(0))) @ WEIGHT,
        X,
    ),
    "pair norm": (
        lambda x: (lambda d: d / jnp.sqrt(1e-6 + (d**2).sum(1).mean()))(x - x.mean(0)) @ WEIGHT,
        X,
    ),
    "series in each row": (lambda x: jax.nn.standardize(x, 1) @ WEIGHT, X),
    "images, norm over their pixels": (
        lambda x: ((x - x.mean((1, 2), keepdims=True)) / x.std((1, 2), keepdims=True)).mean(1).mean(1) @ WEIGHT,
        IMAGES,
    ),
}


@pytest.mark.parametrize("name", OVER_THE_FIRST_DIMENSION)
def test_what_is_no_batch_norm_is_not_refused(name):
    model, x = OVER_THE_FIRST_DIMENSION[name]
    plan(model, x, rules.Epsilon())
    jax.eval_shape(lrp(model, rules.Epsilon()), x)


def test_what_a_target_picks_does_not_hide_batch_statistics():
    labels = jnp.array([0, 2, 1, 0, 1])
    for picked in (lambda out: out[jnp.arange(5), labels], lambda out: ADJACENCY[:5, :5] @ out):
        with pytest.raises(ModelError, match="statistics of this batch"):
            relevance(lambda x: batch_norm(x) @ WEIGHT, X, picked)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", [*SWITCHED, *NOT_IN_TRAINING_MODE])
def test_inference_mode_is_not_refused(name):
    model, x = (SWITCHED[name](), X) if name in SWITCHED else NOT_IN_TRAINING_MODE[name]
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


class Written(nnx.Module):
    """Its kernel is made to have the length 1 in each call, and is written to the module."""

    def __init__(self, asks=False):
        self.kernel, self.asks = nnx.Param(WEIGHT), asks

    def __call__(self, x):
        kernel = self.kernel[...] * (x.mean() if self.asks else 1.0)
        self.kernel[...] = kernel / jnp.sqrt((kernel**2).sum())
        return x @ self.kernel[...]


def test_module_may_write_what_it_computes_from_its_parameters():
    module, expected = Written(), X * WEIGHT[:, 1] / jnp.sqrt((WEIGHT**2).sum())
    np.testing.assert_allclose(relevance(module, X, 1, rules.Zero()).relevance, expected, rtol=1e-5)
    np.testing.assert_array_equal(module.kernel[...], WEIGHT)
    linear = nnx.Linear(4, 3, kernel_init=lambda *_: WEIGHT, rngs=nnx.Rngs(0))
    recomputed = nnx.jit(nnx.remat(lambda module, x: module(x)))
    found = relevance(functools.partial(recomputed, linear), X, 1, rules.Zero())
    np.testing.assert_allclose(found.relevance, X * WEIGHT[:, 1], rtol=1e-5)
    with pytest.raises(ModelError, match="changes its state while it runs: kernel"):
        explain(Written(asks=True))


def raising(error, package=__name__):
    """A function that raises an error, and whose code counts as that of a package."""
    scope = {"__name__": f"{package}.tensor", "error": error}
    exec("def call(x):\n    raise error", scope)
    return scope["call"]


OperatorNotFound = type("OperatorNotFound", (Exception,), {})


NOTES = {
    "a function of one sample": (lambda x: WEIGHT.T @ x, r"It takes one sample at a time: pass jax\.vmap\(model\)"),
    "another error": (raising(ValueError("no")), r"If jax\.jit\(model\)\(x\) raises it, too"),
    "torchax, no tuple": (
        raising(TypeError("forward() takes 2 positional arguments but 6 were given"), "torchax"),
        r"a tuple of the module's arguments: lambda x: function\(weights, \(x,\)\)",
    ),
    "torchax, another error": (raising(ValueError("no"), "torchax"), r"If jax\.jit\(model\)\(x\) raises it"),
    "torchax, an array of numpy": (
        raising(AttributeError("'numpy.ndarray' object has no attribute 'dim'"), "torchax"),
        "All arguments have to be arrays of JAX",
    ),
    "torchax, no such operation": (raising(OperatorNotFound("set_"), "torchax"), "remove_parametrizations"),
}


@pytest.mark.parametrize("case", NOTES)
def test_note_on_what_a_model_has_raised(case):
    model, note = NOTES[case]
    with pytest.raises((ValueError, TypeError, AttributeError, OperatorNotFound)) as raised:
        explain(lambda x: model(x))
    assert re.search(note, "".join(raised.value.__notes__))


def test_torch_module_that_needs_values_is_told_how_to_do_without():
    scope = {"__name__": "torchax.interop"}
    exec("def call(x):\n    return x if bool(x[0, 0]) else -x", scope)
    with pytest.raises(ModelError, match=r'torch\.where\. The models of Hugging Face .*attn_implementation="eager"'):
        explain(scope["call"])


class Outputs(dict):
    """An output as those of other libraries, of which JAX does not know what it holds."""


class Record:
    def __init__(self, logits):
        self.name, self.logits = "record", logits


@pytest.mark.parametrize(
    ("output", "end"),
    [
        (lambda y: Outputs(loss=None, logits=y), r", as in lambda x: model\(x\)\['logits'\]\."),
        (Record, r", as in lambda x: model\(x\)\.logits\."),
        (lambda y: object(), r"\."),
    ],
    ids=["mapping", "attributes", "nothing in it"],
)
def test_object_that_a_model_returns_is_taken_apart_in_the_hint(output, end):
    with pytest.raises(ModelError, match=rf"Return them alone{end}"):
        explain(lambda x: output(network(x)))


@pytest.mark.parametrize("around", [lambda model: model, jax.jit, functools.partial], ids=["plain", "jit", "partial"])
def test_wrapper_takes_the_arguments_of_its_own(around):
    wrapper = functools.wraps(with_parameters)(lambda x: network(x))
    np.testing.assert_allclose(explain(around(wrapper)).output, network(X), rtol=1e-6)


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
