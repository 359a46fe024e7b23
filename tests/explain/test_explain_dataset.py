"""`explain_dataset`: the maps of `relevance`, each once, on several devices, in several processes, after a kill."""

import functools
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from nightly import NIGHTLY

from lrp_book.datasets import Split
from lrp_jax import composites, relevance, rules
from lrp_jax.errors import InputError, LRPWarning, MissingExtraError, ModelError, StoreError
from lrp_jax.explain.devices import explain_batch, explain_shared
from lrp_jax.explain.models import split_model
from lrp_jax.explain.store import Group
from lrp_jax.explain_dataset import explain_dataset, open_explanations

ROOT = Path(__file__).parents[2]
COMPOSITE = composites.EpsilonGammaBox(0.0, 1.0)
PIXELS = np.random.default_rng(0).integers(0, 256, (21, 6, 6, 1), dtype=np.uint8)
IMAGES = PIXELS.astype(np.float32) / np.float32(255)
LABELS = np.arange(21) % 3


class Network:
    """A convolution, a relu and a dense layer, as a pytree."""

    def __init__(self, kernel, head):
        self.kernel, self.head = kernel, head

    def __call__(self, x):
        layout = ("NHWC", "HWIO", "NHWC")
        x = jax.nn.relu(jax.lax.conv_general_dilated(x, self.kernel, (2, 2), "SAME", dimension_numbers=layout))
        return x.reshape(len(x), -1) @ self.head


jax.tree_util.register_pytree_with_keys(
    Network,
    lambda network: ((("kernel", network.kernel), ("head", network.head)), None),
    lambda _, children: Network(*children),
)


def a_network(seed=1):
    kernel, head = jax.random.split(jax.random.key(seed))
    return Network(jax.random.normal(kernel, (3, 3, 1, 4)), 0.1 * jax.random.normal(head, (36, 3)))


class Source:
    """Random access that notes which samples were read; `at(index)` is called before each."""

    def __init__(self, at=lambda index: None):
        self.at, self.read = at, []

    def __len__(self):
        return len(PIXELS)

    def __getitem__(self, index):
        self.at(index)
        self.read.append(index)
        return {"image": PIXELS[index], "label": LABELS[index]}


def prepare(element):
    return element["image"].astype(np.float32) / np.float32(255)


def explain(source, store, target=None, rules=COMPOSITE, **options):
    options = {"prepare": prepare, "batch_size": 4, "progress": False, **options}
    return explain_dataset(a_network(), source, store, target, rules, **options)


def read(stored):
    return {name: array.read().result() for name, array in stored.items()}


