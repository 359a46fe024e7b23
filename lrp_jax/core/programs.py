"""Traced programs that are told apart by their text, with the arrays that they hold as arguments.

JAX finds a compiled function again by the Python function that it was made of, and keeps the arrays that this function
had read when it was traced. A `Program` is found again by what it computes: by its primitives, their parameters, their
wiring, and the shapes and dtypes of its values. The arrays that the function had read are no part of it.
"""

import functools
import hashlib
import inspect
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var, jaxpr_as_fun
from jax.sharding import PartitionSpec

from lrp_jax.core.arguments import within_memory
from lrp_jax.core.equations import PieceName


@dataclass(frozen=True)
class Program:
    """A traced function without the arrays that it holds. Programs are equal if their texts are.

    Attributes:
        jaxpr: What it computes. The arrays that it holds are its constants; programs within it hold none.
        text: What it says.
        treatments: Those that `lrp_jax.mark.piece` has put into it.
    """

    jaxpr: Jaxpr = field(compare=False, repr=False)
    text: "Text"
    treatments: tuple[Any, ...] = field(default=(), compare=False, repr=False)

    def closed(self, arrays: Sequence[Any]) -> ClosedJaxpr:
        """The program with arrays in place of those that it held."""
        return ClosedJaxpr(self.jaxpr, arrays)

    def run(self, arrays: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        """Runs the program with arrays in place of those that it held."""
        return jaxpr_as_fun(self.closed(arrays))(*inputs)


class Text:
    """What a program says, as a tree of tuples whose hash is computed once."""

    __slots__ = ("_hash", "_words")

    def __init__(self, words: tuple[Any, ...]) -> None:
        self._words = words
        self._hash = hash(words)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Text) and self._hash == other._hash and self._words == other._words

    def __repr__(self) -> str:
        return f"Text({self.digest()[:16]})"

    def digest(self) -> str:
        """The SHA-256 of the text; the same in every process."""
        return hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", repr(self._words)).encode()).hexdigest()


def take_apart(closed: ClosedJaxpr) -> tuple[Program, list[Any]]:
    """Separates a traced function from the arrays that it holds, at whatever depth of the calls within it.

    Args:
        closed: The traced function.

    Returns:
        The program, and its arrays.

    Example:
        >>> def program_with(weight):
        ...     inner = jax.jit(lambda x: x * weight)
        ...     return take_apart(jax.make_jaxpr(lambda x: inner(x))(1.0))
        >>> (first, [one]), (second, [two]) = program_with(jnp.ones(2)), program_with(2 * jnp.ones(2))
        >>> first == second, two
        (True, Array([2., 2.], dtype=float32))
    """
    lifter = _Lifter()
    jaxpr = lifter.lift(closed)
    arrays = [lifter.arrays[identity] for identity in lifter.order]
    writer = _Writer()
    return Program(jaxpr, Text(writer.words(jaxpr)), tuple(writer.treatments)), arrays


@dataclass(frozen=True)
class Computation:
    """A function that was traced once: what it had read then are arguments of a compiled program.

    Attributes:
        program: What it computes.
        arrays: The arrays that it holds.
        value: The shapes and dtypes of its value.
        name: Its name.
    """

    program: Program
    arrays: Sequence[Any]
    value: Any
    name: str

    def __call__(self, *args: Any) -> Any:
        """Runs the function; compiles it unless a program of the same text was compiled before."""
        with within_memory("What is computed"):
            outputs = _runner(self.name)(self.program, list(self.arrays), jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(self.value), outputs)


def computation(fun: Callable[..., Any], *args: Any) -> Computation:
    """Traces a function for arguments of given shapes.

    Args:
        fun: The function.
        *args: Arguments: pytrees of arrays, or of `jax.ShapeDtypeStruct`.

    Returns:
        The function for arguments of these shapes.
    """
    closed, shapes = jax.make_jaxpr(lambda *args: fun(*args), return_shape=True)(*args)  # JAX knows no new function
    program, arrays = take_apart(closed)
    return Computation(program, arrays, shapes, _name_of(fun))


