"""The small residual network: its normalisations have the statistics of the training data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lrp_book import residual
from lrp_book.pretrained import NormalizedConvolution
from lrp_jax import relevance, rules
from lrp_jax.errors import ModelError


def test_statistics_are_running_means_by_hand():
    model = NormalizedConvolution(1, 1, rngs=nnx.Rngs(0))
    model.convolution.kernel[...] = jnp.full((1, 1, 1, 1), 2.0)
    model.normalization.momentum = 0.5
    model.train()
    # Doubled, the batches have the means 4 and 8, the variances 4 and 0. From 0 and 1: 2, then 5; 2.5, then 1.25.
    batches = [jnp.array([1.0, 3.0]), jnp.array([4.0, 4.0])]
    residual.collect_statistics(model, (batch.reshape(2, 1, 1, 1) for batch in batches))
    np.testing.assert_allclose(model.normalization.mean[...], [5.0])
    np.testing.assert_allclose(model.normalization.var[...], [1.25])
    # ... and hold: 2 * 4 is (8 - 5) / sqrt(1.25 + 0.001).
    output = model(jnp.full((1, 1, 1, 1), 4.0))
    np.testing.assert_allclose(output.ravel(), [3 / np.sqrt(1.251)], rtol=1e-6)


def test_block_by_hand():
    block = residual.ResidualBlock(1, 1, rngs=nnx.Rngs(0))
    one, two = block.convolutions
    for part, factor in ((one, 2.0), (two, -1.0)):
        part.convolution.kernel[...] = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(factor)
        part.normalization.epsilon = 0.0
    # No shortcut: x + (-1) relu(2 x), cut at zero: 3 - 6 is cut, -3 + 0 is cut; and with a shift of 4 both are not.
    x = jnp.array([3.0, -3.0]).reshape(1, 1, 2, 1)
    np.testing.assert_allclose(block(x).ravel(), [0.0, 0.0], atol=1e-6)
    two.normalization.bias[...] = jnp.array([4.0])
    np.testing.assert_allclose(block(x).ravel(), [1.0, 1.0], atol=1e-6)


def test_in_training_a_batch_has_its_own_statistics_and_none_are_kept():
    model = residual.ResidualNetworkInTraining(rngs=nnx.Rngs(0))
    before = jax.tree.map(jnp.copy, nnx.state(model))
    images = 100 * jax.random.uniform(jax.random.key(0), (8, 28, 28, 1))
    # The scale of a batch is gone after the first normalisation.
    np.testing.assert_allclose(model(images), model(7 * images), rtol=1e-3, atol=1e-3)
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(model))
    with pytest.raises(ModelError):
        relevance(model, images, 0, rules.Epsilon())


def test_explained_in_inference_mode():
    model = residual.ResidualNetwork(rngs=nnx.Rngs(0))
    images = jax.random.uniform(jax.random.key(0), (2, 28, 28, 1))
    explanation = relevance(model, images, 0, rules.Zero(bias="ignore"))
    # Without biases, and with statistics of 0 and 1, all of it arrives.
    np.testing.assert_allclose(explanation.relevance.sum((1, 2, 3)), explanation.output[:, 0], rtol=1e-3)
