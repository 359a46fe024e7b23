"""Maxima decided once: against a plain loop in numpy, compiled and not, and what is conserved."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from lrp_jax import ledger, lrp, relevance, rules, treatments
from lrp_jax.composites import as_composite, with_treatment
from lrp_jax.core.maxima import to_winners, winners
from lrp_jax.core.planner import make_plan
from lrp_jax.core.primitives import PRIMITIVES
from lrp_jax.core.trace import trace_call

MAXIMA = {name: entry.maximum for name, entry in PRIMITIVES.items() if entry.maximum is not None}


def decided(function, live=None):
    """A function of one maximum, with the derivative that reads nothing but the winners."""

    @jax.custom_vjp
    def run(*operands):
        return function(*operands)

    def of(operands):
        (equation,) = (e for e in jax.make_jaxpr(function)(*operands).eqns if e.primitive.name in MAXIMA)
        return MAXIMA[equation.primitive.name], equation.params, range(len(operands)) if live is None else live

    def forward(*operands):
        return function(*operands), (winners(*of(operands), operands), operands)

    def backward(kept, cotangent):
        index, operands = kept
        maximum, params, positions = of(operands)
        found = dict(zip(positions, to_winners(maximum, params, positions, operands, index, cotangent), strict=True))
        return tuple(found.get(i, jnp.zeros_like(operand)) for i, operand in enumerate(operands))

    run.defvjp(forward, backward)
    return run


def pooling(size, strides=None, padding=None, spread=None, steps=None, *, smallest=False):
    strides, spread, steps = (given or (1,) * len(size) for given in (strides, spread, steps))
    padding = padding or [(0, 0)] * len(size)
    worst, reducer = (jnp.inf, lax.min) if smallest else (-jnp.inf, lax.max)

    def pool(x):
        return lax.reduce_window(x, np.asarray(worst, x.dtype), reducer, size, strides, padding, spread, steps)

    return pool


# The plain loop


def by_loop(name, params, live, operands, cotangent):
    """For each output the candidates in the order of the convention; the first of the best gets what arrives."""
    sign = -1 if "min" in name or getattr(params.get("select_prim"), "name", "") == "le" else 1
    operands = [np.asarray(operand, np.float64) for operand in operands]
    found = [np.zeros(operand.shape) for operand in operands]
    for at in np.ndindex(cotangent.shape):
        if name == "clamp":
            place = clamped(operands, live, at)
        else:
            candidates = list(candidates_of(name, params, live, operands, at))
            values = [sign * operands[1 if name.startswith("select") else i][index] for i, index in candidates]
            place = candidates[values.index(max(values))] if candidates else None
        if place is not None:
            found[place[0]][place[1]] += cotangent[at]
    return [found[position] for position in sorted(live)]


def candidates_of(name, params, live, operands, at):
    shape = operands[0].shape
    if name in {"max", "min"}:
        for position in sorted((0, 1), key=lambda position: position in live):  # constants first
            yield position, at if operands[position].ndim else ()
    elif name.startswith("reduce_window") or name.startswith("select"):
        keys = ("window_strides", "window_dilation", "padding", "base_dilation")
        for offsets in np.ndindex(*params["window_dimensions"]):
            index = []
            for i, offset, size, stride, step, (low, _), spread in zip(
                at, offsets, shape, *(params[key] for key in keys), strict=True
            ):
                place, rest = divmod(i * stride + offset * step - low, spread)
                index += [place] if rest == 0 and 0 <= place < size else []
            if len(index) == len(shape):
                yield 0, tuple(index)
    elif name.startswith("reduce"):
        kept = [axis for axis in range(len(shape)) if axis not in params["axes"]]
        yield from ((0, index) for index in np.ndindex(*shape) if tuple(index[axis] for axis in kept) == at)
    else:
        axis, size = params["axis"], shape[params["axis"]]
        reached = range(at[axis], size) if params["reverse"] else range(at[axis] + 1)
        yield from ((0, (*at[:axis], i, *at[axis + 1 :])) for i in reached)


def clamped(operands, live, at):
    def between(one, other, sign):
        pair = [one, other] if (one in live) <= (other in live) else [other, one]
        values = [sign * value[other] for other in pair]
        return pair[values.index(max(values))]

    value = [operand[at] if operand.ndim else operand[()] for operand in operands]
    winner = between(between(0, 1, 1), 2, -1)
    return winner, at if operands[winner].ndim else ()


def check(function, operands, live=None):
    (equation,) = (e for e in jax.make_jaxpr(function)(*operands).eqns if e.primitive.name in MAXIMA)
    value = function(*operands)
    cotangent = jnp.asarray(np.random.default_rng(1).integers(1, 9, value.shape), value.dtype)  # sums of them are exact
    found = back(function, live)(operands, cotangent)
    positions = range(len(operands)) if live is None else live
    expected = by_loop(equation.primitive.name, equation.params, positions, operands, np.asarray(cotangent, np.float64))
    for position, right in zip(sorted(positions), expected, strict=True):
        np.testing.assert_array_equal(np.asarray(found[position], np.float64), right)


def back(function, live=None):
    return jax.jit(lambda operands, cotangent: jax.vjp(decided(function, live), *operands)[1](cotangent))


def tied(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).integers(-1, 3, shape), dtype)


def cumulative(primitive, axis, reverse):
    return functools.partial(primitive, axis=axis, reverse=reverse)


OF_ONE = {
    "the maximum of a vector": (lambda x: lax.reduce_max(x, (0,)), (7,)),
    "the maximum over a first axis": (lambda x: lax.reduce_max(x, (0,)), (5, 4)),
    "the maximum over the middle": (lambda x: lax.reduce_max(x, (1,)), (2, 5, 3)),
    "the maximum over axes that are apart": (lambda x: lax.reduce_max(x, (0, 2)), (3, 2, 4, 2)),
    "the maximum over everything": (lambda x: lax.reduce_max(x, (0, 1, 2)), (2, 3, 2)),
    "the maximum over nothing": (lambda x: lax.reduce_max(x, ()), (2, 3)),
    "the minimum over two axes": (lambda x: lax.reduce_min(x, (1, 2)), (2, 3, 4)),
    "the maximum so far": (cumulative(lax.cummax, 0, False), (9,)),
    "the maximum so far, from the end": (cumulative(lax.cummax, 1, True), (2, 9, 2)),
    "the minimum so far": (cumulative(lax.cummin, 2, False), (2, 3, 6)),
    "the minimum so far, from the end": (cumulative(lax.cummin, 0, True), (6, 3)),
    "windows apart": (pooling((2,), (2,)), (8,)),
    "windows apart, with a rest": (pooling((2, 3), (2, 3)), (9, 10)),
    "windows that overlap": (pooling((1, 3, 3, 1), (1, 2, 2, 1), [(0, 0), (1, 1), (1, 1), (0, 0)]), (2, 7, 6, 3)),
    "windows with gaps between": (pooling((1, 2, 2), (1, 3, 4)), (2, 9, 9)),
    "windows with holes": (pooling((1, 2, 3), (1, 1, 2), None, None, (1, 3, 2)), (2, 8, 9)),
    "windows over the padding alone": (pooling((2,), (1,), [(3, 4)]), (4,)),
    "windows of a cropped image": (pooling((2, 2), (1, 1), [(-1, 2), (1, -2)]), (6, 7)),
    "windows of a spread image": (pooling((3, 2), (2, 1), [(1, 2), (0, 1)], (2, 3)), (5, 4)),
    "windows with holes of a spread image": (pooling((3, 2), (1, 2), [(1, 0), (2, 1)], (2, 3), (3, 2)), (5, 4)),
    "windows that find nothing": (pooling((2,), (2,), None, (3,), (2,)), (5,)),
    "the smallest of windows": (pooling((3, 2), (2, 1), [(1, 1), (0, 1)], smallest=True), (6, 5)),
    "moved and strided without a window": (pooling((1, 1), (2, 1), [(1, -1), (0, 0)]), (6, 3)),
    "large windows": (pooling((1, 9, 8, 1), (1, 2, 3, 1), [(0, 0), (4, 4), (0, 5), (0, 0)]), (2, 11, 12, 2)),
    "large windows over everything": (pooling((1, 12, 10)), (3, 12, 10)),
    "large windows of a spread image": (pooling((70,), (3,), [(5, 80)], (2,)), (50,)),
    "large windows with holes": (pooling((66, 1), (2, 1), [(3, 4), (0, 0)], None, (2, 1)), (140, 2)),
    "the smallest of large windows": (pooling((65,), (4,), [(30, 30)], smallest=True), (81,)),
}


@pytest.mark.sampled(9)
@pytest.mark.parametrize("name", OF_ONE)
@pytest.mark.parametrize("seed", [0, 1])
def test_each_output_gives_everything_to_the_first_of_the_best(name, seed):
    function, shape = OF_ONE[name]
    check(function, [tied(*shape, seed=seed)])


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", [name for name in OF_ONE if "window" in name])
def test_padding_wins_against_nothing_not_even_against_infinity(name):
    function, shape = OF_ONE[name]
    worst = jnp.inf if "smallest" in name else -jnp.inf
    check(function, [jnp.where(tied(*shape) > 0, worst, worst / 1)])
    check(function, [jnp.where(tied(*shape) > 0, 1.0, worst)])


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ["windows that overlap", "large windows", "the maximum so far", "windows apart"])
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float64])
def test_every_precision(name, dtype, float64):
    function, shape = OF_ONE[name]
    x = tied(*shape, dtype=dtype)
    check(function, [x])
    assert jax.eval_shape(back(function), [x], function(x))[0].dtype == dtype


TWO = {"largest": lax.max_p.bind, "smallest": lax.min_p.bind}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", TWO)
@pytest.mark.parametrize("live", [(0,), (1,), (0, 1)], ids=["first live", "second live", "both live"])
@pytest.mark.parametrize("shapes", [((), ()), ((5,), (5,)), ((3, 7), ()), ((), (4, 2)), ((2, 3, 5), (2, 3, 5))])
def test_of_two_the_constant_wins_and_of_two_live_ones_the_first(name, live, shapes):
    check(TWO[name], [tied(*shape, seed=seed) for seed, shape in enumerate(shapes)], live)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("live", [live for n in (1, 2, 3) for live in itertools.combinations(range(3), n)], ids=str)
@pytest.mark.parametrize("bounds", [(), (4, 5)], ids=["numbers", "arrays"])
def test_clamps(live, bounds):
    for seed in range(5):  # also a lower bound above the upper one
        low, high = tied(*bounds, seed=seed), tied(*bounds, seed=seed + 10)
        check(lax.clamp_p.bind, [low, tied(4, 5, seed=seed + 20), high], live)


@pytest.mark.parametrize("spelling", ["max(x, 0)", "max(0, x)", "clamp", "-min(-x, 0)"])
def test_the_derivative_of_relu_at_zero_is_zero_in_every_spelling(spelling):
    zero = jnp.float32(0)
    function = {
        "max(x, 0)": lambda x: decided(lax.max_p.bind, (0,))(x, zero),
        "max(0, x)": lambda x: decided(lax.max_p.bind, (1,))(zero, x),
        "clamp": lambda x: decided(lax.clamp_p.bind, (1,))(zero, x, jnp.float32(9)),
        "-min(-x, 0)": lambda x: -decided(lax.min_p.bind, (0,))(-x, zero),
    }[spelling]
    slope = jax.grad(lambda x: function(x).sum())(jnp.array([-1.0, -0.0, 0.0, 1.0]))
    np.testing.assert_array_equal(slope, [0, 0, 0, 1])


@pytest.mark.parametrize("smallest", [False, True], ids=["largest", "smallest"])
@pytest.mark.parametrize("live", [(0,), (1,), (0, 1)], ids=["tangents", "chooser", "both"])
def test_the_derivative_of_a_pooling_as_part_of_a_function(smallest, live):
    pool = pooling((2, 3), (1, 2), [(1, 0), (1, 1)], smallest=smallest)

    def tangent(tangents, x):
        return jax.jvp(pool, (x,), (tangents,))[1]

    operands = [tied(4, 7, seed=1), jax.random.permutation(jax.random.key(0), 28.0 + jnp.arange(28.0)).reshape(4, 7)]
    (equation,) = (e for e in jax.make_jaxpr(tangent)(*operands).eqns if e.primitive.name == "select_and_gather_add")
    value = tangent(*operands)
    maximum = MAXIMA[equation.primitive.name]
    index = winners(maximum, equation.params, live, operands)
    found = to_winners(maximum, equation.params, live, operands, index, value)
    right = {0: jax.vjp(pool, operands[1])[1](value)[0], 1: jnp.zeros((4, 7))}
    for position, cotangent in zip(live, found, strict=True):
        np.testing.assert_array_equal(cotangent, right[position])


# Compiled and not


def normalised(x):
    mean = x.mean(-1, keepdims=True)
    return x + (x - mean) * lax.rsqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-6)


def map_behind_a_norm(function, x):
    """The cotangent at the operand of a maximum behind a norm, and what the norm passes on."""
    value, transpose = jax.vjp(lambda x: function(x), normalised(x))
    (cotangent,) = transpose(jnp.ones_like(value))
    return cotangent, jax.vjp(normalised, x)[1](cotangent)[0] * x


BEHIND = {
    "over tokens": decided(lambda x: lax.reduce_max(x, (1,))),
    "the smallest over tokens": decided(lambda x: lax.reduce_min(x, (1,))),
    "over features": decided(lambda x: lax.reduce_max(x, (2,))),
    "over both": decided(lambda x: lax.reduce_max(x, (1, 2))),
    "so far": decided(functools.partial(lax.cummax, axis=1)),
    "pooled": decided(pooling((1, 2, 1), (1, 2, 1))),
    "pooled with an overlap": decided(pooling((1, 3, 2), (1, 1, 1), [(0, 0), (1, 1), (0, 0)])),
    "pooled in large windows": decided(pooling((1, 9, 8), (1, 1, 1), [(0, 0), (8, 8), (7, 7)])),
    "of one half and the other": lambda x: decided(lax.max)(x, x[:, ::-1]),
}


@pytest.mark.sampled(7)
@pytest.mark.parametrize("name", BEHIND)
@pytest.mark.parametrize("shape", [(1, 4, 6), (2, 10, 17), (5, 16, 64)], ids=["1 sample", "2 samples", "5 samples"])
def test_a_maximum_behind_a_norm_is_the_same_compiled_or_not(name, shape):
    run = functools.partial(map_behind_a_norm, BEHIND[name])
    x = jax.random.normal(jax.random.key(0), shape)
    with jax.disable_jit():
        cotangent, relevance = run(x)
    compiled_cotangent, compiled_relevance = jax.jit(run)(x)
    np.testing.assert_array_equal(compiled_cotangent, cotangent)  # whole numbers
    np.testing.assert_allclose(compiled_relevance, relevance, rtol=1e-4, atol=1e-4)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", BEHIND)
@pytest.mark.parametrize("shape", [(1, 5, 17), (3, 8, 64)], ids=["1 sample", "3 samples"])
def test_of_tokens_that_are_equal_up_to_rounding_one_wins(name, shape):
    x = jnp.repeat(jax.random.normal(jax.random.key(0), shape), 2, axis=1)
    cotangent, _ = jax.jit(functools.partial(map_behind_a_norm, BEHIND[name]))(x)
    assert cotangent.sum() == jax.eval_shape(BEHIND[name], x).size  # whole numbers: nothing is lost, nothing doubled


@pytest.mark.parametrize("name", ["sort", "top_k"])
def test_sort_and_top_k_of_jax_choose_by_index(name):
    function = {"sort": lambda x: lax.sort(x, dimension=1), "top_k": lambda x: lax.top_k(x, 3, axis=1)[0]}[name]
    for seed in range(5):
        x = jnp.repeat(jax.random.normal(jax.random.key(seed), (3, 6, 11)), 2, axis=1)
        cotangent, _ = jax.jit(functools.partial(map_behind_a_norm, function))(x)
        each = {0, 1} if name == "top_k" else {1}
        assert set(np.unique(cotangent)) == each
        np.testing.assert_array_equal(cotangent.sum(1), 3 if name == "top_k" else 12)
    weights = jnp.array([[5.0, 7.0, 9.0, 11.0]])
    slope = jax.grad(lambda x: (weights[:, : function(x).shape[1]] * function(x)).sum())(jnp.array([[2.0, 3, 3, 2]]))
    expected = {"sort": [[5, 9, 11, 7]], "top_k": [[9, 5, 7, 0]]}[name]
    np.testing.assert_array_equal(slope, expected)


# Transformations, and the edges


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", OF_ONE)
def test_vmap_is_a_loop(name):
    function, shape = OF_ONE[name]
    slope = jax.jit(jax.grad(lambda x: (decided(function)(x) ** 2).sum()))
    x = tied(3, *shape)
    np.testing.assert_array_equal(jax.jit(jax.vmap(slope))(x), jnp.stack([slope(sample) for sample in x]))


@pytest.mark.parametrize("live", [(0,), (1,), (0, 1)], ids=str)
def test_vmap_of_two_operands_of_which_one_is_shared(live):
    x, y = tied(3, 5), tied(5, seed=1)
    slopes = jax.vjp(jax.vmap(decided(lax.max, live), (0, None)), x, y)[1](tied(3, 5, seed=2))
    for position, slope in enumerate(slopes):
        expected = by_loop("max", {}, live, [x, jnp.broadcast_to(y, (3, 5))], np.asarray(tied(3, 5, seed=2)))
        right = expected[sorted(live).index(position)] if position in live else np.zeros((3, 5))
        np.testing.assert_array_equal(slope, right if position == 0 else right.sum(0))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", OF_ONE)
def test_what_is_computed_from_a_map_has_a_derivative(name):
    function, shape = OF_ONE[name]
    x = tied(*shape)

    def slope_at(scale):
        return jax.grad(lambda x: (scale * decided(function)(x)).sum())(scale * x)

    value, found = jax.jit(jax.value_and_grad(lambda scale: (slope_at(scale) ** 2).sum()))(3.0)
    assert value > 0 or name == "windows that find nothing"
    np.testing.assert_allclose(found, 2 * value / 3, rtol=1e-6)


@pytest.mark.parametrize("name", ["the maximum over the middle", "windows that overlap", "large windows", "of two"])
def test_within_shard_map(name):
    function, shape = (lax.max, (2, 6)) if name == "of two" else OF_ONE[name]
    operands = [tied(*shape, seed=seed) for seed in range(2 if name == "of two" else 1)]
    run = lambda *operands: jax.vjp(decided(function), *operands)[1](function(*operands))
    split = PartitionSpec("samples")
    mesh = Mesh(np.array(jax.devices()[:1]), ("samples",))
    sharded = jax.shard_map(run, mesh=mesh, in_specs=split, out_specs=split)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(sharded)(*operands), run(*operands))


@pytest.mark.parametrize(
    ("function", "shapes"),
    {
        "no samples": (lambda x: lax.reduce_max(x, (1,)), [(0, 3)]),
        "the maximum of nothing": (lambda x: lax.reduce_max(x, (1,)), [(2, 0)]),
        "the maximum so far of nothing": (functools.partial(lax.cummax, axis=0), [(0, 2)]),
        "pooling no samples": (pooling((1, 2), (1, 2)), [(0, 4)]),
        "windows larger than the image": (pooling((1, 5)), [(2, 4)]),
        "large windows larger than the image": (pooling((1, 70)), [(2, 4)]),
        "windows over the padding of nothing": (pooling((2,), (1,), [(2, 2)]), [(0,)]),
        "two of nothing": (lax.max, [(0, 2), (0, 2)]),
        "nothing and a number": (lax.max_p.bind, [(0, 2), ()]),
    }.values(),
)
def test_nothing_at_all(function, shapes):
    operands = [jnp.zeros(shape) for shape in shapes]
    value, transpose = jax.vjp(decided(function), *operands)
    for slope, shape in zip(transpose(jnp.ones_like(value)), shapes, strict=True):
        np.testing.assert_array_equal(slope, jnp.zeros(shape))


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", OF_ONE)
def test_of_values_that_are_no_numbers_one_at_most_wins(name):
    function, shape = OF_ONE[name]
    x = jnp.where(tied(*shape) > 0, jnp.nan, tied(*shape))
    value = function(x)
    (slope,) = back(function)([x], jnp.ones_like(value))
    assert jnp.isfinite(slope).all()
    assert slope.sum() <= value.size


SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=4)


@st.composite
def maxima(draw):
    """A maximum with live operands of random shapes and many ties, and no window without an element."""
    shape = tuple(draw(SIZES))
    name = draw(st.sampled_from(sorted(MAXIMA.keys() - {"scatter-max", "scatter-min", "select_and_gather_add"})))
    axis = draw(st.integers(0, len(shape) - 1))
    count = {"max": 2, "min": 2, "clamp": 3}.get(name, 1)
    seed = draw(st.integers(0, 1000))
    operands = [tied(*shape, seed=seed + i) for i in range(count)]
    if count > 1:
        return {"max": lax.max, "min": lax.min, "clamp": lax.clamp}[name], operands
    if name.startswith("cum"):
        return cumulative(getattr(lax, name), axis, draw(st.booleans())), operands
    if "window" not in name:
        axes = tuple(sorted(draw(st.sets(st.integers(0, len(shape) - 1)))))
        return lambda x: getattr(lax, name)(x, axes), operands
    size = [draw(st.integers(1, min(n, 3))) for n in shape]
    strides = [draw(st.integers(1, 3)) for _ in shape]
    padding = [(draw(st.integers(0, n - 1)), draw(st.integers(0, n - 1))) for n in size]
    return pooling(size, strides, padding, smallest=name.endswith("min")), operands


@given(maxima())
@settings(max_examples=40, deadline=None)
def test_what_arrives_is_conserved(maximum):
    function, operands = maximum
    cotangent = tied(*jax.eval_shape(function, *operands).shape, seed=1)
    slopes = jax.tree.map(np.asarray, back(function)(operands, cotangent))  # whose sums are compiled for no shape
    assert sum(slope.sum() for slope in slopes) == np.asarray(cotangent).sum()


# Into places that indices name

SEGMENTS = np.array([0, 2, 0, 2, 4])
NODES = np.array([[1.0, 3.0, 3.0, 2.0, -1.0], [-1.0, -3.0, 0.0, 5.0, 5.0], [2.0, 4.0, 2.0, 4.0, 0.0]])


def by_segment(x, sign, cotangent, constant=None):
    """Each segment's c times value to its first largest element; to none if a constant is as large."""
    found = np.zeros_like(x)
    for segment in set(SEGMENTS):
        members = np.flatnonzero(segment == SEGMENTS)
        best = members[np.argmax(sign * x[members])]
        if constant is None or sign * x[best] > sign * constant:
            found[best] = cotangent[segment] * x[best]
    return found


