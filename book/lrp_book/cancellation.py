"""How much of what a neuron adds up cancels, and what small sums do to relevance."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lrp_book.models import DenseNetwork
from lrp_jax import composites, relevance, rules


def left_over(x: jax.Array, w: jax.Array) -> jax.Array:
    """The part of a neuron's contributions that is left when they have cancelled, q_j = |z_j| / sum_i |z_ij|.

    Args:
        x: Activations of shape (samples, inputs).
        w: Weights of shape (inputs, neurons).

    Returns:
        Numbers from 0 to 1 of shape (samples, neurons).

    Example:
        >>> left_over(jnp.array([[2.0, 1.0]]), jnp.array([[1.0, 2.0], [-1.0, 1.0]]))
        Array([[0.33333334, 1.        ]], dtype=float32)
    """
    return jnp.abs(x @ w) / (jnp.abs(x) @ jnp.abs(w))


def left_over_by_layer(network: DenseNetwork, images: jax.Array) -> list[NDArray[np.float32]]:
    """For every layer but the last, q_j of all neurons that are active, for all images."""
    found = []
    x = images.reshape(len(images), -1)
    for layer in network.layers[:-1]:
        w = layer.kernel[...]
        z = x @ w
        found.append(np.asarray(left_over(x, w))[np.asarray(z > 0)])
        x = jnp.maximum(z, 0)
    return found


def messages_of_smallest(
    network: DenseNetwork, images: jax.Array, labels: jax.Array, above: rules.Rule, fraction: float = 0.001
) -> dict[str, Any]:
    """What the neurons of the first layer with the smallest q_j send, if the second layer has a certain rule.

    Args:
        network: A network without biases.
        images: The images, of shape (samples, height, width, channels).
        labels: The class that is explained of each.
        above: The rule of the second layer; all others have LRP-0.
        fraction: Which part of the active neurons counts as the smallest.

    Returns:
        "share": the share of all absolute messages into the pixels that these neurons send; "amplification": the sum of
        the pixels' absolute relevance, in units of the explained output, for each image.
    """
    composite = composites.Composite([(composites.index[1], above), (composites.any_layer, rules.Zero())])
    explained = relevance(network, images, labels, composite, at=["layers.0"])
    q = left_over(images.reshape(len(images), -1), network.layers[0].kernel[...])
    hidden = explained.at["layers.0"]
    sent = np.asarray(jnp.abs(hidden) / q)[np.asarray(hidden != 0)].astype(float)
    smallest = np.argsort(np.asarray(q)[np.asarray(hidden != 0)])[: int(fraction * len(sent))]
    output = jnp.abs(explained.output[jnp.arange(len(images)), labels])
    amplification = jnp.abs(explained.relevance).reshape(len(images), -1).sum(-1) / output
    return {"share": float(sent[smallest].sum() / sent.sum()), "amplification": np.asarray(amplification)}
