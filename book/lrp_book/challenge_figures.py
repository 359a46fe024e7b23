"""The figures of the six challenges, with labels at the lines."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from lrp_book.figures import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, RED
from lrp_book.line_labels import label_ends
from lrp_book.seeds import interval_of_mean
from lrp_book.small_networks import Judged

_COLOURS = (BLUE, RED, GREEN, ORANGE, PURPLE)
_DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))


def curves(ax: Axes, end: float, runs: Mapping[str, ArrayLike], *, first: float = 0.0, labels: bool = True) -> None:
    """Draws the mean of some runs, a band from the lowest to the highest, and a label at the end of each line.

    Args:
        ax: The axes, whose vertical limits are set.
        end: Where on the horizontal axis the last values are.
        runs: By the label, the values of shape (seeds, epochs + 1).
        first: Where the first values are.
        labels: Whether there are labels.
    """
    ends = []
    for (label, run), colour, dashes in zip(runs.items(), _COLOURS, _DASHES, strict=False):
        values = np.asarray(run)
        x = np.linspace(first, end, values.shape[1])
        ax.plot(x, values.mean(axis=0), color=colour, linestyle=dashes)
        ax.fill_between(x, values.min(axis=0), values.max(axis=0), alpha=0.18, color=colour, linewidth=0)
        ends.append((float(values[:, -1].mean()), label, colour))
    ax.set_xlim(0, end)
    if labels:
        label_ends(ax, ends)


def overfitting(fitted: Mapping[str, Judged], steps: int) -> Figure:
    """Draws loss and accuracy of runs that have the same number of steps."""
    figure, axes = plt.subplots(1, 2, figsize=(6.2, 2.8))
    axes[0].set(ylabel="cross-entropy", ylim=(0.2, 0.8))
    axes[1].set(ylabel="recognised (%)", ylim=(80, 95))
    curves(axes[0], steps, {name: run.loss for name, run in fitted.items()}, labels=False)
    curves(axes[1], steps, {name: run.recognised for name, run in fitted.items()})
    for ax in axes:
        ax.set(xlabel="steps", xticks=np.linspace(0, steps, 4))
    return figure


def learning_rates(losses: Mapping[str, ArrayLike], rates: ArrayLike, recognised: ArrayLike) -> Figure:
    """Draws the loss at some learning rates, and what is recognised in the end at all.

    Args:
        losses: By the rate, the losses of shape (seeds, epochs + 1).
        rates: All rates.
        recognised: Percentages of shape (rates, seeds).
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(6.2, 2.7))
    left.set(ylabel="cross-entropy", ylim=(0, 4.4))
    _over_epochs(left, losses)
    values = np.asarray(recognised)
    right.fill_between(np.asarray(rates), values.min(axis=1), values.max(axis=1), alpha=0.18, color=PURPLE, linewidth=0)
    right.plot(rates, values.mean(axis=1), "o-", color=PURPLE)
    right.set(xscale="log", xlabel="learning rate", ylabel="recognised (%)", ylim=(0, 100))
    right.set_xticks([1e-5, 1e-3, 1e-1])
    return figure


def dead_neurons(dead: Mapping[str, Sequence[ArrayLike]]) -> Figure:
    """Draws the percentage of dead neurons: in the first layer by the learning rate, in the second by the bias.

    Args:
        dead: By the name of the runs, percentages of shape (seeds, epochs + 1) for both hidden layers.
    """
    figure, axes = plt.subplots(1, 2, figsize=(6.2, 2.7), sharey=True)
    axes[0].set(ylabel="dead neurons (%)", ylim=(-2, 102))
    _over_epochs(axes[0], {f"$10^{{{exponent}}}$": dead[f"rate 1e{exponent}"][0] for exponent in (-3, -2, -1)})
    names = {"bias 0": "rate 1e-3", "bias −0.5": "bias -0.5", "bias −1": "bias -1.0"}
    _over_epochs(axes[1], {label: dead[name][1] for label, name in names.items()})
    return figure


