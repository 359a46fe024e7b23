"""The canonical form of operations: what is the same is one operation, and every operand has the shape of the others.

Equal operations on equal values are one. Operands that JAX broadcasts inside of an elementwise operation are broadcast
by an operation of their own. A move of all operands of an elementwise operation comes after that operation. A selection
by a number that stands in the program is what it selects. A slice is one operation in every spelling, and of values
that were put side by side it is one of those that it lies in. What is added or multiplied at some places is added or
multiplied as a whole array. The maximum over a value and a constant that were put side by side is that of the two.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lrp_jax.core import equations, primitives, tokens
from lrp_jax.core.equations import Mark
from lrp_jax.core.graph import Checkpoint, Graph, Held, Operation, Status
from lrp_jax.core.primitive import Family
from lrp_jax.core.ranges import Range, range_of_dtype, ranges_of_outputs
from lrp_jax.core.slices import Slicer, boxes_of_outputs, keeps_order
from lrp_jax.core.statuses import Bodies, if_continuous, status_after

_SCATTERS: Mapping[str, Callable[..., Any]] = {
    "scatter-add": lax.scatter_add,
    "scatter-mul": lax.scatter_mul,
    "scatter-sub": lax.scatter_add,
}
_OF_TWO: Mapping[str, Callable[..., Any]] = {"reduce_max": lax.max, "reduce_min": lax.min}


@dataclass(frozen=True)
class Place:
    """Where an operation stands: in which line, and in what; see `Operation`."""

    location: str
    checkpoints: tuple[Checkpoint, ...] = ()
    is_of_target: bool = False


@dataclass(frozen=True)
class Builder:
    """Appends operations to a graph.

    Attributes:
        graph: The graph.
        hold: Says what an array is that the function has closed over.
        seen: The values that are known, by what they are.
    """

    graph: Graph
    hold: Callable[[Any], Held]
    seen: dict[Any, list[int]] = field(default_factory=dict)

    def _once(self, key: Any, make: Callable[[], list[int]]) -> list[int]:
        """The values that are known under a key; made at the first time."""
        if key not in self.seen:
            self.seen[key] = make()
        return self.seen[key]

    def held(self, aval: Any, array: Any) -> int:
        """The value that an array is that the function has closed over."""
        (value,) = self._once(("held", id(array)), lambda: [self.graph.new_constant(aval, self.hold(array))])
        return value

    def number(self, number: np.ndarray) -> int:
        """The value that a number is that stands in the program."""
        held = Held(number, is_parameter=False, number=number)
        key = ("number", number.dtype, number.shape, number.tobytes())
        return self._once(key, lambda: [self.graph.new_constant(number, held)])[0]

    def add(self, equation: Any, inputs: tuple[int, ...], place: Place, treatment: Any = None) -> list[int]:
        """Adds an operation in canonical form, unless the same is there already; returns its outputs."""
        if equation.primitive.name == "select_n":
            chosen = self.graph.chosen(inputs[0], len(inputs) - 1)
            if chosen is not None:
                return [inputs[1 + chosen]]
        if _changes_nothing(equation):
            return [inputs[0]]
        for known in (self._undone, self._slices, self._scattered, self._first_true, self._product_of_counts):
            if (outputs := known(equation, inputs, place)) is not None:
                return outputs
        if (parts := self._with_and_without_constants(equation, inputs, place)) is not None:
            return [self.add_function(_OF_TWO[equation.primitive.name], parts, place)]
        if primitives.is_elementwise(equation):
            shape = equation.outvars[0].aval.shape
            inputs = tuple(self._broadcast(value, shape, place) for value in inputs)
            if (move := self._shared_move(equation, inputs)) is not None:
                return [self._move_afterwards(equation, inputs, move, place)]
        inputs = self.made_live(equation, inputs, place)
        key = _key(equation, inputs)
        if key is None:
            return self.append(equation, inputs, place, treatment)
        return self._once(key, lambda: self.append(equation, inputs, place, treatment))

    def add_function(self, function: Callable[..., Any], inputs: tuple[int, ...], place: Place) -> int:
        """Adds the one operation that a function is; returns its output."""
        return self.add(equation_of(function, *(self.graph.shapes[i] for i in inputs)), inputs, place)[0]

    def append(self, equation: Any, inputs: tuple[int, ...], place: Place, treatment: Any = None) -> list[int]:
        """Appends an operation without bodies as it is; returns its outputs."""
        graph = self.graph
        looked_up = tokens.looked_up_as_given(graph, equation, inputs)
        inputs = tuple(self._token(value, place) if value in looked_up else value for value in inputs)
        statuses = [graph.status[value] for value in inputs]
        followed: list[tokens.Followed] = []
        if Status.TOKEN in statuses and Status.LIVE not in statuses:
            followed = [tokens.follow(graph, equation, inputs, i) for i in range(len(equation.outvars))]
        after = [found.status for found in followed]
        after = after or [status_after(equation, statuses)] * len(equation.outvars)
        outputs = self._append(equation, inputs, place, after, self._ranges(equation, inputs), treatment=treatment)
        for value, found in zip(outputs, followed, strict=False):
            if graph.is_live(value):
                graph.embeddings.append(value)
            if found.code is not None and graph.is_token(value):
                graph.codes[value] = found.code
            if found.is_lost:
                graph.lost_tokens.add(value)
        if not followed and tokens.stays_as_given(graph, equation, inputs):
            graph.as_given.update(outputs)
        return outputs

    def _token(self, value: int, place: Place) -> int:
        """A value of explained numbers as they were given, as a token: computed again from a copy of these numbers."""
        graph = self.graph
        operation = graph.producer.get(value)
        if operation is None:
            copy = equation_of(jnp.copy, graph.shapes[value])
            ranges = [graph.ranges[value]]
            return self._once(("token", value), lambda: self._append(copy, (value,), place, [Status.TOKEN], ranges))[0]
        inputs = tuple(self._token(i, place) if i in graph.as_given else i for i in operation.inputs)
        made = self._once(("token", id(operation)), lambda: self.append(operation.equation, inputs, place))
        return made[operation.outputs.index(value)]

    def append_bodies(
        self, equation: Any, inputs: tuple[int, ...], place: Place, bodies: Bodies, statuses: Sequence[Status]
    ) -> list[int]:
        """Appends an operation with bodies, which return values of some statuses; returns its outputs."""
        ranges = [range_of_dtype(variable.aval.dtype) for variable in equation.outvars]
        outputs = self._append(equation, inputs, place, statuses, ranges, bodies)
        for output, *inner in zip(outputs, *(body.outputs for body in bodies), strict=True):
            marks = [body.marks.get(value, {}) for body, value in zip(bodies, inner, strict=True)]
            self.graph.mark(output, shared_marks(marks))
        return outputs

    def _append(
        self,
        equation: Any,
        inputs: tuple[int, ...],
        place: Place,
        statuses: Sequence[Status],
        ranges: Sequence[Range],
        bodies: Bodies = (),
        treatment: Any = None,
    ) -> list[int]:
        graph = self.graph
        outputs = [
            graph.new_value(variable.aval, if_continuous(variable.aval, status), bounds)
            for variable, status, bounds in zip(equation.outvars, statuses, ranges, strict=True)
        ]
        if set(statuses) == {Status.CONSTANT} and not graph.parameters.isdisjoint(inputs):
            graph.parameters.update(outputs)
        location, checkpoints, is_of_target = place.location, place.checkpoints, place.is_of_target
        graph.add(Operation(equation, inputs, tuple(outputs), location, bodies, checkpoints, is_of_target, treatment))
        return outputs

    def made_live(self, equation: Any, inputs: tuple[int, ...], place: Place) -> tuple[int, ...]:
        """The inputs of an operation, those made live that it uses as live values."""
        used = tokens.becomes_live(self.graph, equation, inputs)
        live = dict(zip(used, self.live(used, place), strict=True))
        return tuple(live.get(value, value) for value in inputs)

    def live(self, values: Sequence[int], place: Place) -> list[int]:
        """The values, those that are codes in floating point made live."""
        graph = self.graph

        def make(value: int) -> list[int]:
            copy = equation_of(jnp.copy, graph.shapes[value])
            (output,) = self._append(copy, (value,), place, [Status.LIVE], [graph.ranges[value]])
            graph.embeddings.append(output)
            return [output]

        return [
            self._once(("live", value), functools.partial(make, value))[0]
            if value in graph.codes and jnp.issubdtype(graph.shapes[value].dtype, jnp.floating)
            else value
            for value in values
        ]

    def _broadcast(self, value: int, shape: tuple[int, ...], place: Place) -> int:
        """Broadcasts an operand through which relevance flows by an operation of its own."""
        there = self.graph.shapes[value].shape
        if there == shape or self.graph.is_constant(value):
            return value
        dimensions = tuple(range(len(shape) - len(there), len(shape)))
        return self.add_function(lambda x: lax.broadcast_in_dim(x, shape, dimensions), (value,), place)

    def _undone(self, equation: Any, inputs: Sequence[int], place: Place) -> list[int] | None:
        """The value before two changes of its shape of which the second undoes the first; None if there are no such."""
        graph = self.graph
        if not keeps_order(equation) or not graph.is_live(inputs[0]) or inputs[0] in graph.marks:
            return None
        before = graph.producer.get(inputs[0])
        if before is None or not keeps_order(before.equation):
            return None
        is_same = graph.shapes[before.inputs[0]].shape == equation.outvars[0].aval.shape
        return [before.inputs[0]] if is_same else None

    def _slices(self, equation: Any, inputs: Sequence[int], place: Place) -> list[int] | None:
        """What an equation returns that takes slices: of the parts in which they lie; None for another equation."""
        graph = self.graph
        if not inputs or not graph.is_live(inputs[0]):
            return None
        slicer = Slicer(graph, functools.partial(self.add_function, place=place))
        boxes = boxes_of_outputs(graph, equation, inputs)
        found = [slicer.within(inputs[0], box) for box in boxes]
        if not boxes or (equation.primitive.name == "slice" and found == [None]):
            return None
        pairs = zip(found, boxes, strict=True)
        slices = [slicer.sliced(inputs[0], box) if value is None else value for value, box in pairs]
        return [slicer.reshaped(value, out.aval.shape) for value, out in zip(slices, equation.outvars, strict=True)]

    def _scattered(self, equation: Any, inputs: Sequence[int], place: Place) -> list[int] | None:
        """A sum or product at some places as one at all places, with a constant; a difference there as a sum there."""
        name, graph = equation.primitive.name, self.graph
        if name not in _SCATTERS or not graph.is_live(inputs[0]):
            return None
        add = functools.partial(self.add_function, place=place)
        names = ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
        function = functools.partial(_SCATTERS[name], **{name: equation.params[name] for name in names})
        x, indices, updates = inputs
        if name == "scatter-sub":
            return [add(function, (x, indices, add(lax.neg, (updates,))))]
        if not all(map(graph.is_constant, inputs[1:])) and (name == "scatter-add" or graph.is_live(updates)):
            return None
        is_sum = name == "scatter-add"
        filled = self._filled(0 if is_sum else 1, graph.shapes[x], place)
        return [add(lax.add if is_sum else lax.mul, (x, add(function, (filled, indices, updates))))]

    def _filled(self, number: float, like: Any, place: Place) -> int:
        """An array that is filled with a number."""
        value = self.number(np.asarray(number, like.dtype))
        if not like.shape:
            return value
        return self.add_function(lambda x: lax.broadcast_in_dim(x, like.shape, ()), (value,), place)

    def _first_true(self, equation: Any, inputs: Sequence[int], place: Place) -> list[int] | None:
        """Which of stacked conditions is the first that holds, as in `jnp.select`, element by element."""
        stack = self.graph.producer.get(inputs[0]) if equation.primitive.name == "argmax" else None
        if stack is None or stack.name != "stack" or equation.params["axes"] != (stack.equation.params["axis"],):
            return None
        if self.graph.shapes[inputs[0]].dtype != jnp.bool_:
            return None
        cases = [self._filled(i, equation.outvars[0].aval, place) for i in range(len(stack.inputs))]
        first = cases[0]
        for condition, case in zip(stack.inputs[::-1], cases[::-1], strict=True):
            first = self.add_function(lax.select_n, (condition, first, case), place)
        return [first]

    def _product_of_counts(self, equation: Any, inputs: Sequence[int], place: Place) -> list[int] | None:
        """A product of a table and of integers that are made of explained ones: with these as numbers of its kind."""
        graph = self.graph
        if Family.LINEAR_MAP not in primitives.family_of(equation):
            return None
        dtype = equation.outvars[0].aval.dtype
        tokens = [i for i in inputs[:2] if graph.is_token(i)]
        counts = [i for i in tokens if not jnp.issubdtype(graph.shapes[i].dtype, jnp.floating)]
        if not counts or not jnp.issubdtype(dtype, jnp.floating):
            return None
        cast = functools.partial(lax.convert_element_type, new_dtype=dtype)
        operands = tuple(self.add_function(cast, (i,), place) if i in counts else i for i in inputs)
        return [self.add_function(functools.partial(equations.run, equation), operands, place)]

    def _with_and_without_constants(self, equation: Any, inputs: Sequence[int], place: Place) -> tuple[int, ...] | None:
        """The largest (or smallest) of constants, and of all else, where both stand side by side; None otherwise."""
        graph = self.graph
        together = graph.producer.get(inputs[0]) if equation.primitive.name in _OF_TWO else None
        if together is None or together.name not in {"concatenate", "stack"}:
            return None
        dimension = together.equation.params["axis" if together.name == "stack" else "dimension"]
        parts = [[i for i in together.inputs if graph.is_constant(i) is is_constant] for is_constant in (True, False)]
        if dimension not in equation.params["axes"] or not all(parts) or not any(map(graph.is_live, parts[1])):
            return None
        if together.name == "stack":
            expanded = functools.partial(lax.expand_dims, dimensions=(dimension,))
            parts = [[self.add_function(expanded, (value,), place) for value in part] for part in parts]
        return tuple(self._reduced(equation, part, dimension, place) for part in parts)

    def _reduced(self, equation: Any, part: Sequence[int], dimension: int, place: Place) -> int:
        """A reduction along some axes of values that stand side by side; none is needed along axes of one element."""
        value, axes = part[0], equation.params["axes"]
        if len(part) > 1:
            value = self.add_function(lambda *x: lax.concatenate(x, dimension), tuple(part), place)
        if all(self.graph.shapes[value].shape[axis] == 1 for axis in axes):
            return self.add_function(lambda x: lax.squeeze(x, axes), (value,), place)
        return self.add_function(functools.partial(equations.run, equation), (value,), place)

    def _shared_move(self, equation: Any, inputs: Sequence[int]) -> Operation | None:
        """The move by which all operands of an elementwise operation but numbers are brought into the same order."""
        graph = self.graph
        is_cast = _is_cast(equation)
        varying = [value for value in inputs if graph.number(value) is None]
        statuses = {graph.status[value] for value in varying}
        if not varying or not statuses <= {Status.LIVE, Status.HELD} or not graph.marks.keys().isdisjoint(varying):
            return None
        if Family.ELEMENTWISE not in primitives.family_of(equation) and not is_cast:
            return None
        first, *others = (graph.producer.get(value) for value in varying)
        if first is None or Family.REARRANGEMENT not in first.family:
            return None
        before = graph.shapes[first.inputs[0]].shape
        for other in others:
            if other is None or (other.name, other.equation.params) != (first.name, first.equation.params):
                return None
            if graph.shapes[other.inputs[0]].shape != before:
                return None
        return first

    def _move_afterwards(self, equation: Any, inputs: Sequence[int], move: Operation, place: Place) -> int:
        """Applies an elementwise operation to what its operands were before a move, and moves what it returns."""
        graph = self.graph
        before, there = graph.shapes[move.inputs[0]].shape, equation.outvars[0].aval
        operands = []
        for value in inputs:
            number = graph.number(value)
            if number is None:
                operands.append(graph.producer[value].inputs[0])
                continue
            operand = self.number(number.astype(graph.shapes[value].dtype))
            if before and (graph.shapes[value].shape or not there.shape):
                operand = self.add_function(lambda x: lax.broadcast_in_dim(x, before, ()), (operand,), place)
            operands.append(operand)
        made = equation_of(functools.partial(equations.run, equation), *(graph.shapes[i] for i in operands))
        (output,) = self.add(made.replace(source_info=equation.source_info), tuple(operands), place)
        moved = replace(place, location=move.location)
        return self.add_function(functools.partial(equations.run, move.equation), (output,), moved)

    def _ranges(self, equation: Any, inputs: Sequence[int]) -> list[Range]:
        """The ranges of an equation's outputs."""
        known = [self.graph.ranges[value] for value in inputs]
        is_square = len(inputs) == 2 and inputs[0] == inputs[1]
        return ranges_of_outputs(primitives.named(equation.primitive.name).bounds, equation, known, is_square)


