"""Kinds of layers: what the operations that can be one are as linear maps.

A layer is a product of a value x with a weight w, the first two operands of its primitive in either order. Operands
behind these say how the product is made. A further kind is a class like those below, and an entry in `KINDS`.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from lrp_jax.core import equations, samples
from lrp_jax.core.fast import is_depthwise, shifted_products, transposed_products
from lrp_jax.core.samples import Samples


@dataclass(frozen=True, eq=False)
class Kind:
    """Base of all kinds. An object is one product, z = lin(x, w).

    Attributes:
        name: What layers of this kind are called.
        primitive: The name of the primitive.
        samples: The rule for where the dimension of the samples goes.
        equation: The product.
        side: Which of its operands is x: the first, 0, or the second, 1; the other one of the two is w.
    """

    name: ClassVar[str]
    primitive: ClassVar[str]
    samples: ClassVar[Samples] = samples.KEPT
    equation: Any
    side: int

    @property
    def is_linear(self) -> bool:
        """Whether it is a layer if this side is x."""
        return True

    @property
    def weight_axes(self) -> Mapping[int, int]:
        """For each dimension of z that w brings, that of w: a factor that varies along these alone folds into w."""
        raise NotImplementedError

    @property
    def feature_axes(self) -> tuple[int, ...]:
        """The dimensions of z that belong to one sample."""
        return tuple(self.weight_axes)

    @property
    def sample_axes(self) -> tuple[int, ...]:
        """The dimensions of x along which z repeats if x does."""
        raise NotImplementedError

    @property
    def output_axes(self) -> Sequence[int]:
        """The dimensions of z in the order of those of x: samples for samples, and features for features."""
        raise NotImplementedError

    def run(self, *operands: jax.Array, dtype: Any = None) -> jax.Array:
        """Applies the operation, up to rounding, as fast as the platform allows.

        Args:
            operands: All of its operands, in their order.
            dtype: That of the output; the operation's own if None.
        """
        return self._run(*operands, dtype=dtype)

    def linear(self, x: jax.Array, w: jax.Array, *others: jax.Array, dtype: Any) -> jax.Array:
        """The map lin(x, w), in a dtype."""
        return self.run(*self._ordered(x, w), *others, dtype=dtype)

    def transpose(self, x: jax.Array, w: jax.Array, s: jax.Array, *others: jax.Array) -> jax.Array:
        """The transpose of x -> lin(x, w), applied to s, in the dtype of s; of x the shape counts alone."""

        def linear(x: jax.Array) -> jax.Array:
            return self._run(*self._ordered(x, w), *others, dtype=s.dtype)

        return jax.linear_transpose(linear, x)(s)[0]

    def transposes(
        self, x: jax.Array, weights: Sequence[jax.Array], s: jax.Array, *others: jax.Array
    ) -> Sequence[jax.Array]:
        """The transposes for several weights, applied to one s: as one product, which is faster than several."""
        return list(jax.vmap(lambda w: self.transpose(x, w, s, *others))(jnp.stack(weights)))

    @property
    def _numbers(self) -> Any:
        return self.equation.params["dimension_numbers"]

    def _ordered(self, x: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
        return (w, x) if self.side else (x, w)

    def _run(self, *operands: jax.Array, dtype: Any) -> jax.Array:
        changed = {} if dtype is None else {"preferred_element_type": dtype}
        return equations.run(self.equation, *operands, **changed)[0]


class Dense(Kind):
    """A product of matrices, with any number of dimensions that are summed over, or that both operands have."""

    name = "dense"
    primitive = "dot_general"
    samples = samples.PRODUCT

    @property
    def weight_axes(self) -> Mapping[int, int]:
        weight = 1 - self.side
        batch, free = self._batch(weight), self._free(weight)
        start = len(batch) + (len(self._free(0)) if weight else 0)
        return dict(enumerate(batch)) | {start + i: axis for i, axis in enumerate(free)}

    @property
    def sample_axes(self) -> tuple[int, ...]:
        return self._free(self.side)

    @property
    def output_axes(self) -> Sequence[int]:
        batch, samples = self._batch(self.side), self._free(self.side)
        rank = self.equation.outvars[0].aval.ndim
        start = len(batch) + self.side * (rank - len(batch) - len(samples))
        place = dict(zip(batch, range(rank), strict=False)) | {axis: start + i for i, axis in enumerate(samples)}
        features = [i for i in range(rank) if i not in place.values()]
        place.update(zip(self._contracted(self.side), features, strict=False))
        ordered = [place[axis] for axis in sorted(place)]
        return ordered if len(ordered) == rank else range(rank)

    def _contracted(self, side: int) -> Sequence[int]:
        return self._numbers[0][side]

    def _batch(self, side: int) -> Sequence[int]:
        return self._numbers[1][side]

    def _free(self, side: int) -> tuple[int, ...]:
        bound = {*self._contracted(side), *self._batch(side)}
        return tuple(axis for axis in range(self.equation.invars[side].aval.ndim) if axis not in bound)


class Convolution(Kind):
    """A convolution; on a CPU, where XLA is slow at them, depthwise ones are written out."""

    name = "conv"
    primitive = "conv_general_dilated"
    samples = samples.CONVOLUTION

    @property
    def weight_axes(self) -> Mapping[int, int]:
        return {} if self.side else {self._numbers.out_spec[1]: self._numbers.rhs_spec[0]}

    @property
    def feature_axes(self) -> tuple[int, ...]:
        batch, rank = self._numbers.out_spec[0], self.equation.outvars[0].aval.ndim
        return tuple(axis for axis in range(rank) if axis != batch)

    @property
    def sample_axes(self) -> tuple[int, ...]:
        is_image = self.side == 0 and self.equation.params["batch_group_count"] == 1
        return (self._numbers.lhs_spec[0],) if is_image else ()

    @property
    def output_axes(self) -> Sequence[int]:
        numbers = self._numbers
        return [numbers.out_spec[numbers.lhs_spec.index(axis)] for axis in range(len(numbers.lhs_spec))]

    def run(self, *operands: jax.Array, dtype: Any = None) -> jax.Array:
        plainly = functools.partial(self._run, dtype=dtype)
        if not is_depthwise(self.equation, *operands):
            return plainly(*operands)
        params = self.equation.params | ({} if dtype is None else {"preferred_element_type": dtype})
        return lax.platform_dependent(
            *operands, cpu=functools.partial(shifted_products, params=params), default=plainly
        )

    def transpose(self, x: jax.Array, w: jax.Array, s: jax.Array, *others: jax.Array) -> jax.Array:
        plainly = functools.partial(super().transpose, x)
        if self.side or not is_depthwise(self.equation, x, w):
            return plainly(w, s)
        params = self.equation.params | {"preferred_element_type": s.dtype}
        return lax.platform_dependent(
            w, s, cpu=lambda w, s: transposed_products(s, w, params, x.shape), default=plainly
        )


class Ragged(Dense):
    """A product of matrices in which each group of rows of x has a weight of its own, as in a mixture of experts.

    The sizes of the groups are a third operand. Rows behind the last group have no weight: there z is zero.
    """

    name = "ragged"
    primitive = "ragged_dot_general"
    samples = samples.KEPT

    @property
    def is_linear(self) -> bool:
        (ragged,) = self.equation.params["ragged_dot_dimension_numbers"].lhs_ragged_dimensions
        return self.side == 0 and ragged in self._free(0)

    @property
    def sample_axes(self) -> tuple[int, ...]:
        return ()  # the weight differs from row to row

    def transposes(
        self, x: jax.Array, weights: Sequence[jax.Array], s: jax.Array, *others: jax.Array
    ) -> Sequence[jax.Array]:
        return [self.transpose(x, w, s, *others) for w in weights]  # JAX has no vmap over weights alone

    @property
    def _numbers(self) -> Any:
        return self.equation.params["ragged_dot_dimension_numbers"].dot_dimension_numbers

    def _free(self, side: int) -> tuple[int, ...]:
        groups = self.equation.params["ragged_dot_dimension_numbers"].rhs_group_dimensions if side else ()
        return tuple(axis for axis in super()._free(side) if axis not in groups)


KINDS: Mapping[str, type[Kind]] = {kind.primitive: kind for kind in (Dense, Convolution, Ragged)}
"""The kinds of layers, by their primitive."""
