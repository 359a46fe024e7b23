"""What a single equation of a jaxpr is: a call, an elementwise function, a function that is zero at zero."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
}

ELEMENTWISE = frozenset(
    """
    abs acos acosh add and asin asinh atan atan2 atanh cbrt ceil clamp copy cos cosh digamma div eq erf
    erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le lgamma log log1p logistic lt max min
    mul ne neg nextafter not or pow reduce_precision rem round rsqrt select_n sign sin sinh sqrt square
    stop_gradient sub tan tanh xor convert_element_type
    """.split()
)


_CHECKPOINTS = {"remat2", "checkpoint"}
_TRACING = {"attribution", "inspection", "tracing", "transform"}


def is_checkpoint(equation: Any) -> bool:
    """Whether the equation is a call under `jax.checkpoint`."""
    return equation.primitive.name in _CHECKPOINTS


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


def is_of_user(file_name: str) -> bool:
    """Whether a line of this file may be what a user wants to know: not one of an installed package or of a trace."""
    path = Path(file_name)
    is_tracing = path.parent == Path(__file__).parent and path.stem in _TRACING
    return "site-packages" not in path.parts and not is_tracing


def scan_sizes(equation: Any) -> tuple[int, int]:
    """How many of a scan's operands are constants, and how many are carried; the constants come first."""
    if "num_consts" in equation.params:
        return equation.params["num_consts"], equation.params["num_carry"]
    constants, carries, _ = equation.params["ft_in"].unpack()  # since JAX 0.11
    return len(list(constants)), len(list(carries))


def literal_value(literal: Any) -> np.ndarray:
    """The number that stands in an equation, in its dtype."""
    return np.asarray(literal.val, literal.aval.dtype)


def called_jaxpr(equation: Any) -> core.ClosedJaxpr | None:
    """The program that a call runs, or None if the equation is no call."""
    key = CALLS.get(equation.primitive.name)
    if key is None:
        return None
    called = equation.params[key]
    return called if isinstance(called, core.ClosedJaxpr) else core.ClosedJaxpr(called, ())


def is_elementwise(equation: Any) -> bool:
    """Whether every element of the output depends on the operands' elements at the same place alone.

    A call counts if the function is the same for every element: it holds no arrays.
    """
    called = called_jaxpr(equation)
    if called is None:
        name = equation.primitive.name
        return name in ELEMENTWISE or (name == "broadcast_in_dim" and equation.invars[0].aval.ndim == 0)
    is_one_function = len(called.out_avals) == 1 and all(np.size(constant) == 1 for constant in called.consts)
    return is_one_function and all(is_elementwise(inner) for inner in called.jaxpr.eqns)


def is_relu(equation: Any) -> bool:
    """Whether the equation is max(x, 0), written plainly or as a call."""
    called = called_jaxpr(equation)
    if called is not None:
        return len(called.jaxpr.eqns) == 1 and is_relu(called.jaxpr.eqns[0])
    return equation.primitive.name == "max" and any(
        isinstance(atom, core.Literal) and atom.val == 0 for atom in equation.invars
    )


_NONNEGATIVE = frozenset("abs erfc exp exp2 logistic sqrt square".split())
_KEEPS_SIGN = frozenset(
    """
    add add_any broadcast_in_dim concatenate convert_element_type copy cumsum div dynamic_slice expand_dims expm1 gather
    log1p min mul pad reduce_max reduce_min reduce_precision reduce_sum reduce_window_max reduce_window_min
    reduce_window_sum reshape rev select_n slice sort split squeeze stop_gradient tanh transpose
    """.split()
)


def is_nonnegative(equation: Any, known: Sequence[bool]) -> bool:
    """Whether the outputs cannot be negative.

    Args:
        equation: The equation.
        known: For each operand, whether it is known not to be negative.
    """
    name = name_of(equation)
    called = called_jaxpr(equation)
    if called is not None and name != "softplus":
        return _call_is_nonnegative(called, known)
    if name in {*_NONNEGATIVE, "softplus"} or (name == "integer_pow" and equation.params["y"] % 2 == 0):
        return True
    if name == "max":
        return any(known)
    return name in _KEEPS_SIGN and all(
        is_known or not jnp.issubdtype(atom.aval.dtype, jnp.floating)
        for is_known, atom in zip(known, equation.invars, strict=True)
    )


def _call_is_nonnegative(called: core.ClosedJaxpr, known: Sequence[bool]) -> bool:
    """Whether what a call returns cannot be negative. Its name says nothing: a `square` may have a sign."""
    signs = dict(zip(called.jaxpr.invars, known, strict=True))
    signs.update(dict.fromkeys(called.jaxpr.constvars, False))

    def is_known(atom: Any) -> bool:
        return bool(literal_value(atom) >= 0) if isinstance(atom, core.Literal) else signs[atom]

    for inner in called.jaxpr.eqns:
        signs.update(dict.fromkeys(inner.outvars, is_nonnegative(inner, list(map(is_known, inner.invars)))))
    return all(map(is_known, called.jaxpr.outvars))


def name_of(equation: Any) -> str:
    """The name of the primitive, or of the function that is called."""
    called = called_jaxpr(equation)
    if called is None:
        return equation.primitive.name
    if "name" in equation.params:
        return equation.params["name"]
    return name_of(called.jaxpr.eqns[0]) if len(called.jaxpr.eqns) == 1 else equation.primitive.name


def is_zero_at_zero(equation: Any, live: int, operands: Sequence[Any]) -> bool:
    """Whether an elementwise function maps 0 to 0.

    Args:
        equation: The elementwise equation.
        live: The position of the operand that is set to zero.
        operands: The other operands; None for one whose value is not known before running.

    Returns:
        False also where it cannot be told: an operand is unknown, or more than one number.
    """
    with jax.ensure_compile_time_eval():
        scalars = []
        for i, (operand, atom) in enumerate(zip(operands, equation.invars, strict=True)):
            if i == live:
                scalars.append(jnp.zeros((), atom.aval.dtype))
            elif operand is None or isinstance(operand, jax.core.Tracer) or operand.size != 1:
                return False
            else:
                scalars.append(jnp.reshape(operand, ()))
        return bool(_run_on_scalars(equation, scalars) == 0)


def _run_on_scalars(equation: Any, scalars: Sequence[jax.Array]) -> jax.Array:
    if equation.primitive.name == "broadcast_in_dim":
        return scalars[0]
    called = called_jaxpr(equation)
    if called is None:
        return run(equation, *scalars)[0]
    values = dict(zip(called.jaxpr.invars, scalars, strict=True))
    values.update(zip(called.jaxpr.constvars, called.consts, strict=True))

    def read(atom: Any) -> Any:
        return literal_value(atom) if isinstance(atom, core.Literal) else values[atom]

    for inner in called.jaxpr.eqns:
        values[inner.outvars[0]] = _run_on_scalars(inner, [read(atom) for atom in inner.invars])
    return read(called.jaxpr.outvars[0])
