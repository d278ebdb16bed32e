"""Real ranks on this machine: the same module in several processes, of which rank 0 prints figures."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

_SECONDS = 240.0


def figures_of(module: str, size: int, *arguments: str) -> Any:
    """Run `python -m rank_parts.MODULE` as `size` ranks with one thread each; return what rank 0 prints, as JSON.

    Raises:
        RuntimeError: If a rank ends with another status than 0.
    """
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = str(sock.getsockname()[1])
    common = {
        **os.environ, "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", f"rank_parts.{module}", *arguments],
            cwd=Path(__file__).resolve().parent.parent,
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        printed, _ = processes[0].communicate(timeout=_SECONDS)
        statuses = [process.wait(timeout=_SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any(statuses):
        raise RuntimeError(f"{module} on {size} ranks ended with {statuses}")
    return json.loads(printed)
