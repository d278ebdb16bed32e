"""What can go wrong with a request to the loopback Hub."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Cut(Enum):
    """Where a connection is closed."""

    BEFORE = "before it is answered or done"
    LOST = "done, but not answered"
    HALF = "done, and answered to the half"


@dataclass(frozen=True, slots=True)
class Status:
    """Answered with an error instead of done."""

    code: int
    retry_after: int | None = None  # seconds
    error_code: str | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """Something else happens first; or, with `after`, when it is done and not yet answered."""

    function: Callable[[Any], object]  # is given the Hub
    after: bool = False


Action = Cut | Status | Call

drop = Cut.BEFORE
lose_response = Cut.LOST
truncate = Cut.HALF


def status(code: int, retry_after: int | None = None, error_code: str | None = None) -> Status:
    """Answer with an error."""
    return Status(code, retry_after, error_code)


def call(function: Callable[[Any], object], *, after: bool = False) -> Call:
    """Run `function(hub)`, such as a push by somebody else, and go on."""
    return Call(function, after)


@dataclass
class Fault:
    """An action for the next requests that match, as long as `times` is above 0."""

    method: str  # "*" for any
    path: re.Pattern[str]
    action: Action
    times: float = 1

    def matches(self, method: str, path: str) -> bool:
        """Whether it is this request's turn."""
        return self.times > 0 and self.method in ("*", method) and bool(self.path.search(path))
