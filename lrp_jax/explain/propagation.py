"""One call explained: through it forwards and backwards, with what is read and looked at on the way."""

import functools
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from lrp_jax.composites import Composite, is_built_in
from lrp_jax.core.arguments import within_memory
from lrp_jax.core.forms import Form
from lrp_jax.core.plan import Plan
from lrp_jax.core.planner import make_plan
from lrp_jax.core.probes import Probe, propagator
from lrp_jax.core.programs import run_compiled
from lrp_jax.core.trace import TracedCall
from lrp_jax.explain.checks import Checks, check, number_of_samples
from lrp_jax.explain.growth import Flow, flow_of
from lrp_jax.explain.hidden import readings, without_bias
from lrp_jax.explain.targets import seed_of, seeds_of_classes


@dataclass(frozen=True)
class Request:
    """The names of the hidden values whose relevance is read, and of those whose relevance is masked."""

    at: tuple[str, ...]
    given: tuple[str, ...]


Explained: TypeAlias = tuple[Any, Any, dict[str, jax.Array], Checks]


def explain_call(
    composite: Composite, request: Request, kind: str, call: TracedCall, values: Any, masks: list[jax.Array]
) -> Explained:
    """The output, the relevance of x and of the named hidden values, and checks.

    The program is compiled once for each text of the call, whatever numbers the rules have. Rules and treatments of the
    user's own may read whatever they like, so that they run at each call.
    """
    numbers, structure = jax.tree.flatten(composite)
    programs = [program for program in (call.text.program, call.text.target) if program is not None]
    if composite.is_built_in and all(is_built_in(program.treatments) for program in programs):
        with within_memory("What is explained"):
            return explain_arrays(structure, request, kind, numbers, call, values, masks)
    explain = functools.partial(explain_in_trace, structure, request, kind)
    return run_compiled(explain, numbers, call, values, masks)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def explain_arrays(
    structure: Any,
    request: Request,
    kind: str,
    numbers: list[Any],
    call: TracedCall,
    values: Any,
    masks: list[jax.Array],
) -> Explained:
    """As `explain_call`, for rules that read nothing but their fields."""
    return explain_in_trace(structure, request, kind, numbers, call, values, masks)


def explain_in_trace(
    structure: Any,
    request: Request,
    kind: str,
    numbers: list[Any],
    call: TracedCall,
    values: Any,
    masks: list[jax.Array],
) -> Explained:
    """As `explain_call`, as part of a program that is traced, for a composite that was taken apart."""
    composite: Composite = jax.tree.unflatten(structure, numbers)
    _, x = call.args
    traced = call.read()
    plan = make_plan(traced.graph, composite)
    wanted, masked = readings(plan, request.at), readings(plan, request.given)
    named = [reading.probe for places in (*wanted, *masked) for reading in places]
    last = _probe_of_last_layer(plan)
    repeated = [mask for mask, places in zip(masks, masked, strict=True) for _ in places]
    given = dict(enumerate(repeated, len(named) - len(repeated)))
    outputs, propagate = propagator(plan, traced.inputs, [*named, *last], given)
    output, explained = traced.split(outputs)

    samples, is_relevance = number_of_samples(x), composite.input_form is Form.RELEVANCE

    def maps(seed: Any) -> tuple[Any, dict[str, jax.Array], Flow | None]:
        explained_arrays, probed = propagate(traced.cotangents(outputs, seed))
        found = jax.tree.unflatten(jax.tree.structure(x), explained_arrays)
        started = [s * e for s, e in zip(jax.tree.leaves(seed), jax.tree.leaves(explained), strict=True)]
        flow = flow_of(samples, started, probed[len(named) :], found) if is_relevance else None
        arrays = iter(probed)
        hidden = {
            name: functools.reduce(
                jnp.add, [without_bias(plan, reading, next(arrays), traced.inputs) for reading in places]
            )
            for name, places in zip(request.at, wanted, strict=True)
        }
        return found, hidden, flow

    if kind == "all":
        found, hidden, flow = jax.vmap(maps)(seeds_of_classes(explained))
    else:
        found, hidden, flow = maps(seed_of(kind, values, explained))
    return output, found, hidden, check(plan, traced.inputs, output, found, flow)


def _probe_of_last_layer(plan: Plan) -> list[Probe]:
    layers = [piece for piece in plan.pieces if piece.layer is not None and piece.treatment is not None]
    if not layers:
        return []
    last = max(layers, key=lambda piece: piece.layer.index if piece.layer is not None else -1)
    return [Probe(last, "output", last.outputs[0])]
