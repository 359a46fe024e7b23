"""Image data sets as plain arrays, read through tensorflow-datasets but without TensorFlow.

A data set is prepared once, as an array_record copy in the data directory of tensorflow-datasets,
where `tensorflow_datasets.data_source` finds it too. The builders of tensorflow-datasets call
TensorFlow to unpack archives and to encode images; the ones made here read the same original files
with the standard library and Pillow.
"""

import contextlib
import fcntl
import functools
import gzip
import hashlib
import io
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lrp_book import DATA
from lrp_book.errors import DatasetError
from lrp_jax.core.arguments import as_numpy, as_path, within_memory
from lrp_jax.errors import ArrayError, LRPError, import_extra


class Split(NamedTuple):
    """One part of a data set.

    Attributes:
        images: uint8 array of shape `(number, height, width, channels)`, values 0 to 255.
        labels: int32 array of shape `(number,)`, the index of each image's class.
    """

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Dataset:
    """Labelled images, split into training and test data.

    Attributes:
        name: Name of the data set in tensorflow-datasets.
        train: The training data.
        test: The test data.
        class_names: Name of each class, in the order of the labels.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]


def mnist(name: str = "mnist", *, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Returns MNIST, or another small image data set, as arrays.

    The first call prepares the data set and shows its progress: from the original files in
    `book/data/<name>` if they are there, else from a download. Either way
    tensorflow-datasets checks size and SHA-256 of each file. Later calls only read, and compare
    what they read with a SHA-256 that the first one noted. Images come in the order of
    tensorflow-datasets, which is shuffled once and for all.

    Args:
        name: `"mnist"` (LeCun, Cortes and Burges), `"fashion_mnist"` (Xiao et al., 2017) or
            `"cifar10"` (Krizhevsky, 2009).
        data_dir: Where the prepared copy is, or is put. The default is that of tensorflow-datasets:
            the environment variable `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.

    Returns:
        The training and test data: uint8 images of shape `(number, height, width, channels)` with
        int32 labels.

    Raises:
        DatasetError: If the name is unknown, an original file or the prepared copy is damaged, the
            data set has to be downloaded and cannot be, or `data_dir` cannot be written.
        MissingExtraError: If tensorflow-datasets is not installed.

    Example:
        >>> digits = mnist()
        >>> digits.train.images.shape, digits.test.labels.shape
        ((60000, 28, 28, 1), (10000,))
    """
    if not isinstance(name, str) or name not in _ORIGINALS:
        raise DatasetError(f"There is no data set {name!r}. Choose one of {', '.join(_ORIGINALS)}.")
    data_dir = None if data_dir is None else as_path(data_dir, "data_dir", DatasetError)
    with _only_errors_logged():
        builder = _opened(name, data_dir)
        if not builder.data_path.exists():
            _prepare(builder)
            builder = _opened(name, data_dir)
        train, test = (_cached_split(builder, split) for split in ("train", "test"))
    return Dataset(name, train, test, class_names=tuple(builder.info.features["label"].names))


def as_float(images: np.ndarray) -> np.ndarray:
    """Returns images in the form that the networks take.

    Args:
        images: uint8 array of any shape, values 0 to 255.

    Returns:
        float32 array of the same shape, values in [0, 1].

    Raises:
        ArrayError: If `images` are no numbers.

    Example:
        >>> as_float(np.array([0, 51, 255], np.uint8)).round(6).tolist()
        [0.0, 0.20000000298023224, 1.0]
    """
    images = as_numpy(images, "images", ArrayError)
    with within_memory("images", ArrayError):
        return images.astype(np.float32) / np.float32(255)


def _builder(dataset_name: str, data_dir: str | os.PathLike[str] | None) -> Any:
    """Returns the official builder, with the steps that would call TensorFlow replaced."""
    official: Any = import_extra("tensorflow_datasets", "book").builder_cls(dataset_name)

    class Builder(official, skip_registration=True):  # type: ignore[call-arg]  # of the builder
        name = dataset_name

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
            file_of = functools.partial(_original_file, dl_manager, DATA / dataset_name)
            splits = _ORIGINALS[dataset_name](self, file_of)
            tqdm = import_extra("tqdm", "book").tqdm
            total = sum(len(split.labels) for split in splits.values())
            progress = tqdm(total=total, desc=f"Preparing {dataset_name}", unit=" images")
            return {name: self._examples(name, split, progress) for name, split in splits.items()}

        def _examples(self, split_name: str, split: Split, progress: Any) -> Iterator[Any]:
            pillow = import_extra("PIL.Image", "book")
            for index, (image, label) in enumerate(zip(*split, strict=True)):
                image = image[..., 0] if image.shape[-1] == 1 else image
                example = {"image": pillow.fromarray(image), "label": int(label)}
                if "id" in self.info.features:
                    example["id"] = f"{split_name}_{index:05d}"
                yield index, example
                progress.update()

    return Builder(data_dir=Path(data_dir).expanduser() if data_dir is not None else None)


