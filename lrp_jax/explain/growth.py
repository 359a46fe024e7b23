"""How much absolute relevance grows on its way from the output to the input."""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lrp_jax.composites import Composite
from lrp_jax.core.planner import make_plan
from lrp_jax.core.trace import TracedCall
from lrp_jax.errors import LRPWarning
from lrp_jax.explain.accounts import keep_account, path_of
from lrp_jax.explain.targets import seed_of

MOST_GROWTH = 1000.0
"""From how much growth on an explanation is suspicious."""


def growth_of(samples: int, starts: Sequence[jax.Array], relevance: Any) -> jax.Array:
    """How much relevance there is at the input for each unit that it started from.

    Args:
        samples: The number of samples.
        starts: Where relevance started, such as the explained output and the relevance of the last layer's output.
        relevance: The relevance of the input.

    Returns:
        A number for each sample: absolute relevance, divided by the largest of what it started from.
    """

    def size(array: jax.Array) -> jax.Array:
        is_by_sample = array.ndim > 0 and array.shape[0] == samples
        return jnp.abs(array).sum(tuple(range(1, array.ndim))) if is_by_sample else jnp.abs(array).sum()

    start = functools.reduce(jnp.maximum, [size(array) for array in starts])
    end = functools.reduce(jnp.add, [size(leaf) for leaf in jax.tree.leaves(relevance)])
    return jnp.where(end == 0, 0, end / jnp.where(start == 0, jnp.finfo(end.dtype).tiny, start))


def report_growth(
    call_of: Callable[[Any], TracedCall],
    x: Any,
    kind: str,
    values: Any,
    composite: Composite,
    growth: jax.Array | None,
) -> None:
    """Warns of relevance that explodes, and says where; silent where values are not known."""
    if growth is None or isinstance(growth, jax.core.Tracer):
        return
    growth = jnp.where(jnp.isfinite(growth), growth, 0)  # what is infinite has a warning of its own
    if growth.max(initial=0) <= MOST_GROWTH:
        return
    place = jnp.unravel_index(growth.argmax(), growth.shape)
    sample = int(place[-1])
    if kind == "all":
        kind, values = "index", jnp.full(growth.shape[-1], place[0])
    traced = call_of(jax.tree.map(lambda leaf: leaf[sample : sample + 1], x)).read()
    chosen = None if values is None else values[sample : sample + 1]
    plan = make_plan(traced.graph, composite)
    account = keep_account(traced, plan, lambda explained: seed_of(kind, chosen, explained))
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
        stacklevel=3,
    )
