"""The plan: which piece of the function gets which backward pass, and in which form relevance travels between them."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import jax

from lrp_jax import equations, operations
from lrp_jax.composites import Composite
from lrp_jax.forms import Form
from lrp_jax.graph import Graph, Operation
from lrp_jax.layers import Layer, find_layers, product
from lrp_jax.operations import Arrays, Call, Treatment
from lrp_jax.patterns import find_smooth_groups
from lrp_jax.rules import Gradient, Rule


@dataclass(frozen=True)
class Piece:
    """Operations that run together and share one backward pass.

    Attributes:
        operations: In the order in which they run.
        live: The numbers of the operands through which relevance flows.
        constants: The numbers of the other operands.
        outputs: The numbers of the values that are returned.
        layer: The layer that the piece is, if it is one.
        rule: The rule of the layer.
        treatment: The backward pass; None where no relevance arrives.
        bodies: The plans of the functions that the operation runs (scan, cond, checkpoint).
        taken: For each output, the form in which its cotangent is taken.
        returned: For each live operand, the form in which its cotangent is returned.
    """

    operations: tuple[Operation, ...]
    live: tuple[int, ...]
    constants: tuple[int, ...]
    outputs: tuple[int, ...]
    layer: Layer | None = None
    rule: Rule | None = None
    treatment: Treatment | None = None
    bodies: tuple["Plan", ...] = ()
    taken: tuple[Form, ...] = ()
    returned: tuple[Form, ...] = ()

    def run(self, live: Arrays, constants: Arrays) -> list[jax.Array]:
        """Applies the operations to arrays, with JAX's own derivative."""
        return self._run(live, constants, Operation.run)

    def run_with_backward(self, live: Arrays, constants: Arrays) -> list[jax.Array]:
        """As `run`, up to rounding, where a backward pass of ours follows: as fast as the platform allows."""
        return self._run(live, constants, self._run_operation)

    def _run_operation(self, operation: Operation, *values: jax.Array) -> list[jax.Array]:
        if self.layer is None or operation is not self.layer.operations[0]:
            return operation.run(*values)
        return [product(operation.equation, *values)]

    def _run(self, live: Arrays, constants: Arrays, run: Callable[..., list[jax.Array]]) -> list[jax.Array]:
        values = dict(zip(self.live + self.constants, (*live, *constants), strict=True))
        for operation in self.operations:
            outputs = run(operation, *(values[i] for i in operation.inputs))
            values.update(zip(operation.outputs, outputs, strict=True))
        return [values[i] for i in self.outputs]

    @property
    def backward(self) -> Callable[[Call], Arrays] | None:
        """The backward pass in the form that is taken; None for the operations' own gradient."""
        return self.treatment.backward.get(self.taken[0]) if self.treatment and not self.bodies else None


@dataclass(frozen=True)
class Plan:
    """How relevance travels through a function.

    Attributes:
        graph: The function.
        pieces: The function cut into pieces, in the order in which they run.
        forms: For every value that relevance reaches, the form in which its cotangent arrives.
        input_forms: For each input, the form in which its cotangent is wanted.
        output_forms: For each output, the form in which its cotangent arrives.
    """

    graph: Graph
    pieces: tuple[Piece, ...]
    forms: dict[int, Form]
    input_forms: tuple[Form, ...]
    output_forms: tuple[Form, ...]

    def form(self, value: int) -> Form:
        """The form in which the cotangent of a value arrives."""
        return self.forms.get(value, Form.RATIO)

    def all_pieces(self) -> Iterator[Piece]:
        """All pieces, those of inner functions included, in the order in which they run."""
        for piece in self.pieces:
            yield piece
            for body in piece.bodies:
                yield from body.all_pieces()


