"""Training the networks of the book, once: later calls load the checkpoint.

`load_or_train` is what a chapter calls. The checkpoint's folder is named after everything that
determines the result, so that a change of the data, of a hyperparameter, of a library or of this
code trains again, and nothing else does.
"""

import contextlib
import dataclasses
import hashlib
import inspect
import json
import math
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lrp_book import models
from lrp_book.datasets import Dataset, Split
from lrp_jax.core.arguments import as_count, as_number, as_numpy, kind_of
from lrp_jax.errors import ArrayError, CheckpointError, InputError, LRPWarning, import_extra

_EVALUATION_BATCH = 1000


@dataclass(frozen=True)
class TrainingConfig:
    """How a network is trained.

    Attributes:
        epochs: Largest number of passes over the training data.
        batch_size: Number of images per step.
        learning_rate: The learning rate of Adam at the first step; it falls to zero over the
            epochs along a cosine.
        validation_size: Number of training images set aside for validation.
        patience: Number of epochs without a better validation accuracy after which training stops.
        seed: Seed of the initial weights, the choice of the validation images and the order of the
            training images.
    """

    epochs: int = 4
    batch_size: int = 128
    learning_rate: float = 3e-3
    validation_size: int = 5000
    patience: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            as_count(getattr(self, name), name)
        as_count(self.validation_size, "validation_size", least=0)
        as_count(self.seed, "seed", least=0)
        as_number(self.learning_rate, "learning_rate", "must be positive", lambda rate: 0 < rate < math.inf)


@dataclass(frozen=True)
class History:
    """What happened in each epoch; every attribute holds one number per epoch.

    Attributes:
        train_loss: Mean cross-entropy, in nats, over the steps of the epoch.
        train_accuracy: Share of images classified correctly, over the steps of the epoch.
        validation_loss: Mean cross-entropy, in nats, of the validation images after the epoch.
        validation_accuracy: Share of validation images classified correctly after the epoch.
    """

    train_loss: tuple[float, ...]
    train_accuracy: tuple[float, ...]
    validation_loss: tuple[float, ...]
    validation_accuracy: tuple[float, ...]

    @property
    def best_epoch(self) -> int:
        """The epoch, counted from 1, whose parameters are kept: the best validation accuracy."""
        return 1 + int(np.argmax(self.validation_accuracy))


@dataclass(frozen=True)
class Trained:
    """A trained network.

    Attributes:
        model: The network.
        history: Its losses and accuracies in training.
        metadata: What it is: the class and the options of the model, the data set, the
            configuration, versions, test accuracy, the epoch kept, the seconds it took.
    """

    model: Any
    history: History
    metadata: dict[str, Any]


