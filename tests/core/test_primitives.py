"""The table of primitives: one entry for each, of primitives that JAX has, and nowhere else a list of names."""

import ast
import collections
from pathlib import Path

import jax
import jax.experimental.sparse  # brings primitives of its own
import pytest
from jax import lax
from jax import numpy as jnp

import lrp_jax
from lrp_jax import lrp, plan, rules
from lrp_jax.core import primitives
from lrp_jax.core.primitive import Family
from lrp_jax.core.primitives import PRIMITIVES, ROWS, named, summary_of
from lrp_jax.explain.ledger import primitives as installed

ONLY_IN_OTHER_VERSIONS = {"closed_call", "stack", "unstack"}  # until JAX 0.10; the others since then

NAMES = [name for names, _ in ROWS for name in names.split()]
MOST_NAMES = 6  # of a pattern, such as a guard of what is divided by; what is longer is a family


def test_there_is_one_entry_for_each_primitive():
    assert [name for name, count in collections.Counter(NAMES).items() if count > 1] == []


def test_jax_has_every_primitive():
    found = {name for name, _ in installed().rows}
    assert set(NAMES) - found <= ONLY_IN_OTHER_VERSIONS


def test_what_relevance_passes_has_an_entry():
    assert {name for name, summary in installed().rows if summary != "refused"} <= PRIMITIVES.keys()


def lists_of_names(tree):
    """The words in each list of a module: a tuple, a list, a set, the keys of a dictionary, or text that is split."""
    for node in ast.walk(tree):
        parts = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", [])
        if isinstance(node, ast.Attribute) and node.attr == "split":
            parts = [node.value]
        yield [word for part in parts if isinstance(part, ast.Constant) for word in str(part.value).split()]


def test_no_other_module_lists_primitives():
    """An operation that is like others is found by its family: a long list of names would describe it once more."""
    for path in sorted(Path(lrp_jax.__file__).parent.rglob("*.py")):
        if path != Path(primitives.__file__):
            for names in lists_of_names(ast.parse(path.read_text())):
                assert len(PRIMITIVES.keys() & set(names)) <= MOST_NAMES, (path.name, names)


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_says_what_happens(name):
    entry = named(name)
    if entry.treatment is None:
        assert (entry.summary == "") == (summary_of(name) == "refused")
    else:
        assert summary_of(name) != "refused"
    assert not entry.compute or Family.ELEMENTWISE in entry.family
    assert Family.MOVE in entry.family or Family.REARRANGEMENT not in entry.family


def test_a_primitive_without_an_entry_is_not_known():
    assert named("igamma").family is Family.NONE
    assert named("igamma").treatment_for([0], 1) is None


def test_one_entry_is_all_that_a_primitive_needs(monkeypatch):
    x = jnp.array([0.5, 2.0, 1.0])
    fun = lambda x: lax.cumlogsumexp(x).sum()
    expected = jax.grad(lrp(fun, rules.Zero()))(x)
    entry = PRIMITIVES["cumlogsumexp"]
    monkeypatch.setattr(primitives, "PRIMITIVES", {k: v for k, v in PRIMITIVES.items() if k != "cumlogsumexp"})
    with pytest.raises(lrp_jax.LRPError, match="'cumlogsumexp'"):
        jax.grad(lrp(fun, rules.Zero()))(x)
    monkeypatch.setattr(primitives, "PRIMITIVES", {**primitives.PRIMITIVES, "cumlogsumexp": entry})
    assert (jax.grad(lrp(fun, rules.Zero()))(x) == expected).all()


@pytest.mark.parametrize("product", [jnp.prod, lambda x, axis: jax.lax.cumprod(x, axis)[:, -1]])
def test_a_product_of_what_is_not_negative_is_not_negative(product):
    weight = jnp.array([[1.0, -1.0], [2.0, 1.0]])
    model = lambda x: product(jax.nn.relu(x).reshape(len(x), 3, 2), axis=1) @ weight
    (layer,) = plan(model, jnp.ones((2, 6)), rules.ZPlus()).layers().rows[-1:]
    assert layer[-1] == "not negative"
