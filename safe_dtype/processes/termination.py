"""End by SIGTERM or SIGHUP as by Ctrl-C: what is open is closed, children are ended, and temporary folders deleted."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
_FIRST_STATUS = 128  # of a shell's word for a process that a signal ended


class TerminatedError(BaseException):
    """This process was told to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def tidy_termination() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end what is done inside with an exception, and then this process with status 128 + signal.

    The second signal ends it at once. A signal that is ignored (`nohup`) or handled already stays so. Outside of the
    main thread, which alone gets signals, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = [number for number in _SIGNALS if signal.getsignal(number) is signal.SIG_DFL]

    def end(number: int, _: FrameType | None) -> NoReturn:
        for each in ours:
            signal.signal(each, signal.SIG_DFL)
        raise TerminatedError(number)

    for number in ours:
        signal.signal(number, end)
    try:
        yield
    except TerminatedError as exc:
        sys.exit(_FIRST_STATUS + exc.number)
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
