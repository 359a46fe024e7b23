"""Explaining a whole data set: on all devices, in several processes, into a Zarr store, and on again after a kill."""

import contextlib
import functools
import hashlib
import itertools
import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lrp_jax.composites import Rules, as_composite
from lrp_jax.core.arguments import as_count
from lrp_jax.core.inference import Inference
from lrp_jax.core.programs import Computation, array_digest, computation
from lrp_jax.errors import InputError, LRPError, LRPWarning, StoreError, import_extra
from lrp_jax.explain.checks import Checks, report_batches, summarise
from lrp_jax.explain.models import StaticModel, split_model, trace_model, trace_static
from lrp_jax.explain.propagation import Request, explain_in_trace
from lrp_jax.explain.targets import Target, read_target

_DONE = "done"
_DIGEST = "digest"  # of each sample and its target
_CHECKS = "checks"  # what was found in the batch of a sample
_GROUP = "zarr.json"  # the key under which Zarr keeps the metadata of a group
_NO_DAMAGE = (  # what TensorStore says of a chunk that it cannot reach; of a bad one it says many things
    *("PERMISSION_DENIED", "UNAUTHENTICATED", "UNAVAILABLE", "DEADLINE_EXCEEDED"),
    *("RESOURCE_EXHAUSTED", "ABORTED", "CANCELLED", "INTERNAL"),
)
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

    A run that was killed, at whatever moment, goes on when it is called again: a batch counts as done once all of it
    is on the disk, and only what is not done is explained. While a batch is explained, the one before is written and
    the next one is read. Two runs that write to one store at the same time, with the same arguments, both finish.

    The store keeps a digest of each sample and its target. A run that goes on reads a part of what is done again and
    compares it: all of an array, a list or an iterable, and of another source with an index the first sample, the last
    one, and others between them, 100 in all. The store also keeps a checksum of each chunk. A run that goes on reads
    all that is done, and explains again what is damaged or was lost, with a warning that names the samples.

    The samples of a batch are shared out over the devices of a process, each of which explains its own. If
    `jax.distributed.initialize` was called, every process explains batches of its own on its own devices: all pass the
    same arguments, and a store that all can reach. They do not wait for each other; call
    `jax.experimental.multihost_utils.sync_global_devices` before one reads what another has written.

    At the end a warning counts the batches in which relevance is NaN, or the input is outside of the bounds of `ZBox`,
    those that an earlier run explained among them.

    Args:
        model: A function of one argument, as for `lrp_jax.relevance`.
        source: The data set, one element for each sample: an array, a list, or anything else with a length and an index
            (`tensorflow_datasets.data_source`, `grain.MapDataset`), of which only what is to be explained or compared
            is read; or an iterable (`grain.DataLoader`, a generator), which is read from its beginning. A run that
            goes on needs the same elements in the same order.
        store: Where the Zarr group is: a folder, or a URL that TensorStore knows, such as "gs://bucket/maps".
        target: What is explained, as for `lrp_jax.relevance`.
        rules: A rule, a composite, or a list of (selector, rule) pairs; `EpsilonPlus()` if None.
        prepare: A function that turns an element into a sample: the model's input (an array or a pytree of arrays)
            without the dimension for the samples. None if the elements are the samples.
        target_of: A function of an element that returns the class to be explained, an integer, in place of `target`.
        reduce: A function that turns the relevance of a batch into what is stored, such as
            `lambda relevance: relevance.sum(-1)`. It runs on the devices and keeps the dimension for the samples.
        batch_size: The number of samples that a process explains at a time, best a multiple of its number of devices;
            they are one chunk of each array in the store. A last, smaller batch is filled up, so that nothing is
            compiled for it; what fills it up is not stored.
        mesh: Devices of this process. The samples are shared out over the first axis of the mesh; parameters that are
            sharded over these devices stay so, others are copied to each. All devices of this process if None.
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
    parts = source if isinstance(source, Mapping) else getattr(source, "_fields", ())
    if parts:
        raise InputError(
            f"The source is a {type(source).__name__} of {', '.join(map(repr, parts))}, but a data set has one element "
            "for each sample. Pass the array that holds the inputs."
        )
    if target is not None and target_of is not None:
        raise InputError("Both target and target_of say what is explained. Pass one of them.")
    batch_size = as_count(batch_size, "batch_size")
    mesh = _local_mesh(mesh)
    first, elements = _peek(source)
    number = len(elements) if _is_indexed(elements) else None
    sample = _sample(prepare, first)
    composite = as_composite(rules)
    one = jax.tree.map(lambda leaf: leaf[None], sample)
    _, output = trace_model(model, one, inference=inference)
    kind, targets_of = _read_targets(target, target_of, output, number)
    arrays, static = split_model(model)
    function = target if callable(target) else None
    numbers, structure = jax.tree.flatten(composite)
    explain = functools.partial(_explain_batch, static, model, structure, kind, function, reduce, inference)

    one_target = targets_of([first], range(1))
    computed = computation(explain, numbers, arrays, one, one_target)
    shapes, checks_shape = computed.value
    places_of_checks = jax.tree.structure(checks_shape)
    fingerprint = {
        "samples": "unknown" if number is None else str(number),
        "sample": _describe(sample),
        "batch_size": str(batch_size),
        "rules": _without_addresses(repr(composite)),
        "computation (model, rules, target, reduce)": f"{computed.program.text.digest()} {_hash(computed.arrays)}",
        "parameters": _hash(arrays),
        "data (first sample, targets)": _hash(
            (sample, one_target, np.asarray(target) if _is_per_sample(target) else ())
        ),
    }
    internal = {
        _DIGEST: jax.ShapeDtypeStruct((1, hashlib.sha256().digest_size), np.uint8),
        _CHECKS: jax.ShapeDtypeStruct((1, len(jax.tree.leaves(checks_shape))), np.float64),
        _DONE: jax.ShapeDtypeStruct((1,), np.bool),
    }
    group = _Group(store, fingerprint, shapes, internal, number, batch_size)

    def prepared(elements: Sequence[Any], indices: Sequence[int]) -> tuple[list[Any], Any, np.ndarray]:
        """The samples, their targets, and the digest of each."""
        samples = _samples(prepare, sample, elements, indices)
        targets = targets_of(elements, indices)
        each = [None] * len(samples) if targets is None else targets
        return samples, targets, np.stack([_digest(pair) for pair in zip(samples, each, strict=True)])

    if number is not None:
        done = [i for batch in _own_batches(number, batch_size) if group.holds(batch) for i in batch if i > 0]
        if not isinstance(elements, np.ndarray | list | tuple):
            done = [done[i] for i in np.linspace(0, len(done) - 1, min(len(done), _READ_AGAIN - 1)).astype(int)]
        for start in range(0, len(done), batch_size):
            again = done[start : start + batch_size]
            group.compare(again, prepared(list(_read(elements, again)), again)[-1])

    (axis, *_) = mesh.axis_names
    width = -(-batch_size // mesh.shape[axis]) * mesh.shape[axis]
    arrays = {name: _placed(array, mesh) for name, array in arrays.items()}
    place = functools.partial(jax.device_put, device=NamedSharding(mesh, PartitionSpec(axis)))
    own = None if number is None else sum(map(len, _own_batches(number, batch_size)))
    bar = None
    if progress and jax.process_index() == 0:
        tqdm = import_extra("tqdm.auto", "large", instead="pass progress=False").tqdm
        bar = tqdm(total=own, desc="explaining", unit="sample")
    shared: Computation | None = None
    running: tuple[range, Any, np.ndarray] | None = None
    found: dict[range, Checks] = {}
    seen = 0

    def finish(indices: range, started: Any, digests: np.ndarray) -> None:
        explained, checks = started
        found[indices] = summarise(jax.device_get(checks))
        row = np.array(jax.tree.leaves(found[indices]), np.float64)
        group.write(indices, {**explained, _DIGEST: digests, _CHECKS: np.tile(row, (len(indices), 1))})

    with contextlib.nullcontext() if bar is None else bar:
        try:
            for indices, batch in _batches(elements, batch_size):
                if group.holds(indices):
                    if number is None:
                        group.compare(indices, prepared(list(batch), indices)[-1])
                    found[indices] = jax.tree.unflatten(places_of_checks, group.checks_of(indices))
                else:
                    samples, targets, digests = prepared(list(batch), indices)
                    x, targets = place(_stacked(samples, width)), place(_filled(targets, width))
                    if shared is None:
                        shared = computation(
                            functools.partial(_explain_shared, mesh, explain), numbers, arrays, x, targets
                        )
                        shared = replace(shared, arrays=[_placed(array, mesh) for array in shared.arrays])
                    started = shared(numbers, arrays, x, targets)
                    if running is not None:  # is written while the devices are at work
                        finish(*running)
                    running = indices, started, digests
                seen = indices.stop
                if bar is not None:
                    bar.update(len(indices))
            if running is not None:
                finish(*running)
        finally:
            group.finish()
    if number is None and _is_per_sample(target) and jax.process_count() == 1:
        expected = len(target)  # type: ignore[arg-type]  # has a length
        if seen != expected:
            raise InputError(f"The source has {seen} elements, but there are {expected} targets.")
    report_batches(dict(sorted(found.items(), key=lambda item: item[0].start)))
    return _public_arrays(store)


def open_explanations(store: str | os.PathLike[str]) -> dict[str, Any]:
    """Opens what `explain_dataset` has written, while it runs or afterwards.

    All that is done is read once and compared with its checksums.

    Args:
        store: The folder or URL of the store. Other libraries read it too: `zarr.open_group(store)["relevance"][0]`
            compares what it reads, and nothing else.

    Returns:
        TensorStore arrays by name, all with the samples in the first dimension, in the order of the source. An index
        chooses samples, and `.read().result()` of what was chosen is a NumPy array. There are

        - "relevance": the relevance of the input, after `reduce`; for all classes of shape (samples, classes, ...).
        - "output": the model's output, of shape (samples, classes).
        - "target": the explained class, int32 of shape (samples,), if one class is explained.
        - "done": whether a sample was explained, of shape (samples,). Until then its relevance is NaN.

        Of a pytree there is an array for each leaf, named by its path, such as "relevance.left".

    Raises:
        StoreError: If there is no such store, or it is damaged.
        MissingExtraError: If TensorStore is not installed.

    Example:
        >>> from tempfile import mkdtemp
        >>> folder = mkdtemp()
        >>> _ = explain_dataset(lambda x: jnp.tanh(x), np.eye(3, dtype=np.float32), folder, progress=False)
        >>> stored = open_explanations(folder)
        >>> {name: array.shape for name, array in stored.items()}
        {'done': (3,), 'output': (3, 3), 'relevance': (3, 3), 'target': (3,)}
        >>> bool(stored["done"].read().result().all())
        True
    """
    with _as_store_errors(store, "cannot be read"):
        kvstore = _open_kvstore(store)
        _, damaged = _verify(kvstore, [*_noted(kvstore, store)["arrays"], _DIGEST, _CHECKS], None)
    if damaged:
        raise StoreError(
            f"The store {os.fspath(store)!r} is damaged: {_in_words(damaged)}. Look at the disk, and call "
            "explain_dataset again, which explains these samples again."
        )
    return _public_arrays(store)


# The source.


def _is_indexed(source: Any) -> bool:
    return hasattr(source, "__len__") and hasattr(source, "__getitem__")


def _peek(source: Iterable[Any]) -> tuple[Any, Any]:
    """The first element, and all of them."""
    if isinstance(source, jax.Array):
        source = np.asarray(source)
    if _is_indexed(source):
        first: list[Any] = list(_read(source, range(min(1, len(source)))))  # type: ignore[arg-type]  # has an index
        elements: Any = source
    else:
        iterator = iter(source)
        first = list(itertools.islice(iterator, 1))
        elements = itertools.chain(first, iterator)
    if not first:
        raise InputError("The source is empty: there is nothing to explain. A generator can be read only once.")
    return first[0], elements


def _read(source: Any, indices: Sequence[int]) -> Iterator[Any]:
    """The elements with some indices, read when the first is asked for.

    Raises:
        InputError: If the source has no element for each.
    """
    try:
        if hasattr(source, "__getitems__"):  # reads records together, which is faster
            elements = list(source.__getitems__(list(indices)))
        else:
            elements = [source[i] for i in indices]
    except (IndexError, StopIteration) as error:
        raise InputError(
            f"The source says that it has {len(source)} elements, but it ends among those from {indices[0]} to "
            f"{indices[-1]}: {error!r}. Give it the length that it has."
        ) from error
    if len(elements) != len(indices):
        raise InputError(
            f"The source returned {len(elements)} elements for the {len(indices)} from {indices[0]} to {indices[-1]}. "
            "It must return one for each: filter it before, so that its length is that of what is left."
        )
    yield from elements


def _own_batches(number: int, size: int) -> Iterator[range]:
    """The indices of the batches that this process explains."""
    for start in range(jax.process_index() * size, number, jax.process_count() * size):
        yield range(start, min(start + size, number))


def _batches(elements: Any, size: int) -> Iterator[tuple[range, Iterable[Any]]]:
    """The indices and the elements of the batches that this process explains; indexed elements are not yet read."""
    if _is_indexed(elements):
        for indices in _own_batches(len(elements), size):
            yield indices, _read(elements, indices)
        return
    iterator = iter(elements)
    for batch in itertools.count():
        read = list(itertools.islice(iterator, size))
        if not read:
            return
        if batch % jax.process_count() == jax.process_index():
            yield range(batch * size, batch * size + len(read)), read


def _sample(prepare: Callable[[Any], Any] | None, element: Any) -> Any:
    def as_array(leaf: Any) -> np.ndarray:
        array = np.asarray(leaf)
        if array.dtype.kind not in "biufcV":  # V: bfloat16 and the like
            raise InputError(
                f"An element holds {array.dtype}. Pass as prepare a function that returns the input of the model."
            )
        return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)

    sample = jax.tree.map(as_array, prepare(element) if prepare else element)
    if not jax.tree.leaves(sample):
        raise InputError(f"{'prepare returned' if prepare else 'An element is'} {sample!r}, which holds no array.")
    return sample


