"""The program that flips the tokens of several transformers, and what the page says of it."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="module")
def program():
    """The program, which is no module of a package."""
    folder = Path(__file__).parents[1] / "benchmarks"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield importlib.import_module("token_flipping")


@pytest.fixture(scope="module")
def rows(program):
    return json.loads(program.FILE.read_text())["rows"]


def test_code_of_the_page_is_what_the_program_runs(program):
    page = program.code_of_the_page()
    assert {"shapes", "as_tokens", "trained", "scores", "drop"} <= set(page)
    assert "model" not in page  # the page trains one; the program has to train its own
    images, labels = program.with_blots(page["shapes"])(6, 3)
    plain, same_labels = page["shapes"](6, 3)
    np.testing.assert_array_equal(labels, same_labels)
    corners = [images[:, row : row + 5, column : column + 5].all((1, 2, 3)) for row in (1, 22) for column in (1, 22)]
    np.testing.assert_array_equal(np.sum(corners, 0), 3)
    assert ((images >= plain).all((1, 2, 3))).all()


def test_table_of_the_page_is_made_from_what_was_measured(program, rows):
    assert program.FILE.with_suffix(".md").read_text() == program.table(rows)
    assert {(row["pictures"], row["seed"]) for row in rows} == {
        (name, seed) for name in ("lines", "lines and blots") for seed in program.SEEDS
    }


def test_interval_by_hand(program):
    assert program.interval([1.0, 2.0, 3.0]) == "2.00 (−0.48 to 4.48)"  # 4.303 standard errors of 1 / √3


def test_what_the_page_says_is_what_was_measured(program, rows):
    def interval(pictures, one, other):
        found = program.differences(rows, pictures, one, other)
        half = 2.365 * np.std(found, ddof=1) / np.sqrt(len(found))  # the quantile of t for 8 networks
        return np.mean(found) - half, np.mean(found) + half

    assert all(row["accuracy"] > 0.98 for row in rows)
    for pictures in ("lines", "lines and blots"):
        for method in ("AttnLRP", "CP-LRP"):
            assert min(program.differences(rows, pictures, method, "ink")) > 0
            assert min(program.differences(rows, pictures, method, "gradient × input")) > 0
        low, high = interval(pictures, "AttnLRP", "CP-LRP")
        assert max(abs(low), abs(high)) < 0.2
        assert interval(pictures, "gradient × input", "random")[0] > 0
    low, high = interval("lines", "gradient × input", "ink")
    assert low < 0 < high
    assert interval("lines and blots", "ink", "random")[1] < 0.5
