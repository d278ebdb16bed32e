"""A plot of ratios as SVG: groups of horizontal bars, 1.0 marked."""

from __future__ import annotations

from collections.abc import Sequence

_COLOURS = ("#1f6f8b", "#b3552d")
_ROW, _LEFT, _WIDTH, _GAP = 14, 250, 420, 12


def ratio_bars(bars: Sequence[tuple[str, str, float, float]], names: tuple[str, str], caption: str) -> str:
    """Return an SVG with one pair of bars for each of `bars`: (group, label, first ratio, second ratio)."""
    largest = max(max(first, second) for _, _, first, second in bars) * 1.05
    parts, top, group = [], 30, ""
    for place, name in enumerate(names):
        parts.append(f'<text x="{_LEFT + 90 * place}" y="14" fill="{_COLOURS[place]}">{name}</text>')
    for now, label, *ratios in bars:
        if now != group:
            group, top = now, top + _GAP
            parts.append(f'<text x="6" y="{top + 11}" font-weight="bold">{group}</text>')
            top += _ROW + 4
        parts.append(f'<text x="{_LEFT - 8}" y="{top + 18}" text-anchor="end">{label}</text>')
        for place, ratio in enumerate(ratios):
            y, length = top + place * (_ROW - 1), ratio / largest * _WIDTH
            parts.append(
                f'<rect x="{_LEFT}" y="{y}" width="{length:.1f}" height="{_ROW - 3}" fill="{_COLOURS[place]}"/>'
                f'<text x="{_LEFT + length + 5:.1f}" y="{y + 10}" font-size="10">{ratio:.2g}</text>'
            )
        top += 2 * _ROW + 4
    one = _LEFT + _WIDTH / largest
    parts.append(f'<path d="M{one:.1f} 24V{top}" stroke="#777" stroke-dasharray="3 3"/>')
    parts.append(f'<text x="{_LEFT + _WIDTH / 2}" y="{top + 22}" text-anchor="middle">{caption}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDTH + 60} {top + 34}" '
        f'font-family="sans-serif" font-size="12">{"".join(parts)}</svg>\n'
    )
