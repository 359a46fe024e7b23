"""The propagation rules of layer-wise relevance propagation.

A rule says how the relevance of a layer's output is split among the layer's inputs. It is a small frozen dataclass
whose method `shares` is its formula. In all formulas x is the input of the layer, w its weight, b its bias,
z = lin(x, w) + b its output, R the relevance of the output, T(w, s) the transpose of x -> lin(x, w) applied to s,
a+ = max(a, 0), a- = min(a, 0), and stab(z) = z + stabilizer * sign(z) with sign(0) = +1.

A stabilizer that you give is a number in units of z, as in the literature. The default, None, is 1e-6 times the root
mean square of the denominator over the features of a sample: relevance then does not depend on the units of the input.

Every rule has a field `bias`:

- "absorb": the bias is part of the denominator and keeps its share of the relevance.
- "ignore": the bias is left out of the denominator, and the inputs get everything.
- "distribute": the bias is part of the denominator, and its share is spread evenly over the inputs that contributed to
  the output, which are those with x_i w_ij != 0 (or with w_ij != 0 for rules that do not look at x).
"""

import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, ClassVar, get_args

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax.core.arguments import broadcasts
from lrp_jax.core.forms import Form, divide, stabilize
from lrp_jax.core.linear_maps import LinearMap, negative, positive
from lrp_jax.core.rule import Bias, Rule, Share, stabilized
from lrp_jax.errors import RuleError

__all__ = [
    "AlphaBeta",
    "Bias",
    "Epsilon",
    "Flat",
    "Form",
    "Gamma",
    "Gradient",
    "Norm",
    "Pass",
    "Rule",
    "Share",
    "WSquare",
    "ZBox",
    "ZPlus",
    "Zero",
    "negative",
    "positive",
    "stabilize",
    "stabilized",
]


@dataclass(frozen=True)
class Zero(Rule):
    """LRP-0: relevance is split in proportion to what each input contributes to the output.

    R_i = sum_j x_i w_ij / z_j R_j, with 0 / 0 = 0; in ratio form T(w, R / z).

    Source: Bach et al. (2015), equation 56; Montavon et al. (2019), section 10.2.1.

    Attributes:
        bias: "absorb", "ignore" or "distribute".

    Example:
        >>> from lrp_jax import lrp
        >>> weight = jnp.array([[1.0], [3.0]])
        >>> jax.grad(lambda x: lrp(lambda x: x @ weight, Zero())(x)[0])(jnp.array([2.0, 1.0]))
        Array([2., 3.], dtype=float32)
    """

    is_proportional: ClassVar[bool] = True
    bias: Bias = "absorb"

    def __post_init__(self) -> None:
        _check(self)

    def shares(self, layer: LinearMap, relevance: jax.Array) -> Sequence[Share]:
        return [Share(layer.x, layer.w, layer.b, divide(relevance, layer.z))]

    def propagate(self, layer: LinearMap, cotangent: jax.Array, arriving: Form = Form.RELEVANCE) -> jax.Array:
        if arriving is Form.RATIO and self.bias == "absorb":
            return layer.transpose(layer.w, cotangent)  # nothing is divided, so that z = 0 loses nothing
        return super().propagate(layer, cotangent, arriving)


@dataclass(frozen=True)
class Epsilon(Rule):
    """LRP-epsilon: LRP-0 with a denominator that is kept away from zero and absorbs some relevance.

    R_i = sum_j x_i w_ij / (z_j + epsilon sign(z_j)) R_j, with sign(0) = +1; in ratio form T(w, R / stab(z)).

    Source: Bach et al. (2015), equation 58; Montavon et al. (2019), section 10.2.1. Default values differ between
    systems, from 1e-11 to 1e-6.

    Attributes:
        epsilon: In units of z; None for the default, which is relative. It may be traced, like every stabilizer.
        relative: Whether to multiply epsilon by the root mean square of z over the output features of each sample (all
            dimensions that come from the weight).
        bias: "absorb", "ignore" or "distribute".

    Example:
        >>> from lrp_jax import lrp
        >>> weight = jnp.array([[1.0], [3.0]])
        >>> jax.grad(lambda x: lrp(lambda x: x @ weight, Epsilon(5.0))(x)[0])(jnp.array([2.0, 1.0]))
        Array([1. , 1.5], dtype=float32)
    """

    is_proportional: ClassVar[bool] = True
    traced = ("epsilon",)
    epsilon: float | jax.Array | None = None
    relative: bool = False
    bias: Bias = "absorb"

    def __post_init__(self) -> None:
        _check(self, "epsilon")

    def shares(self, layer: LinearMap, relevance: jax.Array) -> Sequence[Share]:
        unit = layer.root_mean_square(layer.z) if self.relative else 1.0
        epsilon = None if self.epsilon is None else self.epsilon * unit
        s = divide(relevance, stabilized(layer, layer.z, epsilon))
        return [Share(layer.x, layer.w, layer.b, s)]


