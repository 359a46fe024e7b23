"""Roots of a whole network and of its neurons, and what Taylor steps at them leave over: measurements of chapter 5."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import ArrayLike, NDArray

from lrp_book import datasets
from lrp_book.models import DenseNetwork
from lrp_book.numbers import with_decimals
from lrp_jax import lrp, rules
from lrp_jax.deep_taylor import find_root, taylor_messages, taylor_relevance, training_free_relevance_model


class Decomposed(NamedTuple):
    """The Taylor decomposition of a logit at a root, for each image.

    Attributes:
        root: The root, of the shape of the images; not a number where none was found.
        found: Whether there is one.
        way: How much of the direction was gone; beyond 1 the root lies behind the point that the direction leads to.
        relevance: The relevance of every pixel.
        remainder: What the pixels do not get, as a percentage of the logit.
    """

    root: jax.Array
    found: jax.Array
    way: jax.Array
    relevance: jax.Array
    remainder: jax.Array


def class_means(split: datasets.Split) -> jax.Array:
    """The mean image of every class, of shape (classes, height, width, channels)."""
    classes = range(int(split.labels.max()) + 1)
    return jnp.stack([jnp.asarray(datasets.as_float(split.images[split.labels == one]).mean(0)) for one in classes])


def three_lines(network: nnx.Module, images: jax.Array, labels: jax.Array, means: jax.Array) -> dict[str, Decomposed]:
    """The decomposition at three roots: downhill, towards the mean image of the class that comes second, and to black.

    Args:
        network: A classifier.
        images: The images.
        labels: Their classes.
        means: The mean image of every class.
    """
    others = jnp.where(jax.nn.one_hot(labels, len(means), dtype=bool), -jnp.inf, network(images))  # type: ignore[operator]
    gradients = jax.vmap(jax.grad(_logit(network)))(images, labels)
    directions = {"downhill": -gradients, "rival": means[others.argmax(-1)] - images, "black": -images}
    return {name: decompose(network, images, labels, direction) for name, direction in directions.items()}


def _logit(network: nnx.Module) -> Callable[[jax.Array, jax.Array], jax.Array]:
    def logit(image: jax.Array, label: jax.Array) -> jax.Array:
        return network(image[None])[0, label]  # type: ignore[operator]

    return logit


def decompose(network: nnx.Module, images: jax.Array, labels: jax.Array, direction: jax.Array) -> Decomposed:
    """Looks for the root of each image's own logit on a line, and decomposes the logit there.

    Args:
        network: A classifier.
        images: The images.
        labels: Their classes.
        direction: Where the line leads, for each image.
    """
    logit = _logit(network)

    def one(image: jax.Array, label: jax.Array, direction: jax.Array) -> Decomposed:
        def evidence(image: jax.Array) -> jax.Array:
            return logit(image, label)

        found = find_root(evidence, image, direction)
        taylor = taylor_relevance(evidence, image, found.root)
        share = 100 * taylor.remainder / evidence(image)
        return Decomposed(found.root, found.found, found.distance, taylor.relevance, share)

    return jax.jit(jax.vmap(one))(images, labels, direction)


def distances(images: jax.Array, decomposed: Decomposed) -> NDArray[np.float32]:
    """How far the roots that were found are from their images, as a percentage of the image's norm."""
    of_all = (decomposed.root - images, images)
    moved, whole = (jnp.linalg.norm(array.reshape(len(images), -1), axis=1) for array in of_all)
    return np.asarray(100 * moved / whole)[np.asarray(decomposed.found)]


def share_outside(decomposed: Decomposed, low: float, high: float, tolerance: float) -> float:
    """The percentage of the roots found that have a value which is further than the tolerance outside of the bounds.

    Example:
        >>> roots = jnp.array([[0.5, 1.0], [0.5, 1.5]])
        >>> share_outside(Decomposed(roots, jnp.array([True, True]), *[jnp.zeros(2)] * 3), 0.0, 1.0, 1e-3)
        50.0
    """
    roots = decomposed.root.reshape(len(decomposed.root), -1)[decomposed.found]
    return float(100 * ((roots.min(1) < low - tolerance) | (roots.max(1) > high + tolerance)).mean())


