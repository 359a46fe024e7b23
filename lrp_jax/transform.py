"""`lrp`: the function transformation."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lrp_jax import equations, forms
from lrp_jax.composites import Rules, as_composite
from lrp_jax.errors import InputError
from lrp_jax.graph import Graph, Status
from lrp_jax.operations import Call
from lrp_jax.planning import Piece, Plan, make_plan
from lrp_jax.tracing import trace


def lrp(fun: Callable[..., Any], rules: Rules, argnums: int | Sequence[int] = 0) -> Callable[..., Any]:
    """Transforms a function so that its vector-Jacobian product is layer-wise relevance propagation.

    The transformed function has the same value. Where JAX would propagate a gradient backwards, it propagates
    relevance: a cotangent v of the output starts with the relevance v * fun(x), and the cotangent of an explained
    argument is that argument's relevance. `jax.grad` of one logit therefore returns the relevance of every element of
    the input for this logit. The result is an ordinary JAX function: `jax.jit`, `jax.vmap` and a second
    differentiation (of a quantity computed from the relevance, with regard to parameters) apply.

    Args:
        fun: A function of arrays (or pytrees of arrays) that JAX can trace: a bound Flax NNX module, the `apply` of a
            Linen module, a plain function; in inference mode.
        rules: A rule for every layer, or a composite that says which rule where.
        argnums: The positions of the arguments that are explained.

    Returns:
        A function with the arguments and the value of `fun`.

    Raises:
        UnsupportedOperationError: (when called) relevance reaches an operation that has no treatment; the message names
            it and the line that it comes from.
        InputError: `fun` cannot be called; (when called) an explained argument is not real floating-point, `argnums`
            does not fit the call, or the value is differentiated with regard to an argument that is not explained.
        ModelError: (when called) `fun` is in training mode, needs values in Python, or has an output that is not
            differentiable.

    Source: Bach et al. (2015), section "Layer-wise relevance propagation"; the backward pass as a gradient: Montavon et
    al. (2019), section 10.3.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from lrp_jax import lrp, rules
        >>> weight = jnp.array([[1.0, -1.0], [2.0, 1.0]])
        >>> network = lambda x: jax.nn.relu(x @ weight).sum()
        >>> jax.grad(lrp(network, rules.Zero()))(jnp.array([3.0, 1.0]))
        Array([3., 2.], dtype=float32)
    """
    if not callable(fun):
        raise InputError(f"lrp transforms a function, but this is a {type(fun).__name__}.")
    composite = as_composite(rules)
    positions = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    def explained(*args: Any, **kwargs: Any) -> Any:
        traced = trace(fun, positions, args, kwargs, keep_checkpoints=True)
        outputs = rebind(make_plan(traced.graph, composite), begin(traced.graph, traced.inputs))
        return jax.tree.unflatten(traced.structure, outputs)

    explained.__name__ = getattr(fun, "__name__", type(fun).__name__)
    explained.__doc__ = fun.__doc__
    return explained


def begin(graph: Graph, inputs: Sequence[jax.Array]) -> list[jax.Array]:
    """Sees to it that nothing is differentiated but the explained inputs."""
    values = dict(zip(graph.inputs, inputs, strict=True))
    explained = [i for i in graph.inputs if graph.is_live(i)]
    others = [value for i, value in (graph.constants | values).items() if i not in explained]
    values.update(zip(explained, forms.begin([values[i] for i in explained], others), strict=True))
    return [values[i] for i in graph.inputs]


Observer = Callable[[Piece, str, int, jax.Array], jax.Array]


def rebind(plan: Plan, inputs: Sequence[jax.Array], observe: Observer | None = None) -> list[jax.Array]:
    """Runs a function piece by piece, each with the backward pass that the plan gives it.

    Args:
        plan: The function, and how relevance travels through it.
        inputs: Its inputs.
        observe: Called as observe(piece, "operand" or "output", number, value) with every live value that goes into a
            piece and comes out of it; what it returns takes the value's place.

    Returns:
        Its outputs.
    """
    values = run_pieces(plan, inputs, observe)
    return [
        forms.convert(values[i], arriving, plan.form(i)) if plan.graph.is_live(i) else values[i]
        for i, arriving in zip(plan.graph.outputs, plan.output_forms, strict=True)
    ]


def run_pieces(plan: Plan, inputs: Sequence[jax.Array], observe: Observer | None = None) -> dict[int, jax.Array]:
    """As `rebind`, but returns every value between the pieces, by number."""
    graph = plan.graph
    values = dict(graph.constants)
    for i, value, wanted in zip(graph.inputs, inputs, plan.input_forms, strict=True):
        values[i] = forms.convert(value, plan.form(i), wanted) if graph.is_live(i) else value
    for piece in plan.pieces:
        values.update(zip(piece.outputs, _run(plan, piece, values, observe), strict=True))
    return values


def _run(plan: Plan, piece: Piece, values: dict[int, jax.Array], observe: Observer | None) -> list[jax.Array]:
    live = [values[i] for i in piece.live]
    constants = [values[i] for i in piece.constants]
    if piece.treatment is None:
        return piece.run(live, constants)
    constants = [
        value if plan.graph.status[i] is Status.CONSTANT else forms.hold(value)
        for i, value in zip(piece.constants, constants, strict=True)
    ]
    if observe is not None:
        live = [observe(piece, "operand", i, value) for i, value in zip(piece.live, live, strict=True)]
    live = [
        forms.convert(value, returned, plan.form(i))
        for i, value, returned in zip(piece.live, live, piece.returned, strict=True)
    ]
    outputs = [
        forms.convert(output, plan.form(i), taken) if plan.graph.is_live(i) else output
        for i, output, taken in zip(piece.outputs, _runner(piece)(live, constants), piece.taken, strict=True)
    ]
    if observe is None:
        return outputs
    return [
        observe(piece, "output", i, output) if plan.graph.is_live(i) else output
        for i, output in zip(piece.outputs, outputs, strict=True)
    ]


def _runner(piece: Piece) -> Callable[[Sequence[jax.Array], Sequence[jax.Array]], Sequence[jax.Array]]:
    if piece.bodies:
        return functools.partial(_run_bodies, piece)
    if piece.backward is None:
        return piece.run
    backward = piece.backward
    params = piece.operations[0].equation.params

    @jax.custom_vjp
    def run(live: list[jax.Array], constants: list[jax.Array]) -> list[jax.Array]:
        return piece.run(live, constants)

    def forward(live: list[jax.Array], constants: list[jax.Array]) -> tuple[list[jax.Array], Any]:
        outputs = piece.run_with_backward(live, constants)
        return outputs, (live, constants, outputs)

    def back(residuals: Any, cotangents: list[jax.Array]) -> tuple[list[jax.Array], None]:
        live, constants, outputs = residuals
        return list(backward(Call(piece.run, params, live, constants, outputs, cotangents))), None

    run.defvjp(forward, back)
    return run


def _run_bodies(piece: Piece, live: Sequence[jax.Array], constants: Sequence[jax.Array]) -> Sequence[jax.Array]:
    """Runs a scan, a cond or a checkpoint with transformed bodies."""
    (operation,) = piece.operations
    values = dict(zip(piece.live + piece.constants, (*live, *constants), strict=True))
    operands = [values[i] for i in operation.inputs]
    params = operation.equation.params
    if operation.name == "cond":
        return lax.switch(operands[0], [functools.partial(_run_branch, plan) for plan in piece.bodies], *operands[1:])
    if operation.name != "scan":
        run = functools.partial(_run_branch, piece.bodies[0])
        return jax.checkpoint(run, prevent_cse=params["prevent_cse"], policy=params["policy"])(*operands)
    number, carries = equations.scan_sizes(operation.equation)

    def body(carry: list[jax.Array], x: list[jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
        outputs = rebind(piece.bodies[0], [*operands[:number], *carry, *x])
        return outputs[:carries], outputs[carries:]

    carry, stacked = lax.scan(
        body,
        operands[number : number + carries],
        operands[number + carries :],
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    return [*carry, *stacked]


def _run_branch(plan: Plan, *operands: jax.Array) -> list[jax.Array]:
    return rebind(plan, operands)


@dataclass(frozen=True)
class Probe:
    """A place in a plan at which relevance is read: where a value leaves a piece, or where a piece reads it.

    Attributes:
        piece: The piece.
        side: "output" or "operand".
        value: The number of the value.
    """

    piece: Piece
    side: str
    value: int


def propagator(
    plan: Plan,
    inputs: Sequence[jax.Array],
    probes: Sequence[Probe] = (),
    masks: Mapping[int, jax.Array] | None = None,
) -> tuple[list[jax.Array], Callable[[Sequence[jax.Array]], tuple[list[jax.Array], list[jax.Array]]]]:
    """Runs a function forwards, and returns what propagates relevance back, through probes on the way.

    Args:
        plan: The function, and how relevance travels through it.
        inputs: Its inputs.
        probes: Where relevance is read.
        masks: Factors for the relevance that goes on from a probe, by its position in `probes`.

    Returns:
        The outputs, and a function that maps their cotangents to the relevance of the live inputs and of the probes.
    """
    graph = plan.graph
    position = {(id(probe.piece), probe.side, probe.value): i for i, probe in enumerate(probes)}

    def run(explained: list[jax.Array], relevance: list[jax.Array]) -> list[jax.Array]:
        def observe(piece: Piece, side: str, value: int, array: jax.Array) -> jax.Array:
            i = position.get((id(piece), side, value))
            return array if i is None else forms.tap(array, relevance[i], plan.form(value), (masks or {}).get(i))

        given = iter(explained)
        arrays = [next(given) if graph.is_live(i) else value for i, value in zip(graph.inputs, inputs, strict=True)]
        return rebind(plan, arrays, observe)

    explained = [value for i, value in zip(graph.inputs, inputs, strict=True) if graph.is_live(i)]
    zeros = [jnp.zeros(graph.shapes[probe.value].shape, graph.shapes[probe.value].dtype) for probe in probes]
    outputs, transpose = jax.vjp(run, explained, zeros)
    return outputs, lambda cotangents: transpose(list(cotangents))
