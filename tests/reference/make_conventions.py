"""Writes conventions.npz: what zennit 1.0 and Captum 0.9 make of one small network, in float64.

The page "Coming from zennit or Captum" says where their conventions are ours and where they differ;
`tests/core/test_conventions_of_others.py` compares. The network is a convolution, a batch normalisation, a relu, a
maximum pooling, a convolution, a relu, a sum with what came before, if there is one, and a dense layer. To write the
file again, in an environment of its own with Python 3.11:

    pip install torch==2.12.1 torchvision==0.27.1 captum==0.9.0
    pip install --ignore-requires-python zennit==1.0.0
    python tests/reference/make_conventions.py
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from captum.attr import LRP
from captum.attr._utils import lrp_rules
from torch import nn
from zennit import composites, rules
from zennit.attribution import Gradient
from zennit.canonizers import SequentialMergeBatchNorm

OUTPUT = Path(__file__).with_name("conventions.npz")
TARGET, CLASSES = 3, 10


class Network(nn.Module):
    """A network with or without a batch normalisation and a sum of two branches."""

    def __init__(self, with_norm: bool, with_sum: bool) -> None:
        super().__init__()
        self.low = nn.Conv2d(3, 8, 3, padding=1)
        if with_norm:
            self.norm = nn.BatchNorm2d(8)
        self.low_relu, self.pool = nn.ReLU(), nn.MaxPool2d(2)
        self.high, self.high_relu = nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
        self.head = nn.Linear(8 * 4 * 4, CLASSES)
        self.with_norm, self.with_sum = with_norm, with_sum

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = self.low(x)
        low = self.pool(self.low_relu(self.norm(low) if self.with_norm else low))
        high = self.high_relu(self.high(low))
        return self.head((high + low if self.with_sum else high).flatten(1))


def network(seed: int, with_norm: bool = False, with_sum: bool = False) -> Network:
    """A network with random parameters and statistics."""
    torch.manual_seed(seed)
    net = Network(with_norm, with_sum).eval()
    if with_norm:
        net.norm.running_mean.normal_()
        net.norm.running_var.uniform_(0.5, 2.0)
        net.norm.weight.data.uniform_(0.5, 1.5)
        net.norm.bias.data.normal_()
    return net


def by_zennit(net: Network, x: torch.Tensor, composite: Any, start: Callable[..., torch.Tensor] | None = None) -> Any:
    """The map of zennit, that starts from the output of the target if nothing else is said."""
    one_hot, net = torch.eye(CLASSES)[[TARGET] * len(x)], copy.deepcopy(net)  # a canonizer changes it for good
    with Gradient(net, composite) as explain:
        return explain(x, start or (lambda y: y * one_hot))[1].detach()


def by_captum(net: Network, x: torch.Tensor, rule: Callable[[], Any] | None = None) -> Any:
    """The map of Captum, by its default or by one rule for all layers with weights."""
    for layer in (net.low, net.high, net.head) if rule else ():
        layer.rule = rule()
    return LRP(net).attribute(x, target=TARGET).detach()


def everywhere(rule: Any) -> Any:
    """A composite of zennit with one rule for all layers with weights."""
    return composites.LayerMapComposite([*composites.layer_map_base(), ((nn.Conv2d, nn.Linear), rule)])


def main() -> None:
    """Writes the file."""
    torch.set_default_dtype(torch.float64)
    plain, normed, summed = network(0), network(1, with_norm=True), network(2, with_sum=True)
    positive, signed = torch.rand(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    merged = {"canonizers": [SequentialMergeBatchNorm()]}
    maps = {
        "zennit epsilon": by_zennit(plain, signed, everywhere(rules.Epsilon())),
        "zennit epsilon from one": by_zennit(
            plain, signed, everywhere(rules.Epsilon()), lambda y: torch.eye(CLASSES)[[TARGET] * len(y)]
        ),
        "zennit epsilon from all": by_zennit(plain, signed, everywhere(rules.Epsilon()), lambda y: y),
        "zennit epsilon zero_params": by_zennit(plain, signed, everywhere(rules.Epsilon(zero_params="bias"))),
        "zennit gamma": by_zennit(plain, signed, everywhere(rules.Gamma())),
        "zennit zplus": by_zennit(plain, signed, everywhere(rules.ZPlus())),
        "zennit alphabeta": by_zennit(plain, signed, everywhere(rules.AlphaBeta())),
        "zennit wsquare": by_zennit(plain, signed, everywhere(rules.WSquare())),
        "zennit flat": by_zennit(plain, signed, everywhere(rules.Flat())),
        "zennit EpsilonPlusFlat": by_zennit(normed, positive, composites.EpsilonPlusFlat(**merged)),
        "zennit EpsilonPlus": by_zennit(normed, positive, composites.EpsilonPlus(**merged)),
        "zennit EpsilonPlus without canonizer": by_zennit(normed, positive, composites.EpsilonPlus()),
        "zennit EpsilonAlpha2Beta1": by_zennit(normed, positive, composites.EpsilonAlpha2Beta1(**merged)),
        "zennit EpsilonGammaBox": by_zennit(normed, positive, composites.EpsilonGammaBox(0.0, 1.0, **merged)),
        "zennit sum": by_zennit(summed, signed, everywhere(rules.Epsilon())),
        "captum": by_captum(plain, signed),
        "captum norm": by_captum(normed, positive),
        "captum sum": by_captum(summed, signed),
        "captum gamma": by_captum(plain, positive, lrp_rules.GammaRule),
        "captum alpha1beta0": by_captum(plain, positive, lambda: lrp_rules.Alpha1_Beta0_Rule(set_bias_to_zero=True)),
        "captum alpha1beta0 signed": by_captum(
            plain, signed, lambda: lrp_rules.Alpha1_Beta0_Rule(set_bias_to_zero=True)
        ),
    }
    arrays = {f"map {name}": tensor for name, tensor in maps.items()} | {"positive": positive, "signed": signed}
    for name, net in {"plain": plain, "normed": normed, "summed": summed}.items():
        arrays |= {f"{name} {key}": value for key, value in net.state_dict().items()}
    np.savez_compressed(OUTPUT, **{name: np.asarray(value) for name, value in arrays.items()})


if __name__ == "__main__":
    main()
