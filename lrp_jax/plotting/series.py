"""Pictures of series: strips in the colours of the relevance, with the series drawn into them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lrp_jax.errors import ArrayError
from lrp_jax.plotting.arrays import (
    COLORMAP,
    PERCENTILE,
    Explained,
    as_axis,
    as_texts,
    colour_limit,
    finite,
    relevance_of_one,
)
from lrp_jax.plotting.figures import add_bar, check_colormap, new_figure, only_a_frame

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_CHANNELS = 12  # that get a strip each, and that are told from the shape
FEW_STEPS = 50  # that are drawn as steps
_WIDTH, _HEIGHT = 7.0, 0.55  # of a strip, in inches


def strips(
    series: ArrayLike,
    relevance: ArrayLike | Explained,
    *,
    names: Sequence[str] | None = None,
    limit: float | None = None,
    colormap: str = COLORMAP,
    channel_axis: int | None = None,
) -> Figure:
    """Draws a series as one strip for each channel, in the colours of its relevance, time from left to right.

    Args:
        series: One series of shape (T,), (T, C) or (C, T).
        relevance: Its relevance, in the same shape, or an explanation of it alone.
        names: A text for each channel.
        limit: The absolute relevance that gets the strongest colour, positive. If None, the value below which 99 % of
            the values are.
        colormap: Name of a diverging matplotlib colour map.
        channel_axis: Which axis holds the channels, as NumPy counts: -1 or 0. If None, the one that has at most 12
            entries, if the other one has more.

    Returns:
        A figure that shows itself in a notebook. If there are more than 12 channels, only the relevance is drawn, one
        line for each.

    Raises:
        ArrayError: If the series and its relevance have other shapes or different ones, if it cannot be told where the
            channels are, if a value is not finite, the limit is not positive, or the number of names is another one.
        InputError: If `colormap` is no colour map.
        MissingExtraError: If matplotlib is not installed.

    Example:
        >>> time = np.linspace(0, 6, 200)
        >>> figure = strips(np.sin(time), np.cos(time))
        >>> len(figure.axes)  # a strip and a colour bar
        2
    """
    values, maps = finite(series, "The series"), finite(relevance_of_one(relevance), "The relevance")
    if values.shape != maps.shape:
        raise ArrayError(f"The series has the shape {values.shape}, but its relevance {maps.shape}.")
    values = channels_first(values, "The series", channel_axis)
    maps = channels_first(maps, "The relevance", channel_axis)
    if not maps.size:
        raise ArrayError("The series is empty: there is nothing to draw.")
    labels = None if names is None else as_texts(names, "names", len(maps), "channels")
    limit = colour_limit(maps, limit, PERCENTILE)
    check_colormap(colormap)
    figure = new_figure(_WIDTH, height_of(len(maps)))
    draw_strips(figure, values, maps, limit, labels, colormap)
    return figure


def guessed_series_axis(shape: Sequence[int]) -> int | None:
    """The axis of the channels of a series, if one alone can hold them: one with few entries, where the other has more.

    Example:
        >>> guessed_series_axis((200, 2)), guessed_series_axis((2, 200)), guessed_series_axis((28, 28))
        (1, 0, None)
    """
    axes = [axis for axis in (0, 1) if len(shape) == 2 and shape[axis] <= MOST_CHANNELS]
    return axes[0] if len(axes) == 1 else None


def channels_first(series: NDArray[Any], name: str, channel_axis: int | None) -> NDArray[Any]:
    """A series of shape (T,), (T, C) or (C, T) as one of shape (C, T).

    Args:
        series: The series.
        name: What it is, for the error.
        channel_axis: The axis of the channels; None where one alone fits.

    Raises:
        ArrayError: If it has another shape, or it cannot be told where the channels are.
    """
    if series.ndim == 1:
        return series[None]
    if series.ndim != 2:
        raise ArrayError(f"{name} needs the shape (T,), (T, C) or (C, T), but has {series.shape}.")
    axis = guessed_series_axis(series.shape) if channel_axis is None else as_axis(channel_axis, 2)
    if axis is None:
        raise ArrayError(
            f"{name} has the shape {series.shape}, of which it cannot be told where the channels are. Pass "
            "channel_axis=-1 if they are last, or channel_axis=0 if they are first."
        )
    return np.moveaxis(series, axis, 0)


def height_of(channels: int) -> float:
    """How many inches the strips of so many channels are high."""
    return _HEIGHT * min(channels, 6) + 0.4


def draw_strips(
    figure: Any,
    values: NDArray[Any],
    maps: NDArray[Any],
    limit: float,
    names: Sequence[str] | None = None,
    colormap: str = COLORMAP,
) -> None:
    """Draws a series of shape (C, T) into a figure or a part of one, with a colour bar.

    Args:
        figure: The figure.
        values: The series.
        maps: Its relevance.
        limit: The absolute relevance that gets the strongest colour.
        names: A text for each channel.
        colormap: As in `strips`.
    """
    channels, steps = maps.shape
    style, ends = ("steps-mid", 1) if steps <= FEW_STEPS else ("default", 0)  # a step is as wide as its colour
    places = np.clip(np.arange(-ends, steps + ends), -0.5, steps - 0.5)
    are_few = channels <= MOST_CHANNELS
    shown = maps[:, None] if are_few else maps[None]
    axes = figure.subplots(len(shown), 1, squeeze=False, sharex=True)[:, 0]
    for i, (ax, one) in enumerate(zip(axes, shown, strict=True)):
        extent = (-0.5, steps - 0.5, 0, 1)
        drawn = ax.imshow(one, cmap=colormap, vmin=-limit, vmax=limit, aspect="auto", extent=extent)
        only_a_frame(ax)
        if are_few:
            low, high = float(values[i].min()), float(values[i].max())
            height = np.pad((values[i].astype(np.float64) - low) / ((high - low) or 1), ends, mode="edge")
            for colour, width in (("white", 2.2), ("black", 0.8)):  # a line that is seen on dark colours, too
                ax.plot(places, 0.1 + 0.8 * height, color=colour, linewidth=width, drawstyle=style)
            ax.set_xlim(-0.5, steps - 0.5)
        if names is not None and are_few:
            ax.set_ylabel(names[i], rotation=0, ha="right", va="center", parse_math=False)
    add_bar(figure, drawn, list(axes), maps, aspect=max(8, 4 * min(channels, 6)))  # as wide, whatever the height
