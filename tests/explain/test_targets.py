"""What is explained of an output: entries, boxes, segments, names, and outputs of any number of dimensions."""

import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrp_jax import baselines, composites, evaluation, ledger, plan, relevance, rules, target
from lrp_jax.errors import InputError
from lrp_jax.explain_dataset import explain_dataset

RANDOM = np.random.default_rng(0)
WEIGHT = RANDOM.normal(size=(4, 3)).astype(np.float32)
X = RANDOM.normal(size=(3, 5, 6, 4)).astype(np.float32)  # samples, rows, columns, features
CLASSES = ["cat", "tabby, tabby cat", "Egyptian_cat"]


def classes_last(x):
    """A segmentation by one linear layer: output[n, i, j, c] = sum_k x[n, i, j, k] w[k, c]."""
    return x @ WEIGHT


def classes_first(x):
    return jnp.moveaxis(x @ WEIGHT, -1, 1)


def by_hand(weights):
    """LRP-0 of a weighted sum of the outputs of `classes_last`: each input times its weights."""
    return X * np.einsum("nijc,kc->nijk", np.broadcast_to(weights, (3, 5, 6, 3)), WEIGHT)


def box(*places):
    weights = np.zeros((3, 5, 6, 3), np.float32)
    weights[places] = 1
    return weights


