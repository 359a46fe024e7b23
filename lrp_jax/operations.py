"""What happens to relevance at every operation that is not a layer.

A `Treatment` is the backward pass of an operation. `treatment_of` looks it up by the name of the primitive and by how
many of the operands depend on the explained input.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lrp_jax import equations
from lrp_jax.errors import UnsupportedOperationError
from lrp_jax.forms import STABILIZER, Form, divide, stabilize
from lrp_jax.graph import Graph, Operation
from lrp_jax.windows import is_small_pooling, to_first_largest

Arrays = Sequence[jax.Array]


@dataclass(frozen=True)
class Call:
    """One run of an operation, as its backward pass sees it.

    Attributes:
        run: The operation as a function of (live operands, other operands).
        params: The parameters of the primitive.
        live: The operands through which relevance flows.
        constants: The other operands.
        outputs: What it returned.
        cotangents: The cotangents of the outputs.
    """

    run: Callable[[Arrays, Arrays], Arrays]
    params: Mapping[str, Any]
    live: Arrays
    constants: Arrays
    outputs: Arrays
    cotangents: Arrays


Backward = Callable[[Call], Arrays]


@dataclass(frozen=True)
class Treatment:
    """The backward pass of an operation.

    Attributes:
        summary: What happens to relevance, in a few words.
        backward: For a form in which the cotangents of the outputs arrive, the function that returns the cotangents of
            the live operands. For a form that is not listed it is the operation's own gradient.
        needs: The only form in which cotangents are taken; None for both.
        returns: The form of the operands' cotangents; None for the form that arrived.
    """

    summary: str
    backward: Mapping[Form, Backward] = field(default_factory=dict)
    needs: Form | None = None
    returns: Form | None = None


def _pass_relevance(call: Call) -> Arrays:
    return (_unbroadcast(call.cotangents[0], call.live[0].shape),)


def _pass_ratio(call: Call) -> Arrays:
    ((x,), (y,), (ratio,)) = call.live, call.outputs, call.cotangents
    return (_unbroadcast(ratio * divide(y, x), x.shape),)


def _pass_ratio_as_relevance(call: Call) -> Arrays:
    (y,), (ratio,) = call.outputs, call.cotangents
    relevance = jnp.where(ratio == 0, 0, ratio * y)  # y is infinite where an attention mask is added
    return (_unbroadcast(relevance, call.live[0].shape),)


def _pass_ratio_where_positive(call: Call) -> Arrays:
    return (jnp.where(call.outputs[0] > 0, call.cotangents[0], 0),)


def _halves(call: Call) -> Arrays:
    _, transpose = jax.vjp(lambda *live: call.run(live, call.constants), *call.live)
    return tuple(0.5 * cotangent for cotangent in transpose(list(call.cotangents)))


def _unbroadcast(array: jax.Array, shape: Sequence[int]) -> jax.Array:
    """What all copies of a scalar get; an operand of any other shape has the output's."""
    return array if shape else array.sum()


def _to_winner(call: Call) -> Arrays:
    (x,), (largest,), (cotangent,) = call.live, call.outputs, call.cotangents
    if is_small_pooling(call.params):
        return (to_first_largest(x, largest, cotangent, call.params),)
    _, transpose = jax.vjp(lambda x: call.run([x], call.constants), x)
    return transpose([cotangent])


def _pooled_sum(call: Call) -> tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array]]:
    """Sum over the windows of a pooling, and its transpose."""
    names = ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation")

    def pool(x: jax.Array) -> jax.Array:
        return lax.reduce_window(x, np.zeros((), x.dtype), lax.add, *(call.params[name] for name in names))

    return pool, lambda s: jax.linear_transpose(pool, call.live[0])(s)[0]


def _pool_proportionally(call: Call) -> Arrays:
    pool, transpose = _pooled_sum(call)
    return (transpose(call.cotangents[0] / stabilize(pool(call.live[0]), STABILIZER)),)


def _pool_evenly(call: Call) -> Arrays:
    pool, transpose = _pooled_sum(call)
    return (transpose(call.cotangents[0] / pool(jnp.ones_like(call.live[0]))),)


def _guided(call: Call) -> Arrays:
    return (jnp.where((call.outputs[0] > 0) & (call.cotangents[0] > 0), call.cotangents[0], 0),)


def _rectified_cotangent(call: Call) -> Arrays:
    return (jnp.maximum(call.cotangents[0], 0),)


_ONE_TO_ONE = "passed one to one"

