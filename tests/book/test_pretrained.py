"""EfficientNet-Lite0: its weights, its predictions, and relevance through it."""

import hashlib
import re
import struct
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from safetensors.numpy import load_file, save_file

from lrp_book import pretrained
from lrp_book.errors import CheckpointError
from lrp_book.pretrained import efficientnet_lite0, imagenet_classes, preprocess, read_safetensors
from lrp_jax import composites, ledger, plan, relevance, rules
from lrp_jax.errors import ArrayError, LRPWarning

DATA = Path(__file__).parents[2] / "book" / "data"
WEIGHTS = DATA / "efficientnet_lite0" / "efficientnet_lite0.safetensors"


@pytest.fixture(scope="module")
def model():
    return efficientnet_lite0()


@pytest.fixture(scope="module")
def probabilities(model):
    return jax.jit(lambda images: jax.nn.softmax(model(images)))


@pytest.fixture(scope="module")
def weights():
    return load_file(WEIGHTS)


def photograph(name):
    return np.asarray(Image.open(DATA / "photographs" / name))


@pytest.fixture(scope="module")
def coffee():
    return jnp.asarray(preprocess(photograph("coffee.jpg")))[None]


# What it predicts.


@pytest.mark.parametrize(
    ("name", "classes", "probability"),
    [
        ("coffee.jpg", {"espresso"}, 0.95),
        ("chelsea.jpg", {"tabby", "tiger cat", "Egyptian cat"}, 0.92),
        ("rocket.jpg", {"missile", "projectile"}, None),  # a shift of the crop by one pixel changes it by 0.1
    ],
)
def test_photographs_are_recognised(probabilities, name, classes, probability):
    (found,) = np.asarray(probabilities(jnp.asarray(preprocess(photograph(name)))[None]))
    names = imagenet_classes()
    best = np.argsort(found)[::-1][: len(classes)]
    assert {names[i] for i in best} == classes
    assert probability is None or found[best].sum() == pytest.approx(probability, abs=0.01)


def test_one_logit_per_class_at_any_size(model):
    logits = jax.eval_shape(model, jax.ShapeDtypeStruct((2, 96, 160, 3), jnp.float32))
    assert (logits.shape, logits.dtype) == ((2, 1000), jnp.float32)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((224, 224, 3), jnp.float32), ((1, 3, 224, 224), jnp.float32), ((1, 224, 224, 3), jnp.uint8)],
    ids=["no batch axis", "channels first", "not preprocessed"],
)
def test_other_input_is_refused(model, shape, dtype):
    found = re.escape(f"got {np.dtype(dtype)} of shape {shape}.")
    with pytest.raises(ArrayError, match=rf"Expected floats .*{found} For one photograph: preprocess\(image\)\[None\]"):
        model(jnp.zeros(shape, dtype))


# Relevance through it.


def test_names_of_its_layers(model, coffee):
    table = plan(model, coffee, composites.EpsilonGammaBox(*pretrained.PIXEL_RANGE))
    layers = [(path, rule.partition("(")[0]) for path, kind, _, rule, *_ in table.rows if kind in ("conv", "dense")]
    expected = [("stem.convolution", "ZBox")]
    for block in range(16):
        parts = ["expand", "depthwise", "project"] if block > 0 else ["depthwise", "project"]
        expected += [(f"blocks.{block}.{part}.convolution", "Gamma") for part in parts]
    expected += [("head.convolution", "Gamma"), ("classifier", "Epsilon")]
    assert layers == expected
    others = [kind for _, kind, *_ in table.rows if kind not in ("conv", "dense")]
    assert {kind: others.count(kind) for kind in others} == {"relu6": 33, "add": 9, "reduce_sum": 1, "div": 1}


def test_relevance_of_the_pixels(model, coffee):
    espresso = imagenet_classes().index("espresso")
    rule = composites.EpsilonGammaBox(*pretrained.PIXEL_RANGE)
    explanation = relevance(model, coffee, espresso, rule)
    (map_of_pixels,) = np.asarray(explanation.relevance).sum(-1)
    assert explanation.output.argmax() == espresso
    assert np.isfinite(map_of_pixels).all()
    height, width = np.mgrid[:224, :224] - 111.5
    cup = np.hypot(height, width) < 90
    assert map_of_pixels[cup].clip(0).sum() > 2 * map_of_pixels[~cup].clip(0).sum()