def remainder_by_distance(
    function: Callable[[jax.Array], jax.Array], root: jax.Array, ways: jax.Array
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The remainder of a function at growing distances from one of its roots, each with its own root downhill.

    Args:
        function: A function of one array.
        root: Where it begins.
        ways: How far along the gradient at the root the points lie.

    Returns:
        The distance of each point to its own root, and the remainder as a percentage of the function.
    """
    normal = jax.grad(function)(root)
    normal /= jnp.linalg.norm(normal)

    def at(way: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = root + way * normal
        found = find_root(function, x, -jax.grad(function)(x)).root
        return jnp.linalg.norm(x - found), 100 * taylor_relevance(function, x, found).remainder / function(x)

    found, remainder = jax.vmap(at)(ways)
    return np.asarray(found), np.asarray(remainder)


@jax.jit
def by_taylor_steps(kernels: list[jax.Array], image: jax.Array) -> jax.Array:
    """The relevance of each pixel in a dense network without biases, by a root search at every neuron.

    Args:
        kernels: The weights of the layers; the last of shape (inputs, 1).
        image: The pixels, between 0 and 1.
    """
    activations = [image.ravel()]
    for kernel in kernels:
        activations.append(jax.nn.relu(activations[-1] @ kernel))
    relevance = activations.pop()
    for number in reversed(range(len(kernels))):
        model = training_free_relevance_model(activations[number], kernels[number], 0.0, relevance)
        domain = {"low": 0.0} if number else {"low": 0.0, "high": 1.0}
        relevance = taylor_messages(model, activations[number], **domain).sum(1)
    return relevance.reshape(image.shape)


class Rootless(NamedTuple):
    """Which neurons of a layer have no root in the domain of their inputs.

    Attributes:
        positive: The percentage of biases that are positive.
        active: How many pairs of an image and an active neuron there are.
        without: How many of these have no root.
    """

    positive: float
    active: int
    without: int


def rootless(network: DenseNetwork, images: jax.Array) -> list[Rootless]:
    """Counts the neurons without a root, layer by layer: z-box between 0 and 1 for the pixels, z+ above.

    Args:
        network: A dense network with biases.
        images: The images.
    """
    x, found = images.reshape(len(images), -1), []
    for number, layer in enumerate(network.layers):
        w, b = layer.kernel[...], layer.bias[...]
        z = x @ w + b
        inhibited = jnp.minimum(w, 0)
        least = (x @ inhibited if number else inhibited.sum(0)) + b
        active = z > 0
        found.append(Rootless(float(100 * (b > 0).mean()), int(active.sum()), int((active & (least > 0)).sum())))
        x = nnx.relu(z)
    return found


def on_ink(maps: jax.Array, images: jax.Array) -> float:
    """The percentage of the absolute relevance that lies on pixels with ink."""
    return float(100 * jnp.where(images > 0, jnp.abs(maps), 0).sum() / jnp.abs(maps).sum())


def difference(a: jax.Array, b: jax.Array) -> float:
    """The largest difference of two arrays, as a fraction of the largest value of the second.

    Example:
        >>> difference(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0]))
        0.5
    """
    return float(jnp.abs(a - b).max() / jnp.abs(b).max())


def rows_of_lines(decomposed: Mapping[str, Decomposed], images: jax.Array) -> list[tuple[str, int, int, int]]:
    """For each line: how often a root was found, and the medians of its distance and the remainder, all in percent."""
    return [
        (
            name,
            round(float(100 * one.found.mean())),
            round(float(np.median(distances(images, one)))),
            round(abs(float(np.median(one.remainder[one.found])))),
        )
        for name, one in decomposed.items()
    ]


def numbers_of_lines(decomposed: Mapping[str, Decomposed], images: jax.Array) -> dict[str, float | str]:
    """What the chapter says of the roots on the three lines, by name."""
    found: dict[str, float | str] = {}
    for name, *values in rows_of_lines(decomposed, images):
        found |= {f"{name}-{column}": value for column, value in zip(_COLUMNS, values, strict=True)}
    downhill, rival = decomposed["downhill"], decomposed["rival"]
    low, high = np.percentile(np.asarray(downhill.remainder), [5, 95])
    return found | {
        "downhill-low": float(low),
        "downhill-high": float(high),
        "black-largest": float(jnp.abs(decomposed["black"].remainder).max()),
        "root-lowest": with_decimals(float(downhill.root.min())),
        "root-highest": with_decimals(float(downhill.root.max())),
        "rival-beyond": float(100 * (rival.way > 1)[rival.found].mean()),
        "rival-outside": share_outside(rival, 0.0, 1.0, 1e-3),
    }


_COLUMNS = ("found", "distance", "remainder")


def rank_correlation(a: ArrayLike, b: ArrayLike) -> float:
    """The correlation of the ranks of two lists of numbers.

    Example:
        >>> rank_correlation([1, 2, 30], [0.1, 0.2, 0.3])
        1.0
    """
    first, second = (np.argsort(np.argsort(np.asarray(values))).astype(float) for values in (a, b))
    return float(np.corrcoef(first, second)[0, 1])


def errors_of_rules(x: jax.Array, w: jax.Array, b: jax.Array, c: jax.Array) -> dict[str, float]:
    """The largest difference between Taylor steps at every neuron of a layer and the rules, relative to the relevance.

    Args:
        x: The inputs, between 0 and 1.
        w: The weights, of shape (inputs, neurons).
        b: The biases, none of them positive.
        c: The relevance of each neuron per unit of its activation.

    Returns:
        The difference for w^2, z+ and z-box, by "w2", "z-plus" and "z-box".
    """
    domains: dict[str, tuple[rules.Rule, dict[str, float]]] = {
        "w2": (rules.WSquare(), {}),
        "z-plus": (rules.ZPlus(bias="ignore"), {"low": 0.0}),
        "z-box": (rules.ZBox(0.0, 1.0), {"low": 0.0, "high": 1.0}),
    }
    layer = training_free_relevance_model(x, w, b, c * jax.nn.relu(x @ w + b))
    found = {}
    for name, (rule, domain) in domains.items():
        (by_rule,) = jax.vjp(lrp(lambda x: jax.nn.relu(x @ w + b), rule), x)[1](c)
        found[name] = difference(taylor_messages(layer, x, **domain).sum(1), by_rule)
    return found
