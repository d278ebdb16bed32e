"""Verdicts on disk: one entry for each device and everything that changes its kernels. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from ..facts import Verdict
from ..store import recall, remember
from ..store.remembered import Key
from ..store.typed import listed
from .probing.probe_request import verdict_from_dict, verdict_to_dict
from .probing.verdicts import lacked_memory, measured_while_busy

_BUSY_LASTS = 600.0  # seconds for which a measurement on a busy machine is believed


def load(key: Key) -> tuple[Verdict, ...] | None:
    """Return the verdicts stored under `key`; None where there are none, or none that can be believed."""
    return recall(key, _believed)


def store(key: Key, verdicts: Iterable[Verdict]) -> None:
    """Write `verdicts` under `key`, atomically; where that is not possible, log it and go on."""
    remember(key, {"verdicts": [verdict_to_dict(verdict) for verdict in verdicts]})


def _believed(entry: Mapping[str, Any]) -> tuple[Verdict, ...] | None:
    verdicts = tuple(verdict_from_dict(one) for one in listed(entry["verdicts"]))
    old = time.time() - entry["measured_at"] > _BUSY_LASTS
    is_passing = any(lacked_memory(verdict) or (old and measured_while_busy(verdict)) for verdict in verdicts)
    return None if is_passing else verdicts
