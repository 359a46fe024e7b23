"""Depthwise convolutions as sums of shifted products, for processors on which XLA is slow at them."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def is_depthwise(params: dict[str, Any], x: jax.Array, w: jax.Array) -> bool:
    """Whether a convolution gives every channel one kernel of its own, and is one that `shifted_products` can do."""
    channels = x.shape[params["dimension_numbers"].lhs_spec[1]]
    out_channels = w.shape[params["dimension_numbers"].rhs_spec[0]]
    return (
        params["feature_group_count"] == channels == out_channels > 1
        and params["batch_group_count"] == 1
        and set(params["lhs_dilation"]) == {1}
        and math.prod(w.shape) // channels <= 64  # each entry of a kernel becomes an operation
    )


def shifted_products(x: jax.Array, w: jax.Array, params: dict[str, Any]) -> jax.Array:
    """A depthwise convolution: for each entry of the kernel, the image moved there times the entry of each channel.

    Args:
        x: The image, in the layout of `params`.
        w: The kernels, alike.
        params: The parameters of the `conv_general_dilated` equation.

    Returns:
        The same as the convolution, up to rounding.
    """
    numbers, strides, dilation = params["dimension_numbers"], params["window_strides"], params["rhs_dilation"]
    batch, feature, *space = numbers.lhs_spec
    dtype = params["preferred_element_type"] or x.dtype
    kernel = jnp.transpose(w, numbers.rhs_spec)[:, 0]  # (channels, *space)
    padding = [(0, 0, 0)] * x.ndim
    for axis, (low, high) in zip(space, params["padding"], strict=True):
        padding[axis] = (low, high, 0)
    padded = lax.pad(x, jnp.zeros((), x.dtype), padding)
    total = jnp.zeros((), dtype)
    for offsets in itertools.product(*map(range, kernel.shape[1:])):
        start, stop, step = [0] * x.ndim, list(padded.shape), [1] * x.ndim
        for i, axis in enumerate(space):
            reach = (kernel.shape[1 + i] - 1) * dilation[i]
            start[axis] = offsets[i] * dilation[i]
            stop[axis] = padded.shape[axis] - reach + start[axis]
            step[axis] = strides[i]
        entry = jnp.expand_dims(kernel[:, *offsets], [axis for axis in range(x.ndim) if axis != feature])
        total += lax.slice(padded, start, stop, step).astype(dtype) * entry.astype(dtype)
    layout = [(batch, feature, *space)[numbers.out_spec.index(axis)] for axis in range(x.ndim)]
    return jnp.transpose(total, layout)
