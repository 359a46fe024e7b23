"""Comparing composites by numbers: what arrives at the input, how steady a map is, what pixel flipping says of it.

subject = Subject(network, images, classes, noisy_images, replacements, unordered)
compare(subject, candidates(0.0, 1.0))
"""

import functools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lrp_jax import composites, evaluation, relevance, rules
from lrp_jax.composites import Composite, Rules, any_layer, conv
from lrp_jax.core.arguments import as_count
from lrp_jax.errors import InputError, LRPWarning


@dataclass(frozen=True)
class Subject:
    """A network and all that its explanations are measured with.

    Attributes:
        model: The network, from images to logits of shape `(samples, classes)`.
        images: Images of shape `(samples, height, width, channels)`, whose explained logits are positive.
        classes: The class of each image that is explained.
        noisy_images: The same with a little noise.
        replacements: What a flipped pixel becomes, by a name: a number, or an array that broadcasts to the images.
        unordered: Random numbers of shape `(samples, height, width)`, by which pixels are flipped in a random order.
        tile: Height and width of the squares of pixels that are flipped together.
        steps: The number of steps of pixel flipping.
        fraction: The fraction of the pixels that is flipped after the last step.
    """

    model: Any
    images: jax.Array
    classes: jax.Array
    noisy_images: jax.Array
    replacements: Mapping[str, float | jax.Array]
    unordered: jax.Array
    tile: int = 1
    steps: int = 10
    fraction: float = 0.4


@dataclass(frozen=True)
class Measured:
    """What one composite does on one network.

    Attributes:
        arrived: The relevance of all pixels, as a share of the explained outputs; None for a modified gradient, whose
            sum has no meaning.
        absolute: The absolute relevance of all pixels, as a share of the explained outputs: more than what arrived,
            where parts of both signs cancel. None for a modified gradient.
        growth: The largest `Explanation.growth` of a sample; None for a modified gradient.
        change: How far a little noise in the image changes the map, relative to the map: see `change_of`.
        flipping: How much further the output falls than in a random order, by what is followed and the replacement:
            see `flipping`.
    """

    arrived: float | None
    absolute: float | None
    growth: float | None
    change: float
    flipping: Mapping[str, float]


@dataclass(frozen=True)
class Band:
    """A number over several trainings.

    Attributes:
        mean: The mean.
        low: The smallest.
        high: The largest.
    """

    mean: float
    low: float
    high: float


def candidates(low: float, high: float) -> dict[str, Rules]:
    """The presets of `lrp_jax.composites`, and the variants that one would try first.

    Args:
        low: The smallest value of a pixel.
        high: The largest value of a pixel.

    Returns:
        The rules by name. `CPLRP`, which differs from `AttnLRP` in attention alone, is left out.

    Example:
        >>> candidates(0.0, 1.0)["Epsilon 0.25"]
        Epsilon(epsilon=0.25, relative=True, bias='absorb')
    """
    return {
        "EpsilonPlus": composites.EpsilonPlus(),
        "EpsilonPlus, bias ignored": on_convolutions(rules.ZPlus(bias="ignore")),
        "EpsilonPlus, bias distributed": on_convolutions(rules.ZPlus(bias="distribute")),
        "EpsilonPlusFlat": composites.EpsilonPlusFlat(),
        "EpsilonGammaBox": composites.EpsilonGammaBox(low, high),
        "EpsilonGamma, bias ignored": on_convolutions(rules.Gamma(0.25, bias="ignore")),
        "DeepTaylor": composites.DeepTaylor(low, high),
        "EpsilonAlpha2Beta1": composites.EpsilonAlpha2Beta1(),
        "AttnLRP": composites.AttnLRP(),
        "Epsilon 0.25": rules.Epsilon(0.25, relative=True),
        "Gamma 0.25": rules.Gamma(0.25),
        "ExcitationBackprop": composites.ExcitationBackprop(),
        "GuidedBackprop": composites.GuidedBackprop(),
        "Deconvnet": composites.Deconvnet(),
        "EpsilonAlpha2Beta1Flat": composites.EpsilonAlpha2Beta1Flat(),
        "EpsilonGammaBox, gamma 0.1": composites.EpsilonGammaBox(low, high, gamma=0.1),
        "EpsilonGammaBox, gamma 1": composites.EpsilonGammaBox(low, high, gamma=1.0),
    }


def on_convolutions(rule: rules.Rule) -> Composite:
    """A rule for convolutions, and epsilon for all other layers.

    Args:
        rule: The rule.

    Returns:
        The composite, which a network without convolutions takes, too.

    Example:
        >>> on_convolutions(rules.ZPlus()).rules == composites.EpsilonPlus().rules
        True
    """
    return Composite([(conv, rule), (any_layer, rules.Epsilon())], strict=False)


