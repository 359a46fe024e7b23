"""Random networks with random rules: the library against the plain loop of `loop.py`.

`make fuzz` draws thousands of programs, other ones each time; without it a hundred are drawn, always the same.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from loop import relevance_of_input
from programs import programs

from lrp_jax import lrp, operations, rules
from lrp_jax.composites import with_treatment

NUMBER = int(os.environ.get("FUZZ_PROGRAMS", "100"))


def drawn(share):
    """Settings for a share of the programs."""
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
    is_default = "FUZZ_PROGRAMS" not in os.environ
    return settings(
        max_examples=round(share * NUMBER),
        derandomize=is_default,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=checks,
    )


def agrees(program, tolerance):
    """Compares the relevance of a program with that of the plain loop.

    Returns:
        False if rounding alone can make a difference of more than the tolerance: then nothing is compared.
    """

    @jax.jit
    def explain(x, seed):
        output, transpose = jax.vjp(lrp(program, program.composite), x)
        return program.values(x), output, *transpose(seed)

    values, output, found = jax.tree.map(np.asarray, explain(program.x, program.seed))
    precision = np.finfo(program.x.dtype).eps
    for sample in range(len(found)):
        of_sample = [value[sample] for value in values]
        expected, bound = relevance_of_input(program, of_sample, program.seed[sample], precision)
        largest = np.abs(expected).max()
        if not bound.max() <= tolerance * largest:
            return False
        error = np.abs(found[sample] - expected).max()
        assert error <= tolerance * largest, f"{error / largest:.1e} of the maximum"
        # Fused with other operations, elementwise functions may round differently.
        np.testing.assert_allclose(output[sample], values[-1][sample], rtol=1e4 * precision)
    return True


@drawn(0.8)
@given(program=programs(np.float64))
def test_random_program_agrees_with_plain_loop(float64, program):
    assume(agrees(program, 1e-9))


@drawn(0.2)
@given(program=programs(np.float32))
def test_random_program_in_single_precision(program):
    assume(agrees(program, 1e-3))


# What the random programs have found


@pytest.mark.parametrize(
    ("twice", "factor"),
    [(lambda z: z + z, 1.0), (lambda z: z * z, 1.0), (lambda z: z - 2 * z, 1.0)],
    ids=["sum", "product", "difference"],
)
def test_a_layer_combined_with_itself_is_no_bias(float64, twice, factor):
    # z = 2 - 3 + 5 = 4. Whatever is made of z alone hands all relevance on to z, which shares it in proportion.
    weight, bias = jnp.array([[2.0], [-3.0]]), 5.0
    value, relevance = jax.value_and_grad(lrp(lambda x: twice(x @ weight + bias)[0], rules.Zero()))(jnp.ones(2))
    np.testing.assert_allclose(relevance, value * np.array([2.0, -3.0]) / 4)


@pytest.mark.parametrize("treatment", [operations.pooled_in_proportion, operations.pooled_evenly])
def test_max_pooling_with_another_treatment_is_compiled(treatment):
    composite = with_treatment(rules.Zero(), "reduce_window_max", treatment)
    image = jnp.arange(1.0, 17.0).reshape(1, 4, 4, 1)
    pooled = lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID").sum()
    explain = jax.grad(lrp(pooled, composite))
    np.testing.assert_allclose(jax.jit(explain)(image), explain(image), rtol=1e-6)


def test_pass_hands_relevance_on_to_the_same_sample():
    # As many samples as features, and the samples in the second dimension of the product.
    weight, x = jnp.eye(2), jnp.array([[1.0, 2.0], [3.0, 4.0]])
    for layer in (lambda x: (weight @ x.T).T + 1.0, lambda x: jnp.einsum("fg,nf->gn", weight, x) + 1.0):
        z, transpose = jax.vjp(lrp(layer, rules.Pass()), x)
        (relevance,) = transpose(jnp.zeros_like(z).at[0, 1].set(1.0))
        is_transposed = z[0, 1] == 4.0
        assert relevance[(1, 0) if is_transposed else (0, 1)] == z[0, 1]
        assert jnp.count_nonzero(relevance) == 1
