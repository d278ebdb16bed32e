"""A page as one file: nothing is loaded from anywhere, nothing runs in it, and foreign text is text."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from .page_style import STYLE
from .table_as_html import table_as_html
from .tables import Column

_CODE = re.compile("`([^`]+)`")
_LONG_NAME = re.compile(r"[\w*]+(?:\.[\w*]+){2,}")  # model.layers.*.mlp.down_proj.weight

Tone = Literal["good", "fair", "bad", "none"]

# The browser itself refuses what is not in the file.
_NOTHING_FROM_OUTSIDE = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True, slots=True)
class Tag:
    """A word with a tone. The colour repeats what the word says, and says nothing by itself."""

    words: str
    tone: Tone = "none"


Cell = str | Tag


def html_page(title: str, parts: Iterable[str], *, made_by: str) -> str:
    """Return a whole page. `parts` are HTML of this module or of the charts; `made_by` is the command that wrote it."""
    body = "\n".join(part for part in parts if part)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_NOTHING_FROM_OUTSIDE}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{_text(title)}</h1>\n{body}\n"
        f"<footer>Written by <code>{_text(made_by)}</code>. This page is one file: it loads nothing and runs nothing."
        "</footer>\n</body>\n</html>\n"
    )


def lead(*words: Cell) -> str:
    """Return the first words of a page."""
    return f'<p class="lead">{" ".join(map(_cell, words))}</p>'


def prose(*lines: str) -> str:
    """Return each line as a paragraph."""
    return "".join(f"<p>{_words(line)}</p>" for line in lines if line)


def warned(*lines: str) -> str:
    """Return each line as a paragraph that is marked as a warning."""
    return "".join(f'<p><span class="tag fair">Warning:</span> {_words(line)}</p>' for line in lines if line)


def aside(*lines: str) -> str:
    """Return each line as a paragraph of what is only by the way."""
    return "".join(f'<p class="soft">{_words(line)}</p>' for line in lines if line)


def section(title: str, *parts: str) -> str:
    """Return parts under a title; nothing where there are none."""
    body = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{_text(title)}</h2>\n{body}\n</section>" if body else ""


def heading(title: str) -> str:
    """Return a title inside of a section."""
    return f"<h3>{_text(title)}</h3>"


def bullets(lines: Iterable[str]) -> str:
    """Return a list; nothing where it is empty."""
    items = "".join(f"<li>{_words(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def folded(title: str, body: str) -> str:
    """Return what is shown only to who asks for it."""
    return f"<details><summary>{_text(title)}</summary>{body}</details>"


def sentence(words: str) -> str:
    """Return words that begin large and end with a point."""
    return f"{words[:1].upper()}{words[1:]}".removesuffix(".") + "."


def commands(*lines: str) -> str:
    """Return lines to be typed."""
    return f"<pre><code>{_text(chr(10).join(lines))}</code></pre>"


def page_table(columns: Sequence[Column], rows: Iterable[Sequence[Cell]]) -> str:
    """Return rows below the titles of their columns; on a phone each row is a list of titles and values."""
    return table_as_html(columns, rows, cell=_in_column, title_attributes=_kind)


def _in_column(column: Column, cell: Cell) -> str:
    body = _cell(cell)
    # On a phone a cell is a grid, in which text and an element inside of it would be two things, side by side.
    whole = f"<div>{body}</div>" if "<" in body else body
    return f'<td{_kind(column)} data-title="{_text(column.title)}">{whole}</td>'


def _kind(column: Column) -> str:
    return ' class="number"' if column.number else ' class="wide"' if column.wraps else ""


def _cell(cell: Cell) -> str:
    return f'<span class="tag {cell.tone}">{_text(cell.words)}</span>' if isinstance(cell, Tag) else _words(cell)


def _words(words: str) -> str:
    """Return words in which what stands between backticks is code, and a long name may be broken after a point."""
    return _LONG_NAME.sub(lambda name: name[0].replace(".", ".<wbr>"), _CODE.sub(r"<code>\1</code>", _text(words)))


def _text(words: str) -> str:
    return html.escape(words)
