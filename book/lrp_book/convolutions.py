"""What convolutions do, measured: as matrices, their receptive fields, translations, costs, and shuffled pixels."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import ArrayLike, NDArray

from lrp_book import models, training
from lrp_book.datasets import Dataset, Split
from lrp_book.models import ConvolutionalNetwork, DenseNetwork
from lrp_book.tables import Table

_Layer = Callable[[jax.Array], jax.Array]


def weight_matrix(layer: _Layer, shape: Sequence[int]) -> jax.Array:
    """The weights, of shape (inputs, outputs), of a linear layer.

    Args:
        layer: A function of a batch of inputs.
        shape: The shape of one input.

    Example:
        >>> weight_matrix(lambda x: x[:, 1:] - x[:, :-1], (3,))
        Array([[-1.,  0.],
               [ 1., -1.],
               [ 0.,  1.]], dtype=float32)
    """
    inputs = math.prod(shape)
    return layer(jnp.eye(inputs).reshape(inputs, *shape)).reshape(inputs, -1)


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution of maps of shape (N, H, W, C) with a kernel of shape (k, k, C, K), without padding."""
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def relu_and_pool(z: jax.Array) -> jax.Array:
    """The second half of a block: the ReLU, then the largest of each 2 x 2 values."""
    return nnx.max_pool(nnx.relu(z), (2, 2), strides=(2, 2))


def kernels_of(network: ConvolutionalNetwork) -> list[jax.Array]:
    """The kernels of its convolutions."""
    return [layer.kernel[...] for layer in network.convolutions]


def stages(network: ConvolutionalNetwork, x: jax.Array) -> list[jax.Array]:
    """The maps of a network: of each block that after the convolution and its ReLU, and that after the pooling."""
    maps = []
    for convolution in network.convolutions:
        z = convolution(x)
        x = relu_and_pool(z)
        maps += [nnx.relu(z), x]
    return maps


class ByMatrices(NamedTuple):
    """A convolutional network without a convolution.

    Attributes:
        matrices: The weights of its convolutions as dense layers.
        logits: The network, as a function of the images.
    """

    matrices: list[jax.Array]
    logits: _Layer


def by_matrices(network: ConvolutionalNetwork, sides: Sequence[int] = (28, 12)) -> ByMatrices:
    """The same network with a dense layer in place of each convolution.

    Args:
        network: The network.
        sides: The side of the maps that each of its convolutions reads.
    """
    kernels = kernels_of(network)
    matrices = [
        weight_matrix(partial(convolve, kernel=kernel), (side, side, kernel.shape[2]))
        for kernel, side in zip(kernels, sides, strict=True)
    ]
    biases: list[Any] = [nnx.state(layer, nnx.Param)["bias"][...] for layer in network.convolutions]

    def logits(x: jax.Array) -> jax.Array:
        for matrix, kernel, bias, side in zip(matrices, kernels, biases, sides, strict=True):
            places = side - kernel.shape[0] + 1
            z = x.reshape(len(x), -1) @ matrix + jnp.tile(bias, places * places)
            x = relu_and_pool(z.reshape(len(x), places, places, -1))
        hidden, output = network.dense
        return output(nnx.relu(hidden(x.reshape(len(x), -1))))

    return ByMatrices(matrices, logits)


