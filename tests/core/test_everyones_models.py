"""Models as others write them: situations from public bug trackers, each with a value that is derived by hand.

Tables of categories, tokens that are moved before they are looked up, targets written as products, prints, masks of
attention, physical units, single samples, maxima under jit. Expected values are worked out in numpy and float64.
"""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import assert_close
from compiling import jit_by_day, quick_jit
from flax import nnx
from jax import lax
from nightly import NIGHTLY

from lrp_jax import composites, ledger, lrp, plan, relevance, rules, treatments

float64 = pytest.mark.usefixtures("float64")


def table(entries):
    return pytest.mark.parametrize("case", entries.values(), ids=entries)


# Alpha-beta with zeros among inputs and contributions: 0 / 0 = 0, and what is lost is said

ALPHA_BETA_ROWS = {
    "all zero": ([0.0, 0.0], [0.0, 0.0]),
    "no negative part": ([0.0, 1.0], [0.0, 2.0]),  # 2 * 1; beta finds nothing to divide by
    "no positive part": ([1.0, 0.0], [1.0, 0.0]),  # -1 * -1 / -1 * -1
    "both parts": ([2.0, 4.0], [-2.0, 4.0]),  # z = 2: 2 * 4 / 4 * 2 = 4 and -1 * -2 / -2 * 2 = -2
    "both parts, negative input": ([-1.0, -3.0], [-4.0, 2.0]),  # 1 and -3, z = -2: 2 * -2 and -1 * -2
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("spelling", ["lrp", "relevance", "jit", "with other samples"])
@table(ALPHA_BETA_ROWS)
def test_alpha_beta_with_nothing_to_divide_by(case, spelling):
    w = jnp.array([[-1.0], [1.0]])
    fun, rule = lambda x: x @ w, rules.AlphaBeta(2.0, 1.0)
    x, expected = case
    match spelling:
        case "lrp":
            found = jax.grad(lambda x: lrp(fun, rule)(x)[0])(jnp.asarray(x))  # not compiled
        case "relevance":
            found = relevance(fun, jnp.asarray([x]), 0, rule).relevance[0]
        case "jit":
            found = jax.jit(jax.grad(lambda x: lrp(fun, rule)(x)[0]))(jnp.asarray(x))
        case _:
            batch = jnp.asarray([[3.0, -1.0], x, [0.0, 0.0]])
            found = relevance(fun, batch, 0, rule).relevance[1]
    assert_close(found, expected, 1e-5)


def test_ledger_says_that_more_arrived_than_was_explained():
    weight = jnp.array([[-1.0], [1.0]])
    book = ledger(lambda x: x @ weight, jnp.array([[0.0, 1.0]]), 0, rules.AlphaBeta(2.0, 1.0))
    assert_close([book.explained, book.inputs], [1.0, 2.0], 1e-5)


# Tables of categories beside numbers

RNG = np.random.default_rng(0)
COLUMNS = np.array([[1, 6], [4, 0], [2, 3]])
NUMERIC = RNG.normal(size=(3, 3))


def tabular(width):
    tables, weight = [RNG.normal(size=(n, width)) for n in (5, 7)], RNG.normal(size=(2 * width + 3, 2))
    parts = [(tables[i][COLUMNS[:, i]] * weight[i * width : (i + 1) * width, 0]).sum(1) for i in range(2)]
    return tables, weight, np.stack(parts, 1), NUMERIC * weight[2 * width :, 0]


LOOKUPS = {
    "indexed": lambda table, ids: table[ids],
    "jnp.take": lambda table, ids: jnp.take(table, ids, axis=0),
    "clipped": lambda table, ids: table.at[ids].get(mode="clip"),
    "one-hot": lambda table, ids: jax.nn.one_hot(ids, len(table)) @ table,
    "compared with iota": lambda table, ids: (ids[..., None] == jnp.arange(len(table))).astype(table.dtype) @ table,
    "vmap": lambda table, ids: jax.vmap(lambda i: table[i])(ids.ravel()).reshape(*ids.shape, -1),
    "nnx.Embed": None,
}


def look_up(spelling, table, ids):
    if spelling == "nnx.Embed":
        embed = nnx.Embed(*table.shape, rngs=nnx.Rngs(0), param_dtype=table.dtype, dtype=table.dtype)
        embed.embedding[...] = table
        return embed(ids)
    return LOOKUPS[spelling](table, ids)


@pytest.mark.sampled(4)
@float64
@pytest.mark.parametrize("spelling", LOOKUPS)
@pytest.mark.parametrize("width", [2, 3, 4])  # as many as columns, as samples, as neither
def test_categorical_and_numeric_columns(width, spelling):
    tables, weight, of_categories, of_numbers = tabular(width)
    tables, weight = [jnp.asarray(t) for t in tables], jnp.asarray(weight)

    def model(x):
        parts = [look_up(spelling, tables[i], x["category"][:, i]) for i in range(2)]
        return jnp.concatenate([*parts, x["number"]], 1) @ weight

    found = relevance(
        model, {"category": jnp.asarray(COLUMNS), "number": jnp.asarray(NUMERIC)}, 0, rules.Epsilon(1e-12)
    )
    assert_close(found.relevance["category"], of_categories, 1e-9)
    assert_close(found.relevance["number"], of_numbers, 1e-9)
    total = found.relevance["category"].sum(1) + found.relevance["number"].sum(1)
    assert_close(total, found.output[:, 0], 1e-9)


@float64
@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_two_integer_inputs_of_the_same_shape(shift):
    # Words and segments: each gets what its own table says; positions are a constant.
    words, segments, u = RNG.normal(size=(9, 4)), RNG.normal(size=(2, 4)), RNG.normal(size=(4, 1))
    positions = shift * RNG.normal(size=(3, 4))
    ids, kinds = np.array([[1, 5, 2], [8, 0, 3]]), np.array([[0, 0, 1], [0, 1, 1]])
    w, s = jnp.asarray(words), jnp.asarray(segments)
    model = lambda x: ((w[x["ids"]] + s[x["kinds"]] + positions) @ u).sum(1)
    found = relevance(model, {"ids": jnp.asarray(ids), "kinds": jnp.asarray(kinds)}, 0, rules.Epsilon(1e-12))
    assert_close(found.relevance["ids"], (words[ids] @ u)[..., 0], 1e-9)
    assert_close(found.relevance["kinds"], (segments[kinds] @ u)[..., 0], 1e-9)


# Lookups inside of loops

TABLE, READ, DECAY = RNG.normal(size=(10, 4)), np.array([0.5, -1.0, 2.0, 0.3]), 0.7
IDS = np.array([[1, 5, 2], [8, 0, 3]])


def recurrent(lookup, order=1):
    """H = a h + e_t u, with the lookup before the loop or in it, forwards or backwards."""
    table, u = jnp.asarray(TABLE), jnp.asarray(READ)[:, None]

    def model(ids):
        start = jnp.zeros((len(ids), 1))
        steps = ids.T[::order]
        match lookup:
            case "before":
                return lax.scan(lambda h, e: (DECAY * h + e @ u, None), start, table[steps])[0]
            case "in the loop":
                return lax.scan(lambda h, i: (DECAY * h + table[i] @ u, None), start, steps)[0]
            case "in the loop, one-hot":
                one_hot = lambda i: jax.nn.one_hot(i, len(TABLE)) @ table
                return lax.scan(lambda h, i: (DECAY * h + one_hot(i) @ u, None), start, steps)[0]
            case "by position":
                step = lambda h, t: (DECAY * h + table[ids[:, t]] @ u, None)
                return lax.scan(step, start, jnp.arange(3)[::order])[0]
            case "for loop":
                for t in range(3)[::order]:
                    start = DECAY * start + table[ids[:, t]] @ u
                return start
            case "stacked outputs":
                return lax.scan(lambda h, i: ((h := DECAY * h + table[i] @ u), h), start, steps)[1][-1]
            case "reversed scan":
                return lax.scan(lambda h, i: (DECAY * h + table[i] @ u, None), start, steps[::-1], reverse=True)[0]

    return model


LOOPS = [
    "before",
    "in the loop",
    "in the loop, one-hot",
    "by position",
    "for loop",
    "stacked outputs",
    "reversed scan",
]


@pytest.mark.sampled(11)
@float64
@pytest.mark.parametrize("samples", [1, 2, 3])  # three samples are as many as tokens
@pytest.mark.parametrize("order", [1, -1], ids=["forwards", "backwards"])
@pytest.mark.parametrize("lookup", LOOPS)
def test_embedding_inside_of_a_loop(lookup, order, samples):
    ids = np.array([[1, 5, 2], [8, 0, 3], [4, 4, 7]])[:samples]
    powers = DECAY ** np.arange(3)[::-1][::order]
    found = relevance(recurrent(lookup, order), jnp.asarray(ids), 0, rules.Epsilon(1e-12))
    assert_close(found.relevance, TABLE[ids] @ READ * powers, 1e-9)


# Tokens that are moved before they are looked up

PLACES = np.array([1.0, 10.0, 100.0, 1000.0])
SENTENCES = np.array([[1, 5, 2], [8, 0, 3], [4, 4, 7]])
SAYS = TABLE @ READ


def read_places(h):
    return (h @ jnp.asarray(READ)[:, None])[..., 0] @ jnp.asarray(PLACES)[: h.shape[1], None]


def looked_up(ids):
    return jnp.asarray(TABLE)[ids]


def updated(ids):
    start = jnp.zeros((len(ids), 4), ids.dtype)
    return lax.dynamic_update_slice(start, ids, (0, 1))


MOVES = {
    "plain": (lambda x: x, PLACES[:3]),
    "reversed": (lambda x: x[:, ::-1], PLACES[2::-1]),
    "jnp.flip": (lambda x: jnp.flip(x, 1), PLACES[2::-1]),
    "shifted right": (lambda x: jnp.pad(x, ((0, 0), (1, 0)))[:, :-1], [10.0, 100.0, 0.0]),
    "rolled": (lambda x: jnp.roll(x, 1, 1), [10.0, 100.0, 1.0]),
    "without the first": (lambda x: x[:, 1:], [0.0, 1.0, 10.0]),
    "start token in front by pad": (lambda x: jnp.pad(x, ((0, 0), (1, 0))), PLACES[1:4]),
    "start token in front by concatenation": (
        lambda x: jnp.concatenate([jnp.full((len(x), 1), 6), x], 1),
        PLACES[1:4],
    ),
    "start token in front by an update": (updated, PLACES[1:4]),
    "end token behind": (lambda x: jnp.concatenate([x, jnp.zeros((len(x), 1), x.dtype)], 1), PLACES[:3]),
    "permuted": (lambda x: x[:, jnp.array([2, 0, 1])], [10.0, 100.0, 1.0]),
    "gathered twice": (lambda x: x[:, jnp.array([0, 2, 2])], [1.0, 0.0, 110.0]),
    "repeated": (lambda x: jnp.concatenate([x[:, :1], x[:, :1], x[:, 2:]], 1), [11.0, 0.0, 100.0]),
    "set": (lambda x: x.at[:, 1].set(3), [1.0, 0.0, 100.0]),
    "masked by where": (lambda x: jnp.where(jnp.array([True, False, True]), x, 0), [1.0, 0.0, 100.0]),
    "with an offset": (lambda x: x + 1, None),
    "modulo the size of the table": (lambda x: (x + 10) % 10, PLACES[:3]),
    "clipped": (lambda x: jnp.clip(x, 0, 8), PLACES[:3]),
    "reshaped and back": (lambda x: x.reshape(-1).reshape(x.shape), PLACES[:3]),
    "cast": (lambda x: x.astype(jnp.int16).astype(jnp.int32), PLACES[:3]),
    "under jit": (jax.jit(lambda x: x[:, ::-1]), PLACES[2::-1]),
    "sorted by place": (
        lambda x: jnp.take_along_axis(x, jnp.broadcast_to(jnp.array([1, 0, 2]), x.shape), 1),
        [10.0, 1.0, 100.0],
    ),
    "split": (lambda x: jnp.concatenate(jnp.split(x, [1], 1)[::-1], 1), [100.0, 1.0, 10.0]),
}


@pytest.mark.sampled(5)
@float64
@pytest.mark.parametrize("samples", [1, 3])
@table(MOVES)
def test_relevance_of_tokens_follows_them(case, samples):
    move, weights = case
    ids = SENTENCES[:samples]
    found = relevance(lambda x: read_places(looked_up(move(x))), jnp.asarray(ids), 0, rules.Epsilon(1e-12)).relevance
    expected = SAYS[ids + 1] * PLACES[:3] if weights is None else SAYS[ids] * np.asarray(weights)
    assert_close(found, expected, 1e-9)


@float64
@pytest.mark.parametrize("samples", [1, 3])
def test_relevance_of_tokens_in_time_major_models(samples):
    ids = SENTENCES[:samples]
    model = lambda x: read_places(looked_up(x.T).swapaxes(0, 1))
    assert_close(relevance(model, jnp.asarray(ids), 0, rules.Epsilon(1e-12)).relevance, SAYS[ids] * PLACES[:3], 1e-9)


@float64
def test_relevance_of_the_last_token():
    model = lambda x: looked_up(x[:, -1]) @ jnp.asarray(READ)[:, None]
    found = relevance(model, jnp.asarray(SENTENCES), 0, rules.Epsilon(1e-12)).relevance
    assert_close(found, SAYS[SENTENCES] * np.array([0.0, 0.0, 1.0]), 1e-9)


@float64
def test_relevance_of_the_last_token_that_is_no_padding():
    # Its place comes out of a comparison and a reduction and is held.
    ids = np.array([[1, 5, 2], [8, 3, 0], [4, 0, 0]])

    def model(x):
        place = (x != 0).sum(1) - 1
        return jnp.take_along_axis(looked_up(x), place[:, None, None], 1)[:, 0] @ jnp.asarray(READ)[:, None]

    expected = SAYS[ids] * np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]])
    assert_close(relevance(model, jnp.asarray(ids), 0, rules.Epsilon(1e-12)).relevance, expected, 1e-9)


