"""What relevance costs, as a ratio to the input gradient of the same network in the same process.

    python tests/benchmarks/relevance.py [--networks LeNet VGG16 ResNet50] [--rounds 9] [--output results.md]

Every round times the gradient, then each composite, then the gradient again, and divides by the mean of the two; the
median of the rounds is printed. Floating-point operations and memory beside the parameters are those of the compiled
programs.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from networks import CASES, RULES, lower


def compiled(model: nnx.Module, x: jax.Array, rule: Any) -> tuple[Callable[[], Any], dict[str, float]]:
    """A call of the compiled explanation, and what the compiler says of it."""
    structure, state = nnx.split(model)
    lowered = lower(structure, state, x, rule)
    start = time.perf_counter()
    program = lowered.compile()
    facts = {
        "compilation": time.perf_counter() - start,
        "operations": program.cost_analysis()["flops"],
        "memory": program.memory_analysis().temp_size_in_bytes,
    }
    return lambda: program(state, x).block_until_ready(), facts


def seconds(call: Callable[[], Any]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def rows(name: str, rounds: int) -> list[str]:
    """The rows of the table for one network."""
    case = CASES[name]
    model, x = case.make(rngs=nnx.Rngs(0)), jax.random.normal(jax.random.key(0), case.shape)
    gradient, of_gradient = compiled(model, x, None)
    calls = {rule: compiled(model, x, RULES[rule]) for rule in RULES}
    for call in (gradient, *(call for call, _ in calls.values())):
        call()
        call()
    ratios: dict[str, list[float]] = {rule: [] for rule in RULES}
    gradients = []
    for _ in range(rounds):
        before = seconds(gradient)
        for rule, (call, _) in calls.items():
            took, after = seconds(call), seconds(gradient)
            ratios[rule].append(2 * took / (before + after))
            gradients.append(before := after)
    print(f"{name}: gradient {statistics.median(gradients):.3f} s", flush=True)
    return [
        f"| {name} | {rule} | {statistics.median(ratios[rule]):.2f} | "
        + " | ".join(f"{facts[key] / of_gradient[key]:.2f}" for key in ("operations", "memory", "compilation"))
        + " |"
        for rule, (_, facts) in calls.items()
    ]


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    table = ["| network | rules | time | operations | memory | compilation |", "| --- | --- | --- | --- | --- | --- |"]
    for name in arguments.networks:
        table += rows(name, arguments.rounds)
    versions = ", ".join(f"{package} {version(package)}" for package in ("lrp_jax", "jax", "flax"))
    where = f"{platform.machine()}, {os.cpu_count()} cores, {jax.default_backend()}, {jnp.zeros(()).dtype}, {versions}"
    text = "\n".join([*table, "", f"Ratios to the input gradient; median of {arguments.rounds} rounds. {where}."])
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
