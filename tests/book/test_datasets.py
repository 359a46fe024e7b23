"""Data sets: prepared from good, damaged, absent and interrupted originals."""

import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from lrp_book import datasets
from lrp_book.datasets import Split, as_float, mnist
from lrp_book.errors import DatasetError

NUMBER = {"train": 60, "test": 40}
# A few images, so that preparing takes a moment; the files are still the real, checked ones.
FEW_IMAGES = """
from lrp_book import datasets
read = datasets._read_idx_files
def read_few(builder, file_of):
    return {name: datasets.Split(*(array[:{number}[name]] for array in split))
            for name, split in read(builder, file_of).items()}
datasets._ORIGINALS["mnist"] = read_few
""".replace("{number}", repr(NUMBER))


@pytest.fixture
def few_images(monkeypatch):
    monkeypatch.setattr(datasets, "_ORIGINALS", dict(datasets._ORIGINALS))
    exec(FEW_IMAGES, {})


@pytest.fixture
def carried_files(monkeypatch, tmp_path):
    """A copy of the original files that a test may damage."""
    copy = tmp_path / "carried"
    shutil.copytree(datasets.DATA / "mnist", copy / "mnist")
    monkeypatch.setattr(datasets, "DATA", copy)
    return copy / "mnist"


def everything_in(directory):
    """What a failed preparation leaves, besides the empty folders and the lock of the downloads."""
    return [path for path in Path(directory).rglob("*") if path.is_file() and path.suffix != ".lock"]


def run_python(code, **options):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, **options)


def test_original_files_hold_mnist(tmp_path):
    builder = datasets._builder("mnist", tmp_path)
    files = datasets.DATA / "mnist"
    splits = datasets._read_idx_files(builder, lambda url: files / url.rpartition("/")[2])
    assert splits["train"].images.shape == (60000, 28, 28, 1)
    assert splits["test"].images.shape == (10000, 28, 28, 1)
    assert splits["train"].labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert splits["test"].labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert splits["train"].images.mean() == pytest.approx(33.3184, abs=1e-4)


def test_arrays(few_images, tmp_path):
    digits = mnist(data_dir=tmp_path)
    assert digits.name == "mnist"
    assert digits.class_names == tuple("0123456789")
    for name, split in (("train", digits.train), ("test", digits.test)):
        assert split.images.shape == (NUMBER[name], 28, 28, 1)
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int32)
        assert split.labels.shape == (NUMBER[name],)
    assert digits.train.images.max() == 255


def test_every_image_keeps_its_label(few_images, tmp_path):
    digits = mnist(data_dir=tmp_path)
    files = datasets.DATA / "mnist"
    originals = datasets._ORIGINALS["mnist"](
        datasets._builder("mnist", tmp_path), lambda url: files / url.rpartition("/")[2]
    )

    def pairs(split):
        return sorted((image.tobytes(), int(label)) for image, label in zip(*split, strict=True))

    assert pairs(digits.train) == pairs(originals["train"])
    assert pairs(digits.test) == pairs(originals["test"])


def test_tensorflow_datasets_reads_the_prepared_copy(few_images, tmp_path):
    import tensorflow_datasets as tfds

    digits = mnist(data_dir=tmp_path)
    source = tfds.data_source("mnist", data_dir=tmp_path, download=False)
    assert {split: len(source[split]) for split in source} == NUMBER
    for index, example in enumerate(source["test"]):
        np.testing.assert_array_equal(example["image"], digits.test.images[index])
        assert example["label"] == digits.test.labels[index]


def test_default_directory_is_that_of_tensorflow_datasets_and_tensorflow_is_not_imported(tmp_path):
    code = """
import sys, warnings
warnings.simplefilter("error")
digits = datasets.mnist()
assert "tensorflow" not in sys.modules
import tensorflow_datasets as tfds
assert len(tfds.data_source("mnist", download=False)["test"]) == len(digits.test.labels)
"""
    result = run_python(FEW_IMAGES + code, env=os.environ | {"TFDS_DATA_DIR": str(tmp_path)})
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "mnist").is_dir()
    assert result.stdout == ""
    assert "Preparing mnist" in result.stderr  # the progress bar
    assert "OpenCV" not in result.stderr


def test_second_call_reads_the_same_arrays_without_preparing(few_images, tmp_path, monkeypatch, capsys):
    first = mnist(data_dir=tmp_path)
    capsys.readouterr()
    monkeypatch.setattr(datasets, "_ORIGINALS", {"mnist": None})
    second = mnist(data_dir=tmp_path)
    np.testing.assert_array_equal(first.train.images, second.train.images)
    np.testing.assert_array_equal(first.train.labels, second.train.labels)
    assert "".join(capsys.readouterr()) == ""


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:5000])])
def test_arrays_beside_the_prepared_copy_can_be_lost(few_images, tmp_path, damage):
    first = mnist(data_dir=tmp_path)
    for cache in tmp_path.rglob("*.npz"):
        damage(cache)
    second = mnist(data_dir=tmp_path)
    np.testing.assert_array_equal(first.test.images, second.test.images)
    np.testing.assert_array_equal(first.test.labels, second.test.labels)


