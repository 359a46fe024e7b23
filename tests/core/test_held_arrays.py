"""Which arrays a function holds: their names, and whether they existed before the trace."""

import collections
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lrp_jax.core import held_arrays
from lrp_jax.core.programs import take_apart

WEIGHT = np.arange(6.0).reshape(2, 3)
JAX_WEIGHT = jnp.ones((2, 3))
X = jnp.ones((1, 2))


class Fitted:
    """As the models of scikit-learn, it can be called by a method alone; the arrays are those of its class."""

    coefficients = np.array([[0.25, 0.5], [2.0, 4.0]])
    layers = ({"kernel": np.full((2, 3), 0.7)},)

    def predict(self, x):
        return x @ self.coefficients @ self.layers[0]["kernel"]


class Part:
    scale = np.array([2.0, 3.0])

    def __init__(self):
        self.kernels = [jnp.ones((2, 3)), np.full((3, 1), 0.5)]

    def __call__(self, x):
        return x * self.scale @ self.kernels[0] @ self.kernels[1]


def found(function):
    _, arrays = take_apart(jax.make_jaxpr(lambda x: function(x))(X))
    return sorted(zip(map(np.shape, arrays), held_arrays.find(function, arrays), strict=True))


pair = ({"layer1.0": {"weight": jnp.ones((2, 3))}}, lambda weights, x: x @ weights["layer1.0"]["weight"])
Weights = collections.namedtuple("Weights", ["low", "high"])
linen = types.SimpleNamespace(_params={"params": {"dense": {"kernel": jnp.ones((2, 3))}}})
named = Weights({"kernel": jnp.ones((2, 3))}, np.full((3, 1), 0.5))
part, fitted, box = Part(), Fitted(), {"encoder": {"kernel": jnp.ones((2, 3))}}
decorated = functools.wraps(part)(lambda x: part(x))

