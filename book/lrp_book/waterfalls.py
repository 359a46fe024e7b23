"""Ledgers as waterfalls: how the explained output becomes what arrives at the input, and what kept the rest."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lrp_book.figures import BLUE, GREEN, GREY, INK, MUTED, ORANGE, PURPLE
from lrp_book.numbers import as_text
from lrp_jax import Ledger
from lrp_jax.explain.ledger import LedgerRow

_LAYERS = ("dense", "conv", "ragged")
_CAUSES = {
    "biases": ("bias", ORANGE),
    "stabiliser": ("stabilizer", GREEN),
    "constants": ("constants", PURPLE),
    "not conserved": ("not_conserved", GREY),
}
_NEGLIGIBLE = 5e-4  # of the largest amount in the figure: such a bar would be thinner than its outline
_LANE = 0.2  # the height of a bar with its label, in inches


@dataclass(frozen=True)
class Stage:
    """What a group of layers and operations kept.

    Attributes:
        label: The group.
        kept: For each cause, how much it kept; less than nothing, if relevance grew.
    """

    label: str
    kept: Mapping[str, float]


def stages(account: Ledger, groups: Mapping[str, str] | None = None) -> list[Stage]:
    """What was kept on the way, group after group.

    Args:
        account: The ledger.
        groups: A regular expression for each group's label, which is looked for in the paths of the rows. A row that
            none of them matches, as an operation between two layers, belongs to the group above it. Without groups,
            every layer is a stage, and every operation that changed the sum.

    Returns:
        The stages from the output to the input.

    Example:
        >>> row = LedgerRow("blocks.1.conv", "conv", "Zero()", 8.0, 5.0, 2.0, 1.0, 0.0, 0.0, 1.0)
        >>> stages(Ledger(8.0, 5.0, (row,)), {"all blocks": "blocks"})[0].label
        'all blocks'
    """
    found: dict[str, dict[str, float]] = {}
    label = next(iter(groups)) if groups else ""
    for row in account.rows:
        kept = {cause: getattr(row, column) for cause, (column, _) in _CAUSES.items()}
        if groups:
            label = next((name for name, path in groups.items() if re.search(path, row.path)), label)
        elif row.kind in _LAYERS or any(abs(amount) > 1e-6 * abs(account.explained) for amount in kept.values()):
            label = _label_of(row)
        else:
            continue
        before = found.setdefault(label, dict.fromkeys(_CAUSES, 0.0))
        found[label] = {cause: before[cause] + kept[cause] for cause in _CAUSES}
    return [Stage(label, kept) for label, kept in found.items()]


def _label_of(row: LedgerRow) -> str:
    """A layer's path; of an operation, its name and the line where it stands."""
    return row.path if row.kind in _LAYERS else f"{row.kind}, {row.path.split(' ')[0]}"


def waterfall(account: Ledger, groups: Mapping[str, str] | None = None) -> Figure:
    """Draws a ledger as a waterfall: the explained output, what each stage kept, and what arrived at the input.

    Args:
        account: The ledger.
        groups: As for `stages`. A deep network has too many layers for one figure without them.

    Returns:
        A figure, as high as its bars need.

    Example:
        >>> row = LedgerRow("dense_0", "dense", "Zero()", 7.0, 5.0, 2.0, 0.0, 0.0, 0.0, 1.0)
        >>> [text.get_text() for text in waterfall(Ledger(7.0, 5.0, (row,))).axes[0].texts]
        ['7', 'biases 2', '5']
    """
    figure = Figure(layout="constrained")
    lanes = draw_waterfall(figure.subplots(), account, groups)
    figure.set_size_inches(6.2, _LANE * lanes + 0.55)
    return figure


def draw_waterfall(ax: Axes, account: Ledger, groups: Mapping[str, str] | None = None) -> int:
    """Draws a ledger as a waterfall into axes.

    Args:
        ax: Where to draw.
        account: The ledger.
        groups: As for `stages`.

    Returns:
        How many lanes of equal height it has.
    """
    found = stages(account, groups)
    ticks, level, lane = [(0.0, "explained")], account.explained, 1.0
    levels = [0.0, *_levels(account, found), account.inputs]
    smallest = _NEGLIGIBLE * max(map(abs, levels))
    _bar(ax, 0.0, 0.0, level, BLUE, as_text(float(level)))
    for stage in found:
        shown = {cause: amount for cause, amount in stage.kept.items() if abs(amount) > smallest}
        number = max(1, len(shown))
        ticks.append((lane + (number - 1) / 2, stage.label))
        for i, (cause, amount) in enumerate(shown.items()):
            _bar(ax, lane + i, level, level - amount, _CAUSES[cause][1], f"{cause} {as_text(float(amount))}")
            level -= amount
        if not shown:
            ax.plot([level, level], [lane - 0.5, lane + 0.5], color=MUTED, linewidth=0.8)
        lane += number
    _bar(ax, lane, 0.0, account.inputs, BLUE, as_text(float(account.inputs)))
    ticks.append((lane, "arrived"))
    _frame(ax, ticks, levels)
    return int(lane) + 1


def _levels(account: Ledger, found: Sequence[Stage]) -> list[float]:
    """The sum of relevance at the start and after each amount that was kept."""
    levels = [account.explained]
    for stage in found:
        for amount in stage.kept.values():
            levels.append(levels[-1] - amount)
    return levels


def _bar(ax: Axes, lane: float, start: float, end: float, colour: str, label: str) -> None:
    """A bar with its label to the right of it, and a line down to the bar that follows."""
    ax.barh(lane, end - start, left=start, height=0.78, color=colour, linewidth=0)
    ax.plot([end, end], [lane - 0.39, lane + 1.39], color=MUTED, linewidth=0.8)
    ax.annotate(label, (max(start, end), lane), (4, 0), textcoords="offset points", va="center", fontsize=9)


def _frame(ax: Axes, ticks: Sequence[tuple[float, str]], levels: Sequence[float]) -> None:
    """The names of the stages on the left, zero as a line, and room for the labels on the right."""
    ax.axvline(0, color=INK, linewidth=0.8)
    low, high = min(levels), max(levels)
    ax.set_xlim(low - 0.03 * (high - low), high + 0.3 * (high - low))
    last = ticks[-1][0]
    ax.set_ylim(last + 0.6, -0.6)
    ax.set_yticks(*zip(*ticks, strict=True))
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_xlabel("sum of relevance")
