"""The fastest verified attempt is chosen, and whether that was asked for is told."""

from __future__ import annotations

import pytest

from safe_dtype.facts import BFLOAT16, FLOAT32
from safe_dtype.optimizing.nouns.record import Distance, DtypeVerdict, FormAttempt, Outcome, Seconds, Status
from safe_dtype.optimizing.report.choose import choose

GOOD = Distance(0.0, 0.0, 1.0)
DTYPES = (DtypeVerdict(FLOAT32, GOOD, speedup=1.0), DtypeVerdict(BFLOAT16, GOOD, speedup=2.0))


def verified(form: str, run: float, dtype=FLOAT32, *, eager: float = 1.0, spread: float = 0.0) -> FormAttempt:
    """Return an attempt that was verified, with its seconds."""
    return FormAttempt(form, dtype, Outcome.VERIFIED, seconds=Seconds(run=run, eager=eager, spread=spread))


EAGER = (verified("eager", 1.0), verified("eager", 0.5, BFLOAT16))
FAILED = FormAttempt("aoti", FLOAT32, Outcome.FAILED, "no such operator")


def test_fastest() -> None:
    """With nothing asked for, the fastest verified attempt is used."""
    found = choose((*EAGER, verified("export", 0.9), verified("aoti", 0.4, BFLOAT16, eager=0.5)), DTYPES)
    assert (found.attempt, found.status) == (3, Status.REACHED)
    assert found.why == "aoti in bfloat16, 2.50x the speed of eager float32: the fastest of the verified"


def test_times_of_processes_are_not_compared() -> None:
    """An attempt in a slow moment is judged by eager in that same moment."""
    slow_moment = verified("aoti", 2.0, eager=6.0)
    assert choose((*EAGER[:1], slow_moment, verified("export", 0.9)), DTYPES).attempt == 1


def test_eager_stays() -> None:
    """A form that is not faster by more than its spread is not worth it; that is no fall back."""
    found = choose((*EAGER, verified("export", 0.45, BFLOAT16, eager=0.5, spread=0.3)), DTYPES)
    assert (found.attempt, found.status) == (1, Status.REACHED)
    assert "no form is clearly faster" in found.why


def test_no_graph_is_a_fall_back() -> None:
    """Where no form of one graph is verified, even the best of the rest is a fall back, with the reason."""
    found = choose((*EAGER, FAILED, verified("regional", 0.2)), DTYPES)
    assert (found.attempt, found.status) == (3, Status.FELL_BACK)
    assert (
        found.why
        == "fell back to regional in float32, 5.00x the speed of eager float32: aoti in float32 failed: no such operator"
    )


def test_asked_form() -> None:
    """A form that was asked for and is verified is used, also where another one is faster."""
    attempts = (*EAGER, verified("export", 0.9), verified("aoti", 0.1))
    found = choose(attempts, DTYPES, form="export", dtype=FLOAT32)
    assert (found.attempt, found.status) == (2, Status.REACHED)


def test_asked_form_fails() -> None:
    """A form that was asked for and failed falls back to the fastest, and says why it failed."""
    found = choose((*EAGER, FAILED, verified("export", 0.1)), DTYPES, form="aoti")
    assert (found.attempt, found.status) == (3, Status.FELL_BACK)
    assert found.why.endswith("aoti in float32 failed: no such operator")


def test_asked_dtype_is_out() -> None:
    """A dtype that was asked for and did not pass is a fall back, with its error."""
    dtypes = (DTYPES[0], DtypeVerdict(BFLOAT16, GOOD, "off by 1.18"))
    found = choose((*EAGER, verified("export", 0.5)), dtypes, dtype=BFLOAT16)
    assert (found.attempt, found.status) == (2, Status.FELL_BACK)
    assert found.why.endswith("bfloat16: off by 1.18")


@pytest.mark.parametrize("outcome", [Outcome.WRONG, Outcome.CRASHED, Outcome.TIMED_OUT, Outcome.SKIPPED])
def test_only_the_verified(outcome: Outcome) -> None:
    """What was not verified is never offered, however fast it is."""
    fast = FormAttempt("aoti", FLOAT32, outcome, "why", seconds=Seconds(run=1e-6, eager=1.0))
    assert choose((EAGER[0], fast), DTYPES[:1]).attempt == 0


def test_no_dtype() -> None:
    """Where not even float32 passes, nothing is offered."""
    found = choose(EAGER, (DtypeVerdict(FLOAT32, None, "two runs differ"),))
    assert (found.attempt, found.status) == (None, Status.NO_DTYPE)
    assert found.why == "float32: two runs differ"


@pytest.mark.parametrize(
    ("run", "spread", "chosen", "status"),
    [
        pytest.param(0.5, 0.1, 2, Status.REACHED, id="faster"),
        pytest.param(0.95, 0.1, 0, Status.FELL_BACK, id="within-its-spread"),
        pytest.param(1.2, 0.0, 0, Status.FELL_BACK, id="slower"),
    ],
)
def test_generate_is_chosen_by_time(run: float, spread: float, chosen: int, status: Status) -> None:
    """A compiled step that was asked for is used where it is faster than eager, token by token; else eager stays."""
    attempts = (EAGER[0], FormAttempt("generate", BFLOAT16, Outcome.WRONG), verified("generate", run, spread=spread))
    found = choose(attempts, DTYPES, form="generate")
    assert (found.attempt, found.status) == (chosen, status)
    if status is Status.FELL_BACK:
        assert found.why.startswith("fell back to eager in float32: generate in float32 is verified, and ")
        assert found.why.endswith(f"{1 / run:.2f}x the speed of eager, token by token")
