"""Which rule where: composites and the selectors that they are made of.

A composite is a list of (selector, rule) pairs; each layer gets the rule of the first selector that matches it.

    composite = Composite([(first, ZBox(0.0, 1.0)), (name(r"head"), Zero()), (conv, Gamma()), (any_layer, Epsilon())])

A single rule is short for the composite that gives it to every layer.
"""

import copy
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, TypeAlias

import jax

from lrp_jax import mark as marks_of_values
from lrp_jax import treatments
from lrp_jax.core.equations import Mark
from lrp_jax.core.forms import Form
from lrp_jax.core.layers import Layer
from lrp_jax.core.saving import Saved
from lrp_jax.errors import SelectorError
from lrp_jax.rules import AlphaBeta, Epsilon, Flat, Gamma, Gradient, Rule, WSquare, ZBox, ZPlus, checked
from lrp_jax.treatments import Treatment

__all__ = [
    "CPLRP",
    "AttnLRP",
    "Composite",
    "Deconvnet",
    "DeepTaylor",
    "EpsilonAlpha2Beta1",
    "EpsilonAlpha2Beta1Flat",
    "EpsilonGammaBox",
    "EpsilonPlus",
    "EpsilonPlusFlat",
    "ExcitationBackprop",
    "GuidedBackprop",
    "Selector",
    "any_layer",
    "as_composite",
    "conv",
    "dense",
    "first",
    "index",
    "last",
    "name",
    "with_mark",
    "with_treatment",
]


@dataclass(frozen=True)
class Selector(Saved):
    """A predicate on layers. Selectors combine with `&`, `|` and `~`.

    Attributes:
        matches: Whether a layer is selected.
        description: The selector as one would write it.

    Example:
        >>> wide = Selector(lambda layer: layer.output_shape[-1] > 1000, "wide")
        >>> conv & ~first | wide
        conv & ~first | wide
    """

    matches: Callable[[Layer], bool]
    description: str

    def __and__(self, other: "Selector") -> "Selector":
        return Selector(Predicate("both", (self.matches, other.matches)), f"{self} & {other}")

    def __or__(self, other: "Selector") -> "Selector":
        return Selector(Predicate("either", (self.matches, other.matches)), f"{self} | {other}")

    def __invert__(self) -> "Selector":
        inner = f"({self})" if " " in self.description else self.description
        return Selector(Predicate("not", (self.matches,)), f"~{inner}")

    def __repr__(self) -> str:
        return self.description


@dataclass(frozen=True)
class Predicate(Saved):
    """What a selector of this module says of a layer: a function that is equal to any other that says the same.

    Attributes:
        name: Which of the things that may be said.
        about: What it is said of beside the layer: other such functions, a kind, a position, a pattern.
    """

    name: str
    about: tuple[Any, ...] = ()

    def __call__(self, layer: Layer) -> bool:
        return _PREDICATES[self.name](layer, *self.about)


_PREDICATES: Mapping[str, Callable[..., bool]] = {
    "both": lambda layer, left, right: left(layer) and right(layer),
    "either": lambda layer, left, right: left(layer) or right(layer),
    "not": lambda layer, inner: not inner(layer),
    "any": lambda layer: True,
    "kind": lambda layer, kind: layer.kind == kind,
    "reads input": lambda layer: layer.reads_input,
    "at": lambda layer, position: layer.index in (position, position + layer.count),
    "within": lambda layer, *ends: layer.index in range(layer.count)[slice(*ends)],
    "name": lambda layer, pattern: re.search(pattern, layer.name) is not None,
}

any_layer = Selector(Predicate("any"), "any_layer")
"""Selects every layer."""

conv = Selector(Predicate("kind", ("conv",)), "conv")
"""Selects convolutions."""

dense = Selector(Predicate("kind", ("dense",)), "dense")
"""Selects dense layers."""

first = Selector(Predicate("reads input"), "first")
"""Selects the layers that read the explained input without another layer in between."""

last = Selector(Predicate("at", (-1,)), "last")
"""Selects the layer that runs last."""


class _Index:
    """`index[a]` and `index[a:b]` select layers by their position, from 0; negative numbers count from the end."""

    def __getitem__(self, position: int | slice) -> Selector:
        if not isinstance(position, slice):
            return Selector(Predicate("at", (position,)), f"index[{position}]")
        parts = (position.start, position.stop) + (() if position.step is None else (position.step,))
        text = ":".join("" if part is None else str(part) for part in parts)
        return Selector(Predicate("within", (position.start, position.stop, position.step)), f"index[{text}]")


