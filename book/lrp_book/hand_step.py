"""One training step of the network of the hand calculations, as a drawing."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lrp_book.hand_network import INPUT, WEIGHTS, Drawing, Step
from lrp_book.numbers import as_text

_Layers = list[NDArray[np.float64]]


class Pass(NamedTuple):
    """What the network computes, and the derivatives of its loss if the output should be low.

    Attributes:
        x: The values of the neurons, layer by layer.
        contributions: What flows along the edges, one array between two layers.
        by_neurons: The derivative of the loss by each hidden neuron, and by the output.
        by_weights: The derivative of the loss by each weight.
    """

    x: _Layers
    contributions: _Layers
    by_neurons: _Layers
    by_weights: _Layers


def forwards_and_back(weights: _Layers) -> Pass:
    """The hand network with some weights.

    The output is the logit of one class and 0 that of another, which is the correct one, so that the derivative of the
    cross-entropy by the output is the probability of the first.

    Example:
        >>> there_and_back = forwards_and_back([np.array(matrix) for matrix in WEIGHTS])
        >>> there_and_back.x[2]
        array([8.])
        >>> there_and_back.by_weights[1].round(2)
        array([[1.],
               [5.]])
    """
    x = [np.array(INPUT)]
    for number, matrix in enumerate(weights):
        z = x[-1] @ matrix
        x.append(np.maximum(z, 0) if number == 0 else z)
    by_output = np.asarray(jax.nn.sigmoid(jnp.asarray(x[2])), float)
    by_hidden = (weights[1] @ by_output) * (x[1] > 0)
    return Pass(
        x=x,
        contributions=[one[:, None] * matrix for one, matrix in zip(x[:2], weights, strict=True)],
        by_neurons=[by_hidden, by_output],
        by_weights=[np.outer(x[0], by_hidden), np.outer(x[1], by_output)],
    )


def training_step(name: str, rate: float) -> Drawing:
    """The network forwards, the gradient, the step and the network once more, in four steps.

    Args:
        name: A name for the drawing that no other one on the page has.
        rate: The learning rate.
    """
    weights = [np.array(matrix) for matrix in WEIGHTS]
    before = forwards_and_back(weights)
    moved = [matrix - rate * slope for matrix, slope in zip(weights, before.by_weights, strict=True)]
    after = forwards_and_back(moved)
    (a, b), (c, d) = weights[1].ravel(), moved[1].ravel()
    sums = [as_text(float(z), 2) for z in after.contributions[0].sum(axis=0)]
    first_hidden = "is closed" if after.x[1][0] == 0 else "is open"
    return Drawing(
        name,
        [
            Step("1. Forwards", f"The output is {_text(before.x[2])}. It should be low.", *_shown(before)),
            Step(
                "2. The gradient",
                "In each circle is the derivative of the loss by that neuron, on each edge the one by its weight: the "
                "number in the circle where the edge arrives, times the value where it begins.",
                [[None, None], before.by_neurons[0].tolist(), before.by_neurons[1].tolist()],
                before.by_weights,
                backward=True,
            ),
            Step(
                "3. The step",
                f"On each edge is its new weight, the old one less {as_text(rate)} times the derivative: {as_text(a)} "
                f"becomes {_text(c)}, and {as_text(b)} becomes {_text(d)}.",
                [before.x[0].tolist(), [None, None], [None]],
                moved,
            ),
            Step(
                "4. Forwards again",
                f"The hidden neurons add up {sums[0]} and {sums[1]}; the first {first_hidden}. The output is "
                f"{_text(after.x[2])}.",
                *_shown(after),
            ),
        ],
    )


def _shown(one: Pass) -> tuple[list[list[float | None]], _Layers]:
    return [[float(value) for value in layer] for layer in one.x], one.contributions


def _text(value: NDArray[np.float64] | float) -> str:
    return as_text(float(np.asarray(value).item()))
