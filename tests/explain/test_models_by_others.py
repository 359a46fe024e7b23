"""Unmodified models of other libraries: dm-haiku, Equinox, Flax Linen, Flax NNX, and plain functions."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit
from flax import nnx

from lrp_jax import lrp, plan, relevance, rules
from lrp_jax.core.layers import find_layers
from lrp_jax.core.trace import trace

IGNORE_BIAS = rules.Epsilon(1e-12, bias="ignore")


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def names_of_layers(model, x):
    return [layer.name for layer in find_layers(trace(model, (0,), (x,), {}).graph)]


def with_noise(tree, scale, seed):
    """Adds noise to every array of a pytree, so that no bias and no statistic keeps its initial value."""
    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten([leaf + scale * normal(seed + i, *leaf.shape) for i, leaf in enumerate(leaves)])


def explain(model, x, rule, target=1):
    """The logit of the first sample, and the relevance of x for it. Asserts what holds for every model and rule."""

    @quick_jit
    def run(x):
        value, propagate = jax.vjp(lrp(model, rule), x)
        copied = jax.tree.map(lambda leaf: leaf, model)  # NNX modules that count random numbers cannot be jitted
        return value, propagate(jnp.zeros_like(value).at[0, target].set(1.0))[0], copied(x)

    value, relevance, expected = run(x)
    np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-14)
    assert np.isfinite(relevance).all()
    assert relevance[0].any()
    assert not relevance[1:].any()
    return value[0, target], relevance


def assert_conserved(model, x, rule, tolerance=1e-8):
    logit, relevance = explain(model, x, rule)
    assert abs(relevance.sum() - logit) <= tolerance * abs(relevance).sum()


def assert_close_to(expected, relevance):
    assert abs(relevance - expected).max() <= 1e-9 * abs(expected).max()


def assert_gradient_times_input(model, x):
    _, relevance = explain(model, x, rules.Zero())
    assert_close_to(quick_jit(jax.grad(lambda x: model(x)[0, 1]))(x) * x, relevance)


# The first alone is taken by day, when `test_architectures` explains a ResNet.
HAIKU_NETWORKS = {
    "MobileNetV1": lambda: hk.nets.MobileNetV1(num_classes=10),
    "MobileNetV1 with biases": lambda: hk.nets.MobileNetV1(num_classes=10, use_bn=False),
    "ResNet50": lambda: hk.nets.ResNet50(10),
    "ResNet50, version 2": lambda: hk.nets.ResNet50(10, resnet_v2=True),
}
LAYERS_OF_HAIKU_NETWORKS = {
    "MobileNetV1": (28, "mobile_net_v1/mobile_net_v1_block_12/depthwise_conv"),
    "MobileNetV1 with biases": (28, "mobile_net_v1/mobile_net_v1_block_12/depthwise_conv"),
    "ResNet50": (54, "res_net50/~/block_group_2/~/block_5/~/conv_1"),
    "ResNet50, version 2": (54, "res_net50/~/block_group_2/~/block_5/~/conv_1"),
}


def draw(path, leaf):
    """A weight with He's standard deviation, a variance between 0.5 and 1.5, a scale or shift of either sign."""
    generator, name = np.random.default_rng(len(jax.tree_util.keystr(path))), jax.tree_util.keystr(path)
    if leaf.size > max((*leaf.shape, 1)):
        return jnp.asarray(generator.normal(size=leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1])))
    if any(signed in name for signed in ("'scale'", "'offset'", "'b'", "mean_ema")) and "counter" not in name:
        return jnp.asarray(0.25 + 0.5 * generator.normal(size=leaf.shape))
    return jnp.asarray(generator.uniform(0.5, 1.5, leaf.shape))


