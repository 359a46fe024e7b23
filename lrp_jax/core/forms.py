"""The two forms in which relevance travels backwards, and the identities that convert between them.

A cotangent c of a value a is either the relevance R itself or the ratio R / a. Ratios make every linear operation split
relevance in proportion by its ordinary gradient; relevance is needed where a value of zero may carry some.
"""

import enum
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from lrp_jax.errors import InputError

RELATIVE_STABILIZER = 1e-6
"""What a denominator is kept away from zero by if nothing else is said, in units of its root mean square."""


class Form(enum.Enum):
    """The form of a cotangent."""

    RATIO = "ratio"
    RELEVANCE = "relevance"


def stabilize(z: jax.Array, epsilon: float | jax.Array) -> jax.Array:
    """Moves a denominator away from zero: z + epsilon * sign(z), with sign(0) = +1.

    Args:
        z: Real array of any shape.
        epsilon: Distance by which every element moves.

    Returns:
        Array of the shape and dtype of `z`; nowhere zero if `epsilon` is positive.

    Example:
        >>> stabilize(jnp.array([2.0, 0.0, -2.0]), 0.5)
        Array([ 2.5,  0.5, -2.5], dtype=float32)
    """
    return z + jnp.where(z < 0, -epsilon, epsilon).astype(z.dtype)


def divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """Divides with 0 / 0 = 0, and with 0 wherever the denominator is zero."""
    is_zero = denominator == 0
    return jnp.where(is_zero, 0, numerator / jnp.where(is_zero, 1, denominator))


def convert(value: jax.Array, arriving: Form, wanted: Form) -> jax.Array:
    """Returns `value`; on the way back its cotangent changes from the form `arriving` to `wanted`."""
    if arriving is wanted:
        return value
    return _ratio_to_relevance(value) if wanted is Form.RELEVANCE else _relevance_to_ratio(value)


@jax.custom_vjp
def _ratio_to_relevance(value: jax.Array) -> jax.Array:
    return value


_ratio_to_relevance.defvjp(lambda value: (value, value), lambda value, ratio: (ratio * value,))


@jax.custom_vjp
def _relevance_to_ratio(value: jax.Array) -> jax.Array:
    return value


_relevance_to_ratio.defvjp(lambda value: (value, value), lambda value, relevance: (divide(relevance, value),))


@jax.custom_jvp
def guard(explained: Sequence[jax.Array], others: Sequence[jax.Array]) -> list[jax.Array]:
    """Returns the explained arguments, and sees to it that nothing is differentiated but these, and only backwards.

    Raises:
        InputError: If the function is differentiated with regard to one of `others`, or in forward mode.
    """
    return list(explained)


@functools.partial(guard.defjvp, symbolic_zeros=True)
def _guard_jvp(primals: Any, tangents: Any) -> tuple[list[jax.Array], list[Any]]:
    (explained, _), (directions, others) = primals, tangents
    if not all(isinstance(other, SymbolicZero) for other in others):
        raise InputError(
            "The derivative of an lrp() function is relevance, which is defined for the explained arguments (argnums) "
            "alone. For a gradient with regard to parameters differentiate the original function, or a quantity "
            "computed from the relevance."
        )
    return list(explained), [
        direction if isinstance(direction, SymbolicZero) else _only_backwards.bind(direction)
        for direction in directions
    ]


def _refuse_forward_mode(*_: Any, **__: Any) -> Any:
    raise InputError(
        "Relevance is propagated backwards, and jax.jvp, jax.jacfwd and what jax.linearize returns go forwards. "
        "Differentiate an lrp() function with jax.grad, jax.vjp or jax.jacrev."
    )


# The identity of tangents. Reverse mode transposes it before it runs, and forward mode comes to run it.
_only_backwards = Primitive("only_backwards")
_only_backwards.def_impl(_refuse_forward_mode)
_only_backwards.def_abstract_eval(lambda direction: direction)
ad.primitive_jvps[_only_backwards] = _refuse_forward_mode
ad.primitive_transposes[_only_backwards] = lambda cotangent, _: [cotangent]
batching.defvectorized(_only_backwards)
mlir.register_lowering(_only_backwards, _refuse_forward_mode)


@jax.custom_vjp
def hold(value: jax.Array) -> jax.Array:
    """Returns `value`, through which no relevance flows back. Unlike `stop_gradient` it keeps second derivatives."""
    return value


def _no_cotangent(value: jax.Array, cotangent: Any) -> tuple[None]:
    return (None,)


hold.defvjp(lambda value: (value, value), _no_cotangent)


def tap(value: jax.Array, relevance: jax.Array, form: Form, mask: jax.Array | None = None) -> jax.Array:
    """Returns `value`; on the way back its relevance is also the cotangent of `relevance`.

    Args:
        value: Any value between two pieces.
        relevance: Zeros in the shape of `value`.
        form: The form in which the cotangent of `value` arrives.
        mask: Factors for the relevance that goes on; broadcasts to `value`.
    """
    return _tap(form, value, relevance, jnp.ones((), value.dtype) if mask is None else mask)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tap(form: Form, value: jax.Array, relevance: jax.Array, mask: jax.Array) -> jax.Array:
    return value


def _tap_back(form: Form, residuals: Any, cotangent: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    value, mask = residuals
    cotangent = (cotangent * mask).astype(value.dtype)
    if form is Form.RELEVANCE:
        return cotangent, cotangent, None
    return cotangent, jnp.where(cotangent == 0, 0, cotangent * value), None  # a value may be infinite behind a mask


_tap.defvjp(lambda form, value, relevance, mask: (value, (value, mask)), _tap_back)
