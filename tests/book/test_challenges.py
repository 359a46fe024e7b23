"""The six challenges: many small networks at once, and what is measured of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lrp_book import challenge_results, challenges, hand_step, small_networks
from lrp_book.datasets import Split
from lrp_book.models import DenseNetwork
from lrp_book.small_networks import Digits
from lrp_jax import relevance, rules


@pytest.fixture(scope="module")
def data():
    random = np.random.default_rng(0)
    labels = (np.arange(2300) % 10).astype(np.int32)
    images = np.zeros((2300, 28, 28, 1), np.uint8)
    for image, label in zip(images, labels, strict=True):  # a bar for each class, and noise beside it
        image[2 * label : 2 * label + 3, 5:20] = 200
        image[:, 22:24, 0] = random.integers(0, 255, (28, 2))
    return Split(images, labels)


@pytest.fixture(scope="module")
def few(data):
    return small_networks.draw(data, 100, seeds=2)


@pytest.fixture(scope="module")
def learned(few):
    return small_networks.learn(few, epochs=3)


def test_no_network_learns_from_what_is_held_out(data):
    marked = Split(np.where(np.arange(2300)[:, None, None, None] < 300, data.images, 255).astype(np.uint8), data.labels)
    assert small_networks.draw(marked, 300, seeds=3).images.mean() < 0.9
    assert (small_networks.held_out(marked).images == 1).all()


def test_seeds_draw_different_images_and_start_from_different_weights(few):
    assert not np.array_equal(few.images[0], few.images[1])
    for leaf in jax.tree.leaves(small_networks.initial([0, 1])):
        assert leaf.ndim == 2 or not np.array_equal(leaf[0], leaf[1])  # biases start at zero


def test_a_network_among_others_learns_as_it_does_alone_in_a_plain_loop(few, learned):
    structure, parameters = nnx.split(DenseNetwork(hidden=(64, 64), rngs=nnx.Rngs(1)), nnx.Param)
    optimizer = optax.adam(1e-3)
    state = optimizer.init(parameters)
    for epoch in range(3):
        for rows in np.random.default_rng([1, epoch]).permutation(100).reshape(2, 50):

            def loss(parameters, rows=rows):
                logits = nnx.merge(structure, parameters)(few.images[1][rows])
                return optax.softmax_cross_entropy_with_integer_labels(logits, few.labels[1][rows]).mean()

            updates, state = optimizer.update(jax.grad(loss)(parameters), state)
            parameters = optax.apply_updates(parameters, updates)
    found = small_networks.at_epoch(learned, -1)
    for leaf, expected in zip(jax.tree.leaves(found), jax.tree.leaves(parameters), strict=True):
        np.testing.assert_allclose(leaf[1], expected, atol=2e-4)


def test_a_longer_run_begins_like_a_shorter_one_and_the_same_seed_gives_the_same_bits(few, learned):
    again = small_networks.learn(few, epochs=1)
    for leaf, longer in zip(jax.tree.leaves(again), jax.tree.leaves(learned), strict=True):
        np.testing.assert_array_equal(leaf, longer[:, :2])


def test_judging_is_done_for_each_epoch_and_may_be_on_own_images(few, learned):
    shared = small_networks.judge(small_networks.logits_of(learned, few.images[0]), few.labels[0])
    own = small_networks.judge(small_networks.logits_of(learned, few.images), few.labels[:, None])
    assert shared.loss.shape == own.loss.shape == (2, 4)
    np.testing.assert_allclose(shared.loss[0], own.loss[0], rtol=1e-4)
    assert own.loss[:, -1].max() < own.loss[:, 0].min()


def test_moved_images_and_class_weights_change_what_is_learned(few, learned):
    weightless = small_networks.learn(few, epochs=1, class_weights=np.zeros(10))
    for leaf in jax.tree.leaves(weightless):
        np.testing.assert_array_equal(leaf[:, 0], leaf[:, 1])
    moved = small_networks.learn(few, epochs=1, reach=2)
    assert any(
        not np.array_equal(a, b[:, :2]) for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(learned), strict=True)
    )


def test_maps_are_those_of_the_library(few, learned):
    images = Digits(few.images[0][:3], few.labels[0][:3])
    parameters = small_networks.at_epoch(learned, [3, 2])
    (_, second) = small_networks.maps_of(parameters, images, rules.ZPlus())
    network = nnx.merge(small_networks.structure(), jax.tree.map(lambda leaf: leaf[1, 2], learned))
    expected = relevance(network, images.images, images.labels, rules.ZPlus()).relevance
    np.testing.assert_allclose(second, expected[..., 0], atol=1e-4)


def test_neurons_that_start_far_below_zero_are_dead_and_get_relevance_from_flat_alone(few):
    start = challenges.with_hidden_biases(small_networks.initial([0, 1]), -100.0)
    course = small_networks.learn(few, epochs=1, start=start)
    assert all(layer.all() for layer in challenges.never_active(course, few))
    first_dead = jax.tree.map(np.copy, small_networks.initial([0]))
    first_dead["layers"][0]["bias"][...] = np.r_[np.full(16, -100.0), np.zeros(48)][None].astype(np.float32)
    silent = np.arange(64)[None] < 16
    images = Digits(few.images[0], few.labels[0])
    shares = {
        rule: challenges.relevance_of_silent(first_dead, silent, images, rule)[0]
        for rule in (rules.Zero(), rules.ZPlus(), rules.Flat())
    }
    assert shares[rules.Zero()] == shares[rules.ZPlus()] == 0
    assert shares[rules.Flat()] == pytest.approx(0.25, abs=1e-5)


def test_a_rare_class_has_few_images_that_may_be_repeated(data):
    pool = small_networks.draw(data, 200, seeds=2)
    rare = challenges.rare_class(pool, 8, number=3, others=90, times=4)
    assert ((rare.labels == 8).sum(axis=1) == 12).all()
    assert rare.labels.shape == (2, 102)
    assert len(np.unique(rare.images[0][rare.labels[0] == 8], axis=0)) == 3
    assert challenges.shares_of_classes(rare)[8] == pytest.approx(12 / 102)


def test_shared_pixels_by_hand_and_by_chance():
    maps = jnp.arange(40.0).reshape(1, 1, 5, 8)
    assert challenges.shared_top(maps, maps) == 1
    assert challenges.shared_top(maps, -maps) == 0
    images = np.zeros((1, 5, 8, 1))
    images[0, 0] = 1  # two of forty pixels are the top, of eight with ink
    assert challenges.shared_by_chance(images) == 0.25


def test_what_is_found_has_a_value_for_each_seed(data, few, learned):
    held_out = small_networks.held_out(data)
    found = challenge_results.overfitting(learned, few, held_out, patience=1)
    assert found.numbers["stop-cost"].shape == (2,)
    assert 0 <= found.numbers["stop-kept-first"] <= found.numbers["stop-kept-last"] <= found.numbers["stop-last"] <= 3
    (shared,) = found.shared.values()
    assert ((shared > 0) & (shared <= 1)).all()


def test_pairs_of_seeds_are_compared_once(data):
    digits = small_networks.draw(data, 100, seeds=4)
    course = small_networks.learn(digits, epochs=1)
    held_out = small_networks.held_out(data)
    found = challenge_results.seeds_alone(dict.fromkeys(("all", "images", "weights", "order"), course), held_out)
    assert found.numbers["apart all"].shape == found.shared["another seed"].shape == (2,)
    assert found.numbers["spread-low"] == found.numbers["spread order"].min()


def test_the_hand_step_agrees_with_jax():
    weights = [np.array([[1.0, 2.0], [-1.0, 1.0]]), np.array([[3.0], [1.0]])]

    def loss(weights):
        (z,) = jax.nn.relu(jnp.array([2.0, 1.0]) @ weights[0]) @ weights[1]
        return jnp.logaddexp(z, 0.0)

    slopes = jax.grad(loss)(weights)
    for found, expected in zip(hand_step.forwards_and_back(weights).by_weights, slopes, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_drawing_of_the_hand_step_says_what_it_shows():
    forwards, gradient, step, again = hand_step.training_step("one", 0.1).steps
    assert [step.title[0] for step in (forwards, gradient, step, again)] == list("1234")
    assert "3 becomes 2.9, and 1 becomes 0.5" in step.sentence
    assert "−0.5 and 4.5; the first is closed. The output is 2.25" in again.sentence
    assert again.values[1][0] == 0
