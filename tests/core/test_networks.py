"""Whole networks against a plain backward loop in numpy that shares no code with the library.

The loop runs a network one sample at a time on dense matrices, writes down every step, and hands back, step by step,
the ratio of relevance and value, and relevance where a rule gives some to values of zero; the rules on a matrix are
those of `naive/layers.py`. A shift that belongs to no layer keeps its share. Norms are as trained: statistics far from
0 and 1, scales of either sign, shifts of the size of the values.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import jit_by_day
from flax import nnx
from naive.layers import convolution_matrix, shares_of

from lrp_jax import lrp
from lrp_jax.composites import Composite, any_layer, conv, first, index, last
from lrp_jax.rules import AlphaBeta, Epsilon, Flat, Gamma, Norm, Rule, WSquare, ZBox, Zero, ZPlus

LOW, HIGH = -2.0, 1.5


def divided(numerator, denominator):
    """A division by zero is zero."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator != 0)


@dataclass
class Step:
    """One operation of the network: its operands, and how the ratio and the relevance of its value become theirs."""

    operands: list[int]
    back: Callable[[np.ndarray, np.ndarray, list[Rule]], list[tuple]]


@dataclass
class Loop:
    """A network on one sample: the values of all steps, numbered, and the kinds of its layers."""

    values: list[np.ndarray] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)

    def input(self, x):
        return self._append(x, Step([], lambda ratio, relevance, rules: []))

    def conv(self, i, layer, stride=1, padding=0, norm=None, number=None):
        """A convolution; `number` is that of a layer that is read a second time, with what follows it there."""
        kernel, (height, width, _) = np.asarray(layer.kernel[...]), self.values[i].shape
        rows, columns, _, features = kernel.shape
        options = {"stride": stride, "padding": ((padding, padding),) * 2, "dilation": 1, "groups": 1, "spread": 1}
        matrix = convolution_matrix(kernel, self.values[i].shape, options)
        out = (height + 2 * padding - rows) // stride + 1, (width + 2 * padding - columns) // stride + 1
        return self._layer("conv", i, matrix, np.tile(bias_of(layer), out[0] * out[1]), (*out, features), norm, number)

    def dense(self, i, layer):
        return self._layer("dense", i, np.asarray(layer.kernel[...]).T, bias_of(layer), bias_of(layer).shape, None)

    def _layer(self, kind, i, matrix, b, shape, norm, number=None):
        if norm is not None:
            scale, shift = (np.tile(a, shape[0] * shape[1]) for a in scale_and_shift(norm))
            matrix, b = scale[:, None] * matrix, scale * b + shift
        x = self.values[i]
        if number is None:
            number = len(self.kinds)
            self.kinds.append(kind)
        z = (matrix @ x.ravel() + b).reshape(shape)

        def back(ratio, relevance, rules):
            arrived = (ratio * z + relevance).ravel()
            one_group = np.zeros(len(b), int)  # of features: a stabilizer is relative to all outputs
            shares = shares_of(rules[number], matrix, matrix != 0, b, x.ravel(), one_group)
            found = (shares.matrix @ arrived).reshape(x.shape)
            is_ratio = not isinstance(rules[number], WSquare | Flat | ZBox)
            return [(divided(found, x), 0.0) if is_ratio else (0.0, found)]

        return self._append(z, Step([i], back))

    def norm(self, i, layer):
        """A batch normalisation that no layer precedes: its shift keeps its share of a ratio."""
        scale, shift = scale_and_shift(layer)
        step = Step([i], lambda ratio, relevance, rules: [(scale * ratio, relevance)])
        return self._append(scale * self.values[i] + shift, step)

    def relu(self, i):
        x = self.values[i]
        return self._append(np.maximum(x, 0), Step([i], lambda ratio, relevance, rules: [((x > 0) * ratio, relevance)]))

    def add(self, i, j):
        total = self.values[i] + self.values[j]
        back = lambda ratio, relevance, rules: [(ratio + divided(relevance, total), 0.0)] * 2
        return self._append(total, Step([i, j], back))

    def concatenate(self, i, j):
        channels = self.values[i].shape[-1]
        value = np.concatenate([self.values[i], self.values[j]], -1)

        def back(ratio, relevance, rules):
            return [(ratio[..., part], relevance[..., part]) for part in (slice(channels), slice(channels, None))]

        return self._append(value, Step([i, j], back))

    def flatten(self, i):
        x = self.values[i]
        back = lambda ratio, relevance, rules: [(ratio.reshape(x.shape), relevance.reshape(x.shape))]
        return self._append(x.ravel(), Step([i], back))

    def max_pool(self, i, size, stride):
        x = self.values[i]
        windows = list(windows_of(x.shape, size, stride))

        def back(ratio, relevance, rules):
            outs = np.zeros_like(x), np.zeros_like(x)
            for row, column, window in windows:
                for channel in range(x.shape[-1]):
                    winner = x[window][..., channel].argmax()
                    for out, arrived in zip(outs, (ratio, relevance), strict=True):
                        out[window][..., channel].flat[winner] += arrived[row, column, channel]
            return [outs]

        return self._append(self._pooled(windows, lambda x: x.max((0, 1)), x), Step([i], back))

    def mean_pool(self, i, size, stride):
        x = self.values[i]
        windows = list(windows_of(x.shape, size, stride))
        y = self._pooled(windows, lambda x: x.mean((0, 1)), x)

        def back(ratio, relevance, rules):
            out, ratio = np.zeros_like(x), ratio + divided(relevance, y)
            for row, column, window in windows:
                out[window] += ratio[row, column] / size**2
            return [(out, 0.0)]

        return self._append(y, Step([i], back))

    def _pooled(self, windows, reduce, x):
        rows, columns = (1 + max(window[axis] for window in windows) for axis in (0, 1))
        out = np.zeros((rows, columns, x.shape[-1]))
        for row, column, window in windows:
            out[row, column] = reduce(x[window])
        return out

    def _append(self, value, step):
        self.values.append(value)
        self.steps.append(step)
        return len(self.values) - 1

    def relevance_of_input(self, seed, rules):
        """Hands `seed` times the output back to the input."""
        ratios, relevances = ([np.zeros_like(value) for value in self.values] for _ in range(2))
        ratios[-1] = seed
        for number in reversed(range(len(self.steps))):
            step = self.steps[number]
            parts = step.back(ratios[number], relevances[number], rules)
            for operand, (ratio, relevance) in zip(step.operands, parts, strict=True):
                ratios[operand] = ratios[operand] + ratio
                relevances[operand] = relevances[operand] + relevance
        return ratios[0] * self.values[0] + relevances[0]