EACH = np.arange(3)
CHOICES = {
    "entry": (target.at[4, 2, 1], box(slice(None), 4, 2, 1)),
    "box": (target.at[1:4, 2:5, 2], box(slice(None), slice(1, 4), slice(2, 5), 2)),
    "steps": (target.at[::2, :, 0], box(slice(None), slice(None, None, 2), slice(None), 0)),
    "the rest": (target.at[3], box(slice(None), 3)),
    "ellipsis": (target.at[..., 2], box(..., 2)),
    "in the middle": (target.at[1, ..., 2], box(slice(None), 1, ..., 2)),
    "from the end": (target.at[-1, -2, -3], box(slice(None), -1, -2, -3)),
    "one for each sample": (target.at[[0, 4, 2], 3, [2, 0, 1]], box(EACH, [0, 4, 2], 3, [2, 0, 1])),
    "each in a box": (target.at[[0, 4, 2], 1:3], box(EACH, [0, 4, 2], slice(1, 3))),
    "array": (target.at[np.array([0, 4, 2]), jnp.asarray(3)], box(EACH, [0, 4, 2], 3)),
    "name": (target.at[4, 2, target.name("tabby", CLASSES)], box(slice(None), 4, 2, 1)),
    "segment": (target.mask(X[0, ..., :1] > 0), X[0, ..., :1] > 0),
    "segment of each": (target.mask(X[..., :1] > 0), X[..., :1] > 0),
    "segment for all": (target.mask(X[:1, ..., :1] > 0), X[:1, ..., :1] > 0),
    "weights": (target.mask(WEIGHT[0]), WEIGHT[0]),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_entries_boxes_and_segments(choice):
    chosen, weights = CHOICES[choice]
    expected = by_hand(np.asarray(weights, np.float32))
    near = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    near(relevance(classes_last, X, chosen, rules.Zero()).relevance, expected)
    near(relevance(classes_last, X, chosen, rules.Zero(), batch_size=2, progress=False).relevance, expected)
    near(baselines.gradient_times_input(classes_last, X, chosen), expected)
    book = ledger(classes_last, X, chosen, rules.Zero())
    near((book.explained, book.inputs), (expected.sum(),) * 2)
    near(jax.jit(lambda x: relevance(classes_last, x, chosen, rules.Zero()).relevance)(X), expected)


@pytest.mark.parametrize("choice", ["box", "one for each sample", "segment", "segment of each"])
def test_data_sets(choice, tmp_path):
    chosen, weights = CHOICES[choice]
    options = {"rules": rules.Zero(), "batch_size": 2, "progress": False}
    stored = explain_dataset(classes_last, X, tmp_path / "list", chosen, **options)
    expected = by_hand(np.asarray(weights, np.float32))
    np.testing.assert_allclose(stored["relevance"].read().result(), expected, rtol=1e-4, atol=1e-5)
    streamed = explain_dataset(classes_last, iter(X), tmp_path / "stream", chosen, **options)
    np.testing.assert_allclose(streamed["relevance"].read().result(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [lambda: X, lambda: iter(X)], ids=["array", "iterator"])
@pytest.mark.parametrize("number", [2, 4])
def test_data_set_with_more_or_fewer_targets_than_samples(make, number, tmp_path):
    with pytest.raises(InputError, match=r"samples, but|elements, but there are"):
        explain_dataset(classes_last, make(), tmp_path / "maps", target.at[[0] * number], progress=False)


def test_places_follow_the_order_of_the_output():
    first = relevance(classes_first, X, target.at[1, 4, 2], rules.Zero()).relevance
    last = relevance(classes_last, X, target.at[4, 2, 1], rules.Zero()).relevance
    np.testing.assert_allclose(first, last, rtol=1e-6)
    assert np.flatnonzero(np.abs(first).sum((0, 3))).tolist() == [4 * 6 + 2]


def test_pixel_flipping_follows_a_box():
    maps = relevance(classes_last, X, target.at[1:3, 2:4, 0], rules.Zero()).relevance.sum(-1)
    curve = evaluation.pixel_flipping(classes_last, X, maps, target.at[1:3, 2:4, 0], steps=30)
    np.testing.assert_allclose(curve[:, 0], classes_last(X)[:, 1:3, 2:4, 0].sum((1, 2)), rtol=1e-4)
    np.testing.assert_allclose(curve[:, -1], 0, atol=1e-6)
    baselines.integrated_gradients(classes_last, X, target.at[1, 2, 0])


@pytest.mark.parametrize("door", ["relevance", "batches", "ledger", "gradient", "data set"])
def test_output_of_one_number_for_each_sample_explains_itself(door, tmp_path):
    x, weight = X[:, 0, 0], jnp.asarray(WEIGHT[:, 0])
    model = lambda x: x @ weight
    found = {
        "relevance": lambda: relevance(model, x, None, rules.Zero()).relevance,
        "batches": lambda: relevance(model, x, None, rules.Zero(), batch_size=2, progress=False).relevance,
        "ledger": lambda: ledger(model, x, None, rules.Zero()).inputs,
        "gradient": lambda: baselines.gradient_times_input(model, x),
        "data set": lambda: (
            explain_dataset(model, x, tmp_path, rules=rules.Zero(), progress=False)["relevance"].read().result()
        ),
    }[door]()
    expected = x * WEIGHT[:, 0]
    np.testing.assert_allclose(found, expected.sum() if door == "ledger" else expected, rtol=1e-5, atol=1e-6)
    doubled = relevance(model, x, target.mask([2.0, 0.0, 1.0]), rules.Zero()).relevance
    np.testing.assert_allclose(doubled, np.array([[2.0], [0.0], [1.0]]) * expected, rtol=1e-5, atol=1e-6)


def test_output_of_one_number_explains_itself():
    x, weight = X[:, 0, 0], jnp.asarray(WEIGHT[:, 0])
    model = lambda x: (x @ weight).sum()
    explanation = relevance(model, x, rules=rules.Zero())
    np.testing.assert_allclose(explanation.relevance, x * WEIGHT[:, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ledger(model, x, rules=rules.Zero()).inputs, explanation.output, rtol=1e-5)
    with pytest.raises(InputError, match="one number for all 3 samples: explain them together, without batch_size"):
        relevance(model, x, rules=rules.Zero(), batch_size=2, progress=False)
    with pytest.raises(InputError, match="one number for all samples, but a baseline needs"):
        baselines.gradient(model, x)


def test_name_of_a_class():
    x = X[:, 0, 0]
    model = lambda x: x @ WEIGHT
    run = lambda chosen: relevance(model, x, chosen, rules.Zero()).relevance
    for names, index in (("tabby", 1), ("Tabby Cat", 1), ("tabby, tabby cat", 1), ("egyptian cat", 2), ("cat", 0)):
        assert target.name(names, CLASSES).index == index
        np.testing.assert_array_equal(run(target.name(names, CLASSES)), run(index))
    each = target.name(["cat", "tabby", "Egyptian cat"], dict(enumerate(CLASSES)))
    np.testing.assert_array_equal(run(each), run([0, 1, 2]))
    np.testing.assert_array_equal(baselines.gradient(model, x, each), baselines.gradient(model, x, [0, 1, 2]))


def test_names_of_the_samples_of_a_data_set(tmp_path):
    each = target.name(["cat", "tabby", "Egyptian cat"], CLASSES)
    options = {"rules": rules.Zero(), "batch_size": 2, "progress": False}
    stored = explain_dataset(lambda x: x @ WEIGHT, X[:, 0, 0], tmp_path, each, **options)
    assert stored["target"].read().result().tolist() == [0, 1, 2]


NAMES = {
    "misspelled": (lambda: target.name("tabbi", CLASSES), r"No class has the name 'tabbi'. Did you mean 'tabby'"),
    "part": (lambda: target.name("Egypt", CLASSES), r"No class has the name 'Egypt'. Did you mean 'Egyptian_cat'\?"),
    "far": (
        lambda: target.name("lorry", CLASSES),
        r"'lorry'. There are: \['cat', 'tabby, tabby cat', 'Egyptian_cat'\]",
    ),
    "several": (
        lambda: target.name("crane", ["crane", "dog", "crane"]),
        r"2 classes have the name 'crane': .*\[0, 2\]",
    ),
    "index": (
        lambda: target.name(3, CLASSES),
        "The name of a class is a text, not an int. Pass an index as the target",
    ),
    "one text": (lambda: target.name("cat", "cat dog"), "classes are the names of all classes, .*not a str"),
    "gap": (lambda: target.name("cat", {0: "cat", 2: "dog"}), "mapping from 0 to 1 to names, but has no 1"),
    "other outputs": (
        lambda: relevance(lambda x: x @ WEIGHT, X[:, 0, 0], target.name("cat", ["cat", "dog"])),
        "There are 2 names, but the model returns 3 classes",
    ),
    "more dimensions": (
        lambda: relevance(classes_last, X, target.name("cat", CLASSES)),
        r"Say in which of them the class is, and where: target.at\[target.name\('cat', <3 classes>\), 5, 7\]",
    ),
    "other number": (
        lambda: relevance(lambda x: x @ WEIGHT, X[:, 0, 0], target.name(["cat", "tabby"], CLASSES)),
        "3 samples, but 2 targets",
    ),
}


@pytest.mark.parametrize("case", NAMES)
def test_name_that_does_not_fit(case):
    call, message = NAMES[case]
    with pytest.raises(InputError, match=message):
        call()


REFUSED = {
    "too many": (lambda: target.at[1, 2, 0, 4], r"target.at\[1, 2, 0, 4\] has 4 places, .*\(3, 5, 6, 3\).*samples, 3"),
    "too large": (lambda: target.at[1, 6, 0], r"target.at\[1, 6, 0\] .*dimension 2 is from 0 to 5"),
    "too small": (lambda: target.at[-6], "dimension 1 is from 0 to 4"),
    "empty": (lambda: target.at[1, 4:2], "4:2 chooses nothing of the 6 indices in dimension 2"),
    "samples": (lambda: target.at[[1, 2], 0], "3 samples, but 2 targets"),
    "lengths": (lambda: target.at[[1, 2], [0, 1, 2]], "lists of different lengths"),
    "ellipses": (lambda: target.at[..., 2, ...], "several ellipses"),
    "number": (lambda: target.at[1.5], "an integer, a slice, or a list"),
    "truth values": (lambda: target.at[X[0, ..., 0] > 0], "For anything else there is target.mask"),
    "text": (lambda: target.at["cat"], "must be real numbers, but it is a str"),
    "slice": (lambda: target.at["a":"b"], "the ends of a slice are integers"),
    "mask": (lambda: target.mask(X[..., 0]), r"\(3, 5, 6\), and broadcasts neither .*mask\[:, None\]"),
    "mask of texts": (lambda: target.mask("cat"), "A mask must be real numbers, but it is a str"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_choice_that_does_not_fit(case):
    make, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        relevance(classes_last, X, make())


@pytest.mark.parametrize("chosen", [None, 1, "all"])
def test_output_of_more_dimensions_says_how_to_choose(chosen):
    with pytest.raises(InputError, match=r"\(3, 5, 6, 3\): choose an entry with target.at\[2, 2, 2\], .*target.mask"):
        relevance(classes_last, X, chosen)


def test_choice_equals_what_says_the_same():
    again = lambda: (
        target.at[2, 1:3, ..., [0, 1]],
        target.mask(np.arange(3.0)),
        target.name("tabby", CLASSES),
    )
    assert again() == again()
    assert len({*again(), *again()}) == 3
    assert target.at[2, 1:3] != target.at[2, 1:4]
    assert target.mask(np.arange(3.0)) != target.mask(np.arange(3.0)[::-1])
    assert target.name("tabby", CLASSES) != target.name("cat", CLASSES)
    assert pickle.loads(pickle.dumps(again())) == again()
    assert repr(again()[0]) == "target.at[2, 1:3, ..., [0, 1]]"


def test_choices_are_compiled_once(compiled):
    x = np.concatenate([X, X, X])  # more samples than in any other test
    for chosen in (
        target.at[1, 2, 0],
        target.at[1, 2, 0],
        target.at[2:4, 5],
        target.mask(X > 0) and target.at[0, 0, 1],
    ):
        relevance(classes_last, x, chosen, rules.Zero())
    assert compiled.count("explain_arrays") == 1


def test_place_may_be_traced():
    places = jnp.array([0, 3])
    found = jax.vmap(lambda i: relevance(classes_last, X, target.at[i, 2, 1], rules.Zero()).relevance)(places)
    for i, row in enumerate(places.tolist()):
        np.testing.assert_allclose(found[i], by_hand(box(slice(None), row, 2, 1)), rtol=1e-5, atol=1e-6)
    each = jnp.array([0, 3, -1])
    of_each = jax.jit(lambda i: relevance(classes_last, X, target.at[i, ..., 1], rules.Zero()).relevance)(each)
    np.testing.assert_allclose(of_each, by_hand(box(EACH, [0, 3, 4], slice(None), 1)), rtol=1e-5, atol=1e-6)


def dense(x):
    return x @ WEIGHT


PLACES = {
    "rule": (lambda: relevance(dense, X[0, 0], rules.Epsilon(0.1)), r"Did you mean rules=Epsilon\(epsilon=0.1\)\?"),
    "composite": (lambda: relevance(dense, X[0, 0], composites.EpsilonPlus()), r"Did you mean rules=\.\.\.\?"),
    "class": (lambda: relevance(dense, X[0, 0], rules.Epsilon), r"Did you mean rules=Epsilon\(\)\?"),
    "preset": (lambda: relevance(dense, X[0, 0], composites.EpsilonPlus), r"Did you mean rules=EpsilonPlus\(\)\?"),
    "pairs": (
        lambda: relevance(dense, X[0, 0], [(composites.any_layer, rules.Zero())]),
        r"a list of .* Did you mean rules=\.\.\.\?",
    ),
    "swapped": (lambda: relevance(dense, X[0, 0], rules.Zero(), 2), r"Did you mean rules=Zero\(.*\), target=2\?"),
    "index": (lambda: relevance(dense, X[0, 0], None, 2), r"2 is a target, .*Did you mean target=2\?"),
    "all": (lambda: relevance(dense, X[0, 0], rules="all"), r"Did you mean target='all'\?"),
    "choice": (lambda: relevance(dense, X[0, 0], rules=target.at[2]), r"Did you mean target=target.at\[2\]\?"),
    "ledger": (lambda: ledger(dense, X[0, 0], rules.Zero()), r"Did you mean rules=Zero\(\)\?"),
    "plan": (lambda: plan(dense, X[0, 0], 2), "A plan is the same for every target: leave it out"),
    "data set": (lambda: explain_dataset(dense, X[0, 0], "maps", rules.Zero()), r"Did you mean rules=Zero\("),
    "baseline": (lambda: baselines.gradient(dense, X[0, 0], rules.Zero()), r"says how relevance is propagated"),
}


@pytest.mark.parametrize("case", PLACES)
def test_rules_where_the_target_belongs_and_the_other_way_round(case):
    call, message = PLACES[case]
    with pytest.raises(InputError, match=message):
        call()
