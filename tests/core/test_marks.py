"""Marks: what a user says of a value, in every transformation, with numbers by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import jit_by_day
from jax.ad_checkpoint import checkpoint_name

from lrp_jax import composites, ledger, lrp, mark, plan, relevance, rules, treatments
from lrp_jax.errors import ModelError, SelectorError
from lrp_jax.treatments import Form, Treatment

pytestmark = pytest.mark.usefixtures("float64")

X = np.array([0.5, -2.0, 3.0])
Y = np.array([2.0, 1.0, -0.25])
WEIGHT = np.array([[1.0, -2.0], [3.0, 0.5], [-1.0, 2.0]])


def relevance_of(function, *operands, rule=None):
    """The relevance of every operand for the sum of all outputs."""
    explained = lrp(lambda *operands: function(*operands).sum(), rule or rules.Zero(), argnums=range(len(operands)))
    return jit_by_day(jax.grad(explained, argnums=tuple(range(len(operands)))))(*map(jnp.asarray, operands))


def assert_relevance(function, *operands, expected, rule=None):
    for found, wanted in zip(relevance_of(function, *operands, rule=rule), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)


# Each mark, by hand.


def test_gate_is_held_before_a_signal():
    product = X * np.tanh(Y)
    assert_relevance(lambda x, y: x * jnp.tanh(y), X, Y, expected=(product / 2, product / 2))
    assert_relevance(lambda x, y: x * mark.gate(jnp.tanh(y)), X, Y, expected=(product, 0 * Y))
    assert_relevance(lambda x, y: mark.gate(jnp.tanh(y)) * x, X, Y, expected=(product, 0 * Y))


def test_gate_divides_and_is_moved_scaled_and_shifted():
    assert_relevance(lambda x, y: x / mark.gate(jnp.tanh(y)), X, Y, expected=(X / np.tanh(Y), 0 * Y))
    scaled = lambda x, y: (x * (2 - 3 * mark.gate(jnp.tanh(y)))[None, ::-1])[0]
    assert_relevance(scaled, X, Y, expected=(X * (2 - 3 * np.tanh(Y))[::-1], 0 * Y))
    assert_relevance(lambda x, y: x * (2 - 3 * mark.gate(y)), X, Y, expected=(X * (2 - 3 * Y), 0 * Y))


def test_normaliser_is_held_before_a_marked_gate():
    gated = lambda x, y: mark.gate(x) * jax.lax.rsqrt(1 + y**2)
    assert_relevance(gated, X, Y, expected=(X / np.sqrt(1 + Y**2), 0 * Y))


def test_two_marked_gates_get_half_each():
    product = np.tanh(X) * np.tanh(Y) / 2
    both = lambda x, y: mark.gate(jnp.tanh(x)) * mark.gate(jnp.tanh(y))
    assert_relevance(both, X, Y, expected=(product, product))


def test_what_is_made_of_a_gate_and_of_its_own_root_is_no_gate():
    # x * tanh(x) is a function of one value, and as a factor a signal.
    product = X * np.tanh(X) * Y / 2
    assert_relevance(lambda x, y: (x * mark.gate(jnp.tanh(x))) * y, X, Y, expected=(product, product))


def test_signal_is_never_held():
    product = X * (1 + np.tanh(Y))
    assert_relevance(lambda x, y: x * (1 + jnp.tanh(y)), X, Y, expected=(product, 0 * Y))
    # 1 + tanh(y): the one keeps its share of the half.
    half = (product / 2, X * np.tanh(Y) / 2)
    assert_relevance(lambda x, y: x * mark.signal(1 + jnp.tanh(y)), X, Y, expected=half)


def test_marked_attention_weights_are_no_longer_held():
    weights = lambda x, y: jax.nn.softmax(x) * y
    held, marked = composites.CPLRP(), lambda x, y: mark.signal(jax.nn.softmax(x)) * y
    product = np.asarray(jax.nn.softmax(X)) * Y
    np.testing.assert_allclose(relevance_of(weights, X, Y, rule=held)[1], product, rtol=1e-12)
    np.testing.assert_allclose(relevance_of(marked, X, Y, rule=held)[1], product / 2, rtol=1e-12)


def test_relevance_ends_at_a_held_value():
    assert_relevance(lambda x, y: x + mark.held(y), X, Y, expected=(X, 0 * Y))
    assert_relevance(lambda x, y: x * mark.held(jnp.exp(y)), X, Y, expected=(X * np.exp(Y), 0 * Y))
    assert_relevance(lambda x: x + mark.held(x), X, expected=(X,))


def test_held_value_may_be_an_output():
    function = lambda x: (x @ WEIGHT, mark.held(2 * x))
    outputs, propagate = jax.vjp(lrp(function, rules.Zero()), jnp.asarray(X))
    (found,) = propagate((jnp.ones(2), jnp.ones(3)))
    np.testing.assert_allclose(outputs[1], 2 * X)
    np.testing.assert_allclose(found, X * WEIGHT.sum(1), rtol=1e-12)


def test_relevance_through_a_held_value_has_a_second_derivative():
    # R = x tanh(w y): relevance ends at the gate, and depends on w all the same.
    gated = lambda w: relevance_of(lambda x, y: x * mark.held(jnp.tanh(w * y)), X, Y)[0].sum()
    np.testing.assert_allclose(jax.grad(gated)(2.0), (X * Y / np.cosh(2 * Y) ** 2).sum(), rtol=1e-12)


def test_layer_gets_a_rule_although_its_weight_is_no_parameter():
    made = lambda x: mark.layer(x @ (jnp.ones((3, 2)) + 1))
    (layer,) = [row for row in plan(made, X[None], rules.Flat()).rows if row[1] == "dense"]
    assert layer[3].startswith("Flat")
    z = 4 * X.sum()
    assert_relevance(made, X, expected=([z / 3] * 3,), rule=rules.Flat(0.0))


def test_bias_of_a_marked_layer_is_its_bias():
    made = lambda x: mark.layer(x @ (jnp.ones((3, 2)) + 1) + jnp.array([1.0, 2.0]))
    z = 2 * X.sum() + np.array([1.0, 2.0])
    assert_relevance(made, X, expected=([z.sum() / 3] * 3,), rule=rules.Flat(0.0))


def test_product_in_the_target_can_be_a_layer():
    target = lambda output: mark.layer(output @ jnp.ones((2, 1))).sum()
    found = relevance(lambda x: x @ jnp.asarray(WEIGHT), X[None], target, rules.Flat(0.0)).relevance
    np.testing.assert_allclose(found, np.full((1, 3), (X @ WEIGHT).sum() / 3), rtol=1e-12)


def test_no_layer_splits_in_proportion_and_is_not_first():
    resize, weight = jnp.asarray(WEIGHT), jnp.array([[2.0], [1.0]])
    model = lambda x: mark.no_layer(x @ resize) @ weight
    rows = plan(model, X[None], [(composites.first, rules.Flat()), (composites.any_layer, rules.Zero())]).rows
    assert [row[3].partition("(")[0] for row in rows] == ["split in proportion: no layer, by mark.no_layer", "Flat"]
    z = X @ WEIGHT
    shares = (X[:, None] * WEIGHT / z).sum(1) * (z @ [2.0, 1.0]) / 2
    assert_relevance(model, X, expected=(shares,), rule=rules.Flat(0.0))


MEAN, DEVIATION = np.array([1.0, -2.0, 0.5]), np.array([2.0, 1.0, 4.0])


def test_input_in_other_units():
    units = (X - MEAN) / DEVIATION
    model = lambda x: mark.input((x - MEAN) / DEVIATION) @ jnp.asarray(WEIGHT)
    assert_relevance(model, X, expected=(units * WEIGHT.sum(1),))
    box, w = rules.ZBox(-3.0, 2.0, 0.0), WEIGHT
    terms = units[:, None] * w + 3 * np.maximum(w, 0) - 2 * np.minimum(w, 0)
    expected = (terms / terms.sum(0) * (units @ w)).sum(1)
    assert_relevance(model, X, expected=(expected,), rule=box)


def test_input_that_is_moved_and_in_front_of_a_relu():
    order = lambda x: mark.input((x.reshape(1, 3)[:, ::-1] - 1.0).T[:, 0])
    np.testing.assert_allclose(order(X), X[::-1] - 1)
    assert_relevance(lambda x: jax.nn.relu(order(x)), X, expected=([0.0, 0.0, 2.0],))
    # Without the mark relu(x - 1) passes on 3 for an x of 3, of which the constant takes 1 away.
    assert_relevance(lambda x: jax.nn.relu(x - 1), X, expected=([0.0, 0.0, 3.0],))


def test_input_whose_value_is_zero_somewhere():
    assert_relevance(lambda x: mark.input(x - 3.0) @ jnp.asarray(WEIGHT), X, expected=((X - 3) * WEIGHT.sum(1),))


def test_embedding_and_position_are_the_input():
    table, position = jnp.asarray(WEIGHT), jnp.array([[1.0, 0.0], [0.5, 2.0]])
    weight = jnp.array([1.0, 3.0])
    model = lambda tokens: (mark.input(table[tokens] + position) @ weight).sum(1, keepdims=True)
    found = relevance(model, jnp.array([[2, 0]]), 0, rules.Zero()).relevance
    np.testing.assert_allclose(found, [[0 + 3 * 2.0, 1.5 + 3 * 0.0]], rtol=1e-12)


def test_input_leaves_a_gradient_as_it_is():
    weight = jnp.asarray(WEIGHT)
    found = relevance(lambda x: mark.input(x / 2) @ weight, X[None], 0, composites.GuidedBackprop()).relevance
    np.testing.assert_allclose(found, WEIGHT[None, :, 0] / 2)


def test_ledger_of_a_marked_input_is_closed():
    book = ledger(lambda x: mark.input(x - 3.0) @ jnp.asarray(WEIGHT), X[None], 0, rules.Zero())
    np.testing.assert_allclose(book.inputs, book.explained, rtol=1e-12)


# Pieces.


def _thirds(call):
    """One third of the relevance to the first operand, two thirds to the second."""
    (first, second), (y,), (ratio,) = call.live, call.outputs, call.cotangents
    return ratio * y / 3 / first, ratio * y * 2 / 3 / second


THIRDS = Treatment("one third and two thirds", {Form.RATIO: _thirds}, Form.RATIO, Form.RATIO)
CUBE = Treatment("three times", {Form.RATIO: lambda call: (3 * call.cotangents[0],)}, Form.RATIO, Form.RATIO)


def thirds(x, y):
    return mark.piece(lambda x, y: jnp.exp(x) * jax.nn.relu(y) + x @ jnp.ones((3, 3)), THIRDS)(x, y)


def value_of_thirds(x, y):
    return np.exp(x) * np.maximum(y, 0) + x.sum()


def test_piece_is_one_whatever_is_inside():
    value = value_of_thirds(X, Y)
    assert_relevance(lambda x, y: 2 * thirds(x, y), X, Y, expected=(2 * value / 3, 4 * value / 3))
    rows = plan(lambda x: 2 * thirds(x, 1 + x), X[None], rules.Zero()).rows
    assert [row[1] for row in rows].count("piece") == 1
    assert not [row for row in rows if row[1] in ("dense", "exp", "relu")]


def test_piece_of_the_same_value_twice_has_two_operands():
    value = value_of_thirds(X, X)
    assert_relevance(lambda x: thirds(x, x), X, expected=(value,))


def test_piece_of_a_pytree_with_what_it_closes_over():
    def model(x, y):
        return mark.piece(lambda both: {"out": both["a"] * y}, treatments.smooth)({"a": x})["out"]

    product = X * Y
    assert_relevance(model, X, Y, expected=(product, product))


def test_piece_reads_what_it_closes_over_at_every_call():
    held = {"scale": 1.0}
    piece = mark.piece(lambda x: x * held["scale"], CUBE)
    run = lambda: relevance(lambda x: piece(x) @ jnp.asarray(WEIGHT), X[None], 0, rules.Zero())
    assert_close = lambda factor: np.testing.assert_allclose(run().output, factor * X[None] @ WEIGHT, rtol=1e-12)
    assert_close(1.0)
    held["scale"] = 2.0
    assert_close(2.0)


def test_treatment_of_a_piece_is_read_at_every_call(compiled):
    scale = {"factor": jnp.ones(())}
    backward = lambda call: (call.cotangents[0] * scale["factor"],)
    own = Treatment("scaled", dict.fromkeys(Form, backward), returns=Form.RATIO)
    model = lambda x: mark.piece(jnp.tanh, own)(x) @ jnp.asarray(WEIGHT)
    run = lambda: relevance(model, X[None], 0, rules.Zero()).relevance
    before = run()
    assert before.any()
    scale["factor"] = 3 * jnp.ones(())
    compiled.clear()
    np.testing.assert_allclose(run(), 3 * before, rtol=1e-12)
    assert "explain_in_trace" not in compiled


def test_pieces_of_the_same_text_with_other_treatments():
    def run(treatment):
        model = lambda x: mark.piece(lambda x: 2 * x, treatment)(x) @ jnp.asarray(WEIGHT)
        return relevance(model, X[None], 0, rules.Zero()).relevance

    np.testing.assert_allclose(run(treatments.smooth), 2 * X[None] * WEIGHT[:, 0], rtol=1e-12)
    np.testing.assert_allclose(run(CUBE), 3 * X[None] * WEIGHT[:, 0], rtol=1e-12)


# The function without lrp.

MARKED = {
    "gate": lambda x: x * mark.gate(jnp.tanh(x[::-1])),
    "signal": lambda x: x * mark.signal(jnp.tanh(x[::-1])),
    "held": lambda x: x * mark.held(jnp.tanh(x[::-1])),
    "layer": lambda x: mark.layer(x @ jnp.asarray(WEIGHT)) ** 2,
    "no layer": lambda x: mark.no_layer(x @ jnp.asarray(WEIGHT)) ** 2,
    "input": lambda x: jnp.tanh(mark.input(x - 1.0)),
    "piece": lambda x: mark.piece(lambda x: jnp.tanh(x) * x[::-1], treatments.smooth)(x),
}
UNMARKED = {
    **dict.fromkeys(("gate", "signal", "held"), lambda x: x * jnp.tanh(x[::-1])),
    **dict.fromkeys(("layer", "no layer"), lambda x: (x @ jnp.asarray(WEIGHT)) ** 2),
    "input": lambda x: jnp.tanh(x - 1.0),
    "piece": lambda x: jnp.tanh(x) * x[::-1],
}
BATCH = np.stack([X, Y])
DIFFERENTIATIONS = {
    "value": lambda function: function,
    "gradient": lambda function: jax.grad(lambda x: function(x).sum()),
    "hessian": lambda function: jax.hessian(lambda x: function(x).sum()),
    "forward mode": jax.jacfwd,
    "compiled gradient": lambda function: jax.jit(jax.grad(lambda x: function(x).sum())),
    "gradient under checkpoint": lambda function: jax.grad(lambda x: jax.checkpoint(function)(x).sum()),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("differentiation", DIFFERENTIATIONS)
@pytest.mark.parametrize("name", MARKED)
def test_function_without_lrp_is_the_unmarked_one(name, differentiation):
    transform = DIFFERENTIATIONS[differentiation]
    for way, x in ((lambda function: function, X), (jax.vmap, BATCH)):
        found, expected = (way(transform(functions[name])) for functions in (MARKED, UNMARKED))
        both = jit_by_day(lambda x, found=found, expected=expected: (found(x), expected(x)))
        np.testing.assert_allclose(*both(jnp.asarray(x)), rtol=1e-14)


@pytest.mark.parametrize("name", MARKED)
def test_mark_has_an_effect(name):
    rule = rules.Flat(0.0) if "layer" in name else rules.Zero()
    unmarked = UNMARKED[name]
    if name == "layer":
        unmarked = lambda x: (x @ (jnp.eye(3) @ jnp.asarray(WEIGHT))) ** 2
    found = relevance_of(MARKED[name], X, rule=rule)[0]
    assert np.isfinite(found).all()
    if name not in ("layer", "signal"):
        assert not np.allclose(found, relevance_of(unmarked, X, rule=rule)[0])


# Every transformation.


def in_a_scan(function):
    return lambda *operands: jax.lax.scan(lambda carry, xs: (carry, function(*xs)), None, operands)[1]


PLACES = {
    "plain": (lambda function: function, (X, Y)),
    "jit": (jax.jit, (X, Y)),
    "vmap": (jax.vmap, (BATCH, BATCH[::-1] + 1)),
    "vmap over the last axis": (lambda function: jax.vmap(function, 1, 1), (BATCH.T, BATCH[::-1].T + 1)),
    "jit of vmap": (lambda function: jax.jit(jax.vmap(function)), (BATCH, BATCH[::-1] + 1)),
    "checkpoint": (jax.checkpoint, (X, Y)),
    "scan": (in_a_scan, (BATCH, BATCH[::-1] + 1)),
    "cond": (lambda function: lambda x, y: jax.lax.cond(x[0] > 0, function, lambda x, y: x * y, x, y), (X, Y)),
}
INSIDE = {
    "gate": (
        lambda x, y: x * mark.gate(jnp.tanh(y)),
        lambda x, y: (x * np.tanh(y), 0 * y),
    ),
    "signal": (
        lambda x, y: x * mark.signal(jnp.exp(-(y**2))),
        lambda x, y: (x * np.exp(-(y**2)) / 2, x * (np.exp(-(y**2)) - 1) / 2),
    ),
    "held": (lambda x, y: x + mark.held(y * y), lambda x, y: (x, 0 * y)),
    "layer": (
        lambda x, y: mark.layer(x @ (2 * jnp.eye(3) + 0)) + y,
        lambda x, y: (np.stack([2 * x.reshape(-1, 3).sum(1) / 3] * 3, -1).reshape(x.shape), y),
    ),
    "no layer": (
        lambda x, y: mark.no_layer(x @ jnp.asarray(np.diag([1.0, 2.0, 3.0]))) + y,
        lambda x, y: (x * np.array([1.0, 2.0, 3.0]), y),
    ),
    "piece": (
        lambda x, y: mark.piece(lambda x, y: jnp.exp(x) * y, THIRDS)(x, y),
        lambda x, y: (np.exp(x) * y / 3, np.exp(x) * y * 2 / 3),
    ),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", INSIDE)
def test_mark_in_every_transformation(name, place):
    function, expected = INSIDE[name]
    transform, (x, y) = PLACES[place]
    rule = rules.Flat(0.0) if name == "layer" else rules.Zero()
    if place == "vmap over the last axis":
        expected = lambda x, y: [part.T for part in INSIDE[name][1](x.T, y.T)]
    assert_relevance(transform(function), x, y, expected=expected(x, y), rule=rule)


@pytest.mark.parametrize("place", ["plain", "jit", "vmap", "vmap over the last axis", "jit of vmap", "checkpoint"])
def test_input_in_every_transformation(place):
    transform, (x, _) = PLACES[place]
    assert_relevance(transform(lambda x: 2 * mark.input(x - 1.0)), x, expected=(2 * (x - 1),))


@pytest.mark.parametrize("outside", [jax.jit, jax.vmap], ids=["jit", "vmap"])
def test_explanation_is_transformed(outside):
    explain = lambda x, y: relevance_of(INSIDE["gate"][0], x, y)[0]
    found = outside(explain)(jnp.asarray(BATCH), jnp.asarray(BATCH) + 1)
    np.testing.assert_allclose(found, BATCH * np.tanh(BATCH + 1), rtol=1e-12)


def test_gate_marked_outside_of_a_scan_and_inside_of_one():
    scanned = lambda body, *xs: jax.lax.scan(body, None, xs)[1]
    outside = lambda x, y: scanned(lambda _, xs: (None, xs[0] * xs[1]), x, mark.gate(jnp.tanh(y)))
    inside = lambda x, y: x * scanned(lambda _, xs: (None, mark.gate(jnp.tanh(xs[0]))), y)
    for function in (outside, inside):
        assert_relevance(function, X, Y, expected=(X * np.tanh(Y), 0 * Y))


# Bad uses.

BAD = {
    "gate that is no factor": (
        lambda x: jax.nn.relu(mark.gate(x @ jnp.asarray(WEIGHT))),
        r"mark.gate at .*test_marks.py:\d+ .*has no effect.*no factor",
    ),
    "signal times a constant": (
        lambda x: mark.signal(x) * jnp.arange(3.0),
        r"mark.signal at .*test_marks.py:\d+ .*has no effect.*no factor",
    ),
    "gate in a scan that is no factor": (
        lambda x: in_a_scan(lambda x: jnp.tanh(mark.gate(x)))(x),
        r"mark.gate at .*test_marks.py:\d+ .*has no effect",
    ),
    "layer that is a relu": (
        lambda x: mark.layer(jax.nn.relu(x @ jnp.asarray(WEIGHT))),
        r"mark.layer at .*test_marks.py:\d+ .*has no effect: its value is what 'max' at .*linear operation",
    ),
    "no layer that is the input": (lambda x: mark.no_layer(x), r"mark.no_layer at .* its value is an input"),
    "layer of two live values": (lambda x: mark.layer(x @ x[:, None]), r"mark.layer at .*'dot_general'"),
    "both marks": (
        lambda x: mark.layer(mark.no_layer(x @ jnp.asarray(WEIGHT))),
        r"marked with mark.layer and with mark.no_layer",
    ),
    "input behind a layer": (
        lambda x: mark.input(jnp.tanh(x @ jnp.asarray(WEIGHT))),
        r"mark.input marks at .*test_marks.py:\d+ .*not the input in other units: .* layer 'dense_0' at .*:\d+",
    ),
    "input behind its own mean": (lambda x: mark.input(x - x.mean()), r"mark.input .* by 'sub' at .*test_marks.py:\d+"),
    "input in a scan": (
        lambda x: in_a_scan(lambda x: mark.input(x - 1.0) * 2)(x),
        r"mark.input at .* is inside a scan or a cond",
    ),
    "piece that is differentiated": (
        lambda x: jax.grad(lambda x: mark.piece(lambda x: x**3, treatments.smooth)(x).sum() ** 2)(x),
        r"mark.piece makes at .* was taken apart",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_use_is_refused(name):
    function, message = BAD[name]
    with pytest.raises(ModelError, match=message):
        lrp(function, rules.Zero())(jnp.asarray(X))


def test_piece_without_jit_is_refused():
    with jax.disable_jit(), pytest.raises(ModelError, match=r"taken apart, by jax\.disable_jit"):
        lrp(MARKED["piece"], rules.Zero())(jnp.asarray(X))


def test_piece_needs_a_treatment():
    with pytest.raises(ModelError, match="the treatment is a str"):
        mark.piece(jnp.tanh, "smooth")


def test_marks_through_which_no_relevance_flows_do_nothing():
    statistic = jax.lax.stop_gradient
    function = lambda x: x * mark.gate(mark.input(mark.layer(statistic(jnp.tanh(x)))))
    assert_relevance(function, X, expected=(X * np.tanh(X),))


def test_no_layer_leaves_rules_without_a_layer():
    with pytest.raises(SelectorError, match="dense matches no layer"):
        lrp(lambda x: mark.no_layer(x @ jnp.asarray(WEIGHT)), [(composites.dense, rules.Zero())])(jnp.asarray(X))


# Marks that a composite puts at named places.

PARAMETERS = {name: {"kernel": jnp.asarray(WEIGHT), "bias": jnp.array([0.5, -1.0])} for name in ("value", "switch")}


def gated(parameters, x, y, *, marked=lambda name, value: value):
    layer = lambda name, x: marked(name, x @ parameters[name]["kernel"] + parameters[name]["bias"])
    return layer("value", x) * marked("named", checkpoint_name(jnp.tanh(layer("switch", y)), "named"))


def placed(place, kind, *, scanned=False):
    """The relevance with a mark that the composite puts at a place, and with one in the model."""

    def run(rule, marked):
        network = lambda parameters, x, y: gated(parameters, x, y, marked=marked)
        one = lambda parameters, x, y: jax.lax.scan(lambda _, __: (None, network(parameters, x, y)), None, length=2)[1]
        function = one if scanned else network
        explained = lrp(lambda *operands: function(*operands).sum(), rule, argnums=(1, 2))
        return jax.grad(explained, argnums=(1, 2))({**PARAMETERS}, jnp.asarray(X), jnp.asarray(Y))

    by_model = lambda name, value: kind(value) if name == place else value
    rule = rules.Flat(0.0) if kind is mark.no_layer else rules.Zero()
    return (
        run(composites.with_mark(rule, f"^{place}$", kind), lambda _, value: value),
        run(rule, by_model),
        run(rule, lambda _, value: value),
    )


@pytest.mark.sampled(3)
@pytest.mark.parametrize("scanned", [False, True], ids=["plain", "scan"])
@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("named", mark.gate),
        ("named", mark.held),
        ("value", mark.gate),
        ("value", mark.held),
        ("switch", mark.held),
        ("value", mark.no_layer),
    ],
    ids=["gate", "held", "layer as a gate", "held layer", "held layer below", "no layer"],
)
def test_mark_at_a_named_place_is_that_in_the_model(place, kind, scanned):
    by_composite, by_model, unmarked = placed(place, kind, scanned=scanned)
    for found, expected in zip(by_composite, by_model, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert not all(np.allclose(*pair) for pair in zip(by_composite, unmarked, strict=True))


def test_place_that_there_is_not_lists_those_that_there_are():
    rule = composites.with_mark(rules.Zero(), "head", mark.gate)
    with pytest.raises(SelectorError, match=r"with_mark\('head', mark.gate\) matches no .*: value, switch, named\."):
        lrp(gated, rule, argnums=(1, 2))(PARAMETERS, jnp.asarray(X), jnp.asarray(Y))


def test_mark_without_effect_at_a_place_is_refused():
    rule = composites.with_mark(rules.Zero(), "named", mark.layer)
    with pytest.raises(ModelError, match=r"mark.layer at the place 'named' of the composite has no effect"):
        lrp(gated, rule, argnums=(1, 2))(PARAMETERS, jnp.asarray(X), jnp.asarray(Y))


@pytest.mark.parametrize(
    ("place", "kind", "message"),
    [("(", mark.gate, "no regular expression"), ("a", mark.piece, "no mark"), ("a", "gate", "no mark")],
    ids=["pattern", "piece", "name of a mark"],
)
def test_bad_place_is_refused(place, kind, message):
    with pytest.raises(SelectorError, match=message):
        composites.with_mark(rules.Zero(), place, kind)