structural = Treatment("moved along with the values")
"""For operations that move values without changing them."""

proportional = Treatment("split in proportion", needs=Form.RATIO, returns=Form.RATIO)
"""For operations that are linear in their live operands together: gradient times input."""

scaled = Treatment(_ONE_TO_ONE, {Form.RELEVANCE: _pass_relevance})
"""For operations that multiply one live operand, element by element, with something that is held constant."""

one_to_one = Treatment(_ONE_TO_ONE, {Form.RELEVANCE: _pass_relevance, Form.RATIO: _pass_ratio})
"""For elementwise functions that are zero at zero."""

one_to_one_shifted = Treatment(
    _ONE_TO_ONE,
    {Form.RELEVANCE: _pass_relevance, Form.RATIO: _pass_ratio_as_relevance},
    returns=Form.RELEVANCE,
)
"""For elementwise functions that are not, or may not be, zero at zero."""

rectified = Treatment(_ONE_TO_ONE, {Form.RELEVANCE: _pass_relevance, Form.RATIO: _pass_ratio_where_positive})
"""For max(x, 0)."""

halved = Treatment("half to each factor", {Form.RATIO: _halves}, needs=Form.RATIO, returns=Form.RATIO)
"""For products of two live values (Achtibat et al. 2024, equation 14)."""

gated = Treatment("all to the signal, the gate is held constant", {Form.RELEVANCE: _pass_relevance})
"""For a live value times a gate or a statistic (Arras et al. 2019; Ali et al. 2022)."""

smooth = Treatment("gradient times input", needs=Form.RATIO, returns=Form.RATIO)
"""For smooth functions such as softmax (Achtibat et al. 2024, proposition 3.1)."""

winner_takes_all = Treatment(structural.summary, dict.fromkeys(Form, _to_winner))
"""For max pooling: the largest element of the window gets all, the first one of equals."""

pooled_in_proportion = Treatment(
    "split in proportion over the window", {Form.RELEVANCE: _pool_proportionally}, Form.RELEVANCE, Form.RATIO
)
"""For max pooling: as if the window had been summed."""

pooled_evenly = Treatment(
    "split evenly over the window", {Form.RELEVANCE: _pool_evenly}, Form.RELEVANCE, Form.RELEVANCE
)
"""For max pooling: as if the window had been averaged, whatever the values."""

guided = Treatment("gradient where input and gradient are positive", {Form.RATIO: _guided}, Form.RATIO, Form.RATIO)
"""For max(x, 0) in guided backpropagation (Springenberg et al. 2015)."""

deconvolved = Treatment("gradient where it is positive", {Form.RATIO: _rectified_cotangent}, Form.RATIO, Form.RATIO)
"""For max(x, 0) in the deconvolutional network (Zeiler and Fergus 2014)."""

_STRUCTURAL = frozenset(
    """
    all_gather broadcast_in_dim broadcast_to concatenate convert_element_type copy copy_p cummax cummin device_put
    dynamic_slice dynamic_update_slice expand_dims gather layout_constraint name optimization_barrier pad pvary
    reduce_max reduce_min reduce_precision reduce_window_min reshape reshard rev scatter
    select_and_gather_add select_n sharding_constraint slice sort split squeeze stack tile top_k transpose unstack
    """.split()
)
_PROPORTIONAL = frozenset("add add_any cumsum psum reduce_sum reduce_window_sum sub".split())
_BILINEAR = frozenset("dot_general conv_general_dilated mul".split())
_ENDS = frozenset(
    """
    argmax argmin clz eq eq_to ge gt is_finite le le_to lt lt_to ne not and or xor population_count
    shift_left shift_right_arithmetic shift_right_logical stop_gradient reduce_and reduce_or reduce_xor
    """.split()
)
_SUMMARIES: tuple[tuple[Set[str], str], ...] = (
    ({"dot_general", "conv_general_dilated"}, "a layer, where the rule decides; half to each factor of two live ones"),
    ({"mul"}, "passed one to one; of two live factors half to each, or all to the signal where one is a gate"),
    ({"div"}, "passed one to one; refused for a live denominator, unless it is a statistic or part of a softmax"),
    ({"max", "min"}, "passed one to one; to the winner of two live values"),
    (_PROPORTIONAL | {"scatter-add"}, "split in proportion; passed one to one by a sum with a constant"),
    (_STRUCTURAL | {"reduce_window_max"}, structural.summary),
    ({"scan", "cond"}, "looked into: the bodies are transformed"),
    (set(equations.CALLS), "looked into"),
    (_ENDS, "relevance ends: the output is not differentiable, or is held constant"),
    (equations.ELEMENTWISE, _ONE_TO_ONE),
)
_GATES = frozenset("logistic sigmoid hard_sigmoid erfc rsqrt".split())
_GATES_ONCE_SHIFTED = frozenset("erf tanh".split())
_CARRIES_GATE = frozenset(
    """
    add broadcast_in_dim clip convert_element_type copy div dynamic_slice expand_dims gather max mul neg reshape
    select_n slice squeeze sub split transpose
    """.split()
)


