"""Labels at the ends of lines, in place of a legend."""

from collections.abc import Sequence

from matplotlib.axes import Axes

_APART = 0.09  # of the height of the axes, between two labels


def label_ends(ax: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Writes labels to the right of the axes, as close to the ends of their lines as there is room.

    Args:
        ax: The axes, whose vertical limits are set.
        ends: For each line the height of its end, its label and its colour.
    """
    low, high = ax.get_ylim()
    ordered = sorted(ends)
    heights = [(value - low) / (high - low) for value, _, _ in ordered]
    for number in range(1, len(heights)):
        heights[number] = max(heights[number], heights[number - 1] + _APART)
    heights[-1] = min(heights[-1], 1.0)
    for number in range(len(heights) - 2, -1, -1):
        heights[number] = min(heights[number], heights[number + 1] - _APART)
    for height, (_, text, colour) in zip(heights, ordered, strict=True):
        ax.text(1.03, height, text, color=colour, transform=ax.transAxes, va="center", fontsize=9)
