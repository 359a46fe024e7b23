"""What whole tasks cost: all classes at once, pixel flipping, depthwise convolutions, deep networks.

    python tasks.py [--python PEERS/bin/python] [--rounds 9]

With the Python of the peers' environment, pixel flipping is compared with Quantus.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from networks import CASES, RULES, VGG16, lower
from results import save, seconds, versions

from lrp_book import datasets, pretrained
from lrp_jax import evaluation, lrp, relevance


def medians(rounds: int, *calls: Callable[[], Any]) -> list[float]:
    """The median seconds of each call, in turn, after two calls to warm up."""
    times = [[seconds(call) for call in calls] for _ in range(rounds + 2)][2:]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def task(name: str, measured: str, compared: str, value: float, other: float) -> dict[str, Any]:
    """A row: what was measured, what it is compared with, both in seconds, and their ratio."""
    return {
        "task": name,
        "measured": measured,
        "compared": compared,
        "seconds": value,
        "other": other,
        "ratio": value / other,
    }


def all_classes(rounds: int) -> list[dict[str, Any]]:
    """Ten classes from one forward pass, against ten explanations."""
    case = CASES["LeNet"]
    model, x = case.make(rngs=nnx.Rngs(0)), jax.random.normal(jax.random.key(0), case.shape)
    rows = []
    for name in ("epsilon", "epsilon-plus", "epsilon-alpha2-beta1"):

        def explain(*targets: Any, name: str = name) -> None:
            jax.block_until_ready([relevance(model, x, target, RULES[name]).relevance for target in targets])

        once, ten = medians(rounds, lambda: explain("all"), lambda: explain(*range(10)))
        rows.append(task(f"All 10 classes, LeNet, 128 images, {name}", "one call", "ten calls", once, ten))
    return rows


def pixel_flipping(rounds: int, python: str | None) -> list[dict[str, Any]]:
    """100 digits in 28 steps, against Quantus."""
    model = CASES["LeNet"].make(rngs=nnx.Rngs(0))
    images = jnp.asarray(datasets.as_float(datasets.mnist().test.images[:100]))
    explanation = relevance(model, images, None, RULES["epsilon"])
    curves: list[jax.Array] = []

    def flip() -> None:
        curves[:] = [evaluation.pixel_flipping(model, images, explanation.relevance, steps=28).block_until_ready()]

    first = seconds(flip)
    (ours,) = medians(rounds, flip)
    rows = [task("Pixel flipping, LeNet, 100 digits, 28 steps", "compiled", "first call", ours, first)]
    if python:
        with tempfile.TemporaryDirectory() as folder:
            arrays = Path(folder) / "arrays.npz"
            leaves = map(np.asarray, jax.tree.leaves(nnx.state(model)))
            np.savez(arrays, *leaves, np.asarray(images), np.asarray(explanation.relevance))
            script = str(Path(__file__).with_name("quantus_flipping.py"))
            output = subprocess.run([python, script, str(arrays), "28"], capture_output=True, text=True, check=True)
        theirs = json.loads(output.stdout.splitlines()[-1])
        rows.append(task("Pixel flipping, LeNet, 100 digits, 28 steps", "compiled", "Quantus", ours, theirs["seconds"]))
        difference = np.abs(np.asarray(curves[0]).mean(0)[1:] - theirs["curve"]).max() / np.ptp(theirs["curve"])
        print(f"mean curves of pixel flipping differ by {difference:.2g} of their range", flush=True)
    return rows


def depthwise(rounds: int) -> list[dict[str, Any]]:
    """A network of depthwise convolutions, against its input gradient."""
    model = pretrained.efficientnet_lite0()
    x = jax.random.uniform(jax.random.key(0), (5, 224, 224, 3), minval=-1.0)
    structure, state = nnx.split(model)
    names = ("epsilon", "epsilon-plus", "epsilon-plus-flat")
    programs = [lower(structure, state, x, rule).compile() for rule in (None, *(RULES[name] for name in names))]
    gradient, *others = medians(rounds, *(lambda p=p: p(state, x).block_until_ready() for p in programs))
    return [
        task(f"EfficientNet-Lite0, 5 images of 224 x 224, {name}", "relevance", "input gradient", value, gradient)
        for name, value in zip(names, others, strict=True)
    ]


def deep(rounds: int) -> list[dict[str, Any]]:
    """Tracing networks of 10, 100 and 1,000 layers, against tracing their gradient."""
    rows = []
    for depth in (10, 100, 1000):
        weights = [jnp.ones((4, 4)) / 4] * depth

        def network(x: jax.Array, weights: list[jax.Array] = weights) -> jax.Array:
            for weight in weights:
                x = jax.nn.relu(x @ weight)
            return x

        x = jnp.ones((1, 4))
        functions = [lrp(network, RULES["epsilon"]), network]
        ours, gradient = medians(
            min(rounds, 3),
            *(lambda f=f: jax.make_jaxpr(jax.grad(lambda x: f(x).sum()))(x) for f in functions),  # noqa: B023
        )
        rows.append(task(f"Tracing {depth:,} dense layers", "relevance", "input gradient", ours, gradient))
    return rows


def forward_pass(rounds: int) -> dict[str, float]:
    """Seconds of VGG16's forward pass, gradient and relevance in this process, with its XLA_FLAGS."""
    structure, state = nnx.split(VGG16(rngs=nnx.Rngs(0)))
    x = jax.random.normal(jax.random.key(0), CASES["VGG16"].shape)
    programs = {"forward": jax.jit(lambda state, x: nnx.merge(structure, state)(x)).lower(state, x).compile()}
    programs["input gradient"] = lower(structure, state, x, None).compile()
    programs["epsilon-plus"] = lower(structure, state, x, RULES["epsilon-plus"]).compile()
    times = medians(rounds, *(lambda p=p: p(state, x).block_until_ready() for p in programs.values()))
    return dict(zip(programs, times, strict=True))


def fusions(rounds: int) -> list[dict[str, Any]]:
    """VGG16 with and without the fusion of several convolutions into one kernel, each in a process of its own."""
    single = "LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION,LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"
    results = []
    for flags in ("", f"--xla_cpu_experimental_ynn_fusion_type={single}"):
        command = [sys.executable, __file__, "--forward-pass", "--rounds", str(rounds)]
        environment = os.environ | {"XLA_FLAGS": flags}
        output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        results.append(json.loads(output.splitlines()[-1]))
    fused, apart = results
    return [
        task(f"VGG16, 4 images, {name}", "layers fused (default)", "a kernel for each layer", fused[name], apart[name])
        for name in fused
    ]


def main() -> None:
    """Measures and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", help="Python of the peers' environment")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--forward-pass", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.forward_pass:
        print(json.dumps(forward_pass(arguments.rounds)))
        return
    rows = fusions(min(arguments.rounds, 3))
    rows += all_classes(arguments.rounds)
    rows += pixel_flipping(arguments.rounds, arguments.python)
    rows += depthwise(min(arguments.rounds, 3))
    rows += deep(arguments.rounds)
    columns = {
        "task": "Task|",
        "measured": "Measured|",
        "seconds": "Time (s)|.3g",
        "compared": "Compared with|",
        "other": "Time (s)|.3g",
        "ratio": "Ratio|.2f",
    }
    about = versions("lrp_jax", "jax", "flax")
    save("tasks", rows, columns, about, f"Medians of up to {arguments.rounds} rounds.")


if __name__ == "__main__":
    main()
