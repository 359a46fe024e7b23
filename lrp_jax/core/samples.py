"""Where the dimension of the samples is in what a single operation returns, and whether it combines samples.

Which rule is that of which primitive stands in `lrp_jax.core.primitives`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

Shape: TypeAlias = Sequence[int]


@dataclass(frozen=True)
class Carried:
    """An operation on values of which some have a dimension of the samples.

    Attributes:
        params: The parameters of the operation.
        shapes: The shapes of its operands.
        shape: The shape of its output.
        axes: For each operand, which dimension is that of the samples; None for no dimension.
    """

    params: Mapping[str, Any]
    shapes: Sequence[Shape]
    shape: Shape
    axes: Sequence[int | None]

    @property
    def places(self) -> list[tuple[int, int]]:
        """The positions of the operands with a dimension of the samples, and that dimension."""
        return [(side, axis) for side, axis in enumerate(self.axes) if axis is not None]


def _kept(carried: Carried, side: int, axis: int) -> int | None:
    shape, before = carried.shape, carried.shapes[side]
    return axis if len(shape) == len(before) and shape[axis] == before[axis] else None


@dataclass(frozen=True)
class Samples:
    """What a primitive does with the dimension of the samples.

    Attributes:
        moved: Where the dimension of an operand is in the output, given the position of the operand and the dimension;
            None where it is lost or not known.
        mixed: Whether the samples of an operand are combined otherwise than by one statistic of all of them.
        reduced: Whether one value is made of all samples, as their sum or the largest of them.
        is_batch: Whether the samples are the batch of a convolution.
    """

    moved: Callable[[Carried, int, int], int | None] = _kept
    mixed: Callable[[Carried, int, int], bool] = lambda carried, side, axis: False
    reduced: Callable[[Carried], bool] = lambda carried: False
    is_batch: Callable[[Carried], bool] = lambda carried: False

    def axis_after(self, carried: Carried) -> int | None:
        """Where the dimension of the samples is in the output; None where it is lost or not known."""
        if len({axis for _, axis in carried.places}) != 1:
            return None
        return self.moved(carried, *carried.places[0])

    def mixes(self, carried: Carried) -> bool:
        """Whether samples are combined otherwise than by one statistic of all of them."""
        return any(self.mixed(carried, side, axis) for side, axis in carried.places)


def axes_of(params: Mapping[str, Any]) -> list[int]:
    """The dimensions over which an operation reduces; a `psum` may name others, which belong to no single device."""
    return [int(axis) for axis in params["axes"] if isinstance(axis, int | np.integer)]


def _without(gone: Sequence[int], axis: int) -> int | None:
    return None if axis in gone else axis - sum(other < axis for other in gone)


def _moved_by_reshape(carried: Carried, side: int, axis: int) -> int | None:
    """Also where the samples are merged with dimensions behind them, or parted from such."""
    before, after = carried.shapes[side], carried.shape
    length, outer = before[axis], math.prod(before[:axis])
    there = [i for i, _ in enumerate(after) if math.prod(after[:i]) == outer]
    same = [i for i in there if after[i] == length]
    merged = [i for i in there if length and after[i] % length == 0]
    parted = [i for i in there if after[i] > 1 and length % after[i] == 0]
    return next(iter((*same, *merged, *parted)), None)


def _moved_by_gather(carried: Carried, side: int, axis: int) -> int | None:
    params, shapes, after = carried.params, carried.shapes, carried.shape
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


def _mixed_by_gather(carried: Carried, side: int, axis: int) -> bool:
    start = carried.params["dimension_numbers"].start_index_map
    return side == 0 and start == (axis,) and math.prod(carried.shapes[1][:-1]) > 1


def _mixed_by_scatter(carried: Carried, side: int, axis: int) -> bool:
    numbers = carried.params["dimension_numbers"]
    is_batch = bool(numbers.scatter_indices_batching_dims)
    is_paired = is_batch or len(numbers.scatter_dims_to_operand_dims) > 1  # with other indices, as arange(n)
    return side == 2 and axis not in numbers.update_window_dims and not is_paired


def _moved_by_product(carried: Carried, side: int, axis: int) -> int | None:
    contracted, batch = carried.params["dimension_numbers"]
    free = [len(shape) - len(contracted[i]) - len(batch[i]) for i, shape in enumerate(carried.shapes)]
    found: set[int | None] = set()
    for i, place in carried.places:
        if place in batch[i]:
            found.add(tuple(batch[i]).index(place))
        else:
            kept = _without((*contracted[i], *batch[i]), place)
            found.add(None if kept is None else len(batch[i]) + kept + (free[0] if i else 0))
    return found.pop() if len(found) == 1 else None


def _mixed_by_product(carried: Carried, side: int, axis: int) -> bool:
    contracted, batch = carried.params["dimension_numbers"]
    other = 1 - side
    if axis not in contracted[side]:
        return False
    is_same = carried.axes[other] == contracted[other][contracted[side].index(axis)]
    used = (*contracted[other], *batch[other])
    return not is_same and math.prod(size for i, size in enumerate(carried.shapes[other]) if i not in used) > 1


def _reduced_by_product(carried: Carried) -> bool:
    (contracted, _) = carried.params["dimension_numbers"]
    is_summed = all(axis in contracted[side] for side, axis in carried.places)
    return is_summed and not any(_mixed_by_product(carried, side, axis) for side, axis in carried.places)


def _moved_by_convolution(carried: Carried, side: int, axis: int) -> int | None:
    is_batch = carried.axes[1] is None and _is_batch_of_convolution(carried)
    return carried.params["dimension_numbers"].out_spec[0] if is_batch else None


def _mixed_by_convolution(carried: Carried, side: int, axis: int) -> bool:
    numbers = carried.params["dimension_numbers"]
    place = numbers.lhs_spec.index(axis)
    return side == 0 and (place == 1 or (place > 1 and carried.shapes[1][numbers.rhs_spec[place]] > 1))


def _is_batch_of_convolution(carried: Carried) -> bool:
    params = carried.params
    return carried.axes[0] == params["dimension_numbers"].lhs_spec[0] and params["batch_group_count"] == 1


KEPT = Samples()
"""The dimension stays where it is, if there still is one of its length."""

BROADCAST = Samples(lambda carried, side, axis: carried.params["broadcast_dimensions"][axis])
TRANSPOSE = Samples(lambda carried, side, axis: carried.params["permutation"].index(axis))
RESHAPE = Samples(_moved_by_reshape)
SQUEEZE = Samples(lambda carried, side, axis: _without(carried.params["dimensions"], axis))
STACK = Samples(lambda carried, side, axis: axis + (carried.params["axis"] <= axis))
GATHER = Samples(_moved_by_gather, _mixed_by_gather)
SCATTER = Samples(mixed=_mixed_by_scatter)
CUMULATIVE = Samples(mixed=lambda carried, side, axis: carried.params["axis"] == axis)
WINDOW = Samples(mixed=lambda carried, side, axis: carried.params["window_dimensions"][axis] > 1)
REDUCTION = Samples(
    lambda carried, side, axis: _without(axes_of(carried.params), axis),
    reduced=lambda carried: carried.axes[0] in axes_of(carried.params),
)
PRODUCT = Samples(_moved_by_product, _mixed_by_product, _reduced_by_product)
CONVOLUTION = Samples(_moved_by_convolution, _mixed_by_convolution, is_batch=_is_batch_of_convolution)
