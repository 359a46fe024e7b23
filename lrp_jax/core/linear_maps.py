"""What a rule sees of a layer: a linear map at one input, and the parts of its output of either sign."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lrp_jax.core.graph import Operation
from lrp_jax.core.kinds import Kind

_LOST = 1e-3  # a difference this small beside what it is taken from has lost three digits


def positive(a: jax.Array) -> jax.Array:
    """a+ = max(a, 0)."""
    return jnp.maximum(a, 0)


def negative(a: jax.Array) -> jax.Array:
    """a- = min(a, 0)."""
    return jnp.minimum(a, 0)


@dataclass(frozen=True)
class LinearMap:
    """What a rule sees of a layer: z = lin(x, w) + b at one input.

    Attributes:
        x: The input of the layer.
        w: Its weight, with everything folded in that scales the output.
        b: Its bias, of a shape that broadcasts to `z`; zero where there is none.
        z: Its output.
        product: The linear operation.
        others: Its operands besides x and w.
        moves: What moves its output.
        nonnegative: Whether x is known to be non-negative.
        rectified: Whether z is known to be read only through a ReLU, so that no relevance arrives where z <= 0.
    """

    x: jax.Array
    w: jax.Array
    b: jax.Array
    z: jax.Array
    product: Kind
    others: tuple[jax.Array, ...] = ()
    moves: tuple[Operation, ...] = ()
    nonnegative: bool = False
    rectified: bool = False

    def linear(self, x: jax.Array, w: jax.Array) -> jax.Array:
        """The map lin(x, w), linear in x and in w."""
        return self._moved(self.product.linear(x, w, *self.others, dtype=self.z.dtype))

    def transpose(self, w: jax.Array, s: jax.Array) -> jax.Array:
        """The transpose of x -> lin(x, w), applied to s of the shape of z: for a dense layer s times w transposed."""
        return self.product.transpose(self.x, w, self.unmoved(s.astype(self.z.dtype)), *self.others)

    def transposes(self, weights: Sequence[jax.Array], s: jax.Array) -> Sequence[jax.Array]:
        """The transposes for several weights, applied to one s, which is faster than one by one."""
        return self.product.transposes(self.x, weights, self.unmoved(s.astype(self.z.dtype)), *self.others)

    def filled(self, value: Any) -> jax.Array:
        """An input that holds a value everywhere: a number, or an array that broadcasts to x.

        It has a single sample where all would be the same: what follows from it is computed once.
        """
        samples = () if self.moves else self.product.sample_axes
        shape = tuple(1 if axis in samples else size for axis, size in enumerate(self.x.shape))
        value = jnp.asarray(value, self.x.dtype)
        # Made like another array, it varies within `jax.shard_map` along the same axes as it does.
        return jnp.zeros_like(self.x, shape=shape) + jnp.expand_dims(value, tuple(range(len(shape) - value.ndim)))

    def root_mean_square(self, z: jax.Array) -> jax.Array:
        """That of an output, or of a denominator in its place, over each sample's features; it broadcasts to z."""
        features = self.product.feature_axes
        if not self.moves:
            return jnp.sqrt((z**2).mean(features, keepdims=True))
        unmoved = self.unmoved(jnp.broadcast_to(z, self.z.shape))
        mean = jnp.sqrt((unmoved**2).mean(features, keepdims=True))
        return self._moved(jnp.broadcast_to(mean, unmoved.shape))

    def unmoved(self, z: jax.Array) -> jax.Array:
        """An array in the shape of z in that of the linear operation's output."""
        out = jnp.zeros_like(z, shape=self.product.equation.outvars[0].aval.shape)
        return jax.linear_transpose(self._moved, out)(z)[0]

    def _moved(self, out: jax.Array) -> jax.Array:
        for operation in self.moves:
            (out,) = operation.run(out)
        return out

    @functools.cached_property
    def x_positive(self) -> jax.Array:
        """x+ = max(x, 0)."""
        return self.x if self.nonnegative else positive(self.x)

    @functools.cached_property
    def x_negative(self) -> jax.Array | None:
        """x- = min(x, 0); None where x is known to be non-negative."""
        return None if self.nonnegative else negative(self.x)

    @functools.cached_property
    def z_positive(self) -> jax.Array:
        """The sum of the positive contributions, lin(x+, w+) + lin(x-, w-) + b+.

        Where x has both signs, it is a difference, in which rounding of the negative contributions remains. That does
        no harm where it is added to a z > 0; where it stands alone, take `z_positive_alone`.
        """
        if self.nonnegative:
            return self.linear(self.x, positive(self.w)) + positive(self.b)
        # All contributions and their absolute values add up to twice the positive ones: one product instead of two.
        total = self.z + self.linear(jnp.abs(self.x), jnp.abs(self.w)) + jnp.abs(self.b)
        return jnp.maximum(total / 2, 0)

    @functools.cached_property
    def z_negative(self) -> jax.Array:
        """The sum of the negative contributions, lin(x+, w-) + lin(x-, w+) + b-: what the positive ones leave of z.

        As a difference it is precise beside a z < 0; where it stands alone, take `z_negative_alone`.
        """
        return negative(self.z - self.z_positive)

    @functools.cached_property
    def z_positive_alone(self) -> jax.Array:
        """`z_positive`, precise even where the negative contributions are far larger."""
        if self.nonnegative:
            return self.z_positive
        exact = functools.partial(self._sum, self.x_positive, self.x_negative, positive, negative)
        return self._unless_lost(self.z_positive, self.z - self.z_positive, exact)

    @functools.cached_property
    def z_negative_alone(self) -> jax.Array:
        """`z_negative`, precise even where the positive contributions are far larger."""
        exact = functools.partial(self._sum, self.x_positive, self.x_negative, negative, positive)
        return self._unless_lost(self.z_negative, self.z_positive, exact)

    def _sum(self, xp: jax.Array, xn: jax.Array | None, part: Callable, opposite: Callable) -> jax.Array:
        """The contributions of one sign, added up by products of their own."""
        total = self.linear(xp, part(self.w)) + part(self.b)
        return total if xn is None else total + self.linear(xn, opposite(self.w))

    def _unless_lost(self, difference: jax.Array, other: jax.Array, exact: Callable[[], jax.Array]) -> jax.Array:
        """The difference; where the other sum is so large that too little is left of it, the exact sum."""
        is_lost = jnp.abs(difference) < _LOST * jnp.abs(other)
        if self.rectified:
            is_lost &= self.z > 0
        return replace_where(is_lost, difference, exact)


def replace_where(mask: jax.Array, values: jax.Array, make: Callable[[], jax.Array]) -> jax.Array:
    """The values, replaced where the mask holds; the replacement is computed only if it holds anywhere."""
    return lax.cond(mask.any(), lambda: jnp.where(mask, make().astype(values.dtype), values), lambda: values)
