"""Which operation normalises with statistics over the samples: it divides by a root of a second moment over them."""

from collections.abc import Sequence
from dataclasses import dataclass

from lrp_jax.core import primitives
from lrp_jax.core.graph import Graph, Operation, Status
from lrp_jax.core.moments import Moments
from lrp_jax.core.reader import Input, read
from lrp_jax.core.samples import Carried, axes_of


def bodies_of(graph: Graph, operation: Operation) -> tuple[Graph, ...]:
    """The functions that an operation runs; a piece runs one."""
    called = primitives.called_program(operation.equation) if operation.treatment is not None else None
    if called is None:
        return operation.bodies
    statuses = [graph.status[value] for value in operation.inputs]
    inputs = [Input(status, is_parameter=status is Status.CONSTANT) for status in statuses]
    return (read(called, inputs, caller=operation.location),)


def find_named_statistics(graph: Graph) -> Operation | None:
    """The first operation that normalises with statistics over a named axis of a map, of which this is one part."""
    moments = Moments(graph)
    for operation in graph.operations:
        varying = [value for value in operation.inputs if not graph.is_constant(value)]
        for body in bodies_of(graph, operation) if varying else ():
            found = find_named_statistics(body)
            if found is not None:
                return found
        is_named = operation.name == "psum" and len(axes_of(operation.equation.params)) < len(
            operation.equation.params["axes"]
        )
        if varying and (is_named or moments.statistics.issuperset(varying)):
            moments.statistics.update(operation.outputs)
        elif moments.normalise(operation):
            return operation
    return None


def find_batch_statistics(graph: Graph, samples_first: bool) -> Operation | None:
    """The first operation that normalises with statistics over the first dimension, if that is the samples'.

    Args:
        graph: The function.
        samples_first: Whether this is known; if not, a convolution may show it, or the rank of the outputs.
    """
    explained = list(filter(graph.is_explained, graph.inputs))
    shapes = [graph.shapes[value].shape for value in explained]
    samples = _Samples(Moments(graph), {value: 0 for value, shape in zip(explained, shapes, strict=True) if shape})
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
        moments: The function, with what is known of statistics over that dimension.
        axes: The position of that dimension, for values that have it; at first for inputs.
        normalised: The first operation that normalises with statistics over the samples.
        is_mixed: Whether samples are combined in other ways than by statistics, as the nodes of a graph are, the steps
            of a series, the tokens of a text or the pixels of an image. No batch is.
        is_batch: Whether it is the dimension of the batch of a convolution.
    """

    moments: Moments
    axes: dict[int, int]
    normalised: Operation | None = None
    is_mixed: bool = False
    is_batch: bool = False

    def follow(self) -> None:
        """Follows the dimension through the function."""
        graph, statistics = self.moments.graph, self.moments.statistics
        for operation in graph.operations:
            is_carried = not self.axes.keys().isdisjoint(operation.inputs)
            if not operation.outputs or not (is_carried or statistics.intersection(operation.inputs)):
                continue
            rule, carried = operation.primitive.samples, self._carried(operation)
            if bodies := bodies_of(graph, operation):
                self._follow_into(operation, bodies)
            elif not is_carried or rule.reduced(carried):
                statistics.update(operation.outputs)
            else:
                if self.normalised is None and self.moments.normalise(operation):
                    self.normalised = operation
                self.is_mixed |= not operation.is_of_target and rule.mixes(carried)
                self.is_batch |= rule.is_batch(carried)
                axis = rule.axis_after(carried)
                if axis is not None:
                    self.axes.update(dict.fromkeys(operation.outputs, axis))

    def _carried(self, operation: Operation) -> Carried:
        shapes = self.moments.graph.shapes
        return Carried(
            operation.equation.params,
            [shapes[value].shape for value in operation.inputs],
            shapes[operation.outputs[0]].shape,
            [self.axes.get(value) for value in operation.inputs],
        )

    def _follow_into(self, operation: Operation, bodies: Sequence[Graph]) -> None:
        """Through the body of a scan, the branches of a cond or a piece."""
        control = operation.control
        stacked, stacked_outputs, carries = range(0), range(0), 0
        if control is not None:
            stacked, stacked_outputs, carries = control.stacked, control.stacked_outputs, len(control.carried)
        axes = [self.axes.get(value) for value in operation.operands]
        is_loop_over_samples = any(axes[i] == 0 for i in stacked)
        live = map(self.moments.graph.is_live, operation.outputs[:carries])
        self.is_mixed |= is_loop_over_samples and any(live)
        for body in bodies:
            inside = self._inside(operation, body, stacked)
            inside.follow()
            self.normalised = self.normalised or inside.normalised
            self.is_mixed |= inside.is_mixed
            self.is_batch |= inside.is_batch
            for i, (inner, outer) in enumerate(zip(body.outputs, operation.outputs, strict=True)):
                is_stacked = i in stacked_outputs
                if inner in inside.axes:
                    self.axes[outer] = inside.axes[inner] + is_stacked
                elif is_stacked and is_loop_over_samples and not body.is_constant(inner):
                    self.axes[outer] = 0
                elif inner in inside.moments.statistics:
                    self.moments.add(outer, inside.moments.powers(inner))

    def _inside(self, operation: Operation, body: Graph, stacked: range) -> "_Samples":
        """What is known of the samples at the beginning of a function that an operation runs."""
        inside = _Samples(Moments(body), {})
        for i, (inner, outer) in enumerate(zip(body.inputs, operation.operands, strict=True)):
            axis = self.axes.get(outer)
            within = axis - 1 if axis is not None and i in stacked else axis
            if within is not None and within >= 0:
                inside.axes[inner] = within
            elif outer in self.moments.statistics:
                inside.moments.add(inner, self.moments.powers(outer))
        return inside