def windows_of(shape, size, stride):
    for i, j in np.ndindex((shape[0] - size) // stride + 1, (shape[1] - size) // stride + 1):
        yield i, j, np.s_[i * stride : i * stride + size, j * stride : j * stride + size]


def bias_of(layer):
    features = layer.kernel[...].shape[-1]
    return np.zeros(features) if layer.bias is None else np.asarray(layer.bias[...])


def scale_and_shift(norm):
    mean, variance, scale, bias = (np.asarray(p[...]) for p in (norm.mean, norm.var, norm.scale, norm.bias))
    scale = scale / np.sqrt(variance + norm.epsilon)
    return scale, bias - scale * mean


def convolution(channels, features, size, rngs, *, stride=1, padding=0, use_bias=True):
    return nnx.Conv(
        channels,
        features,
        (size, size),
        strides=stride,
        padding=[(padding, padding)] * 2,
        use_bias=use_bias,
        param_dtype=jnp.float64,
        rngs=rngs,
    )


def dense_layer(inputs, features, rngs):
    return nnx.Linear(inputs, features, param_dtype=jnp.float64, rngs=rngs)


def batch_norm(features, rngs):
    return nnx.BatchNorm(features, use_running_average=True, param_dtype=jnp.float64, rngs=rngs)


def pool(x, kind, size, stride):
    return {"max": nnx.max_pool, "mean": nnx.avg_pool}[kind](x, (size, size), (stride, stride))


class LeNet(nnx.Module):
    shape = (6, 6, 2)

    def __init__(self, rngs):
        self.conv1, self.conv2 = convolution(2, 3, 3, rngs), convolution(3, 4, 2, rngs)
        self.dense1, self.dense2 = dense_layer(4, 5, rngs), dense_layer(5, 3, rngs)

    def __call__(self, x):
        x = pool(nnx.relu(self.conv1(x)), "max", 2, 2)
        x = nnx.relu(self.conv2(x)).reshape(len(x), -1)
        return self.dense2(nnx.relu(self.dense1(x)))

    def run(self, loop, x):
        x = loop.max_pool(loop.relu(loop.conv(x, self.conv1)), 2, 2)
        x = loop.flatten(loop.relu(loop.conv(x, self.conv2)))
        loop.dense(loop.relu(loop.dense(x, self.dense1)), self.dense2)


class VGG(nnx.Module):
    """With max pooling and average pooling whose windows overlap."""

    shape = (7, 7, 3)

    def __init__(self, rngs):
        self.conv1, self.conv2 = convolution(3, 3, 3, rngs, padding=1), convolution(3, 3, 3, rngs, padding=1)
        self.conv3 = convolution(3, 3, 3, rngs, padding=1)
        self.dense1, self.dense2 = dense_layer(12, 4, rngs), dense_layer(4, 3, rngs)

    def __call__(self, x):
        x = pool(nnx.relu(self.conv2(nnx.relu(self.conv1(x)))), "max", 3, 2)
        x = pool(nnx.relu(self.conv3(x)), "mean", 2, 1).reshape(len(x), -1)
        return self.dense2(nnx.relu(self.dense1(x)))

    def run(self, loop, x):
        x = loop.relu(loop.conv(loop.relu(loop.conv(x, self.conv1, padding=1)), self.conv2, padding=1))
        x = loop.relu(loop.conv(loop.max_pool(x, 3, 2), self.conv3, padding=1))
        x = loop.flatten(loop.mean_pool(x, 2, 1))
        loop.dense(loop.relu(loop.dense(x, self.dense1)), self.dense2)


class ResNet(nnx.Module):
    """Batch normalisation of the input and after each convolution; a block with an identity, one with a projection."""

    shape = (5, 5, 3)

    def __init__(self, rngs):
        self.norm0, self.norm1 = batch_norm(3, rngs), batch_norm(3, rngs)
        self.conv1 = convolution(3, 3, 3, rngs, padding=1, use_bias=False)
        self.conv2, self.norm2 = convolution(3, 3, 3, rngs, padding=1, use_bias=False), batch_norm(3, rngs)
        self.conv3, self.norm3 = convolution(3, 3, 3, rngs, padding=1), batch_norm(3, rngs)
        self.conv4, self.norm4 = convolution(3, 4, 3, rngs, stride=2, padding=1, use_bias=False), batch_norm(4, rngs)
        self.conv5, self.norm5 = convolution(3, 4, 1, rngs, stride=2), batch_norm(4, rngs)
        self.dense = dense_layer(4, 3, rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm1(self.conv1(self.norm0(x))))
        y = nnx.relu(self.norm2(self.conv2(x)))
        x = nnx.relu(self.norm3(self.conv3(y)) + x)
        x = nnx.relu(self.norm4(self.conv4(x)) + self.norm5(self.conv5(x)))
        return self.dense(x.mean((1, 2)))

    def run(self, loop, x):
        x = loop.relu(loop.conv(loop.norm(x, self.norm0), self.conv1, padding=1, norm=self.norm1))
        y = loop.relu(loop.conv(x, self.conv2, padding=1, norm=self.norm2))
        x = loop.relu(loop.add(loop.conv(y, self.conv3, padding=1, norm=self.norm3), x))
        y = loop.conv(x, self.conv4, stride=2, padding=1, norm=self.norm4)
        x = loop.relu(loop.add(y, loop.conv(x, self.conv5, stride=2, norm=self.norm5)))
        loop.dense(loop.flatten(loop.mean_pool(x, 3, 1)), self.dense)


class PreactivationResNet(nnx.Module):
    """Batch normalisation and relu before each convolution; the normalisation of a sum belongs to no layer.

    The first layer is read in two places, in one of them with a normalisation behind it.
    """

    shape = (4, 4, 3)

    def __init__(self, rngs):
        self.conv1, self.norm1 = convolution(3, 3, 3, rngs, padding=1), batch_norm(3, rngs)
        self.conv2, self.norm2 = convolution(3, 3, 3, rngs, padding=1), batch_norm(3, rngs)
        self.conv3, self.norm3 = convolution(3, 3, 3, rngs, padding=1, use_bias=False), batch_norm(3, rngs)
        self.dense = dense_layer(3, 3, rngs)

    def __call__(self, x):
        x = self.conv1(x)
        y = nnx.relu(self.norm2(self.conv2(nnx.relu(self.norm1(x)))))
        x = self.conv3(y) + x
        return self.dense(nnx.relu(self.norm3(x)).mean((1, 2)))

    def run(self, loop, x):
        normed = loop.conv(x, self.conv1, padding=1, norm=self.norm1)
        x = loop.conv(x, self.conv1, padding=1, number=0)
        y = loop.relu(loop.conv(loop.relu(normed), self.conv2, padding=1, norm=self.norm2))
        x = loop.add(loop.conv(y, self.conv3, padding=1), x)
        loop.dense(loop.flatten(loop.mean_pool(loop.relu(loop.norm(x, self.norm3)), 4, 1)), self.dense)


class DenseNet(nnx.Module):
    """Concatenated features, each convolution behind a batch normalisation and a relu."""

    shape = (4, 4, 2)

    def __init__(self, rngs):
        self.conv1 = convolution(2, 2, 3, rngs, padding=1)
        self.norm2, self.conv2 = batch_norm(2, rngs), convolution(2, 2, 3, rngs, padding=1, use_bias=False)
        self.norm3, self.conv3 = batch_norm(4, rngs), convolution(4, 2, 3, rngs, padding=1)
        self.norm4, self.conv4 = batch_norm(6, rngs), convolution(6, 3, 1, rngs, use_bias=False)
        self.norm5, self.dense = batch_norm(3, rngs), dense_layer(12, 3, rngs)

    def __call__(self, x):
        x = self.conv1(x)
        for norm, layer in ((self.norm2, self.conv2), (self.norm3, self.conv3)):
            x = jnp.concatenate([x, layer(nnx.relu(norm(x)))], -1)
        x = pool(self.conv4(nnx.relu(self.norm4(x))), "mean", 2, 2)
        return self.dense(nnx.relu(self.norm5(x)).reshape(len(x), -1))

    def run(self, loop, x):
        normed = loop.conv(x, self.conv1, padding=1, norm=self.norm2)
        x = loop.conv(x, self.conv1, padding=1, number=0)
        x = loop.concatenate(x, loop.conv(loop.relu(normed), self.conv2, padding=1))
        x = loop.concatenate(x, loop.conv(loop.relu(loop.norm(x, self.norm3)), self.conv3, padding=1))
        x = loop.mean_pool(loop.conv(loop.relu(loop.norm(x, self.norm4)), self.conv4), 2, 2)
        loop.dense(loop.flatten(loop.relu(loop.norm(x, self.norm5))), self.dense)


@functools.cache
def with_random_parameters(network, seed):
    """A network with drawn parameters and running statistics, and two samples with both signs."""
    generator = np.random.default_rng(seed)
    definition, shapes = nnx.split(nnx.eval_shape(lambda: network(nnx.Rngs(0))))

    def draw(path, leaf):
        normal = generator.normal(size=leaf.shape)
        match jax.tree_util.keystr(path[1:2], simple=True):
            case "kernel":
                drawn = normal * np.sqrt(2 / np.prod(leaf.shape[:-1]))
            case "scale":
                drawn = 0.25 + normal  # of either sign
            case "var":
                drawn = 0.3 + normal**2
            case "mean":
                drawn = normal
            case "bias" if "norm" in jax.tree_util.keystr(path[:1]):
                drawn = normal
            case _:
                drawn = 0.3 * normal
        return jnp.asarray(drawn)

    model = nnx.merge(definition, jax.tree_util.tree_map_with_path(draw, shapes))
    return model, generator.normal(size=(2, *network.shape))


def everywhere(rule):
    return rule, lambda kinds: [rule] * len(kinds)


def special(at_input, in_conv, in_dense, at_output):
    composite = Composite([(first, at_input), (last, at_output), (conv, in_conv), (any_layer, in_dense)])
    by_kind = {"conv": in_conv, "dense": in_dense}
    return composite, lambda kinds: [at_input, *(by_kind[kind] for kind in kinds[1:-1]), at_output]


NETWORKS = [LeNet, VGG, ResNet, PreactivationResNet, DenseNet]

ASSIGNMENTS = {
    **{
        f"{type(rule).__name__}-{rule.bias}": everywhere(rule)
        for bias in ("absorb", "ignore", "distribute")
        for rule in (
            Zero(bias=bias),
            Epsilon(0.1, bias=bias),
            Gamma(0.5, bias=bias),
            AlphaBeta(2.0, 1.0, bias=bias),
            ZPlus(bias=bias),
            WSquare(bias=bias),
            Flat(bias=bias),
            ZBox(LOW, HIGH, bias=bias),
            Norm(bias=bias),
        )
    },
    "Epsilon-relative": everywhere(Epsilon(0.2, relative=True)),
    "flat-gamma-epsilon": special(Flat(), Gamma(0.25), Epsilon(0.1), Zero()),
    "zbox-alpha_beta-epsilon": special(ZBox(LOW, HIGH), AlphaBeta(3.0, 2.0, bias="distribute"), Epsilon(1e-3), Zero()),
    "wsquare-zplus": special(WSquare(), ZPlus(bias="ignore"), ZPlus(bias="ignore"), ZPlus(bias="ignore")),
    "flat-inside": (
        Composite([(index[1:3], Flat()), (any_layer, Gamma(0.5))]),
        lambda kinds: [Flat() if i in (1, 2) else Gamma(0.5) for i in range(len(kinds))],
    ),
}


@pytest.mark.sampled(13)
@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("network", NETWORKS)
def test_network_agrees_with_plain_loop(float64, network, assignment):
    model, x = with_random_parameters(network, seed=NETWORKS.index(network))
    composite, rules_of = ASSIGNMENTS[assignment]
    seed = np.array([[1.0, 0.0, -0.5], [0.0, 2.0, 0.0]])

    @jit_by_day
    def explain(x, seed):
        output, transpose = jax.vjp(lrp(model, composite), x)
        return output, transpose(seed)[0]

    output, found = explain(x, seed)
    expected = []
    for sample, sample_output, sample_seed in zip(x, output, seed, strict=True):
        loop = Loop()
        model.run(loop, loop.input(sample))
        np.testing.assert_allclose(sample_output, loop.values[-1], rtol=0, atol=1e-12)
        expected.append(loop.relevance_of_input(sample_seed, rules_of(loop.kinds)))
    error = np.abs(found - np.stack(expected)).max() / np.abs(expected).max()
    assert error < 1e-9, f"{error:.1e} of the maximum"


def test_gamma_without_bias_where_only_the_bias_makes_the_output_positive():
    # z = 1 - 3 + 4 = 2, and -2 without the bias: the negative contributions are favoured. They are 1 and -3 - 3 = -6,
    # together -5, so that the inputs get 2 * 1 / -5 and 2 * -6 / -5.
    weight, bias = jnp.array([[1.0], [-3.0]]), jnp.array([4.0])
    explained = lrp(lambda x: jax.nn.relu(x @ weight + bias)[0], Gamma(1.0, 0.0, bias="ignore"))
    np.testing.assert_allclose(jax.grad(explained)(jnp.ones(2)), [-0.4, 2.4], rtol=1e-5)
