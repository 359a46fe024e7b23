"""Functions of one value: what elementwise operations compute together, however many there are and however spelled.

All elementwise operations between two values u and y, with numbers alone beside u, are one function y = f(u). What it
means for relevance is decided by its values: by f(0), by its slope there, by whether it is a relu or straight between
its kinks. The same f has the same backward pass in every spelling.
"""

import functools
import heapq
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax.core import equations
from lrp_jax.core.graph import Graph, Operation, Status
from lrp_jax.core.primitives import Family, erf, logistic, named

_SMALL, _LARGE = np.geomspace(1e-3, 30, 25), np.array([1e2, 1e3, 1e4, 1e6])
GRID = np.concatenate([-_LARGE[::-1], -_SMALL[::-1], np.linspace(-4, 4, 33), _SMALL, _LARGE])
"""The numbers on which functions are compared."""

POSITIVE = np.geomspace(1e-4, 1e4, 33)
"""Positive numbers, in rising order."""

_HUGE = np.geomspace(1e8, 1e30, 12)
_OVERFLOW = 1e3  # a number from which exp is infinite
_STEP = 1e-3  # of differences in place of derivatives, in double precision
_FEW = np.array([0.0, -2.0, -1.0, 1.0, 2.0])  # at which a function is looked at first
_NEAR = 1e-3  # of a value that may be another one, where it is looked at first


KNOWN: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "silu": lambda x: x * logistic(x),
    "gelu": lambda x: x * (1 + erf(x / math.sqrt(2))) / 2,
    "gelu (tanh)": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "sigmoid": logistic,
    "softplus": lambda x: np.logaddexp(x, 0),
    "tanh": np.tanh,
    "hard_swish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "hard_sigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "mish": lambda x: x * np.tanh(np.logaddexp(x, 0)),
    "abs": np.abs,
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "square": np.square,
}
"""Functions that have a name, under which a treatment of one's own is given, by their values."""

_NAMES = frozenset(name.partition(" ")[0] for name in KNOWN)


@dataclass(frozen=True)
class Step:
    """One elementwise operation of a formula.

    Attributes:
        equation: The equation.
        operands: The numbers that it reads, and the positions of the values: 0 for u, i + 1 for what step i returns.
    """

    equation: Any
    operands: tuple[Any, ...]

    @property
    def name(self) -> str:
        """The name of the primitive."""
        return self.equation.primitive.name

    def run(self, values: Sequence[Any] | Mapping[int, Any], dtype: Any) -> Any:
        """Applies the operation to numbers."""
        operands = [values[i] if isinstance(i, int) else _cast(i, dtype) for i in self.operands]
        out = self.equation.outvars[0].aval.dtype
        known = named(self.name)
        if known.compute is not None:
            found = known.compute(*operands)
        elif self.name == "integer_pow":
            found = operands[0] ** np.asarray(self.equation.params["y"], dtype)
        elif Family.IDENTITY in known.family:
            (found,) = operands
            if jnp.issubdtype(out, jnp.integer) and np.asarray(found).dtype.kind == "f":
                found = np.trunc(found)
        else:
            found = self._run_in_jax(operands)
        is_truth = out == jnp.bool_ and Family.IDENTITY not in known.family
        return np.asarray(found, np.bool_ if is_truth or out == jnp.bool_ else dtype)

    def _run_in_jax(self, operands: Sequence[Any]) -> Any:
        shape = np.broadcast_shapes(*map(np.shape, operands))
        dtypes = [atom.aval.dtype for atom in self.equation.invars]
        with jax.ensure_compile_time_eval():
            arrays = [jnp.broadcast_to(jnp.asarray(x, dtype), shape) for x, dtype in zip(operands, dtypes, strict=True)]
            return np.asarray(equations.run(self.equation, *arrays)[0])


def _cast(number: np.ndarray, dtype: Any) -> np.ndarray:
    return number if number.dtype == np.bool_ else number.astype(dtype)


