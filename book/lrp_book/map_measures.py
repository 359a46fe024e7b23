"""What can be counted in relevance maps: signs, sums, how concentrated and how restless they are, how alike two are."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lrp_jax import evaluation


class Measures(NamedTuple):
    """Numbers of the maps of many images.

    Attributes:
        negative: The part of the absolute relevance that is negative.
        total: The sum of the relevance, relative to the explained outputs.
        gini: The Gini index of the absolute relevance, mean over the images.
        pixels: How many pixels hold 90 % of the absolute relevance, mean over the images.
        restless: The share of neighbours with relevance whose signs are opposite.
    """

    negative: float
    total: float
    gini: float
    pixels: float
    restless: float


def measure(maps: jax.Array, explained: jax.Array) -> Measures:
    """Measures maps.

    Args:
        maps: Relevance of shape (samples, height, width, 1).
        explained: The explained output of each sample.

    Example:
        >>> measure(jnp.array([3.0, -1.0, 0.0, 0.0]).reshape(1, 2, 2, 1), jnp.array([4.0]))
        Measures(negative=0.25, total=0.5, gini=0.625, pixels=2.0, restless=1.0)
    """
    return Measures(
        float(jnp.maximum(-maps, 0).sum() / jnp.abs(maps).sum()),
        float(maps.sum() / explained.sum()),
        float(evaluation.sparsity(maps).mean()),
        pixels_for(maps, 0.9),
        restlessness(maps),
    )


def pixels_for(maps: jax.Array, share: float) -> float:
    """The mean number of pixels that hold this share of the absolute relevance.

    Example:
        >>> pixels_for(jnp.array([[5.0, -4.0, 1.0]]), 0.9)
        2.0
    """
    strongest = -jnp.sort(-jnp.abs(maps).reshape(len(maps), -1), axis=1)
    held = jnp.cumsum(strongest, axis=1) / strongest.sum(1, keepdims=True)
    return float((held < share).sum(1).mean() + 1)


def restlessness(maps: jax.Array) -> float:
    """The share of neighbouring pixels with relevance whose relevance has opposite signs.

    Example:
        >>> restlessness(jnp.array([1.0, -1.0, 2.0, 0.0]).reshape(1, 1, 4, 1))
        1.0
    """
    rows = maps[:, 1:] * maps[:, :-1]
    columns = maps[:, :, 1:] * maps[:, :, :-1]
    opposite = (rows < 0).sum() + (columns < 0).sum()
    return float(opposite / ((rows != 0).sum() + (columns != 0).sum()))


def share_on_black(maps: jax.Array, images: jax.Array) -> float:
    """The part of the absolute relevance that lies on pixels that are zero.

    Example:
        >>> share_on_black(jnp.array([[3.0, -1.0]]), jnp.array([[1.0, 0.0]]))
        0.25
    """
    return float(jnp.where(images == 0, jnp.abs(maps), 0).sum() / jnp.abs(maps).sum())


def correlation(a: jax.Array, b: jax.Array) -> jax.Array:
    """Pearson's correlation of two explanations, for each sample.

    Example:
        >>> correlation(jnp.array([[0.0, 1.0, 2.0]]), jnp.array([[4.0, 2.0, 0.0]]))
        Array([-1.], dtype=float32)
    """
    a, b = (values.reshape(len(values), -1) for values in (a, b))
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    return (a * b).sum(1) / jnp.sqrt((a**2).sum(1) * (b**2).sum(1))
