"""Softmax and the logarithm of a sum of exponentials, however they are written.

A quotient whose denominator is a sum of exponentials of its own numerator is a softmax: behind masks, casts, moves and
linear operations, plus a constant, by a reciprocal, or by exp(x - logsumexp(x)). A product, quotient or power of
exponentials is one, too, as is a power of a number. Its operations keep their own derivatives, which together are its
Jacobian.
"""

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from lrp_jax.core.graph import Graph, Operation, Status
from lrp_jax.core.primitive import Family

_LINEAR = Family.UNCHANGED | Family.ORDER | Family.SUM | Family.ADDITION


@dataclass(frozen=True)
class Group:
    """The operations of a softmax, of its logarithm or of the logarithm of a sum of exponentials.

    Attributes:
        kind: "softmax", "log_softmax" or "logsumexp".
        operations: In the order in which they run.
        operands: The values of which it is a function; a maximum that is subtracted for precision is held.
        output: Its value.
    """

    kind: str
    operations: tuple[Operation, ...]
    operands: tuple[int, ...]
    output: int


@dataclass(frozen=True)
class Softmaxes:
    """What is found of softmaxes in a function.

    Attributes:
        graph: The function.
        kinds: For the ids of operations that keep their own derivatives, the kind of the group that they belong to.
        weights: The values that are a softmax, or linear in one alone: attention weights.
        halved: For the ids of quotients, where the numerator is a product with another live value: the position of the
            numerator, and the part of relevance that the denominator takes, as much as the exponentials take of that
            product.
        groups: The groups that have one value, by its number.
    """

    graph: Graph
    kinds: dict[int, str] = field(default_factory=dict)
    weights: set[int] = field(default_factory=set)
    halved: dict[int, tuple[int, float]] = field(default_factory=dict)
    groups: dict[int, Group] = field(default_factory=dict)
    _logarithms: dict[int, "_Terms"] = field(default_factory=dict)

    @property
    def derived(self) -> frozenset[int]:
        """The ids of operations that keep their own derivatives."""
        return frozenset(self.kinds)

    def add_quotient(self, operation: Operation) -> None:
        """Notes a softmax if an operation divides by a sum of the exponentials that its numerator is made of."""
        for numerator, denominator, between in _quotients(self.graph, operation):
            terms = _terms(self.graph, denominator, self.weights)
            products = None if terms is None else _products_on_the_way(self.graph, numerator, terms.leaves)
            if terms is None or products is None:
                continue
            self._keep("softmax", [operation, *between, *terms.operations])
            if products:
                self.halved[id(operation)] = operation.inputs.index(numerator), 0.5**products
                self.weights.update(terms.leaves)
            else:
                self._add_group("softmax", operation.outputs[0], terms)
                self.weights.update(operation.outputs)

    def add_logarithm(self, operation: Operation) -> None:
        """Notes the logarithm of a sum of exponentials."""
        if terms := _terms(self.graph, operation.inputs[0], self.weights):
            self._keep("logsumexp", [operation, *terms.operations])
            self._add_group("logsumexp", _with_shift(self.graph, operation.outputs[0]), terms)
            self._logarithms.update(dict.fromkeys(operation.outputs, terms))

    def add_sum(self, operation: Operation) -> None:
        """Notes the logarithm of a sum of two exponentials, and the difference to the logarithm of a sum."""
        self._keep("logsumexp", _sum_of_two(self.graph, operation))
        if len(self.graph.live_inputs(operation)) == 2:
            logarithm = _subtracted(self.graph, operation.outputs[0], self._logarithms)
            if logarithm is not None:
                self._add_group("log_softmax", operation.outputs[0], self._logarithms[logarithm])

    def add_exponential(self, operation: Operation) -> None:
        """Notes the exponential of a difference to the logarithm of a sum."""
        logarithm = _subtracted(self.graph, operation.inputs[0], self._logarithms)
        if logarithm is not None:
            self._keep("softmax", [operation])
            self._add_group("softmax", operation.outputs[0], self._logarithms[logarithm])
            self.weights.update(operation.outputs)

    def add_weights(self, operation: Operation) -> None:
        """Notes what is linear in attention weights, and reads no other live value."""
        statuses = self.graph.status
        live = {value for value in operation.inputs if statuses[value] in (Status.LIVE, Status.HELD)}
        is_other = operation.name in {"abs", "max", "sub", "dot_general"}
        is_linear = _is_linear(operation) and not is_other and not operation.bodies
        if live and is_linear and live <= self.weights:
            self.weights.update(operation.outputs)

    def _keep(self, kind: str, operations: Iterable[Operation]) -> None:
        self.kinds.update(dict.fromkeys(map(id, operations), kind))

    def _add_group(self, kind: str, output: int, terms: "_Terms") -> None:
        group = _group(self.graph, kind, output, terms)
        if group is not None:
            self.groups[output] = group