@dataclass(frozen=True, eq=False)
class Formula:
    """A function f of one number.

    Attributes:
        steps: Its operations, in the order in which they run.
    """

    steps: tuple[Step, ...]

    def __call__(self, u: Any, dtype: Any = np.float64) -> np.ndarray:
        """The values of f at some numbers."""
        values: list[Any] = [np.asarray(u, dtype)]
        with np.errstate(all="ignore"):
            for step in self.steps:
                values.append(step.run(values, dtype))
        return np.broadcast_to(np.asarray(values[-1], np.float64), np.shape(u))

    @functools.cached_property
    def at_zero(self) -> float:
        """f(0)."""
        return float(self(np.zeros(1))[0])

    @functools.cached_property
    def is_constant(self) -> bool:
        """Whether f has the same value for every u."""
        found = self(np.concatenate([-_HUGE, GRID, _HUGE]))
        return bool(np.isfinite(found[0]) and np.all(found == found[0]))

    @functools.cached_property
    def is_affine(self) -> bool:
        """Whether every operation adds a number or multiplies with one."""
        return all(_is_affine(step.equation, list(map(_varies, step.operands))) for step in self.steps)

    @property
    def is_piecewise_linear(self) -> bool:
        """Whether f is straight between kinks and jumps, by its operations."""
        return max(self._degrees) <= 1

    @property
    def is_level(self) -> bool:
        """Whether f is constant between jumps, by its operations."""
        return self._degrees[-1] == 0

    @functools.cached_property
    def _degrees(self) -> list[float]:
        degrees: list[float] = [1]
        for step in self.steps:
            of_operands = [
                degrees[i] if isinstance(i, int) else 0 for i in step.operands
            ]  # numbers have none, as steps
            family = equations.family_of(step.equation)
            is_step = Family.STEP in family and Family.IDENTITY not in family
            if step.equation.outvars[0].aval.dtype == jnp.bool_ or is_step:
                degrees.append(0)
            elif family & (Family.PIECEWISE_LINEAR | Family.IDENTITY):
                degrees.append(max(of_operands))
            elif step.name == "mul" or (step.name == "div" and not of_operands[1]):
                degrees.append(sum(of_operands))
            else:
                degrees.append(math.inf if any(of_operands) else 0)
        return degrees

    @functools.cached_property
    def name(self) -> str:
        """The name of f if it has one: "relu", "gelu", "sigmoid"; else that of its operation, if there is only one."""
        found = self(GRID)
        for name, known in KNOWN.items():
            with np.errstate(all="ignore"):
                expected = known(GRID)
            if _agree(found, expected):
                return name.partition(" ")[0]
        return self.steps[-1].name if len(self.steps) == 1 else ""

    @functools.cached_property
    def is_singular(self) -> bool:
        """Whether f has no value at zero, as log and 1 / u, or only one that a guard against this gives it."""
        if not math.isfinite(self.at_zero):
            return True
        if self.at_zero == 0:
            return False
        return any(_diverges(self(sign * np.array([1, 1e-1, 1e-2, 1e-3]))) for sign in (1, -1))

    @functools.cached_property
    def slope(self) -> float | None:
        """f'(0); None where it is infinite. At a kink that of the flatter side, and 0 if they differ in sign."""
        right, left = self._slope(1e-5), self._slope(-1e-5)
        if not (math.isfinite(right) and math.isfinite(left)):
            return None
        if max(abs(right), abs(left)) > 2 * max(abs(self._slope(1e-3)), abs(self._slope(-1e-3)), 1e-9):
            return None  # it grows without bound, as that of a root
        if abs(right - left) > 1e-2 * max(abs(right), abs(left)):
            return 0.0 if right * left <= 0 else min(right, left, key=abs)
        points = self(np.array([-2, -1, 1, 2]) * _STEP)
        return float((8 * (points[2] - points[1]) - (points[3] - points[0])) / (12 * _STEP))

    def _slope(self, step: float) -> float:
        zero, near, far = self(np.array([0.0, step, 2 * step]))
        return float((4 * near - far - 3 * zero) / (2 * step))

    @functools.cached_property
    def curvature(self) -> float:
        """f''(0) / 2; zero at a kink."""
        left, zero, right = self(np.array([-_STEP, 0.0, _STEP]))
        found = float((right - 2 * zero + left) / (2 * _STEP**2))
        return found if math.isfinite(found) and abs(found) * _STEP < 0.1 * max(1.0, abs(self.slope or 0.0)) else 0.0

    @functools.cached_property
    def is_precise_near_zero(self) -> bool:
        """Whether f(u) / u keeps its digits in single precision as u goes to zero, so that it needs no expansion."""
        if self.at_zero != 0:
            return False
        small = np.array([-1e-4, -1e-5, 1e-5, 1e-4], np.float32)
        exact, rounded = self(small), self(small, np.float32)
        return bool(np.all(np.abs(exact - rounded) <= 1e-5 * np.abs(exact)))


