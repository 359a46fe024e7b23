"""Arguments that no function is made for: what comes of them is a value, or an error of ours that says what to do.

Each case is a call that is right, with one or two of its arguments replaced by something from a pool. What fails names
the call: `relevance(x=POOL['text'])` is `valid("relevance") | {"x": POOL["text"]}`.
"""

import contextlib
import dataclasses
import datetime
import functools
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental import sparse
from matplotlib.figure import Figure
from nightly import NIGHTLY, drawn

from lrp_book import datasets, models, pretrained, relevance_models, training
from lrp_jax import (
    baselines,
    deep_taylor,
    errors,
    evaluation,
    ledger,
    lrp,
    mark,
    plan,
    plotting,
    relevance,
    rules,
    treatments,
)

LIBRARY = str(Path(errors.__file__).parent)
WEIGHT = np.float32([[1, 2, 0], [2, -1, 1], [0, 1, 1], [1, 1, -2]])
X = np.float32([[1, 2, 3, 4], [4, 1, 0, 2]])
IMAGES = np.arange(32, dtype=np.uint8).reshape(2, 4, 4, 1)
KEY = jax.random.key(0)
SPLIT = datasets.Split(np.tile(IMAGES, (4, 1, 1, 1)), np.arange(8, dtype=np.int32) % 2)
CONFIG = training.TrainingConfig(epochs=1, batch_size=2, validation_size=2)


def network(x):
    return x @ WEIGHT


def product(x):
    return x[0] * x[1] - 2


@dataclass(frozen=True)
class Traced:
    """Stands for an array that is traced while the function is called."""

    array: Any


@dataclass
class Holder:
    dtype: str = "float32"


def deep(depth=100):
    nested: list = []
    for _ in range(depth):
        nested = [nested]
    return nested


POOL = {
    "None": None,
    "True": True,
    "text": "x",
    "bytes": b"x",
    "-1": -1,
    "0": 0,
    "1.5": 1.5,
    "1e999": 10**400,
    "2**40": 2**40,
    "1j": 1j,
    "NaN": float("nan"),
    "infinity": float("inf"),
    "object": object(),
    "class": Holder,
    "built-in function": len,
    "function of nothing": lambda: 1.0,
    "function of three": lambda a, b, c: a,
    "function that returns nothing": lambda *_: None,
    "function that returns a text": lambda *_: "x",
    "function that returns a dictionary": lambda *arrays: {"a": arrays[0]},
    "function that returns no samples": lambda x: x[:0],
    "function that returns no classes": lambda x: x @ WEIGHT[:, :0],
    "[]": [],
    "()": (),
    "{}": {},
    "set": {1, 2},
    "range": range(3),
    "nested": [[1, 2], [3]],
    "nested in tuples": ((1.0, 2.0), (3.0, 4.0)),
    "deep": deep(),
    "dictionary": {"a": 1.0, 2: "b"},
    "holder of a dtype": Holder(),
    "date": datetime.datetime(2020, 1, 1),
    "scalar": np.float32(2),
    "scalar of JAX": jnp.float32(2),
    "vector": np.float32([1, 2, 3]),
    "matrix of NaN": np.full((2, 4), np.nan, np.float32),
    "matrix of infinity": np.full((2, 4), np.inf, np.float32),
    "matrix of double precision": np.ones((2, 4)),
    "matrix of half precision": jnp.ones((2, 4), jnp.bfloat16),
    "array of rank 3": np.ones((2, 3, 4), np.float32),
    "array of rank 4": np.ones((2, 2, 2, 3), np.float32),
    "array of rank 5": np.ones((1, 2, 1, 2, 1), np.float32),
    "booleans": np.ones((2, 4), bool),
    "integers": np.ones((2, 4), np.int64),
    "bytes of an image": np.ones((2, 4), np.uint8),
    "complex": np.ones((2, 4), np.complex64),
    "objects": np.array([[None, 1, 2, 3], [1, 2, 3, "x"]], object),
    "large integers": np.array([10**400, 1], object),
    "texts": np.array([["a", "b"], ["c", "d"]]),
    "dates": np.array(["2020-01-01", "2020-01-02"], "datetime64[D]"),
    "records": np.zeros(2, [("a", "f4")]),
    "no samples": np.ones((0, 4), np.float32),
    "no features": np.ones((2, 0), np.float32),
    "empty": np.ones((0,), np.float32),
    "masked": np.ma.masked_array(X, X > 2),
    "enormous": np.broadcast_to(np.float32(1), (2**38, 4)),
    "enormous features": np.broadcast_to(np.float32(1), (2, 2**39)),
    "shape": jax.ShapeDtypeStruct((2, 4), jnp.float32),
    "enormous shape": jax.ShapeDtypeStruct((2**38, 4), jnp.float32),
    "array of JAX": jnp.asarray(X),
    "traced": Traced(X),
    "traced scalar": Traced(np.float32(1)),
    "traced integer": Traced(np.int32(1)),
    "key": KEY,
    "old key": jax.random.PRNGKey(0),
    "keys": jax.random.split(KEY, 2),
    "sparse": sparse.BCOO((np.float32([1, 2]), np.int32([[0, 0], [0, 1]])), shape=(2, 4)),
}


