"""Measure in child processes, which kernels may kill or hang without harm to this one.

A child answers cell by cell through a pipe, so that one that hangs is noticed by its silence, and the cells before it are
not lost: `processes.child.run` waits for an end and reads no pipe.
"""

from __future__ import annotations

import json
import logging
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import IO, Any

from ...errors import ProbeError
from ...facts import Verdict, VerdictKind
from ...processes.child import stop, with_our_packages
from ...processes.watched import start
from .probe_request import ProbeRequest, verdict_from_dict

logger = logging.getLogger(__name__)

_MEND_THE_CHILD = "mend what it says (most often memory is short), then `safe-dtype doctor --refresh` measures again"


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a child may say nothing, in seconds."""

    start: float = 120.0  # importing torch and waking the device: 6 s on a slow machine, minutes from a network disk
    cell: float = 30.0  # compiling a kernel for the first time takes seconds, a hang takes for ever


def measure_in_children(request: ProbeRequest, patience: Patience | None = None) -> Iterator[Verdict]:
    """Measure cell by cell in a child; where it dies or hangs, blame the cell it was at and go on with a new child.

    Yields verdicts not yet compared with float32's speed.

    Raises:
        ProbeError: If a child cannot even start.
    """
    left = request
    while left.cells:
        with _Child(left, patience or Patience()) as child:
            done = 0
            for verdict in child.verdicts():
                done += 1
                yield verdict
                if verdict.kind is VerdictKind.CRASHES:  # it is alive, but has lost the device
                    break
            else:
                if done < len(left.cells):
                    yield _blamed(left, done, child.cause_of_death())
                    done += 1
        left = replace(left, cells=left.cells[done:])


def _blamed(request: ProbeRequest, number: int, reason: str) -> Verdict:
    dtype, op = request.cells[number]
    logger.warning("%s in %s on %s: the probing process was %s", op, dtype, request.device, reason)
    return Verdict(dtype, op, VerdictKind.CRASHES, reason)


class _Child:
    """One process of `safe_dtype.devices.probing.probe_child`: request in, one JSON line per finished cell out."""

    def __init__(self, request: ProbeRequest, patience: Patience) -> None:
        self._request, self._patience = request, patience
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed in __exit__
        with tempfile.TemporaryFile() as question:
            question.write(json.dumps(request.to_dict()).encode())
            question.seek(0)
            self._process = start(
                [sys.executable, "-m", "safe_dtype.devices.probing.probe_child"],
                stdin=question,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=with_our_packages(),
                text=True,
            )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()  # "" at the end
        self._silent_for: float | None = None
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        stop(self._process)
        self._errors.close()

    def verdicts(self) -> Iterator[Verdict]:
        """Yield what the child finds, until it has all, dies, or says nothing for too long."""
        if self._next_line(self._patience.start) is None:
            problem = f"the probing process was {self.cause_of_death()} before it began"
            raise ProbeError(self._request.device, problem, _MEND_THE_CHILD)
        for _ in self._request.cells:
            values = self._next_line(self._patience.cell + 2 * self._request.cell_seconds)
            if values is None:
                return
            yield verdict_from_dict(values)

    def cause_of_death(self) -> str:
        """Say how the child ended: a signal, a status, or our patience."""
        if self._silent_for is not None:
            return f"killed after no answer in {self._silent_for:.0f} s"
        status = self._process.wait()
        words = f"killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        return ": ".join(filter(None, (words, self._last_words())))

    def _next_line(self, patience: float) -> dict[str, Any] | None:
        """Return the next line that is ours, None at the end; what libraries print is skipped."""
        while True:
            try:
                line = self._lines.get(timeout=patience)
            except queue.Empty:
                self._silent_for = patience
                return None
            if not line:
                return None
            try:
                message = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(message, dict):
                return message

    def _read(self) -> None:
        assert self._process.stdout is not None  # Popen was given a pipe
        with self._process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put("")

    def _last_words(self) -> str:
        """Return the last line on the child's stderr: LLVM and Metal say there why they abort."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "")