def swap_splits(folder):
    train, test = (next(folder.rglob(f"mnist-{split}.npz")) for split in ("train", "test"))
    train.rename(folder / "kept")
    test.rename(train)
    (folder / "kept").rename(test)


def put_a_trap(folder):
    """Arrays of objects, which NumPy keeps as a pickle that runs code when it is read."""

    class Trap:
        def __reduce__(self):
            return Path.touch, (folder / "touched",)

    for cache in folder.rglob("*.npz"):
        np.savez(cache, images=np.array([Trap()], object), labels=np.array([Trap()], object))


def change_a_pixel(folder):
    for cache in folder.rglob("*.npz"):
        with np.load(cache) as arrays:
            images, labels = arrays["images"], arrays["labels"]
        images[3, 14, 14] ^= 1
        np.savez(cache, images=images, labels=labels)


def change_a_label(folder):
    for cache in folder.rglob("*.npz"):
        with np.load(cache) as arrays:
            images, labels = arrays["images"], arrays["labels"]
        labels[-1] = (labels[-1] + 1) % 10
        np.savez(cache, images=images, labels=labels)


@pytest.mark.parametrize("change", [swap_splits, put_a_trap, change_a_pixel, change_a_label])
def test_other_arrays_beside_the_prepared_copy_are_not_taken(few_images, tmp_path, change):
    first = mnist(data_dir=tmp_path)
    change(tmp_path)
    second = mnist(data_dir=tmp_path)
    for one, other in zip((*first.train, *first.test), (*second.train, *second.test), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not (tmp_path / "touched").exists()


def test_truncated_prepared_copy_is_reported(few_images, tmp_path):
    mnist(data_dir=tmp_path)
    for cache in tmp_path.rglob("*.npz"):
        cache.unlink()
    (records,) = tmp_path.rglob("mnist-train.array_record*")
    records.write_bytes(records.read_bytes()[:1000])
    with pytest.raises(DatasetError, match=rf"mnist in {records.parent} cannot be read .*Delete that directory"):
        mnist(data_dir=tmp_path)


def test_prepared_copy_with_other_images_is_reported(few_images, tmp_path, monkeypatch):
    mnist(data_dir=tmp_path / "one")
    monkeypatch.setitem(
        datasets._ORIGINALS,
        "mnist",
        lambda builder, file_of, complete=datasets._ORIGINALS["mnist"]: {
            name: Split(255 - split.images, split.labels) for name, split in complete(builder, file_of).items()
        },
    )
    mnist(data_dir=tmp_path / "other")
    (records,), (others,) = ((tmp_path / name).rglob("mnist-test.array_record*") for name in ("one", "other"))
    for name in ("mnist-test.array_record-00000-of-00001", "mnist-test.npz"):
        shutil.copy(others.parent / name, records.parent / name)
    with pytest.raises(
        DatasetError, match=rf"{records.parent} is damaged: the SHA-256 of its test images and labels is"
    ):
        mnist(data_dir=tmp_path / "one")
    (records.parent / "mnist-test.sha256").write_bytes(b"\xff\xfe")  # a sum that is damaged itself
    with pytest.raises(DatasetError, match=r"but .* was noted\. Delete that directory to prepare it again"):
        mnist(data_dir=tmp_path / "one")


def test_copy_that_others_prepared_gets_its_sums(few_images, tmp_path):
    first = mnist(data_dir=tmp_path)
    for file in [*tmp_path.rglob("*.npz"), *tmp_path.rglob("*.sha256")]:
        file.unlink()
    for _ in range(2):
        np.testing.assert_array_equal(mnist(data_dir=tmp_path).train.images, first.train.images)
    assert len([*tmp_path.rglob("*.npz")]) == len([*tmp_path.rglob("*.sha256")]) == 2


@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        lambda path: path.write_bytes(path.read_bytes()[:100]),
        lambda path: path.write_bytes(b"\xff" + path.read_bytes()),
    ],
    ids=["lost", "truncated", "not UTF-8"],
)
def test_damaged_description_is_reported(few_images, tmp_path, damage):
    mnist(data_dir=tmp_path)
    (description,) = tmp_path.rglob("dataset_info.json")
    damage(description)
    with pytest.raises(DatasetError, match=r"(?s)prepared copy of mnist in .* cannot be read .*Delete that directory"):
        mnist(data_dir=tmp_path)


