"""Taylor decomposition, root points, and the rules that follow from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lrp_jax import deep_taylor, lrp, rules
from lrp_jax.errors import InputError

INPUTS, NEURONS = 6, 5

# The domain of x, and the rule that belongs to it; without a stabilizer, which the derivation does not have.
DOMAINS = {
    "w^2": ({}, rules.WSquare(stabilizer=0.0)),
    "z+": ({"low": 0.0}, rules.ZPlus(stabilizer=0.0, bias="ignore")),
    "z-box": ({"low": -0.5, "high": 2.0}, rules.ZBox(-0.5, 2.0, stabilizer=0.0)),
}


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def layer_in(domain, seed=0):
    """A point of the domain, with one element that is zero, and a layer with a bias that is not positive."""
    x = normal(seed, INPUTS)
    x = {"w^2": x, "z+": jnp.abs(x), "z-box": jnp.clip(x, -0.5, 2.0)}[domain].at[1].set(0.0)
    return x, normal(seed + 1, INPUTS, NEURONS).at[2, 3].set(0.0), -0.3 * jnp.abs(normal(seed + 2, NEURONS))


def neuron(w, b):
    return lambda x: jax.nn.relu(x @ w + b)


def rule_relevance(layer, rule, x, relevance):
    """Propagates the given relevance of a layer's neurons by a rule."""
    activation, propagate = jax.vjp(lrp(layer, rule), x)
    return propagate(jnp.where(activation > 0, relevance / jnp.where(activation > 0, activation, 1), 0))[0]


# Taylor decomposition


def test_taylor_decomposition_by_hand():
    # f(x) = x_1^2 + x_1 x_2 - 1 has the gradient (2 x_1 + x_2, x_1).
    # x = (2, 1): f = 4 + 2 - 1 = 5. Root (1, 0): f = 1 + 0 - 1 = 0, gradient (2, 1).
    # R_1 = 2 (2 - 1) = 2, R_2 = 1 (1 - 0) = 1; remainder 5 - 0 - 3 = 2.
    result = deep_taylor.taylor_relevance(
        lambda x: x[0] ** 2 + x[0] * x[1] - 1, jnp.array([2.0, 1.0]), jnp.array([1.0, 0.0])
    )
    np.testing.assert_array_equal(result.relevance, [2.0, 1.0])
    assert result.remainder == 2.0


def test_remainder_allows_for_a_point_that_is_no_root():
    # f(x) = 3 x + 4 at x = 5 is 19, at 1 it is 7: R = 3 (5 - 1) = 12, remainder 19 - 7 - 12 = 0.
    result = deep_taylor.taylor_relevance(lambda x: 3 * x[0] + 4, jnp.array([5.0]), jnp.array([1.0]))
    assert result.relevance == 12.0
    assert result.remainder == 0.0


def test_relevance_of_a_linear_function_is_conserved_at_every_root(float64):
    x, w = normal(0, INPUTS), normal(1, INPUTS)
    fun = lambda x: x @ w + 0.7

    @jax.jit
    @jax.vmap
    def decompose(direction):
        result = deep_taylor.find_root(fun, x, direction)
        return result, deep_taylor.taylor_relevance(fun, x, result.root)

    directions = normal(2, 5, INPUTS)
    directions = -directions * jnp.sign(fun(x) * (directions @ w))[:, None]  # towards zero
    result, decomposition = decompose(directions)
    assert result.found.all()
    np.testing.assert_allclose(decomposition.remainder, 0, atol=1e-12)
    np.testing.assert_allclose(decomposition.relevance.sum(1), fun(x), rtol=1e-11)
    assert jnp.ptp(decomposition.relevance, axis=0).min() > 1e-3  # the relevance itself depends on the root


def test_remainder_grows_with_the_square_of_the_distance(float64):
    # For f(x) = sum_p (x_p^2 + x_p) at the root 0: the gradient is 1, R_p = x_p, and the remainder sum_p x_p^2.
    fun = lambda x: (x**2 + x).sum()
    unit = jnp.array([0.6, 0.8])
    for distance in (0.01, 0.1, 1.0, 10.0):
        result = deep_taylor.taylor_relevance(fun, distance * unit, jnp.zeros(2))
        np.testing.assert_allclose(result.remainder, distance**2, rtol=1e-9)


# Root search


