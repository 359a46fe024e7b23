"""`lrp`: the function transformation."""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lrp_jax import equations, forms
from lrp_jax.composites import Rules, as_composite
from lrp_jax.errors import InputError
from lrp_jax.forms import Form
from lrp_jax.graph import Checkpoint, Graph, Status
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
        traced = trace(fun, positions, args, kwargs)
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


Observer = Callable[[Piece, str, int, Form, jax.Array], jax.Array]


@dataclass(frozen=True)
class _Values:
    """The values between the pieces.

    Attributes:
        plain: Every value, by number.
        copies: Every live value once for each form in which cotangents arrive at it, by number and form.
    """

    plain: dict[int, jax.Array]
    copies: dict[tuple[int, Form], jax.Array]


def rebind(plan: Plan, inputs: Sequence[jax.Array], observe: Observer | None = None) -> list[jax.Array]:
    """Runs a function piece by piece, each with the backward pass that the plan gives it.

    Args:
        plan: The function, and how relevance travels through it.
        inputs: Its inputs.
        observe: Called as observe(piece, "operand" or "output", number, form, value) with every live value that goes
            into a piece and comes out of it, for every form of its cotangents; what it returns takes the value's place.

    Returns:
        Its outputs.
    """
    given = [[value] * max(1, len(forms)) for value, forms in zip(inputs, plan.input_forms, strict=True)]
    return [copies[0] for copies in _rebind(plan, given, observe)]


def run_pieces(plan: Plan, inputs: Sequence[jax.Array]) -> dict[int, jax.Array]:
    """Runs a function piece by piece, and returns every value between the pieces, by number."""
    values = dict(plan.graph.constants) | dict(zip(plan.graph.inputs, inputs, strict=True))
    for piece in plan.pieces:
        if piece.operations[0].equation.effects:
            continue
        operands = [[values[i] for i in numbers] for numbers in (piece.live, piece.constants)]
        values.update(zip(piece.outputs, piece.run(*operands), strict=True))
    return values


def _rebind(
    plan: Plan, inputs: Sequence[Sequence[jax.Array]], observe: Observer | None = None
) -> list[list[jax.Array]]:
    """As `rebind`, with each live input and output once for each form of its cotangents."""
    graph = plan.graph
    values = _Values(dict(graph.constants), {})
    for i, copies, given in zip(graph.inputs, inputs, plan.input_forms, strict=True):
        values.plain[i] = copies[0]
        for form in plan.forms.get(i, ()):
            wanted = form if form in given else given[0]
            values.copies[i, form] = forms.convert(copies[given.index(wanted)], form, wanted)
    _run_all(plan, plan.pieces, values, observe, 0)
    return [
        [values.copies[i, form] for form in arriving] if arriving else [_held(graph, i, values.plain[i])]
        for i, arriving in zip(graph.outputs, plan.output_forms, strict=True)
    ]


def _held(graph: Graph, i: int, value: jax.Array) -> jax.Array:
    """What is returned, through which no relevance flows back where it is held."""
    is_held = graph.status[i] is Status.HELD and jnp.issubdtype(value.dtype, jnp.floating)
    return forms.hold(value) if is_held else value


def _run_all(plan: Plan, pieces: Sequence[Piece], values: _Values, observe: Observer | None, depth: int) -> None:
    """Runs pieces in order; those that belong to a call under `jax.checkpoint`, under it."""

    def checkpoint_of(piece: Piece) -> Checkpoint | None:
        return piece.checkpoints[depth] if len(piece.checkpoints) > depth else None

    for checkpoint, group in itertools.groupby(pieces, checkpoint_of):
        if checkpoint is None:
            for piece in group:
                _run(plan, piece, values, observe)
            continue
        _run_checkpoint(plan, list(group), values, observe, depth, checkpoint)


def _run_checkpoint(
    plan: Plan,
    pieces: Sequence[Piece],
    values: _Values,
    observe: Observer | None,
    depth: int,
    checkpoint: Checkpoint,
) -> None:
    read = {i for piece in pieces for i in (*piece.live, *piece.constants)}
    made = {i for piece in pieces for i in piece.outputs}
    plain = {i: array for i, array in values.plain.items() if i in read}
    copies = {key: array for key, array in values.copies.items() if key[0] in read}
    keys: list[Any] = []

    def run(plain_arrays: Sequence[jax.Array], copied: Sequence[jax.Array]) -> list[jax.Array]:
        inner = _Values(dict(zip(plain, plain_arrays, strict=True)), dict(zip(copies, copied, strict=True)))
        _run_all(plan, pieces, inner, observe, depth + 1)
        found = {i: array for i, array in inner.plain.items() if i in made}
        found_copies = {key: array for key, array in inner.copies.items() if key[0] in made}
        keys[:] = [*found, *found_copies]
        return [*found.values(), *found_copies.values()]

    run = jax.checkpoint(run, prevent_cse=checkpoint.prevent_cse, policy=checkpoint.policy)
    arrays = run(list(plain.values()), list(copies.values()))
    for key, array in zip(keys, arrays, strict=True):
        if isinstance(key, tuple):
            values.copies[key] = array
        else:
            values.plain[key] = array


