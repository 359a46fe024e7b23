"""The plan: which piece of the function gets which backward pass, and in which forms relevance travels between them."""

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import jax

from lrp_jax import treatments
from lrp_jax.composites import Composite
from lrp_jax.core import equations
from lrp_jax.core.equations import Mark
from lrp_jax.core.factors import check_marks, signal_of
from lrp_jax.core.forms import Form
from lrp_jax.core.functions import Function, Functions, names_of_function
from lrp_jax.core.graph import Checkpoint, Graph, Operation, with_marks
from lrp_jax.core.layers import (
    Layer,
    Tail,
    constant_factor,
    find_layers,
    find_tails,
    linear_operations_without_parameter,
    marked_as_none,
)
from lrp_jax.core.rule import Rule
from lrp_jax.core.softmax import MOVES, Group, Softmaxes, find_softmaxes
from lrp_jax.errors import ModelError, SelectorError
from lrp_jax.treatments import Arrays, Call, Treatment

Forms: TypeAlias = tuple[Form, ...]


@dataclass(frozen=True, eq=False)
class Piece:
    """Operations that run together and share one backward pass.

    Attributes:
        operations: In the order in which they run.
        live: The numbers of the operands through which relevance flows.
        constants: The numbers of the other operands.
        outputs: The numbers of the values that are returned.
        kind: What it is, in a word: the kind of a layer, the name of a function, or of the primitive.
        layer: The layer that the piece is, if it is one.
        rule: The rule of the layer.
        treatment: The backward pass; None where no relevance arrives.
        bodies: The plans of the functions that the operation runs (scan, cond, shard_map).
        forms: The forms in which the cotangents of the outputs are taken; the piece runs once for each.
        group: "softmax", "log_softmax" or "logsumexp" where it is an operation of such.
    """

    operations: tuple[Operation, ...]
    live: tuple[int, ...]
    constants: tuple[int, ...]
    outputs: tuple[int, ...]
    kind: str
    layer: Layer | None = None
    rule: Rule | None = None
    treatment: Treatment | None = None
    bodies: tuple["Plan", ...] = ()
    forms: Forms = ()
    group: str = ""

    def run(self, live: Arrays, constants: Arrays) -> list[jax.Array]:
        """Applies the operations to arrays, with JAX's own derivative."""
        return self._run(live, constants, Operation.run)

    def run_with_backward(self, live: Arrays, constants: Arrays) -> list[jax.Array]:
        """As `run`, up to rounding, where a backward pass of ours follows: as fast as the platform allows."""
        return self._run(live, constants, self._run_operation)

    def _run_operation(self, operation: Operation, *values: jax.Array) -> list[jax.Array]:
        if self.layer is None or operation is not self.layer.operations[0]:
            return operation.run(*values)
        return [self.layer.product.run(*values)]

    def _run(self, live: Arrays, constants: Arrays, run: Callable[..., list[jax.Array]]) -> list[jax.Array]:
        values = dict(zip(self.live + self.constants, (*live, *constants), strict=True))
        for operation in self.operations:
            outputs = run(operation, *(values[i] for i in operation.inputs))
            values.update(zip(operation.outputs, outputs, strict=True))
        return [values[i] for i in self.outputs]

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """The calls under `jax.checkpoint` that all of it is a part of."""
        first, *others = (operation.checkpoints for operation in self.operations)
        shared = [all(len(other) > i and other[i] is first[i] for other in others) for i in range(len(first))]
        return first[: (*shared, False).index(False)]

    def taken(self, arriving: Form) -> Form:
        """The form in which the piece takes a cotangent that arrives in some form."""
        return arriving if arriving in self.forms else self.forms[0]

    def returned(self, taken: Form) -> Form:
        """The form in which it returns what it takes in some form."""
        return (self.treatment.returns if self.treatment else None) or taken


