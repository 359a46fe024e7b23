"""Taylor steps in the network of the hand calculations: one for the whole network, and one for each of its neurons."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lrp_book.hand_network import INPUT, WEIGHTS, Drawing, Step
from lrp_book.numbers import as_text
from lrp_jax.deep_taylor import find_root, neuron_root, taylor_messages, training_free_relevance_model

_X, _LOWER, _UPPER = jnp.array(INPUT), jnp.array(WEIGHTS[0]), jnp.array(WEIGHTS[1])


def network(x: jax.Array) -> jax.Array:
    """The output of the network, a scalar.

    Example:
        >>> float(network(jnp.array([2.0, 1.0])))
        8.0
    """
    return (jax.nn.relu(x @ _LOWER) @ _UPPER)[0]


def taylor_step(name: str) -> Drawing:
    """The Taylor decomposition of the whole network at the root downhill, in three steps.

    Args:
        name: A name for the drawing that no other one on the page has.
    """
    root = find_root(network, _X, -jax.grad(network)(_X)).root
    is_open = (root @ _LOWER > 0).astype(jnp.float32)
    messages = (_X - root)[:, None] * _LOWER * is_open * _UPPER[:, 0]
    relevance, remainder = messages.sum(1), network(_X) - messages.sum()
    at, parts = _both(root), _both(relevance)
    return Drawing(
        name,
        [
            _forwards("1. At x", "The evidence at x = (2, 1) is 8.", _X),
            _forwards("2. At the root", f"At {at} both hidden neurons are zero, and so is the output.", root),
            Step(
                "3. Back",
                f"The inputs get {parts}. The other {as_text(float(remainder))} belonged to the neuron that closed.",
                [_numbers(relevance), _numbers(messages.sum(0)), _numbers(network(_X)[None])],
                [_rounded(messages), _rounded(messages.sum(0)[:, None])],
                backward=True,
            ),
        ],
    )


def deep_taylor(name: str, domains: Mapping[str, Mapping[str, float]]) -> Drawing:
    """Deep Taylor decomposition: one Taylor step for each neuron, with z+ for the output.

    Args:
        name: A name for the drawing that no other one on the page has.
        domains: The bounds `low` and `high` of the inputs, by the name of the rule to which they lead.
    """
    hidden = jax.nn.relu(_X @ _LOWER)
    top = training_free_relevance_model(hidden, _UPPER, 0.0, network(_X)[None])
    upper = taylor_messages(top, hidden, low=0.0)
    model = training_free_relevance_model(_X, _LOWER, 0.0, upper.sum(1))
    steps = []
    for rule, domain in domains.items():
        lower = taylor_messages(model, _X, **domain)
        roots = [_both(neuron_root(_X, w, **domain).root) for w in _LOWER.T]
        sentence = (
            f"The hidden neurons have their roots at {roots[0]} and {roots[1]}. The inputs get {_both(lower.sum(1))}."
        )
        values = [_numbers(lower.sum(1)), _numbers(upper.sum(1)), _numbers(network(_X)[None])]
        steps.append(Step(rule, sentence, values, [_rounded(lower), _rounded(upper)], backward=True))
    return Drawing(name, steps)


def _forwards(title: str, sentence: str, x: jax.Array) -> Step:
    hidden = jax.nn.relu(x @ _LOWER)
    values = [_numbers(x), _numbers(hidden), _numbers(hidden @ _UPPER)]
    return Step(title, sentence, values, [_rounded(x[:, None] * _LOWER), _rounded(hidden[:, None] * _UPPER)])


def _rounded(values: jax.Array) -> np.ndarray:
    return np.asarray(values, float).round(3) + 0.0  # the tolerance of a root is not to be seen


def _numbers(values: jax.Array) -> Sequence[float]:
    return _rounded(values).tolist()


def _both(values: jax.Array) -> str:
    return f"({', '.join(map(as_text, _numbers(values)))})"
