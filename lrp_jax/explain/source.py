"""A data set as a source of samples: read in batches, prepared, each with its target."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax.errors import InputError
from lrp_jax.explain.fingerprint import describe, digest
from lrp_jax.explain.targets import Target, number_of_targets, read_target, target_of_samples
from lrp_jax.target import Choice


def _is_indexed(source: Any) -> bool:
    return hasattr(source, "__len__") and hasattr(source, "__getitem__")


def number_of(elements: Any) -> int | None:
    """The number of elements, None if only their end says it."""
    return len(elements) if _is_indexed(elements) else None


def peek(source: Iterable[Any]) -> tuple[Any, Any]:
    """The first element, and all of them.

    Raises:
        InputError: If the source is empty, or is a mapping.
    """
    parts = source if isinstance(source, Mapping) else getattr(source, "_fields", ())
    if parts:
        raise InputError(
            f"The source is a {type(source).__name__} of {', '.join(map(repr, parts))}, but a data set has one element "
            "for each sample. Pass the array that holds the inputs."
        )
    if isinstance(source, jax.Array):
        source = np.asarray(source)
    if _is_indexed(source):
        first: list[Any] = list(_read(source, range(min(1, len(source)))))  # type: ignore[arg-type]  # has an index
        elements: Any = source
    else:
        iterator = iter(source)
        first = list(itertools.islice(iterator, 1))
        elements = itertools.chain(first, iterator)
    if not first:
        raise InputError("The source is empty: there is nothing to explain. A generator can be read only once.")
    return first[0], elements


def _read(source: Any, indices: Sequence[int]) -> Iterator[Any]:
    """The elements with some indices, read when the first is asked for.

    Raises:
        InputError: If the source has no element for each.
    """
    try:
        if hasattr(source, "__getitems__"):  # reads records together, which is faster
            elements = list(source.__getitems__(list(indices)))
        else:
            elements = [source[i] for i in indices]
    except (IndexError, StopIteration) as error:
        raise InputError(
            f"The source says that it has {len(source)} elements, but it ends among those from {indices[0]} to "
            f"{indices[-1]}: {error!r}. Give it the length that it has."
        ) from error
    if len(elements) != len(indices):
        raise InputError(
            f"The source returned {len(elements)} elements for the {len(indices)} from {indices[0]} to {indices[-1]}. "
            "It must return one for each: filter it before, so that its length is that of what is left."
        )
    yield from elements


def own_batches(number: int, size: int) -> Iterator[range]:
    """The indices of the batches that this process explains."""
    for start in range(jax.process_index() * size, number, jax.process_count() * size):
        yield range(start, min(start + size, number))


def sample_of(prepare: Callable[[Any], Any] | None, element: Any) -> Any:
    """The sample that an element becomes, with NumPy arrays of dtypes that JAX has."""

    def as_array(leaf: Any) -> np.ndarray:
        array = np.asarray(leaf)
        if array.dtype.kind not in "biufcV":  # V: bfloat16 and the like
            raise InputError(
                f"An element holds {array.dtype}. Pass as prepare a function that returns the input of the model."
            )
        return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)

    sample = jax.tree.map(as_array, prepare(element) if prepare else element)
    if not jax.tree.leaves(sample):
        raise InputError(f"{'prepare returned' if prepare else 'An element is'} {sample!r}, which holds no array.")
    return sample


@dataclass(frozen=True)
class Source:
    """A data set, whose elements are turned into samples with their targets.

    Attributes:
        elements: One for each sample: with a length and an index, or an iterable.
        prepare: What turns an element into a sample; None if it is one.
        like: The first sample, whose shapes and dtypes all have.
        targets_of: Returns the targets of elements with some indices; None if no target is given.
    """

    elements: Any
    prepare: Callable[[Any], Any] | None
    like: Any
    targets_of: Callable[[Sequence[Any], Sequence[int]], np.ndarray | None]

    @property
    def number(self) -> int | None:
        """The number of samples, None if only the end of the elements says it."""
        return number_of(self.elements)

    def read(self, indices: Sequence[int]) -> list[Any]:
        """The elements with some indices, of a source that has them."""
        return list(_read(self.elements, indices))

    def batches(self, size: int) -> Iterator[tuple[range, Iterable[Any]]]:
        """The indices and the elements of the batches that this process explains; indexed ones are not yet read."""
        if self.number is not None:
            for indices in own_batches(self.number, size):
                yield indices, _read(self.elements, indices)
            return
        iterator = iter(self.elements)
        for batch in itertools.count():
            read = list(itertools.islice(iterator, size))
            if not read:
                return
            if batch % jax.process_count() == jax.process_index():
                yield range(batch * size, batch * size + len(read)), read

    def prepared(self, elements: Sequence[Any], indices: Sequence[int]) -> tuple[list[Any], Any, np.ndarray]:
        """The samples of elements with some indices, their targets, and the digest of each."""
        samples = [sample_of(self.prepare, element) for element in elements]
        expected = describe(self.like)
        for index, sample in zip(indices, samples, strict=True):
            if (found := describe(sample)) != expected:
                raise InputError(
                    f"Sample {index} is {found}, but the first is {expected}. All samples need one shape and dtype, "
                    "which prepare can give them."
                )
        targets = self.targets_of(elements, indices)
        each = [None] * len(samples) if targets is None else targets
        return samples, targets, np.stack([digest(pair) for pair in zip(samples, each, strict=True)])


def read_targets(
    target: Target, target_of: Callable[[Any], int] | None, output: Any, number: int | None
) -> tuple[Any, Callable[[Sequence[Any], Sequence[int]], np.ndarray | None]]:
    """The kind of target, as `read_target` has it, and a function that returns the targets of elements."""
    targets = number_of_targets(target, output)
    if number is None:
        number = 1 if targets is None else targets

    def resized(samples: int) -> Any:
        def of_samples(leaf: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((samples, *leaf.shape[1:]) if leaf.shape else (), leaf.dtype)

        return jax.tree.map(of_samples, output)

    checked, few = target, number
    if isinstance(target, Choice):  # whose entries for all samples may be too many for the memory
        target.check(getattr(resized(number), "shape", ()))
        few = min(1, number)
        checked = target if targets is None else target.of_samples(range(few))
    kind, _ = read_target(0 if target_of else checked, resized(few), few)

    def targets_of(elements: Sequence[Any], indices: Sequence[int]) -> np.ndarray | None:
        chosen: Any = target
        if target_of is not None:
            pairs = zip(indices, elements, strict=True)
            chosen = np.array([_class_of(target_of, element, i, output.shape[1]) for i, element in pairs])
        elif targets is not None:
            chosen = target_of_samples(target, [i for i in indices if i < targets])
        _, values = read_target(chosen, resized(len(elements)), len(elements))
        return None if values is None else np.asarray(values)

    return kind, targets_of


def _class_of(target_of: Callable[[Any], int], element: Any, index: int, classes: int) -> int:
    value = target_of(element)
    try:
        array = np.asarray(value)
        fits = array.ndim == 0 and jnp.issubdtype(array.dtype, jnp.integer) and 0 <= int(array) < classes
    except ValueError:  # a list of lists of different lengths
        fits = False
    if not fits:
        raise InputError(
            f"target_of returned {value!r} for sample {index}, but a target is a class: an integer from 0 to "
            f"{classes - 1}."
        )
    return int(value)