def gradients_of_centres(network: ConvolutionalNetwork, images: jax.Array) -> list[NDArray[np.float32]]:
    """The mean absolute derivative of a central neuron of each stage by each pixel, over images and channels."""

    def centres(image: jax.Array) -> list[jax.Array]:
        return [maps[0, len(maps[0]) // 2, len(maps[0]) // 2] for maps in stages(network, image)]

    jacobians = jax.jit(lambda x: jax.lax.map(lambda image: jax.jacrev(centres)(image[None]), x))(images)
    return [np.asarray(jnp.abs(jacobian).mean(axis=(0, 1))[0, ..., 0]) for jacobian in jacobians]


def move(images: ArrayLike, down: int, right: int) -> jax.Array:
    """Images of shape (N, H, W, C) moved by some pixels, with zeros where they come from.

    Example:
        >>> move(jnp.array([1.0, 2.0, 3.0]).reshape(1, 1, 3, 1), 0, 1).ravel()
        Array([0., 1., 2.], dtype=float32)
    """
    x = jnp.asarray(images)
    margin = max(abs(down), abs(right))
    padded = jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    top, left = margin - down, margin - right
    return padded[:, top : top + x.shape[1], left : left + x.shape[2]]


def mismatch(layer: _Layer, images: jax.Array, pixels: int, stride: int) -> float:
    """How far the maps of moved images are from the moved maps, relative to their norm.

    Args:
        layer: What makes maps of images.
        images: The images.
        pixels: By how many pixels they are moved to the right.
        stride: How many pixels apart neighbouring neurons of the maps are. The maps are moved by the better of the two
            nearest whole numbers of places.
    """
    moved, original = layer(move(images, 0, pixels)), layer(images)

    def distance(places: int) -> float:
        a, b = moved[:, :, places:], original[:, :, : original.shape[2] - places]
        return float(jnp.linalg.norm((a - b).ravel()) / jnp.linalg.norm(a.ravel()))

    return min(distance(pixels // stride), distance(-(-pixels // stride)))


DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1))


def recognised_when_moved(network: _Layer, images: jax.Array, labels: ArrayLike, farthest: int) -> list[float]:
    """The percentage of images recognised after moves by 0, 1, ... pixels, the mean of four directions."""
    predict = jax.jit(lambda x: network(x).argmax(axis=1))
    return [
        100 * float(np.mean([predict(move(images, d * y, d * x)) == labels for y, x in DIRECTIONS]))
        for d in range(farthest + 1)
    ]


def similarity(kernel: jax.Array, other: jax.Array) -> jax.Array:
    """The cosine between the filters of two kernels of the same shape, for each filter."""
    a, b = (one.reshape(-1, one.shape[-1]) for one in (kernel, other))
    return (a * b).sum(0) / jnp.linalg.norm(a, axis=0) / jnp.linalg.norm(b, axis=0)


def parts_of_channels(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """What each channel contributes to a convolution, of shape (N, H, W, C, K)."""
    parts = [convolve(x[..., c : c + 1], kernel[:, :, c : c + 1]) for c in range(x.shape[-1])]
    return jnp.stack(parts, axis=-2)


class Costs(NamedTuple):
    """What layers cost, by their names.

    Attributes:
        parameters: The numbers of weights and biases.
        operations: The numbers of multiplications for one image.
        as_dense: The numbers of parameters of dense layers between as many neurons.
    """

    parameters: dict[str, int]
    operations: dict[str, int]
    as_dense: dict[str, int]

    def table(self) -> Table:
        """A row for each layer, and one for all."""
        rows: list[list[str | int]] = [[name, *(column[name] for column in self)] for name in self.parameters]
        rows.append(["all", *(sum(column.values()) for column in self)])
        return Table(["layer", "parameters", "operations", "parameters as a dense layer"], rows)


def costs_of(network: ConvolutionalNetwork, sides: Sequence[int] = (28, 12)) -> Costs:
    """What the layers of a network cost, where its convolutions read maps of some sides."""
    costs = Costs({}, {}, {})
    for number, (kernel, side) in enumerate(zip(kernels_of(network), sides, strict=True), 1):
        size, _, channels, filters = kernel.shape
        outputs = (side - size + 1) ** 2 * filters
        costs.parameters[f"convolution {number}"] = filters * (size * size * channels + 1)
        costs.operations[f"convolution {number}"] = outputs * size * size * channels
        costs.as_dense[f"convolution {number}"] = side * side * channels * outputs + outputs
    for number, layer in enumerate(network.dense, 1):
        weights = layer.kernel[...].size
        costs.parameters[f"dense {number}"] = costs.as_dense[f"dense {number}"] = weights + layer.out_features
        costs.operations[f"dense {number}"] = weights
    return costs


def with_pixels_in_order(data: Dataset, order: NDArray[np.int64], number: int, name: str) -> Dataset:
    """The first training images and all test images of a data set, with their pixels in another order."""

    def reordered(split: Split) -> Split:
        flat = split.images.reshape(len(split.images), -1)
        return Split(flat[:, order].reshape(split.images.shape), split.labels)

    train = Split(data.train.images[:number], data.train.labels[:number])
    return Dataset(name=name, train=reordered(train), test=reordered(data.test), class_names=data.class_names)


def accuracies_in_order(data: Dataset, seeds: int = 3) -> dict[str, list[float]]:
    """The test accuracies, in percent, of dense and convolutional networks trained on few images, one for each seed."""
    networks: dict[str, type[nnx.Module]] = {"dense": DenseNetwork, "convolutional": ConvolutionalNetwork}
    found: dict[str, list[float]] = {}
    for name, network in networks.items():
        found[name] = []
        for seed in range(seeds):
            config = training.TrainingConfig(epochs=8, batch_size=50, validation_size=500, seed=seed)
            trained = training.load_or_train(network, data, config, progress=False)
            found[name].append(100 * trained.metadata["test_accuracy"])
    return found


def untrained() -> ConvolutionalNetwork:
    """The convolutional network of the book as it was before training."""
    return models.ConvolutionalNetwork(rngs=nnx.Rngs(training.TrainingConfig().seed))
