"""The networks and rules whose relevance is timed and counted: LeNet, VGG16 and ResNet50, in NNX."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from lrp_jax import composites, lrp, rules

RULES = {
    "epsilon": rules.Epsilon(),
    "epsilon-plus": composites.EpsilonPlus(),
    "epsilon-plus-flat": composites.EpsilonPlusFlat(),
    "epsilon-gamma-box": composites.EpsilonGammaBox(-3.0, 3.0),
    "epsilon-alpha2-beta1": composites.EpsilonAlpha2Beta1(),
}


def lower(structure: Any, state: Any, x: Any, rule: Any) -> Any:
    """The program of a network's relevance under a rule, or of its input gradient if that is None.

    Parameters and images may be shapes alone: nothing is run.
    """

    def explain(state: Any, x: jax.Array) -> jax.Array:
        network: Any = nnx.merge(structure, state)
        explained = network if rule is None else lrp(network, rule)
        return jax.grad(lambda x: explained(x)[:, 1].sum())(x)

    return jax.jit(explain).lower(state, x)


class LeNet(nnx.Module):
    """Two convolutions with average pooling and three dense layers, for images of 28 x 28 x 1."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.first = nnx.Conv(1, 6, (5, 5), rngs=rngs)
        self.second = nnx.Conv(6, 16, (5, 5), padding="VALID", rngs=rngs)
        self.dense = nnx.List([nnx.Linear(i, o, rngs=rngs) for i, o in ((400, 120), (120, 84), (84, 10))])

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.avg_pool(nnx.relu(self.first(x)), (2, 2), (2, 2))
        x = nnx.avg_pool(nnx.relu(self.second(x)), (2, 2), (2, 2))
        x = x.reshape(len(x), -1)
        for layer in self.dense[:-1]:
            x = nnx.relu(layer(x))
        return self.dense[-1](x)


class VGG16(nnx.Module):
    """Simonyan and Zisserman (2015), configuration D, for images of 224 x 224 x 3 (or multiples of 32)."""

    blocks = ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)

    def __init__(self, *, side: int = 224, rngs: nnx.Rngs) -> None:
        channels, self.convolutions = 3, nnx.List()
        for block in self.blocks:
            for outgoing in block:
                self.convolutions.append(nnx.Conv(channels, outgoing, (3, 3), rngs=rngs))
                channels = outgoing
        sizes = (512 * (side // 32) ** 2, 4096), (4096, 4096), (4096, 1000)
        self.dense = nnx.List([nnx.Linear(i, o, rngs=rngs) for i, o in sizes])

    def __call__(self, x: jax.Array) -> jax.Array:
        convolutions = iter(self.convolutions)
        for block in self.blocks:
            for _ in block:
                x = nnx.relu(next(convolutions)(x))
            x = nnx.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(len(x), -1)
        for layer in self.dense[:-1]:
            x = nnx.relu(layer(x))
        return self.dense[-1](x)


class Bottleneck(nnx.Module):
    """A residual block of three convolutions, with a strided shortcut where the shape changes."""

    def __init__(self, incoming: int, width: int, stride: int, *, rngs: nnx.Rngs) -> None:
        def convolution(i: int, o: int, size: int, stride: int = 1) -> nnx.Conv:
            padding = (size // 2, size // 2)
            strides = (stride, stride)
            return nnx.Conv(i, o, (size, size), strides=strides, padding=(padding, padding), use_bias=False, rngs=rngs)

        def normalization(channels: int) -> nnx.BatchNorm:
            return nnx.BatchNorm(channels, use_running_average=True, rngs=rngs)

        outgoing = 4 * width
        self.convolutions = nnx.List(
            [convolution(incoming, width, 1), convolution(width, width, 3, stride), convolution(width, outgoing, 1)]
        )
        self.normalizations = nnx.List([normalization(width), normalization(width), normalization(outgoing)])
        self.shortcut = nnx.List()
        if stride > 1 or incoming != outgoing:
            self.shortcut.extend([convolution(incoming, outgoing, 1, stride), normalization(outgoing)])

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x
        for i, (convolution, normalization) in enumerate(zip(self.convolutions, self.normalizations, strict=True)):
            y = normalization(convolution(y))
            if i < 2:
                y = nnx.relu(y)
        for layer in self.shortcut:
            x = layer(x)
        return nnx.relu(x + y)


class ResNet50(nnx.Module):
    """He, Zhang, Ren and Sun (2016), with batch normalisation at inference; strides as in torchvision."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.stem = nnx.Conv(3, 64, (7, 7), strides=(2, 2), padding=((3, 3), (3, 3)), use_bias=False, rngs=rngs)
        self.normalization = nnx.BatchNorm(64, use_running_average=True, rngs=rngs)
        self.blocks, incoming = nnx.List(), 64
        for width, number, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
            for i in range(number):
                self.blocks.append(Bottleneck(incoming, width, stride if i == 0 else 1, rngs=rngs))
                incoming = 4 * width
        self.dense = nnx.Linear(incoming, 1000, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.normalization(self.stem(x)))
        x = nnx.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for block in self.blocks:
            x = block(x)
        return self.dense(x.mean((1, 2)))


@dataclass(frozen=True)
class Case:
    """A network, the shape of a batch of its images, and the range of their values."""

    make: Callable[..., nnx.Module]
    shape: tuple[int, int, int, int]


CASES = {
    "LeNet": Case(LeNet, (128, 28, 28, 1)),
    "VGG16": Case(VGG16, (4, 224, 224, 3)),
    "ResNet50": Case(ResNet50, (4, 224, 224, 3)),
}
