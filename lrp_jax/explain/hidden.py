"""Hidden values by name: where their relevance is read (`at`), and where it is multiplied (`given`)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from lrp_jax.composites import Composite
from lrp_jax.core.arguments import as_array, broadcasts
from lrp_jax.core.graph import Operation
from lrp_jax.core.plan import Piece, Plan
from lrp_jax.core.planner import make_plan
from lrp_jax.core.primitive import Family
from lrp_jax.core.probes import Probe, run_pieces
from lrp_jax.core.trace import TracedCall
from lrp_jax.errors import InputError
from lrp_jax.explain.accounts import bias_share


@dataclass(frozen=True)
class Reading:
    """Where the relevance of a named value is read.

    Attributes:
        probe: The place.
        is_before_bias: Whether the value is that of a layer before its bias, which keeps a share of what arrives.
    """

    probe: Probe
    is_before_bias: bool = False


_Named: TypeAlias = dict[str, dict[int, list[Reading | None]]]  # by name, and by the layer or the operation


def readings(plan: Plan, names: Sequence[str]) -> list[list[Reading]]:
    """Finds the values that are asked for by name.

    Returns:
        For each name the places whose relevance is added up: a layer that is read in several ways is in several pieces.

    Raises:
        InputError: If a name does not exist, is that of several values, or of one whose relevance cannot be read.
    """
    layers: _Named = {}
    named: _Named = {}
    for piece in plan.pieces:
        if piece.treatment is None:
            continue
        if piece.layer is not None:
            reading = Reading(Probe(piece, "output", piece.layer.output))
            layers.setdefault(piece.layer.name, {}).setdefault(id(piece.operations[0]), []).append(reading)
        for i, operation in enumerate(piece.operations):
            if operation.name == "name":
                name = operation.equation.params["name"]
                layers.setdefault(name, {})  # keeps the order; a value's name goes before that of a layer
                values = named.setdefault(name, {})
                values.setdefault(id(operation), []).append(_reading_of(piece, i))
    return [_readings_of(plan, name, layers | named) for name in names]


def _readings_of(plan: Plan, name: str, found: _Named) -> list[Reading]:
    values = list(found.get(name, {}).values())
    places = [reading for value in values for reading in value if reading is not None]
    if len(values) > 1:
        reason = (
            f"is the name of {len(values)} values, which are told apart by names of their own: "
            "checkpoint_name(h, f'hidden_{i}')"
        )
    elif not values:
        pieces = [piece for piece in plan.all_pieces() if name in _names_in(piece)]
        reason = "is inside a scan or a cond, where its relevance cannot be read" if pieces else "does not exist"
    elif len(places) < len(values[0]):
        reason = "is in the middle of an elementwise function; name what goes into it or comes out of it"
    elif len({plan.graph.shapes[reading.probe.value].shape for reading in places}) > 1:
        reason = "is read in several shapes; name what is read with checkpoint_name"
    else:
        return places
    known = [other for other, (first, *others) in found.items() if not others and None not in found[other][first]]
    raise InputError(f"{name!r} {reason}. There are: {', '.join(known) or 'no names'}.")


def _names_in(piece: Piece) -> list[str]:
    """The names of a layer, and of values in it."""
    names = [operation.equation.params["name"] for operation in piece.operations if operation.name == "name"]
    return names if piece.layer is None else [piece.layer.name, *names]


def _reading_of(piece: Piece, place: int) -> Reading | None:
    """Where the relevance of a value is read that is named inside of a piece."""

    def all_identities(operations: Sequence[Operation]) -> bool:
        return all(Family.IDENTITY in operation.family for operation in operations)

    if all_identities(piece.operations[place:]):
        return Reading(Probe(piece, "output", piece.outputs[0]))
    if piece.layer is not None:
        return Reading(Probe(piece, "output", piece.outputs[0]), is_before_bias=True)
    if all_identities(piece.operations[: place + 1]):
        return Reading(Probe(piece, "operand", piece.live[0]))
    return None


def without_bias(plan: Plan, reading: Reading, relevance: jax.Array, inputs: Sequence[jax.Array]) -> jax.Array:
    """What is left of a layer's relevance for the value before its bias."""
    if not reading.is_before_bias:
        return relevance
    kept = bias_share(reading.probe.piece, relevance, run_pieces(plan, inputs))
    return relevance - kept.astype(relevance.dtype)