def treatment_of(graph: Graph, operation: Operation) -> Treatment:
    """Looks up what happens to relevance at an operation with live operands.

    Args:
        graph: The function.
        operation: One of its operations that is not a layer.

    Returns:
        Its treatment.

    Raises:
        UnsupportedOperationError: If there is none.
    """
    name, live = operation.name, graph.live_inputs(operation)
    if any(jnp.iscomplexobj(graph.shapes[value]) for value in (*operation.inputs, *operation.outputs)):
        raise _refusal(operation, "complex numbers")
    if name in _STRUCTURAL or (name in {"max", "min"} and len(live) == 2):
        return structural
    if name == "reduce_window_max":
        return winner_takes_all
    if name == "scatter-add" or (name in _PROPORTIONAL and len(live) == len(operation.inputs)):
        return proportional
    if name in _BILINEAR and len(live) == 2:
        return halved
    if name in {"dot_general", "conv_general_dilated"}:
        return proportional
    if len(live) == 1 and equations.is_elementwise(operation.equation):
        return _elementwise(graph, operation, live[0])
    raise _refusal(operation, f"{len(live)} operand(s) that depend on the explained input")


def summary_of(primitive: str) -> str:
    """What happens to relevance at a primitive, in words.

    Args:
        primitive: The name of a primitive of JAX.

    Returns:
        A sentence without a full stop; "refused" if there is no treatment.

    Example:
        >>> summary_of("transpose")
        'moved along with the values'
    """
    for names, summary in _SUMMARIES:
        if primitive in names:
            return summary
    return "refused"


def _refusal(operation: Operation, circumstance: str) -> UnsupportedOperationError:
    where = f", in {operation.module}" if operation.module else ""
    return UnsupportedOperationError(
        f"Relevance cannot be propagated through the operation {operation.name!r} at {operation.location}{where}: "
        f"lrp_jax has no treatment for it with {circumstance}. If you know what should happen there, say it with "
        f"lrp_jax.composites.with_treatment(rules, {operation.name!r}, treatment); the treatments that there are stand "
        "in lrp_jax.operations."
    )


def _elementwise(graph: Graph, operation: Operation, live: int) -> Treatment:
    equation = operation.equation
    if operation.name in {"mul", "neg"} or (operation.name == "div" and live == 0):
        return scaled
    if equations.is_relu(equation):
        return rectified
    constants = [graph.constants.get(value) for value in operation.inputs]
    return one_to_one if equations.is_zero_at_zero(equation, live, constants) else one_to_one_shifted


def signal_of(graph: Graph, operation: Operation, held: Set[int]) -> int | None:
    """The position of the operand that takes all relevance of a product, because the other one is a gate.

    Args:
        graph: The function.
        operation: One of its operations.
        held: Further values that count as gates.

    Returns:
        The position, or None if the operation is no product of a live value with one gate.
    """
    if len(graph.live_inputs(operation)) != 2:
        return None
    if operation.name == "div":
        return 0 if is_gate(graph, operation.inputs[1], held, _GATES | {"sqrt"}) else None
    gates = [is_gate(graph, value, held) for value in operation.inputs]
    return gates.index(False) if operation.name in _BILINEAR and sum(gates) == 1 else None


def is_gate(graph: Graph, value: int, held: Set[int] = frozenset(), gates: Set[str] = _GATES) -> bool:
    """Whether a value is a sigmoid, 1 + tanh, 1 + erf, or a normalising statistic, up to constants."""
    shifted = False
    while operation := graph.producer.get(value):
        name = equations.name_of(operation.equation)
        if value in held or name in gates or (shifted and name in _GATES_ONCE_SHIFTED):
            return True
        live = graph.live_inputs(operation)
        if name not in _CARRIES_GATE or len(live) != 1:
            return False
        shifted = shifted or name in {"add", "sub"}
        value = operation.inputs[live[0]]
    return False
