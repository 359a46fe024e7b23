"""Training, and the checkpoints of it."""

import contextlib
import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lrp_book import training
from lrp_book.datasets import Dataset, Split
from lrp_book.errors import CheckpointError
from lrp_book.models import ConvolutionalNetwork, DenseNetwork
from lrp_book.training import History, Trained, TrainingConfig, accuracy, load_or_train, train
from lrp_jax.errors import ArrayError, LRPWarning

# Orbax leaves a coroutine unfinished when it fails to restore.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

CONFIG = TrainingConfig(epochs=3, batch_size=32, validation_size=100, learning_rate=3e-3)
OPTIONS = {"input_shape": (6, 6, 1), "classes": 3, "hidden": (16,)}


def bars(seed, number):
    """Images of noise with a bright row; the class says in which third of the image it is."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 150, (number, 6, 6, 1), dtype=np.uint8)
    labels = random.integers(0, 3, number).astype(np.int32)
    images[np.arange(number), 2 * labels + random.integers(0, 2, number)] += 100
    return Split(images, labels)


@pytest.fixture(scope="module")
def dataset():
    return Dataset("bars", train=bars(0, 1000), test=bars(1, 300), class_names=("top", "middle", "bottom"))


@pytest.fixture(scope="module")
def checkpoints(dataset, tmp_path_factory):
    """A directory with the checkpoint of one training."""
    directory = tmp_path_factory.mktemp("checkpoints")
    load_or_train(DenseNetwork, dataset, CONFIG, directory=directory, progress=False, **OPTIONS)
    return directory


@pytest.fixture
def copy(checkpoints, tmp_path):
    """A copy of that directory, and the checkpoint in it, for a test to change."""
    directory = tmp_path / "models"
    shutil.copytree(checkpoints, directory)
    (checkpoint,) = directory.iterdir()
    return directory, checkpoint


@pytest.fixture
def calls_of_train(monkeypatch):
    """Counts the calls of `train`, and has nothing trained: for what does not depend on the result."""
    calls = []

    def count(*arguments, **options):
        calls.append(arguments)
        return History((1.0,), (0.5,), (1.0,), (0.5,))

    monkeypatch.setattr(training, "train", count)
    return calls


def parameters(model):
    return jax.tree.leaves(nnx.state(model))


def assert_same_parameters(first, second):
    for one, other in zip(parameters(first), parameters(second), strict=True):
        np.testing.assert_array_equal(one, other)


def dense(seed=0):
    return DenseNetwork(rngs=nnx.Rngs(seed), **OPTIONS)


@pytest.mark.parametrize(
    "model",
    [dense, lambda: ConvolutionalNetwork(filters=(8,), kernel_size=3, rngs=nnx.Rngs(0), **OPTIONS)],
    ids=["dense", "convolutional"],
)
def test_training_learns(model, dataset):
    model = model()
    before = accuracy(model, dataset.test)
    history = train(model, dataset.train, dataclasses.replace(CONFIG, epochs=12), progress=False)
    assert history.train_loss[-1] < 0.5 * history.train_loss[0]
    assert history.train_accuracy[-1] > 0.95
    assert accuracy(model, dataset.test) > max(0.95, before)


def test_two_runs_give_the_same_numbers(dataset):
    first, second = dense(), dense()
    assert train(first, dataset.train, CONFIG, progress=False) == train(second, dataset.train, CONFIG, progress=False)
    assert_same_parameters(first, second)


def test_seed_of_the_configuration_changes_the_order_of_the_images(dataset):
    other = dataclasses.replace(CONFIG, seed=1)
    histories = [train(dense(), dataset.train, config, progress=False) for config in (CONFIG, other)]
    assert histories[0].train_loss != histories[1].train_loss


def test_first_step_is_that_of_adam(dataset):
    """One batch, one epoch: Adam's first step moves each parameter by the learning rate, against its gradient."""
    model = dense()
    before = parameters(model)

    def loss(state):
        logits = nnx.merge(nnx.graphdef(model), state)(jnp.asarray(chosen.images) / 255)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(chosen.labels)[:, None], 1).mean()

    config = TrainingConfig(epochs=1, batch_size=900, validation_size=100, learning_rate=1e-3)
    rest = np.random.default_rng(config.seed).permutation(1000)[100:]
    chosen = Split(dataset.train.images[rest], dataset.train.labels[rest])
    gradients = jax.tree.leaves(jax.grad(loss)(nnx.state(model)))
    train(model, dataset.train, config, progress=False)
    for old, new, gradient in zip(before, parameters(model), gradients, strict=True):
        clear = np.abs(gradient) > 1e-5
        np.testing.assert_allclose((new - old)[clear], -1e-3 * np.sign(gradient)[clear], rtol=2e-2)


