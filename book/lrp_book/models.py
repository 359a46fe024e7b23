"""The networks that the book explains, as Flax NNX modules.

Both take images as floats in [0, 1] of shape `(batch, height, width, channels)` and return one
logit per class. Both consist of plain layers, relu and max pooling, so that every step of relevance
propagation through them can be followed by hand.
"""

from collections.abc import Sequence
from itertools import pairwise

import jax
from flax import nnx

from lrp_jax.core.arguments import as_array, as_count, as_counts
from lrp_jax.errors import ArrayError

_INITIALIZER = nnx.initializers.he_normal()  # keeps the scale of activations through relus


class DenseNetwork(nnx.Module):
    """A multilayer perceptron: dense layers with relus between them.

    The layers are named `layers.0`, `layers.1`, ... from the input to the logits.

    Args:
        hidden: Number of neurons in each hidden layer.
        use_bias: Whether the layers have biases. Without them relevance is conserved exactly.
        input_shape: Height, width and channels of an image.
        classes: Number of classes.
        rngs: Random number generators; `rngs.params` initialises the weights.

    Example:
        >>> model = DenseNetwork(use_bias=False, rngs=nnx.Rngs(0))
        >>> model(jax.numpy.zeros((2, 28, 28, 1))).shape
        (2, 10)
    """

    def __init__(
        self,
        *,
        hidden: Sequence[int] = (512, 256),
        use_bias: bool = True,
        input_shape: tuple[int, int, int] = (28, 28, 1),
        classes: int = 10,
        rngs: nnx.Rngs,
    ) -> None:
        height, width, channels = self.input_shape = _as_shape(input_shape)
        hidden, classes = as_counts(hidden, "hidden"), as_count(classes, "classes")
        self.layers = _dense_layers([height * width * channels, *hidden, classes], use_bias, rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns the logits of shape `(batch, classes)`.

        Args:
            images: Floats in [0, 1] of shape `(batch, *input_shape)`.

        Raises:
            ArrayError: If `images` has another shape.
        """
        _check_shape(images, self.input_shape)
        return _apply_dense_layers(self.layers, images.reshape(len(images), -1))


class ConvolutionalNetwork(nnx.Module):
    """A small convolutional network: (convolution, relu, max pooling) blocks, then dense layers.

    The convolutions are named `convolutions.0`, ... and the dense layers behind them `dense.0`, ...
    The convolutions add no padding, so that every output sees true pixels only: a block takes
    `size` pixels to `(size - kernel_size + 1) / 2`.

    Args:
        filters: Number of filters of each convolution.
        kernel_size: Height and width of the filters, in pixels.
        hidden: Number of neurons in each hidden dense layer.
        use_bias: Whether the layers have biases. Without them relevance is conserved exactly.
        input_shape: Height, width and channels of an image.
        classes: Number of classes.
        rngs: Random number generators; `rngs.params` initialises the weights.

    Raises:
        ArrayError: If an image is too small for the blocks, or pooling would leave a row over.

    Example:
        >>> model = ConvolutionalNetwork(rngs=nnx.Rngs(0))
        >>> model(jax.numpy.zeros((2, 28, 28, 1))).shape
        (2, 10)
    """

    def __init__(
        self,
        *,
        filters: Sequence[int] = (8, 32),
        kernel_size: int = 5,
        hidden: Sequence[int] = (128,),
        use_bias: bool = True,
        input_shape: tuple[int, int, int] = (28, 28, 1),
        classes: int = 10,
        rngs: nnx.Rngs,
    ) -> None:
        height, width, channels = self.input_shape = _as_shape(input_shape)
        filters, hidden = as_counts(filters, "filters"), as_counts(hidden, "hidden")
        kernel_size, classes = as_count(kernel_size, "kernel_size"), as_count(classes, "classes")
        for block in range(len(filters)):
            height, width = height - kernel_size + 1, width - kernel_size + 1
            if height % 2 or width % 2 or height < 2 or width < 2:
                raise ArrayError(
                    f"Images of {self.input_shape[0]} x {self.input_shape[1]} pixels do not fit: convolution {block} "
                    f"leaves {height} x {width}, which must be even to be pooled. Pad or crop the images, or choose "
                    f"another kernel_size or fewer filters."
                )
            height, width = height // 2, width // 2
        self.convolutions = nnx.List(
            nnx.Conv(
                incoming,
                outgoing,
                kernel_size=(kernel_size, kernel_size),
                padding="VALID",
                use_bias=use_bias,
                kernel_init=_INITIALIZER,
                rngs=rngs,
            )
            for incoming, outgoing in pairwise([channels, *filters])
        )
        features = height * width * [channels, *filters][-1]
        self.dense = _dense_layers([features, *hidden, classes], use_bias, rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns the logits of shape `(batch, classes)`.

        Args:
            images: Floats in [0, 1] of shape `(batch, *input_shape)`.

        Raises:
            ArrayError: If `images` has another shape.
        """
        _check_shape(images, self.input_shape)
        x = images
        for convolution in self.convolutions:
            x = nnx.max_pool(nnx.relu(convolution(x)), window_shape=(2, 2), strides=(2, 2))
        return _apply_dense_layers(self.dense, x.reshape(len(x), -1))


def _dense_layers(sizes: Sequence[int], use_bias: bool, rngs: nnx.Rngs) -> nnx.List:
    return nnx.List(
        nnx.Linear(incoming, outgoing, use_bias=use_bias, kernel_init=_INITIALIZER, rngs=rngs)
        for incoming, outgoing in pairwise(sizes)
    )


def _apply_dense_layers(layers: Sequence[nnx.Linear], x: jax.Array) -> jax.Array:
    *hidden, last = layers
    for layer in hidden:
        x = nnx.relu(layer(x))
    return last(x)


def _as_shape(input_shape: Sequence[int]) -> tuple[int, int, int]:
    shape = as_counts(input_shape, "input_shape")
    if len(shape) != 3:
        raise ArrayError(f"input_shape is (height, width, channels), but it is {shape}.")
    return shape[0], shape[1], shape[2]


def _check_shape(images: jax.Array, input_shape: tuple[int, ...]) -> None:
    images = as_array(images, "images")
    if images.shape[1:] != input_shape:
        raise ArrayError(
            f"Expected images of shape (batch, {', '.join(map(str, input_shape))}), got "
            f"{images.shape}. A single image needs a batch axis: image[None]."
        )
