"""A rescue as a page: the verdict, what was moved by which power of two, the range of every layer, and the drift."""

from __future__ import annotations

from collections.abc import Iterator

from ..facts import FLOAT16, Drift, Rescale, factor_of, plain_factor_of, summary
from ..facts.activation_chart import ABOUT_INSIDE, INSIDE, activation_chart
from ..facts.activation_chart import HOW_TO_READ as HOW_TO_READ_RANGES
from ..facts.drift_curves import HOW_TO_READ as HOW_TO_READ_DRIFT
from ..facts.drift_curves import drift_curves
from ..facts.drift_page import drift_figures
from ..rendering.curve_chart import Curve
from ..rendering.html_page import Tag, aside, bullets, html_page, lead, page_table, prose, section, sentence
from ..rendering.tables import Column
from .rescue import Rescue

_MOVES = (Column("what becomes smaller"), Column("by"), Column("that is"), Column("what is multiplied", wraps=True))


def rescue_page(rescue: Rescue) -> str:
    """Return the page of a rescue."""
    verdict = Tag("NOT in float16.", "bad") if rescue.beyond else Tag("float16 is safe here.", "good")
    parts = [
        lead(verdict, sentence(rescue.beyond or str(rescue.half))),
        prose(f"Saved in {rescue.saved}, tried in float16 on {rescue.device}."),
        *rescue_sections(rescue),
    ]
    title = f"{rescue.model} in float16"
    return html_page(title, parts, made_by=f"safe-dtype rescue {rescue.model} --html FILE")


def rescue_sections(rescue: Rescue) -> Iterator[str]:
    """Yield what was measured, as sections of a page: ranges, moves and drift."""
    half = rescue.half
    peaks = [(one.block, one.plain, one.rescaled) for one in half.block_peaks]
    keys = (f"as saved, in {rescue.saved}", "rescaled" if half.rescale else "in float16")
    yield section(
        "How large the numbers become",
        activation_chart(peaks, keys, inside=(INSIDE, half.peak, half.left)),
        aside(ABOUT_INSIDE, *HOW_TO_READ_RANGES) if peaks else "",
    )
    if half.rescale:
        yield moves_section(half.rescale)
    if half.islands:
        yield section(
            "In float32",
            prose("These modules stay in float32 inside of the float16 model, with a cast at their edges:"),
            bullets(half.islands),
        )
    if half.drift is not None:
        curve = Curve(f"{FLOAT16}, rescaled" if half.rescale else str(FLOAT16), half.kl, 1)
        chart = drift_curves((curve,), rescue.max_drift)
        missing = "The drift of each position was not kept: an earlier version measured it. --text FILE measures anew."
        yield section(
            f"How far it drifts from {half.reference}",
            chart or (aside(missing) if half.drift.kind == "tokens" else ""),
            aside(HOW_TO_READ_DRIFT) if chart else "",
            _figures(half.drift),
        )


def moves_section(rescale: Rescale) -> str:
    """Return what a rescale multiplies, as a section of a page."""
    rows = [
        (gauge.name, factor_of(bits), plain_factor_of(bits), "; ".join(summary(gauge, bits)))
        for gauge, bits in rescale.shifts
        if bits
    ]
    return section(
        "What is rescaled",
        prose(
            "The factors of a line cancel out: what becomes smaller is made up for by what comes after it. They were proved on "
            "the model: its results are the same bits before and after (where a sum is taken in another order, within one "
            "rounding)."
        ),
        page_table(_MOVES, rows),
        aside("A * stands for the number of a layer; a number in brackets says how many there are of a kind."),
    )


def _figures(drift: Drift) -> str:
    return page_table((Column("figure"), Column("value", number=True)), drift_figures(drift))