@dataclass(frozen=True)
class Plan:
    """How relevance travels through a function.

    A cotangent in one form and one in the other travel separately, from where they arise down to the input: a value
    that is read by rules of both kinds has both.

    Attributes:
        graph: The function.
        pieces: The function cut into pieces, in the order in which they run.
        forms: For every value that relevance reaches, the forms in which its cotangents arrive.
        input_forms: For each input, the forms in which cotangents are wanted: it is given once for each.
        output_forms: For each output, the forms in which cotangents arrive: it is returned once for each.
    """

    graph: Graph
    pieces: tuple[Piece, ...]
    forms: Mapping[int, Forms]
    input_forms: tuple[Forms, ...]
    output_forms: tuple[Forms, ...]

    def all_pieces(self) -> Iterator[Piece]:
        """All pieces, those of inner functions included, in the order in which they run."""
        for piece in self.pieces:
            yield piece
            for body in piece.bodies:
                yield from body.all_pieces()


def with_rules(plan: Plan, rules: Sequence[Rule | None]) -> Plan:
    """The plan with other numbers in its rules.

    Args:
        plan: A plan.
        rules: A rule for each of its pieces, in the order of `Plan.all_pieces`.
    """

    def replaced(plan: Plan, rules: Iterator[Rule | None]) -> Plan:
        pieces = []
        for piece in plan.pieces:
            rule = next(rules)
            pieces.append(replace(piece, rule=rule, bodies=tuple(replaced(body, rules) for body in piece.bodies)))
        return replace(plan, pieces=tuple(pieces))

    return replaced(plan, iter(rules))


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
    if not layers:
        _check_for_layers(graph, composite)
    rules = composite.assign(layers)
    for layer, rule in zip(layers, rules, strict=True):
        rule.check_fits(layer.input_shape, f"the layer {layer.name!r}")
    planner = _Planner(composite, {id(layer.operations[0]): layer for layer in layers}, rules)
    forms = tuple((Form.RATIO,) if graph.is_live(value) else () for value in graph.outputs)
    plan = planner.plan(graph, forms, composite.input_form)
    _check_treatments(plan, composite)
    return plan


def _check_for_layers(graph: Graph, composite: Composite) -> None:
    derived = {place for inner in graph.all_graphs() for place in find_softmaxes(inner).derived}
    known = derived | marked_as_none(graph)
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
    found = {name for piece in plan.all_pieces() for name in names_of(piece)}
    for key in composite.required_treatments:
        if key not in found:
            raise SelectorError(
                f"The treatment for {key!r} matches nothing. There are: {', '.join(sorted(found)) or 'no operations'}."
            )


def names_of(piece: Piece) -> tuple[str, ...]:
    """The names under which a treatment for a piece is looked up."""
    if piece.layer is not None or piece.treatment is None:
        return ()
    if piece.group:
        return (piece.group,)
    names = names_of_function(piece.kind, [operation.name for operation in piece.operations])
    return (*names, "max") if "reduce_max" in names else names


