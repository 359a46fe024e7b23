"""One neuron of two inputs whose root point can be dragged and whose box can be resized: the drawing of chapter 5.

The drawing is made here, complete, with the root of z-box. On a page of the built book the script
`interactive/draggable_root.js` moves its parts; on paper the page shows its figure of the same neuron in its place.
"""

import html
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lrp_book.numbers import as_text
from lrp_jax import lrp
from lrp_jax.rules import Rule, WSquare, ZBox, Zero, ZPlus

SIDE, LEAST, MOST = 400, -0.75, 3.75  # of the plane that is shown: its size in pixels, and the values of both inputs
_SCALE = SIDE / (MOST - LEAST)
_BARS, _PER_UNIT, _ZERO = 300, 20, 130  # the width of the picture of shares, one unit of relevance, and where zero is
_STRONGEST = 8  # the activation with the strongest colour


@dataclass(frozen=True)
class DraggableRoot:
    """The neuron max(0, x_1 w_1 + x_2 w_2) in the plane of its inputs, with a root point, a box, and the shares.

    Attributes:
        x: Where it is explained; it is active there.
        w: Its weights, none of them zero.
        low: The smallest values of the box, not above x.
        high: Its largest values, not below x.

    Example:
        >>> neuron = DraggableRoot((2.0, 1.0), (2.0, -1.0), (0.0, 0.0), (3.0, 3.0))
        >>> neuron.shares("z-box").tolist(), neuron.root("z-box").tolist()
        ([2.0, 1.0], [1.0, 2.0])
    """

    x: tuple[float, float]
    w: tuple[float, float]
    low: tuple[float, float]
    high: tuple[float, float]

    def rules(self) -> Mapping[str, Rule]:
        """The rules that a reader can choose, by name."""
        box = ZBox(self.low, self.high)
        return {"w²": WSquare(), "z⁺": ZPlus(), "z-box": box, "LRP-0": Zero()}

    def shares(self, rule: str) -> NDArray[np.float64]:
        """The relevance of the inputs under one of the rules, of shape (2,)."""
        w = jnp.array(self.w)
        explained = lrp(lambda x: jax.nn.relu(x @ w), self.rules()[rule])
        return np.asarray(jax.grad(explained)(jnp.array(self.x)), float).round(4) + 0.0

    def root(self, rule: str) -> NDArray[np.float64]:
        """The root point at which a Taylor step is one of the rules, of shape (2,)."""
        return np.array(self.x) - self.shares(rule) / np.array(self.w)

    def _repr_html_(self) -> str:
        data = "".join(
            f' data-{name}="{values[0]:g} {values[1]:g}"'
            for name, values in (("x", self.x), ("w", self.w), ("low", self.low), ("high", self.high))
        )
        scales = f' data-least="{LEAST}" data-scale="{_SCALE:g}" data-unit="{_PER_UNIT}" data-zero="{_ZERO}"'
        choices = "".join(
            f'<label><input type="radio" name="rule" value="{html.escape(name)}"{" checked" * (name == "z-box")}> '
            f"{html.escape(name)}</label>"
            for name in [*self.rules(), "your own"]
        )
        return (
            f'<form id="draggable-root" class="explorer draggable-root" aria-label="Roots of one neuron"{data}{scales}>'
            f"<style>{_STYLE}</style>"
            f'<div class="draggable-pictures">{self._plane()}<div>{self._bars()}'
            f'<fieldset><legend>Root of the rule</legend><div class="draggable-rules">{choices}</div></fieldset>'
            f'<p role="status" data-part="status">{self._status()}</p></div></div></form>'
        )

    def _status(self) -> str:
        root, shares = self.root("z-box"), self.shares("z-box")
        at, parts = (", ".join(as_text(float(value)) for value in pair) for pair in (root, shares))
        return f"Root at ({at}), relevance ({parts})."

    def _plane(self) -> str:
        (x1, y1), (x2, y2) = _place(self.x), _place(self.root("z-box"))
        (left, bottom), (right, top) = map(_place, (self.low, self.high))
        corner = _place(np.where(np.array(self.w) > 0, self.low, self.high))
        ends = [_place((value, -value * self.w[0] / self.w[1])) for value in (LEAST, MOST)]
        line = f'x1="{ends[0][0]:.1f}" y1="{ends[0][1]:.1f}" x2="{ends[1][0]:.1f}" y2="{ends[1][1]:.1f}"'
        middle = (left + right) / 2, (top + bottom) / 2
        sides = {
            "left": (left, middle[1], self.low[0], LEAST, self.x[0]),
            "right": (right, middle[1], self.high[0], self.x[0], MOST),
            "lower": (middle[0], bottom, self.low[1], LEAST, self.x[1]),
            "upper": (middle[0], top, self.high[1], self.x[1], MOST),
        }
        return (
            f'<svg viewBox="0 0 {SIDE} {SIDE}" role="group" aria-label="The plane of the two inputs">'
            f'{self._gradient()}<rect width="{SIDE}" height="{SIDE}" class="draggable-active"/>{_axes()}'
            f'<line {line} class="draggable-boundary"/>'
            f'<rect data-part="box" x="{left:g}" y="{top:g}" width="{right - left:g}" height="{bottom - top:g}"/>'
            f'<line data-part="way" x1="{x1:g}" y1="{y1:g}" x2="{corner[0]:g}" y2="{corner[1]:g}"/>'
            f'<line data-part="step" x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}"/>'
            f'<circle cx="{x1:g}" cy="{y1:g}" r="6" class="draggable-input"/>'
            f'<text x="{x1 + 12:g}" y="{y1 + 5:g}">x</text>{_side_handles(sides)}'
            f'<g data-handle="root" tabindex="0" role="slider" aria-label="Root point, on the line" '
            f'aria-valuemin="{LEAST}" aria-valuemax="{MOST}" aria-valuenow="{self.root("z-box")[0]:g}">'
            f'<circle cx="{x2:g}" cy="{y2:g}" r="10"/></g></svg>'
        )

    def _gradient(self) -> str:
        w = np.array(self.w)
        start, end = _place((0.0, 0.0)), _place(_STRONGEST * w / (w @ w))
        return (
            f'<defs><linearGradient id="draggable-activation" gradientUnits="userSpaceOnUse" x1="{start[0]:.1f}" '
            f'y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}"><stop class="draggable-zero"/>'
            '<stop offset="1" class="draggable-most"/></linearGradient></defs>'
        )

    def _bars(self) -> str:
        bars = ""
        for row, share in enumerate(self.shares("z-box").tolist()):
            y = 12 + 46 * row
            bars += (
                f'<text x="4" y="{y + 22}">R<tspan dy="4" font-size="11">{row + 1}</tspan></text>'
                f'<rect data-part="bar" x="{_ZERO + min(0.0, _PER_UNIT * share):g}" y="{y}" '
                f'width="{_PER_UNIT * abs(share):g}" height="30"/>'
                f'<text data-part="share" x="{_BARS - 4}" y="{y + 22}" text-anchor="end">{as_text(share)}</text>'
            )
        z = float(np.dot(self.x, self.w))
        return (
            f'<svg viewBox="0 0 {_BARS} 128" role="img" aria-label="The shares of the two inputs, as bars">{bars}'
            f'<line x1="{_ZERO}" y1="4" x2="{_ZERO}" y2="100" class="draggable-axis"/>'
            f'<text x="4" y="122">together</text>'
            f'<text x="{_BARS - 4}" y="122" text-anchor="end">{as_text(z)}</text></svg>'
        )


