"""Many small dense networks at once, one for each seed, each trained on images of its own."""

from collections.abc import Iterable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

from lrp_book.datasets import Split, as_float
from lrp_book.models import DenseNetwork
from lrp_jax import lrp, rules

HIDDEN = (64, 64)
BATCH_SIZE = 50
HELD_OUT = 2000
"""How many training images, the last ones, no network learns from; all of them are judged by these."""

_Trajectories = Any
"""Parameters of all networks at the start and after each epoch: a tree whose leaves begin (seeds, epochs + 1, ...)."""


class Digits(NamedTuple):
    """Images and their labels; if they differ between the seeds, both begin with an axis for these.

    Attributes:
        images: Floats from 0 to 1, of shape (..., number, height, width, channels).
        labels: The classes, of shape (..., number).
    """

    images: NDArray[np.float32]
    labels: NDArray[np.int32]


def draw(data: Split, number: int, seeds: int = 8) -> Digits:
    """Training images at random, others for each seed, none of which is held out."""
    pool = len(data.labels) - HELD_OUT
    rows = np.stack([np.random.default_rng(seed).permutation(pool)[:number] for seed in range(seeds)])
    return Digits(as_float(data.images[rows]), data.labels[rows])


def held_out(data: Split) -> Digits:
    """The training images that no network learns from."""
    return Digits(as_float(data.images[-HELD_OUT:]), data.labels[-HELD_OUT:])


def initial(seeds: Iterable[int]) -> Any:
    """The parameters that networks start from, one network for each seed."""
    networks = [DenseNetwork(hidden=HIDDEN, rngs=nnx.Rngs(int(seed))) for seed in seeds]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *(nnx.state(one, nnx.Param) for one in networks))


def learn(
    digits: Digits,
    *,
    epochs: int = 20,
    rate: float = 1e-3,
    decay: float = 0.0,
    reach: int = 0,
    shuffled: bool = True,
    class_weights: ArrayLike = (1.0,) * 10,
    start: Any = None,
    order: Sequence[int] | NDArray[np.int64] | None = None,
) -> _Trajectories:
    """Trains a network for each seed by Adam, with a constant learning rate.

    Args:
        digits: The images of each seed.
        epochs: How often each image is used. A longer run begins like a shorter one.
        rate: The learning rate.
        decay: The weight decay.
        reach: By up to how many pixels an image is moved at random, whenever it is used.
        shuffled: Whether the images have a new random order in each epoch, or always the one that they come in.
        class_weights: By what the loss of an image of each class is multiplied.
        start: The parameters to start from; those of `initial` if None.
        order: The seed of each network's random order; its number if None.

    Returns:
        The parameters at the start and after each epoch.
    """
    number, size = digits.labels.shape
    parameters = initial(range(number)) if start is None else start
    moments = jax.vmap(optax.adamw(rate).init)(parameters)
    images, labels = (jnp.asarray(one) for one in digits)
    course = [parameters]
    for epoch in range(epochs):
        generators = [np.random.default_rng([seed, epoch]) for seed in (np.arange(number) if order is None else order)]
        rows = np.stack([one.permutation(size) if shuffled else np.arange(size) for one in generators])
        rows = rows[:, : size // BATCH_SIZE * BATCH_SIZE].reshape(number, -1, BATCH_SIZE)
        corners = np.stack([one.integers(0, 2 * reach + 1, (*rows.shape[1:], 2)) for one in generators])
        batches = images, labels, rows, corners
        numbers = rate, decay, jnp.asarray(class_weights)
        parameters, moments = _learn_for_an_epoch(parameters, moments, *batches, *numbers, reach=reach)
        course.append(parameters)
    return jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *course)


@partial(jax.jit, static_argnames="reach")
def _learn_for_an_epoch(
    parameters: Any,
    moments: Any,
    images: jax.Array,
    labels: jax.Array,
    rows: jax.Array,
    corners: jax.Array,
    rate: jax.Array,
    decay: jax.Array,
    class_weights: jax.Array,
    *,
    reach: int,
) -> Any:
    optimizer = optax.adamw(rate, weight_decay=decay)

    def run(parameters: Any, moments: Any, images: jax.Array, labels: jax.Array, *batches: jax.Array) -> Any:
        def step(state: Any, batch: Any) -> Any:
            parameters, moments = state
            rows, corners = batch
            x = _moved(images[rows], corners, reach) if reach else images[rows]
            gradient = jax.grad(_cross_entropy)(parameters, x, labels[rows], class_weights[labels[rows]])
            updates, moments = optimizer.update(gradient, moments, parameters)
            return (optax.apply_updates(parameters, updates), moments), None

        return jax.lax.scan(step, (parameters, moments), batches)[0]

    return jax.vmap(run)(parameters, moments, images, labels, rows, corners)