@float64
def test_masks_and_positions_that_are_computed_from_tokens_are_held():
    # As RoBERTa counts its positions: those of tokens that are no padding.
    ids, at = np.array([[1, 5, 2], [8, 3, 0]]), RNG.normal(size=(4, 4))

    def model(x):
        mask = x != 0
        positions = jnp.cumsum(mask, 1) * mask
        h = looked_up(x) + jnp.asarray(at)[positions]
        return read_places(h * mask[..., None])

    expected = SAYS[ids] * PLACES[:3] * (ids != 0)
    assert_close(relevance(model, jnp.asarray(ids), 0, rules.Epsilon(1e-12)).relevance, expected, 1e-9)


# One target, written as a product, a sum, a difference


class Perceptron(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(5, 16, rngs=rngs, param_dtype=jnp.float64)
        self.out = nnx.Linear(16, 3, rngs=rngs, param_dtype=jnp.float64)
        self.hidden.bias[...] = jnp.sin(jnp.arange(16.0))
        self.out.bias[...] = jnp.array([0.5, -1.0, 0.25])

    def __call__(self, x):
        return self.out(nnx.relu(self.hidden(x)))


V = np.array([-1.0, 1.0, 0.0])
TARGETS = {
    "y1 - y0": lambda y: y[:, 1] - y[:, 0],
    "-y0 + y1": lambda y: -y[:, 0] + y[:, 1],
    "(y * v).sum": lambda y: (y * V).sum(-1),
    "y @ v": lambda y: y @ V,
    "y @ jnp v": lambda y: y @ jnp.asarray(V),
    "y @ column": lambda y: (y @ V[:, None])[:, 0],
    "einsum": lambda y: jnp.einsum("nc,c->n", y, V),
    "vdot": lambda y: jnp.vdot(y, jnp.broadcast_to(V, y.shape)),
    "tensordot": lambda y: jnp.tensordot(y, jnp.asarray(V), 1),
    "integers": lambda y: y @ jnp.array([-1, 1, 0]),
    "sum of both": lambda y: (y[:, 1:2] - y[:, :1]).sum(),
    "vmap": jax.vmap(lambda y: jnp.dot(y, V)),
    "under jit": jax.jit(lambda y: y @ V),
}
TARGET_RULES = {
    "epsilon": rules.Epsilon(1e-9),
    "z+": rules.ZPlus(),
    "flat": rules.Flat(),
    "last: zero": [(composites.last, rules.Zero()), (composites.any_layer, rules.ZPlus())],
}


@functools.cache
def perceptron_and_maps():
    """A network, samples, and their maps for the target as an array, by the name of the rule."""
    model, x = Perceptron(nnx.Rngs(0)), jax.random.normal(jax.random.key(1), (4, 5), jnp.float64)
    target = np.tile(V, (4, 1))
    explain = lambda x: {name: relevance(model, x, target, rule).relevance for name, rule in TARGET_RULES.items()}
    return model, x, quick_jit(explain)(x)


@pytest.mark.sampled(7)
@float64
@pytest.mark.parametrize("rule", TARGET_RULES)
@table(TARGETS)
def test_target_is_no_layer(case, rule):
    model, x, expected = perceptron_and_maps()
    assert_close(relevance(model, x, case, TARGET_RULES[rule]).relevance, expected[rule], 1e-9)


# Prints and callbacks in a model


def prints_mean(x):
    jax.debug.print("mean {m}", m=x.mean())
    return x @ PRINTED


def prints_hidden(x):
    h = x @ PRINTED
    jax.debug.print("h {h}", h=h)
    return h


def prints_tokens(x):
    h = x @ PRINTED
    jax.debug.print("h {h} and {x}", h=h[:, 0], x=x)
    return h


def prints_in_order(x):
    h = x @ PRINTED
    jax.debug.callback(lambda a: None, h, ordered=True)
    return h


def calls_back(x):
    jax.debug.callback(lambda a: None, x)
    return x @ PRINTED


def prints_in_a_part(x):
    def part(h):
        jax.debug.print("h {h}", h=h)
        return h

    return jax.jit(part)(x @ PRINTED)


def prints_in_a_scan(x):
    def step(h, w):
        jax.debug.print("h {h}", h=h)
        return h @ w, None

    return lax.scan(step, x, jnp.stack([jnp.eye(2), PRINTED]))[0]


def prints_in_a_checkpoint(x):
    return jax.checkpoint(prints_hidden)(x)


PRINTED = np.array([[3.0, 1.0], [4.0, 1.0]])
PRINTING = {
    fun.__name__.replace("_", " "): fun
    for fun in (
        prints_mean,
        prints_hidden,
        prints_tokens,
        prints_in_order,
        calls_back,
        prints_in_a_part,
        prints_in_a_scan,
        prints_in_a_checkpoint,
    )
}


@pytest.mark.sampled(3)
@float64
@table(PRINTING)
def test_model_that_prints(case):
    x, expected = jnp.array([[1.0, 2.0]]), [[3.0, 8.0]]
    assert_close(relevance(case, x, 0, rules.Zero()).relevance, expected, 1e-5)
    explain = jax.grad(lambda x: lrp(case, rules.Zero())(x)[0, 0])
    assert_close(explain(x), expected, 1e-5)
    assert_close(jax.jit(explain)(x), expected, 1e-5)
    book = ledger(case, x, 0, rules.Zero())
    assert_close([book.explained, book.inputs], [11.0, 11.0], 1e-5)
    assert plan(case, x, rules.Zero()).rows


# Masks of attention

TOKENS, WIDTH = 6, 8
PARAMETERS = np.random.default_rng(1)
QUERY, KEY, VALUE, OUT = PARAMETERS.normal(size=(4, WIDTH, WIDTH)) / 3
BIASES = PARAMETERS.normal(size=(4, WIDTH)) / 3
HEAD, ATTENDED = PARAMETERS.normal(size=(WIDTH, 3)), PARAMETERS.normal(size=(2, TOKENS, WIDTH))
LENGTHS = np.array([6, 4])
MASK = np.arange(TOKENS) < LENGTHS[:, None]


def attention(x, mask, how):
    q, k, v = (x @ w + b for w, b in zip((QUERY, KEY, VALUE), BIASES[:3], strict=True))
    s, m = jnp.einsum("btd,bsd->bts", q, k) / np.sqrt(WIDTH), jnp.asarray(mask)[:, None, :]
    of_jax = lambda **options: jax.nn.dot_product_attention(q[:, :, None], k[:, :, None], v[:, :, None], **options)
    match how:
        case "where -inf":
            a = jax.nn.softmax(jnp.where(m, s, -jnp.inf), -1)
        case "add -1e9":
            a = jax.nn.softmax(s + jnp.where(m, 0.0, -1e9), -1)
        case "add (1 - m) * -1e9":
            a = jax.nn.softmax(s + (1.0 - m.astype(s.dtype)) * -1e9, -1)
        case "finfo.min":
            a = jax.nn.softmax(jnp.where(m, s, jnp.finfo(s.dtype).min), -1)
        case "where=":
            a = jax.nn.softmax(s, -1, where=m)
        case "where=, whole":
            a = jax.nn.softmax(s, -1, where=jnp.broadcast_to(m, s.shape))
        case "exp * mask / sum":
            e = jnp.exp(s - lax.stop_gradient(s.max(-1, keepdims=True))) * m
            a = e / e.sum(-1, keepdims=True)
        case "softmax * mask / sum":
            a = jax.nn.softmax(s, -1) * m
            a = a / a.sum(-1, keepdims=True)
        case "exp(log_softmax)":
            a = jnp.exp(jax.nn.log_softmax(jnp.where(m, s, -1e30), -1))
        case "(e @ v) / sum":
            e = jnp.exp(s - lax.stop_gradient(s.max(-1, keepdims=True))) * m
            return (e @ v) / e.sum(-1, keepdims=True) @ OUT + BIASES[3]
        case "(e @ v) * (1 / sum)" | "(1 / sum) * (e @ v)":
            e = jnp.exp(s - lax.stop_gradient(s.max(-1, keepdims=True))) * m
            mixed, scale = e @ v, 1 / e.sum(-1, keepdims=True)
            return (mixed * scale if how.startswith("(e") else scale * mixed) @ OUT + BIASES[3]
        case "dot_product_attention":
            return of_jax(mask=m[:, None])[:, :, 0] @ OUT + BIASES[3]
        case "key_value_seq_lengths":
            return of_jax(key_value_seq_lengths=jnp.asarray(mask.sum(1), jnp.int32))[:, :, 0] @ OUT + BIASES[3]
    return (a @ v) @ OUT + BIASES[3]


MASKS = [
    "where -inf",
    "add -1e9",
    "add (1 - m) * -1e9",
    "finfo.min",
    "where=",
    "where=, whole",
    "exp * mask / sum",
    "softmax * mask / sum",
    "exp(log_softmax)",
    "(e @ v) / sum",
    "(e @ v) * (1 / sum)",
    "(1 / sum) * (e @ v)",
    "dot_product_attention",
    "key_value_seq_lengths",
]


def pooled(x, mask, how):
    h, m = x + attention(x, mask, how), mask[..., None]
    return ((h * m).sum(1) / m.sum(1)) @ HEAD


def attention_by_hand(x, holds_weights):
    """One sample in numpy, without padding: gradient times input, softmax by its Jacobian, half to each factor."""
    q, k, v = (x @ w + b for w, b in zip((QUERY, KEY, VALUE), BIASES[:3], strict=True))
    s = q @ k.T / np.sqrt(WIDTH)
    a = np.exp(s) / np.exp(s).sum(-1, keepdims=True)
    c = np.tile(HEAD[:, 1] / len(x), (len(x), 1))  # of h; what is added passes it on unchanged
    of_mixed = c @ OUT.T
    if holds_weights:
        return x * (c + a.T @ of_mixed @ VALUE.T)
    of_weights, of_value = of_mixed @ v.T / 2, a.T @ of_mixed / 2
    of_scores = a * (of_weights - (a * of_weights).sum(-1, keepdims=True)) / np.sqrt(WIDTH) / 2
    return x * (c + of_value @ VALUE.T + of_scores @ k @ QUERY.T + of_scores.T @ q @ KEY.T)


@pytest.mark.sampled(5)
@float64
@pytest.mark.parametrize("preset", ["AttnLRP", "CPLRP"])
@pytest.mark.parametrize("how", MASKS)
def test_masked_tokens_have_no_relevance_and_change_none(how, preset):
    expected = np.zeros(ATTENDED.shape)
    for i, length in enumerate(LENGTHS):
        expected[i, :length] = attention_by_hand(ATTENDED[i, :length], preset == "CPLRP")
    composite = getattr(composites, preset)(1e-12)
    found = np.asarray(relevance(lambda x: pooled(x, MASK, how), jnp.asarray(ATTENDED), 1, composite).relevance)
    single = how in ("dot_product_attention", "key_value_seq_lengths")  # its softmax is in single precision
    assert_close(found, expected, 1e-5 if single else 1e-8)
    assert np.abs(found[1, LENGTHS[1] :]).max() <= 1e-15  # a softmax that is masked afterwards is zero up to rounding


@pytest.mark.parametrize("how", ["add -1e9", "finfo.min", "where=", "dot_product_attention"])
def test_sample_that_is_masked_as_a_whole_is_finite(how):
    mask = np.array([[True] * TOKENS, [False] * TOKENS])
    x = jnp.asarray(ATTENDED, jnp.float32)
    found = relevance(lambda x: attention(x, mask, how).sum(1) @ HEAD, x, 1, composites.AttnLRP()).relevance
    assert np.isfinite(np.asarray(found)).all()


CAUSAL = {
    "where -inf": lambda s, m: jax.nn.softmax(jnp.where(m, s, -jnp.inf)),
    "added -inf": lambda s, m: jax.nn.softmax(s + jnp.where(m, 0.0, -jnp.inf)),
    "where=": lambda s, m: jax.nn.softmax(s, where=m),
    "finfo.min": lambda s, m: jax.nn.softmax(jnp.where(m, s, jnp.finfo(s.dtype).min)),
}


@pytest.mark.sampled(2)
@float64
@table(CAUSAL)
def test_ledger_closes_behind_a_mask_of_minus_infinity(case):
    mask = np.tril(np.ones((5, 5), bool))

    def model(x):
        s = (x @ QUERY) @ (x @ KEY).swapaxes(1, 2) / np.sqrt(8)
        return (case(s, mask) @ (x @ VALUE + BIASES[0])).mean(1)

    x = jnp.asarray(np.random.default_rng(2).normal(size=(2, 5, WIDTH)))
    book = ledger(model, x, 0, composites.AttnLRP(1e-12))
    assert np.isfinite([book.explained, book.inputs, book.unaccounted]).all()
    assert abs(book.unaccounted) < 1e-9 * abs(book.explained)


# Physical units: a network without biases is homogeneous


def unbiased():
    return nnx.Sequential(
        nnx.Conv(1, 4, (3, 3), use_bias=False, rngs=nnx.Rngs(0)),
        nnx.relu,
        lambda h: nnx.avg_pool(h, (2, 2), (2, 2)),
        lambda h: h.reshape(len(h), -1),
        nnx.Linear(64, 3, use_bias=False, rngs=nnx.Rngs(1)),
    )


# Each with bounds that are scaled as the input is.
SCALED = {
    "zero": lambda s: rules.Zero(),
    "epsilon": lambda s: rules.Epsilon(),
    "relative epsilon": lambda s: rules.Epsilon(1e-6, relative=True),
    "gamma": lambda s: rules.Gamma(),
    "alpha-beta": lambda s: rules.AlphaBeta(),
    "z+": lambda s: rules.ZPlus(),
    "w^2": lambda s: rules.WSquare(),
    "flat": lambda s: rules.Flat(),
    "z-box": lambda s: rules.ZBox(0.0, s),
    "norm": lambda s: rules.Norm(),
    "flat first": lambda s: [(composites.first, rules.Flat()), (composites.any_layer, rules.Zero())],
    "the default": lambda s: None,
    "EpsilonPlus": lambda s: composites.EpsilonPlus(),
    "EpsilonPlusFlat": lambda s: composites.EpsilonPlusFlat(),
    "EpsilonGammaBox": lambda s: composites.EpsilonGammaBox(0.0, s),
    "EpsilonAlpha2Beta1": lambda s: composites.EpsilonAlpha2Beta1(),
    "EpsilonAlpha2Beta1Flat": lambda s: composites.EpsilonAlpha2Beta1Flat(),
    "DeepTaylor": lambda s: composites.DeepTaylor(0.0, s),
    "DeepTaylor without bounds": lambda s: composites.DeepTaylor(),
    "AttnLRP": lambda s: composites.AttnLRP(),
    "CPLRP": lambda s: composites.CPLRP(),
    "ExcitationBackprop": lambda s: composites.ExcitationBackprop(),
}


@pytest.mark.sampled(5)
@table(SCALED)
def test_relevance_scales_with_the_input(case):
    model, x = unbiased(), jax.random.uniform(jax.random.key(0), (2, 8, 8, 1))
    base = np.asarray(relevance(model, x, 1, case(1.0)).relevance, np.float64)
    assert base.any()
    for s in (1e-8, 1e-4, 1e4, 1e8):
        found = np.asarray(relevance(model, s * x, 1, case(s)).relevance, np.float64)
        assert_close(found / s, base, 1e-3)


@pytest.mark.parametrize("treatment", ["in proportion", "evenly"])
def test_pooling_with_another_treatment_scales_with_the_input(treatment):
    chosen = {"in proportion": treatments.pooled_in_proportion, "evenly": treatments.pooled_evenly}[treatment]
    composite = composites.with_treatment(rules.Epsilon(), "reduce_window_max", chosen)
    x = jax.random.uniform(jax.random.key(0), (1, 4, 4, 1)) + 0.1
    model = lambda x: nnx.max_pool(x, (2, 2), (2, 2)).reshape(1, -1) @ jnp.ones((4, 1))
    base = np.asarray(relevance(model, x, 0, composite).relevance, np.float64)
    for s in (1e-8, 1e8):
        found = relevance(model, s * x, 0, composite).relevance
        assert_close(np.asarray(found, np.float64) / s, base, 1e-3)


def test_number_that_is_given_keeps_its_meaning():
    # z = 1e-6 with an absolute stabiliser of 1e-6: half is absorbed.
    weight = jnp.array([[1.0]])
    for rule in (rules.Epsilon(1e-6), rules.ZPlus(1e-6)):
        assert_close(relevance(lambda x: x @ weight, jnp.array([[1e-6]]), 0, rule).relevance, [[0.5e-6]], 1e-5)


@float64
def test_default_stabilizer_is_relative_to_the_features_of_a_sample():
    # z = (3, -4, 0.001): root mean square sqrt((9 + 16 + 1e-6) / 3), times 1e-6, added to each with its sign.
    w = np.array([[3.0, -4.0, 1e-3]])
    z = w[0]
    unit = 1e-6 * np.sqrt((z**2).mean())
    expected = (z / (z + np.sign(z) * unit) * z).sum()
    maps_of = lambda rule: jit_by_day(jax.grad(lambda x: lrp(lambda x: x @ w, rule)(x).sum()))
    for batch in ([[1.0]], [[1.0], [1e6], [0.0]]):  # other samples change nothing
        maps = maps_of(rules.Epsilon())(jnp.asarray(batch))
        assert_close(maps[0], [expected], 1e-12)
    # Positive contributions alone: (3, 0, 0.001) is its denominator.
    positive = np.maximum(z, 0)
    unit = 1e-6 * np.sqrt((positive**2).mean())
    expected = (positive / (positive + unit) * z).sum()
    assert_close(maps_of(rules.ZPlus())(jnp.ones((1, 1))), [[expected]], 1e-12)


# Maxima under jit

LARGEST_OUT = np.random.default_rng(5).normal(size=(6, 4))


def normed(x, gain, shift, eps):
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + eps) * gain + shift


