"""How an explanation shows itself: in a notebook, as a summary, and in a line."""

import base64
import enum
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from numpy.typing import NDArray

from lrp_jax.errors import ArrayError, MissingExtraError, import_extra
from lrp_jax.plotting.arrays import COLORMAP, PERCENTILE, as_texts, colour_limit, guessed_axis
from lrp_jax.plotting.series import MOST_CHANNELS, channels_first, guessed_series_axis
from lrp_jax.plotting.text import words_as_html

SAMPLES = 4
LARGEST = 3
SIDE = 112  # of a picture on the page, at most, in pixels
STRIP = 224  # the width of a strip
COLUMNS = 448  # of a strip, at most: more are put together
WORDS = 100  # of a text, at most

Classes: TypeAlias = Sequence[str] | Mapping[int, str]
"""The names of all classes, or a mapping from their numbers to them."""


class Picture(enum.Enum):
    """As what a sample is drawn."""

    IMAGE = "image"
    SERIES = "series"
    TEXT = "text"


def picture_for(shape: Sequence[int], dtype: Any, channel_axis: int | None = None) -> Picture | None:
    """As what a sample is drawn, told from its shape; None if as nothing.

    Args:
        shape: The shape of the sample.
        dtype: Its dtype: integers of one dimension are a text.
        channel_axis: The axis of its channels, if it is known.

    Example:
        >>> picture_for((28, 28), np.float32), picture_for((200, 2), np.float32)
        (<Picture.IMAGE: 'image'>, <Picture.SERIES: 'series'>)
    """
    if not all(shape):
        return None
    if len(shape) == 1:
        return Picture.TEXT if np.issubdtype(dtype, np.integer) else Picture.SERIES
    if len(shape) == 2:
        return Picture.IMAGE if channel_axis is None and guessed_series_axis(shape) is None else Picture.SERIES
    is_image = len(shape) == 3 and (channel_axis is not None or guessed_axis(shape) is not None)
    return Picture.IMAGE if is_image else None


def class_names(classes: Classes | None, output: Any) -> list[str] | None:
    """The name of every class.

    Args:
        classes: As the user gives them.
        output: The model's output.

    Raises:
        ArrayError: If there are not as many as the output has classes, or not for the same numbers.

    Example:
        >>> class_names({0: "cat", 1: "dog"}, np.zeros((1, 2)))
        ['cat', 'dog']
    """
    if classes is None:
        return None
    shape: tuple[int, ...] = getattr(output, "shape", ())
    if len(shape) != 2:
        raise ArrayError("classes name the outputs of a model that returns (samples, classes). Leave them out here.")
    if isinstance(classes, Mapping):
        missing = next((number for number in range(shape[1]) if number not in classes), None)
        if missing is not None:
            raise ArrayError(
                f"classes is a mapping from the integers 0 to {shape[1] - 1}, one for each output, to names, but it "
                f"has no {missing}."
            )
        classes = [classes[number] for number in range(shape[1])]
    return as_texts(classes, "classes", shape[1], "outputs")


def explanation_as_html(
    x: Any, relevance: Any, output: Any, hidden: Mapping[str, Any], rules: Sequence[str], account: str = ""
) -> str:
    """Shows the first samples of an explanation: input, map, largest outputs, and the rules.

    Args:
        x: The input.
        relevance: Its relevance; of all classes with one dimension for them in front.
        output: The model's output.
        hidden: The relevance of hidden values, by name.
        rules: The rules in words.
        account: What arrived at the input, in a sentence.

    Returns:
        HTML that needs no other file. Integers are words in the colours of their relevance; what has the shape of an
        image or a series is a picture, if matplotlib is installed.

    Example:
        >>> shown = explanation_as_html(np.ones((1, 2)), np.ones((1, 2)), np.array([[2.0]]), {}, ["any_layer: Zero"])
        >>> "Relevance of 1 sample. Rules: any_layer: Zero" in shown
        True
    """
    if _has_samples(x, relevance, output):
        caption, header, rows = _samples(x, relevance, output)
    else:
        caption, header, rows = "Relevance", ["array", "shape", "sum"], _arrays(relevance)
    caption = _with_sentences(caption, rules, account)
    shown = table_as_html(caption, header, _escaped(rows) if header[0] == "array" else rows)
    if hidden:
        shown += table_as_html("Relevance of hidden values", ["name", "shape", "sum"], _escaped(_arrays(hidden)))
    return shown


