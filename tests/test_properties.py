"""What must hold for every network, every rule and every input, whatever the numbers are."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from programs import programs

from lrp_jax import composites, lrp, rules
from lrp_jax.composites import Composite, any_layer, first, last

RULES = {
    "zero": rules.Zero(),
    "epsilon": rules.Epsilon(0.1),
    "relative epsilon": rules.Epsilon(0.1, relative=True),
    "gamma": rules.Gamma(),
    "alpha-beta": rules.AlphaBeta(),
    "z+, distributed bias": rules.ZPlus(bias="distribute"),
    "w^2": rules.WSquare(),
    "flat": rules.Flat(),
    "z-box": rules.ZBox(-3.0, 3.0),
    "mixed": Composite([(first, rules.ZBox(-3.0, 3.0)), (last, rules.Zero()), (any_layer, rules.Gamma(bias="ignore"))]),
    "CP-LRP": composites.CPLRP(),
}
rule_of = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def rectified(x, parameters):
    """A network of dense layers, without biases."""
    for weight in parameters[:-1]:
        x = jax.nn.relu(x @ weight)
    return x @ parameters[-1]


def weights(*widths):
    keys = jax.random.split(jax.random.key(7), len(widths) - 1)
    shapes = itertools.pairwise(widths)
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def maps(fun, rule, x, seed=None):
    output, transpose = jax.vjp(lrp(fun, rule), x)
    return transpose(jnp.ones_like(output) if seed is None else seed)[0]


def assert_close(actual, expected, tolerance=1e-9):
    assert actual.shape == expected.shape
    scale = np.abs(expected).max(initial=0)
    assert scale > 0
    assert np.abs(actual - expected).max() <= tolerance * scale


def few(number):
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
    return settings(max_examples=number, derandomize=True, deadline=None, database=None, suppress_health_check=checks)


# The value


@few(10)
@given(program=programs(np.float32))
def test_compiled_value_is_that_of_the_function_bit_for_bit(program):
    explained = jax.jit(lrp(program, program.composite))
    np.testing.assert_array_equal(explained(program.x), jax.jit(lambda x: program(x))(program.x))


# Relevance as a function of the seed


@few(10)
@given(program=programs())
def test_relevance_is_linear_in_the_seed(float64, program):
    seeds = np.random.default_rng(0).normal(size=(2, *program.seed.shape))

    @jax.jit
    def explain(x, seeds):
        _, transpose = jax.vjp(lrp(program, program.composite), x)
        return jax.vmap(transpose)(seeds)[0]

    one, other, both, doubled = explain(program.x, np.stack([*seeds, seeds[0] + seeds[1], 2 * seeds[0]]))
    scale = max(np.abs(one).max(), np.abs(other).max())
    np.testing.assert_array_equal(doubled, 2 * one)
    # Terms that cancel within the map make its rounding larger than its own size.
    np.testing.assert_allclose(both, one + other, atol=1e-6 * scale, rtol=0)


# The input and its order


@rule_of
def test_permuted_pixels_have_a_permuted_map(float64, rule):
    order = np.random.default_rng(0).permutation(6)
    first_weight, *others = weights(6, 5, 4, 3)
    x = jax.random.normal(jax.random.key(1), (3, 6))
    permuted = maps(lambda x: rectified(x, [first_weight[order], *others]), rule, x[:, order])
    assert_close(permuted, maps(lambda x: rectified(x, [first_weight, *others]), rule, x)[:, order])


# Homogeneity


STEPS_WITHOUT_UNITS = {
    "zero": rules.Zero(),
    "relative epsilon": rules.Epsilon(0.1, relative=True),
    "gamma": rules.Gamma(stabilizer=0.0),
    "alpha-beta": rules.AlphaBeta(stabilizer=0.0),
    "z+": rules.ZPlus(stabilizer=0.0),
    "w^2": rules.WSquare(),
    "flat": rules.Flat(),
}


@pytest.mark.parametrize("rule", STEPS_WITHOUT_UNITS.values(), ids=STEPS_WITHOUT_UNITS)
def test_without_biases_relevance_scales_with_the_input(float64, rule):
    parameters, x = weights(6, 5, 4, 3), jax.random.normal(jax.random.key(1), (3, 6))
    explain = functools.partial(maps, lambda x: rectified(x, parameters), rule)
    assert explain(x).any()
    np.testing.assert_array_equal(explain(4 * x), 4 * explain(x))  # a power of two changes no digit
    assert_close(explain(0.3 * x), 0.3 * explain(x))
