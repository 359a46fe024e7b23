"""Marks: what a user puts into a function to overrule a decision of the library.

A mark returns the value that it is given, and changes no value and no derivative of the function. In the traced program
it is the name of that value, and survives `jax.jit`, `jax.vmap`, `jax.grad`, `jax.lax.scan`, `jax.lax.cond` and
`jax.checkpoint`. `lrp` reads it:

    def model(x):
        x = mark.input((x - MEAN) / STANDARD_DEVIATION)
        gate = mark.gate(jnp.tanh(x @ GATE))
        return gate * (x @ WEIGHT)

If no relevance flows through a marked value, the mark does nothing. A mark that cannot have an effect, because its
value is not a factor or not the output of a linear operation, is an error. If you cannot change a function,
`lrp_jax.composites.with_mark` puts marks at named places.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.ad_checkpoint import checkpoint_name

from lrp_jax.core.arguments import check_callable, check_tree, is_array_like, kind_of
from lrp_jax.core.equations import Mark, PieceName
from lrp_jax.errors import InputError, ModelError
from lrp_jax.treatments import Treatment

__all__ = ["gate", "held", "input", "layer", "no_layer", "piece", "signal"]

Value = TypeVar("Value")


def gate(x: Value) -> Value:
    """Says that a value is a gate: as a factor of a signal it is held constant, and the signal takes all relevance.

    With a normaliser or another gate as the other factor, the usual order applies.

    Args:
        x: An array.

    Returns:
        The same.

    Raises:
        ModelError: (when the function is explained) if no product reads the value.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from lrp_jax import lrp, mark, rules
        >>> model = lambda x: mark.gate(jnp.tanh(x[0])) * x[1]
        >>> jax.grad(lrp(model, rules.Zero()))(jnp.array([20.0, 2.0]))
        Array([0., 2.], dtype=float32)
    """
    return _marked(x, Mark.GATE)


def signal(x: Value) -> Value:
    """Says that a value is a signal: it is never held constant as a factor.

    Args:
        x: An array.

    Returns:
        The same.

    Raises:
        ModelError: (when the function is explained) if no product reads the value.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from lrp_jax import lrp, mark, rules
        >>> model = lambda x: mark.signal(1 + jnp.tanh(x[0])) * x[1]
        >>> jax.grad(lrp(model, rules.Zero()))(jnp.array([20.0, 2.0]))
        Array([1., 2.], dtype=float32)
    """
    return _marked(x, Mark.SIGNAL)


def held(x: Value) -> Value:
    """Says that relevance ends here, as at `jax.lax.stop_gradient`, but the gradient of the function does not.

    Args:
        x: An array.

    Returns:
        The same.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from lrp_jax import lrp, mark, rules
        >>> model = lambda x: x[0] + mark.held(x[1])
        >>> jax.grad(lrp(model, rules.Zero()))(jnp.array([3.0, 2.0])), jax.grad(model)(jnp.array([3.0, 2.0]))
        (Array([3., 0.], dtype=float32), Array([1., 1.], dtype=float32))
    """
    return _marked(x, Mark.HELD)


def layer(x: Value) -> Value:
    """Says that a linear operation is a layer and gets a rule, although its weight is not a parameter.

    Args:
        x: The output of a product with a constant or of a convolution, also with a bias.

    Returns:
        The same.

    Raises:
        ModelError: (when the function is explained) if the value is no such output.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from lrp_jax import lrp, mark, rules
        >>> model = lambda x: mark.layer(x @ jnp.ones((2, 1)))[0]
        >>> jax.grad(lrp(model, rules.Flat()))(jnp.array([3.0, 1.0])).round(4)
        Array([2., 2.], dtype=float32)
    """
    return _marked(x, Mark.LAYER)


def no_layer(x: Value) -> Value:
    """Says that a linear operation is not a layer: it gets no rule, and splits relevance in proportion.

    Args:
        x: The output of a product with a constant or of a convolution, also with a bias.

    Returns:
        The same.

    Raises:
        ModelError: (when the function is explained) if the value is no such output.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from lrp_jax import lrp, mark, rules
        >>> resize, weight = jnp.array([[1.0, 0.0], [1.0, 1.0]]), jnp.array([[1.0], [1.0]])
        >>> model = lambda x: (mark.no_layer(x @ resize) @ weight)[0]
        >>> jax.grad(lrp(model, rules.Flat()))(jnp.array([3.0, 1.0])).round(4)
        Array([1.875, 3.125], dtype=float32)
    """
    return _marked(x, Mark.NO_LAYER)


def input(x: Value) -> Value:
    """Says that a value is the explained input in other units: standardised, reshaped, with an offset.

    Relevance passes one to one from here to the input, and constants on the way keep nothing. The bounds of a z-box are
    in the units of this value.

    Args:
        x: A value that is computed from the input only by elementwise operations and moves.

    Returns:
        The same.

    Raises:
        ModelError: (when the function is explained) if other operations are involved.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from lrp_jax import lrp, mark, rules
        >>> weight = jnp.array([[1.0], [2.0]])
        >>> model = lambda x: (mark.input(x - 1) @ weight)[0]
        >>> jax.grad(lrp(model, rules.Zero()))(jnp.array([4.0, 2.0]))
        Array([3., 2.], dtype=float32)
    """
    return _marked(x, Mark.INPUT)


def piece(function: Callable[..., Any], treatment: Treatment) -> Callable[..., Any]:
    """Gives a whole function one backward pass for relevance, whatever is inside of it.

    Under `jax.vmap` the treatment sees the arrays with their dimension of the samples.

    Args:
        function: A function of arrays, or of pytrees of arrays. Arrays that it closes over are operands, too.
        treatment: Its backward pass: one of those in `lrp_jax.treatments`, or your own. It sees the operands through
            which relevance flows as `Call.live`, in the order of the arguments.

    Returns:
        A function that computes the same.

    Raises:
        ModelError: If the treatment is not a treatment; (when the function is explained) if the piece was taken apart,
            by `jax.disable_jit` or by a derivative within the explained function.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from lrp_jax import lrp, mark, rules, treatments
        >>> model = lambda x: mark.piece(lambda x: jnp.exp(x) - 1, treatments.smooth)(x)
        >>> jax.grad(lambda x: lrp(model, rules.Zero())(x)[1])(jnp.array([3.0, 0.0]))
        Array([0., 0.], dtype=float32)
    """
    check_callable(function, "The function of mark.piece")
    if not isinstance(treatment, Treatment):
        raise ModelError(
            f"mark.piece(function, treatment): the treatment is a {type(treatment).__name__}. Pass one of those in "
            "lrp_jax.treatments, or an treatments.Treatment of your own."
        )
    name = PieceName(treatment)

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        check_tree((args, kwargs), "The call of a piece")
        if not _is_traced((args, kwargs)):
            value = function(*args, **kwargs)
            if not _is_traced(value):
                return value

        def named(*args: Any, **kwargs: Any) -> Any:
            return checkpoint_name(function(*args, **kwargs), name)

        return jax.jit(named)(*args, **kwargs)  # of a new function, as JAX keeps what a known one has read

    return run


def _is_traced(tree: Any) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def _marked(x: Value, mark: Mark) -> Value:
    check_tree(x, "What is marked")
    for leaf in jax.tree.leaves(x):
        if not is_array_like(leaf):
            raise InputError(f"mark.{mark.value} marks arrays, but this is {kind_of(leaf)}.")
    return checkpoint_name(x, mark.name_of_value)