def _varies(operand: Any) -> bool:
    return isinstance(operand, int)


def _is_affine(equation: Any, varies: Sequence[bool]) -> bool:
    """Whether an elementwise equation multiplies with numbers and adds them, or leaves what it is given."""
    family, is_quotient = equations.family_of(equation), equation.primitive.name == "div"
    if Family.IDENTITY in family:
        return Family.STEP not in family
    return Family.AFFINE in family and sum(varies) == 1 and not (is_quotient and varies[1])


def _agree(found: np.ndarray, expected: np.ndarray) -> bool:
    known = np.isfinite(expected)
    has_overflown = known & ~np.isfinite(found) & (np.abs(GRID) >= _OVERFLOW)  # as exp does within log(1 + exp(x))
    known &= ~has_overflown
    if not np.array_equal(known, np.isfinite(found)):
        return False
    found, expected, grid = found[known], expected[known], GRID[known]
    tolerance = 1e-5 * np.minimum(1, np.abs(grid)) * np.maximum(1e-3, np.abs(expected)) + 1e-9
    return bool(np.all(np.abs(found - expected) <= tolerance))


def _diverges(values: np.ndarray) -> bool:
    """Whether a function changes by as much from each power of ten to the next, on its way to zero."""
    if not np.all(np.isfinite(values)):
        return False
    far, middle, near = np.abs(np.diff(values))
    return bool(far > 0 and middle >= 0.77 * far and near >= 0.77 * middle)


def _may_be_relu(look: np.ndarray) -> bool:
    return bool(np.all(np.abs(look - np.maximum(_FEW, 0)) < _NEAR))


@dataclass(frozen=True, eq=False)
class Function:
    """The elementwise operations between two values: output = f(root).

    Attributes:
        root: The number of the value u.
        output: The number of the value y.
        operations: Those between, in the order in which they run.
        formula: f.
    """

    root: int
    output: int
    operations: tuple[Operation, ...]
    formula: Formula

    @property
    def names(self) -> tuple[str, ...]:
        """The names under which a treatment for it is looked up: that of f, then that of a single operation."""
        return names_of_function(self.formula.name, [operation.name for operation in self.operations])


def names_of_function(name: str, operations: Sequence[str]) -> tuple[str, ...]:
    """The names of a function of one value: its own, and that of its operation; a relu is no maximum of two values."""
    return (name, *operations) if len(operations) == 1 and name != "relu" else (name,)


