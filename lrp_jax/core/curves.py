"""The curves of functions of one number: which of them fall, which are even, which are gates."""

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from lrp_jax.core.formulas import POSITIVE, Formula
from lrp_jax.core.ranges import Range

_WIDE = np.concatenate([-np.geomspace(1e-2, 1e12, 57)[::-1], np.geomspace(1e-2, 1e12, 57)])  # softsign is level late
_AT_ZERO = np.array([-1e-9, 0.0, 1e-9])  # as a step may be zero there alone, from one side
_OVERFLOW = 1e2  # a number from which exp, or what is made of it, may be infinite
Values: TypeAlias = Callable[[np.ndarray], np.ndarray]


def with_positive_sign(formula: Formula, divides: bool) -> Values:
    """A function or its reciprocal, with a sign in front of all of it left out."""
    sign = -1 if formula(np.ones(1))[0] < 0 else 1

    def values(u: np.ndarray) -> np.ndarray:
        found = formula(u)
        with np.errstate(all="ignore"):
            return sign / found if divides else sign * found

    return values


def falls(values: Values) -> bool:
    """Whether a function is positive and falls, on positive numbers."""
    found = values(POSITIVE)
    if not np.all(np.isfinite(found)) or not np.all(found >= 0) or found[len(found) // 2] == 0:
        return False
    return bool(np.all(np.diff(found) <= 0) and found[-1] < found[0])


def needs_positive(values: Values) -> bool:
    """Whether a function has no values on negative numbers, or the same for all."""
    found = values(-POSITIVE)
    return bool(np.all(np.isnan(found))) or is_constant(found)


def is_even(values: Values) -> bool:
    """Whether a function is the same for u and -u."""
    return bool(np.allclose(values(POSITIVE), values(-POSITIVE), rtol=1e-9, atol=0))


def is_constant(found: np.ndarray) -> bool:
    """Whether a function has the same finite value everywhere, up to rounding."""
    return bool(np.all(np.isfinite(found))) and bool(np.ptp(found) <= 1e-9 * np.abs(found).max())


def is_gate(values: Values) -> bool:
    """Whether a function is bounded, nowhere negative and not zero at zero."""
    found, at_zero = values(_WIDE), values(_AT_ZERO).max()
    found = found[np.isfinite(found) | (np.abs(_WIDE) < _OVERFLOW)]  # exp(u) / (1 + exp(u)) is sigmoid
    if not (np.all(np.isfinite(found)) and np.all(found >= 0) and np.isfinite(at_zero)):
        return False
    size = found.max()
    is_level = _is_level(found) and _is_level(found[::-1])
    return bool(is_level and at_zero > 1e-6 * size and np.ptp(found) > 1e-6 * size)


def is_gate_within(values: Values, bounds: Range) -> bool:
    """Whether a function is bounded and nowhere negative between bounds, and not zero on half of the way."""
    low, high = bounds
    is_short = math.isfinite(high - low)
    found = values(np.linspace(low, high, 33) if is_short else _WIDE[(low <= _WIDE) & (high >= _WIDE)])
    if not (found.size and np.all(np.isfinite(found)) and np.all(found >= 0)):
        return False
    is_level = (math.isfinite(low) or _is_level(found)) and (math.isfinite(high) or _is_level(found[::-1]))
    return bool(is_level and np.median(found) > 1e-6 * found.max())


def _is_level(found: np.ndarray) -> bool:
    """Whether the first values, those far out, are the same."""
    return bool(abs(found[0] - found[min(5, len(found) - 1)]) <= 1e-6 * found.max())
