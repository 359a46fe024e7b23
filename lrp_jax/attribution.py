"""Explaining a model's output: the relevance of its input and of its hidden layers."""

import contextlib
import functools
import reprlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from lrp_jax.accounts import bias_share, keep_account, path_of
from lrp_jax.arguments import as_array, broadcasts, check_function, is_real, within_memory
from lrp_jax.checks import MOST_GROWTH, Checks, check, growth_of, number_of_samples, report
from lrp_jax.composites import Composite, Rules, as_composite, is_built_in
from lrp_jax.equations import IDENTITIES
from lrp_jax.errors import InputError, LRPError, LRPWarning, ModelError, import_extra
from lrp_jax.forms import Form
from lrp_jax.graph import Operation
from lrp_jax.planning import Piece, Plan, make_plan
from lrp_jax.programs import run_compiled
from lrp_jax.tracing import Call, call_model, explaining, trace_call
from lrp_jax.transform import Probe, propagator, run_pieces

Target = int | str | Sequence[int] | jax.Array | np.ndarray | Callable[[Any], Any] | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Explanation:
    """The relevance of an input for a model's output.

    Attributes:
        output: The model's output.
        relevance: The relevance of the input, in its structure and shape, in units of the explained output; with the
            target "all" with one dimension for the classes in front. That of an integer is the
            relevance of what is looked up with it, wherever it is moved before.
        at: The relevance of the hidden values that were asked for, by name: the samples first, whatever the order of
            dimensions within the model.
        x: The input.
        rules: The composite by which relevance was propagated.
        growth: For every sample, the absolute relevance of the input for each unit of the explained output, or of
            absolute relevance at the last layer if that is more. None for a modified gradient. Beyond 1,000 there is a
            warning, unless constants and biases kept as much.
    """

    output: Any
    relevance: Any
    at: dict[str, jax.Array] = field(default_factory=dict)
    x: Any = field(default=None, repr=False)
    rules: Composite | None = field(default=None, metadata={"static": True})
    growth: jax.Array | None = field(default=None, repr=False)

    def _repr_html_(self) -> str:
        from lrp_jax.display import explanation_as_html

        return explanation_as_html(self)


