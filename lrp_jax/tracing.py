"""Tracing a call of a function: which of its arrays are explained, and where its parameters come from."""

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lrp_jax.errors import InputError
from lrp_jax.graph import Graph, Status, read


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
        dtype = jnp.result_type(leaf)
        if live and not (jnp.issubdtype(dtype, jnp.floating) or (tokens and jnp.issubdtype(dtype, jnp.integer))):
            raise InputError(
                f"The explained argument holds {dtype} values, and relevance needs real floating-point "
                "numbers. Convert it first, for example with x.astype('float32')."
            )
    is_array = [live or hasattr(leaf, "dtype") for leaf, live in zip(leaves, is_live, strict=True)]

    def call(arrays: list[Any]) -> Any:
        given = iter(arrays)
        merged = [next(given) if array else leaf for leaf, array in zip(leaves, is_array, strict=True)]
        arguments, keywords = jax.tree.unflatten(tree, merged)
        # A module is copied, so that it may count random numbers or change its state while it is traced.
        return jax.tree.map(lambda leaf: leaf, fun)(*arguments, **keywords)

    arrays = [leaf for leaf, array in zip(leaves, is_array, strict=True) if array]
    closed_jaxpr, output = jax.make_jaxpr(call, return_shape=True)(arrays)
    statuses = [_status(leaf, live) for leaf, live, array in zip(leaves, is_live, is_array, strict=True) if array]
    paths = [name_of_path(path[2:]) for path, _ in jax.tree_util.tree_leaves_with_path((args, kwargs))]
    array_paths = [path for path, array in zip(paths, is_array, strict=True) if array]
    held = _paths_of_arrays(fun)
    graph = read(
        closed_jaxpr,
        statuses,
        array_paths,
        lambda constant: held.get(id(constant), ""),
        keep_checkpoints=keep_checkpoints,
    )
    return Traced(graph, arrays, jax.tree.structure(output))


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
    leaves = [leaf for holder in holders for leaf in jax.tree_util.tree_leaves_with_path(holder)]
    return {id(leaf): name_of_path(path) for path, leaf in leaves if hasattr(leaf, "dtype")}


def name_of_path(path: Sequence[Any]) -> str:
    """The path of a parameter as a name: without the attribute that holds the array, and Linen's collection."""
    name = jax.tree_util.keystr(tuple(path), simple=True, separator=".")
    return re.sub(r"^(\d+\.)*params\.", "", name.removesuffix(".value"))
