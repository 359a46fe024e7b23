"""What a traced program says: primitives, their parameters, their wiring, and the shapes and dtypes of its values."""

import functools
import hashlib
import inspect
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from lrp_jax.core.equations import PieceName


class Text:
    """What a program says, as a tree of tuples whose hash is computed once."""

    __slots__ = ("_hash", "_words")

    def __init__(self, words: tuple[Any, ...]) -> None:
        self._words = words
        self._hash = hash(words)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Text) and self._hash == other._hash and self._words == other._words

    def __repr__(self) -> str:
        return f"Text({self.digest()[:16]})"

    def digest(self) -> str:
        """The SHA-256 of the text; the same in every process."""
        return hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", repr(self._words)).encode()).hexdigest()


# How a derivative is computed does not change what is computed, nor does where to remember values on the way.
_UNREAD = frozenset("jvp_jaxpr_fun fwd_jaxpr_thunk bwd out_trees policy debug_info logging_record".split())
_UNCHANGING = str | bool | int | float | tuple


@dataclass(frozen=True)
class _Same:
    """Something that equals nothing but itself."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)

    def __repr__(self) -> str:
        return f"{type(self.value).__name__} {getattr(self.value, '__qualname__', '')}"


def text_of(jaxpr: Jaxpr) -> tuple[Text, tuple[Any, ...]]:
    """What a program says, and the treatments that `lrp_jax.mark.piece` has put into it."""
    writer = _Writer()
    return Text(writer.words(jaxpr)), tuple(writer.treatments)


class _Writer:
    def __init__(self) -> None:
        self.treatments: list[Any] = []
        self._known: dict[int, tuple[Any, Any]] = {}
        self._stacks: dict[int, tuple[Any, str]] = {}
        self._reading: set[int] = set()  # the functions that are being read: one may hold itself

    def words(self, jaxpr: Jaxpr) -> tuple[Any, ...]:
        """The text of a program."""
        numbers: dict[Any, int] = {}

        def atom(atom: Any) -> Any:
            if isinstance(atom, Literal):
                return self._value(atom.val), atom.aval
            if atom not in numbers:
                numbers[atom] = len(numbers)
                return numbers[atom], atom.aval
            return numbers[atom]

        return (
            tuple(map(atom, jaxpr.constvars)),
            tuple(map(atom, jaxpr.invars)),
            tuple(
                (
                    equation.primitive.name,
                    self._stack(equation.source_info.name_stack),
                    tuple(map(atom, equation.invars)),
                    tuple(map(atom, equation.outvars)),
                    *(
                        (name, self._value(value))
                        for name, value in sorted(equation.params.items())
                        if name not in _UNREAD
                    ),
                )
                for equation in jaxpr.eqns
            ),
            tuple(map(atom, jaxpr.outvars)),
        )

    def _stack(self, stack: Any) -> str:
        if id(stack) not in self._stacks:
            self._stacks[id(stack)] = stack, str(stack)
        return self._stacks[id(stack)][1]

    def _value(self, value: Any) -> Any:
        if isinstance(value, PieceName):
            self.treatments.append(value.treatment)
            return str(value), *(self._value(getattr(value.treatment, part.name)) for part in fields(value.treatment))
        if value is None or isinstance(value, str | bytes):
            return value
        if isinstance(value, bool | int | float | complex):
            return type(value).__name__, repr(value)  # 1, 1.0 and True are equal, and so are 0.0 and -0.0
        if isinstance(value, tuple | list):
            return type(value).__name__, *map(self._value, value)
        if isinstance(value, Mapping):
            return "dict", *((self._value(key), self._value(item)) for key, item in value.items())
        if isinstance(value, set | frozenset):
            return "set", *sorted(map(repr, value))
        if isinstance(value, ClosedJaxpr | Jaxpr):
            return self._program(value)
        if isinstance(value, np.ndarray | np.generic) and value.ndim == 0:
            return str(value.dtype), value.tobytes()
        if isinstance(value, jax.Array | np.ndarray):
            return array_digest(value)
        if _is_function(value):
            return self._function(value)
        if callable(value) and is_dataclass(value) and _is_of_jax(type(value)):  # around a function of the user
            return type(value), *(self._value(getattr(value, part.name)) for part in fields(value))
        try:
            hash(value)
        except TypeError:
            return _Same(value)
        return value

    def _program(self, value: ClosedJaxpr | Jaxpr) -> Any:
        if id(value) not in self._known:
            jaxpr = value.jaxpr if isinstance(value, ClosedJaxpr) else value
            constants = value.consts if isinstance(value, ClosedJaxpr) else ()
            said = (self.words(jaxpr), *map(array_digest, constants))
            self._known[id(value)] = value, said
        return self._known[id(value)][1]

    def _function(self, function: Any) -> Any:
        """A function by its code and what it closes over; two that were defined by the same line may be equal."""
        if isinstance(function, functools.partial):
            return "partial", *map(self._value, (function.func, function.args, function.keywords))
        if isinstance(function, types.MethodType):
            return self._function(function.__func__), _Same(function.__self__)
        if id(function) in self._reading:
            return _Code(function.__code__)
        cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
        held = [*cells, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        self._reading.add(id(function))
        read = self._value if _is_of_jax(function) else self._held  # JAX changes nothing in its closures
        said = _Code(function.__code__), *map(read, held)
        self._reading.remove(id(function))
        return said

    def _held(self, value: Any) -> Any:
        """What a function holds: by what it says if that cannot change, else by which it is."""
        return self._value(value) if _is_function(value) or isinstance(value, _UNCHANGING) else _Same(value)


@dataclass(frozen=True)
class _Code:
    code: types.CodeType

    def __repr__(self) -> str:
        return self.code.co_qualname


def _is_function(value: Any) -> bool:
    return inspect.isfunction(value) or isinstance(value, types.MethodType | functools.partial)


def _is_of_jax(value: Any) -> bool:
    return str(value.__module__).partition(".")[0] == "jax"


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018  # raises if there is nothing in it
    except ValueError:
        return False
    return True


def array_digest(array: Any) -> tuple[str, ...]:
    """An array's dtype, its shape, and the SHA-256 of its values; a tracer, which has no values, is only itself."""
    if isinstance(array, jax.core.Tracer):
        return "tracer", _Same(array)  # type: ignore[return-value]  # is no text either
    is_key = jnp.issubdtype(jnp.result_type(array), jax.dtypes.prng_key)
    values = np.asarray(jax.random.key_data(array) if is_key else array)
    return str(values.dtype), str(values.shape), hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
