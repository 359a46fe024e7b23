"""Reading a function: from a jaxpr to a flat list of operations in one canonical form.

`read` follows the operations of a jaxpr in order and looks into every call on the way (`jax.jit`, `jax.custom_jvp`,
`jax.checkpoint`, ...): a helper under `jax.jit` is the same as its lines written out. Equal operations on equal values
are one operation, and operands that JAX broadcasts inside of an elementwise operation are broadcast by one of their
own. Of every value the graph says whether relevance can flow through it, between which bounds it lies, whether it is a
parameter, and where in the model it comes from.
"""

import enum
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core

from lrp_jax.core import equations, forms, primitives, tokens
from lrp_jax.core.equations import Mark
from lrp_jax.core.primitives import Family, Primitive
from lrp_jax.core.ranges import FREE, Range, range_of_dtype, range_of_number, ranges_of_outputs


class Status(enum.Enum):
    """What a value has to do with the explained arguments."""

    CONSTANT = "does not depend on them"
    HELD = "depends on them, but not differentiably: behind a stop_gradient, a comparison, ..."
    TOKEN = "is made of explained integers, and becomes live when something is looked up with it"
    LIVE = "depends on them, and relevance flows through it"


@dataclass(frozen=True)
class Held:
    """An array that a function has closed over.

    Attributes:
        array: The array, or what stands for it while the function is compiled.
        path: Its path in the model, as a name; empty if it has none.
        is_parameter: Whether it was there before the function was called, and not made by the function itself.
    """

    array: Any
    path: str = ""
    is_parameter: bool = True


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """One call under `jax.checkpoint`, whose operations are computed again on the way back.

    Attributes:
        prevent_cse: As for `jax.checkpoint`.
        policy: As for `jax.checkpoint`.
    """

    prevent_cse: bool
    policy: Callable[..., bool] | None


@dataclass(frozen=True, eq=False)
class Operation:
    """One equation of the function.

    Attributes:
        equation: The equation of the jaxpr.
        inputs: The numbers of the values that it reads.
        outputs: The numbers of the values that it returns.
        location: The line of the user's file that it comes from.
        bodies: The functions that it runs: the body of a scan or a shard_map, the branches of a cond.
        checkpoints: The calls under `jax.checkpoint` that it is a part of, the outermost first.
        is_of_target: Whether it belongs to the function that says what is explained, and not to the model.
        treatment: Its backward pass, where it is a piece that `lrp_jax.mark.piece` has made.
    """

    equation: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    location: str
    bodies: tuple["Graph", ...] = ()
    checkpoints: tuple[Checkpoint, ...] = ()
    is_of_target: bool = False
    treatment: Any = None

    @property
    def name(self) -> str:
        """The name of the primitive; "piece" for a piece that the user has made."""
        return self.equation.primitive.name if self.treatment is None else Mark.PIECE.value

    @property
    def primitive(self) -> Primitive:
        """What is known of its primitive; nothing of a piece that the user has made."""
        return primitives.named(self.name)

    @property
    def family(self) -> Family:
        """What it does with the elements of its operands."""
        return self.primitive.family

    @property
    def module(self) -> str:
        """The path of the module, where the program carries it (as Linen does); empty otherwise."""
        return str(self.equation.source_info.name_stack)

    def run(self, *values: jax.Array) -> list[jax.Array]:
        """Applies the operation to arrays, with JAX's own derivative."""
        return equations.run(self.equation, *values)