@dataclass(frozen=True)
class Gamma(Rule):
    """LRP-gamma: positive contributions count more, the more the larger gamma is; the limit is z+.

    For inputs and outputs of both signs, let zp and zn be the sums of the positive and of the negative contributions,
    wp = w + gamma w+, wn = w + gamma w-, and bp and bn likewise. Then
    sp = [z > 0] R / stab(z + gamma zp), sn = [z < 0] R / stab(z + gamma zn),
    R_i = x+ T(wp, sp) + x- T(wn, sp) + x+ T(wn, sn) + x- T(wp, sn).

    Source: Montavon et al. (2019), section 10.2.1, for inputs and outputs that are not negative; Andéol et al. (2021)
    for both signs. Captum leaves the bias as it is.

    Attributes:
        gamma: How much more the favoured contributions count; 0 is LRP-epsilon. It may be traced.
        stabilizer: Distance that the denominators keep from zero, in units of z; None for the default.
        bias: "absorb", "ignore" or "distribute".

    Example:
        >>> from lrp_jax import lrp
        >>> weight = jnp.array([[1.0], [-1.0]])
        >>> jax.grad(lambda x: lrp(lambda x: x @ weight, Gamma(1.0))(x)[0])(jnp.array([4.0, 2.0])).round(4)
        Array([ 2.6667, -0.6667], dtype=float32)
    """

    traced = ("gamma", "stabilizer")
    gamma: float | jax.Array = 0.25
    stabilizer: float | jax.Array | None = None
    bias: Bias = "absorb"

    def __post_init__(self) -> None:
        _check(self, "gamma", "stabilizer")

    def shares(self, layer: LinearMap, relevance: jax.Array) -> Sequence[Share]:
        gamma = jnp.asarray(self.gamma, layer.w.dtype)
        xp, xn = layer.x_positive, layer.x_negative
        wp, wn = (layer.w + gamma * part(layer.w) for part in (positive, negative))
        bp, bn = (layer.b + gamma * part(layer.b) for part in (positive, negative))
        dp = stabilized(layer, layer.z + gamma * layer.z_positive, self.stabilizer)
        sp = divide(jnp.where(layer.z > 0, relevance, 0), dp)
        shares = [Share(xp, wp, bp, sp), Share(xn, wn, 0.0, sp)]
        if layer.rectified:
            return shares
        dn = stabilized(layer, layer.z + gamma * layer.z_negative, self.stabilizer)
        sn = divide(jnp.where(layer.z < 0, relevance, 0), dn)
        return [*shares, Share(xp, wn, bn, sn), Share(xn, wp, 0.0, sn)]


