"""The peers' side of `peers.py`, which starts it in their environment: it times what it is told to on standard input.

    python peers_torch.py NETWORK ARRAYS

ARRAYS is an npz file with the parameters of the network in the order of the NNX module, and the images. Every line of
input is a command and an answer is a line of JSON: "time METHOD", "memory METHOD", "map METHOD FILE".
"""

import json
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import autolrp
import numpy as np
import torch
import zennit.rules
import zennit.types
from captum.attr import LRP
from captum.attr._utils.custom_modules import Addition_Module
from captum.attr._utils.lrp_rules import GammaRule
from results import peak_memory, seconds
from torch import nn
from zennit import composites
from zennit.attribution import Gradient
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.layer import Sum

Arrays = Iterator[np.ndarray]


class Add(nn.Module):
    """A sum of two branches, by the module that a library has a rule for."""

    def __init__(self) -> None:
        super().__init__()
        self.by: nn.Module | None = None

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if isinstance(self.by, Sum):
            return self.by(torch.stack([x, y], dim=-1))
        return self.by(x, y) if self.by else x + y


class Network(nn.Module):
    """Features of an image, and what reads them in a row."""

    def __init__(self, features: list[nn.Module], head: list[nn.Module]) -> None:
        super().__init__()
        self.features, self.head = nn.Sequential(*features), nn.Sequential(*head)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).flatten(1))


def convolution(arrays: Arrays, stride: int = 1, padding: int | None = None, bias: bool = True) -> nn.Conv2d:
    """A convolution whose parameters come next; NNX sorts them by name."""
    shift = next(arrays) if bias else None
    kernel = torch.tensor(next(arrays).transpose(3, 2, 0, 1))
    size = kernel.shape[-1]
    layer = nn.Conv2d(
        kernel.shape[1], kernel.shape[0], size, stride, size // 2 if padding is None else padding, bias=bias
    )
    layer.weight.data = kernel.contiguous()
    if bias:
        layer.bias.data = torch.tensor(shift)
    return layer


def dense(arrays: Arrays, image: tuple[int, int, int] | None = None) -> nn.Linear:
    """A dense layer; behind an image of (height, width, channels) its rows are put in the order of torch."""
    shift, weight = next(arrays), next(arrays)
    if image:
        weight = weight.reshape(*image, -1).transpose(2, 0, 1, 3).reshape(weight.shape)
    layer = nn.Linear(*weight.shape)
    layer.weight.data, layer.bias.data = torch.tensor(weight.T.copy()), torch.tensor(shift)
    return layer


def normalization(arrays: Arrays) -> nn.BatchNorm2d:
    """A batch normalisation at inference."""
    shift, mean, scale, variance = (torch.tensor(next(arrays)) for _ in range(4))
    layer = nn.BatchNorm2d(len(mean))
    layer.weight.data, layer.bias.data = scale, shift
    layer.running_mean, layer.running_var = mean, variance
    return layer


class Bottleneck(nn.Module):
    """A residual block."""

    def __init__(self, arrays: Arrays, stride: int, shortcut: bool) -> None:
        super().__init__()
        convolutions = [convolution(arrays, stride if i == 1 else 1, bias=False) for i in range(3)]
        normalizations = [normalization(arrays) for _ in range(3)]
        (a, b, c), (n, o, p) = convolutions, normalizations
        self.branch = nn.Sequential(a, n, nn.ReLU(), b, o, nn.ReLU(), c, p)
        if shortcut:
            self.shortcut = nn.Sequential(convolution(arrays, stride, bias=False), normalization(arrays))
        self.add, self.relu = Add(), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = self.shortcut(x) if hasattr(self, "shortcut") else x
        return self.relu(self.add(shortcut, self.branch(x)))


def lenet(arrays: Arrays) -> nn.Module:
    """The LeNet of networks.py; NNX sorts its parts by name: dense, first, second."""
    fully = [dense(arrays, (5, 5, 16)), dense(arrays), dense(arrays)]
    first, second = convolution(arrays), convolution(arrays, padding=0)
    features = [first, nn.ReLU(), nn.AvgPool2d(2), second, nn.ReLU(), nn.AvgPool2d(2)]
    return Network(features, [fully[0], nn.ReLU(), fully[1], nn.ReLU(), fully[2]])


def vgg16(arrays: Arrays) -> nn.Module:
    """The VGG16 of networks.py."""
    features: list[nn.Module] = []
    for number in (2, 2, 3, 3, 3):
        for _ in range(number):
            features += [convolution(arrays), nn.ReLU()]
        features.append(nn.MaxPool2d(2))
    fully = [dense(arrays, (7, 7, 512)), nn.ReLU(), dense(arrays), nn.ReLU(), dense(arrays)]
    return Network(features, fully)


