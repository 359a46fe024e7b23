"""The figures of pixel flipping: what is left of one digit, and the curves of several networks."""

from collections.abc import Mapping

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lrp_book import figures, flipping
from lrp_book.numbers import with_decimals
from lrp_jax.plotting import heatmap

COLOURS = {
    "knows nothing": figures.GREY,
    "gradient": figures.ORANGE,
    "from black": figures.GREEN,
    "rule": figures.RED,
    "on ink": figures.PURPLE,
}
"""The colour of the lines of each family of methods."""


def draw_what_is_left(
    image: jax.Array,
    maps: Mapping[str, jax.Array],
    left: Mapping[str, Mapping[str, jax.Array]],
    logits: Mapping[str, Mapping[str, float]],
    whole: float,
) -> Figure:
    """Draws an image with some maps, and below each map what is left of the image without its most relevant pixels.

    Args:
        image: The image.
        maps: A map for each method.
        left: What is left, by what the pixels became and by method.
        logits: The logit of what is left, in the same order.
        whole: The logit of the whole image.
    """
    figure, axes = plt.subplots(1 + len(left), 1 + len(maps), figsize=(6.2, 1.1 + 1.25 * len(left)))
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    for ax in axes[1:, 0]:
        ax.axis("off")
    axes[0, 0].imshow(image.squeeze(), cmap="gray", vmin=0, vmax=1)
    axes[0, 0].set(title="the digit", xlabel=f"logit {with_decimals(whole, 1)}")
    for column, (name, values) in zip(axes[:, 1:].T, maps.items(), strict=True):
        drawn = heatmap(values / np.abs(values).max(), column[0], limit=1.0)
        column[0].set_title(name.replace("Epsilon", "Epsilon\n"), fontsize=9)
        for ax, replacement in zip(column[1:], left, strict=True):
            ax.imshow(left[replacement][name].squeeze(), cmap="gray", vmin=0, vmax=1)
            ax.set_xlabel(f"logit {with_decimals(logits[replacement][name], 1)}")
    for ax, replacement in zip(axes[1:, 0], left, strict=True):
        ax.text(1, 0.5, f"they become\n{replacement}", ha="right", va="center", transform=ax.transAxes)
    bar = figure.colorbar(drawn, ax=axes[:, 1:], ticks=[-1, 0, 1], aspect=8, pad=0.02, shrink=0.28, anchor=(0, 0.95))
    bar.set_label("relative\nrelevance")
    return figure


def draw_curves(flipped: flipping.Flipped) -> Figure:
    """Draws the first steps of all methods' curves, for both replacements and for the logit and the margin.

    Args:
        flipped: What was measured.
    """
    figure, axes = plt.subplots(2, 2, figsize=(6.2, 8.4), sharex=True)
    names = {"logit": "logit of the true class", "margin": "margin"}
    for row, replacement in zip(axes, flipping.REPLACEMENTS, strict=True):
        for ax, followed in zip(row, flipping.FOLLOWED, strict=True):
            _draw_panel(ax, flipped, replacement, followed)
            ax.set_title(f"pixels become {replacement}", loc="left")
            ax.set_ylabel(names[followed])
    for ax in axes[1]:
        ax.set_xlabel("pixels replaced (%)", loc="left")
    return figure


def _draw_panel(ax: Axes, flipped: flipping.Flipped, replacement: str, followed: str) -> None:
    percent = 100 * flipping.FRACTION / flipping.STEPS * np.arange(_SHOWN + 1)
    ends, colours = {}, {}
    for family, methods in flipping.FAMILIES.items():
        for method in methods:
            curves = flipped.mean_curves[replacement, followed, method][:, : _SHOWN + 1]
            mean, colours[method] = curves.mean(axis=0), COLOURS[family]
            ax.plot(percent, mean, color=colours[method], linewidth=1.1)
            ax.fill_between(
                percent, curves.min(axis=0), curves.max(axis=0), color=colours[method], alpha=0.07, linewidth=0
            )
            ends[method] = float(mean[-1])
    ax.set_xlim(0, 2.65 * percent[-1])
    ax.set_xticks([0, 5, 10])
    ax.spines["bottom"].set_bounds(0, percent[-1])
    _label_ends(ax, percent[-1], ends, colours)


_SHOWN = 4  # steps; later most of the ink is gone, and the lines meet


def _label_ends(ax: Axes, x: float, ends: Mapping[str, float], colours: Mapping[str, str]) -> None:
    """Writes a name beside the end of each line, one below the other, with a thin line from one to the other."""
    low, high = ax.get_ylim()
    distance = (high - low) / (len(ends) + 0.5)
    places = spread(np.array(list(ends.values())), distance, low + 0.5 * distance, high - 0.5 * distance)
    for place, (name, end) in zip(places, ends.items(), strict=True):
        ax.plot([x, 1.3 * x], [end, place], color=colours[name], linewidth=0.5)
        ax.text(1.33 * x, place, name, color=colours[name], fontsize=8.5, va="center")
    ax.set_ylim(low, high)


def draw_areas(flipped: flipping.Flipped) -> Figure:
    """Draws the mean drop of every method, with the lowest and the highest of the networks.

    Args:
        flipped: What was measured.
    """
    methods = [method for family in flipping.FAMILIES.values() for method in family]
    methods.sort(key=lambda method: float(flipped.areas("black", "logit", method).mean()))
    figure, axes = plt.subplots(1, 2, figsize=(6.2, 4.6), sharey=True)
    styles = {"logit": (figures.BLUE, "o", 0.15), "margin": (figures.RED, "s", -0.15)}
    for ax, replacement in zip(axes, flipping.REPLACEMENTS, strict=True):
        for followed, (colour, marker, shift) in styles.items():
            areas = np.array([flipped.areas(replacement, followed, method) for method in methods])
            at = np.arange(len(methods)) + shift
            ax.plot(areas.mean(axis=1), at, marker, color=colour, markersize=4, label=followed)
            ax.hlines(at, areas.min(axis=1), areas.max(axis=1), color=colour, linewidth=1)
        ax.set(title=f"pixels become {replacement}", xlabel="mean drop", xlim=(0, None))
        ax.grid(axis="y")
        ax.set_axisbelow(True)
    axes[0].set_yticks(range(len(methods)), methods)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    return figure


def spread(ends: NDArray[np.float64], distance: float, low: float, high: float) -> NDArray[np.float64]:
    """Places for labels near the ends of lines, in their order, so far apart that they can be read.

    Args:
        ends: Where the labels would be best.
        distance: How far two labels are apart at least.
        low: Where the first label is at the lowest.
        high: Where the last label is at the highest; there is room for all of them.

    Example:
        >>> spread(np.array([0.0, 0.1, 5.0]), 1.0, -1.0, 6.0).tolist()
        [0.0, 1.0, 5.0]
    """
    order = np.argsort(ends, kind="stable")
    places = ends[order].astype(float)
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + distance)
    places[-1] = min(places[-1], high)
    for i in range(len(places) - 2, -1, -1):
        places[i] = max(min(places[i], places[i + 1] - distance), low)
    found = np.empty_like(places)
    found[order] = places
    return found
