"""What relevance costs on an accelerator, and how precise it is there.

    python accelerator.py [--rounds 9] [--networks LeNet VGG16 ResNet50]

Batches are larger than on a CPU, so that there is work for all of the device. On NVIDIA GPUs, the factors of products
in float32 are by default rounded to TF32, with 10 bits after the point; a precision of "highest" prevents it. What was
measured is written after each network, since compiling takes most of the time.
"""

import argparse
import contextlib
import statistics
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from accuracy import errors, save_errors
from flax import nnx
from networks import CASES, RULES
from relevance import measured
from results import save, seconds, versions

from lrp_jax import rules
from lrp_jax.explain_dataset import explain_dataset

BATCH_SIZES = {"LeNet": 4096, "VGG16": 64, "ResNet50": 128}
NUMBERS = {"float32": jnp.float32, "float32, highest": jnp.float32, "bfloat16": jnp.bfloat16}
WHOLE_DATA_SET = "epsilon-plus-flat"
IMAGENET = 1_281_167


def precision_of(numbers: str) -> Any:
    """The context in which programs are traced."""
    return jax.default_matmul_precision("highest") if "highest" in numbers else contextlib.nullcontext()


def network_and_images(network: str, numbers: str) -> tuple[nnx.Module, jax.Array]:
    """A network with random weights, and a batch."""
    case, dtype = CASES[network], NUMBERS[numbers]
    structure, state = nnx.split(case.make(rngs=nnx.Rngs(0)))
    state = jax.tree.map(lambda leaf: leaf.astype(dtype), state)
    x = jax.random.normal(jax.random.key(0), (BATCH_SIZES[network], *case.shape[1:]), dtype)
    return nnx.merge(structure, state), x


def ratios(network: str, numbers: str, names: list[str], rounds: int) -> list[dict[str, Any]]:
    """Images per second of some composites, and their time and memory relative to the gradient's."""
    model, x = network_and_images(network, numbers)
    with precision_of(numbers):
        rows, times = measured(model, x, names, rounds)
    shared = {"network": network, "numbers": numbers, "batch": len(x)}
    of_gradient = {"rules": "gradient", "time": 1.0}
    return [shared | row | {"rate": len(x) / times[row["rules"]]} for row in (of_gradient, *rows)]


def into_a_store(number: int = 8192) -> dict[str, Any]:
    """Images per second of `explain_dataset`: ResNet50, from bytes in memory to maps on the disk."""
    images = np.random.default_rng(0).integers(0, 256, (number, 224, 224, 3), np.uint8)
    model, _ = network_and_images("ResNet50", "float32")
    batch_size = BATCH_SIZES["ResNet50"]

    def prepare(image: np.ndarray) -> np.ndarray:
        return image / np.float32(255)

    def reduce(relevance: jax.Array) -> jax.Array:
        return relevance.sum(-1)

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            explain_dataset(
                model,
                images,
                folder,
                1,
                RULES[WHOLE_DATA_SET],
                prepare=prepare,
                reduce=reduce,
                batch_size=batch_size,
                progress=False,
            )

    run()
    rate = number / statistics.median([seconds(run) for _ in range(3)])
    name = f"{WHOLE_DATA_SET}, by `explain_dataset`"
    return {"network": "ResNet50", "numbers": "float32", "rules": name, "batch": batch_size, "rate": rate}


def save_imagenet(rows: list[dict[str, Any]], about: dict[str, Any]) -> None:
    """What a run over ImageNet takes at the measured rate of one device, and on more at as many times the rate."""
    columns = {
        "rules": "Rules|",
        "numbers": "Numbers|",
        "devices": "GPUs|d",
        "rate": "Images/s|,.0f",
        "minutes": "Minutes|.1f",
    }
    runs = [
        row | {"devices": devices, "rate": devices * row["rate"], "minutes": IMAGENET / (devices * row["rate"]) / 60}
        for row in rows
        if row["network"] == "ResNet50" and row["rules"].startswith(WHOLE_DATA_SET)
        for devices in (1, 8, 64)
    ]
    note = (
        f"ResNet50, {IMAGENET:,} images of 224 x 224. Measured on one GPU; 8 and 64 are taken to have 8 and 64 times "
        "its rate, each with as many cores of its own."
    )
    save("imagenet", runs, columns, about, note)


def errors_here(rule: rules.Rule) -> dict[str, np.ndarray]:
    """Errors against float64 on the same device, at the default and at the highest precision of products."""
    found = {}
    for numbers, dtype in NUMBERS.items():
        with precision_of(numbers):
            found |= errors(rule, {numbers: dtype})
    return found


def main() -> None:
    """Measures and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--networks", nargs="+", default=list(CASES), choices=CASES)
    arguments = parser.parse_args()
    about = {"device": jax.devices()[0].device_kind} | versions("lrp_jax", "jax", "flax")
    columns = {
        "network": "Network|",
        "batch": "Batch|d",
        "numbers": "Numbers|",
        "rules": "Rules|",
        "rate": "Images/s|,.0f",
        "time": "Time|.2f",
        "memory": "Memory|.2f",
    }
    note = (
        f"Time and memory relative to the gradient of the same network with the same numbers; medians of "
        f"{arguments.rounds} rounds. float32 is multiplied as TF32, except where the precision is the highest."
    )
    rows: list[dict[str, Any]] = []
    for network in arguments.networks:
        rows += ratios(network, "float32", list(RULES), arguments.rounds)
        save("accelerator", rows, columns, about, note)
    for numbers in ("float32, highest", "bfloat16"):
        rows += ratios("ResNet50", numbers, [WHOLE_DATA_SET], arguments.rounds)
        save("accelerator", rows, columns, about, note)
    rows.append(into_a_store())
    save("accelerator", rows, columns, about, note)
    save_imagenet(rows, about)

    jax.config.update("jax_enable_x64", True)
    note = "LeNet with random weights, 128 random images, against float64 on the same device; median and worst image."
    save_errors("accelerator-accuracy", errors_here, about, note)


if __name__ == "__main__":
    main()
