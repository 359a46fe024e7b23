"""Explaining a model's output: the relevance of its input and of its hidden layers."""

import contextlib
import functools
import reprlib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from lrp_jax.composites import Composite, Rules, as_composite, is_built_in
from lrp_jax.core import held_arrays
from lrp_jax.core.arguments import as_array, as_count, broadcasts, check_function, is_real, within_memory
from lrp_jax.core.calling import call_model, check_is_no_class
from lrp_jax.core.forms import Form
from lrp_jax.core.graph import Operation
from lrp_jax.core.held_arrays import is_array
from lrp_jax.core.inference import Inference
from lrp_jax.core.plan import Piece, Plan
from lrp_jax.core.planner import make_plan
from lrp_jax.core.primitive import Family
from lrp_jax.core.probes import Probe, propagator, run_pieces
from lrp_jax.core.programs import run_compiled
from lrp_jax.core.saving import Saved
from lrp_jax.core.trace import TracedCall, explaining, trace_call
from lrp_jax.errors import InputError, LRPError, LRPWarning, ModelError, import_extra
from lrp_jax.explain.accounts import bias_share, keep_account, path_of
from lrp_jax.explain.checks import MOST_GROWTH, Checks, check, growth_of, number_of_samples, report

Target = int | str | Sequence[int] | jax.Array | np.ndarray | Callable[[Any], Any] | None


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True)
class Explanation(Saved):
    """The relevance of an input for a model's output. A pytree whose leaves are its arrays.

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
    rules: Composite | None = None
    growth: jax.Array | None = field(default=None, repr=False)

    def tree_flatten_with_keys(self) -> tuple[tuple[Any, ...], Any]:
        """The arrays, with those among the rules, and the rules, whose Python numbers stay what they are."""
        numbers, structure = jax.tree.flatten(self.rules)
        arrays = [None if isinstance(number, float | int) else number for number in numbers]
        known = tuple(number if isinstance(number, float | int) else None for number in numbers)
        parts = {part.name: getattr(self, part.name) for part in fields(self)} | {"rules": arrays}
        keyed = tuple((jax.tree_util.GetAttrKey(name), part) for name, part in parts.items())
        return keyed, (structure, known)

    @classmethod
    def tree_unflatten(cls, static: Any, parts: Sequence[Any]) -> "Explanation":
        """The explanation with its arrays put back."""
        structure, known = static
        values = dict(zip((part.name for part in fields(cls)), parts, strict=True))
        numbers = [value if number is None else number for number, value in zip(known, values["rules"], strict=True)]
        return cls(**values | {"rules": jax.tree.unflatten(structure, numbers)})

    def _repr_html_(self) -> str:
        from lrp_jax.explain.display import explanation_as_html

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
    inference: Inference = "checked",
) -> Explanation:
    """Explains a model's output by the relevance of its input.

    The model is traced at each call, so that whatever it reads is read anew. The computation is compiled once for each
    text of the traced program, rules and shapes; all arrays that the model holds are passed to it as arguments, and so
    are gamma, epsilon and stabilizers.
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
        given: By the same names, factors for the relevance of a hidden value, of a shape that broadcasts to that of
            `at`, the samples first: with a mask of channels, relevance passes through the chosen channels only
            (Achtibat et al. 2023).
        batch_size: The number of samples that are explained at a time; all if None. If `x` is sharded over devices, a
            multiple of their number: else each of them explains the whole batch.
        progress: Whether to show a progress bar, if there is more than one batch; it needs tqdm.
        inference: "checked" refuses a model in training mode: one with dropout, or with statistics of the batch.
            "assumed" leaves that check out, for a model in which something is meant that looks alike.

    Returns:
        The output, the relevance, and the relevance of the hidden values.

    Raises:
        InputError: If the target does not fit the output, a name does not exist or stands for several values, `given`
            is no mapping of factors that fit, the model is a class, `batch_size` is no number of samples, `inference`
            is neither of the two, or `x` is NaN or has a dtype without relevance.
        MissingExtraError: If a progress bar is to be shown and tqdm is not installed.
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
    if isinstance(at, str):
        raise InputError(f"at is a list of names, but it is the name {at!r} alone. Pass at=[{at!r}].")
    if not isinstance(given, Mapping | None):
        raise InputError(
            f"given is a mapping from names to factors, but it is a {type(given).__name__}. Pass "
            "given={'name': mask}."
        )
    request = Request(tuple(at), tuple(sorted(given or ())))
    number = number_of_samples(x)
    if batch_size is not None:
        batch_size = as_count(batch_size, "batch_size")
    trace = functools.partial(trace_model, model, inference=inference)
    whole, output = trace(x)
    kind, values = read_target(target, output, number)
    function = target if callable(target) else None
    axis = 1 if kind == "all" else 0  # of the samples
    explain = functools.partial(explain_call, composite, request, kind)
    whole = whole if function is None else explaining(whole, output, function)
    axes_of = functools.partial(_axes_of_samples, trace, x, function, composite)
    factors = _factors(axes_of, number, composite, whole, given) if given else []
    if batch_size is None or batch_size >= number:
        output, maps, hidden, found = explain(whole, values, [factor.array for factor in factors])
        report([found], whole.read)
        (hidden,) = _samples_first(axes_of, number, [hidden], axis)
        _report_growth(trace, x, function, values, composite, kind, found.growth)
        return Explanation(output, maps, hidden, x, composite, found.growth)
    starts: Iterable[int] = range(0, number, batch_size)
    if progress:
        bar = import_extra("tqdm.auto", "large", instead="pass progress=False").tqdm
        starts = bar(starts, desc="explaining", unit="batch")
    per_sample = kind in ("index", "mask")
    calls: dict[Any, TracedCall] = {}  # the last batch may be smaller
    parts = []
    for start in starts:
        batch = jax.tree.map(lambda leaf, start=start: _batch(leaf, start, batch_size), x)
        shapes = tuple(map(jax.typeof, jax.tree.leaves(batch)))
        if shapes not in calls:
            calls[shapes] = trace(batch, function)[0]
        call = calls[shapes].replaced(calls[shapes].args[0], batch)
        masks = [factor.of_samples(start, batch_size) for factor in factors]
        parts.append(explain(call, values[start : start + batch_size] if per_sample else values, masks))
    outputs, all_maps, parts_of_hidden, checks = zip(*parts, strict=True)
    all_hidden = _samples_first(axes_of, batch_size, parts_of_hidden, axis)
    report(checks, trace(x, function)[0].read)
    join = functools.partial(jax.tree.map, lambda *parts: jnp.concatenate(parts, axis))
    output = jax.tree.map(lambda *parts: jnp.concatenate(parts), *outputs)
    grown = [part.growth for part in checks]
    growth = None if grown[0] is None else jnp.concatenate(grown, axis=-1)
    _report_growth(trace, x, function, values, composite, kind, growth)
    return Explanation(output, join(*all_maps), join(*all_hidden), x, composite, growth)


