"""What goes wrong in training, measured: early stopping, silent neurons, a rare class, and what each does to maps."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import ArrayLike, NDArray

from lrp_book.small_networks import Digits, structure
from lrp_jax import composites, evaluation, lrp, rules

TOP = 0.05
"""Which part of the pixels counts as the most relevant."""


class Stopped(NamedTuple):
    """Early stopping, for each run.

    Attributes:
        kept: The epoch whose parameters are kept.
        last: The epoch after which training stopped; the last one of all if it did not.
    """

    kept: NDArray[np.int64]
    last: NDArray[np.int64]


def stop_early(losses: ArrayLike, patience: int) -> Stopped:
    """Stops each run when its loss has not become smaller for some epochs.

    Args:
        losses: The loss after each epoch, of shape (runs, epochs).
        patience: For how many epochs.

    Example:
        >>> stop_early([[5.0, 3.0, 4.0, 4.0, 1.0], [5.0, 4.0, 3.0, 2.0, 1.0]], patience=2)
        Stopped(kept=array([1, 4]), last=array([3, 4]))
    """
    kept, last = [], []
    for curve in np.asarray(losses):
        best = epoch = 0
        while epoch + 1 < len(curve) and epoch - best < patience:
            epoch += 1
            best = epoch if curve[epoch] < curve[best] else best
        kept.append(best)
        last.append(epoch)
    return Stopped(np.array(kept), np.array(last))


def with_hidden_biases(parameters: Any, value: float) -> Any:
    """Parameters of a dense network with two hidden layers, whose hidden biases are raised by a value."""

    def changed(path: Any, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path)
        return leaf + value if "bias" in name and "[2]" not in name else leaf

    return jax.tree_util.tree_map_with_path(changed, parameters)


def never_active(trajectories: Any, digits: Digits) -> list[NDArray[np.bool_]]:
    """Which neurons are zero for all images that their network learns from.

    Args:
        trajectories: The networks.
        digits: The training images of each network.

    Returns:
        For each hidden layer, an array of shape (seeds, epochs, neurons).
    """
    return [np.asarray(layer) for layer in _never_active(trajectories, digits.images)]


@jax.jit
def _never_active(trajectories: Any, images: jax.Array) -> list[jax.Array]:
    def one(parameters: Any, images: jax.Array) -> list[jax.Array]:
        *hidden, _ = nnx.merge(structure(), parameters).layers
        x, silent = images.reshape(len(images), -1), []
        for layer in hidden:
            x = nnx.relu(layer(x))
            silent.append(x.max(axis=0) <= 0)
        return silent

    return jax.lax.map(lambda pair: jax.vmap(one, (0, None))(*pair), (trajectories, images))


def rare_class(digits: Digits, rare: int = 8, *, number: int = 20, others: int = 3600, times: int = 1) -> Digits:
    """The first images of each seed, with only a few of one class.

    Args:
        digits: The images of each seed.
        rare: The class.
        number: How many different images it has.
        others: How many images the other classes have together.
        times: How often each image of the rare class is there.
    """
    rows = [
        np.concatenate([np.flatnonzero(row != rare)[:others], np.tile(np.flatnonzero(row == rare)[:number], times)])
        for row in digits.labels
    ]
    seeds = np.arange(len(digits.labels))[:, None]
    return Digits(digits.images[seeds, rows], digits.labels[seeds, rows])


def shares_of_classes(digits: Digits) -> NDArray[np.float64]:
    """The share of each class, averaged over the seeds."""
    return np.mean([np.bincount(row, minlength=10) / row.size for row in digits.labels], axis=0)


def shared_top(maps: jax.Array, others: jax.Array) -> NDArray[np.float32]:
    """Which part of their most relevant pixels the maps of two networks share, averaged over the images.

    Args:
        maps: Maps of shape (networks, images, height, width).
        others: Those of the other networks.

    Returns:
        Numbers from 0 to 1 of shape (networks,).
    """
    a, b = (one.reshape(-1, *one.shape[2:]) for one in (maps, others))
    return np.asarray(evaluation.top_overlap(a, b, TOP)).reshape(maps.shape[:2]).mean(axis=1)


def shared_by_chance(images: ArrayLike) -> float:
    """What two maps would share of their most relevant pixels if these were drawn at random from the ink.

    Args:
        images: Images of shape (number, height, width, channels), zero where there is no ink.
    """
    ink = np.count_nonzero(np.asarray(images).reshape(len(np.asarray(images)), -1), axis=1)
    number = round(TOP * np.asarray(images)[0].size)
    return float(np.minimum(1, number / ink).mean())


def relevance_of_silent(
    parameters: Any, silent: NDArray[np.bool_], digits: Digits, rule: rules.Rule
) -> NDArray[np.float32]:
    """Which part of the absolute relevance of the first hidden layer belongs to neurons that are never active.

    Args:
        parameters: Those of each network.
        silent: Which neurons of the first hidden layer are never active, of shape (networks, neurons).
        digits: Images, the same for all networks.
        rule: The rule of the second layer, which hands relevance to the first; the last one has LRP-0.

    Returns:
        Numbers from 0 to 1 of shape (networks,).
    """
    return np.asarray(_relevance_of_silent(parameters, jnp.asarray(silent), *digits, rule))


@partial(jax.jit, static_argnames="rule")
def _relevance_of_silent(
    parameters: Any, silent: jax.Array, images: jax.Array, labels: jax.Array, rule: rules.Rule
) -> jax.Array:
    composite = composites.Composite([(composites.index[0], rule), (composites.any_layer, rules.Zero())])

    def one(pair: Any) -> jax.Array:
        first, second, last = nnx.merge(structure(), pair[0]).layers
        upper = lrp(lambda x: last(nnx.relu(second(x))), composite)
        x = nnx.relu(first(images.reshape(len(images), -1)))
        found = jnp.abs(jax.grad(lambda x: upper(x)[jnp.arange(len(x)), labels].sum())(x))
        return (found * pair[1]).sum() / found.sum()

    return jax.lax.map(one, (parameters, silent))