def train(
    model: nnx.Module,
    data: Split,
    config: TrainingConfig = TrainingConfig(),
    *,
    progress: bool = True,
) -> History:
    """Trains a classifier in place, by Adam on the cross-entropy.

    At the end the model has the parameters of the epoch with the best validation accuracy. The same
    model, data and configuration give the same parameters on the same machine.

    Args:
        model: A network from float images in [0, 1] to logits; all `nnx.Param` in it are trained.
        data: The training data, of which some is set aside for validation.
        config: How to train.
        progress: Whether to show a progress bar.

    Returns:
        Losses and accuracies of each epoch.

    Raises:
        ArrayError: If there are too few images for the validation images and one batch, or not one label for each.
        InputError: If the model is no Flax NNX module, or `config` no configuration.
        MissingExtraError: If Optax or tqdm is not installed.

    Example:
        >>> images = np.random.default_rng(0).integers(0, 256, (300, 4, 4, 1), dtype=np.uint8)
        >>> data = Split(images, (images.mean(axis=(1, 2, 3)) > 127).astype(np.int32))
        >>> model = models.DenseNetwork(input_shape=(4, 4, 1), classes=2, rngs=nnx.Rngs(0))
        >>> config = TrainingConfig(epochs=2, batch_size=32, validation_size=50)
        >>> len(train(model, data, config, progress=False).train_loss)
        2
    """
    optax, tqdm = import_extra("optax", "book"), import_extra("tqdm", "book").tqdm
    if not isinstance(config, TrainingConfig):
        raise InputError(f"config must be a TrainingConfig, but it is {kind_of(config)}.")
    data = _checked(model, data)
    steps = (len(data.labels) - config.validation_size) // config.batch_size
    if steps < 1 or config.validation_size < 1:
        raise ArrayError(
            f"{len(data.labels)} images are too few, or validation_size is below 1: "
            f"{config.validation_size} images for validation and at least {config.batch_size} for "
            f"one batch are needed."
        )
    random = np.random.default_rng(config.seed)
    validation, rest = np.split(random.permutation(len(data.labels)), [config.validation_size])
    validation_data = Split(data.images[validation], data.labels[validation])

    structure, parameters, constants = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]  # as many parts as filters
    schedule = optax.cosine_decay_schedule(config.learning_rate, steps * config.epochs)
    optimizer = optax.adam(schedule)
    optimizer_state = optimizer.init(parameters)

    @jax.jit
    def step(parameters: Any, optimizer_state: Any, images: jax.Array, labels: jax.Array) -> Any:
        gradient_of = jax.value_and_grad(_loss_and_accuracy, argnums=1, has_aux=True)
        measured, gradient = gradient_of(structure, parameters, constants, images, labels)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, parameters)
        return optax.apply_updates(parameters, updates), optimizer_state, jnp.stack(measured)

    best, epochs_measured = parameters, []
    # The loop over the steps is Python's: inside lax.scan, convolutions on CPUs run on one thread.
    with tqdm(total=config.epochs * steps, desc="Training", disable=not progress) as bar:
        for _ in range(config.epochs):
            steps_measured = []
            for batch in random.permutation(rest)[: steps * config.batch_size].reshape(steps, -1):
                parameters, optimizer_state, measured = step(
                    parameters, optimizer_state, data.images[batch], data.labels[batch]
                )
                steps_measured.append(measured)
                bar.update()
            validated = _evaluate(structure, parameters, constants, validation_data)
            epochs_measured.append((*np.mean(steps_measured, axis=0).tolist(), *validated))
            history = History(*zip(*epochs_measured, strict=True))
            bar.set_postfix_str(f"validation accuracy {validated[1]:.2%}")
            if history.best_epoch == len(epochs_measured):
                best = parameters
            elif len(epochs_measured) - history.best_epoch >= config.patience:
                break
    nnx.update(model, best)
    return history


def accuracy(model: nnx.Module, data: Split) -> float:
    """Returns the share of images that a network classifies correctly.

    Args:
        model: A network from float images in [0, 1] to logits.
        data: uint8 images and their labels.

    Returns:
        A number between 0 and 1.

    Raises:
        ArrayError: If there are no images, or not one label for each.
        InputError: If the model is no Flax NNX module.

    Example:
        >>> model = models.DenseNetwork(rngs=nnx.Rngs(0))
        >>> images = np.zeros((4, 28, 28, 1), np.uint8)
        >>> winner = model(jnp.zeros((1, 28, 28, 1))).argmax()
        >>> accuracy(model, Split(images, np.full(4, winner)))
        1.0
    """
    data = _checked(model, data)
    if not len(data.labels):
        raise ArrayError("There are no images to classify.")
    return _evaluate(*nnx.split(model, nnx.Param, ...), data)[1]


