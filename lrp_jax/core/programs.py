"""Traced programs that are told apart by their text, with the arrays that they hold as arguments.

JAX finds a compiled function again by the Python function that it was made of, and keeps the arrays that this function
had read when it was traced. A `Program` is found again by what it computes: by its primitives, their parameters, their
wiring, and the shapes and dtypes of its values. The arrays that the function had read are no part of it.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var, jaxpr_as_fun

from lrp_jax.core.arguments import within_memory
from lrp_jax.core.control import with_operands
from lrp_jax.core.primitives import may_take_operands
from lrp_jax.core.text import Text, text_of


@dataclass(frozen=True)
class Program:
    """A traced function without the arrays that it holds. Programs are equal if their texts are.

    Attributes:
        jaxpr: What it computes. The arrays that it holds are its constants; programs within it hold none.
        text: What it says.
        treatments: Those that `lrp_jax.mark.piece` has put into it.
    """

    jaxpr: Jaxpr = field(compare=False, repr=False)
    text: Text
    treatments: tuple[Any, ...] = field(default=(), compare=False, repr=False)

    def closed(self, arrays: Sequence[Any]) -> ClosedJaxpr:
        """The program with arrays in place of those that it held."""
        return ClosedJaxpr(self.jaxpr, arrays)

    def run(self, arrays: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        """Runs the program with arrays in place of those that it held."""
        return jaxpr_as_fun(self.closed(arrays))(*inputs)


def take_apart(closed: ClosedJaxpr) -> tuple[Program, list[Any]]:
    """Separates a traced function from the arrays that it holds, at whatever depth of the calls within it.

    Args:
        closed: The traced function.

    Returns:
        The program, and its arrays.

    Example:
        >>> import jax.numpy as jnp
        >>> def program_with(weight):
        ...     inner = jax.jit(lambda x: x * weight)
        ...     return take_apart(jax.make_jaxpr(lambda x: inner(x))(1.0))
        >>> (first, [one]), (second, [two]) = program_with(jnp.ones(2)), program_with(2 * jnp.ones(2))
        >>> first == second, two
        (True, Array([2., 2.], dtype=float32))
    """
    lifter = _Lifter()
    lifted = lifter.lift(closed)
    number, variables = len(lifted.held), lifted.jaxpr.invars
    jaxpr = lifted.jaxpr.replace(constvars=variables[:number], invars=variables[number:]) if number else lifted.jaxpr
    return Program(jaxpr, *text_of(jaxpr)), [lifter.arrays[identity] for identity in lifted.held]


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
        >>> import jax.numpy as jnp
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
        self._known: dict[int, tuple[Any, _Lifted]] = {}  # with the program, so that it keeps its identity

    def lift(self, jaxpr: ClosedJaxpr | Jaxpr) -> _Lifted:
        """A program with everything that is held within it as its first inputs."""
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
        if not may_take_operands(equation):
            return equation
        inner = {
            name: [self.lift(jaxpr) for jaxpr in (value if isinstance(value, tuple) else (value,))]
            for name, value in equation.params.items()
            if _is_program(value)
        }
        held = dict.fromkeys(identity for programs in inner.values() for lifted in programs for identity in lifted.held)
        if not held:
            return equation
        for identity in held:
            if identity not in variables:
                variables[identity] = Var(jax.typeof(self.arrays[identity]))
        operands = {identity: variables[identity] for identity in held}
        programs = {name: _taking(operands, equation.params[name], lifted) for name, lifted in inner.items()}
        return with_operands(equation, programs, list(operands.values()))


def _replaced(atoms: Sequence[Any], by: Mapping[Var, Var]) -> list[Any]:
    return [atom if isinstance(atom, Literal) else by.get(atom, atom) for atom in atoms]


def _is_program(value: Any) -> bool:
    values = value if isinstance(value, tuple) and value else (value,)
    return all(isinstance(leaf, ClosedJaxpr | Jaxpr) for leaf in values)


def _taking(operands: Mapping[int, Var], given: Any, programs: Sequence[_Lifted]) -> Any:
    """Programs in the form in which they were given, of which each takes all operands first."""

    def taking(lifted: _Lifted) -> Jaxpr:
        own = dict(zip(lifted.held, lifted.jaxpr.invars, strict=False))
        taken = [own.get(identity) or Var(variable.aval) for identity, variable in operands.items()]
        return lifted.jaxpr.replace(invars=[*taken, *lifted.jaxpr.invars[len(own) :]])

    if isinstance(given, tuple):
        return tuple(_like(one, taking(lifted)) for one, lifted in zip(given, programs, strict=True))
    return _like(given, taking(programs[0]))


def _like(given: ClosedJaxpr | Jaxpr, jaxpr: Jaxpr) -> ClosedJaxpr | Jaxpr:
    return ClosedJaxpr(jaxpr, ()) if isinstance(given, ClosedJaxpr) else jaxpr
