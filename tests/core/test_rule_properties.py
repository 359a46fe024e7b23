"""The table of properties in the chapter on deep Taylor decomposition, entry by entry.

The table is read from the page itself. What it claims has to hold for random layers and networks with small whole
numbers, among them zeros; what it denies has to fail for the counterexample that the page works out.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import jit_by_day, quick_jit
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jax import lax

from lrp_jax import composites, lrp, rules

pytestmark = pytest.mark.usefixtures("float64")

PAGE = Path(__file__).parents[2] / "book" / "deep_taylor.md"
LOW, HIGH = 0.0, 3.0  # the box

# Row of the table: the rule, given what happens to the bias. No stabilizer: the derivations have none.
RULES = {
    "LRP-0": lambda bias: rules.Zero(bias=bias),
    r"LRP-$\epsilon$": lambda bias: rules.Epsilon(0.5, bias=bias),
    r"LRP-$\gamma$": lambda bias: rules.Gamma(0.25, stabilizer=0.0, bias=bias),
    r"LRP-$\alpha_2\beta_1$": lambda bias: rules.AlphaBeta(2.0, 1.0, stabilizer=0.0, bias=bias),
    "$z^+$": lambda bias: rules.ZPlus(stabilizer=0.0, bias=bias),
    "$w^2$": lambda bias: rules.WSquare(stabilizer=0.0, bias=bias),
    "flat": lambda bias: rules.Flat(stabilizer=0.0, bias=bias),
    r"$z^{\mathcal{B}}$": lambda bias: rules.ZBox(LOW, HIGH, stabilizer=0.0, bias=bias),
}
COMPOSITES = {
    "`DeepTaylor`": composites.DeepTaylor(LOW, HIGH),
    "`ExcitationBackprop`": composites.ExcitationBackprop(),
    "`EpsilonPlus`": composites.EpsilonPlus(0.5),
    "`EpsilonPlusFlat`": composites.EpsilonPlusFlat(0.5),
    "`EpsilonGammaBox`": composites.EpsilonGammaBox(LOW, HIGH, 0.5),
    "`EpsilonAlpha2Beta1`": composites.EpsilonAlpha2Beta1(0.5),
    "`EpsilonAlpha2Beta1Flat`": composites.EpsilonAlpha2Beta1Flat(0.5),
}
COLUMNS = ["positive", "conservative", "bias absorbed", "consistent", "root"]
ENTRIES = {"yes", "no", "if inhibited", "n/a"}
# The columns about sums: what happens to the bias. A rule that is conservative is so with biases that are ignored.
SUMS = {"conservative": "ignore", "bias absorbed": "absorb"}


def table():
    """The entries of the page's table, by row and column."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    (start,) = (i for i, line in enumerate(lines) if cells(line) == ["rule", *COLUMNS])
    rows = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        name, *entries = cells(line)
        rows[name] = dict(zip(COLUMNS, entries, strict=True))
    return rows


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


TABLE = table()


def pairs(rows, *entries):
    """The rows and columns of the numeric properties that have one of these entries."""
    columns = ["positive", *SUMS]
    return [(row, column) for row in rows for column in columns if TABLE[row][column] in entries]


def test_the_table_has_every_rule_and_nothing_else():
    assert list(TABLE) == [*RULES, *COMPOSITES]
    assert {entry for row in TABLE.values() for entry in row.values()} <= ENTRIES


@pytest.mark.parametrize("row", TABLE)
def test_consistent_means_positive_and_conservative(row):
    entries = TABLE[row]
    assert (entries["consistent"] == "yes") == (entries["positive"] == entries["conservative"] == "yes")


# One layer


@functools.cache
def propagated(rule):
    """Compiles the propagation of given relevance through one layer of rectified neurons."""

    @quick_jit
    def propagate(x, w, b, relevance):
        activation, back = jax.vjp(lrp(lambda x: jax.nn.relu(x @ w + b), rule), x)
        return back(jnp.where(activation > 0, relevance / jnp.where(activation > 0, activation, 1), 0))[0]

    return propagate


def integers(shape, low, high):
    return arrays(np.int64, shape, elements=st.integers(low, high)).map(lambda a: a.astype(np.float64))


def examples(number):
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much]
    return settings(max_examples=number, deadline=None, derandomize=True, database=None, suppress_health_check=checks)


