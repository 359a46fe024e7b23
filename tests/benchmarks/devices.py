"""What sharding costs: images per second of `relevance` and of `explain_dataset` on 1 to 8 devices.

    python tests/benchmarks/devices.py [--devices 1 2 4 8] [--networks LeNet ResNet50] [--side 64] [--batch-size 64]

Without accelerators the devices are parts of the CPU, which share its cores: where there are fewer cores than devices,
the table shows the overhead alone, and the best ratio to one device is 1. What a device does with the parameters before
it sees an image is part of the overhead, as each device does it. The batch is the same on any number of devices (strong
scaling). Compilation is not timed; all numbers of devices are measured in turn, and the median is printed.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")  # before jax starts

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from networks import CASES
from results import save, seconds, versions

from lrp_jax import composites, relevance
from lrp_jax.explain_dataset import explain_dataset

RULES = composites.EpsilonPlus()


def runs(
    network: str, devices: int, side: int, batch_size: int, batches: int
) -> tuple[int, dict[str, Callable[[], Any]]]:
    """The number of images, and two ways to explain all of them on a number of devices."""
    case = CASES[network]
    _, height, _, channels = case.shape
    size = height if network == "LeNet" else side
    options = {"side": side} if network == "VGG16" else {}
    model = case.make(**options, rngs=nnx.Rngs(0))
    images = np.random.default_rng(0).uniform(size=(batches * batch_size, size, size, channels)).astype(np.float32)
    mesh = Mesh(np.array(jax.devices()[:devices]), "samples")
    nnx.update(model, jax.device_put(nnx.state(model), NamedSharding(mesh, PartitionSpec())))
    shared = [
        jax.device_put(batch, NamedSharding(mesh, PartitionSpec("samples"))) for batch in np.split(images, batches)
    ]

    def explain_batches() -> None:
        jax.block_until_ready([relevance(model, batch, 1, RULES).relevance for batch in shared])

    def explain_into_a_store() -> None:
        with tempfile.TemporaryDirectory() as folder:
            explain_dataset(model, images, folder, 1, RULES, batch_size=batch_size, mesh=mesh, progress=False)

    return len(images), {"relevance": explain_batches, "explain_dataset": explain_into_a_store}


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--networks", nargs="+", choices=CASES, default=["LeNet", "ResNet50"])
    parser.add_argument("--side", type=int, default=64, help="of the images of VGG16 and ResNet50, in pixels")
    parser.add_argument("--batch-size", type=int, default=64, help="on all devices together")
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()

    measured = []
    for network in arguments.networks:
        prepared = {
            n: runs(network, n, arguments.side, arguments.batch_size, arguments.batches) for n in arguments.devices
        }
        times: dict[tuple[int, str], list[float]] = {}
        for number_of_round in range(arguments.rounds + 1):
            for devices, (_, ways) in prepared.items():
                for name, run in ways.items():
                    took = seconds(run)
                    if number_of_round > 0:  # the first compiles
                        times.setdefault((devices, name), []).append(took)
        rates = {key: prepared[key[0]][0] / statistics.median(values) for key, values in times.items()}
        for devices in arguments.devices:
            row: dict[str, Any] = {"network": network, "devices": devices}
            for name in ("relevance", "explain_dataset"):
                rate = rates[devices, name]
                row |= {name: rate, f"{name} to one": rate / rates[arguments.devices[0], name]}
            measured.append(row)
    columns = {
        "network": "Network|",
        "devices": "Devices|d",
        "relevance": "relevance (images/s)|.4g",
        "relevance to one": "to the first|.2f",
        "explain_dataset": "explain_dataset (images/s)|.4g",
        "explain_dataset to one": "to the first|.2f",
    }
    note = (
        f"EpsilonPlus, batches of {arguments.batch_size}; LeNet at 28 x 28, others at {arguments.side} x "
        f"{arguments.side} pixels; medians of {arguments.rounds} rounds. Devices: {jax.devices()[0].device_kind}."
    )
    save("devices", measured, columns, versions("lrp_jax", "jax", "flax"), note)


if __name__ == "__main__":
    main()
