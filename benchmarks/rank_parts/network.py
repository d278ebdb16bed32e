"""Thousands of ranks in one process: the real protocol over a network whose messages take their time on clocks of their own.

Every rank is a thread with a clock. A message carries the time at which it arrives, and whoever receives it sets its clock
to that at least: what comes out does not depend on when the threads run. Only one of them runs at a time, for thousands that
want to bring a machine to a standstill. A rank that has ended closes its connections, as
the system does for a process; one that hangs does not.
"""

from __future__ import annotations

import random
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch

from safe_dtype.ranks import World

_STACK_BYTES = 512 * 1024


class Turn:
    """Lets one rank run at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Run the block when it is this rank's turn."""
        with self._lock:
            yield

    @contextmanager
    def handed_on(self) -> Iterator[None]:
        """Let others run while the block waits for them."""
        self._lock.release()
        try:
            yield
        finally:
            self._lock.acquire()


class Network:
    """What connects the ranks.

    Args:
        size: How many ranks there are.
        hops: Seconds that a message takes, one of these at random.
        hangs: Ranks that say nothing, and keep their connections.

    Attributes:
        messages: How many were sent.
        message_bytes: Their payload.
    """

    def __init__(self, size: int, hops: Sequence[float], hangs: Iterable[int] = ()) -> None:
        self.size, self.hangs = size, frozenset(hangs)
        self.messages = self.message_bytes = 0
        self.turn = Turn()
        self.store = Store(self.turn)
        self._hops, self._chance = hops, random.Random(0)
        self._mail: defaultdict[tuple[int, int], deque[tuple[float, int]]] = defaultdict(deque)
        self._ended: dict[int, float] = {}
        self._news = [threading.Condition() for _ in range(size)]
        self._waiting: defaultdict[int, set[int]] = defaultdict(set)
        self._count = threading.Lock()

    def hop(self) -> float:
        """Return how long one message takes."""
        return self._chance.choice(self._hops)

    def deliver(self, sender: int, receiver: int, number: int, at: float) -> None:
        """Put a message where its receiver will look."""
        with self._count:
            self.messages += 1
            self.message_bytes += 8
        with self._news[receiver]:
            self._mail[sender, receiver].append((at, number))
            self._news[receiver].notify()

    def await_message(self, sender: int, receiver: int) -> tuple[float, int] | float:
        """Return a message, or when the sender has ended without one."""
        with self.turn.handed_on(), self._news[receiver]:
            mail = self._mail[sender, receiver]
            self._waiting[sender].add(receiver)
            self._news[receiver].wait_for(lambda: mail or sender in self._ended)
            return mail.popleft() if mail else self._ended[sender]

    def end(self, rank: int, at: float) -> None:
        """Let a rank end: its connections close."""
        self._ended[rank] = at
        for receiver in tuple(self._waiting[rank]):
            with self._news[receiver]:
                self._news[receiver].notify()


@dataclass
class SimulatedGroup:
    """One rank's part of the network: the messages that a vote uses of a gloo group."""

    network: Network
    rank: int
    now: float = 0.0  # seconds, on the clock of this rank

    def send(self, tensors: list[torch.Tensor], receiver: int, _: int) -> _Sent:
        """Send one integer."""
        self.network.deliver(self.rank, receiver, int(tensors[0]), self.now + self.network.hop())
        return _Sent()

    def recv(self, tensors: list[torch.Tensor], sender: int, _: int) -> _Received:
        """Receive one integer."""
        return _Received(self, tensors[0], sender)


class _Sent:
    def wait(self, _: timedelta) -> None:
        """A message of 8 bytes has been sent at once."""


@dataclass
class _Received:
    group: SimulatedGroup
    tensor: torch.Tensor
    sender: int

    def wait(self, limit: timedelta) -> None:
        """Wait on the clock of this rank."""
        group, network = self.group, self.group.network
        if self.sender in network.hangs:
            group.now += limit.total_seconds()
            network.end(group.rank, group.now)  # as gloo does: who waited in vain closes all of its connections
            raise RuntimeError(f"Timed out waiting {limit.total_seconds():.0f} s for recv operation to complete")
        message = network.await_message(self.sender, group.rank)
        if isinstance(message, float):
            group.now = max(group.now, message + network.hop())
            raise RuntimeError("Connection closed by peer")
        group.now = max(group.now, message[0])
        self.tensor.fill_(message[1])


@dataclass
class Store:
    """The key-value store of a job, which counts what it is asked.

    Attributes:
        requests: How many.
        sent_bytes: Of the values that were read.
    """

    turn: Turn = field(default_factory=Turn)
    requests: int = 0
    sent_bytes: int = 0
    values: dict[str, bytes] = field(default_factory=dict)
    _lock: Any = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self._news = threading.Condition(self._lock)

    def set(self, key: str, value: bytes | str) -> None:
        """Set a value."""
        with self._lock:
            self.requests += 1
            self.values[key] = value.encode() if isinstance(value, str) else bytes(value)
            self._news.notify_all()

    def get(self, key: str) -> bytes:
        """Return a value."""
        return self.multi_get([key])[0]

    def multi_get(self, keys: list[str]) -> list[bytes]:
        """Return several values."""
        with self._lock:
            self.requests += 1
            values = [self.values[key] for key in keys]
            self.sent_bytes += sum(map(len, values))
            return values

    def add(self, key: str, amount: int) -> int:
        """Add to a number, and return it."""
        with self._lock:
            number = int(self.values.get(key, b"0")) + amount
            self.set(key, str(number))
            return number

    def wait(self, keys: list[str], limit: timedelta) -> None:
        """Return when all keys are there."""
        with self.turn.handed_on(), self._news:
            self.requests += 1
            if not self._news.wait_for(lambda: all(key in self.values for key in keys), limit.total_seconds()):
                raise RuntimeError(f"wait timeout after {limit.total_seconds():.0f} s")

    def check(self, keys: list[str]) -> bool:
        """Whether all keys are there."""
        with self._lock:
            self.requests += 1
            return all(key in self.values for key in keys)

    def compare_set(self, key: str, expected: bytes | str, value: bytes | str) -> bytes:
        """Set a value where the old one is as expected; return the one that is there."""
        expected = expected.encode() if isinstance(expected, str) else expected
        with self._lock:
            if self.values.get(key, b"") == expected:
                self.set(key, value)
            return self.get(key)


def run_all(
    network: Network, act: Callable[[World, SimulatedGroup], Any], seconds: float = 600.0
) -> list[tuple[Any, float]]:
    """Run `act` on every rank that does not hang; return what it returned, and when, by its rank's clock.

    A rank whose `act` raises ends at that moment; what it raised is returned.
    """
    outcomes: list[tuple[Any, float]] = [(None, 0.0)] * network.size

    def be(rank: int) -> None:
        group = SimulatedGroup(network, rank)
        outcome: Any
        with network.turn.taken():
            try:
                outcome = act(World(rank, network.size, group, network.store, seconds=seconds), group)
            except RuntimeError as exc:
                outcome = exc
                network.end(rank, group.now)
            outcomes[rank] = outcome, group.now

    before = threading.stack_size(_STACK_BYTES)
    threads = [threading.Thread(target=be, args=(rank,)) for rank in range(network.size) if rank not in network.hangs]
    try:
        for thread in threads:
            thread.start()
    finally:
        threading.stack_size(before)
    for thread in threads:
        thread.join()
    return outcomes
