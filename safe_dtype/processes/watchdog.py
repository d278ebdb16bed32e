"""Run a command, and end it with all that it started once the process that asked for it is gone.

A script: `python -I -S watchdog.py FD COMMAND...`, in a session of its own. FD reads from a pipe that the asking process
alone can write to, so that it ends with that process, however that ends: `kill -9` included, and on every POSIX system.
A process beside the command sees that also where the command hangs in compiled code. It ends as the command does.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
from contextlib import suppress

_NOT_FOUND = 127  # as shells say


def main(lifeline: int, command: list[str]) -> None:
    """Run `command` to its end, or to that of `lifeline`."""
    child = os.fork()
    if child == 0:
        os.close(lifeline)
        try:
            os.execvp(command[0], command)
        except OSError as exc:
            os.write(2, f"{command[0]}: {exc.strerror}\n".encode())
            os._exit(_NOT_FOUND)
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    _, status = os.waitpid(child, 0)
    _end_like(os.waitstatus_to_exitcode(status))


def _end_with(lifeline: int) -> None:
    while os.read(lifeline, 1):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _end_like(status: int) -> None:
    if status < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the command has left its own where it may
        with suppress(OSError):  # SIGKILL needs no handler, and takes none
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
