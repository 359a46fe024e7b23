"""One style for all figures of the book, and each of them in two versions: for light pages and for dark ones."""

import base64
import io
import re
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from IPython import get_ipython
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image

INK = "#24292f"
MUTED = "#6a737d"
GRID = "#d8dee4"
PAPER = "#ffffff"
RED, BLUE, GREEN, ORANGE, PURPLE, GREY = "#d1495b", "#2f7ebc", "#2a9d6f", "#e08a1e", "#9467bd", "#8a9199"

DARK = {INK: "#e6e8ea", MUTED: "#a4acb5", GRID: "#3b4148", PAPER: "#121212"}
"""What becomes of the colours of lines, texts and grounds on a dark page; others, but greys, can be read on both."""

STYLE: dict[Any, Any] = {
    "figure.figsize": (6.2, 3.2),
    "figure.facecolor": PAPER,
    "figure.constrained_layout.use": True,
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.labelsize": 9.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "patch.linewidth": 0.8,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": PAPER,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "patch.edgecolor": INK,
    "axes.prop_cycle": cycler(color=[BLUE, RED, GREEN, ORANGE, PURPLE, GREY]),
    "image.interpolation": "none",
    "svg.fonttype": "path",
    "svg.hashsalt": "lrp_jax",
}


def use() -> None:
    """Lets this notebook draw in the style of the book, and show its figures as SVG."""
    mpl.rcParams.update(STYLE)
    shell = get_ipython()
    if shell is not None:
        shell.run_line_magic("matplotlib", "inline")
        shell.run_line_magic("config", "InlineBackend.figure_formats = ['svg']")
        shell.display_formatter.formatters["image/svg+xml"].for_type(Figure, as_svg)


def as_svg(figure: Figure) -> str:
    """A figure as SVG, the same bytes each time, with images pixel by pixel.

    Example:
        >>> figure = Figure()
        >>> as_svg(figure) == as_svg(figure)
        True
    """
    for image in figure.findobj(AxesImage):
        if image.get_interpolation() == "nearest":  # which would be sampled anew
            image.set_interpolation("none")
    file = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(file, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def for_dark_pages(svg: str) -> str:
    """The dark version of a figure: lines and texts are light, the middle of diverging colours is the page's ground.

    Args:
        svg: A figure as `as_svg` writes it.

    Returns:
        The same with other colours. Photographs and whatever else is not drawn with `RdBu_r` stays as it is.

    Example:
        >>> for_dark_pages('<path style="stroke: #24292f"/>')
        '<path style="stroke: #e6e8ea"/>'
    """
    recoloured = re.sub(r"#[0-9a-f]{6}\b", lambda found: _dark_colour(found[0]), svg)
    recoloured = recoloured.replace("<svg ", f'<svg fill="{DARK[INK]}" ', 1)  # of what is black, which SVG does not say
    return re.sub(r"(data:image/png;base64,)([^\"]+)", lambda found: found[1] + _dark_image(found[2]), recoloured)


def _dark_colour(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    if colour in DARK or not red == green == blue:
        return DARK.get(colour, colour)
    ink, paper = (np.array(mpl.colors.to_rgb(DARK[one])) for one in (INK, PAPER))
    return mpl.colors.to_hex(ink + red * (paper - ink))


def _dark_image(encoded: str) -> str:
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGBA"))
    colours, places = np.unique(pixels.reshape(-1, 4), axis=0, return_inverse=True)
    if len(colours) > _LARGEST_PALETTE:
        return encoded
    light = mpl.colormaps["RdBu_r"](np.arange(256), bytes=True)
    distances = np.abs(colours[:, None].astype(int) - light).max(-1)
    if distances.min(-1).max() > _TOLERANCE:
        return encoded
    file = io.BytesIO()
    dark = _DARK_DIVERGING(np.arange(256), bytes=True)
    Image.fromarray(dark[distances.argmin(-1)][places].reshape(pixels.shape)).save(file, format="png")
    return base64.b64encode(file.getvalue()).decode()


_LARGEST_PALETTE = 2000  # colours; a map has 256, a colour bar a few between them, a photograph more
_TOLERANCE = 8  # of 255, for the edges within a colour bar
_DARK_DIVERGING = mpl.colors.LinearSegmentedColormap.from_list(
    "relevance on a dark page",
    [
        *[(0.0, "#d6ebfd"), (0.08, "#93c9f6"), (0.2, "#4796d6"), (0.35, "#27628f")],
        (0.5, DARK[PAPER]),
        *[(0.65, "#8f322c"), (0.8, "#d9574c"), (0.92, "#ff9f90"), (1.0, "#ffd9d1")],
    ],
)