@pytest.mark.parametrize("place", ["file", "file/data"])
def test_file_in_the_place_of_the_data_folder(few_images, tmp_path, place):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DatasetError, match=rf"mnist cannot be prepared in {tmp_path / place} .*pass a data_dir"):
        mnist(data_dir=tmp_path / place)


def test_read_only_data_folder(few_images, tmp_path, monkeypatch):
    def refuse(self, *arguments, **options):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(DatasetError, match=r"cannot be prepared in .* \(PermissionError: .*a data_dir that can be"):
        mnist(data_dir=tmp_path / "data")


def test_full_disk(few_images, tmp_path):
    code = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    datasets.mnist(data_dir=sys.argv[1])
except datasets.DatasetError as error:
    print(error)
"""
    result = run_python(FEW_IMAGES + code.replace("sys.argv[1]", repr(str(tmp_path))))
    assert f"mnist cannot be prepared in {tmp_path}" in result.stdout, result.stderr
    assert everything_in(tmp_path) == []
    assert len(mnist(data_dir=tmp_path).train.labels) == NUMBER["train"]


def test_copy_prepared_for_tensorflow_is_reported(few_images, tmp_path):
    mnist(data_dir=tmp_path)
    for file in [*tmp_path.rglob("*.npz"), *tmp_path.rglob("*.array_record*")]:
        file.unlink()
    (description,) = tmp_path.rglob("dataset_info.json")
    description.write_text(json.dumps(json.loads(description.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(DatasetError, match=r"of a format that needs TensorFlow.*pass another data_dir"):
        mnist(data_dir=tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:1000] + bytes([data[1000] ^ 1]) + data[1001:],
        lambda data: b"",
    ],
    ids=["truncated", "one bit flipped", "empty"],
)
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"])
def test_damaged_original_file_is_named(few_images, carried_files, tmp_path, name, damage):
    file = carried_files / name
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DatasetError, match=f"{file} is damaged.*Restore it.*or delete it"):
        mnist(data_dir=tmp_path / "data")
    assert everything_in(tmp_path / "data") == []


def test_absent_original_file_is_downloaded(few_images, carried_files, tmp_path, monkeypatch):
    """The download itself is replaced: what is tested is that one is asked for, and checked."""
    import requests
    from tensorflow_datasets.core.download import downloader

    absent = carried_files / "train-labels-idx1-ubyte.gz"
    contents, asked = absent.read_bytes(), []
    absent.unlink()

    class Response(io.BytesIO):
        headers, url = {}, "https://storage.googleapis.com/cvdf-datasets/mnist/" + absent.name

    def open_url(url, **options):
        asked.append(url)
        response = Response(contents)
        return downloader.contextlib.nullcontext((response, iter([response.getvalue()])))

    monkeypatch.setattr(requests, "head", lambda url, timeout: None)
    monkeypatch.setattr(downloader, "_open_url", open_url)
    assert len(mnist(data_dir=tmp_path / "good").train.labels) == NUMBER["train"]
    assert asked == [Response.url]

    contents = contents[:-1]
    with pytest.raises(DatasetError, match=rf"The download of {Response.url} is damaged.*Try again"):
        mnist(data_dir=tmp_path / "bad")
    assert not (tmp_path / "bad" / "mnist").exists()


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10"])
def test_without_a_network_there_is_a_clear_error_at_once(name, tmp_path, monkeypatch):
    # A proxy that refuses connections: the same as no network, also where there is one.
    for variable in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    start = time.perf_counter()
    with pytest.raises(DatasetError, match=r"cannot be downloaded \(ProxyError\). Check the connection"):
        mnist(name, data_dir=tmp_path)
    assert time.perf_counter() - start < 10
    assert everything_in(tmp_path) == []


def test_data_set_without_carried_files_does_not_take_those_of_another(few_images, tmp_path, monkeypatch):
    """Fashion-MNIST has the file names of MNIST."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    mnist(data_dir=tmp_path)
    with pytest.raises(DatasetError, match=r"fashion-mnist.*cannot be downloaded"):
        mnist("fashion_mnist", data_dir=tmp_path)


