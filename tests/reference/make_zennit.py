"""Writes zennit.npz: the relevance that zennit computes for three small networks, in float64.

The networks, their inputs and parameters are random with fixed seeds. The file holds, for each network, its parameters,
its input, its output, and under each assignment of rules the relevance of the input for two choices of classes.
`tests/core/test_zennit.py` compares with it. To write it again, in an environment of its own:

    python3 -m venv zennit-environment
    zennit-environment/bin/pip install -r tests/reference/requirements.txt
    zennit-environment/bin/python tests/reference/make_zennit.py

Where zennit's conventions differ from a plain reading of the formulas, and what is done about it:

- Sums and average pooling carry a stabilizer of 1e-6. It is set to 1e-12 here, so that they split in proportion.
- A merged batch normalisation divides by sqrt(1 + eps) once more; eps is set to 0 when it is merged.
- Excitation backpropagation has the biases in the denominator unless `zero_params` says otherwise; it does here.
"""

import platform
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from zennit import composites, rules
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.core import Composite
from zennit.layer import Sum
from zennit.types import Activation, AvgPool, BatchNorm, Linear

OUTPUT = Path(__file__).with_name("zennit.npz")
SIZE, CLASSES = 11, 5
CHOSEN = np.array([[0, 3], [4, 1]])  # (choices, samples)
LOW = (-3.0, -2.5, -4.0)
HIGH = (3.0, 3.5, 2.5)


class LeNet(nn.Module):
    """Convolutions and max pooling, then dense layers; the pooling drops the last row and column."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.relu1, self.pool1 = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)
        self.conv2, self.relu2, self.pool2 = nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        self.dense1, self.relu3 = nn.Linear(24, 14), nn.ReLU()
        self.dense2, self.relu4 = nn.Linear(14, 10), nn.ReLU()
        self.dense3 = nn.Linear(10, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool1(self.relu1(self.conv1(x)))
        x = self.pool2(self.relu2(self.conv2(x)))
        x = self.relu3(self.dense1(x.flatten(1)))
        return self.dense3(self.relu4(self.dense2(x)))


class VGG(nn.Module):
    """Pairs of convolutions, overlapping max pooling, overlapping average pooling, dense layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()
        self.pool1 = nn.MaxPool2d(3, stride=2)
        self.conv3, self.relu3 = nn.Conv2d(4, 6, 3, padding=1), nn.ReLU()
        self.conv4, self.relu4 = nn.Conv2d(6, 6, 3, padding=1), nn.ReLU()
        self.pool2 = nn.AvgPool2d(3, stride=2)
        self.dense1, self.relu5 = nn.Linear(24, 12), nn.ReLU()
        self.dense2 = nn.Linear(12, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool1(self.relu2(self.conv2(self.relu1(self.conv1(x)))))
        x = self.pool2(self.relu4(self.conv4(self.relu3(self.conv3(x)))))
        return self.dense2(self.relu5(self.dense1(x.flatten(1))))


class Block(nn.Module):
    """A residual block; the shortcut is a strided 1x1 convolution where the block is strided."""

    def __init__(self, channels: int, features: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, features, 3, stride=stride, padding=1, bias=False)
        self.norm1, self.relu1 = nn.BatchNorm2d(features), nn.ReLU()
        self.conv2, self.norm2 = nn.Conv2d(features, features, 3, padding=1, bias=False), nn.BatchNorm2d(features)
        self.shortcut = nn.Identity()
        if stride > 1:
            conv = nn.Conv2d(channels, features, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(features))
        self.sum, self.relu2 = Sum(), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x)))))
        return self.relu2(self.sum(torch.stack([y, self.shortcut(x)], -1)))


class ResNet(nn.Module):
    """Two residual blocks with batch normalisation, global average pooling, a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()
        self.block1, self.block2 = Block(4, 4, 1), Block(4, 6, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dense = nn.Linear(6, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block2(self.block1(self.relu(self.norm(self.conv(x)))))
        return self.dense(self.pool(x).flatten(1))


class MergeBatchNorm(SequentialMergeBatchNorm):
    """Merges batch normalisations exactly: what is left of them is the identity."""

    def register(self, linears: tuple[nn.Module, ...], batch_norm: nn.Module) -> None:
        super().register(linears, batch_norm)
        self.epsilon, batch_norm.eps = batch_norm.eps, 0.0

    def remove(self) -> None:
        super().remove()
        self.batch_norm.eps = self.epsilon


EXACT_SUMS = [(Sum, rules.Norm(1e-12)), (AvgPool, rules.Norm(1e-12))]


def everywhere(rule: rules.BasicHook, first: rules.BasicHook | None = None) -> Composite:
    """One rule for all layers, but perhaps the first."""
    layer_map = [(Activation, rules.Pass()), (BatchNorm, rules.Pass()), *EXACT_SUMS, (Linear, rule)]
    first_map = [] if first is None else [(Linear, first)]
    return composites.SpecialFirstLayerMapComposite(layer_map, first_map, canonizers=[MergeBatchNorm()])


def preset(name: str, *arguments: object, **options: object) -> Composite:
    """One of zennit's own composites, with sums and average pooling that split in proportion."""
    return getattr(composites, name)(*arguments, layer_map=EXACT_SUMS, canonizers=[MergeBatchNorm()], **options)


