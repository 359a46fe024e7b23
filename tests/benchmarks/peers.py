"""Relevance of the same networks by lrp_jax and by libraries for torch, side by side: time, memory and agreement.

    python peers.py --python PEERS/bin/python [--networks LeNet VGG16 ResNet50] [--rounds 9] [--peer-rounds 3]

PEERS is an environment with requirements-peers.txt; `make bench-peers` makes it. Both sides have the same weights and
images, and as many threads as there are cores. They run in two processes that take turns. Each time is compared with
the side's own input gradient just before and after; the medians are reported.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from networks import CASES, RULES, lower
from results import Times, interleaved, save, seconds, versions


class Peers:
    """The process in the peers' environment."""

    def __init__(self, python: str, network: str, arrays: Path) -> None:
        cores = str(len(os.sched_getaffinity(0)))
        environment = os.environ | {"OMP_NUM_THREADS": cores, "OMP_WAIT_POLICY": "PASSIVE"}
        script = str(Path(__file__).with_name("peers_torch.py"))
        self.process = subprocess.Popen(
            [python, script, network, str(arrays)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.about = self._answer()

    def ask(self, command: str) -> dict[str, Any]:
        """The answer to a command of peers_torch.py."""
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError("The peers' process ended; its message stands above.")


def measure(network: str, python: str, rounds: int, peer_rounds: int) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The rows of the table for one network, and the versions of the peers."""
    case = CASES[network]
    structure, state = nnx.split(case.make(rngs=nnx.Rngs(0)))
    x = jax.random.normal(jax.random.key(0), case.shape)
    programs = {rule: lower(structure, state, x, RULES[rule]).compile() for rule in RULES}
    programs["gradient"] = lower(structure, state, x, None).compile()
    with tempfile.TemporaryDirectory() as folder:
        arrays = Path(folder) / "arrays.npz"
        np.savez(arrays, *map(np.asarray, jax.tree.leaves(state)), np.asarray(x))
        peers = Peers(python, network, arrays)

        def own(method: str) -> float:
            return seconds(lambda: programs[method](state, x).block_until_ready())

        def theirs(method: str) -> float:
            return peers.ask(f"time {method}")["seconds"]

        agreement: dict[str, float] = {}
        for method in ("gradient", *(f"zennit {rule}" for rule in RULES)):
            target = Path(folder) / "map.npy"
            peers.ask(f"map {method} {target}")
            expected, found = np.load(target), np.asarray(programs[method.removeprefix("zennit ")](state, x))
            agreement[method] = float(np.abs(found - expected).max() / np.abs(expected).max())
        print(network, agreement, flush=True)

        methods = []
        for method in peers.about["methods"][1:]:
            answers = [peers.ask(f"time {method}") for _ in range(2)]
            if "error" in answers[-1]:
                print(network, method, answers[-1]["error"], flush=True)
            else:
                methods.append(method)
        for method in programs:
            own(method)
        ratios: Times = {}
        times: Times = {}
        peer_times: Times = {}
        for number in range(rounds):
            interleaved(own, list(RULES), ratios, times)
            if number % -(-rounds // peer_rounds) == 0:
                interleaved(theirs, methods, ratios, peer_times)
        memory = {
            method: program.memory_analysis().temp_size_in_bytes + x.nbytes  # the map has the size of the images
            for method, program in programs.items()
        }
        peer_memory = {method: peers.ask(f"memory {method}")["bytes"] for method in ("gradient", *methods)}
        peers.process.communicate()

    def row(label: str, method: str, times: Times, memory: dict[str, int]) -> dict[str, Any]:
        library, _, rules = label.partition(" ")
        result = {
            "network": network,
            "library": library,
            "rules": rules,
            "seconds": statistics.median(times[method]),
            "ratio": statistics.median(ratios[method]) if method != "gradient" else 1.0,
            "rounds": len(times[method]),
        }
        if memory["gradient"] > 2**26:  # smaller ones hide in what the process holds already
            result |= {"memory": memory[method] / 2**20, "memory_ratio": memory[method] / memory["gradient"]}
        if library == "zennit":
            ours = statistics.median(times_of_ours[rules])
            result |= {"faster": result["seconds"] / ours, "agreement": agreement[label]}
        return result

    times_of_ours = times
    rows = [row("jax gradient", "gradient", times, memory)]
    rows += [row(f"lrp_jax {rule}", rule, times, memory) for rule in RULES]
    rows += [row("torch gradient", "gradient", peer_times, peer_memory)]
    rows += [row(method, method, peer_times, peer_memory) for method in methods]
    return rows, peers.about["versions"]


def main() -> None:
    """Measures and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="Python of the peers' environment")
    parser.add_argument("--networks", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--peer-rounds", type=int, default=3)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for network in arguments.networks:
        measured, of_peers = measure(network, arguments.python, arguments.rounds, arguments.peer_rounds)
        rows += measured
    columns = {
        "network": "Network|",
        "library": "Library|",
        "rules": "Rules|",
        "seconds": "Time (s)|.3g",
        "ratio": "to gradient|.2f",
        "memory": "Memory (MiB)|.0f",
        "memory_ratio": "to gradient|.2f",
    }
    note = (
        f"Medians of {arguments.rounds} rounds, of the peers of {arguments.peer_rounds}. Memory beyond parameters "
        "and images is what the compiled program allocates, and for torch the peak of the process."
    )
    save("peers", rows, columns, versions("lrp_jax", "jax", "flax") | of_peers, note)


if __name__ == "__main__":
    main()
