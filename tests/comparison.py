"""Comparisons of arrays to a part of the largest value that is expected."""

import numpy as np


def assert_close(actual, expected, tolerance=1e-9):
    """Fails unless all is within the tolerance times the largest expected value, or itself where all are zero."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    scale = np.abs(expected).max(initial=0) or 1.0
    if not np.abs(actual - expected).max(initial=0) <= tolerance * scale:  # also where something is not a number
        raise AssertionError(f"{np.ravel(actual)[:8]} instead of {np.ravel(expected)[:8]}")