def transformed(fun, argnums, x):
    return lrp(fun, rules.Zero(), argnums)(x)


def shown(model, x, target):
    return relevance(model, x, target, rules.Zero())._repr_html_()


def modelled(x, upper, inputs, outputs, detectors):
    model = relevance_models.MinMaxRelevanceModel(inputs, outputs, detectors=detectors, upper=3, rngs=nnx.Rngs(0))
    return model(x, upper)


def dense_network(hidden, input_shape, classes, images):
    return models.DenseNetwork(hidden=hidden, input_shape=input_shape, classes=classes, rngs=nnx.Rngs(0))(images)


def convolutional_network(filters, kernel_size, hidden, input_shape, classes, images):
    make = functools.partial(models.ConvolutionalNetwork, filters=filters, kernel_size=kernel_size, hidden=hidden)
    return make(input_shape=input_shape, classes=classes, rngs=nnx.Rngs(0))(images)


def small_network():
    return models.DenseNetwork(hidden=(2,), input_shape=(4, 4, 1), classes=2, rngs=nnx.Rngs(0))


VECTOR = {"x": np.float32([3, 1]), "w": np.float32([1, -1])}
EXPLAINED = {"model": network, "x": X, "target": 0}
AXES = Figure().subplots()
MAP = np.float32([[0.5, -2.0], [0.0, 1.0]])
LAYER = {"w": np.float32([[1], [-1]]), "b": np.float32([0]), "relevance": np.float32([6])}


def loaded(path):
    """What is read from a file that is there, if its name is right."""
    rules.Zero().save("rule.npz")
    return rules.Zero.load(path)