@dataclass(frozen=True)
class AlphaBeta(Rule):
    """LRP-alpha-beta: positive and negative contributions are propagated separately, weighted by alpha and -beta.

    Let zp = lin(x+, w+) + lin(x-, w-) + b+ be the sum of the positive contributions, zn = z - zp that of the negative
    ones, sp = R / stab(zp) and sn = R / stab(zn). Then
    R_i = alpha (x+ T(w+, sp) + x- T(w-, sp)) - beta (x+ T(w-, sn) + x- T(w+, sn)).

    Source: Bach et al. (2015), equation 60.

    Attributes:
        alpha: Weight of the positive contributions. It has to be a known number, and so does beta: if beta is 0, the
            negative contributions are not computed at all.
        beta: Weight of the negative contributions; alpha - beta = 1.
        stabilizer: Distance that the denominators keep from zero, in units of z; None for the default.
        bias: "absorb", "ignore" or "distribute".

    Raises:
        RuleError: If alpha - beta is not 1, or one of them is negative or traced.

    Example:
        >>> from lrp_jax import lrp
        >>> weight = jnp.array([[1.0], [-1.0]])
        >>> jax.grad(lambda x: lrp(lambda x: x @ weight, AlphaBeta())(x)[0])(jnp.array([4.0, 2.0])).round(4)
        Array([ 4., -2.], dtype=float32)
    """

    traced = ("stabilizer",)
    alpha: float = 2.0
    beta: float = 1.0
    stabilizer: float | jax.Array | None = None
    bias: Bias = "absorb"

    def __post_init__(self) -> None:
        _check(self, "alpha", "beta", "stabilizer")
        if abs(self.alpha - self.beta - 1) > 1e-6:  # they may have been rounded to single precision
            raise RuleError(
                f"AlphaBeta(alpha={self.alpha}, beta={self.beta}): alpha - beta must be 1, or relevance is multiplied "
                f"by {self.alpha - self.beta:g} in every layer. For this alpha take beta={self.alpha - 1:g}."
            )

    def shares(self, layer: LinearMap, relevance: jax.Array) -> Sequence[Share]:
        xp, xn = layer.x_positive, layer.x_negative
        wp, wn, bp, bn = positive(layer.w), negative(layer.w), positive(layer.b), negative(layer.b)
        sp = self.alpha * divide(relevance, stabilized(layer, layer.z_positive_alone, self.stabilizer))
        shares = [Share(xp, wp, bp, sp), Share(xn, wn, 0.0, sp)]
        if self.beta == 0:
            return shares
        sn = -self.beta * divide(relevance, stabilized(layer, layer.z_negative_alone, self.stabilizer))
        return [*shares, Share(xp, wn, bn, sn), Share(xn, wp, 0.0, sn)]

    def unshared(self, layer: LinearMap, relevance: jax.Array) -> jax.Array:
        layer = self._with_bias(layer)
        missing = self.alpha * jnp.where(layer.z_positive_alone == 0, relevance, 0)
        if self.beta == 0:
            return missing
        return missing - self.beta * jnp.where(layer.z_negative_alone == 0, relevance, 0)


@dataclass(frozen=True)
class ZPlus(Rule):
    """The z+ rule: only contributions that push the output up receive relevance. It is alpha-beta with (1, 0).

    With zp = lin(x+, w+) + lin(x-, w-) + b+ and s = R / stab(zp): R_i = x+ T(w+, s) + x- T(w-, s). A contribution is
    positive if input and weight have the same sign, so negative inputs count, too. (Captum sets negative weights to
    zero instead, which is the same only as long as no input is negative.) After a ReLU x- = 0, and this is the rule of
    deep Taylor decomposition.

    Source: Montavon et al. (2017), the z^+-rule; Bach et al. (2015), equation 60.

    Attributes:
        stabilizer: Distance that the denominator keeps from zero, in units of z; None for the default.
        bias: "absorb", "ignore" or "distribute".

    Example:
        >>> from lrp_jax import lrp
        >>> weight = jnp.array([[1.0], [-3.0]])
        >>> jax.grad(lambda x: lrp(lambda x: x @ weight, ZPlus())(x)[0])(jnp.array([5.0, 1.0])).round(4)
        Array([2., 0.], dtype=float32)
    """

    traced = ("stabilizer",)
    stabilizer: float | jax.Array | None = None
    bias: Bias = "absorb"

    def __post_init__(self) -> None:
        _check(self, "stabilizer")

    def shares(self, layer: LinearMap, relevance: jax.Array) -> Sequence[Share]:
        return AlphaBeta(1.0, 0.0, self.stabilizer).shares(layer, relevance)

    def unshared(self, layer: LinearMap, relevance: jax.Array) -> jax.Array:
        return AlphaBeta(1.0, 0.0, bias=self.bias).unshared(layer, relevance)


