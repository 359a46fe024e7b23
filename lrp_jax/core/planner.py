"""Planning: decides the backward pass of every piece and the forms of every cotangent, before anything runs."""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from lrp_jax import treatments
from lrp_jax.composites import Composite
from lrp_jax.core import primitives
from lrp_jax.core.choice import check_shares, passing_constants_on, treatment_of
from lrp_jax.core.control import Control, until_settled
from lrp_jax.core.cutter import Cutter, below_marked_inputs
from lrp_jax.core.equations import Mark
from lrp_jax.core.factors import Factors
from lrp_jax.core.forms import Form
from lrp_jax.core.graph import Graph
from lrp_jax.core.layers import (
    Layer,
    find_layers,
    find_tails,
    linear_operations_without_parameter,
    marked_as_none,
)
from lrp_jax.core.marks import check_marks
from lrp_jax.core.places import with_places
from lrp_jax.core.plan import Forms, Piece, Plan, names_of
from lrp_jax.core.rule import Rule
from lrp_jax.core.statuses import with_marks
from lrp_jax.errors import ModelError, SelectorError
from lrp_jax.treatments import Arrays, Call, Treatment


def make_plan(graph: Graph, composite: Composite) -> Plan:
    """Decides the backward pass of every piece and the forms of every cotangent, before anything runs.

    Args:
        graph: The function.
        composite: Which rule where.

    Returns:
        The plan.

    Raises:
        UnsupportedOperationError: If relevance reaches an operation that has no treatment.
        SelectorError: If a selector matches no layer, a layer has no rule, there is no layer for the rules, or a
            treatment is given for something that there is not.
        RuleError: If the bounds of z-box do not broadcast to the input of a layer.
        ModelError: If a mark could have no effect, or its value is not what it says.
    """
    graph = _with_marks_of(composite, graph)
    check_marks(graph)
    _check_pieces(graph)
    layers = find_layers(graph)
    factors = Factors(graph, composite.holds_attention)
    if not layers:
        _check_for_layers(factors, composite)
    rules = composite.assign(layers)
    for layer, rule in zip(layers, rules, strict=True):
        rule.check_fits(layer.input_shape, f"the layer {layer.name!r}")
    planner = _Planner(composite, {id(layer.operations[0]): layer for layer in layers}, rules)
    forms = tuple((Form.RATIO,) if graph.is_live(value) else () for value in graph.outputs)
    plan = with_places(planner.plan(factors, forms, composite.input_form))
    _check_treatments(plan, composite)
    return plan


def _check_for_layers(factors: Factors, composite: Composite) -> None:
    graph = factors.graph
    known = marked_as_none(graph).union(*(inner.softmaxes.derived for inner in factors.all_factors()))
    others = [operation for operation in linear_operations_without_parameter(graph) if id(operation) not in known]
    is_needed = any(not rule.is_proportional for _, rule in composite.rules)
    if others and is_needed:  # those that split in proportion say what happens there anyway
        (first, *_) = others
        place = "in the target" if first.is_of_target else "made by the function itself"
        raise SelectorError(
            f"The function has no layer that rules could be for. The product at {first.location} is none, as its "
            f"weight is no parameter: it is {place}. "
            "Pass the weight in as an argument, make it outside of the function, or mark the product with mark.layer."
        )


def _with_marks_of(composite: Composite, graph: Graph) -> Graph:
    """The function with the marks that a composite puts at named places.

    Raises:
        SelectorError: If there is no such place.
    """
    if not composite.marks:
        return graph
    layers = {id(layer.operations[0]): layer for layer in find_layers(graph)}
    places: dict[tuple[int, int], dict[Mark, str]] = {}
    names: dict[str, None] = {}
    for inner, operation in graph.all_operations():
        layer = layers.get(id(operation))
        name = operation.equation.params["name"] if operation.name == "name" else layer.name if layer else ""
        if not name:
            continue
        names[name] = None
        for mark in (mark for place, mark in composite.marks if re.search(place, name)):
            is_factor = layer is not None and mark in (Mark.GATE, Mark.SIGNAL)
            values = find_tails(inner, {id(operation): layer}) if layer and is_factor else operation.outputs
            for value in values:
                places.setdefault((id(inner), value), {})[mark] = f"the place {name!r} of the composite"
    for place, mark in composite.marks:
        if not any(re.search(place, name) for name in names):
            raise SelectorError(
                f"with_mark({place!r}, mark.{mark.value}) matches no layer and no checkpoint_name. There are: "
                f"{', '.join(names) or 'no names'}."
            )
    return with_marks(graph, places)


def _check_pieces(graph: Graph) -> None:
    """Refuses a function in which pieces of the user's own are no longer whole, and marks that make no sense there."""
    for inner in {id(inner): inner for inner, _ in graph.all_operations()}.values():
        for _, _, where in inner.marked(Mark.PIECE):
            raise ModelError(
                f"The piece that mark.piece makes at {where} was taken apart, by jax.disable_jit or by a derivative "
                "within the explained function, so that its treatment cannot be applied. Leave that out, or the mark."
            )
        for _, _, where in inner.marked(Mark.INPUT):
            if inner.is_inner:
                raise ModelError(
                    f"mark.input at {where} is inside a scan or a cond, whose operands are not the explained input. "
                    "Put it in front of that."
                )


def _check_treatments(plan: Plan, composite: Composite) -> None:
    found = {name for piece in plan.all_pieces() if piece.treatment is not None for name in names_of(piece)}
    for key in composite.required_treatments:
        if key not in found:
            raise SelectorError(
                f"The treatment for {key!r} matches nothing. There are: {', '.join(sorted(found)) or 'no operations'}."
            )


