"""A lock that a forked process can use."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

import pytest

from safe_dtype.models.load_lock import one_at_a_time
from safe_dtype.models.needed import changing
from safe_dtype.processes.forked_lock import ForkedLock

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks are Unix")


def status_of_child(work: Callable[[], object]) -> int:
    """Run `work` in a fork of this process, and return 3 where it came to its end."""
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(3)
        finally:  # whatever is raised: the rest of the tests is the parent's
            os._exit(4)
    end = time.monotonic() + 20
    while time.monotonic() < end:
        number, status = os.waitpid(child, os.WNOHANG)
        if number:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_one_thread_at_a_time() -> None:
    """Another thread does not get it; the same one does."""
    lock = ForkedLock()
    got: list[bool] = []
    with lock, lock:
        thread = threading.Thread(target=lambda: got.append(lock.acquire_at_once()))
        thread.start()
        thread.join()
    assert got == [False]
    assert lock.acquire_at_once()
    lock.release()


@needs_fork
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # a fork beside threads is what this is about
@pytest.mark.parametrize("enter", [ForkedLock().__class__, one_at_a_time, changing])
def test_a_fork_while_another_thread_has_it(enter: Callable[[], object]) -> None:
    """A forked process does not wait for a thread that it has not; nor do the locks of the package."""
    lock = enter()
    again = (lambda: lock) if isinstance(lock, ForkedLock) else enter
    inside, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with again():
            inside.set()
            go_on.wait(60)

    def use() -> None:
        with again():
            pass

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    assert inside.wait(10)
    status = status_of_child(use)
    go_on.set()
    thread.join(10)
    assert status == 3


@needs_fork
def test_a_fork_while_this_thread_has_it() -> None:
    """The thread that forks inside the lock has it in both processes, and gives it back in both."""
    lock = ForkedLock()
    with lock:

        def leave() -> None:
            lock.release()
            assert lock.acquire_at_once()
            lock.release()

        assert status_of_child(leave) == 3
