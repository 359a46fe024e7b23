"""The propagation rules of layer-wise relevance propagation.

A rule says how the relevance of a layer's output is shared out among the layer's inputs. It is a small frozen dataclass
whose method `propagate` is its formula. In all formulas x is the input of the layer, w its weight, b its bias,
z = lin(x, w) + b its output, R the relevance of the output, T(w, s) the transpose of x -> lin(x, w) applied to s,
a+ = max(a, 0), a- = min(a, 0), and stab(z) = z + stabilizer * sign(z) with sign(0) = +1.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from lrp_jax.forms import STABILIZER, Form, divide, stabilize
from lrp_jax.layers import LinearMap


class Rule:
    """Base of all rules.

    A rule of your own derives from this class, is a frozen dataclass, and defines `propagate`. Nothing has to be
    registered.

    Attributes:
        form: What `propagate` returns: the relevance of the input (`Form.RELEVANCE`), or its ratio to the input
            (`Form.RATIO`, R / x), which is cheaper and exact where the relevance is x times something.

    Example:
        >>> import dataclasses, jax, jax.numpy as jnp
        >>> from lrp_jax import lrp
        >>> from lrp_jax.rules import Rule, Form
        >>> @dataclasses.dataclass(frozen=True)
        ... class Uniform(Rule):
        ...     form = Form.RELEVANCE
        ...     def propagate(self, layer, relevance):
        ...         return jnp.full_like(layer.x, relevance.sum() / layer.x.size)
        >>> weight = jnp.array([[1.0], [3.0]])
        >>> jax.grad(lambda x: lrp(lambda x: x @ weight, Uniform())(x)[0])(jnp.array([1.0, 1.0]))
        Array([2., 2.], dtype=float32)
    """

    form: ClassVar[Form] = Form.RATIO

    def propagate(self, layer: LinearMap, relevance: jax.Array) -> jax.Array:
        """Propagates relevance through one layer.

        Args:
            layer: The layer at its input: x, w, b, z, lin and its transpose.
            relevance: The relevance of the output, of the shape of `layer.z`.

        Returns:
            Array of the shape of `layer.x`, in the form `self.form`.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Zero(Rule):
    """LRP-0: relevance is shared in proportion to each input's part of the output.

    R_i = sum_j x_i w_ij / z_j R_j, with 0 / 0 = 0; in ratio form T(w, R / z). The bias is part of z and keeps its
    share.

    Source: Bach et al. (2015), equation 56; Montavon et al. (2019), section 10.2.1.

    Example:
        >>> from lrp_jax import lrp
        >>> weight = jnp.array([[1.0], [3.0]])
        >>> jax.grad(lambda x: lrp(lambda x: x @ weight, Zero())(x)[0])(jnp.array([2.0, 1.0]))
        Array([2., 3.], dtype=float32)
    """

    def propagate(self, layer: LinearMap, relevance: jax.Array) -> jax.Array:
        return layer.transpose(layer.w, divide(relevance, layer.z))


@dataclass(frozen=True)
class Epsilon(Rule):
    """LRP-epsilon: LRP-0 with a denominator that is kept away from zero and absorbs some relevance.

    R_i = sum_j x_i w_ij / (z_j + epsilon sign(z_j)) R_j, with sign(0) = +1; in ratio form T(w, R / stab(z)). The bias
    is part of z and keeps its share.

    Source: Bach et al. (2015), equation 58; Montavon et al. (2019), section 10.2.1.

    Attributes:
        epsilon: Absolute, in units of z.

    Example:
        >>> from lrp_jax import lrp
        >>> weight = jnp.array([[1.0], [3.0]])
        >>> jax.grad(lambda x: lrp(lambda x: x @ weight, Epsilon(5.0))(x)[0])(jnp.array([2.0, 1.0]))
        Array([1. , 1.5], dtype=float32)
    """

    epsilon: float = 1e-6

    def propagate(self, layer: LinearMap, relevance: jax.Array) -> jax.Array:
        return layer.transpose(layer.w, relevance / stabilize(layer.z, self.epsilon))


@dataclass(frozen=True)
class ZPlus(Rule):
    """The z+ rule: only contributions that push the output up receive relevance.

    With zp = lin(x+, w+) + lin(x-, w-) + b+ and s = R / stab(zp):
    R_i = x_i+ T(w+, s)_i + x_i- T(w-, s)_i. It is the rule alpha-beta with alpha = 1 and beta = 0. Inputs of both signs
    are treated; after a relu x- = 0 and the formula is the one of the deep Taylor decomposition.

    Source: Montavon et al. (2017), section 4.2; Bach et al. (2015), equation 60.

    Attributes:
        stabilizer: Distance that the denominator keeps from zero, in units of z.

    Example:
        >>> from lrp_jax import lrp
        >>> weight = jnp.array([[1.0], [-3.0]])
        >>> jax.grad(lambda x: lrp(lambda x: x @ weight, ZPlus())(x)[0])(jnp.array([5.0, 1.0])).round(4)
        Array([2., 0.], dtype=float32)
    """

    stabilizer: float = STABILIZER

    def propagate(self, layer: LinearMap, relevance: jax.Array) -> jax.Array:
        x, w, lin = layer.x, layer.w, layer.linear
        zp = lin(positive(x), positive(w)) + lin(negative(x), negative(w)) + positive(layer.b)
        s = relevance / stabilize(zp, self.stabilizer)
        return jnp.where(x > 0, layer.transpose(positive(w), s), layer.transpose(negative(w), s))


@dataclass(frozen=True)
class Flat(Rule):
    """The flat rule: relevance is shared evenly among all inputs of a neuron, whatever their values and weights.

    R = T(1, R / stab(lin(1, 1))): x and w are replaced by ones, the bias by zero.

    Source: Montavon et al. (2019), table 10.1.

    Attributes:
        stabilizer: Distance that the denominator keeps from zero.

    Example:
        >>> from lrp_jax import lrp
        >>> weight = jnp.array([[1.0], [3.0]])
        >>> jax.grad(lambda x: lrp(lambda x: x @ weight, Flat())(x)[0])(jnp.array([0.0, 2.0])).round(4)
        Array([3., 3.], dtype=float32)
    """

    form: ClassVar[Form] = Form.RELEVANCE
    stabilizer: float = STABILIZER

    def propagate(self, layer: LinearMap, relevance: jax.Array) -> jax.Array:
        ones = jnp.ones_like(layer.w)
        z = layer.linear(jnp.ones_like(layer.x), ones)
        return layer.transpose(ones, relevance / stabilize(z, self.stabilizer))


def positive(a: jax.Array) -> jax.Array:
    """a+ = max(a, 0)."""
    return jnp.maximum(a, 0)


def negative(a: jax.Array) -> jax.Array:
    """a- = min(a, 0)."""
    return jnp.minimum(a, 0)
