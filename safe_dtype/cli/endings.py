"""How the command ends: with one clear line on stderr and a status, whatever goes wrong, and never with a traceback."""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn, TextIO

import click

from ..errors import EnvironmentNotFitError, PublishError, SafeDtypeError
from ..errors.of_the_moment import is_of_memory
from ..publishing.release import State
from .options import ENVIRONMENT

TRACEBACK = "SAFE_DTYPE_TRACEBACK"  # the environment's name for: show where it happened as well

_INTERRUPTED = 128 + signal.SIGINT  # as shells say it
_LONGEST = 600  # characters of a foreign error's text
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# safetensors and torch write files themselves, and have no number of the system's in their errors.
_FULL_TEXTS = (
    "No space left on device",
    "Disk quota exceeded",
    "File too large",
    "PytorchStreamWriter failed",
    "unexpected pos",
)


@contextmanager
def one_line_endings() -> Iterator[None]:
    """End this process with one line and a status where what is done inside raises an error."""
    try:
        yield
    except SafeDtypeError as exc:
        _end(exc, str(exc), _status_of(exc))
    except BrokenPipeError as exc:  # `| head -1` has read enough
        _end(exc, "", 1)
    except OSError as exc:
        _end(exc, _full_disk(exc) or _of_the_system(exc), 1)
    except Exception as exc:  # noqa: BLE001  (what transformers and its kind may raise has no end)
        words = f"{type(exc).__name__}: {_shortened(exc)} ({TRACEBACK}=1 shows where.)"
        _end(exc, _full_disk(exc) or _no_memory(exc) or words, 1)


@contextmanager
def one_line_interruption() -> Iterator[None]:
    """End this process with one line and the status of shells where Ctrl-C ends what is done inside.

    It stands within click, which would take KeyboardInterrupt for an answer to a question, and exit with status 1.
    """
    try:
        yield
    except KeyboardInterrupt as exc:
        if os.environ.get(TRACEBACK):
            traceback.print_exception(exc)
        _say_and_exit("interrupted.", _INTERRUPTED)


def _end(exc: BaseException, words: str, status: int) -> NoReturn:
    if os.environ.get(TRACEBACK):
        raise exc
    _say_and_exit(words, status)


def _say_and_exit(words: str, status: int) -> NoReturn:
    try:
        if words:
            click.echo(f"safe-dtype: {words}", err=True)
    except OSError:
        _give_up(sys.stderr)
    try:
        sys.stdout.flush()
    except (AttributeError, OSError):  # closed from the start, a pipe that nobody reads, a full disk
        _give_up(sys.stdout)
    sys.exit(status)


def _give_up(stream: TextIO | None) -> None:
    """Let what `stream` still holds go nowhere: Python would fail on it once more when it exits."""
    if stream is not None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _status_of(error: SafeDtypeError) -> int:
    if isinstance(error, EnvironmentNotFitError):
        return ENVIRONMENT
    if isinstance(error, PublishError):
        return State(error.state).exit_status
    return 1


def _full_disk(exc: BaseException) -> str:
    """Say that the disk is full, where that is what happened; else nothing."""
    cause: BaseException | None = exc
    while cause is not None:
        if getattr(cause, "errno", None) in _FULL or any(text in str(cause) for text in _FULL_TEXTS):
            file = getattr(cause, "filename", None)
            where = f"{file}: " if file else ""
            return f"{where}the disk is full, or your share of it. Next: free some space, or name a folder elsewhere."
        cause = cause.__cause__ or cause.__context__
    return ""


def _no_memory(exc: BaseException) -> str:
    """Say that there was no room, in main memory or on a device, where that is what happened; else nothing."""
    if not is_of_memory(exc):
        return ""
    where = "" if isinstance(exc, MemoryError) else f": {_shortened(exc).rstrip('.')}"
    return f"no memory is left{where}. Next: free some, use another device, or plan with --policy prefer=memory."


def _of_the_system(exc: OSError) -> str:
    if exc.filename is None or exc.strerror is None:
        return f"{type(exc).__name__}: {_shortened(exc)}"
    return f"{exc.filename}: {exc.strerror}. Next: check the path, and that you may read and write there."


def _shortened(exc: BaseException) -> str:
    text = " ".join(str(exc).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
