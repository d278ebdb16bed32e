"""The processes of one job: how many there are, which one this is, and the private line between them."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary

from ..errors import PeerLostError
from ..processes.quiet_exit import exit_quietly

SECONDS_TO_WAIT = 600.0  # for another rank; as long as NCCL waits by default
SECONDS_TO_CONNECT = 60.0  # to the key-value store: rank 0, which holds it, may start later
FULL_MESH = 64  # the largest world in which every rank is connected to every other one
_NO_RANKS = ("fake",)  # torch's backend that computes nothing, for plans on one machine


@dataclass(frozen=True, slots=True)
class World:
    """One job of ranks, for as long as its default process group lives."""

    rank: int
    size: int
    group: Any = field(repr=False)  # gloo, of all ranks, for our own messages alone: never mixed up with the model's
    store: Any = field(repr=False)  # torch's key-value store, under a prefix of its own
    attempt: int = 0  # how often the launcher has restarted the job
    seconds: float = SECONDS_TO_WAIT  # that a message waits for the slowest rank


_worlds: WeakKeyDictionary[Any, World] = WeakKeyDictionary()  # by default process group
_lifetimes: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
_next_lifetime = count()
_when_connected: list[Callable[[], None]] = []
_inherited: list[Any] = []  # default groups of the process that this one was forked from: their sockets are its own


def current_world() -> World | None:
    """Return the ranks that torch.distributed connects; None where it is not initialized, or has one rank.

    The first call after `init_process_group` connects the ranks: **every rank has to make it**, each at the same point of
    the program. Later calls return what was made, and wait for nobody.

    Raises:
        PeerLostError: If not all ranks came within `SECONDS_TO_WAIT`. The next call tries again.
    """
    default = default_group()
    if default is None:
        return None
    world = _worlds.get(default)
    if world is None:
        world = _worlds[default] = _connect(default)
    return world


def known_world() -> World | None:
    """Return the world where the ranks have connected before; None elsewhere. Waits for nobody."""
    default = default_group()
    return None if default is None else _worlds.get(default)


def default_group() -> Any:
    """Return the default process group of several ranks; None where there is none. Imports nothing."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    default = distributed.group.WORLD
    if default.size() < 2 or distributed.get_backend() in _NO_RANKS or any(default is one for one in _inherited):
        return None
    return default


def is_first_rank() -> bool:
    """Whether this process is the one that says what all ranks do: rank 0, or the only one. Imports nothing."""
    default = default_group()
    if default is not None:
        return bool(default.rank() == 0)
    return os.environ.get("RANK", "") in ("", "0")


def _connect(default: Any) -> World:
    from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

    exit_quietly()
    rank, size = default.rank(), default.size()
    # What an earlier attempt, or an earlier group of this process, left in the store must not be read again.
    lifetime = _lifetimes.setdefault(default, next(_next_lifetime))
    try:
        store = PrefixStore(f"{attempt_prefix()}/world {lifetime}", store_beside(_get_default_store()))
    except RuntimeError as exc:
        raise PeerLostError(rank, 0.0, _first_line(exc)) from exc
    _meet(store, rank, size, SECONDS_TO_WAIT)
    # Not by `new_group`: that names a group of all by how many groups its rank has, which differ between ranks, and by
    # names that an earlier default group has left in the store.
    for function in _when_connected:
        function()
    make = lazy_group if size > FULL_MESH else _full_mesh
    group = make(PrefixStore("group", store), rank, size)
    return World(rank, size, group, store, int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0))


def attempt_prefix() -> str:
    """Return what sets the notes of this attempt of this job apart, where the launcher keeps one store over restarts.

    A store that is made for each attempt needs no more than a name: machines count their restarts each for itself.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return "safe_dtype"
    names = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
    return "/".join(["safe_dtype", *(os.environ.get(name) or "0" for name in names)])


def when_connected(function: Callable[[], None]) -> Callable[[], None]:
    """Have `function` called on every rank whenever the ranks have met."""
    _when_connected.append(function)
    return function


def store_beside(store: Any) -> Any:
    """Return another connection to the server of a default group's store; the store itself where it has none.

    Whoever holds the store of rank 0 holds the server. It has to end with the default group, or the next one reads in it
    where the ranks of this one were to be reached, and waits there for ever.

    Raises:
        RuntimeError: If the server has ended.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # its documented place
    from torch.distributed.distributed_c10d import PrefixStore

    require_server(store)
    while isinstance(store, PrefixStore):
        store = store.underlying_store
    if not isinstance(store, TCPStore):
        return store
    timeout = timedelta(seconds=SECONDS_TO_CONNECT)
    return TCPStore(store.host, store.port, is_master=False, timeout=timeout, wait_for_workers=False)


