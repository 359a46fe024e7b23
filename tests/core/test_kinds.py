"""Layers with a weight for each group of rows, against the dense oracle; other kinds are in test_rules.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import jit_by_day, quick_jit
from jax import lax
from naive import oracle
from nightly import NIGHTLY

from lrp_jax import composites, ledger, lrp, mark, plan, relevance, rules
from lrp_jax.core.kinds import KINDS

RULES = {
    "Zero": (rules.Zero(), oracle.zero, {}),
    "Epsilon": (rules.Epsilon(1e-2), oracle.epsilon, {"epsilon": 1e-2}),
    "Gamma": (rules.Gamma(0.25, 1e-6), oracle.gamma, {"gamma": 0.25, "stabilizer": 1e-6}),
    "AlphaBeta": (rules.AlphaBeta(2, 1, 1e-6), oracle.alpha_beta, {"alpha": 2.0, "beta": 1.0, "stabilizer": 1e-6}),
    "ZPlus": (rules.ZPlus(1e-6), oracle.zplus, {"stabilizer": 1e-6}),
    "WSquare": (rules.WSquare(1e-6), oracle.wsquare, {"stabilizer": 1e-6}),
    "Flat": (rules.Flat(1e-6), oracle.flat, {"stabilizer": 1e-6}),
    "ZBox": (rules.ZBox(-3.0, 4.0, 1e-6), oracle.zbox, {"low": -3.0, "high": 4.0, "stabilizer": 1e-6}),
    "Norm": (rules.Norm(1e-6), oracle.epsilon, {"epsilon": 1e-6}),
    "Gradient": (rules.Gradient(), oracle.zero, {}),
}
# The sizes of three groups, and the number of rows: rows that no group covers have no weight, and a group may be empty.
GROUPS = {
    "one sample": ((0, 1, 0), 1),
    "one sample that no group covers": ((0, 0, 0), 1),
    "three samples": ((1, 0, 2), 3),
    "seven samples, of which two are not covered": ((2, 0, 3), 7),
    "more in the groups than there are": ((1, 3, 5), 5),
}
BIASES = {
    "no bias": lambda z: z,
    "bias": lambda z: z + normal(3, 5),
    "bias of each row": lambda z: z + normal(3, *z.shape),
    "scaled, shifted and turned round": lambda z: ((normal(3, 5) - z) / (2 + jnp.arange(5.0)) - 0.5)[:, ::-1].T,
}
TREATMENTS = ("absorb", "ignore", "distribute")
WEIGHT = (3, 4, 5)  # groups, inputs, outputs


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def experts_of(sizes, rows):
    """The group of each row; None for a row without."""
    groups = [group for group, size in enumerate(sizes) for _ in range(size)][:rows]
    return groups + [None] * (rows - len(groups))


def dense_matrix(weight, sizes, rows):
    """The Jacobian of the product, of shape (rows * outputs, rows * inputs), row by row."""
    jacobian = np.zeros((rows, weight.shape[2], rows, weight.shape[1]))
    for row, group in enumerate(experts_of(sizes, rows)):
        if group is not None:
            jacobian[row, :, row, :] = np.asarray(weight[group]).T
    return jacobian.reshape(rows * weight.shape[2], rows * weight.shape[1])


def choices_for(bias_name):
    """Every rule with every treatment of the bias; by day with one, which another bias has for another rule."""
    if bias_name == "no bias":
        return [(name, "absorb") for name in RULES]
    number = list(BIASES).index(bias_name)
    by_day = lambda i, j: (number + i + j) % len(TREATMENTS) == 0
    return [
        (name, treatment)
        for i, name in enumerate(RULES)
        for j, treatment in enumerate(TREATMENTS)
        if NIGHTLY or by_day(i, j)
    ]


@pytest.mark.sampled(5)
@pytest.mark.parametrize("bias_name", BIASES)
@pytest.mark.parametrize("group_name", GROUPS)
def test_rules_agree_with_dense_oracle(float64, group_name, bias_name):
    sizes, rows = GROUPS[group_name]
    weight, x = normal(1, *WEIGHT), normal(2, rows, 4).at[0, 0].set(0.0)
    behind = BIASES[bias_name]

    def layer(x, sizes):
        return behind(lax.ragged_dot(x, weight, sizes))

    shift = behind(jnp.zeros((rows, 5)))
    scale = np.asarray(jax.jacobian(behind)(jnp.zeros((rows, 5)))).reshape(shift.size, -1)
    jacobian = scale @ dense_matrix(weight, sizes, rows)
    choices = choices_for(bias_name)
    seed = normal(4, *shift.shape)

    @quick_jit
    def explain(x, sizes):
        found = []
        for name, treatment in choices:
            rule = dataclasses.replace(RULES[name][0], bias=treatment)
            z, propagate = jax.vjp(lrp(layer, rule), x, sizes)
            found.append((z, propagate(seed)[0]))
        return found

    expected_z = jacobian @ np.asarray(x).ravel() + np.asarray(shift).ravel()
    for (name, treatment), (z, found) in zip(choices, explain(x, jnp.array(sizes)), strict=True):
        _, naive, parameters = RULES[name]
        np.testing.assert_allclose(np.ravel(z), expected_z, rtol=1e-12, atol=1e-12)
        bias = "absorb" if name == "Gradient" else treatment
        arriving = np.asarray(seed).ravel() * expected_z
        arguments = (jacobian, np.asarray(shift).ravel(), np.asarray(x).ravel(), arriving)
        expected = naive(*arguments, **parameters, bias=bias)
        np.testing.assert_allclose(np.ravel(found), expected, rtol=1e-9, atol=1e-10, err_msg=f"{name}, {treatment}")


def experts(params, x):
    """A layer of experts with a router, on samples of several tokens."""
    tokens = x.reshape(-1, x.shape[-1])
    gates, chosen = lax.top_k(jax.nn.softmax(tokens @ params["router"]["kernel"]), 1)
    order = jnp.argsort(chosen[:, 0])
    sizes = jnp.bincount(chosen[:, 0], length=3)
    hidden = jax.nn.relu(lax.ragged_dot(tokens[order], params["up"]["kernel"], sizes) + params["up"]["bias"])
    out = lax.ragged_dot(hidden, params["down"]["kernel"], sizes)[jnp.argsort(order)]
    return (gates * out).reshape(*x.shape[:-1], -1).mean(1)


def one_by_one(params, x):
    """The same with the weight of each token's expert looked up."""
    gates, chosen = lax.top_k(jax.nn.softmax(x @ params["router"]["kernel"]), 1)
    chosen = chosen[..., 0]
    hidden = jnp.einsum("btk,btkn->btn", x, params["up"]["kernel"][chosen]) + params["up"]["bias"]
    return (gates * jnp.einsum("btk,btkn->btn", jax.nn.relu(hidden), params["down"]["kernel"][chosen])).mean(1)


