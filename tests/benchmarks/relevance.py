"""What relevance costs, as a ratio to the input gradient of the same network in the same process.

    python relevance.py [--networks LeNet VGG16 ResNet50] [--rounds 9]

Every round times the gradient, then each composite, then the gradient again, and divides by the mean of the two; the
median of the rounds is reported. Floating-point operations and memory beside the parameters are those of the compiled
programs.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
from flax import nnx
from networks import CASES, RULES, lower
from results import Times, interleaved, save, seconds, versions


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


def measured(
    model: nnx.Module, x: jax.Array, rules: Iterable[str], rounds: int
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """For each of the rules its ratios to the gradient; and the seconds of the rules and of the gradient."""
    gradient, of_gradient = compiled(model, x, None)
    calls = {rule: compiled(model, x, RULES[rule]) for rule in rules}
    timed = {"gradient": gradient} | {rule: call for rule, (call, _) in calls.items()}
    for call in timed.values():
        call()
        call()
    ratios: Times = {}
    times: Times = {}
    for _ in range(rounds):
        interleaved(lambda name: seconds(timed[name]), calls, ratios, times)
    rows = [
        {"rules": rule, "time": statistics.median(ratios[rule])} | {key: facts[key] / of_gradient[key] for key in facts}
        for rule, (_, facts) in calls.items()
    ]
    return rows, {name: statistics.median(values) for name, values in times.items()}


def rows(network: str, rounds: int) -> list[dict[str, Any]]:
    """The rows of the table for one network."""
    case = CASES[network]
    model, x = case.make(rngs=nnx.Rngs(0)), jax.random.normal(jax.random.key(0), case.shape)
    return [{"network": network} | row for row in measured(model, x, RULES, rounds)[0]]


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    columns = {
        "network": "Network|",
        "rules": "Rules|",
        "time": "Time|.2f",
        "operations": "Operations|.2f",
        "memory": "Memory|.2f",
        "compilation": "Compilation|.2f",
    }
    table = [row for name in arguments.networks for row in rows(name, arguments.rounds)]
    note = f"Ratios to the input gradient; times are medians of {arguments.rounds} rounds."
    save("relevance", table, columns, versions("lrp_jax", "jax", "flax"), note)


if __name__ == "__main__":
    main()
