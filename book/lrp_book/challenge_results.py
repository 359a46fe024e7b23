"""What each of the six challenges does to accuracy, loss and maps: numbers over the seeds, from trained networks."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from lrp_book import challenges, small_networks
from lrp_book.seeds import chance_of_difference, interval_of_mean
from lrp_book.small_networks import Digits, Judged
from lrp_jax import rules

_EXPLAINED = 200
_END = -1


class Findings(NamedTuple):
    """What was found.

    Attributes:
        numbers: By the name, one value for each seed (or pair of seeds), or a single one.
        shared: By what is compared, which part of the most relevant pixels the maps of two networks share, for each
            seed (or pair of seeds).
    """

    numbers: dict[str, ArrayLike]
    shared: dict[str, NDArray[np.float32]]


def judged(runs: Any, digits: Digits) -> Judged:
    """The loss of networks, and what they recognise, on images that are the same for all."""
    return small_networks.judge(small_networks.logits_of(runs, digits.images), digits.labels)


def explained(held_out: Digits) -> Digits:
    """The images whose maps are compared."""
    return Digits(held_out.images[:_EXPLAINED], held_out.labels[:_EXPLAINED])


def maps_after(runs: Any, held_out: Digits, epoch: ArrayLike = _END, **options: Any) -> jax.Array:
    """The maps of the images that are compared, of networks after an epoch."""
    return small_networks.maps_of(small_networks.at_epoch(runs, epoch), explained(held_out), **options)


def _at_end(runs: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[:, _END:], runs)


def _ratio_of_norms(maps: jax.Array, others: jax.Array) -> NDArray[np.float32]:
    long, short = (jnp.linalg.norm(one.reshape(len(one), -1), axis=1) for one in (maps, others))
    return np.asarray(long / short)


def overfitting(plain: Any, few: Digits, held_out: Digits, patience: int = 5) -> Findings:
    """What early stopping changes in runs without a remedy.

    Half of the held-out images decide when it stops, the other half says what it costs.

    Args:
        plain: The runs.
        few: What they learned from.
        held_out: Images that they did not learn from.
        patience: After how many epochs without a smaller loss training stops.
    """
    logits = small_networks.logits_of(plain, held_out.images)
    choosing = small_networks.judge(logits[:, :, ::2], held_out.labels[::2])
    judging = small_networks.judge(logits[:, :, 1::2], held_out.labels[1::2])
    kept, last = challenges.stop_early(choosing.loss, patience)
    seeds = np.arange(len(kept))
    costs = judging.recognised[:, _END] - judging.recognised[seeds, kept]
    by_heart = small_networks.judge(small_networks.logits_of(_at_end(plain), few.images), few.labels[:, None])
    kept_maps, end_maps = maps_after(plain, held_out, kept), maps_after(plain, held_out)
    return Findings(
        numbers={
            "by-heart": by_heart.recognised.mean(),
            "stop-kept-first": int(kept.min()),
            "stop-kept-last": int(kept.max()),
            "stop-last": int(last.max()),
            "stop-gain": judging.loss[:, _END] - judging.loss[seeds, kept],
            "stop-cost": costs,
            "stop-worse": int((costs > 0).sum()),
            "stop-p": chance_of_difference(costs),
            "overfit-length": _ratio_of_norms(end_maps, kept_maps),
        },
        shared={"least loss, and the end": challenges.shared_top(kept_maps, end_maps)},
    )


def learning_rates(rates: ArrayLike, swept: Sequence[Any], held_out: Digits) -> Findings:
    """What too small and too large a learning rate do.

    Args:
        rates: The rates: the smallest is too small, the one in the middle is right, the largest too large.
        swept: The runs with each of them.
        held_out: Images that they did not learn from.
    """
    ends = [judged(_at_end(runs), held_out) for runs in swept]
    loss, correct = (np.stack([getattr(end, kind)[:, _END] for end in ends]) for kind in ("loss", "recognised"))
    best, middle = correct.mean(axis=1).argmax(), len(swept) // 2
    start = maps_after(swept[0], held_out, 0)
    slow, right, fast = (maps_after(swept[number], held_out) for number in (0, middle, _END))
    return Findings(
        numbers={
            "rate-small-accuracy": correct[0],
            "rate-right-accuracy": correct[middle],
            "rate-large-accuracy": correct[_END],
            "rate-best-gain": correct[best] - correct[middle],
            "rate-best-loss": np.asarray(rates)[loss.mean(axis=1).argmin()],
            "rate-best-accuracy": np.asarray(rates)[best],
        },
        shared={
            "10⁻⁵, before and after": challenges.shared_top(start, slow),
            "10⁻³, before and after": challenges.shared_top(start, right),
            "10⁻³ and 10⁻⁵": challenges.shared_top(right, slow),
            "10⁻³ and 10⁻¹": challenges.shared_top(right, fast),
        },
    )


def dead_relus(
    dead: Mapping[str, Sequence[NDArray[np.float64]]], runs: Mapping[str, Any], few: Digits, held_out: Digits
) -> Findings:
    """How many neurons are dead, what is recognised all the same, and what relevance the dead ones get.

    Args:
        dead: By the name of the runs, the percentage of dead neurons in each layer, of shape (seeds, epochs + 1).
        runs: The runs, among them "rate 1e-3" and "rate 1e-2".
        few: What they learned from.
        held_out: Images that they did not learn from.
    """
    numbers: dict[str, ArrayLike] = {}
    for name, layers in dead.items():
        numbers[f"dead-{name}-accuracy"] = judged(_at_end(runs[name]), held_out).recognised[:, _END]
        for number, layer in enumerate(layers, 1):
            numbers |= {f"dead-{name}-{number}-first": layer[:, 0], f"dead-{name}-{number}-last": layer[:, _END]}
    fast = runs["rate 1e-2"]
    silent = challenges.never_active(_at_end(fast), few)[0][:, _END]
    above = {"LRP-0": rules.Zero(), "z+": rules.ZPlus(), "flat": rules.Flat(), "w2": rules.WSquare()}
    for name, rule in above.items():
        parameters = small_networks.at_epoch(fast, _END)
        found = challenges.relevance_of_silent(parameters, silent, explained(held_out), rule)
        numbers[f"to-dead-{name}"] = 100 * found
    right = maps_after(runs["rate 1e-3"], held_out)
    shared = challenges.shared_top(right, maps_after(fast, held_out))
    return Findings(numbers, {"10⁻³ and 10⁻² (a fifth dead)": shared})


def imbalance(trained_on: Mapping[str, Any], rare: Digits, shares: ArrayLike, held_out: Digits) -> Findings:
    """How many eights are found, and what the remedies do to their maps.

    Args:
        trained_on: The runs: "400 eights", "20 eights", "class weights" and "oversampling".
        rare: What the last but one learned from.
        shares: The share of each class in it.
        held_out: Images that they did not learn from.

    Returns:
        Among the numbers the percentage of eights found ("found ..."), of shape (seeds, epochs + 1); of others read as
        eights ("alarms ...") and of all that are right ("right ...") in the end.
    """
    is_eight = held_out.labels == 8
    logits = {name: small_networks.logits_of(runs, held_out.images) for name, runs in trained_on.items()}
    logits["shifted logits"] = logits["20 eights"] - jnp.log(jnp.asarray(shares))
    numbers: dict[str, ArrayLike] = {}
    for name, values in logits.items():
        answers = np.asarray(values.argmax(axis=-1))
        found = 100 * (answers[..., is_eight] == 8).mean(axis=-1)
        numbers[f"found {name}"] = found
        numbers[f"end {name}"] = found[:, _END]
        numbers[f"alarms {name}"] = 100 * (answers[:, _END, ~is_eight] == 8).mean(axis=-1)
        numbers[f"right {name}"] = 100 * (answers[:, _END] == held_out.labels).mean(axis=-1)
        numbers[f"gain {name}"] = found[:, _END] - np.asarray(numbers.get("found 20 eights", found))[:, _END]
    their_eights = np.stack([row[kind == 8] for row, kind in zip(rare.images, rare.labels, strict=True)])
    known = small_networks.logits_of(_at_end(trained_on["class weights"]), their_eights).argmax(axis=-1) == 8
    numbers["eights by heart"] = 100 * float(known.mean())
    eights = Digits(held_out.images[is_eight], held_out.labels[is_eight])
    maps = {
        name: small_networks.maps_of(small_networks.at_epoch(run, _END), eights) for name, run in trained_on.items()
    }
    pairs = {
        "400 and 20 eights": ("400 eights", "20 eights"),
        "20, with and without weights": ("class weights", "20 eights"),
        "20, with and without copies": ("oversampling", "20 eights"),
    }
    return Findings(numbers, {name: challenges.shared_top(maps[a], maps[b]) for name, (a, b) in pairs.items()})


def data_pipeline(piped: Mapping[str, Any], held_out: Digits) -> Findings:
    """What the order and the scale of the images do.

    Args:
        piped: The runs: "shuffled anew", "shuffled once", "sorted by class" and "pixels to 255".
        held_out: Images that they did not learn from, with pixels to 1.

    Returns:
        Among the numbers what is recognised ("... recognised"), of shape (seeds, epochs + 1).
    """
    bright = Digits(255 * held_out.images, held_out.labels)
    numbers: dict[str, ArrayLike] = {}
    for name, runs in piped.items():
        found = judged(runs, bright if name == "pixels to 255" else held_out)
        numbers |= {f"{name} recognised": found.recognised, f"{name} loss": found.loss[:, _END]}
        numbers |= {f"{name} first": found.recognised[:, 1], f"{name} last": found.recognised[:, _END]}
    usual, mixed = piped["shuffled anew"], judged(_at_end(piped["shuffled anew"]), bright)
    numbers["fixed gain"] = np.subtract(numbers["shuffled once last"], numbers["shuffled anew last"])
    numbers["mixed gain"] = mixed.recognised[:, _END] - np.asarray(numbers["shuffled anew last"])
    numbers["mixed loss"] = mixed.loss[:, _END]
    maps, mixed_maps = maps_after(usual, held_out), maps_after(usual, held_out, scale=255.0)
    numbers["mixed length"] = _ratio_of_norms(mixed_maps, maps)
    trained_bright = maps_after(piped["pixels to 255"], held_out, scale=255.0)
    sorted_maps = maps_after(piped["sorted by class"], held_out)
    shared = {
        "same network, pixels to 1 and 255": challenges.shared_top(maps, mixed_maps),
        "trained on pixels to 1 and 255": challenges.shared_top(maps, trained_bright),
        "trained on shuffled and sorted": challenges.shared_top(maps, sorted_maps),
    }
    return Findings(numbers, shared)


def seeds_alone(varied: Mapping[str, Any], held_out: Digits) -> Findings:
    """What networks differ in if the seed decides everything, or one thing only.

    Networks are compared in pairs that have no network in common: the first with the second, and so on.

    Args:
        varied: By what the seed decides, the runs: "all", "images", "weights" and "order".
        held_out: Images that they did not learn from.
    """
    numbers: dict[str, ArrayLike] = {}
    shared = {}
    for name, runs in varied.items():
        logits = small_networks.logits_of(_at_end(runs), held_out.images)
        answers = np.asarray(logits.argmax(axis=-1))[:, 0]
        numbers[f"spread {name}"] = small_networks.judge(logits, held_out.labels).recognised[:, 0]
        numbers[f"apart {name}"] = 100 * (answers[0::2] != answers[1::2]).mean(axis=1)
        maps = maps_after(runs, held_out)
        shared[name] = challenges.shared_top(maps[0::2], maps[1::2])
        numbers[f"maps {name}"] = 100 * shared[name]
        numbers[f"maps {name}-low"], numbers[f"maps {name}-high"] = interval_of_mean(100 * shared[name])
    for name, rule in {"epsilon": rules.Epsilon(0.25), "gamma": rules.Gamma(0.25), "zplus": rules.ZPlus()}.items():
        maps = maps_after(varied["all"], held_out, rule=rule)
        numbers[f"maps {name}"] = 100 * challenges.shared_top(maps[0::2], maps[1::2])
    of_all = np.asarray(numbers["spread all"])
    numbers |= {"spread-low": of_all.min(), "spread-high": of_all.max(), "one-run": np.sqrt(2) * of_all.std(ddof=1)}
    labels = {
        "order": "another order",
        "weights": "other initial weights",
        "images": "other images",
        "all": "another seed",
    }
    return Findings(numbers, {label: shared[name] for name, label in labels.items()})
