"""Models of Keras, by an imitation of its protocol; the expected values are worked out in NumPy."""

import functools
import inspect
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from keras_like import BatchNorm, Dense, Layer, Model

from lrp_jax import ledger, lrp, plan, relevance, rules
from lrp_jax.core.held_arrays import arrays_of
from lrp_jax.errors import ModelError
from lrp_jax.evaluation import randomise

RNG = np.random.default_rng(0)
FIRST, SECOND, MEAN = RNG.normal(size=(4, 5)), RNG.normal(size=(5, 3)), RNG.normal(size=5)
X = RNG.normal(size=(2, 4)).astype(np.float32)


def network():
    """A model within which another one is, with a batch normalisation whose mean moves in training."""
    encoder = Model("encoder", Dense("hidden", FIRST, np.zeros(5)), BatchNorm("norm", MEAN))
    return Model("network", encoder, Dense("head", SECOND, within="network/"))


def by_hand(classes, first=FIRST, second=SECOND):
    """Gradient times input, which is what epsilon of zero makes of a network without a nonlinearity."""
    return X * (first @ second)[:, classes].T


def test_layers_have_the_names_of_keras():
    rows = plan(network(), X).rows
    assert [row[0] for row in rows if row[1] == "dense"] == ["encoder/hidden", "head"]
    inside = plan(lambda x: network_once(x, training=False), X).rows
    assert [row[0] for row in inside if row[1] == "dense"] == ["encoder/hidden", "head"]


network_once = network()


def test_map_is_that_of_inference_mode():
    found = relevance(network(), X, [0, 2], rules.Zero())
    np.testing.assert_allclose(found.output, (X @ FIRST - MEAN) @ SECOND, rtol=1e-4)
    np.testing.assert_allclose(found.relevance, by_hand([0, 2]), rtol=1e-4)
    book = ledger(network(), X, [0, 2], rules.Zero())
    np.testing.assert_allclose(book.inputs, by_hand([0, 2]).sum(), rtol=1e-4)
    np.testing.assert_allclose(book.bias, -(MEAN @ SECOND)[[0, 2]].sum(), rtol=1e-4)  # the mean is the layer's bias


def test_lrp_of_a_model():
    model = network()
    maps = jax.grad(lambda x: lrp(model, rules.Zero())(x)[jnp.arange(2), jnp.array([0, 2])].sum())(X)
    np.testing.assert_allclose(maps, by_hand([0, 2]), rtol=1e-4)


def test_hidden_relevance_by_the_name_of_keras():
    found = relevance(network(), X, 1, rules.Zero(), at=["encoder/hidden"]).at["encoder/hidden"]
    np.testing.assert_allclose(found, (X @ FIRST - MEAN) * SECOND[:, 1], rtol=1e-4)


def test_model_keeps_its_variables():
    model = network()
    before = [variable.value for variable in (*model.trainable_variables, *model.non_trainable_variables)]
    relevance(model, X, 1)
    after = [variable.value for variable in (*model.trainable_variables, *model.non_trainable_variables)]
    assert all(old is new for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize("training", [True, False])
def test_model_within_a_function_keeps_its_variables(training, monkeypatch):
    monkeypatch.setitem(sys.modules, "keras", None)
    model = network()
    mean = model.non_trainable_variables[0]
    if training:
        with pytest.raises(ModelError, match=r"state: encoder/norm\.moving_mean\. Call it with training=False"):
            relevance(lambda x: model(x, training=True), X, 1)
    else:
        relevance(lambda x: model(x, training=False), X, 1)
    np.testing.assert_array_equal(mean.value, np.float32(MEAN))


def test_model_that_gets_its_weights_within_a_function_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras", None)
    model = Model("network")
    model.built = False

    def call(x):
        model.layers = [Dense("head", jnp.asarray(FIRST) + 0 * x[0, 0])]
        return model(x)

    with pytest.raises(ModelError, match=r"had no weights before.*: head\.kernel\. Make it again"):
        relevance(call, X, 1)


def test_function_that_calls_predict_is_refused():
    scope = {"__name__": "keras.src.trainer", "np": np}
    exec("def predict(x):\n    return np.asarray(x)", scope)
    with pytest.raises(ModelError, match=r"such as predict\. Pass the Keras model itself, or lambda x: model"):
        relevance(lambda x: scope["predict"](x), X, 1)


def test_function_that_calls_a_model_of_another_backend_is_refused():
    model = Dense("dense", FIRST)
    model.variables[0].stored = np.asarray(FIRST)
    with pytest.raises(ModelError, match=r"does not run on JAX: its weight kernel .*KERAS_BACKEND to jax"):
        relevance(lambda x: np.asarray(x) @ model.variables[0].value, X, 1)


def test_layers_of_one_name_are_told_apart():
    model = Model("network", Model("block", Dense("dense", FIRST)), Model("block", Dense("dense", SECOND)))
    names = [name for name, _ in arrays_of(model)]
    assert names == ["block/dense.kernel", "block/dense_2.kernel"]


def test_variables_of_a_layer_that_is_no_model_have_the_names_within_it():
    attention = Layer("attention", Dense("query", FIRST, within="network/attention/").variables)
    attention.call = lambda x: x @ attention.variables[0].value
    assert [name for name, _ in arrays_of(Model("network", attention))] == ["attention/query.kernel"]


def test_model_that_has_no_training_argument():
    class Plain(Model):
        def call(self, x):
            return super().call(x, training=False)

    model = Plain("network", Dense("hidden", FIRST))
    np.testing.assert_allclose(relevance(model, X, 1, rules.Zero()).relevance, X * FIRST[:, 1], rtol=1e-4)


def test_two_inputs_in_a_list():
    class Sum(Model):
        def call(self, inputs):
            return self.layers[0](inputs[0]) + self.layers[0](inputs[1])

    model = Sum("network", Dense("hidden", FIRST))
    first, second = relevance(model, [X, 2 * X], 1, rules.Zero()).relevance
    np.testing.assert_allclose(first, X * FIRST[:, 1], rtol=1e-4)
    np.testing.assert_allclose(second, 2 * X * FIRST[:, 1], rtol=1e-4)


def test_randomised_models():
    zeros = lambda key, array: jnp.zeros_like(array)
    models = randomise(network(), ["encoder/hidden", "head"], key=jax.random.key(0), cascade=False, draw=zeros)
    np.testing.assert_allclose(models["encoder/hidden"](X), np.tile(-MEAN @ SECOND, (2, 1)), rtol=1e-4)
    np.testing.assert_allclose(models["head"](X), np.zeros((2, 3)))


@pytest.mark.parametrize("wrap", [lambda model: model, functools.partial], ids=["plain", "partial"])
def test_class_that_only_looks_alike_is_called(wrap):
    class Callable:
        def stateless_call(self, x):
            raise AssertionError

        def __call__(self, x):
            return x @ jnp.asarray(FIRST)

    np.testing.assert_allclose(relevance(wrap(Callable()), X, 1, rules.Zero()).relevance, X * FIRST[:, 1], rtol=1e-4)


def test_keras_is_not_imported():
    relevance(network(), X, 1)
    assert "keras" not in sys.modules
    assert "keras" not in {name for name, _ in inspect.getmembers(sys.modules["lrp_jax"])}