CASES = {
    "an array of JAX in a dictionary": (lambda x: x @ box["encoder"]["kernel"], [((2, 3), ("encoder.kernel", True))]),
    "in an argument of a partial": (
        functools.partial(lambda weights, x: x @ weights["kernel"], {"kernel": jnp.ones((2, 3))}),
        [((2, 3), ("kernel", True))],
    ),
    "in a default value": (lambda x, w=JAX_WEIGHT: x @ w, [((2, 3), ("", True))]),
    "NumPy in a global, narrowed to float32": (lambda x: x @ WEIGHT, [((2, 3), ("", True))]),
    "NumPy, transposed before it is read": (lambda x: x @ WEIGHT.reshape(3, 2).T, [((2, 3), ("", True))]),
    "written in the function": (lambda x: x @ jnp.array([[0.3, 0.6, 0.1]] * 2), [((2, 3), ("", False))]),
    "NumPy that the function makes": (lambda x: x @ np.eye(2, 3), [((2, 3), ("", False))]),
    "attributes of an object and of its class": (
        part,
        [((2,), ("scale", True)), ((2, 3), ("kernels.0", True)), ((3, 1), ("kernels.1", True))],
    ),
    "attributes of the class of an object that has a method": (
        Fitted().predict,
        [((2, 2), ("coefficients", True)), ((2, 3), ("layers.0.kernel", True))],
    ),
    "the same, of an object in a variable": (
        lambda x: fitted.predict(x),
        [((2, 2), ("coefficients", True)), ((2, 3), ("layers.0.kernel", True))],
    ),
    "in a pair of weights and their function": (lambda x: pair[1](pair[0], x), [((2, 3), ("layer1.0.weight", True))]),
    "in the collections of Linen, in an attribute": (
        lambda x: x @ linen._params["params"]["dense"]["kernel"],
        [((2, 3), ("dense.kernel", True))],
    ),
    "in a named tuple": (
        lambda x: x @ named.low["kernel"] @ named.high,
        [((2, 3), ("low.kernel", True)), ((3, 1), ("high", True))],
    ),
    "behind jit and vmap": (
        jax.jit(jax.vmap(lambda x: x @ box["encoder"]["kernel"])),
        [((2, 3), ("encoder.kernel", True))],
    ),
    "behind a decorator": (
        decorated,
        [((2,), ("scale", True)), ((2, 3), ("kernels.0", True)), ((3, 1), ("kernels.1", True))],
    ),
    "in a function in the function": (
        lambda x: (lambda y: jax.jit(lambda z: z @ box["encoder"]["kernel"])(y))(x),
        [((2, 3), ("encoder.kernel", True))],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_names_and_what_existed(case):
    function, expected = CASES[case]
    assert found(function) == expected


def test_search_ends_where_things_hold_each_other():
    first, second = {}, {"array": jnp.ones(2)}
    first["second"], second["first"] = second, first
    assert [name for name, _ in held_arrays.arrays_of(lambda: first)] == ["second.array"]


def test_search_does_not_lose_itself_in_a_module_of_torch():
    module = type("Module", (), {"__module__": "torch.nn"})()
    module.registry = [object() for _ in range(held_arrays._AT_MOST)]
    weights = {"layer1.0.conv1": {"weight": jnp.ones((2, 3))}}

    def function(x):
        return x @ weights["layer1.0.conv1"]["weight"] if module else x

    assert found(function) == [((2, 3), ("layer1.0.conv1.weight", True))]


def test_tensors_of_torchax_have_the_names_of_the_module():
    class Module:
        __module__ = "torch.nn"
        named_parameters, named_buffers = lambda self: tensors.items(), lambda self: []

    weight = types.SimpleNamespace(_elem=jnp.ones((2, 3)))
    module, tensors = Module(), {"layer1.weight": weight, "layer2.weight": object()}
    wrapper = type("JittableModule", (Module,), {"__module__": "torchax.interop", "_model": module})()
    assert [name for name, _ in held_arrays.arrays_of(lambda: wrapper)] == ["layer1.weight"]
    assert found(lambda x: x @ dict(module.named_parameters())["layer1.weight"]._elem) == [
        ((2, 3), ("layer1.weight", True))
    ]


def test_array_that_is_held_twice_is_taken_out_once():
    weight = jnp.ones((2, 2))
    inner = jax.jit(lambda x: x @ weight)
    closed = jax.make_jaxpr(lambda x: inner(inner(x) @ weight))(X)
    program, arrays = take_apart(closed)
    assert len(arrays) == 1
    np.testing.assert_array_equal(program.run([3 * weight], [X])[0], [[27.0 * 8] * 2])
    other, _ = take_apart(jax.make_jaxpr(lambda x: jax.jit(lambda x: x @ (2 * weight))(x))(X))
    assert program != other


def layer(weight):
    return jax.jit(lambda x: jnp.tanh(x @ weight))


@jax.custom_jvp
def doubled(x):
    return 2 * x


doubled.defjvp(lambda primals, tangents: (doubled(*primals), 2 * tangents[0]))
MESH = jax.make_mesh((1,), ("samples",), axis_types=(jax.sharding.AxisType.Auto,))
SAMPLES = jax.P("samples")
HOLDING = {
    "jit": layer,
    "jit within jit": lambda weight: jax.jit(lambda x: layer(weight)(x + 1)),
    "checkpoint": lambda weight: jax.checkpoint(layer(weight)),
    "scan": lambda weight: lambda x: lax.scan(lambda h, _: (layer(weight)(h), h), x, None, length=2),
    "cond": lambda weight: lambda x: lax.cond(x[0, 0] > 0, layer(weight), jnp.zeros_like, x),
    "while": lambda weight: (
        lambda x: lax.while_loop(lambda c: c[0] < 4, lambda c: (c[0] + 1, layer(weight)(c[1])), (0, x))
    ),
    "the condition of a while": lambda weight: (
        lambda x: lax.while_loop(lambda c: c[0] < weight.sum(), lambda c: (c[0] + 1, layer(weight)(c[1])), (0, x))
    ),
    "a function with a derivative of its own": lambda weight: lambda x: doubled(layer(weight)(x)),
    "shard_map": lambda weight: jax.shard_map(layer(weight), mesh=MESH, in_specs=SAMPLES, out_specs=SAMPLES),
}


@pytest.mark.parametrize("name", HOLDING)
def test_program_with_another_array_is_the_function_that_holds_the_other_one(name):
    holding, weight = HOLDING[name], jnp.array([[0.5, -0.25], [1.0, 0.75]])
    program, arrays = take_apart(jax.make_jaxpr(holding(weight))(X))
    assert [id(array) for array in arrays] == [id(weight)]
    for other in (weight, 2 * weight):
        expected = jax.tree.leaves(holding(other)(X))
        for found, value in zip(program.run([other], [X]), expected, strict=True):
            np.testing.assert_allclose(found, value, rtol=1e-6)