def test_validation_images_are_not_trained_on(dataset):
    """Noise labels can be learned by heart, but only for images that are trained on."""
    labels = np.random.default_rng(5).integers(0, 3, 300).astype(np.int32)
    data = Split(dataset.train.images[:300], labels)
    config = TrainingConfig(epochs=120, batch_size=50, validation_size=100, learning_rate=1e-2, patience=120)
    model = DenseNetwork(rngs=nnx.Rngs(0), **OPTIONS | {"hidden": (64,)})
    history = train(model, data, config, progress=False)
    assert history.train_accuracy[-1] > 0.9
    assert history.validation_accuracy[-1] < 0.5


def test_early_stop_keeps_the_best_parameters(dataset, monkeypatch):
    """The validation accuracy of each epoch is prescribed; the parameters of each are recorded."""
    prescribed = iter([0.5, 0.7, 0.6, 0.7, 0.6, 0.9, 0.9])
    seen = []

    def evaluate(structure, state, constants, data):
        seen.append(jax.tree.leaves(state))
        return 1.0, next(prescribed)

    monkeypatch.setattr(training, "_evaluate", evaluate)
    model = dense()
    config = dataclasses.replace(CONFIG, epochs=7, patience=3)
    history = train(model, dataset.train, config, progress=False)
    assert history.validation_accuracy == (0.5, 0.7, 0.6, 0.7, 0.6)
    assert history.best_epoch == 2
    for kept, best, last in zip(parameters(model), seen[1], seen[-1], strict=True):
        np.testing.assert_array_equal(kept, best)
        assert not np.array_equal(kept, last)


def test_history_has_one_number_per_epoch(dataset):
    model = dense()
    history = train(model, dataset.train, CONFIG, progress=False)
    assert {len(values) for values in dataclasses.astuple(history)} == {CONFIG.epochs}
    validation = np.random.default_rng(CONFIG.seed).permutation(1000)[:100]
    held_out = Split(dataset.train.images[validation], dataset.train.labels[validation])
    assert accuracy(model, held_out) == max(history.validation_accuracy)


@pytest.mark.parametrize("config", [{"validation_size": 990}, {"validation_size": 0}, {"batch_size": 2000}])
def test_too_few_images_are_refused(dataset, config):
    with pytest.raises(ArrayError, match="1000 images are too few"):
        train(dense(), dataset.train, dataclasses.replace(CONFIG, **config), progress=False)


def test_progress_bar_can_be_switched_off(dataset, capsys):
    train(dense(), dataset.train, CONFIG)
    assert "Training: 100%" in capsys.readouterr().err
    train(dense(), dataset.train, CONFIG, progress=False)
    assert "".join(capsys.readouterr()) == ""


def test_accuracy_counts_every_image_once(dataset):
    model = dense()
    winners = np.asarray(model(jnp.asarray(dataset.train.images) / 255).argmax(axis=-1))
    images, labels = np.tile(dataset.train.images, (3, 1, 1, 1))[:2345], np.tile(winners, 3)[:2345]
    labels[::7] = (labels[::7] + 1) % 3
    assert accuracy(model, Split(images, labels)) == (2345 - len(labels[::7])) / 2345


# Checkpoints


def test_second_call_loads_what_the_first_one_trained(dataset, tmp_path, capsys):
    trained = load_or_train(DenseNetwork, dataset, CONFIG, directory=tmp_path, **OPTIONS)
    assert "Training" in capsys.readouterr().err
    loaded = load_or_train(DenseNetwork, dataset, CONFIG, directory=tmp_path, **OPTIONS)
    assert "".join(capsys.readouterr()) == ""
    assert_same_parameters(trained.model, loaded.model)
    assert loaded.history == trained.history
    assert isinstance(loaded.history, History)
    assert loaded.metadata == trained.metadata
    assert accuracy(loaded.model, dataset.test) == loaded.metadata["test_accuracy"]


def test_convolutional_network_without_biases_is_loaded_as_such(dataset, tmp_path):
    options = {"filters": (4,), "kernel_size": 3, "use_bias": False, **OPTIONS}
    first, second = (
        load_or_train(ConvolutionalNetwork, dataset, CONFIG, directory=tmp_path, progress=False, **options)
        for _ in range(2)
    )
    assert_same_parameters(first.model, second.model)
    assert second.model.convolutions[0].bias is None


