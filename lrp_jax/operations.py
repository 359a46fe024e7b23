"""What happens to relevance at every operation that is not a layer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from lrp_jax import equations
from lrp_jax.errors import UnsupportedOperationError
from lrp_jax.forms import Form, divide
from lrp_jax.graph import Graph, Operation

Arrays = Sequence[jax.Array]
Backward = Callable[[Arrays, Arrays, Arrays, Arrays], Arrays]


@dataclass(frozen=True)
class Treatment:
    """The backward pass of one operation.

    Attributes:
        summary: What happens to relevance, in a few words.
        backward: For a form in which the cotangents of the outputs arrive, the function that maps (live operands,
            constant operands, outputs, cotangents) to the cotangents of the live operands. For a form that is not
            listed it is the operation's own gradient.
        needs: The only form in which cotangents are taken; None for both.
        returns: The form of the operands' cotangents; None for the form that arrived.
    """

    summary: str
    backward: Mapping[Form, Backward] = field(default_factory=dict)
    needs: Form | None = None
    returns: Form | None = None


def _pass_relevance(live: Arrays, constants: Arrays, outputs: Arrays, cotangents: Arrays) -> Arrays:
    return (_unbroadcast(cotangents[0], live[0].shape),)


def _pass_ratio(live: Arrays, constants: Arrays, outputs: Arrays, cotangents: Arrays) -> Arrays:
    return (_unbroadcast(cotangents[0] * divide(outputs[0], live[0]), live[0].shape),)


def _pass_ratio_as_relevance(live: Arrays, constants: Arrays, outputs: Arrays, cotangents: Arrays) -> Arrays:
    return (_unbroadcast(cotangents[0] * outputs[0], live[0].shape),)


def _pass_ratio_where_positive(live: Arrays, constants: Arrays, outputs: Arrays, cotangents: Arrays) -> Arrays:
    return (jnp.where(outputs[0] > 0, cotangents[0], 0),)


_ONE_TO_ONE = "passed one to one"

STRUCTURAL = Treatment("moved along with the values")
PROPORTIONAL = Treatment("split in proportion", needs=Form.RATIO, returns=Form.RATIO)
SCALED = Treatment(_ONE_TO_ONE, {Form.RELEVANCE: _pass_relevance})
RECTIFIED = Treatment(_ONE_TO_ONE, {Form.RELEVANCE: _pass_relevance, Form.RATIO: _pass_ratio_where_positive})
ZERO_AT_ZERO = Treatment(_ONE_TO_ONE, {Form.RELEVANCE: _pass_relevance, Form.RATIO: _pass_ratio})
SHIFTED = Treatment(
    _ONE_TO_ONE,
    {Form.RELEVANCE: _pass_relevance, Form.RATIO: _pass_ratio_as_relevance},
    returns=Form.RELEVANCE,
)


def _unbroadcast(array: jax.Array, shape: Sequence[int]) -> jax.Array:
    if array.shape == tuple(shape):
        return array
    axes = tuple(i for i, size in enumerate(shape) if size == 1 and array.shape[i] != 1)
    return array.sum(axes, keepdims=True)


_STRUCTURAL = frozenset(
    """
    broadcast_in_dim concatenate convert_element_type copy cummax cummin dynamic_slice dynamic_update_slice
    expand_dims gather pad reduce_max reduce_min reduce_precision reduce_window_max reduce_window_min reshape rev
    select_n slice sort split squeeze transpose
    """.split()
)
_PROPORTIONAL = frozenset("add add_any cumsum reduce_sum reduce_window_sum scatter-add sub".split())


def treatment_of(graph: Graph, operation: Operation) -> Treatment:
    """Looks up what happens to relevance at an operation with live operands.

    Args:
        graph: The function.
        operation: One of its operations, not a layer.

    Returns:
        Its treatment.

    Raises:
        UnsupportedOperationError: If there is none.
    """
    name, live = operation.name, graph.live_inputs(operation)
    if name in {"max", "min"} and len(live) == 2:
        return STRUCTURAL
    if name in _STRUCTURAL:
        return STRUCTURAL
    if name in _PROPORTIONAL and len(live) == len(operation.inputs):
        return PROPORTIONAL
    if name in {"dot_general", "conv_general_dilated"} and len(live) == 1:
        return PROPORTIONAL
    if len(live) == 1 and equations.is_elementwise(operation.equation):
        return _elementwise(graph, operation, live[0])
    raise UnsupportedOperationError(
        f"Relevance cannot be propagated through {name!r} with {len(live)} operand(s) that depend on the explained "
        f"input, at {operation.location}: lrp_jax has no treatment for it."
    )


def _elementwise(graph: Graph, operation: Operation, live: int) -> Treatment:
    equation = operation.equation
    if operation.name in {"mul", "neg"} or (operation.name == "div" and live == 0):
        return SCALED
    if equations.is_relu(equation):
        return RECTIFIED
    constants = [graph.constants.get(value) for value in operation.inputs]
    return ZERO_AT_ZERO if equations.is_zero_at_zero(equation, live, constants) else SHIFTED