def assert_explains(stored, target=None, composite=COMPOSITE):
    """Checks everything that is stored against `relevance`."""
    values, expected = read(stored), relevance(a_network(), IMAGES, target, composite)
    maps = np.moveaxis(expected.relevance, 1, 0) if isinstance(target, str) else expected.relevance
    np.testing.assert_allclose(values["relevance"], maps, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(values["output"], expected.output, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(values["done"], np.ones(len(IMAGES), bool))
    return values


@pytest.fixture
def store(tmp_path):
    return tmp_path / "maps"


@pytest.fixture
def written(monkeypatch):
    """The samples that are explained and written, as they come."""
    indices, write = [], Group.write

    def noting(self, batch, *found):
        indices.extend(batch)
        write(self, batch, *found)

    monkeypatch.setattr(Group, "write", noting)
    return indices


def test_another_gamma_compiles_nothing_and_is_another_run(tmp_path, compiled):
    composite = lambda gamma: composites.EpsilonGammaBox(0.0, 1.0, epsilon=gamma, gamma=gamma)
    for gamma in (0.1, 0.3, 0.5):
        stored = explain(Source(), tmp_path / str(gamma), 1, composite(gamma))
        if gamma == 0.1:
            compiled.clear()
    assert "explain_shared" not in compiled
    assert_explains(stored, 1, composite(0.5))
    with pytest.raises(StoreError, match="rules"):
        explain(Source(), tmp_path / "0.5", 1, composite(0.3))


def test_indexed_source_and_its_last_batch_are_compiled_once(store, compiled):
    stored = explain(Source(), store, batch_size=10)  # 21 samples: two batches of 10, as in no other test, and one of 1
    assert compiled.count("explain_shared") == 1
    values = assert_explains(stored)
    np.testing.assert_array_equal(values["target"], values["output"].argmax(-1))
    assert {name: value.dtype for name, value in values.items()} == {
        "relevance": np.float32,
        "output": np.float32,
        "target": np.int32,
        "done": bool,
    }


@pytest.mark.parametrize("kind", ["class", "label", "all", "mask", "function", "target_of"])
def test_targets(store, kind):
    targets = {
        "class": 2,
        "label": LABELS,
        "all": "all",
        "mask": np.linspace(-1, 1, 63, dtype=np.float32).reshape(21, 3),
        "function": lambda output: output[:, 0] - output[:, 1],
        "target_of": LABELS,
    }
    if kind == "target_of":
        stored = explain(Source(), store, target_of=lambda element: element["label"])
    else:
        stored = explain(Source(), store, targets[kind])
    values = assert_explains(stored, targets[kind])
    if kind in ("class", "label", "target_of"):
        np.testing.assert_array_equal(values["target"], np.broadcast_to(targets[kind], 21))
    else:
        assert "target" not in values


def test_arrays_and_iterables(store):
    assert_explains(explain(IMAGES, f"file://{store}/array", prepare=None))
    assert_explains(explain(jnp.asarray(IMAGES), store / "jax", LABELS, prepare=None), LABELS)
    assert_explains(explain((image for image in IMAGES), store / "generator", 1, prepare=None), 1)
    assert_explains(explain(iter(IMAGES), store / "labels", LABELS, prepare=None), LABELS)


def test_records_that_are_read_together(store):
    class Records(Source):
        def __getitems__(self, indices):  # as tensorflow-datasets has it
            return [super(Records, self).__getitem__(index) for index in indices]

        def __getitem__(self, index):
            raise AssertionError("one by one")

    assert_explains(explain(Records(), store))


def test_inputs_and_maps_that_are_pytrees_and_a_reduction(store):
    left, right = a_network(), a_network(2)
    model = lambda x: left(x["left"]) + right(x["right"])
    pairs = [{"left": left, "right": right} for left, right in zip(IMAGES, IMAGES[::-1], strict=True)]
    stored = explain_dataset(
        model,
        pairs,
        store,
        1,
        COMPOSITE,
        reduce=lambda maps: {**maps, "left": maps["left"].sum(-1).astype(jnp.bfloat16)},
        progress=False,
    )
    expected = relevance(model, {"left": IMAGES, "right": IMAGES[::-1]}, 1, COMPOSITE).relevance
    values = read(stored)
    assert values["relevance.left"].shape == (21, 6, 6)
    assert values["relevance.left"].dtype == jnp.bfloat16
    np.testing.assert_allclose(values["relevance.left"], expected["left"].sum(-1), rtol=1e-2, atol=1e-4)
    np.testing.assert_allclose(values["relevance.right"], expected["right"], rtol=1e-6, atol=1e-6)


def test_progress_bar_counts_own_samples(store, capsys):
    explain(Source(), store, progress=True)
    assert "21/21" in capsys.readouterr().err
    explain(Source(), store, progress=True)
    assert "21/21" in capsys.readouterr().err


class InterruptionError(Exception):
    pass


def fail_at(number):
    def at(index):
        if index == number:
            raise InterruptionError

    return at


@pytest.mark.parametrize("number", [0, 2, 4, 13, 20])
def test_interrupted_run_explains_only_what_is_not_done(store, written, number):
    with pytest.raises(InterruptionError):
        explain(Source(fail_at(number)), store, 1)
    done = open_explanations(store)["done"].read().result() if store.exists() else np.zeros(21, bool)
    assert number < 8 or done[: number // 4 * 4 - 4].all()  # all but the batch that was at work
    assert not done[number // 4 * 4 :].any()
    second = Source()
    written.clear()
    assert_explains(explain(second, store, 1), 1)
    assert written == np.flatnonzero(~done).tolist()
    compared = [index for index in np.flatnonzero(done) if index > 0]
    assert second.read == [0, *compared, *written]
    third = Source()
    written.clear()
    assert_explains(explain(third, store, 1), 1)
    assert third.read == [*range(21)]
    assert written == []


def test_batch_of_which_only_a_part_was_written_is_not_done(store, written, monkeypatch):
    class Failing:
        def __init__(self, array):
            self.array = array

        def __getitem__(self, place):
            if place.start == 8:
                self.array[8:10].write(np.float32(7)).result()
                raise InterruptionError
            return self.array[place]

    class FailingGroup(Group):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self._arrays["relevance"] = Failing(self._arrays["relevance"])

    with monkeypatch.context() as patch:
        patch.setattr("lrp_jax.explain_dataset.Group", FailingGroup)
        with pytest.raises(InterruptionError):
            explain(Source(), store)
    assert (open_explanations(store)["relevance"][8:10].read().result() == 7).all()
    written.clear()
    assert_explains(explain(Source(), store))
    assert written == [*range(8, 21)]


def test_interrupted_iterable(store, written):
    def elements(stop):
        for index in range(21):
            if index == stop:
                raise InterruptionError
            yield {"image": PIXELS[index]}

    with pytest.raises(InterruptionError):
        explain(elements(14), store)
    before = open_explanations(store)
    assert before["relevance"].shape == (8, 6, 6, 1)  # as long as what is done
    prepared = []
    explain(elements(None), store, prepare=lambda element: prepared.append(element) or prepare(element))
    assert len(prepared) == 1 + 21  # what is read again is compared
    assert written == [*range(8), *range(8, 21)]
    assert_explains(open_explanations(store))


def test_iterable_that_has_grown(store):
    explain([{"image": pixels} for pixels in PIXELS[:10]].__iter__(), store)
    assert open_explanations(store)["done"].shape == (10,)
    assert_explains(explain(iter(Source()[index] for index in range(21)), store))


def environment(devices=1, cache=None):
    keep = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    cached = {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    keep["PYTHONPATH"] = str(ROOT / "tests")
    return {**keep, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", **(cached if cache else {})}


def start(call, devices=1, cache=None):
    """Runs a function of this file in another process."""
    command = [sys.executable, "-c", f"from tests.explain.test_explain_dataset import *; {call}"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment(devices, cache), **options)


def result(process, timeout=100):
    try:
        printed, errors = process.communicate(timeout=timeout)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    return json.loads(printed.splitlines()[-1])


def explain_slowly(store):
    explain(Source(lambda index: time.sleep(0.02)), store, 1)


@pytest.mark.parametrize("delay", [0.0, 0.05])
def test_killed_process(store, written, delay):
    process = start(f"explain_slowly({str(store)!r})")
    try:
        while not (store / "relevance" / "c" / "1").exists():  # the second batch is being written
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.001)
        time.sleep(delay)
    finally:
        process.kill()
    assert process.wait() == -9
    process.communicate()
    done = open_explanations(store)["done"].read().result()
    assert not done.all()
    assert_explains(explain(Source(), store, 1), 1)
    assert written == np.flatnonzero(~done).tolist()


def on_eight_devices(folder):
    assert len(jax.devices()) == 8
    folder = Path(folder)
    explain(Source(), folder / "default", 1, batch_size=8)
    explain(Source(), folder / "all", "all", batch_size=12)  # filled up to 16
    explain(iter(Source()[index] for index in range(21)), folder / "two", 1, mesh=jax.make_mesh((2,), ("half",)))
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("samples", "model"))
    network = a_network()
    network.head = jax.device_put(network.head, NamedSharding(mesh, PartitionSpec("model")))
    options = {"prepare": prepare, "batch_size": 8, "progress": False}
    explain_dataset(network, Source(), folder / "parameters", 1, COMPOSITE, mesh=mesh, **options)

    mesh = Mesh(np.array(jax.devices()), "samples")
    for target in (None, "all"):
        arrays, static = split_model(a_network())
        kind = target or "largest"
        numbers, structure = jax.tree.flatten(COMPOSITE)
        of_a_batch = functools.partial(explain_batch, static, None, structure, kind, None, None, "checked")
        shared_out = jax.jit(functools.partial(explain_shared, mesh, of_a_batch))
        program = shared_out.lower(numbers, arrays, np.zeros((16, 6, 6, 1)), None)
        assert not re.findall(r"all-\w+|collective-\w+|reduce-scatter", program.compile().as_text())

    maps = {}
    for name, devices in {"auto": mesh, "explicit": jax.make_mesh((8,), ("samples",))}.items():
        sharding = NamedSharding(devices, PartitionSpec("samples"))
        shared = jax.device_put(IMAGES[:16], sharding)
        for batch_size in (None, 8, 12):
            explanation = relevance(a_network(), shared, LABELS[:16], COMPOSITE, batch_size=batch_size, progress=False)
            shards = {str(shard.index) for shard in explanation.relevance.addressable_shards}
            assert len(shards) == (1 if batch_size == 12 else 8)  # 8 devices do not divide a batch of 12
            maps[f"{name} {batch_size}"] = explanation.relevance
    np.savez(folder / "relevance.npz", **maps)
    print(json.dumps("done"))


def test_eight_devices(tmp_path, written):
    assert result(start(f"on_eight_devices({str(tmp_path)!r})", devices=8)) == "done"
    assert_explains(open_explanations(tmp_path / "all"), "all")
    for name in ("default", "two", "parameters"):
        assert_explains(open_explanations(tmp_path / name), 1)
    expected = relevance(a_network(), IMAGES[:16], LABELS[:16], COMPOSITE).relevance
    with np.load(tmp_path / "relevance.npz") as maps:
        assert len(maps) == 6
        for name in maps:
            np.testing.assert_allclose(maps[name], expected, rtol=1e-6, atol=1e-6, err_msg=name)
    # A store that was begun on other devices is gone on with.
    explain(Source(), tmp_path / "default", 1, batch_size=8)
    assert written == []


def in_one_of_two_processes(folder, port, process):
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
    assert (len(jax.devices()), len(jax.local_devices())) == (4, 2)
    folder, indexed, iterated = Path(folder), Source(), []
    explain(indexed, folder / "indexed", 1)
    elements = (Source()[index] | {"index": index} for index in range(21))
    noting = lambda element: iterated.append(element["index"]) or prepare(element)
    explain(elements, folder / "iterable", "all", prepare=noting)
    everywhere = Mesh(np.array(jax.devices()), "samples")
    with pytest.raises(InputError, match="another process"):
        explain(Source(), folder / "none", 1, mesh=everywhere)

    sharding = NamedSharding(everywhere, PartitionSpec("samples"))
    shared = jax.make_array_from_callback((16, 6, 6, 1), sharding, lambda index: IMAGES[:16][index])
    for batch_size in (None, 8):
        explanation = relevance(a_network(), shared, 1, COMPOSITE, batch_size=batch_size, progress=False)
        assert len(explanation.relevance.addressable_shards) == 2
        maps = multihost_utils.process_allgather(explanation.relevance, tiled=True)
        if process == 0:
            np.save(folder / f"relevance-{batch_size}.npy", maps)
    print(json.dumps([indexed.read, iterated]))


def test_two_processes(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    calls = [f"in_one_of_two_processes({str(tmp_path)!r}, {port}, {process})" for process in (0, 1)]
    processes = [start(call, devices=2) for call in calls]
    for first, second in zip(*map(result, processes), strict=True):  # of the indexed source, of the iterable
        assert (first.pop(0), second.pop(0)) == (0, 0)
        assert sorted(first + second) == list(range(21))
        assert first == [index for index in range(21) if index // 4 % 2 == 0]
    assert_explains(open_explanations(tmp_path / "indexed"), 1)
    assert_explains(open_explanations(tmp_path / "iterable"), "all")
    expected = relevance(a_network(), IMAGES[:16], 1, COMPOSITE).relevance
    for batch_size in (None, 8):
        np.testing.assert_allclose(np.load(tmp_path / f"relevance-{batch_size}.npy"), expected, rtol=1e-6, atol=1e-6)


def test_store_of_another_run_is_refused(store):
    explain(IMAGES, store, 1, prepare=None)
    other, options = IMAGES.copy(), {"prepare": None, "batch_size": 4, "progress": False}
    other[0, 0, 0] += 1
    padded = lambda image: np.pad(image, ((0, 2), (0, 0), (0, 0)))
    network = a_network()
    pooled = lambda x: network(x[:, :6])
    runs = [
        (a_network(), IMAGES, 1, rules.Zero(), {}, r"differ: rules; computation"),
        (a_network(), IMAGES, 1, COMPOSITE, {"reduce": lambda maps: maps.sum(-1)}, r"differ: computation"),
        (a_network(), IMAGES, "all", COMPOSITE, {}, r"differ: computation"),
        (
            a_network(),
            IMAGES,
            1,
            COMPOSITE,
            {"batch_size": 5},
            r"differ: batch_size \(there 4, here 5\)\. Choose another",
        ),
        (a_network(), IMAGES[:20], 1, COMPOSITE, {}, r"differ: samples \(there 21, here 20\)"),
        (a_network(), other, 1, COMPOSITE, {}, r"differ: data"),
        (a_network(), IMAGES, 2, COMPOSITE, {}, r"differ: data"),
        (
            pooled,
            IMAGES,
            1,
            COMPOSITE,
            {"prepare": padded},
            r"differ: sample \(there float32\[6, 6, 1\], here float32\[8, 6",
        ),
        (a_network(seed=2), IMAGES, 1, COMPOSITE, {}, r"differ: parameters\. Choose another store, or delete this one"),
    ]
    for model, source, target, composite, changed, message in runs:
        with pytest.raises(StoreError, match=message):
            explain_dataset(model, source, store, target, composite, **{**options, **changed})
    assert_explains(open_explanations(store), 1)


def test_parameters_that_a_function_holds_belong_to_the_run(store):
    def closed_over(seed):
        network = jax.jit(a_network(seed).__call__)
        return lambda x: network(x)

    options = {"batch_size": 4, "progress": False}
    explain_dataset(closed_over(1), IMAGES, store, 1, COMPOSITE, **options)
    explain_dataset(closed_over(1), IMAGES, store, 1, COMPOSITE, **options)
    with pytest.raises(StoreError, match="differ: computation"):
        explain_dataset(closed_over(2), IMAGES, store, 1, COMPOSITE, **options)


def test_folder_with_something_else_is_refused(store):
    store.mkdir()
    (store / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="something else than explanations"):
        explain(Source(), store)
    with pytest.raises(StoreError, match="There are no explanations"):
        open_explanations(store)
    assert [path.name for path in store.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ({"image": IMAGES, "label": LABELS}, {}, "dict of 'image', 'label'"),
        ([], {}, "source is empty"),
        (iter(()), {}, "source is empty"),
        (Split(PIXELS, LABELS), {}, "Split of 'images', 'labels'"),
        ([image[: 6 - (i == 9)] for i, image in enumerate(IMAGES)], {}, r"Sample 9 is float32\[5, 6, 1\]"),
        ([{"image": image, "name": "digit"} for image in IMAGES], {}, "holds <U5.*prepare"),
        (IMAGES, {"target": 3}, "from 0 to 2"),
        (IMAGES, {"target": LABELS[:5]}, "21 samples, but 5 targets"),
        (iter(IMAGES), {"target": LABELS[:5]}, "4 samples, but 1 targets"),
        (IMAGES, {"target_of": lambda image: 3}, "from 0 to 2"),
        (IMAGES, {"target": 1, "target_of": lambda image: 1}, "Both target and target_of"),
        (IMAGES, {"reduce": lambda maps: maps.sum()}, r"relevance has the shape \(\) for 1 samples"),
        (IMAGES, {"reduce": lambda maps: None}, "reduce returned None, and no array: nothing would be stored"),
        (IMAGES, {"reduce": lambda maps: {"sum": ()}}, r"reduce returned \{'sum': \(\)\}, and no array"),
        (
            IMAGES,
            {"reduce": lambda maps: {"a.b": maps, "a": {"b": 0 * maps}}},
            r"under one name: .*relevance\.a\.b",
        ),
        (IMAGES, {"prepare": lambda image: None}, "prepare returned None, which holds no array"),
        ([None] * 3, {}, "An element is None, which holds no array"),
        (iter(IMAGES), {"target": np.append(LABELS, 0)}, "source has 21 elements, but there are 22 targets"),
        (IMAGES, {"batch_size": 0}, "batch_size must be at least 1, but it is 0"),
        (IMAGES, {"batch_size": -1}, "batch_size must be at least 1, but it is -1"),
        (IMAGES, {"batch_size": 1.5}, r"batch_size must be an integer .*but it is 1\.5"),
        (IMAGES, {"batch_size": True}, "batch_size must be an integer .*but it is True"),
        (IMAGES, {"batch_size": None}, "batch_size must be an integer .*but it is None"),
    ],
)
def test_what_does_not_fit(store, source, options, message):
    with pytest.raises(InputError, match=message):
        explain_dataset(a_network(), source, store, **{"batch_size": 4, "progress": False, **options})


@pytest.mark.parametrize(
    "value",
    [0.9, 1.0, True, "1", None, [1], np.array([1]), [[1], [1, 2]], -1, 3, 2**32, 2**70, np.float32(1), np.int64(2**32)],
    ids=repr,
)
def test_target_of_returns_a_class(store, value):
    images = [{"image": image, "class": 1 if index != 6 else value} for index, image in enumerate(PIXELS)]
    with pytest.raises(InputError, match=r"target_of returned .* for sample 6, .* an integer from 0 to 2\."):
        explain(images, store, target_of=lambda element: element["class"])


@pytest.mark.parametrize("as_integer", [np.uint8, jnp.asarray, np.array])
def test_target_of_returns_an_integer_of_any_kind(store, as_integer):
    assert_explains(explain(Source(), store, target_of=lambda element: as_integer(2)), 2)


def test_progress_bar_is_not_needed(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    assert_explains(explain(Source(), store))
    maps = relevance(a_network(), IMAGES, None, COMPOSITE, batch_size=4, progress=False).relevance
    np.testing.assert_allclose(maps, relevance(a_network(), IMAGES, None, COMPOSITE).relevance, rtol=1e-6, atol=1e-6)
    message = r"tqdm is missing: pip install tqdm \(the extra 'large' brings it\)\. Or pass progress=False\."
    with pytest.raises(MissingExtraError, match=message):
        explain(Source(), store, progress=True)
    with pytest.raises(MissingExtraError, match=message):
        relevance(a_network(), IMAGES, batch_size=4)


@pytest.mark.parametrize("batch_size", [1.5, 0, -1, True, "4", np.float32(4)])
def test_batch_size_of_relevance(batch_size):
    with pytest.raises(InputError, match=r"batch_size must be (an integer|at least 1)"):
        relevance(a_network(), IMAGES, batch_size=batch_size, progress=False)


def test_missing_extra(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(MissingExtraError, match=r"tensorstore is missing: pip install tensorstore .the extra 'large'"):
        explain(Source(), store)


def test_what_is_suspicious_is_warned_of_once(store):
    images = IMAGES.copy()
    images[5], images[20] = -0.5, np.nan
    with pytest.warns(LRPWarning) as caught:
        stored = explain_dataset(a_network(), images, store, 0, COMPOSITE, batch_size=4, progress=False)
    outside, infinite = sorted(str(warning.message) for warning in caught)
    assert re.search(r"^In 1 of 6 batches, .* \[0.0, 1.0\] of ZBox in the layer .* from -0.5 to", outside)
    assert re.search("^Relevance is NaN or infinite in 1 of 6 batches, first among the samples 20 to 20", infinite)
    assert stored["done"].read().result().all()


def messages_of(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(warning.message) for warning in caught if warning.category is LRPWarning]


@pytest.mark.parametrize("target", [1, "all"])
def test_warnings_from_before_an_interruption_come_again(tmp_path, target):
    pixels = IMAGES.copy()
    pixels[1], pixels[5], pixels[6], pixels[14] = -0.5, 1.5, np.nan, -0.25

    def elements(stop):
        for index, image in enumerate(pixels):
            if index == stop:
                raise InterruptionError
            yield image

    options = {"batch_size": 4, "progress": False}
    run = lambda store, source: explain_dataset(a_network(), source, tmp_path / store, target, COMPOSITE, **options)
    undisturbed = messages_of(lambda: run("whole", pixels))
    assert len(undisturbed) == 2
    assert undisturbed[0].startswith("In 3 of 6 batches, values are outside")
    assert "from -0.5 to 1.5" in undisturbed[0]
    assert undisturbed[1].startswith("Relevance is NaN or infinite in 1 of 6 batches, first among the samples 4 to 7")
    for stop in (9, 17):
        with pytest.raises(InterruptionError):
            run("parts", elements(stop))
    assert messages_of(lambda: run("parts", elements(None))) == undisturbed
    assert messages_of(lambda: run("parts", elements(None))) == undisturbed


def test_training_mode_is_refused(store):
    masked = lambda x: x.reshape(len(x), -1) * jax.random.bernoulli(jax.random.key(0), 0.5, (36,))
    with pytest.raises(ModelError, match="dropout is active"):
        explain_dataset(masked, IMAGES, store, 0, progress=False)
    assert not store.exists()


class Dropping:
    """A source that has fewer elements than it says."""

    error = IndexError

    def __len__(self):
        return len(IMAGES) + 2

    def __getitem__(self, index):
        if index >= len(IMAGES):
            raise self.error(index)
        return IMAGES[index]


class Stopping(Dropping):
    error = StopIteration


class DroppingTogether(Dropping):
    def __getitems__(self, indices):
        return IMAGES[indices][:-1]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Dropping(), "it ends among those from 20 to 22"),
        (Stopping(), "it ends among those from 20 to 22"),
        (DroppingTogether(), "returned 0 elements for the 1 from 0 to 0"),
    ],
    ids=["index", "stop", "together"],
)
def test_source_that_drops_a_record_is_refused(store, source, message):
    with pytest.raises(InputError, match=message):
        explain_dataset(a_network(), source, store, 1, COMPOSITE, batch_size=4, progress=False)


# Other data in the place of those that were explained.


def changed(index):
    images = IMAGES.copy()
    images[index, 0, 0, 0] += 1e-6
    return images


class Indexed:
    """Neither an array nor a list."""

    def __init__(self, elements):
        self.elements, self.read = elements, []

    def __len__(self):
        return len(self.elements)

    def __getitem__(self, index):
        self.read.append(index)
        return self.elements[index]


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray, list, Indexed, iter])
def test_other_data_with_the_same_first_sample_are_refused(store, written, kind):
    options = {"prepare": None, "batch_size": 4, "progress": False}
    explain(kind(IMAGES), store, 1, **options)
    for index in (1, 7, 20):
        with pytest.raises(
            StoreError, match=rf"Sample {index} is not the one that was explained in the store '{store}'"
        ):
            explain(kind(changed(index)), store, 1, **options)
    if kind is not iter:  # of which all samples have passed before the one is found that differs
        with pytest.raises(StoreError, match="Sample 1 is not the one"):
            explain(kind(np.concatenate([IMAGES[:1], IMAGES[:0:-1]])), store, 1, **options)
    written.clear()
    assert_explains(explain(kind(IMAGES), store, 1, **options), 1)
    assert written == []


def test_nothing_is_mixed_with_other_data(store):
    def at(index):
        if index == 12:
            raise InterruptionError

    with pytest.raises(InterruptionError):
        explain(Source(at), store, 1)
    done = open_explanations(store)["done"].read().result()
    other = Source()
    other.__class__ = type("Other", (Source,), {"__getitem__": lambda self, i: {"image": PIXELS[i] + (i == 5)}})
    with pytest.raises(StoreError, match="Sample 5 is not"):
        explain(other, store, 1)
    np.testing.assert_array_equal(open_explanations(store)["done"].read().result(), done)


def test_changed_targets_and_preparation_are_refused(store):
    explain(Source(), store, target_of=lambda element: element["label"])
    with pytest.raises(StoreError, match=r"Sample 2 .* its input or its target differs"):
        explain(Source(), store, target_of=lambda element: element["label"] % 2)
    brighter = lambda element: prepare(element) if (element["image"] == PIXELS[0]).all() else 0.5 * prepare(element)
    with pytest.raises(StoreError, match="Sample 1 is not"):
        explain(Source(), store, target_of=lambda element: element["label"], prepare=brighter)


def test_of_a_large_source_a_part_is_compared(store):
    elements = np.arange(1000, dtype=np.float32).reshape(500, 2)
    run = lambda source: explain_dataset(jnp.tanh, source, store, 0, rules.Zero(), batch_size=100, progress=False)
    run(Indexed(elements))
    again = Indexed(elements)
    run(again)
    assert len(again.read) == len(set(again.read)) == 100
    assert {0, 1, 499} < set(again.read)
    run(elements)
    other = elements.copy()
    other[again.read[50] + 1] += 1
    with pytest.raises(StoreError, match=f"Sample {again.read[50] + 1} is not"):
        run(other)


# Damage.


FLAT = IMAGES * (np.arange(21) % 8 > 3).reshape(21, 1, 1, 1)  # a part can be compressed to next to nothing


def explain_flat(store):
    return explain(FLAT, store, 1, prepare=None)


def bytes_of(store):
    files = [path for path in sorted(store.rglob("*")) if path.is_file() and path.suffix != ".__lock"]
    return {path.relative_to(store): path.read_bytes() for path in files}


def chunks_of(store):
    return sorted(path for path in store.rglob("*") if path.is_file() and path.name != "zarr.json")


def flip(path, random):
    data = bytearray(path.read_bytes())
    data[random.integers(len(data))] ^= 1 << random.integers(8)
    path.write_bytes(data)


def test_flipped_bit_in_any_chunk_is_found_on_opening(store):
    explain_flat(store)
    random, chunks = np.random.default_rng(0), chunks_of(store)
    assert {path.relative_to(store).parts[0] for path in chunks} == {
        *("relevance", "output", "target", "done", "digest", "checks")
    }
    assert len(chunks) == 6 * 6
    for chunk in chunks:
        good = chunk.read_bytes()
        start = 4 * int(chunk.relative_to(store).parts[2])
        for _ in range(3):
            flip(chunk, random)
            message = (
                rf"is damaged: the samples {start} to {min(start + 3, 20)} cannot be read .*{chunk}.* explains these"
            )
            with pytest.raises(StoreError, match=message):
                open_explanations(store)
            chunk.write_bytes(good)
    open_explanations(store)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path, random: flip(path, random),
        lambda path, random: path.unlink(),
        lambda path, random: path.write_bytes(b""),
        lambda path, random: path.write_bytes(path.read_bytes()[:-1]),
    ],
    ids=["bit", "lost", "empty", "truncated"],
)
def test_what_is_damaged_or_lost_is_explained_again(store, written, damage):
    explain_flat(store)
    good = bytes_of(store)
    for index, name in enumerate(["relevance", "output", "target", "digest", "checks", "relevance"]):
        (chunk,) = [path for path in chunks_of(store / name) if path.relative_to(store / name).parts[1] == str(index)]
        damage(chunk, np.random.default_rng(index))
    with pytest.raises(StoreError, match="the samples 0 to 3, 4 to 7, 8 to 11, 12 to 15, 16 to 19 and 1 more batches"):
        open_explanations(store)
    written.clear()
    with pytest.warns(LRPWarning, match="0 to 3, .* These samples are explained again. Look at the disk"):
        explain_flat(store)
    assert written == [*range(21)]
    assert bytes_of(store) == good
    written.clear()
    damage(store / "done" / "c" / "2", np.random.default_rng(0))
    expected = [] if not (store / "done" / "c" / "2").exists() else ["the samples 8 to 11 cannot be read"]
    found = messages_of(lambda: explain_flat(store))
    assert [message for part, message in zip(expected, found, strict=True) if part not in message] == []
    assert written == [8, 9, 10, 11]
    assert bytes_of(store) == good


