"""The pictures of a variant as SVG: its drift position by position, and its activations against float16's end."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...facts import FLOAT16
from ...rendering.range_bars import RangeKey, RangeRow, range_bars
from ...rendering.svg import BLUE, BROWN, FAINT, LINE, LogScale, curve, document, horizontal, legend, text, vertical
from ...rendering.units import size_text
from .evidence import Evidence, LayerRange

FOLDER = "plots"
DRIFT = f"{FOLDER}/drift.svg"
RANGES = f"{FOLDER}/activations.svg"

_LEFT, _WIDTH, _TOP, _HEIGHT = 70, 640, 48, 200  # of the drift's picture, in its units
_LEAST_KL = -9  # power of ten, in nats: what is less is drawn there


def write_plots(evidence: Evidence, folder: Path) -> None:
    """Write the pictures that there are numbers for into `folder`/plots."""
    pictures = {DRIFT: drift_svg(evidence), RANGES: ranges_svg(evidence.ranges, evidence.dtype)}
    for path, picture in pictures.items():
        if picture:
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_text(picture, encoding="utf-8", newline="\n")


def drift_svg(evidence: Evidence) -> str:
    """Return KL from float32 at every position, for both loaders, on a logarithmic axis; empty where there is none."""
    curves = ((evidence.plain.kl, BROWN, "transformers"), (evidence.safe_dtype.kl, BLUE, "safe_dtype"))
    if not any(kl for kl, _, _ in curves):
        return ""
    finite = [value for kl, _, _ in curves for value in kl if math.isfinite(value)]
    highest = math.ceil(math.log10(max([evidence.max_drift, 10.0 ** (_LEAST_KL + 1), *finite])))
    scale = LogScale(10, _LEAST_KL, highest, _TOP + _HEIGHT, _TOP)
    right, bottom = _LEFT + _WIDTH, _TOP + _HEIGHT
    elements: list[str] = []
    for y, label in scale.ticks(1):
        elements += (horizontal(y, _LEFT, right, FAINT), text(_LEFT - 6, y + 4, label, anchor="end"))
    limit = scale.place(evidence.max_drift)
    elements.append(horizontal(limit, _LEFT, right, LINE, style="dashed"))
    elements.append(text(right, limit - 4, f"limit of the mean: {evidence.max_drift:g}", anchor="end"))
    elements += legend(36, ((_LEFT + 110 * place, name, colour) for place, (_, colour, name) in enumerate(curves)))
    for kl, colour, _ in curves:
        elements += _curve(kl, colour, scale)
    elements.append(text(_LEFT + _WIDTH / 2, bottom + 18, "position", anchor="middle"))
    title = f"{evidence.dtype}: KL from float32 at every position, in nats"
    return document(right + 20, bottom + 28, elements, title=title)


def ranges_svg(ranges: Sequence[LayerRange], dtype: str) -> str:
    """Return the largest |number| that each layer hands on, and where float16 ends; empty where there are no layers."""
    if not ranges:
        return ""
    rows = [
        RangeRow(
            layer.layer,
            layer.base,
            layer.variant,
            f"{layer.layer}: {size_text(layer.base)} in float32, {size_text(layer.variant)} in this variant",
        )
        for layer in ranges
    ]
    keys = (RangeKey("base in float32", BLUE), RangeKey(f"this variant in {dtype}", BROWN))
    return range_bars(
        "Largest |number| that each layer hands on (plain transformers)", rows, keys, end=FLOAT16.largest
    )


def _curve(kl: Sequence[float], colour: str, scale: LogScale) -> Iterator[str]:
    """Yield a line through the finite values, and a mark at the edge for each of the others."""
    step = _WIDTH / max(1, len(kl) - 1)
    points = []
    for position, value in enumerate(kl):
        x = _LEFT + position * step
        if math.isfinite(value):
            points.append((x, scale.place(value)))
        else:
            yield vertical(x, _TOP, _TOP - 6, colour, kind="nonfinite")
    if points:
        yield curve(points, colour, width=0.8)
