"""What is explained of a model's output: entries, boxes, segments, and classes by name.

    relevance(model, x, target.at[2, 5, 7])               # one entry of each sample's output
    relevance(model, x, target.at[2, 5:9, 3:8])           # the sum over a box
    relevance(model, x, target.mask(segment))             # the sum over a segment, or any other weighted sum
    relevance(model, x, target.name("tabby", classes))    # a class by its name

Indices follow the order of the dimensions in the model's own output, after that of the samples. A network that returns
(samples, classes, rows, columns), as in PyTorch, takes `target.at[class, row, column]`. One that returns (samples,
rows, columns, classes), as in Flax and Keras, takes `target.at[row, column, class]`.
"""

import difflib
import operator
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax.core.arguments import as_array, as_numpy, broadcasts, kind_of
from lrp_jax.core.text import array_digest
from lrp_jax.errors import InputError

__all__ = ["Choice", "ClassName", "Entries", "Mask", "at", "mask", "name"]

Place: TypeAlias = int | tuple[int, ...] | slice | EllipsisType | jax.Array


class Choice:
    """What `at`, `mask` and `name` return: a choice among the entries of an output."""

    def samples(self, rank: int) -> int | None:
        """For how many samples it says something of their own; None if it says the same for all.

        Args:
            rank: The number of dimensions of the model's output, that of the samples included.
        """
        raise NotImplementedError

    def of_samples(self, indices: Sequence[int]) -> "Choice":
        """What it says for some of the samples, if it says something for each."""
        raise NotImplementedError

    def check(self, shape: tuple[int, ...]) -> None:
        """Refuses an output that it does not fit, of some shape with the samples first.

        Raises:
            InputError: If it does not fit.
        """
        targets = self.samples(len(shape))
        if shape and targets is not None and targets != shape[0]:
            raise InputError(f"There are {shape[0]} samples, but {targets} targets: {self!r}.")


@dataclass(frozen=True)
class Entries(Choice):
    """One entry of each sample's output, or a box of them, whose sum is explained. `target.at[...]` makes it.

    Attributes:
        places: For each dimension after that of the samples an index, a slice, or one index for each sample.
    """

    places: tuple[Place, ...]

    def __repr__(self) -> str:
        return f"target.at[{', '.join(map(_in_words, self.places))}]"

    def __hash__(self) -> int:  # slices have none before Python 3.12
        return hash(repr(self))

    def samples(self, rank: int) -> int | None:
        return next((len(place) for place in self.places if _is_per_sample(place)), None)  # type: ignore[arg-type]  # a list

    def of_samples(self, indices: Sequence[int]) -> "Entries":
        return Entries(tuple(tuple(p[i] for i in indices) if isinstance(p, tuple) else p for p in self.places))

    def weights(self, shape: tuple[int, ...]) -> Any:
        """Whether an entry is chosen.

        Args:
            shape: The shape of the output, the samples first.

        Returns:
            Array of this shape, of truth values.

        Raises:
            InputError: If there are more places than dimensions, or a place is not in its dimension.
        """
        super().check(shape)
        chosen: Any = np.ones(shape, bool)
        for axis, row in enumerate(self._rows(shape), 1):
            chosen = chosen & row.reshape(-1, *(1,) * (axis - 1), shape[axis], *(1,) * (len(shape) - axis - 1))
        return chosen

    def check(self, shape: tuple[int, ...]) -> None:
        super().check(shape)
        self._rows(shape)

    def _rows(self, shape: tuple[int, ...]) -> list[Any]:
        """For each dimension after the samples, which of its indices are chosen, of shape (1 or samples, size)."""
        return [self._row(place, axis, shape) for axis, place in enumerate(self._places_of(shape), 1)]

    def _places_of(self, shape: tuple[int, ...]) -> list[Place]:
        """A place for each dimension of a sample's output."""
        given = list(self.places)
        if not any(place is Ellipsis for place in given):
            given.append(Ellipsis)
        missing = len(shape) - len(given)  # the samples have none
        if missing < 0:
            raise InputError(
                f"{self} has {len(given) - 1} places, but the output has the shape {shape}: there is one for each "
                f"dimension after the samples, {len(shape) - 1}."
            )
        cut = [place is Ellipsis for place in given].index(True)
        return [*given[:cut], *[slice(None)] * missing, *given[cut + 1 :]]

    def _row(self, place: Any, axis: int, shape: tuple[int, ...]) -> Any:
        size, where = shape[axis], f"{self} does not fit the output of shape {shape}"
        if isinstance(place, slice):
            row = np.zeros((1, size), bool)
            row[:, place] = True
            if size and not row.any():
                raise InputError(
                    f"{where}: {_in_words(place)} chooses nothing of the {size} indices in dimension {axis}."
                )
            return row
        if not isinstance(place, jax.Array):
            place = np.asarray(place)
            if not ((-size <= place) & (place < size)).all():
                raise InputError(
                    f"{where}: an index in dimension {axis} is from 0 to {size - 1}, or negative from the end."
                )
        return np.arange(size) == (place + size * (place < 0)).reshape(-1, 1)


