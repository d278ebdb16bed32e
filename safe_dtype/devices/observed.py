"""What ended a process while a model ran: no probe shows it, so it is remembered beside the verdicts."""

from __future__ import annotations

from collections.abc import Sequence

from ..facts import DeviceFacts, Dtype, Verdict, VerdictKind
from ..store.keys import hardware_key
from ..store.remembered import Key
from .cache import load, store
from .inventory import hardware_of, identity_of


def remember_failure(device: str, dtype: Dtype, reason: str) -> None:
    """Have every later plan for `device` on this machine reject `dtype`, until its verdicts are refreshed.

    Raises:
        NoSuchDeviceError: If the device is not here.
    """
    facts = identity_of(device)
    known = [one for one in load(_key(facts)) or () if one.dtype != dtype]
    store(_key(facts), [*known, Verdict(dtype, "matmul", VerdictKind.CRASHES, reason)])


def with_failures(facts: DeviceFacts, verdicts: Sequence[Verdict]) -> tuple[Verdict, ...]:
    """Return `verdicts` with what was remembered in the place of what was measured."""
    failed = {(one.dtype, one.op): one for one in load(_key(facts)) or ()}
    return tuple(failed.get((one.dtype, one.op), one) for one in verdicts)


def forget_failures(facts: DeviceFacts) -> None:
    """Forget what was remembered for this device."""
    if load(_key(facts)):
        store(_key(facts), ())


def _key(facts: DeviceFacts) -> Key:
    # Not the settings: what took the device down once may do so under another number of threads.
    return {"observed": True, **hardware_key(facts, hardware_of(facts.device).uuid)}
