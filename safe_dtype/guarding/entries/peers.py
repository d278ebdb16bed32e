"""Processes that hold copies of a guarded model: whoever knows of them is asked around each generation of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from ..registration import Registered, Registration
from ..restart_generate import COUNTING, guarded_generate
from ..state import Guard, here
from ..step import up_to_date
from ..step_snapshot import StepSnapshot

_LOOKING_ON = ("streamer", *COUNTING)  # objects of the caller that have seen the tokens of a generation


Guarded = Callable[..., Any]  # `guarded_generate`, or `guarded_batch`


class Peers(Protocol):
    """Other processes with copies of a model."""

    @property
    def begin_anew(self) -> bool:
        """Whether a generation of theirs may have to be made anew for what another of them has met."""

    def before_generate(self, guard: Guard) -> None:
        """Hear what the others have met; no generation of this thread is running."""

    def after_generate(self, guard: Guard, error: Exception | None) -> bool:
        """Tell how a generation ended; return whether it is to be made anew, in the dtype that the model has by now.

        Where it has ended with an error, which the caller will get, nothing else is raised.
        """


_of_process: Registered[Peers] = Registered()


def ask_peers(peers: Peers) -> Registration:
    """Have `peers` asked around the generations of every model of this process that has none of its own.

    Those registered last are asked, until their registration is removed.
    """
    return _of_process.add(peers)


def generate_among_peers(
    guarded: Guarded, guard: Guard, generate: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Call `guarded(guard, generate, args, kwargs)`, and once more where the peers say so.

    A generation whose tokens the caller has seen already, through a streamer or criteria of its own, is not made anew: it
    went on from the step that failed, and what it returns is what was seen. Nor is a continuous batch.
    """
    peers = guard.peers or next(reversed([*_of_process]), None)
    if peers is None or here.nets:  # a generation inside another one is a part of it
        return guarded(guard, generate, args, kwargs)
    peers.before_generate(guard)
    beginning = None
    if peers.begin_anew and guarded is guarded_generate and all(kwargs.get(name) is None for name in _LOOKING_ON):
        written = replace(guard.written_in_steps(), draws=True)
        beginning = StepSnapshot(guard.places, args, kwargs, module=guard.model(), written=written)
    output = _told(peers, guarded, guard, generate, args, kwargs)
    while peers.after_generate(guard, None):
        if beginning is not None and beginning.roll_back(recast=True):
            args, kwargs = up_to_date(guard, args, kwargs)
            output = _told(peers, guarded, guard, generate, args, kwargs)
    return output


def _told(peers: Peers, guarded: Guarded, guard: Guard, *call: Any) -> Any:
    try:
        return guarded(guard, *call)
    except Exception as exc:
        peers.after_generate(guard, exc)
        raise