@dataclass
class Graph:
    """A function as a flat list of operations on numbered values.

    Attributes:
        operations: In the order in which they run.
        inputs: The numbers of the function's inputs.
        outputs: The numbers of its outputs.
        constants: The values that are known before running, by number.
        shapes: For every value, its shape and dtype.
        status: For every value, whether relevance flows through it.
        ranges: For every value, the bounds between which it must lie.
        paths: The paths of parameters in the model or among the arguments, by number.
        parameters: The constants that were there before the function was called, or are computed from such.
        producer: For every value that is computed, the operation that returns it.
        readers: For every value, the operations that read it.
        embeddings: The values that are looked up with explained integers, to which their relevance goes.
        codes: The values of which every entry is looked up with one explained integer, but that are no live ones.
        lost_tokens: The values that are made of explained integers in a way that cannot be followed.
        marks: What the user says of values, by number, with the lines that say it.
        is_inner: Whether it is the body of a loop or a branch.
    """

    operations: list[Operation] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    constants: dict[int, Any] = field(default_factory=dict)
    shapes: list[jax.ShapeDtypeStruct] = field(default_factory=list)
    status: list[Status] = field(default_factory=list)
    ranges: list[Range] = field(default_factory=list)
    paths: dict[int, str] = field(default_factory=dict)
    parameters: set[int] = field(default_factory=set)
    producer: dict[int, Operation] = field(default_factory=dict)
    readers: dict[int, list[Operation]] = field(default_factory=dict)
    embeddings: list[int] = field(default_factory=list)
    codes: dict[int, tokens.Code] = field(default_factory=dict)
    lost_tokens: set[int] = field(default_factory=set)
    marks: dict[int, dict[Mark, str]] = field(default_factory=dict)
    is_inner: bool = False
    _numbers: dict[int, np.ndarray | None] = field(default_factory=dict)
    _names: dict[int, str] = field(default_factory=dict)

    def new_value(self, aval: Any, status: Status, bounds: Range | None = None) -> int:
        """Numbers a value."""
        self.shapes.append(jax.ShapeDtypeStruct(aval.shape, aval.dtype))
        self.status.append(status)
        self.ranges.append(range_of_dtype(aval.dtype) if bounds is None else bounds)
        return len(self.shapes) - 1

    def new_constant(self, aval: Any, held: Held) -> int:
        """Numbers a value that is known."""
        is_number = not held.is_parameter and isinstance(held.array, np.ndarray)
        value = self.new_value(aval, Status.CONSTANT, range_of_number(held.array) if is_number else None)
        self.constants[value] = held.array
        if held.path:
            self.paths[value] = held.path
        if held.is_parameter:
            self.parameters.add(value)
        return value

    def mark(self, value: int, marks: Mapping[Mark, str]) -> None:
        """Notes what the user says of a value, and where."""
        if marks:
            self.marks[value] = {**marks, **self.marks.get(value, {})}

    def marked(self, *marks: Mark) -> Iterator[tuple[int, Mark, str]]:
        """The values through which relevance flows with one of some marks, and the line that says it."""
        for value, found in self.marks.items():
            if self.is_live(value):
                yield from ((value, mark, where) for mark, where in found.items() if mark in marks)

    def add(self, operation: Operation) -> None:
        """Appends an operation."""
        self.operations.append(operation)
        self.producer.update(dict.fromkeys(operation.outputs, operation))
        for value in dict.fromkeys(operation.inputs):
            self.readers.setdefault(value, []).append(operation)
        name = next(filter(None, map(self.name_of, operation.inputs)), "")
        self._names.update(dict.fromkeys(operation.outputs, name))

    def drop_unused(self) -> None:
        """Removes the operations whose outputs nobody reads, but for those with a side effect."""
        used = set(self.outputs)
        kept = []
        for operation in reversed(self.operations):
            if equations.has_side_effect(operation.equation) or used.intersection(operation.outputs):
                used.update(operation.inputs)
                kept.append(operation)
        self.operations = kept[::-1]
        self.marks = {value: marks for value, marks in self.marks.items() if value in used}
        ids = set(map(id, kept))
        self.readers = {
            value: [operation for operation in readers if id(operation) in ids]
            for value, readers in self.readers.items()
        }

    def is_live(self, value: int) -> bool:
        """Whether relevance flows through the value."""
        return self.status[value] is Status.LIVE

    def is_token(self, value: int) -> bool:
        """Whether the value is made of explained integers."""
        return self.status[value] is Status.TOKEN

    def is_constant(self, value: int) -> bool:
        """Whether the value does not depend on what is explained."""
        return self.status[value] is Status.CONSTANT

    def is_nonnegative(self, value: int) -> bool:
        """Whether the value is known not to be negative."""
        return self.ranges[value][0] >= 0

    def live_inputs(self, operation: Operation) -> list[int]:
        """The positions of the operands through which relevance flows."""
        return [i for i, value in enumerate(operation.inputs) if self.is_live(value)]

    def name_of(self, value: int) -> str:
        """The path of the first parameter that a constant is computed from; empty if there is none."""
        return self.paths.get(value) or self._names.get(value, "")

    def number(self, value: int) -> np.ndarray | None:
        """The number with which a constant is filled, if it stands in the program; None otherwise."""
        waiting = [value]
        while waiting:
            unknown = [i for i in self._operands_of_number(waiting[-1]) if i not in self._numbers]
            if unknown:
                waiting.append(unknown[0])
                continue
            found = waiting.pop()
            if found not in self._numbers:
                self._numbers[found] = self._find_number(found)
        return self._numbers[value]

    def note_number(self, value: int, number: np.ndarray) -> None:
        """Notes that a constant is filled with a number."""
        if number.size == 1:
            self._numbers[value] = number.reshape(())

    def _operands_of_number(self, value: int) -> Sequence[int]:
        """The operands of the operation from whose numbers that of a value follows; empty where it has none."""
        if value in self._numbers or self.status[value] is not Status.CONSTANT or value in self.parameters:
            return ()
        operation = self.producer.get(value)
        if operation is None or len(operation.outputs) != 1:
            return ()
        is_followed = equations.is_elementwise(operation.equation) or operation.family & _KEEPS_NUMBER
        return operation.inputs if is_followed else ()

    def _find_number(self, value: int) -> np.ndarray | None:
        """The number of a value from those of its operands, which are known."""
        operands = [self._numbers[i] for i in self._operands_of_number(value)]
        if not operands or any(operand is None for operand in operands):
            return None
        operation = self.producer[value]
        if operation.family & _KEEPS_NUMBER and operation.name != "convert_element_type":
            return operands[0]
        with jax.ensure_compile_time_eval():
            (number,) = operation.run(*map(jnp.asarray, operands))
        return np.asarray(number)

    def all_graphs(self) -> Iterator["Graph"]:
        """This graph and those of inner functions."""
        yield self
        for operation in self.operations:
            for body in operation.bodies:
                yield from body.all_graphs()

    def all_operations(self) -> Iterator[tuple["Graph", Operation]]:
        """All operations, those of inner functions included, with the graph that they are in."""
        for graph in self.all_graphs():
            for operation in graph.operations:
                yield graph, operation


