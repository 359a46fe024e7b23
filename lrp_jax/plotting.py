"""Pictures of relevance. The functions draw into given axes or return a figure; none keeps state.

Needs the extra `book` (matplotlib).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lrp_jax.core.arguments import as_number, as_numpy, kind_of, within_memory
from lrp_jax.errors import ArrayError, InputError, LRPWarning, import_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

COLORMAP = "RdBu_r"
"""Default colours of relevance: red is positive, white is zero, blue is negative."""

Channels: TypeAlias = Literal["first", "last"] | None
"""Where the channels of an array are; None if that is to be told from its shape."""

_NUMBERS_OF_CHANNELS = (1, 3)


def heatmap(
    relevance: ArrayLike,
    ax: Axes,
    *,
    limit: float | None = None,
    colormap: str = COLORMAP,
    channels: Channels = None,
) -> AxesImage:
    """Draws one relevance map in diverging colours that are centred on zero.

    Args:
        relevance: Relevance of shape (H, W), or (H, W, C), of which the sum over the channels is
            drawn. In the unit of the explained output.
        ax: The axes to draw into.
        limit: The absolute relevance that gets the strongest colour, positive. The largest absolute
            value of the map if None.
        colormap: Name of a diverging matplotlib colour map.
        channels: Where the channels are: "last", or "first" in relevance of shape (C, H, W).

    Returns:
        The image, from which `ax.figure.colorbar(image, ax=ax)` makes a colour bar.

    Raises:
        ArrayError: If the relevance has another shape, or one that looks like channels first and
            `channels` does not say so, if it holds a value that is not finite, or if the limit is
            not positive.

    Example:
        >>> from matplotlib.figure import Figure
        >>> image = heatmap([[0.5, -2.0], [0.0, 1.0]], Figure().subplots())
        >>> image.get_clim()
        (-2.0, 2.0)
    """
    values = _sum_of_channels(relevance, "The relevance", "(H, W)", channels)
    limit = _colour_limit(values, limit)
    _check_canvas(ax, colormap)
    image = ax.imshow(values, cmap=colormap, vmin=-limit, vmax=limit, interpolation="nearest")
    _only_a_frame(ax)
    return image


def overlay(
    image: ArrayLike,
    relevance: ArrayLike,
    ax: Axes,
    *,
    limit: float | None = None,
    colormap: str = COLORMAP,
    channels: Channels = None,
) -> AxesImage:
    """Draws a relevance map over its image, the more opaque the larger the absolute relevance is.

    The image is drawn in pale grey, so that the colours are those of the relevance alone.

    Args:
        image: An image of shape (H, W), (H, W, 1) or (H, W, 3); uint8, or floating point in [0, 1].
        relevance: Relevance of shape (H, W), or (H, W, C), of which the sum over the channels is
            drawn. In the unit of the explained output.
        ax: The axes to draw into.
        limit: The absolute relevance that gets the strongest colour, and hides the image, positive.
            The largest absolute value of the map if None.
        colormap: Name of a diverging matplotlib colour map.
        channels: Where the channels are, in the image and in the relevance: "last" or "first".

    Returns:
        The map, from which `ax.figure.colorbar(drawn, ax=ax)` makes a colour bar.

    Raises:
        ArrayError: If the image or the relevance has another shape, or one that looks like channels
            first and `channels` does not say so, if it holds a value that is not finite, if their
            heights or widths differ, or if the limit is not positive.

    Example:
        >>> from matplotlib.figure import Figure
        >>> drawn = overlay(np.ones((2, 2)), [[0.5, -2.0], [0.0, 1.0]], Figure().subplots())
        >>> drawn.get_alpha()  # how opaque each pixel is
        array([[0.25, 1.  ],
               [0.  , 0.5 ]])
    """
    picture = _pictures(as_numpy(image, "The image", ArrayError)[None], "The image", "(H, W)", channels)[0]
    values = _sum_of_channels(relevance, "The relevance", "(H, W)", channels)
    _check_sizes(picture[None], values[None], "the relevance")
    _check_canvas(ax, colormap)
    grey = picture if picture.ndim == 2 else picture.mean(axis=-1)
    white = _white(picture)
    ax.imshow((grey + white) / 2, cmap="gray", vmin=0, vmax=white, interpolation="nearest")
    drawn = heatmap(values, ax, limit=limit, colormap=colormap)
    drawn.set_alpha(np.clip(np.abs(values) / drawn.get_clim()[1], 0, 1))
    return drawn


def grid(
    images: ArrayLike,
    relevance: ArrayLike | Mapping[str, ArrayLike],
    labels: Sequence[str],
    *,
    scale: Literal["row", "image", "all"] | float = "row",
    colormap: str = COLORMAP,
    colorbar_label: str | None = None,
    channels: Channels = None,
) -> Figure:
    """Draws a row of images above rows of their relevance maps, with the labels between.

    A colour bar at the end of each row shows its scale.

    Args:
        images: N images of shape (N, H, W), (N, H, W, 1) or (N, H, W, 3); uint8, or floating point
            in [0, 1].
        relevance: N maps of shape (N, H, W) or (N, H, W, C), or a mapping from the name of each
            row, for example of a rule, to its N maps.
        labels: N texts, one for each image.
        scale: Which maps share a scale: those of a row, none (each `"image"` is divided by its own
            largest absolute value), or all. A number is the absolute relevance that gets the
            strongest colour everywhere.
        colormap: Name of a diverging matplotlib colour map.
        colorbar_label: Text beside the colour bars. If None, "relevance", or, where each map has
            its own scale, "relative".
        channels: Where the channels are, in images and maps: "last" or "first".

    Returns:
        A figure that belongs to no pyplot session.

    Raises:
        ArrayError: If the numbers or sizes of images and maps, or the number of labels, differ, an
            array has another shape, or one that looks like channels first and `channels` does not
            say so, holds a value that is not finite, or the scale is not one of those above.

    Example:
        >>> import numpy as np
        >>> images = np.zeros((2, 28, 28, 1))
        >>> figure = grid(images, {"LRP-0": images, "z+": images}, ["1", "8"])
        >>> len(figure.axes)  # 6 pictures and 2 colour bars
        8
    """
    pictures = _pictures(images, "The array of images", "(N, H, W)", channels)
    rows = {
        name: _sum_of_channels(maps, f"The relevance {name!r}".removesuffix(" ''"), "(N, H, W)", channels)
        for name, maps in (relevance if isinstance(relevance, Mapping) else {"": relevance}).items()
    }
    _check_grid(pictures, rows, labels)
    rows, limits = _scaled(rows, scale)
    if colorbar_label is None:
        colorbar_label = "relative" if isinstance(scale, str) and scale == "image" else "relevance"

    figure = import_extra("matplotlib.figure", "book").Figure(
        figsize=(0.84 * len(pictures) + 1.0, 0.9 * (len(rows) + 1) + 0.2), layout="constrained"
    )
    axes = figure.subplots(len(rows) + 1, len(pictures), squeeze=False)
    for ax, picture, label in zip(axes[0], pictures, labels, strict=True):
        ax.imshow(picture, cmap="gray", vmin=0, vmax=_white(pictures), interpolation="nearest")
        ax.set_xlabel(label)
        _only_a_frame(ax)
    for row_axes, (name, maps) in zip(axes[1:], rows.items(), strict=True):
        for ax, one in zip(row_axes, maps, strict=True):
            drawn = heatmap(one, ax, limit=limits[name], colormap=colormap)
        row_axes[0].set_ylabel(name)
        figure.colorbar(drawn, ax=list(row_axes), label=colorbar_label, aspect=6, pad=0.02)
    return figure


_Rows: TypeAlias = dict[str, NDArray[np.generic]]  # the maps, by the name of their row


def _check_grid(pictures: NDArray[np.generic], rows: _Rows, labels: Sequence[str]) -> None:
    """Refuses images, maps and labels of different numbers or sizes."""
    if not rows:
        raise ArrayError("relevance is an empty mapping: there are no maps to draw. Pass the maps of one rule or more.")
    if not len(pictures):
        raise ArrayError("There are no images to draw.")
    counts = {"labels": _number_of_labels(labels)} | {f"maps {name!r}": len(row) for name, row in rows.items()}
    for what, count in counts.items():
        if count != len(pictures):
            raise ArrayError(f"There are {len(pictures)} images, but {count} {what}.")
    for name, maps in rows.items():
        _check_sizes(pictures, maps, f"the maps {name!r}".removesuffix(" ''"))


def _scaled(rows: _Rows, scale: str | float) -> tuple[_Rows, dict[str, float]]:
    """The maps as they are drawn, and for each row the absolute relevance that gets the strongest colour."""
    if not isinstance(scale, str):
        wanted = "is 'row', 'image', 'all' or a positive number"
        return rows, dict.fromkeys(rows, as_number(scale, "scale", wanted, _is_positive, ArrayError))
    match scale:
        case "row":
            return rows, {name: _colour_limit(maps) for name, maps in rows.items()}
        case "image":
            relative = {name: np.stack([one / _colour_limit(one) for one in maps]) for name, maps in rows.items()}
            return relative, dict.fromkeys(rows, 1.0)
        case "all":
            return rows, dict.fromkeys(rows, max(map(_colour_limit, rows.values())))
    raise ArrayError(f"scale is 'row', 'image', 'all' or a number, not {scale!r}.")


def _finite(values: ArrayLike, name: str) -> NDArray[np.generic]:
    array = as_numpy(values, name, ArrayError)
    with within_memory(name, ArrayError):
        is_finite = np.isfinite(array).all()
    if not is_finite:
        raise ArrayError(f"{name} must be finite, but holds NaN or infinity.")
    return array


def look_first(shape: Sequence[int]) -> bool:
    """Whether the channels of an array, which are its third dimension from the end or the last, seem to be first."""
    return shape[-3] in _NUMBERS_OF_CHANNELS and shape[-1] not in _NUMBERS_OF_CHANNELS


def _channels_last(array: NDArray[np.generic], name: str, channels: Channels) -> NDArray[np.generic]:
    """Brings the channels to the end of (..., H, W, C) or (..., C, H, W)."""
    if channels is not None and not (isinstance(channels, str) and channels in ("first", "last")):
        raise ArrayError(f"channels is 'first', 'last' or None, not {channels!r}.")
    if channels == "first":
        return np.moveaxis(array, -3, -1)
    if channels is None and look_first(array.shape):
        raise ArrayError(
            f"{name} has the shape {array.shape}, which looks as if its channels were first. Pass channels='first', or "
            "channels='last' if they are not."
        )
    return array


def _sum_of_channels(relevance: ArrayLike, name: str, shape: str, channels: Channels) -> NDArray[np.generic]:
    array = _finite(relevance, name)
    dimensions = shape.count(",") + 1
    if array.ndim not in (dimensions, dimensions + 1):
        raise ArrayError(f"{name} needs the shape {shape} or {shape[:-1]}, C), but has {array.shape}.")
    return array if array.ndim == dimensions else _channels_last(array, name, channels).sum(axis=-1)


def _pictures(images: ArrayLike, name: str, shape: str, channels: Channels) -> NDArray[np.generic]:
    array = _finite(images, name)
    given = array.shape if shape == "(N, H, W)" else array.shape[1:]
    if array.ndim == 4:
        array = _channels_last(array, name, channels)
    if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[-1] not in (1, 3)):
        wanted = f"{shape}, {shape[:-1]}, 1) or {shape[:-1]}, 3)"
        raise ArrayError(f"{name} needs the shape {wanted}, but has {given}.")
    low, high = float(array.min(initial=0)), float(array.max(initial=0))
    if array.dtype != np.uint8 and not 0 <= low <= high <= 1:
        warnings.warn(
            f"{name} reaches from {low:.3g} to {high:.3g}. Floating-point images are shown from 0 to 1, and what is "
            "outside is cut off: undo a standardisation before you draw them.",
            LRPWarning,
            stacklevel=3,
        )
    return array


def _white(pictures: NDArray[np.generic]) -> int:
    return 255 if pictures.dtype == np.uint8 else 1


def _colour_limit(values: NDArray[np.generic], limit: float | None = None) -> float:
    if limit is None:
        return float(np.abs(values).max(initial=0)) or 1.0
    wanted = "is the largest absolute relevance drawn, a positive number"
    return as_number(limit, "limit", wanted, _is_positive, ArrayError)


def _is_positive(number: float) -> bool:
    return 0 < number < math.inf


def _check_sizes(pictures: NDArray[np.generic], maps: NDArray[np.generic], name: str) -> None:
    if pictures.shape[1:3] != maps.shape[1:]:
        raise ArrayError(f"The images have {pictures.shape[1:3]} pixels, but {name} {maps.shape[1:]}.")


def _number_of_labels(labels: Any) -> int:
    try:
        number = -1 if isinstance(labels, str | bytes) else len(labels)
    except Exception:  # what len can raise is up to the object
        number = -1
    if number < 0:
        raise ArrayError(f"labels must be a list of texts, one for each image, but it is {kind_of(labels)}.")
    return number


def _check_canvas(ax: Any, colormap: Any) -> None:
    if not isinstance(ax, import_extra("matplotlib.axes", "book").Axes):
        raise InputError(f"ax must be axes of matplotlib, such as Figure().subplots(), but it is {kind_of(ax)}.")
    try:
        import_extra("matplotlib", "book").colormaps.get_cmap(colormap)
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(f"colormap must be the name of a colour map of matplotlib: {error}.") from error


def _only_a_frame(ax: Axes) -> None:
    ax.set(xticks=[], yticks=[])
