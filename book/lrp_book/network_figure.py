"""The convolutional network as a picture: its maps to scale, and on the arrows what happens between them."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from lrp_book.figures import GRID, INK, MUTED, PAPER, PURPLE

ACTIVATIONS = LinearSegmentedColormap.from_list("activations", [f"{PURPLE}00", f"{PURPLE}ff"])
"""Colours of what is never negative; zero is the ground of the page."""

_SHEET = 0.3  # how far a sheet of a stack is moved against the one before it, in pixels of the image
_ARROW = 19.0  # the width of an arrow with its words
_BAR = 3.0


_CONVOLVE, _POOL = "5 × 5 conv\n+ ReLU", "2 × 2\nmax pool"
_OPERATIONS = (_CONVOLVE, _POOL, _CONVOLVE, _POOL, "dense\n+ ReLU", "dense")
_IN_FIRST_ROW = 3


def draw(steps: Mapping[str, ArrayLike]) -> Figure:
    """Draws what the network computes of one image, in two rows.

    Args:
        steps: By the name, maps of shape (height, width, channels) or vectors: the image, two convolutions, each with
            the pooling after it, the dense layer and the logits.
    """
    figure, axes = plt.subplots(2, 1, figsize=(6.2, 4.3))
    names = list(steps)
    for ax, chosen, first in ((axes[0], names[:_IN_FIRST_ROW], 0), (axes[1], names[_IN_FIRST_ROW:], _IN_FIRST_ROW)):
        left = 0.0
        for number, name in enumerate(chosen, first):
            if number:
                _arrow(ax, left, _OPERATIONS[number - 1])
                left += _ARROW
            left = _draw_step(ax, left, name, np.asarray(steps[name])) + 2.0
        ax.set(xlim=(-1, 118), ylim=(-20, 20), aspect="equal")
        ax.set_axis_off()
    return figure


def _arrow(ax: Axes, left: float, words: str) -> None:
    style = {"arrowstyle": "-|>", "color": INK, "linewidth": 1.2}
    ax.annotate("", (left + _ARROW - 2.5, 0), (left + 0.5, 0), arrowprops=style)
    ax.text(left + _ARROW / 2 - 1, 1.5, words, ha="center", va="bottom", fontsize=9.5)


def _draw_step(ax: Axes, left: float, name: str, value: NDArray[np.float32]) -> float:
    """Draws one step with its left edge at a place, and returns where its right edge is."""
    if value.ndim == 3:
        right, low = _draw_stack(ax, left, value, "gray" if name == "image" else ACTIVATIONS)
    else:
        right, low = _draw_bar(ax, left, value)
    shape = " × ".join(map(str, value.shape))
    ax.text((left + right) / 2, low - 1.5, shape, ha="center", va="top", fontsize=9.5, color=MUTED)
    return right


def _draw_stack(ax: Axes, left: float, maps: NDArray[np.float32], colours: str | Colormap) -> tuple[float, float]:
    side, channels = maps.shape[0], maps.shape[2]
    front = maps[..., maps.sum(axis=(0, 1)).argmax()]
    for sheet in reversed(range(channels)):
        corner = left + _SHEET * sheet, _SHEET * sheet - side / 2
        sheets = plt.Rectangle(
            corner, side, side, zorder=-sheet, facecolor=GRID if sheet else PAPER, edgecolor=MUTED, linewidth=0.4
        )
        ax.add_patch(sheets)
    ax.imshow(front, extent=(left, left + side, -side / 2, side / 2), cmap=colours, zorder=1)
    return left + side + _SHEET * (channels - 1), -side / 2


def _draw_bar(ax: Axes, left: float, values: NDArray[np.float32]) -> tuple[float, float]:
    height = 28.0
    extent = (left, left + _BAR, -height / 2, height / 2)
    ax.imshow(values[:, None], extent=extent, cmap=ACTIVATIONS, aspect="auto")
    ax.add_patch(plt.Rectangle((left, -height / 2), _BAR, height, fill=False, edgecolor=MUTED, zorder=2))
    if len(values) > 10:
        return left + _BAR, -height / 2
    cell = height / len(values)
    for number in range(len(values)):
        ax.text(left + _BAR + 0.8, height / 2 - cell * (number + 0.5), str(number), fontsize=9, va="center")
    return left + _BAR + 3, -height / 2
