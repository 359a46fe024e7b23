"""A detector of the digits 0 to 3 in a pair of digits, and the relevance of its layers (Montavon et al. 2017, MNIST).

The detector consists of detection neurons with biases that only inhibit, which are summed in groups. So the rules of
deep Taylor decomposition hold in it without exception.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from numpy.typing import NDArray

from lrp_book import datasets
from lrp_book.relevance_models import MinMaxRelevanceModel
from lrp_jax import rules

PLUS = rules.ZPlus(bias="ignore")
_BATCH, _LEARNING_RATE = 100, 1e-3


class PairDetector(nnx.Module):
    """Three layers of detection neurons, summed in groups; its output is never negative.

    Args:
        rngs: Random number generators; `rngs.params` initialises the weights.

    Example:
        >>> PairDetector(nnx.Rngs(0))(jnp.zeros((5, 28 * 56))).shape
        (5, 1)
    """

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List(
            [
                MinMaxRelevanceModel(28 * 56, 100, detectors=4, rngs=rngs),
                MinMaxRelevanceModel(100, 100, detectors=4, rngs=rngs),
                MinMaxRelevanceModel(100, 1, detectors=20, rngs=rngs),
            ]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """The output of shape (pairs, 1), for pixels of shape (pairs, 28 * 56)."""
        for layer in self.layers:
            x = layer(x)
        return x


@dataclass(frozen=True)
class Pairs:
    """Pairs of digits side by side.

    Attributes:
        images: Pixels in [0, 1], of shape (pairs, 28 * 56).
        present: Whether one of the two is a digit from 0 to 3; the other one never is.
        on_left: Whether that digit is the left one.
    """

    images: jax.Array
    present: NDArray[np.bool_]
    on_left: NDArray[np.bool_]


def digit_pairs(split: datasets.Split, number: int, seed: int) -> Pairs:
    """Draws pairs of digits, half of them with a digit from 0 to 3.

    Args:
        split: Digits and their labels.
        number: How many pairs.
        seed: Of the random numbers.
    """
    random = np.random.default_rng(seed)
    wanted, others = np.flatnonzero(split.labels < 4), np.flatnonzero(split.labels > 3)
    present, on_left = random.random((2, number)) < 0.5
    first = np.where(present, random.choice(wanted, number), random.choice(others, number))
    second = random.choice(others, number)
    sides = np.where(on_left, (first, second), (second, first))
    pictures = np.concatenate([split.images[side] for side in sides], axis=2)
    return Pairs(jnp.asarray(datasets.as_float(pictures)).reshape(number, -1), present, on_left)


def chosen(pairs: Pairs, numbers: NDArray[np.int64]) -> Pairs:
    """Some of the pairs.

    Args:
        pairs: The pairs.
        numbers: Which of them.
    """
    return Pairs(pairs.images[numbers], pairs.present[numbers], pairs.on_left[numbers])


def trained_detector(split: datasets.Split, steps: int, seed: int) -> PairDetector:
    """Trains a detector to say 1 if there is a digit from 0 to 3, and 0 if there is none.

    Each step draws a hundred new pairs, so the detector hardly sees any pair twice.

    Args:
        split: The digits to train with.
        steps: How many steps of Adam; the learning rate falls to zero along a cosine.
        seed: Of the initial weights and the pairs.
    """
    structure, parameters = nnx.split(PairDetector(nnx.Rngs(seed)))
    wanted, others = np.flatnonzero(split.labels < 4), np.flatnonzero(split.labels > 3)
    digits = jnp.asarray(split.images[..., 0])
    parameters = _train(structure, parameters, digits, wanted, others, jax.random.key(seed), steps)
    return nnx.merge(structure, parameters)


@functools.partial(jax.jit, static_argnames=("structure", "steps"))
def _train(
    structure: nnx.GraphDef,
    parameters: nnx.State,
    digits: jax.Array,
    wanted: jax.Array,
    others: jax.Array,
    key: jax.Array,
    steps: int,
) -> nnx.State:
    adam = optax.adam(optax.cosine_decay_schedule(_LEARNING_RATE, steps))

    def loss(parameters: nnx.State, x: jax.Array, present: jax.Array) -> jax.Array:
        return ((nnx.merge(structure, parameters)(x)[:, 0] - present) ** 2).mean()

    def step(carry: tuple, key: jax.Array) -> tuple[tuple, None]:
        parameters, state = carry
        x, present = _random_pairs(digits, wanted, others, key)
        updates, state = adam.update(jax.grad(loss)(parameters, x, present), state)
        parameters = optax.apply_updates(parameters, updates)
        for layer in parameters["layers"].values():  # above zero, min(0, d) has no gradient that could bring d back
            layer["d"][...] = jnp.minimum(layer["d"][...], 0)
        return (parameters, state), None

    start = parameters, adam.init(parameters)
    (parameters, _), _ = jax.lax.scan(step, start, jax.random.split(key, steps))
    return parameters


def _random_pairs(
    digits: jax.Array, wanted: jax.Array, others: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    keys = jax.random.split(key, 4)
    present, on_left = jax.random.bernoulli(keys[0], shape=(2, _BATCH))
    second = jax.random.choice(keys[1], others, (_BATCH,))
    first = jnp.where(
        present, jax.random.choice(keys[2], wanted, (_BATCH,)), jax.random.choice(keys[3], others, (_BATCH,))
    )
    sides = jnp.where(on_left, first, second), jnp.where(on_left, second, first)
    pictures = jnp.concatenate([digits[side] for side in sides], axis=2) / 255
    return pictures.reshape(_BATCH, -1), present
