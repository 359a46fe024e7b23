"""What happens to relevance at every operation that is not a layer.

A `Treatment` is the backward pass of an operation. In ratio form a constant that is added keeps its share, and so does
the value of a function at zero. `lrp_jax.core.primitives` says which operation gets which treatment.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lrp_jax.core.forms import RELATIVE_STABILIZER, Form, divide, stabilize
from lrp_jax.core.maxima import Maximum, to_winners, winners
from lrp_jax.errors import UnsupportedOperationError

Arrays = Sequence[jax.Array]


@dataclass(frozen=True)
class Call:
    """One run of an operation, as its backward pass sees it.

    Attributes:
        run: The operation as a function of (live operands, other operands).
        name: The name of the primitive, of the first one if there are several.
        params: Its parameters.
        places: For each of its operands, the position among the live ones followed by the others.
        live: The operands through which relevance flows.
        constants: The other operands.
        outputs: What it returned.
        cotangents: The cotangents of the outputs.
        remembered: What the treatment kept from the forward pass.
        rule: The rule, of a layer.
        maximum: How it is decided who wins, of a maximum or minimum.
        fixed: For each live operand, where it is a constant; None if it is nowhere, and nothing at all if none is.
    """

    run: Callable[[Arrays, Arrays], Arrays]
    name: str
    params: Mapping[str, Any]
    places: Sequence[int]
    live: Arrays
    constants: Arrays
    outputs: Arrays
    cotangents: Arrays
    remembered: Any = None
    rule: Any = None
    maximum: Maximum | None = None
    fixed: Sequence[jax.Array | None] = ()

    @property
    def operands(self) -> list[jax.Array]:
        """All operands, in the order in which the primitive takes them."""
        arrays = [*self.live, *self.constants]
        return [arrays[place] for place in self.places]

    @property
    def positions(self) -> tuple[int, ...]:
        """The positions of the live operands."""
        return tuple(i for i, place in enumerate(self.places) if place < len(self.live))

    def pull_back(self, cotangents: Arrays) -> Arrays:
        """The cotangents of the live operands for some of the outputs, by the operation's own derivative."""
        _, transpose = jax.vjp(lambda *live: self.run(live, self.constants), *self.live)
        return transpose(list(cotangents))


Backward = Callable[[Call], Arrays]
Loss = Literal["bias", "constants", "not conserved"]


@dataclass(frozen=True)
class Treatment:
    """The backward pass of an operation.

    Attributes:
        summary: What happens to relevance, in a few words.
        backward: For a form in which the cotangents of the outputs arrive, the function that returns the cotangents of
            the live operands. For a form that is not listed it is the operation's own gradient.
        needs: The only form in which cotangents are taken; None for both.
        returns: The form of the operands' cotangents; None for the form that arrived.
        loss: Where relevance that is not passed on stays: in constants that were added, or nowhere, because the
            operation does not conserve it.
        remember: What is kept from the forward pass besides operands and outputs, such as the places of maxima.
    """

    summary: str
    backward: Mapping[Form, Backward] = field(default_factory=dict)
    needs: Form | None = None
    returns: Form | None = None
    loss: Loss = "constants"
    remember: Callable[[Call], Any] | None = None


def _pass_relevance(call: Call) -> Arrays:
    return (call.cotangents[0].astype(call.live[0].dtype),)


def _pass_relevance_where_scaled(call: Call) -> Arrays:
    return (jnp.where(call.constants[0] == 0, 0, call.cotangents[0]).astype(call.live[0].dtype),)


def _nothing(call: Call) -> Arrays:
    return [jnp.zeros_like(x) for x in call.live]


def _pass_ratio(call: Call) -> Arrays:
    ((x,), (y,), (ratio,)) = call.live, call.outputs, call.cotangents
    return ((ratio * divide(y, x)).astype(x.dtype),)


def _pass_ratio_where_positive(call: Call) -> Arrays:
    return (jnp.where(call.outputs[0] > 0, call.cotangents[0], 0).astype(call.live[0].dtype),)


def _by_sign(call: Call) -> Arrays:
    return (call.cotangents[0] * jnp.sign(call.live[0]),)