def load_or_train(
    model_class: type[nnx.Module],
    dataset: Dataset,
    config: TrainingConfig = TrainingConfig(),
    *,
    directory: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **model_options: Any,
) -> Trained:
    """Returns a trained network: from its checkpoint if there is one, else by training it.

    The checkpoint is a folder named after the model, the data set and a hash of all that determines
    the result: the model's class and options, the data, the configuration, the versions of the
    libraries and the source code of the model and of the training.

    Args:
        model_class: Class of the network, such as `lrp_book.models.DenseNetwork`.
        dataset: What to train and test on.
        config: How to train.
        directory: Where the checkpoints are. The default is `models` in the directory that the
            environment variable `LRP_JAX_CACHE` names, else in `~/.cache/lrp_jax`.
        progress: Whether to show a progress bar while training.
        **model_options: Passed on to the class, with `rngs` seeded by the configuration. They must
            be numbers, strings, booleans, or tuples, lists and dictionaries of them.

    Returns:
        The network, the history of its training, and its metadata.

    Raises:
        CheckpointError: If the checkpoint is damaged or incomplete, an option of the model cannot be
            written down, or the directory cannot be written: before anything is trained.
        MissingExtraError: If Optax, Orbax or tqdm is not installed.

    Example:
        >>> from tempfile import mkdtemp
        >>> images = np.random.default_rng(0).integers(0, 256, (300, 4, 4, 1), dtype=np.uint8)
        >>> data = Split(images, (images.mean(axis=(1, 2, 3)) > 127).astype(np.int32))
        >>> dataset = Dataset("bright", train=data, test=data, class_names=("dark", "bright"))
        >>> config = TrainingConfig(epochs=2, batch_size=32, validation_size=50)
        >>> trained = load_or_train(
        ...     models.DenseNetwork, dataset, config, directory=mkdtemp(), progress=False,
        ...     input_shape=(4, 4, 1), classes=2,
        ... )
        >>> trained.metadata["model"]
        'lrp_book.models.DenseNetwork'
    """
    ingredients = _ingredients(model_class, dataset, config, model_options)
    fingerprint = _sha256(json.dumps(ingredients, sort_keys=True).encode())
    root = Path(directory).expanduser() if directory is not None else _default_directory()
    checkpoint = root / f"{model_class.__name__}-{dataset.name}-{fingerprint[:12]}"

    model: nnx.Module = model_class(rngs=nnx.Rngs(config.seed), **model_options)  # type: ignore[call-arg]  # of its class
    if checkpoint.exists():
        return _load(checkpoint, model, ingredients)
    _check_writable(root)
    start = time.perf_counter()
    history = train(model, dataset.train, config, progress=progress)
    metadata = ingredients | {
        "test_accuracy": accuracy(model, dataset.test),
        "epoch": history.best_epoch,
        "seconds": round(time.perf_counter() - start, 1),
        "backend": jax.default_backend(),
        "python": platform.python_version(),
        "parameters": _sha256(*_parameter_bytes(model)),
    }
    trained = Trained(model, history, metadata)
    try:
        _save(checkpoint, trained)
    except Exception as error:  # Orbax raises many kinds
        warnings.warn(
            f"The network was trained and is returned, but could not be written to {checkpoint} "
            f"({type(error).__name__}: {error}): the next call trains again. Make room there.",
            LRPWarning,
            stacklevel=2,
        )
    return trained


def _checked(model: Any, data: Any) -> Split:
    """The data, if they and the model can be trained with."""
    if not isinstance(model, nnx.Module):
        raise InputError(f"The model must be a Flax NNX module, but it is {kind_of(model)}.")
    if not isinstance(data, tuple) or len(data) != 2:
        raise InputError(f"data must be a Split(images, labels), but it is {kind_of(data)}.")
    images, labels = (as_numpy(part, name, ArrayError) for part, name in zip(data, Split._fields, strict=True))
    if labels.ndim != 1 or images.ndim < 1 or len(images) != len(labels) or labels.dtype.kind not in "iu":
        raise ArrayError(
            f"There must be one label for each image, an integer, but the images have the shape {images.shape} and the "
            f"labels {labels.dtype} and {labels.shape}."
        )
    return Split(images, labels)


def _loss_and_accuracy(
    structure: Any, parameters: Any, constants: Any, images: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns mean cross-entropy and share of hits; uint8 images become floats on the device."""
    optax = import_extra("optax", "book")
    logits = nnx.merge(structure, parameters, constants)(images.astype(jnp.float32) / 255)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(), (logits.argmax(axis=-1) == labels).mean()


_jitted_loss_and_accuracy = jax.jit(_loss_and_accuracy, static_argnums=0)


def _evaluate(structure: Any, parameters: Any, constants: Any, data: Split) -> tuple[float, float]:
    """Returns mean cross-entropy and share of hits over a whole split."""
    total_loss, hits = 0.0, 0
    for start in range(0, len(data.labels), _EVALUATION_BATCH):
        labels = data.labels[start : start + _EVALUATION_BATCH]
        images = data.images[start : start + _EVALUATION_BATCH]
        loss, share = _jitted_loss_and_accuracy(structure, parameters, constants, images, labels)
        total_loss += len(labels) * float(loss)
        hits += round(len(labels) * float(share))
    return total_loss / len(data.labels), hits / len(data.labels)


def _default_directory() -> Path:
    return Path(os.environ.get("LRP_JAX_CACHE") or "~/.cache/lrp_jax").expanduser() / "models"


def _ingredients(
    model_class: type[nnx.Module],
    dataset: Dataset,
    config: TrainingConfig,
    model_options: dict[str, Any],
) -> dict[str, Any]:
    """Returns all that determines the trained parameters, in the form that JSON gives back."""
    files = (Path(models.__file__), Path(__file__))
    methods = (value for value in vars(model_class).values() if inspect.isfunction(value))
    ingredients = {
        "model": f"{model_class.__module__}.{model_class.__qualname__}",
        "options": model_options,
        "dataset": dataset.name,
        "data": _sha256(*(np.ascontiguousarray(array).data for array in dataset.train)),
        "config": dataclasses.asdict(config),
        "versions": {name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")},
        "code": _sha256(
            *(file.read_bytes() for file in files),
            *(inspect.getsource(method).encode() for method in methods),
        ),
    }
    try:
        return json.loads(json.dumps(ingredients))
    except TypeError as error:
        raise CheckpointError(
            f"The options of {model_class.__name__} must be numbers, strings, booleans, or tuples, "
            f"lists and dictionaries of them, to be kept with its checkpoint: {error}. "
            f"To use other options, call train."
        ) from error


def _check_writable(directory: Path) -> None:
    """Refuses a directory that nothing can be written to."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            file.write(b"0")
    except OSError as error:
        raise CheckpointError(
            f"The checkpoint of the network cannot be written to {directory} ({type(error).__name__}: {error}). Make "
            f"room there, pass another directory, or name one in LRP_JAX_CACHE."
        ) from error


def _save(checkpoint: Path, trained: Trained) -> None:
    """Writes a checkpoint beside its place and moves it there in one step."""
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=checkpoint.parent, ignore_cleanup_errors=True) as temporary:
        complete = Path(temporary).resolve() / "checkpoint"
        with _checkpointer() as checkpointer:
            checkpointer.save(complete / "parameters", nnx.state(trained.model))
        description = trained.metadata | {"history": dataclasses.asdict(trained.history)}
        (complete / "metadata.json").write_text(json.dumps(description, indent=2) + "\n")
        try:
            complete.rename(checkpoint)
        except OSError:
            if not checkpoint.exists():  # else another process was faster, with the same result
                raise


