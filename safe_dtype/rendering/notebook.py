"""What a value shows of itself in a notebook: lines, tables and pictures, as HTML. Foreign text is escaped here."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from .table_as_html import table_as_html
from .tables import Column


def notebook(*parts: str) -> str:
    """Return parts that are HTML already, one below the other."""
    return f"<div>{''.join(parts)}</div>"


def paragraph(lines: Iterable[str]) -> str:
    """Return lines of text as one paragraph; nothing where there are none."""
    text = "<br>".join(map(html.escape, lines))
    return f"<p>{text}</p>" if text else ""


def html_table(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> str:
    """Return rows below the titles of their columns; nothing where there are no rows."""
    return table_as_html(columns, rows, cell=_aligned)


def _aligned(column: Column, cell: str) -> str:
    return f'<td style="text-align: {"right" if column.number else "left"}">{html.escape(cell)}</td>'


def picture(svg: str) -> str:
    """Return a picture, as wide as the page and not much wider than its text."""
    return f'<div style="max-width: 46rem">{svg}</div>'
