"""Random networks of one number, against a plain loop, and what the page on photographs says of many of them."""

import importlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrp_book import DATA, measured_shattering, shattered_rules, shattering
from lrp_book.shattering import SETTINGS, Setting
from lrp_jax import rules


def derivative(weights, setting):
    """The derivative at each point, carried forwards by hand in doubles, and the share of neurons that switch."""
    first, *hidden, last = (np.asarray(w, np.float64) for w in weights)
    z = np.stack([np.linspace(-2, 2, 256), np.ones(256)], axis=1) @ first
    x, slope = np.maximum(z, 0), np.where(z > 0, first[0], 0)
    z_slope = None
    for number, w in enumerate(hidden):
        if setting.residual is None:
            z, z_slope = x @ w, slope @ w
        else:
            before = first[0] if number == 0 else z_slope
            z, z_slope = z + setting.residual * x @ w, before + setting.residual * slope @ w
        y, y_slope = z, z_slope
        if setting.centred == "sums":
            spread = 1 if setting.residual is None else z.std(0)
            y, y_slope = (z - z.mean(0)) / spread, z_slope / spread
        x, slope = np.maximum(y, 0), np.where(y > 0, y_slope, 0)
    return (slope @ last)[:, 0], np.mean((x > 0).any(0) & ~(x > 0).all(0))


