"""Real architectures of installed packages, with trained-like weights: what must hold of every map.

The default run explains some of them, `make nightly` all.
"""

import warnings

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import jit_by_day
from flax import nnx
from nightly import NIGHTLY

from lrp_jax import composites, ledger, relevance
from lrp_jax.errors import LRPWarning

# In single precision values that are nearly equal may change places from one way of compiling to another.
PRECISIONS = ("double", "single")[: 2 if NIGHTLY else 1]
# The groups of blocks of a ResNet18, by day smaller.
CHANNELS, BLOCKS = ((64, 128, 256, 512), (2, 2, 2, 2)) if NIGHTLY else ((16, 32, 64, 128), (1, 1, 1, 1))
IMAGES, TOKENS, FEATURES = (2, 32, 32, 3), (2, 6, 8), (2, 10)


def disturbed(tree, seed=1):
    """Parameters and statistics as training leaves them: shifts that are not zero, scales of both signs, variances."""
    generator = np.random.default_rng(seed)

    def one(path, leaf):
        if not hasattr(leaf, "dtype") or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        if leaf.ndim == 2 and not np.any(leaf):  # Haiku's ResNets start with a last layer of zeros
            return jnp.asarray(generator.normal(size=leaf.shape) / np.sqrt(len(leaf)), leaf.dtype)
        if leaf.ndim != 1:
            return leaf
        name = jax.tree_util.keystr(path)
        noise = generator.normal(size=leaf.shape)
        if "var" in name:
            return jnp.asarray(0.5 + noise**2, leaf.dtype)
        return leaf + jnp.asarray((0.8 if "scale" in name else 0.3) * noise, leaf.dtype)

    return jax.tree_util.tree_map_with_path(one, tree)


def haiku(network, shape, *args):
    """A network in inference mode; one training step makes its statistics."""
    transformed = hk.without_apply_rng(hk.transform_with_state(lambda x, *args: network()(x, *args)))
    x = jax.random.normal(jax.random.key(5), shape)
    parameters, state = jax.jit(lambda x: transformed.init(jax.random.key(0), x, *(not arg for arg in args)))(x)
    parameters, state = disturbed(parameters), disturbed(state)
    return lambda x: transformed.apply(parameters, state, x, *args)[0]


def linen(module, shape, **options):
    variables = disturbed(jax.jit(lambda x: module.init(jax.random.key(0), x, **options))(jnp.ones(shape)))
    return lambda x: module.apply(variables, x, **options)


def nnx_module(module):
    module.eval()
    structure, state = nnx.split(module)
    return nnx.merge(structure, disturbed(state))


def resnet18(**options):
    """`hk.nets.ResNet18`, by day with a quarter of its channels and half of its blocks."""
    options |= {"channels_per_group": CHANNELS, "initial_conv_config": {"output_channels": CHANNELS[0]}}
    options |= {"use_projection": (False, True, True, True)}
    return hk.nets.ResNet(BLOCKS, 3, bottleneck=False, **options)


class HaikuTransformer(hk.Module):
    def __call__(self, x):
        for _ in range(2):
            normed = hk.LayerNorm(-1, True, True)(x)
            x = x + hk.MultiHeadAttention(2, 4, w_init_scale=1.0, model_size=8)(normed, normed, normed)
            x = x + hk.Linear(8)(jax.nn.gelu(hk.Linear(16)(hk.LayerNorm(-1, True, True)(x))))
        return hk.Linear(3)(x.mean(1))


class HaikuRecurrent(hk.Module):
    def __init__(self, core):
        super().__init__()
        self.core = core

    def __call__(self, x):
        core = self.core(8)
        outputs, _ = hk.dynamic_unroll(core, x.swapaxes(0, 1), core.initial_state(x.shape[0]))
        return hk.Linear(3)(outputs[-1])


class LinenRecurrent(nn.Module):
    cell: type

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.RNN(self.cell(8))(x)[:, -1])


class LinenTransformer(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x + self.param("positions", nn.initializers.normal(0.5), x.shape[1:])
        x = nn.LayerNorm()(x + nn.MultiHeadDotProductAttention(2)(x, x))
        x = nn.LayerNorm()(x + nn.Dense(8)(nn.silu(nn.Dense(16)(x)) * nn.Dense(16)(x)))
        return nn.Dense(3)(nn.RMSNorm()(x).max(1))


class LinenSqueeze(nn.Module):
    """An inverted residual block with squeeze-and-excitation, hard-swish and group normalisation."""

    @nn.compact
    def __call__(self, x):
        x = nn.hard_swish(nn.GroupNorm(2)(nn.Conv(8, (3, 3), strides=2)(x)))
        y = nn.hard_swish(nn.BatchNorm(use_running_average=True)(nn.Conv(16, (1, 1))(x)))
        y = nn.hard_swish(nn.BatchNorm(use_running_average=True)(nn.Conv(16, (5, 5), feature_group_count=16)(y)))
        gate = nn.relu(nn.Conv(4, (1, 1))(y.mean((1, 2), keepdims=True)))
        y = y * nn.hard_sigmoid(nn.Conv(16, (1, 1))(gate))
        x = x + nn.BatchNorm(use_running_average=True)(nn.Conv(8, (1, 1))(y))
        return nn.Dense(3)(nn.max_pool(x, (2, 2), (2, 2)).reshape(len(x), -1))


class NNXEncoder(nnx.Module):
    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(8, rngs=rngs), nnx.LayerNorm(8, rngs=rngs)])
        self.hidden, self.out, self.head = (nnx.Linear(*s, rngs=rngs) for s in ((8, 16), (16, 8), (8, 3)))

    def __call__(self, x):
        x = x + self.attention(self.norms[0](x))
        return self.head((x + self.out(nnx.gelu(self.hidden(self.norms[1](x))))).mean(1))