index = _Index()
"""Selects by position: `index[0]`, `index[2:5]`, `index[-3:]`."""


def name(pattern: str) -> Selector:
    r"""Selects the layers whose name (the path of their parameters) matches a regular expression.

    Args:
        pattern: The regular expression, which `re.search` looks for in the name.

    Returns:
        The selector.

    Raises:
        SelectorError: If the pattern is not a regular expression.

    Example:
        >>> name(r"blocks.[0-3]") & conv
        name('blocks.[0-3]') & conv
    """
    try:
        re.compile(pattern)
    except re.error as error:
        raise SelectorError(f"name({pattern!r}): this is no regular expression: {error}.") from error
    return Selector(Predicate("name", (pattern,)), f"name({pattern!r})")


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True)
class Composite(Saved):
    """Which rule where. A pytree whose leaves are the numbers of its rules that may be traced.

    Attributes:
        rules: Pairs of a selector and a rule, of which the first that matches a layer wins. Instead of a selector you
            can pass any function of a `Layer` that returns whether it is selected.
        treatments: What happens at other operations, if it is not what `lrp_jax.treatments` says. The keys are names of
            primitives, or of functions that are recognised by their values, however they are spelled ("relu", "gelu").
        holds_attention: Whether a softmax is held constant where it multiplies another value.
        input_form: What arrives at the input: relevance, or the gradient for methods that are modified gradients.
        strict: Whether a selector that matches no layer, or a treatment that matches no operation, is an error.
        constants: What happens to the share of constants outside of layers, such as the shift of a normalisation or the
            value of a sigmoid at zero. With "absorb" they keep it. With "pass" all relevance is passed on one to one,
            as zennit's Pass does, and explodes where a value is close to zero.
        marks: Pairs of a regular expression and a mark, which is put at the values with a matching name; see
            `with_mark`.

    Raises:
        SelectorError: (when applied) if a selector matches no layer, a layer has no rule, or a treatment matches no
            operation; it lists what there is.

    Example:
        >>> composite = Composite([(first, Flat()), (conv, ZPlus()), (any_layer, Epsilon())])
    """

    rules: Sequence[tuple[Selector, Rule]]
    treatments: Mapping[str, Treatment] = field(default_factory=dict)
    holds_attention: bool = False
    input_form: Form = Form.RELEVANCE
    strict: bool = True
    constants: Literal["absorb", "pass"] = "absorb"
    marks: Sequence[tuple[str, Mark]] = ()
    _added: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", tuple(map(_as_pair, _as_pairs(self.rules))))
        if self.constants not in ("absorb", "pass"):
            raise SelectorError(f"constants={self.constants!r}: it must be 'absorb' or 'pass'.")

    def __hash__(self) -> int:
        options = self.holds_attention, self.input_form, self.strict, self.constants, tuple(self.marks)
        return hash((self.rules, tuple(self.treatments), options))

    def tree_flatten_with_keys(self) -> tuple[tuple[Any, ...], Any]:
        """The rules, with their positions, and the composite with the selectors alone."""
        others = _with_rules(self, tuple(selector for selector, _ in self.rules))
        return tuple((jax.tree_util.SequenceKey(i), rule) for i, (_, rule) in enumerate(self.rules)), others

    @classmethod
    def tree_unflatten(cls, others: Any, rules: Sequence[Any]) -> "Composite":
        """The composite with rules put back."""
        return _with_rules(others, tuple(zip(others.rules, rules, strict=True)))

    @property
    def required_treatments(self) -> frozenset[str]:
        """The names of treatments that must match an operation: all but those of a preset."""
        return self._added | (frozenset(self.treatments) if self.strict else frozenset())

    @property
    def is_built_in(self) -> bool:
        """Whether all of it was written here, so that it reads nothing but its fields."""
        return all(map(is_built_in, (self.rules, dict(self.treatments))))

    def assign(self, layers: Sequence[Layer]) -> list[Rule]:
        """Gives every layer its rule.

        Args:
            layers: All layers of a function.

        Returns:
            The rule of each.

        Raises:
            SelectorError: If a selector matches no layer, or a layer has no rule.
        """
        if self.strict:
            for selector, _ in self.rules:
                is_needless = selector == any_layer and not layers
                if not is_needless and not any(_selects(selector, layer) for layer in layers):
                    raise SelectorError(f"{selector} matches no layer. {_list(layers)}")
        assigned = []
        for layer in layers:
            rule = next((rule for selector, rule in self.rules if _selects(selector, layer)), None)
            if rule is None:
                raise SelectorError(
                    f"No rule for the layer {layer.name!r}. End the list with (any_layer, Epsilon()), for example. "
                    f"{_list(layers)}"
                )
            assigned.append(rule)
        return assigned