def _run(plan: Plan, piece: Piece, values: _Values, observe: Observer | None) -> None:
    """Runs a piece, once for each form in which it takes cotangents."""
    constants = [values.plain[i] for i in piece.constants]
    if piece.treatment is None:
        live = [values.plain[i] for i in piece.live]
        if piece.operations[0].equation.effects:
            constants = list(map(lax.stop_gradient, constants))
        values.plain.update(zip(piece.outputs, piece.run(live, constants), strict=True))
        return
    status = plan.graph.status
    constants = [
        value if status[i] is Status.CONSTANT else forms.hold(value)
        for i, value in zip(piece.constants, constants, strict=True)
    ]
    if piece.bodies:
        _run_bodies(plan, piece, constants, values, observe)
        return
    for taken in piece.forms:
        returned = piece.returned(taken)
        live = [values.copies[i, returned] for i in piece.live]
        if observe is not None:
            live = [observe(piece, "operand", i, returned, x) for i, x in zip(piece.live, live, strict=True)]
        outputs = _runner(piece, taken)(live, constants)
        values.plain.update(zip(piece.outputs, outputs, strict=True))
        for i, output in zip(piece.outputs, outputs, strict=True):
            for arriving in plan.forms.get(i, ()):
                if piece.taken(arriving) is taken:
                    copy = forms.convert(output, arriving, taken)
                    values.copies[i, arriving] = _observed(observe, piece, i, arriving, copy)


def _observed(observe: Observer | None, piece: Piece, i: int, form: Form, value: jax.Array) -> jax.Array:
    return value if observe is None else observe(piece, "output", i, form, value)


def _runner(piece: Piece, taken: Form) -> Callable[[Sequence[jax.Array], Sequence[jax.Array]], Sequence[jax.Array]]:
    assert piece.treatment is not None
    backward, remember = piece.treatment.backward.get(taken), piece.treatment.remember
    if backward is None:
        return piece.run
    (operation, *_) = piece.operations
    order = [*piece.live, *piece.constants]
    places = [order.index(i) for i in operation.inputs if i in order]
    make_call = functools.partial(Call, piece.run, operation.name, operation.equation.params, places)

    @jax.custom_vjp
    def run(live: list[jax.Array], constants: list[jax.Array]) -> list[jax.Array]:
        return piece.run(live, constants)

    def forward(live: list[jax.Array], constants: list[jax.Array]) -> tuple[list[jax.Array], Any]:
        outputs = piece.run_with_backward(live, constants)
        call = make_call(live, constants, outputs, ())
        return outputs, (live, constants, outputs, remember(call) if remember else None)

    def back(residuals: Any, cotangents: list[jax.Array]) -> tuple[list[jax.Array], None]:
        live, constants, outputs, remembered = residuals
        return list(backward(make_call(live, constants, outputs, cotangents, remembered))), None

    run.defvjp(forward, back)
    return run


def _run_bodies(
    plan: Plan, piece: Piece, constants: Sequence[jax.Array], values: _Values, observe: Observer | None
) -> None:
    """Runs a scan or a cond with transformed bodies, whose live operands are there once for each form."""
    (operation,) = piece.operations
    held = dict(zip(piece.constants, constants, strict=True))
    (body, *_) = piece.bodies
    is_scan = operation.name == "scan"
    operands = operation.inputs if is_scan else operation.inputs[1:]

    def copies_of(i: int, wanted: Sequence[Form]) -> list[jax.Array]:
        if i in held:
            return [held[i]] * max(1, len(wanted))
        if not wanted:
            return [forms.hold(values.plain[i])]
        copies = [values.copies[i, form] for form in wanted]
        if observe is not None:
            copies = [observe(piece, "operand", i, form, x) for form, x in zip(wanted, copies, strict=True)]
        return copies

    given = [copies_of(i, wanted) for i, wanted in zip(operands, body.input_forms, strict=True)]
    if is_scan:
        outputs = _run_scan(body, operation.equation, given)
    else:
        index = held.get(operation.inputs[0], values.plain[operation.inputs[0]])
        branches = [functools.partial(_rebind, branch) for branch in piece.bodies]
        outputs = lax.switch(index, branches, given)
    for i, copies, arriving in zip(operation.outputs, outputs, body.output_forms, strict=True):
        values.plain[i] = copies[0]
        for form, copy in zip(arriving, copies, strict=False):
            values.copies[i, form] = _observed(observe, piece, i, form, copy)


def _run_scan(body: Plan, equation: Any, given: Sequence[Sequence[jax.Array]]) -> list[list[jax.Array]]:
    constants, carries = equations.scan_sizes(equation)
    fixed, carried, stacked = given[:constants], given[constants : constants + carries], given[constants + carries :]

    def step(carry: Any, x: Any) -> tuple[Any, Any]:
        outputs = _rebind(body, [*fixed, *carry, *x])
        return outputs[:carries], outputs[carries:]

    params = equation.params
    carry, outputs = lax.scan(
        step,
        carried,
        stacked,
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    return [*carry, *outputs]


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
        def observe(piece: Piece, side: str, value: int, form: Form, array: jax.Array) -> jax.Array:
            i = position.get((id(piece), side, value))
            return array if i is None else forms.tap(array, relevance[i], form, (masks or {}).get(i))

        given = iter(explained)
        arrays = [next(given) if graph.is_live(i) else value for i, value in zip(graph.inputs, inputs, strict=True)]
        return rebind(plan, arrays, observe)

    explained = [value for i, value in zip(graph.inputs, inputs, strict=True) if graph.is_live(i)]
    zeros = [jnp.zeros(graph.shapes[probe.value].shape, graph.shapes[probe.value].dtype) for probe in probes]
    outputs, transpose = jax.vjp(run, explained, zeros)
    return outputs, lambda cotangents: transpose(list(cotangents))
