"""Depthwise convolutions, for processors on which XLA is slow at them.

They are written as a few elementwise operations for each entry of the window, which fuse into one loop over the image.
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
