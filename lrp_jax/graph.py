"""Reading a function: from a jaxpr to a flat list of operations.

`read` follows the operations of a jaxpr in order, looks into the calls on the way (`jax.jit`, `jax.custom_jvp`, ...),
and says of every value whether relevance can flow through it.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from lrp_jax import equations


class Status(enum.Enum):
    """What a value has to do with the explained arguments."""

    CONSTANT = "does not depend on them"
    HELD = "depends on them behind a stop_gradient"
    LIVE = "depends on them, and relevance flows through it"


@dataclass(frozen=True)
class Operation:
    """One equation of the function.

    Attributes:
        equation: The equation of the jaxpr.
        inputs: The numbers of the values that it reads.
        outputs: The numbers of the values that it returns.
        location: The line of the user's file that it comes from.
    """

    equation: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    location: str

    @property
    def name(self) -> str:
        """The name of the primitive."""
        return self.equation.primitive.name

    def run(self, *values: jax.Array) -> list[jax.Array]:
        """Applies the operation to arrays, with JAX's own derivative."""
        return equations.run(self.equation, *values)


@dataclass
class Graph:
    """A function as a flat list of operations on numbered values."""

    operations: list[Operation] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    constants: dict[int, Any] = field(default_factory=dict)
    shapes: list[jax.ShapeDtypeStruct] = field(default_factory=list)
    status: list[Status] = field(default_factory=list)

    def new_value(self, aval: Any, status: Status) -> int:
        """Numbers a value."""
        self.shapes.append(jax.ShapeDtypeStruct(aval.shape, aval.dtype))
        self.status.append(status)
        return len(self.shapes) - 1

    def is_live(self, value: int) -> bool:
        """Whether relevance flows through the value."""
        return self.status[value] is Status.LIVE

    def live_inputs(self, operation: Operation) -> list[int]:
        """The positions of the operands through which relevance flows."""
        return [i for i, value in enumerate(operation.inputs) if self.is_live(value)]


def read(closed_jaxpr: core.ClosedJaxpr, live: Sequence[bool]) -> Graph:
    """Reads a jaxpr as a flat list of operations.

    Args:
        closed_jaxpr: The traced function.
        live: For each of its inputs, whether it is explained.

    Returns:
        The graph of the function.
    """
    graph = Graph()
    for variable, is_live in zip(closed_jaxpr.jaxpr.invars, live, strict=True):
        status = Status.LIVE if is_live else Status.CONSTANT
        graph.inputs.append(graph.new_value(variable.aval, status))
    graph.outputs = _read_into(graph, closed_jaxpr, graph.inputs, "an unknown line")
    return graph


def _read_into(graph: Graph, closed: core.ClosedJaxpr, arguments: Sequence[int], caller: str) -> list[int]:
    numbers = dict(zip(closed.jaxpr.invars, arguments, strict=True))
    for variable, constant in zip(closed.jaxpr.constvars, closed.consts, strict=True):
        numbers[variable] = graph.new_value(variable.aval, Status.CONSTANT)
        graph.constants[numbers[variable]] = constant

    def number(atom: Any) -> int:
        if isinstance(atom, core.Literal):
            value = graph.new_value(atom.aval, Status.CONSTANT)
            graph.constants[value] = equations.literal_value(atom)
            return value
        return numbers[atom]

    for equation in closed.jaxpr.eqns:
        inputs = tuple(number(atom) for atom in equation.invars)
        location = equations.location(equation) or caller
        called = equations.called_jaxpr(equation)
        live = [value for value in inputs if graph.is_live(value)]
        is_unit = len(live) == 1 and equations.is_elementwise(equation)
        if called is not None and live and not is_unit:
            outputs = _read_into(graph, called, inputs, location)
        else:
            status = _status_of_outputs(graph, equation, inputs)
            outputs = [
                graph.new_value(variable.aval, status if _is_real(variable) else Status.CONSTANT)
                for variable in equation.outvars
            ]
            graph.operations.append(Operation(equation, inputs, tuple(outputs), location))
        numbers.update(zip(equation.outvars, outputs, strict=True))
    return [number(atom) for atom in closed.jaxpr.outvars]


def _status_of_outputs(graph: Graph, equation: Any, inputs: Sequence[int]) -> Status:
    statuses = {graph.status[value] for value in inputs}
    if Status.LIVE in statuses and equation.primitive.name != "stop_gradient":
        return Status.LIVE
    return Status.CONSTANT if statuses <= {Status.CONSTANT} else Status.HELD


def _is_real(variable: Any) -> bool:
    return jnp.issubdtype(variable.aval.dtype, jnp.floating)
