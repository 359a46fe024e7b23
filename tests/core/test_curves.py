"""What functions of one number are as factors, told by their values: which fall, which are even, which are gates."""

import numpy as np
import pytest

from lrp_jax.core.curves import falls, is_even, is_gate, is_gate_within, needs_positive, with_positive_sign


@np.errstate(all="ignore")
def sigmoid(u):
    return 1 / (1 + np.exp(-u))


def hard_sigmoid(u):
    return np.clip(u / 6 + 0.5, 0, 1)


def quietly(function):
    return np.errstate(all="ignore")(function)


# Function, whether it falls where it is positive, has values or differs for positive numbers alone, is even, is a gate.
FUNCTIONS = {
    "sigmoid": (sigmoid, False, False, False, True),
    "sigmoid(-u)": (lambda u: sigmoid(-u), True, False, False, True),
    "exp(u) / (1 + exp(u))": (lambda u: np.exp(u) / (1 + np.exp(u)), False, False, False, True),
    "1 + tanh": (lambda u: 1 + np.tanh(u), False, False, False, True),
    "hard sigmoid": (hard_sigmoid, False, False, False, True),
    "hard sigmoid over 100": (lambda u: hard_sigmoid(u) / 100, False, False, False, True),
    "1 where not negative": (lambda u: np.where(u >= 0, 1.0, 0.0), False, True, False, True),
    "1 + softsign": (lambda u: 1 + u / (1 + np.abs(u)), False, False, False, True),
    "2 + arctan": (lambda u: 2 + np.arctan(u), False, False, False, True),
    "1 + u / sqrt(1 + u^2)": (lambda u: 1 + u / np.sqrt(1 + u * u), False, False, False, True),
    "2 + u / (1 + u^2)^0.495": (lambda u: 2 + u / (1 + u * u) ** 0.495, False, False, False, False),
    "exp(-u^2)": (lambda u: np.exp(-u * u), True, False, True, True),
    "1 / (1 + u^2)": (lambda u: 1 / (1 + u * u), True, False, True, True),
    "1 where positive": (lambda u: np.where(u > 0, 1.0, 0.0), False, True, False, True),
    "relu6": (lambda u: np.clip(u, 0, 6), False, True, False, False),
    "tanh": (np.tanh, False, False, False, False),
    "u": (lambda u: u, False, False, False, False),
    "u^2": (lambda u: u * u, False, False, True, False),
    "|u| + 1": (lambda u: np.abs(u) + 1, False, False, True, False),
    "exp": (np.exp, False, False, False, False),
    "exp(-u)": (lambda u: np.exp(-u), True, False, False, False),
    "softplus": (lambda u: np.logaddexp(u, 0), False, False, False, False),
    "log(2 + u^2)": (lambda u: np.log(2 + u * u), False, False, True, False),
    "cos": (np.cos, False, False, True, False),
    "2": (lambda u: np.full(np.shape(u), 2.0), False, True, True, False),
    "0": (lambda u: np.zeros(np.shape(u)), False, True, True, False),
    "sqrt": (np.sqrt, False, True, False, False),
    "log": (np.log, False, True, False, False),
    "1 / sqrt": (lambda u: 1 / np.sqrt(u), True, True, False, False),
    "1 / u": (lambda u: 1 / u, True, False, False, False),
    "1 / (1 + u)": (lambda u: 1 / (1 + u), True, False, False, False),
    "1 / (1 + relu)": (lambda u: 1 / (1 + np.maximum(u, 0)), True, True, False, True),
    "1 / u - 1": (lambda u: 1 / u - 1, False, False, False, False),
    "1 / (u - 1)": (lambda u: 1 / (u - 1), False, False, False, False),
    "1 / |u|": (lambda u: 1 / np.abs(u), True, False, True, False),
    "sigmoid but not at zero": (lambda u: sigmoid(u) * u / u, False, False, False, False),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_shape_of_a_function(name):
    function, *expected = FUNCTIONS[name]
    function = quietly(function)
    assert [shape(function) for shape in (falls, needs_positive, is_even, is_gate)] == expected


@pytest.mark.parametrize("name", FUNCTIONS)
def test_sign_in_front_does_not_matter(name):
    function, *expected = FUNCTIONS[name]
    values = with_positive_sign(quietly(lambda u: -function(u)), divides=False)
    positive = np.array([0.5, 1.0, 2.0])
    if (quietly(function)(positive) > 0).all():
        np.testing.assert_array_equal(values(positive), quietly(function)(positive))
        assert [shape(values) for shape in (falls, needs_positive, is_even, is_gate)] == expected


WITHIN = {
    "1 - u of a product of gates": (lambda u: 1 - u, (0.0, 1.0), True),
    "1 - u further out": (lambda u: 1 - u, (0.0, 1.5), False),
    "1 - u of anything positive": (lambda u: 1 - u, (0.0, np.inf), False),
    "a root": (np.sqrt, (0.0, 1.0), True),
    "a root of anything positive": (np.sqrt, (0.0, np.inf), False),
    "what a decay leaves": (lambda u: 1 - np.exp(u), (-np.inf, 0.0), True),
    "a reciprocal": (lambda u: 1 / u, (0.0, 1.0), False),
    "zero at first": (lambda u: np.maximum(u - 0.75, 0), (0.0, 1.0), False),
    "at one number": (lambda u: u, (2.0, 2.0), True),
    "between numbers that are no samples": (lambda u: u, (-np.inf, -1e13), False),
}


@pytest.mark.parametrize("name", WITHIN)
def test_gate_within_bounds(name):
    function, bounds, expected = WITHIN[name]
    assert is_gate_within(quietly(function), bounds) is expected


def test_what_divides_is_its_reciprocal():
    u = np.array([-2.0, 0.5, 1.0, 3.0])
    for sign in (1, -1):
        values = with_positive_sign(lambda u, sign=sign: sign * (1 + np.exp(-u)), divides=True)
        np.testing.assert_allclose(values(u), sigmoid(u), rtol=1e-15)
        assert is_gate(quietly(values))
    assert falls(with_positive_sign(lambda u: u + 1, divides=True))
    assert falls(with_positive_sign(np.sqrt, divides=True))
    assert not falls(with_positive_sign(lambda u: 1 / (1 + u), divides=True))
    assert with_positive_sign(np.zeros_like, divides=True)(np.zeros(1)) == np.inf  # without a warning
