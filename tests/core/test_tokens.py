"""Relevance of explained integers: it goes to the integer with which something was looked up, wherever it was moved."""

import functools
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from lrp_jax import ledger, plan, relevance, rules
from lrp_jax.errors import InputError

pytestmark = pytest.mark.usefixtures("float64")

NUMBER, WIDTH = 9, 4
GENERATOR = np.random.default_rng(0)
TABLE = GENERATOR.normal(size=(NUMBER, WIDTH))
DIRECTION = GENERATOR.normal(size=(WIDTH, 1))
HELD = np.arange(NUMBER)
PLACES = 10.0 ** GENERATOR.uniform(-1, 1, size=12)  # what each place counts in the read-out
IDS = np.array([[1, 5, 2, 8], [8, 0, 3, 3], [4, 4, 7, 1]])
SQUARE = IDS[:, :3]
SPOKEN = TABLE @ DIRECTION[:, 0]  # what each token says
NONE = -1


def read_out(embedded):
    """A linear read-out in which every place has its own weight."""
    said = (embedded @ jnp.asarray(DIRECTION))[..., 0]
    return said @ jnp.asarray(PLACES)[: said.shape[1], None]


def right_by_places(moved, origin, ids):
    """Each place says what its token says; it belongs to where the token comes from."""
    found = np.zeros(ids.size)
    for row_of_ids, row_of_origins in zip(moved, origin, strict=True):
        for weight, token, place in zip(PLACES, row_of_ids, row_of_origins, strict=False):
            if place != NONE:
                found[place] += weight * SPOKEN[token]
    return found.reshape(ids.shape)


