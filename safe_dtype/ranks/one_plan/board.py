"""A board on which ranks leave notes for each other, before torch.distributed is initialized and after it.

A collective waits for every rank, and a model may be loaded by one of them alone (`if rank == 0:`), or by one after the
other. So ranks agree by notes in the key-value store of their launch: who comes late reads them, and nobody waits longer
than a limit.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
import time
import zlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any
from weakref import ref

import psutil
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # its documented place
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

from ...errors import PeerLostError
from ...processes.rank_process import is_started_by_rank, mark_rank
from ..long_wait import long_wait
from ..world import SECONDS_TO_CONNECT, absent, attempt_prefix, default_group, store_beside, when_connected

logger = logging.getLogger(__name__)

_LONGEST_PAUSE = 0.25  # seconds between two looks at the board
_LOOKS_PER_SECOND = 4000  # of all ranks together: the store answers some ten thousand questions a second
_EMPTY = b""

Groups = tuple[tuple[tuple[int, ...], Any], ...]  # the ranks that left equal notes, and what they left


@dataclass(frozen=True, slots=True)
class Board:
    """The board of one attempt of one job."""

    rank: int
    size: int
    store: Any = field(repr=False)

    def post(self, name: str, note: Any) -> None:
        """Leave a note. Whoever reads it gets a copy."""
        self._ask(partial(self.store.set, name, _packed(note)))

    def read(self, name: str) -> Any:
        """Return a note, or None where nobody left one."""
        return self._note(name) if self._ask(partial(self.store.check, [name])) else None

    def settle(self, name: str, note: Any) -> Any:
        """Leave a note unless there is one; return the one that is there."""
        settled = self._ask(partial(self.store.compare_set, name, _EMPTY, _packed(note)))
        return _unpacked(settled)

    def wait(self, name: str, seconds: float) -> Any:
        """Return a note as soon as it is there; None where nobody left one within `seconds`."""
        ending, pause = time.monotonic() + seconds, 0.002
        longest = max(_LONGEST_PAUSE, self.size / _LOOKS_PER_SECOND)
        while (note := self.read(name)) is None and time.monotonic() < ending:
            time.sleep(min(pause, longest))
            pause *= 1.5
        return note

    def gather(self, name: str, note: Any, seconds: float, among: Iterable[int] | None = None) -> Groups:
        """Leave this rank's note, and return those of all ranks: the same on every rank that asks.

        Where some have not come within `seconds`, the first rank that gives up settles it for those that are there; who
        comes later gets the same, without its own note in it.

        Args:
            name: Of what is gathered: each name once.
            note: What this rank leaves.
            seconds: How long to wait.
            among: The ranks that will come; None: all.
        """
        ranks = tuple(range(self.size)) if among is None else tuple(among)
        self.leave(name, note, ranks)
        groups: Groups = self.wait(f"{name}/all", seconds) or self.settle(f"{name}/all", self._grouped(name, ranks))
        return groups

    def leave(self, name: str, note: Any, among: Iterable[int] | None = None) -> None:
        """Leave this rank's note, and wait for nobody; the last rank to do so gathers all of them."""
        ranks = tuple(range(self.size)) if among is None else tuple(among)
        self.post(f"{name}/{self.rank}", note)
        if self._ask(partial(self.store.add, f"{name}/count", 1)) == len(ranks):
            self.settle(f"{name}/all", self._grouped(name, ranks))

    def left(self, name: str) -> Groups:
        """Return the notes of all ranks that have left one until now."""
        return self.read(f"{name}/all") or self._grouped(name, range(self.size))

    def _grouped(self, name: str, ranks: Iterable[int]) -> Groups:
        ranks = tuple(ranks)
        missing = set(absent(self.store, ranks, name))
        here = [rank for rank in ranks if rank not in missing]
        notes = self._ask(partial(self.store.multi_get, [f"{name}/{rank}" for rank in here])) if here else []
        groups: dict[bytes, list[int]] = defaultdict(list)
        for rank, note in zip(here, notes, strict=True):
            groups[note].append(rank)
        return tuple((tuple(members), _unpacked(note)) for note, members in groups.items())

    def _note(self, name: str) -> Any:
        return _unpacked(self._ask(partial(self.store.get, name)))

    def _ask(self, request: Any) -> Any:
        started = time.monotonic()
        try:
            return request()
        except RuntimeError as exc:  # rank 0, or the launcher, has ended, and the store with it
            problem = f"the store of this job does not answer: {str(exc).strip().partition(chr(10))[0][:200]}"
            raise PeerLostError(self.rank, time.monotonic() - started, problem) from exc