def _samples(
    prepare: Callable[[Any], Any] | None, like: Any, elements: Sequence[Any], indices: Sequence[int]
) -> list[Any]:
    """Prepares the elements with some indices."""
    samples = [_sample(prepare, element) for element in elements]
    expected = _describe(like)
    for index, sample in zip(indices, samples, strict=True):
        if (found := _describe(sample)) != expected:
            raise InputError(
                f"Sample {index} is {found}, but the first is {expected}. All samples need one shape and dtype, which "
                "prepare can give them."
            )
    return samples


def _stacked(samples: Sequence[Any], width: int) -> Any:
    """The samples of a batch in one array, the last of them repeated to fill the batch up."""
    return jax.tree.map(lambda *leaves: _filled(np.stack(leaves), width), *samples)


def _filled(array: np.ndarray | None, width: int) -> np.ndarray | None:
    if array is None:
        return None
    return np.pad(array, [(0, width - len(array))] + [(0, 0)] * (array.ndim - 1), mode="edge")


def _is_per_sample(target: Any) -> bool:
    return not callable(target) and np.ndim(target) > 0


def _read_targets(
    target: Target, target_of: Callable[[Any], int] | None, output: Any, number: int | None
) -> tuple[Any, Callable[[Sequence[Any], Sequence[int]], np.ndarray | None]]:
    """The kind of target, as `read_target` has it, and a function that returns the targets of elements."""
    is_per_sample = _is_per_sample(target)
    if number is None:
        number = len(target) if is_per_sample else 1  # type: ignore[arg-type]  # has a length

    def resized(samples: int) -> Any:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((samples, *leaf.shape[1:]), leaf.dtype), output)

    kind, _ = read_target(0 if target_of else target, resized(number), number)
    per_sample = np.asarray(target) if is_per_sample else None

    def targets_of(elements: Sequence[Any], indices: Sequence[int]) -> np.ndarray | None:
        chosen: Any = target
        if target_of is not None:
            pairs = zip(indices, elements, strict=True)
            chosen = np.array([_class_of(target_of, element, i, output.shape[1]) for i, element in pairs])
        elif per_sample is not None:
            chosen = per_sample[[i for i in indices if i < len(per_sample)]]
        _, values = read_target(chosen, resized(len(elements)), len(elements))
        return None if values is None else np.asarray(values)

    return kind, targets_of


