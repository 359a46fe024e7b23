"""Reading a function: from a jaxpr to a flat list of operations.

`read` follows the operations of a jaxpr in order, looks into the calls on the way (`jax.jit`, `jax.custom_jvp`, ...),
and says of every value whether relevance can flow through it, whether it is known to be non-negative, and where in the
model it comes from.
"""

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from lrp_jax import equations


class Status(enum.Enum):
    """What a value has to do with the explained arguments."""

    CONSTANT = "does not depend on them"
    HELD = "depends on them, but not differentiably: behind a stop_gradient, a comparison, ..."
    TOKEN = "depends on explained integers, which become live when an embedding is looked up"
    LIVE = "depends on them, and relevance flows through it"


@dataclass(frozen=True, eq=False)
class Operation:
    """One equation of the function.

    Attributes:
        equation: The equation of the jaxpr.
        inputs: The numbers of the values that it reads.
        outputs: The numbers of the values that it returns.
        location: The line of the user's file that it comes from.
        bodies: The functions that it runs: the body of a scan, the branches of a cond.
    """

    equation: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    location: str
    bodies: tuple["Graph", ...] = ()

    @property
    def name(self) -> str:
        """The name of the primitive."""
        return self.equation.primitive.name

    @property
    def function(self) -> str:
        """The name under which a treatment is looked up: "relu", the name of a called function, or the primitive's."""
        return "relu" if equations.is_relu(self.equation) else equations.name_of(self.equation)

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
        paths: The paths of parameters in the model or among the arguments, by number.
        nonnegative: The values that are known not to be negative.
        producer: For every value that is computed, the operation that returns it.
        readers: For every value, the operations that read it.
        embeddings: The values at which relevance ends, because they are looked up with explained integers.
    """

    operations: list[Operation] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    constants: dict[int, Any] = field(default_factory=dict)
    shapes: list[jax.ShapeDtypeStruct] = field(default_factory=list)
    status: list[Status] = field(default_factory=list)
    paths: dict[int, str] = field(default_factory=dict)
    nonnegative: set[int] = field(default_factory=set)
    producer: dict[int, Operation] = field(default_factory=dict)
    readers: dict[int, list[Operation]] = field(default_factory=dict)
    embeddings: list[int] = field(default_factory=list)

    def new_value(self, aval: Any, status: Status) -> int:
        """Numbers a value."""
        self.shapes.append(jax.ShapeDtypeStruct(aval.shape, aval.dtype))
        self.status.append(status)
        return len(self.shapes) - 1

    def new_constant(self, aval: Any, constant: Any) -> int:
        """Numbers a value that is known."""
        value = self.new_value(aval, Status.CONSTANT)
        self.constants[value] = constant
        return value

    def add(self, operation: Operation) -> None:
        """Appends an operation."""
        self.operations.append(operation)
        self.producer.update(dict.fromkeys(operation.outputs, operation))
        for value in dict.fromkeys(operation.inputs):
            self.readers.setdefault(value, []).append(operation)
        if equations.is_nonnegative(operation.equation, [value in self.nonnegative for value in operation.inputs]):
            self.nonnegative.update(operation.outputs)

    def drop_unused(self) -> None:
        """Removes the operations whose outputs nobody reads, but for those with a side effect."""
        used = set(self.outputs)
        kept = []
        for operation in reversed(self.operations):
            if operation.equation.effects or used.intersection(operation.outputs):
                used.update(operation.inputs)
                kept.append(operation)
        self.operations = kept[::-1]
        ids = set(map(id, kept))
        self.readers = {
            value: [operation for operation in readers if id(operation) in ids]
            for value, readers in self.readers.items()
        }

    def is_live(self, value: int) -> bool:
        """Whether relevance flows through the value."""
        return self.status[value] is Status.LIVE

    def live_inputs(self, operation: Operation) -> list[int]:
        """The positions of the operands through which relevance flows."""
        return [i for i, value in enumerate(operation.inputs) if self.is_live(value)]

    def only_reader(self, value: int) -> Operation | None:
        """The operation that reads the value, if there is exactly one and the function does not return the value."""
        readers = self.readers.get(value, [])
        return readers[0] if len(readers) == 1 and value not in self.outputs else None

    def name_of(self, value: int) -> str:
        """The path of the first parameter that a constant is computed from; empty if there is none."""
        if value in self.paths:
            return self.paths[value]
        operation = self.producer.get(value)
        names = (self.name_of(i) for i in operation.inputs) if operation else iter(())
        return next((name for name in names if name), "")


@dataclass(frozen=True)
class Held:
    """An array that a function has closed over.

    Attributes:
        array: The array, or a tracer that stands for it.
        path: Its path in the model; empty if it is not known.
        is_parameter: Whether it existed before the trace.
    """

    array: Any
    path: str = ""
    is_parameter: bool = True


def read(
    closed_jaxpr: core.ClosedJaxpr,
    statuses: Sequence[Status],
    *,
    paths: Sequence[str] = (),
    hold: Callable[[Any], Held] = Held,
    then: core.ClosedJaxpr | None = None,
    caller: str = "an unknown line",
    keep_checkpoints: bool = False,
) -> Graph:
    """Reads a jaxpr as a flat list of operations.

    Args:
        closed_jaxpr: The traced function.
        statuses: For each of its inputs, whether it is explained.
        paths: For each of its inputs, the path of the parameter that it is; empty for none.
        hold: For an array that the function has closed over, what is known of it.
        then: A function of the outputs, whose outputs are appended to them.
        caller: The line that calls the function.
        keep_checkpoints: Whether what runs under `jax.checkpoint` stays a function of its own, which saves memory, or
            is part of the list. In scans and branches it always stays.

    Returns:
        The graph of the function.
    """
    graph = Graph()
    for variable, status in zip(closed_jaxpr.jaxpr.invars, statuses, strict=True):
        graph.inputs.append(graph.new_value(variable.aval, status))
    graph.paths = {value: path for value, path in zip(graph.inputs, paths, strict=False) if path}
    reader = _Reader(graph, hold, keep_checkpoints)
    graph.outputs = reader.read(closed_jaxpr, graph.inputs, caller)
    if then is not None:
        graph.outputs = [*graph.outputs, *reader.read(then, graph.outputs, caller)]
    graph.drop_unused()
    return graph


@dataclass(frozen=True)
class _Reader:
    graph: Graph
    hold: Callable[[Any], Held]
    keep_checkpoints: bool

    def read(self, closed: core.ClosedJaxpr, arguments: Sequence[int], caller: str) -> list[int]:
        """Appends the operations of a jaxpr to the graph, and returns the numbers of its outputs."""
        graph = self.graph
        numbers = dict(zip(closed.jaxpr.invars, arguments, strict=True))
        for variable, constant in zip(closed.jaxpr.constvars, closed.consts, strict=True):
            held = self.hold(constant)
            numbers[variable] = graph.new_constant(variable.aval, held.array)
            if held.path:
                graph.paths[numbers[variable]] = held.path
        for equation in closed.jaxpr.eqns:
            inputs = tuple(self._number(atom, numbers) for atom in equation.invars)
            location = equations.location(equation) or caller
            is_kept = self.keep_checkpoints and equations.is_checkpoint(equation)
            called = None if is_kept else equations.called_jaxpr(equation)
            live = [value for value in inputs if graph.status[value] in (Status.LIVE, Status.TOKEN)]
            others_are_numbers = all(graph.shapes[value].size == 1 for value in inputs if value not in live)
            is_unit = len(live) == 1 and others_are_numbers and equations.is_elementwise(equation)
            if called is not None and live and not is_unit:
                outputs = self.read(called, inputs, location)
            else:
                outputs = self._add(equation, inputs, location)
            numbers.update(zip(equation.outvars, outputs, strict=True))
        return [self._number(atom, numbers) for atom in closed.jaxpr.outvars]

    def _number(self, atom: Any, numbers: dict[Any, int]) -> int:
        if not isinstance(atom, core.Literal):
            return numbers[atom]
        value = self.graph.new_constant(atom.aval, equations.literal_value(atom))
        if (self.graph.constants[value] >= 0).all():
            self.graph.nonnegative.add(value)
        return value

    def _add(self, equation: Any, inputs: tuple[int, ...], location: str) -> list[int]:
        graph = self.graph
        statuses = [graph.status[value] for value in inputs]
        bodies: tuple[Graph, ...] = ()
        if Status.LIVE in statuses and equation.primitive.name == "scan":
            bodies, out = self._read_scan(equation, inputs, location)
        elif Status.LIVE in statuses and equation.primitive.name == "cond":
            bodies, out = self._read_branches(equation, inputs, location)
        elif Status.LIVE in statuses and self.keep_checkpoints and equations.is_checkpoint(equation):
            called = equations.called_jaxpr(equation)
            assert called is not None
            body = self._read_body(called, inputs, statuses, location)
            bodies, out = (body,), [body.status[value] for value in body.outputs]
        else:
            joined = _join(statuses)
            if joined is Status.LIVE and equation.primitive.name == "stop_gradient":
                joined = Status.HELD
            is_embedding = equation.primitive.name == "gather" and statuses[:2] == [Status.CONSTANT, Status.TOKEN]
            out = [Status.LIVE if is_embedding else joined] * len(equation.outvars)
        outputs = [
            graph.new_value(variable.aval, _if_continuous(variable.aval, status))
            for variable, status in zip(equation.outvars, out, strict=True)
        ]
        graph.add(Operation(equation, inputs, tuple(outputs), location, bodies))
        if Status.LIVE in out and Status.LIVE not in statuses:
            graph.embeddings.extend(outputs)
        return outputs

    def _read_body(
        self, closed: core.ClosedJaxpr, inputs: Sequence[int], statuses: Sequence[Status], caller: str
    ) -> Graph:
        names = [self.graph.name_of(value) for value in inputs]
        return read(closed, statuses, paths=names, hold=self.hold, caller=caller, keep_checkpoints=True)

    def _read_scan(self, equation: Any, inputs: Sequence[int], caller: str) -> tuple[tuple[Graph, ...], list[Status]]:
        constants, carries = equations.scan_sizes(equation)
        statuses = [self.graph.status[value] for value in inputs]
        while True:
            body = self._read_body(equation.params["jaxpr"], inputs, statuses, caller)
            out = [body.status[value] for value in body.outputs]
            carried = statuses[constants : constants + carries]
            joined = [
                _if_continuous(body.shapes[value], _join(pair))
                for value, *pair in zip(body.outputs, carried, out, strict=False)
            ]
            if joined == carried:
                return (body,), [*joined, *out[carries:]]
            statuses[constants : constants + carries] = joined

    def _read_branches(
        self, equation: Any, inputs: Sequence[int], caller: str
    ) -> tuple[tuple[Graph, ...], list[Status]]:
        operands = inputs[1:]
        statuses = [self.graph.status[value] for value in operands]
        bodies = tuple(self._read_body(branch, operands, statuses, caller) for branch in equation.params["branches"])
        index = _if_continuous(self.graph.shapes[inputs[0]], self.graph.status[inputs[0]])
        outs = zip(*([body.status[value] for value in body.outputs] for body in bodies), strict=True)
        return bodies, [_join([index, *statuses]) for statuses in outs]


def _join(statuses: Sequence[Status]) -> Status:
    for status in (Status.LIVE, Status.TOKEN, Status.HELD):
        if status in statuses:
            return status
    return Status.CONSTANT


def _if_continuous(aval: Any, status: Status) -> Status:
    # Complex values stay live: they carry a gradient, so that losing their relevance must be an error.
    is_continuous = jnp.issubdtype(aval.dtype, jnp.inexact)
    return Status.HELD if status is Status.LIVE and not is_continuous else status
