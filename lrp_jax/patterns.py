"""Groups of operations that are treated as one smooth function: softmax and the logarithm of a sum of exponentials."""

from lrp_jax.graph import Graph, Operation

_SPREADS = {"broadcast_in_dim", "reshape", "squeeze", "expand_dims"}


def find_smooth_groups(graph: Graph) -> list[tuple[str, tuple[Operation, ...]]]:
    """Finds every exp(x) / sum(exp(x)) and log(sum(exp(x))) that is written out.

    Returns:
        For each, "softmax" or "logsumexp", and its operations in the order in which they run.
    """
    found = []
    for operation in graph.operations:
        if operation.name == "div" and (group := _sum_of_exponentials(graph, operation.inputs[1])):
            exponential = group[0]
            if operation.inputs[0] == exponential.outputs[0] and _is_read_by(graph, exponential, 2):
                found.append(("softmax", (*group, operation)))
        if operation.name == "log" and (group := _sum_of_exponentials(graph, operation.inputs[0])):
            if _is_read_by(graph, group[0], 1):
                found.append(("logsumexp", (*group, operation)))
    return found


def _sum_of_exponentials(graph: Graph, value: int) -> tuple[Operation, ...]:
    """The exponential, the sum and the changes of shape that a value comes from; empty if it does not."""
    if not graph.is_live(value):
        return ()
    operation, shapes = graph.producer.get(value), []
    while operation is not None and operation.name in _SPREADS:
        shapes.insert(0, operation)
        operation = graph.producer.get(operation.inputs[0])
    if operation is None or operation.name != "reduce_sum":
        return ()
    exponential = graph.producer.get(operation.inputs[0])
    if exponential is None or exponential.name != "exp":
        return ()
    group = (exponential, operation, *shapes)
    return group if all(_is_read_by(graph, inner, 1) for inner in group[1:]) else ()


def _is_read_by(graph: Graph, operation: Operation, number: int) -> bool:
    (value,) = operation.outputs
    return len(graph.readers.get(value, ())) == number and value not in graph.outputs