TOKEN_MAXIMA = {
    "max": lambda y: y.max(1),
    "min": lambda y: -(-y).min(1),
    "sort": lambda y: jnp.sort(y, 1)[:, -1],
    "top_k": lambda y: lax.top_k(y.swapaxes(1, 2), 1)[0][..., 0],
    "reduce_window": lambda y: lax.reduce_window(y, -jnp.inf, lax.max, (1, y.shape[1], 1), (1, 1, 1), "VALID")[:, 0],
    "cummax": lambda y: lax.cummax(y, 1)[:, -1],
    "maximum of halves": lambda y: jnp.maximum(y[:, :4].max(1), y[:, 4:].max(1)),
    "max under vmap": jax.vmap(lambda y: y.max(0)),
}


@pytest.mark.sampled(25)
@pytest.mark.parametrize("compiled", [False, True], ids=["not compiled", "compiled"])
@pytest.mark.parametrize("samples", [1, 2, 5])
@table(TOKEN_MAXIMA)
def test_maximum_over_tokens_behind_a_norm(case, samples, compiled):
    """Y = x + LayerNorm(x), the largest token of each feature takes all; compiled in single precision."""
    rng = np.random.default_rng(7)
    gain, shift = rng.normal(size=(2, 6)) + np.array([[0.5], [0.0]])
    model = lambda x: case(x + normed(x, jnp.float32(gain), jnp.float32(shift), 1e-6)) @ jnp.float32(LARGEST_OUT)
    for seed in range(3):
        x = np.random.default_rng(seed).normal(size=(samples, 9, 6)).astype(np.float32)
        wide = x.astype(np.float64)
        mean, s = wide.mean(-1, keepdims=True), 1 / np.sqrt(wide.var(-1, keepdims=True) + 1e-6)
        y = wide + (wide - mean) * s * gain + shift
        c = np.zeros_like(wide)
        np.put_along_axis(c, y.argmax(1)[:, None], LARGEST_OUT[:, 0], 1)
        expected = wide * (c + s * gain * c - (s * gain * c).mean(-1, keepdims=True))
        if compiled:
            found = relevance(model, jnp.asarray(x), 0, rules.Epsilon(1e-12)).relevance
        else:
            with jax.disable_jit():
                found = relevance(model, jnp.asarray(x), 0, rules.Epsilon(1e-12)).relevance
        assert_close(found, expected, 1e-4)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("size", [(2, 2), (3, 3)])
