"""Random ReLU networks that read one number, and how much their gradients resemble themselves from input to input."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from lrp_jax import lrp, rules

WIDTH = 200
LINE = jnp.linspace(-2.0, 2.0, 256)
"""The inputs at which gradients are taken: those of Balduzzi et al. (2017)."""

Centred: TypeAlias = Literal["", "weights", "sums"]


@dataclass(frozen=True)
class Setting:
    """How the hidden layers of a random network are made.

    Attributes:
        centred: What has the mean zero: nothing, the weights of each neuron, or the sum of each neuron over the inputs.
        residual: None for a feedforward network. Else a layer adds this times what it computes to what it reads, and
            centred sums are also divided by their standard deviation, as by a batch normalisation.
    """

    centred: Centred = ""
    residual: float | None = None


SETTINGS = {
    "feedforward": Setting(),
    "feedforward, weights centred": Setting("weights"),
    "feedforward, sums centred": Setting("sums"),
    "residual": Setting(residual=1.0),
    "residual, sums normalised": Setting("sums", residual=1.0),
    "residual × 0.1, sums normalised": Setting("sums", residual=0.1),
}


def random_weights(key: jax.Array, sizes: Sequence[int], centred: bool = False) -> list[jax.Array]:
    """Normal weights of variance 2 / inputs for layers of these sizes; if centred, those of a neuron sum to zero.

    The first layer is never centred: it reads one number beside a constant.

    Example:
        >>> [w.shape for w in random_weights(jax.random.key(0), [2, 5, 1])]
        [(2, 5), (5, 1)]
    """
    keys = jax.random.split(key, len(sizes) - 1)
    weights = [
        jax.random.normal(key, (a, b)) * (2 / a) ** 0.5 for key, a, b in zip(keys, sizes, sizes[1:], strict=False)
    ]
    return [w - w.mean(0) if centred and number else w for number, w in enumerate(weights)]


class OnTheLine(NamedTuple):
    """What a random network does at the points of `LINE`.

    Attributes:
        gradient: The derivative of the output with respect to the input at each point, of shape (256,).
        switching: The share of the last hidden layer that is open at some of the points and closed at others.
    """

    gradient: jax.Array
    switching: jax.Array


def on_the_line(key: jax.Array, depth: int, setting: Setting) -> OnTheLine:
    """Takes the derivative of a random network at each point of `LINE`.

    The first layer has a bias for each neuron, so that each has its kink at another point, and is never centred. No
    other layer has biases. The means and standard deviations of the sums are held constant, as a batch normalisation
    holds them at inference.

    Args:
        key: Of the random weights.
        depth: The number of hidden layers, of 200 neurons each.
        setting: How these are made.

    Example:
        >>> on_the_line(jax.random.key(0), 2, SETTINGS["feedforward"]).gradient.shape
        (256,)
    """
    first, *hidden, last = random_weights(key, [2, *[WIDTH] * depth, 1], centred=setting.centred == "weights")

    def network(t: jax.Array) -> tuple[jax.Array, jax.Array]:
        z = jnp.stack([t, jnp.ones_like(t)], axis=1) @ first
        x = jax.nn.relu(z)
        for w in hidden:
            z = x @ w if setting.residual is None else z + setting.residual * x @ w
            x = jax.nn.relu(_centred(z, setting))
        return (x @ last)[:, 0], x > 0

    _, gradient, is_open = jax.jvp(network, (LINE,), (jnp.ones_like(LINE),), has_aux=True)
    return OnTheLine(gradient, (is_open.any(0) & ~is_open.all(0)).mean())


def _centred(z: jax.Array, setting: Setting) -> jax.Array:
    if setting.centred != "sums":
        return z
    z = z - jax.lax.stop_gradient(z.mean(0))
    return z if setting.residual is None else z / jax.lax.stop_gradient(z.std(0))


def autocorrelation(curves: ArrayLike, lags: int = 61) -> NDArray[np.float64]:
    """The correlation of each curve with itself some points further on.

    Args:
        curves: Of shape (curves, points).
        lags: How many distances there are, from 0 on.

    Returns:
        Of shape (curves, lags).

    Example:
        >>> autocorrelation([[1.0, -1.0, 1.0, -1.0]], lags=3)
        array([[ 1.  , -0.75,  0.5 ]])
    """
    deviations = np.asarray(curves, float)
    deviations = deviations - deviations.mean(1, keepdims=True)
    points = deviations.shape[1]
    products = [(deviations[:, : points - lag] * deviations[:, lag:]).sum(1) for lag in range(lags)]
    return np.stack(products, axis=1) / (deviations**2).sum(1, keepdims=True)


def cosine_of_two_outputs(key: jax.Array, depth: int, setting: Setting, rule: rules.Rule, x: jax.Array) -> jax.Array:
    """The cosine between the maps of the two outputs of a random feedforward network.

    Args:
        key: Of the random weights.
        depth: The number of hidden layers.
        setting: How these are made; their sums cannot be centred, as there is one input only.
        rule: By which the maps are computed.
        x: The input, of shape (inputs,).

    Returns:
        A number from -1 to 1: 1 if the maps have the same pattern, -1 if they are opposites.

    Example:
        >>> cosine = cosine_of_two_outputs(jax.random.key(0), 3, Setting(), rules.ZPlus(), jnp.ones(16))
        >>> float(jnp.abs(cosine)) > 0.9
        True
    """
    weights = random_weights(key, [len(x), *[WIDTH] * depth, 2], centred=setting.centred == "weights")

    def network(x: jax.Array) -> jax.Array:
        for w in weights[:-1]:
            x = jax.nn.relu(x @ w)
        return x @ weights[-1]

    return cosine(*jax.jacrev(lrp(network, rule))(x))


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """The cosine of the angle between two maps.

    Example:
        >>> cosine(jnp.array([3.0, 4.0]), jnp.array([-6.0, -8.0]))
        Array(-1., dtype=float32)
    """
    return jnp.vdot(a, b) / (jnp.linalg.norm(a) * jnp.linalg.norm(b))


def band(values: ArrayLike, resamples: int = 2000) -> dict[str, Any]:
    """The mean over networks, between which bounds it is known, and where nine of ten networks are.

    Args:
        values: Of shape (networks, ...).
        resamples: How often the networks are drawn anew for the bootstrap.

    Returns:
        "mean"; "low" and "high", its 95 % interval by the bootstrap over networks; "least" and "most", the 5 and 95 %
        quantiles of the networks; each a number or a list.

    Example:
        >>> band([2.0, 2.0, 2.0])
        {'mean': 2.0, 'low': 2.0, 'high': 2.0, 'least': 2.0, 'most': 2.0}
    """
    values = np.asarray(values, float)
    drawn = np.random.default_rng(0).multinomial(len(values), np.full(len(values), 1 / len(values)), resamples)
    low, high = np.quantile(np.tensordot(drawn / len(values), values, 1), [0.025, 0.975], axis=0)
    least, most = np.quantile(values, [0.05, 0.95], axis=0)
    found = {"mean": values.mean(0), "low": low, "high": high, "least": least, "most": most}
    return {name: np.round(one, 4).tolist() for name, one in found.items()}
