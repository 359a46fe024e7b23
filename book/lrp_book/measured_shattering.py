"""What `make measure-shattering` measured: how far gradients resemble themselves, and how alike two maps are."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from lrp_book import DATA, figures
from lrp_book.bands import Band
from lrp_book.numbers import with_decimals
from lrp_book.shattering import LINE, OnTheLine

_KEYS = ("part", "setting", "depth", "method")
_STYLES = {
    "feedforward": (figures.BLUE, "-"),
    "feedforward, weights centred": (figures.RED, "-"),
    "feedforward, sums centred": (figures.ORANGE, "-"),
    "residual": (figures.GREEN, "--"),
    "residual, sums normalised": (figures.PURPLE, "--"),
    "residual × 0.1, sums normalised": (figures.GREY, "--"),
}


@dataclass(frozen=True)
class Shattering:
    """Random networks on a line and under two rules, and pairs of classes of the network of the photographs.

    Attributes:
        networks: How many random networks there are of each setting and depth.
        rows: What was measured, by what was measured, the setting, the depth and the method, as far as there are any.
    """

    networks: int
    rows: Mapping[tuple[str | int, ...], Mapping[str, Any]]

    @property
    def depths(self) -> list[int]:
        """The numbers of hidden layers of the networks on the line."""
        return sorted({int(depth) for part, _, *others in self.rows if part == "lags" for depth in others})

    def lag(self, *setting: str | int, points: int = 10) -> Band:
        """How far a derivative resembles itself some points further on: the mean and its 95 % interval.

        Args:
            setting: The setting, and the depth of the networks.
            points: How many points further on.
        """
        row = self.rows["lags", *setting]
        return Band(*(row[end][points] for end in ("mean", "low", "high")))

    def cosine(self, *names: str | int, kind: str = "signed") -> float:
        """The mean cosine of two maps.

        Args:
            names: The part, the setting, the depth if there is one, and the method.
            kind: "signed", or "absolute" for the mean of the absolute values.
        """
        return float(self.rows[names][kind]["mean"])


def read() -> Shattering:
    """Reads what was measured.

    Example:
        >>> read().depths
        [1, 2, 4, 8, 16, 24, 50]
    """
    file = json.loads((DATA.parent / "measured" / "shattering.json").read_text())
    return Shattering(file["networks"], {tuple(row[key] for key in _KEYS if key in row): row for row in file["rows"]})


def texts_of_lags(measured: Shattering) -> dict[str, str]:
    """What the page on photographs says of the derivatives, by name: means with their 95 % intervals.

    Example:
        >>> texts_of_lags(read())["lag-plain-24"]
        '0.33 (0.27 to 0.39)'
    """
    names = ["plain", "weights", "sums", "residual", "normalised", "tenth"]
    found = {"lag-brown": with_decimals(measured.lag("brown noise").mean)}
    for name, setting in zip(names, _STYLES, strict=True):
        found |= {f"lag-{name}-{depth}": measured.lag(setting, depth).as_text() for depth in (1, 24, 50)}
        found[f"next-{name}"] = measured.lag(setting, 24, points=1).as_text()
    return found


def texts_of_cosines(measured: Shattering) -> dict[str, str]:
    """What the pages say of the cosines of two maps, by name."""
    found = {}
    network = "photographs", "EfficientNet-Lite0"
    methods = {"gradient": "gradient", "box": "EpsilonGammaBox", "flat": "EpsilonPlusFlat", "zero": "LRP-0"}
    for kind in ("signed", "absolute"):
        for name, method in methods.items():
            found[f"cosine-{name}-{kind}"] = with_decimals(measured.cosine(*network, method, kind=kind))
        for name, rule in {"zero": "LRP-0", "plus": "z⁺"}.items():
            for depth in (1, 4, 24):
                cosine = measured.cosine("outputs", "feedforward", depth, rule, kind=kind)
                found[f"random-{name}-{depth}-{kind}"] = with_decimals(cosine)
    signed = measured.rows["outputs", "feedforward", 24, "LRP-0"]["signed"]
    found["random-zero-24-interval"] = Band(*(signed[end] for end in ("mean", "low", "high"))).as_text()
    return found


def rows_of_cosines(measured: Shattering) -> list[list[str]]:
    """The rows of a table: for each network and method the two cosines, and how many are negative, in percent.

    Example:
        >>> rows_of_cosines(read())[0][:2]
        ['random, 1 hidden layer', 'LRP-0']
    """
    rows = []
    for (part, *names), row in measured.rows.items():
        if part == "lags" or names[0] == "feedforward, weights centred":
            continue
        depth = row.get("depth")
        network = f"random, {depth} hidden layer{'s' * (depth > 1)}" if depth else str(names[0])
        spread = [Band(*(row[kind][end] for end in ("mean", "least", "most"))) for kind in ("signed", "absolute")]
        rows.append([network, str(names[-1]), *(one.as_text() for one in spread), f"{100 * row['negative']:.0f}"])
    return rows


def draw(measured: Shattering, on_the_line: Mapping[str, OnTheLine], titles: Sequence[str]) -> Figure:
    """Two derivatives along the line, and how far such derivatives resemble themselves.

    Args:
        measured: What was measured of many networks.
        on_the_line: Some networks of two settings, by the names of these; the first network of each is drawn.
        titles: What the two settings are called.
    """
    figure = Figure(figsize=(6.2, 5.6))
    axes = figure.subplots(2, 2, height_ratios=[1, 1.6])
    for ax, (name, found), title in zip(axes[0], on_the_line.items(), titles, strict=True):
        slope = found.gradient[0]
        ax.plot(LINE, slope / jnp.abs(slope).max(), color=_STYLES[name][0], linewidth=1)
        ax.set(xlabel="$t$", title=title, ylim=(-1.1, 1.1))
    axes[0, 0].set_ylabel("derivative (relative)")
    depths = measured.depths
    for name, (colour, line) in _STYLES.items():
        row = measured.rows["lags", name, 24]
        axes[1, 0].plot(row["mean"], line, color=colour, label=name)
        axes[1, 0].fill_between(range(61), row["low"], row["high"], color=colour, alpha=0.2)
        lags = [measured.lag(name, depth) for depth in depths]
        mean, low, high = np.transpose([(one.mean, one.low, one.high) for one in lags])
        axes[1, 1].semilogx(depths, mean, line, color=colour, marker="o", markersize=3)
        axes[1, 1].fill_between(depths, low, high, color=colour, alpha=0.2)
    for noise in ("white noise", "brown noise"):
        axes[1, 0].plot(measured.rows["lags", noise]["mean"], ":", color=figures.INK, linewidth=1.2)
    axes[1, 0].set(xlabel="distance (points)", ylabel="autocorrelation", ylim=(-0.1, 1), title="24 hidden layers")
    axes[1, 1].set(xlabel="hidden layers", title="10 points apart", ylim=(-0.1, 1))
    axes[1, 1].set_xticks(depths, depths)
    axes[1, 1].minorticks_off()
    figure.legend(loc="outside lower center", ncols=2)
    return figure
