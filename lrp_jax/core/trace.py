"""Tracing a call of a function: which of its arrays are explained, and where its parameters come from."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax.core import held_arrays
from lrp_jax.core.arguments import check_function, check_tree, in_words, is_array_like, kind_of
from lrp_jax.core.calling import call_model
from lrp_jax.core.graph import Graph, Held, Status
from lrp_jax.core.held_arrays import is_array, name_of_path
from lrp_jax.core.inference import Inference, check_choice, check_inference
from lrp_jax.core.programs import Program, computation, take_apart
from lrp_jax.core.reader import Input, read
from lrp_jax.core.tokens import check_tokens, place_of_size
from lrp_jax.errors import InputError, LRPError, ModelError


@dataclass(frozen=True)
class ReadCall:
    """A call of a function, read.

    Attributes:
        graph: The function.
        inputs: The arrays of the call, in the order of the graph's inputs.
        structure: The pytree structure of the function's value.
        explained: The structure of what is explained of the value; None if it is the value.
    """

    graph: Graph
    inputs: list[Any]
    structure: Any
    explained: Any = None

    def split(self, outputs: Sequence[Any]) -> tuple[Any, Any]:
        """The function's value, and what is explained of it."""
        number = self.structure.num_leaves
        value = jax.tree.unflatten(self.structure, outputs[:number])
        return value, value if self.explained is None else jax.tree.unflatten(self.explained, outputs[number:])

    def cotangents(self, outputs: Sequence[Any], seed: Any) -> list[Any]:
        """The cotangents of the outputs: the seed for what is explained, nothing for the rest."""
        leaves = jax.tree.leaves(seed)
        return [*map(jnp.zeros_like, outputs[: len(outputs) - len(leaves)]), *leaves]


@dataclass(frozen=True)
class CallText:
    """What a traced call says; the arrays are no part of it.

    Attributes:
        program: What the function computes.
        statuses: For each input, whether it is explained.
        paths: For each input, the path of the parameter that it is; empty for none.
        held: For each array that the function holds, its path, and whether it existed before the trace.
        indices: For each of these, the integer that it consists of, if it is one that is written in the function.
        arguments: The structure of the arguments, whose leaves are the inputs if all of them are arrays.
        structure: The structure of the function's value.
        samples_first: Whether the first dimension of what is explained is known to be that of the samples.
        inference: Whether it is checked that the function is in inference mode.
        target: A function of the value that is explained; None if it is the value.
        explained: The structure of its value.
    """

    program: Program
    statuses: tuple[Status, ...]
    paths: tuple[str, ...]
    held: tuple[tuple[str, bool], ...]
    indices: tuple[int | None, ...]
    arguments: Any
    structure: Any
    samples_first: bool
    inference: Inference
    target: Program | None = None
    explained: Any = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TracedCall:
    """A call of a function, traced: a pytree of arrays. A program that takes it is compiled once for each text.

    Attributes:
        inputs: The arrays among the arguments.
        held: The arrays that the function holds.
        held_by_target: Those that the function of its value holds.
        text: All else.
    """

    inputs: list[Any]
    held: list[Any]
    held_by_target: list[Any]
    text: CallText = field(metadata={"static": True})

    @property
    def args(self) -> Any:
        """The positional arguments, of a call that has no other arguments than arrays."""
        return jax.tree.unflatten(self.text.arguments, self.inputs)[0]

    def replaced(self, *args: Any) -> "TracedCall":
        """The call with other arguments of the same shapes."""
        return replace(self, inputs=jax.tree.leaves((args, {})))

    def read(self) -> ReadCall:
        """Reads the call.

        Raises:
            InputError: If integers are explained whose size matters, or that cannot be followed to an embedding, or if
                the function of its value has no value that depends on it differentiably.
            ModelError: If the function is in training mode, or has an output that does not depend on the explained
                arguments differentiably.
        """
        graph = self.read_graph()
        check_tokens(graph)
        if self.text.target is not None:
            _check_target(graph, self.text.structure.num_leaves)
        _check_outputs(graph)
        return ReadCall(graph, list(self.inputs), self.text.structure, self.text.explained)

    def read_graph(self) -> Graph:
        """Reads the call, whether or not relevance can be propagated through it.

        Raises:
            ModelError: If the function is in training mode.
        """
        text = self.text
        known = {id(array): Held(array, "", is_parameter=False) for array in self.held_by_target}
        known |= {
            id(array): Held(array, path, is_parameter, None if index is None else np.asarray(index, array.dtype))
            for array, (path, is_parameter), index in zip(self.held, text.held, text.indices, strict=True)
        }
        graph = read(
            text.program.closed(self.held),
            [
                Input(status, path, is_parameter=status is Status.CONSTANT, is_as_given=status is Status.LIVE)
                for status, path in zip(text.statuses, text.paths, strict=True)
            ],
            hold=lambda constant: known.get(id(constant)) or Held(constant),
            then=None if text.target is None else text.target.closed(self.held_by_target),
        )
        if text.inference == "checked":
            check_inference(graph, samples_first=text.samples_first)
        return graph