def _class_of(target_of: Callable[[Any], int], element: Any, index: int, classes: int) -> int:
    value = target_of(element)
    try:
        array = np.asarray(value)
        fits = array.ndim == 0 and jnp.issubdtype(array.dtype, jnp.integer) and 0 <= int(array) < classes
    except ValueError:  # a list of lists of different lengths
        fits = False
    if not fits:
        raise InputError(
            f"target_of returned {value!r} for sample {index}, but a target is a class: an integer from 0 to "
            f"{classes - 1}."
        )
    return int(value)


# The computation.


def _explain_batch(
    static: StaticModel,
    holder: Any,
    structure: Any,
    kind: str,
    function: Callable[[Any], Any] | None,
    reduce: Callable[[Any], Any] | None,
    inference: Inference,
    numbers: list[Any],
    arrays: dict[str, Any],
    x: Any,
    targets: Any,
) -> tuple[dict[str, jax.Array], Checks]:
    """What is stored of a batch, by name, and what was found in it."""
    call, _ = trace_static(static, holder, arrays, x, function, inference)
    output, maps, _, checks = explain_in_trace(structure, Request((), ()), kind, numbers, call, targets, [])
    if kind == "all":
        maps = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), maps)
    explained = {"relevance": reduce(maps) if reduce else maps, "output": output}
    if kind in ("largest", "index"):
        explained["target"] = (output.argmax(-1) if kind == "largest" else targets).astype(jnp.int32)
    (samples, *_) = {len(leaf) for leaf in jax.tree.leaves(x)}
    named = _named(explained)
    if not jax.tree.leaves(explained["relevance"]):
        raise InputError(
            f"reduce returned {explained['relevance']!r}, and no array: nothing would be stored. Return what is to be "
            "kept of the relevance."
        )
    if len(named) < len(jax.tree.leaves(explained)):
        raise InputError(f"Two arrays would be stored under one name: there are {', '.join(named)}. Rename a key.")
    for name, leaf in named.items():
        if jnp.shape(leaf)[:1] != (samples,):
            raise InputError(
                f"{name} has the shape {jnp.shape(leaf)} for {samples} samples, but model and reduce must return them "
                "in the first dimension."
            )
    return named, jax.tree.map(lambda leaf: leaf[None], checks)