def _opened(dataset_name: str, data_dir: str | os.PathLike[str] | None) -> Any:
    """Returns the builder, which reads the description of the prepared copy if there is one."""
    try:
        return _builder(dataset_name, data_dir)
    except LRPError:
        raise
    except Exception as error:  # of the JSON, of its contents, of the names of the classes
        place = "the default directory of tensorflow-datasets" if data_dir is None else data_dir
        raise DatasetError(
            f"The prepared copy of {dataset_name} in {place} cannot be read ({type(error).__name__}: {error}). Delete "
            f"that directory to prepare it again, or pass another data_dir."
        ) from error


def _prepare(builder: Any) -> None:
    """Puts the prepared copy where `builder` looks for it: complete or not at all."""
    try:
        _prepare_in_place(builder)
    except (OSError, RuntimeError) as error:  # as which a writer of records raises it
        raise DatasetError(
            f"{builder.name} cannot be prepared in {builder.data_dir_root} ({type(error).__name__}: {error}). Make "
            f"room there, or pass a data_dir that can be written."
        ) from error


def _prepare_in_place(builder: Any) -> None:
    tfds = import_extra("tensorflow_datasets", "book")
    root, target = Path(builder.data_dir_root), Path(builder.data_path)
    downloads, staging = root / "downloads", root / f".preparing-{builder.name}"
    downloads.mkdir(parents=True, exist_ok=True)
    with _exclusive(downloads / f".{builder.name}.lock"):
        if target.exists():  # another process was faster
            return
        shutil.rmtree(staging, ignore_errors=True)  # left by a process that was killed
        try:
            staged = _builder(builder.name, staging)
            with _quiet(tfds):
                staged.download_and_prepare(
                    download_dir=downloads,
                    download_config=tfds.download.DownloadConfig(
                        manual_dir=DATA / builder.name,
                        try_download_gcs=False,
                        force_checksums_validation=True,
                    ),
                    file_format="array_record",
                )
            for split in staged.info.splits:
                _cached_split(staged, split)
            target.parent.mkdir(exist_ok=True)
            Path(staged.data_path).rename(target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _original_file(download_manager: Any, carried_files: Path, url: str) -> Path:
    """Returns the path of an original file, carried or downloaded, with the right checksum."""
    tfds = import_extra("tensorflow_datasets", "book")
    requests = import_extra("requests", "book")
    carried = carried_files / url.rpartition("/")[2]
    try:
        if carried.exists():
            return Path(download_manager.download(url))
        requests.head(url, timeout=10)  # tensorflow-datasets would try for minutes
        tfds.enable_progress_bar()
        path = Path(download_manager.download(url))
        tfds.disable_progress_bar()
        return path
    except tfds.download.download_manager.NonMatchingChecksumError as error:
        if carried.exists():
            raise DatasetError(
                f"{carried} is damaged: its size or SHA-256 is not the one that "
                f"tensorflow-datasets expects. Restore it (git checkout -- {carried.name}), "
                f"or delete it to have it downloaded."
            ) from error
        raise DatasetError(
            f"The download of {url} is damaged: its size or SHA-256 is not the one that "
            f"tensorflow-datasets expects. Try again."
        ) from error
    except (tfds.download.DownloadError, requests.RequestException) as error:
        raise DatasetError(
            f"{url} is needed to prepare the data set and cannot be downloaded "
            f"({type(error).__name__}). Check the connection to the network, or pass a data_dir "
            f"where the data set has been prepared before."
        ) from error


# One function a format: from the original files to arrays.

_FileOf = Callable[[str], Path]  # the local path of the file at a URL


def _read_idx_files(builder: Any, file_of: _FileOf) -> dict[str, Split]:
    """Reads the four files of MNIST and its relatives: http://yann.lecun.com/exdb/mnist/."""

    def values(file_name: str, header: int) -> np.ndarray:
        with gzip.open(file_of(builder.URL + file_name)) as file:
            return np.frombuffer(file.read(), np.uint8, offset=header)

    def split(prefix: str) -> Split:
        labels = values(f"{prefix}-labels-idx1-ubyte.gz", header=8)
        images = values(f"{prefix}-images-idx3-ubyte.gz", header=16)
        return Split(images.reshape(len(labels), *builder.info.features["image"].shape), labels)

    return {"train": split("train"), "test": split("t10k")}


def _read_cifar10_archive(builder: Any, file_of: _FileOf) -> dict[str, Split]:
    """Reads the binary version of CIFAR-10: https://www.cs.toronto.edu/~kriz/cifar.html."""
    height, width, channels = builder.info.features["image"].shape

    def split(names: list[str]) -> Split:
        # One record: a byte for the label, then the red, the green and the blue plane.
        records = np.frombuffer(b"".join(contents[name] for name in names), np.uint8)
        records = records.reshape(-1, 1 + channels * height * width)
        planes = records[:, 1:].reshape(-1, channels, height, width)
        return Split(np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), records[:, 0])

    contents: dict[str, bytes] = {}
    url = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    with tarfile.open(file_of(url)) as archive:
        for member in archive:
            if (file := archive.extractfile(member)) is not None:
                contents[Path(member.name).name] = file.read()
    builder.info.features["label"].names = contents["batches.meta.txt"].decode().split()
    return {
        "train": split([f"data_batch_{number}.bin" for number in range(1, 6)]),
        "test": split(["test_batch.bin"]),
    }


