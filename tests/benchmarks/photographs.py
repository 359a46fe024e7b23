"""Measures what takes too long for the page on photographs.

It measures the maps of three treatments of biases and their ledgers, the maps without folded normalisations, SmoothGrad
with fifty samples, and integrated gradients with as many steps as its sum takes to be right. It also measures how far
the sums move when every input grows by a millionth.

It writes after each part, and does not repeat what it finds, so that an interrupted run resumes; `--again` begins anew.
"""

import argparse
import functools
import itertools
import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import NDArray
from results import FOLDER, origin

from lrp_book import photographs, pretrained
from lrp_jax import baselines, ledger, relevance
from lrp_jax.rules import Bias

TREATMENTS: tuple[Bias, ...] = ("absorb", "ignore", "distribute")
SAMPLES = 50
STEPS = (6, 18, 54, 162, 486, 1458)  # each contains the points of the one before
NUDGE = 1e-6  # by which share every input grows, to see what rounding decides
COMPLETE = 0.02  # how far the sum of integrated gradients may be from what it has to be, as a share of it

Maps = dict[str, NDArray[np.float32]]
FILE = FOLDER / "photographs.json"


def main() -> None:
    """Measures one part after the other, and writes after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--again", action="store_true")
    known = FILE.exists() and not parser.parse_args().again
    record: dict[str, Any] = json.loads(FILE.read_text()) if known else {"sums": {}, "ledgers": {}, "integrated": []}
    maps: Maps = photographs.measured_maps() if (FOLDER / "photographs.npz").exists() and known else {}
    network, x = pretrained.efficientnet_lite0(), jnp.asarray(photographs.images())
    names = pretrained.imagenet_classes()
    record["classes"] = [names[number] for number in np.asarray(network(x)).argmax(-1)]
    parts = (of_treatments(network, x, maps, record), nudged(network, x, record), smooth(network, x[:1], maps))
    for done in itertools.chain(*parts, integrated(network, x[:1], maps, record), ledgers(network, x, record)):
        FILE.write_text(json.dumps(record | origin("lrp_jax", "jax", "flax"), indent=1) + "\n")
        np.savez_compressed(FOLDER / "photographs.npz", **photographs.packed(maps))
        print(done, flush=True)


def of_treatments(network: Any, x: jax.Array, maps: Maps, record: dict[str, Any]) -> Iterator[str]:
    """The maps of all photographs under each treatment, and with normalisations of their own, and their sums."""
    kinds = {treatment: (network, treatment) for treatment in TREATMENTS} | {
        "unfolded": (with_parts(network, Unfolded), "absorb")
    }
    for kind, (model, treatment) in kinds.items():
        if kind not in maps:
            np.testing.assert_allclose(model(x), network(x), atol=1e-4)
            explanation = relevance(model, x, rules=photographs.composite(treatment))
            maps[kind] = np.asarray(explanation.relevance.sum(-1))
            record["sums"][kind] = maps[kind].sum((1, 2)).tolist()
            yield f"maps, {kind}"


def nudged(network: Any, x: jax.Array, record: dict[str, Any]) -> Iterator[str]:
    """The sums of the maps under each treatment when every input has grown a little."""
    sums = record.setdefault("nudged", {})
    for treatment in TREATMENTS:
        if treatment not in sums:
            explanation = relevance(network, (1 + NUDGE) * x, rules=photographs.composite(treatment))
            sums[treatment] = np.asarray(explanation.relevance.sum((1, 2, 3))).tolist()
            yield f"sums of nudged photographs, {treatment}"


class Unfolded(pretrained.NormalizedConvolution):
    """One whose normalisation is no part of the convolution for `lrp`: an operation that does nothing is between."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns what the class above it returns."""
        z = self.convolution(x)
        return self.normalization(jnp.maximum(z, jnp.finfo(z.dtype).min))