def _with_rules(composite: Composite, rules: tuple[Any, ...]) -> Composite:
    """A composite with something else in place of its rules, which is not looked at."""
    other = copy.copy(composite)
    object.__setattr__(other, "rules", rules)
    return other


def _selects(selector: Selector, layer: Layer) -> bool:
    try:
        return bool(selector.matches(layer))
    except Exception as error:  # whatever a function of the user's own raises
        raise SelectorError(
            f"The selector {selector} raised {type(error).__name__} for the layer {layer.name!r} ({layer.kind}, weight "
            f"{layer.weight_shape}): {error}. It must say of every layer whether it is meant."
        ) from error


Rules: TypeAlias = Rule | Composite | Sequence[tuple[Selector, Rule]]


def as_composite(rules: Rules | None) -> Composite:
    """Turns a rule, or a list of (selector, rule) pairs, into a composite.

    Args:
        rules: A rule, a list of pairs, or a composite; None for `EpsilonPlus()`.

    Returns:
        The composite.

    Raises:
        SelectorError: If it is something else.

    Example:
        >>> as_composite(Epsilon()).rules
        ((any_layer, Epsilon(epsilon=None, relative=False, bias='absorb')),)
    """
    if rules is None:
        return EpsilonPlus()
    if isinstance(rules, Composite):
        return replace(rules)  # looks at what has come out of a program or a jax.tree.map
    return Composite(rules)  # type: ignore[arg-type]  # takes a rule, too


def with_treatment(rules: Rules, key: str, treatment: Treatment) -> Composite:
    """Says what happens to relevance at an operation that has no treatment, or replaces the usual treatment.

    Args:
        rules: The rules of the layers.
        key: The operation, also inside of a scan or a branch:

            - A function of one value by its name: "relu", "relu6", "leaky_relu", "elu", "gelu", "silu", "mish",
              "softplus", "sigmoid", "tanh", "hard_sigmoid", "hard_swish", "abs", "exp", "log", "sqrt" or "square". It
              is recognised by its values, however it is written, also as a part of another function, such as the ReLU
              in 2 relu(x).
            - "softmax", "log_softmax" or "logsumexp": all of its operations together.
            - "max": maxima along axes, and of two values, but not a ReLU, and not a pooling, which is
              "reduce_window_max".
            - "scan": a whole `jax.lax.scan`, which is then not looked into.
            - "gate": a product of which one factor is held.
            - The name of a primitive, as an error message or `plan` shows it.
        treatment: One of those in `lrp_jax.treatments`, or your own.

    Returns:
        A composite with the same rules.

    Raises:
        SelectorError: (when applied) if the key matches nothing; the message lists the possible names.

    Example:
        Max pooling that splits relevance in proportion:

        >>> from lrp_jax import treatments
        >>> rules = with_treatment(Epsilon(), "reduce_window_max", treatments.pooled_in_proportion)
        >>> rules.treatments["reduce_window_max"].summary
        'split in proportion over the window'
    """
    composite = as_composite(rules)
    treatments = {**composite.treatments, key: treatment}
    return replace(composite, treatments=treatments, _added=composite._added | {key})


def with_mark(rules: Rules, place: str, mark: Callable[[Any], Any]) -> Composite:
    """Puts a mark at a named place of a function that cannot be changed.

    Args:
        rules: The rules of the layers.
        place: A regular expression, which `re.search` looks for in the names of the layers (the mark is then put on
            their output) and in the names that `jax.ad_checkpoint.checkpoint_name` gives. All values with a matching
            name are marked.
        mark: One of the functions in `lrp_jax.mark`, except `piece`.

    Returns:
        A composite with the same rules.

    Raises:
        SelectorError: If the place is not a regular expression or the mark is not a mark; (when applied) if there is no
            such place. The message lists the names that there are.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from lrp_jax import lrp, mark
        >>> weights = {"a": {"weight": jnp.eye(2)}, "b": {"weight": jnp.eye(2)}}
        >>> model = lambda weights, x: (x @ weights["a"]["weight"]) * (x @ weights["b"]["weight"])
        >>> rules = with_mark(Epsilon(0.0), "^b$", mark.gate)
        >>> [layer] = [layer for layer, _ in rules.marks]
        >>> layer
        '^b$'
    """
    kinds = [kind for kind in Mark if kind is not Mark.PIECE and getattr(marks_of_values, kind.value) is mark]
    if not kinds:
        names = ", ".join(f"mark.{kind.value}" for kind in Mark if kind is not Mark.PIECE)
        raise SelectorError(f"with_mark({place!r}, {mark!r}): this is no mark that has a place. There are: {names}.")
    name(place)
    composite = as_composite(rules)
    return replace(composite, marks=(*composite.marks, (place, kinds[0])))