def require_server(store: Any) -> None:
    """Raise where the server of a store has ended: torch would try to connect to it for as long as the store's time limit.

    Raises:
        RuntimeError: If nobody listens there.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # its documented place
    from torch.distributed.distributed_c10d import PrefixStore

    while isinstance(store, PrefixStore):
        store = store.underlying_store
    if not isinstance(store, TCPStore):
        return
    try:
        socket.create_connection((store.host, store.port), timeout=SECONDS_TO_CONNECT).close()
    except OSError as exc:
        raise RuntimeError(f"the store at {store.host}:{store.port} has ended, and rank 0 with it: {exc}") from exc


def _full_mesh(store: Any, rank: int, size: int) -> Any:
    import torch.distributed as dist

    return dist.ProcessGroupGloo(store, rank, size, timedelta(seconds=SECONDS_TO_WAIT))


def lazy_group(store: Any, rank: int, size: int) -> Any:
    """Return a gloo group whose ranks connect to those that they talk to, when they do: torch 2.8 or newer.

    gloo else connects every rank to every other one: at 8,000 ranks that took 46 minutes (pytorch/gloo#407), and at 11,000
    one start of three failed (NVIDIA/Megatron-LM#1006).
    """
    import torch.distributed as dist

    gloo: Any = dist.ProcessGroupGloo
    limit = timedelta(seconds=SECONDS_TO_WAIT)
    interfaces = [name for name in os.environ.get("GLOO_SOCKET_IFNAME", "").split(",") if name]
    try:
        devices = [gloo.create_device(interface=name, lazy_init=True) for name in interfaces]
        devices = devices or [gloo.create_default_device(lazy_init=True)]
    except TypeError:  # an older torch
        return gloo(store, rank, size, limit)
    options = gloo._Options()
    options._timeout, options._devices, options._threads = limit, devices, 2 * len(devices)
    return gloo(store, rank, size, options)


def _meet(store: Any, rank: int, size: int, seconds: float) -> None:
    """Return when all ranks are here. A rank that is alone leaves again, and nothing remains of its visit.

    Raises:
        PeerLostError: If they were not all here within `seconds`.
    """
    started = time.monotonic()
    try:
        store.set(f"here/{rank}", b"1")
        if store.add("arrived", 1) == size:
            store.set("all here", b"1")
        store.wait(["all here"], timedelta(seconds=seconds))
    except RuntimeError as exc:
        waited = time.monotonic() - started
        missing = absent(store, range(size))
        problem = _first_line(exc) if waited < seconds else "it has not come to where the ranks connect"
        _leave(store, rank)
        raise PeerLostError(rank, waited, problem, missing) from exc


def _leave(store: Any, rank: int) -> None:
    try:
        store.add("arrived", -1)
        store.delete_key(f"here/{rank}")
    except RuntimeError:
        return  # the store is gone, and nobody will read it


def absent(store: Any, ranks: Iterable[int], key: str = "here") -> tuple[int, ...]:
    """Return the ranks that have not set their `key` in the store; none where it cannot be asked any more.

    One message to the store where nobody is absent, and about 2 log2(size) for a rank that is.
    """
    asked = tuple(ranks)
    try:
        if not asked or store.check([f"{key}/{rank}" for rank in asked]):
            return ()
    except RuntimeError:
        return ()
    if len(asked) == 1:
        return asked
    middle = len(asked) // 2
    return absent(store, asked[:middle], key) + absent(store, asked[middle:], key)


def _first_line(exc: BaseException) -> str:
    return str(exc).strip().partition("\n")[0][:200]


def _forget_parents_groups() -> None:
    """In a forked process: what the parent is connected to is no group of this process."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        _inherited.append(distributed.group.WORLD)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parents_groups)
