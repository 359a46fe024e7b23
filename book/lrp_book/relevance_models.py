"""A relevance model that is trained: the relevance of a layer as a function of the layer below (Montavon et al. 2017).

Its layers are such that the rules of deep Taylor decomposition hold in it, so that relevance goes through it by `lrp`.
The model that needs no training, and the decompositions themselves, are in `lrp_jax.deep_taylor`.
"""

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.typing import ArrayLike

from lrp_jax.core.arguments import as_array, as_count, as_number, broadcasts, check_key, kind_of
from lrp_jax.errors import InputError, import_extra

__all__ = ["FittedRelevanceModel", "MinMaxRelevanceModel", "fit_relevance_model"]


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
    x = as_array(x, "x")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise InputError(f"x must hold floating-point numbers, but its dtype is {x.dtype}.")
    check_key(key)
    detectors, epochs = as_count(detectors, "detectors"), as_count(epochs, "epochs")
    batch_size = as_count(batch_size, "batch_size")
    learning_rate = as_number(learning_rate, "learning_rate", "must be positive", lambda rate: 0 < rate < math.inf)
    held_out = as_number(held_out, "held_out", "is a fraction of the samples, from 0 to 1", lambda part: 0 <= part <= 1)
    relevance = as_array(relevance, "relevance").astype(x.dtype)
    # Without a layer above, an array without columns stands for its relevance.
    above = jnp.zeros((len(x), 0), x.dtype) if upper is None else as_array(upper, "upper").astype(x.dtype)
    _check_samples(x, relevance, above)
    number = _number_to_train_on(len(x), held_out)
    batch_size = min(batch_size, number)

    model_key, split_key, order_key = jax.random.split(key, 3)
    scales = [jnp.sqrt((array**2).mean()) if array.size else jnp.ones(()) for array in (x, relevance, above)]
    scales = [jnp.where(scale > 0, scale, 1) for scale in scales]
    shuffled = jax.random.permutation(split_key, len(x))
    data = [(array / scale)[shuffled] for array, scale in zip((x, relevance, above), scales, strict=True)]
    training, tests = ([array[part] for array in data] for part in (slice(number), slice(number, None)))
    variance = ((tests[1] - tests[1].mean(0)) ** 2).sum()
    if not variance > 0:
        raise InputError("The relevance of the held-out samples does not vary: there is nothing to predict.")

    model = _initial_model(training, detectors, model_key)
    structure, parameters = nnx.split(model)
    parameters, losses = _train(structure, parameters, training, order_key, epochs, batch_size, learning_rate)
    error = _squared_errors(structure, parameters, tests).sum()
    nnx.update(model, parameters)
    _rescale(model, *scales)
    return FittedRelevanceModel(model, float(1 - error / variance), np.asarray(losses))


def _initial_model(data: list[jax.Array], detectors: int, key: jax.Array) -> MinMaxRelevanceModel:
    """A model with weights orthogonal to the mean input: every detection neuron is active for some samples, not all."""
    x, relevance, above = data
    model = MinMaxRelevanceModel(
        x.shape[1],
        relevance.shape[1],
        detectors=detectors,
        upper=above.shape[1],
        dtype=x.dtype,
        rngs=nnx.Rngs(params=key),
    )
    mean = x.mean(0)
    square = mean @ mean
    along_mean = mean @ model.detection.kernel[...] / jnp.where(square > 0, square, 1)
    model.detection.kernel[...] -= jnp.outer(mean, along_mean)
    return model


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


def _features(array: ArrayLike, number: int, name: str) -> jax.Array:
    array = as_array(array, name)
    if array.shape[-1:] != (number,):
        raise InputError(f"{name} must have the shape (..., {number}), but has {array.shape}.")
    return array


def _number_to_train_on(samples: int, held_out: float) -> int:
    number_held_out = round(held_out * samples)
    number = samples - number_held_out
    if number_held_out < 2 or number < 1:
        raise InputError(
            f"{samples} samples of which {held_out:.0%} are held out leave {number} to train on and {number_held_out} "
            "to measure the fit; at least 1 and 2 are needed."
        )
    return number


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
