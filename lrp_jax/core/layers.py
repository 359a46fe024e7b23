"""Layers: a linear operation with one live operand, and the constant affine operations that follow it."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from lrp_jax.core import equations
from lrp_jax.core.equations import Mark
from lrp_jax.core.fast import is_depthwise, shifted_products, transposed_products
from lrp_jax.core.graph import Graph, Operation, Status
from lrp_jax.core.primitives import Family
from lrp_jax.errors import ModelError

_KINDS = {"dot_general": "dense", "conv_general_dilated": "conv"}
_LOST = 1e-3  # a difference this small beside what it is taken from has lost three digits


def positive(a: jax.Array) -> jax.Array:
    """a+ = max(a, 0)."""
    return jnp.maximum(a, 0)


def negative(a: jax.Array) -> jax.Array:
    """a- = min(a, 0)."""
    return jnp.minimum(a, 0)


def product(equation: Any, *operands: jax.Array, precision: Any = None) -> jax.Array:
    """Applies a linear operation; on a CPU, where XLA is slow at them, depthwise convolutions in another way.

    Args:
        equation: The operation.
        operands: Its operands.
        precision: The dtype of the output; the operation's own if None.

    Returns:
        Its output, up to rounding.
    """
    changed = {} if precision is None else {"preferred_element_type": precision}

    def plainly(*operands: jax.Array) -> jax.Array:
        return equations.run(equation, *operands, **changed)[0]

    if not is_depthwise(equation, *operands):
        return plainly(*operands)
    as_products = functools.partial(shifted_products, params=equation.params | changed)
    return lax.platform_dependent(*operands, cpu=as_products, default=plainly)


def transposed_product(equation: Any, position: int, x: jax.Array, w: jax.Array, s: jax.Array) -> jax.Array:
    """Applies the transpose of a linear operation, in the same ways as `product`.

    Args:
        equation: The operation.
        position: Which of its operands is x.
        x: The operand with regard to which it is transposed.
        w: The other operand.
        s: What arrives at the output, in the dtype in which the operation is to run.

    Returns:
        Array of the shape of `x`.
    """

    def plainly(w: jax.Array, s: jax.Array) -> jax.Array:
        def linear(x: jax.Array) -> jax.Array:
            return equations.run(equation, *([w, x] if position else [x, w]), preferred_element_type=s.dtype)[0]

        return jax.linear_transpose(linear, x)(s)[0]

    if position or not is_depthwise(equation, x, w):
        return plainly(w, s)
    params = equation.params | {"preferred_element_type": s.dtype}
    return lax.platform_dependent(w, s, cpu=lambda w, s: transposed_products(s, w, params, x.shape), default=plainly)


@dataclass(frozen=True)
class Layer:
    """A layer of the explained function. This is what a selector sees.

    A layer whose output is read in several places is one for each of them, with the affine operations on the way there.

    Attributes:
        name: The path of its weight in the model or among the arguments, without the weight's own name, such as
            "blocks.0.conv"; the module path that the program carries, or a number, where the weight has none.
        kind: "dense" (a `dot_general`) or "conv" (a `conv_general_dilated`).
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
        rectified: Whether the output is known to be read through a relu alone.
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

    def linearize(self, x: jax.Array, constants: Sequence[jax.Array], z: jax.Array) -> "LinearMap":
        """The layer at one input as z = lin(x, w) + b, the affine operations folded into w and b.

        It is in single precision at least: denominators of half precision would be too coarse.
        """
        output = z
        precision = jnp.promote_types(z.dtype, jnp.float32)
        is_coarse = z.dtype != precision
        x, z, *constants = (array.astype(precision) for array in (x, z, *constants))
        values = dict(zip(self.constants, constants, strict=True))
        head, *tail = self.operations
        scale, shift = jnp.ones((), z.dtype), jnp.zeros((), z.dtype)
        axes = _identity(head)
        structure: list[Operation] = []
        for operation in tail:
            if Family.IDENTITY in operation.family:
                continue
            constant = next((values[i] for i in operation.inputs if i in values), shift)
            match operation.name:
                case "add" | "add_any":
                    shift = shift + constant
                case "sub" if operation.inputs[0] in values:
                    scale, shift = -scale, constant - shift
                case "sub":
                    shift = shift - constant
                case "mul":
                    scale, shift = scale * _to_head(constant, axes, head), shift * constant
                case "div":
                    scale, shift = scale / _to_head(constant, axes, head), shift / constant
                case "neg":
                    scale, shift = -scale, -shift
                case _:
                    structure.append(operation)
                    shift = _through(operation, shift)
                    axes = _axes_after(axes, operation)

        def reshape(out: jax.Array) -> jax.Array:
            for operation in structure:
                (out,) = operation.run(out)
            return out

        def linear(x: jax.Array, w: jax.Array) -> jax.Array:
            operands = (x if i == self.input else w for i in head.inputs)
            return reshape(product(head.equation, *operands, precision=precision))

        # Made like another array, zeros vary within `jax.shard_map` along the same axes as it does.
        def unshape(out: jax.Array) -> jax.Array:
            unshaped = jnp.zeros_like(out, shape=head.equation.outvars[0].aval.shape)
            return jax.linear_transpose(reshape, unshaped)(out)[0]

        def transpose(w: jax.Array, s: jax.Array) -> jax.Array:
            position = head.inputs.index(self.input)
            return transposed_product(head.equation, position, x, w, unshape(s.astype(z.dtype)))

        def root_mean_square(z: jax.Array) -> jax.Array:
            features = _feature_axes(head, self.constants[0])
            if not structure:
                return jnp.sqrt((z**2).mean(features, keepdims=True))
            unshaped = unshape(jnp.broadcast_to(z, output.shape))
            mean = jnp.sqrt((unshaped**2).mean(features, keepdims=True))
            return reshape(jnp.broadcast_to(mean, unshaped.shape))

        def aligned(relevance: jax.Array) -> jax.Array:
            return jnp.transpose(unshape(relevance), _output_axes(head, self.input))

        samples = () if structure else _sample_axes(head, self.input)

        def filled(value: Any) -> jax.Array:
            shape = tuple(1 if axis in samples else size for axis, size in enumerate(x.shape))
            return jnp.zeros_like(x, shape=shape) + jnp.asarray(value, x.dtype)

        w = values[self.constants[0]]
        w = w * _along_weight(head, self.constants[0], scale).astype(w.dtype)
        if is_coarse:
            z = linear(x, w) + shift
        return LinearMap(
            x, w, shift, z, linear, transpose, filled, root_mean_square, aligned, self.nonnegative, self.rectified
        )


