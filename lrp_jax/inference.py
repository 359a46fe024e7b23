"""Whether a function is in inference mode: no dropout, and no normalisation with statistics of the batch.

A function in training mode has another value for every key, or for every batch, and so has its relevance. Neither
libraries nor modules are asked: what they do stands in the program.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend import core

from lrp_jax import equations
from lrp_jax.errors import ModelError
from lrp_jax.factors import Rank, rank_of
from lrp_jax.functions import Functions
from lrp_jax.graph import Graph, Operation, Status

HOW_TO_SWITCH = (
    "Switch it to inference mode: model.eval() for Flax NNX, deterministic=True and use_running_average=True for Flax "
    "Linen, eqx.nn.inference_mode(model) for Equinox, is_training=False for Haiku"
)

_DRAWS = frozenset("random_bits random_gamma rng_bit_generator rng_uniform threefry2x32".split())
_REDUCTIONS = frozenset("reduce_sum reduce_max reduce_min reduce_prod psum argmax argmin".split())


def check_inference(graph: Graph, *, samples_first: bool = True) -> None:
    """Refuses a function in training mode.

    Args:
        graph: The function.
        samples_first: Whether the first dimension of what is explained is known to be that of the samples. If it is
            not, an output of more than two dimensions may be that of one sample, such as an image without a batch.

    Raises:
        ModelError: If a live value is multiplied with a mask that is drawn at random, or is normalised with statistics
            over the samples: over the first dimension of what is explained, where the output has it too.
    """
    drawn = _find_drawn_mask(graph, {})
    if drawn is not None:
        raise ModelError(
            f"The model is in training mode: dropout is active at {_place(drawn)}, where a mask that is drawn at "
            f"random multiplies hidden values. {HOW_TO_SWITCH}. If the mask is meant, draw it outside of the model."
        )
    axes = {value: 0 for value in graph.inputs if _is_explained(graph, value) and graph.shapes[value].shape}
    normalised = _follow_samples(graph, axes)
    ranks = [len(graph.shapes[value].shape) for value in graph.outputs if axes.get(value) == 0]
    if normalised is not None and any(samples_first or rank <= 2 for rank in ranks):
        raise ModelError(
            "The model is in training mode: a batch normalisation uses the statistics of this batch at "
            f"{_place(normalised)}, so that the samples depend on each other. {HOW_TO_SWITCH}."
        )


def _place(operation: Operation) -> str:
    return f"{operation.location}, in {operation.module}" if operation.module else operation.location


def _is_explained(graph: Graph, value: int) -> bool:
    return graph.status[value] in (Status.LIVE, Status.TOKEN)


# Dropout: a truth value that is computed from random bits decides what becomes of a live value.


def _find_drawn_mask(graph: Graph, drawn: dict[int, int]) -> Operation | None:
    """The first operation that applies a drawn mask.

    Args:
        graph: The function.
        drawn: For its inputs, 1 for random numbers and 2 for a mask; what is missing is neither.
    """
    for operation in graph.operations:
        known = [drawn.get(value, 0) for value in operation.inputs]
        live = graph.live_inputs(operation)
        is_product = operation.name in {"mul", "select_n", *equations.CALLS}
        if live and is_product and not operation.bodies and 2 in known:
            return operation
        for body in operation.bodies:
            inside = known[len(known) - len(body.inputs) :]  # without the index of a branch
            found = _find_drawn_mask(body, dict(zip(body.inputs, inside, strict=True)))
            if found is not None:
                return found
        if not live:
            drawn.update(zip(operation.outputs, _drawn(operation.equation, known), strict=True))
    return None


def _drawn(equation: Any, known: Sequence[int]) -> list[int]:
    """For each output of an equation, whether it is drawn at random (1), and a mask made of that (2)."""
    called = equations.called_jaxpr(equation)
    if called is not None:
        inside = dict(zip(called.jaxpr.invars, known, strict=True))
        for inner in called.jaxpr.eqns:
            operands = [0 if isinstance(atom, core.Literal) else inside.get(atom, 0) for atom in inner.invars]
            inside.update(zip(inner.outvars, _drawn(inner, operands), strict=True))
        return [0 if isinstance(atom, core.Literal) else inside.get(atom, 0) for atom in called.jaxpr.outvars]
    level = max(known, default=0)
    if equation.primitive.name in _DRAWS:
        level = max(level, 1)
    return [2 if level and variable.aval.dtype == bool else level for variable in equation.outvars]


# Batch statistics: a value is normalised with a standard deviation over the samples.


def _follow_samples(graph: Graph, axes: dict[int, int]) -> Operation | None:
    """Follows the dimension of the samples through a function.

    Args:
        graph: The function.
        axes: For its inputs, the position of that dimension; those of the other values are added. A value in which
            samples are mixed has none, but by statistics.

    Returns:
        The first operation that normalises with statistics over the samples.
    """
    statistics: set[int] = set()
    found = None
    for operation in graph.operations:
        if not operation.outputs:
            continue
        carried = [axes.get(value) for value in operation.inputs]
        if carried.count(None) == len(carried):
            if statistics.intersection(operation.inputs):
                statistics.update(operation.outputs)
            continue
        if _is_statistic(operation, carried[0]):
            statistics.update(operation.outputs)
            continue
        if operation.name in {"mul", "div"} and statistics.intersection(operation.inputs):
            by = [value for value in operation.inputs if value in statistics]
            functions = Functions(graph)
            if any(rank_of(functions, value, divides=operation.name == "div") is Rank.NORMALISER for value in by):
                found = found or operation
        others = [value for value, axis in zip(operation.inputs, carried, strict=True) if axis is None]
        mixed = [value for value in others if graph.is_live(value) and value not in statistics]
        if operation.bodies:
            inner, positions = _follow_into(operation, carried)
            found = found or inner
        else:
            positions = [_axis_after(graph, operation, carried)] * len(operation.outputs)
        if not mixed:
            pairs = zip(operation.outputs, positions, strict=True)
            axes.update((value, axis) for value, axis in pairs if axis is not None)
    return found


def _is_statistic(operation: Operation, axis: int | None) -> bool:
    """Whether an operation reduces over the samples and leaves something, such as a number for each channel."""
    is_reduction = operation.name in _REDUCTIONS and axis in _axes(operation)
    return is_reduction and math.prod(operation.equation.outvars[0].aval.shape) > 1


def _axes(operation: Operation) -> list[int]:
    """The dimensions over which an operation reduces; a `psum` may name others, which belong to no single device."""
    return [int(axis) for axis in operation.equation.params["axes"] if isinstance(axis, int | np.integer)]


def _follow_into(operation: Operation, carried: Sequence[int | None]) -> tuple[Operation | None, list[int | None]]:
    """As `_follow_samples`, through the body of a scan, the branches of a cond or what is under a checkpoint."""
    is_scan = operation.name == "scan"
    constants, carries = equations.scan_sizes(operation.equation) if is_scan else (0, len(carried))
    found, positions = None, []
    for body in operation.bodies:
        inside = carried[len(carried) - len(body.inputs) :]
        sliced = [axis if i < constants + carries or axis is None else axis - 1 for i, axis in enumerate(inside)]
        axes = {value: axis for value, axis in zip(body.inputs, sliced, strict=True) if axis is not None and axis >= 0}
        found = _follow_samples(body, axes) or found
        positions = [axes.get(value) for value in body.outputs]
    if is_scan:
        stacked = range(carries, len(positions))
        positions = [axis + 1 if i in stacked and axis is not None else axis for i, axis in enumerate(positions)]
    return found, positions


def _axis_after(graph: Graph, operation: Operation, carried: Sequence[int | None]) -> int | None:
    """Where the dimension of the samples is in the output of an operation; None where it is lost or not known."""
    name, params = operation.name, operation.equation.params
    shapes = [graph.shapes[value].shape for value in operation.inputs]
    variable = operation.equation.outvars[0]
    shape = variable.aval.shape
    positions = {axis for axis in carried if axis is not None}
    if len(positions) != 1:
        return None
    (axis,) = positions
    side = carried.index(axis)
    length = shapes[side][axis]
    if name == "dot_general":
        return _axis_after_product(params["dimension_numbers"], shapes, carried)
    if name == "conv_general_dilated":
        numbers = params["dimension_numbers"]
        is_batch = carried[1] is None and axis == numbers.lhs_spec[0] and params["batch_group_count"] == 1
        return numbers.out_spec[0] if is_batch else None
    if name == "broadcast_in_dim":
        return params["broadcast_dimensions"][axis]
    if name == "transpose":
        return params["permutation"].index(axis)
    if name == "reshape":
        before = math.prod(shapes[side][:axis])
        same = (i for i, size in enumerate(shape) if size == length and math.prod(shape[:i]) == before)
        return next(same, None)
    if name == "squeeze":
        return (
            None if axis in params["dimensions"] else axis - sum(dimension < axis for dimension in params["dimensions"])
        )
    if name == "stack":
        return axis + (params["axis"] <= axis)
    if name in _REDUCTIONS:
        axes = _axes(operation)
        return None if axis in axes else axis - sum(other < axis for other in axes)
    if name == "gather":
        offsets = params["dimension_numbers"].offset_dims
        batch = [i for i in range(len(shape)) if i not in offsets]
        return batch[axis] if side == 1 and axis < len(batch) else None
    return axis if len(shape) == len(shapes[side]) and shape[axis] == length else None


def _axis_after_product(numbers: Any, shapes: Sequence[Sequence[int]], carried: Sequence[int | None]) -> int | None:
    contracted, batch = numbers
    found = set()
    for side, axis in enumerate(carried):
        if axis is None:
            continue
        if axis in contracted[side]:
            return None
        if axis in batch[side]:
            found.add(tuple(batch[side]).index(axis))
            continue
        free = [[i for i in range(len(shapes[s])) if i not in contracted[s] and i not in batch[s]] for s in (0, 1)]
        found.add(len(batch[0]) + free[side].index(axis) + (len(free[0]) if side else 0))
    return found.pop() if len(found) == 1 else None
