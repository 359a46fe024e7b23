"""Waterfalls of ledgers: the amounts, and where their bars begin and end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrp_book.waterfalls import draw_waterfall, stages, waterfall
from lrp_jax import Ledger, ledger, rules
from lrp_jax.explain.ledger import LedgerRow


@pytest.fixture(scope="module")
def account():
    """That of two layers with biases, of which the lower one gains from a negative bias, and a sigmoid."""
    lower, upper = jnp.array([[1.0, 2.0], [-1.0, 1.0]]), jnp.array([[3.0], [1.0]])
    bias = {"lower": jnp.array([-0.5, 1.0]), "upper": jnp.array([2.0])}

    def network(params, x):
        return jax.nn.sigmoid(0.1 * (jax.nn.relu(x @ lower + params["lower"]) @ upper + params["upper"]))

    return ledger(lambda x: network(bias, x), jnp.array([[2.0, 1.0]]), 0, rules.Epsilon(0.5))


def bars(figure):
    """Where each bar begins and ends, from top to bottom."""
    boxes = [patch.get_bbox() for patch in figure.axes[0].patches]
    return [(box.x0, box.x1) for box in boxes]


def test_every_amount_of_the_ledger_is_in_a_stage(account):
    kept = [stage.kept for stage in stages(account)]
    for cause, total in {
        "biases": account.bias,
        "stabiliser": account.stabilizer,
        "constants": account.constants,
        "not conserved": account.not_conserved,
    }.items():
        assert sum(of_stage[cause] for of_stage in kept) == pytest.approx(total)
    assert min(abs(account.bias), abs(account.stabilizer), abs(account.constants)) > 1e-3


def test_bars_lead_from_what_is_explained_to_what_arrives(account):
    first, *kept, last = bars(waterfall(account))
    np.testing.assert_allclose(sorted(first), [0, account.explained], atol=1e-6)
    np.testing.assert_allclose(sorted(last), [min(0, account.inputs), max(0, account.inputs)], atol=1e-6)
    level = account.explained
    for bar in kept:
        start, end = sorted(bar, key=lambda side: abs(side - level))
        assert start == pytest.approx(level)
        level = end
    assert level == pytest.approx(account.inputs, abs=1e-5)


def test_groups_follow_each_other_and_take_operations_between_their_layers():
    def row(path, kind, kept):
        return LedgerRow(path, kind, "", 0.0, 0.0, kept, 0.0, 0.0, 0.0, 1.0)

    rows = (
        row("head", "dense", 1.0),
        row("model.py:3", "mul", 0.5),
        row("blocks.1", "conv", 2.0),
        row("blocks.0", "conv", -3.0),
    )
    found = stages(Ledger(10.0, 9.5, rows), {"the head": "head", "blocks": r"blocks\.\d"})
    assert [(stage.label, stage.kept["biases"]) for stage in found] == [("the head", 1.5), ("blocks", -1.0)]


def test_operations_that_change_nothing_are_no_stages(account):
    assert [stage.label.split(",")[0] for stage in stages(account)] == [
        "function of 2 operations",
        "dense_1",
        "dense_0",
    ]


def test_a_waterfall_is_as_high_as_its_bars_need(account):
    shown = waterfall(account)
    lanes = draw_waterfall(shown.add_subplot(), account)
    assert shown.get_size_inches()[1] == pytest.approx(0.2 * lanes + 0.55)
    labels = [label.get_text() for label in shown.axes[0].get_yticklabels()]
    assert labels[0] == "explained"
    assert labels[-1] == "arrived"