def read(
    closed_jaxpr: core.ClosedJaxpr,
    statuses: Sequence[Status],
    *,
    paths: Sequence[str] = (),
    hold: Callable[[Any], Held] = Held,
    then: core.ClosedJaxpr | None = None,
    caller: str = "an unknown line",
) -> Graph:
    """Reads a jaxpr as a flat list of operations.

    Args:
        closed_jaxpr: The traced function.
        statuses: For each of its inputs, whether it is explained.
        paths: For each of its inputs, the path of the parameter that it is; empty for none.
        hold: Called with every array that the function, or a function that it calls, has closed over.
        then: A further function, of all outputs: what is explained of them. The graph's outputs are those of the first
            function, followed by those of this one.
        caller: The line that calls the function.

    Returns:
        The graph of the function.
    """
    names = [*paths, *[""] * (len(statuses) - len(paths))]
    inputs = [_Input(status, path, status is Status.CONSTANT) for status, path in zip(statuses, names, strict=True)]
    return _read(closed_jaxpr, inputs, hold, then, caller)


@dataclass(frozen=True)
class _Input:
    """What is known of an input of a function."""

    status: Status
    path: str = ""
    is_parameter: bool = False
    bounds: Range | None = None
    number: np.ndarray | None = None
    code: tokens.Code | None = None
    marks: Mapping[Mark, str] = field(default_factory=dict)


def _read(
    closed_jaxpr: core.ClosedJaxpr,
    inputs: Sequence[_Input],
    hold: Callable[[Any], Held],
    then: core.ClosedJaxpr | None,
    caller: str,
    *,
    is_of_target: bool = False,
) -> Graph:
    graph = Graph()
    for variable, known in zip(closed_jaxpr.jaxpr.invars, inputs, strict=True):
        value = graph.new_value(variable.aval, known.status, known.bounds)
        graph.inputs.append(value)
        if known.path:
            graph.paths[value] = known.path
        if known.is_parameter:
            graph.parameters.add(value)
        if known.number is not None:
            graph.note_number(value, known.number)
        if known.code is not None:
            graph.codes[value] = known.code
        graph.mark(value, known.marks)
    reader = _Reader(graph, hold, is_of_target)
    graph.outputs = reader.live(reader.read(closed_jaxpr, graph.inputs, caller, ()), caller)
    if then is not None:
        reader = _Reader(graph, hold, True, reader.seen)
        explained = reader.live(reader.read(then, graph.outputs, caller, ()), caller)
        graph.outputs = [*graph.outputs, *explained]
    graph.drop_unused()
    return graph


