"""The picture of an explanation: which of the pictures of `lrp_jax.plotting` each of its inputs gets."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from numpy.typing import NDArray

from lrp_jax.core.arguments import as_count, kind_of
from lrp_jax.errors import ArrayError
from lrp_jax.explain.display import Classes, Picture, class_names, is_known, largest, of_largest_output, picture_for
from lrp_jax.plotting.arrays import NUMBERS_OF_CHANNELS, PERCENTILE, as_texts, channels_last, colour_limit, finite
from lrp_jax.plotting.figures import new_figure
from lrp_jax.plotting.images import LARGEST_NUMBER, draw_grid, sizes_of
from lrp_jax.plotting.series import channels_first, draw_strips
from lrp_jax.plotting.series import height_of as height_of_strips
from lrp_jax.plotting.text import as_shown, draw_words, sum_of_embedding
from lrp_jax.plotting.text import height_of as height_of_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH = 7.0  # of series and texts, in inches
_TITLE = 0.25  # the height of a title, in inches


@dataclass(frozen=True)
class _Block:
    """A part of the figure below the others: its size in inches, its title, and what draws it."""

    width: float
    height: float
    title: str
    draw: Callable[[Any], None]


def draw_explanation(
    x: Any,
    relevance: Any,
    output: Any,
    classes: Classes | None = None,
    tokens: Sequence[str] | Sequence[Sequence[str]] | None = None,
    channel_axis: int | None = None,
    samples: Sequence[int] | None = None,
) -> Figure:
    """Draws an explanation. The arguments are those of `Explanation.plot`.

    Args:
        x: The input.
        relevance: Its relevance; of all classes with one dimension for them in front.
        output: The model's output.
        classes: The names of the classes.
        tokens: The words of the texts.
        channel_axis: The axis of the channels.
        samples: The samples.
    """
    if not is_known(x, relevance, output):
        raise ArrayError(
            "The explanation is traced, and has no values that could be drawn. Draw it outside of jax.jit."
        )
    leaves, maps = jax.tree_util.tree_leaves_with_path(x), jax.tree.leaves(relevance)
    if not leaves or len(leaves) != len(maps):
        raise ArrayError("The explanation has no input that could be drawn. Draw its arrays with lrp_jax.plotting.")
    chosen = _chosen(samples, len(leaves[0][1]))
    labels = _labels(output, chosen, classes)
    blocks = []
    for (path, leaf), of_leaf in zip(leaves, maps, strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        values = finite(leaf[np.asarray(chosen)], f"The input {name}".rstrip())
        of_class = of_largest_output(of_leaf, leaf, output)
        signed = finite(of_class[np.asarray(chosen)], f"The relevance {name}".rstrip())
        words = _words(tokens, values.shape, chosen)
        title = f"input {name}" if name.isdigit() else name
        blocks += _blocks(title, values, signed, words, channel_axis, labels)
    figure = new_figure(max(block.width for block in blocks), sum(block.height for block in blocks))
    parts: Any = [figure]
    if len(blocks) > 1:
        parts = figure.subfigures(len(blocks), 1, height_ratios=[block.height for block in blocks])
    for part, block in zip(parts, blocks, strict=True):
        block.draw(part)
        if block.title:
            part.suptitle(block.title, x=0.01, ha="left", size=9, parse_math=False)
    return figure


def _chosen(samples: Sequence[int] | None, number: int) -> list[int]:
    """The samples that are drawn."""
    if not number:
        raise ArrayError("The explanation has no samples: there is nothing to draw.")
    if samples is None:
        return list(range(min(number, LARGEST_NUMBER)))
    if not isinstance(samples, Sequence | np.ndarray | jax.Array) or isinstance(samples, str) or not len(samples):
        raise ArrayError(f"samples must be a list of indices, such as [0], but it is {kind_of(samples)}.")
    chosen = [as_count(sample, "A sample", least=0, error=ArrayError) for sample in samples]
    if max(chosen) >= number:
        raise ArrayError(f"There is no sample {max(chosen)}: the explanation has {number}, counted from 0.")
    return chosen


def _labels(output: Any, chosen: Sequence[int], classes: Classes | None) -> list[str]:
    """What stands at each sample: its largest output."""
    names = class_names(classes, output)
    shape: tuple[int, ...] = getattr(output, "shape", ())
    if len(shape) not in (1, 2):
        return [f"sample {sample}" for sample in chosen]
    if len(shape) == 2 and names is None:
        names = [f"class {i}" for i in range(shape[1])] if shape[1] > 1 else None
    return [largest(np.asarray(output[sample]).squeeze(), names, number=1) for sample in chosen]


def _words(tokens: Any, shape: tuple[int, ...], chosen: Sequence[int]) -> list[list[str]] | None:
    """The words of each sample; None if there are no tokens."""
    if tokens is None:
        return None
    if len(shape) not in (2, 3):
        raise ArrayError(f"tokens are for texts of shape (N, T) or (N, T, D), but the input has {shape}.")
    try:
        are_of_each = not isinstance(tokens, str) and not isinstance(tokens[0], str)
        of_samples = [tokens[sample] for sample in chosen] if are_of_each else [tokens] * len(chosen)
    except Exception as error:  # what an object can raise is up to it
        raise ArrayError(
            f"tokens must be a list of words, or one list for each of the samples {list(chosen)}, but it is "
            f"{kind_of(tokens)} of another kind or length."
        ) from error
    return [as_texts(texts, "tokens", shape[1], "words") for texts in of_samples]


def _blocks(
    name: str,
    values: NDArray[Any],
    signed: NDArray[Any],
    words: list[list[str]] | None,
    channel_axis: int | None,
    labels: Sequence[str],
) -> list[_Block]:
    """The parts of the figure for one array of the input."""
    picture = picture_for(values.shape[1:], values.dtype, channel_axis) if words is None else Picture.TEXT
    titles = [f"{name}, {label}".removeprefix(", ") for label in labels]
    match picture:
        case Picture.IMAGE:
            return [_images(name, values, signed, channel_axis, labels)]
        case Picture.SERIES:
            values = np.stack([channels_first(one, "The input", channel_axis) for one in values])
            signed = np.stack([channels_first(one, "The relevance", channel_axis) for one in signed])
            limit = colour_limit(signed, None, PERCENTILE)
            return [_series(*parts, limit) for parts in zip(titles, values, signed, strict=True)]
        case Picture.TEXT:
            texts = [[as_shown(word) for word in text] for text in (words or values.astype(str))]
            sums = np.stack([sum_of_embedding(one) for one in signed])
            limit = colour_limit(sums, None, PERCENTILE)
            return [_text(*parts, limit) for parts in zip(titles, texts, sums, strict=True)]
    raise ArrayError(
        f"A sample of the shape {values.shape[1:]} is drawn neither as an image nor as a series: (H, W), (H, W, C), "
        "(C, H, W), (T,), (T, C) and (C, T) are. Pass channel_axis if it has one of them, or draw parts of "
        "explanation.relevance with lrp_jax.plotting.heatmap."
    )


def _images(
    name: str, values: NDArray[Any], signed: NDArray[Any], channel_axis: int | None, labels: Sequence[str]
) -> _Block:
    """Images above their maps, all on one scale."""
    if values.ndim == 4:
        values = channels_last(values, "The input", channel_axis)
        signed = channels_last(signed, "The relevance", channel_axis).sum(-1)
        if values.shape[-1] not in NUMBERS_OF_CHANNELS:
            values = values.mean(-1)
    pictures = np.stack([_between_0_and_1(one) for one in values])
    width, height = sizes_of(len(pictures), *signed.shape[1:])
    wrapped = [_wrapped(label, max(int(12 * width), 10)) for label in labels]
    lines = max(label.count("\n") + 1 for label in wrapped)

    def draw(figure: Any) -> None:
        limits = {"relevance": colour_limit(signed, None, PERCENTILE)}
        draw_grid(figure, pictures, {"relevance": signed}, wrapped, limits, colorbar_label="")

    return _Block(width * len(pictures) + 1.0, 2 * height + 0.17 * lines + 0.25 + _TITLE * bool(name), name, draw)


def _wrapped(label: str, width: int) -> str:
    """A class and its value in at most three lines, of which the value is in the last."""
    lines = textwrap.wrap(label, width)
    if len(lines) > 3:
        lines[2:] = [f"… {label.rpartition(' ')[2]}"]
    return "\n".join(lines).replace("$", r"\$")


def _between_0_and_1(image: NDArray[Any]) -> NDArray[Any]:
    """An image as it is, or from black to white if it reaches beyond, as standardised ones do."""
    if image.dtype == np.uint8:
        return image / 255
    values = np.asarray(image, np.float64)
    low, high = values.min(), values.max()
    return values if low >= 0 and high <= 1 else (values - low) / ((high - low) or 1)


def _series(title: str, values: NDArray[Any], signed: NDArray[Any], limit: float) -> _Block:
    names = [str(i) for i in range(len(values))] if len(values) > 1 else None
    height = height_of_strips(len(values)) + _TITLE
    return _Block(_WIDTH, height, title, lambda figure: draw_strips(figure, values, signed, limit, names))


def _text(title: str, texts: list[str], sums: NDArray[Any], limit: float) -> _Block:
    height = height_of_words(texts) + _TITLE
    return _Block(_WIDTH, height, title, lambda figure: draw_words(figure, texts, sums, limit))