@dataclass
class Functions:
    """The functions of one value in a graph.

    Attributes:
        graph: The graph.
        apart: The ids of operations that are treated by themselves.
        layered: The values that a layer and affine operations behind it return: what is added to them is a bias.
        ends: Values at which a function ends: what reads them is a function of them.
        treated: The names of functions for which there is a treatment, also as a part of others.
        held: Values that are held as factors in any case.
        factors: What `lrp_jax.core.factors` has found out of values, as they are or as what divides.
    """

    graph: Graph
    apart: frozenset[int] = frozenset()
    layered: frozenset[int] = frozenset()
    ends: frozenset[int] = frozenset()
    treated: frozenset[str] = frozenset()
    held: Set[int] = frozenset()
    factors: dict[tuple[int, bool], Any] = field(default_factory=dict)
    _roots: dict[int, int] = field(default_factory=dict)
    _formulas: dict[Any, Formula] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for operation in self.graph.operations:
            root = self._root_of(operation)
            if root is not None:
                self._roots[operation.outputs[0]] = root

    def _root_of(self, operation: Operation) -> int | None:
        graph = self.graph
        if id(operation) in self.apart or not equations.is_elementwise(operation.equation):
            return None
        varying = [value for value in operation.inputs if graph.number(value) is None]
        if not varying or any(graph.status[value] in (Status.CONSTANT, Status.TOKEN) for value in varying):
            return None
        shape = graph.shapes[operation.outputs[0]].shape
        if any(graph.shapes[value].shape != shape for value in varying):
            return None
        if any(jnp.iscomplexobj(graph.shapes[value]) for value in (*varying, *operation.outputs)):
            return None
        roots = {value if value in self.ends else self.root(value) for value in varying}
        return root if len(roots) == 1 and graph.is_live(root := roots.pop()) else None

    def root(self, value: int) -> int:
        """The value of which a value is a function; itself if there is no such."""
        return self._roots.get(value, value)

    def whole(self, value: int) -> Function | None:
        """The function that a value is of its root; None if it is its own."""
        root = self.root(value)
        return None if root == value else self.between(root, value)

    def function(self, value: int) -> Function | None:
        """As `whole`, without what comes before a constant that is an addend of its own, as in relu(x + 1)."""
        function = self._behind_addends(value)
        if function is None or function.formula.is_affine or function.formula.name in _NAMES:
            return function
        return self._addend_at_the_end(function) or function

    def _behind_addends(self, value: int) -> Function | None:
        root = self.root(value)
        if root == value or value in self._sums:
            return None
        if self.treated and (part := self._around_what_is_treated(self._all_of(value))) is not None:
            return part
        if _may_be_relu(self._looks[value]) and (whole := self._all_of(value)).formula.name == "relu":
            return whole
        for inner, look, is_piecewise_linear in self._only_ways(value):
            adds_a_number = self._adds_a_number(self.graph.producer[inner])
            if adds_a_number and (inner in self.layered or is_piecewise_linear):
                return self.between(inner, value)
            may_be_zero = adds_a_number and abs(look[0]) < _NEAR
            behind = self.between(inner, value) if may_be_zero or _may_be_relu(look) else None
            if behind is not None and (
                behind.formula.name == "relu" or (adds_a_number and behind.formula.at_zero == 0)
            ):
                return behind
        return self._all_of(value)

    def _all_of(self, value: int) -> Function:
        function = self.whole(value)
        assert function is not None
        return function

    @functools.cached_property
    def _sums(self) -> set[int]:
        """The values that only add up multiples of their root and numbers, in more than one way from it."""
        linear: set[int] = set()
        affine: set[int] = set()
        for value, root in self._roots.items():
            operation = self.graph.producer[value]
            varies = [self.graph.number(i) is None for i in operation.inputs]
            read = {i for i, does_vary in zip(operation.inputs, varies, strict=True) if does_vary and i != root}
            is_affine = _is_affine(operation.equation, varies)
            if is_affine and read <= affine:
                affine.add(value)
            if (is_affine or Family.ADDITION in operation.family) and read <= linear:
                linear.add(value)
        return linear - affine

    @functools.cached_property
    def _looks(self) -> dict[int, np.ndarray]:
        """What each value is for some numbers in place of its root."""
        looks: dict[int, np.ndarray] = {}
        for value, root in self._roots.items():
            operation = self.graph.producer[value]
            operands = [i if (number := self.graph.number(i)) is None else number for i in operation.inputs]
            known = {i: _FEW if i == root else looks[i] for i in operands if isinstance(i, int)}
            with np.errstate(all="ignore"):
                looks[value] = Step(operation.equation, tuple(operands)).run(known, np.float64)
        return looks

    def _only_ways(self, value: int) -> Iterator[tuple[int, np.ndarray, bool]]:
        """The sums and multiples through which all ways lead from the root to a value, the last first.

        Yields:
            The number of such an inner value, what the value is for some numbers in place of it, and whether it is a
            piecewise linear function of it.
        """
        operations: list[Operation] = []  # the last first
        cuts: list[int] = []  # of which places of it return such values
        walk = self._backwards(value)
        is_piecewise_linear, known, size = True, 0, 8
        while True:
            for operation, is_only_way in walk:
                if is_only_way and operations and self._is_cut(operation):
                    cuts.append(len(operations))
                operations.append(operation)
                if len(cuts) == size:
                    break
            if not cuts:
                return

            def part(start: int, end: int) -> Formula:
                return self._formula(operations[start].outputs[0], operations[end:start][::-1])

            looks = np.tile(_FEW, (size, 1))  # of one shape, for operations that JAX has to compile
            for i, (start, end) in enumerate(itertools.pairwise([*cuts[::-1], 0])):
                looks[: i + 1] = part(start, end)(looks)[: i + 1]
            for i, (end, start) in enumerate(itertools.pairwise([known, *cuts])):
                formula = part(start, end)
                is_piecewise_linear = formula.is_piecewise_linear and (formula.is_level or is_piecewise_linear)
                yield operations[start].outputs[0], looks[len(cuts) - 1 - i], is_piecewise_linear
            known, cuts, size = cuts[-1], [], 2 * size  # so that what is run again is no more than twice all of it

    def _backwards(self, value: int) -> Iterator[tuple[Operation, bool]]:
        """The operations between a value and its root, the last first, and whether each is the only way to the root."""
        root, waiting, seen = self.root(value), [-value], {value}
        while (value := -heapq.heappop(waiting)) != root:
            operation = self.graph.producer[value]
            yield operation, not waiting
            read = {i for i in operation.inputs if self.graph.number(i) is None} - seen
            seen |= read
            for i in read:
                heapq.heappush(waiting, -i)

    def _addend_at_the_end(self, function: Function) -> Function | None:
        """The sum that a function ends with, where it is the same for relevance: what is before it can be read then."""
        last = function.operations[-1]
        varying = [value for value in last.inputs if self.graph.number(value) is None]
        if not self._adds_a_number(last) or len(varying) != 1 or not self.graph.is_live(varying[0]):
            return None
        before = self._behind_addends(varying[0])
        return self.behind(function, varying[0]) if before is not None and before.root == function.root else None

    def _is_cut(self, operation: Operation) -> bool:
        return Family.AFFINE in operation.family and self.graph.is_live(operation.outputs[0])

    def _around_what_is_treated(self, function: Function) -> Function | None:
        """The last part of a function that has a treatment, or what comes behind it; a known function has no parts."""
        value = function.output
        while value != function.root:
            before = self.between(function.root, value)
            if before is None:
                return None
            inner = [operation.outputs[0] for operation in before.operations[:-1]]
            behind = [before, *filter(None, (self.behind(before, i) for i in inner))]
            treated = next((part for part in behind if self.treated.intersection(part.names)), None)
            known = next((part for part in behind if part.formula.name in _NAMES), None)
            if treated is not None and (known is None or len(treated.operations) >= len(known.operations)):
                return treated if value == function.output else self.behind(function, value)
            value = (known or behind[-1]).root
        return None

    def _adds_a_number(self, operation: Operation) -> bool:
        is_number = [self.graph.number(value) is not None for value in operation.inputs]
        return Family.ADDITION in operation.family and any(is_number)

    def behind(self, function: Function, value: int) -> Function | None:
        """The part of a function behind an inner value, if that is the only way from the root; None otherwise."""
        behind = self.between(value, function.output)
        if behind is None or any(function.root in operation.inputs for operation in behind.operations):
            return None
        return behind

    def between(self, root: int, output: int) -> Function | None:
        """The operations between two values; None if others than numbers and the root lead to the output."""
        operations: dict[int, Operation] = {}
        waiting = [output]
        while waiting:
            value = waiting.pop()
            if value == root or value in operations or self.graph.number(value) is not None:
                continue
            operation = self.graph.producer.get(value)
            if operation is None or id(operation) in self.apart or not equations.is_elementwise(operation.equation):
                return None
            operations[value] = operation
            waiting.extend(operation.inputs)
        ordered = tuple(operations[value] for value in sorted(operations))  # numbers rise in the order of computing
        return Function(root, output, ordered, self._formula(root, ordered))

    def _formula(self, root: int, operations: Sequence[Operation]) -> Formula:
        places = {root: 0} | {operation.outputs[0]: i + 1 for i, operation in enumerate(operations)}
        steps, key = [], []
        for operation in operations:
            operands: list[Any] = [places.get(value, self.graph.number(value)) for value in operation.inputs]
            steps.append(Step(operation.equation, tuple(operands)))
            params = operation.equation.params
            key.append(
                (
                    operation.name,
                    tuple(i if isinstance(i, int) else (str(i.dtype), i.tobytes()) for i in operands),
                    params.get("y"),
                    operation.equation.outvars[0].aval.dtype,
                )
            )
        return self._formulas.setdefault(tuple(key), Formula(tuple(steps)))