def run_compiled(fun: Callable[..., Any], *args: Any) -> Any:
    """As `jax.jit(fun)(*args)`, for a function that may be defined anew for each call and may read what has changed.

    It is traced at each call, and compiled only if its text is new.

    Args:
        fun: The function.
        *args: Pytrees of arrays.

    Returns:
        Its value.

    Example:
        >>> weights = {"w": jnp.ones(2)}
        >>> run = lambda x: run_compiled(lambda x: x * weights["w"], x)
        >>> run(3.0)
        Array([3., 3.], dtype=float32)
        >>> weights["w"] = 2 * jnp.ones(2)
        >>> run(3.0)
        Array([6., 6.], dtype=float32)
    """
    return computation(fun, *args)(*args)


@functools.cache
def _runner(name: str) -> Callable[[Program, list[Any], list[Any]], list[Any]]:
    """Runs compiled programs under the name that profilers show."""

    def run(program: Program, arrays: list[Any], inputs: list[Any]) -> list[Any]:
        return program.run(arrays, inputs)

    run.__name__ = name
    return jax.jit(run, static_argnums=0)


def _name_of(fun: Any) -> str:
    while isinstance(fun, functools.partial):
        fun = fun.func
    return getattr(fun, "__name__", type(fun).__name__)


# Arrays within a program become its own constants.


@dataclass(frozen=True)
class _Lifted:
    """A program whose first inputs are the arrays that it held, and which these are, by identity."""

    jaxpr: Jaxpr
    held: tuple[int, ...]


class _Lifter:
    def __init__(self) -> None:
        self.arrays: dict[int, Any] = {}
        self.order: list[int] = []
        self._known: dict[int, tuple[Any, _Lifted]] = {}  # with the program, so that it keeps its identity

    def lift(self, closed: ClosedJaxpr) -> Jaxpr:
        """The outermost program, with everything that is held within as its constants."""
        lifted = self._lifted(closed)
        self.order = list(lifted.held)
        number = len(lifted.held)
        variables = lifted.jaxpr.invars
        if not number:
            return lifted.jaxpr
        return lifted.jaxpr.replace(constvars=variables[:number], invars=variables[number:])

    def _lifted(self, jaxpr: ClosedJaxpr | Jaxpr) -> _Lifted:
        if id(jaxpr) not in self._known:
            self._known[id(jaxpr)] = jaxpr, self._lift(jaxpr)
        return self._known[id(jaxpr)][1]

    def _lift(self, jaxpr: ClosedJaxpr | Jaxpr) -> _Lifted:
        constants = jaxpr.consts if isinstance(jaxpr, ClosedJaxpr) else ()
        inner = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
        variables: dict[int, Var] = {}  # of the arrays that are held here
        same: dict[Var, Var] = {}  # an array that is held twice is held once
        for variable, constant in zip(inner.constvars, constants, strict=False):
            self.arrays[id(constant)] = constant
            same[variable] = variables.setdefault(id(constant), variable)
        equations = [self._lift_equation(equation, variables) for equation in inner.eqns]
        if all(new is old for new, old in zip(equations, inner.eqns, strict=True)) and not variables:
            return _Lifted(inner, ())
        twice = {variable: first for variable, first in same.items() if variable is not first}
        if twice:
            equations = [equation.replace(invars=_replaced(equation.invars, twice)) for equation in equations]
        lifted = inner.replace(
            constvars=[],
            invars=[*variables.values(), *inner.invars],
            outvars=_replaced(inner.outvars, twice),
            eqns=equations,
        )
        return _Lifted(lifted, tuple(variables))

    def _lift_equation(self, equation: Any, variables: dict[int, Var]) -> Any:
        """The equation with what is held in the programs that it runs as further operands."""
        lift = _LIFTS.get(equation.primitive.name)
        inner = {
            name: [self._lifted(jaxpr) for jaxpr in (value if isinstance(value, tuple) else (value,))]
            for name, value in equation.params.items()
            if lift is not None and _is_program(value)
        }
        if lift is None or not any(lifted.held for programs in inner.values() for lifted in programs):
            return equation

        def operands(identities: Sequence[int]) -> list[Var]:
            for identity in identities:
                if identity not in variables:
                    variables[identity] = Var(jax.typeof(self.arrays[identity]))
            return [variables[identity] for identity in identities]

        invars, params = lift(equation, inner, operands)
        return equation.replace(invars=invars, params={**equation.params, **params})