def explained(model, x, rule=None, target=0, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return relevance(model, x, target, rule or rules.Zero(), **options).relevance


def close(found, expected, tolerance=1e-9):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


# Moves: a function of (numpy or jax.numpy, tokens, what fills the rest).

MASK = np.array([[1, 1, 0, 1], [0, 1, 1, 1], [1, 0, 0, 1]], bool)


def padded(xp, x, fill):
    return xp.pad(x, ((0, 0), (2, 1)), constant_values=fill)


def class_token_in_front(xp, x, fill):
    return xp.concatenate([xp.full((len(x), 1), fill, x.dtype), x], 1)


def shifted_right(xp, x, fill):
    return class_token_in_front(xp, x, fill)[:, :-1]


MOVES = {
    "as they are": lambda xp, x, fill: x,
    "reversed": lambda xp, x, fill: x[:, ::-1],
    "flipped by index": lambda xp, x, fill: x[:, xp.array([3, 2, 1, 0])[: x.shape[1]] % x.shape[1]],
    "shifted right": shifted_right,
    "padded": padded,
    "class token in front": class_token_in_front,
    "without the first": lambda xp, x, fill: x[:, 1:],
    "every second": lambda xp, x, fill: x[:, ::2],
    "rolled": lambda xp, x, fill: xp.roll(x, 1, 1),
    "twice": lambda xp, x, fill: xp.concatenate([x, x], 1),
    "repeated": lambda xp, x, fill: xp.repeat(x, 2, 1),
    "tiled": lambda xp, x, fill: xp.tile(x, (1, 2)),
    "samples rolled": lambda xp, x, fill: xp.roll(x, 1, 0),
    "through a transpose": lambda xp, x, fill: x.T[::-1].T,
    "through a reshape": lambda xp, x, fill: x.reshape(-1)[::-1].reshape(x.shape),
    "stacked": lambda xp, x, fill: xp.stack([x, x[:, ::-1]], 2).reshape(len(x), -1),
    "masked": lambda xp, x, fill: xp.where(xp.asarray(MASK[:, : x.shape[1]]), x, fill),
    "split": lambda xp, x, fill: xp.concatenate(xp.split(x, [1, 2], 1)[::-1], 1),
    "squeezed": lambda xp, x, fill: xp.concatenate(
        [xp.squeeze(x[:, 1:2], 1)[:, None], x[:, 2:][:, :, None][..., 0]], 1
    ),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("ids", [IDS, SQUARE], ids=["3 x 4", "3 x 3"])
@pytest.mark.parametrize("name", MOVES)
def test_moved_tokens(name, ids):
    move = MOVES[name]
    origin = np.arange(ids.size).reshape(ids.shape)
    right = right_by_places(move(np, ids, 6), move(np, origin, NONE), ids)
    found = explained(lambda x: read_out(jnp.asarray(TABLE)[move(jnp, x, 6)]), jnp.asarray(ids))
    close(found, right)


IN_JAX = {
    "by dynamic_slice": (lambda x: lax.dynamic_slice(x, (0, 1), (3, 2)), lambda x: x[:, 1:3]),
    "by dynamic_update_slice": (
        lambda x: lax.dynamic_update_slice(jnp.full((3, 6), 6), x, (0, 1)),
        lambda x: np.pad(x, ((0, 0), (1, 1)), constant_values=NONE),
    ),
    "by an assignment": (
        lambda x: jnp.full((3, 4), 6).at[:, 2:].set(x[:, :2]),
        lambda x: np.pad(x[:, :2], ((0, 0), (2, 0)), constant_values=NONE),
    ),
    "by an assignment to chosen columns": (
        lambda x: jnp.full((3, 4), 6).at[:, jnp.asarray([2, 0])].set(x[:, :2]),
        lambda x: np.stack([x[:, 1], np.full(3, NONE), x[:, 0], np.full(3, NONE)], 1),
    ),
    "increased in chosen columns": (lambda x: x.at[:, jnp.asarray([2, 0])].add(1) % 9, lambda x: x),
    "by lax.rev": (lambda x: lax.rev(x, (1,)), lambda x: x[:, ::-1]),
    "by lax.select": (lambda x: lax.select(MASK, x, x[:, ::-1]), lambda x: np.where(MASK, x, x[:, ::-1])),
    "by take_along_axis": (
        lambda x: jnp.take_along_axis(x, jnp.asarray(IDS) % 4, 1),
        lambda x: np.take_along_axis(x, IDS % 4, 1),
    ),
    "sorted": (lambda x: jnp.sort(x, 1), lambda x: np.take_along_axis(x, np.argsort(IDS, 1, kind="stable"), 1)),
    "sorted by another": (
        lambda x: lax.sort((jnp.asarray(IDS), x), num_keys=1)[1],
        lambda x: np.take_along_axis(x, np.argsort(IDS, 1, kind="stable"), 1),
    ),
    "by einops' transpose": (lambda x: jnp.einsum("nt->tn", x).T, lambda x: x),
    "by swapaxes": (lambda x: jnp.swapaxes(jnp.swapaxes(x, 0, 1)[::-1], 0, 1), lambda x: x[:, ::-1]),
    "where the mask is made of tokens": (lambda x: jnp.where(x == 8, 6, x), lambda x: np.where(IDS == 8, NONE, x)),
    "multiplied with a mask": (lambda x: x * (x != 8), lambda x: np.where(IDS == 8, x, x)),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", IN_JAX)
def test_moved_by_jax(name):
    move, move_origin = IN_JAX[name]
    origin = np.arange(IDS.size).reshape(IDS.shape)
    right = right_by_places(np.asarray(move(jnp.asarray(IDS))), move_origin(origin), IDS)
    close(explained(lambda x: read_out(jnp.asarray(TABLE)[move(x)]), jnp.asarray(IDS)), right)


def test_time_first():
    right = right_by_places(IDS, np.arange(IDS.size).reshape(IDS.shape), IDS)
    close(explained(lambda x: read_out(jnp.asarray(TABLE)[x.T].swapaxes(0, 1)), jnp.asarray(IDS)), right)


# Arithmetic keeps the place.

REMAP = GENERATOR.permutation(NUMBER)
ARITHMETIC = {
    "offset": (lambda x: x + 1, lambda x: (x + 1) % 9),
    "negative, as Python counts": (lambda x: x - 9, lambda x: x),
    "modulo": (lambda x: x % 3, lambda x: x % 3),
    "remainder": (lambda x: lax.rem(x, 3), lambda x: x % 3),
    "divided": (lambda x: x // 2, lambda x: x // 2),
    "clipped": (lambda x: jnp.clip(x, 2, 6), lambda x: np.clip(x, 2, 6)),
    "bounded": (lambda x: jnp.minimum(x, 5), lambda x: np.minimum(x, 5)),
    "turned round": (lambda x: 8 - x, lambda x: 8 - x),
    "its own remainder": (lambda x: x - (x // 4) * 4, lambda x: x % 4),
    "bits": (lambda x: (x & 3) ^ 1, lambda x: (x & 3) ^ 1),
    "shifted bits": (lambda x: x >> 1, lambda x: x >> 1),
    "of another dtype": (lambda x: x.astype(jnp.uint8).astype(jnp.int32), lambda x: x),
    "by way of floats": (lambda x: x.astype(jnp.float32).astype(jnp.int32), lambda x: x),
    "by way of rounded floats": (lambda x: jnp.floor(x.astype(float) / 2).astype(int), lambda x: x // 2),
    "by another table": (lambda x: jnp.asarray(REMAP)[x], lambda x: REMAP[x]),
    "by the one-hot code": (lambda x: jax.nn.one_hot(x, 9, dtype=int) @ jnp.asarray(REMAP), lambda x: REMAP[x]),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_keeps_the_place(name):
    compute, in_numpy = ARITHMETIC[name]
    right = right_by_places(in_numpy(IDS), np.arange(IDS.size).reshape(IDS.shape), IDS)
    close(explained(lambda x: read_out(jnp.asarray(TABLE)[compute(x) % 9]), jnp.asarray(IDS)), right)


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint8", "uint32"])
def test_every_dtype(dtype):
    right = right_by_places(IDS, np.arange(IDS.size).reshape(IDS.shape), IDS)
    close(explained(lambda x: read_out(jnp.asarray(TABLE)[x]), jnp.asarray(IDS, dtype)), right)


# Spellings of the look-up.


def embedded_by_flax(x):
    module = nnx.Embed(NUMBER, WIDTH, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    module.embedding.set_value(jnp.asarray(TABLE))
    return module(x)


def scanned(x):
    _, found = lax.scan(lambda carry, i: (carry, jnp.asarray(TABLE)[i]), None, x.T)
    return found.swapaxes(0, 1)


def scanned_one_hot(x):
    _, found = lax.scan(
        lambda carry, h: (carry, h @ jnp.asarray(TABLE)), None, jax.nn.one_hot(x.T, NUMBER, dtype=float)
    )
    return found.swapaxes(0, 1)


def scanned_as_constants(x):
    _, found = lax.scan(lambda carry, t: (carry, jnp.asarray(TABLE)[x[:, t]]), None, jnp.arange(x.shape[1]))
    return found.swapaxes(0, 1)


def scanned_as_carry(x):
    _, found = lax.scan(lambda x, _: (jnp.roll(x, -1, 1), jnp.asarray(TABLE)[x[:, 0]]), x, None, x.shape[1])
    return found.swapaxes(0, 1)


def scanned_moves(x):
    _, moved = lax.scan(lambda carry, i: (carry, i + 1), None, x.T)
    return jnp.asarray(TABLE)[moved.T - 1]


def in_branches(x):
    return lax.cond(x[0, 0] > 0, lambda x: jnp.asarray(TABLE)[x], lambda x: jnp.asarray(TABLE)[x[:, ::-1]], x)


def moved_in_branches(x):
    return jnp.asarray(TABLE)[lax.cond(x[0, 0] > 0, lambda x: x, lambda x: jnp.zeros_like(x), x)]


def scalars(x):
    rows = [[jnp.asarray(TABLE)[x[i, j]] for j in range(x.shape[1])] for i in range(x.shape[0])]
    return jnp.stack([jnp.stack(row) for row in rows])


LOOKUPS = {
    "by index": lambda x: jnp.asarray(TABLE)[x],
    "by take": lambda x: jnp.take(jnp.asarray(TABLE), x, axis=0),
    "by take, clipped": lambda x: jnp.take(jnp.asarray(TABLE), x, axis=0, mode="clip"),
    "by take, filled": lambda x: jnp.take(jnp.asarray(TABLE), x, axis=0, mode="fill", fill_value=0.0),
    "by take, wrapped": lambda x: jnp.take(jnp.asarray(TABLE), x, axis=0, mode="wrap"),
    "by columns": lambda x: jnp.moveaxis(jnp.asarray(TABLE.T)[:, x], 0, -1),
    "one by one": scalars,
    "nnx.Embed": embedded_by_flax,
    "one_hot @ table": lambda x: jax.nn.one_hot(x, NUMBER, dtype=float) @ jnp.asarray(TABLE),
    "table.T @ one_hot": lambda x: jnp.einsum("dv,ntv->ntd", jnp.asarray(TABLE.T), jax.nn.one_hot(x, NUMBER)),
    "one_hot along another axis": lambda x: jnp.einsum("vnt,vd->ntd", jax.nn.one_hot(x, NUMBER, axis=0), TABLE),
    "(ids == arange) @ table": lambda x: (x[..., None] == jnp.arange(NUMBER)).astype(float) @ jnp.asarray(TABLE),
    "(arange == ids) @ table": lambda x: (jnp.arange(NUMBER) == x[..., None]).astype(float) @ jnp.asarray(TABLE),
    "(ids == held) @ table": lambda x: (x[..., None] == HELD).astype(float) @ jnp.asarray(TABLE),
    "(one_hot * table).sum": lambda x: (jax.nn.one_hot(x, NUMBER, dtype=float)[..., None] * jnp.asarray(TABLE)).sum(-2),
    "where(one_hot, table, 0).sum": lambda x: jnp.where(
        (x[..., None] == jnp.arange(NUMBER))[..., None], jnp.asarray(TABLE), 0
    ).sum(-2),
    "one_hot / 2 @ 2 table": lambda x: (jax.nn.one_hot(x, NUMBER, dtype=float) / 2) @ jnp.asarray(2 * TABLE),
    "one_hot of flattened ids": lambda x: (
        jax.nn.one_hot(x.reshape(-1), NUMBER, dtype=float) @ jnp.asarray(TABLE)
    ).reshape(*x.shape, WIDTH),
    "reshaped one_hot": lambda x: (
        jax.nn.one_hot(x, NUMBER, dtype=float).reshape(-1, NUMBER) @ jnp.asarray(TABLE)
    ).reshape(*x.shape, WIDTH),
    "places picked from one_hot": lambda x: (
        jax.nn.one_hot(x, NUMBER)[:, jnp.array([2, 0, 3, 1])][:, jnp.array([1, 3, 0, 2])] @ jnp.asarray(TABLE)
    ),
    "one_hot side by side": lambda x: (
        jnp.concatenate([jax.nn.one_hot(x[:, :2], NUMBER), jax.nn.one_hot(x[:, 2:], NUMBER)], 1) @ jnp.asarray(TABLE)
    ),
    "rolled one_hot": lambda x: jnp.roll(jnp.roll(jax.nn.one_hot(x, NUMBER), 1, 1), -1, 1) @ jnp.asarray(TABLE),
    "masked one_hot": lambda x: jnp.where(x[..., None] >= 0, jax.nn.one_hot(x, NUMBER), 0) @ jnp.asarray(TABLE),
    "one_hot times a mask": lambda x: (jax.nn.one_hot(x, NUMBER) * (x[..., None] >= 0)) @ jnp.asarray(TABLE),
    "eye": lambda x: jnp.eye(NUMBER)[x] @ jnp.asarray(TABLE),
    "under jit": lambda x: jax.jit(lambda x: jnp.asarray(TABLE)[x])(x),
    "under checkpoint": lambda x: jax.checkpoint(lambda x: jnp.asarray(TABLE)[x + 1 - 1])(x),
    "moved under checkpoint": lambda x: jnp.asarray(TABLE)[jax.checkpoint(lambda x: x[:, ::-1])(x)][:, ::-1],
    "under vmap": lambda x: jax.vmap(lambda i: jnp.asarray(TABLE)[i])(x),
    "under two vmaps": lambda x: jax.vmap(jax.vmap(lambda i: jnp.asarray(TABLE)[i]))(x),
    "eqx.nn.Embedding": lambda x: jax.vmap(jax.vmap(eqx.nn.Embedding(weight=jnp.asarray(TABLE))))(x),
    "one_hot under vmap": lambda x: jax.vmap(lambda i: jax.nn.one_hot(i, NUMBER, dtype=float) @ jnp.asarray(TABLE))(x),
    "in a scan, of slices": scanned,
    "in a scan, of slices of one_hot": scanned_one_hot,
    "in a scan, of constants": scanned_as_constants,
    "in a scan, of a carry": scanned_as_carry,
    "in a scan under vmap": lambda x: jax.vmap(lambda i: lax.scan(lambda c, i: (c, jnp.asarray(TABLE)[i]), None, i)[1])(
        x
    ),
    "moved in a scan": scanned_moves,
    "in a branch": in_branches,
    "moved in a branch": moved_in_branches,
    "in a fori_loop": lambda x: lax.fori_loop(
        0, x.shape[1], lambda t, e: e.at[:, t].set(jnp.asarray(TABLE)[x[:, t]]), jnp.zeros((*x.shape, WIDTH))
    ),
    "by lax.map": lambda x: lax.map(lambda i: jnp.asarray(TABLE)[i], x),
    "in a table of integers": lambda x: jnp.asarray(np.round(TABLE * 1e15).astype(np.int64))[x].astype(float) * 1e-15,
    "by lax.select_n": lambda x: lax.select_n(
        jnp.broadcast_to(x.astype(jnp.int32)[..., None], (*x.shape, WIDTH)),
        *(jnp.broadcast_to(jnp.asarray(row), (*x.shape, WIDTH)) for row in TABLE),
    ),
    "a named value": lambda x: checkpoint_name(jnp.asarray(TABLE)[x], "embedded"),
}
WEIGHTS = [GENERATOR.normal(size=size) for size in ((WIDTH, 5), (5, 2))]
RULES = {
    "Zero": rules.Zero(),
    "Epsilon": rules.Epsilon(0.1),
    "ZPlus": rules.ZPlus(),
    "Gamma": rules.Gamma(0.25),
    "Flat": rules.Flat(),
    "WSquare": rules.WSquare(),
}


def network(look_up):
    hidden, head = map(jnp.asarray, WEIGHTS)

    def model(x):
        each = jnp.asarray(PLACES)[: x.shape[1], None]
        return (jax.nn.relu(look_up(x) @ hidden) * each).sum(1) @ head

    return model


@pytest.mark.sampled(13)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", LOOKUPS)
def test_every_spelling_is_the_look_up(name, rule):
    x = jnp.asarray(IDS)
    embedded = relevance(lambda e: network(lambda x: x)(e), jnp.asarray(TABLE)[x], 1, RULES[rule]).relevance
    close(explained(network(LOOKUPS[name]), x, RULES[rule], 1), embedded.sum(-1))


CODES = ["one_hot of flattened ids", "reshaped one_hot", "one_hot along another axis", "rolled one_hot"]
CODES += ["places picked from one_hot", "one_hot side by side", "one_hot / 2 @ 2 table"]


@pytest.mark.parametrize("name", CODES)
def test_moved_one_hot_code_is_looked_up(name):
    x, rule = jnp.asarray(IDS), rules.Flat()
    close(explained(network(LOOKUPS[name]), x, rule), explained(network(lambda x: jnp.asarray(TABLE)[x]), x, rule))


def test_constant_code_beside_a_one_hot_code():
    table, first = jnp.asarray(TABLE), jnp.zeros((3, 1, NUMBER)).at[:, 0, 2].set(1.0)
    code = lambda x: jnp.concatenate([first, jax.nn.one_hot(x, NUMBER)[:, 1:]], 1)
    ids = lambda x: jnp.concatenate([jnp.full((3, 1), 2), x[:, 1:]], 1)
    x, rule = jnp.asarray(IDS), rules.Flat()
    close(explained(network(lambda x: code(x) @ table), x, rule), explained(network(lambda x: table[ids(x)]), x, rule))


# Several tables, several inputs.


@pytest.mark.parametrize("width", [2, 4])
def test_columns_have_tables_of_their_own(width):
    tables = [GENERATOR.normal(size=(n, width)) for n in (5, 7)]
    weights = GENERATOR.normal(size=(2 * width + 3, 2))
    columns, numbers = np.array([[1, 6], [4, 0]]), GENERATOR.normal(size=(2, 3))

    def model(x):
        parts = [jnp.asarray(table)[x["columns"][:, i]] for i, table in enumerate(tables)]
        return jnp.concatenate([*parts, x["numbers"]], 1) @ jnp.asarray(weights)

    found = explained(model, {"columns": jnp.asarray(columns), "numbers": jnp.asarray(numbers)})
    blocks = [weights[i * width : (i + 1) * width, 0] for i in range(2)]
    right = np.stack([(tables[i][columns[:, i]] * blocks[i]).sum(1) for i in range(2)], 1)
    close(found["columns"], right)
    close(found["numbers"], numbers * weights[2 * width :, 0])


TABULAR = np.array([[1.0, 0.5, -2.0], [0.0, -0.7, 0.3], [3.0, 0.1, 1.5]])  # categories, then two numbers
FROM_NUMBERS = {
    "cast": lambda x, table: table[x[:, 0].astype(int)],
    "cast to bytes": lambda x, table: table[x[:, 0].astype(jnp.uint8)],
    "cast as a matrix": lambda x, table: table[x.astype(int)[:, :1]][:, 0],
    "rounded": lambda x, table: jnp.take(table, jnp.round(x[:, 0]).astype(int), axis=0),
    "truncated": lambda x, table: jnp.take(table, jnp.trunc(x[:, 0]).astype(int), axis=0),
    "from one on": lambda x, table: table[jnp.floor(x[:, 0] + 1).astype(int) - 1],
    "clipped": lambda x, table: table[jnp.clip(x[:, 0], 0, 8).astype(int)],
    "in blocks of one table": lambda x, table: table[(x[:, :1].astype(int) + np.array([[0]]))[:, 0]],
    "without what is missing": lambda x, table: table[jnp.where(jnp.isnan(x[:, 0]), 8, x[:, 0]).astype(int)],
    "split off": lambda x, table: table[jnp.split(x, [1], 1)[0].astype(int).squeeze(1)],
    "one-hot": lambda x, table: jax.nn.one_hot(x[:, 0].astype(int), 9) @ table,
    "compared with numbers": lambda x, table: (x[:, :1] == np.arange(9.0)).astype(table.dtype) @ table,
    "row by row": lambda x, table: jax.vmap(lambda row: table[row[0].astype(int)])(x),
    "in a scan": lambda x, table: lax.scan(lambda c, row: (c, table[row[0].astype(int)]), 0, x)[1],
    "in a checkpoint": jax.checkpoint(lambda x, table: table[x[:, 0].astype(int)]),
}


def tabular_network(look_up):
    weight = np.random.default_rng(1).normal(size=(WIDTH + 2, 3))

    def network(x):
        embedded = jnp.concatenate([look_up(x), x[:, 1:3]], 1)
        return jax.nn.relu(embedded @ jnp.asarray(weight) + 0.1) @ np.ones((3, 1))

    return network


@pytest.mark.parametrize("name", FROM_NUMBERS)
def test_categories_among_numbers_have_the_relevance_of_their_look_up(name):
    x, table = jnp.asarray(TABULAR), jnp.asarray(TABLE)
    by_hand = tabular_network(lambda x: x[:, 3:])
    rule = rules.Flat() if name in {"cast", "in a scan"} else rules.Epsilon(0.1)
    parts = explained(by_hand, jnp.concatenate([x, table[TABULAR[:, 0].astype(int)]], 1), rule)
    model = tabular_network(lambda x: FROM_NUMBERS[name](x, table))
    close(explained(model, x, rule), np.c_[parts[:, 3:].sum(1), parts[:, 1:3]])
    assert abs(ledger(model, x, 0, rule).unaccounted) < 1e-9


def test_categories_that_are_numbers_as_well_have_both():
    x, table = jnp.asarray(TABULAR), jnp.asarray(TABLE)
    model = lambda x: table[x[:, 0].astype(int)] @ DIRECTION + 2 * x[:, :1]
    close(explained(model, x)[:, 0], SPOKEN[TABULAR[:, 0].astype(int)] + 2 * TABULAR[:, 0])


STILL_HELD = {
    "by a stop_gradient": lambda x, table: table[lax.stop_gradient(x[:, 0]).astype(int)],
    "as a step": lambda x, table: x[:, :1].astype(int) * table[0],
    "as a mask": lambda x, table: jnp.where(x[:, :1].astype(int) > 1, table[0], table[1]),
    "as what is computed of several numbers": lambda x, table: table[(x[:, 0] * x[:, 1] + x[:, 2]).astype(int)],
}


@pytest.mark.parametrize("name", STILL_HELD)
def test_numbers_that_are_not_looked_up_themselves_are_held(name):
    x, table = jnp.asarray(TABULAR), jnp.asarray(TABLE)
    model = lambda x: STILL_HELD[name](x, table) @ DIRECTION + x[:, 1:2] * 3
    close(explained(model, x), TABULAR * [0, 3, 0])


def test_one_hot_columns_beside_numbers():
    weights = GENERATOR.normal(size=(NUMBER + 3, 2))
    column, numbers = np.array([1, 6, 4]), GENERATOR.normal(size=(3, 3))

    def model(x):
        return jnp.concatenate([jax.nn.one_hot(x["column"], NUMBER), x["numbers"]], 1) @ jnp.asarray(weights)

    found = explained(model, {"column": jnp.asarray(column), "numbers": jnp.asarray(numbers)})
    close(found["column"], weights[column, 0])
    close(found["numbers"], numbers * weights[NUMBER:, 0])


def test_flattened_one_hot_of_a_sequence():
    weights = GENERATOR.normal(size=(4 * NUMBER, 2))
    found = explained(lambda x: jax.nn.one_hot(x, NUMBER).reshape(3, -1) @ jnp.asarray(weights), jnp.asarray(IDS))
    close(found, weights.reshape(4, NUMBER, 2)[np.arange(4), IDS, 0])


def test_convolution_over_one_hot():
    kernel = GENERATOR.normal(size=(2, NUMBER, 1))

    def model(x):
        code = jax.nn.one_hot(x, NUMBER, dtype=float)
        return lax.conv_general_dilated(
            code, jnp.asarray(kernel), (1,), "VALID", dimension_numbers=("NHC", "HIO", "NHC")
        ).sum(1)

    said = kernel[:, IDS, 0]
    right = np.pad(said[0, :, :3], ((0, 0), (0, 1))) + np.pad(said[1, :, 1:], ((0, 0), (1, 0)))
    close(explained(model, jnp.asarray(IDS)), right)


BAGS = {
    "sum of one_hot": lambda x: jax.nn.one_hot(x, NUMBER, dtype=float).sum(1),
    "mean of one_hot": lambda x: jax.nn.one_hot(x, NUMBER, dtype=float).mean(1) * 4,
    "scatter": lambda x: jnp.zeros((3, NUMBER)).at[jnp.arange(3)[:, None], x].add(1.0),
    "counts": lambda x: (x[..., None] == jnp.arange(NUMBER)).sum(1).astype(float),
    "counts of two parts": lambda x: sum((part[..., None] == HELD).sum(1) for part in (x[:, :1], x[:, 1:])) * 1.0,
    "counts under vmap": jax.vmap(lambda row: (HELD[:, None] == row).sum(1) / 1.0),
    "truth values of eye": lambda x: jnp.eye(NUMBER, dtype=bool)[x].astype(float).sum(1),
    "integer counts": lambda x: (x[..., None] == jnp.arange(NUMBER)).sum(1),
    "sum of integer one_hot": lambda x: jax.nn.one_hot(x, NUMBER, dtype=int).sum(1),
    "counts so far": lambda x: jnp.cumsum(jax.nn.one_hot(x, NUMBER, dtype=int), 1)[:, -1],
    "count_nonzero": lambda x: jnp.count_nonzero(x[..., None] == jnp.arange(NUMBER), axis=1),
    "bincount": jax.vmap(lambda row: jnp.bincount(row, length=NUMBER)),
}


@pytest.mark.parametrize("name", BAGS)
def test_bag_of_words(name):
    weights = GENERATOR.normal(size=(NUMBER, 2))
    found = explained(lambda x: BAGS[name](x) @ jnp.asarray(weights), jnp.asarray(IDS), target=1)
    close(found, weights[IDS, 1])


def test_tokens_segments_and_positions():
    segments, positions = GENERATOR.normal(size=(2, WIDTH)), GENERATOR.normal(size=(8, WIDTH))
    kinds = np.array([[0, 0, 1, 1], [0, 1, 1, 1], [0, 0, 0, 1]])
    padding = 3

    def model(x):
        mask = (x["ids"] != padding).astype(jnp.int32)
        places = jnp.cumsum(mask, 1) * mask + padding  # as RoBERTa counts
        e = jnp.asarray(TABLE)[x["ids"]] + jnp.asarray(segments)[x["kinds"]] + jnp.asarray(positions)[places]
        return read_out(e * mask[..., None])

    found = explained(model, {"ids": jnp.asarray(IDS), "kinds": jnp.asarray(kinds)})
    each = PLACES[:4] * (padding != IDS)
    close(found["ids"], each * SPOKEN[IDS])
    close(found["kinds"], each * (segments @ DIRECTION[:, 0])[kinds])


def test_two_integers_in_one_index_share():
    table, other = GENERATOR.normal(size=(NUMBER, NUMBER)), IDS[:, ::-1]
    right = PLACES[:4] * table[IDS, other] / 2
    for look_up in (
        lambda a, b: jnp.asarray(table)[a, b],
        lambda a, b: jnp.asarray(table.reshape(-1))[a * NUMBER + b],
        lambda a, b: jnp.asarray(table.reshape(-1))[jnp.ravel_multi_index((a, b), table.shape, mode="clip")],
    ):
        model = lambda x, look_up=look_up: look_up(x["a"], x["b"]) @ jnp.asarray(PLACES)[:4, None]
        found = explained(model, {"a": jnp.asarray(IDS), "b": jnp.asarray(other)})
        close(found["a"], right)
        close(found["b"], right)


def test_one_integer_and_a_constant_in_one_index():
    table = GENERATOR.normal(size=(4, NUMBER))
    found = explained(lambda x: jnp.asarray(table)[jnp.arange(4), x] @ jnp.asarray(PLACES)[:4, None], jnp.asarray(IDS))
    close(found, PLACES[:4] * table[np.arange(4), IDS])


def test_table_with_several_dimensions():
    table = GENERATOR.normal(size=(NUMBER, 2, 3))
    found = explained(lambda x: jnp.asarray(table)[x].sum((2, 3)) @ jnp.asarray(PLACES)[:4, None], jnp.asarray(IDS))
    close(found, PLACES[:4] * table.sum((1, 2))[IDS])


def test_token_without_a_live_way_gets_nothing():
    model = lambda x: read_out(jnp.asarray(TABLE)[x["ids"]]) + x["other"].max()
    found = explained(model, {"ids": jnp.asarray(IDS), "other": jnp.asarray(IDS)})
    close(found["ids"], PLACES[:4] * SPOKEN[IDS])
    assert not np.any(found["other"])


def test_tied_embedding():
    last = IDS[:, -1]
    found = explained(lambda x: jnp.asarray(TABLE)[x[:, -1]] @ jnp.asarray(TABLE).T, jnp.asarray(IDS), target=3)
    close(found, np.pad((TABLE[last] @ TABLE[3])[:, None], ((0, 0), (3, 0))))


def test_recurrent_network_that_embeds_inside():
    decay, start = 0.7, GENERATOR.normal(size=(1, 1))

    def model(x):
        step = lambda h, i: (decay * h + jnp.asarray(TABLE)[i] @ jnp.asarray(DIRECTION), None)
        return lax.scan(step, jnp.asarray(start).repeat(3, 0), x.T)[0]

    close(explained(model, jnp.asarray(IDS)), decay ** np.arange(3, -1, -1) * SPOKEN[IDS])


def test_masks_of_tokens_are_held():
    def model(x):
        mask = (x != 8).astype(float)
        scores = jnp.where(x[:, None] == 3, -jnp.inf, jnp.zeros((3, 4, 4)))
        weights = jax.nn.softmax(scores) @ (jnp.asarray(TABLE)[x] * mask[..., None])
        return weights.sum(1) @ jnp.asarray(DIRECTION)

    allowed = IDS != 3
    right = (IDS != 8) * SPOKEN[IDS] * allowed * 4 / allowed.sum(1, keepdims=True)
    close(explained(model, jnp.asarray(IDS)), right)


def test_one_hot_beside_a_live_value_is_a_mask():
    values = GENERATOR.normal(size=(3, NUMBER))

    def model(x):
        return (jax.nn.one_hot(x["ids"], NUMBER) * x["values"][:, None]).sum((1, 2))[:, None]

    found = explained(model, {"ids": jnp.asarray(IDS), "values": jnp.asarray(values)})
    assert not np.any(found["ids"])
    counts = (IDS[..., None] == np.arange(NUMBER)).sum(1)
    close(found["values"], counts * values)


MEMBERS = {
    "any": lambda x: (x[..., None] == HELD[3:]).any(-1),
    "sum": lambda x: (x[..., None] == HELD[3:]).sum(-1),
    "jnp.isin": lambda x: jnp.isin(x, HELD[3:]),
    "a table of truth values": lambda x: jnp.asarray(HELD >= 3)[x],
}


@pytest.mark.parametrize("name", MEMBERS)
def test_being_one_of_some_tokens_is_a_mask(name):
    found = explained(lambda x: read_out(jnp.asarray(TABLE)[x] * MEMBERS[name](x)[..., None]), jnp.asarray(IDS))
    close(found, SPOKEN[IDS] * (IDS >= 3) * PLACES[:4])


def test_tokens_as_indices_of_a_live_value():
    values = GENERATOR.normal(size=(3, NUMBER))
    model = lambda x: jnp.take_along_axis(x["values"], x["ids"], 1).sum(1, keepdims=True)
    found = explained(model, {"ids": jnp.asarray(IDS), "values": jnp.asarray(values)})
    assert not np.any(found["ids"])
    close(found["values"], (IDS[..., None] == np.arange(NUMBER)).sum(1) * values)


def test_place_of_the_largest_token_is_held():
    model = lambda x: jnp.asarray(TABLE)[x][jnp.arange(3), jnp.argmax(x, 1)] @ jnp.asarray(DIRECTION)  # as CLIP does
    largest = IDS.argmax(1)[:, None] == np.arange(4)
    close(explained(model, jnp.asarray(IDS)), largest * SPOKEN[IDS])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_smoothed_one_hot_is_a_layer_of_its_own(dtype):
    smoothed = lambda x: (jax.nn.one_hot(x, NUMBER, dtype=dtype) * 0.875 + 0.0625).astype(jnp.float64)
    model = lambda x: read_out(smoothed(x) @ jnp.asarray(TABLE))
    found, expected = explained(model, jnp.asarray(IDS)), 0.875 * PLACES[:4] * SPOKEN[IDS]
    np.testing.assert_allclose(found, expected, atol=1e-6 * abs(expected).max())


def test_relevance_of_tokens_is_differentiated_with_regard_to_the_table():
    def total(table, weigh):
        model = lambda x: jnp.tanh(table[x].sum(1) @ jnp.asarray(WEIGHTS[0])) @ jnp.asarray(WEIGHTS[1])
        return (weigh * relevance(model, jnp.asarray(IDS), 0, rules.Zero()).relevance).sum()

    table, step, weigh = jnp.asarray(TABLE), GENERATOR.normal(size=TABLE.shape), jnp.asarray(PLACES)[:4]
    slope = (total(table + 1e-6 * step, weigh) - total(table - 1e-6 * step, weigh)) / 2e-6
    assert float((jax.grad(total)(table, weigh) * step).sum()) == pytest.approx(float(slope), rel=1e-6)


# Targets, batches, ledgers.


def test_all_targets_and_batches():
    model, x = network(LOOKUPS["by index"]), jnp.asarray(IDS)
    each = [explained(model, x, target=i) for i in range(2)]
    close(explained(model, x, target="all"), np.stack(each))
    close(explained(model, x, target="all", batch_size=2, progress=False), np.stack(each))
    close(explained(model, x, batch_size=2, progress=False), each[0])
    close(jax.jit(functools.partial(explained, model))(x), each[0])


@pytest.mark.sampled(7)
@pytest.mark.parametrize("name", LOOKUPS)
def test_ledger_closes(name):
    book = ledger(network(LOOKUPS[name]), jnp.asarray(IDS), 1, rules.Zero())
    assert book.inputs == pytest.approx(book.explained, rel=1e-9)
    assert book.unaccounted == pytest.approx(0, abs=1e-9)
    assert book.constants + book.not_conserved == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("is_scanned", [False, True], ids=["plain", "in a scan"])
def test_ledger_shows_what_constant_tokens_keep(is_scanned):
    look_up = scanned if is_scanned else LOOKUPS["by index"]

    def model(x):
        return read_out(look_up(shifted_right(jnp, x["ids"], 6)) * x["scale"][:, None, None])

    scale = GENERATOR.normal(size=3)
    book = ledger(model, {"ids": jnp.asarray(IDS), "scale": jnp.asarray(scale)}, 0, rules.Zero())
    assert book.unaccounted == pytest.approx(0, abs=1e-9)
    kept = {row.kind: row.constants + row.not_conserved for row in book.rows if row.kind in {"gather", "scan"}}
    assert kept["scan" if is_scanned else "gather"] == pytest.approx(
        (PLACES[0] * SPOKEN[6] * scale).sum() / 2, rel=1e-9
    )


def test_plan_says_what_is_looked_up():
    rows = str(plan(network(LOOKUPS["one_hot @ table"]), jnp.asarray(IDS), rules.Zero()))
    assert "explained integers" in rows
    assert "Plan: 2 layers" in rows


# What is refused.

SIZES = {
    "a factor of a live value": lambda x: read_out(jnp.asarray(TABLE)[x] * x[..., None].astype(float)),
    "an addend of a live value": lambda x: read_out(jnp.asarray(TABLE)[x]) + x.astype(float).mean(1, keepdims=True),
    "beside a live value in a layer": lambda x: (
        jnp.concatenate([jnp.asarray(TABLE)[x].sum(1), x / 8], 1) @ jnp.ones((WIDTH + 4, 1))
    ),
    "an exponent": lambda x: read_out(jnp.abs(jnp.asarray(TABLE)[x]) ** x[..., None]),
    "in a scan": lambda x: lax.scan(
        lambda h, i: (h + jnp.asarray(TABLE)[i] @ jnp.asarray(DIRECTION) * i[:, None].astype(float), None),
        jnp.zeros((3, 1)),
        x.T,
    )[0],
    "a start of a scan": lambda x: lax.scan(
        lambda h, i: (h + jnp.asarray(TABLE)[i] @ jnp.asarray(DIRECTION), None), x[:, :1].astype(float), x.T
    )[0],
}


@pytest.mark.parametrize("name", SIZES)
def test_size_of_a_token_is_refused_at_its_line(name):
    with pytest.raises(InputError, match=r"size of explained integers.*test_tokens.py:\d+.*astype\('float32'\)"):
        explained(SIZES[name], jnp.asarray(IDS))


def test_tokens_into_a_layer_are_refused_at_their_line():
    with pytest.raises(InputError, match=r"size.*test_tokens.py:\d+.*astype\('float32'\)"):
        explained(lambda x: x.astype(float) @ jnp.ones((4, 2)), jnp.asarray(IDS))


def test_held_size_is_a_constant():
    found = explained(
        lambda x: read_out(jnp.asarray(TABLE)[x] * lax.stop_gradient(x[..., None].astype(float))), jnp.asarray(IDS)
    )
    close(found, PLACES[:4] * IDS * SPOKEN[IDS])


def test_what_cannot_be_followed_is_refused_with_its_line():
    def model(x):
        moved = lax.while_loop(lambda x: x[0, 0] < 3, lambda x: x + 1, x)
        return read_out(jnp.asarray(TABLE)[moved])

    with pytest.raises(InputError, match=r"'while' at .*test_tokens.py:\d+"):
        explained(model, jnp.asarray(IDS))