def test_relevance_that_vanishes_on_its_way_is_reported(model, coffee):
    """The biases, into which batch normalisations are folded, keep more in each block than z+ passes on."""
    with pytest.warns(LRPWarning, match="Relevance vanishes: .* stays with biases, or other constants") as found:
        explanation = relevance(model, coffee)
    assert len(found) == 1
    np.testing.assert_allclose(explanation.explained, explanation.output.max(-1), rtol=1e-5)
    assert np.abs(explanation.relevance).sum() < 1e-3 * explanation.explained[0]


def test_zero_rule_agrees_with_the_ledger(model):
    """In the last blocks, which have every kind of layer and a residual sum."""

    def last_blocks(hidden):
        for block in [*model.blocks][14:]:
            hidden = block(hidden)
        return model.classifier(jax.nn.relu6(model.head(hidden)).mean((1, 2)))

    hidden = jax.random.normal(jax.random.key(0), (1, 3, 3, 192))
    explained = relevance(last_blocks, hidden, 5, rules.Zero())
    accounts = ledger(last_blocks, hidden, 5, rules.Zero())
    assert [row.kind for row in accounts.rows].count("conv") == 7
    assert accounts.explained == pytest.approx(float(explained.output[0, 5]), rel=1e-5)
    assert accounts.inputs == pytest.approx(float(explained.relevance.sum()), rel=1e-4)
    assert abs(accounts.bias) > 0.01 * abs(accounts.explained)
    assert accounts.unaccounted == pytest.approx(0, abs=1e-4 * abs(accounts.explained))


def test_zero_rule_is_gradient_times_input_where_no_relu6_saturates(model):
    """The batch normalisations are folded, the residual sums split: together nothing but the gradient."""

    def without_upper_bound(hidden):
        for block in [*model.blocks][12:14]:
            expanded = jax.nn.relu(block.expand(hidden))
            hidden = hidden + block.project(jax.nn.relu(block.depthwise(expanded)))
        return hidden.mean((1, 2))

    hidden = jax.random.normal(jax.random.key(1), (1, 3, 3, 192))
    explained = relevance(without_upper_bound, hidden, 5, rules.Zero()).relevance
    expected = hidden * jax.grad(lambda hidden: without_upper_bound(hidden)[0, 5])(hidden)
    np.testing.assert_allclose(explained, expected, rtol=1e-4, atol=1e-5 * float(abs(expected).max()))


# Its weights.


def test_every_weight_has_its_place(model, weights):
    arrays = jax.tree.leaves(nnx.state(model))
    assert sum(array.size for array in arrays) == sum(tensor.size for tensor in weights.values())
    block = model.blocks[3]
    np.testing.assert_array_equal(
        block.depthwise.convolution.kernel[3, 1, 0, 7], weights["_blocks.3._depthwise_conv.weight"][7, 0, 3, 1]
    )
    np.testing.assert_array_equal(
        block.expand.convolution.kernel[0, 0, 5, 9], weights["_blocks.3._expand_conv.weight"][9, 5, 0, 0]
    )
    np.testing.assert_array_equal(model.stem.normalization.var[...], weights["_bn0.running_var"])
    np.testing.assert_array_equal(model.head.normalization.scale[...], weights["_bn1.weight"])
    np.testing.assert_array_equal(model.classifier.kernel[2, 3], weights["_fc.weight"][3, 2])


def test_weights_at_a_path(model, tmp_path):
    path = tmp_path / "copy.safetensors"
    path.write_bytes(WEIGHTS.read_bytes())
    np.testing.assert_array_equal(efficientnet_lite0(path).classifier.bias[...], model.classifier.bias[...])


def transposed_stem(weights):
    return weights | {"_conv_stem.weight": np.ascontiguousarray(weights["_conv_stem.weight"].transpose(2, 3, 1, 0))}


