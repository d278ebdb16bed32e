"""Text as Markdown that GitHub renders as it was meant. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

# Underscores inside of a word are none. Addresses are: GitHub makes links of them where they begin so.
_MARKUP = re.compile(r"[\\`*\[\]~@]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|:(?=//)|(?<=www)\.", re.IGNORECASE)
_ENTITY = re.compile(r"&(?=#?\w+;)")


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table; its cells are Markdown already, `inline` or `code`."""
    yield _row(titles)
    yield _row(("---",) * len(titles))
    yield from (_row(row) for row in rows)


def inline(text: str) -> str:
    """Return foreign text in one line, with nothing in it that Markdown takes for markup."""
    return _ENTITY.sub("&amp;", _MARKUP.sub(r"\\\g<0>", one_line(text))).replace("<", "&lt;")


def code(text: str) -> str:
    """Return text in one line as a code span, also where it has backticks itself."""
    # A backslash before the bar would end the cell of a table there, whatever is done about the bar.
    line = one_line(text).replace("\\|", "\\ |")
    longest = max(map(len, re.findall("`+", line)), default=0)
    if not longest:
        return f"`{line}`"
    ends = "`" * max(2, longest + 1)  # a run of as many would end it
    return f"{ends} {line} {ends}"


def one_line(text: str) -> str:
    """Return text with every run of white space as one space."""
    return " ".join(text.split())


def _row(cells: Sequence[str]) -> str:
    # Also in code: GitHub splits a row into cells before it looks at anything else.
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
