"""`explain_dataset`: the maps of `relevance`, each once, on several devices, in several processes, after a kill."""

import functools
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lrp_jax import composites, relevance, rules
from lrp_jax.attribution import split_model
from lrp_jax.datasets import Split
from lrp_jax.errors import InputError, LRPWarning, MissingExtraError, ModelError, StoreError
from lrp_jax.explain_dataset import _explain_batch, _explain_shared, _Group, explain_dataset, open_explanations

ROOT = Path(__file__).parents[1]
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


def test_indexed_source_and_its_last_batch_are_compiled_once(store, compiled):
    jax.clear_caches()
    stored = explain(Source(), store)  # 21 samples: five batches of 4, and one of 1
    assert compiled.count("_explain_shared") == 1
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
def test_interrupted_run_explains_only_what_is_not_done(store, number):
    with pytest.raises(InterruptionError):
        explain(Source(fail_at(number)), store, 1)
    done = open_explanations(store)["done"].read().result() if store.exists() else np.zeros(21, bool)
    assert number < 8 or done[: number // 4 * 4 - 4].all()  # all but the batch that was at work
    assert not done[number // 4 * 4 :].any()
    second = Source()
    assert_explains(explain(second, store, 1), 1)
    assert second.read == [0, *np.flatnonzero(~done)]  # sample 0 says whether the data are the same
    third = Source()
    assert_explains(explain(third, store, 1), 1)
    assert third.read == [0]


def test_batch_of_which_only_a_part_was_written_is_not_done(store, monkeypatch):
    class Failing:
        def __init__(self, array):
            self.array = array

        def __getitem__(self, place):
            if place.start == 8:
                self.array[8:10].write(np.float32(7)).result()
                raise InterruptionError
            return self.array[place]

    class Group(_Group):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self._arrays["relevance"] = Failing(self._arrays["relevance"])

    with monkeypatch.context() as patch:
        patch.setattr("lrp_jax.explain_dataset._Group", Group)
        with pytest.raises(InterruptionError):
            explain(Source(), store)
    assert (open_explanations(store)["relevance"][8:10].read().result() == 7).all()
    second = Source()
    assert_explains(explain(second, store))
    assert second.read == [0, *range(8, 21)]


def test_interrupted_iterable(store):
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
    assert len(prepared) == 1 + 13
    assert_explains(open_explanations(store))


def test_iterable_that_has_grown(store):
    explain([{"image": pixels} for pixels in PIXELS[:10]].__iter__(), store)
    assert open_explanations(store)["done"].shape == (10,)
    assert_explains(explain(iter(Source()[index] for index in range(21)), store))


def environment(devices=1):
    keep = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    flags = f"--xla_force_host_platform_device_count={devices}"
    return {**keep, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def start(call, devices=1):
    """Runs a function of this file in another process."""
    command = [sys.executable, "-c", f"from tests.test_explain_dataset import *; {call}"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment(devices), **options)


def result(process):
    try:
        printed, errors = process.communicate(timeout=100)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    return json.loads(printed.splitlines()[-1])


def explain_slowly(store):
    explain(Source(lambda index: time.sleep(0.02)), store, 1)


@pytest.mark.parametrize("delay", [0.0, 0.05])
def test_killed_process(store, delay):
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
    second = Source()
    assert_explains(explain(second, store, 1), 1)
    assert second.read == [0, *np.flatnonzero(~done)]


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
        explain_batch = functools.partial(_explain_batch, static, None, COMPOSITE, kind, None, None, "checked")
        shared_out = jax.jit(functools.partial(_explain_shared, mesh, explain_batch))
        program = shared_out.lower(arrays, np.zeros((16, 6, 6, 1)), None)
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


def test_eight_devices(tmp_path):
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
    source = Source()
    explain(source, tmp_path / "default", 1, batch_size=8)
    assert source.read == [0]


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
        (IMAGES, {"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_what_does_not_fit(store, source, options, message):
    with pytest.raises(InputError, match=message):
        explain_dataset(a_network(), source, store, **{"batch_size": 4, "progress": False, **options})


def test_missing_extra(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(MissingExtraError, match=r"lrp_jax\[large\]"):
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
