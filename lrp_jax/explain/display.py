"""How an explanation shows itself in a notebook."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from lrp_jax.errors import MissingExtraError, import_extra
from lrp_jax.plotting import look_first

SAMPLES = 4
LARGEST = 3
WIDTH = 112  # of a picture on the page, in pixels


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
        HTML that needs no other file. What has the shape of an image is a picture if matplotlib is installed.

    Example:
        >>> shown = explanation_as_html(np.ones((1, 2)), np.ones((1, 2)), np.array([[2.0]]), {}, ["any_layer: Zero"])
        >>> "Relevance of 1 sample. Rules: any_layer: Zero" in shown
        True
    """
    parts = (x, relevance, output)
    is_known = not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(parts))
    if is_known and all(hasattr(part, "shape") for part in parts) and len(output.shape) > 0:
        caption, header, rows = _samples(x, relevance, output)
    else:
        caption, header, rows = "Relevance", ["array", "shape", "sum"], _arrays(relevance)
    if rules:
        caption += f". Rules: {'; '.join(rules)}"
    if account:
        caption += f". {account}"
    shown = table_as_html(caption, header, rows)
    if hidden:
        shown += table_as_html("Relevance of hidden values", ["name", "shape", "sum"], _arrays(hidden))
    return shown


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


def _samples(x: Any, relevance: Any, output: Any) -> tuple[str, list[str], list[list[str]]]:
    """A row for each of the first samples."""
    number = len(output)
    samples = np.arange(min(number, SAMPLES))
    x, output = np.asarray(x[: len(samples)]), np.asarray(output[: len(samples)])
    caption = f"Relevance of {number} sample{'s' * (number != 1)}"
    caption += f", of which {len(samples)} are shown" * (number > len(samples))
    if relevance.ndim > x.ndim:  # of all classes
        relevance = relevance[output.argmax(-1), samples]
        caption += ", for the class with the largest output"
    relevance = np.asarray(relevance[: len(samples)])
    rows = [
        [
            _picture(x[sample], "the input", signed=False) or _largest(x[sample]),
            _picture(relevance[sample], "the relevance", signed=True) or _largest(relevance[sample]),
            _largest(output[sample]),
            _number(relevance[sample].sum()),
        ]
        for sample in samples
    ]
    return caption, ["input", "relevance", "largest outputs", "sum of the relevance"], rows


def _arrays(tree: Any) -> list[list[str]]:
    """A row for each array of a pytree."""
    return [
        [html.escape(jax.tree_util.keystr(path, simple=True, separator=".")), str(leaf.shape), _number(leaf.sum())]
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _largest(values: NDArray[Any]) -> str:
    """The largest values with their places, as text."""
    if np.ndim(values) == 0:
        return _number(values)
    flat = np.ravel(values).astype(np.float64)
    entries = []
    for i in np.argsort(-flat, kind="stable")[:LARGEST]:
        place = ", ".join(map(str, np.unravel_index(i, values.shape)))
        entries.append(f"{place}: {_number(flat[i])}" if values.ndim == 1 else f"({place}): {_number(flat[i])}")
    return ", ".join(entries)


def _picture(values: NDArray[Any], name: str, *, signed: bool) -> str:
    """An image of shape (H, W), (H, W, C) or (C, H, W) as inline PNG; nothing if it is none, or without matplotlib."""
    if values.ndim == 3 and look_first(values.shape):
        values = np.moveaxis(values, 0, -1)
    if values.ndim not in (2, 3) or min(values.shape[:2]) < 2:
        return ""
    is_colour = values.ndim == 3 and values.shape[-1] == 3 and not signed
    pixels = values if is_colour or values.ndim == 2 else values.sum(-1)
    try:
        image = import_extra("matplotlib.image", "book")
    except MissingExtraError:
        return ""
    pixels = np.nan_to_num(pixels.astype(np.float64))
    low, high = pixels.min(), pixels.max()
    if signed:
        high = np.abs(pixels).max()
        low = -high
    scaled = (pixels - low) / ((high - low) or 1)
    file = io.BytesIO()
    image.imsave(file, scaled, vmin=0, vmax=1, cmap="RdBu_r" if signed else "gray", format="png")
    data = base64.b64encode(file.getvalue()).decode()
    style = f"width: {WIDTH}px; image-rendering: pixelated"
    return f'<img src="data:image/png;base64,{data}" alt="Picture of {name}" style="{style}">'


def _number(value: Any) -> str:
    return "traced" if isinstance(value, jax.core.Tracer) else f"{float(value):.4g}"
