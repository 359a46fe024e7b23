"""What is asked of arguments at the door of a function, so that what does not fit is refused in words."""

import contextlib
import inspect
import operator
import os
import reprlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lrp_jax.errors import InputError, LRPError

MOST = 2**31 - 1
"""The largest number of steps, samples or classes, which are counted in 32 bits."""


def in_words(arrays: Any) -> Any:
    """The dtype and the shape of arrays, in the same pytree.

    Example:
        >>> in_words({"tokens": np.zeros((2, 3), np.int32)})
        {'tokens': 'int32[2, 3]'}
    """
    return jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", arrays)


def as_array(values: Any, name: str) -> jax.Array:
    """Real numbers as an array of JAX.

    Args:
        values: A number, an array, or lists of them.
        name: What the values are, for the error.

    Raises:
        InputError: If they are something else, or do not fit into memory.

    Example:
        >>> as_array([1, 2], "x")
        Array([1, 2], dtype=int32)
    """
    return _as_real(jnp.asarray, values, name, InputError)


def as_numpy(values: Any, name: str, error: type[LRPError]) -> NDArray[Any]:
    """As `as_array`, as an array of NumPy, whose numbers are known.

    Example:
        >>> as_numpy([1, 2], "The image", InputError)
        array([1, 2])
    """
    return _as_real(np.asarray, values, name, error)


def _as_real(convert: Callable[[Any], Any], values: Any, name: str, error: type[LRPError]) -> Any:
    try:
        with within_memory(name, error):
            array = None if isinstance(values, np.ma.MaskedArray) else convert(values)
    except LRPError:
        raise
    except Exception as cause:  # what a conversion can raise is up to the object
        raise error(f"{name} must be real numbers, but it is {kind_of(values)}, of which no array is made.") from cause
    if array is None or not is_real(array.dtype):
        raise error(f"{name} must be real numbers, but it is {kind_of(values)}.")
    return array


def is_real(dtype: Any) -> bool:
    """Whether a dtype is one of real numbers or truth values.

    Example:
        >>> is_real(np.dtype("float32")), is_real(np.dtype("complex64"))
        (True, False)
    """
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.bool, jnp.integer, jnp.floating))


