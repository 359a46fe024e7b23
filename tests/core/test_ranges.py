"""Between which bounds values lie: never too narrow, and for what has exact bounds never too wide.

Operands run through intervals, their ends included. What the operation makes of them, computed with NumPy, has to lie
within the bounds that are derived for it; its smallest and its largest value are the bounds where these are exact.
"""

import inspect
import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from tracing import equation_of

from lrp_jax.core.primitives import erf, logistic, named
from lrp_jax.core.ranges import range_of_dtype, range_of_number, ranges_of_outputs

pytestmark = pytest.mark.usefixtures("float64")

INF = math.inf
FREE, NONNEGATIVE, NONPOSITIVE = (-INF, INF), (0.0, INF), (-INF, 0.0)
BOUNDED = [(-3.0, -1.0), (-2.0, 0.0), (-3.0, 2.0), (0.0, 0.0), (0.0, 3.0), (1.0, 4.0), (2.0, 2.0), (0.25, 0.5)]
UNBOUNDED = [FREE, NONNEGATIVE, NONPOSITIVE, (-INF, -2.0), (3.0, INF)]

# Operation, the same for NumPy, and the lowest number for which it has values.
EXACT = {
    "abs": (jnp.abs, np.abs, -INF),
    "neg": (jnp.negative, np.negative, -INF),
    "square": (jnp.square, np.square, -INF),
    "cube": (lambda x: lax.integer_pow(x, 3), lambda x: x**3, -INF),
    "fourth power": (lambda x: lax.integer_pow(x, 4), lambda x: x**4, -INF),
    "reciprocal": (lambda x: lax.integer_pow(x, -1), lambda x: 1 / x, None),
    "reciprocal of a square": (lambda x: lax.integer_pow(x, -2), lambda x: x**-2.0, None),
    "sqrt": (jnp.sqrt, np.sqrt, 0.0),
    "rsqrt": (lax.rsqrt, lambda x: 1 / np.sqrt(x), 0.0),
    "exp": (jnp.exp, np.exp, -INF),
    "log": (jnp.log, np.log, 0.0),
    "log1p": (jnp.log1p, np.log1p, -1.0),
    "tanh": (jnp.tanh, np.tanh, -INF),
    "floor": (jnp.floor, np.floor, -INF),
    "sign": (jnp.sign, np.sign, -INF),
    "add": (lax.add, np.add, -INF),
    "sub": (lax.sub, np.subtract, -INF),
    "mul": (lax.mul, np.multiply, -INF),
    "div": (lax.div, np.divide, None),
    "max": (lax.max, np.maximum, -INF),
    "min": (lax.min, np.minimum, -INF),
    "clamp": (lambda x, a, b: lax.clamp(a, x, b), lambda x, a, b: np.minimum(np.maximum(x, a), b), -INF),
}
FIXED = {
    "sin": (jnp.sin, np.sin, (-1.0, 1.0)),
    "cos": (jnp.cos, np.cos, (-1.0, 1.0)),
    "erf": (lax.erf, erf, (-1.0, 1.0)),
    "erfc": (lax.erfc, lambda x: 1 - erf(x), (0.0, 2.0)),
    "logistic": (lax.logistic, logistic, (0.0, 1.0)),
    "pow": (lambda x: lax.pow(x, 2.5), lambda x: np.power(x, 2.5), None),
}


def derived(equation, operands, is_square=False):
    """The bounds of all outputs, as they are derived."""
    return ranges_of_outputs(named(equation.primitive.name).bounds, equation, operands, is_square)


def points(bounds):
    """Numbers in an interval, from end to end; 1e3 stands for infinity."""
    low, high = np.clip(bounds, -1e3, 1e3)
    inside = np.linspace(low, high, 9)
    return np.unique([*inside, *([0.0] if low <= 0 <= high else []), *np.clip([-1e-3, 1e-3], low, high)])


def values(compute, operands):
    """What an operation makes of all numbers in intervals, where it has a value."""
    grid = np.meshgrid(*map(points, operands), indexing="ij")
    with np.errstate(all="ignore"):
        found = compute(*grid)
    return found[~np.isnan(found)]


def number_of_operands(compute):
    return getattr(compute, "nin", None) or len(inspect.signature(compute).parameters)


def cases(compute, intervals):
    number = number_of_operands(compute)
    some = intervals if number < 3 else intervals[::2]
    for operands in itertools.product(some, repeat=number):
        if number < 3 or (operands[1][0] <= operands[2][0] and operands[1][1] <= operands[2][1]):
            yield operands


@pytest.mark.parametrize("name", EXACT)
def test_bounds_of_a_function_are_those_of_its_values(name):
    operation, compute, lowest = EXACT[name]
    number = number_of_operands(compute)
    equation = equation_of(operation, *[1.0] * number)
    in_order = (lambda x, a, b: (a, x, b)) if name == "clamp" else lambda *operands: operands
    for operands in cases(compute, BOUNDED):
        divisor = operands[-1] if name == "div" else operands[0]
        if (lowest is None and divisor[0] <= 0 <= divisor[1]) or (lowest is not None and operands[0][0] < lowest):
            continue  # these have no bounds, or no values
        found = values(compute, operands)
        if found.size:
            (bounds,) = derived(equation, in_order(*operands))
            assert bounds == pytest.approx((found.min(), found.max()), rel=1e-9, abs=1e-12), operands


