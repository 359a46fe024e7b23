"""The network of two inputs, two hidden neurons and one output, with which every chapter calculates by hand."""

import html
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from lrp_book.numbers import as_text
from lrp_jax import lrp
from lrp_jax.rules import Rule

INPUT = (2.0, 1.0)
WEIGHTS = (((1.0, 2.0), (-1.0, 1.0)), ((3.0,), (1.0,)))
WIDTH, HEIGHT, RADIUS = 520, 216, 25
_THICKEST = 13


@dataclass(frozen=True)
class Step:
    """One step of a calculation, as it is drawn.

    Attributes:
        title: What is done, in a few words; it labels the button that shows the step.
        sentence: The calculation in one sentence. It is read out in place of the drawing, and stands below it.
        values: The number in every circle, layer by layer, from the inputs to the output; None for an empty circle.
        edges: What flows along every edge, one matrix of shape (neurons below, neurons above) between two layers; None
            where nothing flows yet.
        backward: Whether it flows from the output to the inputs.
    """

    title: str
    sentence: str
    values: Sequence[Sequence[float | None]]
    edges: Sequence[ArrayLike | None]
    backward: bool = False


@dataclass(frozen=True)
class Drawing:
    """A calculation as a row of steps: on a page the reader goes through them, on paper they stand below each other."""

    name: str
    steps: Sequence[Step]

    def _repr_html_(self) -> str:
        largest = max((np.abs(flow).max(initial=0) for step in self.steps for flow in _flows(step)), default=1) or 1
        buttons, panels, rules = "", "", ""
        for number, step in enumerate(self.steps):
            identity = f"{self.name}-{number}"
            checked = " checked" * (number == 0)
            buttons += f'<input type="radio" name="{self.name}" id="{identity}"{checked}>'
            buttons += f'<label for="{identity}">{html.escape(step.title)}</label>'
            panels += f'<div class="hand-step">{_svg(step, largest)}<p>{html.escape(step.sentence)}</p></div>'
            rules += f"#{identity}:checked ~ .hand-steps > :nth-child({number + 1}) {{ display: block }}\n"
        style = f"<style>{_STYLE}@media screen {{ {rules} }}</style>"
        return f'{style}<div class="hand-network">{buttons}<div class="hand-steps">{panels}</div></div>'


def under_rules(name: str, rules: Mapping[str, Rule]) -> Drawing:
    """The relevance of the network of the hand calculations under some rules, each in all layers, one step a rule.

    Args:
        name: A name for the drawing that no other one on the page has.
        rules: The rules by the names that label them.
    """
    pixels_in, hidden_in, output = _activations()
    steps = []
    for label, rule in rules.items():
        upper, hidden = _messages(WEIGHTS[1], hidden_in, rule, output)
        lower, pixels = _messages(WEIGHTS[0], pixels_in, rule, hidden)
        first, second, total, whole = map(as_text, [*pixels.tolist(), float(pixels.sum()), *output.tolist()])
        sentence = f"The inputs get {first} and {second}: {total} of {whole}."
        values = [pixels.tolist(), hidden.tolist(), output.tolist()]
        steps.append(Step(label, sentence, values, [lower, upper], backward=True))
    return Drawing(name, steps)


def _activations() -> list[NDArray[np.float64]]:
    x = [np.array(INPUT)]
    for number, weights in enumerate(WEIGHTS):
        z = x[-1] @ np.array(weights)
        x.append(np.maximum(z, 0) if number == 0 else z)
    return x