@pytest.fixture
def params(float64):
    return {
        "router": {"kernel": normal(0, 4, 3)},
        "up": {"kernel": normal(1, *WEIGHT), "bias": normal(2, 5)},
        "down": {"kernel": normal(3, 3, 5, 2)},
    }


@pytest.mark.sampled(2)
@pytest.mark.parametrize("rule", [rules.Zero(), rules.Epsilon(), rules.ZPlus(), rules.Gamma()], ids=type)
def test_a_router_chooses_groups_and_samples_are_not_mixed(params, rule):
    model, x = (lambda x: experts(params, x)), normal(5, 3, 6, 4)
    value, expected = jit_by_day(lambda x: (model(x), one_by_one(params, x)))(x)
    np.testing.assert_allclose(value, expected, rtol=1e-9)
    together = relevance(model, x, 1, rule)
    for i in range(3):
        alone = relevance(model, x[i : i + 1], 1, rule).relevance[0]
        np.testing.assert_allclose(alone, together.relevance[i], rtol=1e-9, atol=1e-12)
    jitted = jax.jit(lambda x: relevance(model, x, 1, rule).relevance)
    np.testing.assert_allclose(jitted(x), together.relevance, rtol=1e-9, atol=1e-12)


def test_plan_and_ledger_know_them(params):
    model, x = (lambda x: experts(params, x)), normal(5, 3, 6, 4)
    layers = [row[:2] for row in plan(model, x, rules.Epsilon()).rows if row[1] in {"dense", "ragged"}]
    assert layers == [("router", "dense"), ("up", "ragged"), ("down", "ragged")]
    account = ledger(model, x, 0, rules.Zero())
    (up,) = [row for row in account.rows if row.path == "up"]
    assert up.kind == "ragged"
    assert up.bias == pytest.approx(up.arrived - up.passed_on)
    total = account.inputs + account.bias + account.stabilizer + account.constants + account.not_conserved
    assert total == pytest.approx(account.explained)


