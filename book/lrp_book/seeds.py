"""What a few runs that differ in their seed say: means with their errors, and how sure the spread is."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from lrp_book.numbers import with_decimals


def standard_error(values: ArrayLike) -> float:
    """The standard deviation of the mean of independent values.

    Example:
        >>> standard_error([1.0, 3.0])
        1.0
    """
    return float(stats.sem(np.asarray(values, float)))


def with_error(values: ArrayLike, decimals: int = 1) -> str:
    """The mean of some values and its standard error, as the book writes them.

    Example:
        >>> with_error([-1.0, -3.0])
        '−2.0 ± 1.0'
    """
    mean = float(np.mean(np.asarray(values, float)))
    return f"{with_decimals(mean, decimals)} ± {with_decimals(standard_error(values), decimals)}"


def interval_of_mean(values: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Where the mean lies with some confidence, if the values are normally distributed (Student's t).

    Example:
        >>> low, high = interval_of_mean([1.0, 2.0, 3.0])
        >>> round(low, 2), round(high, 2)
        (-0.48, 4.48)
    """
    values = np.asarray(values, float)
    low, high = stats.t.interval(level, len(values) - 1, values.mean(), standard_error(values))
    return float(low), float(high)


def interval_of_deviation(values: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Where the standard deviation lies with some confidence, if the values are normally distributed (chi-squared).

    Example:
        >>> low, high = interval_of_deviation([1.0, 2.0, 3.0])
        >>> round(low, 2), round(high, 2)
        (0.52, 6.28)
    """
    values = np.asarray(values, float)
    freedom = len(values) - 1
    squares = freedom * values.var(ddof=1)
    high, low = (float(np.sqrt(squares / stats.chi2.ppf(part, freedom))) for part in ((1 - level) / 2, (1 + level) / 2))
    return low, high


def chance_of_difference(differences: Sequence[float] | ArrayLike) -> float:
    """The p-value of paired differences: how often some as large would be found if their true mean were zero.

    Example:
        >>> round(chance_of_difference([1.0, 2.0, 3.0]), 3)
        0.074
    """
    return float(stats.ttest_1samp(np.asarray(differences, float), 0.0).pvalue)


def deviation_with_interval(values: ArrayLike) -> str:
    """The standard deviation of some values with its 95 % interval, as the book writes them.

    Example:
        >>> deviation_with_interval([1.0, 2.0, 3.0])
        '1.00 (0.52 to 6.28)'
    """
    low, high = interval_of_deviation(values)
    return f"{np.std(np.asarray(values, float), ddof=1):.2f} ({low:.2f} to {high:.2f})"
