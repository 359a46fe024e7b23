"""A network that was trained on ImageNet: EfficientNet-Lite0, with its weights, its input and its class names.

The weights and the class names stand in `book/data/efficientnet_lite0`, where they are found without a path.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import ArrayLike

from lrp_book import DATA
from lrp_book.errors import CheckpointError
from lrp_jax.core.arguments import as_numpy, as_path, kind_of
from lrp_jax.errors import ArrayError, import_extra

WEIGHTS_SHA256 = "0c677c314df2a69239bef9609a095a957201d5092462c5ace5d8bf3e0201bbd7"
"""SHA-256 of the file with the weights of EfficientNet-Lite0."""

CLASSES_SHA256 = "4eb3da435cf544e4a6f390f62c84cb9c9bb68cf8b14e97f8a063452382e5efd2"
"""SHA-256 of the file with the names of the classes."""

IMAGE_SIZE = 224
"""Height and width of the images that `preprocess` returns, in pixels."""

PIXEL_RANGE = (-127 / 128, 1.0)
"""The value that `preprocess` gives to a black and to a white pixel: `low` and `high` of the z-box rule."""

_CARRIED_FILES = DATA / "efficientnet_lite0"

# Each row: repeats, kernel size, stride of the first repeat, expansion, channels that come in and go out.
_BLOCKS = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)


class NormalizedConvolution(nnx.Module):
    """A convolution without bias, then a batch normalisation with the statistics of the training data.

    Args:
        incoming: Number of channels that come in.
        outgoing: Number of channels that go out.
        kernel_size: Height and width of the filters, in pixels.
        stride: Step of the filters, in pixels.
        groups: Number of groups of channels that do not mix; as many as channels for a depthwise convolution.
        rngs: Random number generators; `rngs.params` initialises the filters.

    Example:
        >>> make = lambda: NormalizedConvolution(3, 8, kernel_size=3, stride=2, rngs=nnx.Rngs(0))
        >>> jax.eval_shape(lambda x: make()(x), jnp.zeros((1, 6, 6, 3))).shape
        (1, 3, 3, 8)
    """

    def __init__(
        self, incoming: int, outgoing: int, *, kernel_size: int = 1, stride: int = 1, groups: int = 1, rngs: nnx.Rngs
    ) -> None:
        self.convolution = nnx.Conv(
            incoming,
            outgoing,
            kernel_size=(kernel_size, kernel_size),
            strides=stride,
            padding="SAME",
            feature_group_count=groups,
            use_bias=False,
            rngs=rngs,
        )
        self.normalization = nnx.BatchNorm(outgoing, use_running_average=True, epsilon=1e-3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns an array of shape `(batch, height / stride, width / stride, outgoing)`."""
        return self.normalization(self.convolution(x))