def find_softmaxes(graph: Graph) -> Softmaxes:
    """Finds every softmax and every logarithm of a sum of exponentials in a function."""
    found = Softmaxes(graph)
    for operation in graph.operations:
        match operation.name:
            case "div" | "mul" | "dot_general":
                found.add_quotient(operation)
            case "log" | "log1p":
                found.add_logarithm(operation)
            case "add" | "sub":
                found.add_sum(operation)
            case "exp" | "exp2":
                found.add_exponential(operation)
        found.add_weights(operation)
    for operation in graph.operations:  # also of exponentials that were known as weights only behind a product
        found.add_weights(operation)
    groups = _outermost(graph, found.groups)
    for group in groups.values():
        own = [id(operation) for operation in group.operations if id(operation) in found.kinds]
        found.kinds.update(dict.fromkeys(own, group.kind))
    return replace(found, groups=groups)


def _sum_of_two(graph: Graph, operation: Operation) -> list[Operation]:
    """The operations of max(a, b) + log(1 + exp(-|a - b|)), as in `jnp.logaddexp`; none if a sum is another one."""
    for largest, value in (operation.inputs, operation.inputs[::-1]):
        chain: list[Operation] = []
        for names in ({"mul"}, {"log1p"}, {"exp", "exp2"}, {"neg"}, {"abs"}, {"sub"}):
            step = graph.producer.get(value)
            live = [] if step is None else graph.live_inputs(step)
            if step is not None and step.name in names and (len(live) == 1 or step.name == "sub"):
                chain.append(step)
                value = step.inputs[live[0]]
            elif names != {"mul"}:  # by a number, for a logarithm with another base
                break
        maximum = graph.producer.get(largest)
        if not chain or chain[-1].name != "sub" or maximum is None or maximum.name != "max":
            continue
        if set(maximum.inputs) == set(chain[-1].inputs) and len(graph.live_inputs(maximum)) == 2:
            return [operation, maximum, *chain]
    return []


def _group(graph: Graph, kind: str, output: int, terms: "_Terms") -> Group | None:
    """The operations between the operands of exponentials and a value; None if it depends on something else."""
    operands = {_without_shift(graph, i) for i in terms.exponents if graph.is_live(i)}
    operations: dict[int, Operation] = {}
    waiting = [output]
    while waiting:
        value = waiting.pop()
        if value in operands or value in operations or not graph.is_live(value):
            continue
        operation = graph.producer.get(value)
        if operation is None or operation.bodies or len(operation.outputs) != 1:
            return None
        operations[value] = operation
        waiting.extend(operation.inputs)
    ordered = tuple(operations[value] for value in sorted(operations))
    return Group(kind, ordered, tuple(sorted(operands)), output) if ordered else None


