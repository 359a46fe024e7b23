"""Deep Taylor decomposition: where the rules w^2, z+ and z-box come from (Montavon et al. 2017).

The theory has three parts, each of which can be computed here.

1. A function is decomposed by its Taylor expansion at a root: `taylor_relevance`.
2. A root is searched for along a line, inside of the domain of the input: `find_root`. For one neuron
   x -> max(0, sum_i x_i w_i + b) the line depends on the domain, and each domain leads to one rule: `neuron_root`.

   | domain of x | the line leads from x | rule |
   | --- | --- | --- |
   | all real numbers | along -w, to the nearest root | `WSquare` |
   | x_i >= 0 | to the point (x_i 1[w_i <= 0]) | `ZPlus` |
   | low_i <= x_i <= high_i | to the point (low_i 1[w_i > 0] + high_i 1[w_i < 0]) | `ZBox` |

3. In a network, the function to decompose is the relevance of a neuron, as a function of the layer below. This function
   is called a relevance model. `training_free_relevance_model` takes the neuron itself, times a constant.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from lrp_jax.core.arguments import as_array, as_number, broadcasts, check_function, kind_of
from lrp_jax.core.calling import call_model
from lrp_jax.core.forms import divide
from lrp_jax.errors import InputError

__all__ = [
    "Root",
    "TaylorDecomposition",
    "TrainingFreeRelevanceModel",
    "direction_w_square",
    "direction_z_box",
    "direction_z_plus",
    "find_root",
    "neuron_root",
    "taylor_messages",
    "taylor_relevance",
    "training_free_relevance_model",
]

_SAMPLES = 64  # points of a line at which a root search looks for the first change of sign


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TaylorDecomposition:
    """The first-order Taylor decomposition of a function at a root point.

    Attributes:
        relevance: R_p, of the shape of x, in units of the function.
        remainder: f(x) - f(root) - sum_p R_p: what the higher orders hold; a scalar.
    """

    relevance: jax.Array
    remainder: jax.Array


def taylor_relevance(fun: Callable[[jax.Array], jax.Array], x: ArrayLike, root: ArrayLike) -> TaylorDecomposition:
    """Decomposes a function by its Taylor expansion at a root point.

    f(x) = f(root) + sum_p R_p + remainder, with R_p = df/dx_p at the root times (x_p - root_p).

    Source: Montavon et al. (2017), "Taylor decomposition"; Bach et al. (2015), section "Taylor-type
    decomposition".

    Args:
        fun: A differentiable function of one array that returns a scalar.
        x: The point that is explained, of any shape; floating-point numbers.
        root: The root point, of the shape of x. It need not really be a root: the remainder contains f(root).

    Returns:
        The relevance of every element of x, and the remainder.

    Raises:
        InputError: If x is not floating-point, the shapes of x and root differ, or `fun` does not return a scalar.

    Example:
        f(x) = x_1 x_2 - 2 at x = (2, 3), where it is 4, and its root (1, 2), where its gradient is (2, 1):

        >>> taylor_relevance(lambda x: x[0] * x[1] - 2, jnp.array([2.0, 3.0]), jnp.array([1.0, 2.0]))
        TaylorDecomposition(relevance=Array([2., 1.], dtype=float32), remainder=Array(1., dtype=float32))
    """
    x = _as_floats(x)
    root = _in_shape_of(x, root, "root")
    _check_scalar(fun, x)
    value_at_root, gradient = jax.value_and_grad(fun)(root)
    relevance = gradient * (x - root)
    return TaylorDecomposition(relevance, fun(x) - value_at_root - relevance.sum())


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Root:
    """A root of a function on a line through x.

    Attributes:
        root: The root, of the shape of x; not a number where none was found.
        found: Whether there is one.
        distance: The number t at which x + t direction is the root; not a number where none was found.
    """

    root: jax.Array
    found: jax.Array
    distance: jax.Array


def find_root(
    fun: Callable[[jax.Array], jax.Array],
    x: ArrayLike,
    direction: ArrayLike,
    *,
    low: ArrayLike | None = None,
    high: ArrayLike | None = None,
    tolerance: float | None = None,
) -> Root:
    """Searches for the root of a function on the line x + t direction, t >= 0, inside of a box.

    The first change of sign among 64 points of the line is narrowed down by bisection. The points are evenly spaced
    from x to where the line leaves the box; without bounds in the line's way they are at t = 2^-32, ..., 2^31. (Roots
    closer together than the points can hide from this search.) What is returned lies on x's side of the root, where
    `|f|` has fallen to `tolerance * |f(x)|`: there the derivative exists and is the one that counts, even if the root
    is the kink of a ReLU, where there is none.

    Batches: `jax.vmap`. No gradient goes through the search.

    Source: Montavon et al. (2017), for why the root is searched for on a line and in the domain.

    Args:
        fun: A continuous function of one array that returns a scalar.
        x: Where the line starts, of any shape; floating-point numbers.
        direction: Where it leads, of the shape of x.
        low: Smallest values of the domain, of a shape that broadcasts to x; None for no bound.
        high: Its largest values, alike.
        tolerance: `|f(root)|` as a fraction of `|f(x)|`; None for epsilon^(3/4) of the dtype of x: 2e-12 in double and
            6e-6 in single precision. It should stay above the rounding error of f.

    Returns:
        The root. If f(x) = 0, it is x. `found` is false if f does not change its sign on the line, or if x lies outside
        of the box.

    Raises:
        InputError: If x is not floating-point, the shapes do not fit, `fun` does not return a scalar, or low is larger
            than high.

    Example:
        >>> fun = lambda x: x[0] ** 2 + x[1] - 4
        >>> result = find_root(fun, jnp.array([3.0, 0.0]), jnp.array([-1.0, 0.0]), low=0.0)
        >>> result.root.round(3), bool(result.found)
        (Array([2., 0.], dtype=float32), True)
    """
    x = _as_floats(x)
    direction = _in_shape_of(x, direction, "direction")
    _check_scalar(fun, x)
    low, high = _bounds(x, low, high)
    if tolerance is None:
        tolerance = float(jnp.finfo(x.dtype).eps) ** 0.75
    else:
        wanted = "is a fraction of |f(x)|, from 0 to less than 1"
        tolerance = as_number(tolerance, "tolerance", wanted, lambda tolerance: 0 <= tolerance < 1)
    start = fun(x)

    def point(t: jax.Array) -> jax.Array:
        return jnp.clip(x + t * direction, low, high)

    def remaining(t: jax.Array) -> jax.Array:
        return jnp.sign(start) * fun(point(t))

    samples = _samples_of_line(x, direction, low, high)
    is_beyond = jax.vmap(remaining)(samples) <= 0
    first = is_beyond.argmax()
    bracket = jnp.where(first == 0, 0, samples[first - 1]), samples[first]

    def is_open(bracket: tuple[jax.Array, jax.Array]) -> jax.Array:
        before, beyond = bracket
        middle = (before + beyond) / 2
        return (before < middle) & (middle < beyond)

    def halve(bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        before, beyond = bracket
        middle = (before + beyond) / 2
        is_before = remaining(middle) > tolerance * jnp.abs(start)
        return jnp.where(is_before, middle, before), jnp.where(is_before, beyond, middle)

    t, _ = lax.while_loop(is_open, halve, bracket)
    t = jnp.where(start == 0, 0, t)
    found = ((start == 0) | is_beyond.any()) & ((low <= x) & (x <= high)).all()
    return Root(jnp.where(found, point(t), jnp.nan), found, jnp.where(found, t, jnp.nan))


def direction_w_square(w: ArrayLike) -> jax.Array:
    """The direction from any x to the nearest root of one neuron: `-w / |w|^2`.

    The neuron's sum of inputs falls by one per unit of this direction, so that the root is `x - z w / |w|^2`, at the
    distance z = sum_i x_i w_i + b. The relevance is R_i = w_i^2 / sum_i' w_i'^2 z.

    Source: Montavon et al. (2017), the w^2-rule.

    Args:
        w: The weights, of shape (inputs,).

    Returns:
        Array of shape (inputs,).

    Raises:
        InputError: If w is not floating-point.

    Example:
        >>> direction_w_square(jnp.array([1.0, -1.0]))
        Array([-0.5,  0.5], dtype=float32)
    """
    w = _as_floats(w, "w")
    return divide(-w, jnp.broadcast_to((w**2).sum(), w.shape))


def direction_z_plus(x: ArrayLike, w: ArrayLike) -> jax.Array:
    """The direction from a non-negative x to the point (x_i 1[w_i <= 0]), where the neuron has no positive input left.

    The relevance is R_i = x_i w_i+ / sum_i' x_i' w_i'+ z.

    Source: Montavon et al. (2017), the z^+-rule.

    Args:
        x: The input of the neuron, of shape (inputs,).
        w: The weights, of shape (inputs,).

    Returns:
        Array of shape (inputs,).

    Raises:
        InputError: If x is not floating-point, or the shapes differ.

    Example:
        >>> direction_z_plus(jnp.array([3.0, 1.0]), jnp.array([1.0, -1.0]))
        Array([-3.,  0.], dtype=float32)
    """
    x = _as_floats(x)
    return jnp.where(_in_shape_of(x, w, "w") > 0, -x, 0)


def direction_z_box(x: ArrayLike, w: ArrayLike, low: ArrayLike, high: ArrayLike) -> jax.Array:
    """The direction from an x in a box to the corner where the neuron is least active.

    The corner is low_i where w_i > 0 and high_i where w_i < 0; an input with w_i = 0 stays where it is. The relevance
    is R_i = (x_i w_i - low_i w_i+ - high_i w_i-) / sum_i' (x_i' w_i' - low_i' w_i'+ - high_i' w_i'-) z.

    Source: Montavon et al. (2017), the z^B-rule.

    Args:
        x: The input of the neuron, of shape (inputs,).
        w: The weights, of shape (inputs,).
        low: Smallest values of x, of a shape that broadcasts to x.
        high: Its largest values, alike.

    Returns:
        Array of shape (inputs,).

    Raises:
        InputError: If x is not floating-point, the shapes do not fit, or low is larger than high.

    Example:
        >>> direction_z_box(jnp.array([3.0, 1.0]), jnp.array([1.0, -1.0]), 0.0, 4.0)
        Array([-3.,  3.], dtype=float32)
    """
    x = _as_floats(x)
    w = _in_shape_of(x, w, "w")
    low, high = _bounds(x, low, high)
    return jnp.where(w > 0, low - x, jnp.where(w < 0, high - x, 0))


def neuron_root(
    x: ArrayLike,
    w: ArrayLike,
    b: ArrayLike = 0.0,
    *,
    low: ArrayLike | None = None,
    high: ArrayLike | None = None,
) -> Root:
    """The root point of one neuron max(0, sum_i x_i w_i + b), in the domain of its input.

    Without bounds it is the nearest root (w^2); with low = 0 alone, the one on the way to (x_i 1[w_i <= 0]) (z+); with
    two bounds, the one on the way to the corner of the box (z-box). Where the neuron is not active, it is x.

    A root always exists for w^2, if w is not zero; for z+ exactly if sum_i x_i w_i- + b <= 0; for z-box exactly if
    sum_i (low_i w_i+ + high_i w_i-) + b <= 0. The paper demands b <= 0, and low <= 0 <= high, which is sufficient.

    Source: Montavon et al. (2017).

    Args:
        x: The input of the neuron, of shape (inputs,); floating-point numbers.
        w: The weights, of shape (inputs,).
        b: The bias.
        low: Smallest values of x, of a shape that broadcasts to x; None for no bound.
        high: Its largest values, alike.

    Returns:
        The root; `found` is false if there is none on the line, or if x lies outside of its domain.

    Raises:
        InputError: If x is not floating-point, the shapes do not fit, or the bounds are of none of the three kinds.

    Example:
        The neuron max(0, x_1 - x_2) at (3, 1), where it is 2:

        >>> x, w = jnp.array([3.0, 1.0]), jnp.array([1.0, -1.0])
        >>> neuron_root(x, w).root.round(3)
        Array([2., 2.], dtype=float32)
        >>> neuron_root(x, w, low=0.0).root.round(3)
        Array([1., 1.], dtype=float32)
        >>> neuron_root(x, w, low=0.0, high=4.0).root.round(3)
        Array([2., 2.], dtype=float32)
    """
    x = _as_floats(x)
    w = _in_shape_of(x, w, "w")
    b = as_array(b, "b").astype(x.dtype)
    if b.ndim:
        raise InputError(f"b must be one number, but has the shape {b.shape}. For several neurons use jax.vmap.")
    if low is None and high is None:
        direction = direction_w_square(w)
    elif low is not None and high is not None:
        direction = direction_z_box(x, w, low, high)
    elif high is None and isinstance(low, int | float) and low == 0:
        direction = direction_z_plus(x, w)
    else:
        raise InputError(
            f"neuron_root(low={low}, high={high}): the domain is one of no bounds (w^2), low=0.0 alone (z+), or both "
            "bounds (z-box)."
        )
    return find_root(lambda x: jax.nn.relu(x @ w + b), x, direction, low=low, high=high)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainingFreeRelevanceModel:
    """The relevance of a layer's neurons as their activation times a constant: R_j = c_j max(0, sum_i x_i w_ij + b_j).

    Calling it with x of shape (inputs,) returns R of shape (neurons,).

    Attributes:
        w: The weights, of shape (inputs, neurons).
        b: The biases, of shape (neurons,).
        c: The constants, of shape (neurons,).
    """

    w: jax.Array
    b: jax.Array
    c: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        """The relevance of the neurons if x is their input."""
        return self.c * jax.nn.relu(x @ self.w + self.b)


def training_free_relevance_model(
    x: ArrayLike, w: ArrayLike, b: ArrayLike, relevance: ArrayLike
) -> TrainingFreeRelevanceModel:
    """Models the relevance of a layer's neurons as their activation times a constant.

    c_j = R_j / max(0, sum_i x_i w_ij + b_j), held constant as x moves to the root, with 0 / 0 = 0. A Taylor step with
    this model at the root points of the neurons (`taylor_messages`) is the rule of the domain.

    Source: Montavon et al. (2017), "training-free relevance model". That c_j depends little on x is an
    approximation, which the paper argues for; for the relevance that the rules give, it can be measured.

    Args:
        x: The input of the layer, of shape (inputs,); floating-point numbers.
        w: The weights, of shape (inputs, neurons).
        b: The biases, of a shape that broadcasts to (neurons,).
        relevance: R_j at x, of shape (neurons,).

    Returns:
        The model, whose value at x is the relevance, except that inactive neurons have none.

    Raises:
        InputError: If x is not floating-point, or the shapes do not fit.

    Example:
        >>> model = training_free_relevance_model([3.0, 1.0], [[1.0], [-1.0]], 0.0, [6.0])
        >>> model.c, model(jnp.array([2.0, 1.0]))
        (Array([3.], dtype=float32), Array([3.], dtype=float32))
    """
    x = _as_floats(x)
    named = {"w": w, "b": b, "relevance": relevance}
    w, b, relevance = (as_array(array, name).astype(x.dtype) for name, array in named.items())
    if x.ndim != 1 or w.shape[:-1] != x.shape or relevance.shape != w.shape[-1:]:
        raise InputError(
            f"x, w and relevance need the shapes (inputs,), (inputs, neurons) and (neurons,), but have {x.shape}, "
            f"{w.shape} and {relevance.shape}. For a batch use jax.vmap."
        )
    if not broadcasts(b.shape, relevance.shape):
        raise InputError(f"b must broadcast to {relevance.shape}, one for each neuron, but has the shape {b.shape}.")
    b = jnp.broadcast_to(b, relevance.shape)
    activation = jax.nn.relu(x @ w + b)
    return TrainingFreeRelevanceModel(w, b, jnp.where(activation > 0, divide(relevance, activation), 0))


def taylor_messages(
    model: TrainingFreeRelevanceModel,
    x: ArrayLike,
    *,
    low: ArrayLike | None = None,
    high: ArrayLike | None = None,
) -> jax.Array:
    """The relevance that each neuron of a layer gives to each input: one Taylor step for each neuron, at its own root.

    R_ij = dR_j/dx_i at root(j) times (x_i - root(j)_i), by automatic differentiation. The sum over j is `WSquare`
    without bounds, `ZPlus(bias="ignore")` with low = 0, and `ZBox(low, high)` with two bounds, wherever the neurons
    have their roots (see `neuron_root`): in particular for biases that are not positive. This is slow: it is here to
    check the rules, not to replace them.

    Source: Montavon et al. (2017), "Deep Taylor decomposition".

    Args:
        model: The relevance of the neurons as a function of x.
        x: The input of the layer, of shape (inputs,); floating-point numbers.
        low: Smallest values of x, of a shape that broadcasts to x; None for no bound.
        high: Its largest values, alike.

    Returns:
        R_ij of shape (inputs, neurons); not a number for a neuron that has no root in the domain.

    Raises:
        InputError: If x is not floating-point, its shape does not fit the model's, or the bounds are of none of the
            three kinds.

    Example:
        >>> x = jnp.array([3.0, 1.0])
        >>> model = training_free_relevance_model(x, jnp.array([[1.0], [-1.0]]), 0.0, jnp.array([6.0]))
        >>> print(taylor_messages(model, x).round(2))
        [[3.]
         [3.]]
    """
    if not isinstance(model, TrainingFreeRelevanceModel):
        raise InputError(f"model must come from training_free_relevance_model, but it is {kind_of(model)}.")
    x = _as_floats(x)

    def messages(neuron: TrainingFreeRelevanceModel) -> jax.Array:
        return taylor_relevance(neuron, x, neuron_root(x, neuron.w, neuron.b, low=low, high=high).root).relevance

    return jax.vmap(messages, in_axes=(TrainingFreeRelevanceModel(1, 0, 0),), out_axes=1)(model)  # type: ignore[arg-type]  # axes in place of arrays


def _samples_of_line(x: jax.Array, direction: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """The t of 64 points x + t direction: evenly spaced to where the line leaves the box, or powers of two."""
    ahead = jnp.where(direction > 0, high, low) - x
    reach = jnp.where(direction == 0, jnp.inf, ahead / jnp.where(direction == 0, 1, direction)).min(initial=jnp.inf)
    steps = jnp.arange(_SAMPLES, dtype=x.dtype)
    return jnp.where(jnp.isinf(reach), 2.0 ** (steps - _SAMPLES // 2), reach * ((steps + 1) / _SAMPLES))


def _bounds(x: jax.Array, low: ArrayLike | None, high: ArrayLike | None) -> tuple[jax.Array, jax.Array]:
    lower = as_array(-jnp.inf if low is None else low, "low").astype(x.dtype)
    upper = as_array(jnp.inf if high is None else high, "high").astype(x.dtype)
    if not broadcasts(lower.shape, x.shape) or not broadcasts(upper.shape, x.shape):
        raise InputError(
            f"low and high must broadcast to the shape {x.shape} of x, but have the shapes {lower.shape} and "
            f"{upper.shape}."
        )
    lower, upper = jnp.broadcast_to(lower, x.shape), jnp.broadcast_to(upper, x.shape)
    is_concrete = not any(isinstance(bound, jax.core.Tracer) for bound in (lower, upper))
    if is_concrete and not bool((lower <= upper).all()):
        raise InputError(f"low={low} is larger than high={high} somewhere. Swap them?")
    return lower, upper


def _as_floats(x: ArrayLike, name: str = "x") -> jax.Array:
    array = as_array(x, name)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise InputError(f"{name} must hold floating-point numbers, but its dtype is {array.dtype}.")
    return array


def _in_shape_of(x: jax.Array, array: ArrayLike, name: str) -> jax.Array:
    array = as_array(array, name).astype(x.dtype)
    if array.shape != x.shape:
        raise InputError(f"{name} must have the shape {x.shape} of x, but has {array.shape}. For a batch use jax.vmap.")
    return array


def _check_scalar(fun: Callable[[jax.Array], jax.Array], x: jax.Array) -> None:
    check_function(fun, "fun", "x")
    out = jax.eval_shape(functools.partial(call_model, fun), x)
    if getattr(out, "shape", None) != () or not jnp.issubdtype(out.dtype, jnp.floating):
        returned = f"{out.dtype} of shape {out.shape}" if hasattr(out, "shape") else kind_of(out)
        raise InputError(
            f"fun must return a scalar, but returns {returned}. Choose one output: lambda x: model(x[None])[0, 3]."
        )
