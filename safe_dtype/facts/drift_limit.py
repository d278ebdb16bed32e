"""Is a drift too large? Answered in one place, with the figures. Imports no torch."""

from __future__ import annotations

import math

from .measured import Drift

# Nonsense at one position in a hundred must not hide in the mean of the others.
_P99_OVER_MEAN = 20.0


def exceeds(drift: Drift, max_drift: float) -> str | None:
    """Return why `drift` is larger than `max_drift` allows, or None where it is within. No other function judges.

    `max_drift` is one number, which means by the kind of the drift:

    * "tokens" and "classes": nats of mean KL; and 99 % of the positions may not exceed 20 times as many.
    * "pixels": 1 - mIoU against the reference's own predictions.
    * "values": RMS of the differences over the RMS of the reference, as there is no distribution to measure nats of.

    Whatever the limit, an output that is not finite is beyond it.
    """
    if math.isinf(drift.kl_mean):
        return f"some of its {drift.positions} outputs hold NaN or infinity"
    if drift.kind == "pixels" and drift.miou is not None:
        return _over("1 - mIoU", 1 - drift.miou, max_drift)
    if drift.kind == "values":
        return _over("relative RMS difference", drift.rel_rms, max_drift)
    return _over("mean KL", drift.kl_mean, max_drift, " nats") or _over(
        f"KL at the worst 1 % of {drift.positions} positions", drift.kl_p99, _P99_OVER_MEAN * max_drift, " nats"
    )


def _over(name: str, value: float, limit: float, unit: str = "") -> str | None:
    # A limit of NaN is no limit that anything is within.
    return None if value <= limit else f"{name} is {value:.3g}{unit}, the limit is {limit:.3g}"