def relevance(
    model: Callable[[Any], Any],
    x: Any,
    target: Target = None,
    rules: Rules | None = None,
    *,
    at: Sequence[str] = (),
    given: Mapping[str, jax.Array] | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> Explanation:
    """Explains a model's output by the relevance of its input.

    The model is traced at each call, so that whatever it reads is read anew. The computation is compiled once for each
    text of the traced program, rules and shapes; all arrays that the model holds are passed to it as arguments.
    What comes out of it is looked at: NaN is refused, and inputs outside of the bounds of `ZBox` are counted in a
    warning. Inside of `jax.jit`, where values are not known, both are left out, and cost nothing.

    Args:
        model: A function of one argument whose output has the shape (samples, classes): a Flax NNX module, an Equinox
            module under `jax.vmap`, `functools.partial(module.apply, variables)` for Linen, a plain function.
        x: Its input: an array (or a pytree of arrays) with the samples in the first dimension. Floating-point numbers,
            or integers that the model looks up in an embedding.
        target: What is explained: a class index for all samples or one for each; "all" for every class, from one
            forward pass; an array in the shape of the output whose entries multiply it; a function of the output (a
            difference of two classes, say); None for the class with the largest output.
        rules: A rule, a composite, or a list of (selector, rule) pairs; `EpsilonPlus()` if None.
        at: Names of layers, or of values named with `jax.ad_checkpoint.checkpoint_name`, whose output's relevance is
            wanted too.
        given: By the same names, factors for the relevance of a hidden value, of a shape that broadcasts to it: with a
            mask of channels, relevance passes through the chosen channels only (Achtibat et al. 2023).
        batch_size: The number of samples that are explained at a time; all if None. If `x` is sharded over devices, a
            multiple of their number: else each of them explains the whole batch.
        progress: Whether to show a progress bar, if there is more than one batch.

    Returns:
        The output, the relevance, and the relevance of the hidden values.

    Raises:
        InputError: If the target does not fit the output, a name does not exist, or `x` is NaN or has a dtype without
            relevance.
        ModelError: If the model is in training mode, needs values in Python, has parameters that are NaN or an output
            that is not differentiable.
        SelectorError: If the rules do not fit the layers.
        UnsupportedOperationError: If relevance reaches an operation that has no treatment.

    Example:
        >>> from lrp_jax import relevance, rules
        >>> weight = jnp.array([[1.0, -1.0], [3.0, 2.0]])
        >>> explanation = relevance(lambda x: x @ weight, jnp.array([[2.0, 1.0]]), 0, rules.Zero())
        >>> explanation.relevance
        Array([[2., 3.]], dtype=float32)
    """
    composite = as_composite(rules)
    request = Request(tuple(at), tuple(sorted(given or ())))
    masks = [jnp.asarray((given or {})[name]) for name in request.given]
    number = number_of_samples(x)
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size must be at least 1, but it is {batch_size}.")
    whole, output = trace_model(model, x)
    kind, values = read_target(target, output, number)
    function = target if callable(target) else None
    axis = 1 if kind == "all" else 0  # of the samples
    explain = functools.partial(explain_call, composite, request, kind)
    if batch_size is None or batch_size >= number:
        whole = whole if function is None else explaining(whole, output, function)
        output, maps, hidden, found = explain(whole, values, masks)
        report([found], whole.read)
        (hidden,) = _samples_first(model, x, number, function, composite, [hidden], axis)
        _report_growth(model, x, function, values, composite, kind, found.growth)
        return Explanation(output, maps, hidden, x, composite, found.growth)
    starts = range(0, number, batch_size)
    bar = import_extra("tqdm.auto", "book").tqdm(starts, desc="explaining", unit="batch", disable=not progress)
    per_sample = kind in ("index", "mask")
    calls: dict[Any, Call] = {}  # the last batch may be smaller
    parts = []
    for start in bar:
        batch = jax.tree.map(lambda leaf, start=start: _batch(leaf, start, batch_size), x)
        shapes = tuple(map(jax.typeof, jax.tree.leaves(batch)))
        if shapes not in calls:
            calls[shapes] = trace_model(model, batch, function)[0]
        call = calls[shapes].replaced(calls[shapes].args[0], batch)
        parts.append(explain(call, values[start : start + batch_size] if per_sample else values, masks))
    outputs, all_maps, parts_of_hidden, checks = zip(*parts, strict=True)
    all_hidden = _samples_first(model, x, batch_size, function, composite, parts_of_hidden, axis)
    report(checks, trace_model(model, x, function)[0].read)
    join = functools.partial(jax.tree.map, lambda *parts: jnp.concatenate(parts, axis))
    output = jax.tree.map(lambda *parts: jnp.concatenate(parts), *outputs)
    grown = [part.growth for part in checks]
    growth = None if grown[0] is None else jnp.concatenate(grown, axis=-1)
    _report_growth(model, x, function, values, composite, kind, growth)
    return Explanation(output, join(*all_maps), join(*all_hidden), x, composite, growth)


def _samples_first(
    model: Callable[[Any], Any],
    x: Any,
    number: int,
    function: Callable[[Any], Any] | None,
    composite: Composite,
    parts: Sequence[dict[str, jax.Array]],
    axis: int,
) -> list[dict[str, jax.Array]]:
    """Brings the samples of hidden values to the front, behind the classes if all are explained (`axis` is 1 then).

    Their dimension is the one that grows by another sample. The first part has as many samples as `number` says.
    """
    shapes = {name: array.shape[axis:] for name, array in parts[0].items()}
    if all(shape[:1] == (number,) and shape.count(number) == 1 for shape in shapes.values()):
        return list(parts)
    more = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((number + 1, *leaf.shape[1:]), leaf.dtype), x)
    try:
        plan = make_plan(trace_model(model, more, function)[0].read().graph, composite)
        readings = _readings(plan, tuple(shapes))
    except Exception:  # whatever a model says that is made for this number of samples
        return list(parts)
    places = dict.fromkeys(shapes, 0)
    for (name, shape), reading in zip(shapes.items(), readings, strict=True):
        grown = plan.graph.shapes[reading.probe.value].shape
        differ = [i for i, sizes in enumerate(zip(shape, grown, strict=False)) if sizes[0] != sizes[1]]
        if len(shape) == len(grown) and len(differ) == 1:
            places[name] = differ[0]
    return [{name: jnp.moveaxis(array, places[name] + axis, axis) for name, array in part.items()} for part in parts]