@cache
def structure() -> Any:
    """What all networks have in common: everything but the parameters."""
    return nnx.graphdef(nnx.eval_shape(lambda: DenseNetwork(hidden=HIDDEN, rngs=nnx.Rngs(0))))


def _cross_entropy(parameters: Any, x: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
    logits = nnx.merge(structure(), parameters)(x)
    return (weights * optax.softmax_cross_entropy_with_integer_labels(logits, labels)).mean()


def _moved(images: jax.Array, corners: jax.Array, reach: int) -> jax.Array:
    padded = jnp.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)))

    def cut(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (*corner, 0), images.shape[1:])

    return jax.vmap(cut)(padded, corners)


def at_epoch(trajectories: _Trajectories, epochs: ArrayLike) -> Any:
    """The parameters of each network after an epoch of its own, or after the same one; 0 is the start, -1 the end."""
    number, length = jax.tree.leaves(trajectories)[0].shape[:2]
    chosen = np.broadcast_to(np.asarray(epochs), number) % length
    return jax.tree.map(lambda leaf: leaf[np.arange(number), chosen], trajectories)


def logits_of(trajectories: _Trajectories, images: ArrayLike) -> jax.Array:
    """The logits of shape (seeds, epochs, images, classes), at the start and after each epoch.

    Args:
        trajectories: The networks.
        images: The images, the same for all networks; or those of each, with an axis for the seeds in front.
    """
    shared = np.ndim(np.asarray(images)) == 4
    return _logits_of_shared(trajectories, images) if shared else _logits_of_own(trajectories, images)


@jax.jit
def _logits_of_shared(trajectories: _Trajectories, images: jax.Array) -> jax.Array:
    return jax.lax.map(lambda one: _logits_of_one(one, images), trajectories)


@jax.jit
def _logits_of_own(trajectories: _Trajectories, images: jax.Array) -> jax.Array:
    return jax.lax.map(lambda pair: _logits_of_one(*pair), (trajectories, images))


def _logits_of_one(trajectory: Any, images: jax.Array) -> jax.Array:
    return jax.vmap(lambda parameters: nnx.merge(structure(), parameters)(images))(trajectory)


class Judged(NamedTuple):
    """What networks make of images, at the start and after each epoch.

    Attributes:
        loss: The mean cross-entropy, of shape (seeds, epochs + 1).
        recognised: The share of images that is recognised, in percent, of the same shape.
    """

    loss: NDArray[np.float32]
    recognised: NDArray[np.float64]


def judge(logits: jax.Array, labels: ArrayLike) -> Judged:
    """How good logits are.

    Args:
        logits: Those of `logits_of`.
        labels: The classes of the images, the same for all networks; or those of each, of shape (seeds, 1, images).

    Example:
        >>> judge(jnp.array([[[[0.0, 0.0], [2.0, 1.0]]]]), [1, 0]).recognised
        array([[50.]])
    """
    scores = np.asarray(logits)
    wanted = np.broadcast_to(labels, scores.shape[:-1])
    losses = logsumexp(scores, axis=-1) - np.take_along_axis(scores, wanted[..., None], axis=-1)[..., 0]
    correct = scores.argmax(axis=-1) == wanted
    return Judged(losses.mean(axis=-1), 100 * correct.mean(axis=-1))


def maps_of(parameters: Any, digits: Digits, rule: rules.Rule | None = None, scale: float = 1.0) -> jax.Array:
    """The relevance of the pixels for each image's own class, of shape (seeds, images, height, width).

    Args:
        parameters: Those of each network, as `at_epoch` returns them.
        digits: The images, the same for all networks.
        rule: The rule of all layers; LRP-0 if None.
        scale: By what the pixels are multiplied before the networks get them.
    """
    return _maps_of(parameters, scale * digits.images, digits.labels, rules.Zero() if rule is None else rule)


@partial(jax.jit, static_argnames="rule")
def _maps_of(parameters: Any, images: jax.Array, labels: jax.Array, rule: rules.Rule) -> jax.Array:
    def one(parameters: Any) -> jax.Array:
        explained = lrp(nnx.merge(structure(), parameters), rule)
        return jax.grad(lambda x: explained(x)[jnp.arange(len(x)), labels].sum())(images)[..., 0]

    return jax.lax.map(one, parameters)
