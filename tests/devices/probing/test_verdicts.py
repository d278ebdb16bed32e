"""From measured cells to verdicts, without measuring."""

from __future__ import annotations

from dataclasses import replace

import pytest

from safe_dtype.devices.probing.verdicts import (
    beside_float32,
    by_one_thread,
    disturbed,
    is_to_be_measured_again,
    measured_while_busy,
    on_all_threads,
)
from safe_dtype.facts import BFLOAT16, FLOAT32, Dtype, Timing, Verdict, VerdictKind


def cell(
    dtype: Dtype, gflops: float | None, gb_per_s: float | None = None, kind: VerdictKind = VerdictKind.NATIVE
) -> Verdict:
    """Return a matmul cell by its rates."""
    flops, read = (rate and rate * 1e9 for rate in (gflops, gb_per_s))
    return Verdict(dtype, "matmul", kind, "", read, flops, timings=(Timing(1, (8, 8), 1.0), Timing(512, (8, 8), 4.0)))


BASE = cell(FLOAT32, 100, 20)


@pytest.mark.parametrize(
    ("gflops", "ratio", "kind"),
    [
        pytest.param(200, "0.5x", VerdictKind.NATIVE, id="faster"),
        pytest.param(100, "1x", VerdictKind.NATIVE, id="as-fast"),
        pytest.param(70, "1.4x", VerdictKind.NATIVE, id="a-little-slower"),
        pytest.param(60, "1.7x", VerdictKind.SLOW, id="beyond-one-and-a-half"),
        pytest.param(1, "100x", VerdictKind.SLOW, id="hundred-times"),
    ],
)
def test_slow(gflops: float, ratio: str, kind: VerdictKind) -> None:
    """Slow is more than 1.5 times float32's time at 512 rows, and the reason has the ratio."""
    (found,) = beside_float32([cell(BFLOAT16, gflops)], [BASE])
    assert found.kind is kind
    assert found.reason == f"{ratio} float32's time at 512 rows, 1x at 1 row"


def test_one_row_compares_times_not_rates() -> None:
    """At equal bytes per second, two bytes take half the time of four."""
    (found,) = beside_float32([cell(BFLOAT16, 100, 20)], [BASE])
    assert "0.5x at 1 row" in found.reason


def test_without_rates_the_times_count() -> None:
    """Where nothing is multiplied, the times at 512 rows are compared."""
    base = replace(BASE, op="softmax", prefill_flops_per_s=None, decode_bytes_per_s=None)
    mine = replace(base, dtype=BFLOAT16, timings=(Timing(512, (8, 8), 12.0),))
    (found,) = beside_float32([mine], [base])
    assert found.kind is VerdictKind.SLOW
    assert found.reason == "3x float32's time at 512 rows"


@pytest.mark.parametrize(
    "kind", [VerdictKind.WRONG, VerdictKind.UNSUPPORTED, VerdictKind.CRASHES, VerdictKind.UNKNOWN], ids=str
)
def test_speed_excuses_nothing(kind: VerdictKind) -> None:
    """What does not run right stays what it is, however fast."""
    broken = cell(BFLOAT16, 1000, kind=kind)
    assert beside_float32([broken], [BASE]) == (broken,)


@pytest.mark.parametrize(
    "float32", [[], [cell(FLOAT32, None, kind=VerdictKind.UNSUPPORTED)], [replace(BASE, op="attention")]], ids=range(3)
)
def test_nothing_to_compare_with(float32: list[Verdict]) -> None:
    """Without a float32 that runs, nothing is called slow."""
    mine = cell(BFLOAT16, 1)
    assert beside_float32([mine], float32) == (mine,)


@pytest.mark.parametrize(
    ("gb_per_s", "others", "expected"),
    [
        pytest.param(9, 17, 17, id="arithmetic-bound-up-to-the-bandwidth"),
        pytest.param(3, 17, 12, id="arithmetic-bound-below-it"),
        pytest.param(17, 17, 17, id="memory-bound"),
        pytest.param(20, 17, 20, id="never-less-than-measured"),
    ],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_one_thread_stands_for_all(gb_per_s: float, others: float, expected: float, *, is_first: bool) -> None:
    """Arithmetic grows with the threads, reading only up to the bandwidth, which any way to multiply tells."""
    mine = by_one_thread(cell(BFLOAT16, 5, gb_per_s))
    other = by_one_thread(replace(cell(FLOAT32, 5, others), op="matmul_blocks"))
    both = on_all_threads([mine, other] if is_first else [other, mine], 4)
    found = both[0 if is_first else 1]
    assert found.prefill_flops_per_s == 20e9
    assert found.decode_bytes_per_s == expected * 1e9
    assert [timing.seconds for timing in found.timings] == [1.0, 1.0]
    assert "one thread was measured" in found.reason


def test_other_operations_read_other_memory() -> None:
    """What attention reads from a cache of the CPU says nothing of weights."""
    attention = by_one_thread(replace(cell(FLOAT32, 5, 100), op="attention"))
    found, _ = on_all_threads([by_one_thread(cell(BFLOAT16, 5, 9)), attention], 4)
    assert found.decode_bytes_per_s == 9e9


def test_what_was_measured_on_all_threads_stays_as_it_is() -> None:
    """Cells from before the machine was busy are not extrapolated."""
    assert on_all_threads([BASE, disturbed(BASE)], 4) == (BASE, disturbed(BASE))


def test_nothing_measured_stays_as_it_is() -> None:
    """A cell that did not run has nothing to scale, and nothing to be measured again."""
    broken = Verdict(BFLOAT16, "fft", VerdictKind.UNSUPPORTED, "Unsupported dtype BFloat16")
    assert on_all_threads([by_one_thread(broken)], 4) == (broken,)
    assert disturbed(broken) == broken


@pytest.mark.parametrize(
    ("verdict", "is_busy", "again"),
    [
        pytest.param(BASE, False, False, id="quiet"),
        pytest.param(disturbed(BASE), False, True, id="disturbed"),
        pytest.param(by_one_thread(BASE), True, True, id="busy"),
    ],
)
def test_what_is_measured_again(verdict: Verdict, *, is_busy: bool, again: bool) -> None:
    """What others disturbed is measured again; where one thread was measured, rates are not sure either."""
    assert (measured_while_busy(verdict), is_to_be_measured_again(verdict)) == (is_busy, again)
