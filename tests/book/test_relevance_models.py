"""The relevance model that is trained."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lrp_book.relevance_models import MinMaxRelevanceModel, fit_relevance_model
from lrp_jax import deep_taylor, lrp, rules
from lrp_jax.errors import InputError, MissingExtraError


def min_max_data(samples=1500):
    """Relevance that two groups of detection neurons with inhibition give, in units far from one."""
    x = 30 * jax.random.uniform(jax.random.key(0), (samples, 4))
    v = jnp.array([[2.0, -1.0, 0.5, 0.0], [-1.0, 2.0, 0.0, 0.5], [0.5, 0.0, -1.0, 1.0], [0.0, 0.5, 1.0, -1.0]])
    y = jax.nn.relu(x @ v - jnp.array([4.0, 4.0, 2.0, 2.0]))
    return x, y.reshape(samples, 2, 2).sum(-1)


@pytest.fixture(scope="module")
def fitted():
    x, relevance = min_max_data()
    return fit_relevance_model(x, relevance, key=jax.random.key(3), detectors=8, epochs=60, learning_rate=0.03)


def test_min_max_model_by_hand():
    # Two groups of one neuron, one input, one neuron above.
    # a = min(0, R_l v_l + d) = min(0, 2 (1, -1) + (-3, 1)) = (-1, -1); y = max(0, 4 (1, 0.2) + a) = (3, 0).
    model = MinMaxRelevanceModel(1, 2, detectors=1, upper=1, rngs=nnx.Rngs(0))
    model.detection.kernel[...] = jnp.array([[1.0, 0.2]])
    model.inhibition.kernel[...] = jnp.array([[1.0, -1.0]])
    model.d[...] = jnp.array([-3.0, 1.0])
    np.testing.assert_allclose(model.bias(jnp.array([2.0])), [-1.0, -1.0])
    np.testing.assert_allclose(model(jnp.array([4.0]), jnp.array([2.0])), [3.0, 0.0])
    # More relevance above lifts the first neuron's inhibition, but its bias never gets positive: 8 (1, -1) + (-3, 1).
    np.testing.assert_allclose(model(jnp.array([4.0]), jnp.array([8.0])), [4.0, 0.0])


def test_min_max_model_sums_over_groups():
    model = MinMaxRelevanceModel(1, 2, detectors=2, rngs=nnx.Rngs(0))
    model.detection.kernel[...] = jnp.array([[1.0, 2.0, 3.0, -4.0]])
    np.testing.assert_allclose(model(jnp.array([[1.0], [2.0]])), [[3.0, 3.0], [6.0, 6.0]])


def test_min_max_model_fits_a_known_relevance_function(fitted):
    assert fitted.r_squared > 0.99
    assert fitted.losses.shape == (60,)
    assert fitted.losses[-1] < 0.1 * fitted.losses[0]
    # On new samples and in the units of the data.
    x, relevance = min_max_data(2000)
    error = ((fitted.model(x[1500:]) - relevance[1500:]) ** 2).sum()
    assert 1 - error / ((relevance[1500:] - relevance[1500:].mean(0)) ** 2).sum() > 0.99
    assert (fitted.model.bias() <= 0).all()
    assert (fitted.model.bias() < -0.1).any()


def test_fit_quality_is_measured_on_samples_that_were_held_out_and_depends_on_the_key_alone():
    # Noise can be learnt by heart, but not predicted.
    x = jax.random.normal(jax.random.key(0), (60, 20))
    relevance = jnp.abs(jax.random.normal(jax.random.key(1), (60, 1)))
    first, again, other = (
        fit_relevance_model(x, relevance, key=jax.random.key(seed), epochs=300, learning_rate=0.03)
        for seed in (0, 0, 1)
    )
    assert first.losses[-1] < 0.05
    assert first.r_squared < 0.3
    np.testing.assert_array_equal(first.losses, again.losses)
    assert first.r_squared == again.r_squared
    assert (first.losses != other.losses).any()


def test_relevance_above_improves_the_fit_and_lrp_goes_through_the_model():
    # Where the layer above finds it relevant the layer has relevance, else none: the activations alone cannot tell.
    x, relevance = min_max_data()
    upper = jax.random.bernoulli(jax.random.key(1), 0.5, (len(x), 2)).astype(jnp.float32)
    with_upper, without = (
        fit_relevance_model(
            x, relevance * upper, *above, key=jax.random.key(2), detectors=8, epochs=60, learning_rate=0.03
        )
        for above in ((upper,), ())
    )
    assert with_upper.r_squared > 0.9
    assert without.r_squared < 0.3
    # The model is in the units of the data.
    np.testing.assert_allclose(with_upper.model(x, upper).mean(0), (relevance * upper).mean(0), rtol=0.05)
    explained = lrp(with_upper.model, rules.ZPlus(bias="ignore"))
    propagated = jax.jit(jax.grad(lambda x: explained(x, upper).sum()))(x)
    np.testing.assert_allclose(propagated.sum(1), with_upper.model(x, upper).sum(1), rtol=1e-4, atol=1e-3)
    assert (propagated >= 0).all()


@pytest.mark.parametrize(
    ("rule", "bounds"),
    [
        (rules.WSquare(), {}),
        (rules.ZPlus(bias="ignore"), {"low": 0.0}),
        (rules.ZBox(0.0, 30.0), {"low": 0.0, "high": 30.0}),
    ],
)
def test_lrp_goes_through_the_min_max_model(fitted, rule, bounds):
    x = min_max_data()[0][:4]
    model = fitted.model
    relevance = jax.jit(jax.grad(lambda x: lrp(model, rule)(x).sum()))(x)
    np.testing.assert_allclose(relevance.sum(1), model(x).sum(1), rtol=1e-4)  # conservative
    assert (relevance >= 0).all()  # positive
    # And it is the Taylor step at each detection neuron.
    v, a = model.detection.kernel[...], model.bias()

    @jax.jit
    @jax.vmap
    def by_taylor(x):
        detectors = deep_taylor.TrainingFreeRelevanceModel(v, a, jnp.ones_like(a))
        return deep_taylor.taylor_messages(detectors, x, **bounds).sum(1)

    np.testing.assert_allclose(by_taylor(x), relevance, rtol=1e-3, atol=1e-2)


def test_errors_of_the_min_max_model():
    x = jnp.ones((1, 3))
    with pytest.raises(InputError, match="second argument"):
        MinMaxRelevanceModel(3, 1, upper=2, rngs=nnx.Rngs(0))(x)
    with pytest.raises(InputError, match="takes no relevance"):
        MinMaxRelevanceModel(3, 1, rngs=nnx.Rngs(0))(x, jnp.ones((1, 2)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": jnp.ones((4, 2), jnp.int32)}, "floating-point"),
        ({"relevance": jnp.ones(4)}, "relevance must have the shape"),
        ({"relevance": jnp.ones((3, 1))}, "relevance must have the shape"),
        ({"upper": jnp.ones((3, 1))}, "upper must have the shape"),
        ({"x": jnp.full((4, 2), jnp.nan)}, "x holds values that are not finite"),
        ({"relevance": jnp.array([[1.0], [-1.0], [1.0], [1.0]])}, "negative values"),
        ({"held_out": 0.1}, "at least 1 and 2"),
        ({"held_out": 1.0}, "at least 1 and 2"),
        ({"relevance": jnp.ones((4, 1))}, "does not vary"),
    ],
)
def test_errors_of_the_fit(change, message):
    arguments = {"x": jnp.ones((4, 2)), "relevance": jnp.arange(4.0)[:, None], "held_out": 0.5} | change
    with pytest.raises(InputError, match=message):
        fit_relevance_model(**arguments, key=jax.random.key(0))


def test_fit_without_optax_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "optax", None)
    with pytest.raises(MissingExtraError, match="book"):
        fit_relevance_model(jnp.ones((4, 2)), jnp.ones((4, 1)), key=jax.random.key(0))
