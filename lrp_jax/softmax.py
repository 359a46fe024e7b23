"""Softmax and the logarithm of a sum of exponentials, however they are written.

A quotient whose denominator is a sum of exponentials of its own numerator is a softmax: behind masks, casts, moves and
linear operations, plus a constant, by a reciprocal, or by exp(x - logsumexp(x)). Its operations keep their own
derivatives, which together are its Jacobian.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from lrp_jax import equations
from lrp_jax.graph import Graph, Operation, Status

MOVES = frozenset(
    """
    broadcast_in_dim concatenate dynamic_slice expand_dims gather pad reshape rev slice split squeeze tile transpose
    unstack
    """.split()
)
"""Operations that move values without changing them."""

_EXPONENTIALS = frozenset("exp exp2".split())
_POWERS = frozenset("integer_pow mul pow sqrt square".split())
_SUMS = frozenset("dot_general reduce_sum cumsum reduce_window_sum".split())
_LINEAR = MOVES | equations.IDENTITIES | _SUMS | frozenset("abs add add_any div max mul neg select_n sub".split())


@dataclass(frozen=True)
class Softmaxes:
    """What is found of softmaxes in a function.

    Attributes:
        derived: The ids of operations that keep their own derivatives.
        weights: The values that are a softmax, or linear in one alone: attention weights.
        halved: For the ids of quotients, the part of relevance that the denominator takes, where the numerator is a
            product with another live value: as much as the exponentials take of that product.
    """

    derived: set[int] = field(default_factory=set)
    weights: set[int] = field(default_factory=set)
    halved: dict[int, float] = field(default_factory=dict)


def find_softmaxes(graph: Graph) -> Softmaxes:
    """Finds every softmax and every logarithm of a sum of exponentials in a function."""
    found = Softmaxes()
    logarithms: set[int] = set()
    for operation in graph.operations:
        for numerator, denominator, between in _quotients(graph, operation):
            terms = _terms(graph, denominator, found.weights)
            products = None if terms is None else _products_on_the_way(graph, numerator, terms.leaves)
            if terms is None or products is None:
                continue
            found.derived.update(map(id, [operation, *between, *terms.between, *terms.leaves.values()]))
            if products:
                found.halved[id(operation)] = 0.5**products
                found.weights.update(terms.leaves)
            else:
                found.weights.update(operation.outputs)
        if operation.name in {"log", "log1p"} and (terms := _terms(graph, operation.inputs[0], found.weights)):
            found.derived.update(map(id, [operation, *terms.between, *terms.leaves.values()]))
            logarithms.update(operation.outputs)
        if operation.name in _EXPONENTIALS and _subtracts(graph, operation.inputs[0], logarithms):
            found.derived.add(id(operation))
            found.weights.update(operation.outputs)
        if _is_linear_in(graph, operation, found.weights):
            found.weights.update(operation.outputs)
    return found


@dataclass(frozen=True)
class _Terms:
    """The exponentials of which a value is a sum, by number, and the operations between."""

    leaves: dict[int, Operation]
    between: list[Operation]


def _terms(graph: Graph, value: int, weights: set[int]) -> _Terms | None:
    """The exponentials, or powers of a softmax, of which a value is a sum; None if it is none."""
    leaves: dict[int, Operation] = {}
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
        if operation.name in _EXPONENTIALS or (operation.name in _POWERS and weights.issuperset(live)):
            leaves[value] = operation
            continue
        if operation.name not in _LINEAR or (len(live) > 1 and operation.name not in {"add", "add_any", "concatenate"}):
            return None
        is_sum |= operation.name in _SUMS or len(live) > 1
        between[value] = operation
        waiting.extend(live)
    return _Terms(leaves, list(between.values())) if is_sum and leaves else None


def _quotients(graph: Graph, operation: Operation) -> Iterator[tuple[int, int, list[Operation]]]:
    """The numerator and the denominator of a division, also of one that is written as a product."""
    if len(graph.live_inputs(operation)) != 2:
        return
    if operation.name == "div":
        yield operation.inputs[0], operation.inputs[1], []
    if operation.name in {"mul", "dot_general"}:
        for numerator, factor in (operation.inputs, operation.inputs[::-1]):
            between: list[Operation] = []
            inverse = graph.producer.get(factor)
            while inverse is not None and inverse.name in MOVES | equations.IDENTITIES:
                between.append(inverse)
                inverse = graph.producer.get(inverse.inputs[0])
            if inverse is not None and _is_reciprocal(graph, inverse):
                denominator = inverse.inputs[1 if inverse.name == "div" else 0]
                yield numerator, denominator, [inverse, *between]


def _is_reciprocal(graph: Graph, operation: Operation) -> bool:
    if operation.name == "div":
        return not graph.is_live(operation.inputs[0])
    if operation.name == "integer_pow":
        return operation.equation.params["y"] == -1
    return operation.name == "pow" and graph.number(operation.inputs[1]) == -1


def _products_on_the_way(graph: Graph, value: int, leaves: dict[int, Operation]) -> int | None:
    """With how many other live values an exponential was multiplied on its way to a value; None if it is not there."""
    if value in leaves:
        return 0
    operation = graph.producer.get(value)
    if operation is None or not graph.is_live(value) or operation.name not in _LINEAR:
        return None
    live = [i for i in operation.inputs if graph.is_live(i)]
    counted = [found for i in live if (found := _products_on_the_way(graph, i, leaves)) is not None]
    if not counted:
        return None
    is_product = operation.name in {"mul", "dot_general"} and len(live) > 1
    return max(counted) + is_product


def _subtracts(graph: Graph, value: int, logarithms: set[int]) -> bool:
    """Whether one of the logarithms of a sum is subtracted on the way to a value."""
    operation = graph.producer.get(value)
    if operation is None or not graph.is_live(value) or operation.name in _SUMS or operation.name not in _LINEAR:
        return False
    return any(i in logarithms or _subtracts(graph, i, logarithms) for i in operation.inputs)


def _is_linear_in(graph: Graph, operation: Operation, weights: set[int]) -> bool:
    """Whether an operation is linear in attention weights, and reads no other live value."""
    live = {value for value in operation.inputs if graph.status[value] in (Status.LIVE, Status.HELD)}
    is_linear = operation.name in _LINEAR - {"abs", "max", "sub"} and operation.name != "dot_general"
    return bool(live) and is_linear and not operation.bodies and live <= weights
