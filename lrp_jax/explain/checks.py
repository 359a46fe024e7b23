"""What is looked at before and after an explanation is computed, so that nothing wrong passes in silence."""

import functools
import reprlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from lrp_jax.composites import Composite
from lrp_jax.core.arguments import check_tree, kind_of
from lrp_jax.core.control import Body
from lrp_jax.core.graph import Graph, Operation, Status
from lrp_jax.core.held_arrays import is_array
from lrp_jax.core.plan import Piece, Plan
from lrp_jax.core.probes import run_pieces
from lrp_jax.core.trace import ReadCall, check_dtype, check_has_values
from lrp_jax.errors import InputError, LRPWarning, ModelError
from lrp_jax.explain.growth import MOST_GROWTH, Flow, report_loss, summarised


def number_of_samples(x: Any, *, has_values: bool = True) -> int:
    """The length of the first dimension, which all arrays of an input have in common.

    Args:
        x: The input.
        has_values: Whether its numbers are needed; else shapes and dtypes are enough.

    Raises:
        InputError: If there is none, or the input holds something else than arrays of numbers.
    """
    check_tree(x, "x")
    with_paths = jax.tree_util.tree_leaves_with_path(x)
    for path, leaf in with_paths:
        name = f"x{jax.tree_util.keystr(path)}"
        if not is_array(leaf):
            hint = "Pass jnp.asarray(x), or leave it out."
            if callable(leaf):
                hint = "The model is the first argument, and x the second."
            raise InputError(f"{name} is no array of numbers, but {kind_of(leaf)}. {hint}")
        check_dtype(leaf, tokens=True)
        if has_values:
            check_has_values(leaf)
        if leaf.ndim == 0:
            raise InputError(f"{name} has no dimension for the samples. Pass x[None] for one sample.")
    samples = {f"x{jax.tree_util.keystr(path)}": leaf.shape[0] for path, leaf in with_paths}
    if not samples:
        raise InputError("x holds no array: there is nothing to explain.")
    if len(set(samples.values())) > 1:
        differing = ", ".join(f"{number} in {name}" for name, number in samples.items())
        raise InputError(
            f"The arrays of x need the samples in their first dimension, but their numbers differ: {differing}. If x "
            "is one sample of several arrays, as a graph is, give each a first dimension: x = jax.tree.map(lambda "
            "array: array[None], x), and pass jax.vmap(model)."
        )
    return next(iter(samples.values()))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Outside:
    """How much of a layer's input is outside the bounds of its z-box rule.

    Attributes:
        number: The number of values.
        smallest: The smallest value of the input.
        largest: Its largest value.
    """

    number: jax.Array
    smallest: jax.Array
    largest: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Checks:
    """What is found of an explanation while it runs.

    Attributes:
        is_sound: Whether the relevance is finite and the output is not NaN.
        outside: What is outside of its bounds, by the layer and the bounds in words.
        flow: From how much relevance it started, and how much arrived; None where that was not asked for.
        total: The same of all samples together.
    """

    is_sound: jax.Array
    outside: dict[str, Outside]
    flow: Flow | None = None
    total: Flow | None = None


def check(plan: Plan, inputs: Sequence[jax.Array], output: Any, relevance: Any, flow: Flow | None = None) -> Checks:
    """Looks at the values of an explanation; part of the compiled program."""
    known = [~jnp.isnan(leaf).any() for leaf in jax.tree.leaves(output) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(relevance)]
    total = None if flow is None else summarised(flow)
    return Checks(jnp.stack([*known, *finite]).all(), _outside_of_boxes(plan, inputs), flow, total)


def summarise(checks: Checks) -> Checks:
    """One number of each kind for what was found in the parts of a batch."""
    total = None if checks.total is None else summarised(checks.total)
    return Checks(checks.is_sound.all(), _together(checks.outside), total=total)


def _outside_of_boxes(plan: Plan, inputs: Sequence[jax.Array]) -> dict[str, Outside]:
    """Counts what is outside of the bounds of z-box in each layer, also within scans and branches."""
    boxed = [i for i, piece in enumerate(plan.pieces) if _is_box(piece) or any(map(_has_box, piece.bodies))]
    return _count(plan, run_pieces(replace(plan, pieces=plan.pieces[: boxed[-1]]), inputs)) if boxed else {}


