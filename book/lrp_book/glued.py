"""Numbers of a run for the text of a page."""

from collections.abc import Mapping

import numpy as np
from myst_nb import glue
from numpy.typing import ArrayLike

from lrp_book.seeds import standard_error


def note(numbers: Mapping[str, ArrayLike]) -> None:
    """Glues numbers for the text.

    Of several values, one for each seed, it is the mean under the name itself, the standard error under "NAME-se", and
    the standard deviation of a single one under "NAME-sd". Arrays of more axes are left out.
    """
    for name, values in numbers.items():
        if np.ndim(np.asarray(values)) == 0:
            glue(name, np.asarray(values).item(), display=False)
        elif np.ndim(np.asarray(values)) == 1:
            glue(name, float(np.mean(np.asarray(values))), display=False)
            glue(f"{name}-se", standard_error(values), display=False)
            glue(f"{name}-sd", float(np.std(np.asarray(values), ddof=1)), display=False)
