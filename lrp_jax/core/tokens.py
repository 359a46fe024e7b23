"""Explained integers: how they move on their way to the tables in which they are looked up.

An integer has no size that relevance could be a part of: relevance ends where something is looked up with it. To know
which integer it was, everything that is made of explained integers has a shadow: an array in its shape that holds how
many of them are in each place, and takes part in all moves (slices, gathers, padding, selections, ...). What is looked
up is tied to the shadow of its indices, and relevance returns along the shadows (`lrp_jax.core.shadows`).

- Moves and elementwise arithmetic keep the place. Where two integers meet in one index, they share what it gets.
- `ids == table` along a fresh axis, as in `jax.nn.one_hot`, is a code of the integers: so is what is looked up in a
  table of integers. A sum over that axis, or a product with a table, is a look-up; a code that is used in another way
  is a live value, as if it had been looked up itself, and so are its counts. Beside a live value it is a mask.
- What comes out of another comparison, or of a reduction, is held.

Explained numbers may be looked up, too, such as a column of categories that a model converts to integers. Where this
happens, they are integers from there on; between the explained numbers and the look-up there may be moves, offsets,
bounds and rounding alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp

from lrp_jax.core import primitives
from lrp_jax.core.graph import Code, Graph, Operation, Status
from lrp_jax.core.primitive import Family
from lrp_jax.core.samples import Carried
from lrp_jax.errors import InputError

_MOVED = Family.MOVE | Family.WRITE | Family.IDENTITY
_LOOK_UPS = frozenset({"dynamic_slice", "gather", "scatter", "scatter-add", "select_n"})
_KEEP_CATEGORIES = Family.ADDITION | Family.CHOICE | Family.STEP
_REDUCED = Family.REDUCTION | Family.CUMULATIVE | Family.WINDOW


@dataclass(frozen=True)
class Followed:
    """What an equation makes of explained integers.

    Attributes:
        status: TOKEN for what moves on, LIVE for what has been looked up, HELD for the rest.
        code: What the output is if it is a code.
        is_lost: Whether the equation is one through which integers cannot be followed.
    """

    status: Status
    code: Code | None = None
    is_lost: bool = False


_HELD = Followed(Status.HELD)


def follow(graph: Graph, equation: Any, inputs: Sequence[int], position: int = 0) -> Followed:
    """What an output of an equation is that reads explained integers, and no live value.

    Args:
        graph: The function.
        equation: The equation.
        inputs: The numbers of its operands.
        position: Which of its outputs.
    """
    name = equation.primitive.name
    dtype = equation.outvars[position].aval.dtype
    data = [inputs[i] for i in data_positions(name, len(inputs))]
    tokens = [value for value in data if graph.is_token(value)]
    is_lost = not graph.lost_tokens.isdisjoint(inputs)
    if not tokens:
        return replace(_looked_up(graph, equation, inputs, data), is_lost=is_lost)
    if is_lost:
        return _HELD if dtype == jnp.bool_ or name == "stop_gradient" else Followed(Status.TOKEN, is_lost=True)
    if name == "eq":
        axis = _fresh_axis(graph, *sorted(inputs, key=graph.is_token))
        return _HELD if axis is None else Followed(Status.TOKEN, Code(axis))
    if name == "ne" and graph.shapes[tokens[0]].dtype == jnp.bool_ and any(_is_zero(graph, value) for value in data):
        return Followed(Status.TOKEN, graph.codes.get(tokens[0]))  # as `jnp.count_nonzero` writes it
    if name == "sort":
        return Followed(Status.TOKEN) if graph.is_token(inputs[position]) else _HELD
    codes = [graph.codes.get(value) for value in tokens]
    code = _code_after(equation, inputs.index(tokens[0]), codes[0]) if codes[0] and len(set(codes)) == 1 else None
    if _contracts(graph, equation, inputs):
        return _found_in_table(dtype)
    if name == "stop_gradient" or (dtype == jnp.bool_ and code is None):
        return _HELD
    if codes[0] and (counted := _counted(equation, codes[0])):
        return counted
    family = primitives.family_of(equation)
    if family & (_MOVED | Family.BITS | Family.ELEMENTWISE):
        return _HELD if dtype == jnp.bool_ and len(data) > 1 else Followed(Status.TOKEN, code)
    is_reduced = family & _REDUCED or name in {"dot_general", "top_k"}
    if is_reduced and not jnp.issubdtype(dtype, jnp.floating):
        return _HELD
    return Followed(Status.TOKEN, is_lost=True)


def stays_as_given(graph: Graph, equation: Any, inputs: Sequence[int]) -> bool:
    """Whether what an equation returns are still explained numbers as they were given, or integers made of such."""
    name, dtypes = equation.primitive.name, [variable.aval.dtype for variable in equation.outvars]
    data = [inputs[i] for i in data_positions(name, len(inputs))]
    given = [value for value in data if value in graph.as_given]
    is_mixed = any(value not in graph.as_given and not graph.is_constant(value) for value in data)
    if not given or is_mixed or name == "stop_gradient" or jnp.bool_ in dtypes:
        return False
    family = primitives.family_of(equation)
    if family & _MOVED or name == "select_n" or (family & _KEEP_CATEGORIES and len(given) == 1):
        return True
    is_elementwise = bool(family & (Family.BITS | Family.ELEMENTWISE))
    return is_elementwise and all(jnp.issubdtype(dtype, jnp.integer) for dtype in dtypes)


def looked_up_as_given(graph: Graph, equation: Any, inputs: Sequence[int]) -> list[int]:
    """The operands of an equation that are explained numbers as they were given, if it looks something up with them."""
    name = equation.primitive.name
    given = [value for value in inputs if value in graph.as_given]
    if name == "eq":
        is_code = len(given) == 1 and _fresh_axis(graph, *sorted(inputs, key=graph.as_given.__contains__)) is not None
        return given if is_code else []
    is_look_up = name in _LOOK_UPS and given
    return given if is_look_up and all(graph.is_constant(inputs[i]) for i in data_positions(name, len(inputs))) else []


def _counted(equation: Any, code: Code) -> Followed | None:
    """How often each entry of a code is there, or whether a code has one of its entries; None of what is neither."""
    name, params = equation.primitive.name, equation.params
    axes = params.get("axes", (params.get("axis"),))
    if name == "reduce_or" and code.axis in axes:
        return _HELD
    is_counted = name in {"cumsum", "reduce_sum"} and code.axis is not None and code.axis not in axes
    return Followed(Status.TOKEN, Code()) if is_counted else None


def data_positions(name: str, number: int) -> Sequence[int]:
    """The positions of the operands that a primitive moves or computes with; the others are indices."""
    return range(number)[primitives.named(name).data]


def _looked_up(graph: Graph, equation: Any, inputs: Sequence[int], data: Sequence[int]) -> Followed:
    """What is read from tables with integers as indices."""
    dtype, name = equation.outvars[0].aval.dtype, equation.primitive.name
    if name not in _LOOK_UPS or not all(map(graph.is_constant, data)):
        return _HELD
    code = graph.codes.get(inputs[0])
    window: tuple[int, ...] = equation.params["dimension_numbers"].offset_dims if name == "gather" else ()
    axis = window[0] if len(window) == 1 else None
    if name == "gather" and _is_made_of_truth_values(graph, data[0]) and not (dtype == jnp.bool_ and axis is None):
        return Followed(Status.TOKEN, Code(axis))
    if dtype == jnp.bool_:
        return _HELD
    if name == "select_n" and code is not None and len(data) == 2 and _is_zero(graph, data[0]):
        return Followed(Status.TOKEN, code)
    return _found_in_table(dtype)


def _found_in_table(dtype: Any) -> Followed:
    return Followed(Status.LIVE) if jnp.issubdtype(dtype, jnp.floating) else Followed(Status.TOKEN, Code())


def _is_made_of_truth_values(graph: Graph, table: int) -> bool:
    """Whether the function makes a table out of truth values, as `jnp.eye` does."""
    operation = graph.producer.get(table)
    while operation is not None and Family.IDENTITY in operation.family and table not in graph.parameters:
        (table,) = operation.inputs
        operation = graph.producer.get(table)
    return table not in graph.parameters and graph.shapes[table].dtype == jnp.bool_


def _is_zero(graph: Graph, value: int) -> bool:
    number = graph.number(value)
    return number is not None and bool(number == 0)


def _fresh_axis(graph: Graph, other: int, token: int) -> int | None:
    """The dimension along which every integer is compared with all entries of a constant; None if there is none."""
    if not graph.is_constant(other) or graph.number(other) is not None or token in graph.codes:
        return None
    shape, of_other = graph.shapes[token].shape, graph.shapes[other].shape
    operation = graph.producer.get(token)
    while operation is not None and Family.IDENTITY in operation.family:
        operation = graph.producer.get(operation.inputs[0])
    if operation is None or operation.name != "broadcast_in_dim":
        return None
    before, dimensions = operation.equation.invars[0].aval.shape, operation.equation.params["broadcast_dimensions"]
    kept = {axis for axis, size in zip(dimensions, before, strict=True) if size == shape[axis]}
    offset = len(shape) - len(of_other)
    fresh = [i for i in range(len(shape)) if i not in kept and i >= offset and of_other[i - offset] > 1]
    return fresh[0] if len(fresh) == 1 else None


def _contracts(graph: Graph, equation: Any, inputs: Sequence[int]) -> bool:
    """Whether an equation adds up a code along its axis, alone or times a table."""
    name, params = equation.primitive.name, equation.params
    coded = [i for i, value in enumerate(inputs) if value in graph.codes]
    if len(coded) != 1:
        return False
    axis = graph.codes[inputs[coded[0]]].axis
    if name == "reduce_sum":
        return axis is not None and tuple(params["axes"]) == (axis,)
    if name != "dot_general" or not graph.is_constant(inputs[1 - coded[0]]):
        return False
    return axis is not None and tuple(params["dimension_numbers"][0][coded[0]]) == (axis,)


def _code_after(equation: Any, position: int, code: Code) -> Code:
    """What becomes of a code in a move or an elementwise operation with constants."""
    name, family = equation.primitive.name, primitives.family_of(equation)
    is_kept = Family.IDENTITY in family or name in {"neg", "mul", "select_n", "slice", "dynamic_slice"}
    if code.axis is None or is_kept or (name == "div" and position == 0):
        return code
    if Family.MOVE not in family:
        return Code()
    before, after = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    moved = primitives.named(name).samples.moved(Carried(equation.params, [before], after, [code.axis]), 0, code.axis)
    return Code(moved if moved is not None and after[moved] == before[code.axis] else None)


def sliced(code: Code | None, *, is_stacked: bool) -> Code | None:
    """What a code is inside of the body of a scan, which sees one slice after the other of what is stacked."""
    if code is None or not is_stacked or code.axis is None:
        return code
    return Code(code.axis - 1 if code.axis else None)


def becomes_live(graph: Graph, equation: Any, inputs: Sequence[int]) -> list[int]:
    """The operands of an equation that are codes in floating point, and are used as live values there."""
    name = equation.primitive.name
    coded = [v for v in inputs if v in graph.codes and jnp.issubdtype(graph.shapes[v].dtype, jnp.floating)]
    if not coded or name == "stop_gradient" or all(variable.aval.dtype == jnp.bool_ for variable in equation.outvars):
        return []
    if (control := primitives.control_of(equation)) is not None:
        if control.axes:
            return coded
        carried = {value for i, value in enumerate(control.operands(inputs)) if i in control.carried}
        return [value for value in coded if value in carried]
    if any(map(graph.is_live, inputs)):
        return [] if Family.PRODUCT in primitives.family_of(equation) else coded
    return [] if _keeps_code(graph, equation, inputs) or _contracts(graph, equation, inputs) else coded


def _keeps_code(graph: Graph, equation: Any, inputs: Sequence[int]) -> bool:
    """Whether an equation of a code in floating point returns a code."""
    name = equation.primitive.name
    tokens = [i for i, value in enumerate(inputs) if graph.is_token(value)]
    if name == "select_n":
        return all(value in graph.codes or _is_zero(graph, value) for value in inputs[1:]) and 0 not in tokens
    if name in {"div", "dynamic_slice", "gather"}:
        return tokens == [0]
    if name == "mul":
        return len(tokens) == 1
    if name == "concatenate":
        return True
    return len(inputs) == 1 and (bool(primitives.family_of(equation) & _MOVED) or name == "neg")


def check_tokens(graph: Graph) -> None:
    """Refuses a function in which the size of explained integers matters, or that loses sight of them.

    Raises:
        InputError: If it is such.
    """
    for inner, operation in graph.all_operations():
        outputs = operation.outputs
        reads = [operation.inputs[i] for i in data_positions(operation.name, len(operation.inputs))]
        if operation.bodies:
            body = operation.bodies[0]
            pairs = zip(operation.operands, body.inputs, strict=True)
            is_sized = any(inner.is_token(value) and body.is_live(inside) for value, inside in pairs)
        else:
            is_sized = any(inner.is_token(value) and value not in inner.codes for value in reads)
            is_sized = is_sized and any(map(inner.is_live, outputs))
        if is_sized:
            raise InputError(
                f"The size of explained integers meets a live value in {operation.name!r} at {operation.location}: "
                "they are used as numbers, and not to look something up in an embedding, so that they have no "
                "relevance. Leave a mask out of x, as in lambda x: model(x, mask). Explain numbers, for example with "
                "x.astype('float32'), or hold them there with jax.lax.stop_gradient."
            )
        lost = [v for v in operation.inputs if v in inner.lost_tokens]
        if lost and (operation.bodies or not set(outputs).isdisjoint(inner.embeddings)):
            through = _origin_of_loss(inner, lost[0])
            raise InputError(
                f"Explained integers cannot be followed through the operation {through.name!r} at {through.location} "
                f"to what is looked up with them at {operation.location}. Compute what it returns outside of the "
                "model, or explain the embedded tokens instead."
            )


def _origin_of_loss(graph: Graph, value: int) -> Operation:
    while True:
        operation = graph.producer[value]
        before = next((i for i in operation.inputs if i in graph.lost_tokens), None)
        if before is None:
            return operation
        value = before


def place_of_size(graph: Graph) -> str:
    """The first place at which the size of explained integers becomes a number; empty if there is none."""
    for inner, operation in graph.all_operations():
        if operation.name == "convert_element_type" and inner.is_token(operation.outputs[0]):
            before, after = (inner.shapes[i].dtype for i in (operation.inputs[0], operation.outputs[0]))
            if jnp.issubdtype(before, jnp.integer) and jnp.issubdtype(after, jnp.floating):
                return operation.location
    return ""
