"""How fast the gradients of random networks forget themselves along a line, and how alike the maps of two outputs are.

    python shattering.py [lags] [outputs] [photographs] [--resume]

Forty random networks for each setting and depth, and EfficientNet-Lite0 on three photographs. With names, only these
parts are measured; with --resume, only what the file does not hold yet.
"""

import argparse
import functools
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from results import FOLDER, origin

from lrp_book import datasets, photographs, pretrained, shattering
from lrp_jax import baselines, composites, relevance, rules

NETWORKS = 40
DEPTHS = (1, 2, 4, 8, 16, 24, 50)
DEPTHS_OF_OUTPUTS = (1, 4, 24)
CLASSES = 12
FILE = FOLDER / "shattering.json"

Row = dict[str, Any]


def main() -> None:
    """Measures, and writes the file after each row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS])
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    rows = json.loads(FILE.read_text())["rows"] if FILE.exists() else []
    found = {identity(row): row for row in rows}
    for part in arguments.parts or PARTS:
        for about, measure in PARTS[part]():
            row = {"part": part} | about
            if arguments.resume and identity(row) in found:
                continue
            row |= measure()
            found[identity(row)] = row
            write(list(found.values()))
            print(", ".join(identity(row)), flush=True)


def identity(row: Row) -> tuple[str, ...]:
    """What tells a row from the others."""
    return tuple(str(row[key]) for key in ("part", "setting", "depth", "method") if key in row)


def write(rows: list[Row]) -> None:
    """Writes all rows with the machine, the versions and the day."""
    about = {
        "what": (__doc__ or "").splitlines()[0],
        "networks": NETWORKS,
        **origin("lrp_jax", "jax", "flax"),
    }
    FILE.write_text(json.dumps(about | {"rows": rows}) + "\n")


Task = tuple[Row, Callable[[], Row]]


def lags() -> Iterator[Task]:
    """The autocorrelation of the gradient along the line, by lag, and that of noise."""
    for (name, setting), depth in itertools.product(shattering.SETTINGS.items(), DEPTHS):
        yield {"setting": name, "depth": depth}, functools.partial(autocorrelation_of, setting, depth)
    white = np.random.default_rng(0).normal(size=(1000, len(shattering.LINE)))
    for name, noise in {"white noise": white, "brown noise": white.cumsum(1)}.items():
        yield {"setting": name}, lambda noise=noise: shattering.band(shattering.autocorrelation(noise))


def autocorrelation_of(setting: shattering.Setting, depth: int) -> Row:
    """A band over networks, for each lag."""
    keys = jax.random.split(jax.random.key(0), NETWORKS)
    gradients = jax.lax.map(lambda key: shattering.on_the_line(key, depth, setting).gradient, keys)
    return shattering.band(shattering.autocorrelation(gradients))


def outputs() -> Iterator[Task]:
    """The cosine between the maps of two outputs of random networks, for an eight."""
    digits = datasets.mnist().test
    eight = jnp.asarray(datasets.as_float(digits.images[np.flatnonzero(digits.labels == 8)[0]])).ravel()
    for name in ("feedforward", "feedforward, weights centred"):
        for depth, (method, rule) in itertools.product(
            DEPTHS_OF_OUTPUTS, {"LRP-0": rules.Zero(), "z⁺": rules.ZPlus()}.items()
        ):
            about = {"setting": name, "depth": depth, "method": method}
            yield about, functools.partial(cosines_of_outputs, name, depth, rule, eight)


def cosines_of_outputs(name: str, depth: int, rule: rules.Rule, x: jax.Array) -> Row:
    """Bands over networks."""
    keys = jax.random.split(jax.random.key(1), NETWORKS)
    setting = shattering.SETTINGS[name]
    return signed_and_absolute(
        jax.lax.map(lambda key: shattering.cosine_of_two_outputs(key, depth, setting, rule, x), keys)
    )


def signed_and_absolute(cosines: jax.Array) -> Row:
    """The bands of cosines with their sign and without, and how many are negative."""
    negative = float((cosines < 0).mean())
    return {"signed": shattering.band(cosines), "absolute": shattering.band(jnp.abs(cosines)), "negative": negative}


def classes_of_photographs() -> Iterator[Task]:
    """The cosine between the maps of two classes of a trained network, for pairs of classes drawn at random."""
    methods = {
        "gradient": None,
        "LRP-0": rules.Zero(),
        "EpsilonGammaBox": composites.EpsilonGammaBox(*pretrained.PIXEL_RANGE),
        "EpsilonPlusFlat": composites.EpsilonPlusFlat(),
    }
    for method, rule in methods.items():
        yield {"setting": "EfficientNet-Lite0", "method": method}, functools.partial(cosines_of_classes, rule)


def cosines_of_classes(rule: Any) -> Row:
    """Bands over the pairs of classes of all photographs."""
    model = pretrained.efficientnet_lite0()
    classes = jnp.asarray(np.random.default_rng(0).choice(1000, CLASSES, replace=False))
    found = []
    for image in photographs.images():
        images = jnp.repeat(jnp.asarray(image)[None], CLASSES, axis=0)
        maps = (
            baselines.gradient(model, images, classes)
            if rule is None
            else relevance(model, images, classes, rule).relevance
        ).sum(-1)
        found += [shattering.cosine(maps[i], maps[j]) for i, j in itertools.combinations(range(CLASSES), 2)]
    return signed_and_absolute(jnp.stack(found)) | {"outputs": CLASSES}


PARTS: dict[str, Callable[[], Iterator[Task]]] = {
    "lags": lags,
    "outputs": outputs,
    "photographs": classes_of_photographs,
}


if __name__ == "__main__":
    main()
