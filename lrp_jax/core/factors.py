"""Which of two live factors is held: a normaliser before a gate, a gate before a signal.

What a factor is is decided by its values, as a function of one value, and by the range of that value:

- A *normaliser* is positive and falls as a function of a value that is not negative, by its range or by its domain:
  rsqrt(v + e), 1 / sqrt(v), v**-0.5, exp(-log(v) / 2), 1 / (1 + sum).
- A *gate* is bounded, nowhere negative and not zero at zero: sigmoid, 1 + tanh, 1 + erf, hard sigmoid.
- Everything else is a signal; relu6 is one, as it is zero at zero.

A mark overrules that: `mark.gate` and `mark.signal` say what a value is as a factor, and what it is with constants
added to it or multiplied with it.
"""

import enum
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np

from lrp_jax.core.equations import Mark
from lrp_jax.core.formulas import POSITIVE, Formula
from lrp_jax.core.functions import Function, Functions
from lrp_jax.core.graph import Graph, Operation
from lrp_jax.core.primitive import Family
from lrp_jax.errors import ModelError

_WIDE = np.concatenate([-np.geomspace(1e-2, 1e4, 25)[::-1], np.geomspace(1e-2, 1e4, 25)])
_OVERFLOW = 1e2  # a number from which exp, or what is made of it, may be infinite
_Values: TypeAlias = Callable[[np.ndarray], np.ndarray]


class Rank(enum.IntEnum):
    """What a factor is. Of two, the higher is held; equals get half of the relevance each."""

    SIGNAL = 0
    GATE = 1
    NORMALISER = 2


class _Depends(NamedTuple):
    """A value is as a factor what another one is; beside a norm it is a signal if the other one is no normaliser."""

    value: int
    divides: bool
    is_beside_norm: bool = False


@dataclass(frozen=True)
class Factors:
    """What the values of a graph are as factors.

    Attributes:
        functions: The functions of one value in the graph.
        held: Values that are held as factors in any case.
    """

    functions: Functions
    held: Set[int] = frozenset()
    _known: dict[tuple[int, bool], Rank | _Depends] = field(default_factory=dict)

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
        only_normaliser = False
        while True:
            if (value, divides) not in self._known:
                self._known[value, divides] = self._rank_or_next(value, divides)
            found = self._known[value, divides]
            if isinstance(found, Rank):
                return found if found is Rank.NORMALISER or not only_normaliser else Rank.SIGNAL
            value, divides, is_beside_norm = found
            only_normaliser |= is_beside_norm

    def _rank_or_next(self, value: int, divides: bool) -> Rank | _Depends:
        graph = self.functions.graph
        if (marked := _marked(graph, value)) is not None:
            return marked
        if value in self.held:
            return Rank.NORMALISER
        if (function := self.functions.whole(value)) is not None:
            return self._rank_of_function(function, divides)
        if divides and graph.is_nonnegative(value):
            return Rank.NORMALISER
        before = graph.producer.get(value)
        live = [] if before is None else graph.live_inputs(before)
        if before is None or before.bodies or not _scales(before):
            return Rank.SIGNAL
        if len(live) == 2 and before.name in {"mul", "div"}:
            beside = self._beside_norm(before)
            return Rank.SIGNAL if beside is None else _Depends(before.inputs[beside], _divides(before, beside), True)
        return _Depends(before.inputs[live[0]], divides != _divides(before, live[0])) if len(live) == 1 else Rank.SIGNAL

    def _rank_of_function(self, function: Function, divides: bool) -> Rank | _Depends:
        graph = self.functions.graph
        if (marked := self._marked_within(function)) is not None:
            return marked
        values = _values(function.formula, divides)
        if _falls(values) and (graph.is_nonnegative(function.root) or _needs_positive(values) or _is_even(values)):
            return Rank.NORMALISER
        if _is_gate(values):
            return Rank.GATE
        for operation in function.operations:
            (inner,) = operation.outputs
            behind = self.functions.behind(function, inner) if graph.is_nonnegative(inner) else None
            if behind is not None and _falls(_values(behind.formula, divides)):
                return Rank.NORMALISER
        if _is_constant(values(POSITIVE) / POSITIVE):  # a multiple of its root
            return _Depends(function.root, divides)
        return _Depends(function.root, not divides) if _is_constant(values(POSITIVE) * POSITIVE) else Rank.SIGNAL

    def _marked_within(self, function: Function) -> Rank | None:
        """What a mark says of a value that is scaled, or to which a number is added, on the only way to a value."""
        for operation in reversed(function.operations[:-1]):
            (inner,) = operation.outputs
            marked = _marked(self.functions.graph, inner)
            behind = None if marked is None else self.functions.behind(function, inner)
            if behind is not None and behind.formula.is_affine:
                return marked
        return _marked(self.functions.graph, function.root) if function.formula.is_affine else None

    def _beside_norm(self, operation: Operation) -> int | None:
        """Which factor makes a product a normaliser if it is one, as the mean of norms does that divides one.

        Returns:
            Its position; None if neither is beside a norm.
        """
        first, second = operation.inputs
        if operation.name == "mul" and self._is_norm(second) and self.rank_of(second) is not Rank.NORMALISER:
            return 0
        return 1 if self._is_norm(first) else None

    def _is_norm(self, value: int) -> bool:
        """Whether a value is a sum, mean or maximum of squares or absolute values, or a root of it."""
        graph = self.functions.graph
        while graph.is_nonnegative(value):
            operation = graph.producer.get(self.functions.root(value))
            if operation is None:
                return False
            if operation.name in {"reduce_sum", "reduce_max"}:
                whole = self.functions.whole(operation.inputs[0])
                return whole is not None and _is_even(whole.formula)
            live = graph.live_inputs(operation)
            if not operation.family & Family.UNCHANGED or len(live) != 1:
                return False
            value = operation.inputs[live[0]]
        return False


