"""What is explained of a model's output: a target, and the cotangent from which relevance starts."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax.core.arguments import as_array, as_numpy, within_memory
from lrp_jax.errors import InputError, ModelError

Target = int | str | Sequence[int] | jax.Array | np.ndarray | Callable[[Any], Any] | None


def read_target(target: Any, output: Any, samples: int) -> tuple[str, Any]:
    """The kind of a target ("index", "largest", "all", "mask" or "function") and its array.

    Args:
        target: As for `relevance`.
        output: What the model returns; only shapes and dtypes matter.
        samples: The number of samples.

    Raises:
        InputError: If the target does not fit the output.
        ModelError: If the output is not differentiable.
    """
    if callable(target):
        return "function", None
    if hasattr(output, "dtype") and not jnp.issubdtype(output.dtype, jnp.inexact):
        raise ModelError(
            f"The model's output, {output.dtype}{list(output.shape)}, is not differentiable: nothing is to explain. "
            "Explain what comes before an argmax or a comparison, such as the logits."
        )
    if not hasattr(output, "shape") or len(output.shape) != 2:
        return "mask", _mask_of_any_shape(target, output)
    if output.shape[0] != samples:
        raise InputError(
            f"The model returns {output.shape[0]} outputs for {samples} samples, but needs one for each, in the first "
            "dimension."
        )
    if not output.shape[1]:
        raise InputError(f"The model returns no classes, but {output.shape}: nothing is to explain.")
    if target is None:
        return "largest", None
    if isinstance(target, str):
        if target != "all":
            raise InputError(f"The target {target!r} is none: it is a class index, 'all', a mask or a function.")
        return "all", None
    return _indices_or_mask(target, output.shape)


def _mask_of_any_shape(target: Any, output: Any) -> jax.Array:
    """The factors of an output that is not of shape (samples, classes)."""
    if getattr(output, "shape", ()) and not (target is None or isinstance(target, str)):
        mask = as_array(target, "The target")
        if mask.shape == output.shape:
            return mask
    shape = jax.tree.map(lambda leaf: leaf.shape, output)
    raise InputError(
        f"A target of this kind needs an output of shape (samples, classes), but the model returns {shape}. Pass a "
        "function of the output that returns what is to be explained, or x[None] if x is one sample."
    )


def _indices_or_mask(target: Any, shape: tuple[int, int]) -> tuple[str, jax.Array]:
    samples, classes = shape
    # With NumPy, as JAX would cut off what 32 bits do not hold.
    array: Any = (
        as_array(target, "The target") if isinstance(target, jax.Array) else as_numpy(target, "The target", InputError)
    )
    if array.ndim == 2:
        if array.shape != shape:
            raise InputError(f"A mask needs the output's shape {shape}, but it has {array.shape}.")
        return "mask", jnp.asarray(array)
    if array.ndim > 1 or not jnp.issubdtype(array.dtype, jnp.integer):
        raise InputError(f"A target is an integer for all samples or one for each, not {array.dtype} {array.shape}.")
    if array.ndim == 1 and len(array) != samples:
        raise InputError(f"There are {samples} samples, but {len(array)} targets.")
    if not isinstance(array, jax.core.Tracer) and array.size and not (array.min() >= 0 and array.max() < classes):
        raise InputError(f"The target must be from 0 to {classes - 1}, for {classes} classes, but it is {target}.")
    with within_memory("The target"):
        return "index", jnp.broadcast_to(jnp.asarray(array, jnp.int32), (samples,))


def seed_of(kind: str, values: Any, explained: Any) -> Any:
    """The cotangent from which relevance starts: it multiplies what is explained."""
    if kind == "function":
        return jax.tree.map(jnp.ones_like, explained)
    if kind == "mask":
        return values.astype(explained.dtype)
    classes = explained.argmax(-1) if kind == "largest" else values
    return jax.nn.one_hot(classes, explained.shape[1], dtype=explained.dtype)


def seeds_of_classes(explained: jax.Array) -> jax.Array:
    """The cotangents from which the relevance of every class starts, of shape (classes, samples, classes)."""
    classes = explained.shape[1]
    zeros = jnp.zeros_like(explained, shape=(classes, *explained.shape))  # vary within `jax.shard_map` as it does
    return zeros + jnp.eye(classes, dtype=explained.dtype)[:, None]
