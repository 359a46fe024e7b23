"""Numbers of a run for the text of a page."""

from collections.abc import Mapping

import numpy as np
from myst_nb import glue
from numpy.typing import ArrayLike

from lrp_book.seeds import standard_error


def note(numbers: Mapping[str, ArrayLike]) -> None:
    """Notes numbers for the text: those of `numbers_of`, by their names."""
    for name, number in numbers_of(numbers).items():
        glue(name, number, display=False)


def numbers_of(values: Mapping[str, ArrayLike]) -> dict[str, float]:
    """The numbers that a text may name.

    Args:
        values: Numbers, or several values, one for each seed. Arrays of more axes are left out.

    Returns:
        A number under its name. Of several values, the mean under the name itself, the standard error under "NAME-se",
        and the standard deviation of a single one under "NAME-sd".

    Example:
        >>> numbers_of({"found": [1.0, 3.0], "images": 5})
        {'found': 2.0, 'found-se': 1.0, 'found-sd': 1.4142135623730951, 'images': 5}
    """
    found: dict[str, float] = {}
    for name, value in values.items():
        array = np.asarray(value)
        if array.ndim == 0:
            found[name] = array.item()
        elif array.ndim == 1:
            found[name] = float(np.mean(array))
            found[f"{name}-se"] = standard_error(array)
            found[f"{name}-sd"] = float(np.std(array, ddof=1))
    return found
