"""What must hold for every network, every rule and every input, whatever the numbers are."""

import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from apart import run_apart
from compiling import quick_jit
from flax import nnx
from hypothesis import HealthCheck, given, settings
from naive.programs import programs
from nightly import NIGHTLY

from lrp_jax import composites, ledger, lrp, relevance, rules
from lrp_jax.composites import Composite, any_layer, first, last

RULES = {
    "zero": rules.Zero(),
    "epsilon": rules.Epsilon(0.1),
    "relative epsilon": rules.Epsilon(0.1, relative=True),
    "gamma": rules.Gamma(),
    "alpha-beta": rules.AlphaBeta(),
    "z+, distributed bias": rules.ZPlus(bias="distribute"),
    "w^2": rules.WSquare(),
    "flat": rules.Flat(),
    "z-box": rules.ZBox(-3.0, 3.0),
    "mixed": Composite([(first, rules.ZBox(-3.0, 3.0)), (last, rules.Zero()), (any_layer, rules.Gamma(bias="ignore"))]),
    "CP-LRP": composites.CPLRP(),
}
# By day one of each form, with a bias kept apart, and with the attention held.
SOME_RULES = ("epsilon", "alpha-beta", "w^2", "mixed", "CP-LRP")
BY_DAY = {name: rule for name, rule in RULES.items() if NIGHTLY or name in SOME_RULES}
MEAN, VARIANCE = np.array([0.3, -1.2, 0.1, 0.8]), np.array([0.5, 2.0, 1.3, 0.2])
SCALE, SHIFT = np.array([-0.7, 1.6, 0.4, 1.1]), np.array([0.9, -0.4, 0.2, -1.0])
rule_of = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


class Network(nnx.Module):
    """Convolution, batch norm, pooling, a residual sum, attention between pixels, a gate, and a dense layer."""

    def __init__(self, dtype=jnp.float64, *, use_bias=True):
        rngs = nnx.Rngs(0)
        options = {"rngs": rngs, "param_dtype": dtype, "dtype": dtype, "use_bias": use_bias}
        self.conv1 = nnx.Conv(2, 4, (3, 3), **options)
        self.norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs, param_dtype=dtype, dtype=dtype)
        # As trained: statistics far from 0 and 1, scales of either sign, shifts. Without biases there are no shifts.
        trained = [(self.norm.var, VARIANCE), (self.norm.scale, SCALE)]
        trained += [(self.norm.mean, MEAN), (self.norm.bias, SHIFT)] if use_bias else []
        for variable, numbers in trained:
            variable[...] = jnp.asarray(numbers, variable.dtype)  # flax holds statistics in single precision
        self.conv2 = nnx.Conv(4, 4, (3, 3), **options)
        self.query, self.key, self.value = (nnx.Linear(4, 4, **options) for _ in range(3))
        self.head = nnx.Linear(4, 3, **options)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv1(x)))
        x = nnx.max_pool(x + nnx.relu(self.conv2(x)), (2, 2), (2, 2))
        x = x.reshape(x.shape[0], 9, 4)
        weights = nnx.softmax(jnp.einsum("nid,njd->nij", self.query(x), self.key(x)))
        x = nnx.silu(jnp.einsum("nij,njd->nid", weights, self.value(x)) + x)
        return self.head(x.mean(1))


def rectified(x, parameters):
    """A network of dense layers, without biases."""
    for weight in parameters[:-1]:
        x = jax.nn.relu(x @ weight)
    return x @ parameters[-1]


def images(number, seed=0):
    return jax.random.normal(jax.random.key(seed), (number, 6, 6, 2))


def weights(*widths):
    keys = jax.random.split(jax.random.key(7), len(widths) - 1)
    shapes = itertools.pairwise(widths)
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def maps(fun, rule, x, seed=None):
    return quick_jit(lambda x: pulled_back(fun, rule, x, seed))(x)


def pulled_back(fun, rule, x, seed=None):
    output, transpose = jax.vjp(lrp(fun, rule), x)
    return transpose(jnp.ones_like(output) if seed is None else seed)[0]


def of_all_rules(explain):
    """Explains with every rule, or by day with some, in one function."""
    return lambda x: {name: explain(rule, x) for name, rule in BY_DAY.items()}


def explaining_by_all(fun):
    """The map of every rule, or by day of some, by one program: most of the time of a test is that of compiling."""
    return quick_jit(of_all_rules(lambda rule, x: pulled_back(fun, rule, x)))


@functools.cache
def network_and_its_maps():
    """A network in double precision, what explains it by every rule, four images and their maps."""
    network, x = Network(), images(4)
    explain = explaining_by_all(network)
    return network, explain, x, explain(x)


def assert_close(actual, expected, tolerance=1e-9, rule=""):
    assert actual.shape == expected.shape, rule
    scale = np.abs(expected).max(initial=0)
    assert scale > 0, rule
    assert np.abs(actual - expected).max() <= tolerance * scale, rule


def assert_all_close(actual, expected):
    assert set(actual) == set(expected)
    for rule in expected:
        assert_close(actual[rule], expected[rule], rule=rule)