def is_array_like(value: Any) -> bool:
    """Whether JAX takes something as an array: one, or a number.

    Example:
        >>> is_array_like(np.zeros(2)), is_array_like(1.0), is_array_like("x")
        (True, True, False)
    """
    try:
        jax.typeof(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    """Whether a shape broadcasts to another one.

    Example:
        >>> broadcasts((3,), (2, 3)), broadcasts((2, 3), (3,))
        (True, False)
    """
    try:
        return np.broadcast_shapes(shape, to) == to
    except ValueError:
        return False


def check_tree(tree: Any, name: str) -> None:
    """Refuses what JAX does not take apart.

    Example:
        >>> check_tree({"a": 1.0}, "x")
    """
    try:
        jax.tree.structure(tree)
    except ValueError as cause:
        raise InputError(f"{name} is no tree of arrays: {cause} Give dictionaries keys of one type.") from cause


def as_number(
    value: Any, name: str, wanted: str, is_wanted: Callable[[float], bool], error: type[LRPError] = InputError
) -> float:
    """One number that is known.

    Args:
        value: The number.
        name: Its name, for the error.
        wanted: What it must be, in words that follow the name.
        is_wanted: Whether a number is that.
        error: What is raised if it is not.

    Example:
        >>> as_number(np.float32(0.5), "level", "is a probability", lambda level: 0 <= level <= 1)
        0.5
    """
    try:
        number = float("nan") if isinstance(value, str | bytes) or np.iscomplexobj(value) else float(value)
    except Exception:  # as above
        number = float("nan")
    if not is_wanted(number):
        raise error(f"{name} {wanted}, but it is {reprlib.repr(value)}.")
    return number


def as_count(value: Any, name: str, least: int = 1, error: type[LRPError] = InputError) -> int:
    """One whole number.

    Args:
        value: The number.
        name: Its name, for the error.
        least: The smallest one allowed.
        error: What is raised if it is none.

    Example:
        >>> as_count(np.int64(3), "steps")
        3
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except Exception:  # as above
        number = None
    if number is None or number > MOST:
        raise error(f"{name} must be an integer up to {MOST}, but it is {reprlib.repr(value)}.")
    if number < least:
        raise error(f"{name} must be at least {least}, but it is {number}.")
    return number


def as_counts(values: Any, name: str, least: int = 1, times: int = 1) -> tuple[int, ...]:
    """One whole number or several.

    Args:
        values: The number, or a sequence of numbers.
        name: Its name, for the error.
        least: The smallest one allowed.
        times: As how many of them one number stands.

    Example:
        >>> as_counts(3, "window", times=2), as_counts([3, 4], "window")
        ((3, 3), (3, 4))
    """
    is_array = isinstance(values, np.ndarray | jax.Array)
    are_several = values.ndim > 0 if is_array else isinstance(values, Sequence)
    return tuple(as_count(value, name, least) for value in (values if are_several else [values] * times))


def as_path(path: Any, name: str, error: type[LRPError]) -> Path:
    """A path of a file or a folder.

    Example:
        >>> as_path("weights.safetensors", "path", InputError).name
        'weights.safetensors'
    """
    if not isinstance(path, str | os.PathLike):
        raise error(f"{name} must be a path, but it is {kind_of(path)}.")
    return Path(path)


def as_new_file(path: Any, name: str, error: type[LRPError]) -> Path:
    """The path of a file that can be written: in a folder that there is.

    Example:
        >>> as_new_file("map.png", "path", InputError).name
        'map.png'
    """
    file = as_path(path, name, error)
    if file.is_dir():
        raise error(f"{str(file)!r} cannot be written: it is a folder. Give the path of a file in it.")
    if not file.parent.is_dir():
        raise error(f"{str(file)!r} cannot be written: there is no folder {str(file.parent)!r}. Make it first.")
    return file


def check_key(key: Any) -> None:
    """Refuses what is no key of random numbers.

    Example:
        >>> check_key(jax.random.key(0))
    """
    try:
        jax.eval_shape(jax.random.split, key)
    except Exception as cause:  # as above
        raise InputError(f"key must be a key such as jax.random.key(0), but it is {kind_of(key)}.") from cause


def check_callable(function: Any, name: str) -> None:
    """Refuses what cannot be called.

    Example:
        >>> check_callable(abs, "fun")
    """
    if not callable(function):
        raise InputError(f"{name} must be a function, but it is {kind_of(function)}.")


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """The arguments that a function takes; any, if it is not written in Python.

    `functools.wraps` copies the signature of what is wrapped, but a wrapper may have named arguments of its own.

    Example:
        >>> import functools
        >>> def network(weight, x):
        ...     return x * weight
        >>> wrapped = functools.wraps(network)(lambda x: network(2.0, x))
        >>> signature_of(wrapped), inspect.signature(wrapped)
        (<Signature (x)>, <Signature (weight, x)>)
    """
    try:
        if inspect.ismethod(function):
            return inspect.signature(function)
        return inspect.signature(inspect.unwrap(function, stop=_has_arguments_of_its_own), follow_wrapped=False)
    except (TypeError, ValueError):
        return inspect.signature(lambda *args, **kwargs: None)


def _has_arguments_of_its_own(function: Any) -> bool:
    if not inspect.isfunction(function):
        return False
    own = inspect.signature(function, follow_wrapped=False)
    return all(parameter.kind is not inspect.Parameter.VAR_POSITIONAL for parameter in own.parameters.values())


def check_function(function: Any, name: str, *arguments: str) -> None:
    """Refuses what cannot be called with as many arguments.

    Args:
        function: The function.
        name: What it is, for the error.
        *arguments: What it is called with.

    Example:
        >>> check_function(lambda x: x, "fun", "x")
    """
    check_callable(function, name)
    try:
        signature_of(function).bind(*arguments)
    except TypeError as cause:
        given = ", ".join(arguments)
        raise InputError(f"{name} must be a function that can be called with {given} alone: {cause}.") from cause


@contextlib.contextmanager
def within_memory(name: str, error: type[LRPError] = InputError) -> Iterator[None]:
    """Says in words that an argument is too large for the memory.

    Args:
        name: What it is.
        error: What is raised then.
    """
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as cause:
        if not isinstance(cause, MemoryError) and "RESOURCE_EXHAUSTED" not in str(cause):
            raise
        raise error(f"{name} is too large for the memory: {cause or 'it is full'}. Pass a part at a time.") from cause


def kind_of(value: Any) -> str:
    """What something is, in words.

    Example:
        >>> kind_of(np.zeros(2)), kind_of("x"), kind_of(None)
        ('an array of float64 of shape (2,)', 'a str', 'None')
    """
    if isinstance(value, jax.core.Tracer):
        return f"traced ({value.dtype} of shape {value.shape}), and not known"
    if isinstance(value, np.ma.MaskedArray):
        return "a masked array"
    if isinstance(value, np.ndarray | jax.Array):
        return f"an array of {value.dtype} of shape {value.shape}"
    if value is None or isinstance(value, type):
        return repr(value)
    name = type(value).__name__
    return f"an {name}" if name[0] in "aeiouAEIOU" else f"a {name}"
