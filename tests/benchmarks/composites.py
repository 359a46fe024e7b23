"""What each composite brings to the pixels, how steady its maps are, and what pixel flipping says of them.

    python composites.py [dense] [LeNet] [ResNet] [EfficientNet] [--resume]

Five trainings of a dense network, of LeNet and of a small residual network on MNIST, and EfficientNet-Lite0 on three
photographs. With names, only these networks are measured; with --resume, only what the file does not hold yet.
"""

import argparse
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx
from PIL import Image
from results import FOLDER, origin

from lrp_book import DATA, compare_composites, datasets, figures, models, numbers, pretrained, residual, training

SEEDS = range(5)
WEIGHTS = Path(__file__).parents[2] / "_build" / "models"
PHOTOGRAPHS = ("coffee", "chelsea", "rocket")
DIGITS = 100
ENDS = ("mean", "low", "high")
NOISE = 0.02  # its standard deviation, as a share of the range of a pixel


def trained(network: str, digits: datasets.Dataset, seed: int) -> nnx.Module:
    """A network that is trained on MNIST, from its checkpoint if there is one."""
    config = training.TrainingConfig(epochs=2, seed=seed)
    if network == "ResNet":
        return residual.trained_residual_network(digits, config, directory=WEIGHTS)
    kind = models.DenseNetwork if network == "dense" else models.ConvolutionalNetwork
    return training.load_or_train(kind, digits, config, directory=WEIGHTS, progress=False).model


def subjects_of_digits(network: str) -> Iterator[compare_composites.Subject]:
    """A subject for each training."""
    digits = datasets.mnist()
    images = jnp.asarray(datasets.as_float(digits.test.images[:DIGITS]))
    for seed in SEEDS:
        yield subject(trained(network, digits, seed), images, (0.0, 1.0), plain=0.0, steps=8, fraction=0.4)


def subjects_of_photographs() -> Iterator[compare_composites.Subject]:
    """A subject for each photograph."""
    model = pretrained.efficientnet_lite0()
    for photograph in PHOTOGRAPHS:
        image = pretrained.preprocess(Image.open(DATA / "photographs" / f"{photograph}.jpg"))[None]
        mean = image.mean((1, 2), keepdims=True)
        yield subject(model, jnp.asarray(image), pretrained.PIXEL_RANGE, plain=mean, tile=8, steps=4, fraction=0.25)


