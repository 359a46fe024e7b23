"""Pictures of texts: words in the colours of their relevance, as a figure or as HTML."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lrp_jax.errors import ArrayError
from lrp_jax.plotting.arrays import PERCENTILE, Explained, as_texts, colour_limit, finite, relevance_of_one
from lrp_jax.plotting.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_POSITIVE, _NEGATIVE = (178, 24, 43), (33, 102, 172)
_SIZE = 10  # of the letters in a figure, in points
_ADVANCE = 0.602 * _SIZE / 72  # of a letter, in inches
_LINE = 0.27  # from one line to the next, in inches
_WIDTH = 7.0


def words(tokens: Sequence[str], relevance: ArrayLike | Explained, *, limit: float | None = None) -> Figure:
    """Draws a text whose words have the colours of their relevance.

    Args:
        tokens: The T words, or parts of words, of one text.
        relevance: Relevance of shape (T,), or (T, D), of which the sum over the dimensions of the embedding is drawn.
            Or an explanation of this text alone.
        limit: The absolute relevance that gets the strongest colour, positive. If None, that below which are 99 % of
            the words.

    Returns:
        A figure that shows itself in a notebook. If its font lacks the script, use `words_as_html`.

    Raises:
        ArrayError: If the relevance has another shape or is not finite, there is another number of tokens, or the limit
            is not positive.
        MissingExtraError: If matplotlib is not installed.

    Example:
        >>> figure = words(["not", "bad"], [-1.0, 2.0])
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['not', 'bad']
    """
    texts, values = _read(tokens, relevance)
    limit = colour_limit(values, limit, PERCENTILE)
    figure = new_figure(_WIDTH, height_of(texts))
    draw_words(figure, texts, values, limit)
    return figure


def words_as_html(tokens: Sequence[str], relevance: ArrayLike | Explained, *, limit: float | None = None) -> str:
    """Writes a text whose words have the colours of their relevance as HTML, which needs no other package.

    Args:
        tokens: As in `words`.
        relevance: As in `words`. The number is shown when the pointer rests on a word.
        limit: As in `words`.

    Returns:
        A paragraph, which `IPython.display.HTML` shows.

    Raises:
        ArrayError: As in `words`.

    Example:
        >>> 'title="-1"' in words_as_html(["not", "bad"], [-1.0, 2.0])
        True
    """
    texts, values = _read(tokens, relevance)
    limit = colour_limit(values, limit, PERCENTILE)
    shown = []
    for text, value in zip(texts, values, strict=True):
        red, green, blue = colour_of(value / limit)
        ink = _ink((red, green, blue))
        style = f"background: rgb({red}, {green}, {blue}); color: {ink}; padding: 0 .15em; white-space: pre-wrap"
        shown.append(f'<span style="{style}" title="{value:.4g}">{html.escape(text)}</span>')
    return f'<p style="line-height: 1.6; text-align: left">{" ".join(shown)}</p>'


def colour_of(share: float) -> tuple[int, int, int]:
    """The red, green and blue of a share of the strongest relevance.

    Example:
        >>> colour_of(0.0), colour_of(1.0), colour_of(-2.0)
        ((255, 255, 255), (178, 24, 43), (33, 102, 172))
    """
    end = _POSITIVE if share > 0 else _NEGATIVE
    strength = min(abs(float(share)), 1.0)
    red, green, blue = (round(255 + strength * (part - 255)) for part in end)
    return red, green, blue


def _ink(colour: tuple[int, int, int]) -> str:
    """Black or white, whichever can be read on a colour: the one with the larger ratio of luminances (WCAG)."""
    parts = [value / 3294.6 if value <= 10 else ((value / 255 + 0.055) / 1.055) ** 2.4 for value in colour]
    luminance = 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]
    return "black" if luminance > 0.179 else "white"


def sum_of_embedding(relevance: ArrayLike) -> NDArray[Any]:
    """Relevance of shape (T,) of relevance of shape (T,) or (T, D).

    Raises:
        ArrayError: If it has another shape, or is not finite.
    """
    values = finite(relevance, "The relevance")
    if values.ndim not in (1, 2):
        raise ArrayError(f"The relevance needs the shape (T,) or (T, D), but has {values.shape}.")
    return values if values.ndim == 1 else values.sum(axis=-1)


def _read(tokens: Sequence[str], relevance: ArrayLike | Explained) -> tuple[list[str], NDArray[Any]]:
    values = sum_of_embedding(relevance_of_one(relevance))
    return [as_shown(text) for text in as_texts(tokens, "tokens", len(values), "words")], values


def as_shown(text: str) -> str:
    r"""A token without the signs that tokenizers put for a space, and with signs for the ends of lines and tabs.

    Example:
        >>> as_shown("\u0120good"), as_shown("\u2581bad"), as_shown("\n")
        ('good', 'bad', '\u21b5')
    """
    shown = text.replace("\u010a", "\n").replace("\n", "\u21b5").replace("\t", "\u21e5")
    return shown.strip(" \u0120\u2581") or "\u2423"


def height_of(texts: Sequence[str]) -> float:
    """How many inches some words are high."""
    return _LINE * (_places(texts)[-1][1] + 1 if texts else 1) + 0.1


def _places(texts: Sequence[str]) -> list[tuple[float, int, float]]:
    """Where each word begins, in inches from the left, in which line, and how wide it is."""
    places, left, line = [], 0.0, 0
    for text in texts:
        width = _ADVANCE * sum(2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text) + 0.06
        if left and left + width > _WIDTH:
            left, line = 0.0, line + 1
        places.append((left, line, width))
        left += width + 0.05
    return places


def draw_words(figure: Any, texts: Sequence[str], values: NDArray[Any], limit: float) -> None:
    """Draws words into a figure or a part of one.

    Args:
        figure: The figure.
        texts: The words.
        values: The relevance of each.
        limit: The absolute relevance that gets the strongest colour.
    """
    ax = figure.subplots()
    ax.set(xlim=(0, _WIDTH), ylim=(height_of(texts) - 0.1, 0))
    ax.axis("off")
    for text, value, (left, line, width) in zip(texts, np.asarray(values), _places(texts), strict=True):
        colour = colour_of(value / limit)
        share = tuple(part / 255 for part in colour)
        top = line * _LINE + 0.02
        ax.fill([left, left + width, left + width, left], [top, top, top + 0.23, top + 0.23], color=share, linewidth=0)
        ax.text(
            left + width / 2,
            top + 0.115,
            text,
            ha="center",
            va="center",
            color=_ink(colour),
            family="monospace",
            size=_SIZE,
            parse_math=False,
        )
