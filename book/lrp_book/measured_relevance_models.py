"""What `make measure-relevance-models` measured: how well relevance models describe the relevance in some detectors."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrp_book import DATA
from lrp_book.bands import Band

_MEASURED = DATA.parent / "measured"


@dataclass(frozen=True)
class Training:
    """Detectors that were trained for the same number of steps.

    Attributes:
        steps: How many.
        date: When the last of them was measured, as YYYY-MM-DD.
        rows: What was measured of each detector.
    """

    steps: int
    date: str
    rows: Sequence[Mapping[str, Any]]

    @property
    def number(self) -> int:
        """How many detectors there are."""
        return len(self.rows)

    def values(self, *keys: str) -> list[Any]:
        """One entry of each detector, under these keys."""
        found = []
        for entry in self.rows:
            for key in keys:
                entry = entry[key]
            found.append(entry)
        return found

    def band(self, *keys: str) -> Band:
        """The mean over the detectors of one number, with the lowest and the highest."""
        return _band(self.values(*keys))

    def worst_on_the_way(self, layer: str, model: str) -> Band:
        """The largest error of a model on the way to the roots, in percent."""
        return _band([max(errors) for errors in self.values("way", layer, model)])


def trainings() -> tuple[Training, Training]:
    """The brief training and the long one.

    Example:
        >>> brief, long = trainings()
        >>> brief.steps < long.steps and long.band("accuracy").mean > brief.band("accuracy").mean
        True
    """
    file = json.loads((_MEASURED / "relevance_models.json").read_text())
    brief, long = sorted({row["steps"] for row in file["rows"]})
    first, second = (
        Training(steps, file["date"], [row for row in file["rows"] if row["steps"] == steps]) for steps in (brief, long)
    )
    return first, second


def maps() -> dict[str, NDArray[np.float32]]:
    """Three pairs, the output of the first detector after the long training, and its maps by the name of the model.

    Example:
        >>> sorted(maps())
        ['LRP-0', 'images', 'min-max', 'output', 'training-free']
    """
    with np.load(_MEASURED / "relevance_models.npz") as file:
        return dict(file)


def _band(values: Sequence[float]) -> Band:
    return Band(float(np.mean(values)), float(min(values)), float(max(values)))