def _is_box(piece: Piece) -> bool:
    return piece.rule is not None and piece.rule.input_bounds is not None and piece.treatment is not None


def _has_box(plan: Plan) -> bool:
    return any(map(_is_box, plan.all_pieces()))


def _count(plan: Plan, values: Mapping[int, jax.Array]) -> dict[str, Outside]:
    found: dict[str, Outside] = {}
    for piece in plan.pieces:
        (operation, *_) = piece.operations
        if _is_box(piece):
            assert piece.layer is not None
            found |= _outside_of_box(piece, jnp.asarray(values[piece.layer.input]))
        elif any(map(_has_box, piece.bodies)):
            found |= _count_in_bodies(piece, [values[i] for i in operation.inputs])
    return found


def _outside_of_box(piece: Piece, x: jax.Array) -> dict[str, Outside]:
    assert piece.layer is not None
    assert piece.rule is not None
    assert piece.rule.input_bounds is not None
    low, high = (jnp.asarray(bound, x.dtype) for bound in piece.rule.input_bounds)
    rounding = 8 * jnp.finfo(x.dtype).eps * jnp.maximum(jnp.abs(low), jnp.abs(high))
    number = ((x < low - rounding) | (x > high + rounding)).sum()
    bounds = f"[{', '.join(map(reprlib.repr, piece.rule.input_bounds))}]"
    known = ~jnp.isnan(x)
    smallest, largest = x.min(initial=jnp.inf, where=known), x.max(initial=-jnp.inf, where=known)
    return {
        f"{bounds} of {type(piece.rule).__name__} in the layer {piece.layer.name!r}": Outside(number, smallest, largest)
    }


def _count_in_bodies(piece: Piece, inputs: Sequence[jax.Array]) -> dict[str, Outside]:
    """Counts in every step of a scan, in the branch that is run, or on every device, which has samples of its own."""
    (operation,) = piece.operations
    assert operation.control is not None

    def count(body: Plan, given: Sequence[jax.Array]) -> tuple[list[jax.Array], dict[str, Outside]]:
        values = run_pieces(body, given)
        return [values[i] for i in body.graph.outputs], _count(body, values)

    bodies: list[Body] = [functools.partial(count, body) for body in piece.bodies]
    if len(bodies) > 1:  # all branches return the same places
        given = operation.control.operands(inputs)
        nothing = {k: _nothing_like(v) for body in bodies for k, v in jax.eval_shape(body, given)[1].items()}
        bodies = [functools.partial(_with_others, body, nothing) for body in bodies]
    _, found = operation.control.run(bodies, inputs)
    return _together(found)


def _nothing_like(outside: Outside) -> Outside:
    number, smallest, largest = jnp.zeros_like(outside.number), outside.smallest, outside.largest
    return Outside(number, jnp.full_like(smallest, jnp.inf), jnp.full_like(largest, -jnp.inf))


def _with_others(body: Body, others: dict[str, Outside], given: list[jax.Array]) -> tuple[list[jax.Array], Any]:
    outputs, found = body(given)
    return outputs, others | found


def _together(found: Mapping[str, Outside]) -> dict[str, Outside]:
    return {
        place: Outside(
            outside.number.sum(), outside.smallest.min(initial=jnp.inf), outside.largest.max(initial=-jnp.inf)
        )
        for place, outside in found.items()
    }


