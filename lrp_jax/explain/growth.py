"""How much relevance there is at the input for each unit that it started from: too much, or next to nothing."""

import contextlib
import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax.composites import Composite
from lrp_jax.core.forms import Form
from lrp_jax.core.planner import make_plan
from lrp_jax.core.trace import TracedCall
from lrp_jax.errors import LRPWarning
from lrp_jax.explain.accounts import Account, keep_account, path_of
from lrp_jax.explain.targets import seed_of, values_of_samples
from lrp_jax.rules import Flat, WSquare

MOST_GROWTH = 1000.0
"""From how much growth on an explanation is suspicious."""

LEAST_ARRIVAL = 0.05
"""Below which part of the explained output an explanation is suspicious."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Flow:
    """From how much relevance an explanation started, and how much arrived at the input, for every sample.

    Attributes:
        explained: The explained output, in which relevance starts; one number for all samples if it has no dimension
            for them.
        arrived: The absolute relevance of the input.
        growth: That for each unit of the explained output, or of absolute relevance at the last layer if that is more;
            that of all samples together if relevance went from one to another.
    """

    explained: jax.Array
    arrived: jax.Array
    growth: jax.Array


def flow_of(samples: int, started: Sequence[jax.Array], at_last_layer: Sequence[jax.Array], relevance: Any) -> Flow:
    """How much relevance there is at the input, and from how much it started.

    Args:
        samples: The number of samples.
        started: The parts of the explained output, which are explained as their sum.
        at_last_layer: The relevance of the last layer's output, if there is one.
        relevance: The relevance of the input.
    """

    def is_by_sample(array: jax.Array) -> bool:
        return array.ndim > 0 and array.shape[0] == samples

    def total(array: jax.Array) -> jax.Array:
        return array.sum(tuple(range(1, array.ndim))) if is_by_sample(array) else array.sum()

    start = functools.reduce(jnp.maximum, [total(jnp.abs(array)) for array in (*started, *at_last_layer)])
    end = functools.reduce(jnp.add, [total(jnp.abs(leaf)) for leaf in jax.tree.leaves(relevance)])
    parts = [total(array) if all(map(is_by_sample, started)) else array.sum()[None] for array in started]
    explained = functools.reduce(jnp.add, parts)
    # What has relevance without an explained output has it from other samples, as the nodes of a graph do.
    are_mixed = jnp.any((start == 0) & (end > 0)) & (start.size > 1)
    arrived, started_from = (jnp.where(are_mixed, array.sum(), array) for array in (end, start))
    growth = jnp.where(arrived == 0, 0, arrived / jnp.where(started_from == 0, jnp.finfo(end.dtype).tiny, started_from))
    return Flow(explained, end, growth)


def summarised(flow: Flow) -> Flow:
    """Sums of the absolute values of the samples, and the largest growth."""
    return Flow(abs(flow.explained).sum(), flow.arrived.sum(), flow.growth.max(initial=0))


def is_meant_to_conserve(composite: Composite) -> bool:
    """Whether a composite is meant to pass the explained output on to the input.

    That is not so where every rule shares relevance whatever the input is, or is the gradient.
    """
    others = [rule for _, rule in composite.rules if not (isinstance(rule, Flat | WSquare) or rule.is_derivative)]
    return composite.input_form is Form.RELEVANCE and (bool(others) or not composite.rules)


def account_line(explained: Any, relevance: Any) -> str:
    """Says in one line how much of the explained output arrived at the input.

    Args:
        explained: The explained output of every sample, for all classes with one dimension for them in front; None if
            what is propagated is no relevance.
        relevance: The relevance of the input.

    Returns:
        A sentence; empty if there is nothing to say, or the values are traced.

    Example:
        >>> account_line(jnp.array([5.0]), jnp.array([[2.0, 3.0]]))
        'Of 5 that are explained, 5 arrived at the input.'
    """
    leaves = jax.tree.leaves((explained, relevance))
    if explained is None or any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return ""
    start = float(explained.sum())
    end = float(sum(leaf.sum() for leaf in jax.tree.leaves(relevance)))
    line = f"Of {start:.4g} that are explained, {end:.4g} arrived at the input"
    missing = start - end
    is_there = abs(missing) > 1e-3 * max(abs(start), abs(end))
    rest = f"; lrp_jax.ledger says how much of the other {missing:.4g} biases, constants and epsilon kept"
    return f"{line}{rest if is_there else ''}."


def report_flow(
    call_of: Callable[[Any], TracedCall],
    x: Any,
    kind: str,
    values: Any,
    composite: Composite,
    flow: Flow | None,
    totals: Sequence[Flow],
    *,
    is_whole: bool,
) -> None:
    """Warns of relevance that explodes, or of which next to nothing arrives; silent where values are not known.

    Args:
        call_of: Traces the call for some of the samples.
        x: The input.
        kind: The kind of the target.
        values: Its array.
        composite: The rules.
        flow: What was found.
        totals: The same of each batch as `summarised` returns it.
        is_whole: Whether relevance was let through everywhere.
    """
    if flow is None or any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(flow)):
        return
    if not all(float(total.growth) <= MOST_GROWTH for total in totals):
        _report_growth(call_of, x, kind, values, composite, flow)
    if is_whole:
        report_loss(composite, totals)


def report_loss(composite: Composite, totals: Sequence[Flow]) -> None:
    """Warns if next to nothing of what was explained in some batches arrived at the input.

    What keeps the rest is said as far as the rules tell, as an account takes a pass of its own.
    """
    explained, arrived = (sum(float(getattr(total, name)) for total in totals) for name in ("explained", "arrived"))
    if not is_meant_to_conserve(composite) or not arrived < LEAST_ARRIVAL * explained:
        return
    rules = [rule for _, rule in composite.rules]
    has_bias = any(rule.bias == "absorb" for rule in rules)
    has_epsilon = any(getattr(rule, name, None) is not None for rule in rules for name in ("epsilon", "stabilizer"))
    kept = ["biases"] * has_bias + ["the epsilon of the rules"] * has_epsilon
    keep = f"{' and '.join(kept)}, or other constants" if kept else "constants, or operations that do not conserve it"
    remedies = ["rules with bias='ignore' or bias='distribute', which pass on what biases keep"] * has_bias
    remedies += ["a smaller epsilon"] * has_epsilon + ["another preset of lrp_jax.composites"]
    warnings.warn(
        f"Relevance vanishes: {arrived:.3g} of {explained:.3g} that are explained arrive at the input, "
        f"{arrived / explained:.2%} (sums of absolute values over all samples), and a map shows this remainder alone. "
        f"The rest stays with {keep}: lrp_jax.ledger says in which layer, and how much. To lose less, try "
        f"{'; or '.join(remedies)}.",
        LRPWarning,
        stacklevel=4,
    )


def _report_growth(
    call_of: Callable[[Any], TracedCall],
    x: Any,
    kind: str,
    values: Any,
    composite: Composite,
    flow: Flow,
) -> None:
    """Warns of relevance that explodes, and says where."""
    growth = jnp.where(jnp.isfinite(flow.growth), flow.growth, 0)  # what is infinite has a warning of its own
    if growth.max(initial=0) <= MOST_GROWTH:
        return
    place = jnp.unravel_index(growth.argmax(), growth.shape)
    sample = int(place[-1])
    if kind == "all":
        kind, values = "index", jnp.full(growth.shape[-1], place[0])
    explained = jnp.broadcast_to(flow.explained, growth.shape)[place]
    account = _account_of(sample, float(explained), call_of, x, kind, values, composite)
    kept = max(abs(sum(entry.bias for entry in account.entries)), abs(sum(e.constants for e in account.entries)))
    arrived = account.entries[-1].moved_on if account.entries else 0.0
    if arrived <= MOST_GROWTH * max(abs(account.explained), kept):
        return
    worst = max(account.entries, key=lambda entry: entry.growth)
    warnings.warn(
        f"Relevance explodes: sample {sample} has {float(growth.max()):.3g} times as much absolute relevance at the "
        f"input as it started from. Most of it arises in {path_of(worst.piece)} ({worst.piece.kind}), where it grows "
        f"{worst.growth:.3g}-fold, as contributions cancel there. lrp_jax.ledger shows all of it; a larger epsilon, or "
        "a rule such as gamma or z+, keeps it small.",
        LRPWarning,
        stacklevel=4,
    )


def _account_of(
    sample: int,
    explained: float,
    call_of: Callable[[Any], TracedCall],
    x: Any,
    kind: str,
    values: Any,
    composite: Composite,
) -> Account:
    """Where the relevance goes that starts in one sample. It is explained alone, if it is the same alone."""

    def account_of(x: Any, seed: Callable[[Any], Any]) -> Account:
        traced = call_of(x).read()
        return keep_account(traced, make_plan(traced.graph, composite), seed)

    def seed_in_batch(explained: Any) -> Any:
        return jax.tree.map(lambda seed: _only(sample, seed), seed_of(kind, values, explained))

    chosen = None if values is None else values_of_samples(values, slice(sample, sample + 1))
    with contextlib.suppress(Exception):  # whatever a model says that is made for this number of samples
        alone = jax.tree.map(lambda leaf: leaf[sample : sample + 1], x)
        account = account_of(alone, functools.partial(seed_of, kind, chosen))
        if np.isclose(account.explained, explained, rtol=1e-3, atol=0):
            return account
    return account_of(x, seed_in_batch)


def _only(sample: int, seed: jax.Array) -> jax.Array:
    """The part of a seed that is that of one sample."""
    return jnp.zeros_like(seed).at[sample].set(seed[sample]) if seed.ndim else seed
