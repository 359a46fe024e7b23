"""Tables of a page: numbers in the house's notation, readable in both modes, and on a phone within their own scroll."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from lrp_book.numbers import as_text

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