@pytest.mark.parametrize("name", [*EXACT, *FIXED])
def test_no_value_is_outside_of_the_bounds(name):
    operation, compute, _ = {**EXACT, **FIXED}[name]
    number = number_of_operands(compute)
    equation = equation_of(operation, *[1.0] * number)
    in_order = (lambda x, a, b: (a, x, b)) if name == "clamp" else lambda *operands: operands
    for operands in cases(compute, [*UNBOUNDED, *BOUNDED]):
        found = values(compute, operands)
        found = found[np.isfinite(found)]  # at a pole the sign is that of a zero
        constants = [] if name != "pow" else [(2.5, 2.5)]
        ((low, high),) = derived(equation, [*in_order(*operands), *constants])
        assert not math.isnan(low), operands
        assert not math.isnan(high), operands
        tolerance = 1e-12 * (1 + np.abs(found))
        assert np.all((found >= low - tolerance) & (found <= high + tolerance)), operands


@pytest.mark.parametrize("name", FIXED)
def test_bounds_of_what_is_bounded(name):
    operation, _, expected = FIXED[name]
    constants = [] if name != "pow" else [(2.5, 2.5)]
    for operand in (FREE, (1.0, 2.0)):
        (found,) = derived(equation_of(operation, 1.0), [operand, *constants])
        assert found == (expected or (FREE if operand == FREE else NONNEGATIVE))


@pytest.mark.parametrize(("sign", "expected"), [(1, NONNEGATIVE), (-1, NONPOSITIVE), (0, FREE)])
def test_what_divides_may_be_zero(sign, expected):
    # 1 / x has no bound near zero, and none at all where x has either sign.
    operand = {1: (0.0, 2.0), -1: (-2.0, 0.0), 0: (-1.0, 2.0)}[sign]
    half = {1: (0.5, INF), -1: (-INF, -0.5), 0: FREE}[sign]
    assert derived(equation_of(lambda x: lax.integer_pow(x, -1), 1.0), [operand]) == [half]
    assert derived(equation_of(lax.div, 1.0, 1.0), [(0.0, INF), operand]) == [expected]
    assert derived(equation_of(lax.rsqrt, 1.0), [(0.0, 4.0)]) == [(0.5, INF)]
    assert derived(equation_of(lax.rsqrt, 1.0), [(-1.0, 4.0)]) == [(0.5, INF)]


def test_a_product_of_a_value_with_itself_is_a_square():
    equation = equation_of(lax.mul, 1.0, 1.0)
    assert derived(equation, [(-2.0, 3.0)] * 2, is_square=True) == [(0.0, 9.0)]
    assert derived(equation, [(-2.0, 3.0)] * 2) == [(-6.0, 9.0)]


@pytest.mark.parametrize(
    ("subscripts", "is_of_squares"),
    [
        ("ij,ij->", True),
        ("ij,ij->i", True),
        ("ij,ij->j", True),
        ("ij,kj->ik", False),
        ("ij,ji->", False),
        ("ij,jk->ik", False),
        ("ij,ji->i", False),
    ],
)
def test_products_of_an_array_with_itself(subscripts, is_of_squares):
    equation = equation_of(lambda x: jnp.einsum(subscripts, x, x), np.ones((2, 2)), name="dot_general")
    assert derived(equation, [FREE, FREE], is_square=True) == [NONNEGATIVE if is_of_squares else FREE]
    assert derived(equation, [FREE, FREE]) == [FREE]
    assert derived(equation, [NONNEGATIVE, (1.0, 2.0)]) == [NONNEGATIVE]
    assert derived(equation, [NONPOSITIVE, NONPOSITIVE]) == [FREE]  # not looked for


@pytest.mark.parametrize(
    ("operand", "expected"),
    [((0.0, 2.0), NONNEGATIVE), ((1.0, 2.0), NONNEGATIVE), ((-2.0, 0.0), NONPOSITIVE), ((-2.0, 0.1), FREE)],
)
def test_sums_so_far_keep_a_sign(operand, expected):
    assert derived(equation_of(lax.cumsum, np.ones(3), name="cumsum"), [operand]) == [expected]


@pytest.mark.parametrize("operand", [(0.0, 2.0), (1.0, 2.0), (-2.0, 0.0), (-2.0, 0.5), NONNEGATIVE, FREE])
def test_sums_lie_between_as_many_bounds_as_they_have_elements(operand):
    for shape, axes in (((3,), 0), ((2, 3), 1), ((4, 3), 1)):
        equation = equation_of(lambda x, axes=axes: jnp.sum(x, axes), np.ones(shape), name="reduce_sum")
        assert derived(equation, [operand]) == [(3 * operand[0], 3 * operand[1])]
    empty = equation_of(lambda x: jnp.sum(x, 0), np.ones((0, 3)), name="reduce_sum")
    assert derived(empty, [operand]) == [(0.0, 0.0)]


