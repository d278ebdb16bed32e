"""Work on torch's own threads."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading

import pytest
import torch

from safe_dtype.kernels.row_product import multiply_rows
from safe_dtype.kernels.threads import run

pytest.importorskip("llvmlite", reason="the extra `fast`")


@pytest.mark.skipif(sys.platform != "linux", reason="the OpenMP of torch is asked for by its name on Linux")
def test_each_thread_is_called() -> None:
    """As many threads as asked for work on the task, the calling one among them; torch's number where none is asked for."""
    seen: list[int] = []

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def note(place: int) -> None:
        seen.append(threading.get_native_id())
        assert ctypes.c_int64.from_address(place).value == 7

    task = (ctypes.c_int64 * 1)(7)
    address = ctypes.cast(note, ctypes.c_void_p).value or 0
    for asked, count in ((1, 1), (3, 3), (None, torch.get_num_threads())):
        seen.clear()
        run(address, task, threads=asked)
        assert len(seen) == len(set(seen)) == count
        assert threading.get_native_id() in seen


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_after_a_fork() -> None:
    """A forked process multiplies, too, though its parent's threads are gone."""
    x, weight = torch.ones(1, 512), torch.ones(5000, 512)
    multiply_rows(x, weight)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(0 if bytes(multiply_rows(x, weight).numpy())[:4] == b"\0\0\0\x44" else 1)
    assert os.waitpid(child, 0)[1] == 0
