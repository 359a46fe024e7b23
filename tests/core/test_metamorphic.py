"""One network, one map: however it is written, whoever reads its values, wherever its constants are kept.

Random networks of `variants.py`, each in another writing with the same relevance. `make nightly` draws thousands, each
in every way; without it sixty are drawn, always the same, each in one way.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from apart import run_apart
from compiling import AS_USUAL, QUICK, as_flags, quick_jit
from naive import variants
from naive.variants import TOKENS, WIDTH, WRAPS, Writing, is_only_relu, network, parameters_of, written
from nightly import NIGHTLY, drawn

from lrp_jax import composites, lrp, relevance, rules

pytestmark = pytest.mark.usefixtures("float64")

NUMBER = drawn(by_day=60)
# Another seed each night; in the default run always the same.
START = np.random.default_rng().integers(2**31) if NIGHTLY else 0
RULES = {
    "zero": rules.Zero(),
    "epsilon": rules.Epsilon(1e-12),
    "EpsilonPlusFlat": composites.EpsilonPlusFlat(1e-12),
    "AttnLRP": composites.AttnLRP(1e-12),
    "z+": rules.ZPlus(1e-12),
}


def rule_for(blocks, seed):
    if is_only_relu(blocks) and seed % 2:
        return composites.GuidedBackprop()
    return list(RULES.values())[seed % len(RULES)]


def inputs(seed, samples=3):
    return np.random.default_rng(seed).normal(size=(samples, TOKENS, WIDTH))


def with_others(run, parameters):
    """The network, with what its further readers read as further outputs."""

    def function(x):
        variants.READ.clear()
        y = run(parameters, x)
        others = tuple(variants.READ)
        variants.READ.clear()
        return y, others

    return function


# Compiled without optimisations, which takes half of the time.
COMPILED = {
    "quickly": quick_jit,
    "as usual": jax.jit,
    "by operation": lambda explain: explain,
}


def explained(blocks, writing, rule, x, parameters=None, compiled="quickly"):
    """Relevance of the first class, through `lrp`."""
    function = with_others(written(blocks, writing), parameters_of(blocks) if parameters is None else parameters)

    def explain(x):
        (y, others), transpose = jax.vjp(lrp(function, rule), x)
        seeds = jnp.zeros_like(y).at[:, 0].set(1.0), jax.tree.map(jnp.zeros_like, others)
        return transpose(seeds)[0]

    return np.asarray(COMPILED[compiled](explain)(jnp.asarray(x)))


def assert_same(found, expected, blocks, tolerance=1e-9):
    scale = np.abs(expected).max()
    error = np.abs(found - expected).max() / scale if scale else np.abs(found).max()
    kinds = [block.kind + "".join(f" ({i.kind})" for i in block.inner) for block in blocks]
    assert error <= tolerance, f"{error:.1e} of the maximum: {kinds}"


def is_stable(blocks, rule, seed):
    """Whether rounding of the input leaves the map as it is: where denominators cancel there is nothing to compare."""
    expected = plain(seed)
    moved = explained(blocks, Writing(), rule, inputs(seed) * (1 + 1e-13))
    return np.abs(moved - expected).max() <= 1e-10 * np.abs(expected).max()


@functools.lru_cache(maxsize=1)
def plain(seed):
    """The map of a network that is written plainly."""
    blocks = network(seed)
    return explained(blocks, Writing(), rule_for(blocks, seed), inputs(seed))


# The variants: each returns (found, expected)


def wrapped(name, blocks, rule, seed):
    return explained(blocks, Writing(wrap=name), rule, inputs(seed)), plain(seed)


def spelled(blocks, rule, seed):
    return explained(blocks, Writing(spelling=1 + seed % 11), rule, inputs(seed)), plain(seed)


def spelled_and_wrapped(blocks, rule, seed):
    writing = Writing(wrap=list(WRAPS)[seed % len(WRAPS)], spelling=1 + seed % 7)
    return explained(blocks, writing, rule, inputs(seed)), plain(seed)


def of_fewer_samples(blocks, rule, seed):
    number = 1 + seed % 2
    return explained(blocks, Writing(), rule, inputs(seed)[:number]), plain(seed)[:number]


def not_compiled(blocks, rule, seed):
    with jax.disable_jit():
        found = explained(blocks, Writing(), rule, inputs(seed), compiled="by operation")
    return found, plain(seed)


def compiled_as_usual(blocks, rule, seed):
    return explained(blocks, Writing(), rule, inputs(seed), compiled="as usual"), plain(seed)


def compiled_piece_by_piece(blocks, rule, seed):
    return explained(blocks, Writing(), rule, inputs(seed), compiled="by operation"), plain(seed)


class Model:
    """A plain class that holds its parameters."""

    def __init__(self, run, parameters):
        self.run, self.parameters = run, parameters

    def __call__(self, x):
        return self.run(self.parameters, x)


def changed_between_calls(holder, blocks, rule, seed):
    """Explained with one set of parameters, then with another."""
    run, x = written(blocks), jnp.asarray(inputs(seed))
    old = jax.tree.map(jnp.asarray, parameters_of(blocks))
    new = jax.tree.map(lambda p: p * 1.25 + 0.125, old)
    match holder:
        case "attribute":
            model = Model(run, old)
            relevance(model, x, 0, rule)
            model.parameters = new
        case "attribute in a lambda":
            kept = Model(run, old)
            model = lambda x: kept(x)
            relevance(model, x, 0, rule)
            kept.parameters = new
        case "dictionary":
            kept = {"parameters": old}
            model = lambda x: run(kept["parameters"], x)
            relevance(model, x, 0, rule)
            kept["parameters"] = new
        case "partial":
            relevance(functools.partial(run, old), x, 0, rule)
            model = functools.partial(run, new)
        case "list of numpy arrays":
            kept = jax.tree.map(np.array, old)
            model = lambda x: run(kept, x)
            relevance(model, x, 0, rule)
            for array, value in zip(jax.tree.leaves(kept), jax.tree.leaves(new), strict=True):
                array[...] = value  # in place
    expected = explained(blocks, Writing(), rule, x, new)
    return np.asarray(relevance(model, x, 0, rule).relevance), expected


def as_an_argument(blocks, rule, seed):
    """Parameters as an argument of the explained function, and of a jitted one around it."""
    x, parameters = jnp.asarray(inputs(seed)), jax.tree.map(jnp.asarray, parameters_of(blocks))
    explain = jax.jit(jax.grad(lambda parameters, x: lrp(written(blocks), rule, 1)(parameters, x)[:, 0].sum(), 1))
    return np.asarray(explain(parameters, x)), plain(seed)


def by_relevance(blocks, rule, seed):
    x = jnp.asarray(inputs(seed))
    model = functools.partial(written(blocks), parameters_of(blocks))
    return np.asarray(relevance(model, x, 0, rule).relevance), plain(seed)


def with_integers(blocks, rule, seed):
    """Parameters that are whole numbers, as integers and as floats."""
    whole = jax.tree.map(lambda p: np.rint(2 * p) + (np.rint(2 * p) == 0), parameters_of(blocks))  # none is zero
    integers = jax.tree.map(lambda p: p.astype(np.int32 if p.size % 2 else np.int8), whole)
    x = inputs(seed)
    return explained(blocks, Writing(), rule, x, integers), explained(blocks, Writing(), rule, x, whole)


def with_arrays_for_numbers(blocks, rule, seed):
    writing = Writing(number=("zero", "one", "feature")[seed % 3])
    return explained(blocks, writing, rule, inputs(seed)), plain(seed)


HOLDERS = ("attribute", "attribute in a lambda", "dictionary", "partial", "list of numpy arrays")
VARIANTS = {
    **{f"wrapped: {name}": functools.partial(wrapped, name) for name in WRAPS if name != "plain"},
    "spelled otherwise": spelled,
    "spelled otherwise and wrapped": spelled_and_wrapped,
    "fewer samples": of_fewer_samples,
    "not compiled": not_compiled,
    "compiled as usual": compiled_as_usual,
    "compiled piece by piece": compiled_piece_by_piece,
    **{f"changed: {holder}": functools.partial(changed_between_calls, holder) for holder in HOLDERS},
    "parameters as an argument": as_an_argument,
    "by relevance()": by_relevance,
    "integers": with_integers,
    "arrays for numbers": with_arrays_for_numbers,
}
# Spellings have most to go wrong.
DRAWN = ["spelled otherwise"] * 6 + ["arrays for numbers"] * 3 + list(VARIANTS)
BATCHES = 60 if not NIGHTLY else 1 + NUMBER // 10


def numbers_of(batch):
    return range(START + batch * NUMBER // BATCHES, START + (batch + 1) * NUMBER // BATCHES)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_same_network_has_the_same_map(batch):
    for seed in numbers_of(batch):
        blocks = network(seed)
        rule = rule_for(blocks, seed)
        chosen = VARIANTS if NIGHTLY else [DRAWN[seed % len(DRAWN)]]
        for name in chosen:
            found, expected = VARIANTS[name](blocks, rule, seed)
            assert np.isfinite(found).all(), f"seed {seed}, {name}, {rule}"
            assert np.isfinite(expected).all(), f"seed {seed}, {rule}"
            try:
                assert_same(found, expected, blocks)
            except AssertionError as error:
                if is_stable(blocks, rule, seed):
                    raise AssertionError(f"seed {seed}, {name}, {rule}: {error}") from None


@pytest.mark.parametrize("batch", range(BATCHES // 5))
def test_lrp_0_of_a_piecewise_linear_network_is_gradient_times_input(batch):
    for seed in numbers_of(batch):
        blocks = network(seed, piecewise_linear=True, blocks=4)
        writing = Writing(spelling=seed % 12, number=("number", "zero", "one", "feature")[seed % 4])
        run, parameters, x = written(blocks, writing), parameters_of(blocks), jnp.asarray(inputs(seed))
        expected = x * jax.jit(jax.grad(lambda x, run=run, p=parameters: run(p, x)[:, 0].sum()))(x)
        assert_same(explained(blocks, writing, rules.Zero(), x), np.asarray(expected), blocks)


def maps_as_text(seeds):
    """Maps of some networks as JSON, for a process with other flags."""
    jax.config.update("jax_enable_x64", True)
    maps = []
    for seed in seeds:
        blocks = network(seed)
        found = explained(blocks, Writing(), rule_for(blocks, seed), inputs(seed), compiled="as usual")
        maps.append(found.tolist())
    return json.dumps(maps)


def test_compiled_with_other_flags():
    seeds = list(range(START, START + (100 if NIGHTLY else 4)))
    call = f"import test_metamorphic; print(test_metamorphic.maps_as_text({seeds}))"
    maps = json.loads(run_apart(call, as_flags(QUICK if NIGHTLY else AS_USUAL)))
    for seed, found in zip(seeds, maps, strict=True):
        blocks = network(seed)
        if is_stable(blocks, rule_for(blocks, seed), seed):
            assert_same(np.array(found), plain(seed), blocks)


# The variants themselves


@pytest.mark.parametrize("seed", range(2))
def test_writings_compute_the_same(seed):
    blocks, x = network(seed), jnp.asarray(inputs(seed))
    expected = written(blocks)(parameters_of(blocks), x)
    writings = [Writing(wrap=name) for name in WRAPS] + [Writing(spelling=i) for i in range(1, 12)]
    for writing in [*writings, Writing(number="feature")]:
        np.testing.assert_allclose(written(blocks, writing)(parameters_of(blocks), x), expected, rtol=1e-10, atol=1e-12)
