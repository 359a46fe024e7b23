"""Pixel flipping of a network for digits: the methods that are compared, what falls, and what a program measured."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lrp_book import DATA, compare_composites
from lrp_jax import baselines, composites, relevance, rules
from lrp_jax.composites import Rules

REPLACEMENTS = ("black", "noise")
FOLLOWED = ("logit", "margin")
STEPS, FRACTION = 10, 0.25
MEASURED = DATA.parent / "measured" / "flipping.json"
"""What `make measure-flipping` has written."""

RULES: Mapping[str, Rules] = {
    "LRP-0": rules.Zero(),
    "LRP-ε": rules.Epsilon(0.25),
    "LRP-γ": rules.Gamma(0.25),
    "z⁺": rules.ZPlus(),
    "EpsilonPlusFlat": composites.EpsilonPlusFlat(),
    "EpsilonGammaBox": composites.EpsilonGammaBox(0.0, 1.0),
}
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "knows nothing": ("random", "random strokes", "brightness"),
    "gradient": ("gradient", "|gradient|", "SmoothGrad", "|SmoothGrad|"),
    "from black": ("gradient × input", "integrated gradients", "occlusion"),
    "rule": tuple(RULES),
    "on ink": ("EpsilonPlusFlat, ink", "EpsilonGammaBox, ink"),
}
"""The methods, and what they have in common."""


def maps(
    network: Any, images: jax.Array, labels: jax.Array, *, key: jax.Array, samples: int = 100, steps: int = 32
) -> dict[str, jax.Array]:
    """What all methods say of the pixels, by the name of the method.

    Args:
        network: The network, from images in [0, 1] to logits.
        images: The images, of shape (samples, height, width, 1).
        labels: The class of each that is explained.
        key: Key of the random orders and of SmoothGrad.
        samples: The number of noisy copies in SmoothGrad.
        steps: The number of steps of integrated gradients.
    """
    keys = jax.random.split(key, 3)
    gradient = baselines.gradient(network, images, labels)
    smooth = baselines.smoothgrad(network, images, labels, key=keys[2], samples=samples)
    found = {
        "random": jax.random.uniform(keys[0], images.shape),
        "random strokes": jax.random.uniform(keys[1], images.shape) * (images > 0),
        "brightness": images,
        "gradient": gradient,
        "|gradient|": jnp.abs(gradient),
        "SmoothGrad": smooth,
        "|SmoothGrad|": jnp.abs(smooth),
        "gradient × input": images * gradient,
        "integrated gradients": baselines.integrated_gradients(network, images, labels, steps=steps),
        "occlusion": baselines.occlusion(network, images, labels, window=4, stride=2),
    }
    for name, rule in RULES.items():
        found[name] = relevance(network, images, labels, rule, batch_size=100, progress=False).relevance
    return found | {name: jnp.where(images > 0, found[name.removesuffix(", ink")], 0) for name in FAMILIES["on ink"]}


def subject(network: Any, images: jax.Array, labels: jax.Array, key: jax.Array) -> compare_composites.Subject:
    """A network and its images, of which a quarter of the pixels become black or noise.

    Args:
        network: The network, from images in [0, 1] to logits.
        images: The images, of shape (samples, height, width, 1).
        labels: Their true classes.
        key: Key of the noise.
    """
    noise = jax.random.uniform(key, images.shape)
    replacements: dict[str, float | jax.Array] = {"black": 0.0, "noise": noise}
    return compare_composites.Subject(
        network, images, labels, images, replacements, images[..., 0], steps=STEPS, fraction=FRACTION
    )


def curves(
    of: compare_composites.Subject, maps: Mapping[str, jax.Array]
) -> dict[str, dict[str, dict[str, NDArray[np.float32]]]]:
    """The logit of the true class and its margin to the next one, while the most relevant pixels are replaced.

    Args:
        of: The network and the images.
        maps: The relevance of the pixels, of shape (samples, height, width, 1), by the name of the method.

    Returns:
        By method, replacement and what is followed, a curve for each sample.
    """

    @jax.jit
    def both(values: jax.Array, replacement: float | jax.Array) -> jax.Array:
        return compare_composites.curves_of(of, values.sum(-1), replacement)

    return {
        method: {
            name: dict(zip(FOLLOWED, np.asarray(both(values, jnp.broadcast_to(shown, values.shape))), strict=True))
            for name, shown in of.replacements.items()
        }
        for method, values in maps.items()
    }


@dataclass(frozen=True)
class Flipped:
    """What was measured on several networks.

    Attributes:
        networks: How many there are.
        images: How many images of each.
        date: When they were measured.
        mean_curves: By replacement, what is followed and method, the mean curve of each network, of shape
            (networks, steps + 1).
    """

    networks: int
    images: int
    date: str
    mean_curves: Mapping[tuple[str, str, str], NDArray[np.float64]]

    def areas(self, replacement: str, followed: str, method: str) -> NDArray[np.float64]:
        """The mean drop over the steps, for each network: the area over the curve."""
        curve = self.mean_curves[replacement, followed, method]
        return (curve[:, :1] - curve).mean(axis=1)

    def ahead(self, replacement: str, followed: str, one: str, other: str) -> int:
        """On how many networks one method has a larger area than another."""
        return int((self.areas(replacement, followed, one) > self.areas(replacement, followed, other)).sum())


def read(text: str) -> Flipped:
    """What the program `tests/benchmarks/flipping.py` has measured.

    Args:
        text: The content of the file that it writes.

    Example:
        >>> row = {"seed": 0, "method": "z⁺", "black": {"logit": [4.0, 1.0], "margin": [2.0, 1.0]}}
        >>> flipped = read(json.dumps({"images": 1, "date": "2026-01-31", "rows": [row]}))
        >>> flipped.areas("black", "logit", "z⁺")
        array([1.5])
    """
    record = json.loads(text)
    rows = sorted(record["rows"], key=lambda row: row["seed"])
    by_key: dict[tuple[str, str, str], list[list[float]]] = {}
    for row in rows:
        for replacement in set(row) & set(REPLACEMENTS):
            for followed in FOLLOWED:
                by_key.setdefault((replacement, followed, row["method"]), []).append(row[replacement][followed])
    arrays = {key: np.array(values) for key, values in by_key.items()}
    return Flipped(len({row["seed"] for row in rows}), record["images"], record["date"], arrays)


def flip(images: jax.Array, maps: jax.Array, fraction: float, replacement: float | jax.Array) -> jax.Array:
    """The images whose most relevant pixels are replaced.

    Args:
        images: Images of shape (samples, height, width, 1).
        maps: The relevance of their pixels, of the same shape.
        fraction: The fraction of the pixels that is replaced.
        replacement: What they become, which broadcasts to the images.

    Example:
        >>> images = jnp.array([[[[0.2], [0.8]]]])
        >>> flip(images, maps=images, fraction=0.5, replacement=0.0).ravel().tolist()
        [0.20000000298023224, 0.0]
    """
    order = jnp.argsort(-maps.reshape(len(maps), -1), axis=1)
    places = jnp.argsort(order, axis=1).reshape(images.shape)
    return jnp.where(places < round(fraction * images[0].size), replacement, images)