def test_max_pooling_behind_a_norm_is_decided_once(size):
    rng = np.random.default_rng(9)
    gain, shift = rng.normal(size=(2, 4))
    w = rng.normal(size=4)

    def model(x):
        y = x + normed(x, jnp.float32(gain), jnp.float32(shift), 1e-6)
        return (nnx.max_pool(y, size, size) @ jnp.float32(w)[:, None]).sum((1, 2))

    explain = jax.grad(lambda x: lrp(model, rules.Zero())(x).sum())
    compiled = jax.jit(explain)
    for samples in (1, 2, 7) if NIGHTLY else (3,):
        x = jnp.asarray(rng.normal(size=(samples, 6, 6, 4)), jnp.float32)
        plain = explain(x)
        assert_close(compiled(x), plain, 1e-4)
        assert_close(compiled(x[:1]), plain[:1], 1e-4)


# One sample


@float64
def test_one_sample_whose_axis_is_indexed_away():
    model = Perceptron(nnx.Rngs(0)).out
    x = jnp.linspace(-1, 1, 16)[None]
    expected = np.asarray(x * (model.kernel[:, 1] - model.kernel[:, 2]))
    rule = rules.Epsilon(1e-12)
    difference = lambda x: model(x)[0, 1] - model(x)[0, 2]
    assert_close(jit_by_day(jax.grad(lrp(difference, rule)))(x), expected, 1e-9)
    assert_close(relevance(model, x, lambda y: y[0, 1] - y[0, 2], rule).relevance, expected, 1e-9)
    assert_close(relevance(model, x, lambda y: y.squeeze()[1] - y.squeeze()[2], rule).relevance, expected, 1e-9)
    assert_close(relevance(model, x, lambda y: (y[:, 1] - y[:, 2]).sum(), rule).relevance, expected, 1e-9)
    of_many = jax.grad(lrp(lambda x: (model(x)[:, 1] - model(x)[:, 2]).sum(), rule))
    of_one = jax.grad(lrp(lambda x: model(x)[1] - model(x)[2], rule))
    of_squeezed = jax.grad(lrp(lambda x: (lambda y: y[1] - y[2])(model(x).squeeze(0)), rule))
    run = lambda x: (of_many(jnp.tile(x, (3, 1))), of_one(x[0]), of_squeezed(x))
    many, single, squeezed = jit_by_day(run)(x)
    assert_close(many, np.tile(expected, (3, 1)), 1e-9)
    assert_close(single, expected[0], 1e-9)
    assert_close(squeezed, expected, 1e-9)


