"""Layers: a linear operation with one live operand, and the constant affine operations that follow it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import jax
import jax.numpy as jnp

from lrp_jax.core.equations import Mark
from lrp_jax.core.graph import Graph, Operation, Status
from lrp_jax.core.kinds import KINDS, Kind
from lrp_jax.core.linear_maps import LinearMap
from lrp_jax.core.primitive import Family
from lrp_jax.errors import ModelError


@dataclass(frozen=True)
class Layer:
    """A layer of the explained function. This is what a selector sees.

    A layer whose output is read in several places is one for each of them, with the affine operations on the way there.

    Attributes:
        name: The path of its weight in the model or among the arguments, without the weight's own name, such as
            "blocks.0.conv"; the module path that the program carries, or a number, where the weight has none.
        kind: "dense" (a `dot_general`), "conv" (a `conv_general_dilated`) or "ragged" (a `ragged_dot_general`).
        index: Its position among the layers, from 0, in the order in which the function runs them.
        count: How many layers there are.
        reads_input: Whether it reads the explained input without another layer in between.
        input_shape: The shape of x.
        weight_shape: The shape of w.
        output_shape: The shape of z.
        operations: The linear operation, then the affine ones that are folded into it.
        input: The number of the value that the layer reads.
        constants: The numbers of its constant operands, the weight first.
        output: The number of the value that it returns.
        nonnegative: Whether the input is known to be non-negative.
        rectified: Whether the output is known to be read only through a ReLU.
    """

    name: str
    kind: str
    index: int
    count: int
    reads_input: bool
    input_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    operations: tuple[Operation, ...]
    input: int
    constants: tuple[int, ...]
    output: int
    nonnegative: bool = False
    rectified: bool = False

    @property
    def product(self) -> Kind:
        """The linear operation."""
        head = self.operations[0]
        return KINDS[head.name](head.equation, head.inputs.index(self.input))

    def linearize(self, x: jax.Array, constants: Sequence[jax.Array], z: jax.Array) -> LinearMap:
        """The layer at one input as z = lin(x, w) + b, the affine operations folded into w and b.

        It is in single precision at least: denominators of half precision would be too coarse.
        """
        precision = jnp.promote_types(z.dtype, jnp.float32)
        is_coarse = z.dtype != precision
        x, z = x.astype(precision), z.astype(precision)
        head, *tail = self.operations
        values = {
            value: array if value in head.inputs[2:] else array.astype(precision)
            for value, array in zip(self.constants, constants, strict=True)
        }
        w, *others = (values[value] for value in head.inputs if value != self.input)
        factor, b = self._folded(values, z)
        moves = tuple(operation for operation in tail if not operation.family & (Family.AFFINE | Family.IDENTITY))
        linear = LinearMap(x, w * factor, b, z, self.product, tuple(others), moves, self.nonnegative, self.rectified)
        return replace(linear, z=linear.linear(x, linear.w) + b) if is_coarse else linear

    def _folded(self, values: Mapping[int, jax.Array], z: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What the affine operations multiply the weight with, and what they add to the output."""
        head, *tail = self.operations
        # Made like another array, zero varies within `jax.shard_map` along the same axes as it does.
        factor, shift = jnp.ones((), z.dtype), jnp.zeros_like(z, shape=())
        axes = _identity(head)
        for operation in tail:
            operands = [values.get(value, shift) for value in operation.inputs]
            are_constants = [value in values for value in operation.inputs]
            match operation.name:
                case "mul":
                    factor = factor * _along_weight(operands[are_constants.index(True)], axes, self.product)
                case "div":
                    factor = factor / _along_weight(operands[1], axes, self.product)
                case "neg":
                    factor = -factor
                case "sub" if are_constants[0]:
                    factor = -factor
            axes = _axes_after(axes, operation)
            if Family.AFFINE in operation.family:
                (shift,) = operation.run(*jnp.broadcast_arrays(*operands))
            elif shift.ndim and Family.IDENTITY not in operation.family:
                (shift,) = operation.run(jnp.broadcast_to(shift, operation.equation.invars[0].aval.shape))
        return factor, shift


def find_layers(graph: Graph) -> list[Layer]:
    """Finds the layers of a function, in the order in which it runs them, with those inside of scans and branches.

    A layer is a linear operation of one live value whose other operand is a parameter: an array that was there before
    the function was called, or is computed from one. A mark overrules that. What follows it is found by `find_tails`.

    Raises:
        ModelError: If a value is marked as that of a layer, or of none, that is no output of a linear operation.
    """
    near_input = {value for value in (*graph.inputs, *graph.embeddings) if graph.is_live(value)}
    found = list(_find_heads(graph, near_input))
    layers: list[Layer] = []
    taken: set[str] = set()
    for index, (inner, head, weight, reads_input) in enumerate(found):
        x, *others = (value for value in head.inputs if value != weight)
        (output,) = head.outputs
        kind = KINDS[head.name].name
        name = inner.name_of(weight).rpartition(".")[0] or head.module or f"{kind}_{index}"
        while name in taken:
            name += "'"
        taken.add(name)
        layers.append(
            Layer(
                name=name,
                kind=kind,
                index=index,
                count=len(found),
                reads_input=reads_input,
                input_shape=inner.shapes[x].shape,
                weight_shape=inner.shapes[weight].shape,
                output_shape=inner.shapes[output].shape,
                operations=(head,),
                input=x,
                constants=(weight, *others),
                output=output,
                nonnegative=inner.is_nonnegative(x),
            )
        )
    return layers


