"""The table of primitives: all that is known of each operation of JAX, in one place.

Who follows something through a function (relevance, ranges, numbers, samples, explained integers, ...) asks for the
entry of an operation, by the name of its primitive. Of a primitive that has none nothing is known: relevance is refused
there until the user says what happens to it (`lrp_jax.composites.with_treatment`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr

from lrp_jax.core import control, maxima, ranges, samples
from lrp_jax.core.control import Control
from lrp_jax.core.kinds import KINDS, Dense, Kind
from lrp_jax.core.maxima import Maximum
from lrp_jax.core.primitive import Choice, Compute, Family, Primitive
from lrp_jax.core.ranges import Bounds
from lrp_jax.core.samples import Samples
from lrp_jax.treatments import (
    Treatment,
    beside_arrays,
    derivative,
    halved,
    in_equal_parts,
    multiplied,
    proportional,
    scaled,
    smooth,
    structural,
    winner_takes_all,
    with_constant,
)


def named(name: str) -> Primitive:
    """The entry of a primitive; an empty one if the table has none."""
    return PRIMITIVES.get(name, _UNKNOWN)


def summary_of(name: str) -> str:
    """What happens to relevance at a primitive, in words.

    Args:
        name: The name of a primitive of JAX.

    Returns:
        A sentence without a full stop; "refused" if there is no treatment.

    Example:
        >>> summary_of("transpose")
        'moved along with the values'
    """
    known = named(name)
    return known.summary or (known.treatment.summary if isinstance(known.treatment, Treatment) else "refused")


def family_of(equation: Any) -> Family:
    """What the equation does with the elements of its operands."""
    return named(equation.primitive.name).family


def is_elementwise(equation: Any) -> bool:
    """Whether every element of the output depends on the operands' elements at the same place alone."""
    family = family_of(equation)
    is_spread = equation.primitive.name == "pvary"  # to several devices, whose relevance adds up
    return Family.ELEMENTWISE in family or (Family.IDENTITY in family and len(equation.invars) == 1 and not is_spread)


def called_program(equation: Any) -> ClosedJaxpr | None:
    """The program that a call runs; None if the equation is no call."""
    key = named(equation.primitive.name).called
    return control.closed(equation.params[key]) if key else None


def is_checkpoint(equation: Any) -> bool:
    """Whether the equation is a call under `jax.checkpoint`."""
    return equation.primitive.name == "remat2"


def has_bodies(equation: Any) -> bool:
    """Whether the equation is a loop, a branch or a `jax.shard_map`."""
    return Family.CONTROL in family_of(equation)


def may_take_operands(equation: Any) -> bool:
    """Whether the equation is one to whose programs `lrp_jax.core.control.with_operands` can give further operands."""
    return bool(named(equation.primitive.name).called) or has_bodies(equation)


def control_of(equation: Any) -> Control | None:
    """How the equation runs its bodies; None if it has none that could be looked into."""
    make = named(equation.primitive.name).control
    return None if make is None else make(equation)


# How a treatment is chosen.


def _of_one_value(live: Sequence[int], number: int) -> Treatment | None:
    return beside_arrays if len(live) == 1 else None


def _of_sum(live: Sequence[int], number: int) -> Treatment:
    return proportional if len(live) == number else with_constant


def _of_product(live: Sequence[int], number: int) -> Treatment:
    return halved if len(live) == 2 else multiplied


def _of_quotient(live: Sequence[int], number: int) -> Treatment:
    if len(live) == 2:
        return halved
    return scaled if live[0] == 0 else derivative


def _of_linear_map(live: Sequence[int], number: int) -> Treatment:
    return halved if len(live) == 2 else proportional


# What it computes.


def erf(x: np.ndarray) -> np.ndarray:
    """The error function."""
    return np.vectorize(math.erf, otypes=[np.float64])(x)


