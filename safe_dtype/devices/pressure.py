"""Whether processes wait for the cores of this machine, by the kernel's own account. Imports no torch."""

from __future__ import annotations

import re
from pathlib import Path

_CPU = Path("/proc/pressure/cpu")
_SHARE = re.compile(r"some avg10=(\d+(?:\.\d+)?)")
_FREE = 5.0  # percent of the last ten seconds: what wakes up now and then waits for that long


def are_cores_free() -> bool:
    """Whether next to nobody waited for a core in the last ten seconds; False where the system does not tell."""
    try:
        share = _SHARE.match(_CPU.read_text())
    except OSError:  # not Linux, or a kernel older than 4.20 or built without it
        return False
    return share is not None and float(share[1]) < _FREE