UNBATCHED_NORMS = {
    "instance norm": ((0, 1), "image"),
    "layer norm of all": ((0, 1, 2), "image"),
    "layer norm of channels": ((2,), "image"),
    "norm of a vector": ((0,), "vector"),
    "norm over rows of a matrix": ((0,), "matrix"),
}


@float64
@table(UNBATCHED_NORMS)
def test_norm_of_one_unbatched_input(case):
    axes, kind = case
    rng = np.random.default_rng(3)
    x = rng.normal(size={"image": (8, 8, 3), "matrix": (5, 4), "vector": (6,)}[kind])
    v, gain, shift = rng.normal(size=(3, *x.shape))

    def model(x):
        y = (x - x.mean(axes, keepdims=True)) / jnp.sqrt(x.var(axes, keepdims=True) + 1e-5)
        return ((y * gain + shift) * v).sum()

    c = v * gain / np.sqrt(x.var(axes, keepdims=True) + 1e-5)
    expected = x * (c - c.mean(axes, keepdims=True))
    assert_close(jit_by_day(jax.grad(lrp(model, rules.Epsilon(1e-12))))(jnp.asarray(x)), expected, 1e-9)


@float64
@pytest.mark.parametrize("axes", [(0, 1), (1, 2)], ids=["unbatched", "batch of one"])
def test_instance_norm_read_at_one_pixel_is_not_taken_for_training(axes):
    img, v = np.random.default_rng(4).normal(size=(8, 8, 3)), np.array([1.0, 2.0, 3.0])
    s = 1 / np.sqrt(img.var((0, 1)) + 1e-5)
    c = np.zeros_like(img)
    c[2, 3] = v * s
    expected = img * (c - c.mean((0, 1)))
    norm = lambda h: (h - h.mean(axes, keepdims=True)) / jnp.sqrt(h.var(axes, keepdims=True) + 1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if axes == (0, 1):
            explain = jit_by_day(jax.grad(lrp(lambda x: norm(x)[2, 3] @ v, rules.Epsilon(1e-12))))
            assert_close(explain(jnp.asarray(img)), expected, 1e-9)
        else:
            model = lambda x: norm(x)[:, 2, 3] @ v[:, None]
            assert_close(relevance(model, jnp.asarray(img)[None], 0, rules.Epsilon(1e-12)).relevance[0], expected, 1e-9)


# What a layer is

KERNEL, CLASSES = jax.random.normal(jax.random.key(0), (3, 3, 3, 4)), jax.random.normal(jax.random.key(1), (4, 2))


def convolved(x, kernel):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)