def without_shift(path, leaf):
    """Zero for a bias, the offset of a batch norm, and its mean."""
    path = jax.tree_util.keystr(path)
    is_shift = any(name in path for name in ("'b'", "offset", "mean_ema"))
    return jnp.zeros_like(leaf) if is_shift else leaf


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", HAIKU_NETWORKS)
def test_haiku_network(float64, name):
    network = HAIKU_NETWORKS[name]
    transformed = hk.transform_with_state(lambda x, train: network()(x, is_training=train))
    x = normal(0, 2, 16, 16, 3)
    shapes = jax.eval_shape(lambda key: transformed.init(key, x, True), jax.random.key(1))
    params, state = jax.tree_util.tree_map_with_path(draw, shapes)
    apply = lambda params, state, x: transformed.apply(params, state, None, x, False)[0]

    names = names_of_layers(lambda x: apply(params, state, x), x)
    number, one_of_them = LAYERS_OF_HAIKU_NETWORKS[name]
    assert len(names) == number
    assert one_of_them in names
    assert names[-1].endswith("/logits")

    @quick_jit
    def run(params, state, x):
        model = lambda x: apply(params, state, x)
        value, relevance = jax.value_and_grad(lambda x: lrp(model, rules.Zero())(x)[0, 1])(x)
        gradient = jax.grad(lambda x: model(x)[0, 1])(x)
        return value, relevance, model(x)[0, 1], gradient

    value, relevance, expected, gradient = run(params, state, x)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    assert_close_to(gradient * x, relevance)
    shiftless = jax.tree_util.tree_map_with_path(without_shift, (params, state))
    value, relevance, *_ = run(*shiftless, x)
    assert relevance[0].any()
    np.testing.assert_allclose(relevance.sum(), value, rtol=1e-8)


class EquinoxConvolutional(eqx.Module):
    convolutions: list
    pool: eqx.nn.MaxPool2d
    head: eqx.nn.MLP

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.convolutions = [eqx.nn.Conv2d(3, 4, 3, key=keys[0]), eqx.nn.Conv2d(4, 5, 2, stride=2, key=keys[1])]
        self.pool = eqx.nn.MaxPool2d(2, 1)
        self.head = eqx.nn.MLP(20, 3, 8, 2, key=keys[2])

    def __call__(self, x):
        x = self.pool(jax.nn.relu(self.convolutions[0](x)))
        return self.head(jax.nn.relu(self.convolutions[1](x)).ravel())


def test_equinox_convolutional_network_under_vmap(float64):
    model, x = jax.vmap(eqx.filter_jit(EquinoxConvolutional)(jax.random.key(1))), normal(0, 2, 3, 7, 7)
    names = [f"convolutions.{i}" for i in range(2)] + [f"head.layers.{i}" for i in range(3)]
    assert names_of_layers(model, x) == names
    assert_gradient_times_input(model, x)
    assert_conserved(model, x, IGNORE_BIAS)


def test_equinox_linear_layer_under_vmap_by_formula(float64):
    layer, x = eqx.nn.Linear(4, 3, key=jax.random.key(1)), normal(0, 2, 4)
    _, relevance = explain(jax.vmap(layer), x, rules.Flat(stabilizer=0.0))
    np.testing.assert_allclose(relevance[0], np.full(4, layer(x[0])[1] / 4), rtol=1e-5)


def test_operation_has_the_name_of_its_equinox_module_without_that_of_vmap():
    mlp = eqx.nn.MLP(4, 3, 8, 1, key=jax.random.key(1))
    names = lambda model: [row[0] for row in plan(jax.vmap(model), normal(0, 2, 4)).rows]
    assert names(mlp) == ["layers.0", "eqx.nn.MLP", "layers.1"]
    inside = "eqx.nn.Sequential/eqx.nn.MLP"
    assert names(eqx.nn.Sequential([mlp])) == ["layers.0.layers.0", inside, "layers.0.layers.1"]


def test_equinox_module_that_lacks_vmap_is_refused_with_a_hint():
    mlp = eqx.nn.MLP(4, 3, 8, 1, key=jax.random.key(1))
    with pytest.raises(TypeError, match="dot_general") as raised:
        relevance(mlp, normal(0, 2, 4))
    assert any("It takes one sample at a time: pass jax.vmap(model)" in note for note in raised.value.__notes__)


class EquinoxTransformer(eqx.Module):
    norm: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 2)
        self.norm = eqx.nn.LayerNorm(4)
        self.attention = eqx.nn.MultiheadAttention(2, 4, key=keys[0])
        self.head = eqx.nn.Linear(4, 3, key=keys[1])

    def __call__(self, x):
        normalised = jax.vmap(self.norm)(x)
        return self.head((x + self.attention(normalised, normalised, normalised)).mean(0))


def test_equinox_attention_and_layer_norm(float64):
    transformer, x = eqx.filter_jit(EquinoxTransformer)(jax.random.key(1)), normal(0, 2, 5, 4)
    names = [f"attention.{name}_proj" for name in ("query", "key", "value", "output")]
    assert names_of_layers(jax.vmap(transformer), x) == [*names, "head"]
    explain(jax.vmap(transformer), x, IGNORE_BIAS)