def _without_shift(graph: Graph, value: int) -> int:
    """The value from which one is computed by subtracting its own maximum, held or not; else itself."""
    operation = graph.producer.get(value)
    if operation is None or operation.name not in {"add", "sub"}:
        return value
    live = graph.live_inputs(operation)
    if len(live) == 1:
        return operation.inputs[live[0]] if graph.status[operation.inputs[1 - live[0]]] is Status.HELD else value
    shift, _ = _before_moves(graph, operation.inputs[1])
    is_maximum = shift is not None and shift.name == "reduce_max" and shift.inputs[0] == operation.inputs[0]
    is_own = is_maximum and operation.name == "sub" and len(live) == 2
    return operation.inputs[0] if is_own else value


def _with_shift(graph: Graph, value: int) -> int:
    """The value to which the maximum is added that was subtracted before, if nothing else reads what is between."""
    there = value
    while there not in graph.outputs and len(graph.users.get(there, [])) == 1:
        (reader,) = graph.users[there]
        if reader.name in {"add", "sub"} and len(graph.live_inputs(reader)) == 1:
            is_shift = any(graph.status[i] is Status.HELD for i in reader.inputs)
            return reader.outputs[0] if is_shift else value
        if not reader.family & Family.UNCHANGED or len(reader.outputs) != 1:
            break
        (there,) = reader.outputs
    return value


def _outermost(graph: Graph, groups: dict[int, Group]) -> dict[int, Group]:
    """The groups that are no part of another one."""
    inner: set[int] = set()
    for group in groups.values():
        own = set(map(id, group.operations))
        for operation in group.operations:
            (value,) = operation.outputs
            readers = graph.users.get(value, [])
            if value != group.output and value not in graph.outputs and own.issuperset(map(id, readers)):
                inner.add(value)
    return {value: group for value, group in groups.items() if value not in inner}


@dataclass(frozen=True)
class _Terms:
    """The exponentials of which a value is a sum, each with its operations, by number, and the operations between."""

    leaves: dict[int, list[Operation]]
    between: list[Operation]

    @property
    def operations(self) -> list[Operation]:
        """All of these."""
        return [*self.between, *itertools.chain.from_iterable(self.leaves.values())]

    @property
    def exponents(self) -> set[int]:
        """What the exponentials read."""
        operations = [operation for leaf in self.leaves.values() for operation in leaf]
        read = {value for operation in operations for value in operation.inputs}
        return read.difference(*(operation.outputs for operation in operations))


def _terms(graph: Graph, value: int, weights: set[int]) -> _Terms | None:
    """The exponentials, or powers or elements of a softmax, of which a value is a sum; None if it is none."""
    leaves: dict[int, list[Operation]] = {}
    between: dict[int, Operation] = {}
    is_sum = False
    waiting = [value]
    while waiting:
        value = waiting.pop()
        operation = graph.producer.get(value)
        if value in leaves or value in between:
            continue
        if operation is None or not graph.is_live(value):
            return None
        live = [i for i in operation.inputs if graph.is_live(i)]
        if leaf := [operation] if _is_softmax(operation, live, weights) else _exponential(graph, value, weights):
            leaves[value] = leaf
            continue
        if not _is_linear(operation) or (len(live) > 1 and operation.name not in {"add", "add_any", "concatenate"}):
            return None
        is_sum |= Family.SUM in operation.family or len(live) > 1
        between[value] = operation
        waiting.extend(live)
    return _Terms(leaves, list(between.values())) if is_sum and leaves else None


def _is_softmax(operation: Operation, live: list[int], weights: set[int]) -> bool:
    """Whether an operation returns a power of attention weights, or such weights times a live value."""
    is_product = Family.PRODUCT in operation.family and len(live) == 2
    return (Family.POWER in operation.family and weights.issuperset(live)) or (
        is_product and weights.issuperset(operation.outputs)
    )


