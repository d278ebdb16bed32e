"""Which forms are to be tried, in which order, and which need not be. Pure: facts in, rungs out. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..facts import FLOAT32, Dtype
from .attempts.diagnosis import Diagnosis
from .environment import missing_for
from .nouns.record import Form, FormAttempt, Outcome

WHOLE = (Form.EXPORT, Form.AOTI, Form.ONNX, Form.COMPILE)  # the model as one graph, the cheapest to try first
IN_PIECES = (Form.REGIONAL, Form.PARTIAL)


@dataclass(frozen=True, slots=True)
class Rung:
    """One form in one dtype to try; or the reason why it need not be tried."""

    form: Form
    dtype: Dtype
    remedies: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    coverage: float | None = None
    skip: str = ""

    def __str__(self) -> str:
        with_what = f" with {', '.join(self.remedies)}" if self.remedies else ""
        return f"{self.form} in {self.dtype}{with_what}"


def forms_to_try(asked: Form | None, *, torchscript: bool) -> tuple[Form, ...]:
    """Return the forms in the order in which they are tried: eager first, since everything is held against it.

    Args:
        asked: The form that the user wants, tried right after eager; None for the fastest of all.
        torchscript: Whether the user allows a trace. It is the last, for it is blind to branches.
    """
    usual = (Form.EAGER, *WHOLE, *IN_PIECES, *((Form.TORCHSCRIPT,) if torchscript else ()))
    if asked is None:
        return usual
    first = (Form.EAGER, asked)
    return (*dict.fromkeys(first), *(form for form in usual if form not in first))


@dataclass(frozen=True, slots=True)
class Known:
    """What is known before the first form is tried."""

    diagnosis: Diagnosis
    environment: Mapping[str, Any]  # of `environment.environment`
    on_cpu: bool = True
    by_others: frozenset[Form] = frozenset()  # made by another tool, which has its own way to capture


def rungs_of(form: Form, dtype: Dtype, known: Known, tried: Iterable[FormAttempt]) -> tuple[Rung, ...]:
    """Return the rungs of one form in one dtype: mostly one, two where regions may be cut in two ways.

    A form that could not be made, or was wrong, in float32 is not tried in another dtype: float32 is where its errors
    show, for rounding hides a wrong branch in 16 bit. `tried` are the attempts so far, float32 before the others.
    """
    diagnosis, tried = known.diagnosis, tuple(tried)
    plain = Rung(form, dtype)
    if form is Form.EAGER:
        return (plain,)
    if missing := missing_for(form, known.environment, on_cpu=known.on_cpu):
        return (Rung(form, dtype, skip=f"it needs {missing}"),)
    if form in known.by_others:
        return (_after_float32(plain, tried),)
    if form in WHOLE and (reason := _not_whole(form, dtype, diagnosis, tried)):
        return (Rung(form, dtype, diagnosis.remedies, skip=reason),)
    if form in IN_PIECES and diagnosis.captures:
        return (Rung(form, dtype, skip="the model captures as one graph"),)
    found = _regional(dtype, diagnosis) if form is Form.REGIONAL else (Rung(form, dtype, diagnosis.remedies),)
    return tuple(_after_float32(rung, tried) for rung in found)


def _not_whole(form: Form, dtype: Dtype, diagnosis: Diagnosis, tried: tuple[FormAttempt, ...]) -> str:
    """Return why a form that needs one graph is not tried. torch.export always is: it captures in another way."""
    if diagnosis.captures or diagnosis.whole is None or form is Form.EXPORT:
        return ""
    exported = any(one.form is Form.EXPORT and one.dtype == dtype and one.outcome is Outcome.VERIFIED for one in tried)
    if exported and form is not Form.COMPILE:  # these two start from a program of torch.export
        return ""
    line = f" at {site.file}:{site.line} `{site.code}`" if (site := next(iter(diagnosis.sites), None)) else ""
    return f"the model does not capture as one graph: {diagnosis.reason}{line}"


def _regional(dtype: Dtype, diagnosis: Diagnosis) -> tuple[Rung, ...]:
    """Cut as far as no values can vary; and once more with what other values call in other shapes, which recompiles."""
    form, sure = Form.REGIONAL, diagnosis.regions
    if not sure and not diagnosis.varying:
        return (Rung(form, dtype, skip="no submodule captures whole"),)
    found = [Rung(form, dtype, regions=sure, coverage=diagnosis.coverage)] if sure else []
    if diagnosis.varying:
        both = tuple(sorted({*sure, *diagnosis.varying}))
        found.append(Rung(form, dtype, regions=both, coverage=diagnosis.coverage_varying))
    return tuple(found)


def _after_float32(rung: Rung, tried: tuple[FormAttempt, ...]) -> Rung:
    if rung.dtype == FLOAT32:
        return rung
    for one in tried:
        same = (one.form, one.dtype, one.regions) == (rung.form, FLOAT32, rung.regions)
        if same and one.outcome is not Outcome.VERIFIED:
            skip = f"not verified in float32: {one.outcome}{': ' * bool(one.reason)}{one.reason}"
            return Rung(rung.form, rung.dtype, rung.remedies, rung.regions, rung.coverage, skip)
    return rung
