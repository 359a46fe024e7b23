"""Maxima and minima: who wins is decided once, in the forward pass, and kept as an index.

A derivative that looks for the winner on the way back, with x == largest, meets an x that a compiler may have computed
again with other rounding: then nothing is equal, and what arrives is lost. Here the way back reads indices alone, and
each output gives all that arrives at it to one element of one operand.

The conventions for equals, for maxima and minima alike: the first one wins, in row-major order and with the first
operand before the second; a live value that is equal to a constant loses, so that the derivative of max(x, 0) at 0 is
0, however it is written. Such a constant may also be some elements of a live operand, such as padding or what a mask
has put there (`lrp_jax.core.places`). The padding that belongs to a pooling wins nothing.

The derivatives that JAX has for `sort` and `top_k` choose by index, too, and are left to it; constants come first.
"""

import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lrp_jax.core.windows import Windows

Params = Mapping[str, Any]
Beats = Callable[[Any, Any], jax.Array]
Pair = tuple[jax.Array, jax.Array]
Fixed = Mapping[int, jax.Array]
"""Where live operands are constants, by their position."""


@dataclass(frozen=True)
class Maximum:
    """How it is decided at a primitive who wins, and what the winners get.

    Attributes:
        decide: The function of (parameters, positions of the live operands, operands, where live operands are
            constants) that returns the winners.
        give: The function of (parameters, positions of the live operands, something with the shape of each operand,
            winners, cotangent of the output) that returns the cotangents of the live operands.
    """

    decide: Callable[[Params, Collection[int], Sequence[jax.Array], Fixed], jax.Array]
    give: Callable[[Params, Collection[int], Sequence[Any], jax.Array, jax.Array], Sequence[jax.Array]]


def winners(
    maximum: Maximum,
    params: Params,
    live: Collection[int],
    operands: Sequence[jax.Array],
    fixed: Fixed = MappingProxyType({}),
) -> jax.Array:
    """Decides which element of which operand each output of a maximum or minimum is.

    Args:
        maximum: How, at its primitive.
        params: The parameters of the operation.
        live: The positions of the operands through which relevance flows.
        operands: All operands.
        fixed: Where live operands are constants, by their position; nowhere if one is left out.

    Returns:
        Integers that are meant for `to_winners`.

    Example:
        >>> winners(along_axes(lax.gt), {"axes": (1,)}, {0}, [jnp.array([[1.0, 3.0, 3.0], [2.0, 2.0, 0.0]])]).tolist()
        [1, 0]
        >>> x, fixed = jnp.array([3.0, 3.0, 2.0]), jnp.array([False, True, False])
        >>> int(winners(along_axes(lax.gt), {"axes": (0,)}, {0}, [x], {0: fixed}))  # no element gets anything
        -2
    """
    if any(math.prod(operand.shape) == 0 for operand in operands):
        return jnp.zeros((), jnp.uint8)  # nobody is there to win
    return maximum.decide(params, live, [lax.stop_gradient(operand) for operand in operands], fixed)


def to_winners(
    maximum: Maximum,
    params: Params,
    live: Collection[int],
    shapes: Sequence[Any],
    winners: jax.Array,
    cotangent: jax.Array,
) -> list[jax.Array]:
    """Gives what arrives at each output of a maximum or minimum to the element that won it.

    Args:
        maximum: How, at its primitive.
        params: The parameters of the operation.
        live: The positions of the operands through which relevance flows.
        shapes: For each of all operands, something that has its `shape`.
        winners: What `winners` returned.
        cotangent: What arrives, in the shape of the output.

    Returns:
        What each live operand gets, in their order.

    Example:
        >>> x, y = jnp.array([1.0, 3.0, 2.0]), jnp.array([2.0, 3.0, 1.0])
        >>> larger = of_operands(lax.gt)
        >>> to_winners(larger, {}, {0, 1}, [x, y], winners(larger, {}, {0, 1}, [x, y]), jnp.array([5.0, 6.0, 7.0]))
        [Array([0., 6., 7.], dtype=float32), Array([5., 0., 0.], dtype=float32)]
    """
    if cotangent.size == 0 or any(math.prod(operand.shape) == 0 for operand in shapes):
        return [jnp.zeros_like(cotangent, shape=shapes[position].shape) for position in sorted(live)]
    return list(maximum.give(params, live, shapes, winners, cotangent))


# Element by element: the winner is the position of an operand.