def make_plan(graph: Graph, composite: Composite) -> Plan:
    """Decides the backward pass of every piece and the form of every cotangent, before anything runs.

    Args:
        graph: The function.
        composite: Which rule where.

    Returns:
        The plan.

    Raises:
        UnsupportedOperationError: If relevance reaches an operation that has no treatment.
        SelectorError: If a selector matches no layer, or a layer has no rule.
    """
    layers = find_layers(graph)
    rules = composite.assign(layers)
    planner = _Planner(composite, {id(layer.operations[0]): (layer, rules[layer.index]) for layer in layers})
    return planner.plan(graph, (Form.RATIO,) * len(graph.outputs), composite.input_form)


@dataclass(frozen=True)
class _Planner:
    composite: Composite
    layers: dict[int, tuple[Layer, Rule]]

    def plan(self, graph: Graph, output_forms: Sequence[Form], input_form: Form | Sequence[Form] | None) -> Plan:
        forms: dict[int, Form] = {}
        for value, form in zip(graph.outputs, output_forms, strict=True):
            if graph.is_live(value):
                _merge(forms, value, form)
        pieces = []
        for piece in reversed(self._cut(graph)):
            if any(value in forms for value in piece.outputs):
                piece = self._treat(graph, piece, forms)
                for value, form in zip(piece.live, piece.returned, strict=True):
                    _merge(forms, value, form)
            else:
                piece = replace(piece, treatment=None)
            pieces.append(piece)
        if input_form is None:
            wanted = tuple(forms.get(value, Form.RATIO) for value in graph.inputs)
        else:
            wanted = (input_form,) * len(graph.inputs) if isinstance(input_form, Form) else tuple(input_form)
        return Plan(graph, tuple(reversed(pieces)), forms, wanted, tuple(output_forms))

    def _cut(self, graph: Graph) -> list[Piece]:
        """Cuts a function into pieces: layers, smooth groups, and single operations."""
        groups: dict[int, Piece] = {}
        for operation in graph.operations:
            if id(operation) in self.layers:
                layer, rule = self.layers[id(operation)]
                piece = Piece(layer.operations, (layer.input,), layer.constants, (layer.output,), layer, rule)
                groups.update({id(inner): piece for inner in layer.operations})
        held = set()
        for name, inner in find_smooth_groups(graph):
            if name == "softmax" and self.composite.holds_attention:
                held.add(inner[-1].outputs[0])
            treatment = self.composite.treatments.get(name, operations.smooth)
            piece = Piece(inner, *_operands(graph, inner), inner[-1].outputs, treatment=treatment)
            groups.update({id(operation): piece for operation in inner})
        pieces = []
        for operation in graph.operations:
            group = groups.get(id(operation))
            if group is None:
                pieces.append(self._single(graph, operation, held))
            elif operation is group.operations[-1]:
                pieces.append(group)
        return pieces

    def _single(self, graph: Graph, operation: Operation, held: set[int]) -> Piece:
        signal = operations.signal_of(graph, operation, held)
        live: tuple[int, ...]
        treatment: Treatment | None
        if signal is not None:
            is_elementwise = operation.name in {"mul", "div"}
            live = (operation.inputs[signal],)
            treatment = operations.gated if is_elementwise else operations.proportional
        else:
            live, treatment = _live(graph, operation), None
        constants = tuple(dict.fromkeys(i for i in operation.inputs if i not in live))
        return Piece((operation,), live, constants, operation.outputs, treatment=treatment)

    def _treat(self, graph: Graph, piece: Piece, forms: dict[int, Form]) -> Piece:
        (operation, *_) = piece.operations
        if operation.name == "scan" and piece.layer is None:
            return self._treat_scan(piece, forms)
        if operation.bodies and piece.layer is None:
            return self._treat_branches(piece, forms)
        if piece.layer is not None and piece.rule is not None:
            treatment = _layer_treatment(piece.layer, piece.rule)
        else:
            chosen = self.composite.treatments.get(operation.function) or piece.treatment
            treatment = chosen or operations.treatment_of(graph, operation)
        arriving = {forms[value] for value in piece.outputs if value in forms}
        taken = treatment.needs or (Form.RELEVANCE if Form.RELEVANCE in arriving else Form.RATIO)
        return replace(
            piece,
            treatment=treatment,
            taken=(taken,) * len(piece.outputs),
            returned=(treatment.returns or taken,) * len(piece.live),
        )

    def _treat_scan(self, piece: Piece, forms: dict[int, Form]) -> Piece:
        (operation,) = piece.operations
        (body,) = operation.bodies
        constants, carries = equations.scan_sizes(operation.equation)
        out = [forms.get(value, Form.RATIO) for value in operation.outputs]
        while True:
            plan = self.plan(body, out, None)
            carried = plan.input_forms[constants : constants + carries]
            joined = [_either(pair) for pair in zip(carried, out, strict=False)]
            if joined == out[:carries]:
                break
            out[:carries] = joined
        input_forms = (*plan.input_forms[:constants], *joined, *plan.input_forms[constants + carries :])
        return _with_bodies(piece, operation.inputs, (plan,), out, input_forms)

    def _treat_branches(self, piece: Piece, forms: dict[int, Form]) -> Piece:
        (operation,) = piece.operations
        out = [forms.get(value, Form.RATIO) for value in operation.outputs]
        plans = [self.plan(body, out, None) for body in operation.bodies]
        joined = tuple(_either(pair) for pair in zip(*(plan.input_forms for plan in plans), strict=True))
        operands = operation.inputs[len(operation.inputs) - len(joined) :]  # without the index of the branch
        return _with_bodies(piece, operands, plans, out, joined)


