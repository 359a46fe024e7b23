"""A photograph and its relevance in one place: the reader moves the line between the two, and paper shows both."""

import base64
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lrp_book.figures import for_dark_pages
from lrp_jax.plotting import COLORMAP

_LEVELS = 64  # of colour: more cannot be told apart, and the front page has to be light


@dataclass(frozen=True)
class Panel:
    """A photograph with its map.

    Attributes:
        title: What stands above it.
        photograph: Colours from 0 to 1, of shape (height, width, 3).
        relevance: The map, of shape (height, width).
        limit: The absolute relevance at and beyond which the colours are strongest.
        described: What the photograph shows, and where the map is red and blue, for those who cannot see them.
    """

    title: str
    photograph: NDArray[np.float32] = field(repr=False)
    relevance: NDArray[np.float32] = field(repr=False)
    limit: float
    described: tuple[str, str]


@dataclass(frozen=True)
class Comparison:
    """Panels side by side, on a phone below each other. What a panel shows left of its line is the photograph.

    Attributes:
        panels: The panels.
        line: Where the line is at first, in percent of the width.
        colours: What blue and what red stand for.

    Example:
        >>> panel = Panel("grey", np.full((2, 2, 3), 0.5), np.eye(2), 1.0, ("A grey square.", "A red diagonal."))
        >>> shown = Comparison([panel])._repr_html_()
        >>> shown.count('<input type="range"'), shown.count("<img")
        (1, 3)
    """

    panels: Sequence[Panel]
    line: int = 50
    colours: tuple[str, str] = ("against the class", "for the class")

    def _repr_html_(self) -> str:
        light, dark = palettes(_LEVELS + 1)
        bars = _bar("comparison-light", light) + _bar("comparison-dark", dark)
        blue, red = map(html.escape, self.colours)
        scale = f"<span>−1, {blue}</span><span>0</span><span>1, {red}</span>"
        panels = "".join(_panel(panel, self.line, light, dark) for panel in self.panels)
        return (
            f'<style>{_STYLE}</style><div class="comparison"><div class="comparison-panels">{panels}</div>'
            f'{bars}<div class="comparison-scale">{scale}</div></div>'
        )


def _panel(panel: Panel, line: int, light: NDArray[np.uint8], dark: NDArray[np.uint8]) -> str:
    photograph = Image.fromarray(np.uint8(np.round(255 * np.clip(panel.photograph, 0, 1))))
    of_photograph, of_map = (html.escape(text, quote=True) for text in panel.described)
    title = html.escape(panel.title, quote=True)
    size = f'width="{photograph.width}" height="{photograph.height}"'
    slide = "this.parentNode.style.setProperty('--line', this.value + '%')"
    return (
        f'<div class="comparison-panel"><div class="comparison-title">{title}</div>'
        f'<div class="comparison-pictures" style="--line: {line}%">'
        f'<img {size} class="comparison-photograph" alt="{of_photograph}" src="{_jpeg(photograph, 88)}">'
        f'<div class="comparison-map">'
        f'<div class="comparison-pale" style="background-image: url({_jpeg(photograph.convert("L"), 70)})"></div>'
        f'<img {size} class="comparison-light" alt="{of_map}" src="{_png(panel, light)}">'
        f'<img {size} class="comparison-dark" alt="{of_map}" src="{_png(panel, dark)}"></div>'
        f'<input type="range" min="0" max="100" value="{line}" oninput="{slide}" '
        f'aria-label="{title}: from the map alone, 0, to the photograph alone, 100"></div></div>'
    )


