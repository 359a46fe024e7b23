"""Writes `references.npz`: maps by zennit and by LXT of the networks in `networks.py`, for `test_references.py`.

    python3.11 -m venv env && env/bin/pip install --ignore-requires-python -r requirements-references.txt
    env/bin/python make_references.py

zennit needs a newer Python by its word, not in fact. The weights are not kept: they follow from the seed.

zennit splits relevance where a module is called. In mobilenet_v2 and efficientnet_b0 additions, the gates of
squeeze-and-excitation, and the last pooling of mobilenet_v2 are no modules. Here they are replaced by such.
"""

import importlib
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import lxt.efficient
import networks
import numpy as np
import torch
from torch import nn
from torchvision.models.efficientnet import MBConv
from torchvision.models.mobilenetv2 import InvertedResidual, MobileNetV2
from torchvision.ops.misc import SqueezeExcitation
from zennit import composites, rules
from zennit.canonizers import AttributeCanonizer, CompositeCanonizer, SequentialMergeBatchNorm
from zennit.layer import Sum
from zennit.torchvision import ResNetBasicBlockCanonizer, ResNetBottleneckCanonizer
from zennit.types import AvgPool, Linear

OUTPUT = Path(__file__).with_name("references.npz")


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


def _pooled(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return self.classifier(self.canonizer_pool(self.features(x)).flatten(1))


def _modules_for_operations(name: str, module: nn.Module) -> dict[str, Any] | None:
    if isinstance(module, InvertedResidual | MBConv):
        return {"forward": _residual.__get__(module), "canonizer_sum": Sum()}
    if isinstance(module, MobileNetV2):
        return {"forward": _pooled.__get__(module), "canonizer_pool": nn.AdaptiveAvgPool2d(1)}
    return {"forward": _gated.__get__(module)} if isinstance(module, SqueezeExcitation) else None


class Canonizer(CompositeCanonizer):
    """For all of the networks."""

    def __init__(self) -> None:
        own = AttributeCanonizer(_modules_for_operations)
        super().__init__((SequentialMergeBatchNorm(), ResNetBottleneckCanonizer(), ResNetBasicBlockCanonizer(), own))


EXACT_SUMS = [(Sum, rules.Norm(1e-12)), (AvgPool, rules.Norm(1e-12))]
EPSILON = [*EXACT_SUMS, *composites.layer_map_base(), (Linear, rules.Epsilon(1e-6))]
SAME = {"layer_map": EXACT_SUMS, "canonizers": [Canonizer()]}
COMPOSITES = {
    "epsilon": composites.LayerMapComposite(EPSILON, canonizers=[Canonizer()]),
    "epsilon_plus": composites.EpsilonPlus(**SAME),
}


def by_zennit(name: str) -> dict[str, np.ndarray]:
    """The output of a network, and every fourth row and column of its maps for the largest logit."""
    module, image = networks.convolutional(name)
    x = torch.tensor(image, requires_grad=True)
    found = {f"{name}/output": module(x).detach().numpy()}
    for rule, composite in COMPOSITES.items():
        with composite.context(module) as modified:
            output = modified(x)
            seed = torch.zeros_like(output).scatter(1, output.argmax(1, keepdim=True), 1) * output.detach()
            (relevance,) = torch.autograd.grad(output, x, seed)
        found[f"{name}/{rule}"] = relevance.numpy()[..., ::4, ::4].astype("float32")
        print(f"{name:16} {rule:22} sums to {relevance.sum():9.4f} of {output.max():.4f}", flush=True)
    return found


def by_lxt(name: str) -> dict[str, np.ndarray]:
    """The logits of the next token, and the relevance of every token for the largest of them."""
    module, tokens = networks.language(name)
    lxt.efficient.monkey_patch(importlib.import_module(type(module).__module__))
    embedded = module.get_input_embeddings()(torch.tensor(tokens)).detach().requires_grad_()
    logits = module(inputs_embeds=embedded, use_cache=False).logits[:, -1]
    (gradient,) = torch.autograd.grad(logits.max(-1).values.sum(), embedded)
    relevance = (gradient * embedded).sum(-1)
    print(f"{name:16} sums to {relevance.sum():9.4f} of {logits.max(-1).values.sum():.4f}")
    return {f"{name}/output": logits.detach().numpy(), f"{name}/attnlrp": relevance.detach().numpy()}


def main() -> None:
    """Writes the file, and prints what it holds."""
    packages = ("numpy", "torch", "torchvision", "transformers", "zennit", "lxt")
    versions = [f"python {platform.python_version()}", *(f"{name} {metadata.version(name)}" for name in packages)]
    arrays: dict[str, np.ndarray] = {"versions": np.array(versions)}
    for name in networks.CONVOLUTIONAL:
        arrays |= by_zennit(name)
    for name in networks.LANGUAGE:
        arrays |= by_lxt(name)
    np.savez_compressed(OUTPUT, **arrays)
    print(f"{OUTPUT.name}: {OUTPUT.stat().st_size / 1e6:.2f} MB; {', '.join(versions)}")


if __name__ == "__main__":
    main()