def _report_growth(
    model: Callable[[Any], Any],
    x: Any,
    function: Callable[[Any], Any] | None,
    values: Any,
    composite: Composite,
    kind: str,
    growth: jax.Array | None,
) -> None:
    """Warns of relevance that explodes, and says where; silent where values are not known."""
    if growth is None or isinstance(growth, jax.core.Tracer):
        return
    growth = jnp.where(jnp.isfinite(growth), growth, 0)  # what is infinite has a warning of its own
    if growth.max(initial=0) <= MOST_GROWTH:
        return
    place = jnp.unravel_index(growth.argmax(), growth.shape)
    sample = int(place[-1])
    if kind == "all":
        kind, values = "index", jnp.full(number_of_samples(x), place[0])
    call, _ = trace_model(model, jax.tree.map(lambda leaf: leaf[sample : sample + 1], x), function)
    traced, chosen = call.read(), values
    if kind in ("index", "mask"):
        chosen = values[sample : sample + 1]
    plan = make_plan(traced.graph, composite)
    account = keep_account(traced, plan, lambda explained: seed_of(kind, chosen, explained))
    kept = max(abs(sum(entry.bias for entry in account.entries)), abs(sum(e.constants for e in account.entries)))
    arrived = account.entries[-1].moved_on if account.entries else 0.0
    if arrived <= MOST_GROWTH * max(abs(account.explained), kept):
        return
    worst = max(account.entries, key=lambda entry: entry.growth)
    warnings.warn(
        f"Relevance explodes: sample {sample} has {float(growth.max()):.3g} times as much absolute relevance at the "
        f"input as it started from. Most of it arises in {path_of(worst.piece)} ({worst.piece.kind}), where it grows "
        f"{worst.growth:.3g}-fold, as contributions cancel there. lrp_jax.ledger shows all of it; a larger epsilon, or "
        "a rule such as gamma or z+, keeps it small.",
        LRPWarning,
        stacklevel=3,
    )


def _batch(leaf: Any, start: int, size: int) -> Any:
    """Some of the samples, shared out over the devices as all are; indexing gives every device the whole batch."""
    if isinstance(leaf, jax.core.Tracer) or not isinstance(getattr(leaf, "sharding", None), NamedSharding):
        return leaf[start : start + size]
    mesh = Mesh(leaf.sharding.mesh.devices, leaf.sharding.mesh.axis_names)  # no indexing along an axis of type Explicit
    sharding = NamedSharding(mesh, leaf.sharding.spec)
    batch = jax.device_put(leaf, sharding)[start : start + size]
    with contextlib.suppress(ValueError):  # a number of samples that the devices do not divide
        return jax.device_put(batch, sharding)
    return batch


@dataclass(frozen=True)
class Request:
    """The names of the hidden values whose relevance is read, and of those whose relevance is masked."""

    at: tuple[str, ...]
    given: tuple[str, ...]


@dataclass(frozen=True)
class _Path:
    """Stands where an array was taken out of a model."""

    name: str


