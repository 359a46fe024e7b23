"""How far LRP-0 and the replacement of single neurons agree, in a dense network, for its pixels and hidden layers."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import NDArray
from scipy.stats import spearmanr

from lrp_book.models import DenseNetwork
from lrp_jax import baselines, evaluation


class Part(NamedTuple):
    """The upper part of a network, and the activations that it reads."""

    network: Callable[[jax.Array], jax.Array]
    x: jax.Array


def parts_of(network: DenseNetwork, images: jax.Array) -> dict[str, Part]:
    """For the pixels and every hidden layer, the activations and the network above them."""

    def above(number: int) -> Callable[[jax.Array], jax.Array]:
        def part(activations: jax.Array) -> jax.Array:
            for layer in network.layers[number:-1]:
                activations = nnx.relu(layer(activations))
            return network.layers[-1](activations)

        return part

    parts = {"pixels": Part(network, images)}
    activations = images.reshape(len(images), -1)
    for number, layer in enumerate(network.layers[:-1], 1):
        activations = nnx.relu(layer(activations))
        parts[f"hidden {number}"] = Part(above(number), activations)
    return parts


class Agreement(NamedTuple):
    """What LRP-0 and replacement have in common; all but the last two are means over the images.

    Attributes:
        rank: Spearman's correlation over all neurons of an image.
        rank_active: That over the active neurons.
        rank_with_offset: That over all neurons, once LRP-0 is given the offset.
        top: The share of the highest 5 % that the two have in common.
        top_with_offset: That, once LRP-0 is given the offset.
        same_sign: The share of active neurons for which both have the same sign.
        at_zero: The share of the absolute drops that belongs to neurons that are zero.
        drops: The drops themselves.
        with_offset: LRP-0 with the offset.
    """

    rank: float
    rank_active: float
    rank_with_offset: float
    top: float
    top_with_offset: float
    same_sign: float
    at_zero: float
    drops: jax.Array
    with_offset: jax.Array


def agreement(part: Part, labels: jax.Array, relevance: jax.Array, reference: jax.Array | float) -> Agreement:
    """Compares LRP-0 with the drops when each neuron in turn takes the value of a reference.

    Args:
        part: A network and what it reads.
        labels: The class that is explained of each sample.
        relevance: The LRP-0 relevance of the activations.
        reference: The value that replaces a neuron's, which broadcasts to the activations.
    """
    network, x = part
    relevance = relevance.reshape(x.shape)
    drops = baselines.occlusion(network, x, labels, window=(1,) * (x.ndim - 1), value=reference)
    with_offset = relevance - reference * baselines.gradient(network, x, labels)
    active = x > 0
    return Agreement(
        rank=float(evaluation.rank_agreement(relevance, drops).mean()),
        rank_active=float(np.mean(_rank_among(active, relevance, drops))),
        rank_with_offset=float(evaluation.rank_agreement(with_offset, drops).mean()),
        top=float(evaluation.top_overlap(relevance, drops, 0.05).mean()),
        top_with_offset=float(evaluation.top_overlap(with_offset, drops, 0.05).mean()),
        same_sign=float(((relevance * drops > 0) & active).sum() / active.sum()),
        at_zero=float(jnp.where(active, 0, jnp.abs(drops)).sum() / jnp.abs(drops).sum()),
        drops=drops,
        with_offset=with_offset,
    )


def _rank_among(chosen: jax.Array, a: jax.Array, b: jax.Array) -> list[float]:
    triples = zip(np.asarray(chosen), np.asarray(a), np.asarray(b), strict=True)
    return [spearmanr(one[these], other[these]).statistic for these, one, other in triples]


def mean_of_layer(x: jax.Array) -> jax.Array:
    """The mean of all activations of each sample, of a shape that broadcasts to them."""
    return x.mean(axis=tuple(range(1, x.ndim)), keepdims=True)


def distance(a: jax.Array, b: jax.Array) -> NDArray[np.float32]:
    """The distance of two maps relative to the norm of the second, for each sample."""
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    return np.asarray(jnp.linalg.norm(a - b, axis=1) / jnp.linalg.norm(b, axis=1))


def distance_after_partial_steps(
    part: Part, labels: jax.Array, with_offset: jax.Array, steps: tuple[float, ...]
) -> NDArray[np.float32]:
    """How far the drops of partial steps to the mean, divided by the step, are from LRP-0 with the offset.

    Returns:
        The distances of shape (steps, samples).
    """
    network, x = part
    mean = mean_of_layer(x)
    window = (1,) * (x.ndim - 1)
    drops = [baselines.occlusion(network, x, labels, window=window, value=x + t * (mean - x)) / t for t in steps]
    return np.stack([distance(drop, with_offset) for drop in drops])


def switched_relus(network: DenseNetwork, images: jax.Array) -> NDArray[np.int64]:
    """How many ReLUs switch when a pixel takes the mean of its image, of shape (samples, pixels)."""
    pixels = images.reshape(len(images), -1)

    def is_open(x: jax.Array) -> jax.Array:
        found = []
        for layer in network.layers[:-1]:
            z = layer(x)
            found.append(z > 0)
            x = nnx.relu(z)
        return jnp.concatenate(found, axis=1)

    @jax.jit
    def switched(i: jax.Array) -> jax.Array:
        replaced = pixels.at[:, i].set(pixels.mean(axis=1))
        return (is_open(replaced) != is_open(pixels)).sum(axis=1)

    return np.asarray(jax.lax.map(switched, jnp.arange(pixels.shape[1]))).T
