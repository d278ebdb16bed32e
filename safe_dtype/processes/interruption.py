"""Ctrl-C that stops what is going on, and not the process."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def first_interrupt_stops() -> Iterator[threading.Event]:
    """Yield an event that the first Ctrl-C inside sets; the second one raises KeyboardInterrupt.

    Outside of the main thread, which alone gets signals, nothing is changed, and where they are ignored neither.
    """
    stop = threading.Event()
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) if is_main else signal.SIG_IGN
    if before in (signal.SIG_IGN, None):
        yield stop
        return

    def first(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop.set()

    signal.signal(signal.SIGINT, first)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