@dataclass(frozen=True)
class _Planner:
    composite: Composite
    layers: Mapping[int, Layer]
    rules: Sequence[Rule]

    def plan(self, graph: Graph, output_forms: Sequence[Forms], input_form: Form | None) -> Plan:
        forms: dict[int, set[Form]] = {}
        for value, wanted in zip(graph.outputs, output_forms, strict=True):
            if graph.is_live(value):
                forms.setdefault(value, set()).update(wanted)
        pieces = []
        cutter = _Cutter(graph, self.composite, self.layers, self.rules)
        cut = cutter.cut()
        below = cutter.below_marked_inputs() if input_form is Form.RELEVANCE else set()
        for piece in reversed(cut):
            arriving = {form for value in piece.outputs for form in forms.get(value, ())}
            if arriving or (piece.operations[0].bodies and any(map(graph.is_token, piece.outputs))):
                is_unit = id(piece) in below and equations.is_elementwise(piece.operations[-1].equation)
                given = replace(piece, treatment=treatments.in_other_units) if is_unit else piece
                piece = self._treat(graph, given, forms, arriving)
                if not piece.bodies:
                    for value in piece.live:
                        forms.setdefault(value, set()).update(map(piece.returned, piece.forms))
            else:
                piece = replace(piece, treatment=None)
            pieces.append(piece)
        ordered = {value: _ordered(found) for value, found in forms.items()}
        pieces = _with_what_is_read(graph, pieces[::-1])
        if input_form is None:
            wanted_forms = tuple(ordered.get(value, ()) for value in graph.inputs)
        else:
            wanted_forms = tuple((input_form,) if graph.is_live(value) else () for value in graph.inputs)
        return Plan(graph, tuple(pieces), ordered, wanted_forms, tuple(output_forms))

    def _treat(self, graph: Graph, piece: Piece, forms: dict[int, set[Form]], arriving: set[Form]) -> Piece:
        (operation, *_) = piece.operations
        given = self.composite.treatments
        named = names_of(replace(piece, treatment=treatments.structural)) if piece.live else ()
        chosen = next((given[name] for name in named if name in given), None)
        if operation.name == "scan" and operation.bodies and chosen is None:
            return self._treat_scan(piece, forms)
        if operation.bodies and chosen is None:
            if operation.name == "shard_map":
                treatments.check_shares(graph, operation)
            return self._treat_branches(piece, forms)
        if piece.layer is not None and piece.rule is not None:
            treatment = _layer_treatment(piece.layer, piece.rule)
        else:
            treatment = chosen or piece.treatment or treatments.treatment_of(graph, operation)
            if self.composite.constants == "pass" and chosen is None:
                treatment = treatments.passing_constants_on(treatment)
        taken = (treatment.needs,) if treatment.needs else _ordered(arriving)
        return replace(piece, treatment=treatment, forms=taken)

    def _treat_scan(self, piece: Piece, forms: dict[int, set[Form]]) -> Piece:
        (operation,) = piece.operations
        (body,) = operation.bodies
        constants, carries = equations.scan_sizes(operation.equation)
        out = [set(forms.get(value, ())) for value in operation.outputs]
        while True:
            plan = self.plan(body, list(map(_ordered, out)), None)
            carried = plan.input_forms[constants : constants + carries]
            joined = [found | set(more) for found, more in zip(out, carried, strict=False)]
            if joined == out[:carries]:
                break
            out[:carries] = joined
        input_forms = list(plan.input_forms)
        input_forms[constants : constants + carries] = map(_ordered, joined)
        plan = replace(plan, input_forms=tuple(input_forms))
        return _with_bodies(piece, operation.inputs, (plan,), forms)

    def _treat_branches(self, piece: Piece, forms: dict[int, set[Form]]) -> Piece:
        (operation,) = piece.operations
        out = [_ordered(forms.get(value, set())) for value in operation.outputs]
        plans = [self.plan(body, out, None) for body in operation.bodies]
        joined = [_ordered(set().union(*found)) for found in zip(*(plan.input_forms for plan in plans), strict=True)]
        plans = [replace(plan, input_forms=tuple(joined)) for plan in plans]
        operands = operation.inputs[len(operation.inputs) - len(joined) :]  # without the index of a branch
        return _with_bodies(piece, operands, plans, forms)