def _explain_shared(
    mesh: Mesh, explain: Callable[..., Any], numbers: list[Any], arrays: dict[str, Any], x: Any, targets: Any
) -> tuple[dict[str, jax.Array], Checks]:
    """Each device along the first axis of the mesh explains samples of its own: none has to wait for another."""
    (axis, *_) = mesh.axis_names
    everything, share = PartitionSpec(), PartitionSpec(axis)
    return jax.shard_map(
        explain,
        mesh=mesh,
        in_specs=(everything, everything, share, share),
        out_specs=share,
        axis_names={axis},
    )(numbers, arrays, x, targets)


def _local_mesh(mesh: Mesh | None) -> Mesh:
    if mesh is None:
        return Mesh(np.array(jax.local_devices()), "samples")
    if any(device.process_index != jax.process_index() for device in mesh.devices.flat):
        raise InputError(
            "The mesh holds devices of another process, but each process explains samples of its own. Make it of "
            "jax.local_devices()."
        )
    return Mesh(mesh.devices, mesh.axis_names)  # its axes are left to the compiler


def _placed(array: Any, mesh: Mesh) -> jax.Array:
    is_there = isinstance(array, jax.Array) and array.sharding.device_set == set(mesh.devices.flat)
    if is_there and isinstance(array.sharding, NamedSharding):
        return jax.device_put(array, NamedSharding(mesh, array.sharding.spec))
    return jax.device_put(array, NamedSharding(mesh, PartitionSpec()))