def _place(point: tuple[float, float] | NDArray[np.float64]) -> tuple[float, float]:
    """Where a point of the plane is in its picture."""
    return _SCALE * (float(point[0]) - LEAST), SIDE - _SCALE * (float(point[1]) - LEAST)


def _axes() -> str:
    (left, bottom), ticks = _place((0.0, 0.0)), ""
    for value in range(4):
        at, up = _place((value, value))
        ticks += f'<text x="{at:.1f}" y="{bottom + 18:.1f}" text-anchor="middle">{value}</text>' if value else ""
        ticks += f'<text x="{left - 8:.1f}" y="{up + 5:.1f}" text-anchor="end">{value}</text>' if value else ""
    return (
        f'<line x1="0" y1="{bottom:.1f}" x2="{SIDE}" y2="{bottom:.1f}" class="draggable-axis"/>'
        f'<line x1="{left:.1f}" y1="0" x2="{left:.1f}" y2="{SIDE}" class="draggable-axis"/>{ticks}'
        f'<text x="{SIDE - 8}" y="{bottom + 18:.1f}" text-anchor="end">x₁</text>'
        f'<text x="{left - 8:.1f}" y="16" text-anchor="end">x₂</text>'
    )


def _side_handles(sides: Mapping[str, tuple[float, float, float, float, float]]) -> str:
    return "".join(
        f'<g data-handle="{name}" tabindex="0" role="slider" aria-label="{name.capitalize()} side of the box" '
        f'aria-valuemin="{least:g}" aria-valuemax="{most:g}" aria-valuenow="{value:g}">'
        f'<rect x="{at - 9:.1f}" y="{up - 9:.1f}" width="18" height="18"/></g>'
        for name, (at, up, value, least, most) in sides.items()
    )


_STYLE = """
.draggable-pictures { display: grid; gap: 1rem; grid-template-columns: minmax(0, 4fr) minmax(0, 3fr); }
.draggable-root svg { display: block; width: 100%; height: auto; }
.draggable-root text { fill: currentColor; font-size: 15px; }
.draggable-active { fill: url(#draggable-activation); }
.draggable-zero { stop-color: #d1495b; stop-opacity: 0; }
.draggable-most { stop-color: #d1495b; stop-opacity: 0.9; }
.draggable-axis { stroke: currentColor; opacity: 0.4; }
.draggable-boundary { stroke: currentColor; stroke-width: 2.5; }
.draggable-root [data-part="box"] { fill: none; stroke: currentColor; stroke-dasharray: 6 5; }
.draggable-root [data-part="way"] { stroke: #8a5a2b; stroke-width: 2; stroke-dasharray: 2 5; }
.draggable-root [data-part="step"] { stroke: #8a5a2b; stroke-width: 3; }
.draggable-root [data-part="bar"] { fill: #d1495b; }
.draggable-root [data-part="bar"].is-against { fill: #2f7ebc; }
.draggable-input { fill: currentColor; }
.draggable-root [data-handle] { cursor: grab; touch-action: none; outline: none; }
.draggable-root [data-handle] > * { fill: #e08a1e; stroke: currentColor; stroke-width: 1.5; }
.draggable-root [data-handle]:focus-visible > * { stroke: #2f6ea8; stroke-width: 5; }
.draggable-rules { display: flex; flex-wrap: wrap; gap: 0.25rem 1rem; }
html[data-theme] .bd-content div.cell_output .text_html:has(.draggable-root) {
  background-color: transparent !important; color: inherit !important; padding: 0; }
@media (max-width: 576px) { .draggable-pictures { grid-template-columns: minmax(0, 1fr); } }
@media print { .draggable-root { display: none; } }
"""