@dataclass(frozen=True)
class _Cutter:
    """Cuts a function into pieces: layers, functions of one value, and single operations."""

    graph: Graph
    composite: Composite
    layers: Mapping[int, Layer]
    rules: Sequence[Rule]
    pieces: dict[int, Piece] = field(default_factory=dict)

    @functools.cached_property
    def softmaxes(self) -> Softmaxes:
        return find_softmaxes(self.graph)

    @functools.cached_property
    def tails(self) -> dict[int, Tail]:
        return find_tails(self.graph, self.layers)

    @functools.cached_property
    def functions(self) -> Functions:
        layered = frozenset(value for value, tail in self.tails.items() if not tail.moves)
        ends = frozenset(value for value, _, _ in self.graph.marked(Mark.INPUT))
        treated = frozenset(self.composite.treatments)
        held = self.softmaxes.weights if self.composite.holds_attention else frozenset[int]()
        return Functions(self.graph, frozenset(self.softmaxes.derived), layered, ends, treated, held)

    @functools.cached_property
    def marked_as_none(self) -> frozenset[int]:
        return marked_as_none(self.graph)

    def cut(self) -> list[Piece]:
        """The pieces that the outputs and the operations with a side effect need, in the order in which they run."""
        graph = self.graph
        with_effect = [operation for operation in graph.operations if equations.has_side_effect(operation.equation)]
        effects = [self._plain(operation) for operation in with_effect if not operation.outputs]
        waiting = [*graph.outputs, *(value for piece in effects for value in piece.constants)]
        waiting += [value for operation in with_effect for value in operation.outputs]
        while waiting:
            value = waiting.pop()
            if value in self.pieces or value not in graph.producer:
                continue
            piece = self._piece(value)
            self.pieces.update(dict.fromkeys(piece.outputs, piece))
            waiting.extend((*piece.live, *piece.constants))
        place = {id(operation): i for i, operation in enumerate(graph.operations)}
        found = {id(piece): piece for piece in (*self.pieces.values(), *effects)}
        return sorted(found.values(), key=lambda piece: place[id(piece.operations[-1])])

    def below_marked_inputs(self) -> set[int]:
        """The ids of the pieces between the explained input and values that are this input in other units.

        Raises:
            ModelError: If there is something else than elementwise operations and moves.
        """
        graph = self.graph
        ends = {*graph.inputs, *graph.embeddings}
        found: set[int] = set()
        for marked, _, where in graph.marked(Mark.INPUT):
            waiting = [marked]
            while waiting:
                value = waiting.pop()
                if value in ends:
                    continue
                piece = self.pieces[value]
                operation = piece.operations[-1]
                is_elementwise = equations.is_elementwise(operation.equation) and len(piece.live) == 1
                if piece.layer is not None or not (is_elementwise or operation.name in MOVES | {"stack"}):
                    what = f"the layer {piece.layer.name!r}" if piece.layer is not None else repr(operation.name)
                    raise ModelError(
                        f"The value that mark.input marks at {where} is not the input in other units: it is computed "
                        f"by {what} at {operation.location}. Between it and the input there may be elementwise "
                        "operations with constants and moves alone."
                    )
                found.add(id(piece))
                waiting.extend(piece.live)
        return found

    def _piece(self, value: int) -> Piece:
        graph = self.graph
        operation = graph.producer[value]
        if not any(map(graph.is_live, operation.outputs)):
            return self._plain(operation)
        group = self.softmaxes.groups.get(value)
        if group is not None and group.kind in self.composite.treatments:
            return self._group(group)
        tail = self.tails.get(value)
        if tail is not None and not tail.moves:
            return self._layer(tail.layer)
        if tail is None and (function := self.functions.function(value)) is not None:
            return self._function(function)
        return self._single(operation)

    def _plain(self, operation: Operation) -> Piece:
        return Piece((operation,), (), tuple(dict.fromkeys(operation.inputs)), operation.outputs, operation.name)

    def _layer(self, layer: Layer) -> Piece:
        rule = self.rules[layer.index]
        return Piece(layer.operations, (layer.input,), layer.constants, (layer.output,), layer.kind, layer, rule)

    def _function(self, function: Function) -> Piece:
        produced = {value for operation in function.operations for value in operation.outputs}
        read = dict.fromkeys(value for operation in function.operations for value in operation.inputs)
        constants = tuple(value for value in read if value not in produced and value != function.root)
        treatment = treatments.treatment_of_function(function.formula)
        kind = function.formula.name or f"function of {len(function.operations)} operations"
        return Piece(function.operations, (function.root,), constants, (function.output,), kind, treatment=treatment)

    def _group(self, group: Group) -> Piece:
        produced = {value for operation in group.operations for value in operation.outputs}
        read = dict.fromkeys(value for operation in group.operations for value in operation.inputs)
        constants = tuple(value for value in read if value not in produced and value not in group.operands)
        return Piece(
            group.operations,
            group.operands,
            constants,
            (group.output,),
            group.kind,
            treatment=treatments.smooth,
            group=group.kind,
        )

    def _single(self, operation: Operation) -> Piece:
        graph = self.graph
        live = tuple(dict.fromkeys(operation.inputs[i] for i in graph.live_inputs(operation)))
        treatment: Treatment | None = None
        kind = operation.name
        group = ""
        if operation.bodies:
            pass
        elif not live and operation.treatment is None:
            treatment = treatments.looked_up
        elif operation.treatment is not None:
            live = tuple(operation.inputs[i] for i in graph.live_inputs(operation))
            treatment = operation.treatment
        elif id(operation) in self.softmaxes.derived:
            group = self.softmaxes.kinds[id(operation)]
            if group in self.composite.treatments:
                raise SelectorError(
                    f"The treatment for {group!r} cannot be applied to the operation {operation.name!r} at "
                    f"{operation.location}: what it belongs to has more values than one, as attention whose sum is "
                    "divided by last. Divide first, or give it a treatment with lrp_jax.mark.piece."
                )
            treatment = treatments.smooth_together if operation.name == "abs" else treatments.smooth
            if id(operation) in self.softmaxes.halved:
                numerator, part = self.softmaxes.halved[id(operation)]
                treatment = treatments.smooth_quotient(numerator, 0.0 if self.composite.holds_attention else part)
        elif operation.name in treatments.PRODUCTS and len(graph.live_inputs(operation)) == 2:
            signal = signal_of(self.functions, operation)
            if signal is not None:
                live, kind = (operation.inputs[signal],), "gate"
                treatment = treatments.gated if operation.name in {"mul", "div"} else treatments.proportional
        elif constant_factor(graph, operation) is not None:
            if operation.is_of_target:
                treatment = treatments.of_target
            elif id(operation) in self.marked_as_none:
                treatment = treatments.marked_as_none
            else:
                treatment = treatments.without_parameter
        constants = tuple(dict.fromkeys(i for i in operation.inputs if i not in live))
        return Piece((operation,), live, constants, operation.outputs, kind, treatment=treatment, group=group)


