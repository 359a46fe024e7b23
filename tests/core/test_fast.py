"""Depthwise convolutions written out, against JAX's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import jit_by_day
from jax import lax

from lrp_jax import lrp, rules
from lrp_jax.core.fast import is_depthwise, shifted_products, transposed_products

GEOMETRIES = {
    "plain": ((1, 1), "SAME", (1, 1), (1, 1)),
    "strided": ((2, 3), "SAME", (1, 1), (1, 1)),
    "strided, with rows that no window reaches": ((3, 2), "VALID", (1, 1), (1, 1)),
    "cropped": ((1, 1), ((-1, 2), (3, -1)), (1, 1), (1, 1)),
    "kernel with gaps": ((2, 1), ((2, 1), (0, 4)), (1, 1), (2, 3)),
    "image with gaps": ((1, 2), ((2, 1), (1, 2)), (3, 2), (1, 1)),
}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("numbers", [("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NHWC")])
def test_depthwise_convolutions_and_their_transposes_are_those_of_jax(name, numbers):
    strides, padding, lhs_dilation, rhs_dilation = GEOMETRIES[name]
    shapes = {"N": 2, "H": 9, "W": 10, "C": 4}, {"H": 3, "W": 4, "I": 1, "O": 4}
    x, w = (
        jax.random.normal(jax.random.key(i), [sizes[letter] for letter in letters])
        for i, (sizes, letters) in enumerate(zip(shapes, numbers, strict=False))
    )

    def convolve(x, w):
        return lax.conv_general_dilated(
            x, w, strides, padding, lhs_dilation, rhs_dilation, numbers, feature_group_count=4
        )

    (equation,) = jax.make_jaxpr(convolve)(x, w).eqns
    assert is_depthwise(equation, x, w)
    s = jax.random.normal(jax.random.key(2), equation.outvars[0].aval.shape)

    def by_jax(x, w, s):
        z, transpose = jax.vjp(lambda x: convolve(x, w), x)
        return z, *transpose(s)

    def written_out(x, w, s):
        return shifted_products(x, w, equation.params), transposed_products(s, w, equation.params, x.shape)

    for found, expected in zip(jit_by_day(written_out)(x, w, s), jit_by_day(by_jax)(x, w, s), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_dilated_pooling_which_has_no_gradient_in_jax():
    def pool(x):
        return lax.reduce_window(x, -jnp.inf, lax.max, (2,), (1,), "VALID", window_dilation=(2,)).sum()

    relevance = jit_by_day(jax.grad(lrp(pool, rules.Zero())))(jnp.array([3.0, 1.0, 2.0, 5.0]))
    np.testing.assert_allclose(relevance, [3.0, 0.0, 0.0, 5.0])


def test_relevance_of_a_pooling_can_be_differentiated_with_regard_to_parameters():
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 1))

    @jit_by_day
    def total(scale):
        network = lambda x: lax.reduce_window(scale * x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID").sum()
        return (jax.grad(lrp(network, rules.Zero()))(x) ** 2).sum()

    step = 1e-3
    slope = (total(2.0 + step) - total(2.0 - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(total)(2.0), slope, rtol=1e-2)


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_the_value_of_a_depthwise_network_is_the_same_to_the_last_bit_and_to_rounding_under_a_derivative(
    strides, padding
):
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 1, 5))
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 5))

    def network(x):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers, feature_group_count=5)

    explained = lrp(network, rules.Epsilon())
    expected = jax.jit(network)(x)
    np.testing.assert_array_equal(jax.jit(explained)(x), expected)
    value, _ = jit_by_day(lambda x: jax.vjp(explained, x))(x)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)