def _messages(
    weights: Sequence[Sequence[float]], x: NDArray[np.float64], rule: Rule, relevance: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What each neuron of a layer sends to each of its inputs, and what these add up."""
    w = jnp.asarray(weights)
    z, pull = jax.vjp(lrp(lambda x: x @ w, rule), jnp.asarray(x, jnp.float32))
    each = [pull(jnp.zeros_like(z).at[j].set(relevance[j] / z[j]))[0] for j in range(len(z))]
    messages = np.stack([np.asarray(one, float) for one in each], axis=1)
    messages = messages.round(4)  # stabilisers are not to be seen
    return messages, messages.sum(axis=1)


def _flows(step: Step) -> list[NDArray[np.float64]]:
    return [np.asarray(flow, float) for flow in step.edges if flow is not None]


def _places(sizes: Sequence[int]) -> list[list[tuple[float, float]]]:
    """Where the circles are, layer by layer."""
    columns = np.linspace(RADIUS + 8, WIDTH - RADIUS - 8, len(sizes))
    rows = [HEIGHT / size * (np.arange(size) + 0.5) for size in sizes]
    return [[(float(x), float(y)) for y in column] for x, column in zip(columns, rows, strict=True)]


def _svg(step: Step, largest: float) -> str:
    places = _places([len(layer) for layer in step.values])
    lines, labels, circles = "", "", ""
    for (below, above), flow in zip(itertools.pairwise(places), step.edges, strict=True):
        for i, j in itertools.product(range(len(below)), range(len(above))):
            amount = None if flow is None else float(np.asarray(flow, float)[i, j])
            lines += _edge(below[i], above[j], amount, largest, backward=step.backward)
            labels += "" if amount is None else _label(below[i], above[j], amount)
    for (x, y), value in zip(itertools.chain(*places), itertools.chain(*step.values), strict=True):
        circles += f'<circle cx="{x:g}" cy="{y:g}" r="{RADIUS}"/>'
        circles += "" if value is None else f'<text x="{x:g}" y="{y:g}">{as_text(value)}</text>'
    spoken = html.escape(f"{step.title}: {step.sentence}", quote=True)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{spoken}">'
        f'{lines}<g class="hand-labels">{labels}</g><g class="hand-neurons">{circles}</g></svg>'
    )


def _edge(
    below: tuple[float, float], above: tuple[float, float], amount: float | None, largest: float, *, backward: bool
) -> str:
    start, end = (above, below) if backward else (below, above)
    line = f'x1="{start[0]:g}" y1="{start[1]:g}" x2="{end[0]:g}" y2="{end[1]:g}"'
    if not amount:
        return f'<line {line} class="hand-idle"/>'
    sign = "hand-for" if amount > 0 else "hand-against"
    width = max(1.5, _THICKEST * abs(amount) / largest)
    return (
        f'<line {line} class="{sign}" stroke-width="{width:.1f}"/>'
        f'<line {line} class="hand-motion" stroke-width="{min(width, 3):.1f}"/>'
    )


def _label(below: tuple[float, float], above: tuple[float, float], amount: float) -> str:
    x, y = (b + 0.3 * (a - b) for b, a in zip(below, above, strict=True))
    return f'<text x="{x:.1f}" y="{y:.1f}">{as_text(amount)}</text>'


_STYLE = """
.hand-network { max-width: 36rem; margin: 0 auto 1rem; }
.hand-network input { position: absolute; opacity: 0; }
.hand-network label { display: inline-block; padding: 0.25rem 0.75rem; margin: 0 0.25rem 0.5rem 0; cursor: pointer;
  border: 1px solid currentColor; border-radius: 1rem; font-size: 0.875rem; opacity: 0.75; }
.hand-network input:checked + label { background: #2f6ea8; border-color: #2f6ea8; color: #fff; opacity: 1; }
.hand-network input:focus-visible + label { outline: 3px solid #e08a1e; outline-offset: 2px; }
.hand-network svg { display: block; width: 100%; height: auto; overflow: visible; }
.hand-network .hand-step p { margin: 0.5rem 0 0; text-align: center; }
.hand-network line { stroke-linecap: butt; }
.hand-idle { stroke: currentColor; stroke-width: 1; opacity: 0.35; }
.hand-for { stroke: #d1495b; }
.hand-against { stroke: #2f7ebc; }
.hand-motion { stroke: #fff; opacity: 0.8; stroke-dasharray: 3 15; animation: hand-motion 0.9s linear infinite; }
@keyframes hand-motion { from { stroke-dashoffset: 18; } to { stroke-dashoffset: 0; } }
.hand-network text { fill: currentColor; font-size: 15px; text-anchor: middle; dominant-baseline: central; }
.hand-labels text { font-weight: 700; paint-order: stroke; stroke-width: 5px; stroke-linejoin: round;
  stroke: var(--pst-color-background, var(--jp-layout-color0, #fff)); }
.hand-neurons circle { fill: var(--pst-color-background, var(--jp-layout-color0, #fff)); stroke: currentColor;
  stroke-width: 1.5; }
@media screen { .hand-step { display: none; } }
@media print { .hand-network label, .hand-motion { display: none; } .hand-step { break-inside: avoid; } }
@media (prefers-reduced-motion: reduce) { .hand-motion { display: none; } }
"""