def linear_operations_without_parameter(graph: Graph) -> list[Operation]:
    """The products with a constant that are no layers: the function, or that of the target, made it itself."""
    return [
        operation
        for inner, operation in graph.all_operations()
        if constant_factor(inner, operation) is not None and _weight_of(inner, operation, _overruled(inner)) is None
    ]


def constant_factor(graph: Graph, operation: Operation) -> int | None:
    """The constant of a linear operation, which may be its weight; None of what is no such operation."""
    live = graph.live_inputs(operation)
    kind = KINDS.get(operation.name)
    is_complex = any(jnp.iscomplexobj(graph.shapes[value]) for value in operation.outputs)
    if kind is None or is_complex or len(live) != 1 or not kind(operation.equation, live[0]).is_linear:
        return None
    constant = operation.inputs[1 - live[0]]
    return constant if graph.is_constant(constant) else None


def marked_as_none(graph: Graph) -> frozenset[int]:
    """The ids of the linear operations, also those within a scan or a branch, of which a mark says: no layer."""
    overruled = (place for inner in graph.all_graphs() for place in _overruled(inner).items())
    return frozenset(place for place, mark in overruled if mark is Mark.NO_LAYER)


def _overruled(graph: Graph) -> dict[int, Mark]:
    """What marks say of linear operations, by the id of the operation."""
    found: dict[int, Mark] = {}
    for value, mark, where in graph.marked(Mark.LAYER, Mark.NO_LAYER):
        head = linear_operation_behind(graph, value)
        if head is None:
            operation = graph.producer.get(value)
            what = f"what {operation.name!r} at {operation.location} returns" if operation else "an input"
            raise ModelError(
                f"mark.{mark.value} at {where} has no effect: its value is {what}, and no output of a linear "
                "operation, which is a product of one value with a constant, or a convolution with one. Put it around "
                "that, or leave it out."
            )
        if found.setdefault(id(head), mark) is not mark:
            raise ModelError(
                f"The linear operation at {head.location} is marked with mark.layer and with mark.no_layer; one of "
                f"them stands at {where}. Leave one out."
            )
    return found


def linear_operation_behind(graph: Graph, value: int) -> Operation | None:
    """The linear operation that a value is the output of, also with a bias, a scale or moves behind it."""
    while (operation := graph.producer.get(value)) is not None:
        if constant_factor(graph, operation) is not None:
            return operation
        live = graph.live_inputs(operation)
        others = [i for i in operation.inputs if not graph.is_live(i)]
        is_passed = Family.AFFINE in operation.family or _is_move(operation)
        if len(live) != 1 or not is_passed or any(graph.status[i] is not Status.CONSTANT for i in others):
            return None
        value = operation.inputs[live[0]]
    return None


def _find_heads(graph: Graph, near: set[int]) -> Iterator[tuple[Graph, Operation, int, bool]]:
    """Yields the linear operation of each layer with its graph, its weight, and whether it reads the input.

    `near` holds the values that depend on the explained input along a path on which there is no layer; it grows on the
    way, and ends with those of the whole graph.
    """
    overruled = _overruled(graph)
    for operation in graph.operations:
        weight = _weight_of(graph, operation, overruled)
        if weight is not None:
            yield graph, operation, weight, bool(near.intersection(operation.inputs))
            continue
        if operation.bodies:
            operands = operation.inputs[len(operation.inputs) - len(operation.bodies[0].inputs) :]
            reached = {i for i, value in enumerate(operands) if value in near}
            for body in operation.bodies:
                inner_near = {body.inputs[i] for i in reached} | set(body.embeddings)
                yield from _find_heads(body, inner_near)
                near.update(
                    out for out, inner in zip(operation.outputs, body.outputs, strict=True) if inner in inner_near
                )
        elif near.intersection(operation.inputs):
            near.update(operation.outputs)


def _weight_of(graph: Graph, operation: Operation, overruled: Mapping[int, Mark]) -> int | None:
    mark = overruled.get(id(operation))
    if mark is Mark.LAYER:
        return constant_factor(graph, operation)
    weight = None if operation.is_of_target or mark is Mark.NO_LAYER else constant_factor(graph, operation)
    return weight if weight in graph.parameters else None


_Axes: TypeAlias = list[int | None]


@dataclass(frozen=True)
class Tail:
    """A value that a layer returns, with moves and affine operations with constants on the way.

    Attributes:
        layer: The layer, with the affine operations up to here.
        moves: What moves the layer's output afterwards; if there is any, the value is not the layer's own.
        axes: For each dimension of the value, that of the linear operation's output, as ~i where it runs backwards;
            None where there is no such.
    """

    layer: Layer
    moves: tuple[Operation, ...]
    axes: _Axes


