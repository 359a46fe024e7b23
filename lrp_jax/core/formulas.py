"""Functions of one number, which are told by their values, however they are written."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax.core import equations, primitives
from lrp_jax.core.primitive import Family, Primitive
from lrp_jax.core.primitives import erf, logistic, named

_SMALL, _LARGE = np.geomspace(1e-3, 30, 25), np.array([1e2, 1e3, 1e4, 1e6])
GRID = np.concatenate([-_LARGE[::-1], -_SMALL[::-1], np.linspace(-4, 4, 33), _SMALL, _LARGE])
"""The numbers on which functions are compared."""

POSITIVE = np.geomspace(1e-4, 1e4, 33)
"""Positive numbers, in rising order."""

_HUGE = np.geomspace(1e8, 1e30, 12)
_OVERFLOW = 1e3  # a number from which exp is infinite
_STEP = 1e-3  # of differences in place of derivatives, in double precision

_KNOWN: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
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

KNOWN_NAMES = frozenset(name.partition(" ")[0] for name in _KNOWN)
"""The names of functions that are known by their values, under which a treatment of one's own is given."""


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

    @property
    def primitive(self) -> Primitive:
        """What is known of the primitive."""
        return named(self.name)

    @property
    def key(self) -> Any:
        """What it has in common with every step that computes the same."""
        operands = tuple(i if isinstance(i, int) else (str(i.dtype), i.tobytes()) for i in self.operands)
        return self.name, operands, self.equation.params.get("y"), self.dtype

    @property
    def dtype(self) -> Any:
        """The dtype of what it returns, in the function itself."""
        return self.equation.outvars[0].aval.dtype

    @property
    def is_affine(self) -> bool:
        """Whether it multiplies with a number or adds one, or leaves what it is given."""
        return is_affine(self.equation, [isinstance(i, int) for i in self.operands])

    def run(self, values: Sequence[Any] | Mapping[int, Any], dtype: Any = np.float64) -> np.ndarray:
        """Applies the operation to numbers."""
        operands = [values[i] if isinstance(i, int) else _cast(i, dtype) for i in self.operands]
        if self.primitive.compute is not None:
            found = self.primitive.compute(*operands)
        elif self.name == "integer_pow":
            found = operands[0] ** np.asarray(self.equation.params["y"], dtype)
        elif Family.IDENTITY in self.primitive.family:
            (found,) = operands
            if jnp.issubdtype(self.dtype, jnp.integer) and np.asarray(found).dtype.kind == "f":
                found = np.trunc(found)
        else:
            found = self._run_in_jax(operands)
        return np.asarray(found, np.bool_ if self.dtype == jnp.bool_ else dtype)

    def _run_in_jax(self, operands: Sequence[Any]) -> Any:
        shape = np.broadcast_shapes(*map(np.shape, operands))
        dtypes = [atom.aval.dtype for atom in self.equation.invars]
        with jax.ensure_compile_time_eval():
            arrays = [jnp.broadcast_to(jnp.asarray(x, dtype), shape) for x, dtype in zip(operands, dtypes, strict=True)]
            return np.asarray(equations.run(self.equation, *arrays)[0])

    def degree(self, degrees: Sequence[float]) -> float:
        """Of what degree its value is in u between kinks and jumps, from the degrees of the values."""
        of_operands = [degrees[i] if isinstance(i, int) else 0 for i in self.operands]
        family = self.primitive.family
        if self.dtype == jnp.bool_ or (Family.STEP in family and Family.IDENTITY not in family):
            return 0
        if family & (Family.PIECEWISE_LINEAR | Family.IDENTITY):
            return max(of_operands)
        if self.name == "mul" or (self.name == "div" and not of_operands[1]):
            return sum(of_operands)
        return math.inf if any(of_operands) else 0


def is_affine(equation: Any, varies: Sequence[bool]) -> bool:
    """Whether an elementwise equation multiplies with numbers and adds them, or leaves what it is given."""
    family, is_quotient = primitives.family_of(equation), equation.primitive.name == "div"
    if Family.IDENTITY in family:
        return Family.STEP not in family
    return Family.AFFINE in family and sum(varies) == 1 and not (is_quotient and varies[1])


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

    def of(self, inner: "Formula") -> "Formula":
        """The function f(g(u)), where g is another one."""
        start = len(inner.steps)
        moved = [tuple(i + start if isinstance(i, int) else i for i in step.operands) for step in self.steps]
        return Formula((*inner.steps, *(Step(step.equation, at) for step, at in zip(self.steps, moved, strict=True))))

    @functools.cached_property
    def name(self) -> str:
        """The name of f if it has one: "relu", "gelu", "sigmoid"; else that of its operation, if there is only one."""
        found = self(GRID)
        for name, known in _KNOWN.items():
            with np.errstate(all="ignore"):
                expected = known(GRID)
            if _agree(found, expected):
                return name.partition(" ")[0]
        return self.steps[-1].name if len(self.steps) == 1 else ""

    @functools.cached_property
    def is_constant(self) -> bool:
        """Whether f has the same value for every u."""
        found = self(np.concatenate([-_HUGE, GRID, _HUGE]))
        return bool(np.isfinite(found[0]) and np.all(found == found[0]))

    @functools.cached_property
    def is_affine(self) -> bool:
        """Whether every operation adds a number or multiplies with one."""
        return all(step.is_affine for step in self.steps)

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
            degrees.append(step.degree(degrees))
        return degrees

    @functools.cached_property
    def at_zero(self) -> float:
        """f(0)."""
        return float(self(np.zeros(1))[0])

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


def _agree(found: np.ndarray, expected: np.ndarray) -> bool:
    """Whether two functions have the same values on the grid, up to rounding and overflow."""
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
