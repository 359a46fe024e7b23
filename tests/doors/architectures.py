"""Architectures of other libraries: what is asked of their explanations is in `examine.py`.

The weights are random, the scales and shifts of normalisations and their running statistics too. Inputs and, of
transformers, configurations are small: what is asked does not depend on size.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SIZE, TOKENS, CLASSES = 64, 12, 10


@dataclasses.dataclass(frozen=True)
class Model:
    """A model of another library.

    Attributes:
        function: As it is passed to `relevance`.
        x: Its input.
        value: What its own library computes for that.
        layers: What its own library calls its layers.
    """

    function: Callable[[Any], Any]
    x: Any
    value: Any
    layers: frozenset[str]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """An entry of the list.

    Attributes:
        name: As its library calls it.
        library: The package that it comes from.
        make: Makes the model, with random weights.
    """

    name: str
    library: str
    make: Callable[[], Model]


def of_torch(module: Any, x: Any, read: Callable[[Any], Any] = lambda value: value, **others: Any) -> Model:
    """A module of PyTorch; what is read from the value that it returns, and what else it is called with."""
    import networks
    import torch
    import torchax

    others = {name: jnp.asarray(other) for name, other in others.items()}
    with torch.no_grad():
        networks.randomize(module, torch.tensor(x))
        value = read(
            module(torch.tensor(x), **{name: torch.tensor(np.asarray(other)) for name, other in others.items()})
        )
    weights, apply = torchax.extract_jax(module)
    layers = {name.rpartition(".")[0] for name, array in module.named_parameters() if array.ndim > 1}
    return Model(lambda x: read(apply(weights, (x,), others)), x, value.numpy(), frozenset(layers))


def pictures(size: int = SIZE) -> np.ndarray:
    """Two pictures with the channels first."""
    return np.random.default_rng(0).normal(size=(2, 3, size, size)).astype("float32")


def tokens(vocabulary: int = 100) -> np.ndarray:
    """Two rows of tokens."""
    return np.random.default_rng(0).integers(3, vocabulary, (2, TOKENS), "int32")


def torchvision(
    name: str, build: Callable[[Any], Any], size: int = SIZE, read: Callable[[Any], Any] = lambda value: value
) -> Architecture:
    """A network of torchvision, built from its module `models`."""

    def make() -> Model:
        import torch
        import torchvision

        torch.manual_seed(0)
        return of_torch(build(torchvision.models), pictures(size), read)

    return Architecture(name, "torchvision", make)


def small_convnext(models: Any) -> Any:
    """ConvNeXt with a block in each of three stages."""
    stage = models.convnext.CNBlockConfig
    return models.ConvNeXt([stage(24, 48, 1), stage(48, 96, 1), stage(96, None, 1)], num_classes=CLASSES)


def small_swin(models: Any) -> Any:
    """A Swin transformer with two stages, the second block with shifted windows."""
    options = {"embed_dim": 32, "depths": [2, 1], "num_heads": [2, 4], "window_size": [4, 4]}
    return models.SwinTransformer(patch_size=[4, 4], num_classes=CLASSES, **options)


def small_vit(models: Any) -> Any:
    """A vision transformer with two blocks."""
    options = {"num_layers": 2, "num_heads": 4, "hidden_dim": 64, "mlp_dim": 128}
    return models.VisionTransformer(image_size=SIZE, patch_size=16, num_classes=CLASSES, **options)


def timm(name: str, size: int = SIZE, **options: Any) -> Architecture:
    """A classifier of timm."""

    def make() -> Model:
        import timm
        import torch

        torch.manual_seed(0)
        return of_torch(timm.create_model(name, num_classes=CLASSES, **options), pictures(size))

    return Architecture(name, "timm", make)


def logits_of(output: Any) -> Any:
    """The logits of a classifier; of a language model for the next token, of a segmentation for the middle pixel."""
    logits = output["logits" if "logits" in output else "out"]
    if logits.ndim == 4:
        return logits[:, :, logits.shape[2] // 2, logits.shape[3] // 2]
    return logits[:, -1] if logits.ndim == 3 else logits


SMALL = {
    "attn_implementation": "eager",  # the others look at the mask in Python
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
}
DECODER = SMALL | {"num_key_value_heads": 2, "head_dim": 8}


def transformers(
    name: str, configuration: str, model: str, make_x: Callable[[], Any] = tokens, **options: Any
) -> Architecture:
    """A model of Hugging Face transformers."""

    def make() -> Model:
        import torch
        import transformers

        torch.manual_seed(0)
        chosen = getattr(transformers, configuration)(**options)
        mask = {"attention_mask": jnp.ones((2, TOKENS), "int32")} if make_x is tokens else {}
        return of_torch(getattr(transformers, model)(chosen), make_x(), logits_of, **mask)

    return Architecture(name, "transformers", make)


def keras(name: str, size: int = SIZE) -> Architecture:
    """A network of `keras.applications`."""

    def make() -> Model:
        import keras

        keras.utils.set_random_seed(0)
        model = getattr(keras.applications, name)(
            weights=None, input_shape=(size, size, 3), classes=CLASSES, classifier_activation=None
        )
        x = np.moveaxis(pictures(size), 1, -1)
        for weight in model.trainable_weights:
            if len(weight.shape) == 1:
                weight.assign(weight + np.random.default_rng(0).uniform(-0.1, 0.1, weight.shape))
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = 0.0
        model(x, training=True)  # statistics of these pictures
        layers = frozenset(layer.name for layer in model._flatten_layers(include_self=False))
        return Model(model, x, np.asarray(model.predict(x, verbose=0)), layers)

    return Architecture(f"{name} (Keras)", "keras", make)


def flax_convolutions() -> Model:
    """Convolutions with batch normalisation and max pooling."""
    from flax import nnx

    class Network(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.lower = nnx.Conv(3, 8, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(8, rngs=rngs)
            self.upper = nnx.Conv(8, 16, (3, 3), strides=2, rngs=rngs)
            self.head = nnx.Linear(16, CLASSES, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            x = nnx.max_pool(nnx.relu(self.norm(self.lower(x))), (2, 2), strides=(2, 2))
            return self.head(nnx.relu(self.upper(x)).mean((1, 2)))

    model = Network(nnx.Rngs(0))
    model.eval()
    x = np.moveaxis(pictures(), 1, -1)
    return Model(model, x, np.asarray(model(x)), frozenset({"lower", "upper", "head"}))


def flax_transformer() -> Model:
    """An encoder block on embedded tokens."""
    from flax import nnx

    class Transformer(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.embed = nnx.Embed(100, 32, rngs=rngs)
            self.norm = nnx.LayerNorm(32, rngs=rngs)
            self.attention = nnx.MultiHeadAttention(4, 32, decode=False, rngs=rngs)
            self.up, self.down = nnx.Linear(32, 64, rngs=rngs), nnx.Linear(64, 32, rngs=rngs)
            self.head = nnx.Linear(32, CLASSES, rngs=rngs)

        def __call__(self, ids: jax.Array) -> jax.Array:
            x = self.embed(ids)
            x = x + self.attention(self.norm(x))
            return self.head((x + self.down(nnx.gelu(self.up(x)))).mean(1))

    model = Transformer(nnx.Rngs(0))
    layers = {"attention.query", "attention.key", "attention.value", "attention.out", "up", "down", "head"}
    return Model(model, tokens(), np.asarray(model(tokens())), frozenset(layers))


def linen_recurrent() -> Model:
    """A recurrent network of Linen, over 12 steps."""
    from flax import linen

    class Recurrent(linen.Module):
        @linen.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return linen.Dense(CLASSES)(linen.RNN(linen.LSTMCell(16))(x)[:, -1])

    x = np.random.default_rng(0).normal(size=(2, TOKENS, 5)).astype("float32")
    variables = Recurrent().init(jax.random.key(0), x)
    layers = {"/".join(key.key for key in path[1:-1]) for path, _ in jax.tree_util.tree_leaves_with_path(variables)}
    function = Recurrent().bind(variables)
    return Model(function, x, np.asarray(function(x)), frozenset(name.replace("/", ".") for name in layers))


def equinox_perceptron() -> Model:
    """A multilayer perceptron of Equinox, as it is written for one sample."""
    import equinox

    model = equinox.nn.MLP(6, CLASSES, 16, 3, key=jax.random.key(0))
    x = np.random.default_rng(0).normal(size=(2, 6)).astype("float32")
    return Model(jax.vmap(model), x, np.stack([model(row) for row in x]), frozenset(f"layers.{i}" for i in range(4)))


def equinox_convolutions() -> Model:
    """Convolutions of Equinox in a Sequential, with the channels first."""
    import equinox
    from equinox import nn

    lower, upper, head = jax.random.split(jax.random.key(0), 3)
    parts = [nn.Conv2d(3, 8, 3, key=lower), nn.Lambda(jax.nn.relu), nn.MaxPool2d(2, 2), nn.Conv2d(8, 16, 3, key=upper)]
    ends = [nn.Lambda(jax.nn.relu), nn.Lambda(lambda x: x.mean((1, 2))), nn.Linear(16, CLASSES, key=head)]
    model = equinox.nn.inference_mode(nn.Sequential([*parts, *ends]))
    value = np.stack([model(row) for row in pictures()])
    return Model(jax.vmap(model), pictures(), value, frozenset({"layers.0", "layers.3", "layers.6"}))


def haiku(name: str) -> Architecture:
    """A network of `haiku.nets`."""

    def make() -> Model:
        import haiku

        network = haiku.transform_with_state(
            lambda x, training: getattr(haiku.nets, name)(num_classes=CLASSES)(x, training)
        )
        x = np.moveaxis(pictures(), 1, -1)
        params, state = network.init(jax.random.key(0), x, True)
        generator = np.random.default_rng(0)
        params = jax.tree.map(lambda array: array + generator.uniform(-0.05, 0.05, array.shape), params)
        _, state = network.apply(params, state, None, x, True)  # statistics of these pictures
        value, _ = network.apply(params, state, None, x, False)
        function = lambda x: network.apply(params, state, None, x, False)[0]
        return Model(function, x, np.asarray(value), frozenset(params))

    return Architecture(f"{name} (Haiku)", "dm-haiku", make)


GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 100, "attn_implementation": "eager"}
ARCHITECTURES = [
    torchvision("AlexNet", lambda models: models.alexnet(num_classes=CLASSES)),
    torchvision("VGG11-bn", lambda models: models.vgg11_bn(num_classes=CLASSES)),
    torchvision("GoogLeNet", lambda models: models.googlenet(None, num_classes=CLASSES, aux_logits=False), 96),
    torchvision("Inception v3", lambda models: models.inception_v3(num_classes=CLASSES, aux_logits=False), 96),
    torchvision("ResNet18", lambda models: models.resnet18(num_classes=CLASSES)),
    torchvision(
        "ResNeXt",
        lambda models: models.ResNet(models.resnet.Bottleneck, [1, 1, 1, 1], CLASSES, groups=32, width_per_group=4),
    ),
    torchvision("DenseNet", lambda models: models.DenseNet(8, (2, 2), 16, num_classes=CLASSES)),
    torchvision("SqueezeNet 1.1", lambda models: models.squeezenet1_1(num_classes=CLASSES)),
    torchvision("MobileNetV2", lambda models: models.mobilenet_v2(num_classes=CLASSES)),
    torchvision("MobileNetV3 small", lambda models: models.mobilenet_v3_small(num_classes=CLASSES)),
    torchvision("ShuffleNetV2", lambda models: models.ShuffleNetV2([1, 2, 1], [24, 48, 96, 192, 256], CLASSES)),
    torchvision("EfficientNet-B0", lambda models: models.efficientnet_b0(num_classes=CLASSES)),
    torchvision("RegNetY-400MF", lambda models: models.regnet_y_400mf(num_classes=CLASSES)),
    torchvision("ConvNeXt", small_convnext),
    torchvision("ViT", small_vit),
    torchvision("Swin", small_swin),
    torchvision(
        "FCN-ResNet50",
        lambda models: models.segmentation.fcn_resnet50(num_classes=CLASSES, weights_backbone=None),
        read=logits_of,
    ),
    torchvision(
        "Faster R-CNN",
        lambda models: models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights_backbone=None),
        read=lambda found: found[0]["scores"],
    ),
    timm("vit_tiny_patch16_224", img_size=SIZE, depth=2),
    timm("mixer_s32_224", img_size=SIZE),
    timm("resmlp_12_224", img_size=SIZE),
    timm("test_byobnet"),
    timm("test_efficientnet"),
    timm("test_nfnet"),
    timm("test_resnet"),
    timm("test_convnext"),
    timm("test_mambaout"),
    transformers("BERT", "BertConfig", "BertForSequenceClassification", **SMALL),
    transformers(
        "DistilBERT",
        "DistilBertConfig",
        "DistilBertForSequenceClassification",
        **{"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 100, "attn_implementation": "eager"},
    ),
    transformers("GPT-2", "GPT2Config", "GPT2LMHeadModel", **GPT2),
    transformers("Llama", "LlamaConfig", "LlamaForCausalLM", **DECODER),
    transformers("Mistral", "MistralConfig", "MistralForCausalLM", **DECODER),
    transformers("Mixtral", "MixtralConfig", "MixtralForCausalLM", **DECODER),
    transformers("Qwen3", "Qwen3Config", "Qwen3ForCausalLM", **DECODER),
    transformers("Gemma3", "Gemma3TextConfig", "Gemma3ForCausalLM", **DECODER),
    transformers("ViT (transformers)", "ViTConfig", "ViTForImageClassification", pictures, image_size=SIZE, **SMALL),
    transformers("SegFormer", "SegformerConfig", "SegformerForSemanticSegmentation", pictures),
    keras("VGG16"),
    keras("ResNet50V2"),
    keras("MobileNet"),
    keras("EfficientNetB0"),
    keras("Xception", 80),
    Architecture("convolutions (NNX)", "flax", flax_convolutions),
    Architecture("transformer (NNX)", "flax", flax_transformer),
    Architecture("LSTM (Linen)", "flax", linen_recurrent),
    Architecture("perceptron", "equinox", equinox_perceptron),
    Architecture("convolutions", "equinox", equinox_convolutions),
    haiku("ResNet18"),
    haiku("MobileNetV1"),
]