def _replaced(atoms: Sequence[Any], by: Mapping[Var, Var]) -> list[Any]:
    return [atom if isinstance(atom, Literal) else by.get(atom, atom) for atom in atoms]


def _is_program(value: Any) -> bool:
    values = value if isinstance(value, tuple) and value else (value,)
    return all(isinstance(leaf, ClosedJaxpr | Jaxpr) for leaf in values)


_Lift = Callable[[Any, Mapping[str, list[_Lifted]], Callable[[Sequence[int]], list[Var]]], tuple[list[Any], dict]]


def _lift_call(equation: Any, inner: Any, operands: Any) -> tuple[list[Any], dict[str, Any]]:
    ((name, (lifted,)),) = inner.items()
    number = len(lifted.held)
    params: dict[str, Any] = {name: _like(equation.params[name], lifted.jaxpr)}
    if "num_consts" in equation.params:
        params["num_consts"] = equation.params["num_consts"] + number
    added = {"in_layouts": None, "donated_invars": False, "in_specs": PartitionSpec()}
    if "in_shardings" in equation.params:
        added["in_shardings"] = _unspecified()
    for key, value in added.items():
        if key in equation.params:
            params[key] = (value,) * number + tuple(equation.params[key])
    if isinstance(equation.params.get("prevent_cse"), tuple):
        params["prevent_cse"] = (True,) * number + equation.params["prevent_cse"]
    return [*operands(lifted.held), *equation.invars], params


def _lift_while(equation: Any, inner: Any, operands: Any) -> tuple[list[Any], dict[str, Any]]:
    params: dict[str, Any] = {}
    invars: list[Any] = []
    start = 0
    for part in ("cond", "body"):
        (lifted,) = inner[f"{part}_jaxpr"]
        number = equation.params[f"{part}_nconsts"]
        params[f"{part}_jaxpr"] = ClosedJaxpr(lifted.jaxpr, ())
        params[f"{part}_nconsts"] = number + len(lifted.held)
        invars += [*operands(lifted.held), *equation.invars[start : start + number]]
        start += number
    return [*invars, *equation.invars[start:]], params


def _lift_cond(equation: Any, inner: Any, operands: Any) -> tuple[list[Any], dict[str, Any]]:
    """All branches take the arrays of all."""
    held = list(dict.fromkeys(identity for lifted in inner["branches"] for identity in lifted.held))
    variables = operands(held)

    def branch(lifted: _Lifted) -> ClosedJaxpr:
        own = dict(zip(lifted.held, lifted.jaxpr.invars, strict=False))
        taken = [own.get(i) or Var(variable.aval) for i, variable in zip(held, variables, strict=True)]
        return ClosedJaxpr(lifted.jaxpr.replace(invars=[*taken, *lifted.jaxpr.invars[len(lifted.held) :]]), ())

    index, *others = equation.invars
    return [index, *variables, *others], {"branches": tuple(map(branch, inner["branches"]))}


def _like(given: ClosedJaxpr | Jaxpr, jaxpr: Jaxpr) -> ClosedJaxpr | Jaxpr:
    return ClosedJaxpr(jaxpr, ()) if isinstance(given, ClosedJaxpr) else jaxpr


@functools.cache
def _unspecified() -> Any:
    """What JAX writes where the sharding of an operand is left open."""
    (equation,) = jax.make_jaxpr(jax.jit(lambda x: x + 1))(0).jaxpr.eqns
    return equation.params["in_shardings"][0]


# What an operation that is not listed here holds stays in it, and the values are part of the text.
_LIFTS: dict[str, _Lift] = {
    **dict.fromkeys(
        ("jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call"),
        _lift_call,
    ),
    "shard_map": _lift_call,
    "scan": _lift_call,
    "while": _lift_while,
    "cond": _lift_cond,
}


# What a program says.

# How a derivative is computed does not change what is computed, nor does where to remember values on the way.
_UNREAD = frozenset("jvp_jaxpr_fun fwd_jaxpr_thunk bwd out_trees policy debug_info logging_record".split())


