"""What a value shows of itself in a notebook: lines, tables and pictures, as HTML. Foreign text is escaped here."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from .tables import Column


def notebook(*parts: str) -> str:
    """Return parts that are HTML already, one below the other."""
    return f"<div>{''.join(parts)}</div>"


def paragraph(lines: Iterable[str]) -> str:
    """Return lines of text as one paragraph; nothing where there are none."""
    text = "<br>".join(map(html.escape, lines))
    return f"<p>{text}</p>" if text else ""


def html_table(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> str:
    """Return rows below the titles of their columns."""
    head = "".join(f"<th>{html.escape(column.title)}</th>" for column in columns)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td style="text-align: {"right" if column.number else "left"}">{html.escape(cell)}</td>'
            for column, cell in zip(columns, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def picture(svg: str) -> str:
    """Return a picture, as wide as the page and not much wider than its text."""
    return f'<div style="max-width: 46rem">{svg}</div>'
