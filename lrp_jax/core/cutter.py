"""Cutting a function into pieces: layers, functions of one value, and single operations."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lrp_jax import treatments
from lrp_jax.composites import Composite
from lrp_jax.core import equations, primitives
from lrp_jax.core.addends import Cuts
from lrp_jax.core.choice import smooth_quotient, treatment_of_function
from lrp_jax.core.equations import Mark
from lrp_jax.core.factors import Factors
from lrp_jax.core.functions import Function
from lrp_jax.core.graph import Graph, Operation
from lrp_jax.core.layers import Layer, Tail, constant_factor, find_tails, marked_as_none
from lrp_jax.core.plan import Piece
from lrp_jax.core.primitive import Family
from lrp_jax.core.rule import Rule
from lrp_jax.errors import ModelError, SelectorError
from lrp_jax.treatments import Treatment


@dataclass(frozen=True)
class Cutter:
    """Cuts a function into pieces, from what is returned to the inputs.

    Attributes:
        factors: What values are as factors, in the function.
        composite: Which operations have treatments of their own.
        layers: The layers of the whole function, by the id of their linear operation.
        rules: Their rules.
        pieces: For each value that is needed, the piece that returns it.
    """

    factors: Factors
    composite: Composite
    layers: Mapping[int, Layer]
    rules: Sequence[Rule]
    pieces: dict[int, Piece] = field(default_factory=dict)

    @property
    def graph(self) -> Graph:
        """The function."""
        return self.factors.graph

    @functools.cached_property
    def _tails(self) -> dict[int, Tail]:
        return find_tails(self.graph, self.layers)

    @functools.cached_property
    def _cuts(self) -> Cuts:
        layered = frozenset(value for value, tail in self._tails.items() if not tail.moves)
        return Cuts(self.factors.functions, layered, frozenset(self.composite.treatments))

    @functools.cached_property
    def _marked_as_none(self) -> frozenset[int]:
        return marked_as_none(self.graph)

    def cut(self) -> list[Piece]:
        """The pieces that the outputs and the operations with a side effect need, in the order in which they run."""
        graph = self.graph
        with_effect = [operation for operation in graph.operations if equations.has_side_effect(operation.equation)]
        effects = [_piece([operation], ()) for operation in with_effect if not operation.outputs]
        waiting = [*graph.outputs, *(value for piece in effects for value in piece.constants)]
        waiting += [value for operation in with_effect for value in operation.outputs]
        while waiting:
            value = waiting.pop()
            if value in self.pieces or value not in graph.producer:
                continue
            piece = self._piece_of(value)
            self.pieces.update(dict.fromkeys(piece.outputs, piece))
            waiting.extend((*piece.live, *piece.constants))
        place = {id(operation): i for i, operation in enumerate(graph.operations)}
        found = {id(piece): piece for piece in (*self.pieces.values(), *effects)}
        return sorted(found.values(), key=lambda piece: place[id(piece.operations[-1])])

    def _piece_of(self, value: int) -> Piece:
        operation = self.graph.producer[value]
        if not any(map(self.graph.is_live, operation.outputs)):
            return _piece([operation], ())
        group = self.factors.softmaxes.groups.get(value)
        if group is not None and group.kind in self.composite.treatments:
            treatment = treatments.smooth
            return _piece(group.operations, group.operands, kind=group.kind, treatment=treatment, group=group.kind)
        tail = self._tails.get(value)
        if tail is not None and not tail.moves:
            layer = tail.layer
            rule = self.rules[layer.index]
            return Piece(layer.operations, (layer.input,), layer.constants, (layer.output,), layer.kind, layer, rule)
        if tail is None and (function := self._cuts.function(value)) is not None:
            return _piece_of_function(function)
        return self._single(operation)

    def _single(self, operation: Operation) -> Piece:
        graph, is_linear_map = self.graph, Family.LINEAR_MAP in operation.family
        live = tuple(operation.inputs[i] for i in graph.live_inputs(operation))
        if operation.bodies:
            return _piece([operation], live)
        if operation.treatment is not None:
            return _piece([operation], live, treatment=operation.treatment)
        if not live:
            table = next(filter(None, map(graph.name_of, operation.inputs)), "")
            return _piece([operation], (), treatment=treatments.looked_up, table=table)
        if id(operation) in self.factors.softmaxes.derived:
            group = self.factors.softmaxes.kinds[id(operation)]
            return _piece([operation], live, treatment=self._treatment_in_softmax(operation, group), group=group)
        if Family.PRODUCT in operation.family and len(live) == 2:
            signal = self.factors.signal_of(operation)
            if signal is not None:
                treatment = treatments.proportional if is_linear_map else treatments.gated
                return _piece([operation], (operation.inputs[signal],), kind="gate", treatment=treatment)
        elif constant_factor(graph, operation) is not None:
            return _piece([operation], live, treatment=self._treatment_without_layer(operation))
        return _piece([operation], live)

    def _treatment_in_softmax(self, operation: Operation, group: str) -> Treatment:
        if group in self.composite.treatments:
            raise SelectorError(
                f"The treatment for {group!r} cannot be applied to the operation {operation.name!r} at "
                f"{operation.location}: what it belongs to has more values than one, as attention whose sum is "
                "divided by last. Divide first, or give it a treatment with lrp_jax.mark.piece."
            )
        if id(operation) in self.factors.softmaxes.halved:
            numerator, part = self.factors.softmaxes.halved[id(operation)]
            return smooth_quotient(numerator, 0.0 if self.composite.holds_attention else part)
        return treatments.smooth_together if operation.name == "abs" else treatments.smooth

    def _treatment_without_layer(self, operation: Operation) -> Treatment:
        if operation.is_of_target:
            return treatments.of_target
        is_marked = id(operation) in self._marked_as_none
        return treatments.marked_as_none if is_marked else treatments.without_parameter


def below_marked_inputs(graph: Graph, pieces: Mapping[int, Piece]) -> set[int]:
    """The ids of the pieces between the explained input and values that are this input in other units.

    Args:
        graph: The function.
        pieces: For each value, the piece that returns it.

    Raises:
        ModelError: If there is something else than elementwise operations and moves.
    """
    ends = {*graph.inputs, *graph.embeddings}
    found: set[int] = set()
    for marked, _, where in graph.marked(Mark.INPUT):
        waiting = [marked]
        while waiting:
            value = waiting.pop()
            if value in ends:
                continue
            piece = pieces[value]
            operation = piece.operations[-1]
            is_elementwise = primitives.is_elementwise(operation.equation) and len(piece.live) == 1
            if piece.layer is not None or not (is_elementwise or Family.MOVE in operation.family):
                what = f"the layer {piece.layer.name!r}" if piece.layer is not None else repr(operation.name)
                raise ModelError(
                    f"The value that mark.input marks at {where} is not the input in other units: it is computed "
                    f"by {what} at {operation.location}. Between it and the input there may be elementwise "
                    "operations with constants and moves alone."
                )
            found.add(id(piece))
            waiting.extend(piece.live)
    return found


def _piece(operations: Sequence[Operation], live: Sequence[int], kind: str = "", **known: Any) -> Piece:
    """Operations that run together, of which the last one returns what they are for."""
    produced = {value for operation in operations for value in operation.outputs}
    used = dict.fromkeys(value for operation in operations for value in operation.inputs)
    constants = tuple(value for value in used if value not in produced and value not in live)
    last = operations[-1]
    return Piece(tuple(operations), tuple(dict.fromkeys(live)), constants, last.outputs, kind or last.name, **known)


def _piece_of_function(function: Function) -> Piece:
    kind = function.formula.name or f"function of {len(function.operations)} operations"
    treatment = treatment_of_function(function.formula)
    return _piece(function.operations, [function.root], kind, treatment=treatment)
