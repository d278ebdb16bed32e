"""Failures that say nothing of a model or a dtype: short memory, a lost device, a broken line. Never remembered."""

from __future__ import annotations

import dis
import re
from types import TracebackType

# As parts of texts of torch and the libraries around it, in any case.
MEMORY_TEXTS = (
    r"out of memory|OUT_OF_(?:HOST_|DEVICE_)?MEMORY|OUT_OF_RESOURCES|out of resource|ALLOC_FAILED|bad_alloc",
    r"(?:can'?t|cannot|could not|unable to|failed to) allocate|tried to allocate|No available (?:memory|blocks)",
    r"not enough (?:GPU |free |shared )?memory|insufficient memory",
)
LOST_TEXTS = (
    r"device-side assert|illegal (?:memory access|address|instruction)|misaligned address|unspecified launch failure",
    r"sampleMultinomialOnce|_assert_async|HSA_STATUS_ERROR",
)
# gloo, NCCL and the store of torch.distributed, where another rank has ended or does not answer: nobody else says so.
_OF_TRANSPORT = (
    r"Connection (?:closed|reset) by peer|connectFullMesh|Socket (?:Timeout|closed)|Read error \[|gloo/transport|store->get",
    r"Timed out waiting \d+ms|wait timeout after|(?:^|\]\s*|\n)ProcessGroup\w+|NCCL error in|ncclRemoteError|ncclSystemError",
    r"Watchdog caught|heartbeat monitor|DistBackendError",
)
# What their texts name too, and any program may: it depends on who says so.
_NAMES = (
    r"\bGloo\b|NCCL|heartbeat|Broken pipe|Connection (?:closed|reset|refused)|Timed out (?:after|waiting)|timed out in",
)
COMMUNICATION_TEXTS = (*_OF_TRANSPORT, r"ProcessGroupGloo", *_NAMES)
_TRANSPORT = re.compile("|".join(_OF_TRANSPORT), re.IGNORECASE)
_NAMED = re.compile("|".join(_NAMES), re.IGNORECASE)
_MEMORY = re.compile("|".join(MEMORY_TEXTS), re.IGNORECASE)
_LOST = re.compile("|".join(LOST_TEXTS), re.IGNORECASE)
# By name: torch is not imported here.
_MEMORY_TYPES = frozenset({"MemoryError", "OutOfMemoryError", "OutOfResources"})
_LOST_TYPES = frozenset({"AcceleratorError"})
_STATEMENTS = frozenset({"RAISE_VARARGS", "RERAISE"})  # the instructions by which Python itself raises
_COLLECTIVES = frozenset({"c10d", "_c10d_functional", "c10d_functional", "_c10d_functional_autograd"})
_OF_COLLECTIVES = (
    "distributed/distributed_c10d.py", "distributed/_functional_collectives", "distributed/nn/",
    "distributed/c10d_logger.py", "distributed/algorithms/ddp_comm_hooks/",
)  # fmt: skip
_COMMUNICATION_TYPES = frozenset({"ConnectionError", "DistError", "PeerLostError"})


def is_of_memory(exc: BaseException) -> bool:
    """Whether `exc` says that there was no room, on a device or in main memory."""
    return bool(_names(exc) & _MEMORY_TYPES) or (isinstance(exc, RuntimeError) and bool(_MEMORY.search(str(exc))))


def is_of_the_moment(exc: BaseException) -> bool:
    """Whether `exc` is of the memory of this moment, or of a device that this process has lost."""
    lost = bool(_names(exc) & _LOST_TYPES) or (isinstance(exc, RuntimeError) and bool(_LOST.search(str(exc))))
    return lost or is_of_memory(exc)


def is_of_communication(exc: BaseException) -> bool:
    """Whether `exc` says that another process has ended, or cannot be reached.

    A program that only names a transport in an error of its own does not say so.
    """
    if _names(exc) & _COMMUNICATION_TYPES:
        return True
    if not isinstance(exc, RuntimeError):
        return False
    text = str(exc)
    return bool(_TRANSPORT.search(text)) or (bool(_NAMED.search(text)) and is_raised_by_torch(exc))


def is_raised_by_torch(exc: BaseException) -> bool:
    """Whether compiled code has raised `exc`, or torch.distributed. Unknown, and so no, where it was never raised."""
    last = _last_of(exc)
    if last is None:
        return False
    code = last.tb_frame.f_code
    is_statement = dis.opname[code.co_code[last.tb_lasti]] in _STATEMENTS
    return not is_statement or _is_in(code.co_filename, "distributed/")


def is_raised_by_transport(exc: BaseException) -> bool:
    """Whether a collective of torch.distributed has raised `exc`, whatever it says."""
    last = _last_of(exc)
    if last is None:
        return False
    frame = last.tb_frame
    if _is_in(frame.f_code.co_filename, "_ops.py"):  # an operation, which is `self` there
        operation = frame.f_locals.get("self")
        name = getattr(operation, "_qualified_op_name", None) or getattr(operation, "name", str)()
        return str(name).partition("::")[0] in _COLLECTIVES
    return _is_in(frame.f_code.co_filename, *_OF_COLLECTIVES)


def _last_of(exc: BaseException) -> TracebackType | None:
    """Return where `exc` was raised."""
    trace = exc.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace


def _is_in(file: str, *places: str) -> bool:
    path = file.replace("\\", "/")
    return any(f"/torch/{place}" in path for place in places)


def _names(exc: BaseException) -> set[str]:
    return {base.__name__ for base in type(exc).__mro__}