@dataclass(frozen=True)
class StaticModel:
    """What remains of a model without its arrays."""

    structure: Any
    leaves: tuple[Any, ...]

    def call(self, arrays: Mapping[str, Any], x: Any) -> Any:
        """Calls the model with its arrays put back."""
        leaves = [arrays[leaf.name] if isinstance(leaf, _Path) else leaf for leaf in self.leaves]
        model = jax.tree.unflatten(self.structure, leaves)
        check_function(model, "The model", "x")
        try:
            return call_model(model, x)
        except LRPError:
            raise
        except Exception as error:
            shapes = jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", x)
            error.add_note(
                f"The model raised this when it was called with x: {shapes}. It needs the samples in the first "
                "dimension, and to be in inference mode."
            )
            raise


def as_pytree(model: Any) -> Any:
    """Turns a `functools.partial`, which is one leaf, into a pytree with its arguments as leaves."""
    if isinstance(model, functools.partial):
        return jax.tree_util.Partial(model.func, *model.args, **model.keywords)
    return model


def split_model(model: Callable[[Any], Any]) -> tuple[dict[str, Any], StaticModel]:
    """Takes a model apart into its arrays, by path, and the rest."""
    if not callable(model):
        raise InputError(f"The model is a {type(model).__name__}, which cannot be called. Pass a function of x.")
    with_paths, structure = jax.tree_util.tree_flatten_with_path(as_pytree(model))
    arrays: dict[str, Any] = {}
    leaves = []
    for path, leaf in with_paths:
        if hasattr(leaf, "dtype"):
            leaf_path = _Path(jax.tree_util.keystr(path, simple=True, separator="."))
            arrays[leaf_path.name] = leaf
            leaves.append(leaf_path)
        else:
            leaves.append(leaf)
    return arrays, StaticModel(structure, tuple(leaves))


def read_target(target: Any, output: Any, samples: int) -> tuple[str, Any]:
    """The kind of a target ("index", "largest", "all", "mask" or "function") and its array."""
    if callable(target):
        return "function", None
    if hasattr(output, "dtype") and not jnp.issubdtype(output.dtype, jnp.inexact):
        raise ModelError(
            f"The model's output, {output.dtype}{list(output.shape)}, is not differentiable: nothing is to explain. "
            "Explain what comes before an argmax or a comparison, such as the logits."
        )
    if not hasattr(output, "shape") or len(output.shape) != 2:
        shape = jax.tree.map(lambda leaf: leaf.shape, output)
        if getattr(output, "shape", ()) and not (target is None or isinstance(target, str)):
            mask = as_array(target, "The target")
            if mask.shape == output.shape:
                return "mask", mask
        raise InputError(
            f"A target of this kind needs an output of shape (samples, classes), but the model returns {shape}. Pass a "
            "function of the output that returns what is to be explained, or x[None] if x is one sample."
        )
    if output.shape[0] != samples:
        raise InputError(
            f"The model returns {output.shape[0]} outputs for {samples} samples, but needs one for each, in the first "
            "dimension."
        )
    classes = output.shape[1]
    if not classes:
        raise InputError(f"The model returns no classes, but {output.shape}: nothing is to explain.")
    if target is None:
        return "largest", None
    if isinstance(target, str):
        if target != "all":
            raise InputError(f"The target {target!r} is none: it is a class index, 'all', a mask or a function.")
        return "all", None
    try:  # with NumPy, as JAX would cut off what 32 bits do not hold
        array = target if isinstance(target, jax.Array) else np.asarray(target)
        if not is_real(array.dtype):
            raise TypeError(f"it holds {array.dtype}")
    except Exception as error:  # what a conversion can raise is up to the object
        raise InputError(
            f"The target {reprlib.repr(target)} is no class index, and no array of them: {error}"
        ) from error
    if array.ndim == 2:
        if array.shape != output.shape:
            raise InputError(f"A mask needs the output's shape {output.shape}, but it has {array.shape}.")
        return "mask", jnp.asarray(array)
    if array.ndim > 1 or not jnp.issubdtype(array.dtype, jnp.integer):
        raise InputError(f"A target is an integer for all samples or one for each, not {array.dtype} {array.shape}.")
    if array.ndim == 1 and len(array) != samples:
        raise InputError(f"There are {samples} samples, but {len(array)} targets.")
    if not isinstance(array, jax.core.Tracer) and array.size and not (array.min() >= 0 and array.max() < classes):
        raise InputError(f"The target must be from 0 to {classes - 1}, for {classes} classes, but it is {target}.")
    with within_memory("The target"):
        return "index", jnp.broadcast_to(jnp.asarray(array, jnp.int32), (samples,))


