"""Measuring explanations: do they find what the model uses, do they depend on its parameters, do they agree?"""

import functools
import reprlib
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import rankdata

from lrp_jax.baselines import (
    ClassTarget,
    ExplainedOutput,
    Model,
    as_samples,
    broadcast_to_x,
    explained_output,
    map_in_batches,
)
from lrp_jax.core.arguments import (
    MOST,
    as_array,
    as_count,
    as_number,
    check_function,
    check_key,
    check_tree,
    is_array_like,
    kind_of,
)
from lrp_jax.core.held_arrays import is_floating, name_of_path
from lrp_jax.core.inference import Inference
from lrp_jax.core.programs import run_compiled
from lrp_jax.errors import InputError
from lrp_jax.explain.models import as_pytree

Parameters = TypeVar("Parameters")


def pixel_flipping(
    model: Model,
    x: jax.Array,
    relevance: jax.Array,
    target: ClassTarget = None,
    *,
    steps: int,
    fraction: float = 1.0,
    replacement: float | jax.Array | np.ndarray = 0.0,
    inference: Inference = "checked",
) -> jax.Array:
    """Follows the explained output while the pixels are replaced one after the other, the most relevant first.

    The faster the output falls, the better the relevance has found what the model uses, as far as the replacement means
    "absent": the result depends on it, so compare several, and a random order. For the least relevant pixels first,
    pass `-relevance`; for a random order, random numbers. All samples and steps are evaluated in one compiled program,
    which needs memory for a few hundred inputs. Source: Samek, Binder, Montavon, Lapuschkin and Müller 2017, Evaluating
    the visualization of what a deep neural network has learned, who replace regions of 9 x 9 pixels.

    Args:
        model: A function of one argument that returns the shape (samples, classes), as for `lrp_jax.relevance`.
        x: Its input, floating-point numbers of shape (samples, ...).
        relevance: The relevance of each pixel, in the shape of `x`, of its first dimensions, or of `x` without its
            channels; the entries of `x` that share a relevance are replaced together. For images of shape (samples,
            height, width, channels) this is `relevance.sum(-1)`, for (samples, channels, height, width) it is
            `relevance.sum(1)`. Pixels with equal relevance follow in the order of their indices.
        target: The output to follow, as for `lrp_jax.baselines.gradient`; None for the class with the largest output
            at the whole input.
        steps: The number of steps, at most as many as there are pixels to replace.
        fraction: The fraction of the pixels that is replaced after the last step; after step k it is
            k / steps * fraction, to whole pixels.
        replacement: What a replaced pixel becomes: a number, or an array that broadcasts to `x`, such as the mean of
            each image, or `jax.random.uniform(key, x.shape)` as in the source.
        inference: As for `lrp_jax.baselines.gradient`.

    Returns:
        The explained output before the first and after each step, of shape (samples, steps + 1).

    Raises:
        InputError: If `x`, the relevance, the target, the steps, the fraction or the replacement do not fit, or
            `inference` is neither "checked" nor "assumed".
        ModelError: If the model is in training mode or needs values in Python.

    Example:
        >>> x = jnp.array([[5.0, 1.0, 3.0]])
        >>> model = lambda x: x.sum(-1, keepdims=True)
        >>> pixel_flipping(model, x, relevance=x, target=0, steps=3)
        Array([[9., 4., 1., 0.]], dtype=float32)
    """
    x = as_samples(x)
    relevance = _as_maps(relevance)
    relevance = _as_pixels(relevance, x.shape)
    last = round(_as_fraction(fraction, "pixels") * relevance[0].size)
    steps = as_count(steps, "steps", -MOST)
    if not 1 <= steps <= last:
        raise InputError(f"steps must be from 1 to {last}, the number of pixels that are replaced, but it is {steps}.")
    shown = broadcast_to_x(replacement, x, "The replacement")
    replaced = np.round(np.linspace(0, last, steps + 1)).astype(np.int32)
    flip = functools.partial(_pixel_flipping, explained_output(model, x, target, inference))
    return run_compiled(flip, x, relevance, shown, replaced)


