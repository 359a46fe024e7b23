"""Whether a function is in inference mode: no dropout, and no normalisation with statistics of the batch.

A function in training mode has another value for every key, or for every batch, and so has its relevance. Neither
libraries nor modules are asked: what they do stands in the program.
"""

from collections.abc import Iterator
from typing import Any, Literal, TypeAlias, get_args

from jax.extend import core

from lrp_jax.core import primitives
from lrp_jax.core.batch_statistics import bodies_of, find_batch_statistics, find_named_statistics
from lrp_jax.core.graph import Graph, Operation
from lrp_jax.core.primitive import Family
from lrp_jax.errors import InputError, ModelError

Inference: TypeAlias = Literal["checked", "assumed"]
"""Whether it is checked that a function is in inference mode."""

HOW_TO_SWITCH = (
    "Switch it to inference mode: model.eval() for Flax NNX and, before torchax.extract_jax, for PyTorch, "
    "deterministic=True and use_running_average=True for Flax Linen, eqx.nn.inference_mode(model) for Equinox, "
    "is_training=False for Haiku, training=False for Keras"
)


def check_choice(inference: str) -> None:
    """Refuses what says neither that inference mode is checked nor that it is assumed.

    Raises:
        InputError: If it is something else.
    """
    if inference not in get_args(Inference):
        raise InputError(f'inference must be "checked" or "assumed", but it is {inference!r}.')


def check_inference(graph: Graph, *, samples_first: bool = True) -> None:
    """Refuses a function in training mode.

    Args:
        graph: The function.
        samples_first: Whether the first dimension of what is explained is known to be that of the samples. If it is
            not, it may be that of the rows of an image without a batch.

    Raises:
        ModelError: If a live value is multiplied with something that is drawn at random, or is normalised with
            statistics over the samples: over the first dimension of what is explained, where the output has it too.
    """
    drawn = _find_drawn_factor(graph, set())
    if drawn is not None:
        raise ModelError(
            f"The model is in training mode: dropout is active at {_place(drawn)}, where a mask or noise that is drawn "
            f"at random multiplies hidden values. {HOW_TO_SWITCH}. If it is meant, draw it outside of the model, or "
            'pass inference="assumed".'
        )
    normalised = find_named_statistics(graph) or find_batch_statistics(graph, samples_first)
    if normalised is not None:
        raise ModelError(
            "The model is in training mode: a batch normalisation uses the statistics of this batch at "
            f"{_place(normalised)}, so that the samples depend on each other. {HOW_TO_SWITCH}. If the statistics are "
            "not those of a batch, but of the nodes of a graph, the steps of a series or the pixels of an image, pass "
            'inference="assumed".'
        )


def _place(operation: Operation) -> str:
    return f"{operation.location}, in {operation.module}" if operation.module else operation.location


def _find_drawn_factor(graph: Graph, drawn: set[int]) -> Operation | None:
    """The first operation that multiplies a live value with what is drawn at random, or selects by it.

    Args:
        graph: The function.
        drawn: Its inputs that are drawn; the other values that are so are added.
    """
    for operation in graph.operations:
        known = [value in drawn for value in operation.inputs]
        is_dropout = (_is_product(operation) and any(known)) or (_is_choice(operation) and known[0])
        if is_dropout and graph.live_inputs(operation):
            return operation
        for body in bodies_of(graph, operation):
            pairs = zip(body.inputs, operation.operands, strict=True)
            drawn_inside = {inner for inner, outer in pairs if outer in drawn}
            found = _find_drawn_factor(body, drawn_inside)
            if found is not None:
                return found
        if any(known) or _draws(operation.equation):
            drawn.update(value for value in operation.outputs if not graph.is_live(value))
    return None


def _is_product(operation: Operation) -> bool:
    """Whether an operation multiplies value by value."""
    if operation.name == "dot_general":
        (contracted, _), _ = operation.equation.params["dimension_numbers"]
        return not contracted
    return operation.name in {"mul", "div"}


def _is_choice(operation: Operation) -> bool:
    return operation.name == "select_n" or (operation.control is not None and operation.control.has_index)


def _draws(equation: Any) -> bool:
    """Whether an equation draws random numbers, also within the programs that it runs."""
    if Family.DRAW in primitives.family_of(equation):
        return True
    return any(_draws(inner) for program in _programs(equation) for inner in program.eqns)


def _programs(equation: Any) -> Iterator[Any]:
    for value in equation.params.values():
        for leaf in value if isinstance(value, tuple | list) else (value,):
            if isinstance(leaf, core.ClosedJaxpr | core.Jaxpr):
                yield leaf.jaxpr if isinstance(leaf, core.ClosedJaxpr) else leaf
