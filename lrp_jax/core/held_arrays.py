"""Which arrays a function holds, and where: in its variables, its module's globals, its attributes, its containers.

A trace finds the arrays that a function has read, but not what they are called, and of a NumPy array only a copy. Here
the function is searched for them.
"""

import contextlib
import dataclasses
import functools
import itertools
import operator
import re
import sys
import types
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax.core.equations import is_of_user
from lrp_jax.core.keras_models import is_keras_model, variables_of

_AT_MOST = 100_000  # things that are looked at: bounds the time for a function that holds half of the world
# Packages that hold no arrays of a model.
_CLOSED = ("jax", "jaxlib", "numpy", "ml_dtypes", "builtins", "torch")
_PLAIN = str | bytes | int | float | complex | bool | None | np.dtype | np.generic | types.CodeType


def arrays_of(holder: Any) -> Iterator[tuple[str, Any]]:
    """The arrays that something holds, each once, with where it is.

    Args:
        holder: A function, a module, or anything else that can be called.

    Returns:
        The path and the array of each. A path consists of attributes, keys and positions; that of an array in a
        variable of its own is empty.

    Example:
        >>> import jax.numpy as jnp
        >>> weights = {"low": {"w": jnp.ones((2, 3))}, "high": {"w": np.ones((3, 2))}}
        >>> for path, array in arrays_of(lambda x: x @ weights["low"]["w"] @ weights["high"]["w"]):
        ...     print(path, array.shape)
        low.w (2, 3)
        high.w (3, 2)
    """
    return (
        (name_of_parameter(".".join(map(str, path))), value) for path, value in _things_of(holder) if is_array(value)
    )


def keras_models_of(holder: Any) -> list[Any]:
    """The models and layers of Keras that something holds, without those within another one."""
    return list(filter(is_keras_model, things_of(holder)))


def things_of(holder: Any) -> Iterator[Any]:
    """All that something holds, each thing once."""
    return (value for _, value in _things_of(holder))


def _things_of(holder: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """All that something holds, each thing once, with where it is."""
    seen: dict[int, Any] = {}
    stack: list[tuple[tuple[Any, ...], Any]] = [((), holder)]
    for _ in range(_AT_MOST):
        if not stack:
            return
        path, value = stack.pop()
        if isinstance(value, _PLAIN) or id(value) in seen:
            continue
        seen[id(value)] = value  # kept, so that its identity is not given to something new
        yield path, value
        if not is_array(value):
            parts: list[Any] = []
            with contextlib.suppress(Exception):  # of an object of somebody else, which may do anything when looked at
                parts.extend(itertools.islice(_parts(value), _AT_MOST))
            stack += [((*path, *step), held) for step, held in reversed(parts)]


def is_array(value: Any) -> bool:
    """Whether something is an array: of JAX (or one that is traced), of NumPy, or the shape and dtype of one.

    Having a dtype makes no array: modules have one too, of what they compute with.
    """
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.kind in "biufcV"  # V: bfloat16 and the like
    return isinstance(value, jax.Array | jax.ShapeDtypeStruct)


def is_floating(value: Any) -> bool:
    """Whether something is an array of floating-point numbers."""
    return is_array(value) and jnp.issubdtype(value.dtype, jnp.floating)


def names_of(holder: Any, arrays: Sequence[Any]) -> list[str]:
    """The paths of arrays in what holds them; empty where an array is not found."""
    found = _search(holder, arrays, operator.is_)
    return [found.get(i, "") for i in range(len(arrays))]


def _search(holder: Any, wanted: Sequence[Any], is_same: Callable[[Any, Any], bool]) -> dict[int, str]:
    """The paths of what is found of some arrays in what holds them, by position."""
    found: dict[int, str] = {}
    held = arrays_of(holder)
    while len(found) < len(wanted) and (next_one := next(held, None)) is not None:
        path, array = next_one
        for i, one in enumerate(wanted):
            if i not in found and is_same(one, array):
                found[i] = path
    return found


def name_of_parameter(name: str) -> str:
    """The path of a parameter as a name: without the attribute that holds the array, and Linen's collection."""
    name = re.sub(r"\.(_?value|_?raw_value)$", "", name)
    return re.sub(r"^((\d+\.)*_?params\.)+", "", name)


def name_of_path(path: Sequence[Any]) -> str:
    """The path of a parameter in a pytree as a name."""
    return name_of_parameter(jax.tree_util.keystr(tuple(path), simple=True, separator="."))


_Parts = Iterator[tuple[tuple[Any, ...], Any]]


def _parts(value: Any) -> _Parts:
    """What something consists of, and the step from it to each part; empty where it adds nothing to an array's name."""
    if isinstance(value, types.ModuleType | weakref.WeakKeyDictionary | weakref.WeakValueDictionary):
        return
    if isinstance(value, types.FunctionType):
        yield from _parts_of_function(value)
        return
    if isinstance(value, types.MethodType | types.BuiltinMethodType):
        yield (), value.__self__
        yield (), getattr(value, "__func__", None)
        return
    wrapped = getattr(value, "__wrapped__", None) if callable(value) and not isinstance(value, type) else None
    if wrapped is not None:
        yield (), wrapped
    if isinstance(value, functools.partial):  # or JAX's own; which argument it is adds nothing
        yield from (((), held) for held in (*value.args, *value.keywords.values(), value.func))
        return
    if is_linen_module(value) and value.scope is not None:
        yield from _variables_of_linen(value)
    if hasattr(type(value), "named_parameters"):  # a module of PyTorch, whose tensors hold arrays if torchax runs them
        module = value._model if _package(type(value).__module__) == "torchax" else value  # which wraps it in its own
        tensors = (*module.named_parameters(), *module.named_buffers())
        yield from (((name,), getattr(tensor, "_elem", None)) for name, tensor in tensors)
        return
    if is_keras_model(value):
        yield from (((name,), variable.value) for name, variable in variables_of(value).items())
        return
    if isinstance(value, Mapping):
        yield from (((key,), held) for key, held in list(value.items()))
        return
    if isinstance(value, list | tuple | set | frozenset):
        is_call = isinstance(value, tuple) and len(value) == 2 and callable(value[0]) != callable(value[1])
        steps = getattr(value, "_fields", range(len(value)))  # the names of a named tuple
        yield from (((step,) * (not is_call), held) for step, held in zip(steps, value, strict=True))
        return
    if isinstance(value, type):
        if not _is_closed(value):
            yield from (((), held) for name, held in list(vars(value).items()) if not _is_of_python(name, held))
        return
    if isinstance(value, staticmethod | classmethod):
        yield (), value.__func__
        return
    if isinstance(value, property):
        yield from (((), held) for held in (value.fget, value.fset))
        return
    yield from _leaves(value)
    yield from _parts_of_instance(value)


def is_linen_module(value: Any) -> bool:
    """Whether something is a module of Flax Linen."""
    return any(cls.__module__.startswith("flax.linen") for cls in type(value).__mro__) and hasattr(value, "scope")


def _variables_of_linen(module: Any) -> _Parts:
    """The variables of a module of Flax Linen that is bound to them, by their paths from the outermost module."""
    for collection, variables in module.variables.items():
        yield ((collection,) * (collection != "params") + module.path, variables)


def _leaves(value: Any) -> _Parts:
    """The leaves of a pytree other than a dictionary, a list or a tuple."""
    if jax.tree_util.all_leaves([value]):
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(value):
        yield (jax.tree_util.keystr(path, simple=True, separator="."),), leaf


def _parts_of_function(function: types.FunctionType) -> _Parts:
    yield (), getattr(function, "__wrapped__", None)
    for cell in function.__closure__ or ():
        try:
            yield (), cell.cell_contents
        except ValueError:  # a variable that has no value yet
            continue
    yield from (((), held) for held in function.__defaults__ or ())
    yield from (((), held) for held in (function.__kwdefaults__ or {}).values())
    if _package(function.__module__) in _CLOSED:
        return
    names = _names(function.__code__)
    for name in names:
        if name in function.__globals__:
            held = function.__globals__[name]
            if isinstance(held, types.ModuleType):
                is_open = _package(held.__name__) not in {*_CLOSED, *sys.stdlib_module_names}
                yield from (((), vars(held)[name]) for name in names if is_open and name in vars(held))
            elif is_of_user(function.__code__.co_filename) or not callable(held):
                yield (), held


def _names(code: types.CodeType) -> list[str]:
    """The names of globals and attributes in a function's code and in those of the functions that it defines."""
    inner = [name for constant in code.co_consts if isinstance(constant, types.CodeType) for name in _names(constant)]
    return list(dict.fromkeys([*code.co_names, *inner]))


def _parts_of_instance(value: Any) -> _Parts:
    if _is_closed(type(value)):
        return
    attributes = dict(getattr(value, "__dict__", None) or {})
    for cls in type(value).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, slot):
                attributes.setdefault(slot, getattr(value, slot))
        for name, held in () if _is_closed(cls) else cls.__dict__.items():
            if isinstance(held, np.ndarray | jax.Array | dict | list | tuple) and not _is_of_python(name, held):
                attributes.setdefault(name, held)
    yield from (((name,), held) for name, held in attributes.items())
    if dataclasses.is_dataclass(value) or callable(value):
        yield from (((), cls) for cls in type(value).__mro__)