def _as_pixels(relevance: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Relevance with one entry in each dimension of the input that it leaves out."""
    left_out = [axis for axis in range(1, len(shape)) if shape[:axis] + shape[axis + 1 :] == relevance.shape]
    if relevance.shape == shape[: relevance.ndim]:
        left_out = list(range(relevance.ndim, len(shape)))
    elif len(left_out) != 1:
        raise InputError(
            f"The relevance of an x of shape {shape} has this shape, or leaves out the last dimensions or the "
            f"channels, but it has {relevance.shape}."
        )
    return jnp.expand_dims(relevance, left_out)


def _pixel_flipping(
    explained: ExplainedOutput, x: jax.Array, relevance: jax.Array, replacement: jax.Array, replaced: jax.Array
) -> jax.Array:
    places = _places(relevance).reshape(relevance.shape)
    curves = map_in_batches(lambda number: explained(jnp.where(places < number, replacement, x)), replaced, len(x))
    return curves.T


def area_over_perturbation_curve(curve: jax.Array) -> jax.Array:
    """The mean drop of the explained output over the steps of pixel flipping (AOPC): larger is better.

    AOPC is the mean over the samples of (1 / (L + 1)) sum_{k=0}^{L} (f(x_0) - f(x_k)). Source: Samek et al. 2017,
    equation 12. The values of the samples are returned instead of their mean, for `confidence_band`.

    Args:
        curve: What `pixel_flipping` returns, of shape (samples, steps + 1).

    Returns:
        The area of each sample, of shape (samples,), in units of the explained output.

    Raises:
        InputError: If the curve has another shape.

    Example:
        >>> area_over_perturbation_curve(jnp.array([[9.0, 4.0, 1.0, 0.0]]))  # (0 + 5 + 8 + 9) / 4
        Array([5.5], dtype=float32)
    """
    curve = as_array(curve, "A curve")
    if curve.ndim != 2 or curve.shape[1] < 2:
        raise InputError(f"A curve has the shape (samples, steps + 1), but this has {curve.shape}.")
    curve = curve.astype(jnp.result_type(curve, float))
    return (curve[:, :1] - curve).mean(axis=1)


class ConfidenceBand(NamedTuple):
    """A mean over samples, and the interval in which it lies.

    Attributes:
        mean: The mean over the samples.
        low: The lower end of the interval, in the shape of the mean.
        high: Its upper end.
    """

    mean: jax.Array
    low: jax.Array
    high: jax.Array


def confidence_band(values: jax.Array, *, key: jax.Array, level: float = 0.95, resamples: int = 1000) -> ConfidenceBand:
    """The mean over samples, with the percentile interval of the bootstrap at each point.

    The bootstrap draws as many samples as there are, with replacement, and takes their mean; it does so many times, and
    the interval covers the middle of these means. The same samples are drawn for every point. To compare two methods on
    the same samples, pass the difference of their values. Source: Efron and Tibshirani 1993, An introduction to the
    bootstrap.

    Args:
        values: Numbers of shape (samples, ...): curves, or one number for each sample.
        key: Key of the random numbers.
        level: The probability that the interval of one point should cover, between 0 and 1.
        resamples: The number of times the samples are drawn.

    Returns:
        Mean, low and high, of the shape of one sample, in units of the values.

    Raises:
        InputError: If there are fewer than two samples, or `level` or `resamples` make no sense.

    Example:
        >>> band = confidence_band(jnp.array([1.0, 2.0, 3.0, 6.0]), key=jax.random.key(0))
        >>> bool(1 <= band.low < band.mean < band.high <= 6)
        True
    """
    values = as_array(values, "values")
    values = values.astype(jnp.result_type(values, float))
    if values.ndim < 1 or len(values) < 2:
        raise InputError(f"A confidence band needs two or more samples in the first dimension, not {values.shape}.")
    level = as_number(level, "level", "is a probability between 0 and 1", lambda level: 0 < level < 1)
    resamples = as_count(resamples, "resamples")
    check_key(key)
    return _confidence_band(values, jax.random.split(key, resamples), level)


@jax.jit
def _confidence_band(values: jax.Array, keys: jax.Array, level: float | jax.Array) -> ConfidenceBand:
    mean = values.mean(0)
    deviations = values - mean[None]  # smaller numbers: less rounding

    def one(key: jax.Array) -> jax.Array:
        drawn = jax.random.randint(key, (len(values),), 0, len(values))
        times = jnp.bincount(drawn, length=len(values)).astype(values.dtype)
        return jnp.tensordot(times, deviations, axes=1, precision="highest") / len(values)

    ends = jnp.asarray([(1 - level) / 2, (1 + level) / 2], values.dtype)
    low, high = jnp.quantile(jax.lax.map(one, keys), ends, axis=0)
    return ConfidenceBand(mean, mean + low, mean + high)


def permuted(key: jax.Array, parameters: jax.Array) -> jax.Array:
    """The same numbers in a random order: what the layer had learned is lost, the distribution of its values is not.

    Args:
        key: Key of the random numbers.
        parameters: An array of any shape.

    Returns:
        An array of the same shape and dtype.

    Example:
        >>> sorted(permuted(jax.random.key(0), jnp.array([3.0, 1.0, 2.0])).tolist())
        [1.0, 2.0, 3.0]
    """
    check_key(key)
    parameters = as_array(parameters, "parameters")
    return jax.random.permutation(key, parameters.ravel()).reshape(parameters.shape)


def randomise(
    model: Parameters,
    layers: Sequence[str],
    *,
    key: jax.Array,
    cascade: bool = True,
    draw: Callable[[jax.Array, jax.Array], jax.Array] = permuted,
) -> dict[str, Parameters]:
    """Randomises the parameters of a model's layers, from the output down.

    If an explanation hardly changes when the parameters are lost, it does not explain the model. Source: Adebayo,
    Gilmer, Muelly, Goodfellow, Hardt and Kim 2018, Sanity checks for saliency maps, whose model parameter randomization
    test this is for.

    Args:
        model: A Flax NNX module, or any other pytree with the parameters: an Equinox module, Linen variables,
            `functools.partial(module.apply, variables)`, a dictionary. It is not changed.
        layers: Names of layers in the order in which they run, from the input to the output, as `lrp_jax.plan` shows
            them: a layer is all floating-point arrays whose path starts with its name.
        key: Key of the random numbers. A layer gets the same numbers whether in cascade or on its own.
        cascade: Whether a layer is randomised on top of those above it, so that in the end all are (cascading
            randomisation), or on its own (independent randomisation).
        draw: A function that returns new values for a key and an array. An initializer fits as
            `lambda key, array: nnx.initializers.he_normal()(key, array.shape, array.dtype)`.

    Returns:
        For each layer, beginning at the output, the model after that layer was randomised.

    Raises:
        InputError: If a name has no parameters or is given twice, or `draw` returns another shape.

    Example:
        >>> parameters = {"first": jnp.arange(4.0), "second": jnp.arange(4.0)}
        >>> models = randomise(parameters, ["first", "second"], key=jax.random.key(0))
        >>> list(models)
        ['second', 'first']
        >>> models["second"]["first"]  # not yet randomised
        Array([0., 1., 2., 3.], dtype=float32)
    """
    if isinstance(layers, str) or not isinstance(layers, Sequence) or not all(isinstance(one, str) for one in layers):
        raise InputError(f"layers must be a list of names, but it is {reprlib.repr(layers)}.")
    if not isinstance(cascade, bool | np.bool):
        raise InputError(f"cascade is True or False, not {reprlib.repr(cascade)}.")
    check_key(key)
    check_tree(model, "model")
    check_function(draw, "draw", "key", "parameters")
    model = as_pytree(model)
    names = [name_of_path(path) for path, leaf in jax.tree_util.tree_leaves_with_path(model) if is_floating(leaf)]
    for layer in layers:
        if list(layers).count(layer) > 1:
            raise InputError(f"The layer {layer!r} is given more than once.")
        if not any(_belongs_to(name, layer) for name in names):
            raise InputError(f"{layer!r} has no parameters. There are: {', '.join(names) or 'none at all'}.")
    randomised: dict[str, Parameters] = {}
    current = model
    for layer in reversed(layers):
        current = _randomise_layer(current if cascade else model, layer, key, draw)
        randomised[layer] = current
    return randomised


def _randomise_layer(
    model: Parameters, layer: str, key: jax.Array, draw: Callable[[jax.Array, jax.Array], jax.Array]
) -> Parameters:
    def one(path: Sequence[Any], leaf: Any) -> Any:
        name = name_of_path(path)
        if not (is_floating(leaf) and _belongs_to(name, layer)):
            return leaf
        drawn = draw(jax.random.fold_in(key, zlib.crc32(name.encode())), leaf)
        if not is_array_like(drawn):
            raise InputError(f"draw returned {kind_of(drawn)} for {name!r}, which is an array.")
        if np.shape(drawn) != leaf.shape:
            raise InputError(f"draw returned the shape {np.shape(drawn)} for {name!r}, which has {leaf.shape}.")
        return drawn

    return jax.tree_util.tree_map_with_path(one, model)


def _belongs_to(name: str, layer: str) -> bool:
    return name == layer or name.startswith(f"{layer}.")


def rank_agreement(a: jax.Array, b: jax.Array) -> jax.Array:
    """Spearman's rank correlation of two explanations, for each sample.

    It is the correlation of the ranks of the values. Equal values have the mean of their ranks. Pass absolute values to
    compare the strength without the sign. Source: Spearman 1904, The proof and measurement of association between two
    things.

    Args:
        a: Explanations of shape (samples, ...).
        b: Others, of the same shape.

    Returns:
        Numbers from -1 to 1 of shape (samples,): 1 if both order the inputs alike, 0 if the orders have nothing to do
        with each other, NaN if one explanation is constant and has no order.

    Raises:
        InputError: If the shapes differ, or there are values that are not finite.

    Example:
        >>> rank_agreement(jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[1.0, 10.0, 100.0]]))
        Array([1.], dtype=float32)
    """
    a, b = _as_alike_maps(a, b)
    return _rank_agreement(a.reshape(len(a), -1), b.reshape(len(b), -1))


@jax.jit
def _rank_agreement(a: jax.Array, b: jax.Array) -> jax.Array:
    def deviations(values: jax.Array) -> jax.Array:
        ranks = rankdata(values, method="average", axis=1).astype(values.dtype)
        return ranks - (values.shape[1] + 1) / 2

    a, b = deviations(a), deviations(b)
    return (a * b).sum(1) / jnp.sqrt((a**2).sum(1) * (b**2).sum(1))


def top_overlap(a: jax.Array, b: jax.Array, fraction: float) -> jax.Array:
    """The share of the most relevant inputs that two explanations have in common, for each sample.

    If values are equal, the first ones are taken.

    Args:
        a: Explanations of shape (samples, ...).
        b: Others, of the same shape.
        fraction: The fraction of a sample's inputs that counts as the most relevant, more than 0 and at most 1,
            rounded to whole inputs, and at least one. It is also the overlap to expect of random orders.

    Returns:
        Numbers from 0 to 1 of shape (samples,).

    Raises:
        InputError: If the shapes differ, there are values that are not finite, or the fraction makes no sense.

    Example:
        >>> top_overlap(jnp.array([[4.0, 3.0, 2.0, 1.0]]), jnp.array([[4.0, 1.0, 2.0, 3.0]]), 0.5)
        Array([0.5], dtype=float32)
    """
    a, b = _as_alike_maps(a, b)
    number = max(1, round(_as_fraction(fraction, "inputs") * a[0].size))
    return _top_overlap(a, b, number)


@jax.jit
def _top_overlap(a: jax.Array, b: jax.Array, number: int | jax.Array) -> jax.Array:
    return ((_places(a) < number) & (_places(b) < number)).sum(1) / number


def _places(relevance: jax.Array) -> jax.Array:
    """The place of each input in the order of its sample's relevance, of shape (samples, inputs); 0 is the first."""
    order = jnp.argsort(-relevance.reshape(len(relevance), -1), axis=1)  # stable
    return jnp.argsort(order, axis=1)


