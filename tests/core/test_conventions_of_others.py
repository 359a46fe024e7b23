"""What the page "Coming from zennit or Captum" says of their conventions, against maps that they computed.

The maps, with the networks and inputs, are in `tests/reference/conventions.npz`, which `make_conventions.py` writes.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrp_jax import composites, relevance, rules

ROOT = Path(__file__).parents[2]
TARGET = 3
SAME, STABILIZED = 1e-7, 1e-4  # largest difference in units of the largest relevance: one stabiliser for another


@pytest.fixture(scope="module")
def theirs():
    with jax.enable_x64(True), np.load(ROOT / "tests" / "reference" / "conventions.npz") as file:
        yield {name: jnp.asarray(file[name]) for name in file.files}


def network(arrays, name):
    """One of their networks as a function."""
    parameters = {key.removeprefix(f"{name} "): value for key, value in arrays.items() if key.startswith(f"{name} ")}

    def convolve(x, layer):
        axes = ("NCHW", "OIHW", "NCHW")
        kernel, bias = parameters[f"{layer}.weight"], parameters[f"{layer}.bias"]
        same = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=axes)
        return same + bias[:, None, None]

    def normalise(z):
        keys = ("running_mean", "running_var", "weight", "bias")
        mean, variance, scale, shift = (parameters[f"norm.{key}"][:, None, None] for key in keys)
        return (z - mean) / jnp.sqrt(variance + 1e-5) * scale + shift

    def run(x):
        low = convolve(x, "low")
        low = jax.nn.relu(normalise(low) if name == "normed" else low)
        low = jax.lax.reduce_window(low, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
        high = jax.nn.relu(convolve(low, "high"))
        flat = (high + low if name == "summed" else high).reshape(len(x), -1)
        return flat @ parameters["head.weight"].T + parameters["head.bias"]

    return run


def ours(arrays, name, x, chosen, target=TARGET):
    with jax.enable_x64(True):
        return relevance(network(arrays, name), arrays[x], target, chosen)


def difference(a, b):
    return float(jnp.abs(a - b).max() / jnp.abs(b).max())


EQUAL = {
    "zennit epsilon": ("plain", "signed", rules.Epsilon(1e-6)),
    "zennit epsilon zero_params": ("plain", "signed", rules.Epsilon(1e-6, bias="ignore")),
    "zennit gamma": ("plain", "signed", rules.Gamma(stabilizer=1e-6)),
    "zennit zplus": ("plain", "signed", rules.ZPlus(stabilizer=1e-6)),
    "zennit alphabeta": ("plain", "signed", rules.AlphaBeta(stabilizer=1e-6)),
    "zennit wsquare": ("plain", "signed", rules.WSquare(stabilizer=1e-6, bias="absorb")),
    "zennit flat": ("plain", "signed", rules.Flat(stabilizer=1e-6)),
    "captum": ("plain", "signed", rules.Epsilon(1e-9)),
    "captum norm": ("normed", "positive", rules.Epsilon(1e-9)),
    "captum alpha1beta0": ("plain", "positive", rules.ZPlus(stabilizer=1e-9, bias="ignore")),
}


@pytest.mark.parametrize("case", EQUAL)
def test_maps_with_their_numbers_are_theirs(theirs, case):
    name, x, rule = EQUAL[case]
    assert difference(ours(theirs, name, x, rule).relevance, theirs[f"map {case}"]) < SAME


PRESETS = {
    "zennit EpsilonPlusFlat": composites.EpsilonPlusFlat(),
    "zennit EpsilonPlus": composites.EpsilonPlus(),
    "zennit EpsilonAlpha2Beta1": composites.EpsilonAlpha2Beta1(),
    "zennit EpsilonGammaBox": composites.EpsilonGammaBox(0.0, 1.0),
}


@pytest.mark.parametrize("case", PRESETS)
def test_maps_of_presets_are_those_of_zennit_but_for_the_stabiliser(theirs, case):
    maps = ours(theirs, "normed", "positive", PRESETS[case]).relevance
    assert difference(maps, theirs[f"map {case}"]) < STABILIZED


DIFFERENT = {
    "zennit wsquare": ("plain", "signed", rules.WSquare()),
    "zennit EpsilonPlus without canonizer": ("normed", "positive", composites.EpsilonPlus()),
    "captum gamma": ("plain", "positive", rules.Gamma()),
    "captum alpha1beta0 signed": ("plain", "signed", rules.ZPlus(bias="ignore")),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_maps_that_the_page_calls_different_are(theirs, case):
    name, x, rule = DIFFERENT[case]
    assert difference(ours(theirs, name, x, rule).relevance, theirs[f"map {case}"]) > 0.01


def test_zennit_starts_from_what_it_is_told_to(theirs):
    rule = rules.Epsilon(1e-6)
    explanation = ours(theirs, "plain", "signed", rule)
    logits = explanation.output[:, TARGET, None, None, None]
    assert difference(explanation.relevance / logits, theirs["map zennit epsilon from one"]) < SAME
    every_class = ours(theirs, "plain", "signed", rule, lambda y: y.sum(1)).relevance
    assert difference(every_class, theirs["map zennit epsilon from all"]) < SAME


@pytest.mark.parametrize("case", ["zennit sum", "captum sum"])
def test_others_hand_all_of_the_relevance_to_both_branches_of_a_plus(theirs, case):
    explanation = ours(theirs, "summed", "signed", rules.Epsilon(1e-9))
    assert difference(theirs[f"map {case}"], explanation.relevance) > 0.5


def test_our_side_of_the_page_runs():
    text = (ROOT / "book" / "coming_from.md").read_text()
    blocks = [block.split("```")[1].removeprefix("python") for block in text.split("\nlrp_jax\n")[1:]]
    assert len(blocks) == 3
    weight = jax.random.normal(jax.random.key(0), (6, 10))
    names = {"model": lambda x: x @ weight, "x": jnp.ones((2, 6))}
    for block in blocks:
        exec(block, names)
    assert names["attribution"].shape == (2, 6)
    assert np.isfinite(names["delta"])
    assert composites.as_composite(names["composite"]).rules[1][1] == rules.Gamma(0.25)
