"""Run a compiled function on the threads that torch computes on: its own OpenMP's, so that there are no others beside."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch

_LIBRARIES = ("libtorch_cpu.so", "libtorch_cpu.dylib")
_Function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)  # of what it works on


class _Forked:
    """Whether this process was forked: OpenMP's threads are the parent's, and who waits for them waits forever."""

    yes = False


def run(address: int, task: Any, *, threads: int | None = None) -> None:
    """Call the function at `address` with the address of `task`, a ctypes array, on each of torch's threads at once.

    They share the work by counting in `task`. It returns when all of them have. Other Python threads run meanwhile, and
    may call it, too.

    Args:
        address: A compiled function of one pointer.
        task: What it works on.
        threads: How many; None for as many as torch computes on. One is the calling thread itself.
    """
    parallel = _parallel()
    count = torch.get_num_threads() if threads is None else threads
    if count == 1 or parallel is None or _Forked.yes:
        _function(address)(ctypes.addressof(task))
    else:
        parallel(address, ctypes.addressof(task), count, 0)


@cache
def _function(address: int) -> Any:
    return _Function(address)


@cache
def _parallel() -> Any:
    """Return `GOMP_parallel` of the OpenMP that torch runs on, GNU's or LLVM's; None where it has another.

    Asked of torch's library, the loader looks through what that was linked with, under whatever name.
    """
    folder = Path(torch.__file__).parent / "lib"
    for name in _LIBRARIES:
        try:
            parallel = ctypes.CDLL(str(folder / name)).GOMP_parallel
        except (OSError, AttributeError):
            continue
        parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        parallel.restype = None
        return parallel
    return None


def _after_fork() -> None:
    _Forked.yes = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