SCATTERED = {
    "segment_max": (lambda r: jax.ops.segment_max(r, SEGMENTS, num_segments=6), 1, None),
    "segment_min": (lambda r: jax.ops.segment_min(r, SEGMENTS, num_segments=6), -1, None),
    "at.max": (lambda r: jnp.full(6, 2.0, r.dtype).at[SEGMENTS].max(r), 1, 2.0),
    "at.min": (lambda r: jnp.full(6, 0.0, r.dtype).at[SEGMENTS].min(r), -1, 0.0),
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("name", SCATTERED)
def test_largest_of_a_segment_gets_all(name, dtype):
    aggregate, sign, constant = SCATTERED[name]
    cotangent = np.arange(1.0, 7.0)

    def model(x):
        found = jax.vmap(aggregate)(x)
        return jnp.where(jnp.isfinite(found), found, 0)  # a segment may be empty

    with jax.enable_x64(dtype == jnp.float64):
        x = jnp.asarray(NODES, dtype)
        target = lambda output: (output * cotangent.astype(dtype)).sum(1)
        for function in (model, jax.jit(model)):
            for batch in (x[:1], x):
                found = relevance(function, batch, target, rules.Zero()).relevance
                right = [by_segment(np.asarray(row, np.float64), sign, cotangent, constant) for row in NODES]
                np.testing.assert_allclose(found, right[: len(batch)], rtol=1e-6)
        book = ledger(model, x, target, rules.Zero())
        assert abs(book.unaccounted) < 1e-4
        weight = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2)), dtype)
        for rule in (rules.Flat(), rules.ZBox(-5.0, 5.0), rules.ZPlus()):
            assert jnp.isfinite(relevance(lambda x: model(x) @ weight, x, 0, rule).relevance).all()