def test_root_on_a_line_by_hand(float64):
    # f(x) = x_1^2 + x_2 - 4 at (3, 1) is 6. On (3 - t, 1 - t): (3 - t)^2 + 1 - t = 4, t^2 - 7 t + 6 = 0, t = 1.
    result = deep_taylor.find_root(
        lambda x: x[0] ** 2 + x[1] - 4, jnp.array([3.0, 1.0]), jnp.array([-1.0, -1.0]), low=-5.0
    )
    assert result.found
    np.testing.assert_allclose(result.root, [2.0, 0.0], atol=1e-11)
    np.testing.assert_allclose(result.distance, 1.0, rtol=1e-11)


@pytest.mark.parametrize("bounds", [{}, {"low": -50.0, "high": 50.0}], ids=["no bounds", "box"])
def test_first_of_several_roots_is_found(float64, bounds):
    # cos has roots at pi/2, 3 pi/2, ...; without bounds the points of the search are at powers of two: 1, then 2.
    result = deep_taylor.find_root(lambda x: jnp.cos(x[0]), jnp.array([0.0]), jnp.array([1.0]), **bounds)
    np.testing.assert_allclose(result.root, [np.pi / 2], rtol=1e-11)


def test_root_of_a_negative_value_is_found(float64):
    result = deep_taylor.find_root(lambda x: x[0] ** 3 - 8, jnp.array([-1.0]), jnp.array([1.0]))
    np.testing.assert_allclose(result.root, [2.0], rtol=1e-11)


def test_point_that_is_a_root_stays():
    x = jnp.array([1.0, 2.0])
    result = deep_taylor.find_root(lambda x: x[0] * 2 - x[1], x, jnp.array([1.0, 0.0]))
    assert result.found
    assert result.distance == 0
    np.testing.assert_array_equal(result.root, x)


def test_root_is_on_the_side_of_the_kink_that_counts(float64):
    fun = neuron(jnp.array([1.0, 1.0]), -1.0)
    result = deep_taylor.find_root(fun, jnp.array([2.0, 2.0]), jnp.array([-1.0, -1.0]))
    assert 0 < fun(result.root) <= 2e-12 * 3
    np.testing.assert_array_equal(jax.grad(fun)(result.root), [1.0, 1.0])


def test_tolerance_says_how_near_the_root_is(float64):
    x, direction = jnp.array([2.0]), jnp.array([-1.0])
    for tolerance in (1e-2, 1e-6):
        root = deep_taylor.find_root(lambda x: x[0], x, direction, tolerance=tolerance).root
        np.testing.assert_allclose(root, 2 * tolerance, rtol=1e-6)


@pytest.mark.parametrize(
    ("direction", "bounds"),
    [
        (1.0, {}),  # away from the root
        (-1.0, {"low": 0.5}),  # the domain ends before it
        (0.0, {}),
        (-1.0, {"low": -2.0, "high": 0.9}),  # x lies outside of the domain
    ],
)
def test_no_root_on_the_line(direction, bounds):
    result = deep_taylor.find_root(lambda x: x[0], jnp.array([1.0]), jnp.array([direction]), **bounds)
    assert not result.found
    assert jnp.isnan(result.root).all()
    assert jnp.isnan(result.distance)


def test_a_root_at_the_end_of_the_domain_is_found(float64):
    result = deep_taylor.find_root(lambda x: x.sum(), jnp.array([1.0, 2.0]), jnp.array([-1.0, -2.0]), low=0.0)
    assert result.found
    np.testing.assert_allclose(result.root, [0.0, 0.0], atol=1e-11)


def test_find_root_under_jit_and_vmap_and_for_images(float64):
    images = jnp.abs(normal(0, 4, 3, 3)) + 0.1
    fun = lambda image: (image**2).sum() - 0.5

    @jax.jit
    @jax.vmap
    def roots(image):
        return deep_taylor.find_root(fun, image, -image, low=0.0)

    result = roots(images)
    active = jax.vmap(fun)(images) > 0
    assert active.all()
    assert result.found.all()
    np.testing.assert_allclose(jax.vmap(fun)(result.root), 0, atol=1e-10)
    # On the line to 0, |x~|^2 = 0.5.
    expected = images * jnp.sqrt(0.5 / (images**2).sum((1, 2), keepdims=True))
    np.testing.assert_allclose(result.root, expected, rtol=1e-10)


