"""What a rule is: a list of shares, from which follow the relevance of the input and what the bias keeps."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax.core import equations
from lrp_jax.core.forms import RELATIVE_STABILIZER, Form, divide, stabilize
from lrp_jax.core.linear_maps import LinearMap
from lrp_jax.core.saving import Saved
from lrp_jax.errors import RuleError

Bias = Literal["absorb", "ignore", "distribute"]


@dataclass(frozen=True)
class Share:
    """One term of a rule: the inputs receive x * T(w, s), and the bias keeps b * s.

    Attributes:
        x: Takes the place of the layer's input; None for zero everywhere.
        w: Takes the place of its weight.
        b: Takes the place of its bias; zero where another term has it.
        s: Relevance divided by a denominator, of the shape of the layer's output.
    """

    x: jax.Array | None
    w: jax.Array
    b: jax.Array | float
    s: jax.Array


def _take_apart(rule: "Rule") -> tuple[tuple[Any, ...], Any]:
    """A rule as a pytree: the fields that may be traced, with their names, and all others."""
    traced = vars(type(rule)).get("traced", ())
    values = {field.name: getattr(rule, field.name) for field in fields(rule)} if is_dataclass(rule) else vars(rule)
    others = tuple((name, value) for name, value in values.items() if name not in traced)
    return tuple((jax.tree_util.GetAttrKey(name), values[name]) for name in traced), others


def _put_together(cls: type["Rule"], others: Any, numbers: Sequence[Any]) -> "Rule":
    rule = object.__new__(cls)
    for name, value in (*others, *zip(vars(cls).get("traced", ()), numbers, strict=True)):
        object.__setattr__(rule, name, value)  # whatever JAX puts there: it is no rule yet
    return rule


class Rule(Saved):
    """Base of all rules.

    To write a rule of your own, derive a frozen dataclass from this class and define `shares`. You need not register
    it. Every rule is a pytree whose leaves are its numbers that may be traced.

    Attributes:
        form: `Form.RATIO` if every x of the shares is the layer's input or zero, element by element: then the rule
            returns R / x, and the factor x, which may be zero, is left to the layer below. `Form.RELEVANCE` otherwise;
            a rule that needs it and does not say so is refused.
        traced: The names of the fields whose values may be traced, as by `jax.jit` or `jax.vmap`. They are arguments of
            the compiled program, so another value needs no new one; all other fields are a part of it. This is not
            inherited: a class that derives from another one has to say it again.
        is_proportional: Whether relevance is split in proportion, as it is at a product that is not a layer.
        is_derivative: Whether it is the layer's own derivative that propagates the ratio, so that nothing is shared.
        bias: What happens to the share of the bias: "absorb", "ignore" or "distribute".

    Example:
        Every input gets relevance in proportion to the size of its weight:

        >>> import dataclasses, jax, jax.numpy as jnp
        >>> from lrp_jax import lrp
        >>> from lrp_jax.rules import Form, Rule, Share, stabilized
        >>> @dataclasses.dataclass(frozen=True)
        ... class AbsoluteWeight(Rule):
        ...     form = Form.RELEVANCE
        ...     def shares(self, layer, relevance):
        ...         ones, w = jnp.ones_like(layer.x), jnp.abs(layer.w)
        ...         return [Share(ones, w, 0.0, relevance / stabilized(layer, layer.linear(ones, w), None))]
        >>> weight = jnp.array([[-1.0], [3.0]])
        >>> jax.grad(lambda x: lrp(lambda x: x @ weight, AbsoluteWeight())(x)[0])(jnp.array([0.0, 4.0])).round(4)
        Array([3., 9.], dtype=float32)
    """

    form: ClassVar[Form] = Form.RATIO
    traced: ClassVar[tuple[str, ...]] = ()
    is_proportional: ClassVar[bool] = False
    is_derivative: ClassVar[bool] = False
    bias: Bias = "absorb"

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        jax.tree_util.register_pytree_with_keys(cls, _take_apart, functools.partial(_put_together, cls))
        if "__repr__" in vars(cls) and "__str__" not in vars(cls):  # its own, as dataclass has written none yet
            cls.__str__ = cls.__repr__  # type: ignore[method-assign]

    def __str__(self) -> str:
        """The rule as one would write it: with the parameters that are not the default ones."""
        if not is_dataclass(self):
            return repr(self)
        values = ((field, getattr(self, field.name)) for field in fields(self) if field.repr)
        given = (f"{field.name}={value!r}" for field, value in values if repr(value) != repr(field.default))
        return f"{type(self).__name__}({', '.join(given)})"

    def shares(self, layer: LinearMap, relevance: jax.Array) -> Sequence[Share]:
        """The terms of the rule's formula.

        Args:
            layer: The layer at its input.
            relevance: The relevance of the output, of the shape of `layer.z`.

        Returns:
            The terms whose sum is the relevance of the input.
        """
        raise NotImplementedError

    @property
    def input_bounds(self) -> tuple[Any, Any] | None:
        """The smallest and the largest input that the rule is meant for; None if it is meant for all."""
        return None

    def check_fits(self, shape: tuple[int, ...], layer: str = "the layer") -> None:
        """Refuses a layer that the rule cannot be for.

        Args:
            shape: The shape of its input.
            layer: What it is called in the message.

        Raises:
            RuleError: If the rule does not fit it.
        """

    def propagate(self, layer: LinearMap, cotangent: jax.Array, arriving: Form = Form.RELEVANCE) -> jax.Array:
        """Propagates relevance through one layer.

        Args:
            layer: The layer at its input.
            cotangent: What arrives at the output, of the shape of `layer.z`.
            arriving: Whether that is the relevance R, or the ratio R / z.

        Returns:
            Array of the shape of `layer.x`, in the form `self.form`.

        Raises:
            RuleError: If this is `Form.RATIO`, and a share has another x than the layer's input.
        """
        relevance = cotangent * layer.z if arriving is Form.RATIO else cotangent
        layer = self._with_bias(layer)
        shares = [share for share in self.shares(layer, relevance) if share.x is not None]
        if self.form is Form.RATIO:
            _check_form(self, layer, shares, relevance)
        parts = list(map(functools.partial(self._in_form, layer), shares, _transposed(layer, shares)))
        if self.bias == "distribute":
            parts += [self._spread(layer, share) for share in shares]
        return sum(parts[1:], start=parts[0])

    def bias_share(self, layer: LinearMap, relevance: jax.Array) -> jax.Array:
        """The relevance that the bias keeps, of the shape of `layer.z`; zero unless `bias` is "absorb"."""
        if self.bias != "absorb":
            return jnp.zeros_like(layer.z)
        kept = [share.b * share.s for share in self.shares(self._with_bias(layer), relevance)]
        return sum(kept, start=jnp.zeros_like(layer.z))

    def unshared(self, layer: LinearMap, relevance: jax.Array) -> jax.Array:
        """The relevance that no input gets, as there are no contributions of the sign that it is meant for.

        Of the shape of `layer.z`; zero for a rule that treats contributions of both signs alike.
        """
        return jnp.zeros_like(layer.z)

    def _with_bias(self, layer: LinearMap) -> LinearMap:
        if self.bias != "ignore":
            return layer
        # Without its bias the output may be negative where the ReLU lets the true one pass.
        return replace(layer, b=jnp.zeros((), layer.b.dtype), z=layer.linear(layer.x, layer.w), rectified=False)

    def _in_form(self, layer: LinearMap, share: Share, transposed: jax.Array) -> jax.Array:
        assert share.x is not None
        if self.form is Form.RELEVANCE:
            return share.x * transposed
        return transposed if share.x is layer.x else jnp.where(share.x == 0, 0, transposed)

    def _spread(self, layer: LinearMap, share: Share) -> jax.Array:
        connected = (layer.w != 0).astype(layer.w.dtype)
        counted = jnp.ones_like(layer.x) if self.form is Form.RELEVANCE else (layer.x != 0).astype(layer.x.dtype)
        number = layer.linear(counted, connected)
        spread = counted * layer.transpose(connected, divide(share.b * share.s, number))
        return spread if self.form is Form.RELEVANCE else divide(spread, layer.x)


def stabilized(layer: LinearMap, denominator: jax.Array, stabilizer: float | jax.Array | None) -> jax.Array:
    """Moves a denominator of a layer away from zero.

    Args:
        layer: The layer.
        denominator: An array in the shape of its output, or with one sample in place of all.
        stabilizer: The distance; None for 1e-6 times the root mean square of the denominator over a sample's features.

    Returns:
        Array of the shape of the denominator.
    """
    if stabilizer is None:
        stabilizer = RELATIVE_STABILIZER * layer.root_mean_square(denominator)
    return stabilize(denominator, stabilizer)


def _transposed(layer: LinearMap, shares: Sequence[Share]) -> list[jax.Array]:
    """T(w, s) of every share. Those that have their s in common are one product, which is faster than several."""
    products: dict[int, jax.Array] = {}
    for first in shares:
        same = [share for share in shares if share.s is first.s]
        if len(same) == 1:
            products[id(first)] = layer.transpose(first.w, first.s)
        elif first is same[0]:
            joined = layer.transposes([share.w for share in same], first.s)
            products.update(zip(map(id, same), joined, strict=True))
    return [products[id(share)] for share in shares]


def _check_form(rule: Rule, layer: LinearMap, shares: Sequence[Share], relevance: jax.Array) -> None:
    """Refuses a rule in ratio form that has shares with another x than the layer's input, or zero in its place."""
    known = {id(layer.x), *(id(vars(layer).get(name)) for name in ("x_positive", "x_negative"))}
    if all(id(share.x) in known for share in shares):
        return
    for x, found in _evaluated(rule, layer, relevance):
        if found.shape != x.shape or not np.all((found == x) | (found == 0)):
            name = type(rule).__name__
            raise RuleError(
                f"{name} returns a share whose x is not the layer's input. It gives relevance to inputs whatever their "
                f"value is, and has to say so: write 'form = Form.RELEVANCE' in the class {name} (Form is in "
                "lrp_jax.rules)."
            )


def _evaluated(rule: Rule, layer: LinearMap, relevance: jax.Array) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For numbers in place of the layer's input: these, and each x of the shares, where it depends on nothing else."""

    def parts(x: jax.Array, w: jax.Array, b: jax.Array, z: jax.Array, relevance: jax.Array) -> list[jax.Array]:
        shares = rule.shares(replace(layer, x=x, w=w, b=b, z=z), relevance)
        return [jnp.asarray(share.x) for share in shares if share.x is not None]

    operands = (layer.x, layer.w, layer.b, layer.z, relevance)
    shapes = [jax.ShapeDtypeStruct(operand.shape, operand.dtype) for operand in operands]
    closed = jax.make_jaxpr(parts)(*shapes)
    generator = np.random.default_rng(0)
    numbers = [generator.uniform(0.5, 1.5, shape.shape) for shape in shapes]
    for sign in (1,) if layer.nonnegative else (1, -1):
        numbers[0] = sign * np.abs(numbers[0])
        arrays = [np.asarray(array, shape.dtype) for array, shape in zip(numbers, shapes, strict=True)]
        for atom in closed.jaxpr.outvars:
            found = equations.evaluate(closed, atom, arrays)
            if found is not None:
                yield arrays[0], np.asarray(found)