@pytest.mark.parametrize("name", ["", "relevance", "done", "digest"])
@pytest.mark.parametrize("content", ['{"zarr_format": 3, "node_type', "{}", "[]", ""])
def test_damaged_metadata_are_named(store, name, content):
    explain_flat(store)
    (store / name / "zarr.json").write_text(content)
    with pytest.raises(StoreError, match=f"{store / name}"):
        open_explanations(store)
    with pytest.raises(StoreError, match=f"{store / name}"):
        explain_flat(store)


def test_array_of_another_shape_or_dtype_is_named(store):
    explain_flat(store)
    path = store / "output" / "zarr.json"
    good = path.read_text()
    for old, new in {'"shape":[21,3]': '"shape":[29,3]', '"data_type":"float32"': '"data_type":"int32"'}.items():
        assert old in good
        path.write_text(good.replace(old, new).replace('"NaN"', "0" if "int" in new else '"NaN"'))
        with pytest.raises(StoreError, match=r"metadata of 'output' in the store .* are damaged.*Delete the store"):
            explain_flat(store)
        if "shape" in old:
            with pytest.raises(StoreError, match=r"metadata of 'output' .* are damaged: it has 29 samples"):
                open_explanations(store)


def test_group_of_something_else_is_refused(store):
    store.mkdir()
    (store / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {"by": "someone"}}')
    with pytest.raises(StoreError, match=r"not by explain_dataset.*Choose another store"):
        explain_flat(store)
    with pytest.raises(StoreError, match="not by explain_dataset"):
        open_explanations(store)