@dataclass(frozen=True, eq=False)
class Mask(Choice):
    """Factors of the output's entries, whose weighted sum is explained. `target.mask` makes it.

    Attributes:
        array: The factors, of a shape that broadcasts to that of the output, or of one sample's.
    """

    array: Any

    def __repr__(self) -> str:
        dtype, shape, *values = array_digest(self.array) if not _is_traced(self.array) else ("", "", "traced")
        return f"target.mask({dtype}{shape} {values[0][:12]})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mask) and array_digest(self.array) == array_digest(other.array)

    def __hash__(self) -> int:
        return hash(array_digest(self.array))

    def samples(self, rank: int) -> int | None:
        return len(self.array) if self.array.ndim == rank and len(self.array) != 1 else None

    def of_samples(self, indices: Sequence[int]) -> "Mask":
        return Mask(self.array[np.asarray(indices, int)])

    def check(self, shape: tuple[int, ...]) -> None:
        is_by_sample = self.array.ndim == len(shape)
        if self.array.ndim > len(shape) or not broadcasts(self.array.shape, shape if is_by_sample else shape[1:]):
            raise InputError(
                f"The mask has the shape {self.array.shape}, and broadcasts neither to the output's, {shape}, nor to "
                f"that of one sample's output, {shape[1:]}. A mask for each sample has all dimensions: give it those "
                "that are missing with mask[:, None]."
            )

    def weights(self, shape: tuple[int, ...]) -> Any:
        """The factors, in the shape of the output.

        Raises:
            InputError: If they do not broadcast to it.
        """
        self.check(shape)
        return jnp.broadcast_to(self.array, shape)


@dataclass(frozen=True)
class ClassName(Choice):
    """A class by its name, or one for each sample. `target.name` makes it.

    Attributes:
        names: The name, or one for each sample.
        classes: The names of all classes, in the order of the outputs.
    """

    names: str | tuple[str, ...]
    classes: tuple[str, ...]

    def __repr__(self) -> str:
        return f"target.name({self.names!r}, <{len(self.classes)} classes>)"

    @property
    def index(self) -> int | tuple[int, ...]:
        """The index of the class, or one for each sample."""
        if isinstance(self.names, str):
            return _index_of(self.names, self.classes)
        return tuple(_index_of(name, self.classes) for name in self.names)

    def samples(self, rank: int) -> int | None:
        return None if isinstance(self.names, str) else len(self.names)

    def of_samples(self, indices: Sequence[int]) -> "ClassName":
        return ClassName(tuple(self.names[i] for i in indices), self.classes)


