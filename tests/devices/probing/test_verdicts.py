"""From measured cells to verdicts, without measuring."""

from __future__ import annotations

from dataclasses import replace

import pytest

from safe_dtype.devices.probing.verdicts import beside_float32, on_all_threads
from safe_dtype.facts import BFLOAT16, FLOAT32, Dtype, Timing, Verdict, VerdictKind


def cell(
    dtype: Dtype, gflops: float | None, gb_per_s: float | None = None, kind: VerdictKind = VerdictKind.NATIVE
) -> Verdict:
    """Return a matmul cell by its rates."""
    flops, read = (rate and rate * 1e9 for rate in (gflops, gb_per_s))
    return Verdict(dtype, "matmul", kind, "", read, flops, timings=(Timing(1, (8, 8), 1.0), Timing(512, (8, 8), 4.0)))


BASE = cell(FLOAT32, 100, 20)


@pytest.mark.parametrize(
    ("gflops", "kind"),
    [
        pytest.param(200, VerdictKind.NATIVE, id="faster"),
        pytest.param(100, VerdictKind.NATIVE, id="as-fast"),
        pytest.param(70, VerdictKind.NATIVE, id="a-little-slower"),
        pytest.param(60, VerdictKind.SLOW, id="beyond-one-and-a-half"),
        pytest.param(1, VerdictKind.SLOW, id="hundred-times"),
    ],
)
def test_slow(gflops: float, kind: VerdictKind) -> None:
    """Slow is more than 1.5 times float32's time at 512 rows, and the reason has the ratio."""
    (found,) = beside_float32([cell(BFLOAT16, gflops)], [BASE])
    assert found.kind is kind
    assert found.reason == f"{100 / gflops:.2g}x float32's time at 512 rows, 1x at 1 row"


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
    ("gb_per_s", "bandwidth", "expected"),
    [
        pytest.param(9, 17, 17, id="arithmetic-bound-up-to-the-bandwidth"),
        pytest.param(3, 17, 12, id="arithmetic-bound-below-it"),
        pytest.param(17, 17, 17, id="memory-bound"),
        pytest.param(20, 17, 20, id="never-less-than-measured"),
    ],
)
def test_one_thread_stands_for_all(gb_per_s: float, bandwidth: float, expected: float) -> None:
    """Arithmetic grows with the threads, reading only up to the bandwidth; the reason says what was measured."""
    found = on_all_threads(cell(BFLOAT16, 5, gb_per_s), 4, bandwidth=bandwidth * 1e9)
    assert found.prefill_flops_per_s == 20e9
    assert found.decode_bytes_per_s == expected * 1e9
    assert [timing.seconds for timing in found.timings] == [1.0, 1.0]
    assert "one thread was measured" in found.reason


def test_nothing_measured_stays_as_it_is() -> None:
    """A cell that did not run has nothing to scale."""
    broken = Verdict(BFLOAT16, "fft", VerdictKind.UNSUPPORTED, "Unsupported dtype BFloat16")
    assert on_all_threads(broken, 4, bandwidth=1e9) == broken
