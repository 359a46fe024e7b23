"""How operations and their bodies belong together: a scan, a cond and a shard_map, each run again with other bodies."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxpr_as_fun

from lrp_jax.core import equations
from lrp_jax.core.control import control_of, until_settled

WEIGHT = jax.random.normal(jax.random.key(0), (4, 4))
X = jax.random.normal(jax.random.key(1), (3, 4))


def scanned(x):
    return jax.lax.scan(lambda carry, row: (jnp.tanh(carry @ WEIGHT + row), carry.sum()), jnp.ones(4), x, reverse=True)


def branched(x):
    return jax.lax.switch(jnp.int32(x[0, 0] > 0) + 1, [jnp.zeros_like, jnp.sin, lambda x: x @ WEIGHT], x)


def shared_out(x):
    mesh = jax.make_mesh((1,), ("samples",), axis_types=(jax.sharding.AxisType.Auto,))
    samples = jax.P("samples")
    return jax.shard_map(lambda x: jnp.sin(x) @ WEIGHT, mesh=mesh, in_specs=samples, out_specs=samples)(x)


def last_equation(function):
    """The equation that a function ends with, and its inputs."""
    closed = jax.make_jaxpr(function)(X)
    equation = next(equation for equation in closed.jaxpr.eqns if control_of(equation) is not None)
    before = closed.jaxpr.replace(
        eqns=closed.jaxpr.eqns[: closed.jaxpr.eqns.index(equation)], outvars=list(equation.invars)
    )
    return equation, jax.core.eval_jaxpr(before, closed.consts, X)


RUNS = {scanned: 3, branched: 1, shared_out: 1}


@pytest.mark.parametrize("function", RUNS)
def test_run_with_its_own_bodies_an_operation_is_what_it_was(function):
    equation, inputs = last_equation(function)
    control = control_of(equation)

    def body(program, given):
        return jaxpr_as_fun(program)(*given), {"first": given[0].sum()}

    outputs, others = control.run([functools.partial(body, program) for program in control.programs], inputs)
    for found, value in zip(outputs, equations.run(equation, *inputs), strict=True):
        np.testing.assert_array_equal(found, value)
    assert others["first"].shape == (RUNS[function],)


def test_which_inputs_go_where():
    scan = control_of(last_equation(scanned)[0])
    names = ["weight", "carry", "rows"]
    assert (scan.index(names), scan.operands(names)) == ([], names)
    assert [list(positions) for positions in (scan.carried, scan.stacked, scan.stacked_outputs)] == [[1], [2], [1]]
    branch = control_of(last_equation(branched)[0])
    assert (branch.index(names), branch.operands(names)) == (["weight"], ["carry", "rows"])
    assert len(branch.programs) == 3
    assert not branch.carried
    assert control_of(last_equation(shared_out)[0]).axes == {"samples": 1}


def test_what_is_carried_is_followed_until_nothing_changes():
    known = []

    def follow(state):
        known.append(state)
        return len(known), min(state + 1, 3)

    assert until_settled(0, follow) == 4
    assert known == [0, 1, 2, 3]
