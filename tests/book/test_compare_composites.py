"""What composites are compared by, against values derived by hand and a plain loop."""

import importlib
import json
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrp_book import compare_composites
from lrp_book.compare_composites import Band, Measured, Subject
from lrp_jax import composites, rules
from lrp_jax.errors import InputError

# Two images of two pixels, two classes. Contributions to the first class: (2, -3) and (4, -3), of a bias of 6.
WEIGHT = jnp.array([[1.0, 0.0], [-3.0, 0.0]])
BIAS = jnp.array([6.0, 1.0])
IMAGES = jnp.array([[2.0, 1.0], [4.0, 1.0]]).reshape(2, 1, 2, 1)


def linear(x):
    return x.reshape(len(x), 2) @ WEIGHT + BIAS


def make_subject(**options):
    options = {"unordered": IMAGES[..., 0], "steps": 2, "fraction": 1.0} | options
    return Subject(linear, IMAGES, jnp.array([0, 0]), 1.5 * IMAGES, {"black": 0.0}, **options)


def test_measures_by_hand():
    # The logits are 5 and 7. Of 12, 2 - 3 + 4 - 3 = 0 arrives, and 12 without signs; of each logit alone, all of it.
    # Half as much again at the input is half as much again in the map. With the left pixel flipped first, the logits
    # become 3 and 6, and 3 and 6: they fall by (2 - 1 + 4 + 1) / 6 on average, 1 of 6. With the right one first they
    # become 8 and 6, and 10 and 6: (-3 - 1 - 3 + 1) / 6, -1 of 6. The margins, less by one, fall as far.
    subject = make_subject(unordered=-IMAGES[..., 0])
    measured = compare_composites.measure(
        subject, rules.Zero(), compare_composites.flipping(subject, subject.unordered)
    )
    np.testing.assert_allclose([measured.arrived, measured.absolute, measured.growth], [0, 1, 1], atol=1e-6)
    assert measured.change == pytest.approx(0.5)
    assert measured.flipping == pytest.approx({"logit, black": 2 / 6, "margin, black": 2 / 6}, abs=1e-6)


def test_a_modified_gradient_has_a_map_but_no_sum():
    measured = compare_composites.measure(
        make_subject(), composites.GuidedBackprop(), {"logit, black": 0.0, "margin, black": 0.0}
    )
    assert measured.arrived is measured.absolute is measured.growth is None
    assert measured.change == 0  # a gradient of a linear function
    assert set(compare_composites.over_trainings([measured])) == {"change", "logit, black", "margin, black"}


@pytest.mark.parametrize("tile", [1, 2])
def test_flipping_is_that_of_a_plain_loop(tile):
    keys = jax.random.split(jax.random.key(0), 4)
    images, maps = jax.random.uniform(keys[0], (3, 4, 4, 2)), jax.random.normal(keys[1], (3, 4, 4))
    weight = np.asarray(jax.random.normal(keys[2], (32, 5)))
    noise = jax.random.uniform(keys[3], images.shape)

    def model(x):
        return jnp.square(x.reshape(len(x), -1) @ weight)

    classes = model(images).argmax(-1)
    subject = Subject(model, images, classes, images, {"noise": noise}, maps, tile=tile, steps=2, fraction=0.5)
    falls = {"logit": 0.0, "margin": 0.0}
    starts = 0.0
    for image, values, shown, chosen in zip(*map(np.asarray, (images, maps, noise, classes)), strict=True):
        whole: dict[str, float] = {}
        means = {
            (i, j): values[i : i + tile, j : j + tile].mean() for i in range(0, 4, tile) for j in range(0, 4, tile)
        }
        order = sorted(means, key=lambda place: -means[place])
        for step in range(3):  # 0, 4 and 8 of 16 pixels
            flipped = image.copy()
            for i, j in order[: 4 * step // tile**2]:
                flipped[i : i + tile, j : j + tile] = shown[i : i + tile, j : j + tile]
            logits = np.square(flipped.reshape(-1) @ weight)
            outputs = {"logit": logits[chosen], "margin": logits[chosen] - np.delete(logits, chosen).max()}
            whole = whole or outputs
            for name, output in outputs.items():
                starts += whole["logit"] / 6
                falls[name] += (whole[name] - output) / 3
    found = compare_composites.flipping(subject, maps)
    for name in falls:
        assert found[f"{name}, noise"] == pytest.approx(falls[name] / starts, rel=1e-4)


def test_both_outputs_are_followed_in_one_forward_pass():
    subject = make_subject()
    program = jax.make_jaxpr(lambda maps: compare_composites.curves_of(subject, maps, 0.0))(subject.unordered)
    (shape,) = re.findall(r"f32\[([\d,]+)\] = dot_general", str(program))
    assert math.prod(map(int, shape.split(","))) == 3 * 2 * 2  # steps and the start, samples, classes; not twice


@pytest.mark.parametrize(
    ("logits", "expected"),
    [([5.0, 2.0, 4.0], [1.0, -3.0, -1.0]), ([2.0, 2.0, 0.0], [0.0, 0.0, -2.0]), ([-1.0, 3.0], [-4.0, 4.0])],
)
def test_margins_by_hand(logits, expected):
    np.testing.assert_array_equal(compare_composites.margins(jnp.array([logits]))[0], expected)


def test_tiles_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="Tiles of 2 x 2 pixels do not fit images of 1 x 2"):
        compare_composites.flipping(make_subject(tile=2), IMAGES[..., 0])


