"""Failures that say nothing of a model or a dtype: memory that is short now, and a device that is lost. Never remembered."""

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
_MEMORY = re.compile("|".join(MEMORY_TEXTS), re.IGNORECASE)
_LOST = re.compile("|".join(LOST_TEXTS), re.IGNORECASE)
# By name: torch is not imported here.
_MEMORY_TYPES = frozenset({"MemoryError", "OutOfMemoryError", "OutOfResources"})
_LOST_TYPES = frozenset({"AcceleratorError"})


def is_of_memory(exc: BaseException) -> bool:
    """Whether `exc` says that there was no room, on a device or in main memory."""
    return bool(_names(exc) & _MEMORY_TYPES) or (isinstance(exc, RuntimeError) and bool(_MEMORY.search(str(exc))))


def is_of_the_moment(exc: BaseException) -> bool:
    """Whether `exc` is of the memory of this moment, or of a device that this process has lost."""
    lost = bool(_names(exc) & _LOST_TYPES) or (isinstance(exc, RuntimeError) and bool(_LOST.search(str(exc))))
    return lost or is_of_memory(exc)


def _names(exc: BaseException) -> set[str]:
    return {base.__name__ for base in type(exc).__mro__}
