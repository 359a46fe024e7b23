"""Which rule where: selectors, composites, presets."""

import copy
import pickle
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import jit_by_day
from flax import nnx
from jax.experimental import sparse

from lrp_jax import composites, lrp, mark, relevance, rules, treatments
from lrp_jax.composites import Composite, any_layer, conv, dense, first, index, last, name
from lrp_jax.core.planner import make_plan
from lrp_jax.core.trace import trace
from lrp_jax.errors import RuleError, SelectorError


class Block(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(4, 4, (3, 3), rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.conv(x)) + x


class Network(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.blocks = nnx.List([Block(rngs), Block(rngs)])
        self.hidden = nnx.Linear(4, 5, rngs=rngs)
        self.head = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        x = nnx.max_pool(x, (2, 2), (2, 2)).mean((1, 2))
        return self.head(nnx.relu(self.hidden(x)))


NAMES = ["stem", "blocks.0.conv", "blocks.1.conv", "hidden", "head"]


@pytest.fixture(scope="module")
def network():
    return Network(nnx.Rngs(0))


@pytest.fixture(scope="module")
def image():
    return jax.random.uniform(jax.random.key(0), (1, 6, 6, 1))


def layers_with(network, image, rule, composite):
    plan = make_plan(trace(network, (0,), (image,), {}).graph, composites.as_composite(composite))
    return [piece.layer.name for piece in plan.pieces if piece.layer is not None and piece.rule == rule]


@pytest.mark.parametrize(
    ("selector", "selected"),
    [
        (any_layer, NAMES),
        (conv, NAMES[:3]),
        (dense, NAMES[3:]),
        (first, NAMES[:1]),
        (last, NAMES[-1:]),
        (index[0], NAMES[:1]),
        (index[-2], NAMES[3:4]),
        (index[1:3], NAMES[1:3]),
        (index[-3:], NAMES[2:]),
        (index[::2], NAMES[::2]),
        (name(r"^blocks\.\d"), NAMES[1:3]),
        (name("head|stem"), [NAMES[0], NAMES[4]]),
        (conv & ~first, NAMES[1:3]),
        (first | last, [NAMES[0], NAMES[4]]),
        (lambda layer: layer.output_shape[-1] == 5, NAMES[3:4]),
    ],
    ids=[
        "any layer",
        "convolutions",
        "dense layers",
        "first",
        "last",
        "index 0",
        "last but one",
        "second and third",
        "last three",
        "every second",
        "start of the name",
        "either name",
        "both conditions",
        "either condition",
        "predicate",
    ],
)
def test_selector(network, image, selector, selected):
    pairs = [(selector, rules.ZPlus()), (any_layer, rules.Epsilon())]
    assert layers_with(network, image, rules.ZPlus(), pairs) == selected


def test_first_match_wins(network, image):
    pairs = [(conv, rules.ZPlus()), (first, rules.Flat()), (any_layer, rules.Epsilon())]
    assert layers_with(network, image, rules.Flat(), pairs) == []


def test_names_of_parameters_passed_as_arguments(network, image):
    definition, state = nnx.split(network)
    traced = trace(lambda state, x: nnx.merge(definition, state)(x), (1,), (state, image), {})
    plan = make_plan(traced.graph, composites.as_composite(rules.Zero()))
    assert [piece.layer.name for piece in plan.pieces if piece.layer] == NAMES


def test_names_of_a_plain_function_that_closes_over_its_parameters(image):
    parameters = {"encoder": {"weight": jnp.ones((36, 4))}, "head": {"weight": jnp.ones((4, 2))}}

    def function(x):
        return jax.nn.relu(x.reshape(1, -1) @ parameters["encoder"]["weight"]) @ parameters["head"]["weight"]

    plan = make_plan(trace(function, (0,), (image,), {}).graph, composites.as_composite(rules.Zero()))
    assert [piece.layer.name for piece in plan.pieces if piece.layer] == ["encoder", "head"]


def test_selector_that_matches_nothing_lists_the_layers(network, image):
    with pytest.raises(SelectorError, match=r"name\('decoder'\) matches no layer(.|\n)*blocks\.1\.conv") as error:
        lrp(network, [(name("decoder"), rules.Flat()), (any_layer, rules.Epsilon())])(image)
    assert all(layer in str(error.value) for layer in NAMES)


def test_layer_without_a_rule_is_refused(network, image):
    with pytest.raises(SelectorError, match=r"No rule for the layer 'hidden'"):
        lrp(network, [(conv, rules.ZPlus())])(image)


def test_class_instead_of_rule_is_refused():
    with pytest.raises(SelectorError, match=r"Did you mean Epsilon\(\)"):
        lrp(lambda x: x, rules.Epsilon)


def test_bad_regular_expression_is_refused():
    with pytest.raises(SelectorError, match="regular expression"):
        name("(")


def test_number_instead_of_selector_is_refused():
    with pytest.raises(SelectorError, match="selects no layers"):
        Composite([(3, rules.Epsilon())])


PRESETS = {
    "EpsilonPlus": (composites.EpsilonPlus(), "ZPlus ZPlus ZPlus Epsilon Epsilon"),
    "EpsilonPlusFlat": (composites.EpsilonPlusFlat(), "Flat ZPlus ZPlus Epsilon Epsilon"),
    "EpsilonGammaBox": (composites.EpsilonGammaBox(0.0, 1.0), "ZBox Gamma Gamma Epsilon Epsilon"),
    "EpsilonAlpha2Beta1": (composites.EpsilonAlpha2Beta1(), "AlphaBeta AlphaBeta AlphaBeta Epsilon Epsilon"),
    "EpsilonAlpha2Beta1Flat": (composites.EpsilonAlpha2Beta1Flat(), "Flat AlphaBeta AlphaBeta Epsilon Epsilon"),
    "DeepTaylor": (composites.DeepTaylor(0.0, 1.0), "ZBox ZPlus ZPlus ZPlus ZPlus"),
    "DeepTaylor without bounds": (composites.DeepTaylor(), "WSquare ZPlus ZPlus ZPlus ZPlus"),
    "AttnLRP": (composites.AttnLRP(), "Epsilon Epsilon Epsilon Epsilon Epsilon"),
    "CPLRP": (composites.CPLRP(), "Epsilon Epsilon Epsilon Epsilon Epsilon"),
    "ExcitationBackprop": (composites.ExcitationBackprop(), "ZPlus ZPlus ZPlus ZPlus ZPlus"),
    "GuidedBackprop": (composites.GuidedBackprop(), "Gradient Gradient Gradient Gradient Gradient"),
    "Deconvnet": (composites.Deconvnet(), "Gradient Gradient Gradient Gradient Gradient"),
}


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_assigns_its_rules(network, image, preset):
    composite, expected = PRESETS[preset]
    plan = make_plan(trace(network, (0,), (image,), {}).graph, composite)
    assert " ".join(type(piece.rule).__name__ for piece in plan.pieces if piece.layer) == expected
    assert jnp.isfinite(relevance(network, image, 1, composite).relevance).all()


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_works_on_a_network_without_convolutions(preset):
    weight = jnp.array([[1.0, -1.0], [3.0, 2.0]])
    network = lambda x: jax.nn.relu(x @ weight) @ weight
    assert jnp.isfinite(relevance(network, jnp.ones((1, 2)), 1, PRESETS[preset][0]).relevance).all()


def test_guided_backprop_on_a_linear_network_is_the_gradient():
    weight = jnp.array([[1.0, -1.0], [3.0, 2.0]])
    maps = relevance(lambda x: x @ weight, jnp.array([[5.0, 7.0]]), 1, composites.GuidedBackprop()).relevance
    np.testing.assert_allclose(maps, [[-1.0, 2.0]])


@pytest.mark.parametrize(
    ("composite", "expected"),
    [
        (composites.GuidedBackprop(), [0.5, 0.0, 0.0, 0.0]),  # where input and gradient are positive
        (composites.Deconvnet(), [0.5, 0.0, 2.0, 0.0]),  # where the gradient is positive
    ],
    ids=["guided", "deconvolved"],
)
def test_rectified_gradient_by_hand(composite, expected):
    weight = jnp.array([[0.5], [-3.0], [2.0], [-1.0]])
    maps = relevance(lambda x: jax.nn.relu(x) @ weight, jnp.array([[0.5, 2.0, -1.0, -4.0]]), 0, composite).relevance
    np.testing.assert_allclose(maps, [expected])


def test_treatment_of_pooling_can_be_chosen():
    x = jnp.array([[[[3.0], [1.0]]]])
    pooled = lambda x: nnx.max_pool(x, (1, 2), (1, 2)).sum()
    rule = lambda name: composites.with_treatment(rules.Zero(), "reduce_window_max", getattr(treatments, name))
    names = ("winner_takes_all", "pooled_in_proportion", "pooled_evenly")
    maps = jit_by_day(lambda x: {name: jax.grad(lrp(pooled, rule(name)))(x).ravel() for name in names})(x)
    np.testing.assert_allclose(maps["winner_takes_all"], [3.0, 0.0])
    np.testing.assert_allclose(maps["pooled_in_proportion"], [2.25, 0.75], rtol=1e-5)
    np.testing.assert_allclose(maps["pooled_evenly"], [1.5, 1.5])


@pytest.mark.parametrize("treatment", ["pooled_in_proportion", "pooled_evenly"])
def test_pooling_in_single_precision_stays_so_where_double_is_switched_on(float64, treatment):
    rule = composites.with_treatment(rules.Zero(), "reduce_window_max", getattr(treatments, treatment))
    pooled = lambda x: nnx.max_pool(x, (1, 2), (1, 2)).sum()
    assert jax.grad(lrp(pooled, rule))(jnp.ones((1, 1, 2, 1), jnp.float32)).dtype == jnp.float32


def test_powers_of_complex_numbers_are_refused():
    with pytest.raises(NotImplementedError, match="complex numbers"):
        lrp(lambda x: (jnp.fft.rfft(x) ** 2).real.sum(), rules.Zero())(jnp.ones(4))


def test_sparse_product_becomes_known_with_the_treatment_that_its_refusal_names():
    x, weight = jnp.array([[2.0, 3.0]]), sparse.BCOO.fromdense(np.array([[1.0, -1.0], [0.0, 2.0]], np.float32))
    network = lambda x: jnp.abs(x @ weight).sum()
    rule = composites.with_treatment(rules.Zero(), "bcoo_dot_general", treatments.proportional)
    np.testing.assert_allclose(jax.grad(lrp(network, rule))(x), x * jax.grad(network)(x))


def test_unknown_operation_becomes_known_with_a_treatment():
    x = jnp.array([2.0, 3.0])
    network = lambda x: jax.scipy.special.gammainc(x, x + 1).sum()
    with pytest.raises(NotImplementedError, match=r"with_treatment\(rules, 'igamma'"):
        lrp(network, rules.Zero())(x)
    relevance = jax.grad(lrp(network, composites.with_treatment(rules.Zero(), "igamma", treatments.smooth)))(x)
    np.testing.assert_allclose(relevance, x * jax.grad(network)(x))


# Treatments of one's own: under a key they are found by value, whatever the spelling.

RATIO = treatments.Form.RATIO
SEVEN = treatments.Treatment(  # seven times the ratio of all outputs to every operand
    "seven", {RATIO: lambda call: [7 * call.cotangents[0].sum() * jnp.ones_like(x) for x in call.live]}, RATIO, RATIO
)
SAMPLES = jnp.array([[1.0, 2.0, -3.0]])


def softmax_with_a_shift(x):
    exponentials = jnp.exp(x - x.max(-1, keepdims=True))
    return exponentials * (1 / exponentials.sum(-1, keepdims=True))


SPELLINGS = {
    "relu": [
        jax.nn.relu,
        lambda x: jnp.where(x > 0, x, 0),
        lambda x: x * (x > 0),
        lambda x: jnp.maximum(x, 0),
        lambda x: jax.lax.scan(lambda _, row: (None, jnp.clip(row, 0)), None, x)[1],
    ],
    "sigmoid": [jax.nn.sigmoid, lambda x: 1 / (1 + jnp.exp(-x)), lambda x: (1 + jnp.tanh(x / 2)) / 2],
    "softplus": [jax.nn.softplus, lambda x: jnp.log(1 + jnp.exp(x)), lambda x: jnp.logaddexp(x, 0)],
    "silu": [jax.nn.silu, lambda x: x * jax.nn.sigmoid(x), lambda x: x / (1 + jnp.exp(-x))],
    "gelu": [jax.nn.gelu, lambda x: jax.nn.gelu(x, approximate=False)],
    "softmax": [
        jax.nn.softmax,
        lambda x: jnp.exp(x) / jnp.exp(x).sum(-1, keepdims=True),
        lambda x: jnp.exp(jax.nn.log_softmax(x)),
        softmax_with_a_shift,
        jax.vmap(jax.nn.softmax),
        lambda x: jax.lax.scan(lambda _, row: (None, jax.nn.softmax(row)), None, x)[1],
    ],
    "log_softmax": [
        jax.nn.log_softmax,
        lambda x: x - jax.nn.logsumexp(x, -1, keepdims=True),
        lambda x: x - jnp.log(jnp.exp(x).sum(-1))[:, None],
    ],
    "logsumexp": [
        lambda x: jax.nn.logsumexp(x, -1),
        lambda x: jnp.log(jnp.exp(x).sum(-1, keepdims=True)),
    ],
    "max": [lambda x: x.max(-1), lambda x: jax.vmap(jnp.max)(x)],
    "scan": [lambda x: jax.lax.scan(lambda carry, row: (jnp.tanh(carry + row), None), jnp.zeros(3), x)[0]],
}
PAIRS = [(key, spelling) for key, functions in SPELLINGS.items() for spelling in range(len(functions))]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("key", "spelling"), PAIRS)
def test_treatment_matches_by_value(key, spelling):
    function = SPELLINGS[key][spelling]
    explained = lrp(function, composites.with_treatment(rules.Zero(), key, SEVEN))
    found = jax.grad(lambda x: explained(x).sum())(SAMPLES)
    np.testing.assert_allclose(found, 7 * function(SAMPLES).size * SAMPLES, rtol=1e-6)


@pytest.mark.parametrize("key", ["softmax", "log_softmax", "logsumexp"])
def test_treatment_is_given_what_a_softmax_is_computed_from(key):
    # The operand in place of the ratio: what is subtracted for precision belongs to the softmax.
    operand = lambda call: [call.cotangents[0].sum() * x for x in call.live]
    composite = composites.with_treatment(
        rules.Zero(), key, treatments.Treatment("its operand", {RATIO: operand}, RATIO, RATIO)
    )
    explain = lambda function, x: jax.grad(lambda x: lrp(function, composite)(x).sum())(x)
    found = jit_by_day(lambda x: [explain(function, x) for function in SPELLINGS[key]])(SAMPLES)
    for function, by_treatment in zip(SPELLINGS[key], found, strict=True):
        np.testing.assert_allclose(by_treatment, function(SAMPLES).size * SAMPLES**2, rtol=1e-6)


@pytest.mark.parametrize("key", ["relu", "sigmoid", "gelu", "softplus"])
def test_treatment_matches_a_part_of_a_function(key):
    function = SPELLINGS[key][0]
    explained = lrp(lambda x: 4 * function(2 * x), composites.with_treatment(rules.Zero(), key, SEVEN))
    np.testing.assert_allclose(jax.grad(lambda x: explained(x).sum())(SAMPLES), 4 * 7 * 3 * 2 * SAMPLES, rtol=1e-6)


def test_treatment_of_a_gate():
    composite = composites.with_treatment(rules.Zero(), "gate", SEVEN)
    explained = lrp(lambda x, y: x * jax.nn.sigmoid(y), composite, argnums=(0, 1))
    found = jax.grad(lambda *xs: explained(*xs).sum(), (0, 1))(SAMPLES, 1 + SAMPLES)
    np.testing.assert_allclose(found, [21 * SAMPLES, 0 * SAMPLES])


@pytest.mark.parametrize(
    ("function", "key", "there"),
    [
        (jax.nn.softmax, "exp", "softmax"),
        (jax.nn.softmax, "log_softmax", "softmax"),
        (jax.nn.log_softmax, "logsumexp", "log_softmax"),
        (jax.nn.relu, "max", "relu"),
        (jax.nn.silu, "sigmoid", "silu"),
        (jax.nn.gelu, "tanh", "gelu"),
        (lambda x: jax.lax.scan(lambda _, row: (None, jnp.tanh(row)), None, x)[1], "relu", "scan, tanh"),
        (lambda x: x, "relu", "no operations"),
    ],
    ids=["exp", "log_softmax", "logsumexp", "max", "sigmoid", "tanh", "in a scan", "nothing"],
)
def test_treatment_that_matches_nothing_lists_what_there_is(function, key, there):
    with pytest.raises(SelectorError, match=rf"The treatment for '{key}' matches nothing. There are: .*{there}"):
        lrp(function, composites.with_treatment(composites.EpsilonPlus(), key, SEVEN))(SAMPLES)


def test_treatment_for_a_softmax_that_is_no_single_value():
    def attention(x):
        exponentials = jnp.exp(x)
        return (exponentials * x).sum(-1) / exponentials.sum(-1)

    with pytest.raises(SelectorError, match=r"'softmax' cannot be applied .*test_composites.py:\d+.*Divide first"):
        lrp(attention, composites.with_treatment(rules.Zero(), "softmax", SEVEN))(SAMPLES)


def test_guided_backprop_finds_a_relu_within_a_function():
    weight = jnp.array([[0.5], [-3.0], [2.0]])
    spelled = lambda x: (jax.nn.relu(x) / 2) @ weight
    maps = relevance(spelled, SAMPLES, 0, composites.GuidedBackprop()).relevance
    np.testing.assert_allclose(maps, [[0.25, 0.0, 0.0]])


def test_composite_of_one_rule_gives_it_to_every_layer():
    assert Composite(rules.Gamma()) == composites.as_composite(rules.Gamma()) == Composite([(any_layer, rules.Gamma())])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (rules.Epsilon, r"Did you mean Epsilon\(\)\?"),
        (composites.EpsilonPlus, r"Did you mean EpsilonPlus\(\)\?"),
        (Composite(rules.Epsilon()), "It is one already"),
        ({"dense": rules.Epsilon()}, r"Write \[\(name\('head'\), Zero\(\)\)"),
        ({(any_layer, rules.Epsilon())}, "a list of"),
        ("epsilon", "not 'epsilon'"),
        (3, "not 3"),
    ],
    ids=["class", "preset", "composite", "mapping", "set", "string", "number"],
)
def test_what_is_no_list_of_pairs_is_refused(given, message):
    with pytest.raises(SelectorError, match=message):
        Composite(given)