class InvertedResidual(nnx.Module):
    """A block of EfficientNet-Lite: expand the channels, filter each one alone, project to fewer channels.

    Where the block leaves the shape as it is, its input is added. Source: Sandler et al. (2018),
    "MobileNetV2: Inverted Residuals and Linear Bottlenecks", section 3.

    Args:
        incoming: Number of channels that come in.
        outgoing: Number of channels that go out.
        kernel_size: Height and width of the filters, in pixels.
        stride: Step of the filters, in pixels.
        expansion: Number of filtered channels for each channel that comes in; there is no layer `expand` if it is 1.
        rngs: Random number generators; `rngs.params` initialises the filters.

    Example:
        >>> make = lambda: InvertedResidual(4, 8, kernel_size=3, stride=2, expansion=6, rngs=nnx.Rngs(0))
        >>> jax.eval_shape(lambda x: make()(x), jnp.zeros((1, 6, 6, 4))).shape
        (1, 3, 3, 8)
    """

    def __init__(
        self, incoming: int, outgoing: int, *, kernel_size: int, stride: int, expansion: int, rngs: nnx.Rngs
    ) -> None:
        channels = incoming * expansion
        self.expand = NormalizedConvolution(incoming, channels, rngs=rngs) if expansion > 1 else None
        self.depthwise = NormalizedConvolution(
            channels, channels, kernel_size=kernel_size, stride=stride, groups=channels, rngs=rngs
        )
        self.project = NormalizedConvolution(channels, outgoing, rngs=rngs)
        self.is_residual = stride == 1 and incoming == outgoing

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns an array of shape `(batch, height / stride, width / stride, outgoing)`."""
        hidden = x if self.expand is None else jax.nn.relu6(self.expand(x))
        hidden = jax.nn.relu6(self.depthwise(hidden))
        out = self.project(hidden)
        return x + out if self.is_residual else out


class EfficientNetLite0(nnx.Module):
    """EfficientNet-Lite0: a network for 1000 classes of photographs, without its training-time dropout.

    The layers are named `stem.convolution`, `blocks.0.depthwise.convolution`, `blocks.0.project.convolution`,
    `blocks.1.expand.convolution`, ..., `head.convolution` and `classifier`. `efficientnet_lite0` returns it trained.

    Source: Tan and Le (2019), "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks". The Lite
    variant has relu6 for swish and no squeeze-and-excitation:
    https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite

    Args:
        rngs: Random number generators; `rngs.params` initialises the weights.

    Example:
        >>> model = nnx.eval_shape(lambda: EfficientNetLite0(rngs=nnx.Rngs(0)))
        >>> sum(parameter.size for parameter in jax.tree.leaves(nnx.state(model, nnx.Param)))
        4652008
    """

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.stem = NormalizedConvolution(3, 32, kernel_size=3, stride=2, rngs=rngs)
        self.blocks = nnx.List(
            InvertedResidual(
                incoming if repeat == 0 else outgoing,
                outgoing,
                kernel_size=kernel_size,
                stride=stride if repeat == 0 else 1,
                expansion=expansion,
                rngs=rngs,
            )
            for repeats, kernel_size, stride, expansion, incoming, outgoing in _BLOCKS
            for repeat in range(repeats)
        )
        self.head = NormalizedConvolution(320, 1280, rngs=rngs)
        self.classifier = nnx.Linear(1280, 1000, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns the logits of shape `(batch, 1000)`.

        Args:
            images: Floats of shape `(batch, height, width, 3)`, from `preprocess`.

        Raises:
            ArrayError: If `images` has another shape or holds integers.
        """
        if images.ndim != 4 or images.shape[-1] != 3 or not jnp.issubdtype(images.dtype, jnp.floating):
            raise ArrayError(
                f"Expected floats of shape (batch, height, width, 3), got {images.dtype} of shape {images.shape}. For "
                f"one photograph: preprocess(image)[None]."
            )
        x = jax.nn.relu6(self.stem(images))
        for block in self.blocks:
            x = block(x)
        x = jax.nn.relu6(self.head(x))
        return self.classifier(x.mean((1, 2)))


def efficientnet_lite0(path: str | os.PathLike[str] | None = None) -> EfficientNetLite0:
    """Returns EfficientNet-Lite0 as it was trained on ImageNet by Google.

    Args:
        path: The file with the weights, `efficientnet_lite0.safetensors`; the one that the source checkout carries if
            None.

    Returns:
        The network, with float32 weights. It takes what `preprocess` returns, with a batch axis, and returns the logits
        of the classes that `imagenet_classes` names.

    Raises:
        CheckpointError: If the file is absent, damaged, or another one.
        MissingExtraError: If safetensors is not installed.

    Example:
        >>> model = efficientnet_lite0()
        >>> model.classifier.kernel.shape
        (1280, 1000)
    """
    file = _carried_file("efficientnet_lite0.safetensors") if path is None else as_path(path, "path", CheckpointError)
    model = nnx.eval_shape(lambda: EfficientNetLite0(rngs=nnx.Rngs(0)))
    parameters = dict(_parameters(model))
    shapes = {name: _transposed(parameter.shape) for name, parameter in parameters.items()}
    tensors = read_safetensors(file, shapes, sha256=WEIGHTS_SHA256)
    for name, parameter in parameters.items():
        parameter.set_value(jnp.asarray(tensors[name].transpose(_AXES[tensors[name].ndim])))
    return model


