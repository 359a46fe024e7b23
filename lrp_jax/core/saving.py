"""Files of explanations, composites and rules, which hold arrays and text, and no code.

A file is an archive of NumPy (`.npz`). Its entry "structure" is JSON that says what is made of the arrays.
"""

import importlib
import json
import os
import tempfile
import zipfile
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax.errors import InputError, StoreError

_FORMAT = 1
_PACKAGE = __name__.partition(".")[0]
_MODULES = ("composites", "core.equations", "core.forms", "explain.relevance", "rules")  # whose classes a file may name


class Saved:
    """What can be written to a file: explanations, composites and rules."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes this to a file that holds no code, beside its place first, and moves it there when it is complete.

        Args:
            path: The file; one that is there is replaced. Its folder must exist.

        Raises:
            InputError: If something in it cannot be written: a rule, a selector or a treatment of your own, a random
                key, a value that is traced, a class of another library.
            StoreError: If the path cannot be written.
        """
        arrays: dict[str, np.ndarray] = {}
        described = _describe(self, type(self).__name__, arrays)
        structure = json.dumps({"lrp_jax": _FORMAT, "content": described})
        path = Path(path)
        try:
            with tempfile.TemporaryDirectory(prefix=".saving-", dir=path.parent) as folder:
                complete = Path(folder) / path.name
                with complete.open("wb") as file:
                    np.savez(file, structure=np.array(structure.encode()), **arrays)  # type: ignore[arg-type]  # are no options
                complete.replace(path)
        except OSError as error:
            raise StoreError(
                f"{str(path)!r} cannot be written: {error}. Give the path of a file in a folder."
            ) from error

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
        try:
            with np.load(path, allow_pickle=False) as archive:
                described = json.loads(archive["structure"].item())
                version = described["lrp_jax"]
                loaded = _restored(described["content"], archive) if version <= _FORMAT else None
        except FileNotFoundError as error:
            raise StoreError(f"There is no file {os.fspath(path)!r}.") from error
        except (OSError, EOFError, LookupError, TypeError, ValueError, AttributeError, zipfile.BadZipFile) as error:
            raise StoreError(
                f"{os.fspath(path)!r} is no file that save has written, or is damaged. Restore it, or explain again."
            ) from error
        if version > _FORMAT:
            raise StoreError(f"{os.fspath(path)!r} was written by a later version of lrp_jax. Install that one.")
        if not isinstance(loaded, cls):
            raise StoreError(
                f"{os.fspath(path)!r} holds a {type(loaded).__name__}, and no {cls.__name__}: call "
                f"{type(loaded).__name__}.load."
            )
        return loaded


def _describe(value: Any, place: str, arrays: dict[str, np.ndarray]) -> Any:
    """A value in terms of JSON; its arrays are put into `arrays`."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return _describe_array(value, place, arrays)
    if type(value) in (list, tuple, frozenset):
        items = sorted(value) if type(value) is frozenset else value
        return {type(value).__name__: [_describe(item, f"{place}[{i}]", arrays) for i, item in enumerate(items)]}
    if type(value) is dict and all(type(key) in (str, int) for key in value):
        return {"dict": [[key, _describe(item, f"{place}[{key!r}]", arrays)] for key, item in value.items()]}
    package, _, module = type(value).__module__.partition(".")
    if package == _PACKAGE and module in _MODULES:
        name = f"{module}.{type(value).__name__}"
        if isinstance(value, Enum):
            return {name: value.value}
        if is_dataclass(value):
            parts = {part.name: getattr(value, part.name) for part in fields(value)}
            return {name: {part: _describe(item, f"{place}.{part}", arrays) for part, item in parts.items()}}
    treatments = vars(importlib.import_module(f"{_PACKAGE}.treatments")).items()
    if package == _PACKAGE and (names := [name for name, treatment in treatments if treatment is value]):
        return {"treatment": names[0]}
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
    name = f"array_{len(arrays)}"
    is_of_numpy = values.dtype.kind != "V"  # else bfloat16 and the like
    arrays[name] = values if is_of_numpy else values.view(f"u{values.dtype.itemsize}")
    return {"array": [name, values.dtype.name]}


def _restored(described: Any, archive: Any) -> Any:
    if not isinstance(described, dict):
        return described
    ((kind, content),) = described.items()
    match kind:
        case "array":
            name, dtype = content
            values = archive[name].view(jnp.dtype(dtype))
            return jnp.asarray(values) if jax.dtypes.canonicalize_dtype(values.dtype) == values.dtype else values
        case "list" | "tuple" | "frozenset":
            return {"list": list, "tuple": tuple, "frozenset": frozenset}[kind](_restored(c, archive) for c in content)
        case "dict":
            return {key: _restored(item, archive) for key, item in content}
        case "treatment":
            return getattr(importlib.import_module(f"{_PACKAGE}.treatments"), content)
    module, _, name = kind.rpartition(".")
    if module not in _MODULES:
        raise ValueError(f"it names {kind}")
    made: Any = getattr(importlib.import_module(f"{_PACKAGE}.{module}"), name)
    if issubclass(made, Enum):
        return made(content)
    if made.__module__ != f"{_PACKAGE}.{module}" or not hasattr(made, "__dataclass_fields__"):
        raise ValueError(f"it names {kind}")
    return made(**{part: _restored(item, archive) for part, item in content.items()})