def _halves(call: Call) -> Arrays:
    return tuple(0.5 * cotangent for cotangent in call.pull_back(call.cotangents))


def _parts_of_product(call: Call) -> Arrays:
    """Equal parts to the elements of a product; to those of a product so far by their number."""
    (cotangent,), (x,), params = call.cotangents, call.live, call.params
    if "axes" in params:
        number: Any = math.prod(x.shape[axis] for axis in params["axes"])
    else:
        along = lax.broadcasted_iota(cotangent.dtype, x.shape, params["axis"])
        number = x.shape[params["axis"]] - along if params["reverse"] else along + 1
    return call.pull_back([cotangent / number])


def _share_beside_arrays(call: Call) -> Arrays:
    """C (f(u) - f(0)) / u for a function of u and of constant arrays, whose value at zero is computed."""
    ((u,), (y,), (ratio,)) = call.live, call.outputs, call.cotangents
    (at_zero,) = call.run([jnp.zeros_like(u)], call.constants)
    (derivative,) = call.pull_back([jnp.ones_like(y)])
    is_derived = ~jnp.isfinite(at_zero) | (u == 0)
    share = jnp.where(is_derived, derivative, divide(y - jnp.where(is_derived, 0, at_zero), u))
    return ((ratio * jnp.where(jnp.isfinite(share), share, 0)).astype(u.dtype),)


def _winners(call: Call) -> jax.Array:
    known = {i: call.fixed[call.places[i]] for i in call.positions} if call.fixed else {}
    fixed = {i: array for i, array in known.items() if array is not None}
    return winners(_maximum_of(call), call.params, call.positions, call.operands, fixed)


def _to_winners(call: Call) -> Arrays:
    (cotangent,) = call.cotangents
    given = to_winners(_maximum_of(call), call.params, call.positions, call.operands, call.remembered, cotangent)
    return [array.astype(x.dtype) for array, x in zip(given, call.live, strict=True)]


def _maximum_of(call: Call) -> Maximum:
    if call.maximum is None:
        raise UnsupportedOperationError(
            f"treatments.winner_takes_all is for maxima and minima of JAX, and {call.name!r} is none of them. Give it "
            "another treatment."
        )
    return call.maximum


def _pooled_sum(call: Call) -> tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array]]:
    """Sum over the windows of a pooling, and its transpose."""
    names = ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation")

    def pool(x: jax.Array) -> jax.Array:
        return lax.reduce_window(x, np.zeros((), x.dtype), lax.add, *(call.params[name] for name in names))

    return pool, lambda s: jax.linear_transpose(pool, call.live[0])(s)[0]


def _pool_proportionally(call: Call) -> Arrays:
    pool, transpose = _pooled_sum(call)
    pooled = pool(call.live[0])
    features = tuple(range(1, pooled.ndim))
    unit = jnp.sqrt((pooled**2).mean(features, keepdims=True))
    return (transpose(divide(call.cotangents[0], stabilize(pooled, RELATIVE_STABILIZER * unit))),)


def _pool_evenly(call: Call) -> Arrays:
    pool, transpose = _pooled_sum(call)
    return (transpose(call.cotangents[0] / pool(jnp.ones_like(call.live[0]))),)


def _guided(call: Call) -> Arrays:
    return (jnp.where((call.outputs[0] > 0) & (call.cotangents[0] > 0), call.cotangents[0], 0),)


def _rectified_cotangent(call: Call) -> Arrays:
    return (jnp.maximum(call.cotangents[0], 0),)


structural = Treatment("moved along with the values")
"""For operations that move values without changing them."""

proportional = Treatment("split in proportion", needs=Form.RATIO, returns=Form.RATIO, loss="not conserved")
"""For operations that are linear in their live operands together: gradient times input."""

without_parameter = replace(proportional, summary="split in proportion: no layer, its weight is no parameter")
"""For a product with an array that the function made itself, such as a resize."""

of_target = replace(proportional, summary="split in proportion: no layer, it belongs to the target")
"""For a product in the function that says what is explained."""

marked_as_none = replace(proportional, summary="split in proportion: no layer, by mark.no_layer")
"""For a product that a mark says to be no layer."""

