"""Failures that guarded models have met on a device and no text told of: the next load of such a model plans around them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..facts import DeviceFacts, LearnedFailure, Verdict, VerdictKind
from ..store import recall, remember
from ..store.keys import hardware_key
from ..store.remembered import Key
from .inventory import detect_one, hardware_of

_MOST = 100  # of one device; the oldest go first


def remember_learned(failure: LearnedFailure) -> None:
    """Have later plans for models of this family on this device reject the dtype, until its verdicts are refreshed.

    Raises:
        NoSuchDeviceError: If the device is not here.
    """
    facts = detect_one(failure.device)
    known = [other for other in learned_on(facts) if not _is_same(other, failure)]
    remember(_key(facts), {"failures": [one.as_dict() for one in (*known, failure)[-_MOST:]]})


def learned_on(facts: DeviceFacts) -> tuple[LearnedFailure, ...]:
    """Return what was learned on this device, the oldest first."""
    return recall(_key(facts), _failures) or ()


def forget_learned(facts: DeviceFacts) -> None:
    """Forget what was learned on this device."""
    if learned_on(facts):
        remember(_key(facts), {"failures": []})


def with_learned(facts: DeviceFacts, family: str | None) -> DeviceFacts:
    """Return `facts` for a model of this family: what failed in it counts as unsupported, where another dtype works."""
    failed = {one.dtype: str(one) for one in learned_on(facts) if one.family == family and one.works_in}
    return replace(facts, verdicts=tuple(_judged(verdict, failed) for verdict in facts.verdicts)) if failed else facts


def _judged(verdict: Verdict, failed: Mapping[str, str]) -> Verdict:
    reason = failed.get(verdict.dtype.name)
    if reason is None:
        return verdict
    return Verdict(verdict.dtype, verdict.op, VerdictKind.UNSUPPORTED, f"{reason} (learned in a guarded run)")


def _is_same(failure: LearnedFailure, other: LearnedFailure) -> bool:
    return all(getattr(failure, name) == getattr(other, name) for name in ("family", "op", "dtype", "error", "text"))


def _failures(entry: Mapping[str, Any]) -> tuple[LearnedFailure, ...]:
    return tuple(LearnedFailure.from_dict(one) for one in entry["failures"])


def _key(facts: DeviceFacts) -> Key:
    return {"learned": True, **hardware_key(facts, hardware_of(facts.device).uuid)}
