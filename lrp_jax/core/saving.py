"""Files of explanations, composites and rules, which hold arrays and text, and no code.

A file is an archive of NumPy (`.npz`), which NumPy can read on its own, whatever the path ends with:

- Each array is an entry under its place: "relevance", "x", "output", "growth", "at['conv1']", "x['left']" or "x[0]" in
  an explanation. If the place has other characters than letters, digits and these, the entry is called "array_0",
  "array_1" and so on. Arrays of a dtype that NumPy lacks, such as bfloat16, are written as float32, which has all of
  their values.
- The entry "structure" is JSON. Its "lrp_jax" is the version of the format, which is 1. Its "content" says what is made
  of the arrays: the public name of a class with its fields, `{"array": [entry, dtype]}`,
  `{"dict": [[key, value], ...]}`, `{"list": [...]}`, a number, a text.

This reads a file without lrp_jax:

    archive = np.load("explanation.npz")
    maps = archive["relevance"]
    structure = json.loads(archive["structure"].item())
"""

import json
import os
import re
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax import treatments
from lrp_jax.core.arguments import as_new_file, as_path
from lrp_jax.core.equations import Mark
from lrp_jax.core.forms import Form
from lrp_jax.errors import InputError, StoreError

_FORMAT = 1
_PACKAGE = __name__.partition(".")[0]
_SEQUENCES: Mapping[str, Any] = {"list": list, "tuple": tuple, "frozenset": frozenset}
_TREATMENTS = {name: value for name, value in vars(treatments).items() if isinstance(value, treatments.Treatment)}