def _decide_operand(
    beats: Beats, params: Params, live: Collection[int], operands: Sequence[jax.Array], fixed: Fixed
) -> jax.Array:
    first, second = operands
    is_second = beats(second, first) if 1 in live else ~beats(first, second)
    if len(live) == 2 and 1 in fixed:
        is_second |= (first == second) & fixed[1] & ~_where_fixed(0, live, fixed)
    return _settled_for(live, is_second.astype(jnp.uint8))


def _decide_clamp(params: Params, live: Collection[int], operands: Sequence[jax.Array], fixed: Fixed) -> jax.Array:
    low, x, high = operands
    low_fixed, x_fixed, high_fixed = (_where_fixed(i, live, fixed) for i in range(3))
    is_above = (x > low) | ((x == low) & x_fixed & ~low_fixed)
    raised = jnp.where(is_above, x, low)
    is_below = (raised < high) | ((raised == high) & ~high_fixed)
    return _settled_for(live, jnp.where(is_below, is_above.astype(jnp.uint8), jnp.uint8(2)))


def _where_fixed(position: int, live: Collection[int], fixed: Fixed) -> Any:
    return fixed.get(position, np.False_) if position in live else np.True_


def _settled_for(live: Collection[int], index: jax.Array) -> jax.Array:
    return _settled(index) if len(live) > 1 else index  # one live operand is one reader


def _give_operands(
    params: Params, live: Collection[int], shapes: Sequence[Any], winners: jax.Array, cotangent: jax.Array
) -> Sequence[jax.Array]:
    index = _unsettled(winners, cotangent.shape) if len(live) > 1 else winners
    parts = [jnp.where(index == position, cotangent, jnp.zeros((), cotangent.dtype)) for position in sorted(live)]
    # A number stands for each of its copies.
    return [part if shapes[i].shape else part.sum() for i, part in zip(sorted(live), parts, strict=True)]


# Over axes: the winner is a place, counted along these axes in row-major order.


def _decide_along(
    beats: Beats, params: Params, live: Collection[int], operands: Sequence[jax.Array], fixed: Fixed
) -> jax.Array:
    (x,), axes = operands, params["axes"]
    places = _places(x, axes, fixed.get(0))
    return lax.reduce((x, places), _worst(beats, x, axes), functools.partial(_better, beats), axes)[1]


def _give_along(
    params: Params, live: Collection[int], shapes: Sequence[Any], winners: jax.Array, cotangent: jax.Array
) -> Sequence[jax.Array]:
    zeros, axes = jnp.zeros_like(cotangent, shape=shapes[0].shape), params["axes"]
    is_winner = _places(zeros, axes) == jnp.expand_dims(winners, axes)
    return (jnp.where(is_winner, jnp.expand_dims(cotangent, axes), zeros),)


def _decide_so_far(
    beats: Beats, params: Params, live: Collection[int], operands: Sequence[jax.Array], fixed: Fixed
) -> jax.Array:
    (x,), axis = operands, params["axis"]
    better = functools.partial(_better, beats)
    return lax.associative_scan(better, (x, _places(x, (axis,), fixed.get(0))), reverse=params["reverse"], axis=axis)[1]


def _give_so_far(
    params: Params, live: Collection[int], shapes: Sequence[Any], winners: jax.Array, cotangent: jax.Array
) -> Sequence[jax.Array]:
    return (_scattered(cotangent, winners, shapes[0].shape, (params["axis"],)),)


def _better(beats: Beats, one: Pair, other: Pair) -> Pair:
    """Of two pairs of a value and its place the better one, of equals the first one."""
    (x, i), (y, j) = one, other
    is_better = beats(x, y) | ((x == y) & (i < j))
    return jnp.where(is_better, x, y), jnp.where(is_better, i, j)


def _places(x: jax.Array, axes: Collection[int], fixed: jax.Array | None = None) -> jax.Array:
    """The number of each element, counted along some axes in row-major order; of a constant from the end, below 0."""
    number = jnp.zeros_like(x, dtype=jnp.int32)
    for axis in sorted(axes):
        number = number * x.shape[axis] + lax.broadcasted_iota(jnp.int32, x.shape, axis)
    return number if fixed is None else jnp.where(fixed, number - _number_along(x, axes), number)


def _number_along(x: jax.Array, axes: Collection[int]) -> int:
    return math.prod(x.shape[axis] for axis in axes)