def equation_of(fun: Callable[..., Any], *operands: jax.ShapeDtypeStruct) -> Any:
    """The equation that a function of one operation is."""
    (equation,) = jax.make_jaxpr(fun)(*operands).jaxpr.eqns
    return equation


def _is_cast(equation: Any) -> bool:
    """Whether an equation is a conversion to another dtype."""
    return equation.primitive.name == "convert_element_type" and equation.params["sharding"] is None


def _changes_nothing(equation: Any) -> bool:
    """Whether an equation is a conversion to the same dtype, which only settles the type of a Python number."""
    return _is_cast(equation) and equation.invars[0].aval.dtype == equation.params["new_dtype"]


def shared_marks(marks: Sequence[Mapping[Mark, str]]) -> dict[Mark, str]:
    """What is said of factors of a value that enters or leaves a loop or a branch, in all of them."""
    shared = {Mark.GATE, Mark.SIGNAL}.intersection(*marks) if marks else set()
    return {mark: marks[0][mark] for mark in Mark if mark in shared}


def _key(equation: Any, inputs: Sequence[int]) -> Any:
    """What two equations have in common that compute the same; None for one that stands for itself."""
    if equations.has_side_effect(equation) or primitives.has_bodies(equation):
        return None
    key = (equation.primitive, tuple(inputs), tuple(sorted(equation.params.items(), key=lambda item: item[0])))
    try:
        hash(key)
    except TypeError:
        return None
    return key