def few(number):
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
    return settings(max_examples=number, derandomize=True, deadline=None, database=None, suppress_health_check=checks)


# The value


@few(10)
@given(program=programs(np.float32))
def test_compiled_value_is_that_of_the_function(program):
    # Up to rounding: equal operations are one, and what is under `jax.checkpoint` is compiled apart.
    explained, plain = (jax.jit(fun)(program.x) for fun in (lrp(program, program.composite), lambda x: program(x)))
    np.testing.assert_allclose(explained, plain, rtol=1e-5, atol=1e-6 * np.abs(plain).max())


# Relevance as a function of the seed


@few(10)
@given(program=programs())
def test_relevance_is_linear_in_the_seed(float64, program):
    seeds = np.random.default_rng(0).normal(size=(2, *program.seed.shape))

    @jax.jit
    def explain(x, seeds):
        _, transpose = jax.vjp(lrp(program, program.composite), x)
        return jax.vmap(transpose)(seeds)[0]

    one, other, both, doubled = explain(program.x, np.stack([*seeds, seeds[0] + seeds[1], 2 * seeds[0]]))
    scale = max(np.abs(one).max(), np.abs(other).max())
    np.testing.assert_allclose(doubled, 2 * one, atol=1e-12 * scale, rtol=0)
    # Terms that cancel within the map make its rounding larger than its own size.
    np.testing.assert_allclose(both, one + other, atol=1e-6 * scale, rtol=0)


@pytest.mark.sampled(5)
@rule_of
def test_relevance_of_two_classes_adds(float64, rule):
    network, x = Network(), images(2)
    one, other = (relevance(network, x, target, rule).relevance for target in (0, 2))
    mask = np.tile([1.0, 0.0, 1.0], (2, 1))
    assert_close(relevance(network, x, mask, rule).relevance, one + other, 1e-9)


def test_scaled_output_has_scaled_relevance(float64):
    network, x = Network(), images(2)
    for rule in (rules.Zero(), rules.ZPlus(), rules.Flat()):
        assert_close(maps(lambda x: 3.0 * network(x), rule, x), 3.0 * maps(network, rule, x), 1e-8)


@few(8)
@given(program=programs(depth=4))
def test_ledger_closes_for_random_programs(float64, program):
    mask = np.where(program.seed == 0, 1.0, program.seed)
    book = ledger(program, program.x, lambda output: output * mask, program.composite)
    moved = max([abs(book.explained), *(abs(row.arrived) + abs(row.passed_on) for row in book.rows)])
    assert abs(book.unaccounted) <= 1e-9 * moved


# The input and its order


def test_permuted_pixels_have_a_permuted_map(float64):
    order = np.random.default_rng(0).permutation(6)
    first_weight, *others = weights(6, 5, 4, 3)
    x = jax.random.normal(jax.random.key(1), (3, 6))
    explain = quick_jit(
        lambda weight, x: {
            name: pulled_back(lambda x: rectified(x, [weight, *others]), rule, x) for name, rule in RULES.items()
        }
    )
    permuted, expected = explain(first_weight[order], x[:, order]), explain(first_weight, x)
    assert_all_close(permuted, {rule: array[:, order] for rule, array in expected.items()})


def test_network_that_permutes_its_pixels_permutes_the_map(float64):
    network, _, x, expected = network_and_its_maps()
    order = np.random.default_rng(0).permutation(6)
    back = np.argsort(order)
    permuted = explaining_by_all(lambda x: network(x[:, order]))(x[:, back])
    assert_all_close(permuted, {rule: array[:, back] for rule, array in expected.items()})


def test_samples_do_not_see_their_batch(float64):
    _, explain, x, expected = network_and_its_maps()
    order = np.array([2, 0, 3, 1])
    assert_all_close(explain(x[order]), {rule: array[order] for rule, array in expected.items()})
    padded = explain(jnp.concatenate([x[:2], jnp.zeros_like(x[:1]), 1e3 * x[:1]]))
    assert_all_close(
        {rule: array[:2] for rule, array in padded.items()}, {rule: array[:2] for rule, array in expected.items()}
    )
    assert_all_close(explain(x[1:2]), {rule: array[1:2] for rule, array in expected.items()})


# Homogeneity


STEPS_WITHOUT_UNITS = {
    "zero": rules.Zero(),
    "epsilon": rules.Epsilon(),
    "relative epsilon": rules.Epsilon(0.1, relative=True),
    "gamma": rules.Gamma(),
    "alpha-beta": rules.AlphaBeta(),
    "z+": rules.ZPlus(),
    "w^2": rules.WSquare(),
    "flat": rules.Flat(),
}


def test_without_biases_relevance_scales_with_the_input(float64):
    parameters, x = weights(6, 5, 4, 3), jax.random.normal(jax.random.key(1), (3, 6))
    steps = STEPS_WITHOUT_UNITS.items()
    explain = quick_jit(
        lambda x: {name: pulled_back(lambda x: rectified(x, parameters), rule, x) for name, rule in steps}
    )
    expected, larger, smaller = explain(x), explain(4 * x), explain(0.3 * x)
    for name, found in expected.items():
        np.testing.assert_array_equal(larger[name], 4 * found, name)  # a power of two changes no digit
        assert_close(smaller[name], 0.3 * found, rule=name)


