"""Groups of operations that are treated as one smooth function: softmax and the logarithm of a sum of exponentials."""

from lrp_jax.graph import Graph, Operation, Status

_SPREADS = {"broadcast_in_dim", "reshape", "squeeze", "expand_dims"}


def find_smooth_groups(graph: Graph) -> list[tuple[str, tuple[Operation, ...]]]:
    """Finds every exp(x) / sum(exp(x)) and log(sum(exp(x))) that is written out, and the shifts that cancel around it.

    A maximum behind a stop_gradient that is subtracted from x, and added to the logarithm again, changes no value:
    written with it, the functions have the backward pass that they have without it.

    Returns:
        For each, "softmax", "logsumexp" or "shift", and its operations in the order in which they run.
    """
    found = []
    for operation in graph.operations:
        if operation.name == "div":
            group = _sum_of_exponentials(graph, operation.inputs[1])
            if group and operation.inputs[0] == group[0].outputs[0] and _is_read_by(graph, group[0], 2):
                found.append(("softmax", (*group, operation)))
        if operation.name == "log":
            group = _sum_of_exponentials(graph, operation.inputs[0])
            if group and _is_read_by(graph, group[0], 1):
                found.append(("logsumexp", (*group, operation)))
    shifts = {id(shift): shift for _, group in found for shift in _shifts(graph, group)}
    return found + [("shift", (shift,)) for shift in shifts.values()]


def _sum_of_exponentials(graph: Graph, value: int) -> tuple[Operation, ...]:
    """The exponential, the sum and the changes of shape that a value comes from; empty if it does not."""
    if not graph.is_live(value):
        return ()
    operation = graph.producer.get(value)
    group: list[Operation] = []
    while operation is not None and operation.name in _SPREADS | {"abs", "convert_element_type"}:
        group.insert(0, operation)
        operation = graph.producer.get(operation.inputs[0])
    if operation is None or operation.name != "reduce_sum":
        return ()
    group.insert(0, operation)
    operation = graph.producer.get(operation.inputs[0])
    while operation is not None and operation.name in {"select_n", "convert_element_type"}:  # in half precision
        group.insert(0, operation)
        operation = next((graph.producer.get(value) for value in operation.inputs if graph.is_live(value)), None)
    if operation is None or operation.name != "exp" or not all(_is_read_by(graph, inner, 1) for inner in group):
        return ()
    return operation, *group


def _shifts(graph: Graph, group: tuple[Operation, ...]) -> list[Operation]:
    before = graph.producer.get(group[0].inputs[0])
    if before is None or before.name != "sub" or graph.status[before.inputs[1]] is not Status.HELD:
        return []
    (value,) = group[-1].outputs
    maximum = _origin(graph, before.inputs[1])
    after = [
        reader
        for reader in graph.readers.get(value, ())
        if reader.name == "add" and maximum in [_origin(graph, operand) for operand in reader.inputs]
    ]
    return [before, *after]


def _origin(graph: Graph, value: int) -> int:
    while (operation := graph.producer.get(value)) and operation.name in _SPREADS | {"stop_gradient"}:
        value = operation.inputs[0]
    return value


def _is_read_by(graph: Graph, operation: Operation, number: int) -> bool:
    (value,) = operation.outputs
    return len(graph.readers.get(value, ())) == number and value not in graph.outputs