def swapped_statistics(weights):
    mean, variance = weights["_bn1.running_mean"], weights["_bn1.running_var"]
    return weights | {"_bn1.running_mean": variance, "_bn1.running_var": mean}


def without_classifier_bias(weights):
    return {name: tensor for name, tensor in weights.items() if name != "_fc.bias"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (transposed_stem, r"'_conv_stem.weight' has the shape \(3, 3, 3, 32\), expected \(32, 3, 3, 3\)"),
        (swapped_statistics, r"expected names and shapes, but other values: its SHA-256 is \w{64}, expected 0c677c31"),
        (without_classifier_bias, r"another network: it has no tensor '_fc.bias', expected with shape \(1000,\)"),
        (
            lambda weights: weights | {"_se.weight": np.zeros((4, 2), np.float32)},
            r"another network: its tensor '_se.weight' has no place in this one \(1 such tensors\)",
        ),
        (
            lambda weights: {"features.0.weight": weights["_conv_stem.weight"]},
            r"another network: it has no tensor '_conv_stem.weight', expected with shape \(32, 3, 3, 3\)\. "
            r"Its first of 1 is 'features.0.weight'",
        ),
        (
            lambda weights: weights | {"_fc.bias": weights["_fc.bias"].astype(np.float16)},
            r"'_fc.bias' has the dtype F16, expected F32",
        ),
    ],
    ids=["other axes", "swapped tensors", "tensor absent", "tensor too many", "other network", "other dtype"],
)
def test_other_weights_are_refused(weights, tmp_path, change, message):
    path = tmp_path / "other.safetensors"
    save_file(change(weights), path)
    with pytest.raises(CheckpointError, match=f"{path}.*{message}"):
        efficientnet_lite0(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], r"\(9,399,364 bytes\) is truncated or no safetensors file"),
        (lambda data: b"", r"\(0 bytes\) is truncated or no safetensors file"),
        (lambda data: b"PK\x03\x04" + data, "is truncated or no safetensors file"),
        (lambda data: data[:-3] + bytes([data[-3] ^ 1]) + data[-2:], "its SHA-256 is"),
    ],
    ids=["truncated", "empty", "other format", "one bit flipped"],
)
def test_damaged_weights_are_refused(tmp_path, damage, message):
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(damage(WEIGHTS.read_bytes()))
    with pytest.raises(CheckpointError, match=f"{path}.*{message}.*Restore it"):
        efficientnet_lite0(path)


def test_pickle_is_not_read(tmp_path):
    import pickle

    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "touched",)

    path = tmp_path / "weights.safetensors"
    path.write_bytes(pickle.dumps({"_fc.bias": Trap()}))
    with pytest.raises(CheckpointError, match="no safetensors file"):
        efficientnet_lite0(path)
    assert not (tmp_path / "touched").exists()


def test_dtype_that_numpy_lacks_is_refused(tmp_path):
    path = tmp_path / "bfloat16.safetensors"
    header = b'{"bias":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(CheckpointError, match=rf"{path}.*'bias' has the dtype BF16, expected F32"):
        read_safetensors(path, {"bias": (2,)})


def test_absent_files_are_named(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match=rf"{tmp_path}/none cannot be read: No such file or directory"):
        efficientnet_lite0(tmp_path / "none")
    with pytest.raises(CheckpointError, match=rf"{tmp_path}/none cannot be read: No such file or directory"):
        imagenet_classes(tmp_path / "none")
    monkeypatch.setattr(pretrained, "_CARRIED_FILES", tmp_path)
    with pytest.raises(CheckpointError, match=r"efficientnet_lite0.safetensors comes with a source checkout.*its path"):
        efficientnet_lite0()
    with pytest.raises(CheckpointError, match=r"classes.txt comes with a source checkout.*pass its path"):
        imagenet_classes()


