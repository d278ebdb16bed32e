"""torch's switch of oneDNN: off, torch computes on the CPU with kernels of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..processes.forked_lock import ForkedLock


class OneDNNSwitch:
    """torch's own switch is one for all threads: the first to turn it off notes how it was, the last brings that back."""

    def __init__(self) -> None:
        self._lock = ForkedLock()
        self._off = 0
        self._was_on = False

    def turn_off(self) -> None:
        """Turn oneDNN off, once more."""
        with self._lock:
            if not self._off:
                self._was_on = torch._C._get_mkldnn_enabled()
                torch._C._set_mkldnn_enabled(False)  # noqa: FBT003  (torch's)
            self._off += 1

    def turn_back(self) -> None:
        """Undo one `turn_off`."""
        with self._lock:
            self._off -= 1
            if not self._off:
                torch._C._set_mkldnn_enabled(self._was_on)


SWITCH = OneDNNSwitch()


def is_in_use() -> bool:
    """Whether torch asks oneDNN on the CPU at all."""
    is_built: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return is_built and torch._C._get_mkldnn_enabled()


@contextmanager
def onednn_off() -> Iterator[None]:
    """Turn oneDNN off in the block. What other threads run meanwhile is computed without it as well, and as right."""
    SWITCH.turn_off()
    try:
        yield
    finally:
        SWITCH.turn_back()