@dataclass(frozen=True)
class _Reader:
    graph: Graph
    hold: Callable[[Any], Held]
    is_of_target: bool = False
    seen: dict[Any, list[int]] = field(default_factory=dict)

    def read(
        self,
        closed: core.ClosedJaxpr,
        arguments: Sequence[int],
        caller: str,
        checkpoints: tuple[Checkpoint, ...],
    ) -> list[int]:
        """Appends the operations of a jaxpr to the graph, and returns the numbers of its outputs."""
        numbers = dict(zip(closed.jaxpr.invars, arguments, strict=True))
        for variable, constant in zip(closed.jaxpr.constvars, closed.consts, strict=True):
            numbers[variable] = self._constant(variable.aval, constant)
        for equation in closed.jaxpr.eqns:
            inputs = tuple(self._number(atom, numbers) for atom in equation.invars)
            location = equations.location(equation) or caller
            called = equations.called_jaxpr(equation)
            mark = equations.mark_of(equation)
            treatment = None if called is None else equations.treatment_of_call(called)
            if mark is not None:
                outputs = [self._mark(mark, inputs[0], location, checkpoints)]
            elif called is None:
                outputs = self._add(equation, inputs, location, checkpoints)
            elif treatment is not None:
                outputs = self._add_piece(equation, inputs, location, checkpoints, treatment)
            elif equations.is_checkpoint(equation):
                checkpoint = Checkpoint(equation.params["prevent_cse"], equation.params["policy"])
                outputs = self.read(called, inputs, location, (*checkpoints, checkpoint))
            else:
                outputs = self.read(called, inputs, location, checkpoints)
            numbers.update(zip(equation.outvars, outputs, strict=True))
        return [self._number(atom, numbers) for atom in closed.jaxpr.outvars]

    def _constant(self, aval: Any, constant: Any) -> int:
        key = ("constant", id(constant))
        if key not in self.seen:
            self.seen[key] = [self.graph.new_constant(aval, self.hold(constant))]
        return self.seen[key][0]

    def _number(self, atom: Any, numbers: dict[Any, int]) -> int:
        if not isinstance(atom, core.Literal):
            return numbers[atom]
        return self._constant_number(equations.literal_value(atom))

    def _constant_number(self, number: np.ndarray) -> int:
        key = ("number", number.dtype, number.shape, number.tobytes())
        if key not in self.seen:
            value = self.graph.new_constant(number, Held(number, is_parameter=False))
            self.graph.note_number(value, number)
            self.seen[key] = [value]
        return self.seen[key][0]

    def _mark(self, mark: Mark, value: int, location: str, checkpoints: tuple[Checkpoint, ...]) -> int:
        """Notes a mark, which is no operation; where relevance ends, the rest of the function reads another value."""
        if mark is not Mark.HELD:
            self.graph.mark(value, {mark: location})
            return value
        if self.graph.status[value] in (Status.CONSTANT, Status.HELD):
            return value
        return self._add(_equation_of(forms.hold, self.graph.shapes[value]), (value,), location, checkpoints)[0]

    def _add_piece(
        self, equation: Any, inputs: tuple[int, ...], location: str, checkpoints: tuple[Checkpoint, ...], treatment: Any
    ) -> list[int]:
        """Appends a call as one operation. A value that it takes twice becomes two operands."""
        distinct: list[int] = []
        for value in inputs:
            if value in distinct and self.graph.is_live(value):
                copy = _equation_of(lambda x: checkpoint_name(x, ""), self.graph.shapes[value])
                (value,) = self._append(copy, (value,), location, checkpoints)
            distinct.append(value)
        return self._add(equation, tuple(distinct), location, checkpoints, treatment)

    def _add(
        self,
        equation: Any,
        inputs: tuple[int, ...],
        location: str,
        checkpoints: tuple[Checkpoint, ...],
        treatment: Any = None,
    ) -> list[int]:
        if (chosen := self._number_of_case(equation, inputs)) is not None:
            if equation.primitive.name == "cond":
                return self.read(equation.params["branches"][chosen], inputs[1:], location, checkpoints)
            return [inputs[1 + chosen]]
        if equations.is_elementwise(equation):
            shape = equation.outvars[0].aval.shape
            inputs = tuple(self._broadcast(value, shape, location, checkpoints) for value in inputs)
            if (move := self._shared_move(equation, inputs)) is not None:
                return [self._move_afterwards(equation, inputs, move, location, checkpoints)]
        if used := tokens.becomes_live(self.graph, equation, inputs):
            live = dict(zip(used, self.live(used, location, checkpoints), strict=True))
            inputs = tuple(live.get(value, value) for value in inputs)
        key = _key(equation, inputs)
        if key is None:
            return self._append(equation, inputs, location, checkpoints, treatment)
        if key not in self.seen:
            self.seen[key] = self._append(equation, inputs, location, checkpoints, treatment)
        return self.seen[key]

    def _append(
        self,
        equation: Any,
        inputs: tuple[int, ...],
        location: str,
        checkpoints: tuple[Checkpoint, ...],
        treatment: Any = None,
    ) -> list[int]:
        graph = self.graph
        statuses = [graph.status[value] for value in inputs]
        bodies: tuple[Graph, ...] = ()
        followed: list[tokens.Followed] = []
        if _is_followed(statuses) and equation.primitive.name == "scan":
            bodies, out = self._read_scan(equation, inputs, location)
        elif _is_followed(statuses) and equation.primitive.name == "cond":
            bodies, out = self._read_branches(equation, inputs, location)
        elif _is_followed(statuses) and equation.primitive.name == "shard_map":
            body = core.ClosedJaxpr(equation.params["jaxpr"], ())
            bodies = (self._read_body(body, inputs, statuses, location, range(0)),)
            out = _statuses_outside(bodies[0])
        else:
            followed = self._follow_tokens(equation, inputs)
            out = [_OUTCOMES[found.outcome] for found in followed] or [_status_after(equation, statuses)] * len(
                equation.outvars
            )
        is_parameter = set(out) == {Status.CONSTANT} and not graph.parameters.isdisjoint(inputs)
        outputs = [
            graph.new_value(variable.aval, _if_continuous(variable.aval, status), bounds)
            for variable, status, bounds in zip(
                equation.outvars, out, self._ranges(equation, inputs, bodies), strict=True
            )
        ]
        if is_parameter:
            graph.parameters.update(outputs)
        graph.add(
            Operation(equation, inputs, tuple(outputs), location, bodies, checkpoints, self.is_of_target, treatment)
        )
        for value, found in zip(outputs, followed, strict=False):
            self._note(value, found)
        for output, *inner in zip(outputs, *(body.outputs for body in bodies), strict=True):
            graph.mark(output, _shared_marks([body.marks.get(i, {}) for body, i in zip(bodies, inner, strict=True)]))
        return outputs

    def _follow_tokens(self, equation: Any, inputs: Sequence[int]) -> list[tokens.Followed]:
        """What the outputs are of an equation that reads explained integers, but no live value; else nothing."""
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

    def live(self, values: Sequence[int], location: str, checkpoints: tuple[Checkpoint, ...] = ()) -> list[int]:
        """The values, those that are codes in floating point made live."""
        graph, found = self.graph, []
        for value in values:
            shape = graph.shapes[value]
            if value not in graph.codes or not jnp.issubdtype(shape.dtype, jnp.floating):
                found.append(value)
                continue
            key = ("live", value)
            if key not in self.seen:
                (equation,) = jax.make_jaxpr(jnp.copy)(shape).jaxpr.eqns
                output = graph.new_value(shape, Status.LIVE, graph.ranges[value])
                graph.embeddings.append(output)
                graph.add(Operation(equation, (value,), (output,), location, (), checkpoints, self.is_of_target))
                self.seen[key] = [output]
            found.append(self.seen[key][0])
        return found

    def _broadcast(self, value: int, shape: tuple[int, ...], location: str, checkpoints: tuple[Checkpoint, ...]) -> int:
        """Broadcasts an operand through which relevance flows by an operation of its own."""
        there = self.graph.shapes[value]
        if there.shape == shape or self.graph.status[value] is Status.CONSTANT:
            return value
        dimensions = tuple(range(len(shape) - len(there.shape), len(shape)))
        broadcast = _equation_of(lambda x: lax.broadcast_in_dim(x, shape, dimensions), there)
        return self._add(broadcast, (value,), location, checkpoints)[0]

    def _number_of_case(self, equation: Any, inputs: Sequence[int]) -> int | None:
        """Which case of a selection or branch is chosen, if a number says so that stands in the program."""
        if equation.primitive.name not in {"cond", "select_n"}:
            return None
        number = self.graph.number(inputs[0])
        cases = equation.params["branches"] if equation.primitive.name == "cond" else inputs[1:]
        return None if number is None else min(max(int(number), 0), len(cases) - 1)

    def _shared_move(self, equation: Any, inputs: Sequence[int]) -> Operation | None:
        """The move by which all operands of an elementwise operation but numbers are brought into the same order."""
        graph = self.graph
        family = equations.family_of(equation)
        is_cast = equation.primitive.name == "convert_element_type" and equation.params["sharding"] is None
        varying = [value for value in inputs if graph.number(value) is None]
        statuses = {graph.status[value] for value in varying}
        if not varying or not statuses <= {Status.LIVE, Status.HELD} or not graph.marks.keys().isdisjoint(varying):
            return None
        if Family.ELEMENTWISE not in family and not is_cast:
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

    def _move_afterwards(
        self,
        equation: Any,
        inputs: Sequence[int],
        move: Operation,
        location: str,
        checkpoints: tuple[Checkpoint, ...],
    ) -> int:
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
                spread = _equation_of(lambda x: lax.broadcast_in_dim(x, before, ()), graph.shapes[operand])
                (operand,) = self._add(spread, (operand,), location, checkpoints)
            operands.append(operand)
        run = functools.partial(equations.run, equation)
        made = _equation_of(run, *(graph.shapes[operand] for operand in operands))
        made = made.replace(source_info=equation.source_info)
        (output,) = self._add(made, tuple(operands), location, checkpoints)
        moving = _equation_of(functools.partial(equations.run, move.equation), graph.shapes[output])
        return self._add(moving, (output,), move.location, checkpoints)[0]

    def _ranges(self, equation: Any, inputs: Sequence[int], bodies: Sequence[Graph]) -> list[Range]:
        """The ranges of an equation's outputs."""
        if bodies:
            return [range_of_dtype(variable.aval.dtype) for variable in equation.outvars]
        known = [self.graph.ranges[value] for value in inputs]
        is_square = len(inputs) == 2 and inputs[0] == inputs[1]
        return ranges_of_outputs(primitives.named(equation.primitive.name).bounds, equation, known, is_square)

    def _read_body(
        self,
        closed: core.ClosedJaxpr,
        operands: Sequence[int],
        statuses: Sequence[Status],
        caller: str,
        carried: range,
        stacked: range = range(0),
    ) -> Graph:
        graph = self.graph
        inputs = [
            _Input(
                status,
                graph.name_of(value),
                value in graph.parameters,
                FREE if i in carried else graph.ranges[value],
                None if i in carried or status is not Status.CONSTANT else graph.number(value),
                None if i in carried else tokens.sliced(graph.codes.get(value), is_stacked=i in stacked),
                {} if i in carried else _shared_marks([graph.marks.get(value, {})]),
            )
            for i, (value, status) in enumerate(zip(operands, statuses, strict=True))
        ]
        body = _read(closed, inputs, self.hold, None, caller, is_of_target=self.is_of_target)
        body.is_inner = True
        return body

    def _read_scan(self, equation: Any, inputs: Sequence[int], caller: str) -> tuple[tuple[Graph, ...], list[Status]]:
        constants, carries = equations.scan_sizes(equation)
        carried = range(constants, constants + carries)
        statuses = [self.graph.status[value] for value in inputs]
        stacked = range(constants + carries, len(inputs))

        def read(statuses: Sequence[Status]) -> Graph:
            return self._read_body(equation.params["jaxpr"], inputs, statuses, caller, carried, stacked)

        return _follow_scan(equation, statuses, read)

    def _read_branches(
        self, equation: Any, inputs: Sequence[int], caller: str
    ) -> tuple[tuple[Graph, ...], list[Status]]:
        operands = inputs[1:]
        statuses = [self.graph.status[value] for value in operands]
        branches = equation.params["branches"]
        bodies = tuple(self._read_body(branch, operands, statuses, caller, range(0)) for branch in branches)
        return bodies, _join_branches(self.graph, inputs[0], bodies)