# Transformations


def test_transformations_agree(float64):
    network, x = Network(), images(4)
    image_of = lambda rule: lambda image: lrp(network, rule)(image[None])[0, 1]
    explain = lambda rule, x: jax.grad(lambda x: lrp(network, rule)(x)[:, 1].sum())(x)
    expected = quick_jit(of_all_rules(explain))(x)
    if NIGHTLY:  # by day `test_metamorphic` computes some maps operation by operation
        assert_all_close(of_all_rules(explain)(x), expected)
    under_checkpoint = lambda rule: lambda x: lrp(jax.checkpoint(network.__call__), rule)(x)[:, 1].sum()
    variants = [
        lambda rule, x: jax.vmap(jax.grad(image_of(rule)))(x),
        lambda rule, x: jax.vmap(jax.grad(jax.checkpoint(image_of(rule))))(x),
        lambda rule, x: jax.grad(under_checkpoint(rule))(x),
    ]
    for number, variant in enumerate(variants):
        names = [*BY_DAY] if NIGHTLY else [*BY_DAY][number::2]  # by day every rule in one or two of the variants
        found = quick_jit(lambda x, variant=variant, names=names: {name: variant(BY_DAY[name], x) for name in names})(x)
        assert_all_close(found, {name: expected[name] for name in names})


def on_two_devices():
    """Prints the largest difference that sharing out a batch makes, relative to the map, for each rule."""
    jax.config.update("jax_enable_x64", True)
    assert len(jax.devices()) == 2
    network, x = Network(), images(4)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), "samples")  # an axis of type Auto
    samples = jax.sharding.PartitionSpec("samples")
    explain = of_all_rules(lambda rule, x: jax.grad(lambda x: lrp(network, rule)(x)[:, 1].sum())(x))
    shared = quick_jit(jax.shard_map(explain, mesh=mesh, in_specs=samples, out_specs=samples))(x)
    assert all(len({shard.device for shard in found.addressable_shards}) == 2 for found in shared.values())
    differences = {
        name: float(abs(np.asarray(shared[name]) - np.asarray(expected)).max() / abs(expected).max())
        for name, expected in quick_jit(explain)(x).items()
    }
    print(json.dumps(differences))


def test_shard_map_agrees():
    call = "import test_properties; test_properties.on_two_devices()"
    differences = json.loads(run_apart(call, "--xla_force_host_platform_device_count=2"))
    assert set(differences) == set(BY_DAY)
    assert max(differences.values()) < 1e-9


# Nothing that is not a number

INPUTS = {
    "zeros": np.zeros((2, 6, 6, 2)),
    "tiny": np.asarray(images(2)) * 1e-30,
    "saturated softmax": np.asarray(images(2)) * 1e6,
    "dead units": -np.abs(np.asarray(images(2))),
    "one bright pixel": np.eye(72)[[5, 44]].reshape(2, 6, 6, 2),
}


@pytest.mark.sampled(29)
@rule_of
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("name", INPUTS)
def test_finite_input_has_finite_relevance(name, dtype, rule):
    network = Network(dtype)
    if name == "dead units":
        network.conv1.kernel[...] = jnp.abs(network.conv1.kernel[...])  # negative input: no unit is active
    limit = 4 if dtype == jnp.float16 else 1e8  # scores of half precision would overflow in the network itself
    x = jnp.asarray(np.clip(INPUTS[name], -limit, limit), dtype)
    output = network(x)
    assert jnp.isfinite(output).all()
    found = maps(network, rule, x, jax.nn.one_hot(jnp.array([0, 1]), 3, dtype=dtype))
    assert found.dtype == dtype
    assert jnp.isfinite(found).all()


def test_large_half_precision_values():
    # 60000 is near the largest number of half precision, 65504.
    x = jnp.asarray([[60000.0, -60000.0, 1.0, 0.0]], jnp.float16)
    weight = jnp.asarray([[1.0], [0.5], [0.0], [-1.0]], jnp.float16)
    for label, rule in RULES.items():
        assert jnp.isfinite(maps(lambda x: jax.nn.relu(x @ weight), rule, x)).all(), label


@pytest.mark.parametrize("number", [0, 1])
def test_empty_batch_and_single_sample(number):
    network, x = Network(jnp.float32), images(number)
    explain = of_all_rules(lambda rule, x: relevance(network, x, 1, rule).relevance)
    for name, found in quick_jit(explain)(x).items():
        assert found.shape == x.shape, name
        assert jnp.isfinite(found).all(), name
    for target in (None, 1, "all", jnp.ones((number, 3))):
        found = relevance(network, x, target, rules.Zero()).relevance
        assert found.shape == ((3,) if isinstance(target, str) else ()) + x.shape
        assert jnp.isfinite(found).all()
    assert relevance(network, x, 1, rules.Zero(), batch_size=2).relevance.shape == x.shape