# Where nothing can be written.


def test_path_with_dots(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert_explains(explain(Source(), tmp_path / "here" / ".." / "maps", 1), 1)
    assert_explains(explain(Source(), "here/../maps", 1), 1)
    assert_explains(open_explanations("./here/.././maps"), 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "maps"]


@pytest.mark.parametrize("place", ["file", "file/maps"])
def test_file_in_the_place_of_a_folder(tmp_path, place):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match=f"{tmp_path / place}' cannot be written.*see to it that the folder"):
        explain(Source(), tmp_path / place)
    with pytest.raises(StoreError):
        open_explanations(tmp_path / place)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder(store):
    store.mkdir()
    store.chmod(0o500)
    with pytest.raises(StoreError, match=r"cannot be written.*see to it that the folder can be written"):
        explain(Source(), store)


def test_unknown_kind_of_url():
    with pytest.raises(StoreError, match="'nowhere://maps' cannot be written"):
        explain(Source(), "nowhere://maps")
    with pytest.raises(StoreError, match="'nowhere://maps' cannot be read"):
        open_explanations("nowhere://maps")


# Processes that are killed. They are forked from one that has imported JAX and not yet used it, which is quick.


MANY = np.random.default_rng(1).uniform(-0.1, 1.0, (300, 6, 6, 1)).astype(np.float32)
KILLS = 20 if NIGHTLY else 6  # the default run kills twice at the start, and four times at work