def with_marks(
    graph: Graph, places: Mapping[tuple[int, int], Mapping[Mark, str]], statuses: Sequence[Status] = ()
) -> Graph:
    """A function with further marks.

    Args:
        graph: The function.
        places: What is said of values, by the id of the graph that a value is in and by its number.
        statuses: Those of its inputs, where they have changed.

    Returns:
        A copy, in which relevance ends where a value is held.
    """
    marks = {value: dict(found) for value, found in graph.marks.items()}
    copy = replace(graph, operations=[], status=list(graph.status), producer={}, readers={}, marks=marks)
    for value, status in zip(graph.inputs, statuses, strict=False):
        copy.status[value] = status
    for operation in graph.operations:
        before = [copy.status[value] for value in operation.inputs]
        bodies: tuple[Graph, ...] = ()
        if before == [graph.status[value] for value in operation.inputs] and not operation.bodies:
            out = [graph.status[value] for value in operation.outputs]
        elif not operation.bodies or not _is_followed(before):
            out = [_status_after(operation.equation, before)] * len(operation.outputs)
        elif operation.name == "scan":
            read = functools.partial(with_marks, operation.bodies[0], places)
            bodies, out = _follow_scan(operation.equation, before, read)
        elif operation.name == "shard_map":
            bodies = (with_marks(operation.bodies[0], places, before),)
            out = _statuses_outside(bodies[0])
        else:
            bodies = tuple(with_marks(body, places, before[1:]) for body in operation.bodies)
            out = _join_branches(copy, operation.inputs[0], bodies)
        for value, status in zip(operation.outputs, out, strict=True):
            said = places.get((id(graph), value), {})
            copy.mark(value, said)
            copy.status[value] = Status.HELD if Mark.HELD in said else _if_continuous(copy.shapes[value], status)
        copy.add(replace(operation, bodies=bodies))
    return copy