scaled = Treatment("passed one to one", {Form.RELEVANCE: _pass_relevance}, loss="not conserved")
"""For operations that multiply one live operand, element by element, with something that is held constant."""

multiplied = replace(scaled, backward={Form.RELEVANCE: _pass_relevance_where_scaled})
"""As `scaled`, for a factor that may be zero somewhere, as a mask is: nothing gets through there."""

constant = Treatment("nothing goes on: the value is the same for every input", dict.fromkeys(Form, _nothing))
"""For functions of one value that do not depend on it."""

with_constant = Treatment("passed on; the constant keeps its share", {Form.RELEVANCE: _pass_relevance})
"""For sums of a live value and a constant: a ratio goes through unchanged, so that the constant absorbs its part."""

one_to_one = Treatment("passed one to one", {Form.RELEVANCE: _pass_relevance, Form.RATIO: _pass_ratio})
"""For elementwise functions: all relevance is passed on, that of what they are at zero included."""

rectified = Treatment("passed one to one", {Form.RELEVANCE: _pass_relevance, Form.RATIO: _pass_ratio_where_positive})
"""For max(x, 0)."""

in_other_units = Treatment(
    "passed one to one: the input in other units", {Form.RELEVANCE: _pass_relevance}, Form.RELEVANCE, Form.RELEVANCE
)
"""For elementwise operations between the input and a value that `lrp_jax.mark.input` marks."""

halved = Treatment("half to each factor", {Form.RATIO: _halves}, Form.RATIO, Form.RATIO, "not conserved")
"""For products of two live values (Achtibat et al. 2024, equation 14)."""

in_equal_parts = Treatment(
    "the same part to each factor", {Form.RATIO: _parts_of_product}, Form.RATIO, Form.RATIO, "not conserved"
)
"""For the product of the elements of one value, as `halved` for two values; an element that is constant keeps its."""

gated = Treatment(
    "all to the signal, the other factor is held constant", {Form.RELEVANCE: _pass_relevance}, loss="not conserved"
)
"""For a live value times a gate or a normaliser (Arras et al. 2019; Ali et al. 2022)."""

smooth = Treatment("gradient times input", needs=Form.RATIO, returns=Form.RATIO, loss="not conserved")
"""For smooth functions such as softmax (Achtibat et al. 2024, proposition 3.1)."""

smooth_together = replace(smooth, backward={Form.RATIO: _by_sign})
"""As `smooth`, for the absolute value in `max(a, b) + log(1 + exp(-abs(a - b)))`, which has no kink where a = b."""

derivative = Treatment("derivative times input", {Form.RELEVANCE: _pass_relevance}, loss="not conserved")
"""For functions that have no value at zero, such as a logarithm."""

beside_arrays = Treatment(
    "f(x) - f(0) is passed on; f(0) keeps its share",
    {Form.RELEVANCE: _pass_relevance, Form.RATIO: _share_beside_arrays},
)
"""For elementwise functions of a live value and of constant arrays, such as a power."""


looked_up = Treatment("to the explained integers with which it is looked up")
"""For what is read from a table."""

winner_takes_all = Treatment("to the winner", dict.fromkeys(Form, _to_winners), remember=_winners)
"""For maxima and minima: the largest element gets all, the first one of equals, decided once in the forward pass."""

pooled_in_proportion = Treatment(
    "split in proportion over the window", {Form.RELEVANCE: _pool_proportionally}, Form.RELEVANCE, Form.RATIO
)
"""For max pooling: as if the window had been summed."""

pooled_evenly = Treatment(
    "split evenly over the window", {Form.RELEVANCE: _pool_evenly}, Form.RELEVANCE, Form.RELEVANCE
)
"""For max pooling: as if the window had been averaged, whatever the values."""

guided = Treatment("gradient where input and gradient are positive", {Form.RATIO: _guided}, Form.RATIO, Form.RATIO)
"""For max(x, 0) in guided backpropagation (Springenberg et al. 2015)."""

deconvolved = Treatment("gradient where it is positive", {Form.RATIO: _rectified_cotangent}, Form.RATIO, Form.RATIO)
"""For max(x, 0) in the deconvolutional network (Zeiler and Fergus 2014)."""