def is_built_in(part: Any) -> bool:
    """Whether a rule, a treatment or a part of one was written here, so that it reads nothing but its fields."""
    if isinstance(part, tuple | list):
        return all(map(is_built_in, part))
    if isinstance(part, Mapping):
        return all(map(is_built_in, part.values()))
    if isinstance(part, functools.partial):
        return all(map(is_built_in, (part.func, part.args, part.keywords)))
    if inspect.isfunction(part) or isinstance(part, type):
        return (part.__module__ or "").partition(".")[0] == __name__.partition(".")[0]
    if is_dataclass(part):
        return is_built_in(type(part)) and all(is_built_in(getattr(part, field.name)) for field in fields(part))
    return not callable(part)


def _as_pairs(rules: Any) -> Sequence[Any]:
    if isinstance(rules, Rule):
        return ((any_layer, rules),)
    if isinstance(rules, Iterable) and not isinstance(rules, str | bytes | Mapping | Set | type):
        return tuple(rules)
    hint, name = "", getattr(rules, "__name__", "")
    if isinstance(rules, type) or (name and globals().get(name) is rules):
        hint = f" Did you mean {name}()?"
    elif isinstance(rules, Mapping):
        hint = " Write [(name('head'), Zero()), (any_layer, Epsilon())], as the order counts."
    elif isinstance(rules, Composite):
        hint = " It is one already: pass it as it is, or its field rules."
    raise SelectorError(f"rules must be a rule, a Composite or a list of (selector, rule) pairs, not {rules!r}.{hint}")


def _as_pair(pair: Any) -> tuple[Selector, Rule]:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise SelectorError(f"{pair!r} is no pair of a selector and a rule, such as (any_layer, Epsilon()).")
    selector, rule = pair
    if not isinstance(rule, Rule):
        hint = f" Did you mean {rule.__name__}()?" if isinstance(rule, type) else ""
        raise SelectorError(f"In the pair ({selector}, {rule!r}) the second part is no rule.{hint}")
    return _as_selector(selector), checked(rule)


def _as_selector(selector: Any) -> Selector:
    if isinstance(selector, Selector):
        return selector
    if callable(selector):
        return Selector(selector, getattr(selector, "__name__", "predicate"))
    raise SelectorError(f"{selector!r} selects no layers: it must be a selector or a function of a layer.")


def _list(layers: Sequence[Layer]) -> str:
    if not layers:
        return "The function has no layers."
    rows = (f"  {layer.index}: {layer.name} ({layer.kind}, weight {layer.weight_shape})" for layer in layers)
    return "The layers are:\n" + "\n".join(rows)


def _preset(*pairs: tuple[Selector, Rule], **options: Any) -> Composite:
    return Composite(pairs, strict=False, **options)


def EpsilonPlus(epsilon: float | None = None) -> Composite:  # noqa: N802
    """Epsilon for dense layers, z+ for convolutions (Kohlbrenner et al. 2020).

    Example:
        >>> EpsilonPlus().rules[0][1]
        ZPlus(stabilizer=None, bias='absorb')
    """
    return _preset((conv, ZPlus()), (any_layer, Epsilon(epsilon)))


def EpsilonPlusFlat(epsilon: float | None = None) -> Composite:  # noqa: N802
    """`EpsilonPlus`, and flat for the layers that read the input (Kohlbrenner et al. 2020).

    Example:
        >>> EpsilonPlusFlat().rules[0]
        (first, Flat(stabilizer=None, bias='ignore'))
    """
    return _preset((first, Flat()), *EpsilonPlus(epsilon).rules)