class EquinoxWithBatchNorm(eqx.Module):
    linear: eqx.nn.Linear
    norm: eqx.nn.BatchNorm

    def __init__(self, key):
        self.linear = eqx.nn.Linear(5, 4, key=key)
        self.norm = eqx.nn.BatchNorm(4, "batch", mode="batch")

    def __call__(self, x, state):
        normalised, state = self.norm(self.linear(x), state)
        return jax.nn.relu(normalised), state


def test_equinox_batch_norm_in_inference_mode(float64):
    network, state = eqx.nn.make_with_state(EquinoxWithBatchNorm)(jax.random.key(1))
    batched = lambda network: jax.vmap(network, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
    _, state = batched(network)(normal(2, 16, 5), state)
    network, x = eqx.nn.inference_mode(network), normal(7, 3, 5)
    model = lambda x: batched(network)(x, state)[0]
    assert names_of_layers(model, x) == ["linear"]
    assert_gradient_times_input(model, x)
    assert_conserved(model, x, IGNORE_BIAS)


class LinenConvolutional(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(4, (3, 3))(x)))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = x + nn.relu(nn.GroupNorm(num_groups=None, group_size=4, use_bias=False)(nn.Conv(4, (3, 3))(x)))
        return nn.Dense(3)(nn.avg_pool(x, (2, 2), (2, 2)).reshape(x.shape[0], -1))


def from_linen(module, x):
    """A Linen module with variables as after training: norms with scales of either sign, shifts and statistics."""
    variables = as_trained(with_noise(jax.jit(module.init)(jax.random.key(1), x), 0.1, 2))
    return lambda x: module.apply(variables, x)


def as_trained(variables):
    """Norms with scales of either sign, shifts of the size of the values, and statistics far from 0 and 1."""

    def draw(path, leaf):
        *_, module, name = [str(getattr(key, "key", getattr(key, "name", key))) for key in path]
        if "orm" not in module:
            return leaf
        noise = normal(len(jax.tree_util.keystr(path)), *leaf.shape)
        return 0.3 + noise**2 if name == "var" else 0.25 + noise

    return jax.tree_util.tree_map_with_path(draw, variables)


def test_bound_linen_module_is_its_apply(float64):
    x, module = normal(0, 2, 8, 8, 2), LinenConvolutional()
    variables = jax.jit(module.init)(jax.random.key(1), x)
    bound = module.bind(variables)
    assert names_of_layers(bound, x) == ["Conv_0", "Conv_1", "Dense_0"]
    assert_close_to(explain(lambda x: module.apply(variables, x), x, IGNORE_BIAS)[1], explain(bound, x, IGNORE_BIAS)[1])


class LinenAround(nn.Module):
    inner: nn.Module

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(self.inner(x))


def test_linen_modules_within_others_have_the_names_of_their_parameters():
    module = LinenAround(nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(2)]))
    x, expected = normal(0, 2, 6), ["inner.layers_0", "inner.layers_2", "Dense_0"]
    variables = module.init(jax.random.key(1), x)
    bound = module.bind(variables)
    for model in (bound, lambda x: bound(x), lambda x: module.apply(variables, x)):
        assert names_of_layers(model, x) == expected
    assert names_of_layers(lambda x: bound.inner(x), x) == expected[:2]


def test_linen_convolutional_network(float64):
    x = normal(0, 2, 8, 8, 2)
    model = from_linen(LinenConvolutional(), x)
    assert names_of_layers(model, x) == ["Conv_0", "Conv_1", "Dense_0"]
    assert_conserved(model, x, rules.ZPlus(bias="ignore", stabilizer=1e-12))


class LinenTransformer(nn.Module):
    """Two blocks with causal attention; the first norm before it, the second one after it."""

    @nn.compact
    def __call__(self, x):
        mask = nn.make_causal_mask(x[..., 0])
        x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x), mask=mask)
        x = nn.RMSNorm()(x + nn.MultiHeadDotProductAttention(2)(x, mask=mask))
        return nn.Dense(3)((x + nn.Dense(4)(nn.gelu(nn.Dense(6)(x)))).mean(1))


def test_linen_transformer(float64):
    x = normal(0, 2, 5, 4)
    model = from_linen(LinenTransformer(), x)
    names = names_of_layers(model, x)
    attention = [f"MultiHeadDotProductAttention_{i}.{name}" for i in range(2) for name in "query key value out".split()]
    assert names[:8] == attention
    assert sorted(names[8:]) == ["Dense_0", "Dense_1", "Dense_2"]
    explain(model, x, IGNORE_BIAS)


