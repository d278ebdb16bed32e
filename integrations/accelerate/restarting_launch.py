"""`accelerate launch`, whose restarts are for what a restart helps: `python -m safe_dtype.integrations.accelerate.restarting_launch`.

The launcher of torch starts all ranks again after any end with an error, an error of the program too, which comes again as
often as that is allowed.
"""

from __future__ import annotations

import functools
import json
import logging
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safe_dtype.ranks import FAILED_IN_DTYPE, PEER_LOST

logger = logging.getLogger(__name__)

_PATIENCE = 20  # seconds; torch's launcher gives ranks 30 to end after the first has, and then kills them


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
    """Run `accelerate launch` with the arguments of this process."""
    from accelerate.commands.launch import main as launch
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

    LocalElasticAgent._monitor_workers = watching(LocalElasticAgent._monitor_workers)  # type: ignore[method-assign]
    launch()


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
