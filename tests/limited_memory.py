"""A process whose memory the system limits for real: in a control group of its own, of version 1 or 2."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

_MOUNT = Path("/sys/fs/cgroup")
# Version 1, then 2: the files of the limit, of what is used, and the name of page cache in memory.stat.
_VERSIONS = (
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ("memory.max", "memory.current", "inactive_file"),
)

# Argument 1: the group. A child calls `leave_room(bytes)` when all that it needs is imported.
_CHILD = """
import gc, os, sys
from pathlib import Path

GROUP = Path(sys.argv[1])
LIMIT, USED, CACHE = {names!r}
(GROUP / "cgroup.procs").write_text(str(os.getpid()))

def leave_room(size):
    gc.collect()
    lines = (GROUP / "memory.stat").read_text().splitlines()
    cache = next(int(line.split()[1]) for line in lines if line.split()[0] == CACHE)
    (GROUP / LIMIT).write_text(str(int((GROUP / USED).read_text()) - cache + size))

"""


def can_limit() -> bool:
    """Whether this process may make control groups of memory."""
    try:
        with _group():
            return True
    except OSError:
        return False


@contextmanager
def _group() -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """Make a group inside of our own, and remove it."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if number != "0" and "memory" not in controllers.split(","):
            continue
        top = _MOUNT if number == "0" else _MOUNT / "memory"
        names = _VERSIONS[number == "0"]
        own = top / path.lstrip("/")
        group = (own if own.is_dir() else top) / f"safe-dtype-{uuid4().hex[:8]}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if (group / names[0]).exists():
                yield group, names
                return
        finally:
            group.rmdir()
    raise OSError("no control group of memory can be made here")


def run_limited(code: str, *arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own, which limits itself by `leave_room(bytes)`; it has `arguments` from argv[2] on."""
    with _group() as (group, names):
        whole = _CHILD.format(names=names) + code
        command = [sys.executable, "-c", whole, str(group), *arguments]
        return subprocess.run(
            command, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=120
        )
