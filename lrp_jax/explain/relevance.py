"""Explaining a model's output: the relevance of its input and of its hidden layers."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from lrp_jax.composites import Composite, Rules, as_composite
from lrp_jax.core.arguments import as_count, kind_of
from lrp_jax.core.inference import Inference
from lrp_jax.core.saving import Saved
from lrp_jax.core.trace import TracedCall, explaining
from lrp_jax.errors import InputError, import_extra
from lrp_jax.explain.checks import number_of_samples, report
from lrp_jax.explain.growth import report_flow
from lrp_jax.explain.hidden import Factor, axes_of_samples, factors_of, samples_first
from lrp_jax.explain.models import trace_model
from lrp_jax.explain.propagation import Explained, Request, explain_call
from lrp_jax.explain.shown import Shown
from lrp_jax.explain.targets import Target, check_places, read_target, values_of_samples


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True, repr=False)
class Explanation(Shown, Saved):
    """The relevance of an input for a model's output. A pytree whose leaves are its arrays.

    Attributes:
        output: The model's output.
        relevance: The relevance of the input, in its structure and shape, in units of the explained output. With the
            target "all" there is a first dimension for the classes. The relevance of an integer is that of what is
            looked up with it.
        at: The relevance of the hidden values that were asked for, by name. The samples are first, whatever the order
            of dimensions in the model.
        x: The input.
        rules: The composite by which relevance was propagated.
        growth: For every sample, the absolute relevance of the input divided by the explained output, or by the
            absolute relevance at the last layer if that is more. If relevance went from one sample to another, as among
            the nodes of a graph, that of all together. None for a modified gradient. Above 1,000 there is a warning,
            unless constants and biases kept as much.
        explained: For every sample, the explained output, with which relevance starts. With the target "all" there is a
            first dimension for the classes. None for a modified gradient. If less than 5 % of it arrives at the input,
            there is a warning.
    """

    output: Any
    relevance: Any
    at: dict[str, jax.Array] = field(default_factory=dict)
    x: Any = None
    rules: Composite | None = None
    growth: jax.Array | None = None
    explained: jax.Array | None = None

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

    The model is traced at each call, so that whatever it reads is read again. The computation is compiled once for each
    text of the traced program, rules and shapes. All arrays that the model holds are arguments of what is compiled, and
    so are gamma, epsilon and stabilizers. The result is checked. NaN is refused, and a warning counts the inputs
    outside of the bounds of `ZBox`. Another warning says if less than 5 % of the explained output arrives at the input,
    which compares sums of absolute values over all samples. (It does not apply with `given`, or if all layers have a
    rule that is not meant to pass everything on, such as `Flat` or the gradient.) Inside of `jax.jit` values are not
    known; there all of this is left out, and costs nothing.

    Args:
        model: A function of one argument whose output has the samples first, such as (samples, classes): a Flax NNX
            module, a Keras model on JAX, an Equinox module under `jax.vmap`, `module.bind(variables)` or
            `functools.partial(module.apply, variables)` for Linen, what `torchax` makes of a PyTorch module, a plain
            function.
        x: Its input: an array (or a pytree of arrays) with the samples in the first dimension. Floating-point numbers,
            or integers that the model looks up in an embedding.
        target: What is explained: a class index for all samples or one for each; "all" for every class, from one
            forward pass; an entry, a box or a segment of an output of any shape, or a class by its name, with
            `lrp_jax.target` (`target.at[2, 5, 7]`); an array in the shape of the output whose entries multiply it; a
            function of the output (a difference of two classes, say); None for the class with the largest output, or
            for the output itself if it has one number for each sample, or one for all.
        rules: A rule, a composite, or a list of (selector, rule) pairs; `EpsilonPlus()` if None.
        at: Names of layers, or of values named with `jax.ad_checkpoint.checkpoint_name`, whose output's relevance is
            wanted too.
        given: By the same names, factors for the relevance of a hidden value, of a shape that broadcasts to that of
            `at`, the samples first: with a mask of channels, relevance passes through the chosen channels only
            (Achtibat et al. 2023).
        batch_size: The number of samples that are explained at a time; all if None. If `x` is sharded over devices,
            choose a multiple of their number; otherwise each of them explains the whole batch.
        progress: Whether to show a progress bar, if there is more than one batch; it needs tqdm.
        inference: "checked" refuses a model in training mode: one with dropout, or with statistics of the batch.
            "assumed" leaves this check out, for a model that only looks as if it were.

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
    check_places(target, rules)
    composite = as_composite(rules)
    request = _request(at, given)
    number = number_of_samples(x)
    size = number if batch_size is None else as_count(batch_size, "batch_size")
    whole, output = trace_model(model, x, inference=inference)
    kind, values = read_target(target, output, number)
    function = target if callable(target) else None
    whole = whole if function is None else explaining(whole, output, function)

    def call_of(x: Any) -> TracedCall:
        return trace_model(model, x, function, inference=inference)[0]

    axis = 1 if kind == "all" else 0  # of the samples
    axes_of = functools.partial(axes_of_samples, call_of, x, composite)
    factors = factors_of(axes_of, number, composite, whole, given) if given else []
    explain = functools.partial(explain_call, composite, request, kind)
    if size >= number:
        parts = [explain(whole, values, [factor.array for factor in factors])]
    else:
        starts: Iterable[int] = range(0, number, size)
        if any(not leaf.shape for leaf in jax.tree.leaves(output)):
            raise InputError(
                f"The model returns one number for all {number} samples: explain them together, without batch_size."
            )
        if progress:
            bar = import_extra("tqdm.auto", "large", instead="pass progress=False").tqdm
            starts = bar(starts, desc="explaining", unit="batch")
        parts = _in_batches(explain, call_of, x, starts, size, values, factors)
    outputs, maps, hidden, checks = zip(*parts, strict=True)
    report(checks, whole.read)
    hidden_by_samples = samples_first(axes_of, min(size, number), hidden, axis)
    flow = _joined([part.flow for part in checks], -1)
    totals = [part.total for part in checks if part.total is not None]
    report_flow(call_of, x, kind, values, composite, flow, totals, is_whole=not given)
    growth, explained = (None, None) if flow is None else (flow.growth, flow.explained)
    found = _joined(outputs, 0), _joined(maps, axis), _joined(hidden_by_samples, axis)
    return Explanation(*found, x, composite, growth, explained)


def _request(at: Sequence[str], given: Mapping[str, jax.Array] | None) -> Request:
    if isinstance(at, str):
        raise InputError(f"at is a list of names, but it is the name {at!r} alone. Pass at=[{at!r}].")
    if not isinstance(given, Mapping | None):
        raise InputError(
            f"given is a mapping from names to factors, but it is {kind_of(given)}. Pass given={{'name': mask}}."
        )
    return Request(tuple(at), tuple(sorted(given or ())))


def _in_batches(
    explain: Callable[..., Explained],
    call_of: Callable[[Any], TracedCall],
    x: Any,
    starts: Iterable[int],
    size: int,
    values: jax.Array | None,
    factors: Sequence[Factor],
) -> list[Explained]:
    """Explains some samples at a time, each call traced once for each number of them, as the last batch may be smaller.

    Args:
        explain: Explains a call, with the values of its target and the factors of hidden values.
        call_of: Traces the model's call of a batch.
        x: The whole input.
        starts: Where the batches begin.
        size: How many samples they have.
        values: The array of the target, if it has one entry for each sample.
        factors: The factors of hidden values.
    """
    calls: dict[Any, TracedCall] = {}
    parts = []
    for start in starts:
        batch = jax.tree.map(lambda leaf, start=start: _batch(leaf, start, size), x)
        shapes = tuple(map(jax.typeof, jax.tree.leaves(batch)))
        if shapes not in calls:
            calls[shapes] = call_of(batch)
        call = calls[shapes].replaced(calls[shapes].args[0], batch)
        chosen = None if values is None else values_of_samples(values, slice(start, start + size))
        parts.append(explain(call, chosen, [factor.of_samples(start, size) for factor in factors]))
    return parts


def _joined(parts: Sequence[Any], axis: int) -> Any:
    """What was found in each batch, put together along the dimension of the samples."""
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *arrays: jnp.concatenate(arrays, axis), *parts)


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