_ORIGINALS: dict[str, Callable[[Any, _FileOf], dict[str, Split]]] = {
    "mnist": _read_idx_files,
    "fashion_mnist": _read_idx_files,
    "cifar10": _read_cifar10_archive,
}


def _cached_split(builder: Any, split: str) -> Split:
    """Returns a split, from the arrays beside the prepared copy if they are there.

    Decoding tens of thousands of small images takes seconds, reading the arrays a fraction of one.
    """
    cache = Path(builder.data_path) / f"{builder.name}-{split}.npz"
    noted = _noted_sum(cache.with_suffix(".sha256"))
    try:
        with np.load(cache, allow_pickle=False) as arrays:
            result = Split(arrays["images"], arrays["labels"])
        if _is_split(result, builder, split) and _sum(result) == noted:
            return result
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        pass
    result = _decoded_split(builder, split)
    found = _sum(result)
    if noted not in (None, found):
        raise DatasetError(
            f"The prepared copy of {builder.name} in {builder.data_path} is damaged: the SHA-256 of its {split} images "
            f"and labels is {found}, but {noted} was noted. Delete that directory to prepare it again."
        )
    partial = cache.with_suffix(f".{os.getpid()}.partial")
    with contextlib.suppress(OSError):  # the prepared copy may be read-only
        partial.write_text(found)
        partial.replace(cache.with_suffix(".sha256"))
        with partial.open("wb") as file:
            np.savez(file, images=result.images, labels=result.labels)
        partial.replace(cache)
    return result


def _noted_sum(file: Path) -> str | None:
    with contextlib.suppress(FileNotFoundError, PermissionError):
        return file.read_text(errors="replace")
    return None


def _sum(split: Split) -> str:
    digest = hashlib.sha256()
    for array in split:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _is_split(arrays: Split, builder: Any, split: str) -> bool:
    number, shape = builder.info.splits[split].num_examples, builder.info.features["image"].shape
    found = [(array.shape, array.dtype) for array in arrays]
    return found == [((number, *shape), np.uint8), ((number,), np.int32)]


def _decoded_split(builder: Any, split: str) -> Split:
    tqdm = import_extra("tqdm", "book").tqdm
    try:
        number = builder.info.splits[split].num_examples
        batches = range(0, number, 1000)
        source = builder.as_data_source(split)
        examples = [
            example
            for start in tqdm(batches, desc=f"Reading {split} images", leave=False)
            for example in source.__getitems__(range(start, min(start + 1000, number)))
        ]
    except Exception as error:
        raise DatasetError(
            f"The prepared copy of {builder.name} in {builder.data_path} cannot be read "
            f"({type(error).__name__}: {error}). It is damaged, or of a format that needs "
            f"TensorFlow. Delete that directory to prepare it again, or pass another data_dir."
        ) from error
    return Split(
        np.stack([example["image"] for example in examples]),
        np.array([example["label"] for example in examples], np.int32),
    )


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Lets one process at a time in, by a lock that the system frees if the process is killed."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _quiet(tfds: Any) -> Iterator[None]:
    """Silences the messages and bars of tensorflow-datasets; there is a bar of our own."""
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()


@contextlib.contextmanager
def _only_errors_logged() -> Iterator[None]:
    """Hides warnings of tensorflow-datasets, such as its advice to install OpenCV."""
    logging = import_extra("absl.logging", "book")
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
