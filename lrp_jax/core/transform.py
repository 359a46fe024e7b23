"""`lrp`: the function transformation."""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lrp_jax.composites import Rules, as_composite
from lrp_jax.core import equations, forms, tokens
from lrp_jax.core.arguments import MOST, as_counts, check_callable, within_memory
from lrp_jax.core.forms import Form
from lrp_jax.core.graph import Checkpoint, Graph, Status
from lrp_jax.core.inference import Inference, check_choice
from lrp_jax.core.plan import Piece, Plan, make_plan
from lrp_jax.core.trace import check_is_no_class, trace
from lrp_jax.treatments import Call


def lrp(
    fun: Callable[..., Any],
    rules: Rules,
    argnums: int | Sequence[int] = 0,
    *,
    inference: Inference = "checked",
) -> Callable[..., Any]:
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
        inference: "checked" refuses a function in training mode: one with dropout, or with statistics over the first
            dimension of what is explained. "assumed" leaves that check out, for a function in which something is meant
            that looks alike.

    Returns:
        A function with the arguments and the value of `fun`.

    Raises:
        UnsupportedOperationError: (when called) relevance reaches an operation that has no treatment; the message names
            it and the line that it comes from.
        InputError: `fun` cannot be called, or `inference` is neither of the two; (when called) an explained argument is
            not real floating-point, `argnums` does not fit the call, or the value is differentiated with regard to an
            argument that is not explained, or in forward mode.
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
    check_callable(fun, "fun")
    check_choice(inference)
    check_is_no_class(fun)
    composite = as_composite(rules)
    positions = as_counts(argnums, "argnums", least=-MOST)

    def explained(*args: Any, **kwargs: Any) -> Any:
        traced = trace(fun, positions, args, kwargs, inference=inference)
        with within_memory("What is explained"):
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
        shadows: The shadow of every value that is made of explained integers, by number (see `lrp_jax.core.tokens`).
    """

    plain: dict[int, jax.Array]
    copies: dict[tuple[int, Form], jax.Array]
    shadows: dict[int, jax.Array]


def rebind(
    plan: Plan,
    inputs: Sequence[jax.Array],
    observe: Observer | None = None,
    shadows: Mapping[int, jax.Array] | None = None,
) -> list[jax.Array]:
    """Runs a function piece by piece, each with the backward pass that the plan gives it.

    Args:
        plan: The function, and how relevance travels through it.
        inputs: Its inputs.
        observe: Called as observe(piece, "operand" or "output", number, form, value) with every live value that goes
            into a piece and comes out of it, for every form of its cotangents; what it returns takes the value's place.
        shadows: The shadows of its explained integers, by number.

    Returns:
        Its outputs.
    """
    given = [_Given([value] * max(1, len(forms))) for value, forms in zip(inputs, plan.input_forms, strict=True)]
    for position, i in enumerate(plan.graph.inputs):
        if plan.graph.is_token(i):
            shadow = tokens.shadow_of_input(inputs[position]) if shadows is None else shadows[i]
            given[position] = _Given([inputs[position]], shadow)
    return [found.copies[0] for found in _rebind(plan, given, [False] * len(plan.graph.outputs), observe)]


def run_pieces(plan: Plan, inputs: Sequence[jax.Array]) -> dict[int, jax.Array]:
    """Runs a function piece by piece, and returns every value between the pieces, by number."""
    values = dict(plan.graph.constants) | dict(zip(plan.graph.inputs, inputs, strict=True))
    for piece in plan.pieces:
        if not piece.outputs:  # it prints
            continue
        operands = [[values[i] for i in numbers] for numbers in (piece.live, piece.constants)]
        values.update(zip(piece.outputs, piece.run(*operands), strict=True))
    return values


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Given:
    """A value on its way into a function or out of it.

    Attributes:
        copies: The value, once for each form of its cotangents if it is a live one.
        shadow: Its shadow, if it is made of explained integers.
    """

    copies: list[jax.Array]
    shadow: jax.Array | None = None


def _rebind(
    plan: Plan, inputs: Sequence[_Given], are_tokens: Sequence[bool], observe: Observer | None = None
) -> list[_Given]:
    """As `rebind`, with each live input and output once for each form of its cotangents.

    Args:
        plan: As for `rebind`.
        inputs: The inputs.
        are_tokens: For each output, whether its shadow is wanted.
        observe: As for `rebind`.

    Returns:
        The outputs.
    """
    graph = plan.graph
    values = _Values(dict(graph.constants), {}, {})
    for i, value, given in zip(graph.inputs, inputs, plan.input_forms, strict=True):
        values.plain[i] = value.copies[0]
        if value.shadow is not None:
            values.shadows[i] = value.shadow
        for form in plan.forms.get(i, ()):
            wanted = form if form in given else given[0]
            values.copies[i, form] = forms.convert(value.copies[given.index(wanted)], form, wanted)
    _run_all(plan, plan.pieces, values, observe, 0)
    return [
        _Given(
            [values.copies[i, form] for form in arriving]
            if graph.is_live(i) and arriving
            else [_held(graph, i, values.plain[i])] * max(1, len(arriving)),  # a branch may return a constant
            _shadow(values, i) if is_token else None,
        )
        for i, arriving, is_token in zip(graph.outputs, plan.output_forms, are_tokens, strict=True)
    ]


def _shadow(values: _Values, i: int) -> jax.Array:
    return values.shadows[i] if i in values.shadows else tokens.no_shadow(values.plain[i])


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
    shadows = {i: shadow for i, shadow in values.shadows.items() if i in read}
    keys: list[list[Any]] = []

    def run(*given: Sequence[jax.Array]) -> list[list[jax.Array]]:
        names: tuple[Any, ...] = (plain, copies, shadows)
        inner = _Values(*(dict(zip(keys, arrays, strict=True)) for keys, arrays in zip(names, given, strict=True)))
        _run_all(plan, pieces, inner, observe, depth + 1)
        found: list[dict[Any, jax.Array]] = [
            {i: array for i, array in inner.plain.items() if i in made},
            {key: array for key, array in inner.copies.items() if key[0] in made},
            {i: shadow for i, shadow in inner.shadows.items() if i in made},
        ]
        keys[:] = [list(arrays) for arrays in found]
        return [list(arrays.values()) for arrays in found]

    run = jax.checkpoint(run, prevent_cse=checkpoint.prevent_cse, policy=checkpoint.policy)
    arrays = run(list(plain.values()), list(copies.values()), list(shadows.values()))
    kept: tuple[dict[Any, jax.Array], ...] = (values.plain, values.copies, values.shadows)
    for there, names, found in zip(kept, keys, arrays, strict=True):
        there.update(zip(names, found, strict=True))


def _run(plan: Plan, piece: Piece, values: _Values, observe: Observer | None) -> None:
    """Runs a piece, once for each form in which it takes cotangents."""
    constants = [values.plain[i] for i in piece.constants]
    if piece.treatment is None:
        live = [values.plain[i] for i in piece.live]
        if equations.has_side_effect(piece.operations[0].equation):
            constants = list(map(lax.stop_gradient, constants))
        values.plain.update(zip(piece.outputs, piece.run(live, constants), strict=True))
        if any(plan.graph.is_token(i) and i not in plan.graph.lost_tokens for i in piece.outputs):
            (operation,) = piece.operations
            moved = zip(piece.outputs, tokens.shadows_of_outputs(operation, values.plain, values.shadows), strict=True)
            values.shadows.update((i, shadow) for i, shadow in moved if plan.graph.is_token(i))
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
        if not piece.live:
            outputs = _tied(piece, taken, values, observe)
        for i, output in zip(piece.outputs, outputs, strict=True):
            for arriving in plan.forms.get(i, ()):
                if piece.taken(arriving) is taken:
                    copy = forms.convert(output, arriving, taken)
                    values.copies[i, arriving] = _observed(observe, piece, "output", i, arriving, copy)


def _tied(piece: Piece, form: Form, values: _Values, observe: Observer | None) -> list[jax.Array]:
    """The outputs of a look-up, whose relevance goes to the integers with which they are looked up."""
    (operation,) = piece.operations
    outputs = [values.plain[i] for i in piece.outputs]
    shadows = {
        i: _observed(observe, piece, "operand", i, Form.RATIO, values.shadows[i])
        for i in piece.constants
        if i in values.shadows
    }
    found = tokens.shadows_of_outputs(operation, values.plain, shadows)
    return [
        forms.tap(output, tokens.for_each(shadow, output), form) for output, shadow in zip(outputs, found, strict=True)
    ]


def _observed(observe: Observer | None, piece: Piece, side: str, i: int, form: Form, value: jax.Array) -> jax.Array:
    return value if observe is None else observe(piece, side, i, form, value)


def _runner(piece: Piece, taken: Form) -> Callable[[Sequence[jax.Array], Sequence[jax.Array]], Sequence[jax.Array]]:
    assert piece.treatment is not None
    backward, remember = piece.treatment.backward.get(taken), piece.treatment.remember
    if backward is None:
        return piece.run
    (operation, *_) = piece.operations
    order = [*piece.live, *piece.constants]
    places = [order.index(i) for i in operation.inputs if i in order]
    make_call = functools.partial(Call, piece.run, operation.name, operation.equation.params, places)

    numbers, structure = jax.tree.flatten(piece.rule)

    @jax.custom_vjp
    def run(live: list[jax.Array], constants: list[jax.Array], numbers: list[Any]) -> list[jax.Array]:
        return _for_each(numbers, piece.run(live, constants))

    def forward(live: list[jax.Array], constants: list[jax.Array], numbers: list[Any]) -> tuple[list[jax.Array], Any]:
        outputs = piece.run_with_backward(live, constants)
        call = make_call(live, constants, outputs, ())
        kept = live, constants, outputs, remember(call) if remember else None, numbers
        return _for_each(numbers, outputs), kept

    def back(residuals: Any, cotangents: list[jax.Array]) -> tuple[list[jax.Array], None, None]:
        live, constants, outputs, remembered, numbers = residuals
        rule = jax.tree.unflatten(structure, numbers)
        return list(backward(make_call(live, constants, outputs, cotangents, remembered, rule))), None, None

    run.defvjp(forward, back)
    return lambda live, constants: run(live, constants, numbers)


def _for_each(numbers: Sequence[Any], outputs: list[jax.Array]) -> list[jax.Array]:
    """The outputs, one for each number where `jax.vmap` has several: what is shared would share its cotangent."""
    for number in numbers:
        if isinstance(number, jax.core.Tracer):
            outputs = [jnp.where(number == number, output, output) for output in outputs]
    return outputs


def _run_bodies(
    plan: Plan, piece: Piece, constants: Sequence[jax.Array], values: _Values, observe: Observer | None
) -> None:
    """Runs a scan, a cond or a shard_map with transformed bodies, whose live operands are there once for each form."""
    (operation,) = piece.operations
    held = dict(zip(piece.constants, constants, strict=True))
    (body, *_) = piece.bodies
    operands = operation.inputs[1:] if operation.name == "cond" else operation.inputs

    def given_to(i: int, wanted: Sequence[Form], inside: int) -> _Given:
        if i in held:
            copies = [held[i]] * max(1, len(wanted))
            if not body.graph.is_token(inside):
                return _Given(copies)
            return _Given(copies, _observed(observe, piece, "operand", i, Form.RATIO, _shadow(values, i)))
        if not wanted:
            return _Given([forms.hold(values.plain[i])])
        copies = [values.copies[i, form] for form in wanted]
        if observe is not None:
            copies = [observe(piece, "operand", i, form, x) for form, x in zip(wanted, copies, strict=True)]
        return _Given(copies)

    given = list(map(given_to, operands, body.input_forms, body.graph.inputs))
    are_tokens = list(map(plan.graph.is_token, operation.outputs))
    if operation.name == "scan":
        outputs = _run_scan(body, operation.equation, given, are_tokens)
    elif operation.name == "shard_map":
        shared_out = equations.share_out(operation.equation, functools.partial(_rebind, body, are_tokens=are_tokens))
        outputs = shared_out(given)
    else:
        index = held.get(operation.inputs[0], values.plain[operation.inputs[0]])
        branches = [functools.partial(_rebind, branch, are_tokens=are_tokens) for branch in piece.bodies]
        outputs = lax.switch(index, branches, given)
    for i, found, arriving in zip(operation.outputs, outputs, body.output_forms, strict=True):
        values.plain[i] = found.copies[0]
        if found.shadow is not None:
            values.shadows[i] = _observed(observe, piece, "output", i, Form.RATIO, found.shadow)
        for form, copy in zip(arriving, found.copies, strict=False):
            values.copies[i, form] = _observed(observe, piece, "output", i, form, copy)


def _run_scan(body: Plan, equation: Any, given: Sequence[_Given], are_tokens: Sequence[bool]) -> list[_Given]:
    constants, carries = equations.scan_sizes(equation)
    fixed, carried, stacked = given[:constants], given[constants : constants + carries], given[constants + carries :]

    def step(carry: Any, x: Any) -> tuple[Any, Any]:
        outputs = _rebind(body, [*fixed, *carry, *x], are_tokens)
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
        The outputs, and a function that maps their cotangents to the relevance of the explained inputs, integers
        included, and of the probes.
    """
    graph = plan.graph
    positions: dict[Any, list[int]] = {}
    for i, probe in enumerate(probes):
        positions.setdefault((id(probe.piece), probe.side, probe.value), []).append(i)

    def run(explained: list[jax.Array], relevance: list[jax.Array]) -> list[jax.Array]:
        def observe(piece: Piece, side: str, value: int, form: Form, array: jax.Array) -> jax.Array:
            for i in positions.get((id(piece), side, value), ()):
                array = forms.tap(array, relevance[i], form, (masks or {}).get(i))
            return array

        given = dict(zip(numbers, explained, strict=True))
        arrays = [given[i] if graph.is_live(i) else value for i, value in by_number.items()]
        shadows = {i: given[i] for i in numbers if graph.is_token(i)}
        return rebind(plan, arrays, observe, shadows)

    by_number = dict(zip(graph.inputs, inputs, strict=True))
    numbers = [i for i in graph.inputs if graph.is_live(i) or graph.is_token(i)]
    explained = [by_number[i] if graph.is_live(i) else tokens.shadow_of_input(by_number[i]) for i in numbers]
    shapes = [graph.shapes[probe.value] for probe in probes]
    dtypes = [float if graph.is_token(probe.value) else graph.shapes[probe.value].dtype for probe in probes]
    # Made like another array, zeros vary within `jax.shard_map` along the same axes as it does.
    zeros = [
        jnp.zeros_like(explained[0], shape=shape.shape, dtype=dtype)
        for shape, dtype in zip(shapes, dtypes, strict=True)
    ]
    outputs, transpose = jax.vjp(run, explained, zeros)
    return outputs, lambda cotangents: transpose(list(cotangents))