@dataclass(frozen=True)
class _Planner:
    composite: Composite
    layers: Mapping[int, Layer]
    rules: Sequence[Rule]

    def plan(self, factors: Factors, output_forms: Sequence[Forms], input_form: Form | None) -> Plan:
        """Walks back through a function, and collects in which forms cotangents arrive at its values."""
        graph = factors.graph
        forms: dict[int, set[Form]] = {}
        for value, wanted in zip(graph.outputs, output_forms, strict=True):
            if graph.is_live(value):
                forms.setdefault(value, set()).update(wanted)
        cutter = Cutter(factors, self.composite, self.layers, self.rules)
        cut = cutter.cut()
        below = below_marked_inputs(graph, cutter.pieces) if input_form is Form.RELEVANCE else set()
        pieces = []
        for piece in reversed(cut):
            if id(piece) in below and primitives.is_elementwise(piece.operations[-1].equation):
                piece = replace(piece, treatment=treatments.in_other_units)
            pieces.append(self._treat(factors, piece, forms))
        ordered = {value: _ordered(found) for value, found in forms.items()}
        if input_form is None:
            wanted_forms = tuple(ordered.get(value, ()) for value in graph.inputs)
        else:
            wanted_forms = tuple((input_form,) if graph.is_live(value) else () for value in graph.inputs)
        return Plan(graph, tuple(_with_rectified(graph, pieces[::-1])), ordered, wanted_forms, tuple(output_forms))

    def _treat(self, factors: Factors, piece: Piece, forms: dict[int, set[Form]]) -> Piece:
        """Decides on a piece, and notes in which forms its operands get their cotangents."""
        graph = factors.graph
        (operation, *_) = piece.operations
        arriving = {form for value in piece.outputs for form in forms.get(value, ())}
        if not arriving and not (operation.bodies and any(map(graph.is_token, piece.outputs))):
            for value in graph.looked_up(operation):
                forms.setdefault(value, set()).add(Form.RELEVANCE)
            return replace(piece, treatment=None)
        given = self.composite.treatments
        chosen = next((given[name] for name in names_of(piece) if name in given), None) if piece.live else None
        if operation.control is not None and chosen is None:
            check_shares(graph, operation)
            return self._treat_bodies(operation.control, factors, piece, forms)
        if piece.layer is not None and piece.rule is not None:
            treatment = _layer_treatment(piece.layer, piece.rule)
        else:
            treatment = chosen or piece.treatment or treatment_of(graph, operation)
            if self.composite.constants == "pass" and chosen is None:
                treatment = passing_constants_on(treatment)
        taken = (treatment.needs,) if treatment.needs else _ordered(arriving)
        piece = replace(piece, treatment=treatment, forms=taken)
        for value in piece.live:
            forms.setdefault(value, set()).update(map(piece.returned, taken))
        return piece

    def _treat_bodies(self, control: Control, factors: Factors, piece: Piece, forms: dict[int, set[Form]]) -> Piece:
        """Plans the bodies of an operation, until what is carried has the same forms at both ends."""
        (operation,) = piece.operations
        carried = slice(control.carried.start, control.carried.stop)

        def follow(out: list[Forms]) -> tuple[list[Plan], list[Forms]]:
            plans = [self.plan(factors.inside(operation, body), out, None) for body in operation.bodies]
            inside = [
                _ordered(set().union(*found)) for found in zip(*(plan.input_forms for plan in plans), strict=True)
            ]
            inside[carried] = [_ordered({*before, *after}) for before, after in zip(out, inside[carried], strict=False)]
            after = [*inside[carried], *out[len(control.carried) :]]
            return [replace(plan, input_forms=tuple(inside)) for plan in plans], after

        plans = until_settled([_ordered(forms.get(value, ())) for value in operation.outputs], follow)
        for value, found in zip(operation.operands, plans[0].input_forms, strict=True):
            if value in piece.live:
                forms.setdefault(value, set()).update(found)
        return replace(piece, treatment=Treatment("looked into"), bodies=tuple(plans))


def _with_rectified(graph: Graph, pieces: Sequence[Piece]) -> list[Piece]:
    """Notes for each layer whether relevance arrives through a ReLU alone."""
    users: dict[int, list[Piece]] = {}
    for piece in pieces:
        for value in piece.live if piece.treatment is not None else ():
            users.setdefault(value, []).append(piece)

    def is_rectified(value: int) -> bool:
        return value in users and value not in graph.outputs and all(user.kind == "relu" for user in users[value])

    found = []
    for piece in pieces:
        layer, rule = piece.layer, piece.rule
        if layer is not None and rule is not None and piece.treatment is not None and is_rectified(layer.output):
            layer = replace(layer, rectified=True)
            piece = replace(piece, layer=layer, treatment=_layer_treatment(layer, rule))
        found.append(piece)
    return found


def _ordered(forms: Iterable[Form]) -> Forms:
    found = set(forms)
    return tuple(form for form in Form if form in found)


def _layer_treatment(layer: Layer, rule: Rule) -> Treatment:
    if rule.is_derivative:
        return Treatment(type(rule).__name__, needs=Form.RATIO, returns=Form.RATIO, loss="bias")

    def backward(form: Form, call: Call) -> Arrays:
        assert call.rule is not None
        (x,), (z,), (cotangent,) = call.live, call.outputs, call.cotangents
        linear = layer.linearize(x, call.constants, z)
        if form is Form.RELEVANCE:
            linear = replace(linear, rectified=False)
        return (call.rule.propagate(linear, cotangent, form).astype(x.dtype),)

    by_form = {form: functools.partial(backward, form) for form in Form}
    return Treatment(type(rule).__name__, by_form, returns=rule.form, loss="bias")
