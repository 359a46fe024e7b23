"""Which treatment an operation gets: by the table of primitives, or as a function of one value by its values."""

import functools
from collections.abc import Set
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from lrp_jax import treatments
from lrp_jax.core import equations
from lrp_jax.core.forms import Form, divide
from lrp_jax.core.formulas import Formula
from lrp_jax.core.graph import Graph, Operation
from lrp_jax.core.primitive import Family
from lrp_jax.errors import UnsupportedOperationError
from lrp_jax.treatments import Arrays, Backward, Call, Treatment

_LINEAR = (
    treatments.structural,
    treatments.proportional,
    treatments.with_constant,
    treatments.scaled,
    treatments.multiplied,
)
_OF_COMPLEX = (
    "Linear operations on them, such as a Fourier transform, and their absolute value are known. Write what follows on "
    "these with jnp.real and jnp.imag, or with jnp.abs."
)


def treatment_of_function(formula: Formula) -> Treatment:
    """What happens to relevance at an elementwise function of one value.

    Args:
        formula: The function f.

    Returns:
        For a constant nothing; for u -> a u + b a ratio times a; for a ReLU one to one; for a function without a value
        at zero its derivative; for every other c (f(u) - f(0)) / u: one to one where f(0) = 0, and else f(0) is a
        constant that keeps its share.
    """
    if formula.is_constant:
        return treatments.constant
    if formula.is_affine:
        return treatments.scaled if formula.at_zero == 0 else treatments.with_constant
    if formula.name == "relu":
        return treatments.rectified
    if formula.is_singular:
        return treatments.derivative
    like = treatments.one_to_one if formula.at_zero == 0 else treatments.beside_arrays
    share: Backward = functools.partial(_share_of_function, formula)
    return replace(like, backward={**like.backward, Form.RATIO: share})


def passing_constants_on(treatment: Treatment) -> Treatment:
    """The treatment in which constants that are added keep nothing, and all relevance goes on."""
    keeps = {treatments.with_constant.summary, treatments.beside_arrays.summary}
    return treatments.one_to_one if treatment.summary in keeps else treatment


def _share_of_function(formula: Formula, call: Call) -> Arrays:
    """C (f(u) - f(0)) / u, by the slope where u is too small to divide by."""
    ((u,), (y,), (ratio,)) = call.live, call.outputs, call.cotangents
    wide = jnp.promote_types(u.dtype, jnp.float32)
    u_wide, y_wide = u.astype(wide), y.astype(wide)
    share = divide(y_wide - jnp.asarray(formula.at_zero, wide), u_wide)
    if formula.at_zero != 0 and formula.is_piecewise_linear:
        derivative = _flatter_derivative(call).astype(wide)
        share = jnp.where(derivative != 0, derivative, share)
    elif formula.slope is not None:
        is_small = u_wide == 0
        near = jnp.asarray(formula.slope, wide)
        if not formula.is_precise_near_zero and not formula.is_piecewise_linear:
            is_small = jnp.abs(u_wide) < jnp.finfo(wide).eps ** (1 / 3)
            near = near + formula.curvature * u_wide
        share = jnp.where(is_small, near, share)
    return ((ratio * share).astype(u.dtype),)


def _flatter_derivative(call: Call) -> jax.Array:
    """The derivative of a piecewise-linear function; at a kink that of the flatter side, 0 if they differ in sign."""
    (u,), (y,) = call.live, call.outputs
    below, above = (
        replace(call, live=[jnp.nextafter(u, jnp.full_like(u, end))]).pull_back([jnp.ones_like(y)])[0]
        for end in (-jnp.inf, jnp.inf)
    )
    flatter = jnp.where(jnp.abs(below) < jnp.abs(above), below, above)
    return jnp.where(below * above > 0, flatter, 0)


