"""Explaining a whole data set, on all devices and in several processes, into a store; an interrupted run resumes."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lrp_jax.composites import Composite, Rules, as_composite
from lrp_jax.core.arguments import as_count
from lrp_jax.core.inference import Inference
from lrp_jax.core.programs import Computation, computation
from lrp_jax.errors import InputError, import_extra
from lrp_jax.explain.checks import Checks, report_batches, summarise
from lrp_jax.explain.devices import Explainer, explain_batch, local_mesh
from lrp_jax.explain.fingerprint import describe, hash_of, without_addresses
from lrp_jax.explain.models import split_model, trace_model
from lrp_jax.explain.source import Source, number_of, own_batches, peek, read_targets, sample_of
from lrp_jax.explain.store import Group, open_explanations, public_arrays
from lrp_jax.explain.targets import Target, check_places, number_of_targets, said_of_samples

__all__ = ["explain_dataset", "open_explanations"]

_READ_AGAIN = 100  # samples of a source that may be slow


def explain_dataset(
    model: Callable[[Any], Any],
    source: Iterable[Any],
    store: str | os.PathLike[str],
    target: Target = None,
    rules: Rules | None = None,
    *,
    prepare: Callable[[Any], Any] | None = None,
    target_of: Callable[[Any], int] | None = None,
    reduce: Callable[[Any], Any] | None = None,
    batch_size: int = 32,
    mesh: Mesh | None = None,
    progress: bool = True,
    inference: Inference = "checked",
) -> dict[str, Any]:
    """Explains every sample of a data set and writes relevance, outputs and explained classes to a Zarr store.

    If a run was killed, at whatever moment, call it again and it resumes: a batch counts as done once all of it is on
    the disk, and only what is not done is explained. While a batch is explained, the one before is written and the next
    one is read. Two runs that write to one store at the same time, with the same arguments, both finish.

    The store keeps a digest of each sample and its target. A run that resumes reads some of the finished samples again
    and compares them: all of an array, a list or an iterable; of any other source the first one, the last one, and
    others between them, 100 in all. The store also keeps a checksum of each chunk. A run that resumes reads all that is
    done, and explains again what is damaged or was lost, with a warning that names the samples.

    The samples of a batch are distributed over the devices of a process, each of which explains its own. If
    `jax.distributed.initialize` was called, every process explains batches of its own on its own devices. All of them
    have to pass the same arguments, and a store that all can reach. They do not wait for each other, so call
    `jax.experimental.multihost_utils.sync_global_devices` before one reads what another has written.

    At the end, a warning counts the batches in which relevance is NaN or the input is outside of the bounds of `ZBox`,
    including those that an earlier run explained. Another warning says if less than 5 % of what is explained arrived at
    the inputs.

    Args:
        model: A function of one argument, as for `lrp_jax.relevance`.
        source: The data set, one element for each sample: an array, a list, or anything else with a length and an index
            (`tensorflow_datasets.data_source`, `grain.MapDataset`), of which only what is to be explained or compared
            is read; or an iterable (`grain.DataLoader`, a generator), which is read from its beginning. A run that
            resumes needs the same elements in the same order.
        store: Where the Zarr group is: a folder, or a URL that TensorStore knows, such as "gs://bucket/maps".
        target: What is explained, as for `lrp_jax.relevance`.
        rules: A rule, a composite, or a list of (selector, rule) pairs; `EpsilonPlus()` if None.
        prepare: A function that turns an element into a sample: the model's input (an array or a pytree of arrays)
            without the dimension for the samples. None if the elements are the samples.
        target_of: A function of an element that returns the class to be explained, an integer, in place of `target`.
        reduce: A function that turns the relevance of a batch into what is stored, such as
            `lambda relevance: relevance.sum(-1)`. It runs on the devices and keeps the dimension for the samples.
        batch_size: The number of samples that a process explains at a time, preferably a multiple of its number of
            devices. They are one chunk of each array in the store. A smaller last batch is filled up, so that nothing
            is compiled for it; what fills it up is not stored.
        mesh: Devices of this process. The samples are distributed over the first axis of the mesh. Parameters that are
            sharded over these devices stay so, others are copied to each. None means all devices of this process.
        progress: Whether the first process shows a progress bar; it needs tqdm.
        inference: As for `lrp_jax.relevance`.

    Returns:
        The arrays of the store, as `open_explanations` returns them.

    Raises:
        InputError: If the source is empty or a mapping or has fewer elements than it says, its samples differ in shape,
            a target does not fit the output, `prepare` or `reduce` returns nothing, `batch_size` is no number of
            samples, the mesh holds devices of another process, or `inference` is neither of the two.
        ModelError: If the model is in training mode, needs values in Python, or has an output that is not
            differentiable.
        StoreError: If the store belongs to another run (to other data, another model, other rules), its metadata are
            damaged, or it cannot be read or written.
        MissingExtraError: If TensorStore is not installed, or tqdm, and a progress bar is to be shown.
        SelectorError: If the rules do not fit the layers.
        UnsupportedOperationError: If relevance reaches an operation that has no treatment.

    Example:
        >>> from tempfile import mkdtemp
        >>> import jax.numpy as jnp
        >>> from lrp_jax import rules
        >>> weight = jnp.array([[1.0, -1.0], [3.0, 2.0]])
        >>> images = np.array([[20, 10], [0, 30], [10, 10]], np.uint8)
        >>> stored = explain_dataset(
        ...     lambda x: x @ weight, images, mkdtemp(), target=0, rules=rules.Zero(),
        ...     prepare=lambda image: image / np.float32(10), batch_size=2, progress=False,
        ... )
        >>> stored["relevance"][0].read().result()
        array([2., 3.], dtype=float32)
    """
    if target is not None and target_of is not None:
        raise InputError("Both target and target_of say what is explained. Pass one of them.")
    check_places(target, rules)
    batch_size = as_count(batch_size, "batch_size")
    mesh = local_mesh(mesh)
    first, elements = peek(source)
    sample = sample_of(prepare, first)
    composite = as_composite(rules)
    one = jax.tree.map(lambda leaf: leaf[None], sample)
    _, output = trace_model(model, one, inference=inference)
    kind, targets_of = read_targets(target, target_of, output, number_of(elements))
    data = Source(elements, prepare, sample, targets_of)
    numbers, structure = jax.tree.flatten(composite)
    arrays, static = split_model(model)
    function = target if callable(target) else None
    explain = functools.partial(explain_batch, static, model, structure, kind, function, reduce, inference)
    one_target = targets_of([first], range(1))
    computed = computation(explain, numbers, arrays, one, one_target)
    shapes, checks = computed.value
    fingerprint = _fingerprint(data, batch_size, composite, computed, arrays, one_target, target)
    group = Group(store, fingerprint, shapes, checks, data.number, batch_size)
    explainer = Explainer(explain, numbers, arrays, mesh, batch_size)
    found = _explain_all(data, group, explainer, progress)
    _check_targets_were_used(number_of_targets(target, output), data, found)
    report_batches(found, composite)
    return public_arrays(store)


def _fingerprint(
    data: Source,
    batch_size: int,
    composite: Composite,
    computed: Computation,
    arrays: dict[str, Any],
    one_target: np.ndarray | None,
    target: Target,
) -> dict[str, str]:
    """What a run has in common with another that goes on, by what it is called in an error."""
    targets = said_of_samples(target)
    return {
        "samples": "unknown" if data.number is None else str(data.number),
        "sample": describe(data.like),
        "batch_size": str(batch_size),
        "rules": without_addresses(repr(composite)),
        "computation (model, rules, target, reduce)": f"{computed.program.text.digest()} {hash_of(computed.arrays)}",
        "parameters": hash_of(arrays),
        "data (first sample, targets)": hash_of((data.like, one_target, targets)),
    }


def _compare_what_is_done(data: Source, group: Group, batch_size: int) -> None:
    """Reads what was explained again, of a source with an index, and compares it; a part where that may be slow."""
    if data.number is None:
        return
    done = [i for batch in own_batches(data.number, batch_size) if group.holds(batch) for i in batch if i > 0]
    if not isinstance(data.elements, np.ndarray | list | tuple):
        done = [done[i] for i in np.linspace(0, len(done) - 1, min(len(done), _READ_AGAIN - 1)).astype(int)]
    for start in range(0, len(done), batch_size):
        again = done[start : start + batch_size]
        group.compare(again, data.prepared(data.read(again), again)[-1])


def _progress_bar(number: int | None, batch_size: int) -> Any:
    tqdm = import_extra("tqdm.auto", "large", instead="pass progress=False").tqdm
    own = None if number is None else sum(map(len, own_batches(number, batch_size)))
    return tqdm(total=own, desc="explaining", unit="sample")


def _explain_all(data: Source, group: Group, explainer: Explainer, progress: bool) -> dict[range, Checks]:
    """Explains what the group does not hold. While a batch is explained, the one before is written.

    Returns:
        What was found in each batch, in their order.
    """
    _compare_what_is_done(data, group, explainer.batch_size)
    running: tuple[range, Any, np.ndarray] | None = None
    found: dict[range, Checks] = {}

    def finish(indices: range, started: Any, digests: np.ndarray) -> None:
        explained, checks = started
        found[indices] = summarise(jax.device_get(checks))
        group.write(indices, explained, digests, found[indices])

    is_shown = progress and jax.process_index() == 0
    with _progress_bar(data.number, explainer.batch_size) if is_shown else contextlib.nullcontext() as bar:
        try:
            for indices, batch in data.batches(explainer.batch_size):
                if group.holds(indices):
                    if data.number is None:
                        group.compare(indices, data.prepared(list(batch), indices)[-1])
                    found[indices] = group.checks_of(indices)
                else:
                    samples, targets, digests = data.prepared(list(batch), indices)
                    started = explainer.start(samples, targets)
                    if running is not None:  # is written while the devices are at work
                        finish(*running)
                    running = indices, started, digests
                if bar is not None:
                    bar.update(len(indices))
            if running is not None:
                finish(*running)
        finally:
            group.finish()
    return dict(sorted(found.items(), key=lambda item: item[0].start))


def _check_targets_were_used(targets: int | None, data: Source, found: dict[range, Checks]) -> None:
    """Refuses more targets than there were elements, which of an iterable only its end tells."""
    if data.number is None and targets is not None and jax.process_count() == 1:
        seen = max(indices.stop for indices in found)
        if seen != targets:
            raise InputError(f"The source has {seen} elements, but there are {targets} targets.")