class _At:
    """Makes `Entries` from what stands in square brackets."""

    def __getitem__(self, places: Any) -> Entries:
        given = tuple(map(_as_place, places if isinstance(places, tuple) else (places,)))
        if sum(place is Ellipsis for place in given) > 1:
            raise InputError(
                f"{Entries(given)} has several ellipses, so that it is not known what the others stand for."
            )
        if len({len(place) for place in given if _is_per_sample(place)}) > 1:  # type: ignore[arg-type]  # a list
            raise InputError(f"{Entries(given)} has lists of different lengths: each has one index for each sample.")
        return Entries(given)

    def __repr__(self) -> str:
        return "target.at[...]"


at = _At()
"""Chooses an entry of each sample's output, or a box, whose sum is explained.

In square brackets stand the indices of one sample's output, in the order of the model's own: `target.at[2, 5, 7]` is
class 2 at row 5 and column 7 of an output of shape (samples, classes, rows, columns).

- Slices choose a box: `target.at[2, 5:9, 3:8]`.
- A list has one index for each sample: `target.at[[2, 0, 1], 5, 7]`.
- A dimension that is left out is taken whole, as with an array of NumPy, and `...` takes the place of any number of
  them: `target.at[..., 2]` is class 2 everywhere, in an output with the classes last.
- Negative indices count from the end.
- A class may have its name: `target.at[target.name("cat", classes), 5, 7]`.

Example:
    >>> from lrp_jax import relevance, rules, target
    >>> weight = jnp.array([[1.0, -1.0], [3.0, 2.0]])
    >>> steps = jnp.array([[[2.0, 1.0], [4.0, 1.0]]])  # one sample of two steps, and two outputs for each
    >>> relevance(lambda x: x @ weight, steps, target.at[1, 0], rules.Zero()).relevance
    Array([[[0., 0.],
            [4., 3.]]], dtype=float32)
"""


def mask(array: Any) -> Mask:
    """Chooses a segment of the output, whose sum is explained, or any other weighted sum of its entries.

    Args:
        array: The factors of the output's entries, numbers or truth values. If it has as many dimensions as the output,
            it holds one mask for each sample (or has a first dimension of 1, and is the mask of all). If it has fewer,
            it is the mask of every sample. It broadcasts to the output as in NumPy: a segment of shape (rows, columns)
            chooses pixels of all classes in an output of shape (samples, classes, rows, columns).

    Returns:
        A target for `relevance`, `ledger`, `explain_dataset`, the baselines and `pixel_flipping`.

    Raises:
        InputError: If it holds no real numbers; (when applied) if it does not broadcast to the output.

    Example:
        >>> from lrp_jax import relevance, rules, target
        >>> weight = jnp.array([[1.0, -1.0], [3.0, 2.0]])
        >>> steps = jnp.array([[[2.0, 1.0], [4.0, 1.0]]])
        >>> last_less_first = target.mask([[-1.0, 0.0], [1.0, 0.0]])  # of output 0
        >>> relevance(lambda x: x @ weight, steps, last_less_first, rules.Zero()).relevance
        Array([[[-2., -3.],
                [ 4.,  3.]]], dtype=float32)
    """
    return Mask(as_array(array, "A mask"))


