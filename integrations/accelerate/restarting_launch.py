"""`accelerate launch`, whose restarts are for what a restart helps: `python -m safe_dtype.integrations.accelerate.restarting_launch`.

The launcher of torch starts all ranks again after any end with an error, an error of the program too, which comes again as
often as that is allowed.
"""

from __future__ import annotations

import functools
import json
import logging
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from safe_dtype.ranks import FAILED_IN_DTYPE, PEER_LOST

logger = logging.getLogger(__name__)

_PATIENCE = 20  # seconds; torch's launcher gives ranks 30 to end after the first has, and then kills them
# Seconds for a rank that has closed its connections to be gone: Python takes down all it has loaded.
_FOR_THE_CAUSE = 15.0


@dataclass(frozen=True, slots=True)
class RankEnd:
    """How a rank has ended."""

    rank: int
    status: int  # -9: by signal 9
    problem: str = ""  # an error of the program, where the rank has left word of one
    second: int = 0  # in which it did, of any clock

    @property
    def was_killed(self) -> bool:
        """Whether a signal has ended it, and not the one by which the launcher ends what is left."""
        return self.status < 0 and self.status != -signal.SIGTERM

    @property
    def is_of_the_program(self) -> bool:
        """Whether it would end so again. Who is ended by the launcher, as the others are, may have left word before."""
        if self.status == -signal.SIGTERM:
            return bool(self.problem)
        return self.status > 0 and self.status not in (FAILED_IN_DTYPE, PEER_LOST)


def restart_helps(ends: Iterable[RankEnd]) -> bool:
    """Whether ranks that have ended so may come up otherwise: in another dtype, or after a rank was killed."""
    ends = list(ends)
    first = min(end.second for end in ends)
    if any(end.status == FAILED_IN_DTYPE or (end.was_killed and end.second - first < _PATIENCE) for end in ends):
        return True
    return not any(end.is_of_the_program for end in ends)


def status_of(ends: Iterable[RankEnd]) -> int | None:
    """Return the status to end with after no further restart: as of a launch of one process, that of the rank that tells why.

    None where a signal has ended the rank that does.
    """
    ends = list(ends)
    if any(end.status == FAILED_IN_DTYPE for end in ends):  # whoever fails beside it fails on it
        return FAILED_IN_DTYPE
    chosen = [end for end in ends if end.is_of_the_program and end.status > 0]
    if chosen:
        return min(chosen, key=lambda end: end.second).status
    is_alone = any(end.status == PEER_LOST for end in ends)
    is_caused_here = any(end.was_killed or end.is_of_the_program for end in ends)
    return PEER_LOST if is_alone and not is_caused_here else None


def waiting_for_the_cause(close: Callable[..., Any]) -> Callable[..., Any]:
    """Return `SubprocessContext._close`, which ends the ranks that are left when one has ended.

    A rank that misses another one ends with a status that says so, often before that other one is gone: what `sys.exit`
    does after it has closed all connections takes seconds. The status of the other one tells why, so it gets these.
    """

    @functools.wraps(close)
    def close_later(context: Any, *args: Any, **kwargs: Any) -> Any:
        failures = context._failures
        if failures and all(failure.exitcode == PEER_LOST for failure in failures.values()):
            _wait_for_the_cause(context)
        return close(context, *args, **kwargs)

    return close_later


def _wait_for_the_cause(context: Any) -> None:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    end = time.monotonic() + _FOR_THE_CAUSE
    for rank, handler in context.subprocess_handlers.items():
        if rank in context._failures:
            continue
        try:
            status = handler.proc.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            continue
        if status:
            context._failures[rank] = ProcessFailure(
                local_rank=rank, pid=handler.proc.pid, exitcode=status, error_file=context.error_files[rank]
            )


def watching(monitor: Callable[..., Any]) -> Callable[..., Any]:
    """Return `LocalElasticAgent._monitor_workers`, which takes all restarts away where none helps."""

    @functools.wraps(monitor)
    def watch(agent: Any, *args: Any, **kwargs: Any) -> Any:
        result = monitor(agent, *args, **kwargs)
        ends = [_end_of(rank, failure) for rank, failure in result.failures.items()]
        if ends and agent._remaining_restarts and not restart_helps(ends):
            agent._remaining_restarts = 0
            end = next(end for end in ends if end.is_of_the_program)
            logger.error(
                "rank %d has ended with %s, which is none of a dtype, and would end so again: nothing is started again",
                end.rank, end.problem or f"status {end.status}",
            )  # fmt: skip
        return result

    return watch


def main() -> None:
    """Run `accelerate launch` with the arguments of this process, and end with the status that the program has ended with."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.multiprocessing.api import SubprocessContext
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    SubprocessContext._close = waiting_for_the_cause(SubprocessContext._close)  # type: ignore[method-assign]
    LocalElasticAgent._monitor_workers = watching(LocalElasticAgent._monitor_workers)  # type: ignore[method-assign]
    asked = launch_command_parser().parse_args()
    # With --quiet accelerate shows no traceback of its own for the only process, and ends with 1, however that ended.
    is_quiet, asked.quiet = asked.quiet, False
    try:
        launch_command(asked)
    except ChildFailedError as exc:
        _end_with(status_of(_end_of(rank, failure) for rank, failure in exc.failures.items()), is_quiet=False)
    except subprocess.CalledProcessError as exc:  # of the only process, which is not started again
        _end_with(exc.returncode if exc.returncode > 0 else None, is_quiet=is_quiet)


def _end_with(status: int | None, *, is_quiet: bool) -> NoReturn:
    """End with a status, 1 where the program has chosen none, while the exception of the launcher is handled."""
    if not is_quiet:
        traceback.print_exc()
    sys.exit(1 if status is None else status)


def _end_of(rank: int, failure: Any) -> RankEnd:
    return RankEnd(rank, failure.exitcode, _word_in(Path(failure.error_file)), int(failure.timestamp))


def _word_in(file: Path) -> str:
    """Return the error that a rank has left word of in torch's file for that; an empty text where it has left none."""
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["message"]["message"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""


if __name__ == "__main__":
    main()