def test_a_function_of_the_layer_selects_them(params):
    ragged = lambda layer: layer.kind == "ragged"
    composite = [(ragged, rules.ZPlus()), (composites.any_layer, rules.Epsilon())]
    rows = plan(lambda x: experts(params, x), normal(5, 3, 6, 4), composite).rows
    assert [row[3].partition("(")[0] for row in rows if row[1] in {"dense", "ragged"}] == ["Epsilon", "ZPlus", "ZPlus"]


def test_a_weight_that_is_no_parameter_makes_no_layer_unless_a_mark_says_so(float64):
    x, sizes = normal(2, 3, 4), jnp.array([1, 2])

    def model(x, made=lambda z: z):
        weight = jnp.arange(40.0).reshape(2, 4, 5) / 40
        return made(lax.ragged_dot(x, weight, sizes))

    (row,) = plan(model, x, rules.Epsilon()).rows
    assert row[3] == "split in proportion: no layer, its weight is no parameter"
    gradient = jax.grad(lambda x: model(x)[:, 0].sum())(x)
    np.testing.assert_allclose(relevance(model, x, 0, rules.Epsilon()).relevance, gradient * x, rtol=1e-12)
    (row,) = plan(lambda x: model(x, mark.layer), x, rules.Flat()).rows[:1]
    assert row[1] == "ragged"


def test_two_live_factors_get_half_each(float64):
    x, sizes, weight = normal(2, 3, 4), jnp.array([1, 2]), normal(1, 2, 4, 5)
    model = lambda x: lax.ragged_dot(x, weight * x.sum(), sizes)
    z, propagate = jax.vjp(lrp(model, rules.Epsilon()), x)
    (found,) = propagate(jnp.ones_like(z))
    through_x = jax.grad(lambda x: lax.ragged_dot(x, weight, sizes).sum())(x) * x.sum()
    expected = 0.5 * x * (through_x + z.sum() / x.sum())
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_in_half_precision_rules_are_in_single_precision(params):
    x, sizes = normal(2, 7, 4).astype(jnp.bfloat16), jnp.array([2, 0, 3])
    weight = params["up"]["kernel"].astype(jnp.bfloat16)
    single = lambda x: lax.ragged_dot(x, weight.astype(jnp.float32), sizes)
    found, expected = (
        jit_by_day(jax.grad(lambda x, f=f: lrp(f, rules.ZPlus())(x).astype(jnp.float32).sum()))(given)
        for f, given in ((lambda x: lax.ragged_dot(x, weight, sizes), x), (single, x.astype(jnp.float32)))
    )
    np.testing.assert_allclose(found.astype(jnp.float32), expected, rtol=0.05, atol=0.02)


def test_every_kind_has_a_name_of_its_own():
    assert len({kind.name for kind in KINDS.values()}) == len(KINDS)
