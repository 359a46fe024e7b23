"""The arrays of which pictures are made: what is asked of them, and which of their axes holds the channels."""

from __future__ import annotations

import math
import operator
import reprlib
import warnings
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lrp_jax.core.arguments import as_number, as_numpy, kind_of, within_memory
from lrp_jax.errors import ArrayError, LRPWarning

COLORMAP = "RdBu_r"
"""Default colours of relevance: red is positive, white is zero, blue is negative."""

NUMBERS_OF_CHANNELS = (1, 3)
PERCENTILE = 99  # of the absolute relevance, which gets the strongest colour: else a few pixels make the others pale


class Explained(Protocol):
    """What has an input and its relevance, the samples first, such as an `lrp_jax.Explanation`."""

    @property
    def x(self) -> Any:
        """The input."""

    @property
    def relevance(self) -> Any:
        """Its relevance, in its structure and shape."""


def finite(values: ArrayLike, name: str) -> NDArray[Any]:
    """Real numbers as an array, none of them NaN or infinite.

    Args:
        values: The numbers.
        name: What they are, for the error.

    Raises:
        ArrayError: If they are something else.

    Example:
        >>> finite([1, 2], "The image")
        array([1, 2])
    """
    array = as_numpy(values, name, ArrayError)
    with within_memory(name, ArrayError):
        array = array.astype(np.float32) if array.dtype.isbuiltin == 2 else array  # bfloat16 and the like
        is_finite = np.isfinite(array).all()
    if not is_finite:
        raise ArrayError(f"{name} must be finite, but holds NaN or infinity.")
    return array


def relevance_of(relevance: Any) -> Any:
    """The relevance of an explanation, or what is no explanation as it is.

    Raises:
        ArrayError: If the explanation is of several arrays, or of all classes.

    Example:
        >>> relevance_of([1.0, 2.0])
        [1.0, 2.0]
    """
    if not hasattr(relevance, "relevance"):
        return relevance
    x: Any = getattr(relevance, "x", None)
    found = relevance.relevance
    if not hasattr(found, "ndim"):
        raise ArrayError("The explanation is of several arrays. Pass one of explanation.relevance, or call its plot.")
    if hasattr(x, "ndim") and found.ndim > x.ndim:
        raise ArrayError("The explanation is of all classes. Pass explanation.relevance[c, i] of class c and sample i.")
    return found


def relevance_of_one(relevance: Any) -> Any:
    """The relevance of the only sample of an explanation, or what is no explanation as it is.

    Raises:
        ArrayError: As `relevance_of`, and if the explanation has another number of samples.

    Example:
        >>> relevance_of_one([1.0, 2.0])
        [1.0, 2.0]
    """
    found = relevance_of(relevance)
    if found is relevance:
        return found
    if len(found) != 1:
        raise ArrayError(
            f"One sample is drawn here, but the explanation has {len(found)}. Pass explanation.relevance[0] for the "
            "first, or call its plot."
        )
    return found[0]


def as_axis(channel_axis: Any, dimensions: int) -> int:
    """An axis of one sample, from the front.

    Args:
        channel_axis: The axis as NumPy counts it, from the front or, if it is negative, from the end.
        dimensions: How many dimensions a sample has.

    Raises:
        ArrayError: If a sample has no such axis.

    Example:
        >>> as_axis(-1, 3), as_axis(0, 3)
        (2, 0)
    """
    try:
        axis = None if isinstance(channel_axis, bool) else operator.index(channel_axis)
    except Exception:  # what an object can raise is up to it
        axis = None
    if axis is None or not -dimensions <= axis < dimensions:
        raise ArrayError(
            f"channel_axis is the axis of one sample that holds the channels, from {-dimensions} to {dimensions - 1}, "
            f"but it is {reprlib.repr(channel_axis)}."
        )
    return axis % dimensions


def guessed_axis(shape: Sequence[int]) -> int | None:
    """The axis of the channels of an image, if one alone can hold them: the first or the last, with 1 or 3 entries.

    Example:
        >>> guessed_axis((3, 28, 28)), guessed_axis((28, 28, 3)), guessed_axis((3, 28, 3))
        (0, 2, None)
    """
    axes = [axis for axis in (0, 2) if len(shape) == 3 and shape[axis] in NUMBERS_OF_CHANNELS]
    return axes[0] if len(axes) == 1 else None


def channels_last(array: NDArray[Any], name: str, channel_axis: int | None) -> NDArray[Any]:
    """Brings the channels of images of shape (..., H, W, C) or (..., C, H, W) to the end.

    Args:
        array: The images or maps.
        name: What they are, for the error.
        channel_axis: The axis of one sample that holds the channels; None where one alone fits.

    Raises:
        ArrayError: If there is no such axis, or none is given and not one alone fits.

    Example:
        >>> channels_last(np.zeros((3, 28, 20)), "The image", None).shape
        (28, 20, 3)
    """
    axis = guessed_axis(array.shape[-3:]) if channel_axis is None else as_axis(channel_axis, 3)
    if axis is None:
        raise ArrayError(
            f"{name} has the shape {array.shape}, of which it cannot be told where the channels are. Pass "
            "channel_axis=-1 if they are last, or channel_axis=0 if they are the first axis of each sample."
        )
    return np.moveaxis(array, axis - 3, -1)


