"""A table as HTML, for pages and for notebooks, which differ in what they write at a title and at a cell."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from .tables import Column

_Cell = TypeVar("_Cell")


def table_as_html(
    columns: Sequence[Column], rows: Iterable[Sequence[_Cell]], *, cell: Callable[[Column, _Cell], str],
    title_attributes: Callable[[Column], str] = lambda _column: "",
) -> str:  # fmt: skip
    """Return rows below the titles of their columns; nothing where there are no rows.

    Args:
        columns: With titles, which are escaped here.
        rows: As many cells in each as there are columns.
        cell: Returns a cell as HTML, with its `<td>`.
        title_attributes: Returns what stands in the `<th>` of a column, with a space before it.
    """
    head = "".join(f"<th{title_attributes(column)}>{html.escape(column.title)}</th>" for column in columns)
    written = ("".join(cell(*pair) for pair in zip(columns, row, strict=True)) for row in rows)
    body = "\n".join(f"<tr>{cells}</tr>" for cells in written)
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>" if body else ""