def resnet50(arrays: Arrays) -> nn.Module:
    """The ResNet50 of networks.py; NNX sorts its parts by name: blocks, dense, normalization, stem."""
    blocks = [
        Bottleneck(arrays, stride if i == 0 else 1, i == 0)
        for number, stride in ((3, 1), (4, 2), (6, 2), (3, 2))
        for i in range(number)
    ]
    last, norm, stem = dense(arrays), normalization(arrays), convolution(arrays, 2, bias=False)
    before = [stem, norm, nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return Network([*before, *blocks, nn.AdaptiveAvgPool2d(1)], [last])


NETWORKS = {"LeNet": lenet, "VGG16": vgg16, "ResNet50": resnet50}


def methods(model: nn.Module, x: torch.Tensor) -> dict[str, Callable[[], tuple[float, torch.Tensor]]]:
    """For each method, a function that returns the seconds it took to explain output 1, and the relevance."""
    with torch.no_grad():
        output = model(x)
    seed = torch.zeros_like(output)
    seed[:, 1] = output[:, 1]
    low, high = torch.full_like(x, -3.0), torch.full_like(x, 3.0)
    linear = (zennit.types.Convolution, torch.nn.Linear)
    zennit_composites: dict[str, Any] = {
        "epsilon": composites.LayerMapComposite([*composites.layer_map_base(), (linear, zennit.rules.Epsilon())]),
        "epsilon-plus": composites.EpsilonPlus(),
        "epsilon-plus-flat": composites.EpsilonPlusFlat(),
        "epsilon-gamma-box": composites.EpsilonGammaBox(low, high),
        "epsilon-alpha2-beta1": composites.EpsilonAlpha2Beta1(),
    }
    rule = "ConvolutionBackward"
    autolrp_rules = {
        "epsilon": autolrp.BASE,
        "epsilon-plus": {**autolrp.BASE, rule: "zplus"},
        "epsilon-gamma": {**autolrp.BASE, rule: ("gamma", {"gamma": 0.25})},
        "epsilon-alpha2-beta1": {**autolrp.BASE, rule: ("alpha_beta", {"alpha": 2.0, "beta": 1.0})},
    }

    def add_by(make: Callable[[], nn.Module] | None) -> None:
        for module in list(model.modules()):
            if isinstance(module, Add):
                module.by = make() if make else None

    def timed(explain: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
        results: list[torch.Tensor] = []
        return seconds(lambda: results.append(explain())), results[0]

    def gradient() -> tuple[float, torch.Tensor]:
        add_by(None)
        image = x.clone().requires_grad_()
        return timed(lambda: torch.autograd.grad(model(image)[:, 1].sum(), image)[0])

    def by_zennit(name: str) -> tuple[float, torch.Tensor]:
        add_by(Sum)
        composite = zennit_composites[name]
        composite.canonizers = [SequentialMergeBatchNorm()]
        with Gradient(model, composite) as attributor:
            return timed(lambda: attributor(x, seed)[1])

    def by_captum(name: str) -> tuple[float, torch.Tensor]:
        add_by(Addition_Module)
        for module in model.modules():
            if isinstance(module, nn.Conv2d) and name == "epsilon-gamma":
                module.rule = GammaRule()  # type: ignore[assignment]  # is no module
        explainer = LRP(model)
        try:
            return timed(lambda: explainer.attribute(x, target=1).detach())
        finally:
            for module in model.modules():
                if hasattr(module, "rule"):
                    del module.rule

    def by_autolrp(name: str) -> tuple[float, torch.Tensor]:
        add_by(None)
        config = autolrp.LRPConfig(rule=autolrp_rules[name])

        def explain() -> torch.Tensor:
            image = autolrp.tensor(x)
            model(image)[:, 1].sum().lrp(config=config)
            return image.relevance

        return timed(explain)

    named: dict[str, Callable[[], tuple[float, torch.Tensor]]] = {"gradient": gradient}
    named |= {f"zennit {name}": lambda name=name: by_zennit(name) for name in zennit_composites}
    named |= {f"captum {name}": lambda name=name: by_captum(name) for name in ("epsilon", "epsilon-gamma")}
    return named | {f"autolrp {name}": lambda name=name: by_autolrp(name) for name in autolrp_rules}


def main() -> None:
    """Answers commands until the input ends."""
    network, path = sys.argv[1:]
    with np.load(path) as file:
        arrays = [file[key] for key in file.files]
    x = torch.tensor(arrays.pop().transpose(0, 3, 1, 2).copy())
    model = NETWORKS[network](iter(arrays)).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    named = methods(model, x)
    about = {package: version(package) for package in ("torch", "zennit", "captum", "autolrp", "quantus")}
    print(json.dumps({"methods": list(named), "versions": about, "threads": torch.get_num_threads()}), flush=True)
    for line in sys.stdin:
        command, _, method = line.strip().partition(" ")
        answer: dict[str, Any] = {}
        try:
            if command == "time":
                answer["seconds"] = named[method]()[0]
            elif command == "memory":
                answer["bytes"] = peak_memory(named[method])
            else:
                method, _, target = method.rpartition(" ")
                np.save(target, named[method]()[1].detach().numpy().transpose(0, 2, 3, 1))
        except Exception as error:  # a peer that cannot do a network is a result
            answer["error"] = f"{type(error).__name__}: {error}"
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
