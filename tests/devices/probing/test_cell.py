"""One cell: errors, tolerances, the time cap, and what torch's exceptions mean. Operations of our own, real tensors."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from safe_dtype.devices.probing.cell import Cell
from safe_dtype.devices.probing.op_case import OpCase, Shape
from safe_dtype.devices.probing.ops import OPS, Op
from safe_dtype.devices.probing.probe import measure_here
from safe_dtype.devices.probing.probe_request import ProbeRequest
from safe_dtype.devices.probing.workspace import Workspace
from safe_dtype.facts import BFLOAT16, FLOAT32, Dtype, Verdict, VerdictKind

LOST = "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported"


def doubling(function: Callable[[int, Tensor], Tensor]) -> Op:
    """Make an operation that should double its input, from what it does instead with (rows, input)."""

    def build(space: Workspace, dtype: Dtype, rows: int, shape: Shape) -> OpCase:
        x = space.inputs(dtype, rows, 4)
        return OpCase(lambda _: function(rows, x), lambda y: (y, 2 * x.double()), work=float(rows))

    return Op(build, lambda _: ((0, 0),))


def run(*ops: Op, seconds: float = 0.05) -> list[Verdict]:
    """Measure `ops` in bfloat16."""
    table = {str(number): op for number, op in enumerate(ops)}
    asked = ProbeRequest("cpu", tuple((BFLOAT16, name) for name in table), ((8, 8),), seconds, torch.get_num_threads())
    return list(measure_here(asked, table))


def failing(exception: Exception) -> Op:
    """Make an operation that raises."""

    def fail(rows: int, x: Tensor) -> Tensor:
        raise exception

    return doubling(fail)


RIGHT = doubling(lambda rows, x: 2 * x)


@pytest.mark.parametrize(
    ("function", "kind", "reason"),
    [
        pytest.param(lambda rows, x: 2 * x, VerdictKind.NATIVE, "", id="right"),
        pytest.param(lambda rows, x: 2.01 * x, VerdictKind.NATIVE, "", id="off-by-a-rounding"),
        pytest.param(
            lambda rows, x: 2.5 * x, VerdictKind.WRONG, "relative error of 0.25 at 1 row ", id="off-by-a-quarter"
        ),
        pytest.param(
            lambda rows, x: x if rows == 512 else 2 * x,
            VerdictKind.WRONG,
            "relative error of 0.5 at 512 rows",
            id="only-in-bulk",
        ),
        pytest.param(lambda rows, x: x * math.inf, VerdictKind.WRONG, "not finite at 1 row", id="infinite"),
        pytest.param(lambda rows, x: x * math.nan, VerdictKind.WRONG, "not finite", id="nan"),
    ],
)
def test_right_or_wrong(function: Callable[[int, Tensor], Tensor], kind: VerdictKind, reason: str) -> None:
    """A result farther off than the format rounds is wrong, at whatever number of rows, and the reason says where."""
    (verdict,) = run(doubling(function))
    assert verdict.kind is kind
    assert reason in verdict.reason


@pytest.mark.parametrize(
    ("exception", "kind", "reason"),
    [
        pytest.param(
            NotImplementedError("\"cdist\" not implemented for 'BFloat16'"),
            VerdictKind.UNSUPPORTED,
            '"cdist"',
            id="op",
        ),
        pytest.param(
            RuntimeError("mixed dtype (CPU): expect\nsecond line"),
            VerdictKind.UNSUPPORTED,
            "mixed dtype (CPU): expect",
            id="first-line",
        ),
        pytest.param(TypeError("BFloat16 is not supported on MPS"), VerdictKind.UNSUPPORTED, "MPS", id="mps"),
        pytest.param(torch.OutOfMemoryError("CUDA out of memory."), VerdictKind.UNKNOWN, "no memory left", id="oom"),
        pytest.param(RuntimeError(LOST), VerdictKind.CRASHES, "device-side assert triggered", id="device-lost"),
    ],
)
def test_exceptions(exception: Exception, kind: VerdictKind, reason: str) -> None:
    """What torch raises becomes a verdict that keeps the first line of its text."""
    (verdict,) = run(failing(exception))
    assert verdict.kind is kind
    assert reason in verdict.reason
    assert "\n" not in verdict.reason


def test_out_of_main_memory() -> None:
    """The CPU's own way of having no memory left says nothing about the dtype either."""
    (verdict,) = run(doubling(lambda rows, x: torch.empty(2**60, dtype=torch.uint8)))
    assert verdict.kind is VerdictKind.UNKNOWN