@dataclass(frozen=True)
class WSquare(Rule):
    """The w^2 rule: relevance is split in proportion to the squared weights, whatever the inputs.

    R = T(w^2, R / stab(lin(1, w^2))).

    Source: Montavon et al. (2017), the w^2-rule. Zennit keeps b^2 in the denominator, which is `bias="absorb"`.

    Attributes:
        stabilizer: Distance that the denominator keeps from zero; None for the default.
        bias: "ignore", or "absorb" or "distribute" with b^2 in the denominator.

    Example:
        >>> from lrp_jax import lrp
        >>> weight = jnp.array([[1.0], [2.0]])
        >>> jax.grad(lambda x: lrp(lambda x: x @ weight, WSquare())(x)[0])(jnp.array([0.0, 5.0])).round(4)
        Array([2., 8.], dtype=float32)
    """

    form: ClassVar[Form] = Form.RELEVANCE
    traced = ("stabilizer",)
    stabilizer: float | jax.Array | None = None
    bias: Bias = "ignore"

    def __post_init__(self) -> None:
        _check(self, "stabilizer")

    def shares(self, layer: LinearMap, relevance: jax.Array) -> Sequence[Share]:
        ones, w, b = layer.filled(1.0), layer.w**2, layer.b**2
        s = divide(relevance, stabilized(layer, layer.linear(ones, w) + b, self.stabilizer))
        return [Share(ones, w, b, s)]


@dataclass(frozen=True)
class Flat(Rule):
    """The flat rule: relevance is split evenly among all inputs of a neuron, whatever their values and weights.

    R = T(1, R / stab(lin(1, 1))).

    Source: Montavon et al. (2019), table 10.1.

    Attributes:
        stabilizer: Distance that the denominator keeps from zero; None for the default.
        bias: "ignore", or "absorb" or "distribute", for which a bias that is not zero counts as one more input.

    Example:
        >>> from lrp_jax import lrp
        >>> weight = jnp.array([[1.0], [3.0]])
        >>> jax.grad(lambda x: lrp(lambda x: x @ weight, Flat())(x)[0])(jnp.array([0.0, 2.0])).round(4)
        Array([3., 3.], dtype=float32)
    """

    form: ClassVar[Form] = Form.RELEVANCE
    traced = ("stabilizer",)
    stabilizer: float | jax.Array | None = None
    bias: Bias = "ignore"

    def __post_init__(self) -> None:
        _check(self, "stabilizer")

    def shares(self, layer: LinearMap, relevance: jax.Array) -> Sequence[Share]:
        ones, w = layer.filled(1.0), jnp.ones_like(layer.w)
        b = jnp.zeros((), w.dtype) if self.bias == "ignore" else (layer.b != 0).astype(w.dtype)
        s = divide(relevance, stabilized(layer, layer.linear(ones, w) + b, self.stabilizer))
        return [Share(ones, w, b, s)]


@dataclass(frozen=True)
class ZBox(Rule):
    """The z-box rule, for inputs between known bounds, such as pixels.

    With z = lin(x, w) - lin(low, w+) - lin(high, w-) and s = R / stab(z):
    R = x T(w, s) - low T(w+, s) - high T(w-, s).

    Source: Montavon et al. (2017), the z^B-rule. The bias takes no part.

    Attributes:
        low: Smallest value of the input: a number, or nested tuples that broadcast to the input (one number for each
            channel or pixel).
        high: Largest value of the input, in the same form.
        stabilizer: Distance that the denominator keeps from zero, in units of z; None for the default.
        bias: "ignore", or "absorb" or "distribute" with b in the denominator.

    Raises:
        RuleError: If low is larger than high anywhere, or a bound is not finite; (when applied) if the bounds do not
            broadcast to the input.

    Example:
        >>> from lrp_jax import lrp
        >>> weight = jnp.array([[1.0], [-1.0]])
        >>> jax.grad(lambda x: lrp(lambda x: x @ weight, ZBox(0.0, 2.0))(x)[0])(jnp.array([2.0, 0.0])).round(4)
        Array([1., 1.], dtype=float32)
    """

    form: ClassVar[Form] = Form.RELEVANCE
    traced = ("stabilizer",)
    low: "float | tuple"
    high: "float | tuple"
    stabilizer: float | jax.Array | None = None
    bias: Bias = "ignore"

    def __post_init__(self) -> None:
        low, high = (_as_bound(name, getattr(self, name)) for name in ("low", "high"))
        object.__setattr__(self, "low", _as_tuples(low.tolist()))
        object.__setattr__(self, "high", _as_tuples(high.tolist()))
        _check(self, "stabilizer")
        if any(m != n and 1 not in (m, n) for m, n in zip(low.shape[::-1], high.shape[::-1], strict=False)):
            raise RuleError(f"ZBox: low of shape {low.shape} and high of shape {high.shape} do not fit each other.")
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise RuleError(f"ZBox(low={self.low}, high={self.high}): the bounds must be finite numbers.")
        if not (low <= high).all():
            raise RuleError(f"ZBox(low={self.low}, high={self.high}): low must not be larger than high. Swap them?")

    def shares(self, layer: LinearMap, relevance: jax.Array) -> Sequence[Share]:
        x, w, lin = layer.x, layer.w, layer.linear
        self.check_fits(x.shape)
        low, high = layer.filled(self.low), layer.filled(self.high)
        z = lin(x, w) - lin(low, positive(w)) - lin(high, negative(w)) + (0.0 if self.bias == "ignore" else layer.b)
        s = divide(relevance, stabilized(layer, z, self.stabilizer))
        return [Share(x, w, layer.b, s), Share(-low, positive(w), 0.0, s), Share(-high, negative(w), 0.0, s)]

    @property
    def input_bounds(self) -> tuple[Any, Any]:
        return self.low, self.high

    def check_fits(self, shape: tuple[int, ...], layer: str = "the layer") -> None:
        for name, bound in (("low", self.low), ("high", self.high)):
            if not broadcasts(np.shape(bound), shape):
                raise RuleError(
                    f"ZBox: bounds of shape {np.shape(bound)} ({name}) do not broadcast to the input of {layer}, of "
                    f"shape {shape}. Pass numbers, or one for each channel (the last dimension, for Flax) or pixel."
                )


