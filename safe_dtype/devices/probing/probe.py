"""Measure a device: which cells, in which order, in this process or in a child."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch

from ...errors import ProbeError
from ...facts import BFLOAT16, COMPUTE, FLOAT32, DeviceFacts, Dtype, Verdict
from ...kernels.attention_rows import can_attend_rows
from ...kernels.row_product import has_code
from ...numerics.free_heap import give_back_free_heap
from ...numerics.onednn_product import has_product
from ...rendering.progress import tell
from ..backend import answer_of
from ..inventory import detect_one
from ..priors import child_needed
from ..settings import float32_precision
from .cell import Cell, Fastest, cells_lost, device_is_lost
from .isolation import measure_in_children
from .ops import OPS, Op
from .probe_request import ProbeRequest
from .timing import Waiting, by_thread_time, one_thread
from .verdicts import beside_float32, by_one_thread, disturbed, on_all_threads
from .workspace import Workspace

DEFAULT_OPS = ("matmul", "attention", "layer_norm", "rms_norm", "softmax")
DEFAULT_WIDTHS = ((3072, 1024), (1024, 3072))  # the MLP of a model with a hidden size of 1024
CELL_SECONDS = 0.3
_PLACES = ("child", "inprocess")


def measure(
    device: str,
    dtypes: Sequence[Dtype] = COMPUTE,
    widths: Sequence[tuple[int, int]] = DEFAULT_WIDTHS,
    *,
    ops: Sequence[str] = DEFAULT_OPS,
    routes: Sequence[tuple[Dtype, str]] = (),
    cell_seconds: float = CELL_SECONDS,
) -> tuple[Verdict, ...]:
    """Measure every op in every dtype, the most promising dtype first.

    `widths` are (out_features, in_features) of the model's own linears. `routes` are other ways to compute a product,
    each with the dtype to measure it in: see `routes_of`. No cell runs for much longer than
    `cell_seconds`. Where kernels are known to end the process, a child measures; SAFE_DTYPE_PROBE=child or
    SAFE_DTYPE_PROBE=inprocess overrides that.

    Raises:
        NoSuchDeviceError: If the device is not here.
        ProbeError: If `ops` names an operation that nobody knows, or the child does not start.
    """
    facts = detect_one(device)
    unknown = [op for op in (*ops, *(op for _, op in routes)) if op not in OPS]
    if unknown:
        raise ProbeError(device, f"no operation is called {unknown[0]!r}", f"name some of {', '.join(OPS)}")
    request = ProbeRequest(
        device=facts.device,
        cells=(*((dtype, op) for op in ops for dtype in _in_order(dtypes, facts)), *routes),
        widths=tuple((out, width) for out, width in widths),
        cell_seconds=cell_seconds,
        threads=torch.get_num_threads(),
        float32_precision=float32_precision(),
    )
    measured: list[Verdict] = []
    for verdict in measure_in_children(request) if _wants_child(facts) else measure_here(request, OPS):
        measured.append(verdict)
        tell(f"{verdict.op} in {verdict.dtype}", len(measured), len(request.cells))
    spread = on_all_threads(measured, request.threads)
    judged = beside_float32(spread, [one for one in spread if one.dtype == FLOAT32])
    return tuple(verdict for verdict in judged if verdict.dtype in dtypes)


def routes_of(dtype: Dtype, device: str) -> tuple[tuple[Dtype, str], ...]:
    """Return the ways to multiply by weights saved in `dtype` beside the plain one, for `measure`."""
    blocks = ("matmul_blocks", "matmul_blocks_cast") if device == "cpu" else ()
    torch_dtype = getattr(torch, dtype.name)
    compiled = ("matmul_rows",) if device == "cpu" and has_code(torch_dtype, torch_dtype) else ()
    by_onednn = device == "cpu" and has_product()
    chunks = ("attention_chunks",) if device == "cpu" and can_attend_rows(torch_dtype) else ()
    in_float32 = ((FLOAT32, "matmul_onednn"),) if by_onednn else ()
    if dtype == FLOAT32:  # its weights may be rounded to bfloat16, stored so or multiplied from a copy
        of_float32 = tuple((FLOAT32, name) for name in ("matmul_narrow", *compiled, *chunks))
        return tuple(dict.fromkeys((*of_float32, *in_float32, *routes_of(BFLOAT16, device))))
    cast = ("matmul_cast", "matmul_cast_onednn") if by_onednn else ("matmul_cast",)
    row = ("attention_row",) if device == "cpu" else ()
    return (*((dtype, name) for name in (*cast, *blocks, *compiled, *row, *chunks)), *in_float32)


def measure_here(request: ProbeRequest, ops: dict[str, Op]) -> Iterator[Verdict]:
    """Measure cell by cell in this process. Yields verdicts not yet compared with float32's speed."""
    space = Workspace(torch.device(request.device))
    run = _Run(request)
    for number, (dtype, name) in enumerate(request.cells):
        with _undisturbed(space.device):
            verdict = run.verdict(Cell(space, dtype, name, ops[name], run.fastest))
        yield verdict
        if device_is_lost(verdict):
            yield from cells_lost(request.cells[number + 1 :], verdict)
            return
    device = space.device
    del space
    # What the measurement needed is others' again.
    if device.type == "cpu":
        give_back_free_heap()
    else:
        answer_of(device.type, "empty_cache")


class _Run:
    """Measures on all threads, until other processes turn out to keep the cores busy.

    Then the threads of one OpenMP region wait for each other until the scheduler has run them all: 24 ms for a product
    of 1 ms, every time (2 threads, 2 cores, one busy neighbour). So one thread is measured, by its own clock.
    """

    def __init__(self, request: ProbeRequest) -> None:
        self._request = request
        self._can_be_disturbed = torch.device(request.device).type == "cpu"
        self._busy = False
        self.fastest: Fastest = {}  # of the cells so far

    def verdict(self, cell: Cell) -> Verdict:
        """Return the verdict on one cell."""
        widths, seconds = self._request.widths, self._request.cell_seconds
        if not self._busy:
            waiting = Waiting()
            verdict = cell.verdict(widths, seconds)
            self._busy = self._can_be_disturbed and waiting.busy
            if not self._busy:
                return disturbed(verdict) if self._can_be_disturbed and waiting.disturbed else verdict
            self.fastest.clear()  # of all threads
        with one_thread():
            return by_one_thread(cell.verdict(widths, seconds, by_thread_time))


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """Keep the caller's gradients, autocast and current device out of the measurement."""
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if torch.amp.is_autocast_available(device.type):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        become_current = getattr(getattr(torch, device.type, None), "device", None)
        if become_current and device.type != "cpu":
            stack.enter_context(become_current(device))
        yield


def _in_order(dtypes: Sequence[Dtype], facts: DeviceFacts) -> list[Dtype]:
    """Order `dtypes` as the prior table tries them, with float32, which all others are compared with."""
    order = facts.prior_order
    wanted = dict.fromkeys((*dtypes, FLOAT32))
    return sorted(wanted, key=lambda dtype: order.index(dtype) if dtype in order else len(order))


def _wants_child(facts: DeviceFacts) -> bool:
    asked = os.environ.get("SAFE_DTYPE_PROBE", "")
    if asked not in ("", *_PLACES):
        raise ProbeError(
            facts.device, f"SAFE_DTYPE_PROBE is {asked!r}", f"set it to {' or '.join(_PLACES)}, or remove it"
        )
    return asked == "child" if asked else child_needed(facts) is not None
