"""Which forms are tried, in which order, and which are skipped. Pure: facts in, rungs out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..facts import FLOAT32, Dtype
from .attempts.diagnosis import Diagnosis
from .forms import form_named, forms
from .nouns.form import Form, FormTarget, GraphNeed
from .nouns.record import EAGER, FormAttempt, Outcome

_EXPORT = "export"  # the form whose program others are made from


@dataclass(frozen=True, slots=True)
class Rung:
    """One form in one dtype to try, or the reason why it is skipped."""

    form: str
    dtype: Dtype
    remedies: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    coverage: float | None = None
    skip: str = ""

    def __str__(self) -> str:
        with_what = f" with {', '.join(self.remedies)}" if self.remedies else ""
        return f"{self.form} in {self.dtype}{with_what}"


def forms_to_try(asked: str | None, *, torchscript: bool) -> tuple[Form, ...]:
    """Return the forms in the order in which they are tried: eager first, because all others are compared with it.

    One for `generate` is tried alone: forms for calls are no second choice.

    Args:
        asked: The form that the user wants, tried right after eager; None for the fastest of all.
        torchscript: Whether the user allows a trace. It comes last, because it is blind to branches.

    Raises:
        ValueError: If the form that is asked for is not installed.
    """
    if asked and form_named(asked).serves_generate:
        return (form_named(EAGER), form_named(asked))
    allowed = {"torchscript"} if torchscript else set()
    usual = (form for form in forms() if not form.only_asked or form.name in allowed)
    first = (EAGER, asked or EAGER)
    return (*map(form_named, dict.fromkeys(first)), *(form for form in usual if form.name not in first))


@dataclass(frozen=True, slots=True)
class Known:
    """What is known before the first form is tried."""

    diagnosis: Diagnosis
    target: FormTarget  # in any dtype
    by_others: frozenset[str] = frozenset()  # forms that another tool makes, which has its own way to capture


def rungs_of(form: Form, dtype: Dtype, known: Known, tried: Iterable[FormAttempt]) -> tuple[Rung, ...]:
    """Return the rungs of one form in one dtype: mostly one, two where regions may be cut in two ways.

    A form that could not be made, or was wrong, in float32 is not tried in another dtype: in 16 bit, rounding can hide
    a wrong branch. `tried` are the attempts so far, float32 before the others.
    """
    diagnosis, tried = known.diagnosis, tuple(tried)
    plain = Rung(form.name, dtype)
    if form.name == EAGER:
        return (plain,)
    if missing := form.lacks_to_build(known.target.of(dtype)):
        return (replace(plain, skip=f"it needs {missing}"),)
    if form.name in known.by_others:
        return (_after_float32(plain, tried),)
    if form.graph.one_graph and (reason := _not_whole(form, dtype, diagnosis, tried)):
        return (replace(plain, remedies=diagnosis.remedies, skip=reason),)
    if form.graph in (GraphNeed.REGIONS, GraphNeed.PIECES) and diagnosis.captures:
        return (replace(plain, skip="the model captures as one graph"),)
    if form.graph is GraphNeed.REGIONS:
        rungs = _regional(plain, diagnosis)
    else:
        rungs = (replace(plain, remedies=diagnosis.remedies),)
    return tuple(_after_float32(rung, tried) for rung in rungs)


def _not_whole(form: Form, dtype: Dtype, diagnosis: Diagnosis, tried: tuple[FormAttempt, ...]) -> str:
    """Return why a form that needs one graph is skipped. torch.export is always tried: it captures in another way."""
    if diagnosis.captures or diagnosis.whole is None or form.graph is GraphNeed.OWN:
        return ""
    exported = any(one.form == _EXPORT and one.dtype == dtype and one.outcome is Outcome.VERIFIED for one in tried)
    if exported and form.graph is GraphNeed.EXPORTED:
        return ""
    line = f" at {site.file}:{site.line} `{site.code}`" if (site := next(iter(diagnosis.sites), None)) else ""
    return f"the model does not capture as one graph: {diagnosis.reason}{line}"


def _regional(plain: Rung, diagnosis: Diagnosis) -> tuple[Rung, ...]:
    """Return a rung with the regions that do not vary, and one that adds the varying ones, which may recompile."""
    sure = diagnosis.regions
    if not sure and not diagnosis.varying:
        return (replace(plain, skip="no submodule captures whole"),)
    rungs = [replace(plain, regions=sure, coverage=diagnosis.coverage)] if sure else []
    if diagnosis.varying:
        both = tuple(sorted({*sure, *diagnosis.varying}))
        rungs.append(replace(plain, regions=both, coverage=diagnosis.coverage_varying))
    return tuple(rungs)


def _after_float32(rung: Rung, tried: tuple[FormAttempt, ...]) -> Rung:
    if rung.dtype == FLOAT32:
        return rung
    for attempt in tried:
        same = (attempt.form, attempt.dtype, attempt.regions) == (rung.form, FLOAT32, rung.regions)
        if same and attempt.outcome is not Outcome.VERIFIED:
            skip = f"not verified in float32: {attempt.outcome}{': ' * bool(attempt.reason)}{attempt.reason}"
            return replace(rung, skip=skip)
    return rung
