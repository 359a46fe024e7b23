"""Refuses marks that could have no effect: those that say what a value is as a factor, where it is none."""

from collections.abc import Set

from lrp_jax.core.equations import Mark
from lrp_jax.core.graph import Graph
from lrp_jax.core.primitive import Family
from lrp_jax.errors import ModelError


def check_marks(graph: Graph, said_outside: Set[int] = frozenset()) -> None:
    """Refuses a mark that says what a value is as a factor, where it is none.

    Args:
        graph: The function.
        said_outside: Its inputs of which this is said where they come from.

    Raises:
        ModelError: If there is such a mark, also within a scan or a branch.
    """
    loops = [operation for operation in graph.operations if operation.bodies]
    said_within = {value for operation in loops for value in operation.outputs}
    for value, mark, where in graph.marked(Mark.GATE, Mark.SIGNAL):
        if value not in said_outside | said_within and not _is_factor(graph, value):
            raise ModelError(
                f"mark.{mark.value} at {where} has no effect: its value is no factor of a product with another value "
                "through which relevance flows. Put it around the factor itself, or leave it out."
            )
    for operation in loops:
        for body in operation.bodies:
            pairs = zip(body.inputs, operation.operands, strict=True)
            check_marks(body, {inner for inner, outer in pairs if outer in graph.marks})


def _is_factor(graph: Graph, value: int) -> bool:
    """Whether a product reads a value, also behind moves and constants that scale it or are added to it."""
    reached = [value]
    for value in reached:  # which grows on the way
        for operation in graph.users.get(value, []):
            number = len(graph.live_inputs(operation))
            if (Family.PRODUCT in operation.family and number == 2) or operation.bodies:
                return True
            is_affine = Family.AFFINE in operation.family or operation.name == "select_n"
            if operation.family & Family.UNCHANGED or (is_affine and number == 1):
                reached.extend(output for output in operation.outputs if output not in reached)
        if value in graph.outputs and graph.is_inner:
            return True
    return False
