"""Images that hold two digits, and what the maps of the two have in common."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lrp_book import datasets
from lrp_book.map_measures import correlation
from lrp_book.models import DenseNetwork
from lrp_jax import Explanation, evaluation, relevance
from lrp_jax.rules import Rule

COUNT = 1000


@dataclass(frozen=True)
class Pairs:
    """Two digits each, and their classes.

    Attributes:
        upper: The images of the first digits.
        lower: Those of the second ones.
        upper_class: The classes of the first digits.
        lower_class: Those of the second ones.
    """

    upper: jax.Array
    lower: jax.Array
    upper_class: NDArray[Any]
    lower_class: NDArray[Any]

    def __getitem__(self, chosen: NDArray[Any]) -> "Pairs":
        return Pairs(self.upper[chosen], self.lower[chosen], self.upper_class[chosen], self.lower_class[chosen])

    @property
    def overlaid(self) -> jax.Array:
        """The brighter of the two digits at each pixel."""
        return jnp.maximum(self.upper, self.lower)

    @property
    def beside(self) -> jax.Array:
        """The two digits beside each other, each half as wide."""
        samples, height, width, channels = self.upper.shape
        narrow = (
            jax.image.resize(digit, (samples, height, width // 2, channels), "linear")
            for digit in (self.upper, self.lower)
        )
        return jnp.concatenate(list(narrow), axis=2)


def pairs_of(digits: datasets.Split) -> Pairs:
    """The first two thousand digits in pairs, those of two different classes."""
    images = jnp.asarray(datasets.as_float(digits.images[: 2 * COUNT]))
    upper, lower = np.split(np.asarray(digits.labels[: 2 * COUNT]), 2)
    return Pairs(images[:COUNT], images[COUNT:], upper, lower)[np.flatnonzero(upper != lower)]


def both_seen(model: Callable[[jax.Array], jax.Array], pairs: Pairs, images: jax.Array) -> NDArray[np.bool]:
    """In which images the two digits have the two largest outputs, both positive."""
    outputs = np.asarray(model(images))
    place = (-outputs).argsort(1).argsort(1)  # 0 for the largest
    every = np.arange(len(outputs))
    seen = [(place[every, digit] < 2) & (outputs[every, digit] > 0) for digit in (pairs.upper_class, pairs.lower_class)]
    return seen[0] & seen[1]


def on_own_digit(first: jax.Array, second: jax.Array, pairs: Pairs) -> jax.Array:
    """Of the positive relevance on ink of one digit alone, how much lies on the digit that is explained.

    Args:
        first: The maps for the first digits.
        second: Those for the second ones.
        pairs: The digits.

    Returns:
        The mean of the two maps of each image.
    """
    return (_own_share(first, pairs.upper, pairs.lower) + _own_share(second, pairs.lower, pairs.upper)) / 2


def _own_share(maps: jax.Array, mine: jax.Array, theirs: jax.Array) -> jax.Array:
    positive = jnp.maximum(maps, 0)
    on_mine = (positive * ((mine > 0) & (theirs == 0))).sum((1, 2, 3))
    on_theirs = (positive * ((theirs > 0) & (mine == 0))).sum((1, 2, 3))
    return on_mine / (on_mine + on_theirs)


def alike_by_layer(one: Explanation, other: Explanation, layers: tuple[str, ...]) -> jax.Array:
    """The correlation of two explanations in some layers and in the pixels, of shape (samples, layers + 1)."""
    hidden = [correlation(one.at[layer], other.at[layer]) for layer in layers]
    return jnp.stack([*hidden, correlation(one.relevance, other.relevance)], axis=1)


def in_dense_network(network: DenseNetwork, pairs: Pairs, rule: Rule) -> tuple[dict[str, float], dict[str, float]]:
    """What the two classes have in common in the dense network, for the first two hundred pairs that it sees both of.

    Args:
        network: The network.
        pairs: The digits.
        rule: The rule of all layers.

    Returns:
        The correlation in the last hidden layer ("1"), the one before ("0") and the pixels, and the share of the 10 %
        most relevant neurons in common in these layers.
    """
    pairs = pairs[np.flatnonzero(both_seen(network, pairs, pairs.overlaid))[:200]]
    layers = ("layers.1", "layers.0")
    one, two = (
        relevance(network, pairs.overlaid, classes, rule, at=layers, progress=False)
        for classes in (pairs.upper_class, pairs.lower_class)
    )
    alike = dict(zip(("1", "0", "pixels"), map(float, alike_by_layer(one, two, layers).mean(0)), strict=True))
    overlaps = (evaluation.top_overlap(one.at[layer], two.at[layer], 0.1) for layer in layers)
    return alike, {layer[-1]: float(its.mean()) for layer, its in zip(layers, overlaps, strict=True)}


def compared(
    first: Mapping[str, Explanation], second: Mapping[str, Explanation], pairs: Pairs, layers: tuple[str, ...]
) -> tuple[dict[str, evaluation.ConfidenceBand], dict[str, evaluation.ConfidenceBand]]:
    """How much the maps of two classes have in common, and how much lies on the own digit, under some rules.

    Args:
        first: The explanations of the first digits, by the name of the rule.
        second: Those of the second digits.
        pairs: The digits.
        layers: The hidden layers to compare.

    Returns:
        The correlation in each of these layers and in the pixels, and the share on the own digit, with intervals.
    """
    key = jax.random.key(1)
    alike, own = {}, {}
    for name, one in first.items():
        alike[name] = evaluation.confidence_band(alike_by_layer(one, second[name], layers), key=key)
        shares = on_own_digit(one.relevance, second[name].relevance, pairs)
        own[name] = evaluation.confidence_band(shares, key=key)
    return alike, own


def between_images(explanation: Explanation, layers: tuple[str, ...]) -> evaluation.ConfidenceBand:
    """The same correlation between each image and the next one."""
    next_image = jax.tree.map(lambda array: jnp.roll(array, 1, 0), explanation)
    return evaluation.confidence_band(alike_by_layer(explanation, next_image, layers), key=jax.random.key(1))