def summary_of(
    x: Any,
    relevance: Any,
    output: Any,
    hidden: Mapping[str, Any],
    rules: Sequence[str],
    account: str = "",
    classes: Classes | None = None,
) -> str:
    """Says in a few lines what was explained.

    Args:
        x: The input.
        relevance: Its relevance; of all classes with one dimension for them in front.
        output: The model's output.
        hidden: The relevance of hidden values, by name.
        rules: The rules in words.
        account: What arrived at the input, in a sentence.
        classes: The names of the classes.

    Example:
        >>> print(summary_of(np.ones((1, 2)), np.ones((1, 2)), np.array([[2.0, 1.0]]), {}, [], classes=["cat", "dog"]))
        Relevance of 1 sample
        sample  largest outputs  sum of the relevance
        0       cat: 2, dog: 1   2
    """
    names = class_names(classes, output)
    if is_known(output, relevance) and len(getattr(output, "shape", ())) > 0:
        number = len(output)
        caption = _caption(x, relevance, number)
        sums = _sums(x, relevance, output)
        header = ["sample", "largest outputs", "sum of the relevance"]
        rows = [
            [str(sample), largest(np.asarray(output[sample]), names), number_as_text(sums[sample])]
            for sample in range(min(number, SAMPLES))
        ]
    else:
        caption, header, rows = "Relevance", ["array", "shape", "sum"], _arrays(relevance)
    lines = [*filter(None, (_with_sentences(caption, rules), account)), *_columns([header, *rows])]
    if hidden:
        lines += ["Relevance of hidden values", *_columns([["name", "shape", "sum"], *_arrays(hidden)])]
    return "\n".join(lines)


def described(tree: Any) -> str:
    """The dtypes and shapes of arrays, in a line.

    Example:
        >>> described({"left": np.zeros((2, 3)), "right": np.float32([4])})
        "{'left': float64[2,3], 'right': float32[1]}"
    """
    return str(jax.tree.map(_Word, tree))


class _Word:
    """The dtype and the shape of an array, without quotes."""

    def __init__(self, array: Any) -> None:
        known = hasattr(array, "dtype") and hasattr(array, "shape")
        self.text = f"{array.dtype}[{','.join(map(str, array.shape))}]" if known else repr(array)

    def __repr__(self) -> str:
        return self.text