def _exponential(graph: Graph, value: int, weights: set[int]) -> list[Operation]:
    """The operations of an exponential, or of a product, quotient or power of such; none if a value is none."""
    found: dict[int, Operation] = {}
    waiting = [value]
    while waiting:
        inner = waiting.pop()
        operation = graph.producer.get(inner)
        if operation is None or not graph.is_live(inner):
            return []
        live = [i for i in operation.inputs if graph.is_live(i)]
        is_product = operation.name in {"mul", "div"} and (len(live) == 2 or inner != value)
        is_power = Family.POWER in operation.family and Family.PRODUCT not in operation.family
        is_power_of_number = operation.name == "pow" and live == [operation.inputs[1]]
        found[inner] = operation
        if Family.EXPONENTIAL in operation.family or is_power_of_number:
            continue
        if not (is_product or is_power or (inner != value and operation.family & Family.UNCHANGED)):
            return []
        waiting.extend(i for i in live if i not in weights and i not in found)
    return list(found.values())


def _quotients(graph: Graph, operation: Operation) -> Iterator[tuple[int, int, list[Operation]]]:
    """The numerator and the denominator of a division, also of one that is written as a product."""
    if len(graph.live_inputs(operation)) != 2:
        return
    if operation.name == "div":
        yield operation.inputs[0], operation.inputs[1], []
    if operation.name in {"mul", "dot_general"}:
        for numerator, factor in (operation.inputs, operation.inputs[::-1]):
            inverse, between = _before_moves(graph, factor)
            if inverse is not None and _is_reciprocal(graph, inverse):
                denominator = inverse.inputs[1 if inverse.name == "div" else 0]
                yield numerator, denominator, [inverse, *between]


def _before_moves(graph: Graph, value: int) -> tuple[Operation | None, list[Operation]]:
    """The operation that computes what a value holds, and those that only move it."""
    moves: list[Operation] = []
    operation = graph.producer.get(value)
    while operation is not None and operation.family & Family.UNCHANGED:
        moves.append(operation)
        operation = graph.producer.get(operation.inputs[0])
    return operation, moves


def _is_reciprocal(graph: Graph, operation: Operation) -> bool:
    if operation.name == "div":
        return not graph.is_live(operation.inputs[0])
    if operation.name == "integer_pow":
        return operation.equation.params["y"] == -1
    return operation.name == "pow" and graph.number(operation.inputs[1]) == -1


def _products_on_the_way(graph: Graph, value: int, leaves: Collection[int]) -> int | None:
    """With how many other live values an exponential was multiplied on its way to a value; None if it is not there."""
    reached: dict[int, list[int]] = {}  # and the live operands of which it is computed
    waiting = [value]
    while waiting:
        i = waiting.pop()
        operation = graph.producer.get(i)
        if i in reached or i in leaves or operation is None or not graph.is_live(i) or not _is_linear(operation):
            continue
        reached[i] = [operand for operand in operation.inputs if graph.is_live(operand)]
        waiting.extend(reached[i])
    counted = dict.fromkeys(leaves, 0)
    for i in sorted(reached):  # numbers rise in the order of computing
        found = [counted[operand] for operand in reached[i] if operand in counted]
        if found:
            is_product = graph.producer[i].name in {"mul", "dot_general"} and len(reached[i]) > 1
            counted[i] = max(found) + is_product
    return counted.get(value)


def _subtracted(graph: Graph, value: int, logarithms: Mapping[int, "_Terms"]) -> int | None:
    """Which of the logarithms of a sum is subtracted on the way to a value; None if it is none."""
    if not logarithms:
        return None
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        value = waiting.pop()
        operation = graph.producer.get(value)
        is_new = value not in seen and graph.is_live(value) and operation is not None
        seen.add(value)
        if operation is None or not is_new or Family.SUM in operation.family or not _is_linear(operation):
            continue
        found = next((i for i in operation.inputs if i in logarithms), None)
        if found is not None:
            return found
        waiting.extend(operation.inputs)
    return None


def _is_linear(operation: Operation) -> bool:
    """Whether an operation is linear, or guards what is to be divided by."""
    return bool(operation.family & _LINEAR) or operation.name in {"abs", "div", "max", "mul", "neg", "select_n"}