def assignments() -> dict[str, Composite]:
    """All assignments of rules, by name."""
    low, high = (torch.tensor(bound, dtype=torch.float64).reshape(1, 3, 1, 1) for bound in (LOW, HIGH))
    no_bias = {"zero_params": "bias"}
    return {
        "epsilon": everywhere(rules.Epsilon(1e-6)),
        "large_epsilon": everywhere(rules.Epsilon(0.25)),
        "epsilon_without_bias": everywhere(rules.Epsilon(0.1, **no_bias)),
        "zplus": everywhere(rules.ZPlus()),
        "alpha2_beta1": everywhere(rules.AlphaBeta(2.0, 1.0)),
        "alpha2_beta1_without_bias": everywhere(rules.AlphaBeta(2.0, 1.0, **no_bias)),
        "gamma": everywhere(rules.Gamma(0.25)),
        "large_gamma": everywhere(rules.Gamma(3.0)),
        "wsquare": everywhere(rules.WSquare()),
        "flat": everywhere(rules.Flat()),
        "zbox_first": everywhere(rules.Epsilon(1e-6), first=rules.ZBox(low, high)),
        "norm": everywhere(rules.Norm()),
        "wsquare_first": everywhere(rules.ZPlus(**no_bias), first=rules.WSquare(**no_bias)),
        "zbox_first_zplus": everywhere(rules.ZPlus(**no_bias), first=rules.ZBox(low, high)),
        "epsilon_plus": preset("EpsilonPlus"),
        "epsilon_plus_flat": preset("EpsilonPlusFlat"),
        "epsilon_gamma_box": preset("EpsilonGammaBox", low, high),
        "epsilon_alpha2_beta1": preset("EpsilonAlpha2Beta1"),
        "epsilon_alpha2_beta1_flat": preset("EpsilonAlpha2Beta1Flat"),
        "excitation_backprop": preset("ExcitationBackprop", **no_bias),
        "guided_backprop": composites.GuidedBackprop(canonizers=[MergeBatchNorm()]),
        "deconvnet": composites.DeconvNet(canonizers=[MergeBatchNorm()]),
    }


GRADIENTS = {"guided_backprop", "deconvnet"}  # these start with 1, not with the output


def randomize(network: nn.Module, seed: int) -> None:
    """Draws all parameters and running statistics."""
    generator = torch.Generator().manual_seed(seed)

    def normal(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64)

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data = normal(module.weight) * (2 / module.weight[0].numel()) ** 0.5
            if module.bias is not None:
                module.bias.data = 0.3 * normal(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            # Some scales are negative, as after training they may be.
            module.weight.data = 1 + 0.7 * normal(module.weight)
            module.bias.data = 0.3 * normal(module.bias)
            module.running_mean.data = 0.4 * normal(module.running_mean)
            module.running_var.data = 0.3 + normal(module.running_var) ** 2


def relevance(network: nn.Module, x: torch.Tensor, composite: Composite, starts_with_output: bool) -> np.ndarray:
    """The relevance of the input for all chosen classes, of shape (choices, *x.shape)."""
    maps = []
    with composite.context(network) as modified:
        for classes in CHOSEN:
            x = x.clone().requires_grad_()
            output = modified(x)
            seed = nn.functional.one_hot(torch.as_tensor(classes), CLASSES).to(output)
            seed = seed * output.detach() if starts_with_output else seed
            (found,) = torch.autograd.grad(output, x, seed)
            maps.append(found.numpy())
    return np.stack(maps)


def main() -> None:
    """Writes the file, and prints what it holds."""
    networks: dict[str, Callable[[], nn.Module]] = {"lenet": LeNet, "vgg": VGG, "resnet": ResNet}
    versions = {"python": platform.python_version()}
    versions |= {package: metadata.version(package) for package in ("numpy", "torch", "torchvision", "zennit")}
    arrays: dict[str, Any] = {
        "versions": np.array([f"{name} {version}" for name, version in versions.items()]),
        "chosen": CHOSEN,
        "low": np.array(LOW),
        "high": np.array(HIGH),
    }
    for seed, (name, make) in enumerate(networks.items()):
        network = make().double().eval()
        randomize(network, seed)
        x = torch.randn((2, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(100 + seed), dtype=torch.float64)
        x = x.clamp(-2.4, 2.4)
        arrays[f"{name}/input"] = x.numpy()
        arrays[f"{name}/output"] = network(x).detach().numpy()
        for key, value in network.state_dict().items():
            if not key.endswith("num_batches_tracked"):
                arrays[f"{name}/parameters/{key}"] = value.numpy().copy()
        for rule, composite in assignments().items():
            found = relevance(network, x, composite, rule not in GRADIENTS)
            arrays[f"{name}/relevance/{rule}"] = found
            print(f"{name:7} {rule:26} sums to {found.sum():10.4f}, largest {np.abs(found).max():.4f}")
    np.savez_compressed(OUTPUT, **arrays)
    print(f"{OUTPUT.name}: {OUTPUT.stat().st_size / 1e6:.2f} MB; {', '.join(arrays['versions'])}")


if __name__ == "__main__":
    main()