@dataclass(frozen=True)
class LinearMap:
    """What a rule sees of a layer: z = lin(x, w) + b at one input.

    Attributes:
        x: The input of the layer.
        w: Its weight, with everything folded in that scales the output.
        b: Its bias, of a shape that broadcasts to `z`; zero where there is none.
        z: Its output.
        linear: The map lin(x, w), linear in x and in w.
        transpose: The transpose of x -> lin(x, w), applied to s of the shape of `z`, as transpose(w, s): for a dense
            layer, s times the transpose of w.
        filled: Maps a value that broadcasts to x (a number, or one for each channel or pixel) to an input that holds
            it everywhere, with a single sample where all would be the same: what follows from it is computed once.
        root_mean_square: Maps an output z, or a denominator in its place, to its root mean square over each sample's
            features, of a shape that broadcasts to z.
        aligned: Brings an array in the shape of z into the order of x's dimensions.
        nonnegative: Whether x is known to be non-negative.
        rectified: Whether z is known to be read through a relu alone, so that no relevance arrives where z <= 0.
    """

    x: jax.Array
    w: jax.Array
    b: jax.Array
    z: jax.Array
    linear: Callable[[jax.Array, jax.Array], jax.Array]
    transpose: Callable[[jax.Array, jax.Array], jax.Array]
    filled: Callable[[Any], jax.Array]
    root_mean_square: Callable[[jax.Array], jax.Array]
    aligned: Callable[[jax.Array], jax.Array]
    nonnegative: bool = False
    rectified: bool = False

    @functools.cached_property
    def x_positive(self) -> jax.Array:
        """x+ = max(x, 0)."""
        return self.x if self.nonnegative else positive(self.x)

    @functools.cached_property
    def x_negative(self) -> jax.Array | None:
        """x- = min(x, 0); None where x is known to be non-negative."""
        return None if self.nonnegative else negative(self.x)

    @functools.cached_property
    def z_positive(self) -> jax.Array:
        """The sum of the positive contributions, lin(x+, w+) + lin(x-, w-) + b+.

        Where x has both signs, it is a difference, in which rounding of the negative contributions remains. That does
        no harm where it is added to a z > 0; where it stands alone, take `z_positive_alone`.
        """
        if self.nonnegative:
            return self.linear(self.x, positive(self.w)) + positive(self.b)
        # All contributions and their absolute values add up to twice the positive ones: one product instead of two.
        total = self.z + self.linear(jnp.abs(self.x), jnp.abs(self.w)) + jnp.abs(self.b)
        return jnp.maximum(total / 2, 0)

    @functools.cached_property
    def z_negative(self) -> jax.Array:
        """The sum of the negative contributions, lin(x+, w-) + lin(x-, w+) + b-: what the positive ones leave of z.

        As a difference it is precise beside a z < 0; where it stands alone, take `z_negative_alone`.
        """
        return negative(self.z - self.z_positive)

    @functools.cached_property
    def z_positive_alone(self) -> jax.Array:
        """`z_positive`, precise even where the negative contributions are far larger."""
        if self.nonnegative:
            return self.z_positive
        exact = functools.partial(self._sum, self.x_positive, self.x_negative, positive, negative)
        return self._unless_lost(self.z_positive, self.z - self.z_positive, exact)

    @functools.cached_property
    def z_negative_alone(self) -> jax.Array:
        """`z_negative`, precise even where the positive contributions are far larger."""
        exact = functools.partial(self._sum, self.x_positive, self.x_negative, negative, positive)
        return self._unless_lost(self.z_negative, self.z_positive, exact)

    def _sum(self, xp: jax.Array, xn: jax.Array | None, part: Callable, opposite: Callable) -> jax.Array:
        """The contributions of one sign, added up by products of their own."""
        total = self.linear(xp, part(self.w)) + part(self.b)
        return total if xn is None else total + self.linear(xn, opposite(self.w))

    def _unless_lost(self, difference: jax.Array, other: jax.Array, exact: Callable[[], jax.Array]) -> jax.Array:
        """The difference; where the other sum is so large that too little is left of it, the exact sum."""
        is_lost = jnp.abs(difference) < _LOST * jnp.abs(other)
        if self.rectified:
            is_lost &= self.z > 0
        return replace_where(is_lost, difference, exact)