def test_of_what_is_there_and_what_is_scattered_the_first_wins():
    x = jnp.asarray([[1.0, 3.0, 3.0, 1.0, -1.0]])
    model = lambda x: jax.vmap(lambda r: r[:3].at[jnp.array([0, 1])].min(r[3:]))(x)
    found = relevance(model, x, lambda output: output.sum(1), rules.Zero()).relevance
    np.testing.assert_allclose(found, [[1.0, 0.0, 3.0, 0.0, -1.0]])


def test_maximum_over_the_neighbours_of_a_graph():
    # Edges 0-1, 1-2, 2-0 both ways and 3 alone; features of the nodes by a layer, the largest message for each.
    sender, receiver = jnp.array([0, 1, 1, 2, 2, 0]), jnp.array([1, 0, 2, 1, 0, 2])
    weight = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3)), jnp.float32)
    x = jnp.asarray(np.random.default_rng(2).normal(size=(4, 2)), jnp.float32)

    def network(x):
        messages = jax.nn.relu(x @ weight)[sender]
        largest = jax.ops.segment_max(messages, receiver, num_segments=4)
        return jnp.where(jnp.isfinite(largest), largest, 0.0)

    gradient = jax.grad(lambda x: network(x).sum())(x)
    found = relevance(network, x, lambda output: output.sum(1), rules.Zero()).relevance
    np.testing.assert_allclose(found, gradient * x, rtol=1e-5, atol=1e-6)


