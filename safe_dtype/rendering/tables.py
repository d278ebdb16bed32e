"""Tables for a terminal, and a page of lines and tables. Imports rich, which takes 50 ms."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import StringIO

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as Drawing

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code != ord("\n")}
_PIECE = re.compile(r"[^/._\-,;:=\s]*[/._\-,;:=]*")  # where a name may be broken: after what separates its parts
_NARROWEST = 24  # characters of a column that wraps; a longer piece of a name is broken all the same

__all__ = ["Column", "Table", "page", "table"]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table."""

    title: str
    number: bool = False  # to the right, as numbers are
    wraps: bool = False  # over several lines where the page is narrow; the others stay on one


@dataclass(frozen=True, slots=True)
class Table:
    """Rows below titles."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    tight: bool = False

    def lines(self, width: int) -> Iterator[str | Drawing]:
        """Yield it for a page of that width: as columns, or each row as a line of its own where they have no room."""
        room = width - self._gaps - sum(self._least)
        if room < 0:
            yield from (_broken(record, width) for record in self._records())
            return
        widths = _shared_out(room, self._least, self._most)
        drawing = Drawing(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=self.tight)
        for column, wide in zip(self.columns, widths, strict=True):
            drawing.add_column(column.title, justify="right" if column.number else "left", width=wide)
        for row in self.rows:
            drawing.add_row(*(_broken(cell, wide) for cell, wide in zip(row, widths, strict=True)))
        yield drawing

    def _records(self) -> Iterator[str]:
        for row in self.rows:
            pairs = [(column.title, cell) for column, cell in zip(self.columns, row, strict=True) if cell]
            yield "; ".join(f"{title} {cell}" if title else cell for title, cell in pairs)

    @property
    def _gaps(self) -> int:
        """What rich draws between columns and at both ends, in characters."""
        return (2 if self.tight else 3) * (len(self.columns) - 1) + 2

    @property
    def _most(self) -> list[int]:
        """How wide each column is where nothing is broken."""
        return [
            max(map(cell_len, (column.title, *(row[index] for row in self.rows))))
            for index, column in enumerate(self.columns)
        ]

    @property
    def _least(self) -> list[int]:
        """How narrow each column may be: one that wraps as narrow as its words, a name broken between its parts."""
        return [
            min(most, max(_least_of(column.title), *(_least_of(row[index]) for row in self.rows), 0))
            if column.wraps
            else most
            for index, (column, most) in enumerate(zip(self.columns, self._most, strict=True))
        ]


def _least_of(cell: str) -> int:
    return min(_NARROWEST, max((cell_len(piece) for piece in _pieces(cell)), default=0))


def _pieces(word: str) -> list[str]:
    return [piece for part in word.split() for piece in _PIECE.findall(part) if piece]


def _shared_out(room: int, least: Sequence[int], most: Sequence[int]) -> list[int]:
    """Return the widths of columns: at least `least`, at most `most`, those that lack little are filled first."""
    widths, wanting = list(least), sorted(range(len(least)), key=lambda index: most[index] - least[index])
    for place, index in enumerate(wanting):
        share = min(most[index] - least[index], room // (len(wanting) - place))
        widths[index] += share
        room -= share
    return widths


def _broken(cell: str, width: int) -> str:
    """Return `cell` in lines of `width` characters, broken between words, a long word between its parts."""
    lines = [""]
    for word in cell.split(" "):
        pieces = (
            [word] if cell_len(word) <= width else [part for piece in _pieces(word) for part in _cut(piece, width)]
        )
        for number, piece in enumerate(pieces):
            joined = f"{lines[-1]} {piece}" if number == 0 and lines[-1] else lines[-1] + piece
            if cell_len(joined) <= width:
                lines[-1] = joined
            else:
                lines.append(piece)
    return "\n".join(lines).strip("\n")


def _cut(piece: str, width: int) -> list[str]:
    return [piece[start : start + width] for start in range(0, len(piece), max(1, width))]


def table(columns: Iterable[Column], rows: Iterable[Sequence[str]], *, tight: bool = False) -> Table:
    """Return a table; `tight` leaves less between its columns."""
    return Table(tuple(columns), tuple(tuple(map(_visible, row)) for row in rows), tight)


def page(parts: Iterable[str | Table], *, width: int) -> str:
    """Return lines and tables as plain text, `width` characters wide at most, without spaces at the ends of lines."""
    text = StringIO()
    # Without the environment: rich fails on a COLUMNS that is no number.
    console = Console(
        file=text, width=width, color_system=None, highlight=False, markup=False, emoji=False, _environ={}
    )
    for part in parts:
        for shown in [_visible(part)] if isinstance(part, str) else part.lines(width):
            console.print(shown)
    return "\n".join(line.rstrip() for line in text.getvalue().split("\n")).rstrip()


def _visible(text: str) -> str:
    """Return `text` with its control characters written out: names of files and tensors may hold orders to a terminal."""
    return text.translate(_CONTROLS)
