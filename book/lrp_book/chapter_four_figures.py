"""The larger figures of the chapter on LRP for convolutional networks: relevance on its way, two classes at once."""

from collections.abc import Mapping, Sequence

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch
from numpy.typing import ArrayLike, NDArray

from lrp_book import figures
from lrp_book.map_measures import Measures
from lrp_book.two_classes import Pairs
from lrp_jax import evaluation
from lrp_jax.plotting import heatmap

_PLACES = {"convolutions.1": (6.5, 2), "convolutions.0": (2, 1), "pixels": (0, 1)}
"""The pixel above which the first neuron of a map is, and how far apart its neurons are in pixels."""
_SHAPES = {"dense.1": (10, 1), "dense.0": (32, 4)}
_NAMES = {
    "dense.1": "10\nlogits",
    "dense.0": "128\nneurons",
    "convolutions.1": "second\nconvolution",
    "convolutions.0": "first\nconvolution",
    "pixels": "pixels\n",
}


def draw_flow(image: jax.Array, passed: Mapping[str, Mapping[str, jax.Array]]) -> Figure:
    """Draws relevance on its way from the output to the pixels, a row for each rule.

    Args:
        image: The image, whose outline is drawn over the maps.
        passed: The relevance of one sample by the name of the rule, and by that of the layer from the output down to
            "pixels".
    """
    figure, axes = plt.subplots(
        len(passed), len(_NAMES), figsize=(6.2, 0.5 + 1.45 * len(passed)), width_ratios=[0.22, 0.34, 1, 1, 1]
    )
    for row, (rule, layers) in zip(axes, passed.items(), strict=True):
        for ax, (layer, values) in zip(row, layers.items(), strict=True):
            values = values.reshape(_SHAPES[layer]) if layer in _SHAPES else values.sum(-1)
            drawn = heatmap(values / np.abs(values).max(), ax, limit=1.0)
            if layer in _PLACES:
                outline(ax, image, *_PLACES[layer])
            ax.set_xlabel(_parts(values))
        row[0].set_ylabel(rule)
        for right, left in zip(row[1:], row[:-1], strict=True):
            ends = {"coordsA": right.transAxes, "coordsB": left.transAxes, "axesA": right, "axesB": left}
            arrow = ConnectionPatch((-0.02, 0.5), (1.02, 0.5), **ends, arrowstyle="<|-", mutation_scale=9)
            arrow.set_color(figures.MUTED)
            figure.add_artist(arrow)
    for ax, name in zip(axes[0], _NAMES.values(), strict=True):
        ax.set_title(name, fontsize=9)
    bar = figure.colorbar(drawn, ax=axes, aspect=40, pad=0.02, ticks=[-1, 0, 1])
    bar.set_label("relevance / largest of the panel")
    return figure


def _parts(values: ArrayLike) -> str:
    positive, negative = (float(np.abs(part).sum()) for part in (np.maximum(values, 0), np.minimum(values, 0)))
    return f"+{positive:.0f}\n" + (f"−{negative:.0f}" if round(negative) else "")


def outline(ax: Axes, image: ArrayLike, first: float = 0, distance: float = 1, colour: str = figures.INK) -> None:
    """Draws the outline of a digit over a map.

    Args:
        ax: The axes with the map.
        image: The digit, of shape (height, width, 1).
        first: The pixel above which the first place of the map is.
        distance: How far its places are apart, in pixels.
        colour: The colour of the line.
    """
    limits = ax.get_xlim(), ax.get_ylim()
    pixels = np.asarray(image).squeeze()
    at = (np.arange(len(pixels)) - first) / distance
    ax.contour(at, at, pixels, levels=[0.4], colors=[colour], linewidths=0.8)
    ax.set(xlim=limits[0], ylim=limits[1])


def draw_pairs(pairs: Pairs, maps: Mapping[str, Sequence[jax.Array]]) -> Figure:
    """Draws images that hold two digits, and maps for the one and for the other, a row for each rule.

    Args:
        pairs: The digits, of which all are drawn.
        maps: The maps for the first and those for the second digits, by the name of the rule.
    """
    count = len(pairs.upper_class)
    figure, axes = plt.subplots(1 + len(maps), 2 * count, figsize=(6.2, 1.35 * (1 + len(maps)) + 0.4))
    digits = _in_turn(pairs.upper, pairs.lower)
    classes = _in_turn(pairs.upper_class, pairs.lower_class)
    for ax, image, digit, name in zip(axes[0], _in_turn(pairs.overlaid, pairs.overlaid), digits, classes, strict=True):
        ax.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[], title=f"for the {name}")
        outline(ax, digit, colour=figures.ORANGE)
    for row, (rule, both) in zip(axes[1:], maps.items(), strict=True):
        for ax, values, digit in zip(row, _in_turn(*both), digits, strict=True):
            drawn = heatmap(values / np.abs(values).max(), ax, limit=1.0)
            outline(ax, digit)
        row[0].set_ylabel(rule)
    bar = figure.colorbar(drawn, ax=axes[1:], aspect=40, pad=0.02, ticks=[-1, 0, 1])
    bar.set_label("relevance / largest of the map")
    return figure


def _in_turn(one: ArrayLike, other: ArrayLike) -> NDArray[np.generic]:
    return np.stack([np.asarray(one), np.asarray(other)], axis=1).reshape(-1, *np.shape(one)[1:])


def draw_sweeps(sweeps: Mapping[str, tuple[Sequence[float], Sequence[Measures]]], limits: Sequence[Measures]) -> Figure:
    """Draws what the parameters of two rules change, a panel for each.

    Args:
        sweeps: For each parameter its values, and what was measured at each.
        limits: What was measured under the rule at one end of each sweep, as dotted lines.
    """
    figure, axes = plt.subplots(1, 2, figsize=(6.2, 3.6), sharey=True)
    shown = {"negative": "negative share", "total": "sum / output", "gini": "sparsity"}
    for ax, (symbol, (values, measured)), limit in zip(axes, sweeps.items(), limits, strict=True):
        for i, (name, label) in enumerate(shown.items()):
            numbers = [getattr(one, name) for one in measured]
            ax.semilogx(values, numbers, f"{'os^'[i]}-", color=f"C{i}", label=label)
            ax.axhline(getattr(limit, name), color=f"C{i}", linestyle=":", linewidth=1)
        ax.set_xlabel(f"{symbol} in all layers")
    axes[0].set(ylabel="mean over the images", ylim=(-0.03, None))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def draw_alike(bands: Mapping[str, evaluation.ConfidenceBand], places: Sequence[str]) -> Figure:
    """Draws how much two explanations have in common on the way back, with intervals.

    Args:
        bands: The bands by what they are about; the last one is a control.
        places: The names of the layers, and of the pixels.
    """
    figure, ax = plt.subplots(figsize=(6.2, 3.9))
    styles = [("o-", "C1"), ("s-", "C3"), ("D--", "C2"), ("^-", "C0"), ("v:", "C5")]
    for (name, band), (style, colour) in zip(bands.items(), styles, strict=True):
        ax.plot(band.mean, style, color=colour, label=name)
        ax.fill_between(range(len(places)), band.low, band.high, color=colour, alpha=0.25, linewidth=0)
    ax.axhline(0, color=figures.INK, linewidth=0.8)
    ax.set_xticks(range(len(places)), places)
    ax.set(ylabel="correlation of two classes", xlabel="relevance at")
    figure.legend(loc="outside upper center", ncols=2)
    return figure
