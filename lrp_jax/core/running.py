"""Running a function piece by piece, each with the backward pass that a plan gives it."""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from lrp_jax.core import equations, forms
from lrp_jax.core.control import Control
from lrp_jax.core.forms import Form
from lrp_jax.core.graph import Checkpoint, Graph, Status
from lrp_jax.core.places import asks_for_places, live_places, run_in_order
from lrp_jax.core.plan import Forms, Piece, Plan
from lrp_jax.core.primitive import Family
from lrp_jax.core.shadows import for_each, no_shadow, shadow_of_input, shadow_of_numbers, shadows_of_outputs
from lrp_jax.treatments import Call

Observer: TypeAlias = Callable[[Piece, str, int, Form, jax.Array], jax.Array]

# The values between the pieces, by number: each is there as it is; a live one also once for each form in which
# cotangents arrive; of one that is made of explained integers its shadow (`lrp_jax.core.tokens`); and of one that is a
# constant at some places, where it is live (`lrp_jax.core.places`).
_PLAIN, _SHADOW, _LIVE = "plain", "shadow", "live"
_Values: TypeAlias = dict[tuple[int, Form | str], jax.Array]

# A value on its way into a function or out of it: once for each form of its cotangents, its shadow, where it is live.
_Copies: TypeAlias = tuple[list[jax.Array], jax.Array | None, jax.Array | None]


def _unobserved(piece: Piece, side: str, i: int, form: Form, value: jax.Array) -> jax.Array:
    return value


def rebind(
    plan: Plan,
    inputs: Sequence[jax.Array],
    observe: Observer = _unobserved,
    shadows: Mapping[int, jax.Array] | None = None,
) -> list[jax.Array]:
    """Runs a function piece by piece, each with the backward pass that the plan gives it.

    Args:
        plan: The function, and how relevance travels through it.
        inputs: Its inputs.
        observe: Called as observe(piece, "operand" or "output", number, form, value) with every live value that goes
            into a piece and comes out of it, for every form of its cotangents; what it returns takes the value's place.
        shadows: The shadows of its explained integers, by number.

    Returns:
        Its outputs.
    """

    def copies(i: int, value: jax.Array, wanted: Forms) -> _Copies:
        if not plan.graph.is_token(i):
            return [value] * max(1, len(wanted)), None, None
        return [value], shadow_of_input(value) if shadows is None else shadows[i], None

    given = list(map(copies, plan.graph.inputs, inputs, plan.input_forms))
    nothing = [False] * len(plan.graph.outputs)
    outputs = _rebind(plan, nothing, nothing, given, observe)
    return [found[0] for found, _, _ in outputs]


def _rebind(
    plan: Plan,
    are_tokens: Sequence[bool],
    are_partly_constant: Sequence[bool],
    inputs: Sequence[_Copies],
    observe: Observer = _unobserved,
) -> list[_Copies]:
    """As `rebind`, with the copies of inputs and outputs.

    Args:
        plan: As for `rebind`.
        are_tokens: Of which outputs the shadow is wanted.
        are_partly_constant: Of which outputs it is wanted where they are live.
        inputs: As for `rebind`, as copies.
        observe: As for `rebind`.

    Returns:
        The copies of its outputs.
    """
    graph = plan.graph
    values: _Values = {(i, _PLAIN): array for i, array in graph.constants.items()}
    for i, (copies, shadow, live), given in zip(graph.inputs, inputs, plan.input_forms, strict=True):
        values[i, _PLAIN] = copies[0]
        values.update({(i, key): array for key, array in ((_SHADOW, shadow), (_LIVE, live)) if array is not None})
        for form in plan.forms.get(i, ()):
            wanted = form if form in given else given[0]
            values[i, form] = forms.convert(copies[given.index(wanted)], form, wanted)
    _run_all(plan, plan.pieces, values, observe, 0)

    def output(i: int, arriving: Forms, is_token: bool, is_partly_constant: bool) -> _Copies:
        if graph.is_live(i) and arriving:
            copies = [values[i, form] for form in arriving]
        else:  # a branch may return a constant
            copies = [_held(graph, i, values[i, _PLAIN])] * max(1, len(arriving))
        return copies, _shadow(values, i) if is_token else None, _live(graph, values, i) if is_partly_constant else None

    return list(map(output, graph.outputs, plan.output_forms, are_tokens, are_partly_constant))