@pytest.mark.parametrize(
    ("operation", "operands", "expected"),
    [
        (lambda x, y: lax.concatenate([x, y], 0), [(-1.0, 2.0), (0.0, 5.0)], [(-1.0, 5.0)]),
        (lambda x: lax.pad(x, 7.0, [(1, 0, 0)]), [(-1.0, 2.0), (7.0, 7.0)], [(-1.0, 7.0)]),
        (lambda x: lax.rev(x, [0]), [(-1.0, 2.0)], [(-1.0, 2.0)]),
        (lambda x: jnp.astype(x, jnp.float32), [(-1.0, 2.0)], [(-1.0, 2.0)]),
        (lambda x: lax.sort(x), [(-1.0, 2.0)], [(-1.0, 2.0)]),
        (lambda x, y: lax.sort([x, y], num_keys=1), [(-1.0, 2.0), (0.0, 5.0)], [(-1.0, 2.0), (0.0, 5.0)]),
        (lambda x: lax.top_k(x, 2), [(-1.0, 2.0)], [(-1.0, 2.0), (0.0, 2.0)]),
        (lambda x: lax.reduce_max(x, [0]), [(-1.0, 2.0)], [(-1.0, 2.0)]),
        (lambda x: lax.cummin(x), [(-1.0, 2.0)], [(-1.0, 2.0)]),
        (lambda x: lax.reduce_prod(x, [0]), [(0.0, 2.0)], [NONNEGATIVE]),
        (lambda x: lax.reduce_prod(x, [0]), [(-0.5, 2.0)], [FREE]),
        (lambda x: lax.argmax(x, 0, np.int32), [(-1.0, 2.0)], [(0.0, 2.0)]),
        (lambda x: lax.dynamic_slice(x, [np.int32(0)], [2]), [(-1.0, 2.0), (5.0, 9.0)], [(-1.0, 2.0)]),
        (
            lambda x, y: lax.dynamic_update_slice(x, y, [np.int32(0)]),
            [(-1.0, 2.0), (0.0, 5.0), (7.0, 9.0)],
            [(-1.0, 5.0)],
        ),
        (lambda x, y: lax.select_n(np.array([True] * 3), x, y), [(0.0, 1.0), (-3.0, 4.0), (5.0, 7.0)], [(-3.0, 7.0)]),
        (lambda x: x < 1.0, [(-1.0, 2.0), (1.0, 1.0)], [(0.0, 1.0)]),
        (lambda x: jnp.copy(x), [(-1.0, 2.0)], [(-1.0, 2.0)]),
        (lambda: lax.iota(np.int32, 5), [], [(0.0, 4.0)]),
        (lambda: lax.broadcasted_iota(np.int32, (2, 7), 0), [], [(0.0, 1.0)]),
        (lambda: lax.iota(np.int32, 0), [], [(0.0, 0.0)]),
    ],
)
def test_bounds_of_what_moves_and_chooses(operation, operands, expected):
    arrays = [np.ones(3)] * len(inspect.signature(operation).parameters)
    assert derived(equation_of(operation, *arrays), operands) == expected


@pytest.mark.parametrize(("fill", "expected"), [(None, (1.0, 2.0)), (-3.0, (-3.0, 2.0)), (9.0, (1.0, 9.0))])
def test_what_fills_places_that_there_are_not_counts(fill, expected):
    mode = "clip" if fill is None else "fill"
    take = lambda x: jnp.take(x, np.array([1, 7]), mode=mode, fill_value=fill)
    assert derived(equation_of(take, np.ones(3), name="gather"), [(1.0, 2.0), FREE]) == [expected]


@pytest.mark.parametrize(
    ("operands", "expected"),
    [
        ([(100.0, 120.0), (0.0, 7.0)], (100.0, 127.0)),
        ([(100.0, 120.0), (0.0, 8.0)], FREE),  # may overflow
        ([(-120.0, 0.0), (-8.0, 0.0)], (-128.0, 0.0)),
        ([(-120.0, 0.0), (-9.0, 0.0)], FREE),
    ],
)
def test_integers_may_overflow(operands, expected):
    assert derived(equation_of(lax.add, np.int8(1), np.int8(1)), operands) == [expected]


def test_bounds_of_dtypes_and_numbers():
    assert range_of_dtype(jnp.bool_) == (0.0, 1.0)
    assert range_of_dtype(jnp.uint8) == NONNEGATIVE
    assert range_of_dtype(jnp.int8) == range_of_dtype(jnp.bfloat16) == FREE
    assert range_of_number(np.array([3, -2])) == (-2.0, 3.0)
    assert range_of_number(np.array([True, False])) == (0.0, 1.0)
    assert range_of_number(np.array([1.0, np.nan])) == FREE
    assert range_of_number(np.array([1.0, np.inf])) == (1.0, INF)
    assert range_of_number(np.zeros((0,))) == FREE
    assert range_of_number(np.zeros((0,), np.uint8)) == NONNEGATIVE
    assert range_of_number(np.array([1j])) == FREE