def layers(biases):
    """Three inputs that are not negative, two neurons, and relevance for them."""
    return st.tuples(integers(3, 0, 3), integers((3, 2), -4, 4), integers(2, *biases), integers(2, 0, 5))


def assume_denominators(row, column, x, w, b, relevance):
    """Leaves only neurons whose relevance the rule can divide, as the page says, and gives the others none."""
    active = x @ w + b > 0
    excited, inhibited = x @ np.maximum(w, 0) > 0, x @ np.minimum(w, 0) < 0
    divisible = active & excited
    if column == "conservative":
        divisible &= x @ w != 0
        if row == r"LRP-$\gamma$":
            divisible &= x @ w + 0.25 * x @ np.minimum(w, 0) != 0
    if TABLE[row][column] == "if inhibited":
        divisible &= inhibited
    assume(divisible.any())
    return np.where(divisible, relevance, 0.0)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("row", "column"), pairs(RULES, "yes", "if inhibited"))
@examples(40)
@given(data=st.data())
def test_claims_hold_for_random_layers(row, column, data):
    has_bias = column in SUMS
    x, w, b, relevance = data.draw(layers((-3, 3) if has_bias else (0, 0)))
    relevance = assume_denominators(row, column, x, w, b, relevance)
    received = np.asarray(propagated(RULES[row](SUMS.get(column, "ignore")))(x, w, b, relevance))
    if column == "positive":
        assert (received >= -1e-12).all()
    else:
        np.testing.assert_allclose(received.sum(), relevance.sum(), rtol=1e-9, atol=1e-9)


# The page's neuron, max(0, 2 x_1 - x_2 + b) at (2, 1), and its neighbours.
X, W = np.array([2.0, 1.0]), np.array([[2.0], [-1.0]])


def of_neuron(rule, b=0.0, w=W):
    """The relevance of the page's neuron, from its own activation."""
    return np.asarray(propagated(rule)(X, w, np.array([b]), np.maximum(X @ w + b, 0)))


@pytest.mark.parametrize(("row", "column"), pairs(RULES, "no"))
def test_what_is_denied_fails_for_the_neuron_of_the_page(row, column):
    b = 1.0 if column in SUMS else 0.0
    received = of_neuron(RULES[row](SUMS.get(column, "ignore")), b)
    if column == "positive":
        assert received.min() < -0.1
    else:
        assert abs(received.sum() - (3 + b)) > 0.1


@pytest.mark.parametrize(("row", "column"), pairs(RULES, "if inhibited"))
def test_a_neuron_without_inhibition_refutes_alpha_beta(row, column):
    # max(0, 2 x_1 + x_2) at (2, 1) is 5: alpha 5 = 10 are passed on, and nothing is taken back.
    received = of_neuron(RULES[row](SUMS[column]), w=np.abs(W))
    np.testing.assert_allclose(received, [8.0, 2.0])


