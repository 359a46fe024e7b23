"""Tables of a page: numbers in the house's notation, readable in both modes, and on a phone within their own scroll."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

Cell: TypeAlias = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Rows of texts and numbers, which a notebook shows as a table.

    Attributes:
        header: The name of each column, with its unit.
        rows: The cells; numbers are written by `as_text`, None is an empty cell.
        digits: How many significant digits numbers have.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    digits: int = 3

    def _repr_html_(self) -> str:
        head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in self.header)
        body = "".join(f"<tr>{''.join(self._cell(cell) for cell in row)}</tr>" for row in self.rows)
        table = f'<table class="table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        return f'<div class="pst-scrollable-table-container">{table}</div>'

    def _cell(self, cell: Cell) -> str:
        if cell is None or isinstance(cell, str):
            return f"<td>{html.escape(cell or '')}</td>"
        return f'<td class="number">{as_text(cell, self.digits)}</td>'


def as_text(number: float, digits: int = 3) -> str:
    """A number as the book writes it: few digits, a true minus sign, powers of ten where zeros would be counted.

    Args:
        number: The number.
        digits: How many significant digits it has at most; integers have all of theirs.

    Example:
        >>> [as_text(number) for number in (12345, 0.00000042, -2.5, 1234.5, 99.96)]
        ['12,345', '4.2 × 10⁻⁷', '−2.5', '1,234', '100']
    """
    if isinstance(number, int):
        return f"{number:,}".replace("-", "−")
    if not math.isfinite(number):
        return str(number).replace("inf", "∞").replace("-", "−").replace("nan", "not a number")
    exponent = math.floor(math.log10(abs(number))) if number else 0
    if number and not -4 <= exponent < 6:
        mantissa = _short(number / 10.0**exponent, digits, 0)
        return f"{mantissa} × 10{str(exponent).translate(_SUPERSCRIPTS)}"
    return _short(number, digits, exponent)


_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _short(number: float, digits: int, exponent: int) -> str:
    text = f"{number:,.{max(0, digits - 1 - exponent)}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return text.replace("-", "−")