def _operands(graph: Graph, group: Sequence[Operation]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The live and the other values that a group of operations reads."""
    produced = {value for operation in group for value in operation.outputs}
    read = dict.fromkeys(value for operation in group for value in operation.inputs if value not in produced)
    return tuple(filter(graph.is_live, read)), tuple(value for value in read if not graph.is_live(value))


def _live(graph: Graph, operation: Operation) -> tuple[int, ...]:
    return tuple(dict.fromkeys(operation.inputs[i] for i in graph.live_inputs(operation)))


def _with_bodies(
    piece: Piece, operands: Sequence[int], plans: Sequence[Plan], taken: Sequence[Form], forms: Sequence[Form]
) -> Piece:
    """Completes a piece that runs inner functions; an operand that is read twice comes back in one form."""
    by_operand: dict[int, Form] = {}
    for value, form in zip(operands, forms, strict=True):
        _merge(by_operand, value, form)
    shared = tuple(by_operand[value] for value in operands)
    bodies = tuple(replace(plan, input_forms=shared) for plan in plans)
    treatment = Treatment("looked into")
    returned = tuple(by_operand[value] for value in piece.live)
    return replace(piece, treatment=treatment, bodies=bodies, taken=tuple(taken), returned=returned)


def _merge(forms: dict[int, Form], value: int, form: Form) -> None:
    # A sum of both forms is taken as relevance: a ratio turns into relevance without a division.
    forms[value] = _either((form, forms.get(value, form)))


def _either(forms: Sequence[Form]) -> Form:
    return Form.RELEVANCE if Form.RELEVANCE in forms else Form.RATIO


def _layer_treatment(layer: Layer, rule: Rule) -> Treatment:
    if isinstance(rule, Gradient):
        return Treatment("Gradient", needs=Form.RATIO, returns=Form.RATIO)

    def backward(form: Form, call: Call) -> Arrays:
        (x,), (z,), (cotangent,) = call.live, call.outputs, call.cotangents
        linear = layer.linearize(x, call.constants, z)
        if form is Form.RATIO:
            return (rule.propagate(linear, cotangent * z).astype(x.dtype),)
        return (rule.propagate(replace(linear, rectified=False), cotangent).astype(x.dtype),)

    by_form = {form: functools.partial(backward, form) for form in Form}
    return Treatment(type(rule).__name__, by_form, returns=rule.form)