def sum_of_channels(relevance: ArrayLike, name: str, shape: str, channel_axis: int | None) -> NDArray[Any]:
    """Maps without channels.

    Args:
        relevance: The relevance, with or without channels.
        name: What it is, for the error.
        shape: "(H, W)" of one map, "(N, H, W)" of several.
        channel_axis: As in `channels_last`.
    """
    array = finite(relevance, name)
    dimensions = shape.count(",") + 1
    if array.ndim not in (dimensions, dimensions + 1):
        one = " Pass that of one sample, such as relevance[0]." if (dimensions, array.ndim) == (2, 4) else ""
        raise ArrayError(f"{name} needs the shape {shape} or {shape[:-1]}, C), but has {array.shape}.{one}")
    maps = array if array.ndim == dimensions else channels_last(array, name, channel_axis).sum(axis=-1)
    _check_pixels(maps.shape[-2:], name)
    return maps


def as_pictures(images: ArrayLike, name: str, shape: str, channel_axis: int | None) -> NDArray[Any]:
    """Images without channels or with 1 or 3, which are last: of bytes, or from 0 to 1.

    Args:
        images: The images.
        name: What they are, for the error.
        shape: As in `sum_of_channels`.
        channel_axis: As in `channels_last`, where it cannot be told: a photograph may have its channels last, and the
            relevance of the model's input first.
    """
    array = finite(_in_colours(images), name)
    dimensions = shape.count(",") + 1
    is_coloured = array.ndim == dimensions + 1
    if is_coloured and (channel_axis is not None or {array.shape[-3], array.shape[-1]} & set(NUMBERS_OF_CHANNELS)):
        asked = None if channel_axis is None else as_axis(channel_axis, 3)
        fits = guessed_axis(array.shape[-3:])
        array = channels_last(array, name, asked if fits is None else fits)
    if not (array.ndim == dimensions or (is_coloured and array.shape[-1] in NUMBERS_OF_CHANNELS)):
        wanted = f"{shape}, or with 1 or 3 channels C {shape[:-1]}, C) or {shape[:-5]}C, H, W)"
        hint = " Pass one of them, such as images[0]." if (dimensions, array.ndim) == (2, 4) else ""
        if is_coloured and array.shape[-1] == 4:
            hint = " Of a picture with transparency, pass the colours: picture[..., :3]."
        raise ArrayError(f"{name} needs the shape {wanted}, but has {array.shape}.{hint}")
    _check_pixels(array.shape[dimensions - 2 : dimensions], name)
    low, high = float(array.min(initial=0)), float(array.max(initial=0))
    if array.dtype.kind in "iu" and low >= 0 and 1 < high <= 255:
        array = array.astype(np.uint8)
    if array.dtype != np.uint8 and not 0 <= low <= high <= 1:
        warnings.warn(
            f"{name} reaches from {low:.3g} to {high:.3g}, but is shown from 0 to 1, and what is outside is cut off. "
            "Undo a standardisation before you draw it, and divide by 255 if that is white.",
            LRPWarning,
            stacklevel=3,
        )
    return array


def _in_colours(picture: Any) -> Any:
    """A picture of Pillow with palette, transparency or printing colours in red, green and blue; else as it is."""
    convert, mode = getattr(picture, "convert", None), getattr(picture, "mode", "")
    is_other = isinstance(mode, str) and mode in {
        "1",
        "P",
        "PA",
        "LA",
        "La",
        "RGBA",
        "RGBa",
        "RGBX",
        "CMYK",
        "YCbCr",
        "HSV",
    }
    return convert("RGB") if callable(convert) and is_other else picture


def _check_pixels(size: Sequence[int], name: str) -> None:
    if 0 in size:
        raise ArrayError(f"{name} has {tuple(size)} pixels: there is nothing to draw.")


def white_of(pictures: NDArray[Any]) -> int:
    """The value that is white."""
    return 255 if pictures.dtype == np.uint8 else 1


def colour_limit(values: NDArray[Any], limit: float | None = None, percentile: float = 100) -> float:
    """The absolute relevance that gets the strongest colour.

    Args:
        values: The maps.
        limit: The limit that was asked for.
        percentile: That of the absolute values, if none was.

    Raises:
        ArrayError: If the limit is not positive.

    Example:
        >>> colour_limit(np.array([-2.0, 1.0])), colour_limit(np.arange(1000.0), percentile=99)
        (2.0, 990.0)
    """
    if limit is None:
        sizes = np.abs(np.asarray(values, np.float64))
        chosen = np.percentile(sizes, percentile, method="higher") if sizes.size else 0.0
        return float(chosen or sizes.max(initial=0)) or 1.0
    wanted = "is the largest absolute relevance drawn, a positive number"
    return as_number(limit, "limit", wanted, is_positive, ArrayError)


def is_positive(number: float) -> bool:
    """Whether a number is positive and finite."""
    return 0 < number < math.inf


def as_texts(texts: Any, name: str, number: int, of: str) -> list[str]:
    """A text for each of so many things.

    Args:
        texts: The texts.
        name: The name of the argument.
        number: How many there must be.
        of: What there is one for, in the plural.

    Raises:
        ArrayError: If they are no sequence, or another number.

    Example:
        >>> as_texts(["a", "b"], "labels", 2, "images")
        ['a', 'b']
    """
    try:
        found = None if isinstance(texts, str | bytes) else list(map(str, texts))
    except Exception:  # what an object can raise is up to it
        found = None
    if found is None:
        raise ArrayError(f"{name} must be a list of texts, but it is {kind_of(texts)}.")
    if len(found) != number:
        raise ArrayError(f"There are {number} {of}, but {len(found)} {name}.")
    return found
