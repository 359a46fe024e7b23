"""How well relevance models describe the relevance in detectors of digits that are trained briefly and for long.

    python relevance_models.py [--resume]

Five detectors of the digits 0 to 3 in a pair of digits, each trained for 10,000 steps and for 1,600. With --resume,
only what the file does not hold yet is measured. The maps of three pairs go to a file of their own.
"""

import argparse
import json
import time
from typing import Any

import jax
import numpy as np
from results import FOLDER, origin

from lrp_book import datasets, digit_pairs, fitted_relevance
from lrp_book.digit_pairs import PairDetector

LONG, BRIEF = 10_000, 1_600  # steps of training
SEEDS = range(5)
TRAIN, TEST, ON_THE_WAY, SHOWN = 20_000, 2_000, 200, 3  # pairs


def main() -> None:
    """Measures detector after detector, and writes the file after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resume", action="store_true")
    resume = parser.parse_args().resume
    file = FOLDER / "relevance_models.json"
    rows = json.loads(file.read_text())["rows"] if resume and file.exists() else []
    done = {(row["steps"], row["seed"]) for row in rows}
    digits = datasets.mnist()
    for steps, seed in [(steps, seed) for steps in (LONG, BRIEF) for seed in SEEDS]:
        if (steps, seed) in done:
            continue
        start = time.perf_counter()
        detector = digit_pairs.trained_detector(digits.train, steps, seed)
        row = {"steps": steps, "seed": seed} | measured(detector, digits, keep_maps=(steps, seed) == (LONG, 0))
        rows.append(row)
        about = origin("lrp_jax", "jax", "flax", "optax") | {"pairs": {"train": TRAIN, "test": TEST}}
        file.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
        print(f"{steps} steps, seed {seed}: {row['accuracy']:.4f}, {time.perf_counter() - start:.0f} s", flush=True)


def measured(detector: PairDetector, digits: datasets.Dataset, *, keep_maps: bool) -> dict[str, Any]:
    """How often a detector is right, how well models fit its relevance, and what their maps hold."""
    pairs = digit_pairs.digit_pairs(digits.train, TRAIN, seed=0), digit_pairs.digit_pairs(digits.test, TEST, seed=1)
    train, test = (fitted_relevance.layers_of(detector, one.images) for one in pairs)
    output = np.asarray(detector(pairs[1].images)[:, 0])
    seen = np.flatnonzero(pairs[1].present & (output > 0.5))
    fits: dict[str, dict[str, float]] = {}
    models = {}
    for layer in (1, 2):
        fits[f"{layer}"] = {"training-free": fitted_relevance.fit_of_constants(train[layer], test[layer])}
        for name, detectors, with_above in fitted_relevance.MODELS:
            model = fitted_relevance.fitted(layer, train[layer], detectors=detectors, with_above=with_above)
            predicted = model(test[layer].x, *([test[layer].above] if with_above else []))
            fits[f"{layer}"][name] = fitted_relevance.r_squared(predicted, test[layer].relevance)
        models[layer] = model  # the last one: with four detection neurons and the relevance above
    chosen = jax.tree.map(lambda array: array[seen], test)
    maps = fitted_relevance.maps_of(detector, models, chosen)
    if keep_maps:
        kept = {name: np.asarray(values[:SHOWN], np.float32) for name, values in maps.items()}
        np.savez_compressed(
            FOLDER / "relevance_models.npz",
            images=np.asarray(pairs[1].images[seen[:SHOWN]], np.float32),
            output=output[seen[:SHOWN]],
            **kept,
        )
    return {
        "accuracy": float(((output > 0.5) == pairs[1].present).mean()),
        "fit": fits,
        "way": ways(detector, models, jax.tree.map(lambda array: array[:ON_THE_WAY], chosen)),
        "maps": fitted_relevance.about_maps(maps, digit_pairs.chosen(pairs[1], seen), output[seen]),
    }


def ways(detector: PairDetector, models: dict[int, Any], layers: dict[int, Any]) -> dict[str, dict[str, list[float]]]:
    """The median error (in percent) of both models on the way to the roots, for each layer and step."""
    return {
        f"{layer}": {
            name: fitted_relevance.on_the_way(detector, layer, layers[layer], model).error().tolist()
            for name, model in {"training-free": None, "min-max": models[layer]}.items()
        }
        for layer in (1, 2)
    }


if __name__ == "__main__":
    main()