def explain_many(store):
    """Explains many images, of which it keeps maps and sums, and notes the warnings."""
    random = np.random.default_rng(0)
    network = Network(*(random.normal(size=shape).astype(np.float32) for shape in ((3, 3, 1, 4), (36, 3))))
    options = {"reduce": lambda maps: {"map": maps, "sum": maps.sum((1, 2, 3))}, "batch_size": 2, "progress": False}
    run = lambda: explain_dataset(network, Indexed(MANY), store, 1, COMPOSITE, **options)
    Path(f"{store}.json").write_text(json.dumps(messages_of(run)))


def fork(call, *arguments):
    child = os.fork()
    if child == 0:
        try:
            call(*arguments)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return child


def wait(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def number_done(store):
    folder = store / "done" / "c"
    return len([*folder.iterdir()]) if folder.exists() else 0


def kill(child, store, random):
    """Kills a process, at a random moment: of its start, or of its work on the first few batches."""
    if random.random() < 0.2:
        time.sleep(random.uniform(0, 0.5))
    else:
        done = number_done(store) + random.integers(4)
        while number_done(store) <= done and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.0005)
        time.sleep(random.uniform(0, 0.02))
    os.kill(child, signal.SIGKILL)
    return wait(child)


def kill_again_and_again(folder, times):
    folder, random = Path(folder), np.random.default_rng(0)
    assert wait(fork(explain_many, folder / "undisturbed")) == 0
    killed = [kill(fork(explain_many, folder / "killed"), folder / "killed", random) for _ in range(times)]
    left = 150 - number_done(folder / "killed")
    assert wait(fork(explain_many, folder / "killed")) == 0
    print(json.dumps([killed, left]))


