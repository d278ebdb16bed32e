"""Several devices that hold one model, or ranks that each hold it: one set of facts, the weakest verdict on everything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import reduce
from operator import add

from ..errors.ranks import named_ranks
from ..facts import DeviceFacts, MemoryFacts, Verdict, VerdictKind

_WORST_FIRST = (
    VerdictKind.CRASHES,
    VerdictKind.WRONG,
    VerdictKind.UNSUPPORTED,
    VerdictKind.UNKNOWN,
    VerdictKind.SLOW,
    VerdictKind.NATIVE,
)
_WORDS = {
    VerdictKind.CRASHES: "ends the process",
    VerdictKind.WRONG: "wrong",
    VerdictKind.UNSUPPORTED: "not supported",
    VerdictKind.UNKNOWN: "not measured",
    VerdictKind.SLOW: "slow",
}


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


def combine_ranks(devices: Sequence[tuple[tuple[int, ...], DeviceFacts]]) -> DeviceFacts:
    """Return what a job can do whose ranks each hold the model: the weakest rank's verdict, the slowest one's rates.

    Ranks in different dtypes exchange garbage without an error, so a dtype is accepted only where every rank accepts it;
    and all wait for the slowest.

    Args:
        devices: Ranks with the same facts, and these facts.

    Raises:
        ValueError: If `devices` is empty.
    """
    if not devices:
        raise ValueError("combine_ranks() needs at least one rank")
    ordered = sorted(devices, key=lambda group: group[0])
    first = ordered[0][1]
    if len(ordered) == 1:
        return first
    everyone = [facts for _, facts in ordered]
    # Looked up once a rank: of ten thousand unlike ones a search in each takes most of the time.
    tables = [(ranks, facts, {(one.dtype.name, one.op): one for one in facts.verdicts}) for ranks, facts in ordered]
    cells = {cell: one.dtype for _, _, table in tables for cell, one in table.items()}
    products = dict.fromkeys(name for facts in everyone for name in facts.products or (facts.name,))
    names = [facts.name for ranks, facts in ordered for _ in ranks]
    return replace(
        first,
        name=first.name if len(products) == 1 else " + ".join(_counted(names)),
        products=tuple(products) if len(products) > 1 else first.products,
        memory=_least([facts.memory for facts in everyone]),
        verdicts=tuple(
            _of_all_ranks(
                [(ranks, table.get(cell) or facts.verdict(dtype, cell[1])) for ranks, facts, table in tables]
            )
            for cell, dtype in cells.items()
        ),
        measured=all(facts.measured for facts in everyone),
    )


def _of_all_ranks(verdicts: Sequence[tuple[tuple[int, ...], Verdict]]) -> Verdict:
    worst = min((verdict.kind for _, verdict in verdicts), key=_WORST_FIRST.index)
    weakest = [(ranks, verdict) for ranks, verdict in verdicts if verdict.kind == worst]
    verdict = min((verdict for _, verdict in weakest), key=lambda verdict: verdict.prefill_flops_per_s or 0.0)
    reasons = [verdict.reason] if verdict.reason else []
    if len(weakest) < len(verdicts):
        ranks = sorted(rank for members, _ in weakest for rank in members)
        reasons.append(f"{_WORDS[worst]} on {named_ranks(ranks)}")
    return replace(
        verdict,
        reason="; ".join(reasons),
        decode_bytes_per_s=_slowest([verdict.decode_bytes_per_s for _, verdict in verdicts]),
        prefill_flops_per_s=_slowest([verdict.prefill_flops_per_s for _, verdict in verdicts]),
    )


def _slowest(rates: Sequence[float | None]) -> float | None:
    """Return the least of several rates; None where one was not measured."""
    return None if None in rates else min(rate for rate in rates if rate is not None)


def _least(memories: Sequence[MemoryFacts]) -> MemoryFacts:
    """Return the least memory of any rank: each holds its own copy. Unknown where that of one is."""
    if not all(memory.total_bytes for memory in memories):
        return MemoryFacts(0, 0, memories[0].limited_by)
    return min(memories, key=lambda memory: memory.free_bytes)


def _weakest(verdict: Verdict, others: Sequence[DeviceFacts]) -> Verdict:
    verdicts = [(verdict, "")] + [(one.verdict(verdict.dtype, verdict.op), f" ({one.device})") for one in others]
    worst, where = min(
        verdicts, key=lambda pair: (_WORST_FIRST.index(pair[0].kind), pair[0].prefill_flops_per_s or 0.0)
    )
    return replace(worst, reason=worst.reason + where)


def _counted(names: Iterable[str]) -> list[str]:
    return [name if count == 1 else f"{count} x {name}" for name, count in Counter(names).items()]