def classified(x, kernel=KERNEL):
    return jax.nn.relu(convolved(x, kernel)).mean((1, 2)) @ CLASSES


def blurred(x):
    box = jnp.full((3, 3, 1, 3), 1 / 9)
    return lax.conv_general_dilated(
        x, box, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=3
    )


FRONTS = {
    "nothing": (lambda x: x, KERNEL),
    "resize": (lambda x: jax.image.resize(x, (x.shape[0], 8, 8, 3), "bilinear"), KERNEL),
    "resize, nearest": (lambda x: jax.image.resize(x, (x.shape[0], 8, 8, 3), "nearest"), KERNEL),
    "resize, cubic": (lambda x: jax.image.resize(x, (x.shape[0], 4, 4, 3), "cubic"), KERNEL),
    "grey by a list": (lambda x: (x @ jnp.array([0.3, 0.6, 0.1]))[..., None], KERNEL[:, :, :1]),
    "grey by sums": (lambda x: (0.3 * x[..., 0] + 0.6 * x[..., 1] + 0.1 * x[..., 2])[..., None], KERNEL[:, :, :1]),
    "grey by einsum": (lambda x: jnp.einsum("bijc,c->bij", x, jnp.array([0.3, 0.6, 0.1]))[..., None], KERNEL[:, :, :1]),
    "flipped colours": (lambda x: x @ jnp.eye(3)[::-1], KERNEL),
    "blurred": (blurred, KERNEL),
    "standardised": (lambda x: (x - 0.5) / 0.25, KERNEL),
    "padded": (lambda x: jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), KERNEL),
    "cosine transform": (
        lambda x: jnp.einsum("uv,bvjc->bujc", jnp.cos(jnp.pi * jnp.arange(6)[:, None] * (jnp.arange(6) + 0.5) / 6), x),
        KERNEL,
    ),
    "resize under jit": (jax.jit(lambda x: jax.image.resize(x, (x.shape[0], 8, 8, 3), "bilinear")), KERNEL),
}


