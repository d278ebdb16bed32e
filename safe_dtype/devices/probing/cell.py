"""One cell of the report: one dtype, one operation, one device. Runs it, times it, compares it."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...facts import Dtype, Timing, Verdict, VerdictKind
from .accuracy import relative_error, tolerance
from .op_case import OpCase, Shape
from .ops import Op
from .timing import Clock, clock_of, seconds_per_call
from .verdicts import FEW_ROWS, NO_MEMORY, ONE_ROW, PREFILL_ROWS, family_of
from .workspace import Workspace

# Of the time for one shape, spent on repeats.
_SHARES, _OTHER_SHARE = {ONE_ROW: 0.1, PREFILL_ROWS: 0.25}, 0.05
# Seconds below which a first call is repeated, since it loaded and compiled things. At one row it loads the most
# (cuBLAS takes 0.3 s), and everything else is predicted from it.
_CALLED_TWICE = {ONE_ROW: 1.0, FEW_ROWS: 5e-3, PREFILL_ROWS: 5e-3}
_LEAST_SECONDS = 0.01  # for the shapes that come after a slow one: what is quick is still checked
_FAR = 2.0  # times as long as the fastest way so far: so far behind, a second repeat is exact enough
_GROW_BELOW = 2e-3  # seconds; a product that is faster than this may show a better rate with more outputs

_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
# After these the process has lost the device: every later call fails.
_DEVICE_LOST = re.compile(
    r"device-side assert|illegal memory access|misaligned address|unspecified launch failure|illegal instruction",
    re.IGNORECASE,
)


@dataclass
class _Course:
    """What has been measured of a cell so far."""

    timings: list[Timing] = field(default_factory=list)
    bytes_read: float = 0.0
    bytes_seconds: float = 0.0
    flops: float = 0.0
    flops_seconds: float = 0.0
    worst_error: float = 0.0
    faults: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    multiplied: set[Shape] = field(default_factory=set)  # what many rows were multiplied by


@dataclass(frozen=True, slots=True)
class _Step:
    rows: int
    shape: Shape
    case: OpCase
    first: Tensor  # the result of the first call
    seconds: float


# The most work a second, by any way to compute an operation, at so many rows.
Fastest = dict[tuple[str, int], float]


class Cell:
    """Measures one dtype of one operation within a time cap.

    What is far slower than the `fastest` of the cells before it is measured less exactly; its own rates are added to them.
    """

    def __init__(self, space: Workspace, dtype: Dtype, name: str, op: Op, fastest: Fastest | None = None) -> None:
        self._space, self._dtype, self._name, self._op = space, dtype, name, op
        self._fastest: Fastest = {} if fastest is None else fastest
        self._course, self._clock = _Course(), clock_of(space.device)

    def verdict(self, widths: Iterable[Shape], seconds: float, clock: Clock | None = None) -> Verdict:
        """Return the verdict, not yet compared with float32's speed: NATIVE where it runs right.

        A step that would take longer than what is left of `seconds` is not run; its rate is extrapolated from fewer
        rows, and the reason says so.
        """
        self._course, self._clock = _Course(), clock or clock_of(self._space.device)
        unmeasured = Verdict(self._dtype, self._name, VerdictKind.UNSUPPORTED, f"this torch has no {self._dtype}")
        if not hasattr(torch, self._dtype.name):
            return unmeasured
        try:
            self._run(self._op.shapes(tuple(widths)), time.perf_counter() + seconds)
        except (RuntimeError, TypeError, ValueError) as exc:
            kind, reason = _kind_of(exc)
            return replace(unmeasured, kind=kind, reason=reason, timings=tuple(self._course.timings))
        return self._result()

    def _run(self, shapes: Iterable[Shape], deadline: float) -> None:
        shapes = tuple(shapes)
        for number, shape in enumerate(shapes):
            left = deadline - time.perf_counter()
            self._measure(shape, max(_LEAST_SECONDS, left / (len(shapes) - number)))

    def _measure(self, shape: Shape, allowance: float) -> None:
        """Go from one row to many, never to a step that would take longer than `allowance`."""
        full, cut = self._shapes(shape)
        step = self._try(ONE_ROW, cut)
        # Shapes of one width differ in what is cut off: many rows are multiplied by the same.
        is_new = cut not in self._course.multiplied
        self._course.multiplied.add(cut)
        for rows, now in ((ONE_ROW, full), *((rows, cut) for rows in self._op.rows if is_new)):
            if (rows, now) != (step.rows, step.shape):
                case = self._case(rows, now)
                if step.seconds * case.work / step.case.work > allowance:
                    self._leave_out(step, rows)
                    break
                step = self._grown(self._try(rows, now, case), full)
            step = self._timed(step, allowance)
            if rows == ONE_ROW:
                self._count_read(step)
        if is_new:
            self._count_work(step)
            self._check_odd(step, allowance)

    def _shapes(self, shape: Shape) -> tuple[Shape, Shape]:
        """Return the shape for one row, where all weights must be read, and the smaller one for many rows."""
        if not self._op.cut:
            return shape, shape
        full = self._space.widest(self._dtype, shape)
        return full, (min(full[0], self._op.cut), full[1])

    def _case(self, rows: int, shape: Shape) -> OpCase:
        return self._op.build(self._space, self._dtype, rows, shape)

    def _try(self, rows: int, shape: Shape, case: OpCase | None = None) -> _Step:
        """Run once, which also loads and compiles what the kernel needs, and again where that was quick."""
        case = case or self._case(rows, shape)
        results: list[Tensor] = []
        seconds = self._clock(lambda number: results.append(case.call(number)), 0, 1)
        if seconds < _CALLED_TWICE.get(rows, 0.0):
            seconds = min(seconds, self._clock(case.call, 1, 1))
        step = _Step(rows, shape, case, results[0], seconds)
        self._compare(step)
        return step

    def _timed(self, step: _Step, allowance: float) -> _Step:
        worth = allowance * _SHARES.get(step.rows, _OTHER_SHARE) * self._op.share
        key = family_of(self._name), step.rows
        fastest = self._fastest.get(key)
        too_slow = _FAR * step.case.work / fastest if fastest else math.inf
        seconds = seconds_per_call(step.case.call, self._clock, worth, step.seconds, too_slow=too_slow)
        self._fastest[key] = max(fastest or 0.0, step.case.work / max(seconds, 1e-9))
        self._course.timings.append(Timing(step.rows, step.shape, seconds))
        return replace(step, seconds=seconds)

    def _grown(self, step: _Step, full: Shape) -> _Step:
        """Return the step with as many outputs more as it takes to be long enough to tell its rate."""
        if step.rows != PREFILL_ROWS or step.seconds >= _GROW_BELOW or step.shape[0] >= full[0]:
            return step
        outputs = step.shape[0] * max(2, math.ceil(_GROW_BELOW / max(step.seconds, 1e-6)))
        return self._try(PREFILL_ROWS, (min(full[0], outputs), full[1]))

    def _check_odd(self, step: _Step, allowance: float) -> None:
        """Compare numbers of rows that no tile divides: kernels fail by shape."""
        for rows in self._op.odd_rows:
            if step.seconds * rows / step.rows < allowance:
                self._try(rows, step.shape)

    def _compare(self, step: _Step) -> None:
        error = relative_error(step.first, *step.case.exact(step.first))
        self._course.worst_error = max(self._course.worst_error, error)
        allowed = tolerance(step.first.dtype, self._op.inside or self._dtype, multiplies=self._op.multiplies)
        if error > allowed:
            rows = f"{step.rows} row{'s' if step.rows > 1 else ''}{_of_weight(step)}"
            off = f"a relative error of {error:.2g}" if math.isfinite(error) else "values that are not finite"
            self._course.faults.append(f"{off} at {rows} (a right kernel stays below {allowed:.2g})")

    def _count_read(self, step: _Step) -> None:
        self._course.bytes_read += step.case.bytes_read
        self._course.bytes_seconds += step.seconds

    def _count_work(self, step: _Step) -> None:
        self._course.flops += step.case.work
        self._course.flops_seconds += step.seconds

    def _leave_out(self, step: _Step, rows: int) -> None:
        if rows == ONE_ROW:
            self._count_read(step)
        took = f"{step.rows} row{'s' if step.rows > 1 else ''}{_of_weight(step)} took {step.seconds:.2g} s"
        self._course.left_out.append(f"{took}, so {self._op.rows[-1]} rows were not run")

    @property
    def _has_rate(self) -> bool:
        return self._op.multiplies and PREFILL_ROWS in self._op.rows

    def _result(self) -> Verdict:
        course = self._course
        kind, reason = (VerdictKind.WRONG, course.faults[0]) if course.faults else (VerdictKind.NATIVE, "")
        return Verdict(
            self._dtype,
            self._name,
            kind,
            "; ".join(filter(None, (reason, *course.left_out[:1]))),
            decode_bytes_per_s=course.bytes_read / course.bytes_seconds if course.bytes_read else None,
            prefill_flops_per_s=course.flops / course.flops_seconds if self._has_rate else None,
            # Infinity is no JSON; the reason says what happened.
            max_rel_error=course.worst_error if math.isfinite(course.worst_error) else None,
            timings=tuple(course.timings),
        )


def _of_weight(step: _Step) -> str:
    return f" of a weight {step.shape[0]}x{step.shape[1]}" if any(step.shape) else ""


def device_is_lost(verdict: Verdict) -> bool:
    """Whether nothing else can be measured in this process after `verdict`."""
    return verdict.kind is VerdictKind.CRASHES and _DEVICE_LOST.search(verdict.reason) is not None


def _kind_of(exc: Exception) -> tuple[VerdictKind, str]:
    """Read torch's text: the only place of this package that does."""
    text = str(exc)
    line = next((line.strip() for line in text.splitlines() if line.strip()), type(exc).__name__)
    if isinstance(exc, torch.OutOfMemoryError) or _OUT_OF_MEMORY.search(text):
        return VerdictKind.UNKNOWN, f"{NO_MEMORY}: {line}"
    if _DEVICE_LOST.search(text):
        return VerdictKind.CRASHES, line
    return VerdictKind.UNSUPPORTED, line


def cells_lost(cells: Iterable[tuple[Dtype, str]], because: Verdict) -> Iterator[Verdict]:
    """Yield a verdict for every cell that could not be measured any more."""
    for dtype, op in cells:
        yield Verdict(dtype, op, VerdictKind.UNKNOWN, f"not measured: {because.op} in {because.dtype} lost the device")
