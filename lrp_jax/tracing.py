"""Tracing a call of a function: which of its arrays are explained, and where its parameters come from."""

import inspect
import re
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lrp_jax.equations import is_of_user
from lrp_jax.errors import InputError, LRPError, ModelError
from lrp_jax.graph import Graph, Held, Status, read
from lrp_jax.inference import HOW_TO_SWITCH, check_inference


@dataclass(frozen=True)
class Traced:
    """A call of a function, read.

    Attributes:
        graph: The function.
        inputs: The arrays of the call, in the order of the graph's inputs.
        structure: The pytree structure of the function's value.
    """

    graph: Graph
    inputs: list[Any]
    structure: Any


def trace(
    fun: Callable[..., Any],
    positions: Sequence[int],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    *,
    tokens: bool = False,
    keep_checkpoints: bool = False,
) -> Traced:
    """Traces a call. Arrays become inputs of the graph; whatever else the arguments hold stays as it is.

    Args:
        fun: The function.
        positions: The positions of the arguments that are explained.
        args: The positional arguments.
        kwargs: The keyword arguments.
        tokens: Whether integers may be explained; relevance then ends at their embeddings.
        keep_checkpoints: Whether what runs under `jax.checkpoint` stays a function of its own.

    Returns:
        The call.

    Raises:
        InputError: If an explained argument is missing or of a dtype that has no relevance.
        ModelError: If the function is in training mode, needs values in Python, or has an output that does not depend
            on the explained arguments differentiably.
    """
    if any(not -len(args) <= position < len(args) for position in positions):
        raise InputError(
            f"argnums={tuple(positions)} names a positional argument that the call does not have: "
            f"{len(args)} were given. Pass the explained argument by position."
        )
    explained = {position % len(args) for position in positions}
    is_live = [i in explained for i, arg in enumerate(args) for _ in jax.tree.leaves(arg)] + [False] * len(
        jax.tree.leaves(kwargs)
    )
    leaves, tree = jax.tree.flatten((args, kwargs))
    for leaf, live in zip(leaves, is_live, strict=True):
        if live:
            check_dtype(leaf, tokens=tokens)
    is_array = [live or hasattr(leaf, "dtype") for leaf, live in zip(leaves, is_live, strict=True)]

    def call(arrays: list[Any]) -> Any:
        given = iter(arrays)
        merged = [next(given) if array else leaf for leaf, array in zip(leaves, is_array, strict=True)]
        arguments, keywords = jax.tree.unflatten(tree, merged)
        return call_model(fun, *arguments, **keywords)

    arrays = [leaf for leaf, array in zip(leaves, is_array, strict=True) if array]
    closed_jaxpr, output = jax.make_jaxpr(call, return_shape=True)(arrays)
    statuses = [_status(leaf, live) for leaf, live, array in zip(leaves, is_live, is_array, strict=True) if array]
    paths = [name_of_path(path[2:]) for path, _ in jax.tree_util.tree_leaves_with_path((args, kwargs))]
    array_paths = [path for path, array in zip(paths, is_array, strict=True) if array]
    held = _paths_of_arrays(fun)
    graph = read(
        closed_jaxpr,
        statuses,
        paths=array_paths,
        hold=lambda constant: Held(constant, held.get(id(constant), "")),
    )
    _check_outputs(graph)
    check_inference(graph, samples_first=tokens)
    return Traced(graph, arrays, jax.tree.structure(output))


def check_dtype(leaf: Any, *, tokens: bool = False) -> None:
    """Refuses what has no relevance: all but real floating-point numbers, and integers for tokens.

    Raises:
        InputError: If the leaf is such.
    """
    if not hasattr(leaf, "dtype") and not isinstance(leaf, bool | int | float | complex):
        raise InputError(
            f"The explained argument holds a {type(leaf).__name__}, and relevance needs arrays of real floating-point "
            "numbers. Pass other arguments apart from it."
        )
    dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
    if not (jnp.issubdtype(dtype, jnp.floating) or (tokens and jnp.issubdtype(dtype, jnp.integer))):
        raise InputError(
            f"The explained argument holds {dtype} values, and relevance needs real floating-point "
            "numbers. Convert it first, for example with x.astype('float32')."
        )


_NEEDS_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)
# Errors of Flax that say the same: a module writes to its variables, or dropout asks for a key.
_CHANGES_STATE = {"TraceContextError", "ModifyScopeVariableError", "InvalidRngError"}