AxesOfSamples: TypeAlias = Callable[[int, Mapping[str, tuple[int, ...]]], dict[str, int]]


def samples_first(
    axes_of: AxesOfSamples, number: int, parts: Sequence[dict[str, jax.Array]], axis: int
) -> list[dict[str, jax.Array]]:
    """Brings the samples of hidden values to the front, behind the classes if all are explained (`axis` is 1 then).

    The first part has as many samples as `number` says.
    """
    shapes = {name: array.shape[axis:] for name, array in parts[0].items()}
    places = axes_of(number, shapes)
    if not any(places.values()):
        return list(parts)
    return [{name: _moved(array, places[name] + axis, axis) for name, array in part.items()} for part in parts]


def _moved(array: jax.Array, source: int, destination: int) -> jax.Array:
    """An array with one dimension at another place; if that is the same, nothing is compiled."""
    return array if source == destination else jnp.moveaxis(array, source, destination)


def axes_of_samples(
    call_of: Callable[[Any], TracedCall],
    x: Any,
    composite: Composite,
    number: int,
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, int]:
    """The dimension of the samples in hidden values of some shapes: the one that grows by another sample."""
    places = dict.fromkeys(shapes, 0)
    if all(shape[:1] == (number,) and shape.count(number) == 1 for shape in shapes.values()):
        return places
    more = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((number + 1, *leaf.shape[1:]), leaf.dtype), x)
    try:
        plan = make_plan(call_of(more).read().graph, composite)
        found = readings(plan, tuple(shapes))
    except Exception:  # whatever a model says that is made for this number of samples
        return places
    for (name, shape), (reading, *_) in zip(shapes.items(), found, strict=True):
        grown = plan.graph.shapes[reading.probe.value].shape
        differ = [i for i, sizes in enumerate(zip(shape, grown, strict=False)) if sizes[0] != sizes[1]]
        if len(shape) == len(grown) and len(differ) == 1:
            places[name] = differ[0]
    return places


@dataclass(frozen=True)
class Factor:
    """A factor for the relevance of a hidden value, in the order of dimensions within the model.

    Attributes:
        array: The factor, of the rank of the value.
        axis: The dimension of the samples if there is a factor for each of them; None otherwise.
    """

    array: jax.Array
    axis: int | None

    def of_samples(self, start: int, size: int) -> jax.Array:
        """The factor for some of the samples."""
        if self.axis is None:
            return self.array
        return self.array[(slice(None),) * self.axis + (slice(start, start + size),)]


def factors_of(
    axes_of: AxesOfSamples, number: int, composite: Composite, call: TracedCall, given: Mapping[str, Any]
) -> list[Factor]:
    """The factors for hidden values, in the order of their names, checked and brought from samples first to the model.

    Raises:
        InputError: If a factor is no array of numbers, or does not broadcast to its value.
    """
    names = sorted(given)
    plan = make_plan(call.read().graph, composite)
    values = [reading.probe.value for reading, *_ in readings(plan, names)]
    shapes = {name: plan.graph.shapes[value].shape for name, value in zip(names, values, strict=True)}
    axes = axes_of(number, shapes)
    factors = []
    for name, shape in shapes.items():
        array = as_array(given[name], f"given[{name!r}]")
        axis = axes[name]
        first = (*shape[axis : axis + 1], *shape[:axis], *shape[axis + 1 :])
        if not broadcasts(array.shape, first):
            raise InputError(f"given[{name!r}] has the shape {array.shape}, which does not broadcast to {first}.")
        array = _moved(array.reshape((1,) * (len(shape) - array.ndim) + array.shape), 0, axis) if shape else array
        is_by_sample = bool(shape) and number > 1 and array.shape[axis] == number == shape[axis]
        factors.append(Factor(array, axis if is_by_sample else None))
    return factors
