"""`lrp`: the function transformation."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lrp_jax import forms
from lrp_jax.composites import Rules, as_composite
from lrp_jax.errors import LRPError
from lrp_jax.graph import Graph, Status, read
from lrp_jax.operations import Call
from lrp_jax.plan import Piece, Plan, make_plan


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
        LRPError: (when called) an explained argument is not real floating-point, `argnums` does not fit the call, or
            the value is differentiated with regard to an argument that is not explained.

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
    composite = as_composite(rules)
    positions = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    def explained(*args: Any, **kwargs: Any) -> Any:
        graph, inputs, structure = _trace(fun, positions, args, kwargs)
        outputs = rebind(make_plan(graph, composite), _begin(graph, inputs))
        return jax.tree.unflatten(structure, outputs)

    explained.__name__ = getattr(fun, "__name__", type(fun).__name__)
    explained.__doc__ = fun.__doc__
    return explained


def _begin(graph: Graph, inputs: Sequence[jax.Array]) -> list[jax.Array]:
    """Sees to it that nothing is differentiated but the explained inputs."""
    values = dict(zip(graph.inputs, inputs, strict=True))
    explained = [i for i in graph.inputs if graph.is_live(i)]
    others = [value for i, value in (graph.constants | values).items() if i not in explained]
    values.update(zip(explained, forms.begin([values[i] for i in explained], others), strict=True))
    return [values[i] for i in graph.inputs]


def rebind(plan: Plan, inputs: Sequence[jax.Array]) -> list[jax.Array]:
    """Runs a function piece by piece, each with the backward pass that the plan gives it.

    Args:
        plan: The function, and how relevance travels through it.
        inputs: Its inputs.

    Returns:
        Its outputs.
    """
    graph = plan.graph
    values = dict(graph.constants)
    for i, value, wanted in zip(graph.inputs, inputs, plan.input_forms, strict=True):
        values[i] = forms.convert(value, plan.form(i), wanted) if graph.is_live(i) else value
    for piece in plan.pieces:
        values.update(zip(piece.outputs, _run(plan, piece, values), strict=True))
    return [
        forms.convert(values[i], arriving, plan.form(i)) if graph.is_live(i) else values[i]
        for i, arriving in zip(graph.outputs, plan.output_forms, strict=True)
    ]


def _run(plan: Plan, piece: Piece, values: dict[int, jax.Array]) -> list[jax.Array]:
    live = [values[i] for i in piece.live]
    constants = [values[i] for i in piece.constants]
    if piece.treatment is None:
        return piece.run(live, constants)
    constants = [
        value if plan.graph.status[i] is Status.CONSTANT else forms.hold(value)
        for i, value in zip(piece.constants, constants, strict=True)
    ]
    live = [
        forms.convert(value, returned, plan.form(i))
        for i, value, returned in zip(piece.live, live, piece.returned, strict=True)
    ]
    outputs = _runner(piece)(live, constants)
    return [
        forms.convert(output, plan.form(i), taken) if plan.graph.is_live(i) else output
        for i, output, taken in zip(piece.outputs, outputs, piece.taken, strict=True)
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
        outputs = piece.run(live, constants)
        return outputs, (live, constants, outputs)

    def back(residuals: Any, cotangents: list[jax.Array]) -> tuple[list[jax.Array], None]:
        return list(backward(Call(piece.run, params, *residuals, cotangents))), None

    run.defvjp(forward, back)
    return run


def _run_bodies(piece: Piece, live: Sequence[jax.Array], constants: Sequence[jax.Array]) -> Sequence[jax.Array]:
    """Runs a scan or a cond with transformed bodies."""
    (operation,) = piece.operations
    values = dict(zip(piece.live + piece.constants, (*live, *constants), strict=True))
    operands = [values[i] for i in operation.inputs]
    params = operation.equation.params
    if operation.name == "cond":
        return lax.switch(operands[0], [functools.partial(_run_branch, plan) for plan in piece.bodies], *operands[1:])
    number, carries = params["num_consts"], params["num_carry"]

    def body(carry: Sequence[jax.Array], x: Sequence[jax.Array]) -> tuple[Sequence[jax.Array], Sequence[jax.Array]]:
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


def _trace(
    fun: Callable[..., Any], positions: Sequence[int], args: Sequence[Any], kwargs: dict[str, Any]
) -> tuple[Graph, list[Any], Any]:
    """Traces a call. Arrays become inputs of the graph; whatever else the arguments hold stays as it is."""
    if any(not -len(args) <= position < len(args) for position in positions):
        raise LRPError(
            f"argnums={tuple(positions)} names a positional argument that the call does not have: "
            f"{len(args)} were given. Pass the explained argument by position."
        )
    explained = {position % len(args) for position in positions}
    is_live = [i in explained for i, arg in enumerate(args) for _ in jax.tree.leaves(arg)] + [False] * len(
        jax.tree.leaves(kwargs)
    )
    leaves, tree = jax.tree.flatten((args, kwargs))
    for leaf, live in zip(leaves, is_live, strict=True):
        if live and not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise LRPError(
                f"The explained argument holds {jnp.result_type(leaf)} values, and relevance needs real floating-point "
                "numbers. Convert it first, for example with x.astype('float32')."
            )
    is_array = [live or hasattr(leaf, "dtype") for leaf, live in zip(leaves, is_live, strict=True)]

    def call(arrays: list[Any]) -> Any:
        given = iter(arrays)
        merged = [next(given) if array else leaf for leaf, array in zip(leaves, is_array, strict=True)]
        arguments, keywords = jax.tree.unflatten(tree, merged)
        return fun(*arguments, **keywords)

    arrays = [leaf for leaf, array in zip(leaves, is_array, strict=True) if array]
    closed_jaxpr, output = jax.make_jaxpr(call, return_shape=True)(arrays)
    statuses = [
        Status.LIVE if live else Status.CONSTANT for live, array in zip(is_live, is_array, strict=True) if array
    ]
    paths = [_name(path[2:]) for path, _ in jax.tree_util.tree_leaves_with_path((args, kwargs))]
    array_paths = [path for path, array in zip(paths, is_array, strict=True) if array]
    held = _paths_of_arrays(fun)
    graph = read(closed_jaxpr, statuses, array_paths, lambda constant: held.get(id(constant), ""))
    return graph, arrays, jax.tree.structure(output)


def _paths_of_arrays(fun: Callable[..., Any]) -> dict[int, str]:
    """The paths of the arrays that a function holds: as a module, as a partial, or in variables that it closes over."""
    holders = [fun, getattr(fun, "__self__", None), getattr(fun, "args", None), getattr(fun, "keywords", None)]
    function = inspect.unwrap(getattr(fun, "func", fun))
    if inspect.isfunction(function):
        variables = inspect.getclosurevars(function)
        holders += [*variables.nonlocals.values(), *variables.globals.values()]
    leaves = [leaf for holder in holders for leaf in jax.tree_util.tree_leaves_with_path(holder)]
    return {id(leaf): _name(path) for path, leaf in leaves if hasattr(leaf, "dtype")}


def _name(path: Sequence[Any]) -> str:
    """The path of a parameter as a name: without the attribute that holds the array, and Linen's collection."""
    name = jax.tree_util.keystr(tuple(path), simple=True, separator=".")
    return name.removesuffix(".value").removeprefix("params.")
