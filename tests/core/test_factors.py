"""Of two live factors one is held: in whatever order they are multiplied, however they are written, wherever they are.

Each expected value is x times the gradient of the same function in which what is held is behind a `stop_gradient`, each
of two signals has half, and a function of one value has its secant to zero.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import assert_close
from compiling import quick_jit
from jax import lax, nn
from jax.lax import stop_gradient as held

from lrp_jax import composites, lrp, mark, plan, rules

pytestmark = pytest.mark.usefixtures("float64")

RNG = np.random.default_rng(0)
X, W, V = RNG.normal(size=(3, 6)), *RNG.normal(size=(2, 6, 6))
B, G = RNG.normal(size=(2, 6))
SEED = RNG.normal(size=(4, 3, 6))
S = nn.sigmoid


def half(a, b):
    return (a * held(b) + held(a) * b) / 2


def one_to_one(f):
    return lambda u: u * held(f(u) / u)


def total(x):
    return x.sum(-1, keepdims=True)


def mean_square(x):
    return (x * x).mean(-1, keepdims=True) + 1e-5


def times(*factors):
    """The product of factors, and the same in which all but the first are held."""
    multiply = lambda arrays: functools.reduce(jnp.multiply, arrays)
    return lambda x: multiply(
        [f(x) for f in factors]
    ), lambda x: factors[0](x) * held(multiply([f(x) for f in factors[1:]]))


a, b = (lambda x: x @ W + B), (lambda x: x @ V)
ga, gb, norm = (lambda x: S(a(x))), (lambda x: S(b(x))), (lambda x: lax.rsqrt(mean_square(x)))
ORDERS = {
    "two gates first": (lambda x: a(x) * (ga(x) * gb(x)), times(a, ga, gb)[1]),
    "three gates": (lambda x: (gb(x) * (ga(x) * S(x))) * a(x), times(a, ga, gb, S)[1]),
    "a gate and a norm first": (lambda x: (gb(x) * norm(x)) * x, times(lambda x: x, gb, norm)[1]),
    "two norms first": (lambda x: b(x) * (norm(x) * norm(a(x))), times(b, norm, lambda x: norm(a(x)))[1]),
    "a gate over a norm": (lambda x: x * (gb(x) / jnp.sqrt(mean_square(x))), times(lambda x: x, gb, norm)[1]),
    "over a product of norms": (
        lambda x: b(x) / (1 / norm(x) * (1 / norm(a(x)))),
        times(b, norm, lambda x: norm(a(x)))[1],
    ),
    "less a gate": (lambda x: a(x) * -gb(x), lambda x: -a(x) * held(gb(x))),
    "less a norm": (lambda x: a(x) * -norm(x), lambda x: -a(x) * held(norm(x))),
    "an average of gates": (
        lambda x: a(x) * (0.25 * ga(x) + 0.75 * gb(x)),
        lambda x: a(x) * held(ga(x) / 4 + gb(x) * 0.75),
    ),
    "a gate that is level late": times(a, lambda x: 1 + nn.soft_sign(b(x))),
    "a gate by an arctangent": times(a, lambda x: 2 + jnp.arctan(b(x))),
    "a gate of two values": times(a, lambda x: 1 - ga(x) * gb(x)),
    "the root of a product of gates": times(a, lambda x: jnp.sqrt(ga(x) * gb(x))),
    "one less the mean of gates": times(a, lambda x: 1 - gb(x).mean(-1, keepdims=True)),
    "one less the larger gate": times(a, lambda x: 1 - jnp.maximum(ga(x), gb(x))),
    "a decay with a learnt rate": times(a, lambda x: jnp.exp(-jnp.exp(G) * nn.softplus(b(x)))),
    "a decay with a rate by softplus": times(a, lambda x: jnp.exp(-8 * nn.softplus(jnp.asarray(G)) * gb(x))),
    "what a decay leaves": times(a, lambda x: jnp.sqrt(1 - jnp.exp(-2 * nn.softplus(jnp.asarray(G)) * gb(x)))),
    "the product of decays so far": times(a, lambda x: jnp.exp(jnp.cumsum(nn.log_sigmoid(b(x)), -1))),
    "a radial basis function": times(a, lambda x: jnp.exp(-jnp.abs(b(x)) - x**2)),
    "gates written into ones": times(a, lambda x: jnp.ones_like(x).at[:, 1:4].set(gb(x)[:, 1:4])),
    "gates beside ones": times(a, lambda x: lax.dynamic_update_slice(jnp.ones_like(x), gb(x)[:, :2], (0, 3))),
    "a step with the slope of a sigmoid": times(a, lambda x: held((b(x) > 0) - gb(x)) + gb(x)),
    "the mean of gates": times(a, lambda x: gb(x).mean(-1, keepdims=True)),
    "a marked gate that is scaled": (
        lambda x: a(x) * (0.5 * mark.gate(jnp.tanh(b(x)))),
        lambda x: a(x) * held(jnp.tanh(b(x)) / 2),
    ),
    "the mean of gates with a minus": (
        lambda x: a(x) * (-gb(x)).mean(-1, keepdims=True),
        lambda x: -a(x) * held(gb(x).mean(-1, keepdims=True)),
    ),
    "the largest of gates": times(a, lambda x: gb(x).max(-1, keepdims=True)),
    "the largest of two gates": times(a, lambda x: jnp.maximum(ga(x), gb(x))),
    "one of two gates": times(a, lambda x: jnp.where(np.arange(6) < 3, ga(x), gb(x))),
    "gates side by side": times(
        lambda x: jnp.concatenate([a(x), b(x)], 1), lambda x: jnp.concatenate([ga(x), gb(x)], 1)
    ),
    "the largest three gates": times(lambda x: a(x)[:, :3], lambda x: lax.top_k(gb(x), 3)[0]),
    "the product of gates so far": times(a, lambda x: jnp.cumprod(gb(x), -1)),
    "gates that sum to one, before": (
        lambda x: (ga(x) / total(ga(x)))[..., None] * b(x)[:, None],
        lambda x: held(ga(x) / total(ga(x)))[..., None] * b(x)[:, None],
    ),
    "one less a part of gates": (
        lambda x: (lambda g: g[:, :3] * x[:, :3] + (1 - g[:, :3]) * jnp.tanh(x[:, 3:]) * g[:, 3:])(gb(x)),
        lambda x: (lambda g: g[:, :3] * x[:, :3] + (1 - g[:, :3]) * one_to_one(jnp.tanh)(x[:, 3:]) * g[:, 3:])(
            held(gb(x))
        ),
    ),
    "a difference of gates is a signal": (
        lambda x: a(x) * (S(x) - S(-x)),
        lambda x: half(a(x), one_to_one(lambda u: S(u) - S(-u))(x)),
    ),
    "a product with a signal is a signal": (lambda x: a(x) * (gb(x) * b(x)), lambda x: half(a(x), held(gb(x)) * b(x))),
}

# Denominators that are sums of what is nowhere negative, in some spellings.
NOWHERE_NEGATIVE = {
    "|u| by where": (lambda u: jnp.where(u > 0, u, -u)),
    "|u| by sign": (lambda u: u * jnp.sign(u)),
    "|u| by maximum": (lambda u: jnp.maximum(u, -u)),
    "relu by where": (lambda u: jnp.where(u > 0, u, 0.0)),
    "relu by a step": (lambda u: u * (u > 0)),
    "relu by |u|": (lambda u: (u + jnp.abs(u)) / 2),
    "softplus": nn.softplus,
    "elu + 1": (lambda u: nn.elu(u) + 1),
    "squareplus": (lambda u: (u + jnp.sqrt(u * u + 4)) / 2),
    "sigmoid": S,
}
NORMS = {
    **{
        f"over a sum of {name}": times(lambda x: x, lambda x, f=f: 1 / total(f(a(x))))
        for name, f in NOWHERE_NEGATIVE.items()
    },
    **{
        f"over 1 + the largest {name}": (
            lambda x, f=f: b(x) / (1 + f(a(x)).max(-1, keepdims=True)),
            lambda x, f=f: b(x) / held(1 + f(a(x)).max(-1, keepdims=True)),
        )
        for name, f in NOWHERE_NEGATIVE.items()
    },
    "over what may be negative": (
        lambda x: a(x) / (9 + b(x)),
        lambda x: (a(x) / held(9 + b(x)) + held(a(x)) / (9 + b(x))) / 2,
    ),
}


# What is computed outside of a body is a factor within it, and the other way round.
def recurrence(f, z):
    steps = itertools.accumulate(
        zip(f, z, strict=True), lambda h, fz: fz[0] * h + (1 - fz[0]) * fz[1], initial=0 * z[0]
    )
    return jnp.stack(list(steps)[1:])


F, Z = (lambda x: S(x @ W + 0.3)), (lambda x: jnp.tanh(x @ V))
STEP = lambda h, fz: (lambda new: (new, new))(fz[0] * h + (1 - fz[0]) * fz[1])
SCAN = lambda f, z: lax.scan(STEP, 0 * z[0], (f, z))[1]


def by_index(x):
    f, z = F(x), Z(x)
    step = lambda t, c: (lambda h: (h, c[1].at[t].set(h)))(f[t] * c[0] + (1 - f[t]) * z[t])
    return lax.fori_loop(0, len(x), step, (0 * z[0], 0 * z))[1]


def by_branches(x):
    f, z = F(x), Z(x)
    then = lambda c: c[0] * c[1] + (1 - c[0]) * c[2]
    step = lambda h, t: (lambda new: (new, new))(lax.cond(t >= 0, then, lambda c: c[1], (f[t], h, z[t])))
    return lax.scan(step, 0 * z[0], jnp.arange(len(x)))[1]


RECURRENCES = {
    "loop": lambda x: recurrence(F(x), Z(x)),
    "gates before the scan": lambda x: SCAN(F(x), Z(x)),
    "gates in the scan": lambda x: lax.scan(lambda h, x: STEP(h, (F(x), Z(x))), jnp.zeros(x[0].shape), x)[1],
    "gates from another scan": lambda x: SCAN(lax.map(F, x), Z(x)),
    "addends before the scan": lambda x: lax.scan(
        lambda h, p: (lambda new: (new, new))(p[0] * h + p[1]), jnp.zeros(x[0].shape), (F(x), (1 - F(x)) * Z(x))
    )[1],
    "checkpoint": lambda x: lax.scan(jax.checkpoint(STEP), jnp.zeros(x[0].shape), (F(x), Z(x)))[1],
    "associative scan": lambda x: lax.associative_scan(
        lambda p, q: (p[0] * q[0], q[0] * p[1] + q[1]), (F(x), (1 - F(x)) * Z(x))
    )[1],
    "by index": by_index,
    "by branches": by_branches,
}
BODIES = {
    **{name: (f, lambda x: recurrence(held(F(x)), one_to_one(jnp.tanh)(x @ V))) for name, f in RECURRENCES.items()},
    "norms before a map": (lambda x: lax.map(lambda p: p[0] * p[1], (x, norm(x))), lambda x: x * held(norm(x))),
    "what divides before a map": (
        lambda x: lax.map(lambda p: p[0] / p[1], (x, total(jnp.where(x > 0, x, 0.0)) + 1)),
        lambda x: x / held(total(nn.relu(x)) + 1),
    ),
    "a norm as a constant of a scan": (
        lambda x: (lambda r: lax.map(lambda row: row * r, x))(norm(x[0, :1])),
        lambda x: x * held(norm(x[0, :1])),
    ),
    "a gate from a branch": (
        lambda x: x * lax.cond(x[0, 0, 0] > 9, lambda x: jnp.ones_like(x), gb, x),
        lambda x: x * held(gb(x)),
    ),
}


FACTORS = ORDERS | NORMS | BODIES


def weighed(fun):
    """The sum of a function's outputs, each with a weight of its own."""
    return lambda x: (lambda y: (y * jnp.resize(SEED, y.shape)).sum())(fun(x))


@functools.cache
def maps(samples):
    """The maps of all functions, and what they should be, by one program."""
    sequence = np.stack([X, X[::-1] / 2, X + 1, 0.3 - X])[:, :samples]

    @quick_jit
    def explain(sequence):
        found = {}
        for name, functions in FACTORS.items():
            x = sequence if name in BODIES else sequence[0]
            explained, reference = map(weighed, functions)
            by_lrp = jax.grad(lrp(explained, composites.AttnLRP(1e-12)))(x)
            found[name] = by_lrp, x * jax.grad(reference)(x)
        return found

    return explain(sequence)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("name", FACTORS)
def test_one_factor_is_held_in_every_order_and_place(name, samples):
    found, expected = maps(samples)[name]
    assert_close(found, expected, 1e-8)


def test_hundreds_of_loops_in_a_row_with_a_gate_from_outside():
    def network(x):
        for _ in range(200):
            x = lax.map(lambda row: row[0] * row[1], (x, S(x)))
        return x

    kinds = [row[1] for row in plan(network, jnp.asarray(X), rules.Zero()).rows]
    assert kinds.count("gate") == 200
