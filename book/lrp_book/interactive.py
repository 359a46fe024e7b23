"""What the pages that run a network in the browser have in common: their rules, and the data beside the program."""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx

from lrp_book import datasets
from lrp_book.comparison import palettes
from lrp_jax import composites, relevance, rules


class _OfReader:
    """For a rule whose parameters are inputs of the program: they have no values to check or compare."""

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __post_init__(self) -> None:
        """Checks nothing."""


@dataclass(frozen=True, eq=False)
class EpsilonOfReader(_OfReader, rules.Epsilon):
    """LRP-epsilon with an epsilon that the reader sets."""


@dataclass(frozen=True, eq=False)
class GammaOfReader(_OfReader, rules.Gamma):
    """LRP-gamma with a gamma that the reader sets."""


def choices(epsilon: Any, gamma: Any) -> dict[str, composites.Rules]:
    """The rules that a reader can choose, by name."""
    adjusted, favouring = EpsilonOfReader(epsilon), GammaOfReader(gamma)
    any_layer, conv, first = composites.any_layer, composites.conv, composites.first
    return {
        "LRP-0": rules.Zero(),
        "LRP-ε": adjusted,
        "LRP-γ": favouring,
        "z⁺": rules.ZPlus(),
        "EpsilonPlusFlat": [(first, rules.Flat()), (conv, rules.ZPlus()), (any_layer, adjusted)],
        "EpsilonGammaBox": [(first, rules.ZBox(0.0, 1.0)), (conv, favouring), (any_layer, adjusted)],
    }


_PARAMETERS = {
    "LRP-ε": {"epsilon"},
    "LRP-γ": {"gamma"},
    "EpsilonPlusFlat": {"epsilon"},
    "EpsilonGammaBox": {"epsilon", "gamma"},
}


def page_data(program: onnx.ModelProto, test: datasets.Split) -> dict[str, Any]:
    """What a page needs beside the scripts: the program, a digit of each class, the rules, colours for either mode."""
    samples = [test.images[np.flatnonzero(test.labels == digit)[1]] for digit in range(10)]
    light, dark = palettes(256)
    return {
        "program": _as_text(program.SerializeToString()),
        "samples": _as_text(np.stack(samples).tobytes()),
        "colours": {"light": _as_text(light.tobytes()), "dark": _as_text(dark.tobytes())},
        "sample": 3,
        "rule": 2,
        "rules": [
            {"name": name} | {key: key in _PARAMETERS.get(name, ()) for key in ("epsilon", "gamma")}
            for name in choices(1.0, 1.0)
        ],
    }


def sample(page: Mapping[str, Any], digit: int) -> np.ndarray:
    """One of the digits in a page's data, of shape (28, 28, 1) and with bytes as values."""
    pixels = np.frombuffer(base64.b64decode(page["samples"]), np.uint8)
    return pixels.reshape(-1, 28, 28, 1)[digit]


def _as_text(values: bytes) -> str:
    return base64.b64encode(values).decode()


def layers(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a page says of each layer, and how its values are arranged.

    Args:
        values: Relevance of some samples by the name of the layer.
    """
    found = []
    for name, its in values.items():
        height, width = its.shape[1:3] if its.ndim == 4 else (1, 1)
        maps = its.shape[-1]
        size = f"{maps} maps of {height} × {width}" if width > 1 else f"{maps} neurons"
        caption = f"the {height} × {width} pixels" if name == "pixels" else f"{name}, {size}"
        found.append({"name": name, "caption": caption, "height": height, "width": width, "maps": maps})
    return found


def step_by_step(
    network: Callable[[jax.Array], jax.Array], layers: Sequence[str]
) -> Callable[..., dict[str, jax.Array]]:
    """The program of a page that explains one image layer by layer.

    Args:
        network: The network, from images of shape (samples, height, width, 1) to logits.
        layers: The layers whose relevance the page shows.

    Returns:
        A function of an image without channels, the weights of its outputs, epsilon and gamma, which returns the
        scores, and the relevance of every layer and of the pixels under every rule of `choices`.
    """

    def program(image: jax.Array, seed: jax.Array, epsilon: jax.Array, gamma: jax.Array) -> dict[str, jax.Array]:
        explained = [
            relevance(network, image[None, :, :, None], seed[None], rule, at=layers)
            for rule in choices(epsilon, gamma).values()
        ]
        found = {name: jnp.stack([one.at[name][0] for one in explained]) for name in layers}
        pixels = jnp.stack([one.relevance[0] for one in explained])
        return found | {"pixels": pixels, "logits": explained[0].output[0]}

    return program