@table(FRONTS)
def test_linear_operation_without_a_parameter_is_no_layer(case):
    front, kernel = case
    model = lambda x: classified(front(x), kernel)
    rows = plan(model, jnp.ones((1, 6, 6, 3)), composites.EpsilonGammaBox(0.0, 1.0)).rows
    # A convolution behind one that were a layer would have gamma.
    assert [row[1] for row in rows if "ZBox" in row[3]] == ["conv"]
    assert [row[1] for row in rows if "Epsilon" in row[3]] == ["dense"]
    assert not [row for row in rows if "Gamma" in row[3]]


@float64
@pytest.mark.parametrize(
    "rule", [rules.ZPlus(0.0), rules.AlphaBeta(1.0, 0.0, 0.0), rules.Zero()], ids=["z+", "alpha-beta", "zero"]
)
def test_operation_without_a_parameter_is_split_in_proportion(rule):
    # grey = 0.3 x_1 + 0.6 x_2 - 0.1 x_3, all of its relevance in proportion, whatever the rule: x_i w_i / grey R.
    x, grey, double = np.array([[1.0, 2.0, 4.0]]), np.array([0.3, 0.6, -0.1]), np.array([[2.0]])
    model = lambda x: (x @ jnp.array([0.3, 0.6, -0.1]))[:, None] @ double
    assert_close(jax.grad(lambda x: lrp(model, rule)(x)[0, 0])(jnp.asarray(x)), x * grey * 2, 1e-9)