def check_mode(call: TracedCall) -> None:
    """Refuses a function in training mode, unless inference mode is assumed; looks once at each text.

    Raises:
        ModelError: If the function is in training mode.
    """
    jax.eval_shape(_read_in_trace, call)


@jax.jit
def _read_in_trace(call: TracedCall) -> None:
    call.read_graph()


def trace(
    fun: Callable[..., Any],
    positions: Sequence[int],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    *,
    inference: Inference = "checked",
) -> ReadCall:
    """Traces and reads a call.

    Args:
        fun: The function.
        positions: The positions of the arguments that are explained.
        args: The positional arguments.
        kwargs: The keyword arguments.
        inference: Whether it is checked that the function is in inference mode.

    Returns:
        The call.

    Raises:
        InputError: If an explained argument is missing or of a dtype that has no relevance.
        ModelError: If the function is in training mode, needs values in Python, or has an output that does not depend
            on the explained arguments differentiably.
    """
    call, _ = trace_call(fun, positions, args, kwargs, inference=inference)
    for leaf in call.inputs:
        check_has_values(leaf)
    return call.read()


def trace_call(
    fun: Callable[..., Any],
    positions: Sequence[int],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    *,
    tokens: bool = False,
    holder: Any = None,
    inference: Inference = "checked",
) -> tuple[TracedCall, Any]:
    """Traces a call. Arrays become inputs; whatever else the arguments hold stays as it is.

    Args:
        fun: The function.
        positions: The positions of the arguments that are explained.
        args: The positional arguments.
        kwargs: The keyword arguments.
        tokens: Whether integers may be explained; relevance then ends at their embeddings.
        holder: What holds the arrays that the function reads, if it is not the function itself.
        inference: Whether it is checked that the function is in inference mode.

    Returns:
        The call, and the shapes and dtypes of its value.

    Raises:
        InputError: If an explained argument is missing or of a dtype that has no relevance, or `inference` is none.
        ModelError: If the function needs values in Python, or changes its state.
    """
    check_choice(inference)
    leaves, tree = _leaves(positions, args, kwargs, tokens)

    def call(arrays: list[Any]) -> Any:
        given = iter(arrays)
        merged = [leaf if status is None else next(given) for leaf, status, _ in leaves]
        arguments, keywords = jax.tree.unflatten(tree, merged)
        return call_model(fun, *arguments, **keywords)

    inputs = [(leaf, status, path) for leaf, status, path in leaves if status is not None]
    arrays = [leaf for leaf, _, _ in inputs]
    closed_jaxpr, output = jax.make_jaxpr(call, return_shape=True)(arrays)
    program, held = take_apart(closed_jaxpr)
    found = held_arrays.find(fun if holder is None else holder, held)
    text = CallText(
        program,
        tuple(status for _, status, _ in inputs),
        tuple(path for _, _, path in inputs),
        tuple(found),
        tuple(None if existed else _index(array) for array, (_, existed) in zip(held, found, strict=True)),
        tree,
        jax.tree.structure(output),
        tokens,
        inference,
    )
    return TracedCall(arrays, held, [], text), output


def _index(array: Any) -> int | None:
    """The integer that an array consists of, as one does with which a slice is picked; None for any other."""
    is_whole = not jnp.issubdtype(array.dtype, jnp.inexact) and not jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    return int(np.asarray(array).reshape(())) if is_whole and array.size == 1 else None


