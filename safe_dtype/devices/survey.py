"""Everything about one device: what it is, what it was measured to do, and where torch's claims disagree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..facts import COMPUTE, DeviceFacts, Dtype
from ..kernels.machine_code import sources_digest
from ..store import one_process_at_a_time
from ..store.keys import verdicts_key
from .cache import load, store
from .claims import with_disagreements
from .inventory import detect_one, hardware_of
from .learned import forget_learned
from .memory import memory_of
from .observed import forget_failures, with_failures
from .probing.probe import DEFAULT_OPS, DEFAULT_WIDTHS, measure


def facts_of(  # noqa: PLR0913  (all but the first by name)
    device: str,
    *,
    dtypes: Sequence[Dtype] = COMPUTE,
    widths: Sequence[tuple[int, int]] = DEFAULT_WIDTHS,
    ops: Sequence[str] = DEFAULT_OPS,
    routes: Sequence[tuple[Dtype, str]] = (),
    max_memory: Mapping[Any, Any] | None = None,
    refresh: bool = False,
) -> DeviceFacts:
    """Return `device` with its verdicts: remembered, or measured now and remembered. `refresh` measures in any case.

    Raises:
        NoSuchDeviceError: If the device is not here.
        ProbeError: If it cannot be measured.
    """
    facts = detect_one(device)
    key = _key(facts, dtypes, widths, ops) | {"routes": [[dtype.name, op] for dtype, op in routes]}
    verdicts = None if refresh else load(key)
    if verdicts is None:
        with one_process_at_a_time(key):
            # Another process may have measured while this one waited.
            verdicts = None if refresh else load(key)
            if verdicts is None:
                verdicts = measure(facts.device, dtypes, widths, ops=ops, routes=routes)
                store(key, verdicts)
    if refresh:
        forget_failures(facts)
        forget_learned(facts)
    verdicts = with_failures(facts, verdicts)
    return replace(
        facts,
        memory=memory_of(facts.device, max_memory) if max_memory else facts.memory,
        verdicts=verdicts,
        claims=with_disagreements(facts.claims, verdicts),
    )


def _key(
    facts: DeviceFacts, dtypes: Sequence[Dtype], widths: Sequence[tuple[int, int]], ops: Sequence[str]
) -> dict[str, Any]:
    """Return everything that the verdicts depend on."""
    return {
        **verdicts_key(facts, hardware_of(facts.device).uuid),
        "dtypes": [dtype.name for dtype in dtypes],
        "widths": [list(width) for width in widths],
        "ops": list(ops),
        "kernels": sources_digest(),  # what was measured of one release says little of another's
    }
