"""A drift as a notebook shows it: every figure that was measured, and a bar for each output against the usual limit."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..rendering.notebook import html_table, notebook, paragraph, picture
from ..rendering.svg import BLUE, BROWN, LINE, LogScale, bar, document, group, text, vertical
from ..rendering.tables import Column
from .drift_limit import DEFAULT_MAX_DRIFT, exceeds, figure_of
from .measured import Drift

_LEFT, _WIDTH, _TOP, _ROW = 150, 460, 44, 20  # in the picture's units; the names of the outputs lie left of _LEFT
_SCALE = LogScale(10, -8, 1, _LEFT, _LEFT + _WIDTH)
_LONGEST = 22  # characters of a name that fit beside the bars
_UNITS = {"pixels": "1 - mIoU", "values": "relative RMS"}


def drift_html(drift: Drift) -> str:
    """Return the drift: in one line whether it is within the usual limit, then a picture and a table."""
    reason = exceeds(drift, DEFAULT_MAX_DRIFT)
    verdict = f"beyond the usual limit: {reason}" if reason else f"within the usual limit of {DEFAULT_MAX_DRIFT:g}"
    outputs = [("", drift), *drift.heads]
    columns = (Column("output"), Column("figure"), Column("value", number=True))
    rows = [(name or "main", *figure) for name, output in outputs for figure in drift_figures(output)]
    line = f"Drift of {drift.positions:,} {drift.kind}: {verdict}"
    return notebook(paragraph([line]), picture(_bars(outputs)), html_table(columns, rows))


def _bars(outputs: list[tuple[str, Drift]]) -> str:
    bottom, limit = _TOP + len(outputs) * _ROW + 4, _SCALE.place(DEFAULT_MAX_DRIFT)
    elements = []
    for number, (name, output) in enumerate(outputs):
        top, figure = _TOP + number * _ROW, figure_of(output)
        title = f"{_unit(output)} {figure:.2e}"
        short = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}..."
        colour = BLUE if exceeds(output, DEFAULT_MAX_DRIFT) is None else BROWN
        words = text(_LEFT - 8, top + 12, short or _unit(output), anchor="end")
        elements.append(group("row", title, (words, bar(_LEFT, _SCALE.place(figure), top + 4, 9, colour))))
    elements.append(vertical(limit, _TOP - 6, bottom, LINE, style="dashed", kind="limit"))
    elements.append(text(limit, _TOP - 10, f"{DEFAULT_MAX_DRIFT:g}: usual limit", anchor="middle"))
    elements += (text(place, bottom + 12, label, anchor="middle") for place, label in _SCALE.ticks(2))
    title = "How far from the reference (logarithmic, less is nearer)"
    return document(_LEFT + _WIDTH + 30, bottom + 20, elements, title=title)


def _unit(drift: Drift) -> str:
    return _UNITS.get(drift.kind, "mean KL, nats")


def drift_figures(drift: Drift) -> Iterator[tuple[str, str]]:
    """Yield every figure of one output, by its name with its unit."""
    figures: list[tuple[str, float | None, str]] = [
        ("same first choice", drift.top1_agreement, ".2%"),
        ("largest difference", drift.max_abs, ".3g"),
        ("relative RMS", drift.rel_rms, ".2e"),
        ("perplexity ratio", drift.perplexity_ratio, ".6f"),
        ("cosine of hidden states", drift.hidden_cosine, ".6f"),
        ("mIoU", drift.miou, ".6f"),
    ]
    if drift.kind != "values":
        figures[:0] = [
            ("mean KL, nats", drift.kl_mean, ".2e"),
            ("KL that 99 % do not exceed, nats", drift.kl_p99, ".2e"),
        ]
    for name, value, form in figures:
        if value is not None:
            yield name, f"{value:{form}}" if math.isfinite(value) else "not finite"