def EpsilonGammaBox(  # noqa: N802
    low: float | tuple, high: float | tuple, epsilon: float | None = None, gamma: float = 0.25
) -> Composite:
    """Z-box for the layers that read the input, gamma for convolutions, epsilon for dense layers.

    Source: Montavon et al. (2019), section 10.3.

    Args:
        low: Smallest value of the input, as for `ZBox`.
        high: Largest value of the input.
        epsilon: For the dense layers.
        gamma: For the convolutions.

    Example:
        >>> [type(rule).__name__ for _, rule in EpsilonGammaBox(0.0, 1.0).rules]
        ['ZBox', 'Gamma', 'Epsilon']
    """
    return _preset((first, ZBox(low, high)), (conv, Gamma(gamma)), (any_layer, Epsilon(epsilon)))


def EpsilonAlpha2Beta1(epsilon: float | None = None) -> Composite:  # noqa: N802
    """Epsilon for dense layers, alpha-beta with (2, 1) for convolutions (Kohlbrenner et al. 2020).

    Example:
        >>> [type(rule).__name__ for _, rule in EpsilonAlpha2Beta1().rules]
        ['AlphaBeta', 'Epsilon']
    """
    return _preset((conv, AlphaBeta(2.0, 1.0)), (any_layer, Epsilon(epsilon)))


def EpsilonAlpha2Beta1Flat(epsilon: float | None = None) -> Composite:  # noqa: N802
    """`EpsilonAlpha2Beta1`, and flat for the layers that read the input (Kohlbrenner et al. 2020).

    Example:
        >>> [type(rule).__name__ for _, rule in EpsilonAlpha2Beta1Flat().rules]
        ['Flat', 'AlphaBeta', 'Epsilon']
    """
    return _preset((first, Flat()), *EpsilonAlpha2Beta1(epsilon).rules)


def DeepTaylor(low: float | tuple | None = None, high: float | tuple | None = None) -> Composite:  # noqa: N802
    """Deep Taylor decomposition: z-box for the layers that read the input, z+ above; biases get no relevance.

    Source: Montavon et al. (2017).

    Args:
        low: Smallest value of the input. Without bounds, w^2 takes the place of z-box.
        high: Largest value of the input.

    Example:
        >>> [type(rule).__name__ for _, rule in DeepTaylor(0.0, 1.0).rules]
        ['ZBox', 'ZPlus']
    """
    at_input: Rule = WSquare() if low is None or high is None else ZBox(low, high)
    return _preset((first, at_input), (any_layer, ZPlus(bias="ignore")))


def AttnLRP(epsilon: float | None = None) -> Composite:  # noqa: N802
    """For transformers: epsilon for layers; softmax by its Jacobian; half to each factor of a product.

    Source: Achtibat et al. (2024).

    Example:
        >>> AttnLRP().holds_attention
        False
    """
    return _preset((any_layer, Epsilon(epsilon)))


def CPLRP(epsilon: float | None = None) -> Composite:  # noqa: N802
    """For transformers: epsilon for layers; the attention weights are held constant, the values take all relevance.

    Source: Ali et al. (2022).

    Example:
        >>> CPLRP().holds_attention
        True
    """
    return _preset((any_layer, Epsilon(epsilon)), holds_attention=True)


def ExcitationBackprop() -> Composite:  # noqa: N802
    """Excitation backpropagation: z+ without biases in every layer (Zhang et al. 2018).

    Example:
        >>> ExcitationBackprop().rules[0][1].bias
        'ignore'
    """
    return _preset((any_layer, ZPlus(bias="ignore")))


def GuidedBackprop() -> Composite:  # noqa: N802
    """Guided backpropagation: the gradient, which passes a ReLU only where input and gradient are positive.

    What arrives at the input is a modified gradient, not relevance. Source: Springenberg et al. (2015).

    Example:
        >>> GuidedBackprop().treatments["relu"].summary
        'gradient where input and gradient are positive'
    """
    return _preset((any_layer, Gradient()), treatments={"relu": treatments.guided}, input_form=Form.RATIO)


def Deconvnet() -> Composite:  # noqa: N802
    """The deconvolutional network: the gradient, which passes a ReLU only where it is positive.

    What arrives at the input is a modified gradient, not relevance. Source: Zeiler and Fergus (2014).

    Example:
        >>> Deconvnet().treatments["relu"].summary
        'gradient where it is positive'
    """
    return _preset((any_layer, Gradient()), treatments={"relu": treatments.deconvolved}, input_form=Form.RATIO)
