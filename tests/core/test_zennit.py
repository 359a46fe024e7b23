"""Whole networks against zennit: `tests/reference/make_zennit.py` writes the arrays, with zennit's versions in them."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import jit_by_day
from jax import lax

from lrp_jax import lrp
from lrp_jax.composites import (
    Composite,
    Deconvnet,
    DeepTaylor,
    EpsilonAlpha2Beta1,
    EpsilonAlpha2Beta1Flat,
    EpsilonGammaBox,
    EpsilonPlus,
    EpsilonPlusFlat,
    ExcitationBackprop,
    GuidedBackprop,
    Rules,
    any_layer,
    as_composite,
    first,
)
from lrp_jax.rules import AlphaBeta, Epsilon, Flat, Gamma, Norm, WSquare, ZBox, ZPlus

REFERENCE = np.load(Path(__file__).parents[1] / "reference" / "zennit.npz")
LOW, HIGH = (REFERENCE[name].reshape(3, 1, 1) for name in ("low", "high"))

ASSIGNMENTS: dict[str, Rules] = {
    "epsilon": Epsilon(1e-6),
    "large_epsilon": Epsilon(0.25),
    "epsilon_without_bias": Epsilon(0.1, bias="ignore"),
    "zplus": ZPlus(),
    "alpha2_beta1": AlphaBeta(2.0, 1.0),
    "alpha2_beta1_without_bias": AlphaBeta(2.0, 1.0, bias="ignore"),
    "gamma": Gamma(0.25),
    "large_gamma": Gamma(3.0),
    "wsquare": WSquare(bias="absorb"),
    "flat": Flat(),
    "zbox_first": Composite([(first, ZBox(LOW, HIGH)), (any_layer, Epsilon(1e-6))]),
    "norm": Norm(),
    "wsquare_first": DeepTaylor(),
    "zbox_first_zplus": DeepTaylor(LOW, HIGH),
    "epsilon_plus": EpsilonPlus(),
    "epsilon_plus_flat": EpsilonPlusFlat(),
    "epsilon_gamma_box": EpsilonGammaBox(LOW, HIGH),
    "epsilon_alpha2_beta1": EpsilonAlpha2Beta1(),
    "epsilon_alpha2_beta1_flat": EpsilonAlpha2Beta1Flat(),
    "excitation_backprop": ExcitationBackprop(),
    "guided_backprop": GuidedBackprop(),
    "deconvnet": Deconvnet(),
}


def stabilized_as_in_zennit(rules):
    """The same rules with zennit's stabilizer, 1e-6 in units of z, wherever none is given."""
    composite = as_composite(rules)
    pairs = []
    for selector, rule in composite.rules:
        unset = [name for name in ("epsilon", "stabilizer") if getattr(rule, name, 0.0) is None]
        pairs.append((selector, dataclasses.replace(rule, **dict.fromkeys(unset, 1e-6))))
    return dataclasses.replace(composite, rules=pairs)


class Parameters:
    """The parameters of one network, in zennit's layout: images are NCHW, kernels OIHW, dense weights (out, in)."""

    def __init__(self, network):
        prefix = f"{network}/parameters/"
        self.arrays = {key.removeprefix(prefix): REFERENCE[key] for key in REFERENCE if key.startswith(prefix)}

    def conv(self, name, x, stride=1, padding=0):
        weight = self.arrays[f"{name}.weight"]
        z = lax.conv_general_dilated(x, weight, (stride, stride), [(padding, padding)] * 2)
        return z + self.arrays[f"{name}.bias"][:, None, None] if f"{name}.bias" in self.arrays else z

    def norm(self, name, x):
        names = ("running_mean", "running_var", "weight", "bias")
        mean, variance, scale, shift = (self.arrays[f"{name}.{key}"][:, None, None] for key in names)
        return (x - mean) / jnp.sqrt(variance + 1e-5) * scale + shift

    def dense(self, name, x):
        return x @ self.arrays[f"{name}.weight"].T + self.arrays[f"{name}.bias"]


def max_pool(x, size):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, size, size), (1, 1, 2, 2), "VALID")


def average_pool(x, size):
    return lax.reduce_window(x, 0.0, lax.add, (1, 1, size, size), (1, 1, 2, 2), "VALID") / size**2


def lenet(parameters, x):
    x = max_pool(jax.nn.relu(parameters.conv("conv1", x)), 2)
    x = max_pool(jax.nn.relu(parameters.conv("conv2", x, padding=1)), 2)
    x = jax.nn.relu(parameters.dense("dense1", x.reshape(len(x), -1)))
    return parameters.dense("dense3", jax.nn.relu(parameters.dense("dense2", x)))


def vgg(parameters, x):
    for name in ("conv1", "conv2"):
        x = jax.nn.relu(parameters.conv(name, x, padding=1))
    x = max_pool(x, 3)
    for name in ("conv3", "conv4"):
        x = jax.nn.relu(parameters.conv(name, x, padding=1))
    x = average_pool(x, 3).reshape(len(x), -1)
    return parameters.dense("dense2", jax.nn.relu(parameters.dense("dense1", x)))


def resnet(parameters, x):
    x = jax.nn.relu(parameters.norm("norm", parameters.conv("conv", x, padding=1)))
    for block, stride in (("block1", 1), ("block2", 2)):
        y = parameters.norm(f"{block}.norm1", parameters.conv(f"{block}.conv1", x, stride, padding=1))
        y = parameters.norm(f"{block}.norm2", parameters.conv(f"{block}.conv2", jax.nn.relu(y), padding=1))
        if stride > 1:
            x = parameters.norm(f"{block}.shortcut.1", parameters.conv(f"{block}.shortcut.0", x, stride))
        x = jax.nn.relu(y + x)
    return parameters.dense("dense", x.mean((2, 3)))


NETWORKS = {"lenet": lenet, "vgg": vgg, "resnet": resnet}


def test_every_reference_is_compared():
    found = {key for key in REFERENCE if "/relevance/" in key}
    assert found == {f"{network}/relevance/{name}" for network in NETWORKS for name in ASSIGNMENTS}


@pytest.mark.parametrize("network", NETWORKS)
def test_output_agrees_with_zennit(float64, network):
    output = NETWORKS[network](Parameters(network), REFERENCE[f"{network}/input"])
    np.testing.assert_allclose(output, REFERENCE[f"{network}/output"], rtol=0, atol=1e-13)


@pytest.mark.sampled(7)
@pytest.mark.parametrize("name", ASSIGNMENTS)
@pytest.mark.parametrize("network", NETWORKS)
def test_relevance_agrees_with_zennit(float64, network, name):
    parameters, rule = Parameters(network), stabilized_as_in_zennit(ASSIGNMENTS[name])

    @jit_by_day
    def explain(x):
        output, transpose = jax.vjp(lrp(lambda x: NETWORKS[network](parameters, x), rule), x)
        seeds = jax.nn.one_hot(REFERENCE["chosen"], output.shape[1], dtype=output.dtype)
        return [transpose(seed)[0] for seed in seeds]

    maps = explain(jnp.asarray(REFERENCE[f"{network}/input"]))
    for found, expected in zip(maps, REFERENCE[f"{network}/relevance/{name}"], strict=True):
        error = np.abs(found - expected).max() / np.abs(expected).max()
        assert error < 1e-8, f"{error:.1e} of the maximum"
