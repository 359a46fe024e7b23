"""How far the rules are positive and conservative: for one neuron, and for digits in two networks (chapter 5)."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lrp_book.models import ConvolutionalNetwork
from lrp_jax import composites, lrp, relevance, rules
from lrp_jax.rules import Bias, Rule

_TOLERANCE = 1e-3


class Sums(NamedTuple):
    """How far a rule is positive and conservative on some images.

    Attributes:
        error: The largest difference between the sum of a map and its logit, as a fraction of the logit.
        total: The median of that sum, as a fraction of the logit.
        negative: The percentage of the absolute relevance that is negative.
        consistent: The percentage of the maps without any negative pixel whose sum is the logit, both to a thousandth.
    """

    error: float
    total: float
    negative: float
    consistent: float


def sums(maps: jax.Array, logits: jax.Array) -> Sums:
    """What the maps of some images add up to.

    Args:
        maps: Relevance maps, one for each image.
        logits: What they explain.

    Example:
        >>> sums(jnp.array([[1.0, 2.0], [4.0, -1.0]]), jnp.array([3.0, 3.0]))
        Sums(error=0.0, total=1.0, negative=12.5, consistent=50.0)
    """
    maps = maps.reshape(len(maps), -1)
    ratio, size = maps.sum(1) / logits, jnp.abs(maps).sum(1)
    negative = jnp.maximum(-maps, 0).sum(1)
    consistent = (jnp.abs(1 - ratio) < _TOLERANCE) & (negative < _TOLERANCE * size)
    return Sums(
        error=float(jnp.abs(1 - ratio).max()),
        total=float(jnp.median(ratio)),
        negative=float(100 * negative.sum() / size.sum()),
        consistent=float(100 * consistent.mean()),
    )


def sums_of_rules(network: nnx.Module, images: jax.Array, labels: jax.Array) -> dict[str, Sums]:
    """What the maps of images in [0, 1] add up to under each rule, with biases that are ignored.

    Args:
        network: A classifier.
        images: The images.
        labels: Their classes, which are explained.
    """
    methods: dict[str, composites.Rules] = {
        "LRP-0": rules.Zero(bias="ignore"),
        "LRP-ε, 0.25 relative": rules.Epsilon(0.25, relative=True, bias="ignore"),
        "LRP-γ, 0.25": rules.Gamma(0.25, bias="ignore"),
        "LRP-α₂β₁": rules.AlphaBeta(2.0, 1.0, bias="ignore"),
        "z⁺": rules.ZPlus(bias="ignore"),
        "w²": rules.WSquare(bias="ignore"),
        "w², z⁺ above": composites.DeepTaylor(),
        "z-box, z⁺ above": composites.DeepTaylor(0.0, 1.0),
    }
    found = {}
    for name, method in methods.items():
        explained = relevance(network, images, labels, method)
        found[name] = sums(explained.relevance, explained.output[jnp.arange(len(images)), labels])
    return found


def rows_of_sums(*networks: Mapping[str, Sums]) -> list[list[str | float]]:
    """The rows of a table: for each rule and network the error, and in percent what is negative and consistent."""
    rows: list[list[str | float]] = []
    for name in networks[0]:
        columns = [network[name] for network in networks]
        rows.append([name, *(value for one in columns for value in (one.error, one.negative, round(one.consistent)))])
    return rows


class Lost(NamedTuple):
    """What a rule loses on its way to the pixels, as a fraction of each logit.

    Attributes:
        total: What is missing in the sum of the pixels.
        at_black: The relevance of neurons of the first layer that see black pixels only.
    """

    total: jax.Array
    at_black: jax.Array


def lost_at_black_windows(network: ConvolutionalNetwork, images: jax.Array, labels: jax.Array, rule: Rule) -> Lost:
    """Where relevance is lost if nothing but a bias made a neuron active.

    Args:
        network: A convolutional network.
        images: The images; black is zero.
        labels: Their classes.
        rule: A rule for all layers that ignores biases.
    """
    first = "convolutions.0"
    found = relevance(network, images, labels, rule, at=[first])
    whole = relevance(network, images, labels, rule)
    logits = whole.output[jnp.arange(len(images)), labels]
    brightest = nnx.max_pool(images, window_shape=tuple(network.convolutions[0].kernel_size))
    at_black = jnp.where(brightest == 0, found.at[first], 0).sum((1, 2, 3))
    return Lost(1 - whole.relevance.sum((1, 2, 3)) / logits, at_black / logits)


_OF_NEURON: dict[str, Callable[[Bias], Rule]] = {
    "LRP-0": lambda bias: rules.Zero(bias=bias),
    "LRP-ε": lambda bias: rules.Epsilon(0.5, bias=bias),
    "LRP-γ": lambda bias: rules.Gamma(0.25, bias=bias),
    "LRP-α₂β₁": lambda bias: rules.AlphaBeta(2.0, 1.0, bias=bias),
    "z⁺": lambda bias: rules.ZPlus(bias=bias),
    "w²": lambda bias: rules.WSquare(bias=bias),
    "flat": lambda bias: rules.Flat(bias=bias),
    "z-box": lambda bias: rules.ZBox(0.0, 3.0, bias=bias),
}


def rows_of_neuron(x: Sequence[float], w: Sequence[float]) -> list[list[str | float]]:
    """The rows of a table: the shares of two inputs and their sum, without a bias and with an absorbed bias of 1.

    Args:
        x: The inputs of the neuron.
        w: Its weights.

    Example:
        >>> rows_of_neuron((2.0, 1.0), (2.0, 1.0))[3][:4]
        ['LRP-α₂β₁', 8.0, 2.0, 10.0]
    """
    inputs, weights = jnp.array(x), jnp.array(w)

    def shares(rule: Rule, b: float) -> list[float]:
        relevance = jax.grad(lrp(lambda x: jax.nn.relu(x @ weights + b), rule))(inputs)
        return [round(float(value), 3) + 0.0 for value in (*relevance, relevance.sum())]

    return [[name, *shares(rule("ignore"), 0.0), *shares(rule("absorb"), 1.0)] for name, rule in _OF_NEURON.items()]


def numbers_of_sums(dense: Mapping[str, Sums], conv: Mapping[str, Sums], lost: Lost) -> dict[str, float]:
    """What the chapter says of the sums on digits, by name.

    Args:
        dense: The sums of each rule in the dense network.
        conv: Those in the convolutional network.
        lost: What z+ loses in the latter.
    """
    return {
        "error-epsilon": dense["LRP-ε, 0.25 relative"].error,
        "error-zero-conv": conv["LRP-0"].error,
        "error-z-plus-conv": 100 * conv["z⁺"].error,
        "lost-at-black": 100 * float(jnp.median(lost.at_black)),
        "lost-total": 100 * float(jnp.median(lost.total)),
    }
