"""The pictures of a variant as SVG: its drift position by position, and its activations against float16's end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from .evidence import HALF_ENDS, Evidence, LayerRange

FOLDER = "plots"
DRIFT = f"{FOLDER}/drift.svg"
RANGES = f"{FOLDER}/activations.svg"

_LEFT, _WIDTH, _TOP, _HEIGHT = 70, 640, 48, 200  # of the drift's picture, in its units
_NAMES, _ROW = 250, 16  # of the other one: room for a layer's name, and a layer
_LOWEST, _HIGHEST = -4, 24  # powers of two at its edges
_LEAST_KL = 1e-9  # nats: what is less is drawn there
_PLAIN, _OURS, _LINE = "#b3552d", "#1f6f8b", "#777"


def write_plots(evidence: Evidence, folder: Path) -> None:
    """Write the pictures that there are numbers for into `folder`/plots."""
    pictures = {DRIFT: drift_svg(evidence), RANGES: ranges_svg(evidence.ranges, evidence.dtype)}
    for path, picture in pictures.items():
        if picture:
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_text(picture, encoding="utf-8", newline="\n")


def drift_svg(evidence: Evidence) -> str:
    """Return KL from float32 at every position, for both loaders, on a logarithmic axis; empty where there is none."""
    curves = ((evidence.plain.kl, _PLAIN, "transformers"), (evidence.safe_dtype.kl, _OURS, "safe_dtype"))
    if not any(kl for kl, _, _ in curves):
        return ""
    finite = [one for kl, _, _ in curves for one in kl if math.isfinite(one)]
    top = math.ceil(math.log10(max([evidence.max_drift, _LEAST_KL * 10, *finite])))
    low = round(math.log10(_LEAST_KL))
    parts = []
    for power in range(low, top + 1):
        y = _y(10.0**power, low, top)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{_LEFT + _WIDTH}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">1e{power}</text>')
    limit = _y(evidence.max_drift, low, top)
    parts.append(f'<path d="M{_LEFT} {limit:.1f}H{_LEFT + _WIDTH}" stroke="{_LINE}" stroke-dasharray="3 3"/>')
    parts.append(
        f'<text x="{_LEFT + _WIDTH}" y="{limit - 4:.1f}" text-anchor="end">limit of the mean: {evidence.max_drift:g}</text>'
    )
    for place, (kl, colour, name) in enumerate(curves):
        parts.append(f'<text x="{_LEFT + 110 * place}" y="36" fill="{colour}">{name}</text>')
        parts += _curve(kl, colour, low, top)
    parts.append(f'<text x="{_LEFT + _WIDTH / 2:g}" y="{_TOP + _HEIGHT + 18}" text-anchor="middle">position</text>')
    title = f"{evidence.dtype}: KL from float32 at every position, in nats"
    return _svg(title, _LEFT + _WIDTH + 20, _TOP + _HEIGHT + 28, parts)


def ranges_svg(ranges: Sequence[LayerRange], dtype: str) -> str:
    """Return the largest |number| that each layer hands on, and where float16 ends; empty where there are no layers."""
    if not ranges:
        return ""
    parts = []
    for place, one in enumerate(ranges):
        y = _TOP + place * _ROW
        told = f"{one.layer}: {one.base:.4g} in float32, {one.variant:.4g} in this variant"
        parts.append(f'<g class="layer"><title>{escape(told)}</title>')
        parts.append(f'<text x="{_NAMES - 8}" y="{y + 10}" text-anchor="end">{escape(one.layer)}</text>')
        for value, colour, top in ((one.base, _OURS, y + 1), (one.variant, _PLAIN, y + 7)):
            width = _x(value) - _NAMES
            parts.append(f'<rect x="{_NAMES}" y="{top}" width="{width:.1f}" height="5" fill="{colour}"/>')
        parts.append("</g>")
    bottom, end = _TOP + len(ranges) * _ROW + 6, _x(HALF_ENDS)
    parts.append(f'<path class="limit" d="M{end:.1f} {_TOP - 6}V{bottom}" stroke="{_LINE}" stroke-dasharray="3 3"/>')
    parts.append(f'<text x="{end:.1f}" y="{_TOP - 8}" text-anchor="middle">65504: float16 ends</text>')
    keys = (("base in float32", _OURS, 6), (f"this variant in {dtype}", _PLAIN, 110))
    parts += [f'<text x="{x}" y="36" fill="{colour}">{name}</text>' for name, colour, x in keys]
    return _svg("Largest |number| that each layer hands on (plain transformers)", _NAMES + _WIDTH, bottom + 10, parts)


def _svg(title: str, width: float, height: float, parts: Sequence[str]) -> str:
    lines = "\n".join([f'<text x="6" y="16" font-weight="bold">{escape(title)}</text>', *parts])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" font-family="sans-serif" '
        f'font-size="11">\n<rect width="100%" height="100%" fill="white"/>\n{lines}\n</svg>\n'
    )


def _curve(kl: Sequence[float], colour: str, low: int, top: int) -> list[str]:
    """Return a line through the finite values, and a mark at the edge for each of the others."""
    step = _WIDTH / max(1, len(kl) - 1)
    parts, points = [], []
    for place, one in enumerate(kl):
        x = _LEFT + place * step
        if math.isfinite(one):
            points.append(f"{x:.1f},{_y(one, low, top):.1f}")
        else:
            parts.append(f'<path class="nonfinite" d="M{x:.1f} {_TOP}v-6" stroke="{colour}"/>')
    if points:
        parts.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="0.8"/>')
    return parts


def _y(kl: float, low: int, top: int) -> float:
    power = math.log10(max(kl, _LEAST_KL))
    return _TOP + (top - power) / (top - low) * _HEIGHT


def _x(value: float) -> float:
    power = math.log2(value) if value > 0 else _LOWEST
    return _NAMES + (min(max(power, _LOWEST), _HIGHEST) - _LOWEST) / (_HIGHEST - _LOWEST) * (_WIDTH - 30)