def _load(checkpoint: Path, model: nnx.Module, ingredients: dict[str, Any]) -> Trained:
    def damaged(reason: object) -> CheckpointError:
        return CheckpointError(
            f"The checkpoint in {checkpoint} is damaged or incomplete ({reason}). Delete that directory to train again."
        )

    parameters = (checkpoint / "parameters").resolve()
    expected = nnx.state(model)
    try:
        metadata = json.loads((checkpoint / "metadata.json").read_text())
        history = History(**{name: tuple(v) for name, v in metadata.pop("history").items()})
        with _checkpointer() as checkpointer:
            stored = checkpointer.metadata(parameters).item_metadata
            misfit = _misfit(expected, stored.tree) if stored is not None else None
            if misfit is None:
                nnx.update(model, checkpointer.restore(parameters, expected))
    except Exception as error:  # Orbax raises many kinds
        raise damaged(f"{type(error).__name__}: {error}") from error
    if misfit is not None:
        raise damaged(f"in {parameters.name}, {misfit}")
    differing = [name for name, value in ingredients.items() if metadata.get(name) != value]
    if differing:
        raise damaged(f"it is of another training: {', '.join(differing)} differ")
    if metadata["parameters"] != _sha256(*_parameter_bytes(model)):
        raise damaged("the parameters are not the ones that were saved")
    return Trained(model, history, metadata)


def _misfit(expected: nnx.State, stored: Any) -> str | None:
    """The first tensor that is not stored in the shape in which it is expected; None if there is none."""
    wanted = {
        jax.tree_util.keystr(path, simple=True, separator="."): value.shape
        for path, value in jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(expected))
    }
    found = {leaf.name.removesuffix(".value"): tuple(leaf.shape) for leaf in jax.tree.leaves(stored)}
    for name in wanted | found:
        if name not in found:
            return f"the tensor {name} of shape {wanted[name]} is missing"
        if name not in wanted:
            return f"the tensor {name} of shape {found[name]} is one that the network does not have"
        if found[name] != wanted[name]:
            return f"the tensor {name} has the shape {found[name]}, but {wanted[name]} is expected"
    return None


@contextlib.contextmanager
def _checkpointer() -> Iterator[Any]:
    """Gives an Orbax checkpointer that logs errors only and has finished when the block ends."""
    orbax, logging = import_extra("orbax.checkpoint", "book"), import_extra("absl.logging", "book")
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with orbax.StandardCheckpointer() as checkpointer:
            yield checkpointer
            checkpointer.wait_until_finished()
    finally:
        logging.set_verbosity(verbosity)


def _parameter_bytes(model: nnx.Module) -> Iterator[bytes]:
    for path, value in jax.tree_util.tree_leaves_with_path(nnx.state(model)):
        yield jax.tree_util.keystr(path).encode()
        yield np.asarray(value).tobytes()


def _sha256(*parts: Any) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