# One neuron


def test_three_root_points_by_hand(float64):
    # The neuron max(0, 2 x_1 - x_2 - 1) at x = (2, 1): z = 4 - 1 - 1 = 2. All relevance is sum_i w_i (x_i - x~_i) = 2.
    x, w, b = jnp.array([2.0, 1.0]), jnp.array([2.0, -1.0]), -1.0
    roots = {
        # x - z w / |w|^2 = (2, 1) - 2/5 (2, -1) = (1.2, 1.4); R = (2 * 0.8, -1 * -0.4) = (1.6, 0.4).
        "w^2": ({}, [1.2, 1.4], [1.6, 0.4]),
        # (2, 1) + t (-2, 0): z = 2 - 4 t, t = 1/2: (1, 1); R = (2 * 1, 0).
        "z+": ({"low": 0.0}, [1.0, 1.0], [2.0, 0.0]),
        # Box [0, 4], corner (0, 4): (2, 1) + t (-2, 3): z = 2 - 7 t, t = 2/7: (10/7, 13/7); R = (2 * 4/7, -1 * -6/7).
        "z-box": ({"low": 0.0, "high": 4.0}, [10 / 7, 13 / 7], [8 / 7, 6 / 7]),
    }
    for bounds, root, relevance in roots.values():
        result = deep_taylor.neuron_root(x, w, b, **bounds)
        np.testing.assert_allclose(result.root, root, rtol=1e-11)
        decomposition = deep_taylor.taylor_relevance(neuron(w, b), x, result.root)
        np.testing.assert_allclose(decomposition.relevance, relevance, rtol=1e-11, atol=1e-12)
        assert abs(decomposition.remainder) < 1e-12


def test_directions_by_hand():
    x, w = jnp.array([2.0, 1.0, 3.0]), jnp.array([2.0, -1.0, 0.0])
    np.testing.assert_allclose(deep_taylor.direction_w_square(w), [-0.4, 0.2, 0.0], rtol=1e-6)  # -w / 5
    np.testing.assert_array_equal(deep_taylor.direction_z_plus(x, w), [-2.0, 0.0, 0.0])  # to (0, 1, 3)
    np.testing.assert_array_equal(deep_taylor.direction_z_box(x, w, -1.0, 5.0), [-3.0, 4.0, 0.0])  # to (-1, 5, 3)
    np.testing.assert_array_equal(deep_taylor.direction_w_square(jnp.zeros(2)), [0.0, 0.0])


