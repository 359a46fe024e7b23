"""Slices of values that were put side by side: each is a slice of the values that it lies in.

What a slice keeps of a value is a box. It is followed back, through moves and elementwise operations, to where values
were put side by side, or padding around one. If it lies in some of them, the slice is made of these alone.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from jax import lax

from lrp_jax.core import equations
from lrp_jax.core.graph import Graph, Operation
from lrp_jax.core.primitive import Family

Box: TypeAlias = tuple[range, ...]
"""Which elements are kept, along each dimension."""

Shape: TypeAlias = Sequence[int]

_Before: TypeAlias = tuple[int, Box, Callable[[int], int]]
"""A slice before an operation: the value there, the box, and what has to be done with it again."""


def boxes_of_outputs(graph: Graph, equation: Any, inputs: Sequence[int]) -> list[Box]:
    """What each output of an equation keeps of its first operand; nothing if it is no slice at known places."""
    params, name = equation.params, equation.primitive.name
    if name not in {"slice", "dynamic_slice", "gather", "split", "unstack"}:
        return []
    whole = _whole(graph.shapes[inputs[0]].shape)
    if name == "slice":
        strides = params["strides"] or [1] * len(whole)
        bounds = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
        return [tuple(kept[slice(*bound)] for kept, bound in zip(whole, bounds, strict=True))]
    if name in {"dynamic_slice", "gather"}:
        starts, sizes = _starts(graph, equation, inputs), params["slice_sizes"]
        bounds = zip(whole, starts, sizes, strict=False)
        return [tuple(kept[start : start + size] for kept, start, size in bounds)] if starts else []
    axis = params["axis"]
    ends = list(itertools.accumulate(params["sizes"])) if name == "split" else range(1, len(whole[axis]) + 1)
    sizes = params["sizes"] if name == "split" else [1] * len(ends)
    return [_with(whole, axis, range(int(end - size), int(end))) for end, size in zip(ends, sizes, strict=True)]


def _starts(graph: Graph, equation: Any, inputs: Sequence[int]) -> list[int]:
    """Where a slice starts whose places are operands; nothing if they are not known."""
    shape, sizes = graph.shapes[inputs[0]].shape, equation.params["slice_sizes"]
    numbers = [int(number) for number in map(graph.number, inputs[1:]) if number is not None]
    if len(numbers) < len(inputs) - 1:
        return []
    if equation.primitive.name == "gather":
        known = equation.params["dimension_numbers"]
        if len(known.start_index_map) != 1 or math.prod(graph.shapes[inputs[1]].shape) != 1:
            return []
        (axis,) = known.start_index_map
        (start,) = numbers
        return [start if i == axis else 0 for i in range(len(shape))] if 0 <= start <= shape[axis] - sizes[axis] else []
    return [min(max(start, 0), size - kept) for start, size, kept in zip(numbers, shape, sizes, strict=True)]


@dataclass(frozen=True)
class Slicer:
    """Makes slices of the values that they lie in.

    Attributes:
        graph: The graph.
        add: Adds the one operation that a function of some values is; returns its output.
    """

    graph: Graph
    add: Callable[[Callable[..., Any], tuple[int, ...]], int]

    def sliced(self, value: int, box: Box) -> int:
        """The slice of a value; itself if everything is kept."""
        if box == _whole(self.graph.shapes[value].shape):
            return value
        ends = [r[-1] + 1 if r else r.start for r in box]
        bounds = ([r.start for r in box], ends, [r.step for r in box])
        return self.add(lambda x: lax.slice(x, *bounds), (value,))

    def reshaped(self, value: int, shape: Shape) -> int:
        """The value in another shape; itself if it is the same."""
        same = self.graph.shapes[value].shape == tuple(shape)
        return value if same else self.add(lambda x: lax.reshape(x, shape), (value,))

    def within(self, value: int, box: Box) -> int | None:
        """The slice of a value, made of those of some values that it lies in; None if there are no such."""
        afterwards: list[Callable[[int], int]] = []
        while self.graph.is_live(value) and value in self.graph.producer and value not in self.graph.marks and all(box):
            operation = self.graph.producer[value]
            if operation.name in {"concatenate", "stack", "pad"}:
                found = self._unpadded(operation, box) if operation.name == "pad" else self._of_parts(operation, box)
                return None if found is None else functools.reduce(lambda i, again: again(i), afterwards[::-1], found)
            before = self._before(operation, box)
            if before is None:
                return None
            value, box, again = before
            afterwards.append(again)
        return None

    def _before(self, operation: Operation, box: Box) -> _Before | None:
        """The same slice before an operation; None if it is none there."""
        params, shapes = operation.equation.params, self.graph.shapes
        first, before = operation.inputs[0], shapes[operation.inputs[0]].shape
        kept = tuple(map(len, box))
        match operation.name:
            case "reshape" | "squeeze":
                inner = _before_reshape(box, shapes[operation.outputs[0]].shape, before)
                return None if inner is None else (first, inner, lambda found: self.reshaped(found, kept))
            case "broadcast_in_dim":
                to = params["broadcast_dimensions"]
                inner = tuple(box[i] if n > 1 else range(1) for i, n in zip(to, before, strict=True))
                return first, inner, lambda found: self.add(lambda x: lax.broadcast_in_dim(x, kept, to), (found,))
            case "transpose":
                order = params["permutation"]
                inner = tuple(box[order.index(i)] for i in range(len(box)))
                return first, inner, lambda found: self.add(lambda x: lax.transpose(x, order), (found,))
            case "slice":
                (outer,) = boxes_of_outputs(self.graph, operation.equation, operation.inputs)
                inner = tuple(_inner(there, r) for there, r in zip(outer, box, strict=True))
                return first, inner, lambda found: found
        is_elementwise = Family.ELEMENTWISE in operation.family or operation.name in {"convert_element_type", "copy"}
        return self._before_elementwise(operation, box) if is_elementwise else None

    def _unpadded(self, operation: Operation, box: Box) -> int | None:
        """What a box keeps of a value with padding around it; None if it keeps padding, too."""
        value = operation.inputs[0]
        inner = _before_pad(box, operation.equation.params["padding_config"], self.graph.shapes[value].shape)
        if inner is None:
            return None
        found = self.within(value, inner)
        return self.sliced(value, inner) if found is None else found

    def _of_parts(self, operation: Operation, box: Box) -> int | None:
        """What a box keeps of values that were put side by side; None if it is something of each."""
        is_stack = operation.name == "stack"
        axis = operation.equation.params["axis" if is_stack else "dimension"]
        sizes = [1 if is_stack else self.graph.shapes[value].shape[axis] for value in operation.inputs]
        ends, found = itertools.accumulate(sizes), []
        for value, size, end in zip(operation.inputs, sizes, ends, strict=True):
            inside = [i - end + size for i in box[axis] if end - size <= i < end]
            if inside:
                there = range(inside[0], inside[-1] + 1, box[axis].step)
                found.append((value, (*box[:axis], *box[axis + 1 :]) if is_stack else _with(box, axis, there)))
        if len(found) == len(operation.inputs):
            return None
        parts = tuple(self.sliced(*part) for part in found)
        if len(parts) == 1 and is_stack:
            return self.add(lambda x: lax.expand_dims(x, (axis,)), parts)
        return parts[0] if len(parts) == 1 else self.add(_same(operation), parts)

    def _before_elementwise(self, operation: Operation, box: Box) -> _Before | None:
        """As `_before`, for one live value beside constants, which may have dimensions of one element."""
        graph, live = self.graph, self.graph.live_inputs(operation)
        if len(live) != 1:
            return None
        whole = graph.shapes[operation.outputs[0]].shape

        def again(found: int) -> int:
            operands = list(operation.inputs)
            for i, value in enumerate(operands):
                shape = graph.shapes[value].shape
                there = tuple(kept if n == size else range(1) for kept, n, size in zip(box, shape, whole, strict=False))
                operands[i] = found if i == live[0] else self.sliced(value, there) if shape else value
            return self.add(_same(operation), tuple(operands))

        return operation.inputs[live[0]], box, again


def _same(operation: Operation) -> Callable[..., Any]:
    """The operation as a function of other values."""
    return functools.partial(equations.run, operation.equation)


def _whole(shape: Shape) -> Box:
    return tuple(map(range, shape))


def _with(box: Sequence[range], axis: int, kept: range) -> Box:
    return (*box[:axis], kept, *box[axis + 1 :])


def _inner(outer: range, kept: range) -> range:
    """What is kept of what was kept before, in places of the whole."""
    return outer[kept.start : kept[-1] + 1 : kept.step]


def _before_pad(box: Box, padding: Sequence[tuple[int, int, int]], before: Shape) -> Box | None:
    """What is kept of a value by what is kept of it with padding around; None if there is padding in it, or between."""
    inner = tuple(
        range(kept.start - low, kept.stop - low, kept.step) for kept, (low, *_) in zip(box, padding, strict=True)
    )
    is_inside = all(kept.start >= 0 and kept[-1] < size for kept, size in zip(inner, before, strict=True))
    return inner if is_inside and not any(between for *_, between in padding) else None


def _before_reshape(box: Box, after: Shape, before: Shape) -> Box | None:
    """What is kept of a value by what is kept of it in another shape; None if that is no box."""
    found: list[range] = []
    for there, here in _groups(after, before):
        kept, sizes = [box[i] for i in there], [before[i] for i in here]
        of_some = [[i for i, n in enumerate(group) if n > 1] for group in ([after[i] for i in there], sizes)]
        if len(of_some[0]) == len(of_some[1]) == 1:  # but for dimensions of one element the same
            found.extend(_with([range(1)] * len(sizes), of_some[1][0], kept[of_some[0][0]]))
            continue
        run = _run_of(kept, [after[i] for i in there])
        inner = None if run is None else _box_of_run(run, sizes)
        if inner is None:
            return None
        found.extend(inner)
    return tuple(found)


def _groups(one: Shape, other: Shape) -> Iterator[tuple[list[int], list[int]]]:
    """The dimensions of two shapes that hold the same elements, in order."""
    i = j = 0
    while i < len(one) or j < len(other):
        first, second = [i, i + 1], [j, j + 1]
        if i == len(one) or j == len(other):  # dimensions of one element are left
            first[1], second[1] = len(one), len(other)
        while (sizes := (math.prod(one[slice(*first)]), math.prod(other[slice(*second)])))[0] != sizes[1]:
            side = first if sizes[0] < sizes[1] else second
            side[1] += 1
        i, j = first[1], second[1]
        yield list(range(*first)), list(range(*second))


def _run_of(box: Sequence[range], shape: Shape) -> range | None:
    """The places of a box, counted in row-major order, if they are as far apart from each other; else None."""
    start = 0
    for kept, size in zip(box, shape, strict=True):
        start = start * size + kept.start
    wide = [i for i, kept in enumerate(box) if len(kept) > 1] or [len(box) - 1]
    first, last = wide[0], wide[-1]
    inner = zip(box[first + 1 : last + 1], shape[first + 1 : last + 1], strict=True)
    if first < last and (box[first].step > 1 or any(len(kept) != size for kept, size in inner)):
        return None
    step = math.prod(shape[last + 1 :]) * (box[last].step if first == last and box else 1)
    return range(start, start + math.prod(map(len, box)) * step, step)


def _box_of_run(run: range, shape: Shape) -> Box | None:
    """The box that is made of places, counted in row-major order, that are as far apart from each other; else None."""
    if not shape:
        return ()
    rest = math.prod(shape[1:])
    (first, start), (last, end), step = divmod(run.start, rest), divmod(run[-1], rest), run.step
    if first == last:
        outer, inside = range(first, first + 1), range(start, end + 1, step)
    elif step % rest == 0:
        outer, inside = range(first, last + 1, step // rest), range(start, start + 1)
    elif rest % step == 0 and start < step and len(run) * step % rest == 0:
        outer, inside = range(first, last + 1), range(start, rest, step)
    else:
        return None
    inner = _box_of_run(inside, shape[1:])
    return None if inner is None else (outer, *inner)


def keeps_order(equation: Any) -> bool:
    """Whether an equation changes nothing about a value but its shape."""
    name = equation.primitive.name
    if name not in {"reshape", "squeeze", "broadcast_in_dim"}:
        return False
    sizes = [math.prod(variable.aval.shape) for variable in (equation.invars[0], equation.outvars[0])]
    return sizes[0] == sizes[1]
