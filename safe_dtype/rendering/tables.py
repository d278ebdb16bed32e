"""Tables for a terminal, and a page of lines and tables. Imports rich, which takes 50 ms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import StringIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code != ord("\n")}

__all__ = ["Column", "Table", "page", "table"]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table."""

    title: str
    number: bool = False  # to the right, as numbers are
    wraps: bool = False  # over several lines where the page is narrow; the others stay on one


def table(columns: Iterable[Column], rows: Iterable[Sequence[str]], *, tight: bool = False) -> Table:
    """Return a table with a line below its titles, and nothing else drawn; `tight` leaves less between its columns."""
    drawn = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=tight)
    for column in columns:
        drawn.add_column(
            column.title,
            justify="right" if column.number else "left",
            no_wrap=not column.wraps,
            overflow="fold" if column.wraps else "ellipsis",
        )
    for row in rows:
        drawn.add_row(*map(_visible, row))
    return drawn


def page(parts: Iterable[str | Table], *, width: int) -> str:
    """Return lines and tables as plain text, `width` characters wide at most, without spaces at the ends of lines."""
    text = StringIO()
    # Without the environment: rich fails on a COLUMNS that is no number.
    console = Console(
        file=text, width=width, color_system=None, highlight=False, markup=False, emoji=False, _environ={}
    )
    for part in parts:
        console.print(_visible(part) if isinstance(part, str) else part)
    return "\n".join(line.rstrip() for line in text.getvalue().split("\n")).rstrip()


def _visible(text: str) -> str:
    """Return `text` with its control characters written out: names of files and tensors may hold orders to a terminal."""
    return text.translate(_CONTROLS)