def _scales(operation: Operation) -> bool:
    """Whether an operation moves values, scales them or selects among them."""
    return bool(operation.family & Family.UNCHANGED) or operation.name in {"mul", "div", "neg", "select_n"}


def _divides(operation: Operation, position: int) -> bool:
    return operation.name == "div" and position == 1


def check_marks(graph: Graph, said_outside: Set[int] = frozenset()) -> None:
    """Refuses a mark that says what a value is as a factor, where it is none.

    Args:
        graph: The function.
        said_outside: Its inputs of which this is said where they come from.

    Raises:
        ModelError: If there is such a mark, also within a scan or a branch.
    """
    loops = [operation for operation in graph.operations if operation.bodies]
    said_within = {value for operation in loops for value in operation.outputs}
    for value, mark, where in graph.marked(Mark.GATE, Mark.SIGNAL):
        if value not in said_outside | said_within and not _is_factor(graph, value):
            raise ModelError(
                f"mark.{mark.value} at {where} has no effect: its value is no factor of a product with another value "
                "through which relevance flows. Put it around the factor itself, or leave it out."
            )
    for operation in loops:
        for body in operation.bodies:
            pairs = zip(body.inputs, operation.operands, strict=True)
            check_marks(body, {inner for inner, outer in pairs if outer in graph.marks})


def _is_factor(graph: Graph, value: int) -> bool:
    """Whether a product reads a value, also behind moves and constants that scale it or are added to it."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        for operation in graph.users.get(value, []):
            number = len(graph.live_inputs(operation))
            if (Family.PRODUCT in operation.family and number == 2) or operation.bodies:
                return True
            is_affine = Family.AFFINE in operation.family or operation.name == "select_n"
            if operation.family & Family.UNCHANGED or (is_affine and number == 1):
                waiting.extend(operation.outputs)
        if value in graph.outputs and graph.is_inner:
            return True
    return False


def _marked(graph: Graph, value: int) -> Rank | None:
    """What a mark says that a value is as a factor."""
    marks = graph.marks.get(value, {})
    return Rank.SIGNAL if Mark.SIGNAL in marks else Rank.GATE if Mark.GATE in marks else None


def _values(formula: Formula, divides: bool) -> _Values:
    def reciprocal(u: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return 1 / formula(u)

    return reciprocal if divides else formula


def _falls(values: _Values) -> bool:
    """Whether a function is positive and falls, on positive numbers."""
    found = values(POSITIVE)
    if not np.all(np.isfinite(found)) or not np.all(found >= 0) or found[len(found) // 2] == 0:
        return False
    return bool(np.all(np.diff(found) <= 0) and found[-1] < found[0])


def _needs_positive(values: _Values) -> bool:
    """Whether a function has no values on negative numbers, or the same for all."""
    found = values(-POSITIVE)
    return bool(np.all(np.isnan(found))) or _is_constant(found)


def _is_even(values: _Values) -> bool:
    return bool(np.allclose(values(POSITIVE), values(-POSITIVE), rtol=1e-9, atol=0))


def _is_constant(found: np.ndarray) -> bool:
    return bool(np.all(np.isfinite(found))) and bool(np.ptp(found) <= 1e-9 * np.abs(found).max())


def _is_gate(values: _Values) -> bool:
    """Whether a function is bounded, nowhere negative and not zero at zero."""
    found, (at_zero,) = values(_WIDE), values(np.zeros(1))
    found = found[np.isfinite(found) | (np.abs(_WIDE) < _OVERFLOW)]  # exp(u) / (1 + exp(u)) is sigmoid
    if not (np.all(np.isfinite(found)) and np.all(found >= 0) and np.isfinite(at_zero)):
        return False
    size = found.max()
    is_level = abs(found[0] - found[5]) <= 1e-6 * size and abs(found[-1] - found[-6]) <= 1e-6 * size
    return bool(is_level and at_zero > 1e-6 * size and np.ptp(found) > 1e-6 * size)