# The store.


class _Group:
    """The Zarr group of a run: arrays by name, and for each sample whether all of it was written."""

    def __init__(
        self,
        store: str | os.PathLike[str],
        fingerprint: dict[str, str],
        shapes: Mapping[str, jax.ShapeDtypeStruct],
        internal: Mapping[str, jax.ShapeDtypeStruct],
        number: int | None,
        batch_size: int,
    ) -> None:
        self._store = store
        self._grows = number is None
        self._writing: tuple[slice, Sequence[Any]] | None = None
        with self._writes():
            kvstore = _open_kvstore(store)
            _claim(kvstore, store, fingerprint, sorted([_DONE, *shapes]))
            self._arrays = {}
            for name, shape in {**shapes, **internal}.items():
                size = (number or 0, *shape.shape[1:])
                _create_array(kvstore, name, size, shape.dtype, batch_size)
                array = self._arrays[name] = _open_array(
                    kvstore, name, recheck_cached_metadata=True, store_data_equal_to_fill_value=True
                )
                found = array.shape[self._grows :], array.dtype.numpy_dtype
                if found != (size[self._grows :], np.dtype(shape.dtype)):
                    reason = f"it is {found[1]} of shape {array.shape}, expected {shape.dtype} of shape {size}"
                    raise StoreError(_metadata_damaged(store, name, reason))
            self._done, damaged = _verify(kvstore, self._arrays, jax.process_index())
            for indices in damaged:
                for name in sorted(self._arrays, key=lambda name: name != _DONE):  # first it is no longer done
                    chunk = indices.start // batch_size, *[0] * (self._arrays[name].rank - 1)
                    kvstore.write(f"{name}/c/{'/'.join(map(str, chunk))}", None).result()
        if damaged:
            warnings.warn(
                f"The store {os.fspath(store)!r} is damaged: {_in_words(damaged)}. These samples are explained again. "
                "Look at the disk.",
                LRPWarning,
                stacklevel=3,
            )

    def holds(self, indices: range) -> bool:
        """Whether all these samples were there when the run began."""
        done = self._done[indices.start : indices.stop]
        return len(done) == len(indices) and bool(done.all())

    def checks_of(self, indices: range) -> np.ndarray:
        """What was found when a batch was explained that the group holds."""
        with self._reads():
            return self._arrays[_CHECKS][indices.start].read().result()

    def compare(self, indices: Sequence[int], digests: np.ndarray) -> None:
        """Refuses samples that are not those that were explained."""
        with self._reads():
            there = self._arrays[_DIGEST][list(indices)].read().result()
        differing = (there != digests).any(1)
        if differing.any():
            raise StoreError(
                f"Sample {indices[differing.argmax()]} is not the one that was explained in the store "
                f"{os.fspath(self._store)!r}: its input or its target differs. Choose another store for other data, or "
                "delete this one to start anew."
            )

    def write(self, indices: range, explained: Mapping[str, Any]) -> None:
        """Begins to write a batch, without what filled it up, after the batch before it."""
        self.finish()
        place = slice(indices.start, indices.stop)
        values = {name: np.asarray(value)[: len(indices)] for name, value in explained.items()}
        with self._writes():
            if self._grows:
                self._arrays = {name: _grown(array, indices.stop) for name, array in self._arrays.items()}
            self._writing = place, [self._arrays[name][place].write(value) for name, value in values.items()]

    def finish(self) -> None:
        """Waits until the last batch is on the disk, and only then notes that it is done."""
        if self._writing is not None:
            (place, futures), self._writing = self._writing, None
            with self._writes():
                for future in futures:
                    future.result()
                self._arrays[_DONE][place].write(True).result()

    def _reads(self) -> contextlib.AbstractContextManager[None]:
        return _as_store_errors(self._store, "cannot be read")

    def _writes(self) -> contextlib.AbstractContextManager[None]:
        return _as_store_errors(
            self._store,
            "cannot be written",
            "What is done stays done: make room, or see to it that the folder can be written, and call again.",
        )