def _with_what_is_read(graph: Graph, pieces: Sequence[Piece]) -> list[Piece]:
    """Notes for each layer whether relevance arrives through a relu alone."""
    read_by: dict[int, list[Piece]] = {}
    for piece in pieces:
        if piece.treatment is not None:
            for value in piece.live:
                read_by.setdefault(value, []).append(piece)
    found = []
    for piece in pieces:
        if piece.layer is not None and piece.rule is not None and piece.treatment is not None:
            readers = read_by.get(piece.layer.output, [])
            is_rectified = bool(readers) and all(reader.kind == "relu" for reader in readers)
            if is_rectified and piece.layer.output not in graph.outputs:
                layer = replace(piece.layer, rectified=True)
                piece = replace(piece, layer=layer, treatment=_layer_treatment(layer, piece.rule))
        found.append(piece)
    return found


def _with_bodies(piece: Piece, operands: Sequence[int], plans: Sequence[Plan], forms: dict[int, set[Form]]) -> Piece:
    """Completes a piece that runs inner functions, and notes in which forms their operands come back."""
    for value, found in zip(operands, plans[0].input_forms, strict=True):
        if value in piece.live:
            forms.setdefault(value, set()).update(found)
    return replace(piece, treatment=Treatment("looked into"), bodies=tuple(plans))


def _ordered(forms: set[Form] | Sequence[Form]) -> Forms:
    return tuple(form for form in Form if form in forms)


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
