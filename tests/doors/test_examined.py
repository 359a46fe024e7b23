"""Every architecture is still explained as the table on "Bring your own model" says."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.doors

MEASURED = Path(__file__).parents[2] / "book" / "measured" / "architectures.json"
ROWS = json.loads(MEASURED.read_text())["rows"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_answers_are_those_of_the_table(row):
    examine = pytest.importorskip("examine")
    pytest.importorskip({"dm-haiku": "haiku"}.get(row["library"], row["library"]))
    found = examine.examine_apart(row["name"])
    answers = [*examine.QUESTIONS, "layers"]
    assert {key: found.get(key) for key in answers} == {key: row.get(key) for key in answers}, found
