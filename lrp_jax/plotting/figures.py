"""Figures that show themselves, and the axes in them."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lrp_jax.core.arguments import kind_of
from lrp_jax.errors import InputError, import_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches that belongs to no pyplot session and shows itself in every notebook.

    Raises:
        MissingExtraError: If matplotlib is not installed.

    Example:
        >>> new_figure(2.0, 1.0)._repr_png_()[1:4]
        b'PNG'
    """
    figure = import_extra("matplotlib.figure", "plot").Figure(figsize=(width, height), layout="constrained")
    # IPython prefers what "%matplotlib inline" has registered, so that a figure is shown once.
    figure._repr_png_ = functools.partial(as_png, figure)
    return figure


def as_png(figure: Figure, dpi: float | None = None) -> bytes:
    """A figure as the content of a PNG file.

    Args:
        figure: The figure.
        dpi: Pixels for each inch; those of the figure if None.
    """
    file = io.BytesIO()
    figure.savefig(file, format="png", bbox_inches="tight", dpi="figure" if dpi is None else dpi)
    return file.getvalue()


def check_axes(ax: Any) -> None:
    """Refuses what nothing can be drawn into.

    Raises:
        InputError: If it is something else than axes of matplotlib.
    """
    if not isinstance(ax, import_extra("matplotlib.axes", "plot").Axes):
        raise InputError(f"ax must be axes of matplotlib, such as Figure().subplots(), but it is {kind_of(ax)}.")


def check_colormap(colormap: Any) -> None:
    """Refuses what does not name a colour map.

    Raises:
        InputError: If matplotlib does not know it.
    """
    try:
        import_extra("matplotlib", "plot").colormaps.get_cmap(colormap)
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(f"colormap must be the name of a colour map of matplotlib: {error}.") from error


def add_bar(
    figure: Any, drawn: Any, axes: Sequence[Axes], values: NDArray[Any], label: str = "relevance", aspect: float = 20
) -> None:
    """Adds a colour bar beside some axes, which ends in points if there are values beyond its colours.

    Args:
        figure: The figure, or a part of one.
        drawn: A map in the colours of the bar.
        axes: The axes.
        values: All that is drawn in them.
        label: The text beside the bar.
        aspect: The ratio of its height and width.
    """
    is_cut = np.abs(values).max() > drawn.get_clim()[1]
    figure.colorbar(drawn, ax=axes, label=label, pad=0.02, aspect=aspect, extend="both" if is_cut else "neither")


def only_a_frame(ax: Axes) -> None:
    """Removes the ticks of axes, and draws all four sides, which a style may leave out."""
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(True)
