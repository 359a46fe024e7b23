"""Maxima and minima: who wins is decided once, in the forward pass, and kept as an index.

A derivative that looks for the winner on the way back, with x == largest, meets an x that a compiler may have computed
again with other rounding: then nothing is equal, and what arrives is lost. Here the way back reads indices alone, and
each output gives all that arrives at it to one element of one operand.

The conventions for equals, for maxima and minima alike: the first one wins, in row-major order and with the first
operand before the second; a live value that is equal to a constant loses, so that the derivative of max(x, 0) at 0 is
0, however it is written. Padding wins nothing.

The derivatives that JAX has for `sort` and `top_k` choose by index, too, and are left to it.
"""

import functools
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Params = Mapping[str, Any]
Beats = Callable[[Any, Any], jax.Array]
Pair = tuple[jax.Array, jax.Array]

_MOST_ENTRIES = 64  # of a window: each becomes an operation


@dataclass(frozen=True)
class Maximum:
    """How it is decided at a primitive who wins, and what the winners get.

    Attributes:
        decide: The function of (parameters, positions of the live operands, operands) that returns the winners.
        give: The function of (parameters, positions of the live operands, something with the shape of each operand,
            winners, cotangent of the output) that returns the cotangents of the live operands.
    """

    decide: Callable[[Params, Collection[int], Sequence[jax.Array]], jax.Array]
    give: Callable[[Params, Collection[int], Sequence[Any], jax.Array, jax.Array], Sequence[jax.Array]]


def winners(maximum: Maximum, params: Params, live: Collection[int], operands: Sequence[jax.Array]) -> jax.Array:
    """Decides which element of which operand each output of a maximum or minimum is.

    Args:
        maximum: How, at its primitive.
        params: The parameters of the operation.
        live: The positions of the operands through which relevance flows.
        operands: All operands.

    Returns:
        Integers that are meant for `to_winners`.

    Example:
        >>> winners(along_axes(lax.gt), {"axes": (1,)}, {0}, [jnp.array([[1.0, 3.0, 3.0], [2.0, 2.0, 0.0]])]).tolist()
        [1, 0]
    """
    if any(math.prod(operand.shape) == 0 for operand in operands):
        return jnp.zeros((), jnp.uint8)  # nobody is there to win
    return maximum.decide(params, live, [lax.stop_gradient(operand) for operand in operands])


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


def _decide_operand(beats: Beats, params: Params, live: Collection[int], operands: Sequence[jax.Array]) -> jax.Array:
    first, second = operands
    is_second = beats(second, first) if 1 in live else ~beats(first, second)
    return _settled_for(live, is_second.astype(jnp.uint8))


def _decide_clamp(params: Params, live: Collection[int], operands: Sequence[jax.Array]) -> jax.Array:
    low, x, high = operands
    is_above = x >= low if 0 in live and 1 not in live else x > low
    raised = jnp.where(is_above, x, low)
    is_below = raised <= high if 2 in live else raised < high
    return _settled_for(live, jnp.where(is_below, is_above.astype(jnp.uint8), jnp.uint8(2)))


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


def _decide_along(beats: Beats, params: Params, live: Collection[int], operands: Sequence[jax.Array]) -> jax.Array:
    (x,), axes = operands, params["axes"]
    places = _places(x, axes)
    return lax.reduce((x, places), _worst(beats, x, axes), functools.partial(_better, beats), axes)[1]


def _give_along(
    params: Params, live: Collection[int], shapes: Sequence[Any], winners: jax.Array, cotangent: jax.Array
) -> Sequence[jax.Array]:
    zeros, axes = jnp.zeros_like(cotangent, shape=shapes[0].shape), params["axes"]
    is_winner = _places(zeros, axes) == jnp.expand_dims(winners, axes)
    return (jnp.where(is_winner, jnp.expand_dims(cotangent, axes), zeros),)


def _decide_so_far(beats: Beats, params: Params, live: Collection[int], operands: Sequence[jax.Array]) -> jax.Array:
    (x,), axis = operands, params["axis"]
    better = functools.partial(_better, beats)
    return lax.associative_scan(better, (x, _places(x, (axis,))), reverse=params["reverse"], axis=axis)[1]


def _give_so_far(
    params: Params, live: Collection[int], shapes: Sequence[Any], winners: jax.Array, cotangent: jax.Array
) -> Sequence[jax.Array]:
    return (_scattered(cotangent, winners, shapes[0].shape, (params["axis"],)),)


def _better(beats: Beats, one: Pair, other: Pair) -> Pair:
    """Of two pairs of a value and its place the better one, of equals the first one."""
    (x, i), (y, j) = one, other
    is_better = beats(x, y) | ((x == y) & (i < j))
    return jnp.where(is_better, x, y), jnp.where(is_better, i, j)


def _places(x: jax.Array, axes: Collection[int]) -> jax.Array:
    """The number of each element, counted along some axes in row-major order."""
    number = jnp.zeros_like(x, dtype=jnp.int32)
    for axis in sorted(axes):
        number = number * x.shape[axis] + lax.broadcasted_iota(jnp.int32, x.shape, axis)
    return number


def _worst(beats: Beats, x: jax.Array, axes: Collection[int]) -> Pair:
    """A pair that beats no other one: the worst value at a place that there is not."""
    return _worst_value(beats, x.dtype), jnp.int32(math.prod(x.shape[axis] for axis in axes))


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


