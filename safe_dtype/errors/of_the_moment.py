"""Failures that say nothing of a model or a dtype: short memory, a lost device, a broken line. Never remembered."""

from __future__ import annotations

import re

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
# gloo, NCCL and the store of torch.distributed, where another rank has ended or does not answer.
COMMUNICATION_TEXTS = (
    r"Connection (?:closed|reset|refused)|Broken pipe|connectFullMesh|Socket (?:Timeout|closed)|Read error \[",
    r"Timed out (?:waiting|after)|wait timeout after|timed out in|store->get|\b(?:ProcessGroup)?Gloo\b|NCCL|DistBackendError|heartbeat",
)
_COMMUNICATION = re.compile("|".join(COMMUNICATION_TEXTS), re.IGNORECASE)
_MEMORY = re.compile("|".join(MEMORY_TEXTS), re.IGNORECASE)
_LOST = re.compile("|".join(LOST_TEXTS), re.IGNORECASE)
# By name: torch is not imported here.
_MEMORY_TYPES = frozenset({"MemoryError", "OutOfMemoryError", "OutOfResources"})
_LOST_TYPES = frozenset({"AcceleratorError"})
_COMMUNICATION_TYPES = frozenset({"ConnectionError", "DistError", "PeerLostError"})


def is_of_memory(exc: BaseException) -> bool:
    """Whether `exc` says that there was no room, on a device or in main memory."""
    return bool(_names(exc) & _MEMORY_TYPES) or (isinstance(exc, RuntimeError) and bool(_MEMORY.search(str(exc))))


def is_of_the_moment(exc: BaseException) -> bool:
    """Whether `exc` is of the memory of this moment, or of a device that this process has lost."""
    lost = bool(_names(exc) & _LOST_TYPES) or (isinstance(exc, RuntimeError) and bool(_LOST.search(str(exc))))
    return lost or is_of_memory(exc)


def is_of_communication(exc: BaseException) -> bool:
    """Whether `exc` says that another process has ended, or cannot be reached."""
    is_named = bool(_names(exc) & _COMMUNICATION_TYPES)
    return is_named or (isinstance(exc, RuntimeError) and bool(_COMMUNICATION.search(str(exc))))


def _names(exc: BaseException) -> set[str]:
    return {base.__name__ for base in type(exc).__mro__}
