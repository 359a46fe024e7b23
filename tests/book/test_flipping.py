"""Pixel flipping of all methods, against a plain loop, and what the program has measured; other tests of maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrp_book import flipping, map_measures, randomisation, two_classes

KEYS = jax.random.split(jax.random.key(0), 4)
IMAGES = jnp.clip(jax.random.normal(KEYS[0], (3, 8, 8, 1)), 0, 1)
LABELS = jnp.array([0, 1, 2])
WEIGHT = jax.random.normal(KEYS[1], (64, 3))


def linear(x):
    return x.reshape(len(x), 64) @ WEIGHT


def margin(logits, label):
    return logits[label] - max(np.delete(logits, label))


def test_curves_are_those_of_a_plain_loop():
    maps = jax.random.normal(KEYS[2], IMAGES.shape)
    subject = flipping.subject(linear, IMAGES, LABELS, KEYS[3])
    curves = flipping.curves(subject, {"some": maps})["some"]
    for name, replacement in subject.replacements.items():
        shown = np.broadcast_to(replacement, IMAGES.shape)
        for i, label in enumerate(LABELS):
            image, order = np.array(IMAGES[i]).ravel(), np.argsort(-np.asarray(maps[i]).ravel())
            replaced = round(flipping.FRACTION * 64)
            image[order[:replaced]] = shown[i].ravel()[order[:replaced]]
            logits = np.asarray(linear(image.reshape(1, 8, 8, 1)))[0]
            np.testing.assert_allclose(curves[name]["logit"][i, -1], logits[label], atol=1e-5)
            np.testing.assert_allclose(curves[name]["margin"][i, -1], margin(logits, int(label)), atol=1e-5)
            flipped = flipping.flip(IMAGES, maps, flipping.FRACTION, replacement)[i]
            np.testing.assert_array_equal(np.asarray(flipped).ravel(), image)


def test_all_methods_have_a_map_and_a_family():
    maps = flipping.maps(linear, IMAGES, LABELS, key=KEYS[2], samples=2, steps=2)
    assert list(maps) == [name for family in flipping.FAMILIES.values() for name in family]
    assert {values.shape for values in maps.values()} == {IMAGES.shape}
    ink = np.asarray(IMAGES > 0)
    for name in ("random strokes", *flipping.FAMILIES["on ink"]):
        assert not np.asarray(maps[name])[~ink].any()
    np.testing.assert_allclose(maps["gradient × input"], maps["LRP-0"], rtol=1e-4)


@pytest.fixture(scope="module")
def flipped():
    return flipping.read(flipping.MEASURED.read_text())


def test_five_networks_were_measured_with_all_methods(flipped):
    assert (flipped.networks, flipped.images) == (5, 200)
    names = {name for family in flipping.FAMILIES.values() for name in family}
    places = {(r, f, name) for r in flipping.REPLACEMENTS for f in flipping.FOLLOWED for name in names}
    assert set(flipped.mean_curves) == places
    assert {curve.shape for curve in flipped.mean_curves.values()} == {(5, flipping.STEPS + 1)}
    for r in flipping.REPLACEMENTS:
        starts = flipped.mean_curves[r, "logit", "LRP-0"][:, 0]
        assert all(np.allclose(flipped.mean_curves[r, "logit", name][:, 0], starts, atol=1e-3) for name in names)


def test_area_by_hand():
    flipped = flipping.Flipped(
        2,
        1,
        "2026-01-31",
        {("black", "logit", "a"): np.array([[4.0, 1.0], [4.0, 3.0]]), ("black", "logit", "b"): np.full((2, 2), 2.0)},
    )
    assert flipped.areas("black", "logit", "a").tolist() == [1.5, 0.5]
    assert flipped.ahead("black", "logit", "a", "b") == 2
    assert flipped.ahead("black", "logit", "b", "a") == 0


def test_agreement_is_one_for_the_same_map_and_depends_on_the_pixels_that_count():
    trained = jnp.arange(1.0, 5.0).reshape(1, 2, 2, 1)
    images = jnp.array([0.0, 0.0, 1.0, 0.5]).reshape(1, 2, 2, 1)
    turned = jnp.array([2.0, 1.0, 3.0, 4.0]).reshape(1, 2, 2, 1)
    maps = {"same": jnp.stack([trained, trained]), "other": jnp.stack([trained, turned, -trained])}
    found = randomisation.Randomised(images, maps, 1)
    assert found.agreement("same").tolist() == [[1.0]]
    np.testing.assert_allclose(found.agreement("other"), [[0.8, -1.0]], atol=1e-6)
    np.testing.assert_allclose(found.agreement("other", absolute=True), [[0.8, 1.0]], atol=1e-6)
    np.testing.assert_allclose(found.agreement("other", brightest=2), [[1.0, -1.0]], atol=1e-6)


def test_measures_by_hand():
    maps = jnp.array([[4.0, -2.0], [0.0, 2.0]]).reshape(1, 2, 2, 1)
    found = map_measures.measure(maps, jnp.array([8.0]))
    # neighbours with relevance: 4 and -2 in a row, -2 and 2 in a column
    assert (found.negative, found.total, found.pixels, found.restless) == (0.25, 0.5, 3.0, 1.0)
    assert map_measures.share_on_black(maps, jnp.array([1.0, 0.0, 0.0, 1.0]).reshape(maps.shape)) == 0.25


def test_relevance_on_the_own_digit_by_hand():
    upper, lower = jnp.array([1.0, 1.0, 0.0, 0.0]), jnp.array([0.0, 1.0, 1.0, 0.0])
    pairs = two_classes.Pairs(upper.reshape(1, 2, 2, 1), lower.reshape(1, 2, 2, 1), np.array([0]), np.array([1]))
    first, second = jnp.array([3.0, 9.0, 1.0, -5.0]), jnp.array([1.0, 0.0, 1.0, 7.0])
    own = two_classes.on_own_digit(first.reshape(1, 2, 2, 1), second.reshape(1, 2, 2, 1), pairs)
    assert own.tolist() == [(0.75 + 0.5) / 2]
    assert pairs.overlaid.ravel().tolist() == [1, 1, 1, 0]


def test_both_digits_are_seen_where_they_have_the_two_largest_outputs():
    logits = jnp.array([[3.0, 2.0, 1.0], [3.0, 1.0, 2.0], [1.0, -1.0, -2.0]])
    digits = jnp.zeros((3, 2, 2, 1))
    pairs = two_classes.Pairs(digits, digits, np.array([0, 0, 0]), np.array([1, 1, 1]))
    assert two_classes.both_seen(lambda x: logits, pairs, digits).tolist() == [True, False, False]
