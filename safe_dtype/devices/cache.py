"""Verdicts on disk: one entry for each device and everything that changes its kernels. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from ..facts import Verdict
from ..store import recall, remember
from ..store.remembered import Key
from ..store.typed import listed
from .pressure import are_cores_free
from .probing.probe_request import verdict_from_dict, verdict_to_dict
from .probing.verdicts import is_to_be_measured_again, lacked_memory

# Seconds for which a measurement on a busy machine is believed: while it stays busy, and in any case, for another one
# would come out no better where others have the cores of a virtual machine, which nobody can tell beforehand.
_BUSY_LASTS, _BUSY_LASTS_AT_LEAST = 600.0, 30.0


def load(key: Key) -> tuple[Verdict, ...] | None:
    """Return the verdicts stored under `key`; None where there are none, or none that can be believed."""
    return recall(key, _believed)


def store(key: Key, verdicts: Iterable[Verdict]) -> None:
    """Write `verdicts` under `key`, atomically; where that is not possible, log it and go on."""
    remember(key, {"verdicts": [verdict_to_dict(verdict) for verdict in verdicts]})


def _believed(entry: Mapping[str, Any]) -> tuple[Verdict, ...] | None:
    verdicts = tuple(verdict_from_dict(one) for one in listed(entry["verdicts"]))
    if any(lacked_memory(verdict) for verdict in verdicts):
        return None
    if any(is_to_be_measured_again(verdict) for verdict in verdicts):
        age = time.time() - entry["measured_at"]
        if age > _BUSY_LASTS or (age > _BUSY_LASTS_AT_LEAST and are_cores_free()):
            return None
    return verdicts