@dataclass(frozen=True)
class _Windows:
    """Where the windows of a pooling lie on an image that is spread and padded.

    Attributes:
        size: Of a window.
        strides: From a window to the next.
        steps: From an entry of a window to the next.
        padding: At both ends of each axis.
        spread: From an element of the image to the next.
    """

    size: tuple[int, ...]
    strides: tuple[int, ...]
    steps: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    spread: tuple[int, ...]

    @classmethod
    def of(cls, params: Params) -> "_Windows":
        names = ("window_dimensions", "window_strides", "window_dilation", "padding", "base_dilation")
        return cls(*(tuple(params[name]) for name in names))

    @property
    def is_small(self) -> bool:
        return math.prod(self.size) <= _MOST_ENTRIES

    @property
    def axes(self) -> tuple[int, ...]:
        """Along which a window holds more than the element at its own place."""
        kinds = zip(self.size, self.strides, self.padding, self.spread, strict=True)
        return tuple(axis for axis, kind in enumerate(kinds) if kind != (1, 1, (0, 0), 1))

    def padded(self, x: jax.Array, value: jax.Array) -> jax.Array:
        between = [step - 1 for step in self.spread]
        return lax.pad(x, value, [(*ends, step) for ends, step in zip(self.padding, between, strict=True)])

    def number(self, shape: Sequence[int]) -> tuple[int, ...]:
        """How many windows there are on a padded image."""
        reach = [(size - 1) * step for size, step in zip(self.size, self.steps, strict=True)]
        sizes = zip(shape, reach, self.strides, strict=True)
        return tuple(max((size - last - 1) // stride + 1, 0) for size, last, stride in sizes)

    def entries(self, number: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
        """For each entry of the windows, from where to where it lies on the padded image; in row-major order."""
        spans = [(count - 1) * stride + 1 for count, stride in zip(number, self.strides, strict=True)]
        for offsets in itertools.product(*map(range, self.size)):
            start = [offset * step for offset, step in zip(offsets, self.steps, strict=True)]
            yield start, [first + span for first, span in zip(start, spans, strict=True)]

    def first_inside(self, shape: Sequence[int], number: Sequence[int]) -> np.ndarray:
        """The number of the first entry of each window that is an element of the image; 0 if there is none."""
        first = np.zeros([1] * len(shape), np.uint8)
        for axis, (size, (low, _)) in enumerate(zip(self.size, self.padding, strict=True)):
            offsets = np.arange(size) * self.steps[axis]
            places = np.arange(number[axis])[:, None] * self.strides[axis] + offsets - low
            last = (shape[axis] - 1) * self.spread[axis]
            is_inside = (places >= 0) & (places <= last) & (places % self.spread[axis] == 0)
            along = is_inside.argmax(1).astype(np.uint8)
            first = first * np.uint8(size) + np.expand_dims(along, [i for i in range(len(shape)) if i != axis])
        return first


def _decide_windows(beats: Beats, params: Params, live: Collection[int], operands: Sequence[jax.Array]) -> jax.Array:
    (x,), windows = operands, _Windows.of(params)
    if not windows.is_small:
        places, reducer = _places(x, windows.axes), functools.partial(_better, beats)
        sizes = (windows.size, windows.strides, windows.padding, windows.spread, windows.steps)
        return lax.reduce_window((x, places), _worst(beats, x, windows.axes), reducer, *sizes)[1]
    padded = windows.padded(x, _worst_value(beats, x.dtype))
    number = windows.number(padded.shape)
    if 0 in number:
        return jnp.zeros((), jnp.uint8)
    entries = [lax.slice(padded, start, stop, windows.strides) for start, stop in windows.entries(number)]
    best = entries[0]
    index = jnp.zeros_like(best, dtype=jnp.uint8) + windows.first_inside(x.shape, number)
    for i, entry in enumerate(entries[1:], 1):
        is_better = beats(entry, best)
        best, index = jnp.where(is_better, entry, best), jnp.where(is_better, jnp.uint8(i), index)
    return _settled(index)


def _give_windows(
    params: Params, live: Collection[int], shapes: Sequence[Any], winners: jax.Array, cotangent: jax.Array
) -> Sequence[jax.Array]:
    shape, windows = shapes[0].shape, _Windows.of(params)
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


def _decide_gather(params: Params, live: Collection[int], operands: Sequence[jax.Array]) -> jax.Array:
    return _decide_windows(_order_of(params), params, live, operands[1:])


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


def _decide_scatter(beats: Beats, params: Params, live: Collection[int], operands: Sequence[jax.Array]) -> jax.Array:
    sources = _sources(live)
    flat = jnp.concatenate([operands[i].ravel() for i in sources])
    order = jnp.argsort(flat, stable=True) if beats is lax.lt else jnp.argsort(-flat, stable=True)
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
    pairs = index.reshape(*index.shape[:-1], -1, 2).astype(jnp.uint16) << np.array([0, 8], np.uint16)
    return lax.optimization_barrier(pairs.sum(-1, dtype=jnp.uint16))  # on GPUs, where sums of two are fused, too


def _unsettled(pairs: jax.Array, shape: Sequence[int]) -> jax.Array:
    index = (pairs[..., None] >> np.array([0, 8], np.uint16)) & np.uint16(255)
    last = shape[-1] if shape else 1
    return index.reshape(*pairs.shape[:-1], -1)[..., :last].reshape(shape)


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
