"""The networks of the book."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lrp_book.models import ConvolutionalNetwork, DenseNetwork
from lrp_jax.errors import ArrayError

BOTH = pytest.mark.parametrize("model_class", [DenseNetwork, ConvolutionalNetwork])


def paths(model):
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(model)))
    return [".".join(str(getattr(key, "key", key)) for key in path) for path, _ in leaves]


@BOTH
def test_one_logit_per_class(model_class):
    model = model_class(input_shape=(16, 20, 3), classes=4, rngs=nnx.Rngs(0))
    logits = model(jnp.ones((5, 16, 20, 3)))
    assert logits.shape == (5, 4)
    assert logits.dtype == jnp.float32


@BOTH
def test_images_of_a_batch_do_not_influence_each_other(model_class):
    model = model_class(rngs=nnx.Rngs(0))
    images = jax.random.uniform(jax.random.key(1), (3, 28, 28, 1))
    one_by_one = jnp.concatenate([model(image[None]) for image in images])
    np.testing.assert_allclose(model(images), one_by_one, rtol=1e-4, atol=1e-5)


@BOTH
def test_without_biases_the_logits_scale_with_the_image(model_class):
    images = jax.random.uniform(jax.random.key(1), (2, 28, 28, 1))
    model = model_class(use_bias=False, rngs=nnx.Rngs(0))
    assert not any("bias" in path for path in paths(model))
    np.testing.assert_allclose(model(0.5 * images), 0.5 * model(images), rtol=1e-4, atol=1e-5)


@BOTH
def test_seed_determines_the_weights(model_class):
    images = jax.random.uniform(jax.random.key(1), (2, 28, 28, 1))
    first, again, other = (model_class(rngs=nnx.Rngs(seed))(images) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_names_of_the_layers():
    dense = DenseNetwork(use_bias=False, rngs=nnx.Rngs(0))
    assert paths(dense) == ["layers.0.kernel", "layers.1.kernel", "layers.2.kernel"]
    convolutional = ConvolutionalNetwork(use_bias=False, rngs=nnx.Rngs(0))
    names = [path.removesuffix(".kernel") for path in paths(convolutional)]
    assert names == ["convolutions.0", "convolutions.1", "dense.0", "dense.1"]


def test_dense_network_is_three_matrices_with_relus_between():
    model = DenseNetwork(rngs=nnx.Rngs(0))
    images = np.random.default_rng(1).uniform(size=(2, 28, 28, 1)).astype(np.float32)
    x = images.reshape(2, 784)
    for number, layer in enumerate(model.layers):
        layer.bias[...] = layer.bias + 0.1 * number
        x = (x if number == 0 else np.maximum(x, 0)) @ np.asarray(layer.kernel) + 0.1 * number
    np.testing.assert_allclose(model(jnp.asarray(images)), x, rtol=1e-4, atol=1e-4)


def test_pooling_passes_the_largest_of_four_pixels():
    model = ConvolutionalNetwork(
        filters=(1,), kernel_size=1, hidden=(), classes=4, input_shape=(4, 4, 1), use_bias=False, rngs=nnx.Rngs(0)
    )
    model.convolutions[0].kernel[...] = jnp.ones((1, 1, 1, 1))
    model.dense[0].kernel[...] = jnp.eye(4)
    image = jnp.arange(16.0).reshape(1, 4, 4, 1)
    assert model(image).tolist() == [[5.0, 7.0, 13.0, 15.0]]


@BOTH
@pytest.mark.parametrize("shape", [(28, 28, 1), (2, 28, 28), (2, 28, 28, 3), (2, 784)])
def test_wrong_shape_is_refused(model_class, shape):
    with pytest.raises(ArrayError, match=r"shape \(batch, 28, 28, 1\), got .*image\[None\]"):
        model_class(rngs=nnx.Rngs(0))(jnp.ones(shape))


def test_convolution_and_pooling_by_hand():
    model = ConvolutionalNetwork(
        filters=(1,), kernel_size=3, hidden=(), classes=4, input_shape=(6, 6, 1), use_bias=False, rngs=nnx.Rngs(0)
    )
    model.dense[0].kernel[...] = jnp.eye(4)
    image = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)
    kernel = np.asarray(model.convolutions[0].kernel)[:, :, 0, 0]
    convolved = np.array([[(image[i : i + 3, j : j + 3] * kernel).sum() for j in range(4)] for i in range(4)])
    pooled = [max(0, convolved[i : i + 2, j : j + 2].max()) for i in (0, 2) for j in (0, 2)]
    np.testing.assert_allclose(model(jnp.asarray(image).reshape(1, 6, 6, 1))[0], pooled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "filters", "message"),
    [(27, (4, 4), "27 x 27 .* convolution 0 leaves 23 x 23"), (28, (4, 4, 4), "convolution 2 leaves 0 x 0")],
)
def test_images_that_do_not_fit_are_refused(size, filters, message):
    with pytest.raises(ArrayError, match=message):
        ConvolutionalNetwork(filters=filters, input_shape=(size, size, 1), rngs=nnx.Rngs(0))
