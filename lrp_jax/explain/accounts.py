"""Accounts of relevance: what arrives at every piece of a function, what it passes on, and what stays there."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lrp_jax.core.layers import Layer
from lrp_jax.core.linear_maps import LinearMap
from lrp_jax.core.plan import Piece, Plan, with_rules
from lrp_jax.core.probes import Probe, propagator, run_pieces
from lrp_jax.core.programs import run_compiled
from lrp_jax.core.trace import ReadCall
from lrp_jax.errors import InputError, ModelError

_TOLERANCE = 1e-4  # of what the account may not close, in units of its largest entry


@dataclass(frozen=True)
class Entry:
    """What happened to relevance in one piece of a function; sums over all samples and elements.

    Attributes:
        piece: The piece.
        arrived: The relevance of its outputs.
        passed_on: The relevance that its operands received.
        bias: What the bias of a layer kept.
        unshared: What no input of a layer got, as it has no contributions of the sign that its rule asks for.
        moved: The sum of the absolute relevance of its outputs.
        moved_on: The same of its operands.
    """

    piece: Piece
    arrived: float
    passed_on: float
    bias: float
    unshared: float
    moved: float
    moved_on: float

    @property
    def lost(self) -> float:
        """What arrived and was not passed on."""
        return self.arrived - self.passed_on

    @property
    def stabilizer(self) -> float:
        """What is missing in a layer besides: absorbed by the stabiliser of the denominator."""
        return self.lost - self.bias - self.unshared if self.piece.layer is not None else 0.0

    @property
    def constants(self) -> float:
        """What constants kept that are added outside of layers."""
        return self.lost if self._loses("constants") else 0.0

    @property
    def not_conserved(self) -> float:
        """What is missing where an operation or a rule does not conserve relevance."""
        return self.lost if self._loses("not conserved") else self.unshared

    def _loses(self, loss: str) -> bool:
        treatment = self.piece.treatment
        return self.piece.layer is None and treatment is not None and treatment.loss == loss

    @property
    def growth(self) -> float:
        """How much absolute relevance was passed on for each unit that arrived."""
        return self.moved_on / self.moved if self.moved else 1.0


@dataclass(frozen=True)
class Account:
    """Where every unit of relevance went.

    Attributes:
        explained: The explained output, from which relevance starts.
        inputs: The relevance that arrived at the input.
        entries: One for each piece that relevance reached, from the output to the input.
        results: What else was asked for.
    """

    explained: float
    inputs: float
    entries: tuple[Entry, ...]
    results: Any


def check_closes(account: Account) -> None:
    """Refuses an account in which relevance is unaccounted for.

    Raises:
        ModelError: If the account does not close, to 1e-4 of its largest entry.
    """
    missing = account.explained - account.inputs - sum(entry.lost for entry in account.entries)
    moved = (max(entry.moved, entry.moved_on) for entry in account.entries)
    largest = max([abs(account.explained), abs(account.inputs), *moved])
    if not abs(missing) <= _TOLERANCE * largest:  # also where it is NaN
        raise ModelError(
            f"The account of relevance does not close: of {account.explained:.6g}, {missing:.3g} is unaccounted for. A "
            "value on the way is NaN or infinite, or a treatment of your own returns such cotangents."
        )


def path_of(piece: Piece) -> str:
    """The path of the parameters of a layer or an embedding; of an operation the module, or the line of the file."""
    if piece.layer is not None:
        return piece.layer.name
    if piece.table:
        return piece.table.rpartition(".")[0] or piece.table
    operation = piece.operations[0]
    return operation.module or re.sub(r"^.*[/\\](?=.*:\d+ \()", "", operation.location)  # a file without its folder


def keep_account(
    traced: ReadCall, plan: Plan, seed: Callable[[Any], Any], also: Callable[[Any, Any], Any] = lambda value, maps: None
) -> Account:
    """Propagates relevance and adds up what happens to it.

    Args:
        traced: The call that is explained.
        plan: How relevance travels through it.
        seed: Maps what is explained to the cotangent from which relevance starts.
        also: Called with the function's value and the relevance of the input, to return something else.

    Returns:
        The account. It closes, unless something is not finite: what started is what arrived and what stayed.
    """
    rules, structure = jax.tree.flatten([piece.rule for piece in plan.all_pieces()])

    def sums_and_results(rules: Sequence[Any], inputs: Sequence[jax.Array]) -> tuple[Any, Any]:
        return _sums(traced, with_rules(plan, jax.tree.unflatten(structure, rules)), seed, also, inputs)

    sums, results = run_compiled(sums_and_results, rules, traced.inputs)
    pieces = _reached(plan)
    if any(isinstance(number, jax.core.Tracer) for number in jax.tree.leaves(sums)):
        raise InputError("An account needs numbers, which are not known within a trace. Keep it outside of jax.jit.")
    start, end, rows = jax.tree.map(float, sums)
    entries = tuple(Entry(piece, *row) for piece, row in zip(pieces, rows, strict=True))
    return Account(start, end, entries, results)


def _reached(plan: Plan) -> list[Piece]:
    """The pieces that relevance reaches, from the output to the input."""
    return [piece for piece in reversed(plan.pieces) if piece.treatment is not None]


def _sums(
    traced: ReadCall,
    plan: Plan,
    seed: Callable[[Any], Any],
    also: Callable[[Any, Any], Any],
    inputs: Sequence[jax.Array],
) -> tuple[Any, Any]:
    pieces, is_explained = _reached(plan), plan.graph.is_explained
    probes = [
        Probe(piece, side, value)
        for piece in pieces
        for side, numbers in (("output", piece.outputs), ("operand", (*piece.live, *piece.constants)))
        for value in numbers
        if is_explained(value)
    ]
    outputs, propagate = propagator(plan, inputs, probes)
    returned, explained = traced.split(outputs)
    start = seed(explained)
    relevance, probed = propagate(traced.cotangents(outputs, start))
    found = {(id(probe.piece), probe.side, probe.value): array for probe, array in zip(probes, probed, strict=True)}
    values = run_pieces(plan, inputs)
    rows = []
    for piece in pieces:
        arrived = [found[id(piece), "output", value] for value in piece.outputs if is_explained(value)]
        operands = (*piece.live, *piece.constants)
        passed_on = [found[id(piece), "operand", value] for value in operands if is_explained(value)]
        bias, unshared = (share(piece, arrived[0], values).sum() for share in (bias_share, _unshared))
        moved, moved_on = _sum(map(jnp.abs, arrived)), _sum(map(jnp.abs, passed_on))
        rows.append((_sum(arrived), _sum(passed_on), bias, unshared, moved, moved_on))
    total = _sum(s * e for s, e in zip(jax.tree.leaves(start), jax.tree.leaves(explained), strict=True))
    return (total, _sum(relevance), rows), also(returned, relevance)


def _sum(arrays: Any) -> Any:
    return sum((array.sum() for array in arrays), start=jnp.zeros(()))


def bias_share(piece: Piece, relevance: jax.Array, values: dict[int, jax.Array]) -> jax.Array:
    """The relevance that the bias of a layer keeps, in the shape of its output; a zero for what is no layer."""
    if piece.layer is None or piece.rule is None:
        return jnp.zeros(())
    return piece.rule.bias_share(_linear_map(piece.layer, values), relevance)


def _unshared(piece: Piece, relevance: jax.Array, values: dict[int, jax.Array]) -> jax.Array:
    if piece.layer is None or piece.rule is None:
        return jnp.zeros(())
    return piece.rule.unshared(_linear_map(piece.layer, values), relevance)


def _linear_map(layer: Layer, values: dict[int, jax.Array]) -> LinearMap:
    return layer.linearize(values[layer.input], [values[i] for i in layer.constants], values[layer.output])