def _worst(beats: Beats, x: jax.Array, axes: Collection[int]) -> Pair:
    """A pair that beats no other one: the worst value at a place that there is not."""
    return _worst_value(beats, x.dtype), jnp.int32(_number_along(x, axes))


def _worst_value(beats: Beats, dtype: Any) -> jax.Array:
    if jnp.issubdtype(dtype, jnp.floating):
        return jnp.array(-jnp.inf if beats is lax.gt else jnp.inf, dtype)
    info = jnp.iinfo(dtype)
    return jnp.array(info.min if beats is lax.gt else info.max, dtype)


def _scattered(cotangent: jax.Array, places: jax.Array, shape: Sequence[int], axes: Sequence[int]) -> jax.Array:
    """What arrives, added up at places that are counted along some axes; dropped for a place that there is not."""

    def flat(array: jax.Array) -> jax.Array:
        others = [axis for axis in range(array.ndim) if axis not in axes]
        return jnp.transpose(array, (*others, *axes)).reshape([array.shape[axis] for axis in others] + [-1])

    def gather(x: jax.Array) -> jax.Array:
        return jnp.take_along_axis(flat(x), flat(places), -1, mode="fill")

    return jax.linear_transpose(gather, jnp.zeros_like(cotangent, shape=shape))(flat(cotangent))[0]


# Windows. The winner is the number of an entry of a small window, else a place along the axes along which windows move.


def _decide_windows(
    beats: Beats, params: Params, live: Collection[int], operands: Sequence[jax.Array], fixed: Fixed
) -> jax.Array:
    (x,), windows = operands, Windows.of(params)
    if not windows.is_small:
        places, reducer = _places(x, windows.axes, fixed.get(0)), functools.partial(_better, beats)
        sizes = (windows.size, windows.strides, windows.padding, windows.spread, windows.steps)
        return lax.reduce_window((x, places), _worst(beats, x, windows.axes), reducer, *sizes)[1]
    padded = windows.padded(x, _worst_value(beats, x.dtype))
    number = windows.number(padded.shape)
    if 0 in number:
        return jnp.zeros((), jnp.uint8)
    entries = [lax.slice(padded, start, stop, windows.strides) for start, stop in windows.entries(number)]
    best, constants = entries[0], windows.padded(fixed[0], jnp.zeros((), bool)) if 0 in fixed else None
    index = jnp.zeros_like(best, dtype=jnp.uint8) + windows.first_inside(x.shape, number)
    for i, (entry, place) in list(enumerate(zip(entries, windows.entries(number), strict=True)))[1:]:
        is_better = beats(entry, best)
        if constants is not None:
            is_better |= (entry == best) & lax.slice(constants, place[0], place[1], windows.strides)
        best, index = jnp.where(is_better, entry, best), jnp.where(is_better, jnp.uint8(i), index)
    return _settled(index)


def _give_windows(
    params: Params, live: Collection[int], shapes: Sequence[Any], winners: jax.Array, cotangent: jax.Array
) -> Sequence[jax.Array]:
    shape, windows = shapes[0].shape, Windows.of(params)
    if not windows.is_small:
        return (_scattered(cotangent, winners, shape, windows.axes),)
    index, zero = _unsettled(winners, cotangent.shape), jnp.zeros((), cotangent.dtype)
    total = windows.padded(jnp.zeros_like(cotangent, shape=shape), zero)
    for i, (start, stop) in enumerate(windows.entries(cotangent.shape)):
        after = [size - last for size, last in zip(total.shape, stop, strict=True)]
        between = [stride - 1 for stride in windows.strides]
        total += lax.pad(jnp.where(index == i, cotangent, zero), zero, list(zip(start, after, between, strict=True)))
    image = lax.pad(total, zero, [(-low, -high, 0) for low, high in windows.padding])
    return (lax.slice(image, [0] * image.ndim, image.shape, windows.spread),)


def _decide_gather(params: Params, live: Collection[int], operands: Sequence[jax.Array], fixed: Fixed) -> jax.Array:
    return _decide_windows(_order_of(params), params, live, operands[1:], {})


def _order_of(params: Params) -> Beats:
    return lax.gt if params["select_prim"].name == "ge" else lax.lt


def _give_gather(
    params: Params, live: Collection[int], shapes: Sequence[Any], winners: jax.Array, cotangent: jax.Array
) -> Sequence[jax.Array]:
    given = _give_windows(params, live, shapes, winners, cotangent) if 0 in live else ()
    chooser = [jnp.zeros_like(cotangent, shape=shapes[1].shape)] if 1 in live else []  # it chooses and is not passed on
    return [*given, *chooser]


