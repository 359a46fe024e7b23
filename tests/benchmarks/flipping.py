"""Pixel flipping on several trainings of the convolutional network: every method, two replacements, logit and margin.

    python flipping.py [--resume]

Writes `flipping.json`: for each training and method the mean curves over the images. With --resume, only what the file
does not hold yet is measured. `book/which_map.md` shows it.
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from results import FOLDER, origin

from lrp_book import datasets, flipping, models, training

SEEDS = range(5)
IMAGES = 200
FILE = FOLDER / "flipping.json"


def main() -> None:
    """Measures, and writes after each training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resume", action="store_true")
    resume = parser.parse_args().resume and FILE.exists()
    rows: list[dict[str, Any]] = json.loads(FILE.read_text())["rows"] if resume else []
    digits = datasets.mnist()
    for seed in SEEDS:
        if seed not in {row["seed"] for row in rows}:
            rows += measured(digits, seed)
            write(rows)
            print(f"seed {seed} is done", flush=True)


def measured(digits: datasets.Dataset, seed: int) -> list[dict[str, Any]]:
    """The mean curves of each method on one training."""
    config = training.TrainingConfig(seed=seed)
    network = training.load_or_train(models.ConvolutionalNetwork, digits, config, progress=False).model
    images = jnp.asarray(datasets.as_float(digits.test.images[:IMAGES]))
    labels = jnp.asarray(digits.test.labels[:IMAGES])
    keys = jax.random.split(jax.random.key(0))
    subject = flipping.subject(network, images, labels, keys[1])
    curves = flipping.curves(subject, flipping.maps(network, images, labels, key=keys[0]))
    return [{"seed": seed, "method": method} | jax.tree.map(mean, its) for method, its in curves.items()]


def mean(curve: np.ndarray) -> list[float]:
    """The mean over the images, in as many digits as matter."""
    return [round(float(value), 4) for value in curve.mean(axis=0)]


def write(rows: Sequence[dict[str, Any]]) -> None:
    """Writes all that was measured, with where and when."""
    record = {
        **origin("lrp_jax", "jax", "flax"),
        "images": IMAGES,
        "fraction": flipping.FRACTION,
        "rows": list(rows),
    }
    FILE.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