def test_truncated_names_are_refused(tmp_path):
    (tmp_path / "classes.txt").write_text("tench\ngoldfish, Carassius auratus\n")
    with pytest.raises(CheckpointError, match=rf"{tmp_path}/classes.txt has 2 lines, expected one for each of 1000"):
        imagenet_classes(tmp_path / "classes.txt")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data.replace(b"tench", b"trench", 1), r"holds other names.*SHA-256 is \w{64}, expected 4eb3da43"),
        (lambda data: b"\n".join(reversed(data.splitlines())), "holds other names, or in another order"),
        (lambda data: data.replace(b"tench", b"tanche \xe9", 1), "is no text in UTF-8: .*can't decode byte 0xe9"),
        (lambda data: data.decode().encode("utf-16"), "is no text in UTF-8"),
    ],
    ids=["one letter", "other order", "Latin 1", "UTF-16"],
)
def test_other_names_are_refused(tmp_path, damage, message):
    path = tmp_path / "classes.txt"
    path.write_bytes(damage((WEIGHTS.parent / "classes.txt").read_bytes()))
    with pytest.raises(CheckpointError, match=rf"{path} {message}.*Restore it"):
        imagenet_classes(path)


@pytest.mark.parametrize(
    ("module", "package", "call"),
    [
        ("safetensors", "safetensors", efficientnet_lite0),
        ("PIL.Image", "pillow", lambda: preprocess(np.zeros((9, 9, 3), np.uint8))),
    ],
)
def test_missing_package_is_named(monkeypatch, module, package, call):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ImportError, match=rf"{package} is missing: pip install {package} \(the extra 'book' brings it\)"
    ):
        call()


def test_readme_gives_the_checksums():
    readme = (WEIGHTS.parent / "README.md").read_text()
    checksums = dict(re.findall(r"^\| `([\w.]+)` \| [\d,]+ \| `(\w{64})` \|$", readme, re.MULTILINE))
    assert checksums["efficientnet_lite0.safetensors"] == pretrained.WEIGHTS_SHA256
    assert checksums["classes.txt"] == pretrained.CLASSES_SHA256
    for name, checksum in checksums.items():
        assert hashlib.sha256((WEIGHTS.parent / name).read_bytes()).hexdigest() == checksum


# Its input and its classes.


@pytest.mark.parametrize(("height", "width"), [(256, 256), (256, 400), (300, 256)])
def test_the_middle_is_cut_out(height, width):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    x = preprocess(image)
    top, left = (height - 224) // 2, (width - 224) // 2
    assert (x.shape, x.dtype) == ((224, 224, 3), np.float32)
    np.testing.assert_array_equal(x * 128 + 127, image[top : top + 224, left : left + 224])
    low, high = pretrained.PIXEL_RANGE
    assert (x.min(), x.max()) == (low, high)


@pytest.mark.parametrize(("height", "width"), [(2, 2), (30, 50), (1500, 900)])
def test_any_size_is_resized(height, width):
    gradient = np.linspace(0, 255, width).astype(np.uint8)
    x = preprocess(np.broadcast_to(gradient[None, :, None], (height, width, 3)))
    assert x.shape == (224, 224, 3)
    assert (np.diff(x[100, :, 0]) >= 0).all()


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((9, 9), np.uint8),
        np.zeros((9, 9, 4), np.uint8),
        np.zeros((9, 9, 3), np.float32),
        np.zeros((1, 9, 3), np.uint8),
    ],
    ids=["gray", "with alpha", "floats", "too small"],
)
def test_other_images_are_refused(image):
    found = re.escape(f"got {image.dtype} of shape {image.shape}")
    with pytest.raises(ArrayError, match=rf"Expected uint8 RGB values.*{found}.*convert\('RGB'\)"):
        preprocess(image)


def test_pillow_images_are_taken():
    image = Image.open(DATA / "photographs" / "chelsea.jpg")
    np.testing.assert_array_equal(preprocess(image), preprocess(np.asarray(image)))


def test_names_of_the_classes():
    names = imagenet_classes()
    assert len(names) == 1000
    assert [names[i] for i in (0, 281, 698, 967, 999)] == ["tench", "tabby", "palace", "espresso", "toilet tissue"]
    assert sorted({name for name in names if names.count(name) > 1}) == ["crane", "maillot"]
    assert all(name == name.strip() != "" for name in names)
