"""Writes a JAX program as an ONNX model, so that it runs where there is no Python, such as in a page of this book.

It knows the operations of the book's networks and of their relevance. What it cannot write it refuses by name. (The
package jax2onnx knows far more operations, but version 0.17 needs an older orbax-checkpoint than the book.)
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import onnx
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from jax.interpreters.partial_eval import dce_jaxpr
from onnx import TensorProto, helper, numpy_helper

OPSET = 17  # of 2022, so that runtimes of the last years can read it
FORMAT = 8

# Integers for which runtimes have few operations. Between input and output they are written as 32 bits, and so do not
# wrap around.
_SMALL = frozenset(map(np.dtype, ("int8", "int16", "uint8", "uint16")))


@dataclass
class Graph:
    """The graph that is being written. Values are known by their names."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)

    def constant(self, value: Any) -> str:
        """Adds a constant; returns its name."""
        name = f"constant{len(self.constants)}"
        array = np.asarray(value)
        self.constants.append(numpy_helper.from_array(array.astype(_inner(array.dtype)), name))
        return name

    def integers(self, values: Sequence[int]) -> str:
        """Adds a list of integers, as operations take shapes and axes."""
        return self.constant(np.asarray(values, np.int64))

    def node(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Adds a node; returns the name of its output, or their names."""
        names = [f"value{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, **attributes))
        return names[0] if outputs == 1 else names

    def cast(self, value: str, dtype: Any) -> str:
        """Adds a conversion to another dtype; returns the name of its output."""
        return self.node("Cast", value, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def reshape(self, value: str, shape: Sequence[int]) -> str:
        """Adds a reshape; returns the name of its output."""
        return self.node("Reshape", value, self.integers(shape))


def to_onnx(function: Callable[..., dict[str, jax.Array]], **inputs: jax.Array) -> onnx.ModelProto:
    """Writes a JAX function as an ONNX model.

    Args:
        function: Takes arrays by keyword and returns a dictionary of arrays.
        **inputs: Examples of the arrays, for their shapes and dtypes. The model takes the same names.

    Returns:
        The model, checked. Its outputs have the names of the dictionary.

    Raises:
        NotImplementedError: If the function has an operation that is not written here; the message names it.
    """
    program, outputs = jax.make_jaxpr(function, return_shape=True)(**inputs)
    needed, _ = dce_jaxpr(program.jaxpr, [True] * len(program.out_avals), instantiate=True)
    graph = Graph()
    given = [graph.cast(name, np.int32) if inputs[name].dtype in _SMALL else name for name in sorted(inputs)]
    results = _write(graph, ClosedJaxpr(needed, program.consts), given)
    for name, result in zip(sorted(outputs), results, strict=True):
        result = graph.cast(result, outputs[name].dtype) if outputs[name].dtype in _SMALL else result
        graph.nodes.append(helper.make_node("Identity", [result], [name]))
    graph = _needed(graph, outputs)
    onnx_graph = helper.make_graph(
        graph.nodes,
        "program",
        [_described(name, inputs[name]) for name in sorted(inputs)],
        [_described(name, outputs[name]) for name in sorted(outputs)],
        graph.constants,
    )
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(onnx_graph, opset_imports=[opset], ir_version=FORMAT, producer_name="lrp_jax")
    onnx.checker.check_model(model, full_check=True)
    return model


def _needed(graph: Graph, outputs: Iterable[str]) -> Graph:
    """The graph without what its outputs do not need: runtimes warn of constants that nothing reads."""
    wanted, nodes = set(outputs), []
    for node in reversed(graph.nodes):
        if not wanted.isdisjoint(node.output):
            wanted.update(node.input)
            nodes.append(node)
    return Graph(nodes[::-1], [constant for constant in graph.constants if constant.name in wanted])


def _inner(dtype: Any) -> np.dtype:
    """The dtype in which values of a dtype are written between input and output."""
    return np.dtype(np.int32) if np.dtype(dtype) in _SMALL else np.dtype(dtype)


def _described(name: str, array: Any) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(array.dtype)), array.shape)


def _write(graph: Graph, program: ClosedJaxpr, inputs: Sequence[str]) -> list[str]:
    """Writes the equations of a program one after the other; returns the names of its results."""
    jaxpr: Jaxpr = program.jaxpr
    names: dict[Var, str] = dict(zip(jaxpr.invars, inputs, strict=True))
    names |= zip(jaxpr.constvars, map(graph.constant, program.consts), strict=True)

    def name(atom: Var | Literal) -> str:
        return graph.constant(np.asarray(atom.val, _aval(atom).dtype)) if isinstance(atom, Literal) else names[atom]

    for equation in jaxpr.eqns:
        arguments = [name(atom) for atom in equation.invars]
        called = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        if called is not None:
            results = _write(graph, called, arguments)
        elif equation.primitive.name == "cond":
            results = _cond(graph, equation, *arguments)
        elif equation.primitive.name in _ELEMENTWISE:
            results = [graph.node(_ELEMENTWISE[equation.primitive.name], *arguments)]
        elif equation.primitive.name in _OPERATIONS:
            results = [_OPERATIONS[equation.primitive.name](graph, equation, *arguments)]
        else:
            raise _refusal(equation)
        names |= zip(equation.outvars, results, strict=True)
    return [name(atom) for atom in jaxpr.outvars]


def _cond(graph: Graph, equation: JaxprEqn, index: str, *arguments: str) -> list[str]:
    """Writes both branches, of which one is chosen; a program in the browser is small."""
    if len(equation.params["branches"]) != 2:
        raise _refusal(equation)
    if_false, if_true = (_write(graph, branch, arguments) for branch in equation.params["branches"])
    condition = graph.node("Cast", index, to=onnx.TensorProto.BOOL)
    return [graph.node("Where", condition, *cases) for cases in zip(if_true, if_false, strict=True)]


def _refusal(equation: JaxprEqn) -> NotImplementedError:
    return NotImplementedError(f"This operation cannot be written as ONNX yet: {equation}")


def _aval(atom: Var | Literal) -> Any:
    """What has the shape and the dtype of a value: the type that JAX declares for it has neither."""
    return atom.aval


def _shape(equation: JaxprEqn) -> tuple[int, ...]:
    return _aval(equation.outvars[0]).shape


def _reshape(graph: Graph, equation: JaxprEqn, x: str) -> str:
    order = equation.params.get("dimensions")
    if equation.primitive.name == "reshape" and order is not None:
        x = graph.node("Transpose", x, perm=order)
    return graph.reshape(x, _shape(equation))


def _broadcast(graph: Graph, equation: JaxprEqn, x: str) -> str:
    with_all_axes = [1] * len(_shape(equation))
    for axis, size in zip(equation.params["broadcast_dimensions"], _aval(equation.invars[0]).shape, strict=True):
        with_all_axes[axis] = size
    return graph.node("Expand", graph.reshape(x, with_all_axes), graph.integers(_shape(equation)))


def _convert(graph: Graph, equation: JaxprEqn, x: str) -> str:
    return graph.cast(x, _inner(equation.params["new_dtype"]))


def _select(graph: Graph, equation: JaxprEqn, condition: str, *cases: str) -> str:
    if len(cases) != 2 or _aval(equation.invars[0]).dtype != bool:
        raise _refusal(equation)
    if_false, if_true = cases
    return graph.node("Where", condition, if_true, if_false)


def _transpose(graph: Graph, equation: JaxprEqn, x: str) -> str:
    return graph.node("Transpose", x, perm=equation.params["permutation"])


def _slice(graph: Graph, equation: JaxprEqn, x: str) -> str:
    starts, limits = equation.params["start_indices"], equation.params["limit_indices"]
    steps = equation.params["strides"] or (1,) * len(starts)
    return graph.node("Slice", x, *map(graph.integers, (starts, limits, range(len(starts)), steps)))


def _reverse(graph: Graph, equation: JaxprEqn, x: str) -> str:
    axes = equation.params["dimensions"]
    starts, ends, steps = ([value] * len(axes) for value in (-1, np.iinfo(np.int64).min, -1))
    return graph.node("Slice", x, *map(graph.integers, (starts, ends, axes, steps)))


def _stack(graph: Graph, equation: JaxprEqn, *parts: str) -> str:
    axis = equation.params["axis"]
    one = [size if i != axis else 1 for i, size in enumerate(_shape(equation))]
    return graph.node("Concat", *(graph.reshape(part, one) for part in parts), axis=axis)


def _concatenate(graph: Graph, equation: JaxprEqn, *parts: str) -> str:
    return graph.node("Concat", *parts, axis=equation.params["dimension"])


def _and(graph: Graph, equation: JaxprEqn, a: str, b: str) -> str:
    """Of truth values; of integers only with a mask of their last bits, which is a remainder."""
    if _aval(equation.invars[0]).dtype == bool:
        return graph.node("And", a, b)
    mask = equation.invars[1]
    if not isinstance(mask, Literal) or int(mask.val) & (int(mask.val) + 1):
        raise _refusal(equation)
    return graph.node("Mod", a, graph.constant(np.int32(int(mask.val) + 1)))


def _shift(kind: str) -> Callable[..., str]:
    def write(graph: Graph, equation: JaxprEqn, x: str, places: str) -> str:
        if _aval(equation.outvars[0]).dtype not in _SMALL:
            raise _refusal(equation)
        return graph.node(kind, x, graph.node("Pow", graph.constant(np.int32(2)), places))

    return write


def _power(graph: Graph, equation: JaxprEqn, x: str) -> str:
    return graph.node("Pow", x, graph.constant(np.float32(equation.params["y"])))


def _any(graph: Graph, equation: JaxprEqn, x: str) -> str:
    number = graph.node("Cast", x, to=onnx.TensorProto.INT32)
    largest = graph.node("ReduceMax", number, axes=list(equation.params["axes"]), keepdims=0)
    return graph.node("Cast", largest, to=onnx.TensorProto.BOOL)


def _sum(graph: Graph, equation: JaxprEqn, x: str) -> str:
    return graph.node("ReduceSum", x, graph.integers(equation.params["axes"]), keepdims=0)


def _product(graph: Graph, equation: JaxprEqn, a: str, b: str) -> str:
    (a_summed, b_summed), (a_batch, b_batch) = equation.params["dimension_numbers"]
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    of_a = [next(letters) for _ in _aval(equation.invars[0]).shape]
    of_b = [next(letters) for _ in _aval(equation.invars[1]).shape]
    for i, j in zip((*a_summed, *a_batch), (*b_summed, *b_batch), strict=True):
        of_b[j] = of_a[i]
    free = [letter for i, letter in enumerate(of_a) if i not in (*a_summed, *a_batch)]
    free += [letter for j, letter in enumerate(of_b) if j not in (*b_summed, *b_batch)]
    result = [of_a[i] for i in a_batch] + free
    return graph.node("Einsum", a, b, equation=f"{''.join(of_a)},{''.join(of_b)}->{''.join(result)}")


def _convolution(graph: Graph, equation: JaxprEqn, x: str, w: str) -> str:
    params, order = equation.params, equation.params["dimension_numbers"]
    if set(params["lhs_dilation"]) != {1} or params["batch_group_count"] != 1:
        raise _refusal(equation)
    z = graph.node(
        "Conv",
        graph.node("Transpose", x, perm=order.lhs_spec),
        graph.node("Transpose", w, perm=order.rhs_spec),
        strides=params["window_strides"],
        dilations=params["rhs_dilation"],
        pads=[before for before, _ in params["padding"]] + [after for _, after in params["padding"]],
        group=params["feature_group_count"],
    )
    return graph.node("Transpose", z, perm=np.argsort(order.out_spec).tolist())


def _max_pool(graph: Graph, equation: JaxprEqn, x: str) -> str:
    params = equation.params
    windows = params["window_dimensions"]
    pooled = [axis for axis, size in enumerate(windows) if size > 1]
    axes = [axis for axis, size in enumerate(windows) if size == 1] + pooled
    if len(windows) - len(pooled) != 2 or {*params["base_dilation"], *params["window_dilation"]} != {1}:
        raise _refusal(equation)
    maxima = graph.node(
        "MaxPool",
        graph.node("Transpose", x, perm=axes),
        kernel_shape=[windows[axis] for axis in pooled],
        strides=[params["window_strides"][axis] for axis in pooled],
        pads=[params["padding"][axis][side] for side in (0, 1) for axis in pooled],
    )
    return graph.node("Transpose", maxima, perm=np.argsort(axes).tolist())


def _pad(graph: Graph, equation: JaxprEqn, x: str, value: str) -> str:
    """Padding at the edges and, axis by axis, between the elements: each becomes a row that is padded at its end."""
    shape = list(_aval(equation.invars[0]).shape)
    edges = equation.params["padding_config"]
    if any(low < 0 or high < 0 for low, high, _ in edges):
        raise _refusal(equation)
    for axis, (_, _, between) in enumerate(edges):
        if between and shape[axis]:
            rows = graph.reshape(x, [*shape[: axis + 1], 1, *shape[axis + 1 :]])
            ends = [0] * (len(shape) + 1), [between if i == axis + 1 else 0 for i in range(len(shape) + 1)]
            padded = graph.node("Pad", rows, graph.integers([*ends[0], *ends[1]]), value)
            size = shape[axis]
            shape[axis] = size * (1 + between)
            x = graph.reshape(padded, shape)
            shape[axis] -= between
            x = graph.node("Slice", x, *map(graph.integers, ([0], [shape[axis]], [axis])))
    around = [low for low, _, _ in edges] + [high for _, high, _ in edges]
    return graph.node("Pad", x, graph.integers(around), value)


_ELEMENTWISE = {
    "abs": "Abs",
    "add": "Add",
    "add_any": "Add",
    "div": "Div",
    "eq": "Equal",
    "exp": "Exp",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "le": "LessOrEqual",
    "log": "Log",
    "lt": "Less",
    "max": "Max",
    "min": "Min",
    "mul": "Mul",
    "neg": "Neg",
    "not": "Not",
    "optimization_barrier": "Identity",
    "or": "Or",
    "sign": "Sign",
    "sqrt": "Sqrt",
    "stop_gradient": "Identity",
    "sub": "Sub",
    "tanh": "Tanh",
}
_OPERATIONS: dict[str, Callable[..., str]] = {
    "and": _and,
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "convert_element_type": _convert,
    "dot_general": _product,
    "expand_dims": _reshape,
    "integer_pow": _power,
    "pad": _pad,
    "reduce_or": _any,
    "reduce_sum": _sum,
    "reduce_window_max": _max_pool,
    "reshape": _reshape,
    "rev": _reverse,
    "select_n": _select,
    "shift_left": _shift("Mul"),
    "shift_right_logical": _shift("Div"),
    "slice": _slice,
    "squeeze": _reshape,
    "stack": _stack,
    "transpose": _transpose,
}