def test_metadata_says_what_the_checkpoint_is(dataset, checkpoints):
    (checkpoint,) = checkpoints.iterdir()
    assert checkpoint.name.startswith("DenseNetwork-bars-")
    metadata = json.loads((checkpoint / "metadata.json").read_text())
    assert metadata["model"] == "lrp_book.models.DenseNetwork"
    assert metadata["options"] == {"input_shape": [6, 6, 1], "classes": 3, "hidden": [16]}
    assert metadata["dataset"] == "bars"
    assert metadata["config"] == dataclasses.asdict(CONFIG)
    assert metadata["versions"]["jax"] == jax.__version__
    assert 0.9 < metadata["test_accuracy"] <= 1
    assert 1 <= metadata["epoch"] <= CONFIG.epochs
    assert metadata["seconds"] > 0


def changed_label(dataset):
    labels = dataset.train.labels.copy()
    labels[0] = (labels[0] + 1) % 3
    return dataclasses.replace(dataset, train=Split(dataset.train.images, labels))


@pytest.mark.parametrize(
    "change",
    [
        {"dataset": changed_label},
        {"config": dataclasses.replace(CONFIG, seed=1)},
        {"config": dataclasses.replace(CONFIG, learning_rate=1e-3)},
        {"options": {"use_bias": False}},
        {"options": {"hidden": (8,)}},
    ],
    ids=["one label", "seed", "learning rate", "biases", "hidden neurons"],
)
def test_any_change_trains_again(dataset, copy, calls_of_train, change):
    directory, _ = copy
    load_or_train(DenseNetwork, dataset, CONFIG, directory=directory, **OPTIONS)
    assert len(calls_of_train) == 0
    data = change.get("dataset", lambda dataset: dataset)(dataset)
    options = OPTIONS | change.get("options", {})
    load_or_train(DenseNetwork, data, change.get("config", CONFIG), directory=directory, **options)
    assert len(calls_of_train) == 1
    assert len(list(directory.iterdir())) == 2


def test_changed_code_or_library_trains_again(dataset, copy, monkeypatch, tmp_path, calls_of_train):
    directory, _ = copy

    def number_of_trainings():
        load_or_train(DenseNetwork, dataset, CONFIG, directory=directory, **OPTIONS)
        return len(calls_of_train)

    assert number_of_trainings() == 0
    with monkeypatch.context() as context:
        context.setattr(training, "version", lambda name: "99.0")
        assert number_of_trainings() == 1
    edited = tmp_path / "models.py"
    edited.write_text("# an edit")
    monkeypatch.setattr(training.models, "__file__", str(edited))
    assert number_of_trainings() == 2


def test_changed_method_of_a_model_defined_elsewhere_trains_again(dataset, tmp_path, calls_of_train):
    class Linear(nnx.Module):
        def __init__(self, *, rngs):
            self.layer = nnx.Linear(36, 3, rngs=rngs)

        def __call__(self, images):
            return self.layer(images.reshape(len(images), -1))

    def doubled(self, images):
        return 2 * self.layer(images.reshape(len(images), -1))

    for expected in (1, 1):
        load_or_train(Linear, dataset, CONFIG, directory=tmp_path)
        assert len(calls_of_train) == expected
    Linear.__call__ = doubled
    load_or_train(Linear, dataset, CONFIG, directory=tmp_path)
    assert len(calls_of_train) == 2