def trace_model(model: Callable[[Any], Any], x: Any, target: Callable[[Any], Any] | None = None) -> tuple[Call, Any]:
    """Traces a model, and the function of its output that is explained.

    Returns:
        The call, with the arrays of the model, by path, and x as its arguments; and the shapes of the model's output.
    """
    arrays, static = split_model(model)
    return trace_static(static, model, arrays, x, target)


def trace_static(
    static: StaticModel, holder: Any, arrays: Mapping[str, Any], x: Any, target: Callable[[Any], Any] | None
) -> tuple[Call, Any]:
    """As `trace_model`, for a model that was taken apart; `holder` is what it was, where its arrays have names."""
    call, output = trace_call(static.call, (1,), (arrays, x), {}, tokens=True, holder=holder)
    return call if target is None else explaining(call, output, target), output


Explained: TypeAlias = tuple[Any, Any, dict[str, jax.Array], Checks]


def explain_call(
    composite: Composite, request: Request, kind: str, call: Call, values: Any, masks: list[jax.Array]
) -> Explained:
    """The output, the relevance of x and of the named hidden values, and checks.

    The program is compiled once for each text of the call. Rules and treatments of the user's own may read whatever
    they like, so that they run at each call.
    """
    programs = [program for program in (call.text.program, call.text.target) if program is not None]
    if composite.is_built_in and all(is_built_in(program.treatments) for program in programs):
        with within_memory("What is explained"):
            return explain_arrays(composite, request, kind, call, values, masks)
    explain = functools.partial(explain_in_trace, composite, request, kind)
    return run_compiled(explain, call, values, masks)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def explain_arrays(
    composite: Composite, request: Request, kind: str, call: Call, values: Any, masks: list[jax.Array]
) -> Explained:
    """As `explain_call`, for rules that read nothing but their fields."""
    return explain_in_trace(composite, request, kind, call, values, masks)


def explain_in_trace(
    composite: Composite, request: Request, kind: str, call: Call, values: Any, masks: list[jax.Array]
) -> Explained:
    """As `explain_call`, as part of a program that is traced."""
    _, x = call.args
    traced = call.read()
    plan = make_plan(traced.graph, composite)
    readings = _readings(plan, (*request.at, *request.given))
    named = [reading.probe for reading in readings]
    last = _probe_of_last_layer(plan)
    for name, mask, probe in zip(request.given, masks, named[len(request.at) :], strict=True):
        shape = plan.graph.shapes[probe.value].shape
        if not broadcasts(mask.shape, shape):
            raise InputError(f"given[{name!r}] has the shape {mask.shape}, which does not broadcast to {shape}.")
    given = {len(request.at) + i: mask for i, mask in enumerate(masks)}
    outputs, propagate = propagator(plan, traced.inputs, [*named, *last], given)
    output, explained = traced.split(outputs)

    samples, is_relevance = number_of_samples(x), composite.input_form is Form.RELEVANCE

    def maps(seed: Any) -> tuple[Any, dict[str, jax.Array], jax.Array | None]:
        explained_arrays, probed = propagate(traced.cotangents(outputs, seed))
        found = jax.tree.unflatten(jax.tree.structure(x), explained_arrays)
        started = [s * e for s, e in zip(jax.tree.leaves(seed), jax.tree.leaves(explained), strict=True)]
        growth = growth_of(samples, [*started, *probed[len(named) :]], found) if is_relevance else None
        hidden = {
            name: _without_bias(plan, reading, array, traced.inputs)
            for name, reading, array in zip(request.at, readings, probed, strict=False)
        }
        return found, hidden, growth

    if kind == "all":
        classes = explained.shape[1]
        zeros = jnp.zeros_like(explained, shape=(classes, *explained.shape))  # vary within `jax.shard_map` as it does
        seeds = zeros + jnp.eye(classes, dtype=explained.dtype)[:, None]
        found, hidden, growth = jax.vmap(maps)(seeds)
    else:
        found, hidden, growth = maps(seed_of(kind, values, explained))
    return output, found, hidden, check(plan, traced.inputs, output, found, growth)


