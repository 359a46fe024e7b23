"""The Zarr store of explanations: arrays with a chunk for each batch, and what is known of the run that writes them."""

import contextlib
import hashlib
import itertools
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax.errors import LRPError, LRPWarning, StoreError, import_extra

_DONE = "done"
_DIGEST = "digest"  # of each sample and its target, 32 bytes
_CHECKS = "checks"  # what was found in the batch of a sample
_GROUP = "zarr.json"  # the key under which Zarr keeps the metadata of a group
_NO_DAMAGE = (  # what TensorStore says of a chunk that it cannot reach; of a bad one it says many things
    *("PERMISSION_DENIED", "UNAUTHENTICATED", "UNAVAILABLE", "DEADLINE_EXCEEDED"),
    *("RESOURCE_EXHAUSTED", "ABORTED", "CANCELLED", "INTERNAL"),
)


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
        >>> from lrp_jax.explain_dataset import explain_dataset, open_explanations
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
    return public_arrays(store)


class Group:
    """The Zarr group of a run: arrays by name, and for each sample whether all of it was written.

    Args:
        store: Where it is.
        fingerprint: What identifies the run.
        shapes: The arrays that are stored of one sample, by name, with a dimension for the samples.
        checks: What is noted of each batch, a pytree of numbers.
        number: The number of samples, None if the group grows.
        batch_size: The number of samples in a chunk.
    """

    def __init__(
        self,
        store: str | os.PathLike[str],
        fingerprint: dict[str, str],
        shapes: Mapping[str, jax.ShapeDtypeStruct],
        checks: Any,
        number: int | None,
        batch_size: int,
    ) -> None:
        self._store = store
        self._checks = jax.tree.structure(checks)
        self._grows = number is None
        self._writing: tuple[slice, Sequence[Any]] | None = None
        internal = {
            _DIGEST: jax.ShapeDtypeStruct((1, hashlib.sha256().digest_size), np.uint8),
            _CHECKS: jax.ShapeDtypeStruct((1, len(jax.tree.leaves(checks))), np.float64),
            _DONE: jax.ShapeDtypeStruct((1,), np.bool),
        }
        with self._writes():
            kvstore = _open_kvstore(store)
            _claim(kvstore, store, fingerprint, sorted([_DONE, *shapes]))
            self._arrays = {
                name: self._array(kvstore, name, (number or 0, *shape.shape[1:]), shape.dtype, batch_size)
                for name, shape in {**shapes, **internal}.items()
            }
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

    def _array(self, kvstore: Any, name: str, shape: tuple[int, ...], dtype: Any, batch_size: int) -> Any:
        """An array of the group, which is created unless it is there."""
        _create_array(kvstore, name, shape, dtype, batch_size)
        array = _open_array(kvstore, name, recheck_cached_metadata=True, store_data_equal_to_fill_value=True)
        found = array.shape[self._grows :], array.dtype.numpy_dtype
        if found != (shape[self._grows :], np.dtype(dtype)):
            reason = f"it is {found[1]} of shape {array.shape}, expected {dtype} of shape {shape}"
            raise StoreError(_metadata_damaged(self._store, name, reason))
        return array

    def holds(self, indices: range) -> bool:
        """Whether all these samples were there when the run began."""
        done = self._done[indices.start : indices.stop]
        return len(done) == len(indices) and bool(done.all())

    def checks_of(self, indices: range) -> Any:
        """What was noted of a batch that the group holds."""
        with self._reads():
            return jax.tree.unflatten(self._checks, self._arrays[_CHECKS][indices.start].read().result())

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

    def write(self, indices: range, explained: Mapping[str, Any], digests: np.ndarray, checks: Any) -> None:
        """Begins to write a batch, without what filled it up, after the batch before it.

        Args:
            indices: The samples.
            explained: Their arrays.
            digests: The digest of each.
            checks: What is noted of the batch.
        """
        self.finish()
        place = slice(indices.start, indices.stop)
        row = np.array(jax.tree.leaves(checks), np.float64)
        stored = {**explained, _DIGEST: digests, _CHECKS: np.tile(row, (len(indices), 1))}
        values = {name: np.asarray(value)[: len(indices)] for name, value in stored.items()}
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


def public_arrays(store: str | os.PathLike[str]) -> dict[str, Any]:
    """The arrays for users, by name, as `open_explanations` returns them."""
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