def two_at_once(folder):
    folder, random = Path(folder), np.random.default_rng(0)
    assert wait(fork(explain_many, folder / "undisturbed")) == 0
    both = [fork(explain_many, folder / "both") for _ in range(2)]
    statuses = [wait(child) for child in both]
    one, other = (fork(explain_many, folder / "one") for _ in range(2))
    print(json.dumps([*statuses, kill(one, folder / "one", random), wait(other)]))


def assert_same(folder, *names):
    expected = bytes_of(folder / "undisturbed")
    assert len(expected) == 7 * 151 + 1
    for name in names:
        assert bytes_of(folder / name) == expected
        warned = [json.loads((folder / f"{one}.json").read_text()) for one in (name, "undisturbed")]
        assert warned[0] == warned[1] != []
        read(open_explanations(folder / name))


def test_killed_again_and_again_the_result_is_the_same_bit_by_bit(tmp_path):
    killed, left = result(
        start(f"kill_again_and_again({str(tmp_path)!r}, {KILLS})", cache=tmp_path / "cache"), timeout=300
    )
    assert killed == [-signal.SIGKILL] * KILLS
    assert 0 < left < 150
    assert_same(tmp_path, "killed")


def test_two_processes_that_were_not_told_of_each_other_write_to_one_store(tmp_path):
    assert result(start(f"two_at_once({str(tmp_path)!r})", cache=tmp_path / "cache")) == [0, 0, -signal.SIGKILL, 0]
    assert_same(tmp_path, "both", "one")


def explain_on_a_full_disk(store):
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))  # as much as the metadata need, and a batch less
    with pytest.raises(StoreError, match=r"cannot be written: .*File too large.* What is done stays done: make room"):
        explain(Source(), store, 1, batch_size=16)
    print(json.dumps(json.loads((Path(store) / "zarr.json").read_text())["node_type"]))


def test_full_disk(store, written):
    assert result(start(f"explain_on_a_full_disk({str(store)!r})")) == "group"
    assert not open_explanations(store)["done"].read().result().any()
    assert_explains(explain(Source(), store, 1, batch_size=16), 1)
    assert written == [*range(21)]