def broken(layer):
    return layer.no_such_attribute


@pytest.mark.parametrize("selector", [broken, ~dense & composites.Selector(broken, "broken") | first])
def test_selector_that_raises_is_named_with_its_layer(network, image, selector):
    composite = Composite([(selector, rules.Zero()), (any_layer, rules.Epsilon())])
    with pytest.raises(SelectorError, match=r"broken.* raised .*AttributeError.* for the layer 'stem'") as raised:
        lrp(network, composite)(image)
    assert isinstance(raised.value.__cause__, AttributeError)


class Remembering(rules.Rule):
    """A rule of a user's own that can change."""

    def __init__(self):
        self.seen = []


@dataclass
class Unfrozen(rules.Rule):
    """A dataclass that can change."""

    power: float = 2.0


class Stateless(rules.Rule):
    """No dataclass, but nothing that could change."""

    def shares(self, layer, relevance):
        return rules.Zero().shares(layer, relevance)


def test_rule_that_can_change_is_refused(network, image):
    for rule in (Remembering(), Unfrozen()):
        for door in (lambda rule: lrp(network, rule), lambda rule: Composite([(any_layer, rule)])):
            with pytest.raises(RuleError, match=rf"dataclass\(frozen=True\)' above 'class {type(rule).__name__}'"):
                door(rule)
    maps = lambda rule: jit_by_day(jax.grad(lambda x: lrp(network, rule)(x)[0, 0]))(image)
    expected, found = maps(rules.Zero()), maps(Stateless())
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


