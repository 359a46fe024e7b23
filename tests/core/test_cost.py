"""What relevance costs, counted in the compiled program, where the machine's load does not matter."""

import functools
import sys
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import AS_USUAL, QUICK
from flax import nnx
from nightly import NIGHTLY

from lrp_jax import composites, lrp, relevance, rules
from lrp_jax.core import linear_maps

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from networks import RULES, VGG16, LeNet, ResNet50, lower

NETWORKS = {
    "LeNet": (LeNet, (4, 28, 28, 1)),
    "VGG16": (functools.partial(VGG16, side=64), (2, 64, 64, 3)),
    "ResNet50": (ResNet50, (2, 64, 64, 3)),
}

# One forward and one backward product per layer for the gradient and epsilon; one forward product more for z+ and
# gamma; one more of each for alpha-beta. The first layer, which reads values of both signs, and the elementwise
# operations add to that, most in a small network.
LIMITS = [
    ("VGG16", "epsilon", 1.02),
    ("VGG16", "epsilon-plus", 1.53),
    ("VGG16", "epsilon-plus-flat", 1.53),
    ("VGG16", "epsilon-gamma-box", 1.53),
    ("VGG16", "epsilon-alpha2-beta1", 2.04),
    ("LeNet", "epsilon", 1.05),
    ("LeNet", "epsilon-plus", 1.7),
    ("LeNet", "epsilon-plus-flat", 1.4),
    ("LeNet", "epsilon-gamma-box", 1.7),
    ("LeNet", "epsilon-alpha2-beta1", 2.26),
    ("ResNet50", "epsilon-plus", 1.6),
]


# Operations are counted before machine code is written, which is what takes the time.
COMPILER = AS_USUAL if NIGHTLY else QUICK


def lowered(network, rule):
    """A network's input gradient, or its relevance, ready to be compiled."""
    make, shape = NETWORKS[network]
    structure, state = nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))
    return lower(structure, state, jax.ShapeDtypeStruct(shape, jnp.float32), RULES[rule] if rule else None)


@functools.cache
def operations(network, rule):
    """Floating-point operations of a network's compiled input gradient, or of its relevance."""
    return lowered(network, rule).compile(COMPILER).cost_analysis()["flops"]


@functools.cache
def usual_operations(network, rule):
    """The same, where no contributions of one sign are lost beside those of the other."""
    with mock.patch.object(linear_maps, "replace_where", lambda mask, values, make: values):
        return operations.__wrapped__(network, rule)


def test_without_optimisation_as_many_operations_are_counted():
    program = lowered("LeNet", "epsilon-plus")
    quick, usual = (program.compile(options).cost_analysis()["flops"] for options in (QUICK, AS_USUAL))
    assert quick == pytest.approx(usual, rel=1e-3)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("network", "rule", "limit"), LIMITS)
def test_operations_relative_to_the_gradient(network, rule, limit):
    assert usual_operations(network, rule) <= limit * operations(network, None)


def test_operations_where_contributions_of_one_sign_are_lost():
    # A branch that runs only then: one forward product more, in the first layer two.
    assert 2.04 * operations("VGG16", None) < operations("VGG16", "epsilon-alpha2-beta1")
    assert operations("VGG16", "epsilon-alpha2-beta1") < 2.6 * operations("VGG16", None)


def test_denominators_without_the_image_are_computed_once_for_a_batch():
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 8, 8))

    def layer(x):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def cost(rule, samples):
        x = jnp.ones((samples, 16, 16, 8))
        explain = jax.jit(jax.grad(lambda x: lrp(layer, rule)(x).sum()))
        return explain.lower(x).compile(COMPILER).cost_analysis()["flops"]

    product = 2 * 16 * 16 * kernel.size
    for rule in (rules.Flat(), rules.WSquare()):
        assert cost(rule, 9) - cost(rule, 1) < 1.1 * 8 * 2 * product  # each image: z, and the transpose


class CountedCalls:
    """A model that counts how often it is traced."""

    def __init__(self):
        self.calls = 0
        self.weight = jnp.ones((4, 3))

    def __call__(self, x):
        self.calls += 1
        return x @ self.weight


def test_each_call_traces_once_and_only_the_first_one_compiles(compiled):
    model = CountedCalls()
    x, target = jnp.ones((2, 4)), jnp.array([0, 1])
    relevance(model, x, 0, rules.Epsilon())
    assert model.calls == 1
    compiled.clear()
    relevance(model, x + 1, target, rules.Epsilon())
    assert model.calls == 2
    assert "explain_arrays" not in compiled


def test_equations_grow_in_proportion_to_the_layers():
    def network(depth):
        weight = jnp.ones((4, 4)) / 4

        def run(x):
            for _ in range(depth):
                x = jax.nn.relu(x @ weight)
            return x

        return run

    def equations(depth):
        explained = lrp(network(depth), rules.ZPlus())
        jaxpr = jax.make_jaxpr(jax.grad(lambda x: explained(x).sum()))(jnp.ones((1, 4)))
        return len(jaxpr.eqns)

    few, more, many = equations(10), equations(50), equations(250)
    assert more <= 5.25 * few
    assert many <= 5.25 * more


def test_relevance_through_checkpointed_layers_needs_the_memory_of_their_gradient():
    tokens, width, heads, depth = 512, 32, 4, 12

    def normalized(x):
        return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)

    def layer(x, weights):
        y = normalized(x)
        query, key, value = ((y @ weights[name]).reshape(tokens, heads, -1) for name in ("query", "key", "value"))
        attention = jax.nn.softmax(jnp.einsum("ihd,jhd->hij", query, key) / (width / heads) ** 0.5)
        x = x + jnp.einsum("hij,jhd->ihd", attention, value).reshape(tokens, width) @ weights["out"]
        return x + jax.nn.gelu(normalized(x) @ weights["up"]) @ weights["down"], None

    shapes = dict.fromkeys(("query", "key", "value", "out"), (width, width))
    shapes |= {"up": (width, 4 * width), "down": (4 * width, width)}
    random = np.random.default_rng(0)
    weights = {name: jnp.asarray(random.normal(size=(depth, *shape)), jnp.float32) for name, shape in shapes.items()}

    def network(layer):
        return lambda x: jax.lax.scan(layer, x, weights)[0].mean(0)

    def memory(function):
        explain = jax.jit(jax.grad(lambda x: function(x)[1]))
        return explain.lower(jnp.ones((tokens, width))).compile(COMPILER).memory_analysis().temp_size_in_bytes

    plain, checkpointed = network(layer), network(jax.checkpoint(layer))
    composite = composites.AttnLRP()
    assert memory(lrp(checkpointed, composite)) < 1.5 * memory(checkpointed) < memory(lrp(plain, composite)) / 2
