"""A convolution as a drawing: pointing at an output shows the patch that it sees and the products that it adds up."""

import html
import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lrp_book.numbers import as_text

_PIXEL, _PRODUCT, _OUTPUT = 30, 58, 36  # sides of the squares
_TOP, _GAP = 26, 26
_HEIGHT = _TOP + 7 * _PIXEL + 8


@dataclass(frozen=True)
class SlidingKernel:
    """A small image, a kernel and the map of outputs, without padding and with stride one.

    On a page, pointing at an output, touching it, or going there with the arrow keys shows its patch. On paper, and
    before anything is chosen, one output is shown.

    Attributes:
        name: A name that no other drawing on the page has.
        image: The pixels, of shape (height, width).
        kernel: The weights, of shape (height, width).
        shown: Row and column of the output that is shown at first.
    """

    name: str
    image: ArrayLike
    kernel: ArrayLike
    shown: tuple[int, int]

    def outputs(self) -> NDArray[np.float64]:
        """What the kernel gives at each place.

        Example:
            >>> SlidingKernel("example", [[0, 1, 3, 3]], [[-1, 1]], (0, 0)).outputs()
            array([[1., 2., 0.]])
        """
        image, kernel = np.asarray(self.image, float), np.asarray(self.kernel, float)
        patches = np.lib.stride_tricks.sliding_window_view(image, kernel.shape)
        return np.einsum("rcij,ij->rc", patches, kernel)

    def _repr_html_(self) -> str:
        image, kernel, outputs = np.asarray(self.image), np.asarray(self.kernel), self.outputs()
        left = image.shape[1] * _PIXEL + _GAP
        right = left + kernel.shape[1] * _PRODUCT + _GAP
        width = right + outputs.shape[1] * _OUTPUT + 2
        places = "".join(self._place(place, outputs, left, right) for place in np.ndindex(outputs.shape))
        titles = "".join(
            f'<text x="{x:g}" y="14">{title}</text>'
            for x, title in (
                (image.shape[1] * _PIXEL / 2, "image"),
                (left + kernel.shape[1] * _PRODUCT / 2, "pixel × weight"),
                (right + outputs.shape[1] * _OUTPUT / 2, "output"),
            )
        )
        spoken = "A convolution. Each output can be chosen with the arrow keys."
        svg = (
            f'<svg viewBox="0 0 {width} {_HEIGHT}" role="group" aria-label="{spoken}">'
            f"{titles}{_pixels(image)}{places}</svg>"
        )
        script = _SCRIPT.replace("NAME", self.name)
        return f'<style>{_STYLE}</style><div class="sliding-kernel" id="{self.name}">{svg}</div>{script}'

    def _place(self, place: tuple[int, ...], outputs: NDArray[np.float64], left: float, right: float) -> str:
        row, column = place
        value = outputs[row, column]
        x, y = right + column * _OUTPUT, _TOP + row * _OUTPUT
        sign = "kernel-for" if value > 0 else "kernel-against"
        strength = 0.6 * abs(value) / (np.abs(outputs).max() or 1)
        shown = place == self.shown
        frame, products, sentence = self._patch(row, column, value, left)
        spoken = html.escape(f"Row {row + 1}, column {column + 1}: {sentence}", quote=True)
        square = f'x="{x:g}" y="{y:g}" width="{_OUTPUT}" height="{_OUTPUT}"'
        return (
            f'<g class="kernel-place{" kernel-first" * shown}" data-row="{row}" data-column="{column}" role="img" '
            f'tabindex="{0 if shown else -1}" aria-label="{spoken}">'
            f'<rect {square} class="kernel-cell"/><rect {square} class="{sign}" fill-opacity="{strength:.2f}"/>'
            f'<text x="{x + _OUTPUT / 2:g}" y="{y + _OUTPUT / 2:g}">{as_text(float(value))}</text>'
            f'<g class="kernel-shown">{frame}{products}<rect {square} class="kernel-frame"/></g></g>'
        )

    def _patch(self, row: int, column: int, value: float, left: float) -> tuple[str, str, str]:
        """The frame around a patch, its products, and the calculation in words."""
        image, kernel = np.asarray(self.image), np.asarray(self.kernel)
        height, width = kernel.shape
        frame = (
            f'<rect x="{column * _PIXEL}" y="{_TOP + row * _PIXEL}" width="{width * _PIXEL}" '
            f'height="{height * _PIXEL}" class="kernel-frame"/>'
        )
        cells, terms = "", []
        for i, j in itertools.product(range(height), range(width)):
            pixel, weight = float(image[row + i, column + j]), float(kernel[i, j])
            x, y = left + j * _PRODUCT, _TOP + i * _PRODUCT
            sign = "kernel-for" if pixel * weight > 0 else "kernel-against" if pixel * weight < 0 else "kernel-none"
            terms.append(f"{as_text(pixel)} × {as_text(weight)}")
            cells += (
                f'<rect x="{x:g}" y="{y:g}" width="{_PRODUCT}" height="{_PRODUCT}" class="kernel-cell"/>'
                f'<rect x="{x:g}" y="{y:g}" width="{_PRODUCT}" height="{_PRODUCT}" class="{sign}" fill-opacity="0.25"/>'
                f'<text x="{x + _PRODUCT / 2:g}" y="{y + 0.34 * _PRODUCT:g}" class="kernel-term">{terms[-1]}</text>'
                f'<text x="{x + _PRODUCT / 2:g}" y="{y + 0.7 * _PRODUCT:g}">{as_text(pixel * weight + 0.0)}</text>'
            )
        below = _TOP + height * _PRODUCT + 20
        cells += f'<text x="{left + width * _PRODUCT / 2:g}" y="{below}">sum = {as_text(value)}</text>'
        return frame, cells, f"{' + '.join(terms)} = {as_text(value)}"


