"""What is explained of a model's output: a target, and the cotangent from which relevance starts."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax import composites
from lrp_jax.composites import Composite, Selector
from lrp_jax.core.arguments import as_array, as_numpy, within_memory
from lrp_jax.errors import InputError, ModelError
from lrp_jax.rules import Rule
from lrp_jax.target import Choice, ClassName, Entries, Mask

Target = int | str | Sequence[int] | jax.Array | np.ndarray | Choice | Callable[[Any], Any] | None


def check_places(target: Any, rules: Any, *, takes_target: bool = True) -> None:
    """Refuses rules where the target belongs, and a target where the rules belong.

    Raises:
        InputError: If one of them is the other.
    """
    meant = _rules_in_words(target)
    is_target = isinstance(rules, int | np.integer | Choice) or (isinstance(rules, str) and rules == "all")
    if meant:
        other = f", target={rules!r}" if is_target else ""
        raise InputError(
            f"The target is what is explained of the output, but {meant} says how relevance is propagated. Did you "
            f"mean rules={'...' if meant.startswith('a ') else meant}{other}?"
        )
    if is_target:
        hint = (
            f"Did you mean target={rules!r}?" if takes_target else "A plan is the same for every target: leave it out."
        )
        raise InputError(
            f"The rules say how relevance is propagated, but {rules!r} is a target, which says what is explained of "
            f"the output. {hint}"
        )


def _rules_in_words(value: Any) -> str:
    """Rules as one would write them; empty for anything else."""
    if isinstance(value, Rule):
        return str(value)
    if isinstance(value, Composite):
        return "a composite"
    if isinstance(value, type) and issubclass(value, Rule):
        return f"{value.__name__}()"
    preset = getattr(value, "__name__", "")
    if callable(value) and preset and getattr(composites, preset, None) is value:
        return f"{preset}()"
    pairs = value if isinstance(value, list | tuple) else ()
    if any(isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], Selector) for pair in pairs):
        return "a list of (selector, rule) pairs"
    return ""


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
    check_places(target, None)
    if callable(target):
        return "function", None
    shape = _shape_of(output)
    is_of_shape = isinstance(target, np.ndarray | jax.Array) and target.shape == shape
    if shape and shape[0] != samples and not (is_of_shape and len(shape) != 2):
        raise InputError(
            f"The model returns {shape[0]} outputs for {samples} samples, of shape {shape}, but needs one for each, in "
            "the first dimension. If x is one sample, pass x[None]; of anything else pass a function of the output."
        )
    if isinstance(target, ClassName):
        target = _index_of_class(target, shape)
    if isinstance(target, Entries | Mask):
        if not shape:
            raise InputError(f"The model returns a single number: leave out the target, which is {target!r}.")
        with within_memory("The target"):
            return "mask", jnp.asarray(target.weights(shape))
    if len(shape) != 2:
        return "mask", _mask_of_any_shape(target, shape)
    if not shape[1]:
        raise InputError(f"The model returns no classes, but {shape}: nothing is to explain.")
    if target is None:
        return "largest", None
    if isinstance(target, str):
        if target != "all":
            raise InputError(
                f"The target {target!r} is none: it is a class index, 'all', a mask, a function, or one of "
                "lrp_jax.target. A class has a name with target.name(name, classes)."
            )
        return "all", None
    return _indices_or_mask(target, shape)


def _shape_of(output: Any) -> tuple[int, ...]:
    """The shape of an output, which is one array of differentiable numbers."""
    if hasattr(output, "dtype") and not jnp.issubdtype(output.dtype, jnp.inexact):
        raise ModelError(
            f"The model's output, {output.dtype}{list(output.shape)}, is not differentiable: nothing is to explain. "
            "Explain what comes before an argmax or a comparison, such as the logits."
        )
    if not jax.tree.leaves(output):
        raise ModelError(f"The model returns {output!r}, and no array: is its return missing?")
    if not hasattr(output, "shape"):
        paths = [(jax.tree_util.keystr(path), leaf.ndim) for path, leaf in jax.tree_util.tree_leaves_with_path(output)]
        path, rank = next((entry for entry in paths if entry[1] == 2), paths[0])
        entry = path + "[:, 0]" * (rank == 2)
        raise InputError(
            "A target of this kind needs one array as output, such as (samples, classes), but the model returns "
            f"{jax.tree.map(lambda leaf: leaf.shape, output)}. Explain one of them, as in lambda x: model(x){path}, or "
            f"pass a function of the output that returns what is to be explained, such as lambda output: output{entry}."
        )
    return output.shape


def _index_of_class(target: ClassName, shape: tuple[int, ...]) -> int | tuple[int, ...]:
    if len(shape) != 2:
        raise InputError(
            f"The model returns {shape}, which has other dimensions than samples and classes. Say in which of them the "
            f"class is, and where: target.at[{target!r}, 5, 7], with one place for each dimension after the samples."
        )
    if len(target.classes) != shape[1]:
        raise InputError(
            f"There are {len(target.classes)} names, but the model returns {shape[1]} classes: the names belong to "
            "other outputs."
        )
    return target.index


def _mask_of_any_shape(target: Any, shape: tuple[int, ...]) -> jax.Array:
    """The factors of an output that is not of shape (samples, classes)."""
    if target is None and len(shape) < 2:
        return jnp.ones(shape, bool)
    if shape and not (target is None or isinstance(target, str)):
        mask = as_array(target, "The target")
        if mask.shape == shape:
            return mask
    hint = "leave it out, as there is one output for each sample. For anything else pass"
    if len(shape) > 2:
        places = ", ".join(str(min(2, size - 1)) for size in shape[1:])
        hint = (
            f"choose an entry with target.at[{places}], a box with slices, a segment with target.mask(array), or pass"
        )
    elif not shape:
        hint = "leave it out, as there is one number. For anything else pass"
    raise InputError(
        f"A target of this kind needs an output of shape (samples, classes), but the model returns {shape}: {hint} a "
        "function of the output that returns what is to be explained. If x is one sample, pass x[None]."
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
        if isinstance(array, np.ndarray):
            array = np.broadcast_to(array.astype(np.int32), samples)  # by JAX, it would be compiled
        return "index", jnp.broadcast_to(jnp.asarray(array, jnp.int32), (samples,))


def number_of_targets(target: Target, output: Any) -> int | None:
    """For how many samples a target says something of their own; None if it says the same for all."""
    if isinstance(target, Choice):
        return target.samples(len(getattr(output, "shape", ())))
    return len(target) if not callable(target) and np.ndim(target) else None  # type: ignore[arg-type]  # is a list


def target_of_samples(target: Target, indices: Sequence[int]) -> Target:
    """What a target says for some of the samples, if it says something for each."""
    return target.of_samples(indices) if isinstance(target, Choice) else np.asarray(target)[list(indices)]


def said_of_samples(target: Target) -> Any:
    """What a target says of the samples, as an array by which it is compared; of a class for all of them nothing."""
    if isinstance(target, ClassName):
        return np.asarray(target.index)
    if isinstance(target, Choice):
        return np.frombuffer(repr(target).encode(), np.uint8)
    return np.asarray(target) if not callable(target) and np.ndim(target) else ()  # type: ignore[arg-type]  # is a list


def values_of_samples(values: Any, samples: slice) -> Any:
    """The array of a target for some of the samples; that of an output that is one number is for all of them."""
    return values[samples] if np.ndim(values) else values


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