_AxesOfSamples: TypeAlias = Callable[[int, Mapping[str, tuple[int, ...]]], dict[str, int]]


def _samples_first(
    axes_of: _AxesOfSamples, number: int, parts: Sequence[dict[str, jax.Array]], axis: int
) -> list[dict[str, jax.Array]]:
    """Brings the samples of hidden values to the front, behind the classes if all are explained (`axis` is 1 then).

    The first part has as many samples as `number` says.
    """
    shapes = {name: array.shape[axis:] for name, array in parts[0].items()}
    places = axes_of(number, shapes)
    if not any(places.values()):
        return list(parts)
    return [{name: jnp.moveaxis(array, places[name] + axis, axis) for name, array in part.items()} for part in parts]


def _axes_of_samples(
    trace: Callable[..., tuple[TracedCall, Any]],
    x: Any,
    function: Callable[[Any], Any] | None,
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
        plan = make_plan(trace(more, function)[0].read().graph, composite)
        readings = _readings(plan, tuple(shapes))
    except Exception:  # whatever a model says that is made for this number of samples
        return places
    for (name, shape), (reading, *_) in zip(shapes.items(), readings, strict=True):
        grown = plan.graph.shapes[reading.probe.value].shape
        differ = [i for i, sizes in enumerate(zip(shape, grown, strict=False)) if sizes[0] != sizes[1]]
        if len(shape) == len(grown) and len(differ) == 1:
            places[name] = differ[0]
    return places


@dataclass(frozen=True)
class _Factor:
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


def _factors(
    axes_of: _AxesOfSamples, number: int, composite: Composite, call: TracedCall, given: Mapping[str, Any]
) -> list[_Factor]:
    """The factors for hidden values, in the order of their names, checked and brought from samples first to the model.

    Raises:
        InputError: If a factor is no array of numbers, or does not broadcast to its value.
    """
    names = sorted(given)
    plan = make_plan(call.read().graph, composite)
    values = [reading.probe.value for reading, *_ in _readings(plan, names)]
    shapes = {name: plan.graph.shapes[value].shape for name, value in zip(names, values, strict=True)}
    axes = axes_of(number, shapes)
    factors = []
    for name, shape in shapes.items():
        try:
            array = jnp.asarray(given[name])
        except (TypeError, ValueError) as error:
            raise InputError(f"given[{name!r}] is no array of numbers, but a {type(given[name]).__name__}.") from error
        axis = axes[name]
        first = (*shape[axis : axis + 1], *shape[:axis], *shape[axis + 1 :])
        if not broadcasts(array.shape, first):
            raise InputError(f"given[{name!r}] has the shape {array.shape}, which does not broadcast to {first}.")
        array = jnp.moveaxis(array.reshape((1,) * (len(shape) - array.ndim) + array.shape), 0, axis) if shape else array
        is_by_sample = bool(shape) and number > 1 and array.shape[axis] == number == shape[axis]
        factors.append(_Factor(array, axis if is_by_sample else None))
    return factors


def _report_growth(
    trace: Callable[..., tuple[TracedCall, Any]],
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
    call, _ = trace(jax.tree.map(lambda leaf: leaf[sample : sample + 1], x), function)
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
    """What remains of a model without its arrays.

    Attributes:
        structure: The structure of the model as a pytree.
        leaves: Its leaves; where an array was, its path in the pytree.
        names: What the arrays are called in the model, by their paths in the pytree.
    """

    structure: Any
    leaves: tuple[Any, ...]
    names: Mapping[str, str]

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
    check_is_no_class(model)
    with_paths, structure = jax.tree_util.tree_flatten_with_path(as_pytree(model))
    arrays: dict[str, Any] = {}
    leaves = []
    for path, leaf in with_paths:
        if is_array(leaf):
            leaf_path = _Path(jax.tree_util.keystr(path, simple=True, separator="."))
            arrays[leaf_path.name] = leaf
            leaves.append(leaf_path)
        else:
            leaves.append(leaf)
    found = zip(arrays, held_arrays.names_of(model, list(arrays.values())), strict=True)
    names = {path: name or held_arrays.name_of_parameter(path) for path, name in found}
    return arrays, StaticModel(structure, tuple(leaves), names)


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


def trace_model(
    model: Callable[[Any], Any],
    x: Any,
    target: Callable[[Any], Any] | None = None,
    *,
    inference: Inference = "checked",
) -> tuple[TracedCall, Any]:
    """Traces a model, and the function of its output that is explained.

    Returns:
        The call, with the arrays of the model, by path, and x as its arguments; and the shapes of the model's output.
    """
    arrays, static = split_model(model)
    return trace_static(static, model, arrays, x, target, inference)


def trace_static(
    static: StaticModel,
    holder: Any,
    arrays: Mapping[str, Any],
    x: Any,
    target: Callable[[Any], Any] | None,
    inference: Inference,
) -> tuple[TracedCall, Any]:
    """As `trace_model`, for a model that was taken apart; `holder` is what it was, where its arrays have names."""
    call, output = trace_call(static.call, (1,), (arrays, x), {}, tokens=True, holder=holder, inference=inference)
    paths = (*jax.tree.leaves(dict(static.names)), *call.text.paths[len(static.names) :])
    call = replace(call, text=replace(call.text, paths=paths))
    return call if target is None else explaining(call, output, target), output


Explained: TypeAlias = tuple[Any, Any, dict[str, jax.Array], Checks]


def explain_call(
    composite: Composite, request: Request, kind: str, call: TracedCall, values: Any, masks: list[jax.Array]
) -> Explained:
    """The output, the relevance of x and of the named hidden values, and checks.

    The program is compiled once for each text of the call, whatever numbers the rules have. Rules and treatments of the
    user's own may read whatever they like, so that they run at each call.
    """
    numbers, structure = jax.tree.flatten(composite)
    programs = [program for program in (call.text.program, call.text.target) if program is not None]
    if composite.is_built_in and all(is_built_in(program.treatments) for program in programs):
        with within_memory("What is explained"):
            return explain_arrays(structure, request, kind, numbers, call, values, masks)
    explain = functools.partial(explain_in_trace, structure, request, kind)
    return run_compiled(explain, numbers, call, values, masks)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def explain_arrays(
    structure: Any,
    request: Request,
    kind: str,
    numbers: list[Any],
    call: TracedCall,
    values: Any,
    masks: list[jax.Array],
) -> Explained:
    """As `explain_call`, for rules that read nothing but their fields."""
    return explain_in_trace(structure, request, kind, numbers, call, values, masks)


def explain_in_trace(
    structure: Any,
    request: Request,
    kind: str,
    numbers: list[Any],
    call: TracedCall,
    values: Any,
    masks: list[jax.Array],
) -> Explained:
    """As `explain_call`, as part of a program that is traced, for a composite that was taken apart."""
    composite: Composite = jax.tree.unflatten(structure, numbers)
    _, x = call.args
    traced = call.read()
    plan = make_plan(traced.graph, composite)
    wanted, masked = _readings(plan, request.at), _readings(plan, request.given)
    readings = [reading for found in (*wanted, *masked) for reading in found]
    named = [reading.probe for reading in readings]
    last = _probe_of_last_layer(plan)
    repeated = [mask for mask, found in zip(masks, masked, strict=True) for _ in found]
    given = dict(enumerate(repeated, len(readings) - len(repeated)))
    outputs, propagate = propagator(plan, traced.inputs, [*named, *last], given)
    output, explained = traced.split(outputs)

    samples, is_relevance = number_of_samples(x), composite.input_form is Form.RELEVANCE

    def maps(seed: Any) -> tuple[Any, dict[str, jax.Array], jax.Array | None]:
        explained_arrays, probed = propagate(traced.cotangents(outputs, seed))
        found = jax.tree.unflatten(jax.tree.structure(x), explained_arrays)
        started = [s * e for s, e in zip(jax.tree.leaves(seed), jax.tree.leaves(explained), strict=True)]
        growth = growth_of(samples, [*started, *probed[len(named) :]], found) if is_relevance else None
        arrays = iter(probed)
        hidden = {
            name: functools.reduce(
                jnp.add, [_without_bias(plan, reading, next(arrays), traced.inputs) for reading in found_at]
            )
            for name, found_at in zip(request.at, wanted, strict=True)
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


_Named: TypeAlias = dict[str, dict[int, list[_Reading | None]]]  # by name, and by the layer or the operation


def _readings(plan: Plan, names: Sequence[str]) -> list[list[_Reading]]:
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
            reading = _Reading(Probe(piece, "output", piece.layer.output))
            layers.setdefault(piece.layer.name, {}).setdefault(id(piece.operations[0]), []).append(reading)
        for i, operation in enumerate(piece.operations):
            if operation.name == "name":
                name = operation.equation.params["name"]
                layers.setdefault(name, {})  # keeps the order; a value's name goes before that of a layer
                values = named.setdefault(name, {})
                values.setdefault(id(operation), []).append(_reading_of(piece, i))
    return [_readings_of(plan, name, layers | named) for name in names]


def _readings_of(plan: Plan, name: str, found: _Named) -> list[_Reading]:
    values = list(found.get(name, {}).values())
    readings = [reading for value in values for reading in value if reading is not None]
    if len(values) > 1:
        reason = (
            f"is the name of {len(values)} values, which are told apart by names of their own: "
            "checkpoint_name(h, f'hidden_{i}')"
        )
    elif not values:
        pieces = [piece for piece in plan.all_pieces() if name in _names_in(piece)]
        reason = "is inside a scan or a cond, where its relevance cannot be read" if pieces else "does not exist"
    elif len(readings) < len(values[0]):
        reason = "is in the middle of an elementwise function; name what goes into it or comes out of it"
    elif len({plan.graph.shapes[reading.probe.value].shape for reading in readings}) > 1:
        reason = "is read in several shapes; name what is read with checkpoint_name"
    else:
        return readings
    known = [other for other, (first, *others) in found.items() if not others and None not in found[other][first]]
    raise InputError(f"{name!r} {reason}. There are: {', '.join(known) or 'no names'}.")


def _names_in(piece: Piece) -> list[str]:
    """The names of a layer, and of values in it."""
    names = [operation.equation.params["name"] for operation in piece.operations if operation.name == "name"]
    return names if piece.layer is None else [piece.layer.name, *names]


def _reading_of(piece: Piece, place: int) -> _Reading | None:
    """Where the relevance of a value is read that is named inside of a piece."""

    def all_identities(operations: Sequence[Operation]) -> bool:
        return all(Family.IDENTITY in operation.family for operation in operations)

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
