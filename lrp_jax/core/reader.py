"""Reading a program: from a jaxpr to a flat list of operations in one canonical form.

`read` follows the operations of a jaxpr in order and looks into every call on the way (`jax.jit`, `jax.custom_jvp`,
`jax.checkpoint`, ...): a helper under `jax.jit` is the same as its lines written out. Equal operations on equal values
are one operation, and operands that JAX broadcasts inside of an elementwise operation are broadcast by one of their
own. Of every value the graph says whether relevance can flow through it, between which bounds it lies, whether it is a
parameter, and where in the model it comes from.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core

from lrp_jax.core import equations, forms, primitives, tokens
from lrp_jax.core.control import Control
from lrp_jax.core.equations import Mark
from lrp_jax.core.graph import Checkpoint, Code, Graph, Held, Operation, Status
from lrp_jax.core.primitives import Family
from lrp_jax.core.ranges import FREE, Range, range_of_dtype, ranges_of_outputs
from lrp_jax.core.statuses import Bodies, follow_bodies, if_continuous, is_followed, status_after


@dataclass(frozen=True)
class Input:
    """What is known of an input of a function.

    Attributes:
        status: Whether it is explained.
        path: The path of the parameter that it is; empty for none.
        bounds: Between which it lies; those of its dtype if None.
        number: The number with which it is filled, if it stands in the program.
        code: What it is if it is made of explained integers.
        marks: What the user says of it, and where.
        is_parameter: Whether it is a parameter.
    """

    status: Status
    path: str = ""
    bounds: Range | None = None
    number: np.ndarray | None = None
    code: Code | None = None
    marks: Mapping[Mark, str] = field(default_factory=dict)
    is_parameter: bool = False


def read(
    program: core.ClosedJaxpr,
    inputs: Sequence[Input],
    *,
    hold: Callable[[Any], Held] = Held,
    then: core.ClosedJaxpr | None = None,
    caller: str = "an unknown line",
    is_of_target: bool = False,
) -> Graph:
    """Reads a jaxpr as a flat list of operations.

    Args:
        program: The traced function.
        inputs: What is known of its inputs.
        hold: Called with every array that the function, or a function that it calls, has closed over.
        then: A further function, of all outputs: what is explained of them. The graph's outputs are those of the first
            function, followed by those of this one.
        caller: The line that calls the function.
        is_of_target: Whether the function is a part of what says what is explained.

    Returns:
        The graph of the function.
    """
    graph = Graph()
    for variable, known in zip(program.jaxpr.invars, inputs, strict=True):
        graph.inputs.append(_new_input(graph, variable.aval, known))
    reader, place = _Reader(graph, hold), _Place(caller, is_of_target=is_of_target)
    graph.outputs = reader.live(reader.read(program, graph.inputs, place), place)
    if then is not None:
        place = replace(place, is_of_target=True)
        graph.outputs += reader.live(reader.read(then, graph.outputs, place), place)
    graph.drop_unused()
    return graph


def _new_input(graph: Graph, aval: Any, known: Input) -> int:
    value = graph.new_value(aval, known.status, known.bounds)
    if known.path:
        graph.paths[value] = known.path
    if known.is_parameter:
        graph.parameters.add(value)
    if known.number is not None:
        graph.note_number(value, known.number)
    if known.code is not None:
        graph.codes[value] = known.code
    graph.mark(value, known.marks)
    return value


@dataclass(frozen=True)
class _Place:
    """Where an operation stands: in which line, and in what; see `Operation`."""

    location: str
    checkpoints: tuple[Checkpoint, ...] = ()
    is_of_target: bool = False


@dataclass(frozen=True)
class _Reader:
    graph: Graph
    hold: Callable[[Any], Held]
    seen: dict[Any, list[int]] = field(default_factory=dict)

    def read(self, program: core.ClosedJaxpr, arguments: Sequence[int], place: _Place) -> list[int]:
        """Appends the operations of a jaxpr to the graph, and returns the numbers of its outputs."""
        numbers = dict(zip(program.jaxpr.invars, arguments, strict=True))
        for variable, constant in zip(program.jaxpr.constvars, program.consts, strict=True):
            numbers[variable] = self._constant(variable.aval, constant)
        for equation in program.jaxpr.eqns:
            inputs = tuple(self._number(atom, numbers) for atom in equation.invars)
            here = replace(place, location=equations.location(equation) or place.location)
            numbers.update(zip(equation.outvars, self._read_equation(equation, inputs, here), strict=True))
        return [self._number(atom, numbers) for atom in program.jaxpr.outvars]

    def _read_equation(self, equation: Any, inputs: tuple[int, ...], place: _Place) -> list[int]:
        mark, called = equations.mark_of(equation), equations.called_program(equation)
        if mark is not None:
            return [self._mark(mark, inputs[0], place)]
        if called is None:
            return self._add(equation, inputs, place)
        treatment = equations.treatment_of_call(called)
        if treatment is not None:
            return self._add_piece(equation, inputs, place, treatment)
        if equations.is_checkpoint(equation):
            checkpoint = Checkpoint(equation.params["prevent_cse"], equation.params["policy"])
            place = replace(place, checkpoints=(*place.checkpoints, checkpoint))
        return self.read(called, inputs, place)

    def _once(self, key: Any, make: Callable[[], list[int]]) -> list[int]:
        """The values that are known under a key; made at the first time."""
        if key not in self.seen:
            self.seen[key] = make()
        return self.seen[key]

    def _constant(self, aval: Any, constant: Any) -> int:
        return self._once(("constant", id(constant)), lambda: [self.graph.new_constant(aval, self.hold(constant))])[0]

    def _number(self, atom: Any, numbers: dict[Any, int]) -> int:
        if not isinstance(atom, core.Literal):
            return numbers[atom]
        return self._constant_number(equations.literal_value(atom))

    def _constant_number(self, number: np.ndarray) -> int:
        def make() -> list[int]:
            value = self.graph.new_constant(number, Held(number, is_parameter=False))
            self.graph.note_number(value, number)
            return [value]

        return self._once(("number", number.dtype, number.shape, number.tobytes()), make)[0]

    def _mark(self, mark: Mark, value: int, place: _Place) -> int:
        """Notes a mark, which is no operation; where relevance ends, the rest of the function uses another value."""
        if mark is not Mark.HELD:
            self.graph.mark(value, {mark: place.location})
            return value
        if not is_followed([self.graph.status[value]]):
            return value
        return self._add_function(forms.hold, (value,), place)

    def _add_piece(self, equation: Any, inputs: tuple[int, ...], place: _Place, treatment: Any) -> list[int]:
        """Appends a call as one operation. A value that it takes twice becomes two operands."""
        distinct: list[int] = []
        for value in inputs:
            if value in distinct and self.graph.is_live(value):
                copy = _equation_of(lambda x: checkpoint_name(x, ""), self.graph.shapes[value])
                (value,) = self._append(copy, (value,), place)
            distinct.append(value)
        return self._add(equation, tuple(distinct), place, treatment)

    def _add(self, equation: Any, inputs: tuple[int, ...], place: _Place, treatment: Any = None) -> list[int]:
        """Adds an operation in canonical form, unless the same is there already."""
        chosen = self._chosen_case(equation, inputs)
        if chosen is not None:
            control = equations.control_of(equation)
            return [inputs[1 + chosen]] if control is None else self.read(control.programs[chosen], inputs[1:], place)
        if equations.is_elementwise(equation):
            shape = equation.outvars[0].aval.shape
            inputs = tuple(self._broadcast(value, shape, place) for value in inputs)
            if (move := self._shared_move(equation, inputs)) is not None:
                return [self._move_afterwards(equation, inputs, move, place)]
        if used := tokens.becomes_live(self.graph, equation, inputs):
            live = dict(zip(used, self.live(used, place), strict=True))
            inputs = tuple(live.get(value, value) for value in inputs)
        key = _key(equation, inputs)
        if key is None:
            return self._append(equation, inputs, place, treatment)
        return self._once(key, lambda: self._append(equation, inputs, place, treatment))

    def _add_function(self, function: Callable[..., Any], inputs: tuple[int, ...], place: _Place) -> int:
        """Adds the one operation that a function is."""
        return self._add(_equation_of(function, *(self.graph.shapes[i] for i in inputs)), inputs, place)[0]

    def _append(self, equation: Any, inputs: tuple[int, ...], place: _Place, treatment: Any = None) -> list[int]:
        graph = self.graph
        statuses = [graph.status[value] for value in inputs]
        bodies: Bodies = ()
        followed: list[tokens.Followed] = []
        control = equations.control_of(equation) if is_followed(statuses) else None
        if control is not None:
            bodies, out = self._read_bodies(control, inputs, place)
        elif followed := self._follow_tokens(equation, inputs):
            out = [found.status for found in followed]
        else:
            out = [status_after(equation, statuses)] * len(equation.outvars)
        is_parameter = set(out) == {Status.CONSTANT} and not graph.parameters.isdisjoint(inputs)
        ranges = self._ranges(equation, inputs, bodies)
        outputs = [
            graph.new_value(variable.aval, if_continuous(variable.aval, status), bounds)
            for variable, status, bounds in zip(equation.outvars, out, ranges, strict=True)
        ]
        if is_parameter:
            graph.parameters.update(outputs)
        graph.add(
            Operation(
                equation,
                inputs,
                tuple(outputs),
                place.location,
                bodies,
                place.checkpoints,
                place.is_of_target,
                treatment,
            )
        )
        for value, found in zip(outputs, followed, strict=False):
            self._note(value, found)
        for output, *inner in zip(outputs, *(body.outputs for body in bodies), strict=True):
            graph.mark(output, _shared_marks([body.marks.get(i, {}) for body, i in zip(bodies, inner, strict=True)]))
        return outputs

    def _read_bodies(self, control: Control, inputs: Sequence[int], place: _Place) -> tuple[Bodies, list[Status]]:
        graph, operands = self.graph, control.operands(inputs)

        def known(i: int, value: int, status: Status) -> Input:
            path, is_parameter = graph.name_of(value), value in graph.parameters
            if i in control.carried:
                return Input(status, path, FREE, is_parameter=is_parameter)
            number = graph.number(value) if status is Status.CONSTANT else None
            code = tokens.sliced(graph.codes.get(value), is_stacked=i in control.stacked)
            marks = _shared_marks([graph.marks.get(value, {})])
            return Input(status, path, graph.ranges[value], number, code, marks, is_parameter)

        def body(position: int, statuses: Sequence[Status]) -> Graph:
            inside = list(map(known, range(len(operands)), operands, statuses))
            program, target = control.programs[position], place.is_of_target
            found = read(program, inside, hold=self.hold, caller=place.location, is_of_target=target)
            found.is_inner = True
            return found

        return follow_bodies(control, [graph.status[value] for value in inputs], body)

    def _follow_tokens(self, equation: Any, inputs: Sequence[int]) -> list[tokens.Followed]:
        """What the outputs are of an equation that uses explained integers, but no live value; else nothing."""
        statuses = [self.graph.status[value] for value in inputs]
        if Status.LIVE in statuses or Status.TOKEN not in statuses:
            return []
        return [tokens.follow(self.graph, equation, inputs, i) for i in range(len(equation.outvars))]

    def _note(self, value: int, found: tokens.Followed) -> None:
        graph = self.graph
        if graph.is_live(value):
            graph.embeddings.append(value)
        if found.code is not None and graph.is_token(value):
            graph.codes[value] = found.code
        if found.is_lost:
            graph.lost_tokens.add(value)

    def live(self, values: Sequence[int], place: _Place) -> list[int]:
        """The values, those that are codes in floating point made live."""
        graph = self.graph

        def make(value: int) -> list[int]:
            shape = graph.shapes[value]
            output = graph.new_value(shape, Status.LIVE, graph.ranges[value])
            graph.embeddings.append(output)
            copy = _equation_of(jnp.copy, shape)
            graph.add(Operation(copy, (value,), (output,), place.location, (), place.checkpoints, place.is_of_target))
            return [output]

        return [
            self._once(("live", value), functools.partial(make, value))[0]
            if value in graph.codes and jnp.issubdtype(graph.shapes[value].dtype, jnp.floating)
            else value
            for value in values
        ]

    def _broadcast(self, value: int, shape: tuple[int, ...], place: _Place) -> int:
        """Broadcasts an operand through which relevance flows by an operation of its own."""
        there = self.graph.shapes[value].shape
        if there == shape or self.graph.is_constant(value):
            return value
        dimensions = tuple(range(len(shape) - len(there), len(shape)))
        return self._add_function(lambda x: lax.broadcast_in_dim(x, shape, dimensions), (value,), place)

    def _chosen_case(self, equation: Any, inputs: Sequence[int]) -> int | None:
        """Which case of a selection or branch is chosen, if a number says so that stands in the program."""
        control = equations.control_of(equation)
        if equation.primitive.name != "select_n" and not (control is not None and control.has_index):
            return None
        number = self.graph.number(inputs[0])
        cases = inputs[1:] if control is None else control.programs
        return None if number is None else min(max(int(number), 0), len(cases) - 1)

    def _shared_move(self, equation: Any, inputs: Sequence[int]) -> Operation | None:
        """The move by which all operands of an elementwise operation but numbers are brought into the same order."""
        graph = self.graph
        is_cast = equation.primitive.name == "convert_element_type" and equation.params["sharding"] is None
        varying = [value for value in inputs if graph.number(value) is None]
        statuses = {graph.status[value] for value in varying}
        if not varying or not statuses <= {Status.LIVE, Status.HELD} or not graph.marks.keys().isdisjoint(varying):
            return None
        if Family.ELEMENTWISE not in equations.family_of(equation) and not is_cast:
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

    def _move_afterwards(self, equation: Any, inputs: Sequence[int], move: Operation, place: _Place) -> int:
        """Applies an elementwise operation to what its operands were before a move, and moves what it returns."""
        graph = self.graph
        before = graph.shapes[move.inputs[0]].shape
        operands = []
        for value in inputs:
            number = graph.number(value)
            if number is None:
                operands.append(graph.producer[value].inputs[0])
                continue
            operand = self._constant_number(number.astype(graph.shapes[value].dtype))
            if graph.shapes[value].shape and before:
                operand = self._add_function(lambda x: lax.broadcast_in_dim(x, before, ()), (operand,), place)
            operands.append(operand)
        made = _equation_of(functools.partial(equations.run, equation), *(graph.shapes[i] for i in operands))
        (output,) = self._add(made.replace(source_info=equation.source_info), tuple(operands), place)
        there = replace(place, location=move.location)
        return self._add_function(functools.partial(equations.run, move.equation), (output,), there)

    def _ranges(self, equation: Any, inputs: Sequence[int], bodies: Bodies) -> list[Range]:
        """The ranges of an equation's outputs."""
        if bodies:
            return [range_of_dtype(variable.aval.dtype) for variable in equation.outvars]
        known = [self.graph.ranges[value] for value in inputs]
        is_square = len(inputs) == 2 and inputs[0] == inputs[1]
        return ranges_of_outputs(primitives.named(equation.primitive.name).bounds, equation, known, is_square)


def _equation_of(fun: Callable[..., Any], *operands: jax.ShapeDtypeStruct) -> Any:
    """The equation that a function of one operation is."""
    (equation,) = jax.make_jaxpr(fun)(*operands).jaxpr.eqns
    return equation


def _shared_marks(marks: Sequence[Mapping[Mark, str]]) -> dict[Mark, str]:
    """What is said of factors of a value that enters or leaves a loop or a branch, in all of them."""
    shared = {Mark.GATE, Mark.SIGNAL}.intersection(*marks) if marks else set()
    return {mark: marks[0][mark] for mark in Mark if mark in shared}


def _key(equation: Any, inputs: Sequence[int]) -> Any:
    """What two equations have in common that compute the same; None for one that stands for itself."""
    if equations.has_side_effect(equation) or equations.has_bodies(equation):
        return None
    key = (equation.primitive, tuple(inputs), tuple(sorted(equation.params.items(), key=lambda item: item[0])))
    try:
        hash(key)
    except TypeError:
        return None
    return key
