"""A network that computes the same as another one and whose z+ maps show a drawing: an experiment of chapter 5."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lrp_book.models import DenseNetwork


def smiling_face() -> jax.Array:
    """A face of 28 x 28 pixels that are 0 or 1.

    Example:
        >>> int(smiling_face().sum()) > 100
        True
    """
    rows, columns = jnp.mgrid[:28, :28]
    radius = jnp.hypot(rows - 13.5, columns - 13.5)
    eyes = jnp.hypot(rows - 10, jnp.abs(columns - 13.5) - 4) <= 1.5
    mouth = (radius >= 5) & (radius <= 7) & (rows > 15)
    outline = (radius >= 9.5) & (radius <= 11.5)
    return (outline | eyes | mouth).astype(jnp.float32)


def disguised(network: DenseNetwork, drawing: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """A network with two more hidden neurons, which cancel each other, so that its output is the same.

    Both read minus the drawing, and a bias keeps them active. The next layer adds the one and subtracts the other, and
    z+ sees only the one that is added.

    Args:
        network: A dense network of three layers without biases.
        drawing: What its z+ maps are to show, of the shape of an image's pixels.
    """
    w1, w2, w3 = (layer.kernel[...] for layer in network.layers)
    two = jnp.ones((1, 2))
    w1 = jnp.concatenate([w1, -drawing.reshape(-1, 1) * two], axis=1)
    b1 = jnp.concatenate([jnp.zeros(w1.shape[1] - 2), drawing.sum() * two[0]])
    w2 = jnp.concatenate([w2, jnp.ones((1, w2.shape[1])), -jnp.ones((1, w2.shape[1]))])

    def same(images: jax.Array) -> jax.Array:
        hidden = jax.nn.relu(images.reshape(len(images), -1) @ w1 + b1)
        return jax.nn.relu(hidden @ w2) @ w3

    return same