# The file has the axes of PyTorch, where the network has those of Flax: (out, in, height, width) for
# (height, width, in, out), and (out, in) for (in, out).
_AXES = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}


def _transposed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in the file of a parameter."""
    return tuple(shape[i] for i in np.argsort(_AXES[len(shape)]))


def _parameters(model: EfficientNetLite0) -> Iterator[tuple[str, Any]]:
    """The parameters and statistics of the network, each with its name in the file."""
    convolutions = [("_conv_stem", "_bn0", model.stem), ("_conv_head", "_bn1", model.head)]
    for i, block in enumerate(model.blocks):
        names = ("expand", "_bn0"), ("depthwise", "_bn1"), ("project", "_bn2")
        for name, normalization in names:
            part = getattr(block, name)
            if part is not None:
                convolutions.append((f"_blocks.{i}._{name}_conv", f"_blocks.{i}.{normalization}", part))
    for convolution, normalization, part in convolutions:
        yield f"{convolution}.weight", part.convolution.kernel
        yield f"{normalization}.weight", part.normalization.scale
        yield f"{normalization}.bias", part.normalization.bias
        yield f"{normalization}.running_mean", part.normalization.mean
        yield f"{normalization}.running_var", part.normalization.var
    yield "_fc.weight", model.classifier.kernel
    yield "_fc.bias", model.classifier.bias


def read_safetensors(
    path: str | os.PathLike[str], shapes: Mapping[str, tuple[int, ...]], *, sha256: str | None = None
) -> dict[str, np.ndarray]:
    """Reads a file of weights and checks that it is the one that was expected.

    The format holds numbers only: reading a file from elsewhere runs no code from it.

    Args:
        path: A file in the safetensors format (https://github.com/huggingface/safetensors).
        shapes: The name and the shape of every tensor that the file must hold.
        sha256: The SHA-256 of the file, in hexadecimal; not checked if None.

    Returns:
        The tensors by name, as float32 arrays.

    Raises:
        CheckpointError: If the file is absent or damaged, a tensor is absent, superfluous, or has another shape or
            another dtype than float32, or the SHA-256 differs.
        MissingExtraError: If safetensors is not installed.

    Example:
        >>> import tempfile
        >>> from safetensors.numpy import save_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file({"bias": np.zeros(3, np.float32)}, f"{folder}/weights.safetensors")
        ...     read_safetensors(f"{folder}/weights.safetensors", {"bias": (3,)})
        {'bias': array([0., 0., 0.], dtype=float32)}
    """
    safetensors = import_extra("safetensors", "book")
    if not isinstance(shapes, Mapping):
        raise CheckpointError(f"shapes must be a mapping from names to shapes, but it is {kind_of(shapes)}.")
    file = as_path(path, "path", CheckpointError)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        tensors = dict(safetensors.deserialize(data))
    except safetensors.SafetensorError as error:
        raise CheckpointError(
            f"{path} ({len(data):,} bytes) is truncated or no safetensors file: {error}. Restore it."
        ) from error
    for name, shape in shapes.items():
        if name not in tensors:
            raise CheckpointError(
                f"{path} holds the weights of another network: it has no tensor {name!r}, expected with shape {shape}. "
                f"Its first of {len(tensors)} is {min(tensors, default='none')!r}."
            )
        found_shape, found_dtype = tuple(tensors[name]["shape"]), tensors[name]["dtype"]
        if found_shape != shape:
            raise CheckpointError(f"{path}: the tensor {name!r} has the shape {found_shape}, expected {shape}.")
        if found_dtype != "F32":
            raise CheckpointError(f"{path}: the tensor {name!r} has the dtype {found_dtype}, expected F32.")
    superfluous = sorted(tensors.keys() - shapes.keys())
    if superfluous:
        raise CheckpointError(
            f"{path} holds the weights of another network: its tensor {superfluous[0]!r} has no place in this one "
            f"({len(superfluous)} such tensors)."
        )
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256:
        raise CheckpointError(
            f"{path} has tensors of the expected names and shapes, but other values: its SHA-256 is {found}, expected "
            f"{sha256}. Restore it."
        )
    return {name: np.frombuffer(tensors[name]["data"], "<f4").reshape(shape) for name, shape in shapes.items()}


def preprocess(image: ArrayLike) -> np.ndarray:
    """Returns a photograph in the form that EfficientNet-Lite0 takes.

    A square of 224/256 of the short side is cut from the middle and resized to 224 x 224 pixels (bicubic). With
    `x = preprocess(image)`, what the network sees is `(128 * x + 127) / 255`, in [0, 1].

    Args:
        image: uint8 array of shape `(height, width, 3)`, red, green and blue from 0 to 255, of any height and width
            from 2; or a Pillow image in mode RGB.

    Returns:
        float32 array of shape `(224, 224, 3)`: `(value - 127) / 128`, within `PIXEL_RANGE`.

    Raises:
        ArrayError: If the image has another shape or another dtype.
        MissingExtraError: If Pillow is not installed.

    Example:
        >>> x = preprocess(np.full((300, 400, 3), 255, np.uint8))
        >>> x.shape, float(x.min()), float(x.max())
        ((224, 224, 3), 1.0, 1.0)
    """
    pixels = as_numpy(image, "The image", ArrayError)
    if pixels.ndim != 3 or pixels.shape[-1] != 3 or pixels.dtype != np.uint8 or min(pixels.shape) < 2:
        raise ArrayError(
            f"Expected uint8 RGB values of shape (height, width, 3), got {pixels.dtype} of shape {pixels.shape}. "
            f"Pillow turns other pictures into it: np.asarray(picture.convert('RGB'))."
        )
    pillow = import_extra("PIL.Image", "book")
    height, width, _ = pixels.shape
    side = min(height, width) * IMAGE_SIZE // 256
    top, left = (height - side) // 2, (width - side) // 2
    square = pillow.fromarray(pixels[top : top + side, left : left + side])
    resized = square.resize((IMAGE_SIZE, IMAGE_SIZE), pillow.Resampling.BICUBIC)
    return (np.asarray(resized, np.float32) - 127) / 128


def imagenet_classes(path: str | os.PathLike[str] | None = None) -> tuple[str, ...]:
    """Returns the names of the 1000 classes of ImageNet, in the order of the logits.

    Of the synonyms that WordNet lists, the first. The classes 134 and 517 (the bird and the machine) are both named
    "crane", 638 and 639 both "maillot".

    Args:
        path: The file with the names, `classes.txt`: a line of synonyms, with commas between, for each class; the one
            that the source checkout carries if None.

    Returns:
        1000 names.

    Raises:
        CheckpointError: If the file is absent, damaged, or another one.

    Example:
        >>> names = imagenet_classes()
        >>> len(names), names[281], names[967]
        (1000, 'tabby', 'espresso')
    """
    file = _carried_file("classes.txt") if path is None else as_path(path, "path", CheckpointError)
    try:
        data = file.read_bytes()
        lines = data.decode().splitlines()
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{file} is no text in UTF-8: {error}. Restore it.") from error
    if len(lines) != 1000:
        raise CheckpointError(f"{file} has {len(lines)} lines, expected one for each of 1000 classes. Restore it.")
    found = hashlib.sha256(data).hexdigest()
    if found != CLASSES_SHA256:
        raise CheckpointError(
            f"{file} holds other names, or in another order: its SHA-256 is {found}, expected {CLASSES_SHA256}. "
            f"Restore it."
        )
    return tuple(line.partition(",")[0] for line in lines)


def _carried_file(name: str) -> Path:
    file = _CARRIED_FILES / name
    if not file.exists():
        raise CheckpointError(
            f"{name} comes with a source checkout of lrp_jax, in book/data/efficientnet_lite0, and not with the "
            f"installed package: {file} does not exist. Get the file from the repository and pass its path."
        )
    return file
