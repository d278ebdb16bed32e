"""What the peak of a step is made of, by kinds, and how much of it lies in large blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

try:
    from torch.distributed._tools.mem_tracker import MemTracker
except ImportError:  # private to torch, or torch was built without torch.distributed
    MemTracker = None  # type: ignore[assignment, misc]

CAN_TRACK = MemTracker is not None

# From this size on glibc maps a block by itself, and gives it back as it is freed: its threshold grows up to there and no further
# (malloc/malloc.c, DEFAULT_MMAP_THRESHOLD_MAX on 64 bits).
LARGE_BYTES = 32 * 2**20
_TOTAL, _LARGE = "Total", "large "
_KINDS = {
    "PARAM": "parameters", "BUFFER": "buffers", "GRAD": "gradients", "ACT": "activations", "TEMP": "temporaries",
    "OPT": "optimizer", "OTH": "others",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class PeakOfStep:
    """What the fullest device holds at its peak, in bytes."""

    device: str  # its type
    total_bytes: int
    kinds: tuple[tuple[str, int], ...]  # which add up to it
    large: tuple[tuple[str, int], ...]  # of them, what is in blocks of `LARGE_BYTES` or more


class PeakTracker(MemTracker or object):  # type: ignore[misc]
    """Torch's tracker of memory, which tells large blocks apart."""

    def peak(self) -> PeakOfStep:
        """Return what was held at the peak."""
        peaks = self.get_tracker_snapshot("peak")
        device, snapshot = max(peaks.items(), key=lambda of_device: of_device[1][_TOTAL])
        named = {_name_of(kind): size for kind, size in snapshot.items() if size and kind != _TOTAL}
        large = {kind.removeprefix(_LARGE): size for kind, size in named.items() if kind.startswith(_LARGE)}
        kinds = {kind: size for kind, size in named.items() if not kind.startswith(_LARGE)}
        return PeakOfStep(device.type, snapshot[_TOTAL], tuple(kinds.items()), tuple(large.items()))

    def _update_peak_stats(self, _state: Any) -> None:
        """Note a new peak of a device. Torch's notes those of each module as well, after each operation, and nobody asks for them."""
        for device, snapshot in self._curr_mem_snap.items():
            if self._peak_mem.get(device, 0) < snapshot[_TOTAL]:
                self._peak_mem[device] = snapshot[_TOTAL]
                self._peak_mem_snap[device] = dict(snapshot)

    def _update_snap(
        self, u_type: Any, winfo: Any, old_mem_consumed: int | None = None, old_reftype: Any = None
    ) -> None:
        super()._update_snap(u_type, winfo, old_mem_consumed, old_reftype)
        snapshot, size, event = self._curr_mem_snap.get(winfo.device), winfo.mem_consumed, u_type.name
        if snapshot is None:  # nothing is left on this device
            return
        if event != "ADD":
            _count(snapshot, old_reftype or winfo.reftype, -(size if old_mem_consumed is None else old_mem_consumed))
        if event != "DEL":
            _count(snapshot, winfo.reftype, size)


def _count(snapshot: dict[Any, int], kind: Any, size: int) -> None:
    if abs(size) >= LARGE_BYTES:
        name = _LARGE + _name_of(kind)
        snapshot[name] = snapshot.get(name, 0) + size  # copied with the rest where this is the peak


def _name_of(kind: Any) -> str:
    name = str(kind).rpartition(".")[-1]
    return _KINDS.get(name, name)
