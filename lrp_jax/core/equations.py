"""What a single equation of a jaxpr is: a call, an elementwise operation, a mark."""

import enum
import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.extend import core

_LIBRARY = Path(__file__).parents[1]
_MARK = "lrp_jax.mark."
_TRANSFORMED = re.compile(r"\b(?:vmap|jvp|transpose|jit|pmap|checkpoint|rematted_computation)\(([^()]*)\)")


class Mark(enum.Enum):
    """What a user says of a value, with the functions of `lrp_jax.mark`. In a program it is the name of the value."""

    GATE = "gate"
    SIGNAL = "signal"
    HELD = "held"
    LAYER = "layer"
    NO_LAYER = "no_layer"
    INPUT = "input"
    PIECE = "piece"

    @property
    def name_of_value(self) -> str:
        """The name under which a value with this mark stands in a program."""
        return _MARK + self.value


class PieceName(str):
    """The name of what a function under `lrp_jax.mark.piece` returns.

    Attributes:
        treatment: The treatment of the piece.
    """

    treatment: Any

    def __new__(cls, treatment: Any) -> "PieceName":
        name = super().__new__(cls, Mark.PIECE.name_of_value)
        name.treatment = treatment
        return name


def mark_of(equation: Any) -> Mark | None:
    """What an equation says of its value; None if it is no mark."""
    name = equation.params["name"] if equation.primitive.name == "name" else ""
    return Mark(name.removeprefix(_MARK)) if name.startswith(_MARK) else None


def is_held(equation: Any) -> bool:
    """Whether an equation in a graph is that of `lrp_jax.core.forms.hold`, as all other calls are looked into."""
    return equation.primitive.name == "custom_vjp_call"


def treatment_of_call(called: core.ClosedJaxpr) -> Any:
    """The treatment of a call that `lrp_jax.mark.piece` has made; None for every other one."""
    names = {equation.outvars[0]: equation.params["name"] for equation in called.jaxpr.eqns if mark_of(equation)}
    found = [None if isinstance(atom, core.Literal) else names.get(atom) for atom in called.jaxpr.outvars]
    first = found[0] if found else None
    return first.treatment if isinstance(first, PieceName) and all(name is first for name in found) else None


def has_side_effect(equation: Any) -> bool:
    """Whether the equation does something besides its outputs, such as printing; naming an axis of a map is none."""
    return any(type(effect).__name__ != "NamedAxisEffect" for effect in equation.effects)


def run(equation: Any, *values: Any, **changed: Any) -> list[Any]:
    """Applies an equation to values, with JAX's own derivative; parameters can be changed by name."""
    primitive = equation.primitive
    outputs = primitive.bind(*values, **primitive.get_bind_params(equation.params | changed))
    return outputs if primitive.multiple_results else [outputs]


def location(equation: Any) -> str:
    """The innermost line outside of installed packages that an equation comes from; empty if there is none."""
    traceback = equation.source_info.traceback
    for frame in traceback.frames if traceback is not None else ():
        if is_of_user(frame.file_name):
            return f"{frame.file_name}:{frame.line_num} ({frame.function_name})"
    return ""


def module(equation: Any) -> str:
    """The path of the module that an equation is in, where the program carries it; empty otherwise.

    Names of transformations are left out: within `jax.vmap`, the path of "Dense_0" is written "vmap(Dense_0)".
    """
    path, bare = "", str(equation.source_info.name_stack)
    while path != bare:
        path, bare = bare, _TRANSFORMED.sub(r"\1", bare)
    return path.strip("/")


@functools.lru_cache(maxsize=1024)
def is_of_user(file_name: str) -> bool:
    """Whether a line of this file may be what a user wants to know: not one of an installed package or of a trace."""
    path = Path(file_name)
    return "site-packages" not in path.parts and not path.is_relative_to(_LIBRARY)


def axes_named(equation: Any) -> set[str]:
    """The axes of a map or a mesh along which the equation reads what others hold."""
    found = {effect.name for effect in equation.effects if type(effect).__name__ == "NamedAxisEffect"}
    for key in ("axes", "axis_name"):
        named = equation.params.get(key, ())
        found.update(name for name in (named if isinstance(named, tuple) else (named,)) if isinstance(name, str))
    return found


def literal_value(literal: Any) -> np.ndarray:
    """The number that stands in an equation, in its dtype."""
    return np.asarray(literal.val, literal.aval.dtype)


def evaluate(closed: core.ClosedJaxpr, atom: Any, arguments: Sequence[Any]) -> Any:
    """The value of a variable of a program, of which no more is run than it takes.

    Args:
        closed: The program.
        atom: The variable, or a number.
        arguments: The program's arguments, which are no tracers.

    Returns:
        The value; None if it depends on a value that is not known.
    """
    jaxpr = closed.jaxpr
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*closed.consts, *arguments), strict=True))
    if isinstance(atom, core.Literal):
        return atom.val
    needed = {atom}
    run_equations = []
    for equation in reversed(jaxpr.eqns):
        if needed.intersection(equation.outvars):
            needed.update(variable for variable in equation.invars if not isinstance(variable, core.Literal))
            run_equations.append(equation)
    if any(isinstance(values.get(variable), jax.core.Tracer) for variable in needed):
        return None
    with jax.ensure_compile_time_eval():
        for equation in reversed(run_equations):
            operands = [v.val if isinstance(v, core.Literal) else values[v] for v in equation.invars]
            values.update(zip(equation.outvars, run(equation, *operands), strict=True))
    return values[atom]
