"""Ctrl-C that stops what is going on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from safe_dtype.processes.interruption import first_interrupt_stops


@pytest.fixture
def _not_ignored() -> Iterator[None]:
    """Give Ctrl-C the meaning that it has in Python: a shell's background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_not_ignored")
def test_first_stops_second_raises() -> None:
    """The first Ctrl-C sets the event, the second raises, and afterwards everything is as it was."""
    before = signal.getsignal(signal.SIGINT)
    with first_interrupt_stops() as stop:
        assert not stop.is_set()
        signal.raise_signal(signal.SIGINT)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_ignored_stays_ignored() -> None:
    """Where Ctrl-C is ignored, as in the background of a shell, it stays so."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with first_interrupt_stops() as stop:
            signal.raise_signal(signal.SIGINT)
        assert not stop.is_set()
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads() -> None:
    """A thread gets no signals, and changes nothing."""
    handlers = []

    def inside() -> None:
        with first_interrupt_stops():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGINT)]
