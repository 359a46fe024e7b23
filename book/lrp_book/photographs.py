"""The photographs of the book, the rules of their maps, and what was measured on them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lrp_book import DATA, pretrained
from lrp_book.comparison import Comparison, Panel
from lrp_jax import Ledger, composites, rules
from lrp_jax.explain.ledger import LedgerRow
from lrp_jax.rules import Bias

NAMES = ("coffee", "chelsea", "rocket")
GROUPS = {
    "classifier": "classifier",
    "last convolution": "head",
    "block 15": r"blocks\.15\.",
    "blocks 11 to 14": r"blocks\.1[1-4]\.",
    "blocks 5 to 10": r"blocks\.([5-9]|10)\.",
    "blocks 0 to 4": r"blocks\.[0-4]\.",
    "first convolution": "stem",
}
"""Groups of layers of EfficientNet-Lite0, for a waterfall."""

_MEASURED = DATA.parent / "measured"


def images(names: Sequence[str] = NAMES) -> NDArray[np.float32]:
    """The photographs as EfficientNet-Lite0 takes them, of shape (photographs, 224, 224, 3).

    Example:
        >>> images(["coffee"]).shape
        (1, 224, 224, 3)
    """
    files = [DATA / "photographs" / f"{name}.jpg" for name in names]
    return np.stack([pretrained.preprocess(np.asarray(Image.open(file))) for file in files])


def pictures(x: Any) -> NDArray[np.float32]:
    """What `images` returns as colours from 0 to 1."""
    return np.asarray((np.asarray(x) * 128 + 127) / 255, np.float32)


def composite(bias: Bias = "absorb") -> composites.Composite:
    """The rules of the title figure, with a treatment of all biases.

    Example:
        >>> composite("ignore").rules[0][1].bias
        'ignore'
    """
    return composites.Composite(
        [
            (composites.first, rules.ZBox(*pretrained.PIXEL_RANGE, bias=bias)),
            (composites.name(r"blocks\.1[1-5]|head"), rules.Epsilon(0.25, relative=True, bias=bias)),
            (composites.conv, rules.Gamma(0.25, bias=bias)),
            (composites.any_layer, rules.Epsilon(bias=bias)),
        ]
    )


def measured() -> dict[str, Any]:
    """What `make measure-photographs` has written: the numbers.

    Example:
        >>> sorted(measured())
        ['classes', 'date', 'integrated', 'ledgers', 'machine', 'nudged', 'sums', 'versions']
    """
    found: dict[str, Any] = json.loads((_MEASURED / "photographs.json").read_text())
    return found


def measured_maps() -> dict[str, NDArray[np.float32]]:
    """What `make measure-photographs` has written: the maps, each with the photographs first.

    Example:
        >>> sorted(measured_maps())
        ['absorb', 'distribute', 'ignore', 'integrated', 'smooth', 'unfolded']
    """
    with np.load(_MEASURED / "photographs.npz") as file:
        return unpacked({name: file[name] for name in file.files})


def packed(maps: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[Any]]:
    """Maps as 16-bit shares of the largest value of each, and these values beside them.

    Args:
        maps: Maps of shape (photographs, height, width), by name.
    """
    files: dict[str, NDArray[Any]] = {}
    for name, values in maps.items():
        scale = np.abs(values).max((1, 2), keepdims=True)
        files |= {name: (values / scale).astype(np.float16), f"{name}-scale": scale}
    return files


def unpacked(files: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    """The inverse of `packed`.

    Example:
        >>> unpacked(packed({"one": np.ones((1, 2, 2), np.float32)}))["one"].tolist()
        [[[1.0, 1.0], [1.0, 1.0]]]
    """
    names = [name for name in files if not name.endswith("-scale")]
    return {name: files[name].astype(np.float32) * files[f"{name}-scale"] for name in names}


def as_record(account: Ledger) -> dict[str, Any]:
    """A ledger for a JSON file: the rows that are layers or kept something."""
    kept = ("bias", "stabilizer", "constants", "not_conserved")
    smallest = 1e-7 * abs(account.explained)
    rows = [vars(row) for row in account.rows if any(abs(getattr(row, name)) > smallest for name in kept)]
    return {"explained": account.explained, "inputs": account.inputs, "rows": rows}


def as_ledger(record: Mapping[str, Any]) -> Ledger:
    """The inverse of `as_record`.

    Example:
        >>> as_ledger({"explained": 2.0, "inputs": 2.0, "rows": []}).unaccounted
        0.0
    """
    return Ledger(record["explained"], record["inputs"], tuple(LedgerRow(**row) for row in record["rows"]))


def correlation(a: Any, b: Any) -> float:
    """Pearson's correlation of two maps, pixel by pixel.

    Example:
        >>> round(correlation([1.0, 2.0], [-1.0, -2.0]), 6)
        -1.0
    """
    return float(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1])


def in_tiles(values: Any, size: int = 16) -> NDArray[np.float32]:
    """The mean relevance of square tiles of a map.

    Example:
        >>> in_tiles(np.arange(16.0).reshape(4, 4), 2).tolist()
        [[2.5, 4.5], [10.5, 12.5]]
    """
    height, width = np.shape(values)
    return np.asarray(values).reshape(height // size, size, width // size, size).mean((1, 3))


def clipped(values: Any) -> float:
    """The limit of the colours of a map: the absolute value that 0.3 % of its pixels exceed."""
    return float(jnp.quantile(jnp.abs(jnp.asarray(values)), 0.997))


def title_figure(classes: Sequence[str], maps: Any) -> Comparison:
    """The three photographs, under a line that the reader moves, and below it their maps.

    Args:
        classes: What the network sees, which stands above each photograph.
        maps: The maps, of shape (3, 224, 224).
    """
    colours = pictures(images())
    return Comparison(
        [
            Panel(name, photograph, np.asarray(relevance), clipped(relevance), described)
            for name, photograph, relevance, described in zip(classes, colours, maps, _DESCRIBED, strict=True)
        ]
    )


_DESCRIBED = (
    (
        "A cup of espresso on a red saucer with a spoon.",
        "Its relevance: the rim of the cup and the edge of the coffee are red, and a weak blue lies on the spoon.",
    ),
    (
        "The face of a cat, from close by.",
        "Its relevance: the eyes, the nose and the whiskers of the cat are red.",
    ),
    (
        "A rocket on its pad at dusk, between two lattice towers.",
        "Its relevance: the tip of the rocket and the tops of the towers are red, the lower parts of the towers blue.",
    ),
)
