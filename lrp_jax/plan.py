"""The plan: which piece of the function gets which backward pass, and in which form relevance travels between them."""

import functools
from dataclasses import dataclass, replace

import jax

from lrp_jax.forms import Form
from lrp_jax.graph import Graph, Operation
from lrp_jax.layers import Layer, find_layers
from lrp_jax.operations import Arrays, Treatment, treatment_of
from lrp_jax.rules import Rule


@dataclass(frozen=True)
class Piece:
    """Operations that run together and share one backward pass.

    Attributes:
        operations: In the order in which they run.
        live: The numbers of the operands through which relevance flows.
        constants: The numbers of the other operands.
        outputs: The numbers of the values that are returned.
        treatment: The backward pass; None where no relevance arrives.
        taken: The form in which the cotangents of the outputs are taken.
        returned: The form in which the cotangents of the live operands are returned.
    """

    operations: tuple[Operation, ...]
    live: tuple[int, ...]
    constants: tuple[int, ...]
    outputs: tuple[int, ...]
    treatment: Treatment | None = None
    taken: Form = Form.RATIO
    returned: Form = Form.RATIO

    def run(self, live: Arrays, constants: Arrays) -> list[jax.Array]:
        """Applies the operations to arrays, with JAX's own derivative."""
        values = dict(zip(self.live + self.constants, (*live, *constants), strict=True))
        for operation in self.operations:
            outputs = operation.run(*(values[i] for i in operation.inputs))
            values.update(zip(operation.outputs, outputs, strict=True))
        return [values[i] for i in self.outputs]


@dataclass(frozen=True)
class Plan:
    """How relevance travels through a function.

    Attributes:
        pieces: The function cut into pieces, in the order in which they run.
        forms: For every value that relevance reaches, the form in which its cotangent arrives.
    """

    pieces: tuple[Piece, ...]
    forms: dict[int, Form]


def make_plan(graph: Graph, rules: Rule) -> Plan:
    """Decides the backward pass of every piece and the form of every cotangent, before anything runs.

    Args:
        graph: The function.
        rules: The rule for every layer.

    Returns:
        The plan.

    Raises:
        UnsupportedOperationError: If relevance reaches an operation that has no treatment.
    """
    layers = {id(operation): layer for layer in find_layers(graph) for operation in layer.operations}
    forms = {value: Form.RATIO for value in graph.outputs if graph.is_live(value)}
    pieces = []
    for operation in reversed(graph.operations):
        layer = layers.get(id(operation))
        if layer is None:
            piece = _single(graph, operation)
        elif operation is layer.operations[-1]:
            piece = Piece(layer.operations, (layer.input,), layer.constants, (layer.output,))
        else:
            continue
        arriving = {forms[value] for value in piece.outputs if value in forms}
        if arriving:
            treatment = _layer_treatment(layer, rules) if layer else treatment_of(graph, operation)
            piece = _treat(piece, treatment, arriving)
            for value in piece.live:
                # A sum of both forms is taken as relevance: a ratio turns into relevance without a division.
                if forms.get(value) is not Form.RELEVANCE:
                    forms[value] = piece.returned
        pieces.append(piece)
    return Plan(tuple(reversed(pieces)), forms)


def _single(graph: Graph, operation: Operation) -> Piece:
    live = tuple(dict.fromkeys(operation.inputs[i] for i in graph.live_inputs(operation)))
    constants = tuple(dict.fromkeys(i for i in operation.inputs if i not in live))
    return Piece((operation,), live, constants, operation.outputs)


def _treat(piece: Piece, treatment: Treatment, arriving: set[Form]) -> Piece:
    taken = treatment.needs or (Form.RELEVANCE if Form.RELEVANCE in arriving else Form.RATIO)
    return replace(piece, treatment=treatment, taken=taken, returned=treatment.returns or taken)


def _layer_treatment(layer: Layer, rule: Rule) -> Treatment:
    def backward(form: Form, live: Arrays, constants: Arrays, outputs: Arrays, cotangents: Arrays) -> Arrays:
        (x,), (z,), (cotangent,) = live, outputs, cotangents
        relevance = cotangent * z if form is Form.RATIO else cotangent
        return (rule.propagate(layer.linearize(x, constants, z), relevance).astype(x.dtype),)

    by_form = {form: functools.partial(backward, form) for form in Form}
    return Treatment(type(rule).__name__, by_form, returns=rule.form)
