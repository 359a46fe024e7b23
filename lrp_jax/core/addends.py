"""Where a function of one value is cut: behind a constant that is an addend of its own, as in relu(x + 1).

What is added to the output of a layer is its bias, and a cut there leaves relevance as it is where what comes behind
is zero at zero or piecewise linear. A ReLU is looked for first, as it passes relevance on one to one.
"""

import functools
import heapq
import itertools
from collections.abc import Iterator, Set
from dataclasses import dataclass

import numpy as np

from lrp_jax.core.formulas import KNOWN_NAMES, is_affine
from lrp_jax.core.functions import Function, Functions
from lrp_jax.core.graph import Operation
from lrp_jax.core.primitive import Family

_FEW = np.array([0.0, -2.0, -1.0, 1.0, 2.0])  # at which a function is looked at first
_SHORT = 100  # operations, on all ways to a value: a longer function is not searched for each sum in it
_NEAR = 1e-3  # of a value that may be another one, where it is looked at first


@dataclass(frozen=True)
class Cuts:
    """The functions of one value in a graph, cut at addends.

    Attributes:
        functions: The functions, as a whole.
        layered: The values that a layer and affine operations behind it return: what is added to them is a bias.
        treated: The names of functions for which there is a treatment, also as a part of others.
    """

    functions: Functions
    layered: frozenset[int] = frozenset()
    treated: frozenset[str] = frozenset()

    def function(self, value: int) -> Function | None:
        """The last part of the function that a value is; None if it is none."""
        function = self._behind_addends(value)
        if function is None or function.formula.is_affine or function.formula.name in KNOWN_NAMES:
            return function
        return self._addend_at_the_end(function) or function

    def _behind_addends(self, value: int) -> Function | None:
        is_none = self.functions.root(value) == value or value in self._sums or value in self._sums_of_shifted
        return None if is_none else self._last_part(value, self._sums_of_shifted)

    def _last_part(self, value: int, sums: Set[int]) -> Function:
        """What a value is of its root, or of the last of some sums or of the addends that can be told from it."""
        root = self.functions.root(value)
        if self.treated and (part := self._around_what_is_treated(self._between(root, value))) is not None:
            return part
        if _may_be_relu(self._looks[value]) and (whole := self._between(root, value)).formula.name == "relu":
            return whole
        for inner, look, is_piecewise_linear in self._only_ways(value):
            adds_a_number = self._adds_a_number(self.functions.graph.producer[inner])
            if inner in sums or (adds_a_number and (inner in self.layered or is_piecewise_linear)):
                return self._between(inner, value)
            may_be_zero = adds_a_number and abs(look[0]) < _NEAR
            if may_be_zero or _may_be_relu(look):
                behind = self._between(inner, value)
                if behind.formula.name == "relu" or (adds_a_number and behind.formula.at_zero == 0):
                    return behind
        return self._between(root, value)

    def _addend_at_the_end(self, function: Function) -> Function | None:
        """The sum that a function ends with, where it is the same for relevance: what is before it can be read then."""
        last = function.operations[-1]
        varying = self.functions.varying(last)
        if not self._adds_a_number(last) or len(varying) != 1 or not self.functions.graph.is_live(varying[0]):
            return None
        before = self._behind_addends(varying[0])
        return self.functions.behind(function, varying[0]) if before else None

    def _around_what_is_treated(self, function: Function) -> Function | None:
        """The last part of a function that has a treatment, or what comes behind it; a known function has no parts."""
        value = function.output
        while value != function.root:
            before = self._between(function.root, value)
            inner = [operation.outputs[0] for operation in before.operations[:-1]]
            behind = [before, *filter(None, (self.functions.behind(before, i) for i in inner))]
            treated = next((part for part in behind if self.treated.intersection(part.names)), None)
            known = next((part for part in behind if part.formula.name in KNOWN_NAMES), None)
            if treated is not None and (known is None or len(treated.operations) >= len(known.operations)):
                return treated if value == function.output else self.functions.behind(function, value)
            value = (known or behind[-1]).root
        return None

    def _between(self, root: int, output: int) -> Function:
        """The operations between two values of which all ways from the root to the second lead through the first."""
        function = self.functions.between(root, output)
        assert function is not None
        return function

    def _adds_a_number(self, operation: Operation) -> bool:
        return Family.ADDITION in operation.family and len(self.functions.varying(operation)) < len(operation.inputs)

    @functools.cached_property
    def _sums(self) -> set[int]:
        """The values that only add up multiples of their root, in more than one way from it, and numbers."""
        linear: set[int] = set()
        affine: set[int] = set()
        multiples: set[int] = set()  # to which no number is added
        for value, root in self.functions.roots.items():
            operation = self.functions.graph.producer[value]
            varying = self.functions.varying(operation)
            is_multiple = is_affine(operation.equation, [i in varying for i in operation.inputs])
            read = set(varying) - {root}
            if is_multiple and read <= affine:
                affine.add(value)
            if (is_multiple or Family.ADDITION in operation.family) and read <= linear:
                linear.add(value)
                if read <= multiples and not self._adds_a_number(operation):
                    multiples.add(value)
        return linear - affine - multiples

    @functools.cached_property
    def _sums_of_shifted(self) -> Set[int]:
        """The piecewise linear sums in which a number is added within one part, as in u + relu(u - 1)."""
        found: set[int] = set()
        length: dict[int, int] = {}
        for value, root in self.functions.roots.items():
            operation = self.functions.graph.producer[value]
            varying = self.functions.varying(operation)
            length[value] = 1 + sum(length.get(i, 0) for i in varying if i not in found)
            if Family.ADDITION not in operation.family or len(varying) < 2 or length[value] > _SHORT:
                continue
            parts = [self._last_part(part, found) for part in set(varying) - {root} - found]
            is_shifted = not found.isdisjoint(varying) or any(self._begins_with_a_sum(part, found) for part in parts)
            if is_shifted and all(part.formula.is_piecewise_linear for part in parts):
                found.add(value)
        return found

    def _begins_with_a_sum(self, part: Function, sums: Set[int]) -> bool:
        producer = self.functions.graph.producer
        is_whole = part.root == self.functions.root(part.output)
        return part.root in sums or (not is_whole and self._adds_a_number(producer[part.root]))

    @functools.cached_property
    def _looks(self) -> dict[int, np.ndarray]:
        return self.functions.looks(_FEW)

    def _only_ways(self, value: int) -> Iterator[tuple[int, np.ndarray, bool]]:
        """The sums and multiples through which all ways lead from the root to a value, the last first.

        Yields:
            The number of such an inner value, what the value is for some numbers in place of it, and whether it is a
            piecewise linear function of it.
        """
        cuts = self._cuts(value)
        size = 8
        while some := list(itertools.islice(cuts, size)):
            parts = [self._between(start, end).formula for end, start in itertools.pairwise([value, *some])]
            looks = np.tile(_FEW, (size, 1))  # of one shape, for operations that JAX has to compile
            for i in reversed(range(len(some))):
                looks[i:] = parts[i](looks)[i:]
            is_piecewise_linear = True
            for inner, look, part in zip(some, looks, parts, strict=False):
                is_piecewise_linear = part.is_piecewise_linear and (part.is_level or is_piecewise_linear)
                yield inner, look, is_piecewise_linear
            size *= 2  # so that what is run again is no more than twice all of it

    def _cuts(self, value: int) -> Iterator[int]:
        """The numbers of these values."""
        last = self.functions.graph.producer[value]
        for operation, is_only_way in self._backwards(value):
            is_affine = Family.AFFINE in operation.family and self.functions.graph.is_live(operation.outputs[0])
            if is_only_way and is_affine and operation is not last:
                yield operation.outputs[0]

    def _backwards(self, value: int) -> Iterator[tuple[Operation, bool]]:
        """The operations between a value and its root, the last first, and whether each is the only way to the root."""
        root, waiting, seen = self.functions.root(value), [-value], {value}
        while (value := -heapq.heappop(waiting)) != root:
            operation = self.functions.graph.producer[value]
            yield operation, not waiting
            read = set(self.functions.varying(operation)) - seen
            seen |= read
            for i in read:
                heapq.heappush(waiting, -i)


def _may_be_relu(look: np.ndarray) -> bool:
    return bool(np.all(np.abs(look - np.maximum(_FEW, 0)) < _NEAR))