def _packed(note: Any) -> bytes:
    """Return a note as bytes, compressed: a TCPStore takes 8 MiB at most, and every rank reads the notes of all."""
    return zlib.compress(pickle.dumps(note), 1)


def _unpacked(note: bytes) -> Any:
    return pickle.loads(zlib.decompress(note))


@dataclass
class _Process:
    """The board of this process, looked for once in the lifetime of each default group."""

    pid: int
    board: Board | None
    default: Any = None  # weak: the default group at that time
    server: Any = None  # keeps the store of rank 0 alive until there is a default group, which has it then

    def is_of(self, default: Any) -> bool:
        """Whether it was looked for when there was this default group, or none as now."""
        return (None if self.default is None else self.default()) is default and (
            self.default is None or default is not None
        )


_process: list[_Process] = []


def current_board() -> Board | None:
    """Return the board of this job; None in a job of one, and where the ranks cannot be reached.

    It is found by the variables that torchrun, accelerate and Slurm scripts set, so also before `init_process_group`; from
    then on in the store of the default process group.
    """
    launch, default = launch_here(), default_group()
    if launch is None and default is None:
        return None
    if (_process and _process[0].pid != os.getpid()) or (default is None and is_started_by_rank()):
        return None  # forked from a rank, or started by one: it is none itself
    mark_rank()
    if not _process or not _process[0].is_of(default) or (_process[0].board is None and default is not None):
        _process[:] = [_connected(launch, default)]
    return _process[0].board


def launch_here() -> tuple[int, int, str, int] | None:
    """Return rank, size, address and port, as a launcher has set them; None where there is no job of several."""
    words = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")]
    rank, size, address, port = words
    if not (rank.isdecimal() and size.isdecimal() and port.isdecimal() and address) or int(size) < 2:
        return None
    return int(rank), int(size), address, int(port)


def _connected(launch: tuple[int, int, str, int] | None, default: Any) -> _Process:
    server = None
    try:
        if default is not None:
            rank, size, store = default.rank(), default.size(), store_beside(_get_default_store())
        else:
            assert launch is not None
            rank, size = launch[:2]
            with long_wait(SECONDS_TO_CONNECT):
                server = store = store_of_launch(*launch, seconds=SECONDS_TO_CONNECT)
        own = Board(rank, size, PrefixStore(attempt_prefix(), store))
        board = own if _claims(own, is_rank=default is not None) else None
    except (RuntimeError, PeerLostError) as exc:
        logger.warning("the other ranks cannot be reached, and this one plans alone: %s", str(exc).partition("\n")[0])
        board = None
    return _Process(os.getpid(), board, None if default is None else ref(default), server)


def _claims(board: Board, *, is_rank: bool) -> bool:
    """Whether this process takes the place of its rank, which a process may have taken that was started by the rank.

    Args:
        board: Of the rank.
        is_rank: Whether it is known to be the rank, by its process group.
    """
    name, own = f"rank/{board.rank}", (socket.gethostname(), os.getpid(), _ancestors())
    claim = None if is_rank else board.settle(name, own)
    if claim == own:
        return True
    host, pid, ancestors = claim or own
    has_ended = host == own[0] and not psutil.pid_exists(pid)
    if is_rank or has_ended or (host == own[0] and own[1] in ancestors):
        board.post(name, own)
        return True
    return False


def _ancestors() -> tuple[int, ...]:
    """Return the processes that this one comes from, which may have started it with the variables of a rank."""
    try:
        return tuple(parent.pid for parent in psutil.Process().parents())
    except psutil.Error:  # they belong to somebody else
        return ()


def store_of_launch(rank: int, size: int, address: str, port: int, *, seconds: float) -> Any:
    """Return the key-value store that torch's `env://` uses, without waiting for all ranks to come.

    Under torchrun the launcher holds it; else rank 0 does, in a server that `init_process_group` uses as well.

    Raises:
        RuntimeError: If it cannot be reached within `seconds`.
    """
    timeout = timedelta(seconds=seconds)
    make = partial(TCPStore, address, port, size, timeout=timeout, wait_for_workers=False, multi_tenant=True)
    if rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        try:
            return make(is_master=True)
        except RuntimeError:
            logger.debug("port %s is taken: by the store of this job", port)
    return make(is_master=False)


@when_connected
def _let_go_of_server() -> None:
    if _process and _process[0].server is not None:
        current_board()
