"""Depthwise convolutions and the backward pass of max pooling, for processors on which XLA is slow at them.

Both are written as a few elementwise operations for each entry of the window, which fuse into one loop over the image.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_MOST_ENTRIES = 64


def is_depthwise(equation: Any, x: jax.Array, w: jax.Array) -> bool:
    """Whether an operation is a convolution with one kernel for each channel that `shifted_products` can do."""
    if equation.primitive.name != "conv_general_dilated":
        return False
    params = equation.params
    channels = x.shape[params["dimension_numbers"].lhs_spec[1]]
    out_channels = w.shape[params["dimension_numbers"].rhs_spec[0]]
    return (
        params["feature_group_count"] == channels == out_channels > 1
        and params["batch_group_count"] == 1
        and math.prod(w.shape) // channels <= _MOST_ENTRIES  # each entry of a kernel becomes an operation
    )


def shifted_products(x: jax.Array, w: jax.Array, params: Mapping[str, Any]) -> jax.Array:
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
    between = [step - 1 for step in params["lhs_dilation"]]
    dtype = params["preferred_element_type"] or x.dtype
    kernel = jnp.transpose(w, numbers.rhs_spec)[:, 0]  # (channels, *space)
    padding = [(0, 0, 0)] * x.ndim
    for axis, (low, high), zeros in zip(space, params["padding"], between, strict=True):
        padding[axis] = (low, high, zeros)
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


def transposed_products(s: jax.Array, w: jax.Array, params: Mapping[str, Any], shape: Sequence[int]) -> jax.Array:
    """The transpose of `shifted_products` as a map of the image: a depthwise convolution with the kernels turned round.

    It takes what arrives at the output once, where the transposed slices of `shifted_products`, added up, would have
    XLA compute it anew for each entry of the kernel.

    Args:
        s: What arrives at the output.
        w: The kernels.
        params: The parameters of the `conv_general_dilated` equation.
        shape: Of the image.

    Returns:
        Array of that shape.
    """
    numbers = params["dimension_numbers"]
    padding = []
    for i, (low, _) in enumerate(params["padding"]):
        reach = (w.shape[numbers.rhs_spec[2 + i]] - 1) * params["rhs_dilation"][i]
        size = (shape[numbers.lhs_spec[2 + i]] - 1) * params["lhs_dilation"][i] + 1
        arriving = (s.shape[numbers.out_spec[2 + i]] - 1) * params["window_strides"][i] + 1
        padding.append((reach - low, size - arriving + low))
    turned = {
        "dimension_numbers": numbers._replace(lhs_spec=numbers.out_spec, out_spec=numbers.lhs_spec),
        "window_strides": params["lhs_dilation"],
        "lhs_dilation": params["window_strides"],
        "padding": padding,
    }
    return shifted_products(s, jnp.flip(w, numbers.rhs_spec[2:]), {**params, **turned})


def is_small_pooling(params: Mapping[str, Any]) -> bool:
    """Whether a pooling is one that `to_first_largest` can do."""
    return set(params["base_dilation"]) == {1} and math.prod(params["window_dimensions"]) <= _MOST_ENTRIES


def to_first_largest(x: jax.Array, largest: jax.Array, cotangent: jax.Array, params: Mapping[str, Any]) -> jax.Array:
    """Gives what arrives at each window of a max pooling to its largest element, the first one of equals.

    Args:
        x: The image.
        largest: The largest element of each window.
        cotangent: What arrives, of the same shape.
        params: The parameters of the `reduce_window_max` equation.

    Returns:
        The same as the gradient of the pooling (which JAX has no dilated windows for), in the shape of `x`.
    """
    window, strides, dilation = params["window_dimensions"], params["window_strides"], params["window_dilation"]
    padding = params["padding"]
    padded = lax.pad(x, jnp.array(-jnp.inf, x.dtype), [(low, high, 0) for low, high in padding])
    spans = [(size - 1) * stride + 1 for size, stride in zip(largest.shape, strides, strict=True)]
    zero = jnp.zeros((), cotangent.dtype)
    total, is_given = jnp.zeros(padded.shape, cotangent.dtype), jnp.zeros(largest.shape, bool)
    for offsets in itertools.product(*map(range, window)):
        start = [offset * step for offset, step in zip(offsets, dilation, strict=True)]
        stop = [first + span for first, span in zip(start, spans, strict=True)]
        wins = (lax.slice(padded, start, stop, strides) == largest) & ~is_given
        is_given |= wins
        around = [
            (first, size - last, stride - 1)
            for first, last, size, stride in zip(start, stop, padded.shape, strides, strict=True)
        ]
        total += lax.pad(jnp.where(wins, cotangent, zero), zero, around)
    return lax.pad(total, zero, [(-low, -high, 0) for low, high in padding])
