"""Explanations to compare relevance with: gradients, averages of gradients, and what happens if a part is replaced.

All of them are called in the same way, `method(model, x, target)`, and return an array in the shape of `x`. To explain
a hidden layer, pass its values as `x` and the rest of the network, from that layer on, as `model`.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax.core.arguments import MOST, as_array, as_count, as_counts, as_number, broadcasts, check_key
from lrp_jax.core.inference import Inference
from lrp_jax.core.programs import Computation, run_compiled
from lrp_jax.core.trace import check_mode
from lrp_jax.errors import InputError
from lrp_jax.explain.models import split_model, trace_model
from lrp_jax.explain.targets import read_target, seed_of
from lrp_jax.plotting.arrays import as_axis, guessed_axis
from lrp_jax.target import Choice

Model = Callable[[Any], jax.Array]
ClassTarget = int | Sequence[int] | jax.Array | np.ndarray | Choice | None

_INPUTS_AT_A_TIME = 256  # in one forward pass over perturbed copies of the input: bounds the memory


def gradient(model: Model, x: jax.Array, target: ClassTarget = None, *, inference: Inference = "checked") -> jax.Array:
    """The gradient of the explained output: how it reacts to a small change of each input.

    Source: Simonyan, Vedaldi and Zisserman 2014, Deep inside convolutional networks, who show its absolute value.

    Args:
        model: A function of one argument that returns an array with the samples first, as for `lrp_jax.relevance`.
        x: Its input, floating-point numbers of shape (samples, ...).
        target: What is explained: a class index for all samples or one for each; what `lrp_jax.target` makes, such as
            `target.at[2, 5, 7]`; an array in the shape of the output whose entries multiply it (1 and -1 for the
            difference of two classes); None for the class with the largest output, or for the output itself if there is
            one for each sample.
        inference: "checked" refuses a model in training mode: one with dropout, or with statistics of the batch.
            "assumed" leaves this check out, for a model that only looks as if it were.

    Returns:
        An array in the shape and dtype of `x`, in units of the explained output per unit of `x`.

    Raises:
        InputError: If `x` does not hold floating-point samples, the target does not fit the output, or `inference` is
            neither of the two.
        ModelError: If the model is in training mode or needs values in Python.

    Example:
        >>> weight = jnp.array([[1.0, -1.0], [3.0, 2.0]])
        >>> gradient(lambda x: x @ weight, jnp.array([[2.0, 1.0]]), 0)
        Array([[1., 3.]], dtype=float32)
    """
    x = as_samples(x)
    explained = explained_output(model, x, target, inference)
    return run_compiled(functools.partial(_gradient, explained), x)


def gradient_times_input(
    model: Model, x: jax.Array, target: ClassTarget = None, *, inference: Inference = "checked"
) -> jax.Array:
    """The gradient times the input: what each input would contribute if the model were linear.

    For networks of layers with ReLUs between them it equals LRP-0. Source: Shrikumar, Greenside, Shcherbina and Kundaje
    2016, Not just a black box.

    Args:
        model: As for `gradient`.
        x: As for `gradient`.
        target: As for `gradient`.
        inference: As for `gradient`.

    Returns:
        An array in the shape and dtype of `x`, in units of the explained output.

    Raises:
        InputError: As for `gradient`.
        ModelError: As for `gradient`.

    Example:
        >>> weight = jnp.array([[1.0, -1.0], [3.0, 2.0]])
        >>> gradient_times_input(lambda x: x @ weight, jnp.array([[2.0, 1.0]]), 0)
        Array([[2., 3.]], dtype=float32)
    """
    return gradient(model, x, target, inference=inference) * x


def integrated_gradients(
    model: Model,
    x: jax.Array,
    target: ClassTarget = None,
    *,
    baseline: float | jax.Array | np.ndarray = 0.0,
    steps: int = 50,
    inference: Inference = "checked",
) -> jax.Array:
    """The mean gradient on the straight line from a baseline to the input, times the difference of the two.

    The integral is approximated by the midpoint rule. It is complete: as the number of steps grows, its sum over a
    sample approaches the difference between the explained output at the input and at the baseline. Check how close it
    is, and take more steps if it is not. Source: Sundararajan, Taly and Yan 2017, Axiomatic attribution for deep
    networks, section 3.

    Args:
        model: As for `gradient`.
        x: As for `gradient`.
        target: As for `gradient`. None is the class with the largest output at the input.
        baseline: An input without information: a number, or an array that broadcasts to `x`.
        steps: The number of points on the line.
        inference: As for `gradient`.

    Returns:
        An array in the shape and dtype of `x`, in units of the explained output.

    Raises:
        InputError: As for `gradient`, or if `baseline` does not broadcast to `x`, or `steps` is not positive.
        ModelError: As for `gradient`.

    Example:
        >>> attribution = integrated_gradients(lambda x: x**2, jnp.array([[3.0, 1.0]]), 0, baseline=1.0)
        >>> attribution.round(3)  # 3 ** 2 - 1 ** 2
        Array([[8., 0.]], dtype=float32)
    """
    x = as_samples(x)
    explained = explained_output(model, x, target, inference)
    steps = as_count(steps, "steps")
    start = broadcast_to_x(baseline, x, "The baseline")
    fractions = (jnp.arange(steps, dtype=x.dtype) + 0.5) / steps
    return run_compiled(functools.partial(_integrated_gradients, explained), x, start, fractions)


def smoothgrad(
    model: Model,
    x: jax.Array,
    target: ClassTarget = None,
    *,
    key: jax.Array,
    samples: int = 50,
    noise: float = 0.15,
    inference: Inference = "checked",
) -> jax.Array:
    """The mean gradient over noisy copies of the input.

    Source: Smilkov, Thorat, Kim, Viégas and Wattenberg 2017, SmoothGrad: removing noise by adding noise.

    Args:
        model: As for `gradient`.
        x: As for `gradient`.
        target: As for `gradient`. None is the class with the largest output at the input without noise.
        key: Key of the random numbers.
        samples: The number of noisy copies.
        noise: The standard deviation of the Gaussian noise, as a fraction of the range (largest minus smallest value)
            of each sample.
        inference: As for `gradient`.

    Returns:
        An array in the shape and dtype of `x`, in units of the explained output per unit of `x`.

    Raises:
        InputError: As for `gradient`, or if `samples` is not positive, or `noise` is negative.
        ModelError: As for `gradient`.

    Example:
        >>> weight = jnp.array([[1.0, -1.0], [3.0, 2.0]])
        >>> smoothgrad(lambda x: x @ weight, jnp.array([[2.0, 1.0]]), 0, key=jax.random.key(0), samples=4)
        Array([[1., 3.]], dtype=float32)
    """
    x = as_samples(x)
    explained = explained_output(model, x, target, inference)
    samples = as_count(samples, "samples")
    wanted = "is a standard deviation, as a fraction of the range of a sample"
    noise = as_number(noise, "noise", wanted, lambda noise: 0 <= noise < math.inf)
    check_key(key)
    return run_compiled(functools.partial(_smoothgrad, explained), x, jax.random.split(key, samples), noise)


def occlusion(
    model: Model,
    x: jax.Array,
    target: ClassTarget = None,
    *,
    window: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    value: float | jax.Array | np.ndarray = 0.0,
    channel_axis: int | None = None,
    inference: Inference = "checked",
) -> jax.Array:
    """How much the explained output drops if a window of the input is replaced by a value.

    The window moves from edge to edge; the last one in each dimension ends at the edge. What an input receives is the
    mean drop over the windows that cover it. All windows are evaluated in one compiled program, which needs memory for
    a few hundred inputs. Source: Zeiler and Fergus 2014, Visualizing and understanding convolutional networks, section
    4.2.

    Args:
        model: As for `gradient`.
        x: As for `gradient`.
        target: As for `gradient`. None is the class with the largest output at the whole input.
        window: Size of the window in the first dimensions of a sample that are not its channels; in the others it
            covers everything. (4, 4) hides all channels of 4 x 4 pixels. A single number means both dimensions of an
            image, or the one of a vector.
        stride: How far the window moves at a time, at most by its own size: a number, or one for each of its
            dimensions.
        value: What the window shows: a number, or an array that broadcasts to `x`.
        channel_axis: Which axis of a sample holds the channels, as NumPy counts: -1 or 0. If None, the first of three,
            if it alone of the first and the last has 1 or 3 entries; the last ones otherwise.
        inference: As for `gradient`.

    Returns:
        An array in the shape and dtype of `x`, in units of the explained output: positive where hiding the input
        lowers the output.

    Raises:
        ArrayError: If a sample has no such axis.
        InputError: As for `gradient`, or if window, stride or value do not fit `x`.
        ModelError: As for `gradient`.

    Example:
        >>> weight = jnp.array([[1.0, -1.0], [3.0, 2.0], [4.0, 0.0]])
        >>> x = jnp.array([[2.0, 1.0, 1.0]])  # 2 + 3 = 5 and 3 + 4 = 7 disappear
        >>> occlusion(lambda x: x @ weight, x, 0, window=2)
        Array([[5., 6., 7.]], dtype=float32)
    """
    x = as_samples(x)
    explained = explained_output(model, x, target, inference)
    windows = as_counts(window, "window", -MOST, times=min(2, x.ndim - 1))
    strides = as_counts(stride, "stride", -MOST, times=len(windows))
    if not 1 <= len(windows) < x.ndim or len(strides) != len(windows):
        raise InputError(
            f"window and stride need one number for each of the same dimensions of a sample, of which there are "
            f"{x.ndim - 1}, but they are {windows} and {strides}."
        )
    dimensions = _windowed(x.shape[1:], len(windows), channel_axis)
    for dimension, width, step in zip(dimensions, windows, strides, strict=True):
        size = x.shape[1 + dimension]
        if not 1 <= step <= width <= size:
            raise InputError(
                f"A window of {windows} with a stride of {strides} does not fit samples of shape {x.shape[1:]}. For "
                "nothing to be left out, 1 <= stride <= window <= size must hold in each dimension."
            )
    shown = broadcast_to_x(value, x, "The value")
    sizes = [x.shape[1 + dimension] for dimension in dimensions]
    covers = tuple(map(_cover, sizes, windows, strides))
    return run_compiled(functools.partial(_occlusion, explained, dimensions), x, shown, covers)


def mean_replacement(
    model: Model, x: jax.Array, target: ClassTarget = None, *, inference: Inference = "checked"
) -> jax.Array:
    """How much the explained output drops if one neuron is replaced by the mean of its layer, for each neuron.

    The mean is that of the sample's own layer: for an image, of all its values. For a linear model the drop is
    w_i (x_i - mean): for an input whose mean is zero this is gradient times input, and thus LRP-0. To replace every
    neuron by another value, for example its mean over a data set, use `occlusion` with a window of one neuron.

    Args:
        model: As for `gradient`. To see a hidden layer, the part of the network from that layer on.
        x: As for `gradient`. To see a hidden layer, its values of shape (samples, ...).
        target: As for `gradient`. None is the class with the largest output at the input.
        inference: As for `gradient`.

    Returns:
        An array in the shape and dtype of `x`, in units of the explained output: positive if the neuron's difference
        from the mean raises the output.

    Raises:
        InputError: As for `gradient`.
        ModelError: As for `gradient`.

    Example:
        >>> weight = jnp.array([[1.0, -1.0], [3.0, 2.0]])
        >>> mean_replacement(lambda x: x @ weight, jnp.array([[2.0, 1.0]]), 0)  # the mean is 1.5
        Array([[ 0.5, -1.5]], dtype=float32)
    """
    x = as_samples(x)
    mean = x.mean(axis=tuple(range(1, x.ndim)), keepdims=True)
    return occlusion(model, x, target, window=(1,) * (x.ndim - 1), value=mean, inference=inference)


@dataclass(frozen=True)
class ExplainedOutput:
    """The output that is explained, as a function of the input.

    Attributes:
        model: The model.
        weights: The weights of the outputs in their explained sum, in the shape of the model's output.
    """

    model: Model
    weights: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        """The explained output of each sample, of shape (samples,)."""
        weighted = self.model(x) * self.weights
        return weighted.sum(tuple(range(1, weighted.ndim)))


def explained_output(
    model: Model, x: jax.Array, target: ClassTarget, inference: Inference = "checked"
) -> ExplainedOutput:
    """The explained output of a model. It stays that of the given input's target when the input is changed.

    Args:
        model: As for `gradient`.
        x: As for `gradient`.
        target: As for `gradient`.
        inference: As for `gradient`.

    Returns:
        A function of an input in the shape of `x`, whose values have the shape (samples,).

    Raises:
        InputError: If the target does not fit the output.
        ModelError: As for `gradient`.

    Example:
        >>> explained = explained_output(lambda x: 2 * x, jnp.array([[2.0, 1.0]]), None)
        >>> explained(jnp.array([[0.0, 1.0]]))  # still the first output, which was the largest
        Array([0.], dtype=float32)
    """
    x = as_samples(x)
    arrays, static = split_model(model)
    call = functools.partial(static.call, arrays)
    traced, output = trace_model(model, x, inference=inference)
    check_mode(traced)
    kind, values = read_target(target, output, len(x))
    if kind in ("function", "all"):
        raise InputError(
            f"The target {target!r} has no single output for each sample. Pass class indices, or an array in the shape "
            "of the output whose entries multiply it."
        )
    if not jax.tree.leaves(output)[0].shape:
        raise InputError("The model returns one number for all samples, but a baseline needs one or more for each.")
    if kind == "largest":
        output = Computation(traced.text.program, traced.held, output, "model")(traced.inputs)
    return ExplainedOutput(call, seed_of(kind, values, output))


def as_samples(x: Any) -> jax.Array:
    """The input as an array of samples.

    Args:
        x: Floating-point numbers of shape (samples, ...).

    Returns:
        The same as a JAX array.

    Raises:
        InputError: If it has one dimension or none, or another dtype.

    Example:
        >>> as_samples(np.zeros((2, 3), "float32")).shape
        (2, 3)
    """
    x = as_array(x, "x")
    if x.ndim < 2 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise InputError(
            f"x needs the shape (samples, ...) and floating-point numbers, but it has {x.shape} and {x.dtype}. Convert "
            "it with x.astype('float32'), and give a single sample a dimension with x[None]."
        )
    return x


def map_in_batches(fun: Callable[[Any], jax.Array], xs: Any, samples: int) -> jax.Array:
    """Maps a function of all samples over the first dimension of some arrays, in batches that bound the memory.

    Args:
        fun: The function, which runs the model on all samples once.
        xs: Arrays over whose first dimension it is mapped.
        samples: The number of samples.

    Returns:
        The results, stacked in the first dimension.

    Example:
        >>> map_in_batches(lambda shift: jnp.zeros(2) + shift, jnp.array([1.0, 2.0]), samples=2)
        Array([[1., 1.],
               [2., 2.]], dtype=float32)
    """
    number = len(jax.tree.leaves(xs)[0])
    batches = -(-number // max(1, _INPUTS_AT_A_TIME // max(1, samples)))
    size = -(-number // batches)
    index = np.minimum(np.arange(batches * size), number - 1).reshape(batches, size)  # repeats the last to fill up
    results = jax.lax.map(lambda i: jax.vmap(fun)(jax.tree.map(lambda leaf: jnp.asarray(leaf)[i], xs)), index)
    return results.reshape(batches * size, *results.shape[2:])[:number]


def broadcast_to_x(values: Any, x: jax.Array, name: str) -> jax.Array:
    """Broadcasts values that stand in for the input to its shape and dtype.

    Args:
        values: A number or an array.
        x: The input.
        name: What the values are, for the error.

    Returns:
        The values in the shape and dtype of `x`.

    Raises:
        InputError: If they do not broadcast to it.

    Example:
        >>> broadcast_to_x(1, jnp.zeros((1, 2)), "The value")
        Array([[1., 1.]], dtype=float32)
    """
    array = as_array(values, name)
    if not broadcasts(array.shape, x.shape):
        raise InputError(f"{name} has the shape {array.shape}, which does not broadcast to the shape {x.shape} of x.")
    return jnp.broadcast_to(array.astype(x.dtype), x.shape)


def _gradient(explained: ExplainedOutput, x: jax.Array) -> jax.Array:
    return jax.grad(lambda x: explained(x).sum())(x)


def _integrated_gradients(
    explained: ExplainedOutput, x: jax.Array, baseline: jax.Array, fractions: jax.Array
) -> jax.Array:
    def one(fraction: jax.Array) -> jax.Array:
        return _gradient(explained, baseline + fraction * (x - baseline))

    return (x - baseline) * _mean(one, fractions, x)


def _smoothgrad(explained: ExplainedOutput, x: jax.Array, keys: jax.Array, noise: float | jax.Array) -> jax.Array:
    axes = tuple(range(1, x.ndim))
    deviation = noise * (x.max(axes, keepdims=True) - x.min(axes, keepdims=True))

    def one(key: jax.Array) -> jax.Array:
        return _gradient(explained, x + deviation * jax.random.normal(key, x.shape, x.dtype))

    return _mean(one, keys, x)


def _mean(one: Callable[[jax.Array], jax.Array], xs: jax.Array, like: jax.Array) -> jax.Array:
    """The mean of a function over the first dimension of an array, one at a time."""
    total, _ = jax.lax.scan(lambda total, x: (total + one(x), None), jnp.zeros_like(like), xs)
    return total / len(xs)


def _windowed(sample: tuple[int, ...], number: int, channel_axis: int | None) -> tuple[int, ...]:
    """The dimensions of a sample in which a window of so many has its size."""
    if number == len(sample):
        return tuple(range(number))
    channels = guessed_axis(sample) if channel_axis is None else as_axis(channel_axis, len(sample))
    return tuple(dimension for dimension in range(len(sample)) if dimension != channels)[:number]


def _occlusion(
    explained: ExplainedOutput,
    dimensions: tuple[int, ...],
    x: jax.Array,
    value: jax.Array,
    covers: tuple[jax.Array, ...],
) -> jax.Array:
    positions = tuple(map(len, covers))
    whole = explained(x)

    def drop(position: tuple[jax.Array, ...]) -> jax.Array:
        hidden = jnp.ones((1,) * x.ndim, bool)
        for dimension, cover, i in zip(dimensions, covers, position, strict=True):
            hidden = hidden & cover[i].reshape(*(1,) * (dimension + 1), -1, *(1,) * (x.ndim - 2 - dimension))
        return whole - explained(jnp.where(hidden, value, x))

    grid = tuple(index.ravel() for index in np.indices(positions))
    drops = map_in_batches(drop, grid, len(x)).reshape(*positions, len(x))
    for cover in covers:  # each takes the first dimension, of positions, out and puts one of pixels at the end
        drops = jnp.tensordot(drops, cover / cover.sum(0, keepdims=True), axes=(0, 0), precision="highest")
    covered = [1 + dimension for dimension in range(x.ndim - 1) if dimension not in dimensions]
    return jnp.broadcast_to(jnp.expand_dims(drops, covered), x.shape).astype(x.dtype)


def _cover(size: int, window: int, stride: int) -> jax.Array:
    """Which pixels of a dimension each position of the window covers, of shape (positions, size)."""
    starts = np.array([*range(0, size - window, stride), size - window])[:, None]
    pixels = np.arange(size)
    return jnp.asarray((pixels >= starts) & (pixels < starts + window))