class Saved:
    """What can be written to a file: explanations, composites and rules."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes this to a file that holds no code. The file moves to its place when it is complete.

        The file is an archive that `numpy.load` reads: each array under its name ("relevance", "at['conv1']"), and as
        "structure" the version of the format and what is made of the arrays, in JSON. What NumPy has no dtype for, such
        as bfloat16, is float32 in it.

        Args:
            path: The file; one that is there is replaced. Its folder must exist.

        Raises:
            InputError: If something in it cannot be written: a rule, a selector or a treatment of your own, a random
                key, a value that is traced, a class of another library.
            StoreError: If the path is none, its folder does not exist, or it cannot be written.
        """
        _write(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads what `save` has written.

        Args:
            path: The file.

        Returns:
            What was written, with JAX arrays of the same dtypes; with a NumPy array where JAX would cut off 64 bits.

        Raises:
            StoreError: If there is no such file, it is none of these or damaged, or was written by a later version.
        """
        loaded = _read(path)
        if not isinstance(loaded, cls):
            kind = type(loaded).__name__
            raise StoreError(f"{str(path)!r} holds a {kind}, and no {cls.__name__}: call {kind}.load.")
        return loaded


def _write(whole: Saved, path: str | os.PathLike[str]) -> None:
    """Writes something to a file, beside its place first, and moves it there when it is complete."""
    arrays: dict[str, np.ndarray] = {}
    described = _describe(whole, type(whole).__name__, arrays)
    structure = json.dumps({"lrp_jax": _FORMAT, "content": described})
    path = as_new_file(path, "path", StoreError)
    try:
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=path.parent) as folder:
            complete = Path(folder) / path.name
            with complete.open("wb") as file:
                np.savez(file, structure=np.array(structure.encode()), **arrays)  # type: ignore[arg-type]  # are no options
            complete.replace(path)
    except OSError as error:
        raise StoreError(f"{str(path)!r} cannot be written: {error}.") from error


def _read(path: str | os.PathLike[str]) -> Any:
    """Reads what `_write` has written."""
    path = as_path(path, "path", StoreError)
    try:
        with np.load(path, allow_pickle=False) as archive:
            described = json.loads(archive["structure"].item())
            version = described["lrp_jax"]
            whole = _restored(described["content"], archive) if version <= _FORMAT else None
    except FileNotFoundError as error:
        raise StoreError(f"There is no file {str(path)!r}.") from error
    except (OSError, EOFError, LookupError, TypeError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise StoreError(
            f"{str(path)!r} is no file that save has written, or is damaged. Restore it, or explain again."
        ) from error
    if version > _FORMAT:
        raise StoreError(f"{str(path)!r} was written by a later version of lrp_jax. Install that one.")
    return whole


def _classes() -> dict[str, type]:
    """The classes that a file may name, by their public names."""
    return {_public_name(cls): cls for cls in (Form, Mark, *_subclasses(Saved))}


def _subclasses(cls: type) -> Iterator[type]:
    """The classes of this package that a class is a base of."""
    subclass: type
    for subclass in cls.__subclasses__():
        if subclass.__module__.partition(".")[0] == _PACKAGE:
            yield subclass
        yield from _subclasses(subclass)


def _public_name(cls: type) -> str:
    """As in "rules.Gamma"; that of a class in a folder of the package without its module, as in "Explanation"."""
    module = cls.__module__.partition(".")[2]
    return cls.__name__ if "." in module else f"{module}.{cls.__name__}"


def _describe(value: Any, place: str, arrays: dict[str, np.ndarray]) -> Any:
    """A value in terms of JSON; its arrays are put into `arrays`."""
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return _describe_array(value, place, arrays)
    if kind in _SEQUENCES.values():
        items = sorted(value) if kind is frozenset else value
        return {kind.__name__: [_describe(item, f"{place}[{i}]", arrays) for i, item in enumerate(items)]}
    if kind is dict and all(type(key) in (str, int) for key in value):
        return {"dict": [[key, _describe(item, f"{place}[{key!r}]", arrays)] for key, item in value.items()]}
    if kind in _classes().values():
        if isinstance(value, Enum):
            return {_public_name(kind): value.value}
        parts = {part.name: getattr(value, part.name) for part in fields(value)}
        return {_public_name(kind): {name: _describe(part, f"{place}.{name}", arrays) for name, part in parts.items()}}
    for name, treatment in _TREATMENTS.items():
        if treatment is value:
            return {"treatment": name}
    raise InputError(
        f"{place} cannot be saved: it is {value!r}. A file holds arrays in dictionaries, lists and tuples, and rules, "
        "selectors and treatments of lrp_jax, but no code and no classes of others. Save what it consists of, or "
        "leave it out with dataclasses.replace."
    )


def _describe_array(array: Any, place: str, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(array, jax.core.Tracer):
        raise InputError(f"{place} cannot be saved: it is traced, and has no value. Call save outside of jax.jit.")
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        raise InputError(f"{place} cannot be saved: it is a random key. Put jax.random.key_data of it in its place.")
    values = np.asarray(array)
    if values.dtype.kind not in "biufcV" or values.dtype.names:
        raise InputError(f"{place} cannot be saved: it is an array of {values.dtype}, and not of numbers.")
    entry = place.partition(".")[2]  # without the name of the class
    name = entry if re.fullmatch(r"[\w.' \[\]-]+", entry, re.ASCII) else f"array_{len(arrays)}"
    is_of_numpy = values.dtype.isbuiltin != 2  # else bfloat16 and the like
    arrays[name] = values if is_of_numpy else values.astype(np.float32)
    return {"array": [name, values.dtype.name]}


def _restored(described: Any, archive: Any) -> Any:
    if not isinstance(described, dict):
        return described
    ((kind, content),) = described.items()
    match kind:
        case "array":
            name, dtype = content
            values = archive[name].astype(jnp.dtype(dtype))
            return jnp.asarray(values) if jax.dtypes.canonicalize_dtype(values.dtype) == values.dtype else values
        case "list" | "tuple" | "frozenset":
            return _SEQUENCES[kind](_restored(item, archive) for item in content)
        case "dict":
            return {key: _restored(item, archive) for key, item in content}
        case "treatment":
            return _TREATMENTS[content]
    cls = _classes()[kind]
    if issubclass(cls, Enum):
        return cls(content)
    return cls(**{name: _restored(part, archive) for name, part in content.items()})