# By name: a function, and arguments that are right.
DOORS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "relevance": (relevance, EXPLAINED),
    "relevance in batches": (functools.partial(relevance, progress=False, batch_size=1), EXPLAINED),
    "shown": (shown, EXPLAINED),
    "plan": (plan, {"model": network, "x": X}),
    "ledger": (ledger, EXPLAINED),
    "lrp": (transformed, {"fun": network, "argnums": 0, "x": X}),
    "gradient": (baselines.gradient, EXPLAINED),
    "gradient_times_input": (baselines.gradient_times_input, EXPLAINED),
    "integrated_gradients": (baselines.integrated_gradients, EXPLAINED | {"baseline": 0.0, "steps": 2}),
    "smoothgrad": (baselines.smoothgrad, EXPLAINED | {"key": KEY, "samples": 2, "noise": 0.1}),
    "occlusion": (baselines.occlusion, EXPLAINED | {"window": 2, "stride": 1, "value": 0.0}),
    "mean_replacement": (baselines.mean_replacement, EXPLAINED),
    "explained_output": (baselines.explained_output, EXPLAINED),
    "as_samples": (baselines.as_samples, {"x": X}),
    "pixel_flipping": (
        evaluation.pixel_flipping,
        EXPLAINED | {"relevance": X, "steps": 2, "fraction": 1.0, "replacement": 0.0},
    ),
    "area_over_perturbation_curve": (evaluation.area_over_perturbation_curve, {"curve": X}),
    "confidence_band": (evaluation.confidence_band, {"values": X, "key": KEY, "level": 0.9, "resamples": 3}),
    "permuted": (evaluation.permuted, {"key": KEY, "parameters": X}),
    "randomise": (
        evaluation.randomise,
        {"model": {"a": X, "b": X}, "layers": ["a", "b"], "key": KEY, "cascade": True, "draw": evaluation.permuted},
    ),
    "rank_agreement": (evaluation.rank_agreement, {"a": X, "b": X}),
    "top_overlap": (evaluation.top_overlap, {"a": X, "b": X, "fraction": 0.5}),
    "sparsity": (evaluation.sparsity, {"relevance": X}),
    "taylor_relevance": (deep_taylor.taylor_relevance, {"fun": product, "x": [3.0, 1.0], "root": [2.0, 1.0]}),
    "find_root": (
        deep_taylor.find_root,
        {"fun": product, "x": [3.0, 1.0], "direction": [-1.0, 0.0], "low": 0.0, "high": 4.0, "tolerance": 1e-3},
    ),
    "direction_w_square": (deep_taylor.direction_w_square, {"w": VECTOR["w"]}),
    "direction_z_plus": (deep_taylor.direction_z_plus, VECTOR),
    "direction_z_box": (deep_taylor.direction_z_box, VECTOR | {"low": 0.0, "high": 4.0}),
    "neuron_root": (deep_taylor.neuron_root, VECTOR | {"b": 0.0, "low": 0.0, "high": 4.0}),
    "training_free_relevance_model": (deep_taylor.training_free_relevance_model, {"x": VECTOR["x"]} | LAYER),
    "taylor_messages": (
        deep_taylor.taylor_messages,
        {
            "model": deep_taylor.training_free_relevance_model(VECTOR["x"], **LAYER),
            "x": VECTOR["x"],
            "low": 0.0,
            "high": 4.0,
        },
    ),
    "MinMaxRelevanceModel": (modelled, {"x": X, "upper": X[:, :3], "inputs": 4, "outputs": 2, "detectors": 2}),
    "fit_relevance_model": (
        relevance_models.fit_relevance_model,
        {
            "x": np.tile(X, (3, 1)),
            "relevance": np.tile(X[:, :2], (3, 1)),
            "upper": np.tile(X[:, :3], (3, 1)),
            "key": KEY,
            "detectors": 1,
            "epochs": 1,
            "batch_size": 2,
            "learning_rate": 0.1,
            "held_out": 0.5,
        },
    ),
    "mnist": (datasets.mnist, {"name": "no such data set", "data_dir": None}),
    "as_float": (datasets.as_float, {"images": IMAGES}),
    "DenseNetwork": (dense_network, {"hidden": (2,), "input_shape": (4, 4, 1), "classes": 2, "images": IMAGES}),
    "ConvolutionalNetwork": (
        convolutional_network,
        {"filters": (1,), "kernel_size": 3, "hidden": (2,), "input_shape": (4, 4, 1), "classes": 2, "images": IMAGES},
    ),
    "train": (
        functools.partial(training.train, progress=False),
        {"model": small_network(), "data": SPLIT, "config": CONFIG},
    ),
    "TrainingConfig": (training.TrainingConfig, dataclasses.asdict(CONFIG)),
    "accuracy": (training.accuracy, {"model": small_network(), "data": SPLIT}),
    "efficientnet_lite0": (pretrained.efficientnet_lite0, {"path": "no such file"}),
    "read_safetensors": (pretrained.read_safetensors, {"path": "no such file", "shapes": {"bias": (3,)}, "sha256": ""}),
    "preprocess": (pretrained.preprocess, {"image": np.zeros((4, 4, 3), np.uint8)}),
    "imagenet_classes": (pretrained.imagenet_classes, {"path": "no such file"}),
    "heatmap": (
        plotting.heatmap,
        {"relevance": MAP, "ax": AXES, "limit": 1.0, "colormap": "RdBu_r", "channel_axis": None},
    ),
    "overlay": (
        plotting.overlay,
        {
            "image": np.ones((2, 2)),
            "relevance": MAP,
            "ax": AXES,
            "limit": 1.0,
            "colormap": "RdBu_r",
            "channel_axis": None,
            "background": "pale",
        },
    ),
    "grid": (
        plotting.grid,
        {
            "images": np.ones((1, 2, 2)),
            "relevance": {"LRP-0": MAP[None]},
            "labels": ["a"],
            "scale": "row",
            "colormap": "RdBu_r",
            "colorbar_label": "relevance",
            "channel_axis": None,
        },
    ),
    "strips": (
        plotting.strips,
        {
            "series": np.ones((20, 2)),
            "relevance": np.ones((20, 2)),
            "names": ["a", "b"],
            "limit": 1.0,
            "colormap": "RdBu_r",
            "channel_axis": None,
        },
    ),
    "words": (plotting.words, {"tokens": ["not", "bad"], "relevance": [1.0, -2.0], "limit": 1.0}),
    "words_as_html": (plotting.words_as_html, {"tokens": ["not", "bad"], "relevance": [1.0, -2.0], "limit": 1.0}),
    "plot": (
        relevance(network, X, 0, rules.Zero()).plot,
        {"classes": ["a", "b", "c"], "tokens": ["so", "it", "is", "."], "channel_axis": None, "samples": [1]},
    ),
    "to_png": (relevance(network, X, 0, rules.Zero()).to_png, {"path": "file.png", "classes": None, "samples": None}),
    "save": (relevance(network, X, 0, rules.Zero()).save, {"path": "file.npz"}),
    "load": (loaded, {"path": "rule.npz"}),
    "summary": (relevance(network, X, 0, rules.Zero()).summary, {"classes": ["a", "b", "c"]}),
    "mark.gate": (mark.gate, {"x": X}),
    "mark.piece": (
        lambda function, treatment, x: mark.piece(function, treatment)(x),
        {"function": lambda x: jnp.tanh(x), "treatment": treatments.smooth, "x": X},
    ),
}


