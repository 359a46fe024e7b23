"""With which powers of the samples statistics grow: 2 for a variance, 1 for a standard deviation, -1 for 1 / that."""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from lrp_jax.core import primitives
from lrp_jax.core.formulas import POSITIVE, Formula
from lrp_jax.core.functions import Functions
from lrp_jax.core.graph import Graph, Operation
from lrp_jax.core.primitive import Family
from lrp_jax.core.samples import axes_of

_LARGE = np.array([1e12, 1e14, 1e16])
_AT_MOST = 64  # operations that a square consists of

Powers: TypeAlias = frozenset[float]
_Growth: TypeAlias = tuple[Sequence[int], Callable[[Sequence[Powers]], Powers]]
_NONE: Powers = frozenset()


@dataclass(frozen=True)
class Moments:
    """The powers of second moments over the samples with which the values of a function grow.

    Attributes:
        graph: The function.
        statistics: The values that are reduced over the samples, or computed from such.
        known: What is known of some; the powers of others are added.
    """

    graph: Graph
    statistics: set[int] = field(default_factory=set)
    known: dict[int, Powers] = field(default_factory=dict)

    def add(self, value: int, powers: Powers) -> None:
        """Notes that a value is a statistic, with such powers."""
        self.statistics.add(value)
        self.known[value] = self.known.get(value, _NONE) | powers

    def normalise(self, operation: Operation) -> bool:
        """Whether an operation divides by a root of a second moment, or multiplies with the reciprocal."""
        if Family.PRODUCT not in operation.family or self.statistics.isdisjoint(operation.inputs):
            return False
        first, second, *_ = operation.inputs
        factors = {second: 1.0} if operation.name == "div" else {first: -1.0, second: -1.0}
        return any(power in self.powers(value) for value, power in factors.items() if value in self.statistics)

    def powers(self, value: int) -> Powers:
        """The powers of second moments with which a value grows; empty if it is made of none."""
        growths: dict[int, _Growth] = {}
        waiting = [value]
        while waiting:
            unknown = waiting.pop()
            if unknown not in self.known and unknown not in growths:
                growths[unknown] = self._growth(unknown)
                waiting.extend(growths[unknown][0])
        for unknown, (operands, combined) in sorted(growths.items()):  # numbers rise in the order of computing
            self.known[unknown] = combined([self.known[operand] for operand in operands])
        return self.known[value]

    def _growth(self, value: int) -> _Growth:
        """The operands from whose powers those of a value follow, and how."""
        graph, operation = self.graph, self.graph.producer.get(value)
        if operation is None or operation.bodies or graph.is_constant(value):
            return (), lambda _: _NONE
        if self._is_square(value):
            return (), lambda _: frozenset({2.0})
        is_statistic = value in self.statistics
        if is_statistic and (function := self._functions.whole(value)) is not None:
            return (function.root,), functools.partial(_multiplied, _exponent(function.formula))
        operands = operation.inputs[operation.name == "select_n" :]
        varying = list(dict.fromkeys(i for i in operands if not graph.is_constant(i)))
        match operation.name:
            case "reduce_sum" | "psum":
                is_number = len(axes_of(operation.equation.params)) == len(graph.shapes[varying[0]].shape)
                return (() if is_number else varying[:1]), _united
            case "dot_general":
                is_sum = is_statistic and len(varying) == 1 and varying[0] not in self.statistics
                return (varying if is_sum else ()), _united
            case "mul" | "div" if is_statistic or len(varying) == 1:
                signs = [-1 if operation.name == "div" and i == operands[1] else 1 for i in varying]
                return varying, functools.partial(_added, signs)
        if operation.family & Family.UNCHANGED:
            return varying, _united
        is_of_degree_one = operation.family & (Family.ADDITION | Family.CHOICE)
        if is_of_degree_one and (len(varying) == 1 or (is_statistic and varying)):
            return varying, lambda found: frozenset.intersection(*found)
        return (), lambda _: _NONE

    def _is_square(self, value: int) -> bool:
        """Whether a value is a multiple of the square of another, or a sum of such squares."""
        graph, inner = self.graph, value
        for _ in range(_AT_MOST):
            operation = graph.producer.get(inner)
            if operation is None:
                return False
            if operation.name == "dot_general" and inner == value:
                return len(set(operation.inputs)) == 1 and graph.shapes[value].shape != ()
            varying = set(self._functions.varying(operation))
            if len(varying) != 1 or not primitives.is_elementwise(operation.equation):
                return False
            (inner,) = varying
            function = self._functions.between(inner, value)
            if function is not None and _is_square(function.formula):
                return True
        return False

    @functools.cached_property
    def _functions(self) -> Functions:
        return Functions(self.graph)


def _united(found: Sequence[Powers]) -> Powers:
    return _NONE.union(*found)


def _added(signs: Sequence[int], found: Sequence[Powers]) -> Powers:
    """The powers of a product from those of its factors, of which some divide."""
    return frozenset(
        sum(sign * power for sign, power in zip(signs, powers, strict=True)) for powers in itertools.product(*found)
    )


def _multiplied(exponent: float | None, found: Sequence[Powers]) -> Powers:
    (powers,) = found
    return _NONE if exponent is None else frozenset(exponent * power for power in powers)


def _is_square(formula: Formula) -> bool:
    return all(_is_level(formula(numbers) / numbers**2) for numbers in (POSITIVE, -POSITIVE))


def _is_level(found: np.ndarray) -> bool:
    return bool(np.all(found > 0) and np.ptp(found) <= 1e-6 * found.max())


def _exponent(formula: Formula) -> float | None:
    """The power with which a function grows in the end, as -0.5 for 1 / sqrt(v + epsilon); None if with none."""
    found = formula(_LARGE)
    if not (np.all(np.isfinite(found)) and np.all(found > 0)):
        return None
    exponents = np.diff(np.log(found)) / np.diff(np.log(_LARGE))
    return round(float(exponents[0]), 3) if np.ptp(exponents) < 1e-3 else None