def _is_of_python(name: str, held: Any) -> bool:
    """Whether an attribute of a class is one that Python has made, such as its annotations, and no method."""
    return name.startswith("__") and not (callable(held) or isinstance(held, staticmethod | classmethod | property))


def _is_closed(cls: type) -> bool:
    return _package(cls.__module__) in _CLOSED


def _package(module: str | None) -> str:
    return (module or "").partition(".")[0]


def find(holder: Any, constants: Sequence[Any]) -> list[tuple[str, bool]]:
    """Names the arrays that a traced function has read, and says which of them existed before the trace.

    Args:
        holder: The function, or what it was made of.
        constants: What it has read. An array of JAX is the one that was read, and existed. One of NumPy is a copy, and
            may have been written in the function: it existed if the function holds its equal.

    Returns:
        For each, the path, empty if it is not known, and whether it existed.

    Example:
        >>> weights = {"low": {"w": np.ones((2, 3))}}
        >>> model = lambda x: x @ weights["low"]["w"] + np.array([0.3, 0.6, 0.1])
        >>> find(model, jax.make_jaxpr(model)(np.ones((1, 2))).consts)
        [('low.w', True), ('', False)]
    """
    found = _search(holder, constants, lambda constant, array: constant is array or _is_copy(constant, array))
    return [(found.get(i, ""), i in found or isinstance(constant, jax.Array)) for i, constant in enumerate(constants)]


def _is_copy(constant: Any, array: Any) -> bool:
    """Whether a constant of a trace may be an array of NumPy: cast to a dtype of JAX, transposed or reshaped."""
    if isinstance(constant, jax.Array) or not isinstance(array, np.ndarray) or array.size != constant.size:
        return False
    values = np.asarray(constant)
    if array.dtype.kind not in "biufcV":
        return False
    if values.dtype.kind in "biu" and values.dtype.kind != array.dtype.kind:
        return False
    with np.errstate(all="ignore"):
        cast = array.astype(values.dtype)
    if array.shape == values.shape and cast.tobytes() == values.tobytes():
        return True
    return np.array_equal(np.sort(cast, axis=None), np.sort(values, axis=None))