def _probe_of_last_layer(plan: Plan) -> list[Probe]:
    layers = [piece for piece in plan.pieces if piece.layer is not None and piece.treatment is not None]
    if not layers:
        return []
    last = max(layers, key=lambda piece: piece.layer.index if piece.layer is not None else -1)
    return [Probe(last, "output", last.outputs[0])]


@dataclass(frozen=True)
class _Reading:
    """Where the relevance of a named value is read.

    Attributes:
        probe: The place.
        is_before_bias: Whether the value is that of a layer before its bias, which keeps a share of what arrives.
    """

    probe: Probe
    is_before_bias: bool = False


def _readings(plan: Plan, names: Sequence[str]) -> list[_Reading]:
    """Finds the values that are asked for by name."""
    found: dict[str, _Reading | None] = {}
    for piece in plan.pieces:
        if piece.treatment is None:
            continue
        if piece.layer is not None:
            found.setdefault(piece.layer.name, _Reading(Probe(piece, "output", piece.layer.output)))
        for i, operation in enumerate(piece.operations):
            if operation.name == "name":
                found[operation.equation.params["name"]] = _reading_of(piece, i)
    for name in names:
        if found.get(name) is None:
            inside = any(piece.layer is not None and piece.layer.name == name for piece in plan.all_pieces())
            reason = "is inside a scan or a cond, where its relevance cannot be read" if inside else "does not exist"
            if name in found:
                reason = "is in the middle of an elementwise function; name what goes into it or comes out of it"
            known = [known for known, reading in found.items() if reading is not None]
            raise InputError(f"{name!r} {reason}. There are: {', '.join(known) or 'no names'}.")
    return [reading for name in names if (reading := found[name]) is not None]


def _reading_of(piece: Piece, place: int) -> _Reading | None:
    """Where the relevance of a value is read that is named inside of a piece."""

    def all_identities(operations: Sequence[Operation]) -> bool:
        return all(operation.name in IDENTITIES for operation in operations)

    if all_identities(piece.operations[place:]):
        return _Reading(Probe(piece, "output", piece.outputs[0]))
    if piece.layer is not None:
        return _Reading(Probe(piece, "output", piece.outputs[0]), is_before_bias=True)
    if all_identities(piece.operations[: place + 1]):
        return _Reading(Probe(piece, "operand", piece.live[0]))
    return None


def _without_bias(plan: Plan, reading: _Reading, relevance: jax.Array, inputs: Sequence[jax.Array]) -> jax.Array:
    """What is left of a layer's relevance for the value before its bias."""
    if not reading.is_before_bias:
        return relevance
    kept = bias_share(reading.probe.piece, relevance, run_pieces(plan, inputs))
    return relevance - kept.astype(relevance.dtype)


def seed_of(kind: str, values: Any, explained: Any) -> Any:
    """The cotangent from which relevance starts: it multiplies what is explained."""
    if kind == "function":
        return jax.tree.map(jnp.ones_like, explained)
    if kind == "mask":
        return values.astype(explained.dtype)
    classes = explained.argmax(-1) if kind == "largest" else values
    return jax.nn.one_hot(classes, explained.shape[1], dtype=explained.dtype)
