"""Writes `references.npz`: maps by zennit and by LXT of the networks in `networks.py`, for `test_references.py`.

    python3.11 -m venv env && env/bin/pip install --ignore-requires-python -r requirements-references.txt
    env/bin/python make_references.py

zennit needs a newer Python by its word, not in fact. The weights are not kept: they follow from the seed.

zennit splits relevance where a module is called. Additions, and the gates of squeeze-and-excitation, are no modules in
mobilenet_v2 and efficientnet_b0; here they are replaced by such.
"""

import importlib
import platform
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import lxt.efficient
import networks
import numpy as np
import torch
from torch import nn
from torchvision.models.efficientnet import MBConv
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.ops.misc import SqueezeExcitation
from zennit import composites, rules
from zennit.canonizers import AttributeCanonizer, CompositeCanonizer, SequentialMergeBatchNorm
from zennit.layer import Sum
from zennit.torchvision import ResNetBasicBlockCanonizer, ResNetBottleneckCanonizer
from zennit.types import AvgPool, Linear

OUTPUT = Path(__file__).with_name("references.npz")


class MergeBatchNorm(SequentialMergeBatchNorm):
    """Merges batch normalisations exactly: what is left of them is the identity."""

    def register(self, linears: tuple[nn.Module, ...], batch_norm: nn.Module) -> None:
        super().register(linears, batch_norm)
        self.epsilon, batch_norm.eps = batch_norm.eps, 0.0

    def remove(self) -> None:
        super().remove()
        self.batch_norm.eps = self.epsilon


class Gate(torch.autograd.Function):
    """A product whose first factor takes all of the relevance."""

    @staticmethod
    def forward(context: Any, signal: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return signal * gate

    @staticmethod
    def backward(context: Any, relevance: torch.Tensor) -> tuple[torch.Tensor, None]:
        return relevance, None


def _residual(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    branch = self.conv(x) if isinstance(self, InvertedResidual) else self.block(x)
    return self.canonizer_sum(torch.stack([x, branch], -1)) if self.use_res_connect else branch


def _gated(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return Gate.apply(x, self._scale(x).detach())


def _modules_for_operations(name: str, module: nn.Module) -> dict[str, Any] | None:
    if isinstance(module, InvertedResidual | MBConv):
        return {"forward": _residual.__get__(module), "canonizer_sum": Sum()}
    return {"forward": _gated.__get__(module)} if isinstance(module, SqueezeExcitation) else None


class Canonizer(CompositeCanonizer):
    """For all of the networks."""

    def __init__(self) -> None:
        own = AttributeCanonizer(_modules_for_operations)
        super().__init__((MergeBatchNorm(), ResNetBottleneckCanonizer(), ResNetBasicBlockCanonizer(), own))


EXACT_SUMS = [(Sum, rules.Norm(1e-12)), (AvgPool, rules.Norm(1e-12))]
SAME = {"layer_map": EXACT_SUMS, "canonizers": [Canonizer()]}
COMPOSITES = {
    "epsilon": lambda: composites.LayerMapComposite(
        [(nn.Module, rules.Pass()) for _ in ()] or composites.layer_map_base() + [(Linear, rules.Epsilon(1e-6))],
        canonizers=[Canonizer()],
    ),
    "epsilon_plus": lambda: composites.EpsilonPlus(**SAME),
    "epsilon_plus_flat": lambda: composites.EpsilonPlusFlat(**SAME),
    "epsilon_alpha2_beta1": lambda: composites.EpsilonAlpha2Beta1(**SAME),
}