@contextlib.contextmanager
def _as_store_errors(store: str | os.PathLike[str], problem: str, advice: str = "") -> Iterator[None]:
    try:
        yield
    except LRPError:
        raise
    except (ValueError, OSError, NotImplementedError) as error:  # as which TensorStore raises its own
        raise StoreError(f"The store {os.fspath(store)!r} {problem}: {error}. {advice}".strip()) from error


def _open_kvstore(store: str | os.PathLike[str]) -> Any:
    tensorstore = import_extra("tensorstore", "large")
    place = os.fspath(store)
    if "://" in place:
        return tensorstore.KvStore.open(place.rstrip("/") + "/").result()
    return tensorstore.KvStore.open({"driver": "file", "path": f"{Path(place).expanduser().resolve()}/"}).result()


def _attributes(kvstore: Any, store: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What the group notes of its run, None if there is no group."""
    found = kvstore.read(_GROUP).result()
    if found.state == "missing":
        return None
    try:
        attributes = json.loads(found.value)["attributes"]
        return {"run": dict(attributes["run"]), "arrays": list(attributes["arrays"])}
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{_GROUP} in {os.fspath(store)!r} is damaged, or not by explain_dataset "
            f"({type(error).__name__}: {error}). Choose another store, or delete this one to start anew."
        ) from error


def _noted(kvstore: Any, store: str | os.PathLike[str]) -> dict[str, Any]:
    """What the group notes of its run, the names of the arrays for users among it."""
    there = _attributes(kvstore, store)
    if there is None:
        raise StoreError(f"There are no explanations in {os.fspath(store)!r}: explain_dataset has not written there.")
    return there


def _public_arrays(store: str | os.PathLike[str]) -> dict[str, Any]:
    with _as_store_errors(store, "cannot be read"):
        kvstore = _open_kvstore(store)
        noted = _noted(kvstore, store)
        arrays = {name: _open_array(kvstore, name) for name in noted["arrays"]}
    for name, array in arrays.items():
        if noted["run"].get("samples") not in ("unknown", str(array.shape[0])):
            raise StoreError(_metadata_damaged(store, name, f"it has {array.shape[0]} samples"))
    return arrays


def _metadata_damaged(store: str | os.PathLike[str], name: str, reason: str) -> str:
    return (
        f"The metadata of {name!r} in the store {os.fspath(store)!r} are damaged: {reason}. Delete the store to start "
        "anew."
    )


def _claim(kvstore: Any, store: str | os.PathLike[str], fingerprint: dict[str, str], arrays: Sequence[str]) -> None:
    """Notes what the store is for, unless this was noted by an earlier run or by another process."""
    there = _attributes(kvstore, store)
    if there is None and kvstore.list().result() and _attributes(kvstore, store) is None:
        raise StoreError(f"{os.fspath(store)!r} holds something else than explanations. Choose a new folder.")
    if there is None:
        versions = {name: version(name) for name in ("lrp-jax", "jax")}
        attributes = {"run": fingerprint, "arrays": arrays, "versions": versions}
        group = json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes}, indent=2)
        missing = kvstore.read(_GROUP).result().stamp.generation
        kvstore.write(_GROUP, group.encode(), if_equal=missing).result()
        there = _attributes(kvstore, store)
    noted = (there or {}).get("run", {})
    differing = [
        f"{name} (there {noted.get(name)}, here {value})" if len(value) < 64 else name
        for name, value in fingerprint.items()
        if noted.get(name) != value
    ]
    if differing:
        raise StoreError(
            f"The store {os.fspath(store)!r} belongs to another run. These differ: {'; '.join(differing)}. Choose "
            "another store, or delete this one to start anew."
        )


def _create_array(kvstore: Any, name: str, shape: tuple[int, ...], dtype: Any, batch_size: int) -> None:
    """Creates an array with a chunk for each batch, unless it is there."""
    tensorstore = import_extra("tensorstore", "large")
    dtype = np.dtype(dtype)
    empty = np.nan if jnp.issubdtype(dtype, jnp.floating) else -1 if dtype == np.int32 else 0
    compression = {"name": "blosc", "configuration": {"cname": "lz4", "clevel": 5, "shuffle": "shuffle"}}
    try:
        tensorstore.open(
            {"driver": "zarr3"},
            kvstore=kvstore / f"{name}/",
            create=True,
            dtype=dtype,
            shape=shape,
            chunk_layout=tensorstore.ChunkLayout(chunk_shape=(batch_size, *shape[1:])),
            codec=tensorstore.CodecSpec({"driver": "zarr3", "codecs": [compression, {"name": "crc32c"}]}),
            fill_value=np.array(empty, dtype),
        ).result()
    except ValueError as error:
        if "ALREADY_EXISTS" not in str(error):
            raise


def _open_array(kvstore: Any, name: str, **options: Any) -> Any:
    tensorstore = import_extra("tensorstore", "large")
    return tensorstore.open({"driver": "zarr3", **options}, kvstore=kvstore / f"{name}/", open=True).result()


def _verify(kvstore: Any, names: Iterable[str], process: int | None) -> tuple[np.ndarray, dict[range, str]]:
    """Reads what is done, of the batches of one process or of all, as every chunk has a checksum.

    Returns:
        Whether a sample is done, and by the samples of a batch that is damaged, what is wrong with it.
    """
    arrays = {name: _open_array(kvstore, name, fill_missing_data_reads=name == _DONE) for name in names}
    done, damaged = np.zeros(arrays[_DONE].shape, bool), {}
    size = arrays[_DONE].chunk_layout.read_chunk.shape[0]
    batches = [range(start, min(start + size, len(done))) for start in range(0, len(done), size)]
    for batch in batches if process is None else batches[process :: jax.process_count()]:
        place = slice(batch.start, batch.stop)
        try:
            done[place] = arrays[_DONE][place].read().result()
            if done[place].any():
                for future in [array[place].read() for array in arrays.values()]:
                    future.result()
        except (ValueError, NotImplementedError) as error:
            if str(error).startswith(_NO_DAMAGE):
                raise
            done[place], damaged[batch] = False, str(error)
    return done, damaged


def _in_words(damaged: Mapping[range, str]) -> str:
    batches = ", ".join(f"{batch.start} to {batch.stop - 1}" for batch in itertools.islice(damaged, 5))
    more = f" and {len(damaged) - 5} more batches" if len(damaged) > 5 else ""
    return f"the samples {batches}{more} cannot be read ({next(iter(damaged.values()))})"


def _grown(array: Any, length: int) -> Any:
    """Makes room for samples; other processes may do so at the same time."""
    while (array := array.resolve().result()).shape[0] < length:
        try:
            return array.resize(exclusive_max=(length, *array.shape[1:]), expand_only=True).result()
        except ValueError:
            if array.resolve().result().shape[0] < length:  # else another process made more room
                raise
    return array


# What identifies a run.


def _named(tree: Any) -> dict[str, Any]:
    with_paths = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in with_paths}


def _describe(tree: Any) -> str:
    named = _named(tree).items()
    return ", ".join(" ".join(filter(None, (name, f"{leaf.dtype}{list(leaf.shape)}"))) for name, leaf in named)


def _without_addresses(text: str) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def _digest(tree: Any) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(_hash(tree)), np.uint8)


def _hash(tree: Any) -> str:
    """The SHA-256 of the arrays in a pytree; the same in every process."""
    digest = hashlib.sha256()
    for name, leaf in _named(tree).items():
        digest.update(" ".join((name, *array_digest(leaf))).encode())
    return digest.hexdigest()
