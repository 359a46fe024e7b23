"""Pictures of images and their relevance: one map, a map over its image, rows of maps."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lrp_jax.core.arguments import as_number
from lrp_jax.errors import ArrayError
from lrp_jax.plotting.arrays import (
    COLORMAP,
    PERCENTILE,
    Explained,
    as_pictures,
    as_texts,
    colour_limit,
    is_positive,
    relevance_of,
    relevance_of_one,
    sum_of_channels,
    white_of,
)
from lrp_jax.plotting.figures import add_bar, check_axes, check_colormap, new_figure, only_a_frame

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

LARGEST_NUMBER = 8  # of maps of an explanation that are drawn without axes


@overload
def heatmap(
    relevance: ArrayLike | Explained,
    ax: None = None,
    *,
    limit: float | None = None,
    colormap: str = COLORMAP,
    channel_axis: int | None = None,
) -> Figure: ...


@overload
def heatmap(
    relevance: ArrayLike | Explained,
    ax: Axes,
    *,
    limit: float | None = None,
    colormap: str = COLORMAP,
    channel_axis: int | None = None,
) -> AxesImage: ...


def heatmap(
    relevance: ArrayLike | Explained,
    ax: Axes | None = None,
    *,
    limit: float | None = None,
    colormap: str = COLORMAP,
    channel_axis: int | None = None,
) -> Figure | AxesImage:
    """Draws a relevance map in diverging colours that are centred on zero.

    Args:
        relevance: Relevance of shape (H, W), (H, W, C) or (C, H, W), of which the sum over the channels is drawn, in
            the unit of the explained output. Or an explanation of images, of which the first eight maps are drawn.
        ax: The axes to draw one map into. If None, a new figure with a colour bar.
        limit: The absolute relevance that gets the strongest colour, positive. If None, it is the largest absolute
            value in axes; in a new figure, it is the value below which 99 % of the pixels are, as in `overlay`.
        colormap: Name of a diverging matplotlib colour map.
        channel_axis: Which axis of a map holds the channels, as NumPy counts: -1 for (H, W, C), 0 for (C, H, W). If
            None, the first or the last, if one alone of them has 1 or 3 entries.

    Returns:
        A figure that shows itself in a notebook; with `ax` the image, from which
        `ax.figure.colorbar(image, ax=ax)` makes a colour bar.

    Raises:
        ArrayError: If the relevance has another shape, or one that does not tell where the channels are, if it holds a
            value that is not finite, or if the limit is not positive.
        InputError: If `ax` is no axes, or `colormap` no colour map.
        MissingExtraError: If matplotlib is not installed.

    Example:
        >>> from matplotlib.figure import Figure
        >>> image = heatmap([[0.5, -2.0], [0.0, 1.0]], Figure().subplots())
        >>> image.get_clim()
        (-2.0, 2.0)
    """
    maps = _maps_of(relevance, channel_axis) if ax is None else _one_map(relevance, channel_axis)
    limit = colour_limit(maps, limit, PERCENTILE if ax is None else 100)
    check_colormap(colormap)
    if ax is not None:
        return _draw_map(maps, ax, limit, colormap)
    height, width = maps.shape[1:]
    sizes = sizes_of(len(maps), height, width)
    figure = new_figure(sizes[0] * len(maps) + 0.9, sizes[1] + 0.1)
    axes = figure.subplots(1, len(maps), squeeze=False)[0]
    for one, place in zip(maps, axes, strict=True):
        drawn = _draw_map(one, place, limit, colormap)
    add_bar(figure, drawn, list(axes), maps)
    return figure


@overload
def overlay(
    image: ArrayLike,
    relevance: ArrayLike | Explained,
    ax: None = None,
    *,
    limit: float | None = None,
    colormap: str = COLORMAP,
    channel_axis: int | None = None,
    background: Literal["pale", "colour"] = "pale",
) -> Figure: ...


@overload
def overlay(
    image: ArrayLike,
    relevance: ArrayLike | Explained,
    ax: Axes,
    *,
    limit: float | None = None,
    colormap: str = COLORMAP,
    channel_axis: int | None = None,
    background: Literal["pale", "colour"] = "pale",
) -> AxesImage: ...


def overlay(
    image: ArrayLike,
    relevance: ArrayLike | Explained,
    ax: Axes | None = None,
    *,
    limit: float | None = None,
    colormap: str = COLORMAP,
    channel_axis: int | None = None,
    background: Literal["pale", "colour"] = "pale",
) -> Figure | AxesImage:
    """Draws a relevance map over its image; the larger the absolute relevance, the more opaque it is.

    Args:
        image: An image of shape (H, W), (H, W, C) or (C, H, W) with 1 or 3 channels, or a picture of Pillow;
            integers up to 255, or floating point in [0, 1]. Its size may be a multiple of that of the map, which is
            stretched over it.
        relevance: Relevance of shape (H, W), (H, W, C) or (C, H, W), of which the sum over the channels is drawn, in
            the unit of the explained output. Or an explanation of one image.
        ax: The axes to draw into. If None, a new figure with a colour bar.
        limit: The absolute relevance that gets the strongest colour and hides the image, positive. If None, the value
            below which 99 % of the pixels are.
        colormap: Name of a diverging matplotlib colour map.
        channel_axis: Which axis holds the channels of the relevance, and of an image of which it cannot be told, as
            NumPy counts: -1 or 0. If None, in each of them the first or the last, if one alone has 1 or 3 entries.
        background: "pale" draws the image in pale grey, so that all colours are those of the relevance; "colour" draws
            it as it is.

    Returns:
        A figure that shows itself in a notebook; with `ax` the map, from which `ax.figure.colorbar(drawn, ax=ax)` makes
        a colour bar.

    Raises:
        ArrayError: If the image or the relevance has another shape, or one of which it cannot be told where the
            channels are, if it holds a value that is not finite, if the image has other proportions than the map, the
            limit is not positive, or `background` is none of the two.
        InputError: If `ax` is no axes, or `colormap` no colour map.
        MissingExtraError: If matplotlib is not installed.

    Example:
        >>> from matplotlib.figure import Figure
        >>> drawn = overlay(np.ones((2, 2)), [[0.5, -2.0], [0.0, 1.0]], Figure().subplots())
        >>> drawn.get_alpha()  # how opaque each pixel is
        array([[0.25, 1.  ],
               [0.  , 0.5 ]])
    """
    picture = as_pictures(image, "The image", "(H, W)", channel_axis)
    values = _one_map(relevance, channel_axis)
    height, width = picture.shape[:2]
    _check_proportions((height, width), values.shape)
    limit = colour_limit(values, limit, PERCENTILE)
    check_colormap(colormap)
    shown = _background(picture, background)
    figure = None
    if ax is None:
        sizes = sizes_of(1, height, width)
        figure = new_figure(sizes[0] + 0.9, sizes[1] + 0.1)
        ax = figure.subplots()
    check_axes(ax)
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    ax.imshow(shown, cmap="gray", vmin=0, vmax=white_of(picture), interpolation="nearest", extent=extent)
    drawn = _draw_map(values, ax, limit, colormap)
    drawn.set(alpha=np.clip(np.abs(values) / limit, 0, 1), extent=extent)
    if figure is None:
        return drawn
    add_bar(figure, drawn, [ax], values)
    return figure


def grid(
    images: ArrayLike,
    relevance: ArrayLike | Explained | Mapping[str, ArrayLike | Explained],
    labels: Sequence[str],
    *,
    scale: Literal["row", "image", "all"] | float = "row",
    colormap: str = COLORMAP,
    colorbar_label: str | None = None,
    channel_axis: int | None = None,
) -> Figure:
    """Draws a row of images above rows of their relevance maps, with the labels between.

    A colour bar at the end of each row shows its scale.

    Args:
        images: N images of shape (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 channels; integers up to 255,
            or floating point in [0, 1].
        relevance: N maps of shape (N, H, W), (N, H, W, C) or (N, C, H, W), an explanation of N images, or a mapping
            from the name of each row, for example of a rule, to such maps or explanations.
        labels: N texts, one for each image.
        scale: Which maps share a scale: those of a row, none (each `"image"` is divided by its own
            largest absolute value), or all. A number is the absolute relevance that gets the
            strongest colour everywhere.
        colormap: Name of a diverging matplotlib colour map.
        colorbar_label: Text beside the colour bars. If None, "relevance", or, where each map has
            its own scale, "relative".
        channel_axis: Which axis of one map holds the channels, and of one image of which it cannot be told, as NumPy
            counts: -1 or 0. If None, the first or the last, if one alone of them has 1 or 3 entries.

    Returns:
        A figure that shows itself in a notebook, and belongs to no pyplot session.

    Raises:
        ArrayError: If the numbers or sizes of images and maps, or the number of labels, differ, an array has another
            shape, or one of which it cannot be told where the channels are, holds a value that is not finite, or the
            scale is not one of those above.
        InputError: If `colormap` is no colour map.
        MissingExtraError: If matplotlib is not installed.

    Example:
        >>> import numpy as np
        >>> images = np.zeros((2, 28, 28, 1))
        >>> figure = grid(images, {"LRP-0": images, "z+": images}, ["1", "8"])
        >>> len(figure.axes)  # 6 pictures and 2 colour bars
        8
    """
    pictures = as_pictures(images, "The array of images", "(N, H, W)", channel_axis)
    rows = {
        name: sum_of_channels(
            relevance_of(maps), f"The relevance {name!r}".removesuffix(" ''"), "(N, H, W)", channel_axis
        )
        for name, maps in (relevance if isinstance(relevance, Mapping) else {"": relevance}).items()
    }
    _check_grid(pictures, rows)
    labels = as_texts(labels, "labels", len(pictures), "images")
    rows, limits = _scaled(rows, scale)
    if colorbar_label is None:
        colorbar_label = "relative" if isinstance(scale, str) and scale == "image" else "relevance"
    check_colormap(colormap)
    figure = new_figure(0.84 * len(pictures) + 1.0, 0.9 * (len(rows) + 1) + 0.2)
    draw_grid(figure, pictures, rows, labels, limits, colormap, colorbar_label)
    return figure


def draw_grid(
    figure: Any,
    pictures: NDArray[Any],
    rows: Mapping[str, NDArray[Any]],
    labels: Sequence[str],
    limits: Mapping[str, float],
    colormap: str = COLORMAP,
    colorbar_label: str = "relevance",
) -> None:
    """Draws images above rows of their maps into a figure or a part of one.

    Args:
        figure: The figure.
        pictures: The images, the channels last.
        rows: The maps, by the name of their row, without channels.
        labels: A text for each image.
        limits: For each row the absolute relevance that gets the strongest colour.
        colormap: As in `grid`.
        colorbar_label: As in `grid`.
    """
    aspect = 6 * max(figure.bbox.height / figure.dpi / (len(rows) + 1) / 0.9, 1)  # as wide, whatever the height
    axes = figure.subplots(len(rows) + 1, len(pictures), squeeze=False)
    for ax, picture, label in zip(axes[0], pictures, labels, strict=True):
        ax.imshow(picture, cmap="gray", vmin=0, vmax=white_of(pictures), interpolation="nearest")
        ax.set(xlabel=label, anchor="E")  # as the maps are, beside their colour bar
        only_a_frame(ax)
    for row_axes, (name, maps) in zip(axes[1:], rows.items(), strict=True):
        for ax, one in zip(row_axes, maps, strict=True):
            drawn = _draw_map(one, ax, limits[name], colormap)
        row_axes[0].set_ylabel(name)
        add_bar(figure, drawn, list(row_axes), maps, colorbar_label, aspect)


_Rows: TypeAlias = dict[str, NDArray[Any]]  # the maps, by the name of their row


def _check_grid(pictures: NDArray[Any], rows: _Rows) -> None:
    """Refuses images and maps of different numbers or sizes."""
    if not rows:
        raise ArrayError("relevance is an empty mapping: there are no maps to draw. Pass the maps of one rule or more.")
    if not len(pictures):
        raise ArrayError("There are no images to draw.")
    for name, maps in rows.items():
        called = f"maps {name!r}".removesuffix(" ''")
        if len(maps) != len(pictures):
            raise ArrayError(f"There are {len(pictures)} images, but {len(maps)} {called}.")
        if pictures.shape[1:3] != maps.shape[1:]:
            raise ArrayError(f"The images have {pictures.shape[1:3]} pixels, but the {called} {maps.shape[1:]}.")


def _scaled(rows: _Rows, scale: str | float) -> tuple[_Rows, dict[str, float]]:
    """The maps as they are drawn, and for each row the absolute relevance that gets the strongest colour."""
    if not isinstance(scale, str):
        wanted = "is 'row', 'image', 'all' or a positive number"
        return rows, dict.fromkeys(rows, as_number(scale, "scale", wanted, is_positive, ArrayError))
    match scale:
        case "row":
            return rows, {name: colour_limit(maps) for name, maps in rows.items()}
        case "image":
            relative = {name: np.stack([one / colour_limit(one) for one in maps]) for name, maps in rows.items()}
            return relative, dict.fromkeys(rows, 1.0)
        case "all":
            return rows, dict.fromkeys(rows, max(map(colour_limit, rows.values())))
    raise ArrayError(f"scale is 'row', 'image', 'all' or a number, not {scale!r}.")


def _one_map(relevance: Any, channel_axis: int | None) -> NDArray[Any]:
    """The map that is given, or the only one of an explanation, of shape (H, W)."""
    return sum_of_channels(relevance_of_one(relevance), "The relevance", "(H, W)", channel_axis)


def _maps_of(relevance: Any, channel_axis: int | None) -> NDArray[Any]:
    """The map that is given, or the first ones of an explanation, of shape (N, H, W)."""
    if not hasattr(relevance, "relevance"):
        return _one_map(relevance, channel_axis)[None]
    maps = sum_of_channels(relevance_of(relevance), "The relevance of the explanation", "(N, H, W)", channel_axis)
    if not len(maps):
        raise ArrayError("The explanation has no samples: there are no maps to draw.")
    return maps[:LARGEST_NUMBER]


def sizes_of(number: int, height: int, width: int) -> tuple[float, float]:
    """The width and height in inches of each of some pictures in a row, of so many pixels."""
    largest = min(4.0, max(0.84, 7.0 / number))
    longest = max(height, width, 1)
    return max(largest * width / longest, 0.3), max(largest * height / longest, 0.3)


def _draw_map(values: NDArray[Any], ax: Axes, limit: float, colormap: str) -> AxesImage:
    check_axes(ax)
    image = ax.imshow(values, cmap=colormap, vmin=-limit, vmax=limit, interpolation="nearest")
    only_a_frame(ax)
    return image


def _background(picture: NDArray[Any], background: str) -> NDArray[Any]:
    """What is drawn below a map: the picture, or pale grey."""
    if not isinstance(background, str) or background not in ("pale", "colour"):
        raise ArrayError(f"background is 'pale' or 'colour', but it is {reprlib.repr(background)}.")
    if background == "colour":
        return picture
    grey = picture if picture.ndim == 2 else picture.mean(axis=-1)
    return (grey + white_of(picture)) / 2


def _check_proportions(image: tuple[int, int], map_: tuple[int, ...]) -> None:
    """Refuses a map that cannot be stretched over its image as both are."""
    if map_[0] != round(image[0] * map_[1] / image[1]) and map_[1] != round(image[1] * map_[0] / image[0]):
        raise ArrayError(
            f"The image has {image} pixels, but the relevance {map_}, whose proportions are others. Pass the image as "
            "it went into the model, cut or resized. If it was resized to other proportions, not cut, you can resize "
            f"the map, too: jax.image.resize(map, {image}, 'nearest')."
        )
