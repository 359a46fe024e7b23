"""What JAX makes of a function, for tests of what is known of single equations."""

import jax


def equations(program):
    """The equations of a program, with those of the calls in it."""
    for equation in program.eqns:
        inner = equation.params.get("jaxpr")
        yield from [equation] if inner is None else equations(inner)


def equation_of(operation, *operands, name=None):
    """The last equation of an operation, or the last of a name."""
    (*_, last) = (eqn for eqn in equations(jax.make_jaxpr(operation)(*operands)) if name in (None, eqn.primitive.name))
    return last