def sparsity(relevance: jax.Array) -> jax.Array:
    """The Gini index of the absolute relevance: how few inputs hold how much of it, for each sample.

    With the n absolute values in ascending order, it is 1 - 2 sum_k (c_k / sum(c)) (n - k + 1/2) / n. Source: Hurley
    and Rickard 2009, Comparing measures of sparsity.

    Args:
        relevance: An explanation of shape (samples, ...).

    Returns:
        Numbers of shape (samples,): 0 if all inputs have the same absolute relevance, 1 - 1 / n if one has it all, NaN
        if none has any.

    Raises:
        InputError: If there are values that are not finite.

    Example:
        >>> sparsity(jnp.array([[1.0, -1.0], [2.0, 0.0]]))
        Array([0. , 0.5], dtype=float32)
    """
    return _sparsity(_as_maps(relevance))


@jax.jit
def _sparsity(relevance: jax.Array) -> jax.Array:
    ascending = jnp.sort(jnp.abs(relevance).reshape(len(relevance), -1), axis=1)
    size = ascending.shape[1]
    weights = (size - jnp.arange(1, size + 1) + 0.5) / size
    return 1 - 2 * (ascending * weights[None]).sum(1) / ascending.sum(1)


def _as_maps(values: Any) -> jax.Array:
    array = as_array(values, "An explanation")
    if array.ndim < 2 or array.size == 0:
        raise InputError(f"An explanation has the shape (samples, ...) and is not empty, but this has {array.shape}.")
    if not isinstance(array, jax.core.Tracer) and not jnp.isfinite(array).all():
        raise InputError("An explanation must be finite, but this one holds NaN or infinity: it has no order.")
    return array.astype(jnp.result_type(array, float))


def _as_fraction(fraction: Any, whole: str) -> float:
    wanted = f"is a fraction of the {whole}, more than 0 and at most 1"
    return as_number(fraction, "fraction", wanted, lambda fraction: 0 < fraction <= 1)


def _as_alike_maps(a: Any, b: Any) -> tuple[jax.Array, jax.Array]:
    a, b = _as_maps(a), _as_maps(b)
    if a.shape != b.shape:
        raise InputError(f"Two explanations need the same shape to be compared, but they have {a.shape} and {b.shape}.")
    return a, b
