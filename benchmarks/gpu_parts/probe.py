"""What each dtype was measured to be on the device, and how long it took to measure."""

from __future__ import annotations

import time
from collections.abc import Iterator

from safe_dtype.devices import facts_of

from .place import Place, Row


def rows(place: Place) -> Iterator[Row]:
    """Yield how long it took, then each verdict, then what torch claims."""
    started = time.perf_counter()
    facts = facts_of(place.device, refresh=True)
    measured = time.perf_counter() - started
    started = time.perf_counter()
    facts_of(place.device)
    yield {"probe_s": measured, "remembered_s": time.perf_counter() - started, "family": facts.family}
    for verdict in facts.verdicts:
        yield {
            "dtype": verdict.dtype.name, "operation": verdict.op, "verdict": str(verdict.kind),
            "decode_bytes_per_s": verdict.decode_bytes_per_s, "prefill_flops_per_s": verdict.prefill_flops_per_s,
            "max_rel_error": verdict.max_rel_error, "reason": verdict.reason,
        }  # fmt: skip
    for claim in facts.claims:
        yield {"claim": claim.question, "answer": claim.answer, "disagreement": claim.disagreement}
