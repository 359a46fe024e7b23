"""AttnLRP and CP-LRP on a small transformer, against a plain backward loop in numpy.

The loop follows the formulas of Achtibat et al. (2024): the epsilon rule for linear layers; for softmax
R_i = x_i (R_i - s_i sum_j R_j); one half to each factor of a product; the deviation of a LayerNorm held constant, while
its shift keeps its share; and relevance passed one to one through GELU. In CP-LRP (Ali et al. 2022) the attention
weights are held constant too. The norms are as trained: scales of either sign, shifts of the size of the values.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import jit_by_day

from lrp_jax import composites, lrp

TOKENS, HEADS, SIZE, HIDDEN, CLASSES, BLOCKS = 4, 2, 3, 8, 3, 2
WIDTH = HEADS * SIZE
EPSILON = 1e-3


def draw_parameters():
    generator = np.random.default_rng(0)
    normal = lambda *shape: generator.normal(size=shape) / np.sqrt(shape[0])
    linear = lambda inputs, outputs: {"w": normal(inputs, outputs), "b": 0.2 * normal(outputs)}
    norm = lambda: {"scale": 0.25 + generator.normal(size=WIDTH), "offset": generator.normal(size=WIDTH)}
    return {
        "blocks": [
            {
                "norm_1": norm(),
                **{name: linear(WIDTH, WIDTH) for name in ("query", "key", "value", "out")},
                "norm_2": norm(),
                "up": linear(WIDTH, HIDDEN),
                "down": linear(HIDDEN, WIDTH),
            }
            for _ in range(BLOCKS)
        ],
        "norm": norm(),
        "head": linear(WIDTH, CLASSES),
    }


@pytest.fixture(scope="module")
def parameters():
    return draw_parameters()


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(1).normal(size=(TOKENS, WIDTH))


# The transformer in JAX, with attention written in three ways.


def written_out(query, key, value):
    logits = jnp.einsum("qhd,khd->hqk", query, key) / np.sqrt(SIZE)
    return jnp.einsum("hqk,khd->qhd", jax.nn.softmax(logits), value)


def with_softmax_written_out(query, key, value):
    logits = jnp.einsum("qhd,khd->hqk", query, key) / np.sqrt(SIZE)
    exponentials = jnp.exp(logits - logits.max(-1, keepdims=True))
    return jnp.einsum("hqk,khd->qhd", exponentials / exponentials.sum(-1, keepdims=True), value)


ATTENTION = {
    "written out": written_out,
    "softmax written out": with_softmax_written_out,
    "jax.nn": lambda query, key, value: jax.nn.dot_product_attention(query, key, value),
    "flax.linen": lambda query, key, value: nn.dot_product_attention(query, key, value),
}


def transformer(parameters, x, attention):
    linear = lambda layer, x: x @ layer["w"] + layer["b"]
    heads = lambda x: x.reshape(TOKENS, HEADS, SIZE)

    def norm(layer, x):
        centred = x - x.mean(-1, keepdims=True)
        return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True)) * layer["scale"] + layer["offset"]

    for block in parameters["blocks"]:
        y = norm(block["norm_1"], x)
        mixed = attention(*(heads(linear(block[name], y)) for name in ("query", "key", "value")))
        x = x + linear(block["out"], mixed.reshape(TOKENS, WIDTH))
        x = x + linear(block["down"], jax.nn.gelu(linear(block["up"], norm(block["norm_2"], x))))
    return linear(parameters["head"], norm(parameters["norm"], x).mean(0))


# The same in numpy: every step returns its value, and the function that propagates relevance back.


def stabilize(z, epsilon):
    return z + np.where(z < 0, -epsilon, epsilon)


def linear(layer, x, epsilon=EPSILON):
    z = x @ layer["w"] + layer["b"]
    return z, lambda relevance: x * ((relevance / stabilize(z, epsilon)) @ layer["w"].T)


def norm(layer, x):
    centring = np.eye(WIDTH) - 1 / WIDTH
    centred = x @ centring
    scale = layer["scale"] / np.sqrt((centred**2).mean(-1, keepdims=True))
    value = centred * scale + layer["offset"]
    return value, lambda relevance: x * ((relevance / value * scale) @ centring)


def product(subscripts, a, b):
    inputs, out = subscripts.split("->")
    left, right = inputs.split(",")
    value = np.einsum(subscripts, a, b)

    def back(relevance):
        s = relevance / value
        return a * np.einsum(f"{out},{right}->{left}", s, b), b * np.einsum(f"{left},{out}->{right}", a, s)

    return value, back


def softmax(x):
    s = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    return s, lambda relevance: x * (relevance - s * relevance.sum(-1, keepdims=True))


def self_attention(block, y, hold_weights, epsilon_of_query):
    heads = lambda x: x.reshape(TOKENS, HEADS, SIZE)
    query, query_back = linear(block["query"], y, epsilon_of_query)
    key, key_back = linear(block["key"], y)
    value, value_back = linear(block["value"], y)
    logits, logits_back = product("qhd,khd->hqk", heads(query), heads(key))
    weights, weights_back = softmax(logits / np.sqrt(SIZE))
    mixed, mixed_back = product("hqk,khd->qhd", weights, heads(value))
    result, result_back = linear(block["out"], mixed.reshape(TOKENS, WIDTH))

    def back(relevance):
        of_weights, of_value = mixed_back(result_back(relevance).reshape(mixed.shape))
        if hold_weights:
            return value_back(of_value.reshape(y.shape))
        of_query, of_key = logits_back(weights_back(of_weights / 2))
        return (
            value_back(of_value.reshape(y.shape) / 2)
            + query_back(of_query.reshape(y.shape) / 2)
            + key_back(of_key.reshape(y.shape) / 2)
        )

    return result, back


def perceptron(block, y):
    hidden, hidden_back = linear(block["up"], y)
    gelu = hidden / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
    result, result_back = linear(block["down"], gelu)
    return result, lambda relevance: hidden_back(result_back(relevance))


def residual(x, layer, function):
    y, norm_back = norm(layer, x)
    change, change_back = function(y)
    z = x + change
    return z, lambda relevance: x / z * relevance + norm_back(change_back(change / z * relevance))


def expected_relevance(parameters, x, target, hold_weights, epsilon_of_query=EPSILON):
    steps = []
    for block in parameters["blocks"]:
        attend = functools.partial(self_attention, block, hold_weights=hold_weights, epsilon_of_query=epsilon_of_query)
        x, back = residual(x, block["norm_1"], attend)
        steps.append(back)
        x, back = residual(x, block["norm_2"], functools.partial(perceptron, block))
        steps.append(back)
    y, norm_back = norm(parameters["norm"], x)
    mean = y.mean(0)
    logits, head_back = linear(parameters["head"], mean)
    relevance = np.where(np.arange(CLASSES) == target, logits, 0)
    relevance = norm_back(y / TOKENS / mean * head_back(relevance))
    for back in reversed(steps):
        relevance = back(relevance)
    return logits, relevance


PRESETS = {"AttnLRP": (composites.AttnLRP, False), "CP-LRP": (composites.CPLRP, True)}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("attention", ATTENTION)
def test_transformer_agrees_with_the_published_formulas(float64, parameters, tokens, attention, preset):
    composite, hold_weights = PRESETS[preset]
    model = lambda x: transformer(parameters, x, ATTENTION[attention])
    # Linen divides the query by sqrt(SIZE) right after its layer, which becomes part of the layer, as does a bias.
    epsilon_of_query = EPSILON * np.sqrt(SIZE) if attention == "flax.linen" else EPSILON
    tolerance = 1e-5 if attention == "jax.nn" else 1e-9  # jax.nn has its softmax in single precision

    @jit_by_day
    def explain(x):
        found, propagate = jax.vjp(lrp(model, composite(EPSILON)), x)
        return found, jax.vmap(propagate)(jnp.eye(CLASSES))[0]

    for target, (logit, relevance) in enumerate(zip(*explain(jnp.asarray(tokens)), strict=True)):
        logits, expected = expected_relevance(parameters, tokens, target, hold_weights, epsilon_of_query)
        np.testing.assert_allclose(logit, logits[target], rtol=tolerance)
        assert abs(relevance - expected).max() <= tolerance * abs(expected).max()


def test_attention_weights_matter_in_attnlrp_alone(float64, parameters, tokens):
    _, by_attnlrp = expected_relevance(parameters, tokens, 0, hold_weights=False)
    _, by_cplrp = expected_relevance(parameters, tokens, 0, hold_weights=True)
    assert abs(by_attnlrp - by_cplrp).max() > 1e-2 * abs(by_cplrp).max()


@pytest.mark.parametrize("preset", PRESETS)
def test_attention_may_be_divided_by_its_sum_last(float64, parameters, tokens, preset):
    weights = [parameters["blocks"][0][name]["w"] for name in ("query", "key", "value")]

    def attention(x, is_divided_last):
        query, key, value = (x @ weight for weight in weights)
        exponentials = jnp.exp(query @ key.T / 4)
        total = exponentials.sum(-1, keepdims=True)
        return ((exponentials @ value) / total if is_divided_last else (exponentials / total) @ value)[0].sum()

    explain = lambda x: [
        jax.grad(lrp(functools.partial(attention, is_divided_last=is_last), PRESETS[preset][0](1e-14)))(x)
        for is_last in (True, False)
    ]
    last, first = jit_by_day(explain)(jnp.asarray(tokens))
    np.testing.assert_allclose(last, first, atol=1e-9 * abs(first).max())


@pytest.mark.parametrize("fill", [-jnp.inf, -1e30], ids=["infinite", "finite"])
@pytest.mark.parametrize("way", ["selected", "added", "argument"])
def test_masked_attention_is_attention_over_the_rest(float64, tokens, way, fill):
    mask = jnp.array([True, True, False, True])
    scores, values = tokens[:, 0], tokens[:, 1:]

    def masked(scores):
        if way == "selected":
            weights = jax.nn.softmax(jnp.where(mask, scores, fill))
        elif way == "added":
            weights = jax.nn.softmax(scores + jnp.where(mask, 0.0, fill))
        else:
            weights = jax.nn.softmax(scores, where=mask)
        return (weights @ values)[0]

    rest = lambda scores: (jax.nn.softmax(scores) @ values[mask])[0]
    maps_of = lambda fun: jit_by_day(jax.grad(lrp(fun, composites.AttnLRP(1e-14))))
    relevance, expected = maps_of(masked)(jnp.asarray(scores)), maps_of(rest)(jnp.asarray(scores[mask]))
    np.testing.assert_allclose(relevance[mask], expected, rtol=1e-4 if way == "added" else 1e-10)
    assert relevance[2] == 0