def _shadow(values: _Values, i: int) -> jax.Array:
    return values[i, _SHADOW] if (i, _SHADOW) in values else no_shadow(values[i, _PLAIN])


def _live(graph: Graph, values: _Values, i: int) -> jax.Array:
    """Where a value is live: everywhere or nowhere, if nothing else is known."""
    known = values.get((i, _LIVE))
    return no_shadow(values[i, _PLAIN]) + float(graph.is_live(i)) if known is None else known


def _held(graph: Graph, i: int, value: jax.Array) -> jax.Array:
    """What is returned, through which no relevance flows back where it is held."""
    is_held = graph.status[i] is Status.HELD and jnp.issubdtype(value.dtype, jnp.floating)
    return forms.hold(value) if is_held else value


def _run_all(plan: Plan, pieces: Sequence[Piece], values: _Values, observe: Observer, depth: int) -> None:
    """Runs pieces in order; those that belong to a call under `jax.checkpoint`, under it."""

    def checkpoint_of(piece: Piece) -> Checkpoint | None:
        return piece.checkpoints[depth] if len(piece.checkpoints) > depth else None

    for checkpoint, group in itertools.groupby(pieces, checkpoint_of):
        if checkpoint is not None:
            _run_checkpoint(plan, list(group), values, observe, depth, checkpoint)
            continue
        for piece in group:
            _run(plan, piece, values, observe)


def _run_checkpoint(
    plan: Plan, pieces: Sequence[Piece], values: _Values, observe: Observer, depth: int, checkpoint: Checkpoint
) -> None:
    used = {i for piece in pieces for i in (*piece.live, *piece.constants)}
    made = {i for piece in pieces for i in piece.outputs}
    given = {key: array for key, array in values.items() if key[0] in used}
    keys: list[tuple[int, Form | str]] = []

    def run(arrays: list[jax.Array]) -> list[jax.Array]:
        inside = dict(zip(given, arrays, strict=True))
        _run_all(plan, pieces, inside, observe, depth + 1)
        found = {key: array for key, array in inside.items() if key[0] in made}
        keys[:] = found
        return list(found.values())

    arrays = jax.checkpoint(run, prevent_cse=checkpoint.prevent_cse, policy=checkpoint.policy)(list(given.values()))
    values.update(zip(keys, arrays, strict=True))


def _run(plan: Plan, piece: Piece, values: _Values, observe: Observer) -> None:
    """Runs a piece, once for each form in which it takes cotangents."""
    if piece.treatment is None:
        _run_without_relevance(plan, piece, values)
        return
    constants = [
        values[i, _PLAIN] if plan.graph.is_constant(i) else forms.hold(values[i, _PLAIN]) for i in piece.constants
    ]
    (operation, *_) = piece.operations
    if piece.bodies and operation.control is not None:
        _run_bodies(plan, piece, operation.control, constants, values, observe)
        return
    fixed = _fixed(piece, values)
    for taken in piece.forms:
        returned = piece.returned(taken)
        live = [observe(piece, "operand", i, returned, values[i, returned]) for i in piece.live]
        outputs = _with_backward(piece, taken, fixed)(live, constants)
        values.update(((i, _PLAIN), output) for i, output in zip(piece.outputs, outputs, strict=True))
        if not piece.live:
            outputs = _tied(piece, taken, values, observe)
        for i, output in zip(piece.outputs, outputs, strict=True):
            for arriving in plan.forms.get(i, ()):
                if piece.taken(arriving) is taken:
                    copy = forms.convert(output, arriving, taken)
                    values[i, arriving] = observe(piece, "output", i, arriving, copy)
    if not plan.partly_constant.isdisjoint(piece.outputs):
        known = {i: values[i, _LIVE] for i in piece.live if (i, _LIVE) in values}
        places = live_places(plan.graph, piece, _plain(piece, values), known)
        values.update(((i, _LIVE), array) for i, array in zip(piece.outputs, places, strict=True))


