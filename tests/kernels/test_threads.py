"""Work on torch's own threads."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from safe_dtype.kernels.row_product import multiply_rows, multiply_rows_by_each
from safe_dtype.kernels.threads import FIELDS, room, run

pytest.importorskip("llvmlite", reason="the extra `fast`")


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Have torch compute on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def address_of(function: Callable[[int], None]) -> tuple[object, int]:
    """Return a C function that calls this one, and its address."""
    callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function)
    return callback, ctypes.cast(callback, ctypes.c_void_p).value or 0


def test_what_a_function_gets() -> None:
    """Its task: nothing taken yet, all of torch's threads where there is more than one part for each, and its own fields."""
    tasks: list[dict[str, int]] = []

    def note(place: int) -> None:
        values = (ctypes.c_int64 * (len(FIELDS) + 2)).from_address(place)
        tasks.append(dict(zip((*FIELDS, "first", "second"), values, strict=True)))

    callback, address = address_of(note)
    with torch_threads(3):
        run(address, 10, 2, (7, 8))
        run(address, 2, 2, (7, 8))
    assert callback
    assert [(one["next"], one["at_a_time"], one["end"], one["first"], one["second"]) for one in tasks] == [
        (0, 2, 10, 7, 8),
        (0, 2, 2, 7, 8),
    ]
    assert [one["threads"] for one in tasks] == [3 if tasks[0]["parallel"] else 1, 1]


@pytest.mark.skipif(sys.platform != "linux", reason="the OpenMP of torch is asked for by its name on Linux")
def test_calls_at_the_same_time_share_threads() -> None:
    """What is called while another call is under way gets the threads that are left, and at least its own."""
    counts: list[int] = []

    def note(place: int) -> None:
        counts.append((ctypes.c_int64 * len(FIELDS)).from_address(place)[FIELDS.index("threads")])
        if len(counts) < 3:
            beside = threading.Thread(target=run, args=(address, 10, 1, ()))
            beside.start()
            beside.join()

    callback, address = address_of(note)
    with torch_threads(4):
        run(address, 10, 1, ())
        assert counts == [4, 2, 1]
        run(address, 10, 1, ())
    assert callback
    assert counts[3] == 4


@pytest.mark.skipif(sys.platform != "linux", reason="the OpenMP of torch is asked for by its name on Linux")
def test_all_threads_work() -> None:
    """Threads of the process do the work, as many as torch has, and none is left over that torch has not."""
    x, weight = torch.ones(1, 2048), torch.ones(4000, 2048)
    with torch_threads(3):
        torch.mm(weight, weight.t())
        before = threads_of_the_process()
        used = {thread: spent for thread, spent in times().items() if thread in before}
        for _ in range(60):
            multiply_rows(x, weight)
        assert threads_of_the_process() == before
        busy = [thread for thread, spent in times().items() if spent > used.get(thread, 0)]
    assert len(busy) >= 2


def threads_of_the_process() -> set[str]:
    """Return their numbers."""
    return {thread.name for thread in Path("/proc/self/task").iterdir()}


def times() -> dict[str, int]:
    """Return the nanoseconds that each thread has run for."""
    spent = {}
    for thread in threads_of_the_process():
        spent[thread] = int(Path(f"/proc/self/task/{thread}/schedstat").read_text().split()[0])
    return spent


def test_room_is_a_threads_own() -> None:
    """It is the same memory at each call, larger where more is asked for, and another one in each thread."""
    first = room(100)
    assert first % 64 == 0
    assert room(50) == first
    ctypes.memset(room(10**6), 0, 10**6)
    others: list[int] = []
    beside = threading.Thread(target=lambda: others.append(room(100)))
    beside.start()
    beside.join()
    assert others != [room(100)]


def test_threads_of_python_at_once() -> None:
    """Several threads of Python multiply at once, and each gets its own."""
    torch.manual_seed(0)
    weights = [torch.randn(3000, 256) for _ in range(4)]
    x = torch.randn(2, 256)
    expected = [multiply_rows(x, weight) for weight in weights]
    wrong: list[int] = []

    def work(number: int) -> None:
        results = [multiply_rows(x, weights[number]) for _ in range(50)]
        wrong.extend(number for result in results if not torch.equal(result, expected[number]))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_after_a_fork() -> None:
    """A forked process multiplies, too, though its parent's threads are gone, and one of them was at it."""
    x, weight = torch.ones(1, 512), torch.ones(5000, 512)
    multiply_rows(x, weight)
    ends = threading.Event()

    def work() -> None:
        while not ends.is_set():
            multiply_rows(x, weight)

    beside = threading.Thread(target=work)
    beside.start()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        results = multiply_rows_by_each(x, [(weight, None, None)] * 2)
        os._exit(0 if all(bytes(one.numpy())[:4] == b"\0\0\0\x44" for one in results) else 1)
    status = os.waitpid(child, 0)[1]
    ends.set()
    beside.join()
    assert status == 0