@pytest.mark.parametrize(
    ("row", "without_bias", "with_bias"),
    [
        # z = 3, contributions (4, -1); with b = 1 z = 4, and the bias is one more contribution.
        ("LRP-0", [4, -1], [4, -1]),
        (r"LRP-$\epsilon$", [4 * 3 / 3.5, -3 / 3.5], [4 * 4 / 4.5, -4 / 4.5]),
        (r"LRP-$\gamma$", [5 * 3 / 4, -3 / 4], [5 * 4 / 5.25, -4 / 5.25]),  # contributions (5, -1), and 1.25
        (r"LRP-$\alpha_2\beta_1$", [2 * 3, -3], [2 * 4 * 4 / 5, -4]),
        ("$z^+$", [3, 0], [4 * 4 / 5, 0]),
        ("$w^2$", [4 * 3 / 5, 3 / 5], [4 * 4 / 6, 4 / 6]),
        ("flat", [3 / 2, 3 / 2], [4 / 3, 4 / 3]),
        # Contributions (4 - 0, -1 + 3) = (4, 2), and the bias.
        (r"$z^{\mathcal{B}}$", [4 * 3 / 6, 2 * 3 / 6], [4 * 4 / 7, 2 * 4 / 7]),
    ],
)
def test_neuron_of_the_page_by_hand(row, without_bias, with_bias):
    np.testing.assert_allclose(of_neuron(RULES[row]("ignore")), without_bias, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(of_neuron(RULES[row]("absorb"), b=1.0), with_bias, rtol=1e-12, atol=1e-12)


# Roots: conservative shares belong to the point x - R / w, if a weight of zero gets nothing.


def root_of(x, w, received):
    """The point at which the Taylor relevance of a neuron is what it received; None if there is none."""
    if (np.abs(received[w == 0]) > 1e-12).any():
        return None
    return x - np.divide(received, w, out=np.zeros_like(x), where=w != 0)


def is_root_in_domain(row, x, w, b, received):
    root = root_of(x, w, received)
    if root is None:
        return False
    low, high = {"$w^2$": (-np.inf, np.inf), r"$z^{\mathcal{B}}$": (LOW, HIGH)}.get(row, (0.0, np.inf))
    return abs(root @ w + b) < 1e-9 and (root >= low - 1e-9).all() and (root <= high + 1e-9).all()


@pytest.mark.parametrize("row", [row for row in RULES if TABLE[row]["root"] == "yes"])
@examples(40)
@given(data=st.data())
def test_roots_lie_in_the_domain(row, data):
    x, w, b, _ = data.draw(layers((-3, 0)))
    z = x @ w + b
    assume((z > 0).any())
    j = int(np.argmax(z))
    received = propagated(RULES[row]("ignore"))(x, w, b, np.where(np.arange(2) == j, z, 0))
    assert is_root_in_domain(row, x, w[:, j], b[j], np.asarray(received))


@pytest.mark.parametrize("row", [row for row in RULES if TABLE[row]["root"] == "no"])
def test_no_root_in_the_domain(row):
    w = np.array([[2.0], [0.0]]) if row == "flat" else W
    received = of_neuron(RULES[row]("ignore"), w=w)
    assert not is_root_in_domain(row, X, w[:, 0], 0.0, received)


# Networks


@functools.cache
def explained(row):
    @quick_jit
    def explain(x, w1, b1, w2, b2, w3, b3):
        def network(x):
            hidden = jax.nn.relu(jax.nn.relu(x @ w1 + b1) @ w2 + b2)
            return (hidden @ w3 + b3)[0]

        return network(x), jax.grad(lrp(network, COMPOSITES[row]))(x)

    return explain


@pytest.mark.parametrize(("row", "column"), pairs(COMPOSITES, "yes"))
@examples(40)
@given(data=st.data())
def test_claims_hold_for_random_networks(row, column, data):
    # Biases that are not positive: no neuron lives off its bias alone.
    biases = (-2, 0) if column == "conservative" else (0, 0)
    shapes = [(3, 3), 3, (3, 2), 2, (2, 1), 1]
    x = data.draw(integers(3, 0, 3))
    parameters = [data.draw(integers(shape, *(biases if i % 2 else (-2, 4)))) for i, shape in enumerate(shapes)]
    value, received = map(np.asarray, explained(row)(x, *parameters))
    assume(value > 0)
    if column == "positive":
        assert (received >= -1e-12).all()
    else:
        np.testing.assert_allclose(received.sum(), value, rtol=1e-5)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("row", "column"), pairs(COMPOSITES, "no"))
def test_what_is_denied_fails_for_two_pixels(row, column):
    # The neuron of the page behind a convolution that passes on each pixel as it is.
    kernel = jnp.ones((1, 1, 1, 1))
    b = 1.0 if column == "bias absorbed" else 0.0

    def network(image):
        hidden = lax.conv_general_dilated(image, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return (jax.nn.relu(hidden).reshape(-1) @ jnp.asarray(W) + b)[0]

    received = np.asarray(jit_by_day(jax.grad(lrp(network, COMPOSITES[row])))(jnp.asarray(X).reshape(1, 1, 2, 1)))
    if column == "positive":
        assert received.min() < -0.1
    else:
        assert abs(received.sum() - (3 + b)) > 0.1


@pytest.mark.parametrize("row", COMPOSITES)
def test_a_composite_takes_taylor_steps_if_all_its_rules_do(row):
    row_of = {type(make("absorb")): name for name, make in RULES.items()}
    by_rules = all(TABLE[row_of[type(rule)]]["root"] == "yes" for _, rule in COMPOSITES[row].rules)
    assert TABLE[row]["root"] == ("yes" if by_rules else "no")
