"""Run a compiled function on the threads that torch computes on: its own OpenMP's, so that there are no others beside."""

from __future__ import annotations

import ctypes
import os
import struct
import threading
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch

# What a task begins with, 8 bytes each: the number that no thread has taken yet, how many a thread takes at once, where
# they end, and what runs the function on how many threads.
FIELDS = ("next", "at_a_time", "end", "parallel", "threads")
_LIBRARIES = ("libtorch_cpu.so", "libtorch_cpu.dylib")
_Function = ctypes.CFUNCTYPE(None, ctypes.c_char_p)  # of what it works on


class _Forked:
    """Whether this process was forked: OpenMP's threads are the parent's, and who waits for them waits forever."""

    yes = False


class _Room(threading.local):
    """Memory of one thread that is used within one call, and kept for the next."""

    def __init__(self) -> None:
        self.size = self.address = 0


_room = _Room()
_running: list[None] = []  # one for each call that is under way, in any thread of Python


def run(address: int, end: int, at_a_time: int, fields: tuple[int, ...]) -> None:
    """Call the function at `address`, of `task_ir`, with a task. It returns when all of it is done.

    Other Python threads run meanwhile, and may call it, too: they share torch's threads, for cores that are waited for by
    more threads than there are make each of them wait for the scheduler.

    Args:
        address: A compiled function of one pointer.
        end: How many parts its work has.
        at_a_time: How many of them a thread takes at once.
        fields: What else it works on.
    """
    run_packed(address, (*head(at_a_time, end, threads_now()), *fields))


def run_packed(address: int, words: Sequence[int]) -> None:
    """Call the function at `address` with these words, of 8 bytes each, as `run` does."""
    # Bytes of its own, in which threads count: an array of ctypes takes a microsecond to fill.
    packed = _packing(len(words))(*words)
    _running.append(None)
    try:
        _function(address)(packed)
    finally:
        _running.pop()


def head(at_a_time: int, end: int, threads: int) -> tuple[int, ...]:
    """Return what a task begins with: `FIELDS`."""
    parallel = _parallel_address()
    return 0, at_a_time, end, parallel, threads if parallel and end > at_a_time else 1


def threads_now() -> int:
    """Return how many threads share the work of a call that begins now."""
    return 1 if _Forked.yes else max(1, torch.get_num_threads() // (len(_running) + 1))


def room(size: int) -> int:
    """Return the address of so many bytes, at a multiple of 64, that are this thread's until it asks again."""
    if size > _room.size:
        buffer = ctypes.create_string_buffer(size + 64)
        _room.buffer, _room.size, _room.address = buffer, size, -(-ctypes.addressof(buffer) // 64) * 64
    return _room.address


@cache
def _packing(words: int) -> Callable[..., bytes]:
    return struct.Struct(f"={words}q").pack


@lru_cache
def bits_of(number: float) -> int:
    """Return the bits of a float, as a field of a task."""
    return int(struct.unpack("<i", struct.pack("<f", number))[0])


@cache
def _function(address: int) -> Any:
    return _Function(address)


@cache
def _parallel_address() -> int:
    """Return the address of `GOMP_parallel` of the OpenMP that torch runs on, GNU's or LLVM's; 0 where it has another.

    Asked of torch's library, the loader looks through what that was linked with, under whatever name.
    """
    folder = Path(torch.__file__).parent / "lib"
    for name in _LIBRARIES:
        try:
            parallel = ctypes.CDLL(str(folder / name)).GOMP_parallel
        except (OSError, AttributeError):
            continue
        return ctypes.cast(parallel, ctypes.c_void_p).value or 0
    return 0


def _after_fork() -> None:
    _Forked.yes = True
    _running.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