# Into places that indices name: the winner is an element of the operands, those that do not carry relevance first. Who
# is larger is said once, by the order of all elements, as integers.


def _decide_scatter(
    beats: Beats, params: Params, live: Collection[int], operands: Sequence[jax.Array], fixed: Fixed
) -> jax.Array:
    sources = _sources(live)
    flat = jnp.concatenate([operands[i].ravel() for i in sources])
    keys = [flat if beats is lax.lt else -flat]
    if fixed:
        are_fixed = [jnp.broadcast_to(_where_fixed(i, live, fixed), operands[i].shape).ravel() for i in sources]
        keys.insert(0, ~jnp.concatenate(are_fixed))
    order = jnp.lexsort(keys)
    rank = jnp.zeros_like(order).at[order].set(jnp.arange(len(order), dtype=order.dtype), unique_indices=True)
    parts = dict(zip(sources, jnp.split(rank, [operands[sources[0]].size]), strict=True))
    names = ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
    first, updates = (parts[i].reshape(operands[i].shape) for i in (0, 2))
    return order[lax.scatter_min(first, operands[1], updates, **{name: params[name] for name in names})]


def _give_scatter(
    params: Params, live: Collection[int], shapes: Sequence[Any], winners: jax.Array, cotangent: jax.Array
) -> Sequence[jax.Array]:
    sources = _sources(live)
    sizes = [math.prod(shapes[i].shape) for i in sources]
    flat = jnp.zeros_like(cotangent, shape=sum(sizes)).at[winners.ravel()].add(cotangent.ravel())
    parts = dict(zip(sources, jnp.split(flat, sizes[:1]), strict=True))
    return [parts[i].reshape(shapes[i].shape) for i in sorted(live)]


def _sources(live: Collection[int]) -> list[int]:
    """What is there and what is scattered into it, in the order in which equals win."""
    return sorted((0, 2), key=lambda position: (position in live, position))


# A compiler computes an elementwise comparison again for each of its readers, each time with its own rounding of what
# is compared. A sum it computes once: one of two indices in one number makes all readers see the same decision.


def _settled(index: jax.Array) -> jax.Array:
    """Small integers, two in one number along the last axis."""
    index = jnp.atleast_1d(index)
    index = jnp.pad(index, [(0, 0)] * (index.ndim - 1) + [(0, index.shape[-1] % 2)])
    pairs = index.reshape(*index.shape[:-1], -1, 2).astype(jnp.uint16)
    shifted = pairs << _shifts(pairs.ndim)
    return lax.optimization_barrier(shifted.sum(-1, dtype=jnp.uint16))  # on GPUs, where sums of two are fused, too


def _unsettled(pairs: jax.Array, shape: Sequence[int]) -> jax.Array:
    index = (pairs[..., None] >> _shifts(pairs.ndim + 1)) & np.uint16(255)
    last = shape[-1] if shape else 1
    return index.reshape(*pairs.shape[:-1], -1)[..., :last].reshape(shape)


def _shifts(rank: int) -> np.ndarray:
    """By how many bits the two integers in one number are shifted, along the last of some axes."""
    return np.array([0, 8], np.uint16).reshape((1,) * (rank - 1) + (2,))


# How it is done at the primitives of JAX.


def of_operands(beats: Beats) -> Maximum:
    """One of two operands, element by element."""
    return Maximum(functools.partial(_decide_operand, beats), _give_operands)


def along_axes(beats: Beats) -> Maximum:
    """An element of one operand, along axes."""
    return Maximum(functools.partial(_decide_along, beats), _give_along)


def so_far(beats: Beats) -> Maximum:
    """Of all elements so far, along an axis."""
    return Maximum(functools.partial(_decide_so_far, beats), _give_so_far)


def of_windows(beats: Beats) -> Maximum:
    """Of all elements in a window."""
    return Maximum(functools.partial(_decide_windows, beats), _give_windows)


def scattered(beats: Beats) -> Maximum:
    """Of what is there and what is scattered to the same place."""
    return Maximum(functools.partial(_decide_scatter, beats), _give_scatter)


CLAMP = Maximum(_decide_clamp, _give_operands)
"""Of a lower bound, an operand and an upper bound, element by element."""

GATHERED = Maximum(_decide_gather, _give_gather)
"""The element of a window at which another operand is largest or smallest."""
