"""Where a value is a constant, place by place, although relevance flows through it: for maxima, which must know.

Padding, masks and what is written into an array put constants beside what is explained. Of equals a constant wins, so
that a maximum behind them asks at which places there is one. Which places those are moves along with the values, as the
shadows of explained integers do (`lrp_jax.core.shadows`); it is followed only where a maximum reads such a value.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lrp_jax.core import equations
from lrp_jax.core.control import until_settled
from lrp_jax.core.graph import Graph, Operation
from lrp_jax.core.plan import Piece, Plan
from lrp_jax.core.primitive import Family
from lrp_jax.core.shadows import no_shadow, shadows_of_outputs
from lrp_jax.core.tokens import data_positions

Arrays: TypeAlias = Mapping[int, jax.Array]

_MOVED = Family.MOVE | Family.WRITE
_REDUCED = Family.REDUCTION | Family.CUMULATIVE | Family.WINDOW


def asks_for_places(piece: Piece) -> bool:
    """Whether a piece is a maximum, or puts in order, so that it has to know where its operands are constants."""
    (operation, *others) = piece.operations
    return not others and (operation.primitive.maximum is not None or Family.ORDER in operation.family)


def with_places(plan: Plan) -> Plan:
    """The plan, in which it is noted of which values maxima have to know where they are constants."""
    known: dict[int, set[int]] = {}
    _find(plan, set(), known)
    return _noted(plan, known, set())


def _find(plan: Plan, given: set[int], known: dict[int, set[int]]) -> None:
    """Finds the values that are constants at some places, and notes them by the id of their plan."""
    found = known[id(plan)] = given
    for piece in plan.pieces:
        returned: Iterable[int] = ()
        if piece.bodies:
            returned = _returned_by_bodies(plan.graph, piece, found, known)
        elif _is_partly_constant(plan.graph, piece, found):
            returned = piece.outputs
        found.update(value for value in returned if plan.graph.is_live(value))


def _returned_by_bodies(graph: Graph, piece: Piece, found: set[int], known: dict[int, set[int]]) -> Iterable[int]:
    (operation,) = piece.operations
    for body in piece.bodies:
        inside, pairs = body.graph, zip(body.graph.inputs, operation.operands, strict=True)

        def follow(given: set[int], body: Plan = body) -> tuple[None, set[int]]:
            _find(body, set(given), known)
            return None, given | {before for before, after in _carried(piece, body) if after in known[id(body)]}

        # What is carried may be a constant at first.
        until_settled({i for i, j in pairs if inside.is_live(i) and (j in found or not graph.is_live(j))}, follow)
        outputs = zip(operation.outputs, inside.outputs, strict=True)
        yield from (outer for outer, inner in outputs if inner in known[id(body)])


def _carried(piece: Piece, body: Plan) -> list[tuple[int, int]]:
    """The values that are carried from step to step, in a body: what they are before and after it."""
    (operation,) = piece.operations
    carried = range(0) if operation.control is None else operation.control.carried
    return [(body.graph.inputs[i], after) for i, after in zip(carried, body.graph.outputs, strict=False)]


def _noted(plan: Plan, known: Mapping[int, set[int]], wanted: set[int]) -> Plan:
    found, pieces = known[id(plan)], []
    for piece in reversed(plan.pieces):
        if piece.bodies:
            piece = replace(piece, bodies=tuple(_noted_bodies(piece, known, wanted)))
            inputs = [pair for body in piece.bodies for pair in _asked(piece, body)]
            wanted.update(found.intersection(inputs))
        elif asks_for_places(piece) or not wanted.isdisjoint(piece.outputs):
            wanted.update(found.intersection(piece.live))
        pieces.append(piece)
    return replace(plan, pieces=tuple(pieces[::-1]), partly_constant=frozenset(wanted))


def _noted_bodies(piece: Piece, known: Mapping[int, set[int]], wanted: set[int]) -> Iterable[Plan]:
    (operation,) = piece.operations
    for body in piece.bodies:
        outputs = zip(operation.outputs, body.graph.outputs, strict=True)

        def follow(inside: set[int], body: Plan = body) -> tuple[Plan, set[int]]:
            noted = _noted(body, known, inside & known[id(body)])
            return noted, inside | {after for before, after in _carried(piece, body) if before in noted.partly_constant}

        yield until_settled({inner for outer, inner in outputs if outer in wanted}, follow)


def _asked(piece: Piece, body: Plan) -> Iterable[int]:
    """The operands of an operation with bodies of which one of these has to know where they are constants."""
    (operation,) = piece.operations
    pairs = zip(body.graph.inputs, operation.operands, strict=True)
    return (outer for inner, outer in pairs if inner in body.partly_constant)


def _is_partly_constant(graph: Graph, piece: Piece, known: Collection[int]) -> bool:
    """Whether a piece returns constants at some places, of those that it reads or of those that its operands hold."""
    (operation, *others) = piece.operations
    if not piece.live or piece.layer is not None or piece.group or operation.treatment is not None:
        return False
    are_known = [value in known for value in piece.live]
    if others:  # a function of one value
        return all(are_known)
    is_maximum = operation.primitive.maximum is not None
    if operation.family & _MOVED or operation.name == "select_n" or (is_maximum and _is_scatter(operation)):
        return any(are_known) or _adds_constants(graph, operation)
    is_followed = bool(operation.family & (Family.ELEMENTWISE | Family.IDENTITY))
    if is_followed or (is_maximum and operation.family & _REDUCED):
        return all(are_known) or _masks(graph, operation)
    return False


def _adds_constants(graph: Graph, operation: Operation) -> bool:
    """Whether an operation puts constants beside what is explained; nothing ties with infinite ones."""
    positions = (0, 2) if _is_scatter(operation) else data_positions(operation.name, len(operation.inputs))
    for value in (operation.inputs[position] for position in positions):
        number = graph.number(value)
        if not graph.is_live(value) and (number is None or np.isfinite(number)):
            return True
    fill_value = operation.equation.params.get("fill_value")
    return fill_value is not None and bool(np.isfinite(fill_value))


def _masks(graph: Graph, operation: Operation) -> bool:
    """Whether an operation multiplies with an array that is no number, and may be zero somewhere."""
    others = [value for value in operation.inputs if not graph.is_live(value)]
    return operation.name == "mul" and len(others) == 1 and graph.number(others[0]) is None


def _is_scatter(operation: Operation) -> bool:
    return operation.name in {"scatter-max", "scatter-min"}


def live_places(graph: Graph, piece: Piece, values: Arrays, known: Arrays) -> list[jax.Array]:
    """Where the outputs of a piece depend on what is explained: a number above zero there, and zero elsewhere.

    Args:
        graph: The function.
        piece: A piece that returns constants at some places.
        values: Its operands and outputs, by number.
        known: The same of its operands, by number, where they are constants at some places.
    """
    (operation, *others) = piece.operations
    parts = {value: known.get(value, no_shadow(values[value]) + 1) for value in piece.live}
    if others:  # a function of one value
        (part,) = parts.values()
        return [part]
    if operation.primitive.maximum is not None and operation.family & _REDUCED:
        (part,) = parts.values()
        sign = -1 if "min" in operation.name else 1
        return [sign * equations.run(operation.equation, sign * part)[0]]
    if _is_scatter(operation):
        return [_scattered(operation, parts, values)]
    (found, *further) = shadows_of_outputs(operation, values, parts)
    if _masks(graph, operation):
        (mask,) = (values[value] for value in operation.inputs if not graph.is_live(value))
        found = jnp.where(lax.stop_gradient(mask) == 0, 0, found)
    return [found, *further]


def _scattered(operation: Operation, parts: Arrays, values: Arrays) -> jax.Array:
    """Where there is something live, or something live is scattered to."""
    first, updates = (parts.get(operation.inputs[i], no_shadow(values[operation.inputs[i]])) for i in (0, 2))
    names = ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
    params = {name: operation.equation.params[name] for name in names}
    return lax.scatter_max(first, values[operation.inputs[1]], updates, **params)


def run_in_order(
    piece: Piece, fixed: Sequence[jax.Array | None], live: Sequence[jax.Array], constants: Sequence[jax.Array]
) -> list[jax.Array]:
    """Runs a `sort` or `top_k`, of which the derivative puts constants before what is equal to them.

    Args:
        piece: The operation as a piece.
        fixed: For each of its live operands, where it is a constant; None if it is nowhere.
        live: Its live operands.
        constants: The others.
    """
    outputs, (operation,) = piece.run(live, constants), piece.operations
    params, key = operation.equation.params, operation.inputs[0]
    if key not in piece.live or params.get("num_keys", 1) > 1:
        return outputs
    x, is_fixed = live[piece.live.index(key)], fixed[piece.live.index(key)]
    if is_fixed is None:
        return outputs
    axis = params["dimension"] if operation.name == "sort" else params.get("axis", x.ndim - 1)
    by = lax.stop_gradient(x if operation.name == "sort" else -x)
    places = lax.broadcasted_iota(jnp.int32, x.shape, axis)
    *_, order = lax.sort((by, (~is_fixed).astype(jnp.int32), places), dimension=axis, num_keys=2)
    order = lax.slice_in_dim(order, 0, outputs[0].shape[axis], axis=axis)
    return [jnp.take_along_axis(x, order, axis), *outputs[1:]]