def test_token_behind_the_causal_mask_gets_no_relevance(float64):
    x = normal(0, 2, 5, 4)
    attention = nn.MultiHeadDotProductAttention(2)
    variables = jax.jit(attention.init)(jax.random.key(1), x)
    masked = lambda x: attention.apply(variables, x, mask=nn.make_causal_mask(x[..., 0]))[:, 2]
    _, relevance = explain(masked, x, rules.Epsilon())
    assert relevance[0, :3].all()
    assert not relevance[0, 3:].any()


class NNXTransformer(nnx.Module):
    def __init__(self, rngs):
        options = {"param_dtype": jnp.float64, "rngs": rngs}
        self.norms = nnx.List([nnx.LayerNorm(4, **options), nnx.RMSNorm(4, **options)])
        self.norms[0].scale[...], self.norms[0].bias[...] = normal(11, 4), normal(12, 4)
        self.norms[1].scale[...] = normal(13, 4)
        self.attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)
        self.up = nnx.Linear(4, 6, rngs=rngs)
        self.gate = nnx.Linear(4, 6, rngs=rngs)
        self.down = nnx.Linear(6, 4, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norms[0](x))
        normalised = self.norms[1](x)
        x = x + self.down(nnx.silu(self.gate(normalised)) * self.up(normalised))
        return self.head(x.mean(1))


def test_nnx_transformer(float64):
    model, x = NNXTransformer(nnx.Rngs(0)), normal(0, 2, 5, 4)
    attention = [f"attention.{name}" for name in ("query", "key", "value", "out")]
    assert names_of_layers(model, x) == [*attention, "gate", "up", "down", "head"]
    explain(model, x, IGNORE_BIAS)


class NNXConvolutional(nnx.Module):
    """Batch norm before the activation and the convolution, as in a pre-activation network."""

    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(2, use_running_average=True, param_dtype=jnp.float64, rngs=rngs)
        # flax holds statistics in single precision
        self.norm.mean[...], self.norm.var[...] = jnp.array([[0.3, -1.2], [2.0, 0.5]], jnp.float32)
        self.norm.scale[...], self.norm.bias[...] = jnp.array([-0.7, 1.6]), jnp.array([0.9, -0.4])
        self.convolution = nnx.Conv(2, 4, (3, 3), strides=2, rngs=rngs)
        self.depthwise = nnx.Conv(4, 4, (3, 3), feature_group_count=4, rngs=rngs)
        self.transposed = nnx.ConvTranspose(4, 2, (2, 2), strides=2, rngs=rngs)
        self.head = nnx.Linear(8 * 8 * 2, 3, rngs=rngs)

    def __call__(self, x):
        x = self.convolution(nnx.relu(self.norm(x)))
        x = self.transposed(nnx.leaky_relu(self.depthwise(nnx.elu(x))))
        return self.head(nnx.tanh(x).reshape(x.shape[0], -1))


def test_nnx_convolutional_network(float64):
    model, x = NNXConvolutional(nnx.Rngs(0)), normal(0, 2, 8, 8, 2)
    assert names_of_layers(model, x) == ["convolution", "depthwise", "transposed", "head"]

    def with_factors_held(x):
        """Where elu and tanh stand, the value times a factor that is held: then relevance is gradient times input."""
        held = lambda function, z: z * jax.lax.stop_gradient(function(z) / z)
        x = model.convolution(nnx.relu(model.norm(x)))
        x = model.transposed(nnx.leaky_relu(model.depthwise(held(nnx.elu, x))))
        return model.head(held(nnx.tanh, x).reshape(x.shape[0], -1))

    _, relevance = explain(model, x, rules.Zero())
    assert_close_to(quick_jit(jax.grad(lambda x: with_factors_held(x)[0, 1]))(x) * x, relevance)
    # Without a shift of the norm, which would keep a share, relevance is conserved.
    norm = model.norm
    norm.bias[...] = norm.mean[...] * norm.scale[...] / jnp.sqrt(norm.var[...] + norm.epsilon)
    assert_conserved(model, x, IGNORE_BIAS)
    assert_conserved(model, x, rules.Zero(bias="ignore"))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("cell", [nn.OptimizedLSTMCell, nn.LSTMCell, nn.GRUCell], ids=lambda cell: cell.__name__)
