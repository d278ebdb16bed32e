"""Which verified attempt is used, and whether it is what was asked for. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...facts import Dtype
from ..forms import find_form
from ..nouns.record import EAGER, DtypeVerdict, FormAttempt, Outcome, Status


@dataclass(frozen=True, slots=True)
class Choice:
    """The attempt to use, how that compares with what was asked for, and why."""

    attempt: int | None  # its place; None where nothing passed
    status: Status
    why: str


def choose(
    attempts: tuple[FormAttempt, ...],
    dtypes: tuple[DtypeVerdict, ...],
    *,
    form: str | None = None,
    dtype: Dtype | None = None,
) -> Choice:
    """Choose by time among the verified attempts, in the dtypes that passed.

    Times of different processes are not comparable on a busy machine. So the gain of an attempt is a product of two
    speedups, each timed in one process: of the form over eager in its dtype, and of eager in its dtype over eager in
    float32. Eager stays unless a form is faster by more than the spread of its times.

    Args:
        attempts: All of them.
        dtypes: The verdicts on eager in each dtype, with float32's.
        form: The form that was asked for; None for the fastest.
        dtype: The dtype that was asked for; None for the fastest that passed.
    """
    fits = {one.dtype: one for one in dtypes if not one.problem}
    if not fits:
        return Choice(None, Status.NO_DTYPE, "; ".join(f"{one.dtype}: {one.problem}" for one in dtypes))
    verified = [
        number
        for number, attempt in enumerate(attempts)
        if attempt.outcome is Outcome.VERIFIED and attempt.dtype in fits and attempt.seconds.run
    ]
    if not verified:
        return Choice(None, Status.NO_DTYPE, "no attempt was verified, eager included")
    gains = {number: gain_of(attempts[number], fits) for number in verified}
    asked = [
        number
        for number in verified
        if (form is None or attempts[number].form == form) and (dtype is None or attempts[number].dtype == dtype)
    ]
    if asked and form is None:
        best = _fastest(asked, attempts, gains)
        return _of_any_form(best, attempts, gains)
    if asked:
        best = max(asked, key=gains.__getitem__)
        if _is_for_generate(attempts[best]) and not _is_faster(attempts[best]):
            return _eager_generates(attempts[best], verified, attempts, gains)
        return Choice(best, Status.REACHED, f"{_named(attempts[best])} was asked for, and is {_times(gains[best])}")
    best = _fastest(verified, attempts, gains)
    return Choice(
        best,
        Status.FELL_BACK,
        f"fell back to {_named(attempts[best])}, {_times(gains[best])}: {_why_not(attempts, dtypes, form, dtype)}",
    )


def gain_of(attempt: FormAttempt, dtypes: Mapping[Dtype, DtypeVerdict]) -> float:
    """Return how many times faster an attempt is than eager in float32."""
    own = dtypes.get(attempt.dtype)
    between = (own.speedup if own else None) or 1.0
    return between if attempt.form == EAGER else (attempt.speedup or 1.0) * between


def _fastest(numbers: list[int], attempts: tuple[FormAttempt, ...], gains: Mapping[int, float]) -> int:
    best = max(numbers, key=gains.__getitem__)
    eager = [number for number in numbers if attempts[number].form == EAGER]
    if not eager:
        return best
    simplest = max(eager, key=gains.__getitem__)
    spread = attempts[best].seconds.spread or 0.0
    return simplest if gains[best] <= gains[simplest] * (1 + spread) else best


def _is_for_generate(attempt: FormAttempt) -> bool:
    form = find_form(attempt.form)
    return form is not None and form.serves_generate


def _is_faster(attempt: FormAttempt) -> bool:
    return (attempt.speedup or 1.0) > 1 + (attempt.seconds.spread or 0.0)


def _eager_generates(
    attempt: FormAttempt, verified: list[int], attempts: tuple[FormAttempt, ...], gains: Mapping[int, float]
) -> Choice:
    """Return the choice where a form for `generate` is right, and no faster than eager, token by token."""
    best = max((one for one in verified if attempts[one].form == EAGER), key=gains.__getitem__)
    why = f"{_named(attempt)} is verified, and {attempt.speedup or 1.0:.2f}x the speed of eager, token by token"
    return Choice(best, Status.FELL_BACK, f"fell back to {_named(attempts[best])}: {why}")


def _of_any_form(best: int, attempts: tuple[FormAttempt, ...], gains: Mapping[int, float]) -> Choice:
    """Return the choice where no form was asked for: less than the model as one graph counts as a fallback."""
    chosen = attempts[best]
    whole = [one for one in attempts if _is_one_graph(one)]
    if _is_one_graph(chosen) or any(one.outcome is Outcome.VERIFIED for one in whole):
        how = "the fastest of the verified" if chosen.form != EAGER else "no form is clearly faster"
        return Choice(best, Status.REACHED, f"{_named(chosen)}, {_times(gains[best])}: {how}")
    failed = [one for one in whole if one.reason]
    tried = [one for one in failed if one.outcome is not Outcome.SKIPPED]  # their reasons say more
    because = _failure_of((tried or failed)[0]) if failed else "no form of the model as one graph was tried"
    return Choice(best, Status.FELL_BACK, f"fell back to {_named(chosen)}, {_times(gains[best])}: {because}")


def _why_not(
    attempts: tuple[FormAttempt, ...], dtypes: tuple[DtypeVerdict, ...], form: str | None, dtype: Dtype | None
) -> str:
    """Return why what was asked for is not there."""
    for verdict in dtypes:
        if verdict.dtype == dtype and verdict.problem:
            return f"{dtype}: {verdict.problem}"
    for attempt in attempts:
        if (
            attempt.outcome is Outcome.VERIFIED
            or (form and attempt.form != form)
            or (dtype and attempt.dtype != dtype)
        ):
            continue
        return _failure_of(attempt)
    return f"{form or 'no form'} in {dtype or 'any dtype'} was not tried"


def _is_one_graph(attempt: FormAttempt) -> bool:
    form = find_form(attempt.form)
    return form is not None and form.graph.one_graph


def _failure_of(attempt: FormAttempt) -> str:
    line = f" at {site.file}:{site.line} `{site.code}`" if (site := next(iter(attempt.sites), None)) else ""
    return f"{_named(attempt)} {_became(attempt.outcome)}: {attempt.reason}{line}"


def _became(outcome: Outcome) -> str:
    return {Outcome.SKIPPED: "was skipped", Outcome.WRONG: "is wrong"}.get(outcome, str(outcome))


def _named(attempt: FormAttempt) -> str:
    return f"{attempt.form} in {attempt.dtype}"


def _times(gain: float) -> str:
    return f"{gain:.2f}x the speed of eager float32"