@pytest.mark.parametrize("domain", DOMAINS)
def test_roots_of_neurons_are_roots_in_the_domain_and_lead_to_the_rule(float64, domain):
    bounds, rule = DOMAINS[domain]

    @jax.jit
    @jax.vmap
    def decompose(x, w, b):
        fun = neuron(w, b)
        result = deep_taylor.neuron_root(x, w, b, **bounds)
        relevance = deep_taylor.taylor_relevance(fun, x, result.root).relevance
        by_rule = rule_relevance(lambda x: (x @ w + b)[None], rule, x, fun(x)[None])
        return result, relevance, by_rule, fun(x), fun(result.root)

    layers = [layer_in(domain, seed) for seed in range(0, 12, 3)]
    cases = [(x, w[:, j], b[j]) for x, w, b in layers for j in range(NEURONS)]
    result, relevance, by_rule, value, value_at_root = decompose(*map(jnp.stack, zip(*cases, strict=True)))
    assert (value > 0).sum() >= 5
    assert result.found.all()
    assert (abs(value_at_root) <= 1e-11 * value).all()
    assert (result.root >= bounds.get("low", -jnp.inf)).all()
    assert (result.root <= bounds.get("high", jnp.inf)).all()
    np.testing.assert_allclose(relevance, by_rule, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(relevance.sum(1), value, rtol=1e-9, atol=1e-12)  # conservative
    assert (relevance >= 0).all()  # positive


def test_w_square_root_is_the_nearest(float64):
    x, w, b = map(np.asarray, layer_in("w^2"))
    w, b = w[:, 0] * np.sign(x @ w[:, 0]), b[0]
    z = x @ w + b
    assert z > 0
    nearest = np.linalg.norm(deep_taylor.neuron_root(x, w, b).root - x)
    directions = np.random.default_rng(0).normal(size=(1000, INPUTS))
    distances = np.linalg.norm(directions, axis=1) * z / np.abs(directions @ w)  # to the plane x w + b = 0
    assert nearest <= distances.min() * (1 + 1e-9)
    np.testing.assert_allclose(nearest, z / np.linalg.norm(w), rtol=1e-9)


def test_positive_bias_may_leave_no_root_in_the_domain(float64):
    # max(0, x_1 - x_2 + b) at (1, 2), and the way to (0, 2) where it is max(0, b - 2): a root exactly if b <= 2.
    x, w = jnp.array([1.0, 2.0]), jnp.array([1.0, -1.0])
    assert deep_taylor.neuron_root(x, w, 2.0, low=0.0).found
    assert not deep_taylor.neuron_root(x, w, 2.1, low=0.0).found
    # In the box [0, 3] the corner is (0, 3), where it is max(0, b - 3): a root exactly if b <= 3.
    assert deep_taylor.neuron_root(x, w, 3.0, low=0.0, high=3.0).found
    assert not deep_taylor.neuron_root(x, w, 3.1, low=0.0, high=3.0).found
    # Without bounds there is always one, and the rule holds: R = w^2 / 2 z = z / 2 each, z = 1 - 2 + 3.1 = 2.1.
    root = deep_taylor.neuron_root(x, w, 3.1).root
    np.testing.assert_allclose(deep_taylor.taylor_relevance(neuron(w, 3.1), x, root).relevance, [1.05, 1.05])


def test_z_plus_holds_for_a_positive_bias_where_there_is_a_root(float64):
    # max(0, 2 x_1 - x_2 + 1) at (1, 2): z = 1, and at (0, 2) it is -1 before the relu. All relevance to x_1.
    x, w, b = jnp.array([1.0, 2.0]), jnp.array([2.0, -1.0]), 1.0
    result = deep_taylor.neuron_root(x, w, b, low=0.0)
    relevance = deep_taylor.taylor_relevance(neuron(w, b), x, result.root).relevance
    expected = rule_relevance(lambda x: (x @ w + b)[None], DOMAINS["z+"][1], x, jnp.ones(1))
    np.testing.assert_allclose(relevance, [1.0, 0.0], atol=1e-11)
    np.testing.assert_allclose(relevance, expected, atol=1e-9)


# Layers, with the training-free relevance model


@pytest.mark.parametrize("domain", DOMAINS)
def test_rules_follow_from_taylor_steps_at_the_neurons_of_a_layer(float64, domain):
    bounds, rule = DOMAINS[domain]

    @jax.jit
    @jax.vmap
    def decompose(x, w, b, relevance):
        relevance = jnp.where(x @ w + b > 0, relevance, 0)
        model = deep_taylor.training_free_relevance_model(x, w, b, relevance)
        messages = deep_taylor.taylor_messages(model, x, **bounds)
        return relevance, messages, rule_relevance(lambda x: x @ w + b, rule, x, relevance)

    layers = [layer_in(domain, seed) for seed in (0, 10, 20)]
    assigned = jnp.abs(normal(4, 3, NEURONS))
    relevance, messages, by_rule = decompose(*map(jnp.stack, zip(*layers, strict=True)), assigned)
    assert messages.shape == (3, INPUTS, NEURONS)
    assert (relevance > 0).sum() >= 3
    np.testing.assert_allclose(messages.sum(2), by_rule, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(messages.sum(1), relevance, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("domain", DOMAINS)
def test_rules_follow_from_taylor_steps_at_the_neurons_of_a_convolution(float64, domain):
    bounds, rule = DOMAINS[domain]
    kernel, bias = normal(0, 2, 2, 2, 3), -0.2
    image = normal(1, 1, 3, 3, 2)
    image = {"w^2": image, "z+": jnp.abs(image), "z-box": jnp.clip(image, -0.5, 2.0)}[domain]
    layout = ("NHWC", "HWIO", "NHWC")
    layer = lambda x: lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=layout) + bias
    weight = jax.jit(jax.jacobian(lambda flat: layer(flat.reshape(image.shape)).ravel()))(image.ravel()).T
    relevance = jnp.abs(normal(2, weight.shape[1]))
    relevance = relevance * (layer(image).ravel() > 0)

    @jax.jit
    def by_taylor(x):
        model = deep_taylor.training_free_relevance_model(x, weight, bias, relevance)
        return deep_taylor.taylor_messages(model, x, **bounds)

    messages = by_taylor(image.ravel())
    expected = rule_relevance(layer, rule, image, relevance.reshape(layer(image).shape))
    np.testing.assert_allclose(messages.sum(1), expected.ravel(), rtol=1e-9, atol=1e-9)


def test_training_free_model_has_the_given_relevance_and_none_for_inactive_neurons():
    # z = (3 - 1, 1 - 3) = (2, -2) at x = (3, 1): c = (6 / 2, 0).
    weight = jnp.array([[1.0, -1.0], [-1.0, 1.0]])
    model = deep_taylor.training_free_relevance_model(jnp.array([3.0, 1.0]), weight, 0.0, jnp.array([6.0, 5.0]))
    np.testing.assert_array_equal(model.c, [3.0, 0.0])
    np.testing.assert_array_equal(model(jnp.array([3.0, 1.0])), [6.0, 0.0])
    np.testing.assert_array_equal(model(jnp.array([2.0, 1.0])), [3.0, 0.0])


def test_neuron_without_a_root_gives_no_number():
    x, weight = jnp.array([1.0, 1.0]), jnp.array([[1.0, 1.0], [-2.0, 1.0]])
    model = deep_taylor.training_free_relevance_model(x, weight, jnp.array([1.5, 1.5]), jnp.ones(2))
    messages = jax.jit(lambda x: deep_taylor.taylor_messages(model, x, low=0.0))(x)
    # Way to (0, 1): 0 - 2 + 1.5 < 0 for the first neuron; way to (0, 0): 1.5 > 0 for the second.
    np.testing.assert_allclose(messages[:, 0], [1.0, 0.0], atol=1e-4)
    assert jnp.isnan(messages[:, 1]).all()


# Errors


def test_errors_of_taylor_relevance():
    x = jnp.ones(2)
    with pytest.raises(InputError, match=r"root must have the shape \(2,\)"):
        deep_taylor.taylor_relevance(jnp.sum, x, jnp.ones(3))
    with pytest.raises(InputError, match="must return a scalar"):
        deep_taylor.taylor_relevance(lambda x: x, x, x)
    with pytest.raises(InputError, match="floating-point"):
        deep_taylor.taylor_relevance(jnp.sum, jnp.array([1, 2]), jnp.array([0, 0]))


def test_errors_of_find_root():
    x = jnp.ones(2)
    with pytest.raises(InputError, match=r"direction must have the shape \(2,\)"):
        deep_taylor.find_root(jnp.sum, x, jnp.ones((1, 2)))
    with pytest.raises(InputError, match="must return a scalar"):
        deep_taylor.find_root(lambda x: (x, x), x, x)
    with pytest.raises(InputError, match="low and high must broadcast"):
        deep_taylor.find_root(jnp.sum, x, x, low=jnp.zeros(3))
    with pytest.raises(InputError, match="low and high must broadcast"):
        deep_taylor.find_root(jnp.sum, x, x, high=jnp.zeros((2, 2)))
    with pytest.raises(InputError, match="larger than high"):
        deep_taylor.find_root(jnp.sum, x, x, low=2.0, high=jnp.array([3.0, 1.0]))
    with pytest.raises(InputError, match="floating-point"):
        deep_taylor.find_root(jnp.sum, jnp.array([1, 2]), x)


@pytest.mark.parametrize("bounds", [{"low": -1.0}, {"high": 1.0}, {"low": jnp.zeros(2)}])
def test_domains_that_no_rule_belongs_to(bounds):
    with pytest.raises(InputError, match="the domain is one of"):
        deep_taylor.neuron_root(jnp.ones(2), jnp.ones(2), **bounds)


def test_errors_of_shapes_of_a_layer():
    with pytest.raises(InputError, match=r"w must have the shape \(2,\)"):
        deep_taylor.neuron_root(jnp.ones(2), jnp.ones(3))
    with pytest.raises(InputError, match="For a batch"):
        deep_taylor.training_free_relevance_model(jnp.ones((3, 2)), jnp.ones((2, 4)), 0.0, jnp.ones((3, 4)))
    with pytest.raises(InputError, match="neurons"):
        deep_taylor.training_free_relevance_model(jnp.ones(2), jnp.ones((2, 4)), 0.0, jnp.ones(3))