def table_as_html(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table.

    Args:
        caption: What it is, as text.
        header: The names of the columns, as text.
        rows: The cells, as HTML.

    Example:
        >>> table_as_html("1 < 2", [], [["<b>1</b>"]])
        '<table><caption>1 &lt; 2</caption><thead><tr></tr></thead><tbody><tr><td><b>1</b></td></tr></tbody></table>'
    """
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in header)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f"<table><caption>{html.escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def largest(values: NDArray[Any], names: Sequence[str] | None = None, number: int = LARGEST) -> str:
    """The largest values with their places or names, as text.

    Example:
        >>> largest(np.array([1.0, 3.0, 2.0]), ["ant", "bee", "cow"], number=2)
        'bee: 3, cow: 2'
    """
    if np.ndim(values) == 0:
        return number_as_text(values)
    flat = np.ravel(values).astype(np.float64)
    entries = []
    for i in np.argsort(-flat, kind="stable")[:number]:
        place = ", ".join(map(str, np.unravel_index(i, values.shape)))
        name = (place if names is None else names[i]) if values.ndim == 1 else f"({place})"
        entries.append(f"{name}: {number_as_text(flat[i])}")
    return ", ".join(entries)


def of_largest_output(relevance: Any, x: Any, output: Any) -> Any:
    """Relevance in the shape of the input: if it is that of all classes, that of the class with the largest output.

    Args:
        relevance: The relevance of one array of the input.
        x: That array.
        output: The model's output.
    """
    if relevance.ndim == x.ndim:
        return relevance
    return relevance[output.argmax(-1), np.arange(len(output))]


def number_as_text(value: Any) -> str:
    """A number with four digits, or that it is traced.

    Example:
        >>> number_as_text(np.float32(1 / 3))
        '0.3333'
    """
    return "traced" if isinstance(value, jax.core.Tracer) else f"{float(value):.4g}"


def _has_samples(x: Any, relevance: Any, output: Any) -> bool:
    """Whether these are known arrays of samples, and no trees of arrays."""
    parts = (x, relevance, output)
    return is_known(parts) and all(hasattr(part, "shape") for part in parts) and len(output.shape) > 0


def is_known(*trees: Any) -> bool:
    """Whether arrays have values, and are not traced.

    Example:
        >>> is_known({"x": np.ones(2)}, 1.0)
        True
    """
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


def _with_sentences(caption: str, rules: Sequence[str], account: str = "") -> str:
    """A caption with the rules and the account after it."""
    sentences = [caption, f"Rules: {'; '.join(rules)}" if rules else "", account]
    return ". ".join(filter(None, sentences))


def _caption(x: Any, relevance: Any, number: int) -> str:
    """Of what the relevance is, and what of it is shown."""
    caption = f"Relevance of {number} sample{'s' * (number != 1)}"
    caption += f", of which {SAMPLES} are shown" * (number > SAMPLES)
    leaves = zip(jax.tree.leaves(x), jax.tree.leaves(relevance), strict=True)
    is_of_all_classes = any(of_leaf.ndim > leaf.ndim for leaf, of_leaf in leaves)
    return caption + ", for the class with the largest output" * is_of_all_classes


def _sums(x: Any, relevance: Any, output: Any) -> NDArray[Any]:
    """The sum of the relevance of each of the first samples."""
    sums = np.zeros(min(len(output), SAMPLES))
    for leaf, of_leaf in zip(jax.tree.leaves(x), jax.tree.leaves(relevance), strict=True):
        values = np.asarray(of_largest_output(of_leaf, leaf, output)[:SAMPLES], np.float64)
        sums += values.sum(tuple(range(1, values.ndim)))
    return sums


def _samples(x: Any, relevance: Any, output: Any) -> tuple[str, list[str], list[list[str]]]:
    """A row for each of the first samples, in HTML."""
    number = len(output)
    caption = _caption(x, relevance, number)
    relevance = np.asarray(of_largest_output(relevance, x, output)[:SAMPLES])
    x, output = np.asarray(x[:SAMPLES]), np.asarray(output[:SAMPLES])
    rows = [
        [
            *_shown(x[sample], relevance[sample]),
            html.escape(largest(output[sample])),
            number_as_text(relevance[sample].sum()),
        ]
        for sample in range(len(output))
    ]
    return caption, ["input", "relevance", "largest outputs", "sum of the relevance"], rows


def _shown(x: NDArray[Any], relevance: NDArray[Any]) -> tuple[str, str]:
    """A sample and its relevance in HTML: as pictures, as words or as their largest values."""
    picture = picture_for(x.shape, x.dtype)
    is_finite = np.isfinite(relevance.astype(np.float64)).all()
    if picture is Picture.TEXT and is_finite and relevance.shape == x.shape:
        words = words_as_html(list(map(str, x[:WORDS])), relevance[:WORDS])
        return f"{len(x)} integers", words + "…" * (len(x) > WORDS)
    shown = "", ""
    if picture is Picture.IMAGE and min(x.shape[:2]) > 1:
        shown = _image(x, "the input", signed=False), _image(relevance, "the relevance", signed=True)
    if picture is Picture.SERIES and max(x.shape) > MOST_CHANNELS:
        shown = _strip(x, "the input", signed=False), _strip(relevance, "the relevance", signed=True)
    return shown[0] or largest(x), shown[1] or largest(relevance)


def _image(values: NDArray[Any], name: str, *, signed: bool) -> str:
    """An image of shape (H, W), (H, W, C) or (C, H, W)."""
    if values.ndim == 3:
        values = np.moveaxis(values, guessed_axis(values.shape) or 0, -1)
    is_colour = values.ndim == 3 and values.shape[-1] == 3 and not signed
    pixels = values if is_colour or values.ndim == 2 else values.sum(-1)
    scale = SIDE / max(pixels.shape[:2])
    width, height = (max(round(size * scale), 8) for size in (pixels.shape[1], pixels.shape[0]))
    return _png(pixels, f"Picture of {name}", width, height, signed=signed)


def _strip(values: NDArray[Any], name: str, *, signed: bool) -> str:
    """A series of shape (T,), (T, C) or (C, T), a line for each channel, time from left to right."""
    lines = channels_first(values, name, None)
    width = -(-lines.shape[1] // COLUMNS)  # steps that are put together
    if width > 1:
        lines = np.pad(lines, ((0, 0), (0, -lines.shape[1] % width))).reshape(len(lines), -1, width)
        peaks = np.abs(lines).argmax(-1, keepdims=True)
        lines = np.take_along_axis(lines, peaks, -1)[..., 0] if signed else lines.mean(-1)
    height = min(max(16 * len(lines), 16), SIDE)
    return _png(lines, f"Picture of {name}, a series", STRIP, height, signed=signed)


def _png(pixels: NDArray[Any], text: str, width: int, height: int, *, signed: bool) -> str:
    """An inline picture of so many pixels on the page; nothing without matplotlib."""
    try:
        image = import_extra("matplotlib.image", "plot")
    except MissingExtraError:
        return ""
    pixels = np.nan_to_num(pixels.astype(np.float64))
    low, high = pixels.min(), pixels.max()
    if signed:
        high = colour_limit(pixels, None, PERCENTILE)
        low = -high
    scaled = np.clip((pixels - low) / ((high - low) or 1), 0, 1)
    file = io.BytesIO()
    image.imsave(file, scaled, vmin=0, vmax=1, cmap=COLORMAP if signed else "gray", format="png")
    data = base64.b64encode(file.getvalue()).decode()
    style = f"width: {width}px; height: {height}px; max-width: none; image-rendering: pixelated"
    return f'<img src="data:image/png;base64,{data}" alt="{text}" style="{style}">'


def _arrays(tree: Any) -> list[list[str]]:
    """A row for each array of a pytree."""
    return [
        [jax.tree_util.keystr(path, simple=True, separator="."), str(leaf.shape), number_as_text(leaf.sum())]
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _escaped(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    return [[html.escape(cell) for cell in row] for row in rows]


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines of text, the columns one below the other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