def measure(subject: Subject, method: Rules, at_random: Mapping[str, float]) -> Measured:
    """Measures what one composite does on one network, for the classes of the subject.

    Args:
        subject: The network, its images, and what is done to them.
        method: The composite.
        at_random: `flipping(subject, subject.unordered)`: what the random order does.

    Returns:
        What was measured.

    Raises:
        InputError: If the tiles do not fit the images, or as for `lrp_jax.relevance` and
            `lrp_jax.evaluation.pixel_flipping`.

    Example:
        >>> weight = jnp.array([[1.0, -1.0], [3.0, 2.0]])
        >>> x, order = jnp.array([[[[2.0], [1.0]]]]), jnp.array([[[0.0, 1.0]]])
        >>> model = lambda x: x.reshape(len(x), 2) @ weight
        >>> subject = Subject(model, x, jnp.array([0]), x, {"black": 0.0}, order, steps=2, fraction=1.0)
        >>> measure(subject, rules.Zero(), flipping(subject, order)).arrived
        1.0
    """
    explain = functools.partial(relevance, subject.model, target=subject.classes, rules=method)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LRPWarning)  # growth is one of the numbers here
        before, after = explain(subject.images), explain(subject.noisy_images)
    explained = jnp.take_along_axis(before.output, subject.classes[:, None], 1).sum()
    is_relevance = before.growth is not None
    fallen = flipping(subject, before.relevance.sum(-1))
    return Measured(
        arrived=float(before.relevance.sum() / explained) if is_relevance else None,
        absolute=float(jnp.abs(before.relevance).sum() / explained) if is_relevance else None,
        growth=None if before.growth is None else float(before.growth.max()),
        change=change_of(before.relevance, after.relevance),
        flipping={name: fall - at_random[name] for name, fall in fallen.items()},
    )


def change_of(before: jax.Array, after: jax.Array) -> float:
    """How far two explanations of nearly the same input are apart, relative to the first one.

    The difference and the first explanation are measured by their Euclidean norms, the median is over the samples. This
    is the sensitivity of Yeh, Hsieh, Suggala, Inouye and Ravikumar (2019), "On the (in)fidelity and sensitivity of
    explanations", for one draw of the noise.

    Args:
        before: Explanations of shape `(samples, ...)`.
        after: Those of the input with a little noise, of the same shape.

    Returns:
        0 if nothing changes, 1 if the difference is as large as the explanation.

    Example:
        >>> change_of(jnp.array([[3.0, 4.0]]), jnp.array([[3.0, 3.0]]))
        0.2
    """
    before, after = (maps.reshape(len(maps), -1) for maps in (before, after))
    changes = jnp.linalg.norm(after - before, axis=1) / jnp.linalg.norm(before, axis=1)
    return round(float(jnp.median(changes)), 6)


def flipping(subject: Subject, maps: jax.Array) -> dict[str, float]:
    """How far the output falls while pixels are flipped, the most relevant first, on average over the steps.

    Two outputs are followed: the logit of the explained class, and its margin to whichever class comes next.

    Args:
        subject: The network, its images and what flipped pixels become.
        maps: The relevance of the pixels, of shape `(samples, height, width)`.

    Returns:
        The falls, both as a share of the mean logit of the whole images, by the names "logit, black" and "margin,
        black" for a replacement that is called "black".

    Raises:
        InputError: If the tiles do not fit the images, or as for `lrp_jax.evaluation.pixel_flipping`.

    Example:
        >>> weight = jnp.array([[1.0, 0.0], [3.0, 2.0]])
        >>> model = lambda x: x.reshape(len(x), 2) @ weight
        >>> x = jnp.array([[[[2.0], [1.0]]]])  # logits 5 and 2, then 2 and 0, then 0 and 0; margins 3, 2, 0
        >>> subject = Subject(model, x, jnp.array([0]), x, {"black": 0.0}, x[..., 0], steps=2, fraction=1.0)
        >>> {name: round(fall, 3) for name, fall in flipping(subject, jnp.array([[[2.0, 3.0]]])).items()}
        {'logit, black': 0.533, 'margin, black': 0.267}
    """
    falls = {}
    for name, replacement in subject.replacements.items():
        curves = curves_of(subject, maps, replacement)
        for followed, curve in zip(("logit", "margin"), curves, strict=True):
            area = evaluation.area_over_perturbation_curve(curve).mean()
            falls[f"{followed}, {name}"] = float(area / curves[0, :, 0].mean())
    return falls