def test_bugs_are_not_verdicts() -> None:
    """An exception that torch does not raise for a dtype passes through."""
    with pytest.raises(ZeroDivisionError):
        run(failing(ZeroDivisionError()))


def test_after_the_device_is_lost() -> None:
    """Nothing is measured on a lost device: the other cells are unknown, because of the one that lost it."""
    found = run(RIGHT, failing(RuntimeError(LOST)), RIGHT, RIGHT)
    assert [verdict.kind for verdict in found] == [
        VerdictKind.NATIVE,
        VerdictKind.CRASHES,
        VerdictKind.UNKNOWN,
        VerdictKind.UNKNOWN,
    ]
    assert "1 in bfloat16 lost the device" in found[-1].reason


def test_time_cap() -> None:
    """Where few rows show that many would take too long, they are not run; the rate is extrapolated, and said so."""
    rows_run: list[int] = []

    def crawl(rows: int, x: Tensor) -> Tensor:
        rows_run.append(rows)
        end = time.thread_time() + 0.02 * rows  # 512 rows would take ten seconds
        while time.thread_time() < end:
            pass
        return 2 * x

    (verdict,) = run(doubling(crawl), seconds=0.05)
    assert set(rows_run) == {1}
    assert verdict.kind is VerdictKind.NATIVE
    assert "512 rows were not run" in verdict.reason
    assert {timing.rows for timing in verdict.timings} == {1}


def test_many_rows_are_run() -> None:
    """Within the cap, 1, 16 and 512 rows are timed."""
    (verdict,) = run(RIGHT)
    assert [timing.rows for timing in verdict.timings] == [1, 16, 512]


def test_many_rows_of_one_width_are_run_once() -> None:
    """Weights that differ only in how many outputs they have tell their own rates at one row, and share that of many."""
    asked = ProbeRequest("cpu", ((FLOAT32, "matmul"),), ((512, 64), (1024, 64), (512, 128)), 0.05, 1)
    (verdict,) = measure_here(asked, {"matmul": OPS["matmul"]})
    shapes = {rows: [one.shape for one in verdict.timings if one.rows == rows] for rows in (1, 16)}
    assert shapes == {1: [(512, 64), (1024, 64), (512, 128)], 16: [(128, 64), (128, 128)]}
    assert [one.shape[1] for one in verdict.timings if one.rows == 512] == [64, 128]


@pytest.mark.parametrize(
    ("fastest", "calls"), [(1e3, 4), (1e9, 3)], ids=["the-fastest-so-far", "far-slower-than-another"]
)
def test_far_slower_ways_are_repeated_less(fastest: float, calls: int) -> None:
    """One call loads what it needs and one is known: of what is far too slow another one is enough, else three agree."""
    run_with: list[int] = []

    def twice(rows: int, x: Tensor) -> Tensor:
        run_with.append(rows)
        return 2 * x

    def clock(call: Callable[[int], object], first: int, count: int) -> float:
        for number in range(first, first + count):
            call(number)
        return 2e-3

    rates = {("matmul", 512): fastest}
    Cell(Workspace(torch.device("cpu")), BFLOAT16, "matmul_cast", doubling(twice), rates).verdict((), 1.0, clock)
    assert run_with.count(512) == calls
    assert rates["matmul", 512] == max(fastest, 512 / 2e-3)
