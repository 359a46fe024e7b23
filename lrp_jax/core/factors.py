"""Which of two live factors is held: a normaliser before a gate, a gate before a signal.

What a factor is is decided by its values, as a function of one value, and by the range of that value:

- A *normaliser* is positive and falls as a function of a value that is not negative, by its range or by its domain:
  rsqrt(v + e), 1 / sqrt(v), v**-0.5, exp(-log(v) / 2), 1 / (1 + sum), exp(-rate * softplus(u)).
- A *gate* is bounded, nowhere negative and not zero at zero: sigmoid, 1 + tanh, 1 + erf, hard sigmoid.
- Everything else is a signal; relu6 is one, as it is zero at zero.

It makes no difference which factors are multiplied first. So a product is what the lowest of its factors is, as is a
sum, mean or maximum that has one sign; which sign does not matter. And so is a function of such a value that is
bounded and nowhere negative between its bounds, as 1 - g h.

A mark overrules that: `mark.gate` and `mark.signal` say what a value is as a factor, and what it is with constants
added to it or multiplied with it.
"""

import enum
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from lrp_jax.core.curves import (
    falls,
    is_constant,
    is_even,
    is_gate,
    is_gate_within,
    needs_positive,
    with_positive_sign,
)
from lrp_jax.core.equations import Mark
from lrp_jax.core.formulas import POSITIVE
from lrp_jax.core.functions import Function, Functions
from lrp_jax.core.graph import Graph, Operation
from lrp_jax.core.primitive import Family
from lrp_jax.core.ranges import Range
from lrp_jax.core.signs import ranges_by_values
from lrp_jax.core.softmax import Softmaxes, find_softmaxes

_GATHERED = Family.ADDITION | Family.CHOICE | Family.REDUCTION | Family.CUMULATIVE | Family.WINDOW | Family.SUM
_Factor: TypeAlias = tuple["Factors", int, bool]
"""The graph, the number of a value in it, and whether it divides."""


class Rank(enum.IntEnum):
    """What a factor is. Of two, the higher is held; equals get half of the relevance each."""

    SIGNAL = 0
    GATE = 1
    NORMALISER = 2


class _Depends(NamedTuple):
    """A value is as a factor what the lowest of others is, or a normaliser if one of those beside a norm is one."""

    factors: Sequence[_Factor]
    beside_norm: Sequence[_Factor] = ()

    def rank(self, known: Mapping[_Factor, Rank]) -> Rank:
        if any(known[factor] is Rank.NORMALISER for factor in self.beside_norm):
            return Rank.NORMALISER
        return min(known[factor] for factor in self.factors)