def recognised(runs: Mapping[str, ArrayLike], label: str = "recognised (%)", first: int = 0) -> Figure:
    """Draws percentages over the epochs, from a first one."""
    figure, ax = plt.subplots(figsize=(6.2, 3.0))
    ax.set(ylabel=label, ylim=(0, 100))
    _over_epochs(ax, runs, first)
    return figure


def _over_epochs(ax: Axes, runs: Mapping[str, ArrayLike], first: int = 0) -> None:
    end = first + np.asarray(next(iter(runs.values()))).shape[1] - 1
    curves(ax, end, runs, first=first)
    ax.set(xlabel="epoch", xticks=np.linspace(0, end, 5 if end % 4 == 0 else 6))


def of_seeds(all_curves: ArrayLike, last: Mapping[str, ArrayLike]) -> Figure:
    """The runs of many seeds, and what they recognise in the end if only a part of them varies.

    Args:
        all_curves: What the runs in which all varies recognise, of shape (seeds, epochs + 1).
        last: By what varies, what the runs recognise in the end.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(6.2, 2.9))
    runs = np.asarray(all_curves)
    left.plot(np.arange(runs.shape[1]), runs.T, color=BLUE, linewidth=0.8, alpha=0.5)
    left.set(xlabel="epoch", xlim=(0, runs.shape[1] - 1), ylabel="recognised (%)", ylim=(75, 92))
    for row, (values, colour) in enumerate(zip(last.values(), _COLOURS, strict=False)):
        points = np.asarray(values)
        right.plot(points, row + np.linspace(-0.3, 0.3, len(points)), "o", markersize=3.5, alpha=0.7, color=colour)
        right.plot([points.mean()] * 2, [row - 0.4, row + 0.4], color=INK)
    right.set(xlabel="recognised (%)", ylim=(len(last) - 0.5, -0.5))
    right.set_yticks(range(len(last)), list(last))
    return figure


def of_maps(groups: Mapping[str, Mapping[str, ArrayLike]], chance: float) -> Figure:
    """What pairs of networks share of their most relevant pixels: the mean and its interval, and each pair.

    Args:
        groups: By the challenge, and by what is compared, the shares of shape (pairs,).
        chance: What they would share by chance.
    """
    rows = [
        (group, name, 100 * np.asarray(values)) for group, pairs in groups.items() for name, values in pairs.items()
    ]
    figure, ax = plt.subplots(figsize=(6.2, 0.28 * (len(rows) + len(groups)) + 0.7))
    height, ticks, names, colours = 0, [], [], dict(zip(groups, _COLOURS * 2, strict=False))
    for number, (group, name, values) in enumerate(rows):
        if number == 0 or rows[number - 1][0] != group:
            ax.text(0.0, height, group, transform=ax.get_yaxis_transform(), va="center", fontsize=9.5, weight="bold")
            height += 1
        ax.plot(values, np.full(len(values), height), "o", markersize=3, alpha=0.4, color=colours[group])
        ax.plot(interval_of_mean(values), [height] * 2, color=colours[group], linewidth=2.5)
        ax.plot(values.mean(), height, "D", markersize=5, color=colours[group])
        ticks.append(height)
        names.append(name)
        height += 1
    ax.axvline(100 * chance, color=MUTED, linestyle=":", linewidth=1.2)
    place: dict[str, Any] = {"transform": ax.get_xaxis_transform(), "ha": "center", "va": "bottom"}
    ax.text(100 * chance, 1.01, "by chance", color=MUTED, fontsize=9, **place)
    ax.set(xlim=(0, 102), ylim=(height - 0.4, -0.7), xlabel="most relevant pixels in common (%)")
    ax.set_yticks(ticks, names)
    ax.grid(axis="x", linewidth=0.5)
    return figure
