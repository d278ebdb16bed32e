"""Several devices that hold one model: one set of facts, the weakest device's verdict on everything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import reduce
from operator import add

from ..facts import DeviceFacts, Verdict, VerdictKind

_WORST_FIRST = (
    VerdictKind.CRASHES,
    VerdictKind.WRONG,
    VerdictKind.UNSUPPORTED,
    VerdictKind.UNKNOWN,
    VerdictKind.SLOW,
    VerdictKind.NATIVE,
)


def combine(devices: Sequence[DeviceFacts]) -> DeviceFacts:
    """Return the facts of `devices` as of one: memory adds up, every verdict is the weakest device's.

    Layers run one after another and pass one dtype on, so a dtype is accepted only where every device accepts it.

    Raises:
        ValueError: If `devices` is empty.
    """
    if not devices:
        raise ValueError("combine() needs at least one device")
    first, *others = devices
    if not others:
        return first
    return replace(
        first,
        device=",".join(one.device for one in devices),
        name=" + ".join(_counted(one.name for one in devices)),
        products=tuple(dict.fromkeys(one.name for one in devices)),
        memory=reduce(add, (one.memory for one in devices)),
        verdicts=tuple(_weakest(verdict, others) for verdict in first.verdicts),
        measured=all(one.measured for one in devices),
    )


def _weakest(verdict: Verdict, others: Sequence[DeviceFacts]) -> Verdict:
    verdicts = [(verdict, "")] + [(one.verdict(verdict.dtype, verdict.op), f" ({one.device})") for one in others]
    worst, where = min(
        verdicts, key=lambda pair: (_WORST_FIRST.index(pair[0].kind), pair[0].prefill_flops_per_s or 0.0)
    )
    return replace(worst, reason=worst.reason + where)


def _counted(names: Iterable[str]) -> list[str]:
    return [name if count == 1 else f"{count} x {name}" for name, count in Counter(names).items()]
