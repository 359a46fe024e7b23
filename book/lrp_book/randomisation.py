"""The model randomisation test of Adebayo et al. (2018): what is left of a map when its network forgets."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lrp_book.flipping import RULES
from lrp_jax import baselines, evaluation, relevance
from lrp_jax.composites import Rules

LAYERS = ("convolutions.0", "convolutions.1", "dense.0", "dense.1")
"""The layers of the convolutional network, from the input to the output."""

CONTROL = "input × noise"
"""A control that knows nothing about any network."""

Method: TypeAlias = Callable[[Any, jax.Array, jax.Array], jax.Array]


def _from_absolute_output(rule: Rules, network: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    """LRP that starts at the absolute value of the output: a negative output does not turn the signs of the map."""
    explanation = relevance(network, images, labels, rule, progress=False)
    sign = jnp.sign(explanation.output[jnp.arange(len(labels)), labels])
    return explanation.relevance * sign.reshape(-1, 1, 1, 1)


METHODS: dict[str, Method] = {
    "gradient": baselines.gradient,
    "gradient × input": baselines.gradient_times_input,
    "integrated gradients": functools.partial(baselines.integrated_gradients, steps=8),
}
METHODS |= {name: functools.partial(_from_absolute_output, rule) for name, rule in RULES.items()}


@dataclass(frozen=True)
class Randomised:
    """Maps of a trained network and of what is left of it.

    Attributes:
        images: The images, of shape (samples, height, width, 1).
        maps: By method, the maps of the trained network and after each layer was shuffled, from the output down: of
            shape (1 + layers, samples, height, width, 1).
        draws: How often the parameters were shuffled; each time the maps of another part of the images were made.
    """

    images: jax.Array
    maps: Mapping[str, jax.Array]
    draws: int

    def agreement(self, method: str, *, absolute: bool = False, brightest: int | None = None) -> NDArray[np.float32]:
        """The rank correlation of the maps of the trained network with those after each layer was shuffled.

        Args:
            method: The method.
            absolute: Whether the absolute values are compared.
            brightest: If given, only so many pixels of each image are compared: the brightest.

        Returns:
            The mean over the images of each draw, of shape (draws, layers).
        """
        maps = self.maps[method]
        maps = jnp.abs(maps) if absolute else maps
        if brightest is not None:
            maps = jnp.stack([on_brightest(self.images, one, brightest) for one in maps])
        alike = [evaluation.rank_agreement(maps[0], one).reshape(self.draws, -1).mean(1) for one in maps[1:]]
        return np.stack(alike, axis=1)


def randomised(network: Any, images: jax.Array, labels: jax.Array, keys: Sequence[jax.Array]) -> Randomised:
    """Shuffles the layers of a network from the output down, and explains it each time with all methods.

    Args:
        network: The convolutional network.
        images: The images, whose number is a multiple of that of the keys.
        labels: The classes that are explained.
        keys: One for each draw of the shuffled parameters.
    """
    shuffled = [evaluation.randomise(network, LAYERS, key=key) for key in keys]
    parts = list(zip(jnp.split(images, len(keys)), jnp.split(labels, len(keys)), strict=True))
    maps = {CONTROL: _noise(images, keys[0])}
    for name, method in METHODS.items():
        after = [
            jnp.concatenate([method(models[layer], x, y) for models, (x, y) in zip(shuffled, parts, strict=True)])
            for layer in reversed(LAYERS)
        ]
        maps[name] = jnp.stack([method(network, images, labels), *after])
    return Randomised(images, maps, len(keys))


def on_brightest(images: jax.Array, maps: jax.Array, number: int) -> jax.Array:
    """What maps say of the brightest pixels of each image.

    Example:
        >>> on_brightest(jnp.array([[0.0, 1.0, 0.5]]), jnp.array([[3.0, 5.0, 4.0]]), 2)
        Array([[5., 4.]], dtype=float32)
    """
    brightest = jnp.argsort(-images.reshape(len(images), -1), axis=1)[:, :number]
    return jnp.take_along_axis(maps.reshape(len(maps), -1), brightest, axis=1)


def _noise(images: jax.Array, key: jax.Array) -> jax.Array:
    one, other = (images * jax.random.normal(k, images.shape) for k in jax.random.split(key))
    return jnp.stack([one] + [other] * len(LAYERS))
