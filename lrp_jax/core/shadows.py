"""Shadows: how relevance returns to explained integers.

The shadow of what is made of explained integers (`lrp_jax.core.tokens`) is an array in its shape that holds how many of
them are in each place. It moves along with the values, and what is looked up is tied to the shadow of its indices.
Relevance returns along the shadows as the cotangent in ratio form does along values; at the explained integers, whose
shadow is one, the ratio is the relevance.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from lrp_jax.core import equations
from lrp_jax.core.graph import Operation
from lrp_jax.core.primitive import Family
from lrp_jax.core.tokens import data_positions

_SCATTERS = {"scatter": lax.scatter, "scatter-add": lax.scatter_add}

Arrays: TypeAlias = Mapping[int, jax.Array]


def shadow_of_input(value: jax.Array) -> jax.Array:
    """The shadow of an array of explained integers."""
    return no_shadow(value) + 1


@jax.custom_vjp
def shadow_of_numbers(value: jax.Array) -> jax.Array:
    """The shadow of explained numbers with which something is looked up; their cotangent is in relevance form."""
    return shadow_of_input(value)


shadow_of_numbers.defvjp(
    lambda value: (shadow_of_input(value), value), lambda value, relevance: (relevance.astype(value.dtype),)
)


def no_shadow(value: jax.Array) -> jax.Array:
    """The shadow of a value in which there are no explained integers."""
    return jnp.zeros_like(value, dtype=float)


def shadows_of_outputs(operation: Operation, values: Arrays, shadows: Arrays) -> list[jax.Array]:
    """Moves shadows along with values.

    Args:
        operation: An operation that moves explained integers, or looks something up with them.
        values: The values of its operands and outputs, by number.
        shadows: The shadows of its operands, by number.

    Returns:
        The shadows of its outputs.
    """
    operands = [values[i] for i in operation.inputs]
    return _moved(operation, operands, [shadows.get(i) for i in operation.inputs], values[operation.outputs[0]])


def for_each(shadow: jax.Array, output: jax.Array) -> jax.Array:
    """Where the relevance of what was looked up goes, element by element: shared out evenly; ones."""
    known = shadow > 0
    each = jnp.where(known, shadow / jnp.where(known, lax.stop_gradient(shadow), 1), 0)
    return jnp.broadcast_to(each, output.shape).astype(output.dtype)


def _moved(
    operation: Operation, operands: Sequence[jax.Array], parts: Sequence[Any], result: jax.Array
) -> list[jax.Array]:
    """Applies a move to shadows; None stands for operands without."""
    equation, name, params = operation.equation, operation.name, operation.equation.params
    data = data_positions(name, len(operands))
    filled = [no_shadow(x) if part is None else part for x, part in zip(operands, parts, strict=True)]
    there = [part for part in parts if part is not None]
    if all(parts[i] is None for i in data):
        return [_at_indices(operation, operands, parts, result)]
    if name == "eq":
        return [jnp.where(result, there[0], 0)]
    if name in {"cumsum", "reduce_sum"}:
        return equations.run(equation, *there)
    if name == "dot_general":
        return [_contracted(operation, operands, parts, result)]
    if name == "sort":
        return equations.run(equation, *operands, *filled)[len(operands) :]
    if name in {"optimization_barrier", "device_put"}:
        return filled
    if name != "select_n" and operation.family & (Family.IDENTITY | Family.BITS | Family.ELEMENTWISE):
        return [jnp.broadcast_to(sum(there[1:], start=there[0]), result.shape)]
    moved = [filled[i] if i in data else x for i, x in enumerate(operands)]
    if name == "select_n":
        moved[1:] = [jnp.broadcast_to(case, result.shape) for case in moved[1:]]
    if name in _SCATTERS:
        return [_scattered(operation, *moved)]
    return equations.run(equation, *moved, **({"fill_value": 0} if "fill_value" in params else {}))


def _scattered(operation: Operation, operand: jax.Array, indices: jax.Array, updates: jax.Array) -> jax.Array:
    """Applies a scatter to another dtype."""
    names = ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
    params = {name: operation.equation.params[name] for name in names}
    return _SCATTERS[operation.name](operand, indices, updates, **params)


def _at_indices(
    operation: Operation, operands: Sequence[jax.Array], parts: Sequence[Any], result: jax.Array
) -> jax.Array:
    """What is looked up with indices: the sum over the numbers of which an index is made."""
    params = operation.equation.params
    if operation.name == "select_n":
        return jnp.broadcast_to(parts[0], result.shape)
    if operation.name == "dynamic_slice":
        there = [part for part in parts if part is not None]
        return jnp.broadcast_to(sum(there[1:], start=there[0]), result.shape)
    index = parts[1].sum(-1)
    if operation.name == "gather":
        window = params["dimension_numbers"].offset_dims
        return _spread(index, result.shape, window)
    updates = _spread(index, operands[2].shape, params["dimension_numbers"].update_window_dims)
    return _scattered(operation, no_shadow(result), operands[1], updates)


def _spread(index: jax.Array, shape: Sequence[int], window: Sequence[int]) -> jax.Array:
    return lax.broadcast_in_dim(index, shape, [i for i in range(len(shape)) if i not in window])


def _contracted(
    operation: Operation, operands: Sequence[jax.Array], parts: Sequence[Any], result: jax.Array
) -> jax.Array:
    """The sum over the axis of a code, spread over what the table holds for each entry."""
    params = operation.equation.params
    coded = 0 if parts[0] is not None else 1
    contracted, batch = (dimensions[1 - coded] for dimensions in params["dimension_numbers"])
    table = operands[1 - coded]
    shape = [n if i in (*contracted, *batch) else 1 for i, n in enumerate(table.shape)]
    pair = [parts[coded], jnp.ones(shape, parts[coded].dtype)]
    changed = {"preferred_element_type": parts[coded].dtype, "precision": lax.Precision.HIGHEST}
    (found,) = equations.run(operation.equation, *(pair if coded == 0 else pair[::-1]), **changed)
    return jnp.broadcast_to(found, result.shape)
