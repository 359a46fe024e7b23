"""Where the dimension of the samples is in what a single operation returns, and whether it combines samples."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lrp_jax.core.graph import Graph, Operation
from lrp_jax.core.primitive import Family


def is_reduction(operation: Operation) -> bool:
    """Whether an operation makes one value of all along some dimensions."""
    return Family.REDUCTION in operation.family or operation.name == "psum"


def axes_of(operation: Operation) -> list[int]:
    """The dimensions over which an operation reduces; a `psum` may name others, which belong to no single device."""
    return [int(axis) for axis in operation.equation.params["axes"] if isinstance(axis, int | np.integer)]


def reduces(graph: Graph, operation: Operation, carried: Sequence[int | None]) -> bool:
    """Whether an operation makes one value of all samples, as their sum or the largest of them.

    Args:
        graph: The function that it belongs to.
        operation: The operation.
        carried: For each operand, which dimension is that of the samples; None for no dimension.
    """
    if is_reduction(operation):
        return carried[0] in axes_of(operation)
    if operation.name != "dot_general" or mixes(graph, operation, carried):
        return False
    (contracted, _) = operation.equation.params["dimension_numbers"]
    return all(axis is None or axis in dims for axis, dims in zip(carried, contracted, strict=True))


def is_batch_of_convolution(operation: Operation, carried: Sequence[int | None]) -> bool:
    """Whether an operation is a convolution for which the samples are its batch."""
    if operation.name != "conv_general_dilated":
        return False
    params = operation.equation.params
    return carried[0] == params["dimension_numbers"].lhs_spec[0] and params["batch_group_count"] == 1


def mixes(graph: Graph, operation: Operation, carried: Sequence[int | None]) -> bool:
    """Whether an operation combines samples otherwise than by one statistic of all of them; arguments as `reduces`."""
    shapes = [graph.shapes[value].shape for value in operation.inputs]
    places = [(side, axis) for side, axis in enumerate(carried) if axis is not None]
    return any(_mixes_operand(operation, shapes, carried, side, axis) for side, axis in places)


def _mixes_operand(
    operation: Operation, shapes: Sequence[Sequence[int]], carried: Sequence[int | None], side: int, axis: int
) -> bool:
    name, params = operation.name, operation.equation.params
    numbers = params.get("dimension_numbers")
    if name == "dot_general":
        contracted, batch = numbers
        other = 1 - side
        if axis not in contracted[side]:
            return False
        is_same = carried[other] == contracted[other][contracted[side].index(axis)]
        used = (*contracted[other], *batch[other])
        return not is_same and math.prod(size for i, size in enumerate(shapes[other]) if i not in used) > 1
    if name == "conv_general_dilated":
        place = numbers.lhs_spec.index(axis)
        is_along = place == 1 or (place > 1 and shapes[1][numbers.rhs_spec[place]] > 1)
        return side == 0 and is_along
    if Family.WINDOW in operation.family:
        return params["window_dimensions"][axis] > 1
    if Family.CUMULATIVE in operation.family:
        return params["axis"] == axis
    if name == "gather":
        return side == 0 and numbers.start_index_map == (axis,) and math.prod(shapes[1][:-1]) > 1
    if name.startswith("scatter"):
        is_batch = bool(numbers.scatter_indices_batching_dims)
        is_paired = is_batch or len(numbers.scatter_dims_to_operand_dims) > 1  # with other indices, as arange(n)
        return side == 2 and axis not in numbers.update_window_dims and not is_paired
    return False


def axis_after(graph: Graph, operation: Operation, carried: Sequence[int | None]) -> int | None:
    """Where the dimension of the samples is in the output of an operation; None where it is lost or not known.

    Arguments as `reduces`.
    """
    name, params = operation.name, operation.equation.params
    shapes = [graph.shapes[value].shape for value in operation.inputs]
    shape = operation.equation.outvars[0].aval.shape
    positions = {axis for axis in carried if axis is not None}
    if len(positions) != 1:
        return None
    (axis,) = positions
    side = carried.index(axis)
    match name:
        case "dot_general":
            return _after_product(params["dimension_numbers"], shapes, carried)
        case "conv_general_dilated":
            is_batch = carried[1] is None and is_batch_of_convolution(operation, carried)
            return params["dimension_numbers"].out_spec[0] if is_batch else None
        case "broadcast_in_dim":
            return params["broadcast_dimensions"][axis]
        case "transpose":
            return params["permutation"].index(axis)
        case "reshape":
            return _after_reshape(shapes[side], shape, axis)
        case "stack":
            return axis + (params["axis"] <= axis)
        case "gather":
            return _after_gather(params, shapes, shape, side, axis)
    if name == "squeeze" or is_reduction(operation):
        return _without(params["dimensions"] if name == "squeeze" else axes_of(operation), axis)
    return axis if len(shape) == len(shapes[side]) and shape[axis] == shapes[side][axis] else None


def _without(gone: Sequence[int], axis: int) -> int | None:
    return None if axis in gone else axis - sum(other < axis for other in gone)


def _after_reshape(before: Sequence[int], after: Sequence[int], axis: int) -> int | None:
    """Also where the samples are merged with dimensions behind them, or parted from such."""
    length, outer = before[axis], math.prod(before[:axis])
    there = [i for i, _ in enumerate(after) if math.prod(after[:i]) == outer]
    same = [i for i in there if after[i] == length]
    merged = [i for i in there if length and after[i] % length == 0]
    parted = [i for i in there if after[i] > 1 and length % after[i] == 0]
    return next(iter((*same, *merged, *parted)), None)


def _after_gather(
    params: Any, shapes: Sequence[Sequence[int]], after: Sequence[int], side: int, axis: int
) -> int | None:
    numbers = params["dimension_numbers"]
    batch = [i for i in range(len(after)) if i not in numbers.offset_dims]
    if side == 1:
        return batch[axis] if axis < len(batch) else None
    if axis in numbers.operand_batching_dims:
        return batch[numbers.start_indices_batching_dims[numbers.operand_batching_dims.index(axis)]]
    if axis in numbers.start_index_map and len(numbers.start_index_map) > 1:  # x[arange(n), index]
        return batch[0] if batch and after[batch[0]] == shapes[0][axis] else None
    kept = _without((*numbers.collapsed_slice_dims, *numbers.operand_batching_dims), axis)
    is_whole = kept is not None and params["slice_sizes"][axis] == shapes[0][axis]
    return numbers.offset_dims[kept] if is_whole else None


def _after_product(numbers: Any, shapes: Sequence[Sequence[int]], carried: Sequence[int | None]) -> int | None:
    contracted, batch = numbers
    free = [len(shape) - len(contracted[side]) - len(batch[side]) for side, shape in enumerate(shapes)]
    found: set[int | None] = set()
    for side, axis in enumerate(carried):
        if axis is None:
            continue
        if axis in batch[side]:
            found.add(tuple(batch[side]).index(axis))
        else:
            kept = _without((*contracted[side], *batch[side]), axis)
            found.add(None if kept is None else len(batch[side]) + kept + (free[0] if side else 0))
    return found.pop() if len(found) == 1 else None