def _follow_scan(
    equation: Any, statuses: list[Status], read: Callable[[Sequence[Status]], Graph]
) -> tuple[tuple[Graph, ...], list[Status]]:
    """Reads the body of a scan until what it carries has the same status at both ends."""
    constants, carries = equations.scan_sizes(equation)
    while True:
        body = read(statuses)
        out = _statuses_outside(body)
        before = statuses[constants : constants + carries]
        joined = [
            _if_continuous(body.shapes[value], _join(pair))
            for value, *pair in zip(body.outputs, before, out, strict=False)
        ]
        if joined == before:
            return (body,), [*joined, *out[carries:]]
        statuses[constants : constants + carries] = joined


def _join_branches(graph: Graph, index: int, bodies: Sequence[Graph]) -> list[Status]:
    """The statuses of what branches return, one of which is chosen by a value."""
    choice = Status.CONSTANT if graph.is_constant(index) else Status.HELD
    outs = zip(*map(_statuses_outside, bodies), strict=True)
    return [_join([choice, *statuses]) for statuses in outs]


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


_KEEPS_NUMBER = Family.REARRANGEMENT | Family.IDENTITY
_OUTCOMES = {"token": Status.TOKEN, "live": Status.LIVE, "held": Status.HELD}


def _statuses_outside(body: Graph) -> list[Status]:
    """What the outputs of an inner function are where they are read; a mask is known as one inside alone."""
    are_masks = [body.shapes[value].dtype == jnp.bool_ and body.is_token(value) for value in body.outputs]
    return [
        Status.HELD if is_mask else body.status[value] for value, is_mask in zip(body.outputs, are_masks, strict=True)
    ]


def _is_followed(statuses: Sequence[Status]) -> bool:
    return Status.LIVE in statuses or Status.TOKEN in statuses


def _status_after(equation: Any, statuses: Sequence[Status]) -> Status:
    joined = _join(statuses)
    if equations.is_held(equation):
        return Status.HELD
    return Status.HELD if joined is Status.LIVE and Family.STEP in equations.family_of(equation) else joined


def _join(statuses: Sequence[Status]) -> Status:
    for status in (Status.LIVE, Status.TOKEN, Status.HELD):
        if status in statuses:
            return status
    return Status.CONSTANT


def _if_continuous(aval: Any, status: Status) -> Status:
    # Complex values stay live: they carry a gradient, so that losing their relevance must be an error.
    is_continuous = jnp.issubdtype(aval.dtype, jnp.inexact)
    return Status.HELD if status is Status.LIVE and not is_continuous else status
