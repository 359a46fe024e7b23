"""`lrp`: the function transformation."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from lrp_jax.composites import Rules, as_composite
from lrp_jax.core.arguments import MOST, as_counts, check_callable, within_memory
from lrp_jax.core.forms import guard
from lrp_jax.core.graph import Graph
from lrp_jax.core.hints import check_model
from lrp_jax.core.inference import Inference, check_choice
from lrp_jax.core.planner import make_plan
from lrp_jax.core.running import rebind
from lrp_jax.core.trace import trace


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
    argument is that argument's relevance. So `jax.grad` of one logit returns the relevance of every element of the
    input for this logit. The result is an ordinary JAX function. You can use `jax.jit`, `jax.vmap`, and a second
    differentiation (of a quantity computed from the relevance, with regard to parameters).

    Args:
        fun: A function of arrays (or pytrees of arrays) that JAX can trace: a Flax NNX module, the `apply` of a
            Linen module, a Keras model, a plain function; in inference mode.
        rules: A rule for every layer, or a composite that says which rule where.
        argnums: The positions of the arguments that are explained.
        inference: "checked" refuses a function in training mode: one with dropout, or with statistics over the first
            dimension of what is explained. "assumed" leaves this check out, for a function that only looks as if it
            were.

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
    check_model(fun)
    check_callable(fun, "fun")
    check_choice(inference)
    composite = as_composite(rules)
    positions = as_counts(argnums, "argnums", least=-MOST)

    def explained(*args: Any, **kwargs: Any) -> Any:
        traced = trace(fun, positions, args, kwargs, inference=inference)
        with within_memory("What is explained"):
            outputs = rebind(make_plan(traced.graph, composite), _guarded(traced.graph, traced.inputs))
        return jax.tree.unflatten(traced.structure, outputs)

    explained.__name__ = getattr(fun, "__name__", type(fun).__name__)
    explained.__doc__ = fun.__doc__
    return explained


def _guarded(graph: Graph, inputs: Sequence[jax.Array]) -> list[jax.Array]:
    """Sees to it that nothing is differentiated but the explained inputs."""
    values = dict(zip(graph.inputs, inputs, strict=True))
    explained = [i for i in graph.inputs if graph.is_live(i)]
    others = [value for i, value in (graph.constants | values).items() if i not in explained]
    values.update(zip(explained, guard([values[i] for i in explained], others), strict=True))
    return [values[i] for i in graph.inputs]
