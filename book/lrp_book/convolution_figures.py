"""The figures of the chapter on convolutional networks."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import ArrayLike, NDArray

from lrp_book.figures import BLUE, GREY, INK, MUTED, ORANGE, PAPER, RED
from lrp_book.line_labels import label_ends
from lrp_book.network_figure import ACTIVATIONS
from lrp_book.numbers import with_decimals
from lrp_jax.plotting import heatmap


def draw_connections(matrices: Mapping[str, ArrayLike], x: ArrayLike, z: ArrayLike) -> Figure:
    """Draws layers as connections: a line for each weight that is not zero.

    Args:
        matrices: By their titles, matrices of the same shape (inputs, outputs); the last one has the values.
        x: The inputs of the last one.
        z: Its outputs.
    """
    figure, axes = plt.subplots(1, 2, figsize=(6.2, 2.3))
    inputs, outputs = np.arange(len(np.asarray(x))), np.arange(len(np.asarray(z))) + 0.5
    for ax, (title, matrix) in zip(axes, matrices.items(), strict=True):
        for i, j in np.argwhere(np.asarray(matrix) != 0):
            weight = float(np.asarray(matrix)[i, j])
            style = {"color": RED if weight > 0 else BLUE, "linestyle": "-" if weight > 0 else "--"}
            ax.plot([i, j + 0.5], [0, 1], linewidth=1 + 1.5 * abs(weight), zorder=0, **style)
        for places, height in ((inputs, 0), (outputs, 1)):
            ax.scatter(places, [height] * len(places), s=420, color=PAPER, edgecolors=INK)
        ax.set(xlim=(-0.4, len(inputs) - 0.6), ylim=(-0.3, 1.3), title=title)
        ax.set_axis_off()
    for places, height, values in ((inputs, 0, np.asarray(x)), (outputs, 1, np.asarray(z))):
        for place, value in zip(places, values, strict=True):
            axes[-1].text(place, height, f"{value:.0f}", ha="center", va="center", fontsize=11)
    return figure


def draw_unrolled(matrix: ArrayLike, dense: ArrayLike, output: tuple[int, int], side: int = 8) -> Figure:
    """Draws the matrix of a convolution, one of its columns as an image, and a column of a dense layer.

    Args:
        matrix: The weights, of shape (pixels, outputs).
        dense: Those of a dense layer of the same size.
        output: Row and column of the output whose column is unrolled.
        side: The side of the image, and of the map of outputs.
    """
    weights, number = np.asarray(matrix), output[0] * side + output[1]
    limit = float(np.abs(weights).max()) * 1.6
    figure, axes = plt.subplots(1, 3, figsize=(6.2, 2.7), width_ratios=[1.5, 1, 1])
    drawn = heatmap(weights, axes[0], limit=limit)
    _frame(axes[0], (number - 1.5, -0.5), 3, side * side)
    axes[0].set(title="all weights", xlabel="output", ylabel="pixel")
    column = weights[:, number].reshape(side, side)
    heatmap(column, axes[1], limit=limit)
    _frame(axes[1], (output[1] - 1.5, output[0] - 1.5), 3, 3)
    for row, place in np.argwhere(column != 0):
        text = with_decimals(column[row, place], 0)
        axes[1].text(place, row, text, ha="center", va="center", fontsize=9, color=INK)
    axes[1].set(title="one column", xlabel="of the convolution")
    heatmap(np.asarray(dense)[:, number].reshape(side, side), axes[2], limit=limit)
    axes[2].set(title="one column", xlabel="of a dense layer")
    figure.colorbar(drawn, ax=axes, label="weight", aspect=14, shrink=0.75)
    return figure


def _frame(ax: Axes, corner: tuple[float, float], width: float, height: float) -> None:
    ax.add_patch(plt.Rectangle(corner, width, height, fill=False, edgecolor=ORANGE, linewidth=2))


def draw_receptive_fields(
    gradients: Sequence[ArrayLike], titles: Sequence[str], fields: Sequence[tuple[int, int]]
) -> Figure:
    """Draws how much a neuron of each layer responds to each pixel, and a frame around its receptive field.

    Args:
        gradients: Maps of the size of the image, never negative.
        titles: The names of the layers.
        fields: For each the first row and column of the field, which are the same, and its side.
    """
    figure, axes = plt.subplots(2, 2, figsize=(5.0, 4.4))
    for ax, gradient, title, (start, side) in zip(axes.flat, gradients, titles, fields, strict=True):
        drawn = ax.imshow(np.asarray(gradient) / np.max(gradient), cmap=ACTIVATIONS, vmin=0, vmax=1)
        _frame(ax, (start - 0.5, start - 0.5), side, side)
        ax.set(title=f"{title}: {side} × {side}", xticks=[], yticks=[])
        ax.spines[["top", "right"]].set_visible(True)
    figure.colorbar(drawn, ax=axes, label="mean |gradient|", aspect=16, shrink=0.7)
    return figure


def draw_translation(recognised: Mapping[str, Sequence[float]]) -> Figure:
    """Draws what is recognised after moves by 0, 1, ... pixels, for some networks."""
    figure, ax = plt.subplots(figsize=(6.2, 2.7))
    ax.set(xlabel="moved by (pixels)", ylabel="recognised (%)", ylim=(0, 102))
    ends = [(10.0, "guessing", GREY)]
    for (name, values), colour, marker in zip(recognised.items(), (BLUE, RED), "os", strict=True):
        ax.plot(range(len(values)), values, marker=marker, color=colour)
        ends.append((values[-1], name, colour))
    ax.axhline(10, color=GREY, linestyle="--", linewidth=1)
    ax.set_xlim(0, len(values) - 1)
    label_ends(ax, ends)
    return figure


Row = tuple[str, Sequence[ArrayLike], bool]
"""The name of a row of tiles, the tiles, and whether they have signs; else they are never negative."""


def draw_tiles(rows: Sequence[Row], operations: Sequence[str], image: ArrayLike | None = None) -> Figure:
    """Draws rows of up to eight tiles below each other, and between them what leads from one row to the next.

    Args:
        rows: The rows. Each has its own scale.
        operations: What stands between two rows, one less than there are rows; one more, and first, with an image.
        image: A grey image at the top.
    """
    number = len(rows) + (image is not None)
    height = number * _ROW - _OPERATION
    figure = plt.figure(figsize=(_WIDTH, height))
    figure.set_layout_engine("none")  # every axes has its place
    top = height - _NAME
    if image is not None:
        ax = _tile(figure, 0, top)
        ax.imshow(np.asarray(image), cmap="gray", vmin=0, vmax=1)
        figure.text(0, (top + 0.05) / height, "input", fontsize=9.5)
        _operation(figure, top, operations[0])
        top -= _ROW
    for (name, tiles, signed), words in zip(rows, [*operations[image is not None :], ""], strict=True):
        figure.text(0, (top + 0.05) / height, name, fontsize=9.5)
        axes = [_tile(figure, place, top) for place in range(len(tiles))]
        drawn = _draw_row(axes, tiles, signed=signed)
        bar = [8 * _STEP / _WIDTH + 0.005, (top - _TILE) / height, 0.1 / _WIDTH, _TILE / height]
        figure.colorbar(drawn, cax=figure.add_axes((bar[0], bar[1], bar[2], bar[3]))).ax.tick_params(labelsize=8)
        _operation(figure, top, words)
        top -= _ROW
    return figure


_WIDTH, _TILE, _STEP = 6.2, 0.64, 0.7  # inches: of the figure, of a tile, and from tile to tile
_NAME, _OPERATION = 0.2, 0.24  # inches: for what stands above a row, and below it
_ROW = _TILE + _NAME + _OPERATION


def _tile(figure: Figure, place: int, top: float) -> Axes:
    height = figure.get_figheight()
    ax = figure.add_axes((place * _STEP / _WIDTH, (top - _TILE) / height, _TILE / _WIDTH, _TILE / height))
    ax.set(xticks=[], yticks=[])
    ax.spines[["top", "right"]].set_visible(True)
    return ax


def _operation(figure: Figure, top: float, words: str) -> None:
    height = (top - _TILE - 0.5 * _OPERATION - 0.03) / figure.get_figheight()
    figure.text(4 * _STEP / _WIDTH, height, words, ha="center", va="center", fontsize=9.5, color=MUTED)


def _draw_row(axes: Sequence[Axes], tiles: Sequence[ArrayLike], *, signed: bool) -> AxesImage:
    limit = max(float(np.abs(np.asarray(tile)).max()) for tile in tiles)
    drawn: Any = None
    for ax, tile in zip(axes, tiles, strict=True):
        values: NDArray[Any] = np.asarray(tile)
        drawn = heatmap(values, ax, limit=limit) if signed else ax.imshow(values, cmap=ACTIVATIONS, vmin=0, vmax=limit)
        ax.set(xticks=[], yticks=[])
    return drawn


def draw_maps(maps: Mapping[str, ArrayLike], limit: float) -> Figure:
    """Draws maps with one scale, each as large as the others, with their sizes below."""
    figure, axes = plt.subplots(1, len(maps), figsize=(6.2, 2.5))
    for ax, (title, values) in zip(axes, maps.items(), strict=True):
        drawn = heatmap(np.asarray(values), ax, limit=limit)
        ax.set(title=title, xlabel=" × ".join(map(str, np.asarray(values).shape)))
    figure.colorbar(drawn, ax=axes, label="$z$", aspect=12, shrink=0.75)
    return figure
