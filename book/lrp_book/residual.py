"""A small residual network with batch normalisation, whose running statistics come from the training data."""

import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lrp_book.datasets import Dataset, Split, as_float
from lrp_book.pretrained import NormalizedConvolution
from lrp_book.training import TrainingConfig, load_or_train
from lrp_jax.core.arguments import as_counts

_STATISTICS_BATCH = 128


class ResidualBlock(nnx.Module):
    """Two convolutions, each with a batch normalisation, whose result is added to the input of the block.

    Where the block changes the shape, a convolution of one pixel brings its input to the new one. Source: He, Zhang,
    Ren and Sun (2016), "Deep Residual Learning for Image Recognition", section 3.

    Args:
        incoming: Number of channels that come in.
        outgoing: Number of channels that go out.
        stride: Step of the first convolution, in pixels.
        rngs: Random number generators; `rngs.params` initialises the filters.

    Example:
        >>> make = lambda: ResidualBlock(4, 8, stride=2, rngs=nnx.Rngs(0))
        >>> jax.eval_shape(lambda x: make()(x), jnp.zeros((1, 6, 6, 4))).shape
        (1, 3, 3, 8)
    """

    def __init__(self, incoming: int, outgoing: int, *, stride: int = 1, rngs: nnx.Rngs) -> None:
        self.convolutions = nnx.List(
            [
                NormalizedConvolution(incoming, outgoing, kernel_size=3, stride=stride, rngs=rngs),
                NormalizedConvolution(outgoing, outgoing, kernel_size=3, rngs=rngs),
            ]
        )
        changes_shape = stride != 1 or incoming != outgoing
        self.shortcut = NormalizedConvolution(incoming, outgoing, stride=stride, rngs=rngs) if changes_shape else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns an array of shape `(batch, height / stride, width / stride, outgoing)`."""
        one, two = self.convolutions
        hidden = two(nnx.relu(one(x)))
        return nnx.relu(hidden + (x if self.shortcut is None else self.shortcut(x)))


class ResidualNetwork(nnx.Module):
    """A small residual network: a convolution, blocks that halve height and width, a mean, and a dense layer.

    Args:
        channels: Number of channels after the first convolution and after each block.
        classes: Number of classes.
        rngs: Random number generators; `rngs.params` initialises the weights.

    Example:
        >>> model = ResidualNetwork(rngs=nnx.Rngs(0))
        >>> model(jnp.zeros((2, 28, 28, 1))).shape
        (2, 10)
    """

    def __init__(self, *, channels: Sequence[int] = (8, 16, 32), classes: int = 10, rngs: nnx.Rngs) -> None:
        channels = as_counts(channels, "channels")
        self.stem = NormalizedConvolution(1, channels[0], kernel_size=3, stride=2, rngs=rngs)
        self.blocks = nnx.List(
            ResidualBlock(incoming, outgoing, stride=2, rngs=rngs) for incoming, outgoing in pairwise(channels)
        )
        self.classifier = nnx.Linear(channels[-1], classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns the logits of shape `(batch, classes)`.

        Args:
            images: Floats in [0, 1] of shape `(batch, height, width, 1)`.
        """
        x = nnx.relu(self.stem(images))
        for block in self.blocks:
            x = block(x)
        return self.classifier(x.mean((1, 2)))


class ResidualNetworkInTraining(ResidualNetwork):
    """A `ResidualNetwork` that normalises each batch by the batch's own statistics, and keeps none of them.

    Example:
        >>> model = ResidualNetworkInTraining(rngs=nnx.Rngs(0))
        >>> model(jnp.ones((2, 28, 28, 1))).shape
        (2, 10)
    """

    def __init__(self, *, channels: Sequence[int] = (8, 16, 32), classes: int = 10, rngs: nnx.Rngs) -> None:
        super().__init__(channels=channels, classes=classes, rngs=rngs)
        self.train()

    def __call__(self, images: jax.Array) -> jax.Array:
        return ResidualNetwork.__call__(nnx.clone(self), images)


def trained_residual_network(
    dataset: Dataset,
    config: TrainingConfig,
    *,
    directory: str | os.PathLike[str] | None = None,
    **options: Any,
) -> ResidualNetwork:
    """Returns a residual network that is trained and has the statistics of the training data in its normalisations.

    It is trained with the statistics of each batch. They are then collected in one pass over training images, as
    running means, and hold from there on. Source: Ioffe and Szegedy (2015), "Batch Normalization", algorithm 2.

    Args:
        dataset: What to train on: images of shape `(height, width, 1)`.
        config: How to train.
        directory: Where `lrp_book.training.load_or_train` keeps the trained weights.
        **options: For `ResidualNetwork`.

    Returns:
        The network, in inference mode.

    Raises:
        CheckpointError: As for `load_or_train`.
        MissingExtraError: As for `load_or_train`.

    Example:
        >>> import numpy
        >>> from tempfile import mkdtemp
        >>> images = numpy.random.default_rng(0).integers(0, 256, (300, 8, 8, 1), dtype=numpy.uint8)
        >>> data = Split(images, (images.mean(axis=(1, 2, 3)) > 127).astype(numpy.int32))
        >>> dataset = Dataset("bright", train=data, test=data, class_names=("dark", "bright"))
        >>> config = TrainingConfig(epochs=1, batch_size=32, validation_size=50)
        >>> model = trained_residual_network(dataset, config, directory=mkdtemp(), channels=(2, 2))
        >>> model.stem.normalization.use_running_average
        True
    """
    trained = load_or_train(
        ResidualNetworkInTraining, dataset, config, directory=directory, progress=False, **options
    ).model
    model = ResidualNetwork(rngs=nnx.Rngs(config.seed), **options)
    nnx.update(model, nnx.state(trained))
    model.train()
    collect_statistics(model, _first_batches(dataset.train))
    return model


def collect_statistics(model: nnx.Module, batches: Iterator[jax.Array]) -> None:
    """Collects the running statistics of a network's normalisations, and puts it into inference mode.

    Args:
        model: A network in training mode, which is changed.
        batches: Batches of its input.

    Example:
        >>> model = NormalizedConvolution(1, 1, rngs=nnx.Rngs(0))
        >>> model.train()
        >>> collect_statistics(model, iter([jnp.ones((1, 1, 1, 1))]))
        >>> model.normalization.use_running_average
        True
    """

    @nnx.jit
    def see(model: Any, batch: jax.Array) -> None:
        model(batch)

    for batch in batches:
        see(model, batch)
    model.eval()


def _first_batches(data: Split, number: int = 400) -> Iterator[jax.Array]:
    for start in range(0, min(len(data.images), number * _STATISTICS_BATCH), _STATISTICS_BATCH):
        yield jnp.asarray(as_float(data.images[start : start + _STATISTICS_BATCH]))
