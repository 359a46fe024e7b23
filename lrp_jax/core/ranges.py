"""Between which bounds every value must lie: interval arithmetic over numbers, dtypes and operations alone."""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np

Range: TypeAlias = tuple[float, float]

FREE: Range = (-math.inf, math.inf)

_KEEPS = frozenset(
    """
    broadcast_in_dim convert_element_type copy copy_p cummax cummin device_put dynamic_slice expand_dims gather
    layout_constraint name optimization_barrier pvary reduce_max reduce_min reduce_precision reduce_window_max
    reduce_window_min reshape reshard rev sharding_constraint slice sort split squeeze stop_gradient tile top_k
    transpose unstack
    """.split()
)
_UNITES = frozenset("concatenate dynamic_update_slice pad scatter select_n stack".split())
_SUMS = frozenset(
    "conv_general_dilated cumsum dot_general psum psum_invariant reduce_sum reduce_window_sum scatter-add".split()
)
_PRODUCTS = frozenset("cumprod reduce_prod".split())
_TRUTHS = frozenset("eq ge gt is_finite le lt ne not and or xor reduce_and reduce_or".split())
_NONDECREASING: dict[str, Callable[[Any], Any]] = {
    "asinh": np.arcsinh,
    "atan": np.arctan,
    "cbrt": np.cbrt,
    "ceil": np.ceil,
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "floor": np.floor,
    "log": np.log,
    "log1p": np.log1p,
    "round": np.round,
    "sign": np.sign,
    "sinh": np.sinh,
    "sqrt": np.sqrt,
    "tanh": np.tanh,
}
_SMALLEST = {"log": 0.0, "log1p": -1.0, "sqrt": 0.0}
_WITHIN: dict[str, Range] = {
    "cos": (-1.0, 1.0),
    "erf": (-1.0, 1.0),
    "erfc": (0.0, 2.0),
    "logistic": (0.0, 1.0),
    "sin": (-1.0, 1.0),
    "argmax": (0.0, math.inf),
    "argmin": (0.0, math.inf),
}


def range_of_dtype(dtype: Any) -> Range:
    """What every value of a dtype lies between.

    Example:
        >>> range_of_dtype(jnp.bool_), range_of_dtype(jnp.uint8), range_of_dtype(jnp.float32)
        ((0.0, 1.0), (0.0, inf), (-inf, inf))
    """
    if dtype == jnp.bool_:
        return 0.0, 1.0
    return (0.0, math.inf) if jnp.issubdtype(dtype, jnp.unsignedinteger) else FREE


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


def range_of_output(equation: Any, operands: Sequence[Range], *, is_square: bool = False) -> Range:
    """The range of an equation's outputs.

    Args:
        equation: The equation.
        operands: The ranges of its operands.
        is_square: Whether its two operands are one value, so that a product of them has no sign.

    Returns:
        The lower and the upper bound.

    Example:
        >>> import jax
        >>> (equation,) = jax.make_jaxpr(lambda x: x - 1.0)(2.0).eqns
        >>> range_of_output(equation, [(0.0, 4.0), (1.0, 1.0)])
        (-1.0, 3.0)
    """
    low, high = _range_of_output(equation, operands, is_square)
    dtype = equation.outvars[0].aval.dtype
    if jnp.issubdtype(dtype, jnp.integer) and not (jnp.iinfo(dtype).min <= low and high <= jnp.iinfo(dtype).max):
        return range_of_dtype(dtype)  # integers may overflow
    return (-math.inf if math.isnan(low) else low, math.inf if math.isnan(high) else high)


def _range_of_output(equation: Any, operands: Sequence[Range], is_square: bool) -> Range:
    name, params = equation.primitive.name, equation.params
    first = operands[0] if operands else FREE
    match name:
        case "add" | "add_any":
            return _add(*operands)
        case "sub":
            return _add(first, _negate(operands[1]))
        case "neg":
            return _negate(first)
        case "mul":
            return _power(first, 2) if is_square else _multiply(*operands)
        case "div":
            return _multiply(first, _invert(operands[1]))
        case "max":
            return max(first[0], operands[1][0]), max(first[1], operands[1][1])
        case "min":
            return min(first[0], operands[1][0]), min(first[1], operands[1][1])
        case "clamp":
            low, x, high = operands
            return max(min(x[0], high[0]), low[0]), min(max(x[1], low[1]), high[1])
        case "abs":
            return _absolute(first)
        case "square":
            return _power(first, 2)
        case "integer_pow":
            exponent = params["y"]
            return _power(first, exponent) if exponent >= 0 else _invert(_power(first, -exponent))
        case "pow":
            return (0.0, math.inf) if first[0] >= 0 else FREE
        case "rsqrt":
            return _invert(_monotone("sqrt", first))
        case "iota":
            return 0.0, float(max(params["shape"][params["dimension"]] - 1, 0))
    if name in _NONDECREASING:
        return _monotone(name, first)
    if name in _WITHIN:
        return _WITHIN[name]
    if name in _TRUTHS and equation.outvars[0].aval.dtype == jnp.bool_:
        return 0.0, 1.0
    if name in _SUMS:
        if (is_square and _is_sum_of_squares(equation)) or all(low >= 0 for low, _ in operands):
            return 0.0, math.inf
        return (-math.inf, 0.0) if len(operands) == 1 and first[1] <= 0 else FREE
    if name in _PRODUCTS:
        return (0.0, math.inf) if first[0] >= 0 else FREE
    if name == "gather" and params.get("fill_value") is not None:
        return min(first[0], float(params["fill_value"])), max(first[1], float(params["fill_value"]))
    if name in _KEEPS:
        return first
    if name in _UNITES:
        united = operands[1:] if name == "select_n" else operands[:2] if name == "dynamic_update_slice" else operands
        united = (operands[0], operands[2]) if name == "scatter" and len(operands) > 2 else united
        return min(low for low, _ in united), max(high for _, high in united)
    return FREE


def _is_sum_of_squares(equation: Any) -> bool:
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


def _add(a: Range, b: Range) -> Range:
    return a[0] + b[0], a[1] + b[1]


def _negate(a: Range) -> Range:
    return -a[1], -a[0]


def _absolute(a: Range) -> Range:
    smallest = 0.0 if a[0] <= 0 <= a[1] else min(abs(a[0]), abs(a[1]))
    return smallest, max(abs(a[0]), abs(a[1]))


def _multiply(a: Range, b: Range) -> Range:
    products = [0.0 if 0 in (p, q) else p * q for p in a for q in b]
    return min(products), max(products)


def _invert(a: Range) -> Range:
    low, high = a
    if low >= 0:
        return (1 / high if high else math.inf), (1 / low if low else math.inf)
    return _negate(_invert(_negate(a))) if high <= 0 else FREE


def _power(a: Range, exponent: int) -> Range:
    low, high = _absolute(a) if exponent % 2 == 0 else a
    with np.errstate(over="ignore"):
        return float(np.float64(low) ** exponent), float(np.float64(high) ** exponent)


def _monotone(name: str, a: Range) -> Range:
    smallest = _SMALLEST.get(name, -math.inf)
    with np.errstate(all="ignore"):
        low, high = (float(_NONDECREASING[name](np.float64(max(bound, smallest)))) for bound in a)
    return low, high