ALL_RULES = [
    rules.Zero(),
    rules.Epsilon(0.1, True, "ignore"),
    rules.Gamma(0.1, 1e-3),
    rules.AlphaBeta(1.7, 0.7),
    rules.ZPlus(1e-3),
    rules.WSquare(),
    rules.Flat(),
    rules.ZBox((0.1, 1.0), np.float32(2)),
    rules.Pass(),
    rules.Gradient(),
    rules.Norm(),
]
ALL_COMPOSITES = [
    composites.EpsilonPlus(0.1),
    composites.EpsilonPlusFlat(),
    composites.EpsilonGammaBox(0.0, 1.0, gamma=0.1),
    composites.EpsilonAlpha2Beta1(),
    composites.EpsilonAlpha2Beta1Flat(),
    composites.DeepTaylor((0.0, 0.0), (1.0, 2.0)),
    composites.AttnLRP(),
    composites.CPLRP(),
    composites.ExcitationBackprop(),
    composites.GuidedBackprop(),
    composites.Deconvnet(),
    composites.with_treatment(rules.Epsilon(), "max", treatments.pooled_in_proportion),
    composites.with_mark(rules.Epsilon(), "^a$", mark.gate),
    Composite([(~conv & first | name("a") & index[1:3], rules.Gamma(0.3)), (last, rules.Zero())], constants="pass"),
]


@pytest.mark.parametrize("whole", ALL_RULES + ALL_COMPOSITES, ids=lambda whole: type(whole).__name__)
def test_rules_and_composites_go_through_files_pickles_and_programs(whole, tmp_path):
    whole.save(tmp_path / "file")
    loaded = type(whole).load(tmp_path / "file")
    unpickled = pickle.loads(pickle.dumps(whole))
    rebuilt = jax.tree.unflatten(jax.tree.structure(whole), jax.tree.leaves(whole))
    for found in (loaded, unpickled, rebuilt, copy.deepcopy(whole)):
        assert found == whole
        assert hash(found) == hash(whole)
        assert repr(found) == repr(whole)
    assert composites.as_composite(loaded).is_built_in
    assert jax.jit(lambda whole: whole)(whole) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    if isinstance(whole, rules.Rule):
        assert rules.Rule.load(tmp_path / "file") == whole


@pytest.mark.parametrize(
    "selector", [any_layer, conv, dense, first, last, index[0], index[1:], ~name("a") | conv & first]
)
def test_selectors_are_pickled(selector):
    assert pickle.loads(pickle.dumps(selector)) == selector
