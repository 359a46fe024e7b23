"""Layers: a linear operation with one live operand, and the constant affine operations that follow it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lrp_jax.graph import Graph, Operation, Status

_KINDS = {"dot_general": "dense", "conv_general_dilated": "conv"}
_AFFINE = {"add", "sub", "mul", "div", "neg"}
_STRUCTURE = {"reshape", "transpose", "squeeze"}


@dataclass(frozen=True)
class Layer:
    """A layer of the explained function.

    Attributes:
        kind: "dense" (a `dot_general`) or "conv" (a `conv_general_dilated`).
        operations: The linear operation, then the affine ones that are folded into it.
        input: The number of the value that the layer reads.
        constants: The numbers of its constant operands, the weight first.
        output: The number of the value that it returns.
    """

    kind: str
    operations: tuple[Operation, ...]
    input: int
    constants: tuple[int, ...]
    output: int

    def run(self, x: jax.Array, constants: Sequence[jax.Array]) -> jax.Array:
        """Applies the layer as the function itself does."""
        values = {self.input: x, **dict(zip(self.constants, constants, strict=True))}
        for operation in self.operations:
            (values[operation.outputs[0]],) = operation.run(*(values[i] for i in operation.inputs))
        return values[self.output]

    def linearize(self, x: jax.Array, constants: Sequence[jax.Array], z: jax.Array) -> "LinearMap":
        """The layer at one input as z = lin(x, w) + b, the affine operations folded into w and b."""
        values = dict(zip(self.constants, constants, strict=True))
        head, *tail = self.operations
        scale, shift = jnp.ones((), z.dtype), jnp.zeros((), z.dtype)
        permutation = _identity(head)
        structure: list[Operation] = []
        for operation in tail:
            constant = next((values[i] for i in operation.inputs if i in values), shift)
            match operation.name:
                case "add":
                    shift = shift + constant
                case "sub" if operation.inputs[0] in values:
                    scale, shift = -scale, constant - shift
                case "sub":
                    shift = shift - constant
                case "mul":
                    scale, shift = scale * _to_head(constant, permutation), shift * constant
                case "div":
                    scale, shift = scale / _to_head(constant, permutation), shift / constant
                case "neg":
                    scale, shift = -scale, -shift
                case _:
                    structure.append(operation)
                    shift = _through(operation, shift)
                    permutation = _permuted(permutation, operation)

        def linear(x: jax.Array, w: jax.Array) -> jax.Array:
            (out,) = head.run(*(x if i == self.input else w for i in head.inputs))
            for operation in structure:
                (out,) = operation.run(out)
            return out

        w = values[self.constants[0]]
        w = w * _along_weight(head, self.constants[0], scale).astype(w.dtype)
        return LinearMap(x, w, shift, z, linear)


@dataclass(frozen=True)
class LinearMap:
    """What a rule sees of a layer: z = lin(x, w) + b at one input.

    Attributes:
        x: The input of the layer.
        w: Its weight, with everything folded in that scales the output.
        b: Its bias, of a shape that broadcasts to `z`; zero where there is none.
        z: Its output.
        linear: The map lin(x, w), linear in x and in w.
    """

    x: jax.Array
    w: jax.Array
    b: jax.Array
    z: jax.Array
    linear: Callable[[jax.Array, jax.Array], jax.Array]

    def transpose(self, w: jax.Array, s: jax.Array) -> jax.Array:
        """The transpose of x -> lin(x, w), applied to `s`: for a dense layer, s times the transpose of w."""
        (out,) = jax.linear_transpose(lambda x: self.linear(x, w), self.x)(s.astype(self.z.dtype))
        return out


class _Consumers:
    """Which operations read each value of a graph."""

    def __init__(self, graph: Graph):
        self.readers: dict[int, list[Operation]] = {}
        for operation in graph.operations:
            for value in operation.inputs:
                self.readers.setdefault(value, []).append(operation)
        self.returned = set(graph.outputs)

    def only_reader(self, value: int) -> Operation | None:
        readers = self.readers.get(value, [])
        return readers[0] if len(readers) == 1 and value not in self.returned else None


def find_layers(graph: Graph) -> list[Layer]:
    """Finds the layers of a function, in the order in which it runs them."""
    consumers = _Consumers(graph)
    layers = []
    for operation in graph.operations:
        live = graph.live_inputs(operation)
        if operation.name not in _KINDS or len(live) != 1:
            continue
        weight = operation.inputs[1 - live[0]]
        if graph.status[weight] is Status.CONSTANT:
            layers.append(_layer_from(graph, consumers, operation, operation.inputs[live[0]], weight))
    return layers


def _layer_from(graph: Graph, consumers: _Consumers, head: Operation, x: int, weight: int) -> Layer:
    operations, constants = [head], [weight]
    permutation = _identity(head)
    length = 1
    while reader := consumers.only_reader(operations[-1].outputs[0]):
        others = [value for value in reader.inputs if value != operations[-1].outputs[0]]
        if any(graph.status[value] is not Status.CONSTANT for value in others):
            break
        if graph.shapes[reader.outputs[0]].dtype != graph.shapes[head.outputs[0]].dtype:
            break
        if reader.name in _STRUCTURE:
            permutation = _permuted(permutation, reader)
        elif reader.name in _AFFINE and _keeps_shape(graph, reader, operations[-1].outputs[0]):
            if reader.name in {"mul", "div"} and not _folds(graph, head, weight, reader, others, permutation):
                break
            length = len(operations) + 1
        else:
            break
        operations.append(reader)
        constants.extend(others)
    operations = operations[:length]
    read = {value for operation in operations for value in operation.inputs}
    return Layer(
        kind=_KINDS[head.name],
        operations=tuple(operations),
        input=x,
        constants=tuple(dict.fromkeys(value for value in constants if value in read)),
        output=operations[-1].outputs[0],
    )


def _keeps_shape(graph: Graph, operation: Operation, value: int) -> bool:
    return graph.shapes[operation.outputs[0]].shape == graph.shapes[value].shape


def _identity(head: Operation) -> list[int] | None:
    return list(range(head.equation.outvars[0].aval.ndim))


def _permuted(permutation: list[int] | None, operation: Operation) -> list[int] | None:
    """Follows a transposition; None once another change of shape has mixed the dimensions."""
    if operation.name != "transpose" or permutation is None:
        return None
    return [permutation[i] for i in operation.equation.params["permutation"]]


def _folds(graph, head, weight, operation, others, permutation) -> bool:
    """Whether a factor can be moved into the weight: it varies along output features alone."""
    if operation.name == "div" and operation.inputs[0] in others:
        return False
    shape = graph.shapes[others[0]].shape
    if all(size == 1 for size in shape):
        return True
    if permutation is None:
        return False
    axes = _weight_axes(head, weight)
    return all(size == 1 or permutation[axis] in axes for axis, size in enumerate(shape))


def _weight_axes(head: Operation, weight: int) -> dict[int, int]:
    """For each dimension of the linear operation's output that the weight brings, the weight's dimension."""
    params = head.equation.params
    is_right = head.inputs[1] == weight
    if head.name == "conv_general_dilated":
        numbers = params["dimension_numbers"]
        return {numbers.out_spec[1]: numbers.rhs_spec[0]} if is_right else {}
    contracted, batch = params["dimension_numbers"]
    ranks = [variable.aval.ndim for variable in head.equation.invars]
    free = [[d for d in range(ranks[side]) if d not in contracted[side] and d not in batch[side]] for side in (0, 1)]
    start = len(batch[0]) + (len(free[0]) if is_right else 0)
    axes = dict(enumerate(batch[is_right]))
    axes.update({start + i: dimension for i, dimension in enumerate(free[is_right])})
    return axes


def _along_weight(head: Operation, weight: int, scale: jax.Array) -> jax.Array:
    """Brings a factor of the linear operation's output into the shape in which it multiplies the weight."""
    if scale.size == 1:
        return scale.reshape(())
    axes = _weight_axes(head, weight)
    varying = sorted((axes[out], out) for out, size in enumerate(scale.shape) if size > 1)
    shape = [1] * head.equation.invars[head.inputs.index(weight)].aval.ndim
    for dimension, out in varying:
        shape[dimension] = scale.shape[out]
    squeezed = scale.reshape([size for size in scale.shape if size > 1])
    rank = {out: i for i, out in enumerate(sorted(out for _, out in varying))}
    return jnp.transpose(squeezed, [rank[out] for _, out in varying]).reshape(shape)


def _to_head(constant: jax.Array, permutation: Sequence[int] | None) -> jax.Array:
    """Undoes the transpositions between the linear operation and a factor."""
    if constant.size == 1 or permutation is None:
        return constant.reshape(())
    return jnp.transpose(constant, [permutation.index(axis) for axis in range(constant.ndim)])


def _through(operation: Operation, shift: jax.Array) -> jax.Array:
    if shift.ndim == 0:
        return shift
    (variable,) = operation.equation.invars
    return operation.run(jnp.broadcast_to(shift, variable.aval.shape))[0]
