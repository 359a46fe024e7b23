"""What happens to relevance at every operation that is not a layer.

A `Treatment` is the backward pass of an operation. That of an elementwise function of one value follows from its values
(`treatment_of_function`); that of every other operation from the name of the primitive and from which of its operands
depend on the explained input (`treatment_of`). In ratio form a constant that is added keeps its share, and so does what
a function is at zero.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lrp_jax.core import equations
from lrp_jax.core.forms import RELATIVE_STABILIZER, Form, divide, stabilize
from lrp_jax.core.functions import Formula
from lrp_jax.core.graph import Graph, Operation
from lrp_jax.core.kinds import KINDS
from lrp_jax.core.maxima import MAXIMA, to_winners, winners
from lrp_jax.core.rule import Rule
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
        remembered: What the treatment kept of the forward pass.
        rule: The rule, of a layer.
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
    rule: Rule | None = None

    @property
    def operands(self) -> list[jax.Array]:
        """All operands, in the order in which the primitive takes them."""
        arrays = [*self.live, *self.constants]
        return [arrays[place] for place in self.places]

    @property
    def positions(self) -> tuple[int, ...]:
        """The positions of the live operands."""
        return tuple(i for i, place in enumerate(self.places) if place < len(self.live))


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
        loss: Where relevance that is not handed on stays: in constants that were added, or nowhere, as the operation
            does not conserve it.
        remember: What is kept of the forward pass besides operands and outputs, such as the places of maxima.
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


def _derivative(call: Call) -> Arrays:
    _, transpose = jax.vjp(lambda *live: call.run(live, call.constants), *call.live)
    return transpose(list(call.cotangents))


def _by_sign(call: Call) -> Arrays:
    return (call.cotangents[0] * jnp.sign(call.live[0]),)


def _halves(call: Call) -> Arrays:
    return tuple(0.5 * cotangent for cotangent in _derivative(call))


def _parts_of_product(call: Call) -> Arrays:
    """Equal parts to the elements of a product; to those of a product so far by their number."""
    (cotangent,), ((x,), params) = call.cotangents, (call.live, call.params)
    if call.name == "reduce_prod":
        number: Any = math.prod(x.shape[axis] for axis in params["axes"])
    else:
        along = lax.broadcasted_iota(cotangent.dtype, x.shape, params["axis"])
        number = x.shape[params["axis"]] - along if params["reverse"] else along + 1
    return _derivative(replace(call, cotangents=[cotangent / number]))


def _share_of_function(formula: Formula, call: Call) -> Arrays:
    """C (f(u) - f(0)) / u, by the slope where u is too small to divide by."""
    ((u,), (y,), (ratio,)) = call.live, call.outputs, call.cotangents
    wide = jnp.promote_types(u.dtype, jnp.float32)
    u_wide, y_wide = u.astype(wide), y.astype(wide)
    share = divide(y_wide - jnp.asarray(formula.at_zero, wide), u_wide)
    if formula.at_zero != 0 and formula.is_piecewise_linear:
        derivative = _flatter_derivative(call).astype(wide)
        share = jnp.where(derivative != 0, derivative, share)
    elif formula.slope is not None:
        is_small = u_wide == 0
        near = jnp.asarray(formula.slope, wide)
        if not formula.is_precise_near_zero and not formula.is_piecewise_linear:
            is_small = jnp.abs(u_wide) < jnp.finfo(wide).eps ** (1 / 3)
            near = near + formula.curvature * u_wide
        share = jnp.where(is_small, near, share)
    return ((ratio * share).astype(u.dtype),)


def _flatter_derivative(call: Call) -> jax.Array:
    """The derivative of a piecewise-linear function; at a kink that of the flatter side, 0 if they differ in sign."""
    (u,), (y,) = call.live, call.outputs
    below, above = (
        _derivative(replace(call, live=[jnp.nextafter(u, jnp.full_like(u, end))], cotangents=[jnp.ones_like(y)]))[0]
        for end in (-jnp.inf, jnp.inf)
    )
    flatter = jnp.where(jnp.abs(below) < jnp.abs(above), below, above)
    return jnp.where(below * above > 0, flatter, 0)


def _share_beside_arrays(call: Call) -> Arrays:
    """As `_share_of_function` for a function of u and of constant arrays, whose value at zero is computed."""
    ((u,), (y,), (ratio,)) = call.live, call.outputs, call.cotangents
    (at_zero,) = call.run([jnp.zeros_like(u)], call.constants)
    (derivative,) = _derivative(replace(call, cotangents=[jnp.ones_like(y)]))
    is_derived = ~jnp.isfinite(at_zero) | (u == 0)
    share = jnp.where(is_derived, derivative, divide(y - jnp.where(is_derived, 0, at_zero), u))
    return ((ratio * jnp.where(jnp.isfinite(share), share, 0)).astype(u.dtype),)


def _winners(call: Call) -> jax.Array:
    return winners(call.name, call.params, call.positions, call.operands)


def _to_winners(call: Call) -> Arrays:
    (cotangent,) = call.cotangents
    given = to_winners(call.name, call.params, call.positions, call.operands, call.remembered, cotangent)
    return [array.astype(x.dtype) for array, x in zip(given, call.live, strict=True)]


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
"""For elementwise functions: all relevance is handed on, that of what they are at zero included."""

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


def smooth_quotient(numerator: int, part: float) -> Treatment:
    """As `smooth`, for a quotient, or a product with a reciprocal, of which the denominator takes a part alone."""

    def backward(call: Call) -> Arrays:
        return tuple(c if i == numerator else part * c for i, c in enumerate(_derivative(call)))

    return replace(smooth, backward={Form.RATIO: backward})


def treatment_of_function(formula: Formula) -> Treatment:
    """What happens to relevance at an elementwise function of one value.

    Args:
        formula: The function f.

    Returns:
        For a constant nothing; for u -> a u + b a ratio times a; for a relu one to one; for a function without a value
        at zero its derivative; for every other c (f(u) - f(0)) / u: one to one where f(0) = 0, and else f(0) is a
        constant that keeps its share.
    """
    if formula.is_constant:
        return constant
    if formula.is_affine:
        return scaled if formula.at_zero == 0 else with_constant
    if formula.name == "relu":
        return rectified
    if formula.is_singular:
        return derivative
    share: Backward = functools.partial(_share_of_function, formula)
    backward: dict[Form, Backward] = {Form.RELEVANCE: _pass_relevance, Form.RATIO: share}
    return Treatment(one_to_one.summary if formula.at_zero == 0 else beside_arrays.summary, backward)


def passing_constants_on(treatment: Treatment) -> Treatment:
    """The treatment in which constants that are added keep nothing, and all relevance goes on."""
    if treatment.loss != "constants" or treatment.summary not in {with_constant.summary, beside_arrays.summary}:
        return treatment
    return one_to_one


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

_STRUCTURAL = frozenset(
    """
    all_gather broadcast_in_dim broadcast_to concatenate convert_element_type copy copy_p device_put dynamic_slice
    dynamic_update_slice expand_dims gather layout_constraint name optimization_barrier pad pvary reduce_precision
    reshape reshard rev scatter select_n sharding_constraint slice sort split squeeze stack tile top_k transpose unstack
    """.split()
)
_PROPORTIONAL = frozenset("add add_any cumsum psum psum_invariant reduce_sum reduce_window_sum sub".split())
LINEAR = frozenset(KINDS)
PRODUCTS = LINEAR | frozenset("div mul".split())
_PRODUCTS_OF_ELEMENTS = frozenset("cumprod reduce_prod".split())
_ENDS = frozenset(
    """
    argmax argmin ceil clz eq eq_to floor ge gt is_finite le le_to lt lt_to ne not and or xor population_count round
    shift_left shift_right_arithmetic shift_right_logical sign stop_gradient reduce_and reduce_or reduce_xor
    """.split()
)
_SUMMARIES: tuple[tuple[Set[str], str], ...] = (
    (LINEAR, "a layer, where the rule decides; half to each factor of two live ones"),
    ({"mul", "div"}, "passed one to one; of two live factors half to each, or all to the signal if the other is held"),
    (_PRODUCTS_OF_ELEMENTS, in_equal_parts.summary),
    ({"cumlogsumexp"}, smooth.summary),
    ({"max", "min"}, "a function of one value; to the winner of two live values"),
    (_PROPORTIONAL | {"scatter-add"}, "split in proportion; a constant that is added keeps its share"),
    (frozenset(MAXIMA), winner_takes_all.summary),
    (_STRUCTURAL, structural.summary),
    ({"scan", "cond", "shard_map"}, "looked into: the bodies are transformed"),
    (set(equations.CALLS), "looked into"),
    (_ENDS, "relevance ends: the output is not differentiable, or is held constant"),
    (equations.ELEMENTWISE, "a function of one value: f(x) - f(0) is passed on"),
)


def treatment_of(graph: Graph, operation: Operation) -> Treatment:
    """Looks up what happens to relevance at an operation that is no layer and no function of one value.

    Args:
        graph: The function.
        operation: One of its operations, with live operands.

    Returns:
        Its treatment.

    Raises:
        UnsupportedOperationError: If there is none.
    """
    name, live = operation.name, graph.live_inputs(operation)
    if any(jnp.iscomplexobj(graph.shapes[value]) for value in (*operation.inputs, *operation.outputs)):
        raise _refusal(operation, "complex numbers")
    if name in MAXIMA:
        return winner_takes_all
    if name in _STRUCTURAL:
        return structural
    if name == "scatter-add" or (name in _PROPORTIONAL and len(live) == len(operation.inputs)):
        return proportional
    if name in {"add", "add_any", "sub"}:
        return with_constant
    if name in PRODUCTS and len(live) == 2:
        return halved
    if name in _PRODUCTS_OF_ELEMENTS:
        return in_equal_parts
    if name == "cumlogsumexp":
        return smooth
    if name in LINEAR:
        return proportional
    if name == "mul":
        return multiplied
    if name == "neg" or (name == "div" and live == [0]):
        return scaled
    if name == "div":
        return derivative
    if len(live) == 1 and equations.is_elementwise(operation.equation):
        return beside_arrays
    raise _refusal(operation, f"{len(live)} operand(s) that depend on the explained input")


def check_shares(graph: Graph, operation: Operation) -> None:
    """Refuses a `jax.shard_map` in which several devices have parts of one sample: rules see what one of them has.

    Args:
        graph: The function.
        operation: The shard_map in it, through which relevance flows.

    Raises:
        UnsupportedOperationError: If it is such.
    """
    (body,), params = operation.bodies, operation.equation.params
    axes = {axis for axis in params["newly_manual_axes"] if params["mesh"].shape[axis] > 1}
    places = [*zip(operation.inputs, params["in_specs"], strict=True)]
    places += zip(operation.outputs, params["out_specs"], strict=True)
    is_split = any(
        _axes_of_dimensions(spec, axes) != [axes]
        for value, spec in places
        if axes and (graph.is_live(value) or graph.is_token(value))
    )
    between = next(
        (
            inner
            for within, inner in body.all_operations()
            if inner.name != "pvary"
            and not axes.isdisjoint(equations.axes_named(inner.equation))
            and any(within.is_live(value) or within.is_token(value) for value in inner.inputs)
        ),
        None,
    )
    if is_split or between is not None:
        what = "its in_specs and out_specs say so"
        if between is not None:
            what = f"they exchange them with {between.name!r} at {between.location}"
        raise UnsupportedOperationError(
            f"Relevance cannot be propagated through the shard_map at {operation.location}: several devices compute "
            f"parts of one sample ({what}), and a rule needs all of a layer. Share out samples alone, along the first "
            "dimension of everything that depends on the explained input; or leave the shard_map out, place the "
            "parameters with jax.device_put and a NamedSharding, and jax.jit shares out the work."
        )


def _axes_of_dimensions(spec: Any, axes: Set[str]) -> list[set[str]]:
    """The axes over which each dimension is shared out, up to the last that is."""
    found = [set(axes) & {*(entry if isinstance(entry, tuple) else (entry,))} for entry in spec]
    while found and not found[-1]:
        found.pop()
    return found


def summary_of(primitive: str) -> str:
    """What happens to relevance at a primitive, in words.

    Args:
        primitive: The name of a primitive of JAX.

    Returns:
        A sentence without a full stop; "refused" if there is no treatment.

    Example:
        >>> summary_of("transpose")
        'moved along with the values'
    """
    for names, summary in _SUMMARIES:
        if primitive in names:
            return summary
    return "refused"


def _refusal(operation: Operation, circumstance: str) -> UnsupportedOperationError:
    where = f", in {operation.module}" if operation.module else ""
    return UnsupportedOperationError(
        f"Relevance cannot be propagated through the operation {operation.name!r} at {operation.location}{where}: "
        f"lrp_jax has no treatment for it with {circumstance}. If you know what should happen there, say it with "
        f"lrp_jax.composites.with_treatment(rules, {operation.name!r}, treatment); the treatments that there are stand "
        "in lrp_jax.treatments."
    )
