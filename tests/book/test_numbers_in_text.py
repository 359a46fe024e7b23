"""Numbers in sentences are written as in tables."""

import pytest
from docutils import nodes
from numbers_in_text import write_numbers

from lrp_book.numbers import as_text, typeset


@pytest.mark.parametrize("number", [1.6e-07, 4.2e9, -2.5e-12, -0.36, 12345])
def test_number_is_written_as_in_a_table(number):
    text = f"{number:,}" if isinstance(number, int) else f"{number:.1e}" if abs(number) < 1e-4 else f"{number:.2g}"
    assert typeset(text) == as_text(number)


@pytest.mark.parametrize(("text", "expected"), [("1e-07", "10⁻⁷"), ("-1e-07", "−10⁻⁷"), ("1.0e-07", "1.0 × 10⁻⁷")])
def test_mantissa_of_one_is_left_out(text, expected):
    assert typeset(text).replace("\xa0", " ") == expected


@pytest.mark.parametrize("text", ["2026-11-29", "label 3e", "e-07", "1.6e-07 and more", "", "nine"])
def test_other_words_stay(text):
    assert typeset(text) == text


def test_what_the_run_has_not_put_there_stays():
    page = nodes.paragraph("", "", nodes.inline("", "-1", classes=["pasted-text"]), nodes.literal("", "-1"))
    write_numbers(None, page)
    assert page.astext() == "−1-1"