@dataclass(frozen=True)
class Pass(Rule):
    """Relevance is passed on unchanged, element by element: R_x = R_z, for layers whose input has the output's shape.

    Attributes:
        bias: Without effect: nothing is divided.

    Raises:
        RuleError: (when applied) if the shapes of input and output differ.

    Example:
        >>> from lrp_jax import lrp
        >>> weight = jnp.array([[1.0, 2.0], [3.0, 4.0]])
        >>> jax.grad(lambda x: lrp(lambda x: x @ weight, Pass())(x)[0])(jnp.array([2.0, 1.0]))
        Array([5., 0.], dtype=float32)
    """

    form: ClassVar[Form] = Form.RELEVANCE
    bias: Bias = "absorb"

    def propagate(self, layer: LinearMap, cotangent: jax.Array, arriving: Form = Form.RELEVANCE) -> jax.Array:
        relevance = layer.unmoved(cotangent * layer.z if arriving is Form.RATIO else cotangent)
        relevance = jnp.transpose(relevance, layer.product.output_axes)
        if layer.x.shape != relevance.shape:
            raise RuleError(
                f"Pass passes relevance on element by element, but the layer maps {layer.x.shape} to {layer.z.shape}. "
                "Choose another rule for it."
            )
        return relevance

    def bias_share(self, layer: LinearMap, relevance: jax.Array) -> jax.Array:
        return jnp.zeros_like(layer.z)


@dataclass(frozen=True)
class Gradient(Rule):
    """No rule: the cotangent is propagated by the layer's own derivative, as in ordinary backpropagation.

    If it starts at v * f(x), it agrees with LRP-0 wherever z is not zero.

    Attributes:
        bias: Without effect: nothing is divided.

    Example:
        >>> from lrp_jax import lrp
        >>> weight = jnp.array([[1.0], [3.0]])
        >>> jax.grad(lambda x: lrp(lambda x: x @ weight, Gradient())(x)[0])(jnp.array([2.0, 1.0]))
        Array([2., 3.], dtype=float32)
    """

    is_proportional: ClassVar[bool] = True
    is_derivative: ClassVar[bool] = True
    bias: Bias = "absorb"

    def bias_share(self, layer: LinearMap, relevance: jax.Array) -> jax.Array:
        return Zero(self.bias).bias_share(layer, relevance)


@dataclass(frozen=True)
class Norm(Rule):
    """Proportional split: the operation's own contributions, normalised to sum to one.

    R_i = sum_j x_i w_ij / stab(z_j) R_j, like LRP-epsilon. The name is that of zennit's rule for sums and average
    pooling. Here these split relevance in proportion without any rule.

    Attributes:
        stabilizer: Distance that the denominator keeps from zero, in units of z; None for the default.
        bias: "absorb", "ignore" or "distribute".

    Example:
        >>> from lrp_jax import lrp
        >>> mean = jnp.array([[0.5], [0.5]])
        >>> jax.grad(lambda x: lrp(lambda x: x @ mean, Norm())(x)[0])(jnp.array([2.0, 4.0])).round(4)
        Array([1., 2.], dtype=float32)
    """

    is_proportional: ClassVar[bool] = True
    traced = ("stabilizer",)
    stabilizer: float | jax.Array | None = None
    bias: Bias = "absorb"

    def __post_init__(self) -> None:
        _check(self, "stabilizer")

    def shares(self, layer: LinearMap, relevance: jax.Array) -> Sequence[Share]:
        return Epsilon(self.stabilizer).shares(layer, relevance)


