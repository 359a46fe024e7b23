"""The gradient of random ReLU networks along a line beside their relevance: an experiment of chapter 5."""

from collections.abc import Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lrp_book import figures, shattering
from lrp_jax import lrp, rules

Curves: TypeAlias = dict[str, jax.Array]

METHODS: dict[str, rules.Rule | None] = {"gradient": None, "LRP-0": rules.Zero(), "z⁺": rules.ZPlus()}
"""The rule of each curve; the gradient has none."""

_COLOURS = {"gradient": figures.INK, "LRP-0": figures.BLUE, "z⁺": figures.RED}


def along_the_line(key: jax.Array, depth: int) -> Curves:
    """The output of a random network along `shattering.LINE`, and the gradient and relevance of the number it reads.

    The network reads a number and the constant 1, which acts as the bias of its first layer; its weights are not
    centred.

    Args:
        key: Of the random weights.
        depth: The number of hidden layers, of 200 neurons each.

    Example:
        >>> {name: curve.shape for name, curve in along_the_line(jax.random.key(0), 1).items()}
        {'output': (256,), 'gradient': (256,), 'LRP-0': (256,), 'z⁺': (256,)}
    """
    weights = shattering.random_weights(key, [2, *[shattering.WIDTH] * depth, 1])
    line = jnp.stack([shattering.LINE, jnp.ones_like(shattering.LINE)], axis=1)

    def network(x: jax.Array) -> jax.Array:
        for w in weights[:-1]:
            x = jax.nn.relu(x @ w)
        return (x @ weights[-1])[0]

    found = {"output": jax.vmap(network)(line)}
    for name, rule in METHODS.items():
        explained = network if rule is None else lrp(network, rule)
        found[name] = jax.vmap(jax.grad(explained))(line)[:, 0]
    return found


def autocorrelations(curves: Curves) -> dict[str, NDArray[np.float64]]:
    """The mean autocorrelation of the curves of each method, up to 60 points apart, over the networks."""
    return {name: shattering.autocorrelation(curves[name]).mean(0) for name in METHODS}


def numbers(curves: Mapping[int, Curves]) -> dict[str, float]:
    """What the chapter says of the curves, by name.

    Args:
        curves: Those of several networks, of shape (networks, points), by the depth of the networks.

    Returns:
        The autocorrelation of each method ten points apart, and how far z+ follows the output of the deepest networks.
    """
    found = {
        f"lag-{name}-{depth}": float(values[10])
        for depth, its in curves.items()
        for name, values in zip(["gradient", "zero", "plus"], autocorrelations(its).values(), strict=True)
    }
    deepest = curves[max(curves)]
    follows = [np.corrcoef(*both)[0, 1] for both in zip(deepest["z⁺"], deepest["output"], strict=True)]
    return found | {"follows": float(np.mean(follows))}


def draw(curves: Mapping[int, Curves], noise: Mapping[str, NDArray[np.float64]]) -> Figure:
    """The curves of the first network of each depth, and below them the autocorrelations of all.

    Args:
        curves: Those of several networks, of shape (networks, points), by the depth of the networks.
        noise: Autocorrelations to compare with, by their name.
    """
    figure = Figure(figsize=(6.2, 6.4))
    axes = figure.subplots(len(METHODS) + 1, len(curves), height_ratios=[1] * len(METHODS) + [2], squeeze=False)
    for column, (depth, its) in zip(axes.T, curves.items(), strict=True):
        column[0].set_title(f"{depth} hidden layer{'s' * (depth > 1)}")
        for ax, name in zip(column, METHODS, strict=False):
            ax.plot(shattering.LINE, its[name][0], color=_COLOURS[name], linewidth=1)
            ax.axhline(0, color=figures.MUTED, linewidth=0.6)
            ax.set_xticks(range(-2, 3))
            ax.tick_params(labelbottom=name == "z⁺")
        column[-2].set_xlabel("$t$")
        for name, values in autocorrelations(its).items():
            column[-1].plot(values, color=_COLOURS[name])
        for values in noise.values():
            column[-1].plot(values, ":", color=figures.MUTED)
        column[-1].set(xlabel="distance (points)", ylim=(-0.2, 1.05))
    for name, values in noise.items():
        beside = {"textcoords": "offset points", "ha": "right", "color": figures.MUTED}
        axes[-1, 0].annotate(name, (24, values[24]), (-4, -12), **beside)
    for ax, name in zip(axes[:, 0], [*METHODS, "autocorrelation"], strict=True):
        ax.set_ylabel(name)
    return figure
