"""An explanation says how much of what it explains arrived at the input, and warns where next to nothing did."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lrp_jax import composites, ledger, relevance, rules
from lrp_jax.errors import LRPWarning
from lrp_jax.explain.growth import account_line
from lrp_jax.explain_dataset import explain_dataset

LOW, HIGH = jnp.array([[1.0], [3.0]]), jnp.array([[2.0]])
X = jnp.array([[2.0, 1.0]])


def biased(bias):
    """By hand: the hidden value is 2 + 3 + bias, the output twice that; the bias keeps 2 bias of 10 + 2 bias."""
    return lambda x: jax.nn.relu(x @ LOW + bias) @ HIGH


def silently(function, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return function(*args, **kwargs)


VANISHES = (
    r"Relevance vanishes: 10 of 410 that are explained arrive at the input, 2\.44% \(sums of absolute values over all "
    r"samples\).* stays with biases, or other constants: lrp_jax.ledger says .*try rules with bias='ignore' or bias="
)


@pytest.mark.parametrize("rule", [rules.Zero(), rules.Epsilon(), rules.Gamma(), rules.ZPlus()], ids=str)
def test_bias_that_keeps_nearly_all_is_reported(rule):
    with pytest.warns(LRPWarning, match=VANISHES):
        explanation = relevance(biased(200.0), X, 0, rule)
    np.testing.assert_allclose(explanation.explained, [410.0])
    np.testing.assert_allclose(explanation.relevance, [[4.0, 6.0]], rtol=1e-4)


@pytest.mark.parametrize("bias", [90.0, 0.0, -1.0])
def test_bias_that_leaves_enough_is_not(bias):
    """Of 190, 10 are 5.3 %."""
    explanation = silently(relevance, biased(bias), X, 0, rules.Zero())
    np.testing.assert_allclose(explanation.explained, [10.0 + 2 * bias])


NOT_REPORTED = {
    "ignored": rules.Zero(bias="ignore"),
    "distributed": rules.Epsilon(bias="distribute"),
    "flat": rules.Flat(bias="absorb"),
    "w^2": rules.WSquare(bias="absorb"),
    "gradient": rules.Gradient(),
    "guided": composites.GuidedBackprop(),
    "deconvnet": composites.Deconvnet(),
}


@pytest.mark.parametrize("rule", NOT_REPORTED)
def test_what_hands_all_on_or_does_not_conserve_by_intention_is_not_reported(rule):
    silently(relevance, biased(200.0), X, 0, NOT_REPORTED[rule])


def test_flat_at_the_input_does_not_hide_what_was_lost_above():
    network = lambda x: biased(0.0)(x) @ jnp.ones((1, 1)) + 1000.0
    with pytest.warns(LRPWarning, match="Relevance vanishes: 10 of 1.01e\\+03"):
        relevance(network, X, 0, composites.EpsilonPlusFlat())


def test_what_epsilon_keeps_is_reported():
    """By hand: 10 * 10 / (10 + 100) * 5 / (5 + 100) = 0.0433."""
    with pytest.warns(
        LRPWarning,
        match=r"Relevance vanishes: 0\.0433 of 10 .*biases and the epsilon of the rules.*; or a smaller epsilon",
    ):
        relevance(biased(0.0), X, 0, rules.Epsilon(100.0))


def test_sums_are_of_absolute_values_over_the_batch():
    """Three samples: what arrives is (10, -10, 0) of (10, -10, 0), which add up to nothing, and is all there is."""
    x = jnp.array([[2.0, 1.0], [-2.0, -1.0], [0.0, 0.0]])
    explanation = silently(relevance, lambda x: x @ LOW @ HIGH, x, 0, rules.Zero())
    np.testing.assert_allclose(explanation.explained, [10.0, -10.0, 0.0])
    # 200 of 600 and 1 of 402: the second alone would be reported, 201 of 1002 is not.
    silently(relevance, biased(200.0), jnp.concatenate([20 * X, 0.1 * X]), 0, rules.Zero())
    with pytest.warns(LRPWarning, match="Relevance vanishes: 1 of 401 that"):
        relevance(biased(200.0), 0.1 * X, 0, rules.Zero())


@pytest.mark.parametrize("options", [{}, {"batch_size": 2, "progress": False}], ids=["whole", "batches"])
@pytest.mark.parametrize("target", [0, "all", None])
def test_warning_comes_once_a_call(options, target):
    x = jnp.concatenate([X, 0.5 * X, 0.1 * X])  # 10 + 5 + 1 of 3 * 400 more
    with pytest.warns(LRPWarning, match=r"16 of 1\.22e\+03 that are explained") as found:
        explanation = relevance(biased(200.0), x, target, rules.Zero(), **options)
    assert len(found) == 1
    assert explanation.explained.shape == ((1, 3) if target == "all" else (3,))
    assert found[0].filename == __file__


def test_no_warning_under_jit_nor_with_factors():
    explain = lambda x: relevance(biased(200.0), x, 0, rules.Zero())
    explanation = silently(jax.jit(explain), X)
    np.testing.assert_allclose(explanation.explained, [410.0])
    silently(relevance, biased(0.0), X, 0, rules.Zero(), given={"dense_0": jnp.zeros(1)})


def test_function_of_all_samples_and_output_of_one_number():
    x = jnp.concatenate([X, X])
    with pytest.warns(LRPWarning, match="20 of 820 that"):
        explanation = relevance(biased(200.0), x, lambda output: output.sum(), rules.Zero())
    np.testing.assert_allclose(explanation.explained, [820.0])


def test_data_set(tmp_path):
    samples = np.concatenate([X, 0.5 * X, 0.1 * X])
    options = {"target": 0, "batch_size": 1, "progress": False}
    with pytest.warns(LRPWarning, match=r"16 of 1\.22e\+03 that are explained"):
        explain_dataset(biased(200.0), samples, tmp_path / "zero", rules=rules.Zero(), **options)
    with pytest.warns(LRPWarning, match=r"16 of 1\.22e\+03 that are explained"):  # also of what an earlier run did
        explain_dataset(biased(200.0), samples, tmp_path / "zero", rules=rules.Zero(), **options)
    silently(explain_dataset, biased(200.0), samples, tmp_path / "flat", rules=rules.Flat(), **options)
    silently(explain_dataset, biased(1.0), samples, tmp_path / "small", rules=rules.Zero(), **options)


class Convolutional(nnx.Module):
    def __init__(self, seed):
        rngs = nnx.Rngs(seed)
        self.layers = nnx.List([nnx.Conv(a, b, (3, 3), rngs=rngs) for a, b in ((1, 4), (4, 8), (8, 8))])
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.head(x.mean((1, 2)))


PRESETS = (composites.EpsilonPlus, composites.EpsilonAlpha2Beta1, composites.EpsilonPlusFlat, composites.AttnLRP)


@pytest.mark.parametrize("preset", PRESETS)
def test_sensible_networks_are_not_reported(preset):
    x = jax.random.uniform(jax.random.key(0), (3, 8, 8, 1))
    silently(relevance, Convolutional(0), x, None, preset())


def test_line_agrees_with_the_ledger():
    network = biased(3.0)
    explanation, book = relevance(network, X, 0, rules.Zero()), ledger(network, X, 0, rules.Zero())
    line = account_line(explanation.explained, explanation.relevance)
    assert line == (
        "Of 16 that are explained, 10 arrived at the input; lrp_jax.ledger says how much of the other 6 biases, "
        "constants and epsilon kept."
    )
    assert (book.explained, book.inputs, book.bias) == (16.0, 10.0, 6.0)
    assert line in explanation._repr_html_()
    whole = relevance(biased(0.0), X, 0, rules.Zero())
    assert account_line(whole.explained, whole.relevance) == "Of 10 that are explained, 10 arrived at the input."
    assert account_line(None, whole.relevance) == ""
    jax.jit(lambda x: account_line(x, x) or x)(X)


def test_line_of_pairs_of_inputs_and_of_all_classes():
    model = lambda x: x["left"] @ LOW + x["right"] @ LOW + 4.0
    explanation = relevance(model, {"left": X, "right": X}, "all", rules.Zero())
    assert account_line(explanation.explained, explanation.relevance).startswith("Of 14 that are explained, 10 arr")
