"""Explaining a model's output: the relevance of its input and of its hidden layers."""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from lrp_jax.checks import Checks, check, number_of_samples, report
from lrp_jax.composites import Composite, Rules, as_composite, is_built_in
from lrp_jax.errors import InputError, LRPError, ModelError, import_extra
from lrp_jax.planning import Plan, make_plan
from lrp_jax.programs import run_compiled
from lrp_jax.tracing import Call, call_model, explaining, trace_call
from lrp_jax.transform import Probe, propagator

Target = int | str | Sequence[int] | jax.Array | np.ndarray | Callable[[Any], Any] | None


@dataclass(frozen=True)
class Explanation:
    """The relevance of an input for a model's output.

    Attributes:
        output: The model's output.
        relevance: The relevance of the input, in its structure and shape, in units of the explained output; with the
            target "all" with one dimension for the classes in front. For integers, the sum over each one's embedding.
        at: The relevance of the hidden values that were asked for, by name.
        x: The input.
        rules: The composite by which relevance was propagated.
    """

    output: Any
    relevance: Any
    at: dict[str, jax.Array] = field(default_factory=dict)
    x: Any = field(default=None, repr=False)
    rules: Composite | None = None

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
    explain = functools.partial(explain_call, composite, request, kind)
    if batch_size is None or batch_size >= number:
        whole = whole if function is None else explaining(whole, output, function)
        output, maps, hidden, found = explain(whole, values, masks)
        report([found], whole.read)
        return Explanation(output, maps, hidden, x, composite)
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
    outputs, all_maps, all_hidden, checks = zip(*parts, strict=True)
    report(checks, trace_model(model, x, function)[0].read)
    axis = 1 if kind == "all" else 0
    join = functools.partial(jax.tree.map, lambda *parts: jnp.concatenate(parts, axis))
    output = jax.tree.map(lambda *parts: jnp.concatenate(parts), *outputs)
    return Explanation(output, join(*all_maps), join(*all_hidden), x, composite)


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
        try:
            return call_model(jax.tree.unflatten(self.structure, leaves), x)
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
        if hasattr(output, "shape") and np.shape(target) == output.shape:
            return "mask", jnp.asarray(target)
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
    if target is None:
        return "largest", None
    if isinstance(target, str):
        if target != "all":
            raise InputError(f"The target {target!r} is none: it is a class index, 'all', a mask or a function.")
        return "all", None
    try:
        array = jnp.asarray(target)
    except (TypeError, ValueError) as error:
        raise InputError(f"The target {target!r} is no class index, and no array of them: {error}") from error
    if array.ndim == 2:
        if array.shape != output.shape:
            raise InputError(f"A mask needs the output's shape {output.shape}, but it has {array.shape}.")
        return "mask", array
    if array.ndim > 1 or not jnp.issubdtype(array.dtype, jnp.integer):
        raise InputError(f"A target is an integer for all samples or one for each, not {array.dtype} {array.shape}.")
    if array.ndim == 1 and len(array) != samples:
        raise InputError(f"There are {samples} samples, but {len(array)} targets.")
    if not isinstance(array, jax.core.Tracer) and array.size and not (array.min() >= 0 and array.max() < classes):
        raise InputError(f"The target must be from 0 to {classes - 1}, for {classes} classes, but it is {target}.")
    return "index", jnp.broadcast_to(array, (samples,)).astype(jnp.int32)


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
    named = _named_probes(plan, (*request.at, *request.given))
    embeddings = _embedding_probes(plan)
    for name, mask, probe in zip(request.given, masks, named[len(request.at) :], strict=True):
        shape = plan.graph.shapes[probe.value].shape
        if not _broadcasts(mask.shape, shape):
            raise InputError(f"given[{name!r}] has the shape {mask.shape}, which does not broadcast to {shape}.")
    given = {len(request.at) + i: mask for i, mask in enumerate(masks)}
    outputs, propagate = propagator(plan, traced.inputs, [*named, *embeddings], given)
    output, explained = traced.split(outputs)

    def maps(seed: Any) -> tuple[Any, dict[str, jax.Array]]:
        explained_arrays, probed = propagate(traced.cotangents(outputs, seed))
        return _in_structure_of(x, explained_arrays, probed[len(named) :]), dict(zip(request.at, probed, strict=False))

    if kind == "all":
        classes = explained.shape[1]
        zeros = jnp.zeros_like(explained, shape=(classes, *explained.shape))  # vary within `jax.shard_map` as it does
        seeds = zeros + jnp.eye(classes, dtype=explained.dtype)[:, None]
        found, hidden = jax.vmap(maps)(seeds)
    else:
        found, hidden = maps(seed_of(kind, values, explained))
    return output, found, hidden, check(plan, traced.inputs, output, found)


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, to) == to
    except ValueError:
        return False


def _in_structure_of(x: Any, arrays: Sequence[jax.Array], embedded: Sequence[jax.Array]) -> Any:
    """Puts relevance into the structure of x; that of integers is the sum over their embedding."""
    given = iter(arrays)

    def one(leaf: Any) -> jax.Array:
        if jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            return next(given)
        shape = jnp.shape(leaf)
        found = [array for array in embedded if array.shape[: len(shape)] == shape]
        return sum((array.reshape(*shape, -1).sum(-1) for array in found), start=jnp.zeros(shape))

    return jax.tree.map(one, x)


def _embedding_probes(plan: Plan) -> list[Probe]:
    return [
        Probe(piece, "output", value)
        for piece in plan.pieces
        for value in piece.outputs
        if value in plan.graph.embeddings
    ]


def _named_probes(plan: Plan, names: Sequence[str]) -> list[Probe]:
    """Finds the values that are asked for by name."""
    probes = {}
    for piece in plan.pieces:
        (operation, *_) = piece.operations
        if piece.layer is not None:
            probes[piece.layer.name] = Probe(piece, "output", piece.layer.output)
        elif operation.name == "name":
            probes[operation.equation.params["name"]] = Probe(piece, "output", operation.outputs[0])
    for name in names:
        if name not in probes:
            inside = any(piece.layer is not None and piece.layer.name == name for piece in plan.all_pieces())
            reason = "is inside a scan or a cond, where its relevance cannot be read" if inside else "does not exist"
            raise InputError(f"{name!r} {reason}. There are: {', '.join(probes) or 'no names'}.")
    return [probes[name] for name in names]


def seed_of(kind: str, values: Any, explained: Any) -> Any:
    """The cotangent from which relevance starts: it multiplies what is explained."""
    if kind == "function":
        return jax.tree.map(jnp.ones_like, explained)
    if kind == "mask":
        return values.astype(explained.dtype)
    classes = explained.argmax(-1) if kind == "largest" else values
    return jax.nn.one_hot(classes, explained.shape[1], dtype=explained.dtype)