@dataclass(frozen=True, eq=False)
class Factors:
    """What the values of a graph are as factors.

    Attributes:
        graph: The graph.
        holds_attention: Whether attention weights are held in any case.
        outside: If the graph is a body, the factors of the graph that runs it.
        operands: The values there that the inputs of the body are, but for those that are carried from step to step.
    """

    graph: Graph
    holds_attention: bool = False
    outside: "Factors | None" = None
    operands: Mapping[int, int] = field(default_factory=dict)
    _bodies: dict[int, "Factors"] = field(default_factory=dict)
    _known: dict[_Factor, Rank] = field(default_factory=dict)
    _found: dict[_Factor, Rank | _Depends] = field(default_factory=dict)

    @functools.cached_property
    def softmaxes(self) -> Softmaxes:
        """The softmaxes in the graph."""
        return find_softmaxes(self.graph)

    @functools.cached_property
    def functions(self) -> Functions:
        """The functions of one value in the graph."""
        ends = frozenset(value for value, _, _ in self.graph.marked(Mark.INPUT))
        return Functions(self.graph, frozenset(self.softmaxes.derived), ends)

    def inside(self, operation: Operation, body: Graph) -> "Factors":
        """The factors of a body of an operation of the graph."""
        if id(body) not in self._bodies:
            carried = () if operation.control is None else operation.control.carried
            pairs = enumerate(zip(body.inputs, operation.operands, strict=True))
            operands = {inner: outer for i, (inner, outer) in pairs if i not in carried}
            self._bodies[id(body)] = Factors(
                body, self.holds_attention, self, operands, _known=self._known, _found=self._found
            )
        return self._bodies[id(body)]

    def all_factors(self) -> Iterator["Factors"]:
        """These factors and those of inner functions."""
        yield self
        for operation in self.graph.operations:
            for body in operation.bodies:
                yield from self.inside(operation, body).all_factors()

    def signal_of(self, operation: Operation) -> int | None:
        """The position of the factor that takes all relevance of a product or quotient, as the other one is held.

        Args:
            operation: An operation on two live values.

        Returns:
            The position; None where both get half.
        """
        first, second, *_ = operation.inputs
        ranks = self.rank_of(first), self.rank_of(second, divides=operation.name == "div")
        if ranks[0] == ranks[1]:
            return None
        return 0 if ranks[1] > ranks[0] else 1

    def rank_of(self, value: int, *, divides: bool = False) -> Rank:
        """What a value is as a factor; if it divides, what its reciprocal is."""
        start: _Factor = (self, value, divides)
        waiting = [start]
        while waiting:
            factor = there, inner, is_divisor = waiting[-1]
            if factor not in self._found:
                self._found[factor] = there._rank_or_others(inner, is_divisor)
            found = self._found[factor]
            unknown = [] if isinstance(found, Rank) else [other for other in found.factors if other not in self._known]
            waiting.extend(unknown)
            if not unknown:
                self._known[waiting.pop()] = found if isinstance(found, Rank) else found.rank(self._known)
        return self._known[start]

    def _rank_or_others(self, value: int, divides: bool) -> Rank | _Depends:
        graph = self.graph
        if (marked := _marked(graph, value)) is not None:
            return marked
        if self.outside is not None and value in self.operands:
            return _Depends([(self.outside, self.operands[value], divides)])
        if self.holds_attention and value in self.softmaxes.weights:
            return Rank.NORMALISER
        if (function := self.functions.whole(value)) is not None:
            return self._rank_of_function(function, divides)
        if divides and self._is_nonnegative(value):
            return Rank.NORMALISER
        before = graph.producer.get(value)
        live = [] if before is None else graph.live_inputs(before)
        if before is None or not graph.is_live(value):
            return Rank.SIGNAL
        if before.bodies:
            returned = self._returned(before, value)
            return _Depends([(there, i, divides) for there, i in returned]) if returned else Rank.SIGNAL
        is_gathered = before.family & _GATHERED and self._has_one_sign(value) and not divides
        if live and (_scales(before) or is_gathered):
            factors = [(self, before.inputs[i], divides != _divides(before, i)) for i in live]
            return _Depends(factors, [factors[i] for i in self._beside_norms(before)])
        return Rank.SIGNAL

    @functools.cached_property
    def _ranges(self) -> Sequence[Range]:
        outside = {} if self.outside is None else {i: self.outside._ranges[j] for i, j in self.operands.items()}
        return ranges_by_values(self.functions, outside)

    def _is_nonnegative(self, value: int) -> bool:
        return self._ranges[value][0] >= 0

    def _has_one_sign(self, value: int) -> bool:
        return self._is_nonnegative(value) or self._ranges[value][1] <= 0

    def _rank_of_function(self, function: Function, divides: bool) -> Rank | _Depends:
        if (marked := self._marked_within(function)) is not None:
            return marked
        for there, whole in self._longer(function):
            values = with_positive_sign(whole.formula, divides)
            is_nonnegative = there._is_nonnegative(whole.root)
            if falls(values) and (is_nonnegative or needs_positive(values) or is_even(values)):
                return Rank.NORMALISER
            if is_gate(values):
                return Rank.GATE
        inner = [operation.outputs[0] for operation in function.operations]
        for value in (function.root, *filter(self._has_one_sign, inner)):
            behind = function if value == function.root else self.functions.behind(function, value)
            if behind is not None and self._falls_from_zero(behind, divides):
                return Rank.NORMALISER
        values = with_positive_sign(function.formula, divides)
        is_multiple, is_quotient = (is_constant(values(POSITIVE) * powers) for powers in (1 / POSITIVE, POSITIVE))
        if is_multiple or is_quotient:
            return _Depends([(self, function.root, divides != is_quotient)])
        bounds = self._ranges[function.root]
        return _Depends([(self, function.root, False)]) if is_gate_within(values, bounds) else Rank.SIGNAL

    def _falls_from_zero(self, function: Function, divides: bool) -> bool:
        """Whether a function falls while its root, which has one sign, goes away from zero."""
        values = with_positive_sign(function.formula, divides)
        low, high = self._ranges[function.root]
        return (low >= 0 and falls(values)) or (high <= 0 and falls(lambda u: values(-u)))

    def _longer(self, function: Function) -> Iterator[tuple["Factors", Function]]:
        """A function, and as what it is one that its root is moved from, as 1 - sigmoid(u)[:3] is a function of u.

        Yields:
            The factors of the graph in which the root is, which may be another one than this, and the function.
        """
        there: Factors = self
        inner: Function | None = function
        while inner is not None:
            yield there, function
            value = inner.root
            while _marked(there.graph, value) is None and (before := there._moved_from(value)) is not None:
                there, value = before
            inner = there.functions.whole(value) if _marked(there.graph, value) is None else None
            if inner is not None:
                operations, formula = (*inner.operations, *function.operations), function.formula.of(inner.formula)
                function = Function(inner.root, function.output, operations, formula)

    def _moved_from(self, value: int) -> tuple["Factors", int] | None:
        """The value that another one is at other places, into a body or out of one; None if it is no single one."""
        if self.outside is not None and value in self.operands:
            return self.outside, self.operands[value]
        operation = self.graph.producer.get(value)
        if operation is None:
            return None
        if operation.bodies:
            returned = self._returned(operation, value)
            return returned[0] if len(returned) == 1 else None
        live = self.graph.live_inputs(operation)
        return (self, operation.inputs[live[0]]) if _moves(operation) and len(live) == 1 else None

    def _returned(self, operation: Operation, value: int) -> list[tuple["Factors", int]]:
        """The values in bodies that an output of theirs is; none if it is carried from step to step."""
        position = operation.outputs.index(value)
        if operation.control is None or position < len(operation.control.carried):
            return []
        found = [(self.inside(operation, body), body.outputs[position]) for body in operation.bodies]
        return [(there, inner) for there, inner in found if there.graph.is_live(inner)]

    def _marked_within(self, function: Function) -> Rank | None:
        """What a mark says of a value that is scaled, or to which a number is added, on the only way to a value."""
        for operation in reversed(function.operations[:-1]):
            (inner,) = operation.outputs
            marked = _marked(self.graph, inner)
            behind = None if marked is None else self.functions.behind(function, inner)
            if behind is not None and behind.formula.is_affine:
                return marked
        return _marked(self.graph, function.root) if function.formula.is_affine else None

    def _beside_norms(self, operation: Operation) -> list[int]:
        """Which factors make a product a normaliser if they are one, as the mean of norms does that divides one."""
        if operation.name not in {"mul", "div"} or len(self.graph.live_inputs(operation)) != 2:
            return []
        norms = [self._is_norm(value) for value in operation.inputs]
        return [i for i in (0, 1) if norms[1 - i] and not _divides(operation, 1 - i)]

    def _is_norm(self, value: int) -> bool:
        """Whether a value is a sum, mean or maximum of squares or absolute values, or a root of it."""
        graph = self.graph
        while self._is_nonnegative(value):
            operation = graph.producer.get(self.functions.root(value))
            if operation is None:
                return False
            if operation.name in {"reduce_sum", "reduce_max"}:
                whole = self.functions.whole(operation.inputs[0])
                return whole is not None and is_even(whole.formula)
            live = graph.live_inputs(operation)
            if not operation.family & Family.UNCHANGED or len(live) != 1:
                return False
            value = operation.inputs[live[0]]
        return False


def _scales(operation: Operation) -> bool:
    """Whether an operation moves values, scales them or selects among them."""
    return _moves(operation) or operation.name in {"mul", "div", "neg", "select_n"}


def _moves(operation: Operation) -> bool:
    """Whether an operation returns what it is given, at the same or at other places."""
    is_written = Family.WRITE in operation.family and Family.SUM not in operation.family
    return is_written or bool(operation.family & (Family.UNCHANGED | Family.ORDER))


def _divides(operation: Operation, position: int) -> bool:
    return operation.name == "div" and position == 1


def _marked(graph: Graph, value: int) -> Rank | None:
    """What a mark says that a value is as a factor."""
    marks = graph.marks.get(value, {})
    return Rank.SIGNAL if Mark.SIGNAL in marks else Rank.GATE if Mark.GATE in marks else None
