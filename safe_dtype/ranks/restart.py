"""How a rank ends where only a restart helps, with a status that says which: the launcher starts all ranks anew.

Some failures cannot be cured in the process: a device that is lost, an exception between two collectives of an engine that
nobody can keep in step. There the rank that failed writes a verdict on its own node and ends with `FAILED_IN_DTYPE`. Its
end closes its connections, which frees the ranks that wait for it at once (`abort()` of a gloo group does nothing, and a
timeout takes minutes); they write nothing, and end with `PEER_LOST`. When the launcher has started all of them again,
`failed_dtypes` unites what was written, and training comes up in the next dtype. A rank that was killed leaves no verdict.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from ..errors import DeviceLostError
from ..errors.of_the_moment import is_of_communication
from ..guarding.classify import links_of
from .failed_dtypes import write_verdict
from .world import default_group

logger = logging.getLogger(__name__)

FAILED_IN_DTYPE = 75  # a dtype has failed for good on this rank, and is written down
PEER_LOST = 76  # another rank has ended

_SECONDS_TO_END = 5.0  # for what the program does at its end; then it ends without


@contextmanager
def restarting() -> Iterator[None]:
    """End this process with the status of its kind where a dtype has failed for good in the block, or a peer is lost.

        with restarting():
            train()

    Other exceptions come through, and so does everything in a job of one rank. A program under `safe-dtype run` or
    `safe-dtype launch` has it around all of it.
    """
    try:
        yield
    except Exception as exc:
        status = status_of(exc)
        if status is None:
            raise
        traceback.print_exception(exc)
        leave(status)


def status_of(error: BaseException) -> int | None:
    """Return the status to end with, the verdict on its dtype written; None where `error` is of another kind.

    Only a rank of several ends so: nobody waits for any other process.
    """
    if not isinstance(error, Exception) or default_group() is None:
        return None
    if any(is_of_communication(link) for link in links_of(error)):
        logger.error("another rank has ended: this one ends with status %d, to be started again with it", PEER_LOST)
        return PEER_LOST
    failed = _failed_for_good(error)
    if failed is None:
        return None
    logger.error(
        "%s has failed for good on this rank, in %s: it ends with status %d, and is to be started again with all others",
        *failed, FAILED_IN_DTYPE,
    )  # fmt: skip
    return FAILED_IN_DTYPE


def _failed_for_good(error: Exception) -> tuple[str, str] | None:
    """Return the dtype that is written down as failed, and where that was; None where `error` is of another kind."""
    lost = next((link for link in links_of(error) if isinstance(link, DeviceLostError)), None)
    lesson = write_verdict(error if lost is None else lost.__cause__ or lost)
    if lesson is not None:
        return lesson.dtype, lesson.module or lesson.family
    if lost is not None and lost.dtype:  # a guard has written it down already
        return lost.dtype, lost.device
    return None


def leave(status: int) -> NoReturn:
    """End this process, and so free the ranks that wait for it, whatever its threads and groups do.

    What was registered with `atexit` has some seconds. Nothing waits for process groups to be taken down: that may wait for
    ranks that wait for this one.
    """
    threading.Thread(target=_end_in_time, args=(status,), daemon=True).start()
    with suppress(Exception):  # whatever the program registered
        atexit._run_exitfuncs()
    _end(status)


def _end_in_time(status: int) -> None:
    threading.Event().wait(_SECONDS_TO_END)
    _end(status)


def _end(status: int) -> NoReturn:
    collected = getattr(
        sys.stderr, "getvalue", None
    )  # torch's excepthook holds what is said, to put the rank before each line
    if callable(collected) and sys.__stderr__ is not None:
        sys.__stderr__.write(collected())
        sys.__stderr__.flush()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, or none
            stream.flush()
    os._exit(status)
