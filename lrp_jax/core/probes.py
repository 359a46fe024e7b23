"""Relevance within a function: probes on its way back, and the values of the function beside them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lrp_jax.core import forms
from lrp_jax.core.forms import Form
from lrp_jax.core.plan import Piece, Plan
from lrp_jax.core.running import rebind
from lrp_jax.core.shadows import shadow_of_input


def run_pieces(plan: Plan, inputs: Sequence[jax.Array]) -> dict[int, jax.Array]:
    """Runs a function piece by piece, and returns every value between the pieces, by number."""
    values = dict(plan.graph.constants) | dict(zip(plan.graph.inputs, inputs, strict=True))
    for piece in plan.pieces:
        if not piece.outputs:  # it prints
            continue
        operands = [[values[i] for i in numbers] for numbers in (piece.live, piece.constants)]
        values.update(zip(piece.outputs, piece.run(*operands), strict=True))
    return values


@dataclass(frozen=True)
class Probe:
    """A place in a plan at which relevance is read: where a value leaves a piece, or where a piece reads it.

    Attributes:
        piece: The piece.
        side: "output" or "operand".
        value: The number of the value.
    """

    piece: Piece
    side: str
    value: int


def propagator(
    plan: Plan,
    inputs: Sequence[jax.Array],
    probes: Sequence[Probe] = (),
    masks: Mapping[int, jax.Array] | None = None,
) -> tuple[list[jax.Array], Callable[[Sequence[jax.Array]], tuple[list[jax.Array], list[jax.Array]]]]:
    """Runs a function forwards, and returns what propagates relevance back, through probes on the way.

    Args:
        plan: The function, and how relevance travels through it.
        inputs: Its inputs.
        probes: Where relevance is read.
        masks: Factors for the relevance that goes on from a probe, by its position in `probes`.

    Returns:
        The outputs, and a function that maps their cotangents to the relevance of the explained inputs, integers
        included, and of the probes.
    """
    graph = plan.graph
    positions: dict[Any, list[int]] = {}
    for i, probe in enumerate(probes):
        positions.setdefault((id(probe.piece), probe.side, probe.value), []).append(i)

    def run(explained: list[jax.Array], relevance: list[jax.Array]) -> list[jax.Array]:
        def observe(piece: Piece, side: str, value: int, form: Form, array: jax.Array) -> jax.Array:
            for i in positions.get((id(piece), side, value), ()):
                array = forms.tap(array, relevance[i], form, (masks or {}).get(i))
            return array

        given = dict(zip(numbers, explained, strict=True))
        arrays = [given[i] if graph.is_live(i) else value for i, value in by_number.items()]
        shadows = {i: given[i] for i in numbers if graph.is_token(i)}
        return rebind(plan, arrays, observe, shadows)

    by_number = dict(zip(graph.inputs, inputs, strict=True))
    numbers = [i for i in graph.inputs if graph.is_live(i) or graph.is_token(i)]
    explained = [by_number[i] if graph.is_live(i) else shadow_of_input(by_number[i]) for i in numbers]
    shapes = [graph.shapes[probe.value] for probe in probes]
    dtypes = [float if graph.is_token(probe.value) else graph.shapes[probe.value].dtype for probe in probes]
    # Made like another array, zeros vary within `jax.shard_map` along the same axes as it does.
    zeros = [
        jnp.zeros_like(explained[0], shape=shape.shape, dtype=dtype)
        for shape, dtype in zip(shapes, dtypes, strict=True)
    ]
    outputs, transpose = jax.vjp(run, explained, zeros)

    def propagate(cotangents: Sequence[jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
        found, probed = transpose(list(cotangents))
        return found, [array.real for array in probed]  # of complex values

    return outputs, propagate