def replace_where(mask: jax.Array, values: jax.Array, make: Callable[[], jax.Array]) -> jax.Array:
    """The values, replaced where the mask holds; the replacement is computed only if it holds anywhere."""
    return lax.cond(mask.any(), lambda: jnp.where(mask, make().astype(values.dtype), values), lambda: values)


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
        (x,) = (i for i in head.inputs if i != weight)
        (output,) = head.outputs
        name = inner.name_of(weight).rpartition(".")[0] or head.module or f"{_KINDS[head.name]}_{index}"
        while name in taken:
            name += "'"
        taken.add(name)
        layers.append(
            Layer(
                name=name,
                kind=_KINDS[head.name],
                index=index,
                count=len(found),
                reads_input=reads_input,
                input_shape=inner.shapes[x].shape,
                weight_shape=inner.shapes[weight].shape,
                output_shape=inner.shapes[output].shape,
                operations=(head,),
                input=x,
                constants=(weight,),
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
        if _constant_of(inner, operation) is not None and _weight_of(inner, operation, _overruled(inner)) is None
    ]


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
        if _constant_of(graph, operation) is not None:
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
            reached = {i for i, value in enumerate(operation.operands) if value in near}
            for body in operation.bodies:
                inner_near = {body.inputs[i] for i in reached} | set(body.embeddings)
                yield from _find_heads(body, inner_near)
                near.update(
                    out for out, inner in zip(operation.outputs, body.outputs, strict=True) if inner in inner_near
                )
        elif near.intersection(operation.inputs):
            near.update(operation.outputs)


def _constant_of(graph: Graph, operation: Operation) -> int | None:
    live = graph.live_inputs(operation)
    if operation.name not in _KINDS or len(live) != 1:
        return None
    constant = operation.inputs[1 - live[0]]
    return constant if graph.status[constant] is Status.CONSTANT else None


def _weight_of(graph: Graph, operation: Operation, overruled: Mapping[int, Mark]) -> int | None:
    mark = overruled.get(id(operation))
    if mark is Mark.LAYER:
        return _constant_of(graph, operation)
    weight = None if operation.is_of_target or mark is Mark.NO_LAYER else _constant_of(graph, operation)
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
        if _is_move(operation) and not is_spread and graph.is_live(output):
            tails[output] = replace(tail, moves=(*tail.moves, operation), axes=_axes_after(tail.axes, operation))
        elif Family.AFFINE in operation.family and shapes[0].shape == shapes[1].shape:
            if operation.name in {"mul", "div"} and not _folds(graph, tail, operation, others):
                continue
            operations = (*tail.layer.operations, *tail.moves, operation)
            constants = tuple(dict.fromkeys([*tail.layer.constants, *others]))
            layer = replace(tail.layer, operations=operations, constants=constants, output=output)
            tails[output] = Tail(layer, (), tail.axes)
    return tails


def _is_move(operation: Operation) -> bool:
    """Whether an operation moves elements of one value, each to one place, or to several by a broadcast."""
    is_unchanged = operation.family & (Family.REARRANGEMENT | Family.IDENTITY) and Family.STEP not in operation.family
    return bool(is_unchanged) or operation.name == "slice"


def _identity(head: Operation) -> _Axes:
    return list(range(head.equation.outvars[0].aval.ndim))


def _axes_after(axes: _Axes, operation: Operation) -> _Axes:
    """Follows the dimensions of a linear operation's output through a move."""
    name, params = operation.name, operation.equation.params
    before, after = operation.equation.invars[0].aval.shape, operation.equation.outvars[0].aval.shape
    if Family.IDENTITY in operation.family:
        return axes
    if name == "rev":
        return [~axis if i in params["dimensions"] and axis is not None else axis for i, axis in enumerate(axes)]
    if name == "transpose":
        return [axes[i] for i in params["permutation"]]
    if name == "broadcast_in_dim":
        place = {axis: i for i, axis in enumerate(params["broadcast_dimensions"])}
        return [axes[place[i]] if i in place else None for i in range(len(after))]
    kept = [axis for axis, size in zip(axes, before, strict=True) if size > 1]
    if [size for size in before if size > 1] == [size for size in after if size > 1]:
        given = iter(kept)
        return [next(given) if size > 1 else None for size in after]
    return [axes[i] if i < len(before) and before[: i + 1] == after[: i + 1] else None for i in range(len(after))]


def _folds(graph: Graph, tail: Tail, operation: Operation, others: Sequence[int]) -> bool:
    """Whether a factor can be moved into the weight: it varies along output features alone."""
    if operation.name == "div" and operation.inputs[0] in others:
        return False
    shape = graph.shapes[others[0]].shape
    head, weight = tail.layer.operations[0], tail.layer.constants[0]
    features = _weight_axes(head, weight)
    offset = len(tail.axes) - len(shape)
    axes = [None if axis is None else max(axis, ~axis) for axis in tail.axes]
    return all(size == 1 or axes[offset + i] in features for i, size in enumerate(shape))


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


def _feature_axes(head: Operation, weight: int) -> tuple[int, ...]:
    """The dimensions of the linear operation's output that belong to one sample."""
    if head.name == "conv_general_dilated":
        batch = head.equation.params["dimension_numbers"].out_spec[0]
        return tuple(axis for axis in range(head.equation.outvars[0].aval.ndim) if axis != batch)
    return tuple(_weight_axes(head, weight))


def _sample_axes(head: Operation, x: int) -> tuple[int, ...]:
    """The dimensions of the input that a linear operation takes to its output one by one."""
    params = head.equation.params
    if head.name == "conv_general_dilated":
        is_image = head.inputs[0] == x and params["batch_group_count"] == 1
        return (params["dimension_numbers"].lhs_spec[0],) if is_image else ()
    side = head.inputs.index(x)
    contracted, batch = (dimensions[side] for dimensions in params["dimension_numbers"])
    return tuple(axis for axis in range(head.equation.invars[side].aval.ndim) if axis not in (*contracted, *batch))


def _output_axes(head: Operation, x: int) -> list[int]:
    """The dimensions of a linear operation's output in the order of the input's: samples, and features for features."""
    params = head.equation.params
    if head.name == "conv_general_dilated":
        numbers = params["dimension_numbers"]
        return [numbers.out_spec[numbers.lhs_spec.index(axis)] for axis in range(len(numbers.lhs_spec))]
    side = head.inputs.index(x)
    contracted, batch = (dimensions[side] for dimensions in params["dimension_numbers"])
    samples = _sample_axes(head, x)
    rank = head.equation.outvars[0].aval.ndim
    features = rank - len(batch) - len(samples)
    start = len(batch) + side * features
    place = {axis: i for i, axis in enumerate(batch)} | {axis: start + i for i, axis in enumerate(samples)}
    others = [i for i in range(rank) if i not in place.values()]
    place.update(zip(contracted, others, strict=False))
    ordered = [place[axis] for axis in sorted(place)]
    return ordered if len(ordered) == rank else list(range(rank))


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


def _to_head(constant: jax.Array, axes: _Axes, head: Operation) -> jax.Array:
    """Brings a factor into the order of the linear operation's output."""
    if constant.size == 1:
        return constant.reshape(())
    places = axes[len(axes) - constant.ndim :]
    constant = jnp.flip(constant, [i for i, axis in enumerate(places) if axis is not None and axis < 0])
    places = [None if axis is None else max(axis, ~axis) for axis in places]
    varying = [(axis, i) for i, axis in enumerate(places) if constant.shape[i] > 1 and axis is not None]
    squeezed = constant.reshape([constant.shape[i] for _, i in varying])
    shape = [1] * head.equation.outvars[0].aval.ndim
    for axis, i in varying:
        shape[axis] = constant.shape[i]
    return jnp.transpose(squeezed, [varying.index(pair) for pair in sorted(varying)]).reshape(shape)


def _through(operation: Operation, shift: jax.Array) -> jax.Array:
    if shift.ndim == 0:
        return shift
    variable = operation.equation.invars[0]
    return operation.run(jnp.broadcast_to(shift, variable.aval.shape))[0]
