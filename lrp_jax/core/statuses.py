"""How far relevance reaches: the statuses of what operations and their bodies return."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp

from lrp_jax.core import equations, primitives
from lrp_jax.core.control import Control, until_settled
from lrp_jax.core.equations import Mark
from lrp_jax.core.graph import Graph, Operation, Status
from lrp_jax.core.primitive import Family

Bodies = tuple[Graph, ...]


def join(statuses: Sequence[Status]) -> Status:
    """The status of what is made of values with these."""
    return next((status for status in (Status.LIVE, Status.TOKEN, Status.HELD) if status in statuses), Status.CONSTANT)


def is_followed(statuses: Sequence[Status]) -> bool:
    """Whether there is anything explained among values with these."""
    return Status.LIVE in statuses or Status.TOKEN in statuses


def if_continuous(aval: Any, status: Status) -> Status:
    """The status, of a value that may have no relevance because of its dtype."""
    # Complex values stay live: they carry a gradient, so that losing their relevance must be an error.
    is_continuous = jnp.issubdtype(aval.dtype, jnp.inexact)
    return Status.HELD if status is Status.LIVE and not is_continuous else status


def status_after(equation: Any, statuses: Sequence[Status]) -> Status:
    """What an equation without bodies makes of values with these."""
    joined = join(statuses)
    is_step = Family.STEP in primitives.family_of(equation)
    return Status.HELD if equations.is_held(equation) or (joined is Status.LIVE and is_step) else joined


def follow_bodies(
    control: Control, statuses: Sequence[Status], body: Callable[[int, Sequence[Status]], Graph]
) -> tuple[Bodies, list[Status]]:
    """Follows statuses through the bodies of an operation.

    Args:
        control: How it runs them.
        statuses: Those of its inputs.
        body: Makes a body, by its position, for statuses of its inputs.

    Returns:
        The bodies, in which what is carried has the same status at both ends, and the statuses of their outputs.
    """
    chosen = [Status.CONSTANT if status is Status.CONSTANT else Status.HELD for status in control.index(statuses)]
    inside, carried = list(control.operands(statuses)), slice(control.carried.start, control.carried.stop)

    def follow(before: list[Status]) -> tuple[tuple[Bodies, list[Status]], list[Status]]:
        inside[carried] = before
        bodies = tuple(body(i, inside) for i in range(len(control.programs)))
        out = [join([*chosen, *found]) for found in zip(*map(_statuses_outside, bodies), strict=True)]
        for i, status in enumerate(before):
            out[i] = if_continuous(bodies[0].shapes[bodies[0].outputs[i]], join([status, out[i]]))
        return (bodies, out), out[: len(before)]

    return until_settled(inside[carried], follow)


def _statuses_outside(body: Graph) -> list[Status]:
    """What the outputs of a body are where they are used; a mask is known as one inside alone."""
    are_masks = [body.shapes[value].dtype == jnp.bool_ and body.is_token(value) for value in body.outputs]
    return [
        Status.HELD if is_mask else body.status[value] for value, is_mask in zip(body.outputs, are_masks, strict=True)
    ]


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
    copy = replace(graph, operations=[], status=list(graph.status), producer={}, users={}, marks=marks)
    for value, status in zip(graph.inputs, statuses, strict=False):
        copy.status[value] = status
    for operation in graph.operations:
        bodies, out = _follow_again(graph, operation, [copy.status[value] for value in operation.inputs], places)
        for value, status in zip(operation.outputs, out, strict=True):
            said = places.get((id(graph), value), {})
            copy.mark(value, said)
            copy.status[value] = Status.HELD if Mark.HELD in said else if_continuous(copy.shapes[value], status)
        copy.add(replace(operation, bodies=bodies))
    return copy


def _follow_again(
    graph: Graph,
    operation: Operation,
    statuses: Sequence[Status],
    places: Mapping[tuple[int, int], Mapping[Mark, str]],
) -> tuple[Bodies, list[Status]]:
    if operation.control is not None and is_followed(statuses):
        return follow_bodies(
            operation.control, statuses, lambda i, inside: with_marks(operation.bodies[i], places, inside)
        )
    if not operation.bodies and statuses == [graph.status[value] for value in operation.inputs]:
        return (), [graph.status[value] for value in operation.outputs]
    return (), [status_after(operation.equation, statuses)] * len(operation.outputs)