def test_change_is_the_median_over_samples():
    # 1 of 5, 0 of 1, and 3 of 1.
    before = jnp.array([[3.0, 4.0], [1.0, 0.0], [0.0, 1.0]])
    after = jnp.array([[3.0, 3.0], [1.0, 0.0], [0.0, 4.0]])
    assert compare_composites.change_of(before, after) == pytest.approx(0.2)


def test_every_preset_is_a_candidate():
    presets = {
        name
        for name in composites.__all__
        if name[0].isupper() and callable(getattr(composites, name)) and not isinstance(getattr(composites, name), type)
    }
    assert "EpsilonPlus" in presets
    assert presets - set(compare_composites.candidates(0.0, 1.0)) == {"CPLRP"}


def test_bands_by_hand():
    ones = [Measured(arrived, 1.0, 2.0, 0.5, {"logit, black": arrived / 2}) for arrived in (0.25, 0.5, 1.5)]
    bands = compare_composites.over_trainings(ones)
    assert bands["arrived"] == Band(mean=0.75, low=0.25, high=1.5)
    assert bands["logit, black"] == Band(mean=0.375, low=0.125, high=0.75)


@pytest.fixture(scope="module")
def program():
    """The program that measures, which is no module of a package."""
    folder = Path(__file__).parents[1] / "benchmarks"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield importlib.import_module("composites")


@pytest.fixture(scope="module")
def rows(program):
    return json.loads((program.FOLDER / "composites.json").read_text())["rows"]


def test_tables_of_the_guide_are_made_from_what_was_measured(program, rows):
    for name, table in program.tables(rows).items():
        assert (program.FOLDER / f"{name}.md").read_text() == table, name


def test_cells_by_hand(program):
    assert program.percent({"mean": 0.5, "low": 0.4, "high": 0.62}) == "50 (40 to 62)"
    assert program.percent({"mean": 0.00012, "low": 0.000081, "high": 0.000184}) == "0.012 (0.0081 to 0.018)"
    assert program.percent({"mean": 0.998, "low": 0.997, "high": 1.001}) == "100"
    assert program.as_code("EpsilonGammaBox, gamma 1") == "`EpsilonGammaBox`, gamma 1"


def test_what_the_guide_says_is_what_was_measured(rows):
    found = {(row["network"], row["composite"]): row for row in rows}

    def mean(network, composite, name):
        return found[network, composite][name]["mean"]

    assert all(row["change"]["low"] < row["change"]["high"] for row in rows if row["composite"] != "Deconvnet")
    digits = ("dense", "LeNet")
    few = [row["arrived"]["mean"] for row in rows if row["network"] in digits and "arrived" in row]
    assert sum(arrived < 0.95 for arrived in few) == 2  # of the large epsilon
    deep = [row for row in rows if row["network"] == "EfficientNet" and "arrived" in row]
    treated = ("bias", "DeepTaylor", "ExcitationBackprop", "Gamma")  # which do not let biases absorb everywhere
    plain = [row["arrived"] for row in deep if not any(word in row["composite"] for word in treated)]
    assert len(plain) > 4
    assert max(arrived["mean"] for arrived in plain) < 0.1
    assert max(row["arrived"]["mean"] for row in deep) < 0.5
    assert sum(arrived["low"] < -0.1 for arrived in plain) == 1  # AttnLRP
    for name in ("EpsilonPlus", "EpsilonPlusFlat"):
        assert (
            mean("EfficientNet", name, "arrived") < mean("EfficientNet", "EpsilonPlus, bias ignored", "arrived") / 100
        )
    assert mean("dense", "Deconvnet", "change") == 0
    for network in (*digits, "ResNet"):
        box, plus = "EpsilonGammaBox", "EpsilonPlus"
        assert mean(network, box, "logit, plain") < mean(network, plus, "logit, plain")
        assert mean(network, box, "logit, noise") > mean(network, plus, "logit, noise")
    assert mean("LeNet", "EpsilonPlus", "logit, plain") > mean("LeNet", "EpsilonPlusFlat", "logit, plain")
    assert mean("LeNet", "EpsilonPlus", "margin, plain") < mean("LeNet", "EpsilonPlusFlat", "margin, plain")
    for network in ("LeNet", "ResNet", "EfficientNet"):
        assert mean(network, "EpsilonPlusFlat", "change") < mean(network, "EpsilonPlus", "change")
        assert mean(network, "EpsilonPlusFlat", "arrived") > mean(network, "EpsilonPlus", "arrived")
    ignored, distributed = "EpsilonPlus, bias ignored", "EpsilonPlus, bias distributed"
    assert mean("ResNet", "EpsilonPlus", "arrived") < mean("ResNet", ignored, "arrived") < 0.7
    assert 5 * mean("ResNet", "EpsilonPlus", "change") < mean("ResNet", ignored, "change")
    assert mean("ResNet", ignored, "change") < mean("ResNet", distributed, "change")
    for network in ("LeNet", "ResNet"):
        restless = [mean(network, name, "change") for name in ("AttnLRP", "EpsilonAlpha2Beta1")]
        steady = [mean(network, name, "change") for name in ("EpsilonPlus", "EpsilonPlusFlat", "EpsilonGammaBox")]
        assert min(restless) > max(steady)
    assert mean("dense", "EpsilonPlusFlat", "logit, plain") < 0
    assert mean("dense", "Gamma 0.25", "change") < mean("dense", "EpsilonPlus", "change")
    assert mean("EfficientNet", "EpsilonPlus", "logit, noise") < 0