def name(names: str | Sequence[str], classes: Sequence[str] | Mapping[int, str]) -> ClassName:
    """Chooses a class by its name.

    The name is looked for as you write it first, and then ignoring case and underscores, also among synonyms that are
    separated by commas ("tabby, tabby cat").

    Args:
        names: The name of the class, or a list of names, one for each sample.
        classes: The names of all classes in the order of the model's outputs, or a mapping from the index to the name,
            such as `id2label` of Hugging Face.

    Returns:
        A target for `relevance`, `ledger`, `explain_dataset`, the baselines and `pixel_flipping`, for outputs of shape
        (samples, classes). For other outputs, use it as an index in `target.at`.

    Raises:
        InputError: If no class has that name, or several have it.

    Example:
        >>> from lrp_jax import target
        >>> target.name("lynx", ["tabby", "lynx"]).index
        1
        >>> target.name("tabbi", ["tabby", "lynx"])
        Traceback (most recent call last):
        ...
        lrp_jax.errors.InputError: No class has the name 'tabbi'. Did you mean 'tabby'?
    """
    if isinstance(classes, str) or not isinstance(classes, Sequence | Mapping | np.ndarray):
        raise InputError(f"classes are the names of all classes, in the order of the outputs, not {kind_of(classes)}.")
    if isinstance(classes, Mapping):
        try:
            classes = [classes[i] for i in range(len(classes))]
        except KeyError as missing:
            raise InputError(
                f"classes is a mapping from 0 to {len(classes) - 1} to names, but has no {missing}."
            ) from None
    is_list = not isinstance(names, str) and isinstance(names, Sequence | np.ndarray)
    # A text, or refused below, which the type checker does not see.
    chosen = ClassName(tuple(map(str, names)) if is_list else names, tuple(map(str, classes)))  # type: ignore[arg-type]
    if not is_list and not isinstance(names, str):
        raise InputError(f"The name of a class is a text, not {kind_of(names)}. Pass an index as the target itself.")
    chosen.index  # noqa: B018  # raises if there is no such class
    return chosen


def _index_of(wanted: str, classes: Sequence[str]) -> int:
    """The index of the class with a name.

    Raises:
        InputError: If there is none, or several.
    """
    spelled = [{_plain(part) for part in (whole, *whole.split(","))} for whole in classes]
    found = [i for i, whole in enumerate(classes) if whole == wanted]
    found = found or [i for i, names in enumerate(spelled) if _plain(wanted) in names]
    if len(found) > 1:
        raise InputError(f"{len(found)} classes have the name {wanted!r}: pass one of their indices, {found}, instead.")
    if not found:
        names = {_plain(part): part.strip() for whole in reversed(classes) for part in (*whole.split(","), whole)}
        near = difflib.get_close_matches(_plain(wanted), names, n=5)
        near += [plain for plain in names if _plain(wanted) in plain and plain not in near][: 5 - len(near)]
        hint = f"Did you mean {', '.join(repr(names[plain]) for plain in near)}?" if near else "There are: "
        raise InputError(f"No class has the name {wanted!r}. {hint}{'' if near else reprlib.repr(list(classes)) + '.'}")
    return found[0]


def _plain(text: str) -> str:
    """A name without what is a matter of spelling."""
    return " ".join(text.replace("_", " ").casefold().split())


def _as_place(place: Any) -> Place:
    """What stands between two commas."""
    if isinstance(place, ClassName):
        return place.index
    if place is Ellipsis:
        return Ellipsis
    if isinstance(place, slice):
        try:
            ends = (place.start, place.stop, place.step)
            return slice(*(None if end is None else operator.index(end) for end in ends))
        except TypeError:
            raise InputError(
                f"target.at[{_in_words(place)}]: the ends of a slice are integers that are known."
            ) from None
    array: Any = place if _is_traced(place) else as_numpy(place, "A place in target.at", InputError)
    if array.ndim > 1 or not jnp.issubdtype(array.dtype, jnp.integer):
        raise InputError(
            f"A place in target.at is an integer, a slice, or a list with one integer for each sample, not "
            f"{reprlib.repr(place)}. For anything else there is target.mask."
        )
    if _is_traced(array):
        return array
    return tuple(array.tolist()) if array.ndim else int(array)


def _is_per_sample(place: Place) -> bool:
    return isinstance(place, tuple) or (isinstance(place, jax.Array) and place.ndim > 0)


def _is_traced(value: Any) -> bool:
    return isinstance(value, jax.core.Tracer)


def _in_words(place: Any) -> str:
    if isinstance(place, slice):
        parts = [place.start, place.stop] if place.step is None else [place.start, place.stop, place.step]
        return ":".join("" if part is None else str(part) for part in parts)
    return "..." if place is Ellipsis else str(list(place)) if isinstance(place, tuple) else str(place)