def is_allowed(error):
    """Whether an error is one of ours, or one that a function of the user's raised while it was called."""
    notes = getattr(error, "__notes__", [])
    if isinstance(error, errors.LRPError) or any("The model raised this" in note for note in notes):
        return True
    if isinstance(error, TypeError) and "positional argument" in str(error):
        return True  # of `lrp(fun)`, which is called like `fun`
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    ours = next((i for i, file in enumerate(files) if file.startswith(LIBRARY)), len(files))
    return __file__ in files[ours:]


def run(function, arguments):
    """Calls a function, within a trace if one of its arguments is traced."""
    traced = {name: value.array for name, value in arguments.items() if isinstance(value, Traced)}
    if not traced:
        return function(**arguments)
    return jax.make_jaxpr(lambda arrays: [function(**arguments | arrays), 0.0][1])(traced)


@pytest.mark.parametrize("door", DOORS)
def test_arguments_that_nothing_is_made_for(door, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    function, valid = DOORS[door]
    seed = np.random.SeedSequence().entropy if NIGHTLY else 0
    random = np.random.default_rng([seed, *door.encode()])
    wrong = []
    for _ in range(-(-drawn(by_day=80) // len(DOORS))):
        names = random.choice(list(valid), size=min(len(valid), random.integers(1, 3)), replace=False)
        chosen = {str(name): str(random.choice(list(POOL))) for name in names}
        call = f"{door}({', '.join(f'{name}=POOL[{key!r}]' for name, key in chosen.items())})"
        try:
            with warnings.catch_warnings(action="ignore"):
                run(function, valid | {name: POOL[key] for name, key in chosen.items()})
        except Exception as error:
            if not is_allowed(error):
                wrong.append(f"{call}: {type(error).__name__}: {str(error)[:200]}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("door", DOORS)
def test_the_calls_are_right_otherwise(door, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    function, valid = DOORS[door]
    needs_file = any("no such" in str(value) for value in valid.values())
    with pytest.raises(errors.LRPError, match="no such") if needs_file else contextlib.nullcontext():
        function(**valid)


@pytest.mark.parametrize(
    ("door", "name", "key", "message"),
    [
        ("relevance", "x", "dictionary", "Give dictionaries keys of one type"),
        ("relevance", "target", "complex", "it is an array of complex64"),
        (
            "relevance",
            "model",
            "function that returns a dictionary",
            "the model returns {'a': .*pass a function",
        ),
        ("relevance", "model", "function that returns a text", "returns a str"),
        ("lrp", "x", "shape", "has no numbers"),
        ("lrp", "x", "enormous", "too large for the memory"),
        ("lrp", "argnums", "1.5", "argnums must be an integer"),
        ("ledger", "x", "traced", "outside of jax.jit"),
        ("gradient", "x", "complex", "must be real numbers, but it is an array of complex64"),
        ("gradient", "x", "masked", "must be real numbers, but it is a masked array"),
        ("gradient", "x", "enormous", "x is too large for the memory"),
        ("integrated_gradients", "steps", "True", "steps must be an integer"),
        ("integrated_gradients", "steps", "2**40", "steps must be an integer up to 2147483647"),
        ("smoothgrad", "key", "keys", "such as jax.random.key"),
        ("smoothgrad", "noise", "NaN", "noise is a standard deviation"),
        ("occlusion", "window", "text", "window must be an integer"),
        ("occlusion", "value", "array of rank 3", "does not broadcast to the shape"),
        ("confidence_band", "level", "traced scalar", "level is a probability between 0 and 1, but it is"),
        ("randomise", "layers", "text", "layers must be a list of names"),
        ("randomise", "draw", "function that returns nothing", "draw returned None"),
        ("randomise", "cascade", "vector", "cascade is True or False"),
        ("find_root", "tolerance", "-1", "tolerance is a fraction"),
        ("taylor_relevance", "fun", "function of three", "fun must be a function that can be called with x alone"),
        ("neuron_root", "b", "vector", "b must be one number"),
        ("taylor_messages", "model", "None", "training_free_relevance_model"),
        ("MinMaxRelevanceModel", "x", "array of rank 5", r"must have the shape \(..., 4\)"),
        ("fit_relevance_model", "held_out", "text", "held_out is a fraction"),
        ("as_float", "images", "enormous", "images is too large"),
        ("DenseNetwork", "input_shape", "range", "input_shape must be at least 1"),
        ("TrainingConfig", "epochs", "0", "epochs must be at least 1"),
        ("train", "config", "None", "config must be a TrainingConfig"),
        ("accuracy", "data", "matrix of NaN", "Split"),
        ("read_safetensors", "path", "None", "path must be a path, but it is None"),
        ("heatmap", "limit", "text", "limit is the largest absolute relevance drawn"),
        ("heatmap", "colormap", "text", "colormap must be the name of a colour map"),
        ("grid", "labels", "1.5", "labels must be a list of texts"),
        ("grid", "relevance", "{}", "no maps to draw"),
        ("grid", "scale", "vector", "or a positive number"),
        ("grid", "channel_axis", "vector", "channel_axis is the axis of one sample that holds the channels"),
        ("mark.gate", "x", "text", "mark.gate marks arrays, but this is a str"),
    ],
)
def test_what_the_message_says(door, name, key, message):
    function, valid = DOORS[door]
    if key == "vector" and name == "channel_axis":
        valid = valid | {"relevance": MAP[None, ..., None]}
    with pytest.raises(errors.LRPError, match=message):
        run(function, valid | {name: POOL[key]})


@pytest.mark.parametrize("explain", [relevance, baselines.gradient, baselines.mean_replacement])
def test_no_samples_have_no_relevance(explain):
    found = explain(network, X[:0])
    assert getattr(found, "relevance", found).shape == (0, 4)
    if explain is relevance:
        assert "Relevance of 0 samples" in found._repr_html_()


def test_an_explanation_that_is_traced_shows_its_shapes():
    shown = []
    jax.make_jaxpr(lambda x: shown.append(relevance(network, x, 0, rules.Zero())._repr_html_()))(X)
    assert "(2, 4)" in shown[0]
    assert "traced" in shown[0]


@pytest.mark.parametrize("target", [0, 1.0, "all", [[1, 2], [3]], np.array([None, None])], ids=repr)
@pytest.mark.parametrize("model", [lambda x: x.sum(), lambda x: x.sum(1), lambda x: x[:, None]], ids=["0", "1", "3"])
def test_a_target_of_an_output_without_classes(model, target):
    with pytest.raises(errors.InputError, match=r"[Tt]arget"):
        relevance(model, X, target, rules.Zero())