class Shifted(pretrained.NormalizedConvolution):
    """One that filters each channel by adding up shifted images, which takes a quarter of the time on a CPU."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns what the class above it returns."""
        convolution = self.convolution
        if convolution.feature_group_count == 1:
            return super().__call__(x)
        w = convolution.kernel[...]
        size, step = len(w), int(np.max(convolution.strides))
        padding = jax.lax.padtype_to_pads(x.shape[1:3], (size, size), (step, step), "SAME")
        last = [step * (-(-side // step) - 1) + 1 for side in x.shape[1:3]]
        x = jnp.pad(x, [(0, 0), *padding, (0, 0)])
        shifts = itertools.product(range(size), repeat=2)
        parts = (x[:, i : i + last[0] : step, j : j + last[1] : step] * w[i, j, 0] for i, j in shifts)
        return self.normalization(functools.reduce(jnp.add, parts))


def with_parts(network: Any, kind: type[pretrained.NormalizedConvolution]) -> Any:
    """A copy of a network with other normalised convolutions, which compute the same."""
    copy = nnx.clone(network)
    for _, part in nnx.iter_graph(copy):
        if isinstance(part, pretrained.NormalizedConvolution):
            part.__class__ = kind
    return copy


def ledgers(network: Any, x: jax.Array, record: dict[str, Any]) -> Iterator[str]:
    """The ledger of each photograph under each treatment."""
    for (i, name), treatment in itertools.product(enumerate(photographs.NAMES), TREATMENTS):
        of_photograph = record["ledgers"].setdefault(name, {})
        if treatment not in of_photograph:
            account = ledger(network, x[i : i + 1], rules=photographs.composite(treatment))
            of_photograph[treatment] = photographs.as_record(account)
            yield f"ledger, {name}, {treatment}"


def smooth(network: Any, x: jax.Array, maps: Maps) -> Iterator[str]:
    """SmoothGrad of one photograph."""
    if "smooth" not in maps:
        noisy = baselines.smoothgrad(network, x, key=jax.random.key(3), samples=SAMPLES, noise=0.1)
        maps["smooth"] = np.asarray(noisy.sum(-1))
        yield "SmoothGrad"


def integrated(network: Any, x: jax.Array, maps: Maps, record: dict[str, Any]) -> Iterator[str]:
    """Integrated gradients of one photograph from mid-grey, in more and more steps until its sum is right and settled.

    It may be right by chance, so three times as many steps have to change it by little.
    """
    explained = baselines.explained_output(with_parts(network, Shifted), x, None)
    shares_at = jax.jit(lambda point: (x * jax.grad(lambda x: explained(x).sum())(point * x)).sum(-1))
    wanted = float(explained(x)[0] - explained(jnp.zeros_like(x))[0])
    if is_complete(record["integrated"]):
        return
    record["integrated"].clear()
    shares, slopes = np.zeros(x.shape[:-1], np.float32), []
    for steps in STEPS:
        for point in new_points(steps, is_first=steps == STEPS[0]):
            found = np.asarray(shares_at(point))
            shares += found
            slopes.append(float(found.sum()))
        maps["integrated"] = shares / steps
        row = {"steps": steps, "sum": float(np.mean(slopes)), "wanted": wanted}
        record["integrated"].append(row | {"lowest": min(slopes), "highest": max(slopes)})
        yield f"integrated gradients, {steps} steps: {row['sum']:.3f} of {wanted:.3f}"
        if is_complete(record["integrated"]):
            return


def is_complete(rows: list[dict[str, float]]) -> bool:
    """Whether the last sum is right, and the one before it not far from it."""
    errors = [abs(row["sum"] / row["wanted"] - 1) for row in rows]
    return len(rows) > 1 and errors[-1] < COMPLETE and errors[-2] < 2 * COMPLETE


def new_points(steps: int, *, is_first: bool) -> NDArray[np.float32]:
    """The middles of equal steps from 0 to 1, without those of steps that are three times larger."""
    points = (np.arange(steps, dtype=np.float32) + 0.5) / steps
    return points if is_first else points[np.arange(steps) % 3 != 1]


if __name__ == "__main__":
    main()
