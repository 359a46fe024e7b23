"""Pictures of relevance. The functions draw into given axes or return a figure; none keeps state.

Needs the extra `book` (matplotlib).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lrp_jax.errors import ArrayError, import_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

COLORMAP = "RdBu_r"
"""Default colours of relevance: red is positive, white is zero, blue is negative."""


def heatmap(
    relevance: ArrayLike,
    ax: Axes,
    *,
    limit: float | None = None,
    colormap: str = COLORMAP,
) -> AxesImage:
    """Draws one relevance map in diverging colours that are centred on zero.

    Args:
        relevance: Relevance of shape (H, W), or (H, W, C), of which the sum over the channels is
            drawn. In the unit of the explained output.
        ax: The axes to draw into.
        limit: The absolute relevance that gets the strongest colour, positive. The largest absolute
            value of the map if None.
        colormap: Name of a diverging matplotlib colour map.

    Returns:
        The image, from which `ax.figure.colorbar(image, ax=ax)` makes a colour bar.

    Raises:
        ArrayError: If the relevance has another shape, holds a value that is not finite, or if the
            limit is not positive.

    Example:
        >>> from matplotlib.figure import Figure
        >>> image = heatmap([[0.5, -2.0], [0.0, 1.0]], Figure().subplots())
        >>> image.get_clim()
        (-2.0, 2.0)
    """
    values = _sum_of_channels(relevance, "The relevance", "(H, W)")
    limit = _colour_limit(values, limit)
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

    Returns:
        The map, from which `ax.figure.colorbar(drawn, ax=ax)` makes a colour bar.

    Raises:
        ArrayError: If the image or the relevance has another shape or holds a value that is not
            finite, if their heights or widths differ, or if the limit is not positive.

    Example:
        >>> from matplotlib.figure import Figure
        >>> drawn = overlay(np.ones((2, 2)), [[0.5, -2.0], [0.0, 1.0]], Figure().subplots())
        >>> drawn.get_alpha()  # how opaque each pixel is
        array([[0.25, 1.  ],
               [0.  , 0.5 ]])
    """
    picture = _pictures(np.asarray(image)[None], "The image", "(H, W)")[0]
    values = _sum_of_channels(relevance, "The relevance", "(H, W)")
    if picture.shape[:2] != values.shape:
        raise ArrayError(f"The image has {picture.shape[:2]} pixels, but the relevance {values.shape}.")
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

    Returns:
        A figure that belongs to no pyplot session.

    Raises:
        ArrayError: If the numbers of images, maps and labels differ, an array has another shape or
            holds a value that is not finite, or the scale is not one of those above.

    Example:
        >>> import numpy as np
        >>> images = np.zeros((2, 28, 28, 1))
        >>> figure = grid(images, {"LRP-0": images, "z+": images}, ["1", "8"])
        >>> len(figure.axes)  # 6 pictures and 2 colour bars
        8
    """
    pictures = _pictures(images, "The array of images", "(N, H, W)")
    rows = {
        name: _sum_of_channels(maps, f"The relevance {name!r}".removesuffix(" ''"), "(N, H, W)")
        for name, maps in (relevance if isinstance(relevance, Mapping) else {"": relevance}).items()
    }
    counts = {"labels": len(labels)} | {f"maps {name!r}": len(row) for name, row in rows.items()}
    for what, count in counts.items():
        if count != len(pictures):
            raise ArrayError(f"There are {len(pictures)} images, but {count} {what}.")
    if scale == "image":
        rows = {name: np.stack([one / _colour_limit(one) for one in maps]) for name, maps in rows.items()}
        limits = dict.fromkeys(rows, 1.0)
    elif scale == "row":
        limits = {name: _colour_limit(maps) for name, maps in rows.items()}
    elif scale == "all":
        limits = dict.fromkeys(rows, max(map(_colour_limit, rows.values())))
    elif isinstance(scale, str):
        raise ArrayError(f"scale is 'row', 'image', 'all' or a number, not {scale!r}.")
    else:
        limits = dict.fromkeys(rows, scale)
    if colorbar_label is None:
        colorbar_label = "relative" if scale == "image" else "relevance"

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


def _finite(values: ArrayLike, name: str) -> NDArray[np.generic]:
    array = np.asarray(values)
    if not np.isfinite(array).all():
        raise ArrayError(f"{name} must be finite, but holds NaN or infinity.")
    return array


def _sum_of_channels(relevance: ArrayLike, name: str, shape: str) -> NDArray[np.generic]:
    array = _finite(relevance, name)
    dimensions = shape.count(",") + 1
    if array.ndim not in (dimensions, dimensions + 1):
        raise ArrayError(f"{name} needs the shape {shape} or {shape[:-1]}, C), but has {array.shape}.")
    return array if array.ndim == dimensions else array.sum(axis=-1)


def _pictures(images: ArrayLike, name: str, shape: str) -> NDArray[np.generic]:
    array = _finite(images, name)
    if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[-1] not in (1, 3)):
        wanted = f"{shape}, {shape[:-1]}, 1) or {shape[:-1]}, 3)"
        given = array.shape if shape == "(N, H, W)" else array.shape[1:]
        raise ArrayError(f"{name} needs the shape {wanted}, but has {given}.")
    return array


def _white(pictures: NDArray[np.generic]) -> int:
    return 255 if pictures.dtype == np.uint8 else 1


def _colour_limit(values: NDArray[np.generic], limit: float | None = None) -> float:
    if limit is None:
        return float(np.abs(values).max(initial=0)) or 1.0
    if not limit > 0:
        raise ArrayError(f"limit is the largest absolute relevance drawn, but {limit} is not > 0.")
    return limit


def _only_a_frame(ax: Axes) -> None:
    ax.set(xticks=[], yticks=[])
