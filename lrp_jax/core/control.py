"""Operations that run programs of their own: calls, and scan, cond and shard_map.

A call is looked into: its operations become operations of the function that calls. What a scan, a cond or a shard_map
runs stays a function of its own, a *body*. A `Control` says how the values of such an operation and those of its bodies
belong together. Whoever follows something through a function (its statuses, forms, marks, samples, ...) asks that, and
need not know which of the three it is.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.sharding import PartitionSpec

T = TypeVar("T")
R = TypeVar("R")
Body: TypeAlias = Callable[[list[Any]], tuple[list[Any], Any]]


def closed(program: ClosedJaxpr | Jaxpr) -> ClosedJaxpr:
    """A program with the arrays that it holds; in a bare one there are none."""
    return program if isinstance(program, ClosedJaxpr) else ClosedJaxpr(program, ())


@dataclass(frozen=True)
class Control:
    """How the values of an operation and those of its bodies belong together.

    Attributes:
        programs: The bodies: the branches of which one is run, or a single one.
        run: Runs functions in the place of the bodies, given all inputs of the operation. Such a function maps the
            inputs of its body, which may be pytrees, to its outputs and to something else. Returned are the outputs of
            the operation, and what else there is, along a new first axis: once for each step or device.
        has_index: Whether the first input of the operation says which body is run, and goes into none.
        carried: The positions of a body's inputs that are its own first outputs, of the step before.
        stacked: The positions of a body's inputs that are slices along the first axis, one for each step.
        stacked_outputs: The same of its outputs.
        axes: The axes of a mesh over whose devices the work is shared out, and how many each has.
    """

    programs: tuple[ClosedJaxpr, ...]
    run: Callable[[Sequence[Body], Sequence[Any]], tuple[list[Any], Any]]
    has_index: bool = False
    carried: range = range(0)
    stacked: range = range(0)
    stacked_outputs: range = range(0)
    axes: Mapping[str, int] = field(default_factory=dict)

    def operands(self, inputs: Sequence[T]) -> Sequence[T]:
        """The inputs of the operation that go into each of its bodies."""
        return inputs[1:] if self.has_index else inputs

    def index(self, inputs: Sequence[T]) -> Sequence[T]:
        """The input of the operation that says which body is run, if there is one."""
        return inputs[:1] if self.has_index else inputs[:0]


def until_settled(known: T, follow: Callable[[T], tuple[R, T]]) -> R:
    """Follows what is known of carried values through a body until what comes out is what went in.

    Args:
        known: What is known at first.
        follow: Maps what goes in to what is found, and to what is known then.

    Returns:
        What is found in the end.
    """
    while True:
        found, after = follow(known)
        if after == known:
            return found
        known = after


def scan(equation: Any) -> Control:
    """A `jax.lax.scan`."""
    params = equation.params
    if "num_consts" in params:
        constants, carries = params["num_consts"], params["num_carry"]
    else:  # since JAX 0.11
        constants, carries, _ = (len(list(part)) for part in params["ft_in"].unpack())
    loop = functools.partial(lax.scan, length=params["length"], reverse=params["reverse"], unroll=params["unroll"])

    def run(bodies: Sequence[Body], inputs: Sequence[Any]) -> tuple[list[Any], Any]:
        (body,) = bodies
        fixed, carried, stacked = inputs[:constants], inputs[constants:][:carries], inputs[constants + carries :]

        def step(carry: list[Any], slices: list[Any]) -> tuple[list[Any], Any]:
            outputs, others = body([*fixed, *carry, *slices])
            return outputs[:carries], (outputs[carries:], others)

        carry, (outputs, others) = loop(step, list(carried), list(stacked))
        return [*carry, *outputs], others

    program = closed(params["jaxpr"])
    return Control(
        (program,),
        run,
        carried=range(constants, constants + carries),
        stacked=range(constants + carries, len(equation.invars)),
        stacked_outputs=range(carries, len(equation.outvars)),
    )


def cond(equation: Any) -> Control:
    """A `jax.lax.cond` or `jax.lax.switch`."""

    def run(bodies: Sequence[Body], inputs: Sequence[Any]) -> tuple[list[Any], Any]:
        index, *operands = inputs
        return _once(lambda operands: lax.switch(index, bodies, operands))(operands)

    return Control(tuple(equation.params["branches"]), run, has_index=True)


def shard_map(equation: Any) -> Control:
    """A `jax.shard_map`."""
    params = equation.params
    axes = params["newly_manual_axes" if "newly_manual_axes" in params else "manual_axes"]  # the latter in JAX 0.9

    def run(bodies: Sequence[Body], inputs: Sequence[Any]) -> tuple[list[Any], Any]:
        (body,) = bodies
        return jax.shard_map(
            _once(body),
            mesh=params["mesh"],
            in_specs=(list(params["in_specs"]),),
            out_specs=(list(params["out_specs"]), PartitionSpec(tuple(sorted(axes)))),
            axis_names=set(axes),
            check_vma=params["check_vma"],
        )(list(inputs))

    return Control((closed(params["jaxpr"]),), run, axes={axis: params["mesh"].shape[axis] for axis in axes})


def _once(body: Body) -> Body:
    """Gives what a body returns besides its outputs a first axis."""

    def run(operands: list[Any]) -> tuple[list[Any], Any]:
        outputs, others = body(operands)
        return outputs, jax.tree.map(lambda x: x[None], others)

    return run


def with_operands(equation: Any, programs: Mapping[str, Any], operands: Sequence[Any]) -> Any:
    """Gives an equation further operands.

    Args:
        equation: A call, a loop, a branch or a `jax.shard_map`.
        programs: Its programs, by the name of the parameter. Each of them takes these operands first.
        operands: The variables.
    """
    number, params = len(operands), {**equation.params, **programs}
    for key in ("num_consts", "cond_nconsts", "body_nconsts"):
        if key in params:
            params[key] += number
    for key, value in {"in_layouts": None, "donated_invars": False, "in_specs": PartitionSpec()}.items():
        if key in params:
            params[key] = (value,) * number + tuple(params[key])
    if "in_shardings" in params:
        params["in_shardings"] = (_unspecified(),) * number + tuple(params["in_shardings"])
    if isinstance(params.get("prevent_cse"), tuple):
        params["prevent_cse"] = (True,) * number + params["prevent_cse"]
    first, others = equation.invars[:0], equation.invars
    if "cond_nconsts" in params:  # a while, whose two programs have operands of their own
        own = equation.params["cond_nconsts"]
        first, others = [*operands, *others[:own]], others[own:]
    elif equation.primitive.name == "cond":
        first, others = others[:1], others[1:]
    return equation.replace(invars=[*first, *operands, *others], params=params)


@functools.cache
def _unspecified() -> Any:
    """What JAX writes where the sharding of an operand is left open."""
    (equation,) = jax.make_jaxpr(jax.jit(lambda x: x + 1))(0).jaxpr.eqns
    return equation.params["in_shardings"][0]
