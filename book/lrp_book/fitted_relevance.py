"""How well relevance models describe the relevance in a detector of `digit_pairs`: what the fifth chapter measures."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lrp_book.digit_pairs import PLUS, PairDetector, Pairs
from lrp_book.relevance_models import MinMaxRelevanceModel, fit_relevance_model
from lrp_jax import composites, lrp, rules
from lrp_jax.deep_taylor import neuron_root

STEPS = jnp.linspace(0, 1, 9)
"""Where the way from x to a root is looked at."""

MODELS = (
    ("1 detection neuron", 1, False),
    ("1, with relevance above", 1, True),
    ("4 detection neurons", 4, False),
    ("4, with relevance above", 4, True),
)
"""The min-max models: a name, the detection neurons in a group, and whether they see the relevance above."""

_EPOCHS, _LEARNING_RATE = {1: 15, 2: 20}, {1: 5e-4, 2: 3e-3}  # layer 1 has many inputs, which bear a small rate alone
_DETECTORS = 4  # in a group of the detector's layers


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Layer:
    """What a relevance model of one layer is to be fitted to.

    Attributes:
        x: The input of the layer, of shape (pairs, inputs).
        output: Its output, of shape (pairs, neurons).
        relevance: The relevance of its output, as z+ gives it.
        above: The relevance of the next layer's output; of the last one, the output itself.
    """

    x: jax.Array
    output: jax.Array
    relevance: jax.Array
    above: jax.Array


def relevance_of(detector: PairDetector, layer: int, output: jax.Array) -> jax.Array:
    """The relevance of the output of layer 1 or 2, by z+ in all layers above, of its shape."""

    def above(h: jax.Array) -> jax.Array:
        for one in detector.layers[layer:]:
            h = one(h)
        return h

    return jax.grad(lambda h: lrp(above, PLUS)(h).sum())(output)


@jax.jit
def layers_of(detector: PairDetector, x: jax.Array) -> dict[int, Layer]:
    """Layer 1, next to the pixels, and layer 2, for pixels of shape (pairs, 28 * 56)."""
    bottom, middle, top = detector.layers
    first = bottom(x)
    second = middle(first)
    relevance = {layer: relevance_of(detector, layer, output) for layer, output in {1: first, 2: second}.items()}
    return {
        1: Layer(x, first, relevance[1], relevance[2]),
        2: Layer(first, second, relevance[2], top(second)),
    }


def r_squared(predicted: jax.Array, true: jax.Array) -> float:
    """The share of the variance of each neuron's relevance that a prediction explains.

    Example:
        >>> r_squared(jnp.array([[1.0], [2.0], [3.0]]), jnp.array([[1.0], [2.0], [3.0]]))
        1.0
    """
    variance = ((true - true.mean(0)) ** 2).sum()
    return float(1 - ((predicted - true) ** 2).sum() / variance)


def fit_of_constants(train: Layer, test: Layer) -> float:
    """R^2 of the training-free model with one constant for each neuron, the same for all images."""
    h = train.output
    constant = (train.relevance * h).sum(0) / jnp.maximum((h * h).sum(0), 1e-9)
    return r_squared(constant * test.output, test.relevance)


def fitted(layer: int, train: Layer, *, detectors: int = 4, with_above: bool = True) -> MinMaxRelevanceModel:
    """Fits a min-max model to the relevance of layer 1 or 2.

    Args:
        layer: Which of the two.
        train: That layer for pairs to train with.
        detectors: How many detection neurons there are in each group.
        with_above: Whether the model sees the relevance of the layer above.
    """
    return fit_relevance_model(
        train.x,
        train.relevance,
        train.above if with_above else None,
        key=jax.random.key(2),
        detectors=detectors,
        epochs=_EPOCHS[layer],
        learning_rate=_LEARNING_RATE[layer],
    ).model


class Way(NamedTuple):
    """Relevance on the way to a root as a fraction of that at x, of shape (pairs, steps).

    Attributes:
        true: The relevance by z+.
        predicted: What the model says.
    """

    true: jax.Array
    predicted: jax.Array

    def error(self) -> NDArray[np.float32]:
        """The median error of each step, over the pairs, as a percentage of the relevance at x."""
        return 100 * np.median(np.abs(np.asarray(self.true) - np.asarray(self.predicted)), axis=0)


def on_the_way(detector: PairDetector, layer: int, data: Layer, model: MinMaxRelevanceModel | None) -> Way:
    """Relevance of the most relevant neuron on the way from x to the root of its most active detection neuron.

    Args:
        detector: The detector.
        layer: 1 or 2.
        data: That layer for the pairs to look at.
        model: A min-max model with four detection neurons in a group, and the relevance above; None for the
            training-free model.
    """
    own = detector.layers[layer - 1]

    def truth(x: jax.Array) -> jax.Array:
        return relevance_of(detector, layer, own(x[None]))[0]

    def of_one(one: Layer) -> Way:
        if model is None:
            c = one.relevance / jnp.where(one.output > 0, one.output, 1)
            return _way(own, one, None, lambda x: c * own(x), truth, layer)
        return _way(model, one, one.above, lambda x: model(x, one.above), truth, layer)

    return jax.jit(jax.vmap(of_one))(data)


def _way(
    neurons: MinMaxRelevanceModel,
    one: Layer,
    above: jax.Array | None,
    predict: Callable[[jax.Array], jax.Array],
    truth: Callable[[jax.Array], jax.Array],
    layer: int,
) -> Way:
    domain = {"low": 0.0, "high": 1.0} if layer == 1 else {"low": 0.0}
    k = one.relevance.argmax()
    y = jax.nn.relu(neurons.detection(one.x) + neurons.bias(above))
    j = _DETECTORS * k + y.reshape(-1, _DETECTORS)[k].argmax()
    w, b = neurons.detection.kernel[...][:, j], neurons.bias(above)[j]
    way = one.x + STEPS[:, None] * (neuron_root(one.x, w, b, **domain).root - one.x)
    return Way(*(jax.vmap(function)(way)[:, k] / one.relevance[k] for function in (truth, predict)))


def maps_of(
    detector: PairDetector, models: Mapping[int, MinMaxRelevanceModel], layers: Mapping[int, Layer]
) -> dict[str, jax.Array]:
    """Relevance of the pixels by the training-free model, by min-max models of both layers, and by LRP-0.

    Args:
        detector: The detector.
        models: A min-max model of each layer, with the relevance above.
        layers: What `layers_of` gives for the pairs.
    """
    x, predicted = layers[1].x, models[2](layers[2].x, layers[2].above)
    functions: dict[str, Callable[[jax.Array], jax.Array]] = {
        "training-free": lambda x: lrp(detector, composites.DeepTaylor(0.0, 1.0))(x),
        "min-max": lambda x: lrp(models[1], rules.ZBox(0.0, 1.0))(x, predicted),
        "LRP-0": lambda x: lrp(detector, rules.Zero())(x),
    }
    return {
        name: jax.jit(jax.grad(lambda x, function=function: function(x).sum()))(x)
        for name, function in functions.items()
    }


def share_on_the_wanted(maps: jax.Array, pairs: Pairs) -> float:
    """The median share (in percent) of the absolute relevance that lies on the half with the digit 0 to 3."""
    halves = np.abs(np.asarray(maps)).reshape(-1, 28, 2, 28).sum((1, 3))
    wanted = np.where(pairs.on_left, halves[:, 0], halves[:, 1])
    return float(100 * np.median(wanted / halves.sum(1)))


def about_maps(maps: Mapping[str, jax.Array], pairs: Pairs, output: NDArray[np.float32]) -> dict[str, float]:
    """What the maps of `maps_of` have in common, point at, and sum to, as medians over the pairs.

    Args:
        maps: The maps by the name of the model.
        pairs: The pairs, each with a digit from 0 to 3.
        output: What the detector says.
    """
    sums = np.asarray(maps["min-max"].sum(1)) / output
    shares = {f"share {name}": share_on_the_wanted(values, pairs) for name, values in maps.items()}
    ends = dict(zip(("sum low", "sum", "sum high"), map(float, np.percentile(sums, [5, 50, 95])), strict=True))
    with_others = {
        f"correlation {name}": correlation(maps["training-free"], maps[name]) for name in ("min-max", "LRP-0")
    }
    return shares | ends | with_others


def correlation(a: jax.Array, b: jax.Array) -> float:
    """The median correlation of two maps of the same pair."""
    both = zip(np.asarray(a), np.asarray(b), strict=True)
    return float(np.median([np.corrcoef(*two)[0, 1] for two in both]))