def logistic(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), without overflow."""
    return np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x))))


def _erfc(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erfc, otypes=[np.float64])(x)


def _clamp(low: np.ndarray, x: np.ndarray, high: np.ndarray) -> np.ndarray:
    return np.minimum(np.maximum(x, low), high)


def _select(which: np.ndarray, *cases: np.ndarray) -> np.ndarray:
    return np.select([np.asarray(which) == i for i in range(len(cases))], cases)


# The kinds of rows.

_CHOICE = Family.ELEMENTWISE | Family.CHOICE | Family.PIECEWISE_LINEAR
_ALL, _FIRST, _FIRST_AND_THIRD = slice(None), slice(1), slice(0, None, 2)
_SAMPLES = {
    Family.REDUCTION: samples.REDUCTION,
    Family.CUMULATIVE: samples.CUMULATIVE,
    Family.WINDOW: samples.WINDOW,
}
_SPLIT = "split in proportion; a constant that is added keeps its share"
_OF_LOOPS = (
    "It is a loop of which it is not known how often it runs. Write it with jax.lax.scan, or with jax.lax.fori_loop "
    "from one Python number to another."
)
_OF_SPARSE = (
    "A rule needs the dense matrix: multiply with matrix.todense(). To split relevance in proportion instead, as at an "
    "operation without a parameter, say lrp_jax.composites.with_treatment(rules, 'bcoo_dot_general', "
    "lrp_jax.treatments.proportional)."
)
_UNKNOWN = Primitive()


def _function(
    compute: Compute | None = None,
    bounds: Bounds = ranges.free,
    family: Family = Family.NONE,
    treatment: Treatment | Choice = _of_one_value,
) -> Primitive:
    summary = "a function of one value: f(x) - f(0) is passed on"
    return Primitive(treatment, summary, Family.ELEMENTWISE | family, bounds, compute)


def _rising(compute: Compute, lowest: float = -math.inf, family: Family = Family.NONE) -> Primitive:
    return _function(compute, ranges.rising(compute, lowest), family)


def _addition(compute: Compute, bounds: Bounds) -> Primitive:
    family = Family.ELEMENTWISE | Family.ADDITION | Family.AFFINE | Family.PIECEWISE_LINEAR
    return Primitive(_of_sum, _SPLIT, family, bounds, compute)


def _product(choice: Choice, compute: Compute, bounds: Bounds, family: Family = Family.NONE) -> Primitive:
    summary = "passed one to one; of two live factors half to each, or all to the signal if the other is held"
    return Primitive(choice, summary, Family.ELEMENTWISE | Family.AFFINE | Family.PRODUCT | family, bounds, compute)


def _linear_map(kind: type[Kind]) -> Primitive:
    summary = "a layer, where the rule decides; half to each factor of two live ones"
    family = Family.PRODUCT | Family.LINEAR_MAP | (Family.SUM if kind is Dense else Family.NONE)
    return Primitive(_of_linear_map, summary, family, ranges.total, samples=kind.samples)


def _sum(family: Family, bounds: Bounds = ranges.total) -> Primitive:
    return Primitive(proportional, _SPLIT, Family.SUM | family, bounds, samples=_SAMPLES[family])


def _product_of_elements(family: Family) -> Primitive:
    bounds = ranges.of(ranges.keep_sign)
    return Primitive(in_equal_parts, family=family, bounds=bounds, samples=_SAMPLES[family])


def _maximum(maximum: Maximum, family: Family) -> Primitive:
    samples = _SAMPLES[family]
    return Primitive(winner_takes_all, family=family, bounds=ranges.first, samples=samples, maximum=maximum)


def _scattered(maximum: Maximum) -> Primitive:
    return Primitive(winner_takes_all, samples=samples.SCATTER, maximum=maximum)


def _largest(maximum: Maximum, compute: Compute, bounds: Bounds, summary: str) -> Primitive:
    return Primitive(winner_takes_all, summary, _CHOICE, bounds, compute, maximum=maximum)


def _move(
    family: Family = Family.NONE,
    samples: Samples = samples.KEPT,
    data: slice = _ALL,
    bounds: Bounds | None = None,
) -> Primitive:
    return Primitive(structural, "", family, bounds or ranges.united(data), data=data, samples=samples)


def _rearrangement(samples: Samples = samples.KEPT) -> Primitive:
    return _move(Family.MOVE | Family.REARRANGEMENT, samples)


def _end(family: Family = Family.NONE, compute: Compute | None = None, bounds: Bounds = ranges.free) -> Primitive:
    summary = "relevance ends: the output is not differentiable, or is held constant"
    return Primitive(None, summary, family, bounds, compute)


def _step(compute: Compute) -> Primitive:
    return _end(Family.ELEMENTWISE | Family.STEP, compute, ranges.rising(compute))


def _truth(compute: Compute) -> Primitive:
    return _end(Family.ELEMENTWISE, compute)


def _call(parameter: str, bounds: Bounds = ranges.free) -> Primitive:
    return Primitive(summary="looked into", bounds=bounds, called=parameter)


def _control(control: Callable[[Any], Control]) -> Primitive:
    return Primitive(summary="looked into: the bodies are transformed", family=Family.CONTROL, control=control)


_OF_ONE_OR_TWO = "a function of one value; to the winner of two live values"

ROWS: Sequence[tuple[str, Primitive]] = (
    # Functions of one value, and arithmetic.
    ("acos acosh asin atanh digamma erf_inv lgamma nextafter rem", _function()),
    ("abs", _function(np.abs, ranges.of(ranges.absolute), Family.PIECEWISE_LINEAR)),
    ("asinh", _rising(np.arcsinh)),
    ("atan", _rising(np.arctan)),
    ("atan2", _function(np.arctan2)),
    ("cbrt", _rising(np.cbrt)),
    ("cos", _function(np.cos, ranges.within(-1.0, 1.0))),
    ("cosh", _function(np.cosh)),
    ("erf", _function(erf, ranges.within(-1.0, 1.0))),
    ("erfc", _function(_erfc, ranges.within(0.0, 2.0))),
    ("exp", _rising(np.exp, family=Family.EXPONENTIAL)),
    ("exp2", _rising(np.exp2, family=Family.EXPONENTIAL)),
    ("expm1", _rising(np.expm1)),
    ("integer_pow", _function(None, ranges.integer_power, Family.POWER)),
    ("log", _rising(np.log, 0.0)),
    ("log1p", _rising(np.log1p, -1.0)),
    ("logistic", _function(logistic, ranges.within(0.0, 1.0))),
    ("pow", _function(np.power, ranges.of(ranges.keep_sign), Family.POWER)),
    ("rsqrt", _function(lambda x: 1 / np.sqrt(x), ranges.of(ranges.invert_root))),
    ("sin", _function(np.sin, ranges.within(-1.0, 1.0))),
    ("sinh", _rising(np.sinh)),
    ("sqrt", _rising(np.sqrt, 0.0, Family.POWER)),
    ("square", _function(np.square, ranges.of(ranges.square), Family.POWER)),
    ("tan", _function(np.tan)),
    ("tanh", _rising(np.tanh)),
    ("neg", _function(np.negative, ranges.of(ranges.negate), Family.AFFINE | Family.PIECEWISE_LINEAR, scaled)),
    ("add add_any", _addition(np.add, ranges.of(ranges.add))),
    ("sub", _addition(np.subtract, ranges.of(ranges.subtract))),
    ("mul", _product(_of_product, np.multiply, ranges.product, Family.POWER)),
    ("div", _product(_of_quotient, np.true_divide, ranges.of(ranges.divide))),
    # Sums and products of many elements.
    *((name, _linear_map(kind)) for name, kind in KINDS.items()),
    ("reduce_sum", _sum(Family.REDUCTION, ranges.summed)),
    ("cumsum", _sum(Family.CUMULATIVE)),
    ("reduce_window_sum", _sum(Family.WINDOW)),
    ("psum", Primitive(proportional, _SPLIT, bounds=ranges.total, samples=samples.REDUCTION)),
    ("psum_invariant", Primitive(proportional, _SPLIT, bounds=ranges.total)),
    (
        "scatter-add",
        Primitive(
            proportional,
            _SPLIT,
            Family.WRITE | Family.SUM,
            ranges.added,
            data=_FIRST_AND_THIRD,
            samples=samples.SCATTER,
        ),
    ),
    ("complex conj fft imag real", Primitive(proportional, _SPLIT)),
    ("reduce_prod", _product_of_elements(Family.REDUCTION)),
    ("cumprod", _product_of_elements(Family.CUMULATIVE)),
    ("cumlogsumexp", Primitive(smooth, family=Family.CUMULATIVE, samples=samples.CUMULATIVE)),
    # Maxima and minima.
    ("max", _largest(maxima.of_operands(lax.gt), np.maximum, ranges.of(ranges.maximum), _OF_ONE_OR_TWO)),
    ("min", _largest(maxima.of_operands(lax.lt), np.minimum, ranges.of(ranges.minimum), _OF_ONE_OR_TWO)),
    ("clamp", _largest(maxima.CLAMP, _clamp, ranges.of(ranges.clamp), winner_takes_all.summary)),
    ("reduce_max", _maximum(maxima.along_axes(lax.gt), Family.REDUCTION)),
    ("reduce_min", _maximum(maxima.along_axes(lax.lt), Family.REDUCTION)),
    ("cummax", _maximum(maxima.so_far(lax.gt), Family.CUMULATIVE)),
    ("cummin", _maximum(maxima.so_far(lax.lt), Family.CUMULATIVE)),
    ("reduce_window_max", _maximum(maxima.of_windows(lax.gt), Family.WINDOW)),
    ("reduce_window_min", _maximum(maxima.of_windows(lax.lt), Family.WINDOW)),
    ("scatter-max", _scattered(maxima.scattered(lax.gt))),
    ("scatter-min", _scattered(maxima.scattered(lax.lt))),
    ("select_and_gather_add", Primitive(winner_takes_all, maximum=maxima.GATHERED)),
    # Moves, and what returns what it is given.
    ("broadcast_in_dim", _rearrangement(samples.BROADCAST)),
    ("reshape", _rearrangement(samples.RESHAPE)),
    ("rev", _rearrangement()),
    ("squeeze", _rearrangement(samples.SQUEEZE)),
    ("transpose", _rearrangement(samples.TRANSPOSE)),
    ("all_gather broadcast_to concatenate pad slice split tile unstack", _move(Family.MOVE)),
    ("stack", _move(Family.MOVE, samples.STACK)),
    ("dynamic_slice", _move(Family.MOVE, data=_FIRST)),
    ("gather", _move(Family.MOVE, samples.GATHER, _FIRST, ranges.gathered)),
    ("dynamic_update_slice", _move(Family.WRITE, data=slice(2))),
    ("scatter", _move(Family.WRITE, samples.SCATTER, _FIRST_AND_THIRD)),
    ("select_n", replace(_move(_CHOICE, data=slice(1, None)), compute=_select)),
    ("sort", _move(Family.ORDER, bounds=ranges.kept)),
    ("top_k", _move(Family.ORDER, bounds=ranges.largest)),
    (
        """
        convert_element_type copy device_put layout_constraint name optimization_barrier pvary reduce_precision reshard
        sharding_constraint
        """,
        _move(Family.IDENTITY, bounds=ranges.kept),
    ),
    # Where relevance ends.
    ("stop_gradient", _end(Family.IDENTITY | Family.STEP, bounds=ranges.kept)),
    ("ceil", _step(np.ceil)),
    ("floor", _step(np.floor)),
    ("round", _step(np.round)),
    ("sign", _step(np.sign)),
    ("and", _truth(np.logical_and)),
    ("or", _truth(np.logical_or)),
    ("xor", _truth(np.logical_xor)),
    ("not", _truth(np.logical_not)),
    ("eq", _truth(np.equal)),
    ("ne", _truth(np.not_equal)),
    ("ge", _truth(np.greater_equal)),
    ("gt", _truth(np.greater)),
    ("le", _truth(np.less_equal)),
    ("lt", _truth(np.less)),
    ("is_finite", _truth(np.isfinite)),
    ("argmax argmin", replace(_end(Family.REDUCTION, bounds=ranges.places), samples=samples.REDUCTION)),
    ("clz population_count shift_left shift_right_arithmetic shift_right_logical", _end(Family.BITS)),
    ("eq_to le_to lt_to reduce_and reduce_or reduce_xor", _end()),
    # What runs programs.
    ("jit remat2", _call("jaxpr")),
    ("closed_call custom_jvp_call", _call("call_jaxpr")),
    ("custom_vjp_call", _call("call_jaxpr", ranges.kept)),
    ("cond", _control(control.cond)),
    ("scan", _control(control.scan)),
    ("shard_map", _control(control.shard_map)),
    # Refused where relevance reaches them.
    ("while", Primitive(family=Family.CONTROL, advice=_OF_LOOPS)),
    ("iota", Primitive(bounds=ranges.counted)),
    ("reduce_window", Primitive(family=Family.WINDOW, samples=samples.WINDOW)),
    ("scatter-mul", Primitive(samples=samples.SCATTER)),
    ("bcoo_dot_general", Primitive(advice=_OF_SPARSE)),
    ("random_bits random_gamma rng_bit_generator rng_uniform threefry2x32", Primitive(family=Family.DRAW)),
)
"""The table: the names of primitives that have an entry in common, and the entry."""

PRIMITIVES: Mapping[str, Primitive] = {name: entry for names, entry in ROWS for name in names.split()}
"""The entries of the table, by the name of the primitive."""