def call_model(model: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls a model that is traced, and sees to it that this has no effect but its value.

    A module is copied, so that it may count random numbers while it is traced.

    Raises:
        ModelError: If it needs values in Python that a trace does not have, changes its state, or keeps traced values.
    """
    copied = jax.tree.map(lambda leaf: leaf, model)
    before = jax.tree_util.tree_leaves_with_path(copied)
    kept_before = _traced_values(model)
    try:
        value = copied(*args, **kwargs)
    except LRPError:
        raise
    except _NEEDS_VALUES as error:
        raise ModelError(
            f"The model needs the value of an array in Python{_line_of(error)}: in an if, a loop, float(), numpy or "
            "a mask as an index. Relevance is propagated through the operations of JAX alone. Write it with jnp.where, "
            "jax.lax.cond, jax.lax.scan or jnp."
        ) from error
    except Exception as error:
        if type(error).__name__ in _CHANGES_STATE:
            raise ModelError(
                f"The model is in training mode, or changes its state{_line_of(error)}: {error}. {HOW_TO_SWITCH}."
            ) from error
        raise
    after = dict(jax.tree_util.tree_leaves_with_path(copied))
    changed = [name_of_path(path) for path, leaf in before if _is_real(leaf) and after.get(path) is not leaf]
    if changed:
        raise ModelError(
            f"The model changes its state while it runs: {', '.join(changed)}. It is in training mode, or keeps a "
            f"cache. {HOW_TO_SWITCH}."
        )
    kept = [name for identity, name in _traced_values(model).items() if identity not in kept_before]
    if kept:
        raise ModelError(
            f"The model keeps what it computes in {', '.join(kept)}, where it is no array after the trace. Let it "
            "return what you need; jax.debug.print shows values on the way."
        )
    return value


def _traced_values(model: Callable[..., Any]) -> dict[int, str]:
    """The names of traced values in the attributes of a model that is no pytree, and in the variables of a function."""
    function = inspect.unwrap(getattr(model, "func", model))
    owner = getattr(function, "__self__", model)
    is_pytree = any(leaf is not owner for leaf in jax.tree.leaves(owner))
    named = {} if is_pytree else dict(getattr(owner, "__dict__", {}))
    if inspect.isfunction(function):
        variables = inspect.getclosurevars(function)
        named |= {**variables.globals, **variables.nonlocals}
    return {
        id(leaf): name + jax.tree_util.keystr(path)
        for name, value in named.items()
        for path, leaf in _leaves_with_path(value)
        if isinstance(leaf, jax.core.Tracer)
    }


def _leaves_with_path(holder: Any) -> Sequence[tuple[Any, Any]]:
    try:
        return jax.tree_util.tree_leaves_with_path(holder)
    except (TypeError, ValueError):  # a dictionary whose keys have no order
        return []


def _is_real(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def _line_of(error: Exception) -> str:
    """The user's line that an error comes from, as a part of a sentence; empty if there is none."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if is_of_user(frame.filename)]
    return f" at {frames[-1].filename}:{frames[-1].lineno} ({frames[-1].name})" if frames else ""


def _check_outputs(graph: Graph) -> None:
    if any(map(graph.is_live, graph.outputs)):
        return
    if any(graph.status[value] is Status.TOKEN for value in graph.outputs):
        raise InputError(
            "The explained argument holds integers, and the model does not look them up in an embedding: nothing is to "
            "explain. Convert it first, for example with x.astype('float32')."
        )
    ends = [graph.producer[value] for value in graph.outputs if value in graph.producer]
    where = f" Its last operation is {ends[0].name!r} at {ends[0].location}." if ends else ""
    raise ModelError(
        f"The model's output does not depend on x in a differentiable way: nothing is to explain.{where} Explain what "
        "comes before an argmax, a comparison or a stop_gradient, such as the logits."
    )


def _status(leaf: Any, live: bool) -> Status:
    if not live:
        return Status.CONSTANT
    return Status.LIVE if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else Status.TOKEN


def _paths_of_arrays(fun: Callable[..., Any]) -> dict[int, str]:
    """The paths of the arrays that a function holds: as a module, as a partial, or in variables that it closes over."""
    function = inspect.unwrap(getattr(fun, "func", fun))
    holders = [fun, function, getattr(function, "__self__", None)]
    holders += [getattr(fun, "args", None), getattr(fun, "keywords", None)]
    if inspect.isfunction(function):
        variables = inspect.getclosurevars(function)
        holders += [*variables.nonlocals.values(), *variables.globals.values()]
    leaves = [leaf for holder in holders for leaf in _leaves_with_path(holder)]
    return {id(leaf): name_of_path(path) for path, leaf in leaves if hasattr(leaf, "dtype")}


def name_of_path(path: Sequence[Any]) -> str:
    """The path of a parameter as a name: without the attribute that holds the array, and Linen's collection."""
    name = jax.tree_util.keystr(tuple(path), simple=True, separator=".")
    return re.sub(r"^(\d+\.)*params\.", "", name.removesuffix(".value"))
