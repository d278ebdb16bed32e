"""Failures that ranks announce to each other, in the store of torch.distributed: nobody waits for anybody."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from ..guarding import NotPossible
from ..guarding.recover import change_dtype
from ..guarding.state import Guard
from ..processes.forked_lock import ForkedLock
from .model_copy import ModelCopy, agreed_dtype, copy_of, failure_of
from .model_key import is_whole, model_key
from .world import default_group, require_server

logger = logging.getLogger(__name__)

_PREFIX = "safe_dtype/failures"
_COUNT = "count"


@dataclass
class _Board:
    """What one job has announced, as far as this rank has read it."""

    store: Any  # None once it has failed
    rank: int
    count: int = 0  # of the announcements that are known to be there
    unread: set[int] = field(default_factory=set)  # whose rank had not written them yet
    read: dict[str, dict[int, ModelCopy]] = field(default_factory=lambda: defaultdict(dict))  # by model and rank

    def look(self) -> None:
        """Read what is new. One message where nothing is."""
        count = self.store.add(_COUNT, 0)
        self.unread.update(range(self.count + 1, count + 1))
        self.count = count
        for number in sorted(self.unread):
            if self.store.check([f"{number}"]):  # `get` would wait for a rank that died before it wrote
                self.unread.discard(number)
                copy = ModelCopy.from_text(self.store.get(f"{number}").decode())
                self.read[copy.model][copy.rank] = copy

    def announce(self, copy: ModelCopy) -> None:
        """Let the others read how a copy stands."""
        self.store.set(f"{self.store.add(_COUNT, 1)}", copy.as_text())


@dataclass
class _Known:
    """What is known of one guarded model of this rank."""

    key: str | None  # what the ranks call it; None: not all of it is here
    events_told: int = 0  # how many of its events the others need not hear
    followed: tuple[int, int] = (0, 0)  # with how many announcements, and events of its own


class Announcements:
    """The other ranks of this job, with which no generation waits: a failure is read by them at their next one."""

    begin_anew = False

    def __init__(self) -> None:
        self._lock = ForkedLock()
        self._boards: WeakKeyDictionary[Any, _Board] = WeakKeyDictionary()  # by default process group
        self._known_of: WeakKeyDictionary[Guard, _Known] = WeakKeyDictionary()

    def before_generate(self, guard: Guard) -> None:
        """Announce how this copy has failed since, and step down to where the others are."""
        self._exchange(guard, listens=True)

    def after_generate(self, guard: Guard, error: Exception | None) -> bool:  # noqa: ARG002  (what is cured stays so)
        """Announce how this copy has failed; what was generated stays."""
        self._exchange(guard, listens=False)
        return False

    def _exchange(self, guard: Guard, *, listens: bool) -> None:
        board = self._board()
        known = self._known(guard) if board is not None else None
        if board is None or known is None or known.key is None:
            return
        try:
            with self._lock:
                if len(guard.events) != known.events_told:
                    _announce(guard, known, board)
                if listens:
                    board.look()
        except RuntimeError as exc:  # the store has ended, and with it most likely the job
            _say_that_it_ended(exc)
            board.store = None
            return
        news = (board.count - len(board.unread), len(guard.events))
        if listens and known.followed != news:
            _follow(guard, known, board)
            known.events_told = len(guard.events)  # that it has followed is no news
            known.followed = (news[0], known.events_told)

    def _board(self) -> _Board | None:
        default = default_group()
        if default is None:
            return None
        board = self._boards.get(default)
        if board is None:
            board = self._boards[default] = _Board(_store(), default.rank())
        return board if board.store is not None else None

    def _known(self, guard: Guard) -> _Known | None:
        model, known = guard.model(), self._known_of.get(guard)
        if known is None and model is not None:
            known = self._known_of[guard] = _Known(model_key(model) if is_whole(model) else None)
        return known


def _announce(guard: Guard, known: _Known, board: _Board) -> None:
    copy = copy_of(guard, str(known.key), board.rank)
    before = board.read[copy.model].get(board.rank)
    known.events_told = len(guard.events)
    if copy.left and (before is None or before.left != copy.left):
        board.read[copy.model][board.rank] = copy
        board.announce(copy)


def _follow(guard: Guard, known: _Known, board: _Board) -> None:
    own = copy_of(guard, str(known.key), board.rank)
    announced = list(board.read[own.model].values())  # of this rank too: of another copy that it held before
    if not announced or guard.policy.mode == "strict":
        return
    agreed = agreed_dtype([own, *announced])
    if agreed.name == own.now:
        return
    try:
        change_dtype(guard, agreed, failure_of(announced, own.now))
    except NotPossible as exc:
        logger.warning("other ranks go on in %s, and this one cannot: %s", agreed, exc)


def _say_that_it_ended(reason: RuntimeError) -> None:
    logger.warning("failures of other ranks are not heard of any more: %s", str(reason).partition("\n")[0])


def _store() -> Any:
    from torch.distributed import distributed_c10d

    store: Any = distributed_c10d._get_default_store()
    try:
        require_server(store)
    except RuntimeError as exc:
        _say_that_it_ended(exc)
        return None
    # A connection of its own, where torch has that: another thread may wait for something in the store all the while.
    return distributed_c10d.PrefixStore(_PREFIX, store.clone() if hasattr(store, "clone") else store)