@float64
def test_parameters_in_every_place_make_layers():
    w, x = np.array([[2.0, -1.0], [-1.0, 3.0]]), jnp.array([[1.0, 2.0]])
    alone = jnp.asarray(w)

    class Holder:
        weight = jnp.asarray(w)

    holder = Holder()
    models = {
        "numpy array in a closure": lambda x: x @ w,
        "array in a closure": lambda x: x @ alone,
        "attribute": lambda x: x @ holder.weight,
        "computed": lambda x: x @ (alone * 2.0 / 2.0),
        "standardised": lambda x: x @ (alone - alone.mean() + alone.mean()),
        "transposed": lambda x: x @ alone.T.T,
        "cast": lambda x: x @ alone.astype(jnp.float32).astype(jnp.float64),
    }
    # z+: contributions (2, -2) and (-1, 6); R = (0, 5) -> the second output gives all to x_2.
    for model in models.values():
        found = jit_by_day(jax.grad(lambda x, model=model: lrp(model, rules.ZPlus(0.0))(x).sum()))(x)
        assert_close(found, [[0.0, 5.0]], 1e-7)


KERNEL = PARAMETERS.normal(size=(3, 3, 2, 4))
SCALE, SHIFT = np.array([-1.5, 0.4, 2.0, 0.7]), np.array([0.3, -0.2, 0.5, 0.1])
MOVED_NORMS = {
    "pixels merged": lambda z, norm: norm(z.reshape(-1, 36, 4)).reshape(z.shape),
    "all but channels merged": lambda z, norm: norm(z.reshape(-1, 4)).reshape(z.shape),
    "a dimension of one": lambda z, norm: norm(z[:, :, None])[:, :, 0],
    "channels among others": lambda z, norm: (
        (jnp.moveaxis(z, -1, 1).reshape(-1, 4, 36) * SCALE[:, None] + SHIFT[:, None])
        .reshape(-1, 4, 6, 6)
        .transpose(0, 2, 3, 1)
    ),
    "two halves of the pixels": lambda z, norm: jnp.concatenate([norm(z[:, :2]), norm(z[:, 2:])], 1),
}


@float64
@pytest.mark.parametrize("rule", [rules.Gamma(0.25, 0.0), rules.WSquare(0.0), rules.ZPlus(0.0)], ids=repr)
@table(MOVED_NORMS)
def test_batch_norm_of_moved_outputs_belongs_to_the_layer(case, rule):
    # The layer is the convolution with the weight w s and the bias b, wherever its output is moved to in between.
    def model(kernel, after):
        def run(x):
            z = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            return (jax.nn.relu(after(z)) ** 2).sum((1, 2))

        return run

    x = jnp.asarray(np.random.default_rng(3).normal(size=(2, 6, 6, 2)))
    found, expected = (
        jit_by_day(jax.grad(lambda x, model=model: lrp(model, rule)(x).sum()))(x)
        for model in (
            model(KERNEL, lambda z: case(z, lambda z: z * SCALE + SHIFT)),
            model(KERNEL * SCALE, lambda z: z + SHIFT),
        )
    )
    assert_close(found, expected, 1e-9)
