"""One CPU for all tests: the made-up figures of one with 16-bit arithmetic stand for whatever machine runs them.

float32, bfloat16 and float16 have the rates of `factories.AMX_CPU`; those of the other routes, the seconds of a norm
and the errors are estimates of the same order. They decide which plan is made, never whether a result is right.

Kernels are those of the machine, and so are memory, files, and the cache of verdicts. Only which dtype is how fast, on
which every plan depends, is fixed: else a plan, and what is warned of, would change from CPU to CPU, and on a busy one
from run to run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from safe_dtype.devices import DEFAULT_OPS, DEFAULT_WIDTHS, facts_of, measure
from safe_dtype.devices.probing.verdicts import beside_float32
from safe_dtype.facts import BFLOAT16, COMPUTE, FLOAT16, FLOAT32, Dtype, Timing, Verdict, VerdictKind

SMALL_WIDTHS = ((256, 256),)  # every checkpoint below a million parameters is planned by them

# Bytes/s of reading at one row and FLOP/s at 512 rows.
_RATES = {
    FLOAT32: (28e9, 150e9),
    BFLOAT16: (26e9, 1500e9),
    FLOAT16: (20e9, 1400e9),
}
# Other ways to compute a product: `routes_of`.
ROUTE_RATES = {
    (FLOAT32, "matmul_narrow"): (20e9, 1100e9),
    (BFLOAT16, "matmul_cast"): (13e9, 130e9),
    (BFLOAT16, "matmul_blocks"): (27e9, 900e9),
    (BFLOAT16, "matmul_blocks_cast"): (27e9, 140e9),
    (FLOAT32, "matmul_int8"): (14e9, 140e9),
    (BFLOAT16, "matmul_int8"): (14e9, 900e9),
    (BFLOAT16, "matmul_int8_cast"): (14e9, 140e9),
    (FLOAT16, "matmul_int8_cast"): (14e9, 140e9),
    (FLOAT32, "matmul_bfloat16_rows"): (20e9, 140e9),
    (FLOAT32, "matmul_float16_rows"): (20e9, 140e9),
    (FLOAT32, "matmul_int4"): (9e9, 130e9),
    (BFLOAT16, "matmul_int4"): (9e9, 800e9),
    (BFLOAT16, "matmul_int4_cast"): (9e9, 130e9),
    (FLOAT16, "matmul_int4_cast"): (9e9, 130e9),
    (FLOAT16, "matmul_cast"): (13e9, 130e9),
    (FLOAT16, "matmul_blocks"): (20e9, 900e9),
    (FLOAT16, "matmul_blocks_cast"): (20e9, 140e9),
    # No faster than torch's own.
    (FLOAT32, "matmul_onednn"): (28e9, 150e9),
    (BFLOAT16, "matmul_cast_onednn"): (13e9, 130e9),
    (FLOAT16, "matmul_cast_onednn"): (13e9, 130e9),
    (FLOAT32, "attention_chunks"): (28e9, 150e9),
    (BFLOAT16, "attention_row"): (26e9, 150e9),
    (FLOAT16, "attention_row"): (20e9, 150e9),
    (BFLOAT16, "attention_chunks"): (26e9, 1500e9),
    (FLOAT16, "attention_chunks"): (20e9, 1400e9),
    # Slower than the plain product, so that no plan depends on what is installed.
    (FLOAT32, "matmul_rows"): (24e9, 150e9),
    (BFLOAT16, "matmul_rows"): (22e9, 1500e9),
    (FLOAT16, "matmul_rows"): (17e9, 1400e9),
}
_ROWS, _COMPILED_ROWS = (1, 16, 512), (1, 8)
_SECONDS_AT_ONE_ROW, _SECONDS_A_NUMBER = 3e-6, 4e-10  # of a norm or a softmax
_MULTIPLIES = ("matmul", "attention", "conv2d")
_ERROR = {FLOAT32: 1e-6, BFLOAT16: 3e-3, FLOAT16: 3e-4}


def recorded(
    device: str,
    dtypes: Sequence[Dtype] = COMPUTE,
    widths: Sequence[tuple[int, int]] = DEFAULT_WIDTHS,
    *,
    ops: Sequence[str] = DEFAULT_OPS,
    routes: Sequence[tuple[Dtype, str]] = (),
) -> tuple[Verdict, ...]:
    """Return what `measure` would on the recorded CPU; other devices are measured."""
    if device != "cpu":
        return measure(device, dtypes, widths, ops=ops, routes=routes)
    return figures(dtypes, widths, ops, routes)


def figures(
    dtypes: Sequence[Dtype], widths: Sequence[tuple[int, int]], ops: Sequence[str], routes: Sequence[tuple[Dtype, str]],
    rates: Mapping[Dtype, tuple[float, float]] = _RATES,
) -> tuple[Verdict, ...]:  # fmt: skip
    """Return verdicts of a device that reads and computes at `rates`; it has nothing in a dtype without one."""
    cells = [(dtype, op) for op in ops for dtype in dict.fromkeys((*dtypes, FLOAT32))]
    verdicts = [_verdict(dtype, op, widths, rates) for dtype, op in (*cells, *routes)]
    judged = beside_float32(verdicts, [verdict for verdict in verdicts if verdict.dtype == FLOAT32])
    return tuple(verdict for verdict in judged if verdict.dtype in dtypes)


@contextmanager
def recorded_cpu() -> Iterator[None]:
    """Let this process take the recorded figures wherever it would measure the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("safe_dtype.devices.survey.measure", recorded)
        yield


def record_for_children(*checkpoints: Path) -> None:
    """Write the figures to the cache, for processes that tests start: those for small models and for `checkpoints`."""
    facts_of("cpu")
    for ops in (DEFAULT_OPS, (*DEFAULT_OPS, "conv2d")):
        facts_of("cpu", widths=SMALL_WIDTHS, ops=ops)
    for folder in checkpoints:
        from safe_dtype.loading import Request  # imports transformers
        from safe_dtype.loading.plan_request import checkpoint_for, device_for

        request = Request(str(folder), {})
        device_for(request, checkpoint_for(request))


def _verdict(
    dtype: Dtype, op: str, widths: Sequence[tuple[int, int]], rates: Mapping[Dtype, tuple[float, float]]
) -> Verdict:
    if dtype not in rates:
        return Verdict(dtype, op, VerdictKind.UNSUPPORTED, f"the recorded device has no {op} in {dtype}")
    read, work = ROUTE_RATES.get((dtype, op), rates[dtype])
    if not op.startswith(_MULTIPLIES):
        timings = tuple(
            Timing(rows, widths[0], _SECONDS_AT_ONE_ROW + (rows - 1) * widths[0][1] * _SECONDS_A_NUMBER)
            for rows in _ROWS
        )
        return Verdict(dtype, op, VerdictKind.NATIVE, "", max_rel_error=_ERROR[dtype], timings=timings)
    timings = tuple(
        Timing(rows, (out, width), out * width * max(dtype.itemsize / read, 2 * rows / work))
        for out, width in widths
        for rows in (_COMPILED_ROWS if op == "matmul_rows" else _ROWS)
    )
    if op == "matmul_rows":
        return Verdict(dtype, op, VerdictKind.NATIVE, "", read, None, _ERROR[dtype], timings)
    return Verdict(dtype, op, VerdictKind.NATIVE, "", read, work, _ERROR[dtype], timings if op != "attention" else ())