def subject(
    model: Any, images: jax.Array, bounds: tuple[float, float], *, plain: Any, tile: int = 1, **options: Any
) -> compare_composites.Subject:
    """Adds the noise, the replacements and the random order to a network and its images."""
    keys = jax.random.split(jax.random.key(0), 3)
    low, high = bounds
    noise = NOISE * (high - low) * jax.random.normal(keys[0], images.shape)
    samples, height, width, _ = images.shape
    order = jax.random.uniform(keys[1], (samples, height // tile, width // tile))
    return compare_composites.Subject(
        model,
        images,
        nnx.jit(lambda model, x: model(x).argmax(-1))(model, images),
        jnp.clip(images + noise, low, high),
        {"plain": plain, "noise": jax.random.uniform(keys[2], images.shape, minval=low, maxval=high)},
        order.repeat(tile, 1).repeat(tile, 2),
        tile,
        **options,
    )


NETWORKS: dict[str, tuple[Callable[[], Iterator[compare_composites.Subject]], tuple[float, float]]] = {
    "dense": (functools.partial(subjects_of_digits, "dense"), (0.0, 1.0)),
    "LeNet": (functools.partial(subjects_of_digits, "LeNet"), (0.0, 1.0)),
    "ResNet": (functools.partial(subjects_of_digits, "ResNet"), (0.0, 1.0)),
    "EfficientNet": (subjects_of_photographs, pretrained.PIXEL_RANGE),
}


# What the guide recommends: the model, the code, its name among the candidates, and on which networks it was measured.
BEGIN: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    (
        "Convolutional, input in known bounds (pixels)",
        "`composites.EpsilonGammaBox(low, high)`",
        "EpsilonGammaBox",
        ("LeNet", "ResNet", "EfficientNet"),
    ),
    (
        "Convolutional, input without bounds",
        "`composites.EpsilonPlusFlat()`",
        "EpsilonPlusFlat",
        ("LeNet", "ResNet", "EfficientNet"),
    ),
    ("Dense layers and ReLUs alone", "`rules.Gamma(0.25)`", "Gamma 0.25", ("dense",)),
    ("Transformer", "`composites.AttnLRP()`, see [](transformers.md)", "AttnLRP", ()),
    ("Recurrent", "`rules.Epsilon()`", "AttnLRP", ()),
)


def main() -> None:
    """Measures and writes: the numbers after each composite, the tables and the figure at the end."""
    figures.use()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", choices=[[], *NETWORKS])
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    file = FOLDER / "composites.json"
    known = json.loads(file.read_text())["rows"] if file.exists() else []
    rows = {(row["network"], row["composite"]): row for row in known}
    for network in arguments.networks or NETWORKS:
        done = [composite for its, composite in rows if its == network] if arguments.resume else []
        for name, bands in measured(network, done):
            rows[network, name] = {"network": network, "composite": name} | bands
            about = origin("lrp_jax", "jax", "flax")
            file.write_text(json.dumps(about | {"rows": list(rows.values())}, indent=1) + "\n")
    show(list(rows.values()))


def measured(network: str, done: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The name of each composite that is not done, and what it does on a network."""
    make, bounds = NETWORKS[network]
    methods = {name: method for name, method in compare_composites.candidates(*bounds).items() if name not in done}
    subjects = list(make()) if methods else []
    at_random = [compare_composites.flipping(one, one.unordered) for one in subjects]
    for name, method in methods.items():
        of_all = [compare_composites.measure(one, method, by) for one, by in zip(subjects, at_random, strict=True)]
        yield name, {key: asdict(band) for key, band in compare_composites.over_trainings(of_all).items()}


def show(rows: list[dict[str, Any]]) -> None:
    """Writes the tables and the figure."""
    for name, table in tables(rows).items():
        (FOLDER / f"{name}.md").write_text(table)
    draw(rows, FOLDER / "composites.svg")


def tables(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The tables, in Markdown: what to begin with, what arrives, and what a little noise changes."""
    found = {(row["network"], row["composite"]): row for row in rows}
    networks = [network for network in NETWORKS if any(row["network"] == network for row in rows)]
    composites = [
        name for name in compare_composites.candidates(0.0, 1.0) if any(row["composite"] == name for row in rows)
    ]

    def of_each(key: str, form: Callable[[dict[str, float]], str]) -> str:
        cells = [
            [as_code(name), *(form(found.get((network, name), {}).get(key)) for network in networks)]
            for name in composites
        ]
        return markdown(["Composite", *networks], [row for row in cells if any(row[1:])])

    begin = [
        [model, code, "; ".join(f"{of} {percent(found[of, name]['arrived'])}" for of in its) or "not measured"]
        for model, code, name, its in BEGIN
        if all((network, name) in found for network in its)
    ]
    return {
        "composites-begin": markdown(["Your model", "Begin with", "Arrives at the input (%)"], begin),
        "composites-arrived": of_each("arrived", percent),
        "composites-change": of_each("change", percent),
    }


def percent(band: dict[str, float] | None) -> str:
    """A band in percent: the mean, and in brackets from where to where if that can be seen."""
    if band is None:
        return ""
    shown = (f"{100 * band[end]:.2g}" if abs(band[end]) < 0.1 else f"{100 * band[end]:.0f}" for end in ENDS)
    mean, low, high = map(numbers.typeset, shown)
    return mean if low == high else f"{mean} ({low} to {high})"


def as_code(name: str) -> str:
    """A name of `candidates` with the preset as code, which may be broken on a phone."""
    preset, *rest = name.split(", ")
    return ", ".join([f"`{preset}`", *rest])


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def draw(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Draws how much further the output falls than in a random order, a panel for each network."""
    networks = [network for network in NETWORKS if any(row["network"] == network for row in rows)]
    composites = [
        name for name in compare_composites.candidates(0.0, 1.0) if any(row["composite"] == name for row in rows)
    ]
    shape = -(-len(networks) // 2), 2
    figure, panels = plt.subplots(*shape, figsize=(6.2, 0.5 + 4.2 * shape[0]), sharey=True, squeeze=False)
    for panel, network in zip(panels.flat, networks, strict=False):
        of_it = [row for row in rows if row["network"] == network]
        at = np.array([composites.index(row["composite"]) for row in of_it])
        for i, (followed, colour) in enumerate((("logit", figures.BLUE), ("margin", figures.ORANGE))):
            for j, (replacement, marker) in enumerate((("plain", "o"), ("noise", "x"))):
                bands = np.array([[row[f"{followed}, {replacement}"][end] for end in ENDS] for row in of_it]).T
                label, place = f"{followed}, {replacement}", at + 0.18 * (2 * i + j - 1.5)
                panel.plot(bands[0], place, marker, color=colour, label=label, markersize=4)
                panel.hlines(place, bands[1], bands[2], color=colour, linewidth=1)
        panel.axvline(0, color=figures.INK, linewidth=0.8)
        panel.set_title(network)
        panel.locator_params(axis="x", nbins=5)
        panel.grid(axis="x")
    for panel in panels[:, 0]:
        panel.set_yticks(range(len(composites)), composites)
    panels[0, 0].invert_yaxis()
    figure.supxlabel("fall of the output beyond that in a random order", fontsize=9.5)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    file.write_text(figures.as_svg(figure))
    plt.close(figure)


if __name__ == "__main__":
    main()