def test_linen_recurrent_network(float64, cell):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.RNN(cell(4, param_dtype=jnp.float64), name="recurrent")(x)[:, -1])

    x = normal(0, 2, 5, 3)
    module = Network()
    variables = jax.jit(module.init)(jax.random.key(1), x)
    model = lambda x: module.apply(variables, x)
    names = names_of_layers(model, x)
    assert names[-1] == "Dense_0"
    assert len(names) == {nn.OptimizedLSTMCell: 2, nn.LSTMCell: 8, nn.GRUCell: 6}[cell] + 1
    assert all(f"{cell.__name__}_0." in name for name in names[:-1])
    logit, relevance = explain(model, x, IGNORE_BIAS)
    np.testing.assert_allclose(relevance.sum(), logit, rtol=1e-8)
    assert relevance[0].any(axis=-1).all()  # every step of the sequence has some


@pytest.mark.parametrize("cell", [nnx.LSTMCell, nnx.OptimizedLSTMCell, nnx.GRUCell], ids=lambda cell: cell.__name__)
def test_nnx_recurrent_network(float64, cell):
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.recurrent = nnx.RNN(cell(3, 4, param_dtype=jnp.float64, rngs=rngs))
            self.head = nnx.Linear(4, 3, rngs=rngs)

        def __call__(self, x):
            return self.head(self.recurrent(x)[:, -1])

    model, x = Network(nnx.Rngs(0)), normal(0, 2, 5, 3)
    names = names_of_layers(model, x)
    assert names[-1] == "head"
    assert all(name.startswith("recurrent.cell.") for name in names[:-1])
    logit, relevance = explain(model, x, IGNORE_BIAS)
    np.testing.assert_allclose(relevance.sum(), logit, rtol=1e-8)


def test_linen_lstm_is_its_steps_written_out(float64):
    x = normal(0, 2, 4, 3)
    cell = nn.OptimizedLSTMCell(4, param_dtype=jnp.float64)
    variables = cell.init(jax.random.key(1), cell.initialize_carry(jax.random.key(0), x[:, 0].shape), x[:, 0])
    recurrent = nn.RNN(cell)

    def written_out(x):
        carry = cell.initialize_carry(jax.random.key(0), x[:, 0].shape)
        for step in range(x.shape[1]):
            carry, y = cell.apply(variables, carry, x[:, step])
        return y

    scanned = lambda x: recurrent.apply({"params": {"cell": variables["params"]}}, x)[:, -1]
    _, expected = explain(written_out, x, rules.Epsilon(1e-3))
    _, relevance = explain(scanned, x, rules.Epsilon(1e-3))
    assert_close_to(expected, relevance)


def test_nnx_scan_over_layers_is_the_layers_written_out(float64):
    class Stack(nnx.Module):
        def __init__(self, rngs):
            keys = jax.random.split(rngs.params(), 3)
            linear = lambda key: nnx.Linear(4, 4, param_dtype=jnp.float64, rngs=nnx.Rngs(key))
            self.layers = nnx.vmap(linear)(keys)
            self.head = nnx.Linear(4, 3, rngs=rngs)

        def __call__(self, x):
            step = nnx.scan(lambda x, layer: nnx.relu(layer(x)), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
            return self.head(step(x, self.layers))

    model, x = Stack(nnx.Rngs(0)), normal(0, 2, 4)
    kernels, biases = model.layers.kernel[...], 0.5 + 0.1 * normal(5, 3, 4)
    model.layers.bias[...] = biases
    head = model.head

    def written_out(x):
        for kernel, bias in zip(kernels, biases, strict=True):
            x = jax.nn.relu(x @ kernel + bias)
        return head(x)

    assert names_of_layers(model, x) == ["layers", "head"]
    for rule in (rules.Epsilon(1e-3), rules.ZPlus(), rules.Flat()):
        _, expected = explain(written_out, x, rule)
        _, relevance = explain(model, x, rule)
        assert_close_to(expected, relevance)


def test_plain_function_with_parameters_in_a_dictionary(float64):
    params = {"hidden": {"w": normal(1, 4, 6), "b": normal(2, 6)}, "out": {"w": normal(3, 6, 3)}}

    def network(params, x):
        return jax.nn.relu(x @ params["hidden"]["w"] + params["hidden"]["b"]) @ params["out"]["w"]

    x = normal(0, 2, 4)
    model = lambda x: network(params, x)
    assert names_of_layers(model, x) == ["hidden", "out"]
    by_argument = trace(network, (1,), (params, x), {}).graph
    assert [layer.name for layer in find_layers(by_argument)] == ["hidden", "out"]
    assert_gradient_times_input(model, x)
    assert_conserved(model, x, IGNORE_BIAS)