def palettes(levels: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The colours from negative to positive relevance on light and on dark pages, each of shape (levels, 3).

    Example:
        >>> light, dark = palettes(3)
        >>> int(light[1].min()) > 240, int(dark[1].max()) < 32
        (True, True)
    """
    light = mpl.colormaps[COLORMAP](np.linspace(0, 1, levels), bytes=True)[:, :3]
    strip = _data("png", Image.fromarray(light[None]))
    found = re.search(r'base64,([^"]+)', for_dark_pages(f'<svg ><image href="{strip}"/></svg>'))
    assert found is not None
    dark = Image.open(io.BytesIO(base64.b64decode(found[1]))).convert("RGB")
    return light, np.asarray(dark)[0]


def _bar(mode: str, palette: NDArray[np.uint8]) -> str:
    colours = ", ".join("#" + bytes(colour.tolist()).hex() for colour in palette[:: _LEVELS // 16])
    return f'<div class="comparison-bar {mode}" style="background: linear-gradient(to right, {colours})"></div>'


def _png(panel: Panel, palette: NDArray[np.uint8]) -> str:
    """The map with a colour for each level."""
    levels = np.round((np.clip(panel.relevance / panel.limit, -1, 1) + 1) / 2 * _LEVELS)
    image = Image.fromarray(levels.astype(np.uint8), mode="P")
    image.putpalette(palette.tobytes())
    return _data("png", image)


def _jpeg(image: Image.Image, quality: int) -> str:
    return _data("jpeg", image, quality=quality, optimize=True)


def _data(kind: str, image: Image.Image, **options: int | bool) -> str:
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


_STYLE = """
.comparison { container-type: inline-size; margin: 0 auto 0.5rem; max-width: 48rem; }
.comparison-panels { display: flex; flex-wrap: wrap; gap: 1rem; justify-content: space-between; }
.comparison-panel { flex: 1 1 100%; }
.comparison-title { font-weight: 600; margin-bottom: 0.25rem; text-align: center; }
.comparison-pictures { display: grid; position: relative; }
.comparison-pictures > * { grid-area: 1 / 1; }
.comparison-map { display: grid; isolation: isolate; }
.comparison-map > * { grid-area: 1 / 1; }
.comparison img { background: none !important; border-radius: 0 !important; display: block; height: auto !important;
  margin: 0 !important; max-width: none; padding: 0 !important; width: 100%; }
.comparison-pale { background-size: 100% 100%; opacity: 0.4; }
.comparison img.comparison-light { image-rendering: pixelated; mix-blend-mode: multiply; }
.comparison img.comparison-dark { image-rendering: pixelated; mix-blend-mode: screen; }
.comparison-bar { height: 0.6rem; margin-top: 0.75rem; }
.comparison-scale { display: flex; font-size: 0.875rem; }
.comparison-scale span { flex: 1 1 0; text-align: left; }
.comparison-scale span:nth-child(2) { text-align: center; }
.comparison-scale span:nth-child(3) { text-align: right; }
.comparison .comparison-dark, html[data-theme="dark"] .comparison .comparison-light,
body[data-jp-theme-light="false"] .comparison .comparison-light { display: none; }
html[data-theme="dark"] .comparison .comparison-dark,
body[data-jp-theme-light="false"] .comparison .comparison-dark { display: block; }
html[data-theme="dark"] .comparison-pale { opacity: 0.25; }
.comparison input { cursor: ew-resize; height: 100%; margin: 0; opacity: 0; touch-action: pan-y; width: 100%;
  z-index: 2; }
@media screen {
  .comparison-map { background: var(--pst-color-background, var(--jp-layout-color0, #fff));
    clip-path: inset(0 0 0 var(--line)); }
  .comparison-pictures::after { border-left: 2px solid #fff; box-shadow: -1px 0 #24292f, 1px 0 #24292f; content: "";
    height: 100%; left: var(--line); margin-left: -1px; position: absolute; top: 0; }
  .comparison-pictures::before { background: #fff; border: 2px solid #24292f; border-radius: 1rem; color: #24292f;
    content: "\\2194"; font: 700 1.1rem/1.75rem sans-serif; height: 1.75rem; left: var(--line); position: absolute;
    text-align: center; top: 50%; transform: translate(-50%, -50%); width: 1.75rem; box-sizing: content-box;
    z-index: 1; }
  .comparison-pictures:has(:focus-visible) { outline: 3px solid #e08a1e; outline-offset: 2px; }
}
@container (min-width: 480px) {
  .comparison-panel { flex: 1 1 25%; }
}
@container (min-width: 704px) {
  .comparison-panel { flex: 0 0 224px; }
}
@media print {
  .comparison input { display: none; }
  .comparison-panels { flex-wrap: nowrap; }
  .comparison-panel { flex: 1 1 0; }
  .comparison-pictures { gap: 0.5rem; }
  .comparison-map { grid-area: 2 / 1; }
  .comparison, .comparison * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