# Constants at some places: of equals they win. Expected by the same moves of the place that each element comes from.

ROW, FILL = np.array([3.0, 2.0, 3.0, 1.0, 2.0, 3.0]), 3.0
KEPT = np.array([True, True, False, True, False, True])


def written(xp, x, fill):
    whole = np.full(len(x) + 3, fill, x.dtype)
    if xp is np:
        whole[[1, 3, 4, 5, 7, 8]] = x
        return whole
    return jnp.asarray(whole).at[np.array([1, 3, 4, 5, 7, 8])].set(x)


def inserted(xp, x, fill):
    if xp is np:
        return np.stack([x, np.full_like(x, fill)], 1).ravel()[:-1]
    return lax.pad(x, np.asarray(fill, x.dtype), ((0, 0, 1),))


def taken(xp, x, fill):
    places = np.array([4, 9, 0, 2, 7])
    if xp is np:
        return np.pad(x, (0, 9), constant_values=fill)[places]
    return jnp.take(x, places, mode="fill", fill_value=fill)


WITH_CONSTANTS = {
    "padded behind": lambda xp, x, fill: xp.pad(x, (0, 2), constant_values=fill),
    "padded in front and cut": lambda xp, x, fill: xp.pad(x, (3, 0), constant_values=fill)[1:-1],
    "padded between": inserted,
    "side by side": lambda xp, x, fill: xp.concatenate([x, xp.full(2, fill, x.dtype)])[::-1],
    "masked": lambda xp, x, fill: xp.where(KEPT, x, xp.full(6, fill, x.dtype)),
    "written into": written,
    "taken with a fill value": taken,
    "rows padded, reshaped": lambda xp, x, fill: xp.pad(
        x.reshape(2, 3), ((0, 1), (1, 0)), constant_values=fill
    ).T.reshape(-1),
}


