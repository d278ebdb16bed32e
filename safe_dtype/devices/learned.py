"""Failures that guarded models have met on a device and no text told of: the next load of the same checkpoint knows."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from ..facts import DeviceFacts, LearnedFailure
from ..store import recall, remember
from ..store.keys import hardware_key
from ..store.remembered import Key, one_process_at_a_time
from .inventory import hardware_of, identity_of

_MOST = 100  # of one device; the oldest go first


def remember_learned(failure: LearnedFailure) -> None:
    """Have later plans for its checkpoint on this device know of it, until the device is measured anew.

    Raises:
        NoSuchDeviceError: If the device is not here.
    """
    facts = identity_of(failure.device)
    key = _key(facts)
    with one_process_at_a_time(key):  # ranks of one node may fail together
        known = [other for other in learned_on(facts) if not _is_same(other, failure)]
        remember(key, {"failures": [one.as_dict() for one in (*known, failure)[-_MOST:]]})


def learned_on(facts: DeviceFacts) -> tuple[LearnedFailure, ...]:
    """Return what was learned on this device, the oldest first."""
    return recall(_key(facts), _failures) or ()


def forget_learned(facts: DeviceFacts) -> None:
    """Forget what was learned on this device."""
    if learned_on(facts):
        remember(_key(facts), {"failures": []})


def lessons_for(devices: Iterable[str], source: str, family: str | None) -> tuple[LearnedFailure, ...]:
    """Return what guarded runs of this checkpoint have met on these devices, where another dtype has helped.

    Args:
        devices: Names of devices that are here.
        source: The checkpoint, as the user wrote it.
        family: `model_type` of its config.

    Raises:
        NoSuchDeviceError: If a device is not here.
    """
    checkpoint = checkpoint_key(source)
    learned = (failure for device in devices for failure in learned_on(identity_of(device)))
    return tuple(
        failure
        for failure in learned
        if failure.works_in and failure.checkpoint == checkpoint and failure.family == family
    )


def checkpoint_key(source: str) -> str:
    """Return one name for one checkpoint: the whole path of a folder or file that is here, else `source` itself."""
    # Unlike a Path it says no of what cannot be a path.
    return os.path.realpath(source) if os.path.exists(source) else source  # noqa: PTH110


def _is_same(failure: LearnedFailure, other: LearnedFailure) -> bool:
    return all(
        getattr(failure, name) == getattr(other, name)
        for name in ("checkpoint", "family", "op", "dtype", "error", "text")
    )


def _failures(entry: Mapping[str, Any]) -> tuple[LearnedFailure, ...]:
    return tuple(LearnedFailure.from_dict(one) for one in entry["failures"])


def _key(facts: DeviceFacts) -> Key:
    return {"learned": True, **hardware_key(facts, hardware_of(facts.device).uuid)}