def _fixed(piece: Piece, values: _Values) -> list[jax.Array | None]:
    """For each live operand of a maximum, where it is a constant; nothing if none of them is one anywhere."""
    live = [values.get((i, _LIVE)) for i in piece.live] if asks_for_places(piece) else []
    return [None if places is None else places == 0 for places in live] if any(i is not None for i in live) else []


def _run_without_relevance(plan: Plan, piece: Piece, values: _Values) -> None:
    graph = plan.graph
    live, constants = ([values[i, _PLAIN] for i in numbers] for numbers in (piece.live, piece.constants))
    if equations.has_side_effect(piece.operations[0].equation):
        constants = list(map(lax.stop_gradient, constants))
    outputs = piece.run(live, constants)
    values.update(((i, _PLAIN), output) for i, output in zip(piece.outputs, outputs, strict=True))
    if any(graph.is_token(i) and i not in graph.lost_tokens for i in piece.outputs):
        (operation,) = piece.operations
        known = _shadows_of(operation.inputs, values)
        known |= {i: shadow_of_numbers(values[i, Form.RELEVANCE]) for i in graph.looked_up(operation)}
        shadows = shadows_of_outputs(operation, _plain(piece, values), known)
        moved = zip(piece.outputs, shadows, strict=True)
        values.update(((i, _SHADOW), shadow) for i, shadow in moved if graph.is_token(i))


def _tied(piece: Piece, form: Form, values: _Values, observe: Observer) -> list[jax.Array]:
    """The outputs of a look-up, whose relevance goes to the integers with which they are looked up."""
    (operation,) = piece.operations
    outputs = [values[i, _PLAIN] for i in piece.outputs]
    known = _shadows_of(piece.constants, values)
    shadows = {i: observe(piece, "operand", i, Form.RATIO, shadow) for i, shadow in known.items()}
    return [
        forms.tap(output, for_each(shadow, output), form)
        for output, shadow in zip(outputs, shadows_of_outputs(operation, _plain(piece, values), shadows), strict=True)
    ]


def _shadows_of(numbers: Sequence[int], values: _Values) -> dict[int, jax.Array]:
    return {i: values[i, _SHADOW] for i in numbers if (i, _SHADOW) in values}


def _plain(piece: Piece, values: _Values) -> dict[int, jax.Array]:
    """The operands and outputs of a piece."""
    return {i: values[i, _PLAIN] for i in (*piece.live, *piece.constants, *piece.outputs)}


_Run: TypeAlias = Callable[[Sequence[jax.Array], Sequence[jax.Array]], Sequence[jax.Array]]


