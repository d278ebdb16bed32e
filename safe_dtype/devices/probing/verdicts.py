"""From measured cells to verdicts: how each dtype does beside float32. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ...facts import BESIDE_FLOAT32, FLOAT32, Verdict, VerdictKind
from ...rendering.units import digits_text

ONE_ROW, FEW_ROWS, PREFILL_ROWS = 1, 16, 512
# Our own figure: below it a narrower format still pays by the memory it saves.
SLOW = 1.5
# Other ways to compute a product are compared with the plain one.
_PLAIN_OP = dict.fromkeys(
    (
        "matmul_cast",
        "matmul_narrow",
        "matmul_blocks",
        "matmul_blocks_cast",
        "matmul_int8",
        "matmul_int8_cast",
        "matmul_int4",
        "matmul_int4_cast",
        "matmul_bfloat16_rows",
        "matmul_float16_rows",
    ),
    "matmul",
)
_BUSY = "busy cores: one thread was measured"
_DISTURBED = "others had a core for some of the time"
NO_MEMORY = "not measured, no memory left for it"


def beside_float32(verdicts: Iterable[Verdict], float32: Sequence[Verdict]) -> tuple[Verdict, ...]:
    """Return `verdicts` with their speed judged: SLOW where right but more than 1.5 times float32's time."""
    bases = {verdict.op: verdict for verdict in float32}
    return tuple(_judged(verdict, bases.get(_PLAIN_OP.get(verdict.op, verdict.op))) for verdict in verdicts)


def by_one_thread(verdict: Verdict) -> Verdict:
    """Return a verdict with the note that one thread was measured, by its own clock, for others had the cores."""
    return _with_note(verdict, _BUSY) if verdict.timings else verdict


def disturbed(verdict: Verdict) -> Verdict:
    """Return a verdict with the note that others ran meanwhile, too seldom to measure it in another way."""
    return _with_note(verdict, _DISTURBED) if verdict.timings else verdict


def _with_note(verdict: Verdict, note: str) -> Verdict:
    return replace(verdict, reason="; ".join(filter(None, (verdict.reason, note))))


def on_all_threads(verdicts: Sequence[Verdict], threads: int) -> tuple[Verdict, ...]:
    """Return what was measured on one thread as it would be on `threads` of them.

    Arithmetic grows with the threads, and so does reading weights, up to what is read fastest of all that is read for the
    same operation in any way. It comes near all a small machine has (17 of 20 GB/s, where bf16 alone reaches
    9), and how much more a large one has cannot be told while others use it.
    """
    fastest: dict[str, float] = {}
    for verdict in verdicts:
        family = family_of(verdict.op)
        fastest[family] = max(fastest.get(family, 0.0), verdict.decode_bytes_per_s or 0.0)
    return tuple(
        _spread(verdict, threads, fastest[family_of(verdict.op)]) if measured_while_busy(verdict) else verdict
        for verdict in verdicts
    )


def family_of(op: str) -> str:
    """Return what all ways to compute an operation have in common: those to multiply read the same memory."""
    return op.partition("_")[0]


def _spread(verdict: Verdict, threads: int, bandwidth: float) -> Verdict:
    read, flops = verdict.decode_bytes_per_s, verdict.prefill_flops_per_s
    return replace(
        verdict,
        decode_bytes_per_s=min(read * threads, bandwidth) if read else None,
        prefill_flops_per_s=flops * threads if flops else None,
        timings=tuple(
            replace(timing, seconds=timing.seconds / threads) if timing.rows > ONE_ROW else timing
            for timing in verdict.timings
        ),
    )


def measured_while_busy(verdict: Verdict) -> bool:
    """Whether other processes kept the cores busy, so that one thread was measured."""
    return _BUSY in verdict.reason


def is_to_be_measured_again(verdict: Verdict) -> bool:
    """Whether other processes ran meanwhile, so that a later measurement may tell more."""
    return measured_while_busy(verdict) or _DISTURBED in verdict.reason


def lacked_memory(verdict: Verdict) -> bool:
    """Whether there was no memory to measure it with: that says nothing about the dtype, nor about any later moment."""
    return verdict.kind is VerdictKind.UNKNOWN and verdict.reason.startswith(NO_MEMORY)


def _judged(verdict: Verdict, base: Verdict | None) -> Verdict:
    if verdict.kind is not VerdictKind.NATIVE or verdict.dtype == FLOAT32 or base is None or not base.runs:
        return verdict
    many, one_row = _ratio(verdict, base, PREFILL_ROWS), _ratio(verdict, base, ONE_ROW)
    if many is None:
        return verdict
    words = [
        f"{digits_text(many, 2)}{BESIDE_FLOAT32} {PREFILL_ROWS} rows",
        f"{digits_text(one_row, 2)}x at 1 row" if one_row else "",
    ]
    kind = VerdictKind.SLOW if many > SLOW else VerdictKind.NATIVE
    return replace(
        verdict, kind=kind, reason="; ".join(filter(None, (", ".join(filter(None, words)), verdict.reason)))
    )


def _ratio(verdict: Verdict, base: Verdict, rows: int) -> float | None:
    """Return how many times longer `verdict` takes than `base`, by the rates, else by the times of equal shapes."""
    if rows == PREFILL_ROWS and verdict.prefill_flops_per_s and base.prefill_flops_per_s:
        return base.prefill_flops_per_s / verdict.prefill_flops_per_s
    if rows == ONE_ROW and verdict.decode_bytes_per_s and base.decode_bytes_per_s:
        bytes_each = verdict.bytes_each / base.bytes_each
        return bytes_each * base.decode_bytes_per_s / verdict.decode_bytes_per_s
    mine, base_seconds = _seconds(verdict, rows), _seconds(base, rows)
    return mine / base_seconds if mine and base_seconds else None


def _seconds(verdict: Verdict, rows: int) -> float:
    return sum(timing.seconds for timing in verdict.timings if timing.rows == rows)