def test_default_directory(dataset, tmp_path, monkeypatch, calls_of_train):
    monkeypatch.setenv("LRP_JAX_CACHE", str(tmp_path / "cache"))
    load_or_train(DenseNetwork, dataset, CONFIG, **OPTIONS)
    assert [path.name[:17] for path in (tmp_path / "cache" / "models").iterdir()] == ["DenseNetwork-bars"]
    monkeypatch.delenv("LRP_JAX_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    load_or_train(DenseNetwork, dataset, CONFIG, **OPTIONS)
    assert len(list((tmp_path / "home" / ".cache" / "lrp_jax" / "models").iterdir())) == 1


def test_relative_directory(dataset, tmp_path, monkeypatch, calls_of_train):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        load_or_train(DenseNetwork, dataset, CONFIG, directory="models", **OPTIONS)
    assert len(calls_of_train) == len(list((tmp_path / "models").iterdir())) == 1


def largest_file(checkpoint):
    return max((path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip_a_bit(checkpoint):
    file = largest_file(checkpoint)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def change_metadata(**values):
    def change(checkpoint):
        file = checkpoint / "metadata.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda checkpoint: (checkpoint / "metadata.json").unlink(), "FileNotFoundError"),
        (lambda checkpoint: (checkpoint / "metadata.json").write_text('{"model": '), "JSONDecodeError"),
        (lambda checkpoint: shutil.rmtree(checkpoint / "parameters"), "FileNotFoundError"),
        (lambda checkpoint: largest_file(checkpoint).unlink(), ""),
        (lambda checkpoint: largest_file(checkpoint).write_bytes(b""), ""),
        (flip_a_bit, ""),
        (change_metadata(parameters="0"), "the parameters are not the ones that were saved"),
        (change_metadata(data="0", dataset="fashion"), "of another training: dataset, data differ"),
    ],
    ids=["no metadata", "half metadata", "no parameters", "a file lost", "a file empty", "bit", "hash", "other data"],
)
def test_damaged_checkpoint_is_named(dataset, copy, calls_of_train, damage, reason):
    directory, checkpoint = copy
    damage(checkpoint)
    message = rf"checkpoint in {checkpoint} is damaged or incomplete \(.*{reason}.*Delete that directory to train again"
    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        load_or_train(DenseNetwork, dataset, CONFIG, directory=directory, progress=False, **OPTIONS)


@pytest.mark.parametrize(
    ("hidden", "message"),
    [
        ((8,), r"in parameters, the tensor layers\.0\.bias has the shape \(8,\), but \(16,\) is expected"),
        ((16, 16), r"in parameters, the tensor layers\.1\.bias has the shape \(16,\), but \(3,\) is expected"),
        ((), r"in parameters, the tensor layers\.0\.bias has the shape \(3,\), but \(16,\) is expected"),
    ],
    ids=["other shape", "more layers", "fewer layers"],
)
def test_checkpoint_of_another_network_is_refused(dataset, copy, calls_of_train, hidden, message):
    directory, checkpoint = copy
    load_or_train(DenseNetwork, dataset, CONFIG, directory=directory / "other", **OPTIONS | {"hidden": hidden})
    (other,) = (directory / "other").iterdir()
    shutil.rmtree(checkpoint / "parameters")
    (other / "parameters").rename(checkpoint / "parameters")
    with pytest.raises(CheckpointError, match=rf"(?s)checkpoint in {checkpoint} .*{message}"):
        load_or_train(DenseNetwork, dataset, CONFIG, directory=directory, progress=False, **OPTIONS)


def test_interrupted_saving_leaves_nothing(dataset, tmp_path, monkeypatch):
    @contextlib.contextmanager
    def interrupted():
        with checkpointer() as complete:
            yield complete
        assert len(list(tmp_path.rglob("*"))) > 2
        raise KeyboardInterrupt

    checkpointer = training._checkpointer
    monkeypatch.setattr(training, "_checkpointer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_or_train(DenseNetwork, dataset, CONFIG, directory=tmp_path, progress=False, **OPTIONS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["file", "file/models"])
def test_directory_that_cannot_be_written_is_refused_before_the_training(dataset, tmp_path, calls_of_train, place):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match=rf"cannot be written to {tmp_path / place} .*pass another directory"):
        load_or_train(DenseNetwork, dataset, CONFIG, directory=tmp_path / place, **OPTIONS)
    assert calls_of_train == []


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PermissionError(13, "Permission denied")])
def test_full_or_read_only_directory_is_refused_before_the_training(
    dataset, tmp_path, monkeypatch, calls_of_train, error
):
    def refuse(**options):
        raise error

    monkeypatch.setattr(training.tempfile, "TemporaryFile", refuse)
    with pytest.raises(CheckpointError, match=f"{error.strerror}.*LRP_JAX_CACHE"):
        load_or_train(DenseNetwork, dataset, CONFIG, directory=tmp_path, **OPTIONS)
    assert calls_of_train == []


def test_checkpoint_in_a_read_only_directory_is_loaded(dataset, copy, monkeypatch, calls_of_train):
    def refuse(**options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(training.tempfile, "TemporaryFile", refuse)
    load_or_train(DenseNetwork, dataset, CONFIG, directory=copy[0], **OPTIONS)
    assert calls_of_train == []


def test_network_is_returned_though_the_disk_is_full(dataset, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(training, "_save", full)
    with pytest.warns(LRPWarning, match=r"is returned, .*No space left.*the next call trains again"):
        trained = load_or_train(DenseNetwork, dataset, CONFIG, directory=tmp_path, progress=False, **OPTIONS)
    assert accuracy(trained.model, dataset.test) > 0.9


def test_checkpoint_that_another_process_wrote_meanwhile_is_left_alone(dataset, copy):
    directory, checkpoint = copy
    before = {path: path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()}
    training._save(checkpoint, Trained(dense(), History((), (), (), ()), {"model": "trained at the same time"}))
    assert {path: path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()} == before
    assert list(directory.iterdir()) == [checkpoint]


def test_option_that_cannot_be_kept_is_refused(dataset, tmp_path):
    with pytest.raises(CheckpointError, match=r"options of DenseNetwork must be numbers.*function is not JSON"):
        load_or_train(DenseNetwork, dataset, CONFIG, directory=tmp_path, hidden=lambda: 3)