def order_of_the_best(values, origin, places, sign=1):
    """Some places in the order in which they win: by value, constants first, in row-major order."""
    return sorted(places, key=lambda i: (-sign * values[i], origin[i] >= 0, i))


def best_of_windows(size, sign=1):
    return lambda values, origin: [
        order_of_the_best(values, origin, range(i, i + size), sign)[0] for i in range(len(values) - size + 1)
    ]


READERS = {
    "max": (lambda y: y.max()[None], lambda v, o: order_of_the_best(v, o, range(len(v)))[:1]),
    "cummax": (
        functools.partial(lax.cummax, axis=0),
        lambda v, o: [order_of_the_best(v, o, range(i + 1))[0] for i in range(len(v))],
    ),
    "pooled": (pooling((3,)), best_of_windows(3)),
    "the smallest of windows": (pooling((2,), smallest=True), best_of_windows(2, -1)),
    "halves of relu": (
        lambda y: jnp.maximum(*jax.nn.relu(y[: len(y) // 2 * 2]).reshape(2, -1)),
        lambda v, o: [order_of_the_best(v, o, [i, len(v) // 2 + i])[0] for i in range(len(v) // 2)],
    ),
    "top_k": (lambda y: lax.top_k(y, 3)[0], lambda v, o: order_of_the_best(v, o, range(len(v)))[:3]),
    "sort": (jnp.sort, lambda v, o: order_of_the_best(v, o, range(len(v)), -1)),
    "scattered": (
        lambda y: jnp.zeros(2).at[np.arange(len(y)) % 2].max(y),
        lambda v, o: [order_of_the_best(v, o, range(i, len(v), 2))[0] for i in range(2)],
    ),
}


def relevance_of_sum(model, x, rule=rules.Zero()):  # noqa: B008
    return jax.jit(jax.grad(lambda x: lrp(model, rule)(x).sum()))(x)


@pytest.mark.parametrize(
    ("move", "reader"),
    [*((move, "max") for move in WITH_CONSTANTS), *(("rows padded, reshaped", reader) for reader in list(READERS)[1:])],
)
def test_of_equals_a_constant_at_some_place_wins(move, reader):
    move_of, (read, places_of) = WITH_CONSTANTS[move], READERS[reader]
    values, origin = move_of(np, ROW, FILL), move_of(np, np.arange(6), -1)
    places = places_of(values, origin)
    weights = 2.0 ** np.arange(len(places))
    right = np.zeros(6)
    for place, weight in zip(places, weights, strict=True):
        right[origin[place]] += weight * values[place] * (origin[place] >= 0)
    model = lambda x: jax.vmap(lambda row: read(move_of(jnp, row, FILL)) @ weights.astype(np.float32))(x)
    np.testing.assert_array_equal(relevance_of_sum(model, jnp.asarray(ROW, jnp.float32)[None])[0], right)


def test_places_of_constants_go_through_loops_branches_and_checkpoints():
    x = jnp.asarray(ROW, jnp.float32)[None]
    pad = lambda row: jnp.pad(row, (1, 1), constant_values=FILL)
    ways = {
        "into a scan": lambda x: lax.scan(lambda c, row: (c, row.max()), 0.0, jax.vmap(pad)(x))[1],
        "out of a scan": lambda x: lax.scan(lambda c, row: (c, pad(row)), 0.0, x)[1].max(1),
        "carried": lambda x: lax.scan(lambda c, i: (c.at[i].set(FILL), None), x[0], jnp.array([1, 4]))[0].max()[None],
        "carried from a constant on": lambda x: lax.scan(lambda c, r: (c.at[0].set(r), None), jnp.full(3, FILL), x[0])[
            0
        ].max()[None],
        "into a branch": lambda x: lax.cond(x.sum() > 0, lambda y: y.max(1), lambda y: y[:, 0], jax.vmap(pad)(x)),
        "out of a branch": lambda x: lax.cond(x.sum() > 0, jax.vmap(pad), lambda x: jnp.zeros((1, 8)), x).max(1),
        "into a checkpoint": lambda x: jax.checkpoint(lambda y: y.max(1))(jax.vmap(pad)(x)),
    }
    for way, model in ways.items():
        np.testing.assert_array_equal(relevance_of_sum(model, x), np.zeros((1, 6)), err_msg=way)


def test_rows_of_constants_alone_are_constants_for_the_next_maximum():
    x = jnp.asarray([[3.0, 1.0, 2.0, 5.0]])
    model = lambda x: jnp.where(np.array([[True, True], [False, False]]), x.reshape(-1, 2, 2), 3.0).max(2).max(1)
    np.testing.assert_array_equal(relevance_of_sum(model, x), np.zeros((1, 4)))


def test_where_nothing_asks_or_nothing_ties_no_places_are_followed():
    weight = jnp.ones((3, 3, 1, 2))
    convolve = lambda x: lax.conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    ends = [(0, 0), (1, 1), (1, 1), (0, 0)]
    models = {
        "padded for the convolution": lambda x: convolve(jnp.pad(x, ends)).max((1, 2)),
        "padded with infinity": lambda x: jnp.pad(convolve(x), ends, constant_values=-jnp.inf).max((1, 2)),
        "padded behind the maximum": lambda x: jnp.pad(convolve(x).max((1, 2)), ((0, 0), (1, 1))),
    }
    for name, model in models.items():
        call, _ = trace_call(model, (0,), (jnp.ones((1, 4, 4, 1)),), {})
        assert not make_plan(call.read().graph, as_composite(rules.Zero())).partly_constant, name


def test_a_maximum_behind_padding_takes_treatments_of_the_users_own():
    rule = with_treatment(rules.Zero(), "reduce_max", treatments.smooth)
    x = jnp.asarray([[1.0, 3.0, 2.0]])
    model = lambda x: jnp.pad(x, ((0, 0), (0, 1)), constant_values=2.5).max(1)
    np.testing.assert_array_equal(relevance_of_sum(model, x, rule), [[0, 3, 0]])