def curves_of(subject: Subject, maps: jax.Array, replacement: float | jax.Array) -> jax.Array:
    """The logit of the explained class, and its margin, while pixels are flipped, from one forward pass.

    Args:
        subject: The network and its images.
        maps: The relevance of the pixels, of shape `(samples, height, width)`.
        replacement: What a flipped pixel becomes.

    Returns:
        Two curves for each sample, of shape `(2, samples, steps + 1)`.

    Raises:
        InputError: As for `flipping`.

    Example:
        >>> x = jnp.array([[[[2.0], [1.0]]]])
        >>> model = lambda x: x.reshape(len(x), 2)
        >>> subject = Subject(model, x, jnp.array([0]), x, {}, x[..., 0], steps=2, fraction=1.0)
        >>> curves_of(subject, jnp.array([[[1.0, 2.0]]]), 0.0).tolist()
        [[[2.0, 2.0, 0.0]], [[1.0, 2.0, 0.0]]]
    """

    def logits_and_margins(x: jax.Array) -> jax.Array:
        logits = subject.model(x)
        return jnp.concatenate([logits, margins(logits)], axis=1)

    def curve(target: jax.Array) -> jax.Array:
        return evaluation.pixel_flipping(
            logits_and_margins,
            subject.images,
            averaged_over_tiles(maps, subject.tile),
            target,
            steps=subject.steps,
            fraction=subject.fraction,
            replacement=replacement,
        )

    number = jax.eval_shape(subject.model, subject.images).shape[1]
    logit = jax.nn.one_hot(subject.classes, 2 * number)
    return jax.vmap(curve)(jnp.stack([logit, jnp.roll(logit, number, axis=1)]))


def margins(logits: jax.Array) -> jax.Array:
    """How far each logit is above the largest of the others.

    Args:
        logits: Logits of shape `(samples, classes)`, of two or more classes.

    Returns:
        An array in the shape of the logits; positive for the class with the largest one alone.

    Example:
        >>> margins(jnp.array([[5.0, 2.0, 4.0]]))
        Array([[ 1., -3., -1.]], dtype=float32)
    """
    two = jax.lax.top_k(logits, 2)[0]
    best, second = two[:, :1], two[:, 1:]
    is_best = jnp.arange(logits.shape[1]) == logits.argmax(-1)[:, None]
    return logits - jnp.where(is_best, second, best)


def averaged_over_tiles(maps: jax.Array, tile: int) -> jax.Array:
    """Gives all pixels of a square tile the mean of the tile.

    Args:
        maps: Relevance of shape `(samples, height, width)`.
        tile: Height and width of a tile, in pixels.

    Returns:
        An array in the same shape.

    Raises:
        InputError: If height or width is no multiple of a tile.

    Example:
        >>> averaged_over_tiles(jnp.array([[[1.0, 3.0], [5.0, 7.0]]]), 2)
        Array([[[4., 4.],
                [4., 4.]]], dtype=float32)
    """
    samples, height, width = maps.shape
    tile = as_count(tile, "tile")
    if height % tile or width % tile:
        raise InputError(f"Tiles of {tile} x {tile} pixels do not fit images of {height} x {width}.")
    tiles = maps.reshape(samples, height // tile, tile, width // tile, tile).mean((2, 4), keepdims=True)
    return jnp.broadcast_to(tiles, (samples, height // tile, tile, width // tile, tile)).reshape(maps.shape)


def band_of(values: Sequence[float]) -> Band:
    """The mean, the smallest and the largest of some numbers.

    Args:
        values: One for each training.

    Returns:
        The three.

    Example:
        >>> band_of([1.0, 2.0, 6.0])
        Band(mean=3.0, low=1.0, high=6.0)
    """
    return Band(sum(values) / len(values), min(values), max(values))


def over_trainings(measured: Sequence[Measured]) -> dict[str, Band]:
    """Joins what one composite did on several trainings of a network.

    Args:
        measured: What was measured on each of them.

    Returns:
        A band for each number, by its name: "arrived", "absolute", "growth", "change", and the names of `flipping`.
        What a modified gradient does not have is left out.

    Example:
        >>> one = Measured(0.5, 1.0, 2.0, 0.1, {"logit, black": 0.3})
        >>> over_trainings([one, one])["arrived"]
        Band(mean=0.5, low=0.5, high=0.5)
    """
    numbers = [
        {name: getattr(one, name) for name in ("arrived", "absolute", "growth", "change")} | dict(one.flipping)
        for one in measured
    ]
    return {name: band_of([each[name] for each in numbers]) for name, value in numbers[0].items() if value is not None}