@pytest.mark.parametrize("name", SETTINGS)
def test_derivative_is_that_of_a_plain_loop(name):
    setting, key = SETTINGS[name], jax.random.key(2)
    found = shattering.on_the_line(key, 5, setting)
    weights = shattering.random_weights(key, [2, *[200] * 5, 1], centred=setting.centred == "weights")
    expected, switching = derivative(weights, setting)
    wrong = ~np.isclose(found.gradient, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
    assert wrong.mean() < 0.02  # but for points where a sum is within rounding of zero
    assert found.switching == pytest.approx(switching, abs=0.011)


def test_weights_have_their_variance_and_sum_to_zero_if_centred():
    first, second = shattering.random_weights(jax.random.key(0), [2, 4000, 50], centred=True)
    np.testing.assert_allclose(second.sum(0), 0, atol=1e-4)
    assert second.var() == pytest.approx(2 / 4000, rel=0.02)
    assert first.var() == pytest.approx(1, rel=0.05)
    assert jnp.abs(first.sum(0)).mean() > 0.5


def test_autocorrelation_of_noise_and_of_a_wave():
    noise = np.random.default_rng(0).normal(size=(200, 256))
    assert abs(shattering.autocorrelation(noise)[:, 1:].mean()) < 0.01
    wave = np.cos(2 * np.pi * np.arange(256) / 32)
    assert shattering.autocorrelation([wave])[0, 16] == pytest.approx(-(256 - 16) / 256, abs=0.01)


@pytest.mark.parametrize("centred", ["", "weights"])
def test_cosine_under_lrp_0_is_that_of_gradient_times_input(centred):
    key, x = jax.random.key(3), jnp.linspace(-1, 1, 12)
    weights = shattering.random_weights(key, [12, 200, 200, 2], centred=centred == "weights")

    def network(x):
        return jax.nn.relu(jax.nn.relu(x @ weights[0]) @ weights[1]) @ weights[2]

    a, b = np.asarray(jax.jacobian(network)(x) * x)
    found = shattering.cosine_of_two_outputs(key, 2, Setting(centred), rules.Zero(), x)
    assert found == pytest.approx(a @ b / np.sqrt((a @ a) * (b @ b)), abs=1e-4)


def test_band_holds_the_mean_of_most_samples():
    random = np.random.default_rng(1)
    bands = [shattering.band(random.normal(size=40), resamples=300) for _ in range(60)]
    assert sum(one["low"] < 0 < one["high"] for one in bands) > 50
    assert np.mean([one["most"] - one["least"] for one in bands]) == pytest.approx(2 * 1.64, rel=0.1)


@pytest.fixture(scope="module")
def rows():
    """What was measured, by part, setting, depth and method."""
    measured = json.loads((DATA.parent / "measured" / "shattering.json").read_text())
    assert measured["networks"] >= 20
    names = ("part", "setting", "depth", "method")
    return {tuple(row[name] for name in names if name in row): row for row in measured["rows"]}


def test_every_setting_was_measured(rows):
    folder = Path(__file__).parents[1] / "benchmarks"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        program = importlib.import_module("shattering")
    expected = {
        tuple(map(str, program.identity({"part": part} | about)))
        for part, tasks in program.PARTS.items()
        if part != "outputs"  # which reads the digits
        for about, _ in tasks()
    }
    assert expected <= {tuple(map(str, row)) for row in rows}


def test_what_was_measured_is_what_a_few_networks_give(rows):
    for name in ("feedforward", "feedforward, weights centred"):
        gradients = jax.lax.map(
            lambda key, name=name: shattering.on_the_line(key, 8, SETTINGS[name]).gradient,
            jax.random.split(jax.random.key(7), 4),
        )
        few = shattering.autocorrelation(gradients)[:, 10].mean()
        row = rows["lags", name, 8]
        assert row["least"][10] < few < row["most"][10]


def test_what_the_page_says_is_what_was_measured(rows):
    def at_ten(setting, *depth):
        return [rows["lags", setting, *depth][end][10] for end in ("mean", "low", "high")]

    assert abs(at_ten("white noise")[0]) < 0.02
    assert at_ten("brown noise")[0] > 0.7
    for centred in ("weights", "sums"):
        mean, low, high = at_ten(f"feedforward, {centred} centred", 24)
        assert low < 0.03
        assert high > -0.03
        assert abs(mean) < 0.03
    assert at_ten("feedforward", 24)[1] > 0.15
    assert at_ten("feedforward", 50)[1] > 0.1
    assert at_ten("residual × 0.1, sums normalised", 24)[1] > at_ten("residual, sums normalised", 24)[2]


def test_texts_and_table_are_of_what_was_measured(rows):
    measured = measured_shattering.read()
    row = rows["lags", "feedforward", 24]
    assert measured.lag("feedforward", 24).mean == row["mean"][10]
    texts = measured_shattering.texts_of_lags(measured) | measured_shattering.texts_of_cosines(measured)
    assert texts["lag-plain-24"] == f"{row['mean'][10]:.2f} ({row['low'][10]:.2f} to {row['high'][10]:.2f})"
    assert float(texts["lag-brown"]) == pytest.approx(rows["lags", "brown noise"]["mean"][10], abs=0.006)
    absolute = rows["outputs", "feedforward", 24, "z⁺"]["absolute"]["mean"]
    assert float(texts["random-plus-24-absolute"]) == pytest.approx(absolute, abs=0.006)
    table = {(network, method): row for network, method, *row in measured_shattering.rows_of_cosines(measured)}
    assert len(table) == 10
    signed = rows["photographs", "EfficientNet-Lite0", "gradient"]["signed"]
    expected = f"{signed['mean']:.2f} ({signed['least']:.2f} to {signed['most']:.2f})".replace("-", "−")
    assert table["EfficientNet-Lite0", "gradient"][0] == expected


def test_relevance_along_the_line_is_that_of_the_rules():
    curves = shattered_rules.along_the_line(jax.random.key(4), 3)
    product = shattering.LINE * curves["gradient"]
    np.testing.assert_allclose(curves["LRP-0"], product, atol=1e-3 * float(jnp.abs(product).max()))
    output = curves["output"]
    assert (curves["z⁺"] * output >= -1e-6).all()  # z+ has the sign of the output
    assert (jnp.abs(curves["z⁺"]) <= 1.001 * jnp.abs(output)).all()  # and t gets at most all of it


def test_numbers_of_the_curves():
    keys = jax.random.split(jax.random.key(5), 3)
    curves = {
        depth: jax.lax.map(lambda key, depth=depth: shattered_rules.along_the_line(key, depth), keys)
        for depth in (1, 2)
    }
    found = shattered_rules.numbers(curves)
    assert found["lag-gradient-2"] == pytest.approx(shattering.autocorrelation(curves[2]["gradient"])[:, 10].mean())
    follows = np.corrcoef(curves[2]["z⁺"][1], curves[2]["output"][1])[0, 1]
    assert min(follows, 0) <= found["follows"] <= 1
    noise = {"noise": np.linspace(1, 0, 61)}
    assert len(shattered_rules.draw(curves, noise).axes) == 8