def find_tails(graph: Graph, layers: Mapping[int, Layer]) -> dict[int, Tail]:
    """Finds what is a layer's output, or follows from it by moves and affine operations with constants.

    Args:
        graph: The function.
        layers: Its layers, by the id of their linear operation.

    Returns:
        By the number of the value.
    """
    tails: dict[int, Tail] = {}
    for operation in graph.operations:
        if id(operation) in layers:
            tails[operation.outputs[0]] = Tail(layers[id(operation)], (), _identity(operation))
            continue
        live = graph.live_inputs(operation)
        if len(live) != 1 or len(operation.outputs) != 1 or operation.is_of_target:
            continue
        (before, (output,)) = operation.inputs[live[0]], operation.outputs
        tail = tails.get(before)
        others = [value for value in operation.inputs if value != before]
        if tail is None or any(graph.status[value] is not Status.CONSTANT for value in others):
            continue
        shapes = graph.shapes[before], graph.shapes[output]
        if not all(jnp.issubdtype(shape.dtype, jnp.floating) for shape in shapes):
            continue
        is_spread = operation.name == "broadcast_in_dim" and shapes[0].size != shapes[1].size
        is_move = _is_move(operation) and not is_spread
        if is_move and graph.is_live(output):
            tails[output] = replace(tail, moves=(*tail.moves, operation), axes=_axes_after(tail.axes, operation))
        elif Family.AFFINE in operation.family and shapes[0].shape == shapes[1].shape:
            if operation.name in {"mul", "div"} and not _folds(graph, tail, operation, others):
                continue
            operations = (*tail.layer.operations, *tail.moves, operation)
            constants = tuple(dict.fromkeys([*tail.layer.constants, *others]))
            layer = replace(tail.layer, operations=operations, constants=constants, output=output)
            tails[output] = Tail(layer, (), tail.axes)
    return tails


def _identity(head: Operation) -> _Axes:
    return list(range(head.equation.outvars[0].aval.ndim))


def _axes_after(axes: _Axes, operation: Operation) -> _Axes:
    """Follows the dimensions of a linear operation's output through a move."""
    name, params = operation.name, operation.equation.params
    before, after = operation.equation.invars[0].aval.shape, operation.equation.outvars[0].aval.shape
    if operation.family & (Family.AFFINE | Family.IDENTITY):
        return axes
    if name == "rev":
        return [~axis if i in params["dimensions"] and axis is not None else axis for i, axis in enumerate(axes)]
    if name == "transpose":
        return [axes[i] for i in params["permutation"]]
    if name == "broadcast_in_dim":
        place = {axis: i for i, axis in enumerate(params["broadcast_dimensions"])}
        return [axes[place[i]] if i in place else None for i in range(len(after))]
    if name == "slice":
        return [axis if before[i] == after[i] else None for i, axis in enumerate(axes)]
    # Of what is reshaped, a dimension stays one if as many elements come before it, and it has as many entries.
    kept = {(math.prod(before[:i]), size): axes[i] for i, size in enumerate(before)}
    return [kept.get((math.prod(after[:i]), size)) if size > 1 else None for i, size in enumerate(after)]


def _is_move(operation: Operation) -> bool:
    """Whether an operation moves elements of one value, each to one place, or to several by a broadcast."""
    is_unchanged = operation.family & (Family.REARRANGEMENT | Family.IDENTITY) and Family.STEP not in operation.family
    return bool(is_unchanged) or operation.name == "slice"


def _folds(graph: Graph, tail: Tail, operation: Operation, others: Sequence[int]) -> bool:
    """Whether a factor can be moved into the weight: it varies along output features alone."""
    if operation.name == "div" and operation.inputs[0] in others:
        return False
    shape = graph.shapes[others[0]].shape
    features = tail.layer.product.weight_axes
    places = tail.axes[len(tail.axes) - len(shape) :]
    return all(size == 1 or _unreversed(place) in features for place, size in zip(places, shape, strict=True))


def _unreversed(axis: int | None) -> int | None:
    return None if axis is None else max(axis, ~axis)


def _along_weight(factor: jax.Array, axes: _Axes, product: Kind) -> jax.Array:
    """Brings a factor of a layer's output to the dimensions of the weight along which it varies."""
    if factor.size == 1:
        return factor.reshape(())
    places = axes[len(axes) - factor.ndim :]
    varying = {i: axis for i, axis in enumerate(places) if factor.shape[i] > 1 and axis is not None}
    factor = jnp.flip(factor, [i for i, axis in varying.items() if axis < 0])
    along = {product.weight_axes[max(axis, ~axis)]: i for i, axis in varying.items()}
    order = [along[axis] for axis in sorted(along)]
    moved = jnp.transpose(factor, (*(i for i in range(factor.ndim) if i not in varying), *order))
    rank = product.equation.invars[1 - product.side].aval.ndim
    return moved.reshape([factor.shape[along[axis]] if axis in along else 1 for axis in range(rank)])
