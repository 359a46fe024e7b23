"""What was measured on the photographs: it fits together, and is read as it was written."""

import re

import numpy as np
import pytest

from lrp_book import photographs
from lrp_jax import Ledger
from lrp_jax.explain.ledger import LedgerRow


@pytest.fixture(scope="module")
def measured():
    return photographs.measured()


def test_maps_sum_to_what_the_record_says(measured):
    for name, sums in measured["sums"].items():
        maps = photographs.measured_maps()[name]
        tolerance = 1e-4 * np.abs(maps).sum((1, 2))  # they are kept in 16 bits
        assert (np.abs(maps.sum((1, 2)) - sums) < tolerance).all()


def test_ledgers_close_and_end_where_the_maps_do(measured):
    assert list(measured["ledgers"]) == list(photographs.NAMES)
    for name, accounts in measured["ledgers"].items():
        for treatment, record in accounts.items():
            account = photographs.as_ledger(record)
            assert abs(account.unaccounted) < 1e-4 * account.explained
            of_map = measured["sums"][treatment][photographs.NAMES.index(name)]
            assert account.inputs == pytest.approx(of_map, rel=1e-3, abs=1e-3)


def test_integrated_gradients_are_complete(measured):
    last = measured["integrated"][-1]
    assert last["sum"] == pytest.approx(last["wanted"], rel=0.02)
    assert photographs.measured_maps()["integrated"].sum() == pytest.approx(last["sum"], rel=1e-2)


def test_a_ledger_is_read_as_it_was_written():
    kept = LedgerRow("head", "dense", "Zero()", 3.0, 2.0, 0.75, 0.25, 0.0, 0.0, 1.0)
    passed = LedgerRow("model.py:3", "relu", "passed", 2.0, 2.0, 0.0, 0.0, 0.0, 0.0, 1.0)
    assert photographs.as_ledger(photographs.as_record(Ledger(3.0, 2.0, (kept, passed)))) == Ledger(3.0, 2.0, (kept,))


def test_maps_are_read_as_they_were_written():
    values = np.random.default_rng(0).normal(size=(2, 8, 8)).astype(np.float32) * 1e-6
    found = photographs.unpacked(photographs.packed({"one": values}))
    np.testing.assert_allclose(found["one"], values, atol=1e-3 * np.abs(values).max())


@pytest.mark.parametrize("bias", ["absorb", "ignore", "distribute"])
def test_all_rules_treat_biases_alike(bias):
    assert {rule.bias for _, rule in photographs.composite(bias).rules} == {bias}


def test_every_layer_of_the_network_is_in_one_group(measured):
    paths = [row["path"] for row in measured["ledgers"]["coffee"]["absorb"]["rows"] if row["kind"] in ("conv", "dense")]
    assert len(paths) == 50
    for path in paths:
        assert sum(bool(re.search(pattern, path)) for pattern in photographs.GROUPS.values()) == 1
