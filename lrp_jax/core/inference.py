"""Whether a function is in inference mode: no dropout, and no normalisation with statistics of the batch.

A function in training mode has another value for every key, or for every batch, and so has its relevance. Neither
libraries nor modules are asked: what they do stands in the program.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from jax.extend import core

from lrp_jax.core import equations
from lrp_jax.core.functions import POSITIVE, Formula, Functions
from lrp_jax.core.graph import Graph, Operation, Status
from lrp_jax.core.primitives import Family
from lrp_jax.core.reader import Input, read
from lrp_jax.errors import InputError, ModelError

Inference: TypeAlias = Literal["checked", "assumed"]
"""Whether it is checked that a function is in inference mode."""

HOW_TO_SWITCH = (
    "Switch it to inference mode: model.eval() for Flax NNX, deterministic=True and use_running_average=True for Flax "
    "Linen, eqx.nn.inference_mode(model) for Equinox, is_training=False for Haiku"
)

_LARGE = np.array([1e12, 1e14, 1e16])


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
    normalised = _find_named_statistics(graph) or _find_batch_statistics(graph, samples_first)
    if normalised is not None:
        raise ModelError(
            "The model is in training mode: a batch normalisation uses the statistics of this batch at "
            f"{_place(normalised)}, so that the samples depend on each other. {HOW_TO_SWITCH}. If the statistics are "
            "not those of a batch, but of the nodes of a graph, the steps of a series or the pixels of an image, pass "
            'inference="assumed".'
        )


def _place(operation: Operation) -> str:
    return f"{operation.location}, in {operation.module}" if operation.module else operation.location


def _bodies(graph: Graph, operation: Operation) -> tuple[Graph, ...]:
    """The functions that an operation runs; a piece runs one."""
    called = equations.called_program(operation.equation) if operation.treatment is not None else None
    if called is None:
        return operation.bodies
    statuses = [graph.status[value] for value in operation.inputs]
    inputs = [Input(status, is_parameter=status is Status.CONSTANT) for status in statuses]
    return (read(called, inputs, caller=operation.location),)


# Dropout: what is drawn at random multiplies a live value, or chooses what becomes of it.


def _find_drawn_factor(graph: Graph, drawn: set[int]) -> Operation | None:
    """The first operation that multiplies a live value with what is drawn, or selects by it.

    Args:
        graph: The function.
        drawn: Its inputs that are drawn; the other values that are so are added.
    """
    for operation in graph.operations:
        known = [value in drawn for value in operation.inputs]
        is_live = bool(graph.live_inputs(operation))
        if is_live and ((_is_product(operation) and any(known)) or (_is_choice(operation) and known[0])):
            return operation
        for body in _bodies(graph, operation):
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
    if Family.DRAW in equations.family_of(equation):
        return True
    return any(_draws(inner) for program in _programs(equation) for inner in program.eqns)


def _programs(equation: Any) -> Iterator[Any]:
    for value in equation.params.values():
        for leaf in value if isinstance(value, tuple | list) else (value,):
            if isinstance(leaf, core.ClosedJaxpr | core.Jaxpr):
                yield leaf.jaxpr if isinstance(leaf, core.ClosedJaxpr) else leaf


# Batch statistics: a value is divided by a root of a second moment over the samples.


def _find_named_statistics(graph: Graph) -> Operation | None:
    """The first operation that normalises with statistics over a named axis of a map, of which this is one part."""
    statistics: set[int] = set()
    moments = _Moments(graph, statistics)
    for operation in graph.operations:
        varying = [value for value in operation.inputs if not graph.is_constant(value)]
        for body in _bodies(graph, operation) if varying else ():
            found = _find_named_statistics(body)
            if found is not None:
                return found
        is_named = operation.name == "psum" and len(_axes(operation)) < len(operation.equation.params["axes"])
        if varying and (is_named or statistics.issuperset(varying)):
            statistics.update(operation.outputs)
        elif moments.normalise(operation):
            return operation
    return None


def _find_batch_statistics(graph: Graph, samples_first: bool) -> Operation | None:
    """The first operation that normalises with statistics over the samples."""
    explained = [value for value in graph.inputs if graph.status[value] in (Status.LIVE, Status.TOKEN)]
    shapes = [graph.shapes[value].shape for value in explained]
    samples = _Samples(graph, {value: 0 for value, shape in zip(explained, shapes, strict=True) if shape})
    samples.follow()
    if samples.normalised is None:
        return None
    lengths = {shape[0] for shape in shapes if shape}
    ranks = []  # of the outputs with a value for each sample
    for value in graph.outputs:
        shape = graph.shapes[value].shape
        is_for_each = samples_first and len(shape) > 1 and shape[0] in lengths
        if samples.axes.get(value) == 0 or is_for_each:
            ranks.append(len(shape))
    may_be_image = not samples_first and all(len(shape) == 3 for shape in shapes) and all(rank > 2 for rank in ranks)
    if not ranks or (not samples.is_batch and (samples.is_mixed or may_be_image)):
        return None
    return samples.normalised


@dataclass
class _Samples:
    """Where the dimension of the samples is in the values of a function, and what is done with it.

    Attributes:
        graph: The function.
        axes: The position of that dimension, for values that have it; at first for inputs.
        statistics: The values that are reduced over it, or are computed from such.
        given: The powers of inputs that are statistics.
        normalised: The first operation that normalises with statistics over the samples.
        is_mixed: Whether samples are combined in other ways than by statistics, as the nodes of a graph are, the steps
            of a series, the tokens of a text or the pixels of an image. No batch is.
        is_batch: Whether it is the dimension of the batch of a convolution.
    """

    graph: Graph
    axes: dict[int, int]
    statistics: set[int] = field(default_factory=set)
    given: dict[int, frozenset[float]] = field(default_factory=dict)
    normalised: Operation | None = None
    is_mixed: bool = False
    is_batch: bool = False

    def follow(self) -> None:
        """Follows the dimension through the function."""
        moments = _Moments(self.graph, self.statistics, self.given)
        for operation in self.graph.operations:
            carried = [self.axes.get(value) for value in operation.inputs]
            has_statistics = not self.statistics.isdisjoint(operation.inputs)
            bodies = _bodies(self.graph, operation)
            is_known = has_statistics or carried.count(None) < len(carried)
            if not operation.outputs or not is_known:
                continue
            if bodies:
                self._follow_into(operation, bodies, carried, moments)
            elif carried.count(None) == len(carried) or self._reduces(operation, carried):
                self.statistics.update(operation.outputs)
            else:
                if self.normalised is None and moments.normalise(operation):
                    self.normalised = operation
                self.is_mixed |= not operation.is_of_target and _mixes(self.graph, operation, carried)
                self.is_batch |= _is_batch_of_convolution(operation, carried)
                axis = _axis_after(self.graph, operation, carried)
                if axis is not None:
                    self.axes.update(dict.fromkeys(operation.outputs, axis))

    def _reduces(self, operation: Operation, carried: Sequence[int | None]) -> bool:
        """Whether an operation adds up over the samples, or takes the largest of them."""
        if _is_reduction(operation):
            return carried[0] in _axes(operation)
        if operation.name != "dot_general" or _mixes(self.graph, operation, carried):
            return False
        (contracted, _) = operation.equation.params["dimension_numbers"]
        return all(axis is None or axis in dims for axis, dims in zip(carried, contracted, strict=True))

    def _follow_into(
        self, operation: Operation, bodies: Sequence[Graph], carried: Sequence[int | None], moments: "_Moments"
    ) -> None:
        """Through the body of a scan, the branches of a cond or a piece."""
        control = operation.control
        stacked, stacked_outputs, carries = range(0), range(0), 0
        if control is not None:
            stacked, stacked_outputs, carries = control.stacked, control.stacked_outputs, len(control.carried)
        axes = [self.axes.get(value) for value in operation.operands]
        is_loop_over_samples = any(axes[i] == 0 for i in stacked)
        if is_loop_over_samples and any(map(self.graph.is_live, operation.outputs[:carries])):
            self.is_mixed = True
        for body in bodies:
            inside = _Samples(body, {})
            for i, (inner, outer, axis) in enumerate(zip(body.inputs, operation.operands, axes, strict=True)):
                axis = axis - 1 if axis is not None and i in stacked else axis
                if axis is not None and axis >= 0:
                    inside.axes[inner] = axis
                elif outer in self.statistics:
                    inside.statistics.add(inner)
                    inside.given[inner] = moments.powers(outer)
            inside.follow()
            self.normalised = self.normalised or inside.normalised
            self.is_mixed |= inside.is_mixed
            self.is_batch |= inside.is_batch
            powers = _Moments(body, inside.statistics, inside.given)
            for i, (inner, outer) in enumerate(zip(body.outputs, operation.outputs, strict=True)):
                is_stacked = i in stacked_outputs
                if inner in inside.axes:
                    self.axes[outer] = inside.axes[inner] + is_stacked
                elif is_stacked and is_loop_over_samples and not body.is_constant(inner):
                    self.axes[outer] = 0
                elif inner in inside.statistics:
                    self.statistics.add(outer)
                    moments.given[outer] = moments.given.get(outer, frozenset()) | powers.powers(inner)


@dataclass(frozen=True)
class _Moments:
    """With which powers of the samples statistics grow: 2 for a variance, 1 for a standard deviation, -1 for 1 / that.

    Attributes:
        graph: The function.
        statistics: The values that are reduced over the samples, or computed from such.
        given: What is known of some; the powers of others are added.
    """

    graph: Graph
    statistics: set[int]
    given: dict[int, frozenset[float]] = field(default_factory=dict)

    def normalise(self, operation: Operation) -> bool:
        """Whether an operation divides by a root of a second moment, or multiplies with the reciprocal."""
        if Family.PRODUCT not in operation.family or self.statistics.isdisjoint(operation.inputs):
            return False
        (first, second) = operation.inputs
        factors = {second: 1.0} if operation.name == "div" else {first: -1.0, second: -1.0}
        return any(power in self.powers(value) for value, power in factors.items() if value in self.statistics)

    def powers(self, value: int) -> frozenset[float]:
        """The powers of second moments with which a value grows; empty if it is made of none."""
        if value not in self.given:
            self.given[value] = self._find_powers(value)
        return self.given[value]

    def _find_powers(self, value: int) -> frozenset[float]:
        graph, operation = self.graph, self.graph.producer.get(value)
        if operation is None or operation.bodies or graph.is_constant(value):
            return frozenset()
        is_statistic = value in self.statistics
        if self._is_square(value):
            return frozenset({2.0})
        root = self._root(value)
        if root != value:
            function = self._functions.between(root, value)
            exponent = None if function is None else _exponent(function.formula)
            return frozenset() if exponent is None else frozenset(exponent * power for power in self.powers(root))
        name = operation.name
        operands = operation.inputs[name == "select_n" :]
        varying = list(dict.fromkeys(i for i in operands if not graph.is_constant(i)))
        if name in {"reduce_sum", "psum"}:
            is_number = len(_axes(operation)) == len(graph.shapes[varying[0]].shape)
            return frozenset() if is_number else self.powers(varying[0])
        if operation.family & Family.UNCHANGED:
            return frozenset[float]().union(*map(self.powers, varying))
        if name == "dot_general":
            is_sum = is_statistic and len(varying) == 1 and varying[0] not in self.statistics
            return self.powers(varying[0]) if is_sum else frozenset()
        if not varying or (len(varying) > 1 and not is_statistic):
            return frozenset()
        found = [self.powers(i) for i in varying]
        if name in {"mul", "div"}:
            signs = [-1 if name == "div" and i == operands[1] else 1 for i in varying]
            return frozenset(
                sum(sign * power for sign, power in zip(signs, powers, strict=True))
                for powers in itertools.product(*found)
            )
        is_of_degree_one = operation.family & (Family.ADDITION | Family.CHOICE)
        return frozenset.intersection(*found) if is_of_degree_one else frozenset()

    def _is_square(self, value: int) -> bool:
        """Whether a value is a multiple of the square of another, or a sum of such squares."""
        graph, inner = self.graph, value
        while (operation := graph.producer.get(inner)) is not None:
            if operation.name == "dot_general" and inner == value:
                return len(set(operation.inputs)) == 1 and graph.shapes[value].shape != ()
            varying = {i for i in operation.inputs if graph.number(i) is None}
            if len(varying) != 1 or not equations.is_elementwise(operation.equation):
                return False
            (inner,) = varying
            function = self._functions.between(inner, value)
            if function is not None and _is_square(function.formula):
                return True
        return False

    def _root(self, value: int) -> int:
        """The value of which a statistic is a function, whether or not relevance flows through it."""
        if value not in self._roots:
            operation = self.graph.producer.get(value)
            self._roots[value] = value
            if operation is not None and value in self.statistics and equations.is_elementwise(operation.equation):
                roots = {self._root(i) for i in operation.inputs if self.graph.number(i) is None}
                self._roots[value] = roots.pop() if len(roots) == 1 else value
        return self._roots[value]

    @functools.cached_property
    def _functions(self) -> Functions:
        return Functions(self.graph)

    @functools.cached_property
    def _roots(self) -> dict[int, int]:
        return {}


def _is_square(formula: Formula) -> bool:
    return all(_is_level(formula(numbers) / numbers**2) for numbers in (POSITIVE, -POSITIVE))


def _is_level(found: np.ndarray) -> bool:
    return bool(np.all(found > 0) and np.ptp(found) <= 1e-6 * found.max())


def _exponent(formula: Formula) -> float | None:
    """The power with which a function grows in the end, as -0.5 for 1 / sqrt(v + epsilon); None if with none."""
    found = formula(_LARGE)
    if not (np.all(np.isfinite(found)) and np.all(found > 0)):
        return None
    exponents = np.diff(np.log(found)) / np.diff(np.log(_LARGE))
    return round(float(exponents[0]), 3) if np.ptp(exponents) < 1e-3 else None


def _mixes(graph: Graph, operation: Operation, carried: Sequence[int | None]) -> bool:
    """Whether an operation combines samples otherwise than by one statistic of all of them."""
    name, params = operation.name, operation.equation.params
    shapes = [graph.shapes[value].shape for value in operation.inputs]
    for side, axis in enumerate(carried):
        if axis is None:
            continue
        if name == "dot_general":
            contracted, batch = params["dimension_numbers"]
            other = 1 - side
            if axis not in contracted[side]:
                continue
            is_same = carried[other] == contracted[other][contracted[side].index(axis)]
            used = (*contracted[other], *batch[other])
            free = math.prod(size for i, size in enumerate(shapes[other]) if i not in used)
            if not is_same and free > 1:
                return True
        elif name == "conv_general_dilated" and side == 0:
            numbers = params["dimension_numbers"]
            place = numbers.lhs_spec.index(axis)
            if place == 1 or (place > 1 and shapes[1][numbers.rhs_spec[place]] > 1):
                return True
        elif Family.WINDOW in operation.family:
            if params["window_dimensions"][axis] > 1:
                return True
        elif Family.CUMULATIVE in operation.family:
            if params["axis"] == axis:
                return True
        elif name == "gather" and side == 0:
            if params["dimension_numbers"].start_index_map == (axis,) and math.prod(shapes[1][:-1]) > 1:
                return True
        elif name.startswith("scatter") and side == 2:
            numbers = params["dimension_numbers"]
            is_batch = bool(numbers.scatter_indices_batching_dims)
            is_paired = is_batch or len(numbers.scatter_dims_to_operand_dims) > 1  # with other indices, as arange(n)
            if axis not in numbers.update_window_dims and not is_paired:
                return True
    return False


def _is_batch_of_convolution(operation: Operation, carried: Sequence[int | None]) -> bool:
    if operation.name != "conv_general_dilated":
        return False
    params = operation.equation.params
    return carried[0] == params["dimension_numbers"].lhs_spec[0] and params["batch_group_count"] == 1


def _is_reduction(operation: Operation) -> bool:
    return Family.REDUCTION in operation.family or operation.name == "psum"


def _axes(operation: Operation) -> list[int]:
    """The dimensions over which an operation reduces; a `psum` may name others, which belong to no single device."""
    return [int(axis) for axis in operation.equation.params["axes"] if isinstance(axis, int | np.integer)]


def _axis_after(graph: Graph, operation: Operation, carried: Sequence[int | None]) -> int | None:
    """Where the dimension of the samples is in the output of an operation; None where it is lost or not known."""
    name, params = operation.name, operation.equation.params
    shapes = [graph.shapes[value].shape for value in operation.inputs]
    variable = operation.equation.outvars[0]
    shape = variable.aval.shape
    positions = {axis for axis in carried if axis is not None}
    if len(positions) != 1:
        return None
    (axis,) = positions
    side = carried.index(axis)
    length = shapes[side][axis]
    if name == "dot_general":
        return _axis_after_product(params["dimension_numbers"], shapes, carried)
    if name == "conv_general_dilated":
        numbers = params["dimension_numbers"]
        is_batch = carried[1] is None and axis == numbers.lhs_spec[0] and params["batch_group_count"] == 1
        return numbers.out_spec[0] if is_batch else None
    if name == "broadcast_in_dim":
        return params["broadcast_dimensions"][axis]
    if name == "transpose":
        return params["permutation"].index(axis)
    if name == "reshape":
        return _axis_after_reshape(shapes[side], shape, axis)
    if name == "squeeze":
        return (
            None if axis in params["dimensions"] else axis - sum(dimension < axis for dimension in params["dimensions"])
        )
    if name == "stack":
        return axis + (params["axis"] <= axis)
    if _is_reduction(operation):
        axes = _axes(operation)
        return None if axis in axes else axis - sum(other < axis for other in axes)
    if name == "gather":
        return _axis_after_gather(params, shapes, shape, side, axis)
    return axis if len(shape) == len(shapes[side]) and shape[axis] == length else None


def _axis_after_reshape(before: Sequence[int], after: Sequence[int], axis: int) -> int | None:
    """Also where the samples are merged with dimensions behind them, or parted from such."""
    length, outer = before[axis], math.prod(before[:axis])
    there = [i for i, _ in enumerate(after) if math.prod(after[:i]) == outer]
    same = [i for i in there if after[i] == length]
    merged = [i for i in there if length and after[i] % length == 0]
    parted = [i for i in there if after[i] > 1 and length % after[i] == 0]
    return next(iter((*same, *merged, *parted)), None)


def _axis_after_gather(
    params: Any, shapes: Sequence[Sequence[int]], after: Sequence[int], side: int, axis: int
) -> int | None:
    numbers = params["dimension_numbers"]
    batch = [i for i in range(len(after)) if i not in numbers.offset_dims]
    if side == 1:
        return batch[axis] if axis < len(batch) else None
    if axis in numbers.operand_batching_dims:
        return batch[numbers.start_indices_batching_dims[numbers.operand_batching_dims.index(axis)]]
    if axis in numbers.start_index_map and len(numbers.start_index_map) > 1:  # x[arange(n), index]
        return batch[0] if batch and after[batch[0]] == shapes[0][axis] else None
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    kept = [i for i in range(len(shapes[0])) if i not in gone]
    is_whole = axis in kept and params["slice_sizes"][axis] == shapes[0][axis]
    return numbers.offset_dims[kept.index(axis)] if is_whole else None


def _axis_after_product(numbers: Any, shapes: Sequence[Sequence[int]], carried: Sequence[int | None]) -> int | None:
    contracted, batch = numbers
    found = set()
    for side, axis in enumerate(carried):
        if axis is None:
            continue
        if axis in contracted[side]:
            return None
        if axis in batch[side]:
            found.add(tuple(batch[side]).index(axis))
            continue
        free = [[i for i in range(len(shapes[s])) if i not in contracted[s] and i not in batch[s]] for s in (0, 1)]
        found.add(len(batch[0]) + free[side].index(axis) + (len(free[0]) if side else 0))
    return found.pop() if len(found) == 1 else None