def checked(rule: Rule) -> Rule:
    """A rule, which cannot change, and whose numbers are such, even if it came out of a program or a `jax.tree.map`.

    Raises:
        RuleError: If it is no frozen dataclass, or has a number that makes no sense.
    """
    parameters = getattr(type(rule), "__dataclass_params__", None)
    if not parameters.frozen if parameters else vars(rule):
        name = type(rule).__name__
        raise RuleError(
            f"The rule {name} can change after it was given, and cannot be compared. Make it a frozen dataclass: write "
            f"'@dataclasses.dataclass(frozen=True)' above 'class {name}', and its parameters as fields."
        )
    is_known = type(rule).__module__ != __name__ or all(isinstance(leaf, float) for leaf in jax.tree.leaves(rule))
    return rule if is_known else replace(rule)  # type: ignore[type-var]  # is a dataclass


def _check(rule: Rule, *names: str) -> None:
    """Checks that parameters are numbers that are not negative, and that the treatment of the bias exists."""
    for name in names:
        value = getattr(rule, name)
        if value is not None or name not in {"epsilon", "stabilizer"}:
            object.__setattr__(rule, name, _as_number(rule, name, value))
    if rule.bias not in get_args(Bias):
        options = ", ".join(get_args(Bias))
        raise RuleError(f"{type(rule).__name__}(bias={rule.bias!r}): bias must be one of {options}.")


def _as_number(rule: Rule, name: str, value: Any) -> float | jax.Array:
    """A parameter as a Python number, so that rules can be compared and hashed; as it is if its value is not known."""
    is_array = isinstance(value, jax.Array | np.ndarray | np.generic)
    place = f"{type(rule).__name__}({name}={f'{value.dtype}{list(value.shape)}' if is_array else repr(value)})"
    if is_array and value.ndim:
        raise RuleError(
            f"{place}: {name} must be one number, not an array of them. For several, use jax.vmap over a function that "
            "makes the rule."
        )
    if is_array and not any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.floating, jnp.integer)):
        raise RuleError(f"{place}: {name} must be a number that is not negative.")
    if isinstance(value, jax.core.Tracer):
        if name not in rule.traced:
            raise RuleError(
                f"{place}: {name} is traced, and cannot be: it decides which products are computed, so that its value "
                "must be known. Pass a Python number; over several values, loop in Python, outside of jax.jit and "
                "jax.vmap. gamma, epsilon and stabilizer may be traced."
            )
        return value if jnp.issubdtype(value.dtype, jnp.floating) else value.astype(float)
    if isinstance(value, bool) or not (is_array or isinstance(value, Real)) or not 0 <= float(value) < math.inf:
        shown = f"{type(rule).__name__}({name}={float(value) if is_array else value!r})"
        raise RuleError(f"{shown}: {name} must be a number that is not negative.")
    return float(value)


def _as_bound(name: str, bound: Any) -> np.ndarray:
    """A bound of z-box as an array."""
    shown = reprlib.repr(bound)
    try:
        array = np.asarray(bound)
    except jax.errors.TracerArrayConversionError as error:
        raise RuleError(
            f"ZBox({name}={shown}): {name} is traced, and cannot be: its value must be known, as inputs outside of the "
            "bounds are reported. Make the rule outside of jax.jit and jax.vmap."
        ) from error
    except (TypeError, ValueError) as error:
        raise RuleError(
            f"ZBox({name}={shown}): {name} must be a number, or an array or nested tuples of numbers: {error}"
        ) from error
    is_number = jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)
    if not is_number or not array.size:
        raise RuleError(f"ZBox({name}={shown}): {name} must be a number, or an array or nested tuples of numbers.")
    return array.astype(float)


def _as_tuples(bound: Any) -> Any:
    """Turns lists into tuples, so that a rule can be compared and hashed."""
    return tuple(map(_as_tuples, bound)) if isinstance(bound, list) else bound