def smooth_quotient(numerator: int, part: float) -> Treatment:
    """As `smooth`, for a quotient, or a product with a reciprocal, of which the denominator takes a part alone."""

    def backward(call: Call) -> Arrays:
        return tuple(c if i == numerator else part * c for i, c in enumerate(call.pull_back(call.cotangents)))

    return replace(treatments.smooth, backward={Form.RATIO: backward})


def treatment_of(graph: Graph, operation: Operation) -> Treatment:
    """Looks up what happens to relevance at an operation that is no layer and no function of one value.

    Args:
        graph: The function.
        operation: One of its operations, with live operands.

    Returns:
        Its treatment.

    Raises:
        UnsupportedOperationError: If there is none.
    """
    live = graph.live_inputs(operation)
    treatment = operation.primitive.treatment_for(live, len(operation.inputs))
    if any(jnp.iscomplexobj(graph.shapes[value]) for value in (*operation.inputs, *operation.outputs)):
        has_parameter = Family.LINEAR_MAP in operation.family and not graph.parameters.isdisjoint(operation.inputs)
        if has_parameter or (treatment not in _LINEAR and operation.name != "abs"):
            raise _refusal(operation, "complex numbers", _OF_COMPLEX)
        return treatments.proportional
    if treatment is None:
        circumstance = f"{len(live)} operand(s) that depend on the explained input"
        raise _refusal(operation, circumstance, operation.primitive.advice)
    return treatment


def check_shares(graph: Graph, operation: Operation) -> None:
    """Refuses a `jax.shard_map` in which several devices have parts of one sample: rules see what one of them has.

    Args:
        graph: The function.
        operation: An operation with bodies in it, through which relevance flows.

    Raises:
        UnsupportedOperationError: If it is such.
    """
    devices = {} if operation.control is None else operation.control.axes
    axes = {axis for axis, number in devices.items() if number > 1}
    if not axes:
        return
    (body,), params = operation.bodies, operation.equation.params
    places = [*zip(operation.inputs, params["in_specs"], strict=True)]
    places += zip(operation.outputs, params["out_specs"], strict=True)
    is_split = any(
        _axes_of_dimensions(spec, axes) != [axes]
        for value, spec in places
        if graph.is_live(value) or graph.is_token(value)
    )
    between = next(
        (
            inner
            for within, inner in body.all_operations()
            if inner.name != "pvary"
            and not axes.isdisjoint(equations.axes_named(inner.equation))
            and any(within.is_live(value) or within.is_token(value) for value in inner.inputs)
        ),
        None,
    )
    if is_split or between is not None:
        what = "its in_specs and out_specs say so"
        if between is not None:
            what = f"they exchange them with {between.name!r} at {between.location}"
        raise UnsupportedOperationError(
            f"Relevance cannot be propagated through the shard_map at {operation.location}: several devices compute "
            f"parts of one sample ({what}), and a rule needs all of a layer. Share out samples alone, along the first "
            "dimension of everything that depends on the explained input; or leave the shard_map out, place the "
            "parameters with jax.device_put and a NamedSharding, and jax.jit shares out the work."
        )


def _axes_of_dimensions(spec: Any, axes: Set[str]) -> list[set[str]]:
    """The axes over which each dimension is shared out, up to the last that is."""
    found = [set(axes) & {*(entry if isinstance(entry, tuple) else (entry,))} for entry in spec]
    while found and not found[-1]:
        found.pop()
    return found


def _refusal(operation: Operation, circumstance: str, advice: str = "") -> UnsupportedOperationError:
    where = f", in {operation.module}" if operation.module else ""
    advice = advice or (
        f"If you know what should happen there, say it with lrp_jax.composites.with_treatment(rules, "
        f"{operation.name!r}, treatment); lrp_jax.treatments has those that there are."
    )
    return UnsupportedOperationError(
        f"Relevance cannot be propagated through the operation {operation.name!r} at {operation.location}{where}: "
        f"lrp_jax has no treatment for it with {circumstance}. {advice}"
    )