def _with_backward(piece: Piece, taken: Form, fixed: Sequence[jax.Array | None]) -> _Run:
    """A piece as a function of its live operands and the others, with its backward pass for cotangents of a form.

    Args:
        piece: The piece.
        taken: The form.
        fixed: For each live operand, where it is a constant, if the piece has to know that.
    """
    assert piece.treatment is not None
    backward, remember = piece.treatment.backward.get(taken), piece.treatment.remember
    (operation, *_) = piece.operations
    if backward is None:
        has_ties = fixed and Family.ORDER in operation.family
        return functools.partial(run_in_order, piece, fixed) if has_ties else piece.run
    order = [*piece.live, *piece.constants]
    places = [order.index(i) for i in operation.inputs if i in order]
    make_call = functools.partial(
        Call, piece.run, operation.name, operation.equation.params, places, maximum=operation.primitive.maximum
    )
    numbers, structure = jax.tree.flatten(piece.rule)

    @jax.custom_vjp
    def run(live: list[jax.Array], constants: list[jax.Array], numbers: list[Any], fixed: Any) -> list[jax.Array]:
        return _for_each(numbers, piece.run(live, constants))

    def forward(
        live: list[jax.Array], constants: list[jax.Array], numbers: list[Any], fixed: Any
    ) -> tuple[list[jax.Array], Any]:
        outputs = piece.run_with_backward(live, constants)
        call = make_call(live, constants, outputs, (), fixed=fixed)
        kept = live, constants, outputs, remember(call) if remember else None, numbers
        return _for_each(numbers, outputs), kept

    def back(residuals: Any, cotangents: list[jax.Array]) -> tuple[list[jax.Array], None, None, None]:
        live, constants, outputs, remembered, numbers = residuals
        rule = jax.tree.unflatten(structure, numbers)
        return list(backward(make_call(live, constants, outputs, cotangents, remembered, rule))), None, None, None

    run.defvjp(forward, back)
    return lambda live, constants: run(live, constants, numbers, fixed)


def _for_each(numbers: Sequence[Any], outputs: list[jax.Array]) -> list[jax.Array]:
    """The outputs, one for each number where `jax.vmap` has several: what is shared would share its cotangent."""
    for number in numbers:
        if isinstance(number, jax.core.Tracer):
            outputs = [jnp.where(number == number, output, output) for output in outputs]
    return outputs


def _run_bodies(
    plan: Plan,
    piece: Piece,
    control: Control,
    constants: Sequence[jax.Array],
    values: _Values,
    observe: Observer,
) -> None:
    """Runs an operation with rebound bodies, whose live operands are there once for each form."""
    (operation,) = piece.operations
    held = dict(zip(piece.constants, constants, strict=True))
    (body, *_) = piece.bodies

    def copies(i: int, wanted: Forms, inside: int, is_asked: bool) -> _Copies:
        live = _live(plan.graph, values, i) if is_asked else None
        if i in held:
            is_token = body.graph.is_token(inside)
            shadow = observe(piece, "operand", i, Form.RATIO, _shadow(values, i)) if is_token else None
            return [held[i]] * max(1, len(wanted)), shadow, live
        if not wanted:
            return [forms.hold(values[i, _PLAIN])], None, live
        return [observe(piece, "operand", i, form, values[i, form]) for form in wanted], None, live

    are_asked, are_partly_constant = _asked(plan, piece, control)
    given = map(copies, operation.operands, body.input_forms, body.graph.inputs, are_asked)
    index = [held[i] for i in control.index(operation.inputs)]
    are_tokens = list(map(plan.graph.is_token, operation.outputs))
    rebound = [
        lambda given, body=body: (_rebind(body, are_tokens, are_partly_constant, given), None) for body in piece.bodies
    ]
    outputs, _ = control.run(rebound, [*index, *given])
    for i, (found, shadow, live), arriving in zip(operation.outputs, outputs, body.output_forms, strict=True):
        values[i, _PLAIN] = found[0]
        if live is not None:
            values[i, _LIVE] = live
        if shadow is not None:
            values[i, _SHADOW] = observe(piece, "output", i, Form.RATIO, shadow)
        for form, copy in zip(arriving, found, strict=False):
            values[i, form] = observe(piece, "output", i, form, copy)


def _asked(plan: Plan, piece: Piece, control: Control) -> tuple[list[bool], list[bool]]:
    """Of which inputs of bodies, and of which of their outputs, it is asked where they are live."""
    (operation,) = piece.operations
    of_outputs = [i in plan.partly_constant for i in operation.outputs]
    each = zip(*(map(body.partly_constant.__contains__, body.graph.inputs) for body in piece.bodies), strict=True)
    of_inputs = list(map(any, each))
    for i, carried in enumerate(control.carried):
        of_inputs[carried] = of_outputs[i] = of_inputs[carried] or of_outputs[i]
    return of_inputs, of_outputs