class EquinoxRecurrent(eqx.Module):
    cell: eqx.nn.GRUCell
    head: eqx.nn.Linear

    def __call__(self, x):
        state, _ = jax.lax.scan(lambda h, x: (self.cell(x, h), None), jnp.zeros(8), x)
        return self.head(state)


def equinox_images(key):
    keys = jax.random.split(key, 3)
    layers = [
        eqx.nn.Lambda(lambda x: jnp.moveaxis(x, -1, 0)),
        eqx.nn.Conv2d(3, 6, 3, 2, key=keys[0]),
        eqx.nn.GroupNorm(3, 6),
        eqx.nn.Lambda(jax.nn.leaky_relu),
        eqx.nn.MaxPool2d(3, 2),
        eqx.nn.Conv2d(6, 6, 3, groups=6, key=keys[1]),
        eqx.nn.Lambda(jax.nn.elu),
        eqx.nn.AdaptiveAvgPool2d(2),
        eqx.nn.Lambda(jnp.ravel),
        eqx.nn.Linear(24, 3, key=keys[2]),
    ]
    return jax.vmap(disturbed(eqx.nn.Sequential(layers)))


KEY = jax.random.key(0)
ARCHITECTURES = {
    "haiku ResNet18": (lambda: haiku(resnet18, IMAGES, False), IMAGES),
    "haiku ResNet18, version 2": (lambda: haiku(lambda: resnet18(resnet_v2=True), IMAGES, False), IMAGES),
    "haiku ResNet50": (lambda: haiku(lambda: hk.nets.ResNet50(3), IMAGES, False), IMAGES),
    "haiku MobileNet": (lambda: haiku(lambda: hk.nets.MobileNetV1(num_classes=3), IMAGES, False), IMAGES),
    "haiku MLP": (lambda: haiku(lambda: hk.nets.MLP([16, 16, 3], activation=jax.nn.softplus), FEATURES), FEATURES),
    "haiku transformer": (lambda: haiku(HaikuTransformer, TOKENS), TOKENS),
    "haiku LSTM": (lambda: haiku(lambda: HaikuRecurrent(hk.LSTM), TOKENS), TOKENS),
    "haiku GRU": (lambda: haiku(lambda: HaikuRecurrent(hk.GRU), TOKENS), TOKENS),
    "linen LSTM": (lambda: linen(LinenRecurrent(nn.OptimizedLSTMCell), TOKENS), TOKENS),
    "linen GRU": (lambda: linen(LinenRecurrent(nn.GRUCell), TOKENS), TOKENS),
    "linen transformer": (lambda: linen(LinenTransformer(), TOKENS), TOKENS),
    "linen squeeze-and-excitation": (lambda: linen(LinenSqueeze(), IMAGES), IMAGES),
    "NNX encoder": (lambda: nnx_module(NNXEncoder(nnx.Rngs(0))), TOKENS),
    "equinox MLP": (lambda: jax.vmap(disturbed(eqx.nn.MLP(10, 3, 16, 2, jax.nn.mish, key=KEY))), FEATURES),
    "equinox images": (lambda: equinox_images(KEY), IMAGES),
    "equinox GRU": (
        lambda: jax.vmap(disturbed(EquinoxRecurrent(eqx.nn.GRUCell(8, 8, key=KEY), eqx.nn.Linear(8, 3, key=KEY)))),
        TOKENS,
    ),
}


@pytest.mark.sampled(11)
@pytest.mark.parametrize("preset", [composites.AttnLRP, composites.EpsilonPlusFlat])
@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_map_of_a_model_by_others(name, preset, precision):
    with jax.enable_x64(precision == "double"):
        check_map(*ARCHITECTURES[name], preset())


def check_map(make, shape, rules):
    model, x = make(), jax.random.normal(jax.random.key(2), shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LRPWarning)  # relevance may grow: the weights are random
        explanation = relevance(model, x, 1, rules)
        np.testing.assert_allclose(explanation.output, jit_by_day(lambda x: model(x))(x), rtol=1e-5, atol=1e-5)
        assert jnp.isfinite(explanation.relevance).all()
        assert jnp.abs(explanation.relevance).max() > 0
        book = ledger(model, x, 1, rules)  # it is refused where it does not close
        np.testing.assert_allclose(book.explained, explanation.output[:, 1].sum(), rtol=1e-4, atol=1e-4)
        scale = jnp.abs(explanation.relevance).max()
        maps = lambda x: relevance(model, x, 1, rules).relevance
        # Within jit, and of a sample alone: by day both at once, which saves a program.
        for explain, samples in [(jax.jit(maps), x), (maps, x[:1])] if NIGHTLY else [(jax.jit(maps), x[:1])]:
            expected = explanation.relevance[: len(samples)]
            np.testing.assert_allclose(explain(samples), expected, atol=1e-3 * scale)