def test_unknown_name_lists_the_names():
    with pytest.raises(DatasetError, match=r"no data set 'mnits'\. Choose one of mnist, fashion_mnist, cifar10"):
        mnist("mnits")


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, MemoryError])
def test_interrupted_preparation_leaves_nothing(few_images, tmp_path, monkeypatch, interruption):
    def interrupted(builder, file_of):
        class Labels(np.ndarray):
            def __iter__(self):
                yield from np.asarray(self)[:30]
                raise interruption

        split = complete(builder, file_of)["train"]
        return {"train": Split(split.images, split.labels.view(Labels))}

    complete = datasets._ORIGINALS["mnist"]
    monkeypatch.setitem(datasets._ORIGINALS, "mnist", interrupted)
    with pytest.raises(interruption):
        mnist(data_dir=tmp_path)
    assert everything_in(tmp_path) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["downloads"]

    monkeypatch.setitem(datasets._ORIGINALS, "mnist", complete)
    assert len(mnist(data_dir=tmp_path).train.labels) == NUMBER["train"]


def test_killed_preparation_is_started_anew(few_images, tmp_path):
    code = """
import sys, time
cached_split = datasets._cached_split
def last_step(builder, split):
    if split == "test":
        print("almost done", flush=True)
        time.sleep(60)
    return cached_split(builder, split)
datasets._cached_split = last_step
datasets.mnist(data_dir=sys.argv[1])
"""
    process = subprocess.Popen(
        [sys.executable, "-c", FEW_IMAGES + code, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout.readline() == b"almost done\n"
    assert not (tmp_path / "mnist").exists()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(mnist(data_dir=tmp_path).train.labels) == NUMBER["train"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["downloads", "mnist"]


def test_two_processes_prepare_once(few_images, tmp_path):
    code = FEW_IMAGES + "import sys; print(len(datasets.mnist(data_dir=sys.argv[1]).train.labels))"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [output for output, _ in outputs] == [f"{NUMBER['train']}\n"] * 2, outputs
    assert sum("Preparing" in errors for _, errors in outputs) == 1


def test_waiting_for_the_lock(few_images, tmp_path):
    (tmp_path / "downloads").mkdir()
    results = []
    thread = threading.Thread(target=lambda: results.append(mnist(data_dir=tmp_path)))
    with datasets._exclusive(tmp_path / "downloads" / ".mnist.lock"):
        thread.start()
        thread.join(timeout=1)
        assert thread.is_alive()
    thread.join(timeout=60)
    assert len(results) == 1


def test_read_only_prepared_copy(few_images, tmp_path, monkeypatch):
    first = mnist(data_dir=tmp_path)
    for cache in tmp_path.rglob("*.npz"):
        cache.unlink()

    def refuse(self, mode="r", **options):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    second = mnist(data_dir=tmp_path)
    np.testing.assert_array_equal(first.test.images, second.test.images)
    assert list(tmp_path.rglob("*.npz")) == []


def test_cifar10(tmp_path, monkeypatch):
    """A small archive in the format of the original: prepared, and read back with names and colours."""
    random = np.random.default_rng(0)
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    batches = {f"data_batch_{number}.bin": 4 for number in range(1, 6)} | {"test_batch.bin": 3}
    expected = {}
    archive_path = tmp_path / "cifar-10-binary.tar.gz"
    with tarfile.open(archive_path, "w:gz") as archive:

        def add(name, contents):
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(contents)
            archive.addfile(member, io.BytesIO(contents))

        folder = tarfile.TarInfo("cifar-10-batches-bin")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        add("batches.meta.txt", ("\n".join(names) + "\n\n").encode())
        add("readme.html", b"<html></html>")
        for name, number in reversed(batches.items()):
            images = random.integers(0, 256, (number, 32, 32, 3), dtype=np.uint8)
            labels = random.integers(0, 10, number)
            expected[name] = [(image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)]
            planes = [
                bytes([label]) + image.transpose(2, 0, 1).tobytes() for image, label in zip(images, labels, strict=True)
            ]
            add(name, b"".join(planes))

    monkeypatch.setattr(datasets, "_original_file", lambda manager, carried, url: archive_path)
    pictures = mnist("cifar10", data_dir=tmp_path / "data")
    assert pictures.class_names == tuple(names)
    assert pictures.train.images.shape == (20, 32, 32, 3)
    assert pictures.test.images.shape == (3, 32, 32, 3)

    def pairs(split):
        return sorted((image.tobytes(), int(label)) for image, label in zip(*split, strict=True))

    test = expected.pop("test_batch.bin")
    assert pairs(pictures.test) == sorted(test)
    assert pairs(pictures.train) == sorted(itertools.chain(*expected.values()))

    import tensorflow_datasets as tfds

    source = tfds.data_source("cifar10", data_dir=tmp_path / "data", download=False)
    assert sorted(example["id"] for example in source["test"]) == [b"test_00000", b"test_00001", b"test_00002"]


def test_as_float():
    images = np.array([[0, 128, 255]], np.uint8)
    result = as_float(images)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, [[0, 128 / 255, 1]], rtol=1e-7)


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match=r"pip install tensorflow-datasets \(the extra 'book' brings it\)"):
        mnist()