def _leaves(
    positions: Sequence[int], args: Sequence[Any], kwargs: dict[str, Any], tokens: bool
) -> tuple[list[tuple[Any, Status | None, str]], Any]:
    """The leaves of the arguments with their statuses (None for what is no array) and paths; and their structure."""
    if any(not -len(args) <= position < len(args) for position in positions):
        raise InputError(
            f"argnums={tuple(positions)} names a positional argument that the call does not have: "
            f"{len(args)} were given. Pass the explained argument by position."
        )
    check_tree((args, kwargs), "The call")
    explained = {position % len(args) for position in positions}
    with_paths, tree = jax.tree_util.tree_flatten_with_path((tuple(args), kwargs))
    found: list[tuple[Any, Status | None, str]] = []
    for path, leaf in with_paths:
        status = Status.CONSTANT if is_array(leaf) else None
        if path[0].idx == 0 and path[1].idx in explained:
            check_dtype(leaf, tokens=tokens)
            status = Status.LIVE if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else Status.TOKEN
        found.append((leaf, status, name_of_path(path[2:])))
    return found, tree


def explaining(call: TracedCall, output: Any, target: Callable[[Any], Any]) -> TracedCall:
    """The call of a function, of which a function of its value is explained.

    Args:
        call: The call.
        output: The shapes and dtypes of its value.
        target: A function of the value.
    """
    check_function(target, "The target", "output")
    try:
        traced = computation(functools.partial(call_model, target), output)
    except LRPError:
        raise
    except Exception as error:
        error.add_note(f"The target raised this when it was called with the model's output: {in_words(output)}.")
        raise
    explained = jax.tree.structure(traced.value)
    text = replace(call.text, target=traced.program, explained=explained)
    return replace(call, held_by_target=list(traced.arrays), text=text)


def check_dtype(leaf: Any, *, tokens: bool = False) -> None:
    """Refuses what has no relevance: all but real floating-point numbers, and integers for tokens.

    Raises:
        InputError: If the leaf is such.
    """
    if not is_array_like(leaf):
        raise InputError(
            f"The explained argument holds {kind_of(leaf)}, and relevance needs arrays of real floating-point "
            "numbers. Pass other arguments apart from it."
        )
    dtype = leaf.dtype if is_array(leaf) else jnp.result_type(leaf)
    if not (jnp.issubdtype(dtype, jnp.floating) or (tokens and jnp.issubdtype(dtype, jnp.integer))):
        mask = " A mask stays outside of it, as in lambda x: model(x, mask)." if dtype == jnp.bool_ else ""
        raise InputError(
            f"The explained argument holds {dtype} values, and relevance needs real floating-point "
            f"numbers. Convert it first, for example with x.astype('float32').{mask}"
        )


def _check_target(graph: Graph, values: int) -> None:
    """Refuses a function of the value of which nothing would be explained."""
    explained = graph.outputs[values:]
    if any(map(graph.is_live, explained)) or not any(map(graph.is_live, graph.outputs[:values])):
        return
    if not explained:
        raise InputError("The target is a function that returns nothing: is its return missing?")
    raise InputError(
        "What the target returns does not depend on the output in a differentiable way: nothing is to explain."
        f"{_last_operation(graph, explained)} Return what comes before an argmax, a "
        "comparison or a stop_gradient, such as a logit."
    )


def _check_outputs(graph: Graph) -> None:
    if any(map(graph.is_live, graph.outputs)):
        return
    if any(map(graph.is_token, graph.outputs)):
        place = place_of_size(graph)
        raise InputError(
            "The explained argument holds integers, and the model does not look them up in an embedding, but uses "
            f"their size{f' as a number, at {place}' if place else ''}: nothing is to explain. Explain numbers, for "
            "example with x.astype('float32')."
        )
    raise ModelError(
        "The model's output does not depend on x in a differentiable way: nothing is to explain."
        f"{_last_operation(graph, graph.outputs)} Explain what comes before an "
        "argmax, a comparison or a stop_gradient, such as the logits."
    )


def _last_operation(graph: Graph, values: Sequence[int]) -> str:
    """The operation that values come from, as a sentence; empty if there is none."""
    ends = [graph.producer[value] for value in values if value in graph.producer]
    return f" Its last operation is {ends[0].name!r} at {ends[0].location}." if ends else ""


def check_has_values(leaf: Any) -> None:
    """Refuses a shape without numbers.

    Raises:
        InputError: If the leaf is one.
    """
    if isinstance(leaf, jax.ShapeDtypeStruct):
        raise InputError(
            "The explained argument holds a jax.ShapeDtypeStruct, which has no numbers, and of which only a plan can "
            "be made. Pass an array."
        )
