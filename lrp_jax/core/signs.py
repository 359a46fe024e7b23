"""Between which bounds values lie if functions of one value are told by their values: where(x > 0, x, 0) is a ReLU.

Rules read the ranges that follow from the operations one by one (`lrp_jax.core.ranges`), as these are certain. What a
factor is may not depend on how it is written, so that here every function of one value is looked at as a whole.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from lrp_jax.core import primitives
from lrp_jax.core.formulas import GRID
from lrp_jax.core.functions import Functions
from lrp_jax.core.graph import Operation, Status
from lrp_jax.core.ranges import Range, ranges_of_outputs

_OVERFLOW = 1e2  # a number from which exp, or what is made of it, may be infinite
_ROUNDING = 1e-9


def ranges_by_values(functions: Functions, of_inputs: Mapping[int, Range]) -> Sequence[Range]:
    """The bounds between which every value of a graph lies, also by what it is as a function of one value.

    Args:
        functions: The functions of one value in the graph.
        of_inputs: What is known of inputs besides.

    Returns:
        The bounds of each value, by its number.
    """
    graph = functions.graph
    found = [of_inputs.get(value, bounds) for value, bounds in enumerate(graph.ranges)]
    of_constants = Functions(graph, statuses=frozenset({Status.CONSTANT}))
    looks, roots = functions.looks(GRID) | of_constants.looks(GRID), functions.roots | of_constants.roots
    for operation in graph.operations:
        if not operation.bodies:
            _follow(operation, found)
        for value in operation.outputs:
            low, high = found[value]
            if value in looks and low < 0 and _is_nonnegative(looks[value], found[roots[value]]):
                found[value] = 0.0, high
    return found


def _follow(operation: Operation, found: list[Range]) -> None:
    """Narrows the ranges of an operation's outputs down to what those of its operands allow."""
    operands, inputs = [found[value] for value in operation.inputs], operation.inputs
    is_square = len(inputs) == 2 and inputs[0] == inputs[1]
    bounds = primitives.named(operation.name).bounds
    followed = ranges_of_outputs(bounds, operation.equation, operands, is_square)
    for value, (low, high) in zip(operation.outputs, followed, strict=True):
        found[value] = max(low, found[value][0]), min(high, found[value][1])


def _is_nonnegative(values: np.ndarray, bounds: Range) -> bool:
    """Whether a function is nowhere negative between the bounds of its root, up to rounding."""
    low, high = bounds
    is_known = ~np.isnan(values) | (np.abs(GRID) < _OVERFLOW)
    is_there = is_known & (np.clip(GRID, low, high) == GRID)
    values, numbers = values[is_there], GRID[is_there]
    return bool(values.size and np.all(values >= -_ROUNDING * np.abs(numbers)) and np.any(values > 0))