def report(checks: Sequence[Checks], trace: Callable[[], ReadCall]) -> None:
    """Warns of what is suspicious in an explanation and refuses what is wrong; silent where values are not known.

    Args:
        checks: What was found in each batch.
        trace: Traces the model, to find out where NaN comes from.

    Raises:
        InputError: If it comes from the input.
        ModelError: If it comes from the parameters.
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(checks)):
        return
    for place in checks[0].outside:
        parts = [part.outside[place] for part in checks]
        number = sum(int(part.number) for part in parts)
        if number:
            smallest, largest = min(float(part.smallest) for part in parts), max(float(part.largest) for part in parts)
            warnings.warn(
                f"{number} values are outside of the bounds {place}: they reach from {smallest:g} to {largest:g}. "
                "The rule holds for values between its bounds: pass the bounds that the input of this layer has.",
                LRPWarning,
                stacklevel=3,
            )
    if not all(bool(part.is_sound) for part in checks):
        _explain_what_is_not_finite(trace())


def report_batches(checks: Mapping[range, Checks], composite: Composite) -> None:
    """As `report`, for a data set, whose explanations are kept all the same: only warns.

    Args:
        checks: What was found, as `summarise` returns it, by the samples of the batch.
        composite: The rules.
    """
    if not checks:
        return
    for place in next(iter(checks.values())).outside:
        parts = [batch.outside[place] for batch in checks.values()]
        number = sum(bool(part.number) for part in parts)
        if number:
            smallest, largest = min(part.smallest for part in parts), max(part.largest for part in parts)
            warnings.warn(
                f"In {number} of {len(checks)} batches, values are outside of the bounds {place}: they reach from "
                f"{smallest:g} to {largest:g}. Pass the bounds that the input of this layer has, and another store.",
                LRPWarning,
                stacklevel=3,
            )
    totals = [batch.total for batch in checks.values() if batch.total is not None]
    grown = [total.growth for total in totals if total.growth > MOST_GROWTH]
    if grown:
        warnings.warn(
            f"Absolute relevance at the input is up to {max(grown):.3g} times what it started from, in {len(grown)} of "
            f"{len(checks)} batches: it grows where contributions cancel. For these, lrp_jax.ledger says "
            "in which operation.",
            LRPWarning,
            stacklevel=3,
        )
    report_loss(composite, totals)
    unsound = [samples for samples, batch in checks.items() if not batch.is_sound]
    if unsound:
        warnings.warn(
            f"Relevance is NaN or infinite in {len(unsound)} of {len(checks)} batches, first among the samples "
            f"{unsound[0].start} to {unsound[0].stop - 1}. For these, lrp_jax.relevance says where it comes from.",
            LRPWarning,
            stacklevel=3,
        )


def _explain_what_is_not_finite(traced: ReadCall) -> None:
    graph = traced.graph
    values = {**graph.constants, **dict(zip(graph.inputs, traced.inputs, strict=True))}
    explained = [value for value in graph.inputs if graph.status[value] is Status.LIVE]
    bad = sum(int((~jnp.isfinite(values[value])).sum()) for value in explained)
    if bad:
        raise InputError(f"{bad} values of x are NaN or infinite. Look at where x comes from.")
    names = [
        graph.paths.get(value) or f"a constant of shape {array.shape}, read at {_reader(graph, value)}"
        for value, array in values.items()
        if jnp.issubdtype(array.dtype, jnp.floating) and jnp.isnan(array).any()
    ]
    if names:
        raise ModelError(
            f"Parameters of the model are NaN: {', '.join(names)}. Load them again, or train the model with a lower "
            "learning rate."
        )
    operation = _first_overflow(graph, values)
    where = f"{operation.name!r} at {operation.location}" if operation else "the backward pass"
    warnings.warn(
        f"Values are NaN or infinite, first in {where}, though the input and the parameters are finite. "
        "Use a dtype with a larger range, or a larger epsilon.",
        LRPWarning,
        stacklevel=4,
    )


def _reader(graph: Graph, value: int) -> str:
    readers = graph.users.get(value, [])
    return readers[0].location if readers else "an unknown line"


def _first_overflow(graph: Graph, values: dict[int, Any]) -> Operation | None:
    """The first operation that makes something infinite or NaN of finite values."""
    for operation in graph.operations:
        outputs = operation.run(*(values[i] for i in operation.inputs))
        values.update(zip(operation.outputs, outputs, strict=True))
        if all(map(_is_finite, (values[i] for i in operation.inputs))) and not all(map(_is_finite, outputs)):
            return operation
    return None


def _is_finite(array: Any) -> bool:
    return not jnp.issubdtype(array.dtype, jnp.floating) or bool(jnp.isfinite(array).all())
