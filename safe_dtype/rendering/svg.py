"""A picture as SVG: text, lines, bars and curves in one font and one set of colours, and a logarithmic scale.

Every function returns an element as text; `document` puts elements together. Lengths are in the picture's own units,
x to the right and y downwards. Foreign text is escaped here and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal
from xml.sax.saxutils import escape

BLUE, BROWN, GREEN, GREY = "#1f6f8b", "#b3552d", "#5b8c5a", "#7a8b99"
INK, LINE, FAINT = "#222", "#777", "#ddd"

Anchor = Literal["start", "middle", "end"]
Style = Literal["thin", "thick", "dashed"]

_STYLES: dict[Style, str] = {"thin": "", "thick": ' stroke-width="2"', "dashed": ' stroke-dasharray="3 3"'}
_LEAST_WIDTH = 2.0  # of a bar: one for almost nothing is still seen


def document(width: float, height: float, elements: Iterable[str], *, title: str = "") -> str:
    """Return a whole picture on white, with its title at the top left. Its first element is the background."""
    head = [text(6, 17, title, bold=True)] if title else []
    body = "\n".join(['<rect width="100%" height="100%" fill="white"/>', *head, *elements])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_number(width)} {_number(height)}" '
        f'font-family="sans-serif" font-size="11">\n{body}\n</svg>\n'
    )


def text(
    x: float, y: float, words: str, *, anchor: Anchor = "start", bold: bool = False,
    colour: str = INK,
) -> str:  # fmt: skip
    """Return one line of text on the base line `y`; `anchor` is the part of it that lies at `x`."""
    how = f' text-anchor="{anchor}"' * (anchor != "start") + ' font-weight="bold"' * bold
    return f'<text x="{_number(x)}" y="{_number(y)}"{how} fill="{colour}">{escape(words)}</text>'


def vertical(x: float, top: float, bottom: float, colour: str, *, style: Style = "thin", kind: str = "") -> str:
    """Return a vertical line; `kind` is its class."""
    of_class = f'class="{kind}" ' if kind else ""
    path = f"M{_number(x)} {_number(top)}V{_number(bottom)}"
    return f'<path {of_class}d="{path}" stroke="{colour}"{_STYLES[style]}/>'


def horizontal(y: float, left: float, right: float, colour: str, *, style: Style = "thin") -> str:
    """Return a horizontal line."""
    return f'<path d="M{_number(left)} {_number(y)}H{_number(right)}" stroke="{colour}"{_STYLES[style]}/>'


def bar(left: float, right: float, top: float, height: float, colour: str, *, opacity: float = 1) -> str:
    """Return a horizontal bar from `left` to `right`, two units wide at least."""
    width = max(right - left, _LEAST_WIDTH)
    where = f'x="{_number(left)}" y="{_number(top)}" width="{_number(width)}" height="{_number(height)}"'
    translucent = f' fill-opacity="{opacity:g}"' * (opacity != 1)
    return f'<rect {where} fill="{colour}"{translucent}/>'


def curve(points: Sequence[tuple[float, float]], colour: str, *, width: float = 1) -> str:
    """Return a line through `points`, each (x, y)."""
    pairs = " ".join(f"{_number(x)},{_number(y)}" for x, y in points)
    return f'<polyline points="{pairs}" fill="none" stroke="{colour}" stroke-width="{width:g}"/>'


def group(kind: str, title: str, elements: Iterable[str]) -> str:
    """Return elements as one of the class `kind`; a browser shows `title` where the pointer rests on it."""
    return f'<g class="{kind}"><title>{escape(title)}</title>{"".join(elements)}</g>'


def legend(y: float, keys: Iterable[tuple[float, str, str]]) -> Iterator[str]:
    """Yield what each colour means: `keys` are (x, words, colour), and the words are in that colour."""
    yield from (text(x, y, words, colour=colour) for x, words, colour in keys)


@dataclass(frozen=True, slots=True)
class LogScale:
    """A logarithmic scale from base**lowest at `start` to base**highest at `end`, both places in the picture."""

    base: Literal[2, 10]
    lowest: int
    highest: int
    start: float
    end: float

    def place(self, value: float) -> float:
        """Return where `value` lies; what is beyond the scale lies at its edge, NaN at the upper one."""
        if math.isnan(value):
            return self.end
        if value <= 0:
            return self.start
        return self.place_of_power(math.log2(value) if self.base == 2 else math.log10(value))

    def place_of_power(self, power: float) -> float:
        """Return where base**power lies."""
        within = min(max(power, self.lowest), self.highest)
        return self.start + (within - self.lowest) / (self.highest - self.lowest) * (self.end - self.start)

    def ticks(self, step: int, *, first: int | None = None) -> Iterator[tuple[float, str]]:
        """Yield place and label of every `step`-th power, from the lowest or `first` on."""
        for power in range(self.lowest if first is None else first, self.highest + 1, step):
            yield self.place_of_power(power), (f"2^{power}" if self.base == 2 else f"1e{power}" if power else "1")


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
