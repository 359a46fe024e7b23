"""Programs written as ONNX compute what JAX computes. The other side is the evaluator of the package onnx."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from onnx.reference import ReferenceEvaluator

from lrp_book import models
from lrp_book.jaxpr_to_onnx import to_onnx
from lrp_jax import composites, lrp, rules


def normal(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


def assert_agrees(model, function, **inputs):
    feeds = {name: np.asarray(value) for name, value in inputs.items()}
    expected = function(**inputs)
    read = {name for node in model.graph.node for name in node.input}
    assert read.issuperset(constant.name for constant in model.graph.initializer)  # runtimes warn of others
    evaluated = ReferenceEvaluator(model).run(sorted(expected), feeds)
    for name, values in zip(sorted(expected), evaluated, strict=True):
        np.testing.assert_allclose(values, expected[name], atol=1e-5 * float(jnp.abs(expected[name]).max()), rtol=0)


RULES = {
    "zero": rules.Zero(),
    "epsilon": rules.Epsilon(0.25),
    "gamma": rules.Gamma(0.25),
    "z-plus": rules.ZPlus(),
    "alpha-beta": rules.AlphaBeta(),
    "w-square": rules.WSquare(),
    "flat at the pixels": composites.EpsilonPlusFlat(),
    "z-box at the pixels": composites.EpsilonGammaBox(0.0, 1.0),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_relevance_of_the_convolutional_network_stays_the_same(rule):
    network = models.ConvolutionalNetwork(rngs=nnx.Rngs(0))

    def explained(image, seed):
        scores, back = jax.vjp(lrp(network, rule), image)
        return {"scores": scores, "relevance": back(seed)[0]}

    inputs = {"image": jnp.abs(normal(1, 28, 28, 1)), "seed": jax.nn.one_hot(jnp.array([3]), 10)}
    assert_agrees(to_onnx(explained, **inputs), explained, **inputs)


def test_parameters_of_a_rule_may_be_inputs():
    class Unchecked(rules.Epsilon):
        def __post_init__(self):
            pass

    weight = normal(5, 4)

    def explained(x, epsilon):
        return {"relevance": jax.grad(lambda x: lrp(lambda x: x @ weight, Unchecked(epsilon))(x).sum())(x)}

    model = to_onnx(explained, x=normal(5), epsilon=jnp.float32(0.0))
    for epsilon in (0.1, 2.0):
        assert_agrees(model, explained, x=normal(5), epsilon=jnp.float32(epsilon))


def convolution(x, w, **options):
    return lax.conv_general_dilated(x, w, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)


OPERATIONS = {
    "strides and padding": lambda x: convolution(
        x, normal(3, 2, 4, 5), window_strides=(2, 1), padding=[(1, 2), (0, 1)]
    ),
    "dilation": lambda x: convolution(
        x, normal(2, 2, 4, 5), window_strides=(1, 1), padding="VALID", rhs_dilation=(2, 1)
    ),
    "groups": lambda x: convolution(
        x, normal(2, 2, 1, 8), window_strides=(1, 1), padding="SAME", feature_group_count=4
    ),
    "channels in front": lambda x: lax.conv(x, normal(3, 6, 2, 2), (1, 1), "VALID"),
    "products": lambda x: jnp.einsum("bijk,bjkl->bil", x, normal(2, 7, 4, 3)),
    "pooling": lambda x: nnx.max_pool(x, window_shape=(3, 2), strides=(2, 2)),
    "pooling with padding": lambda x: nnx.max_pool(x, window_shape=(2, 2), strides=(2, 2), padding="SAME"),
    "the way back through pooling": lambda x: jax.grad(
        lrp(lambda x: (nnx.max_pool(x, window_shape=(3, 3), strides=(2, 2)) ** 3).sum(), rules.Zero())
    )(x[:, :, :6]),
    "ties in pooling": lambda x: jax.grad(
        lrp(lambda x: (nnx.max_pool(x, window_shape=(2, 2), strides=(2, 2)) * normal(2, 3, 3, 4)).sum(), rules.Zero())
    )(jnp.sign(x[:, :, :6])),
    "padding": lambda x: lax.pad(x, 1.5, [(0, 0, 0), (2, 1, 0), (0, 3, 2), (1, 0, 1)]),
    "reversal": lambda x: x[:, ::-1, 1:5:2],
    "transposition": lambda x: lax.reshape(x, (4, 84), dimensions=(3, 0, 1, 2)),
    "stacking": lambda x: jnp.stack([x, jnp.where(x < 0, -1.0, x)], axis=2),
    "sums": lambda x: jnp.tanh(x).sum((1, 3)),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_operation_stays_the_same(operation):
    x = normal(2, 6, 7, 4)
    assert_agrees(to_onnx(lambda x: {"y": operation(x)}, x=x), lambda x: {"y": operation(x)}, x=x)


REFUSED = {
    "cumsum": lambda x: jnp.cumsum(x, axis=0),
    "select_and_scatter_add": jax.grad(lambda x: nnx.max_pool(x, window_shape=(3, 3), strides=(2, 2)).sum()),
    "conv_general_dilated": lambda x: lax.conv_transpose(x, normal(2, 2, 4, 4), (2, 2), "SAME"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_operation_that_cannot_be_written_is_named(name):
    with pytest.raises(NotImplementedError, match=name):
        to_onnx(lambda x: {"y": REFUSED[name](x)}, x=normal(2, 6, 7, 4))
