"""Reading a program: from a jaxpr to a flat list of operations in one canonical form.

`read` follows the operations of a jaxpr in order and looks into every call on the way (`jax.jit`, `jax.custom_jvp`,
`jax.checkpoint`, ...): a helper under `jax.jit` is the same as its lines written out. Of every value the graph says
whether relevance can flow through it, between which bounds it lies, whether it is a parameter, and where in the model
it comes from.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core

from lrp_jax.core import equations, forms, primitives, tokens
from lrp_jax.core.canonical import Builder, Place, equation_of, shared_marks
from lrp_jax.core.control import Control
from lrp_jax.core.equations import Mark
from lrp_jax.core.graph import Checkpoint, Code, Graph, Held, Status
from lrp_jax.core.ranges import FREE, Range
from lrp_jax.core.statuses import follow_bodies, is_followed

_UNKNOWN = "an unknown line"


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
        is_as_given: Whether it is explained numbers as they were given.
    """

    status: Status
    path: str = ""
    bounds: Range | None = None
    number: np.ndarray | None = None
    code: Code | None = None
    marks: Mapping[Mark, str] = field(default_factory=dict)
    is_parameter: bool = False
    is_as_given: bool = False


def read(
    program: core.ClosedJaxpr,
    inputs: Sequence[Input],
    *,
    hold: Callable[[Any], Held] = Held,
    then: core.ClosedJaxpr | None = None,
    caller: str = _UNKNOWN,
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
    builder, place = Builder(graph, hold), Place(caller, is_of_target=is_of_target)
    reader = _Reader(builder)
    graph.outputs = builder.live(reader.read(program, graph.inputs, place), place)
    if then is not None:
        place = replace(place, is_of_target=True)
        graph.outputs += builder.live(reader.read(then, graph.outputs, place), place)
    graph.drop_unused()
    return graph


def _new_input(graph: Graph, aval: Any, known: Input) -> int:
    value = graph.new_value(aval, known.status, known.bounds)
    if known.path:
        graph.paths[value] = known.path
    if known.is_parameter:
        graph.parameters.add(value)
    if known.is_as_given:
        graph.as_given.add(value)
    if known.number is not None:
        graph.note_number(value, known.number)
    if known.code is not None:
        graph.codes[value] = known.code
    graph.mark(value, known.marks)
    return value


def _location(equation: Any, place: Place) -> str:
    """The user's line that an equation comes from; its module where none is known."""
    module = equations.module(equation) if place.location == _UNKNOWN else ""
    return equations.location(equation) or module or place.location


@dataclass(frozen=True)
class _Reader:
    builder: Builder

    def read(self, program: core.ClosedJaxpr, arguments: Sequence[int], place: Place) -> list[int]:
        """Appends the operations of a jaxpr to the graph, and returns the numbers of its outputs."""
        numbers = dict(zip(program.jaxpr.invars, arguments, strict=True))
        for variable, constant in zip(program.jaxpr.constvars, program.consts, strict=True):
            numbers[variable] = self.builder.held(variable.aval, constant)
        for equation in program.jaxpr.eqns:
            inputs = tuple(self._number(atom, numbers) for atom in equation.invars)
            here = replace(place, location=_location(equation, place))
            numbers.update(zip(equation.outvars, self._read_equation(equation, inputs, here), strict=True))
        return [self._number(atom, numbers) for atom in program.jaxpr.outvars]

    def _number(self, atom: Any, numbers: dict[Any, int]) -> int:
        if not isinstance(atom, core.Literal):
            return numbers[atom]
        return self.builder.number(equations.literal_value(atom))

    def _read_equation(self, equation: Any, inputs: tuple[int, ...], place: Place) -> list[int]:
        mark, called, control = (
            equations.mark_of(equation),
            primitives.called_program(equation),
            primitives.control_of(equation),
        )
        if mark is not None:
            return [self._mark(mark, inputs[0], place)]
        if control is not None:
            return self._read_control(equation, control, inputs, place)
        if called is None:
            return self.builder.add(equation, inputs, place)
        treatment = equations.treatment_of_call(called)
        if treatment is not None:
            return self._add_piece(equation, inputs, place, treatment)
        if primitives.is_checkpoint(equation):
            checkpoint = Checkpoint(equation.params["prevent_cse"], equation.params["policy"])
            place = replace(place, checkpoints=(*place.checkpoints, checkpoint))
        return self.read(called, inputs, place)

    def _mark(self, mark: Mark, value: int, place: Place) -> int:
        """Notes a mark, which is no operation; where relevance ends, the rest of the function uses another value."""
        graph = self.builder.graph
        if mark is not Mark.HELD:
            graph.mark(value, {mark: place.location})
            return value
        return self.builder.add_function(forms.hold, (value,), place) if is_followed([graph.status[value]]) else value

    def _add_piece(self, equation: Any, inputs: tuple[int, ...], place: Place, treatment: Any) -> list[int]:
        """Appends a call as one operation. A value that it takes twice becomes two operands."""
        graph = self.builder.graph
        distinct: list[int] = []
        for value in inputs:
            if value in distinct and graph.is_live(value):
                copy = equation_of(lambda x: checkpoint_name(x, ""), graph.shapes[value])
                (value,) = self.builder.append(copy, (value,), place)
            distinct.append(value)
        return self.builder.add(equation, tuple(distinct), place, treatment)

    def _read_control(self, equation: Any, control: Control, inputs: tuple[int, ...], place: Place) -> list[int]:
        """Appends an operation with its bodies; a branch that a number chooses is looked into as a call is."""
        graph = self.builder.graph
        chosen = [graph.chosen(value, len(control.programs)) for value in control.index(inputs)]
        if chosen and chosen[0] is not None:
            return self.read(control.programs[chosen[0]], control.operands(inputs), place)
        inputs = self.builder.made_live(equation, inputs, place)
        statuses = [graph.status[value] for value in inputs]
        if not is_followed(statuses):
            return self.builder.append(equation, inputs, place)
        operands = control.operands(inputs)

        def body(position: int, statuses: Sequence[Status]) -> Graph:
            inside = [self._inside(control, *known) for known in zip(itertools.count(), operands, statuses)]
            program, target = control.programs[position], place.is_of_target
            found = read(program, inside, hold=self.builder.hold, caller=place.location, is_of_target=target)
            found.is_inner = True
            return found

        return self.builder.append_bodies(equation, inputs, place, *follow_bodies(control, statuses, body))

    def _inside(self, control: Control, position: int, value: int, status: Status) -> Input:
        """What is known of an operand within a body."""
        graph = self.builder.graph
        path, is_parameter = graph.name_of(value), value in graph.parameters
        if position in control.carried:
            return Input(status, path, FREE, is_parameter=is_parameter)
        number = graph.number(value) if status is Status.CONSTANT else None
        code = tokens.sliced(graph.codes.get(value), is_stacked=position in control.stacked)
        marks = shared_marks([graph.marks.get(value, {})])
        return Input(status, path, graph.ranges[value], number, code, marks, is_parameter, value in graph.as_given)
