"""Networks of PyTorch with random weights that another library explains, too; the same wherever torch is the same."""

import numpy as np
import torch

SIZE, CLASSES, TOKENS, VOCABULARY = 64, 10, 12, 100
CONVOLUTIONAL = ["resnet18", "vgg16_bn", "resnext50_32x4d", "mobilenet_v2", "efficientnet_b0"]
LANGUAGE = ["Llama", "Qwen3", "Gemma3"]


def randomize(module: torch.nn.Module, x: torch.Tensor) -> None:
    """Draws what begins as one or zero: biases, heads, and scales, shifts and running statistics of normalisations.

    The running statistics are those of an input, times or plus something random, so that no activations vanish.
    """
    module.eval()
    norms = [part for part in module.modules() if isinstance(part, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    if norms:
        module(x)
    module.eval()
    generator = torch.Generator().manual_seed(0)
    for name, array in module.state_dict().items():
        noise = torch.rand(array.shape, generator=generator, dtype=torch.float64) - 0.5
        if name.endswith("running_var"):
            array.mul_(1 + noise)
        elif array.ndim == 1 and array.is_floating_point():
            array.add_(0.2 * noise)
        elif (
            array.is_floating_point() and not array.any()
        ):  # a weight that begins as zero, so that nothing is to explain
            array.add_(noise)


def convolutional(name: str) -> tuple[torch.nn.Module, np.ndarray]:
    """A network of torchvision in double precision, and an image for it with the channels first."""
    import torchvision

    torch.manual_seed(0)
    module = torchvision.models.get_model(name, num_classes=CLASSES).double()
    with torch.no_grad():
        randomize(module, torch.randn((4, 3, SIZE, SIZE), dtype=torch.float64))
    for part in module.modules():
        if hasattr(part, "inplace"):
            part.inplace = False  # zennit's hooks need what a relu has read
    return module, np.random.default_rng(0).normal(size=(1, 3, SIZE, SIZE))


def language(name: str) -> tuple[torch.nn.Module, np.ndarray]:
    """A language model of transformers, and tokens for it."""
    import transformers

    torch.manual_seed(0)
    configuration = getattr(transformers, {"Gemma3": "Gemma3TextConfig"}.get(name, f"{name}Config"))(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        initializer_range=0.2,
        attn_implementation="eager",
    )
    module = getattr(transformers, f"{name}ForCausalLM")(configuration)
    tokens = np.random.default_rng(0).integers(3, VOCABULARY, (2, TOKENS), "int32")
    with torch.no_grad():
        randomize(module, torch.tensor(tokens))
    return module, tokens