def _pixels(image: NDArray[np.generic]) -> str:
    """The image, white on black as on a screen, with its numbers."""
    pixels = np.asarray(image, float)
    cells = ""
    for (row, column), value in np.ndenumerate(pixels):
        x, y, grey = column * _PIXEL, _TOP + row * _PIXEL, round(255 * float(value) / (pixels.max() or 1))
        ink = "#000" if grey > 127 else "#fff"
        cells += (
            f'<rect x="{x}" y="{y}" width="{_PIXEL}" height="{_PIXEL}" fill="rgb({grey},{grey},{grey})" '
            f'stroke="#777" stroke-width="0.5"/>'
            f'<text x="{x + _PIXEL / 2:g}" y="{y + _PIXEL / 2:g}" style="fill: {ink}">{as_text(value)}</text>'
        )
    return cells


_STYLE = """
.sliding-kernel { max-width: 40rem; margin: 0 auto 1rem; }
.sliding-kernel svg { display: block; width: 100%; height: auto; overflow: visible; }
.sliding-kernel text { fill: currentColor; font-size: 17px; text-anchor: middle; dominant-baseline: central;
  pointer-events: none; }
.sliding-kernel .kernel-term { font-size: 15px; opacity: 0.85; }
.kernel-cell { fill: transparent; stroke: currentColor; stroke-opacity: 0.4; }
.kernel-for { fill: #d1495b; }
.kernel-against { fill: #2f7ebc; }
.kernel-none { fill: none; }
.kernel-frame { fill: none; stroke: #e08a1e; stroke-width: 3.5; }
.kernel-place { cursor: pointer; outline: none; }
.kernel-shown { visibility: hidden; pointer-events: none; }
.kernel-place:focus .kernel-shown, .kernel-place:hover .kernel-shown,
.sliding-kernel svg:not(:has(.kernel-place:hover, .kernel-place:focus)) .kernel-first .kernel-shown
  { visibility: visible; }
.sliding-kernel svg:has(.kernel-place:hover) .kernel-place:not(:hover) .kernel-shown { visibility: hidden; }
"""

_SCRIPT = """<script>
(() => {
  const steps = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]};
  const drawing = document.getElementById("NAME");
  drawing.addEventListener("keydown", (event) => {
    const place = event.target.closest(".kernel-place"), step = steps[event.key];
    if (!place || !step) return;
    event.preventDefault();
    event.stopPropagation();
    const row = Number(place.dataset.row) + step[0], column = Number(place.dataset.column) + step[1];
    const next = drawing.querySelector(`[data-row="${row}"][data-column="${column}"]`);
    if (!next) return;
    place.setAttribute("tabindex", "-1");
    next.setAttribute("tabindex", "0");
    next.focus();
  });
})();
</script>"""
