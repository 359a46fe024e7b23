"""Deep Taylor decomposition: where the rules w^2, z+ and z-box come from (Montavon et al. 2017).

The theory in three parts, each of which can be computed here.

1. A function is decomposed by its Taylor expansion at a root: `taylor_relevance`.
2. The root is looked for along a line, inside of the domain of the input: `find_root`. For one neuron
   x -> max(0, sum_i x_i w_i + b) the line depends on the domain, and each domain leads to one rule: `neuron_root`.

   | domain of x | the line leads from x | rule |
   | --- | --- | --- |
   | all real numbers | along -w, to the nearest root | `WSquare` |
   | x_i >= 0 | to the point (x_i 1[w_i <= 0]) | `ZPlus` |
   | low_i <= x_i <= high_i | to the point (low_i 1[w_i > 0] + high_i 1[w_i < 0]) | `ZBox` |

3. In a network the function to decompose is the relevance of a neuron, as a function of the layer below: a relevance
   model. `training_free_relevance_model` takes the neuron itself, times a constant; `MinMaxRelevanceModel` is trained.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.typing import ArrayLike

from lrp_jax.core.arguments import as_array, as_count, as_number, broadcasts, check_function, check_key, kind_of
from lrp_jax.core.calling import call_model
from lrp_jax.core.forms import divide
from lrp_jax.errors import InputError, import_extra

__all__ = [
    "FittedRelevanceModel",
    "MinMaxRelevanceModel",
    "Root",
    "TaylorDecomposition",
    "TrainingFreeRelevanceModel",
    "direction_w_square",
    "direction_z_box",
    "direction_z_plus",
    "find_root",
    "fit_relevance_model",
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
        root: The root point, of the shape of x. That it is one is not required: the remainder allows for f(root).

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
    """Looks for the root of a function on the line x + t direction, t >= 0, inside of a box.

    The first change of sign among 64 points of the line is narrowed down by bisection. The points are evenly spaced
    from x to where the line leaves the box; without bounds in the line's way they are at t = 2^-32, ..., 2^31. (Roots
    closer together than the points can hide from this search.) What is returned lies on x's side of the root, where
    `|f|` has fallen to `tolerance * |f(x)|`: there the derivative exists and is the one that counts, even if the root
    is the kink of a relu.

    Batches: `jax.vmap`. No gradient goes through the search.

    Source: Montavon et al. (2017), for why the root is looked for on a line and in the domain.

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

    steps = jnp.arange(_SAMPLES, dtype=x.dtype)
    reach = _distance_to_bounds(x, direction, low, high)
    samples = jnp.where(jnp.isinf(reach), 2.0 ** (steps - _SAMPLES // 2), reach * ((steps + 1) / _SAMPLES))
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


class MinMaxRelevanceModel(nnx.Module):
    """A trainable model of relevance: detection neurons with a bias that only inhibits, and a sum over groups of them.

    y_j = max(0, sum_i x_i v_ij + a_j) and R_k = sum of y_j over the neurons j of group k, with the bias
    a_j = min(0, sum_l R_l v_lj + d_j). R_l is the relevance of the layer above, which can lift the inhibition of what
    it finds relevant; at the top there is none, and a_j = min(0, d_j). Because a_j is not positive and is held constant
    while x moves, the rules w^2, z+ and z-box hold for the neurons y_j as they do for those of a network. So relevance
    goes through the model by `lrp`, from the relevance that it predicts:

        jax.grad(lambda x: lrp(model, rules.ZPlus(bias="ignore"))(x, upper).sum())(x)

    The weights v may have any sign. Their names in the model are `detection` for v_ij, `inhibition` for v_lj.

    Source: Montavon et al. (2017), "min-max relevance model".

    Args:
        inputs: Number of inputs i.
        outputs: Number of neurons k whose relevance is modelled.
        detectors: Number of detection neurons in each group.
        upper: Number of neurons l of the layer above; 0 for none.
        dtype: Dtype of the parameters.
        rngs: Random number generators; `rngs.params` initialises the weights.

    Example:
        >>> model = MinMaxRelevanceModel(5, 3, upper=2, rngs=nnx.Rngs(0))
        >>> model(jnp.ones((4, 5)), jnp.ones((4, 2))).shape
        (4, 3)
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        detectors: int = 4,
        upper: int = 0,
        dtype: jax.typing.DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        inputs, outputs = as_count(inputs, "inputs"), as_count(outputs, "outputs")
        detectors, upper = as_count(detectors, "detectors"), as_count(upper, "upper", least=0)
        # The sum over a group starts at the size of one input, however many detectors there are.
        initializer = nnx.initializers.variance_scaling(1 / detectors**2, "fan_in", "normal")
        dense = functools.partial(nnx.Linear, use_bias=False, kernel_init=initializer, param_dtype=dtype, rngs=rngs)
        self.outputs, self.detectors = outputs, detectors
        self.detection = dense(inputs, outputs * detectors)
        self.inhibition = dense(upper, outputs * detectors) if upper else None
        self.d = nnx.Param(jnp.zeros(outputs * detectors, dtype))

    def bias(self, upper: jax.Array | None = None) -> jax.Array:
        """The bias a_j of the detection neurons, of shape (..., outputs * detectors); never positive.

        Args:
            upper: The relevance R_l of the layer above, of shape (..., upper); None if the model has no layer above.

        Raises:
            InputError: If the model has a layer above and `upper` is missing, or the other way round.
        """
        if (upper is None) != (self.inhibition is None):
            raise InputError(
                "This model of the top layer takes no relevance of a layer above."
                if self.inhibition is None
                else "This model needs the relevance of the layer above as its second argument."
            )
        if upper is None or self.inhibition is None:
            lifted = self.d[...]
        else:
            lifted = self.inhibition(_features(upper, self.inhibition.in_features, "upper")) + self.d[...]
        return jnp.minimum(lifted, 0)

    def __call__(self, x: jax.Array, upper: jax.Array | None = None) -> jax.Array:
        """The predicted relevance R_k.

        Args:
            x: The activations of the layer below, of shape (..., inputs).
            upper: The relevance R_l of the layer above, of shape (..., upper); None if the model has no layer above.

        Returns:
            Array of shape (..., outputs); never negative.

        Raises:
            InputError: If the model has a layer above and `upper` is missing, or the other way round, or a shape
                does not fit the model.
        """
        x = _features(x, self.detection.in_features, "x")
        bias = self.bias(upper)
        if not broadcasts(bias.shape[:-1], x.shape[:-1]):
            samples = x.shape[:-1], bias.shape[:-1]
            raise InputError(f"x and upper need the same samples, but have the shapes {samples[0]} and {samples[1]}.")
        y = jax.nn.relu(self.detection(x) + bias)
        return y.reshape(*y.shape[:-1], self.outputs, self.detectors).sum(-1)


@dataclass(frozen=True)
class FittedRelevanceModel:
    """A trained relevance model and how well it fits.

    Attributes:
        model: The model.
        r_squared: The coefficient of determination on samples that were held out of training: 1 minus the squared error
            as a fraction of the variance about each output's mean, summed over samples and outputs. At most 1.
        losses: For each epoch, the mean squared error in training as a fraction of the mean square of the relevance.
    """

    model: MinMaxRelevanceModel
    r_squared: float
    losses: np.ndarray


def fit_relevance_model(
    x: ArrayLike,
    relevance: ArrayLike,
    upper: ArrayLike | None = None,
    *,
    key: jax.Array,
    detectors: int = 4,
    epochs: int = 50,
    batch_size: int = 100,
    learning_rate: float = 1e-2,
    held_out: float = 0.2,
) -> FittedRelevanceModel:
    """Trains a min-max relevance model to predict the relevance of a layer from the activations below it.

    The mean of sum_k (R_k - predicted R_k)^2 is minimised by Adam, whose learning rate falls to zero along a cosine.
    Data of any scale will do: the model is trained in units of the root mean square of each array. If the fit is poor,
    detection neurons may be stuck where they are never active, or always: more of them help, or another learning rate
    or key. Few inputs bear a larger learning rate (0.03) than many.

    Source: Montavon et al. (2017), "min-max relevance model".

    Args:
        x: The activations of the layer below, of shape (samples, inputs); floating-point numbers.
        relevance: R_k, of shape (samples, outputs), not negative.
        upper: The relevance R_l of the layer above, of shape (samples, upper); None at the top.
        key: Random key for the initial weights, the choice of held-out samples and their order.
        detectors: Number of detection neurons in each group.
        epochs: Number of passes over the training samples.
        batch_size: Number of samples per step; fewer if there are fewer.
        learning_rate: The learning rate at the first step.
        held_out: The fraction of samples that is held out to measure the fit.

    Returns:
        The model and the quality of its fit.

    Raises:
        InputError: If the shapes do not fit, values are not finite or relevance is negative, there are too few samples,
            or the relevance of the held-out samples does not vary.
        MissingExtraError: If Optax is not installed.

    Example:
        >>> x = jax.random.uniform(jax.random.key(0), (500, 2))
        >>> relevance = jax.nn.relu(x @ jnp.array([[2.0], [-1.0]]) - 0.2)
        >>> fitted = fit_relevance_model(x, relevance, key=jax.random.key(1), learning_rate=0.03)
        >>> fitted.r_squared > 0.99
        True
    """
    import_extra("optax", "book")
    x = _as_floats(x)
    check_key(key)
    detectors, epochs = as_count(detectors, "detectors"), as_count(epochs, "epochs")
    batch_size = as_count(batch_size, "batch_size")
    learning_rate = as_number(learning_rate, "learning_rate", "must be positive", lambda rate: 0 < rate < math.inf)
    held_out = as_number(held_out, "held_out", "is a fraction of the samples, from 0 to 1", lambda part: 0 <= part <= 1)
    relevance = as_array(relevance, "relevance").astype(x.dtype)
    # Without a layer above, an array without columns stands for its relevance.
    above = jnp.zeros((len(x), 0), x.dtype) if upper is None else as_array(upper, "upper").astype(x.dtype)
    _check_samples(x, relevance, above)
    number_held_out = round(held_out * len(x))
    number = len(x) - number_held_out
    batch_size = min(batch_size, number)
    if number_held_out < 2 or number < 1:
        raise InputError(
            f"{len(x)} samples of which {held_out:.0%} are held out leave {number} to train on and {number_held_out} "
            "to measure the fit; at least 1 and 2 are needed."
        )

    model_key, split_key, order_key = jax.random.split(key, 3)
    scales = [jnp.sqrt((array**2).mean()) if array.size else jnp.ones(()) for array in (x, relevance, above)]
    scales = [jnp.where(scale > 0, scale, 1) for scale in scales]
    shuffled = jax.random.permutation(split_key, len(x))
    data = [(array / scale)[shuffled] for array, scale in zip((x, relevance, above), scales, strict=True)]
    tests = [array[number:] for array in data]
    variance = ((tests[1] - tests[1].mean(0)) ** 2).sum()
    if not variance > 0:
        raise InputError("The relevance of the held-out samples does not vary: there is nothing to predict.")

    model = MinMaxRelevanceModel(
        x.shape[1],
        relevance.shape[1],
        detectors=detectors,
        upper=above.shape[1],
        dtype=x.dtype,
        rngs=nnx.Rngs(params=model_key),
    )
    # Weights orthogonal to the mean input: every detection neuron starts active for some of the samples, not for all.
    mean = data[0][:number].mean(0)
    model.detection.kernel[...] -= jnp.outer(mean, divide(mean @ model.detection.kernel[...], (mean @ mean)))
    structure, parameters = nnx.split(model)
    parameters, losses = _train(
        structure, parameters, [array[:number] for array in data], order_key, epochs, batch_size, learning_rate
    )
    error = _squared_errors(structure, parameters, tests).sum()
    nnx.update(model, parameters)
    _rescale(model, *scales)
    return FittedRelevanceModel(model, float(1 - error / variance), np.asarray(losses))


def _squared_errors(structure: nnx.GraphDef, parameters: nnx.State, data: list[jax.Array]) -> jax.Array:
    x, relevance, above = data
    predicted = nnx.merge(structure, parameters)(x, above if above.shape[1] else None)
    return (predicted - relevance) ** 2


@functools.partial(jax.jit, static_argnames=("structure", "epochs", "batch_size"))
def _train(
    structure: nnx.GraphDef,
    parameters: nnx.State,
    data: list[jax.Array],
    key: jax.Array,
    epochs: int,
    batch_size: int,
    learning_rate: float,
) -> tuple[nnx.State, jax.Array]:
    """Returns trained parameters and the mean loss of each epoch."""
    optax = import_extra("optax", "book")
    number, above = len(data[0]), data[2]
    steps = number // batch_size
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, max(1, epochs * steps)))

    def loss(parameters: nnx.State, batch: list[jax.Array]) -> jax.Array:
        return _squared_errors(structure, parameters, batch).mean()

    def step(carry: tuple, chosen: jax.Array) -> tuple[tuple, jax.Array]:
        parameters, state = carry
        value, gradient = jax.value_and_grad(loss)(parameters, [array[chosen] for array in data])
        updates, state = optimizer.update(gradient, state)
        parameters = optax.apply_updates(parameters, updates)
        if not above.shape[1]:
            # Above zero, min(0, d) has no gradient that could bring d back.
            parameters["d"][...] = jnp.minimum(parameters["d"][...], 0)
        return (parameters, state), value

    def epoch(carry: tuple, key: jax.Array) -> tuple[tuple, jax.Array]:
        order = jax.random.permutation(key, number)[: steps * batch_size].reshape(steps, batch_size)
        carry, losses = lax.scan(step, carry, order)
        return carry, losses.mean()

    carry = (parameters, optimizer.init(parameters))
    (parameters, _), losses = lax.scan(epoch, carry, jax.random.split(key, epochs))
    return parameters, losses


def _rescale(model: MinMaxRelevanceModel, x: jax.Array, relevance: jax.Array, above: jax.Array) -> None:
    """Takes a model from normalised units to those of the data."""
    model.detection.kernel[...] *= relevance / x
    model.d[...] *= relevance
    if model.inhibition is not None:
        model.inhibition.kernel[...] *= relevance / above


def _distance_to_bounds(x: jax.Array, direction: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """The t at which x + t direction leaves the box; infinite if it never does."""
    ahead = jnp.where(direction > 0, high, low) - x
    return jnp.where(direction == 0, jnp.inf, ahead / jnp.where(direction == 0, 1, direction)).min(initial=jnp.inf)


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


def _features(array: ArrayLike, number: int, name: str) -> jax.Array:
    array = as_array(array, name)
    if array.shape[-1:] != (number,):
        raise InputError(f"{name} must have the shape (..., {number}), but has {array.shape}.")
    return array


def _check_scalar(fun: Callable[[jax.Array], jax.Array], x: jax.Array) -> None:
    check_function(fun, "fun", "x")
    out = jax.eval_shape(functools.partial(call_model, fun), x)
    if getattr(out, "shape", None) != () or not jnp.issubdtype(out.dtype, jnp.floating):
        returned = f"{out.dtype} of shape {out.shape}" if hasattr(out, "shape") else kind_of(out)
        raise InputError(
            f"fun must return a scalar, but returns {returned}. Choose one output: lambda x: model(x[None])[0, 3]."
        )


def _check_samples(x: jax.Array, relevance: jax.Array, upper: jax.Array) -> None:
    arrays = {"x": x, "relevance": relevance, "upper": upper}
    for name, array in arrays.items():
        if isinstance(array, jax.core.Tracer):
            raise InputError(f"{name} is {kind_of(array)}. Train outside of jax.jit.")
        if array.ndim != 2 or len(array) != len(x):
            shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
            raise InputError(f"{name} must have the shape (samples, features) and as many samples as x: {shapes}.")
        if not bool(jnp.isfinite(array).all()):
            raise InputError(f"{name} holds values that are not finite.")
    if bool((relevance < 0).any()):
        raise InputError(
            "relevance has negative values, which no min-max model can predict. Take relevance from a rule that gives "
            "none, such as ZPlus, and samples for which the explained output is positive."
        )
