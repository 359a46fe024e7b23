"""Between which bounds every value must lie: interval arithmetic over numbers, dtypes and operations alone.

Which rule is that of which primitive stands in `lrp_jax.core.primitives`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np

Range: TypeAlias = tuple[float, float]
Bounds: TypeAlias = Callable[[Any, Sequence[Range], bool], Range | list[Range]]
"""A rule: the range of all outputs, or of each, as a function of the equation, the ranges of its operands, and whether
its two operands are one value, so that a product of them has no sign."""

FREE: Range = (-math.inf, math.inf)
NONNEGATIVE: Range = (0.0, math.inf)


def range_of_dtype(dtype: Any) -> Range:
    """What every value of a dtype lies between.

    Example:
        >>> range_of_dtype(jnp.bool_), range_of_dtype(jnp.uint8), range_of_dtype(jnp.float32)
        ((0.0, 1.0), (0.0, inf), (-inf, inf))
    """
    if dtype == jnp.bool_:
        return 0.0, 1.0
    return NONNEGATIVE if jnp.issubdtype(dtype, jnp.unsignedinteger) else FREE


def range_of_number(number: Any) -> Range:
    """The smallest and the largest entry of an array that stands in the program.

    Example:
        >>> range_of_number(np.array([2.0, -1.0]))
        (-1.0, 2.0)
    """
    array = np.asarray(number)
    if array.size == 0 or array.dtype.kind not in "biuf":
        return range_of_dtype(array.dtype)
    array = array.astype(np.float64)
    return FREE if np.isnan(array).any() else (float(array.min()), float(array.max()))


def ranges_of_outputs(rule: Bounds, equation: Any, operands: Sequence[Range], is_square: bool = False) -> list[Range]:
    """The ranges of an equation's outputs.

    Args:
        rule: That of its primitive.
        equation: The equation.
        operands: The ranges of its operands.
        is_square: Whether its two operands are one value.

    Returns:
        The lower and the upper bound of each output.

    Example:
        >>> import jax
        >>> (equation,) = jax.make_jaxpr(lambda x: x - 1.0)(2.0).eqns
        >>> ranges_of_outputs(of(subtract), equation, [(0.0, 4.0), (1.0, 1.0)])
        [(-1.0, 3.0)]
    """
    found = rule(equation, operands, is_square)
    each = found if isinstance(found, list) else [found] * len(equation.outvars)
    return [_within_dtype(bounds, variable.aval.dtype) for bounds, variable in zip(each, equation.outvars, strict=True)]


def _within_dtype(bounds: Range, dtype: Any) -> Range:
    low, high = bounds
    if dtype == jnp.bool_:
        return range_of_dtype(dtype)
    if jnp.issubdtype(dtype, jnp.integer) and not (jnp.iinfo(dtype).min <= low and high <= jnp.iinfo(dtype).max):
        return range_of_dtype(dtype)  # integers may overflow
    return (-math.inf if math.isnan(low) else low, math.inf if math.isnan(high) else high)


def free(equation: Any, operands: Sequence[Range], is_square: bool) -> Range:
    """Nothing is known but the dtype."""
    return FREE


def kept(equation: Any, operands: Sequence[Range], is_square: bool) -> list[Range]:
    """Each output holds what an operand holds."""
    return list(operands)


def first(equation: Any, operands: Sequence[Range], is_square: bool) -> Range:
    """All outputs hold what the first operand holds."""
    return operands[0]


def united(data: slice = slice(None)) -> Bounds:
    """The outputs hold what some operands hold."""

    def bounds(equation: Any, operands: Sequence[Range], is_square: bool) -> Range:
        lows, highs = zip(*operands[data], strict=True)
        return min(lows), max(highs)

    return bounds


def gathered(equation: Any, operands: Sequence[Range], is_square: bool) -> Range:
    """What the first operand holds, or what fills places that there are not."""
    (low, high), fill = operands[0], equation.params.get("fill_value")
    return (low, high) if fill is None else (min(low, float(fill)), max(high, float(fill)))


def largest(equation: Any, operands: Sequence[Range], is_square: bool) -> list[Range]:
    """The largest elements, and their places."""
    return [operands[0], places(equation, operands, is_square)]


def places(equation: Any, operands: Sequence[Range], is_square: bool) -> Range:
    """The places of elements of the first operand."""
    return 0.0, float(max(equation.invars[0].aval.size - 1, 0))


def counted(equation: Any, operands: Sequence[Range], is_square: bool) -> Range:
    """The places along a dimension."""
    return 0.0, float(max(equation.params["shape"][equation.params["dimension"]] - 1, 0))


def total(equation: Any, operands: Sequence[Range], is_square: bool) -> Range:
    """Sums of elements, or of products of elements."""
    if (is_square and _pairs_with_itself(equation)) or all(low >= 0 for low, _ in operands):
        return NONNEGATIVE
    return (-math.inf, 0.0) if len(operands) == 1 and operands[0][1] <= 0 else FREE


def summed(equation: Any, operands: Sequence[Range], is_square: bool) -> Range:
    """Sums of as many elements each."""
    number = equation.invars[0].aval.size / max(equation.outvars[0].aval.size, 1)
    return multiply(operands[0], (number, number))


def added(equation: Any, operands: Sequence[Range], is_square: bool) -> Range:
    """What was there and what is added to it, in some places."""
    (before, _, more) = operands
    lowest, highest = min(before[0], more[0]), max(before[1], more[1])
    return (0.0 if lowest >= 0 else -math.inf, 0.0 if highest <= 0 else math.inf)


def _pairs_with_itself(equation: Any) -> bool:
    """Whether a product of an array with itself pairs every element with itself."""
    if equation.primitive.name != "dot_general":
        return False
    (left, right), batch = equation.params["dimension_numbers"]
    paired = set(left) | set(batch[0])
    return (
        tuple(left) == tuple(right)
        and tuple(batch[0]) == tuple(batch[1])
        and len(paired) == equation.invars[0].aval.ndim
    )


def product(equation: Any, operands: Sequence[Range], is_square: bool) -> Range:
    """Products of two values."""
    return square(operands[0]) if is_square else multiply(*operands)


def integer_power(equation: Any, operands: Sequence[Range], is_square: bool) -> Range:
    """Powers with one exponent."""
    exponent = equation.params["y"]
    return power(operands[0], exponent) if exponent >= 0 else invert(power(operands[0], -exponent))


def of(compute: Callable[..., Range]) -> Bounds:
    """A function of ranges."""
    return lambda equation, operands, is_square: compute(*operands)


def within(low: float, high: float) -> Bounds:
    """Two numbers, whatever the operands are."""
    return lambda equation, operands, is_square: (low, high)


def rising(compute: Callable[[Any], Any], lowest: float = -math.inf) -> Bounds:
    """A function of one number that nowhere falls, and has values from some number on."""

    def bounds(low: float, high: float) -> Range:
        with np.errstate(all="ignore"):
            return float(compute(np.float64(max(low, lowest)))), float(compute(np.float64(max(high, lowest))))

    return of(lambda x: bounds(*x))


# Of numbers alone.


def add(a: Range, b: Range) -> Range:
    """A + b."""
    return a[0] + b[0], a[1] + b[1]


def subtract(a: Range, b: Range) -> Range:
    """A - b."""
    return add(a, negate(b))


def negate(a: Range) -> Range:
    """-a."""
    return -a[1], -a[0]


def absolute(a: Range) -> Range:
    """|a|."""
    smallest = 0.0 if a[0] <= 0 <= a[1] else min(abs(a[0]), abs(a[1]))
    return smallest, max(abs(a[0]), abs(a[1]))


def multiply(a: Range, b: Range) -> Range:
    """A b."""
    products = [0.0 if 0 in (p, q) else p * q for p in a for q in b]
    return min(products), max(products)


def divide(a: Range, b: Range) -> Range:
    """A / b."""
    return multiply(a, invert(b))


def invert(a: Range) -> Range:
    """1 / a."""
    low, high = a
    if low >= 0:
        return (1 / high if high else math.inf), (1 / low if low else math.inf)
    return negate(invert(negate(a))) if high <= 0 else FREE


def invert_root(a: Range) -> Range:
    """1 / sqrt(a)."""
    return invert((math.sqrt(max(a[0], 0.0)), math.sqrt(max(a[1], 0.0))))


def power(a: Range, exponent: int) -> Range:
    """A to a whole number."""
    low, high = absolute(a) if exponent % 2 == 0 else a
    with np.errstate(over="ignore"):
        return float(np.float64(low) ** exponent), float(np.float64(high) ** exponent)


def square(a: Range) -> Range:
    """A squared."""
    return power(a, 2)


def keep_sign(a: Range, *others: Range) -> Range:
    """Powers with other exponents, and products of the elements of an array."""
    return NONNEGATIVE if a[0] >= 0 else FREE


def maximum(a: Range, b: Range) -> Range:
    """max(a, b)."""
    return max(a[0], b[0]), max(a[1], b[1])


def minimum(a: Range, b: Range) -> Range:
    """min(a, b)."""
    return min(a[0], b[0]), min(a[1], b[1])


def clamp(low: Range, a: Range, high: Range) -> Range:
    """min(max(a, low), high)."""
    return max(min(a[0], high[0]), low[0]), min(max(a[1], low[1]), high[1])
