"""`lrp`: the function transformation."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lrp_jax import forms
from lrp_jax.errors import LRPError
from lrp_jax.forms import Form
from lrp_jax.graph import Graph, read
from lrp_jax.plan import Piece, Plan, make_plan
from lrp_jax.rules import Rule


def lrp(fun: Callable[..., Any], rules: Rule, argnums: int | Sequence[int] = 0) -> Callable[..., Any]:
    """Transforms a function so that its vector-Jacobian product is layer-wise relevance propagation.

    The transformed function has the same value. Where JAX would propagate a gradient backwards, it propagates
    relevance: a cotangent v of the output starts with the relevance v * fun(x), and the cotangent of an explained
    argument is that argument's relevance. `jax.grad` of one logit therefore returns the relevance of every element of
    the input for this logit. The result is an ordinary JAX function: `jax.jit`, `jax.vmap` and a second
    differentiation (of a quantity computed from the relevance, with regard to parameters) apply.

    Args:
        fun: A function of arrays (or pytrees of arrays) that JAX can trace: a bound Flax NNX module, the `apply` of a
            Linen module, a plain function; in inference mode.
        rules: The rule for every layer.
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
    positions = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    def explained(*args: Any, **kwargs: Any) -> Any:
        graph, inputs, structure = _trace(fun, positions, args, kwargs)
        outputs = rebind(graph, make_plan(graph, rules), inputs)
        return jax.tree.unflatten(structure, outputs)

    explained.__name__ = getattr(fun, "__name__", type(fun).__name__)
    explained.__doc__ = fun.__doc__
    return explained


def rebind(graph: Graph, plan: Plan, inputs: Sequence[jax.Array]) -> list[jax.Array]:
    """Runs a function piece by piece, each with the backward pass that the plan gives it.

    Args:
        graph: The function.
        plan: How relevance travels through it.
        inputs: The inputs of the graph.

    Returns:
        The outputs of the graph.
    """
    values = graph.constants | dict(zip(graph.inputs, inputs, strict=True))
    explained = [i for i in graph.inputs if graph.is_live(i)]
    others = [value for i, value in values.items() if i not in explained]
    begun = forms.begin([values[i] for i in explained], others)
    for i, value in zip(explained, begun, strict=True):
        values[i] = forms.convert(value, plan.forms.get(i, Form.RATIO), Form.RELEVANCE)
    for piece in plan.pieces:
        values.update(zip(piece.outputs, _run(plan, piece, values), strict=True))
    return [forms.convert(values[i], Form.RATIO, plan.forms.get(i, Form.RATIO)) for i in graph.outputs]


def _run(plan: Plan, piece: Piece, values: dict[int, jax.Array]) -> list[jax.Array]:
    constants = [values[i] for i in piece.constants]
    if piece.treatment is None:
        return piece.run([values[i] for i in piece.live], constants)
    live = [forms.convert(values[i], piece.returned, plan.forms[i]) for i in piece.live]
    backward = piece.treatment.backward.get(piece.taken)
    run = piece.run if backward is None else _with_backward(piece, backward)
    return [
        forms.convert(output, plan.forms.get(i, piece.taken), piece.taken)
        for i, output in zip(piece.outputs, run(live, constants), strict=True)
    ]


def _with_backward(piece: Piece, backward: Callable[..., Any]) -> Callable[..., Any]:
    @jax.custom_vjp
    def run(live, constants):
        return piece.run(live, constants)

    def forward(live, constants):
        outputs = piece.run(live, constants)
        return outputs, (live, constants, outputs)

    def back(residuals, cotangents):
        return list(backward(*residuals, cotangents)), None

    run.defvjp(forward, back)
    return run


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
    arrays_live = [live for live, array in zip(is_live, is_array, strict=True) if array]
    return read(closed_jaxpr, arrays_live), arrays, jax.tree.structure(output)
