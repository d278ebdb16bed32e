"""The card of a variant as a page: what it is, how far it drifts position by position, and how large its numbers become."""

from __future__ import annotations

from collections.abc import Iterator

from ...facts import factor_of, plain_factor_of
from ...facts.activation_chart import HOW_TO_READ as HOW_TO_READ_RANGES
from ...facts.activation_chart import activation_chart
from ...facts.drift_curves import HOW_TO_READ as HOW_TO_READ_DRIFT
from ...facts.drift_curves import drift_curves
from ...rendering.curve_chart import Curve
from ...rendering.html_page import (
    Cell,
    Tag,
    aside,
    bullets,
    commands,
    html_page,
    lead,
    page_table,
    prose,
    section,
    sentence,
)
from ...rendering.json_numbers import number_from_json
from ...rendering.tables import Column
from ...rendering.units import bytes_text
from .evidence import Evidence, Fidelity

_FIDELITY = (
    Column("loaded with"), Column("in"), Column("mean KL, nats", number=True), Column("99 % up to, nats", number=True),
    Column("same first choice", number=True), Column("not finite", number=True), Column("verdict"),
)  # fmt: skip
_FILES = (Column("file"), Column("bytes", number=True), Column("SHA-256"))


def card_page(evidence: Evidence) -> str:
    """Return the page of a variant: the same facts as its card, and its pictures."""
    base, name = evidence.base, evidence.base.repo or "A local model"
    peaks = [(layer.layer, layer.base, layer.variant) for layer in evidence.ranges]
    curves = (Curve("plain transformers", evidence.plain.kl, 0), Curve("safe_dtype", evidence.safe_dtype.kl, 1))
    drift = drift_curves(curves, evidence.max_drift)
    commit = f" at commit {base.revision}" if base.revision else ""
    keys = ("the base, in float32", f"this variant, in {evidence.dtype}")
    parts = [
        lead(*_verdict(evidence)),
        prose(
            f"{evidence.architecture}, made of {name}{commit}: {bytes_text(evidence.bytes)} of weights in {evidence.dtype}; "
            f"the base came in {base.saved}, with {bytes_text(base.bytes)}."
        ),
        section("How far it drifts", page_table(_FIDELITY, map(_fidelity, (evidence.plain, evidence.safe_dtype))), _about(evidence), drift, aside(HOW_TO_READ_DRIFT) if drift else ""),
        section("How large its numbers become", activation_chart(peaks, keys), aside(*HOW_TO_READ_RANGES)) if peaks else "",
        section("What is rescaled", *_rescale(evidence)),
        section("In float32", bullets(evidence.islands)),
        section("To repeat it", commands(evidence.command)) if evidence.command else "",
        section("Files", page_table(_FILES, ((path, f"{file.size:,}", file.sha256) for path, file in evidence.files.items()))),
        section("License", prose(base.license or "Not known. Do not publish this before it is.")),
    ]  # fmt: skip
    return html_page(f"{name} in {evidence.dtype}", parts, made_by="safe-dtype publish card FOLDER --html FILE")


def _verdict(evidence: Evidence) -> Iterator[Cell]:
    if evidence.needs:
        yield Tag("It needs safe_dtype.", "fair")
        yield f"Plain transformers loads it, and its results differ: {evidence.plain.beyond}."
    elif beyond := evidence.plain.beyond or evidence.safe_dtype.beyond:
        yield Tag("Beyond the limit.", "bad")
        yield sentence(beyond)
    else:
        yield Tag("Within the limit.", "good")
        yield "Plain transformers and safe_dtype compute with it what the base computes in float32, within the measured drift."


def _fidelity(fidelity: Fidelity) -> tuple[Cell, ...]:
    drift = fidelity.drift
    ended = f", then {fidelity.ended_in}" if fidelity.ended_in != fidelity.loaded_in else ""
    return (
        fidelity.loader,
        f"{fidelity.loaded_in}{ended}",
        f"{drift.kl_mean:.3g}",
        f"{drift.kl_p99:.3g}",
        f"{drift.top1_agreement:.2%}",
        f"{fidelity.nonfinite:,}",
        Tag("beyond the limit", "bad") if fidelity.beyond else Tag("within the limit", "good"),
    )


def _about(evidence: Evidence) -> str:
    measured, device = evidence.measured_on, evidence.device.get("name", "a device that was not noted")
    versions = ", ".join(f"{name} {version}" for name, version in evidence.versions.items())
    text = f"; SHA-256 of the text: {measured.sha256}" if measured.sha256 else ""
    return aside(
        f"Against the base in float32, on {device}, at the same {measured.positions:,} positions ({measured.kind}){text}. "
        f"The limit is {evidence.max_drift:g}. Versions: {versions or 'not noted'}.",
        "Not verified: other devices, other versions, longer texts, other languages and any task.",
    )


def _rescale(evidence: Evidence) -> Iterator[str]:
    rescale = evidence.rescale
    if not rescale:
        return
    shifts = [one for one in rescale["shifts"] if number_from_json(one["bits"])]
    if not shifts:
        return
    yield prose(
        "The weights in these files are the rescaled ones, and config.json goes with them: right in any program."
        if rescale.get("folded")
        else "The files hold the weights as they were: safe_dtype rescales them on loading."
    )
    rows = ((str(one["gauge"]), factor_of(int(one["bits"])), plain_factor_of(int(one["bits"]))) for one in shifts)
    yield page_table((Column("what becomes smaller"), Column("by"), Column("that is")), rows)