@dataclass(frozen=True)
class _Same:
    """Something that equals nothing but itself."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)

    def __repr__(self) -> str:
        return f"{type(self.value).__name__} {getattr(self.value, '__qualname__', '')}"


class _Writer:
    def __init__(self) -> None:
        self.treatments: list[Any] = []
        self._known: dict[int, tuple[Any, Any]] = {}
        self._stacks: dict[int, tuple[Any, str]] = {}

    def words(self, jaxpr: Jaxpr) -> tuple[Any, ...]:
        """The text of a program."""
        numbers: dict[Any, int] = {}

        def atom(atom: Any) -> Any:
            if isinstance(atom, Literal):
                return self._value(atom.val), atom.aval
            if atom not in numbers:
                numbers[atom] = len(numbers)
                return numbers[atom], atom.aval
            return numbers[atom]

        return (
            tuple(map(atom, jaxpr.constvars)),
            tuple(map(atom, jaxpr.invars)),
            tuple(
                (
                    equation.primitive.name,
                    self._stack(equation.source_info.name_stack),
                    tuple(map(atom, equation.invars)),
                    tuple(map(atom, equation.outvars)),
                    *(
                        (name, self._value(value))
                        for name, value in sorted(equation.params.items())
                        if name not in _UNREAD
                    ),
                )
                for equation in jaxpr.eqns
            ),
            tuple(map(atom, jaxpr.outvars)),
        )

    def _stack(self, stack: Any) -> str:
        if id(stack) not in self._stacks:
            self._stacks[id(stack)] = stack, str(stack)
        return self._stacks[id(stack)][1]

    def _value(self, value: Any) -> Any:
        if isinstance(value, PieceName):
            self.treatments.append(value.treatment)
            return str(value), *(self._value(getattr(value.treatment, part.name)) for part in fields(value.treatment))
        if value is None or isinstance(value, str | bytes):
            return value
        if isinstance(value, bool | int | float | complex):
            return type(value).__name__, repr(value)  # 1, 1.0 and True are equal, and so are 0.0 and -0.0
        if isinstance(value, tuple | list):
            return type(value).__name__, *map(self._value, value)
        if isinstance(value, Mapping):
            return "dict", *((self._value(key), self._value(item)) for key, item in value.items())
        if isinstance(value, set | frozenset):
            return "set", *sorted(map(repr, value))
        if isinstance(value, ClosedJaxpr | Jaxpr):
            return self._program(value)
        if isinstance(value, np.ndarray | np.generic) and value.ndim == 0:
            return str(value.dtype), value.tobytes()
        if isinstance(value, jax.Array | np.ndarray):
            return array_digest(value)
        if inspect.isfunction(value) or isinstance(value, types.MethodType | functools.partial):
            return self._function(value)
        try:
            hash(value)
        except TypeError:
            return _Same(value)
        return value

    def _program(self, value: ClosedJaxpr | Jaxpr) -> Any:
        if id(value) not in self._known:
            jaxpr = value.jaxpr if isinstance(value, ClosedJaxpr) else value
            constants = value.consts if isinstance(value, ClosedJaxpr) else ()
            said = (self.words(jaxpr), *map(array_digest, constants))
            self._known[id(value)] = value, said
        return self._known[id(value)][1]

    def _function(self, function: Any) -> Any:
        """A function by its code and what it closes over; two that were defined by the same line may be equal."""
        if isinstance(function, functools.partial):
            return "partial", *map(self._value, (function.func, function.args, function.keywords))
        if isinstance(function, types.MethodType):
            return self._function(function.__func__), _Same(function.__self__)
        cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
        held = [*cells, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        return _Code(function.__code__), *(
            self._value(value) if isinstance(value, str | bool | int | float | tuple) else _Same(value)
            for value in held
        )


@dataclass(frozen=True)
class _Code:
    code: types.CodeType

    def __repr__(self) -> str:
        return self.code.co_qualname


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018  # raises if there is nothing in it
    except ValueError:
        return False
    return True


def array_digest(array: Any) -> tuple[str, ...]:
    """An array's dtype, its shape, and the SHA-256 of its values; a tracer, which has no values, is only itself."""
    if isinstance(array, jax.core.Tracer):
        return "tracer", _Same(array)  # type: ignore[return-value]  # is no text either
    is_key = jnp.issubdtype(jnp.result_type(array), jax.dtypes.prng_key)
    values = np.asarray(jax.random.key_data(array) if is_key else array)
    return str(values.dtype), str(values.shape), hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
