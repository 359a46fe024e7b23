"""Where the windows of a pooling lie."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import lax

_MOST_ENTRIES = 64  # of a small window


@dataclass(frozen=True)
class Windows:
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
    def of(cls, params: Mapping[str, Any]) -> "Windows":
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
