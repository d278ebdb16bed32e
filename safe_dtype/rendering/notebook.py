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
    # Not every notebook has a style for tables; a number and its unit stay in one line.
    aligned = "right; white-space: nowrap" if column.number else "left"
    return f'<td style="padding: 0.2em 0.6em; text-align: {aligned}">{html.escape(cell)}</td>'


def picture(svg: str) -> str:
    """Return a picture, as wide as the page and not much wider than its text; on a phone it scrolls and stays readable."""
    return f'<div style="max-width: 46rem; overflow-x: auto"><div style="min-width: 34rem">{svg}</div></div>'
