"""A function as a flat list of operations on numbered values (`lrp_jax.core.reader` makes it of a jaxpr)."""

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax.core import equations, primitives
from lrp_jax.core.control import Control
from lrp_jax.core.equations import Mark
from lrp_jax.core.primitive import Family, Primitive
from lrp_jax.core.ranges import Range, range_of_dtype, range_of_number

_KEEPS_NUMBER = Family.REARRANGEMENT | Family.IDENTITY


class Status(enum.Enum):
    """What a value has to do with the explained arguments."""

    CONSTANT = "does not depend on them"
    HELD = "depends on them, but not differentiably: behind a stop_gradient, a comparison, ..."
    TOKEN = "is made of explained integers, and becomes live when something is looked up with it"
    LIVE = "depends on them, and relevance flows through it"


@dataclass(frozen=True)
class Code:
    """A value that holds, for each explained integer, something that was looked up with it.

    Attributes:
        axis: The dimension along which everything belongs to one integer; None if it is not known.
    """

    axis: int | None = None


@dataclass(frozen=True)
class Held:
    """An array that a function has closed over.

    Attributes:
        array: The array, or what stands for it while the function is compiled.
        path: Its path in the model, as a name; empty if it has none.
        is_parameter: Whether it was there before the function was called, and not made by the function itself.
        number: The number with which it is filled, if the function itself says so.
    """

    array: Any
    path: str = ""
    is_parameter: bool = True
    number: np.ndarray | None = None


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
        inputs: The numbers of the values that it uses.
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
    def control(self) -> Control | None:
        """How it runs its bodies; None if it has none."""
        return primitives.control_of(self.equation) if self.bodies else None

    @property
    def operands(self) -> tuple[int, ...]:
        """The inputs that go into each of its bodies; all of them if it has none."""
        return self.inputs if self.control is None else tuple(self.control.operands(self.inputs))

    @property
    def module(self) -> str:
        """The path of the module, where the program carries it (as Linen and Keras do); empty otherwise."""
        return equations.module(self.equation)

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
        users: For every value, the operations that use it.
        embeddings: The values that are looked up with explained integers, to which their relevance goes.
        codes: The values of which every entry is looked up with one explained integer, but that are no live ones.
        as_given: The values that are explained numbers as they were given, apart from where they are, and from offsets,
            bounds and rounding: something may be looked up with them.
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
    users: dict[int, list[Operation]] = field(default_factory=dict)
    embeddings: list[int] = field(default_factory=list)
    codes: dict[int, Code] = field(default_factory=dict)
    as_given: set[int] = field(default_factory=set)
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
        if held.number is not None:
            self.note_number(value, held.number)
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
            self.users.setdefault(value, []).append(operation)
        name = next(filter(None, map(self.name_of, operation.inputs)), "")
        self._names.update(dict.fromkeys(operation.outputs, name))

    def drop_unused(self) -> None:
        """Removes the operations whose outputs nothing uses, but for those with a side effect."""
        used = set(self.outputs)
        kept = []
        for operation in reversed(self.operations):
            if equations.has_side_effect(operation.equation) or used.intersection(operation.outputs):
                used.update(operation.inputs)
                kept.append(operation)
        self.operations = kept[::-1]
        self.marks = {value: marks for value, marks in self.marks.items() if value in used}
        ids = set(map(id, kept))
        self.users = {
            value: [operation for operation in users if id(operation) in ids] for value, users in self.users.items()
        }

    def is_live(self, value: int) -> bool:
        """Whether relevance flows through the value."""
        return self.status[value] is Status.LIVE

    def is_token(self, value: int) -> bool:
        """Whether the value is made of explained integers."""
        return self.status[value] is Status.TOKEN

    def is_explained(self, value: int) -> bool:
        """Whether relevance flows through the value, or it is made of explained integers."""
        return self.is_live(value) or self.is_token(value)

    def is_constant(self, value: int) -> bool:
        """Whether the value does not depend on what is explained."""
        return self.status[value] is Status.CONSTANT

    def is_nonnegative(self, value: int) -> bool:
        """Whether the value is known not to be negative."""
        return self.ranges[value][0] >= 0

    def live_inputs(self, operation: Operation) -> list[int]:
        """The positions of the operands through which relevance flows."""
        return [i for i, value in enumerate(operation.inputs) if self.is_live(value)]

    def looked_up(self, operation: Operation) -> list[int]:
        """The operands of an operation that are explained numbers, and of which it makes tokens."""
        are_tokens = all(map(self.is_token, operation.outputs)) and not operation.bodies
        return [value for value in operation.inputs if self.is_live(value)] if are_tokens else []

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

    def chosen(self, index: int, number: int) -> int | None:
        """Which of a number of cases an index selects, if a number says so that stands in the program."""
        found = self.number(index)
        return None if found is None else min(max(int(found), 0), number - 1)

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
        is_followed = primitives.is_elementwise(operation.equation) or operation.family & _KEEPS_NUMBER
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
