"""Random networks with random rules: the library against the plain loop of `loop.py`.

`make nightly` draws thousands of programs, other ones each time; without it 40 are drawn, always the same.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import jit_by_day, quick_jit
from hypothesis import HealthCheck, assume, given, settings
from naive import oracle
from naive.loop import relevance_of_input
from naive.programs import Program, Step, programs
from nightly import NIGHTLY, drawn

from lrp_jax import lrp, rules, treatments
from lrp_jax.composites import Composite, any_layer, with_treatment

NUMBER = drawn(by_day=40)


def drawn(share):
    """Settings for a share of the programs."""
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
    return settings(
        max_examples=round(share * NUMBER),
        derandomize=not NIGHTLY,
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

    @quick_jit
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
    # z = 2 - 3 + 5 = 4. Whatever is made of z alone passes all relevance on to z, which shares it in proportion.
    weight, bias = jnp.array([[2.0], [-3.0]]), 5.0
    value, relevance = jax.value_and_grad(lrp(lambda x: twice(x @ weight + bias)[0], rules.Zero()))(jnp.ones(2))
    np.testing.assert_allclose(relevance, value * np.array([2.0, -3.0]) / 4)


@pytest.mark.parametrize("rule", [rules.WSquare(stabilizer=0.0), rules.Flat(stabilizer=0.0)])
@pytest.mark.parametrize("several", [lambda x: x + x, lambda x: 3 * x - x, lambda x: (x + x) + 2 * x])
def test_what_is_added_to_itself_has_relevance_at_zero_too(float64, rule, several):
    # These rules give relevance to a pixel that is zero, and a multiple of a value passes it on one to one.
    weight, x = jnp.array([[1.0], [-2.0]]), jnp.array([0.0, 1.0])
    value, relevance = jax.value_and_grad(lrp(lambda x: (several(x) @ weight)[0], rule))(x)
    shares = np.array([1.0, 4.0]) / 5 if isinstance(rule, rules.WSquare) else np.array([0.5, 0.5])
    np.testing.assert_allclose(relevance, value * shares)


@pytest.mark.parametrize("tanh", [jnp.tanh, lambda x: 2 * jax.nn.sigmoid(2 * x) - 1], ids=["tanh", "sigmoid"])
def test_numbers_are_added_before_and_behind_a_function(float64, tanh):
    # Each is an addend of its own: neither tanh nor silu has it in its argument at zero.
    x = np.array([0.7, -0.4, -1.3, 0.3])
    found = jax.grad(lrp(lambda x: jax.nn.silu(tanh(x + 0.25) - 0.75).sum(), rules.Zero()))(x)
    inner = np.tanh(x + 0.25)
    expected = x * inner / (x + 0.25) / (1 + np.exp(0.75 - inner))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize(
    "several",
    [
        lambda u, c: u + jax.nn.relu(u - c(0.75)),
        lambda u, c: jax.nn.relu(u + c(1.0)) - jax.nn.relu(u - c(1.0)),
        lambda u, c: jax.nn.relu(u + jax.nn.relu(u - c(0.2))) - c(0.1),
        lambda u, c: (u + jax.nn.relu(u - c(0.75))) + jax.nn.relu(u + jax.nn.relu(u - c(0.75)) - c(0.3)),
    ],
    ids=["a value and a function", "two functions", "below another function", "twice"],
)
@pytest.mark.parametrize("constant", [lambda c: c, lambda c: jnp.full(6, c)], ids=["numbers", "arrays"])
def test_a_number_within_one_part_of_a_sum_is_an_addend(float64, several, constant):
    # LRP-0 of a piecewise linear network is gradient times input, with numbers as with arrays of them.
    x = jnp.array([2.5, -0.3, 0.0, -4.0, 0.9, 1.4])
    function = lambda x: (several(x, constant) * jnp.arange(1.0, 7.0)).sum()
    found = jax.grad(lrp(function, rules.Zero()))(x)
    np.testing.assert_allclose(found, x * jax.grad(function)(x), atol=1e-12)


def test_a_factor_times_a_function_of_itself_is_one_function(float64):
    # g * sigmoid(g) is silu(g), whatever g is as a factor; the 1 that g ends with is an addend of its own.
    steps = (
        Step("input", ()),
        Step("elementwise", (0,), {"function": "1 + tanh"}),
        Step("elementwise", (1,), {"function": "sigmoid"}),
        Step("multiply", (1, 2)),
    )
    x = np.array([[0.7, -1.2, 2.0]])
    assert agrees(Program(steps, x, np.ones((1, 3))), 1e-9)


@pytest.mark.parametrize("treatment", [treatments.pooled_in_proportion, treatments.pooled_evenly])
def test_max_pooling_with_another_treatment_is_compiled(treatment):
    composite = with_treatment(rules.Zero(), "reduce_window_max", treatment)
    image = jnp.arange(1.0, 17.0).reshape(1, 4, 4, 1)
    pooled = lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID").sum()
    explain = jax.grad(lrp(pooled, composite))
    np.testing.assert_allclose(jax.jit(explain)(image), explain(image), rtol=1e-6)


def test_pass_passes_relevance_on_to_the_same_sample():
    # As many samples as features, and the samples in the second dimension of the product.
    weight, x = jnp.eye(2), jnp.array([[1.0, 2.0], [3.0, 4.0]])
    for layer in (lambda x: (weight @ x.T).T + 1.0, lambda x: jnp.einsum("fg,nf->gn", weight, x) + 1.0):
        z, transpose = jax.vjp(lrp(layer, rules.Pass()), x)
        (relevance,) = transpose(jnp.zeros_like(z).at[0, 1].set(1.0))
        is_transposed = z[0, 1] == 4.0
        assert relevance[(1, 0) if is_transposed else (0, 1)] == z[0, 1]
        assert jnp.count_nonzero(relevance) == 1


@pytest.mark.parametrize("wrap", [jax.jit, jax.vmap], ids=["jit", "vmap"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("sign", [1, -1], ids=["positive", "negative"])
def test_small_contributions_of_one_sign_beside_large_ones_of_the_other(float64, sign, dtype, wrap):
    # They were what a difference of large numbers left of them. Here: 5 and 1e-10 in two units, in either sign.
    rule = rules.AlphaBeta(1.0, 0.0) if sign > 0 else rules.AlphaBeta(2.0, 1.0)
    x = jnp.array([[6.3e-6, -2.2e7], [1.0, 2.0]], dtype)
    weight = sign * jnp.array([[0.125, -0.75], [0.625, 0.5]], dtype)
    explained = lrp(lambda x: x @ weight, dataclasses.replace(rule, stabilizer=0.0))
    explain = jax.grad(lambda x: explained(x).sum())
    found = np.asarray(jit_by_day(wrap(explain))(x), np.float64)

    w, x = np.asarray(weight, np.float64), np.asarray(x, np.float64)
    naively = lambda x: oracle.alpha_beta(w.T, np.zeros(2), x, w.T @ x, rule.alpha, rule.beta, stabilizer=0.0)
    expected = np.stack([naively(sample) for sample in x])
    largest = np.abs(expected).max(1, keepdims=True)
    np.testing.assert_array_less(np.abs(found - expected) / largest, 50 * np.finfo(dtype).eps)


def test_small_negative_contributions_behind_a_relu(float64):
    # x >= 0 is known, and z is read by a relu alone: z+ = 1e8, z- = -1e-4.
    x, first, second = jnp.array([1e8, 1e-4]), jnp.eye(2), jnp.array([[1.0, 2.0], [-1.0, 1.0]])
    network = lambda x: jax.nn.relu(jax.nn.relu(x @ first) @ second).sum()
    found = jax.jit(jax.grad(lrp(network, rules.AlphaBeta(2.0, 1.0, stabilizer=0.0))))(x)
    z = np.array([1e8 - 1e-4, 2e8 + 1e-4])
    negative = -z[0]
    positive = 2 * (z[0] + z[1] * 2e8 / z[1]), 2 * z[1] * 1e-4 / z[1]
    np.testing.assert_allclose(found, 2 * np.array([positive[0], positive[1] + negative]), rtol=1e-9)


def test_attention_that_is_held_leaves_all_to_a_gate():
    # With the attention held, softmax(x) is a constant beside sigmoid(x).
    composite = Composite([(any_layer, rules.Zero())], holds_attention=True)
    x = jnp.array([0.5, -1.0, 2.0])
    product = lambda x, y: jax.nn.softmax(x) * jax.nn.sigmoid(y)
    explain = jit_by_day(lambda x: jax.vjp(lrp(product, composite, argnums=(0, 1)), x, x)[1](jnp.ones(3)))
    _, of_sigmoid = explain(x)
    # Of that the sigmoid's value at zero keeps its share.
    np.testing.assert_allclose(of_sigmoid, jax.nn.softmax(x) * (jax.nn.sigmoid(x) - 0.5), rtol=1e-5)
