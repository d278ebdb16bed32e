"""Is a drift too large? Answered in one place, with the figures. Imports no torch."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, Context

from .measured import Drift

DEFAULT_MAX_DRIFT = 0.02  # nats of mean KL; examples/tiny-qwen3 drifts 1.1e-4 in bfloat16, 1.8e-6 in float16

# A few ruined positions must not hide in the mean of the others.
_P99_OVER_MEAN = 20.0
FEW_POSITIONS = 16  # fewer say little of a model, whatever their drift
# A row of two classes, 4 times as far from uniform as the limit, cannot turn over within the limit. Nearer to uniform
# KL stays small whatever is chosen, and the choices are held to a limit of their own, as the worst 1 % are.
_NEARLY_UNIFORM = 4.0
_MOST_FLIPS = 0.01
_TWO_DIGITS_UP = Context(prec=2, rounding=ROUND_CEILING)


def exceeds(drift: Drift, max_drift: float) -> str | None:
    """Return why `drift` is larger than `max_drift` allows, or None where it is within. No other function judges this.

    `max_drift` is one number. Its unit follows the kind of the drift:

    * "tokens", "classes" and "labels": nats of mean KL. In addition, 99 % of the positions must stay within 20 times as
      many. Where the reference is nearly uniform (at most 4 times as many nats from it) KL says little: there, at most
      1 % of the first choices may differ by more than rounding explains (`clear_flips`).
    * "pixels": 1 - mIoU, the reference's own predictions taken as the truth.
    * "values": RMS of the differences over the RMS of the reference, because there is no distribution to measure in nats.

    Every output is held to it, in the unit of its own kind: the main one, and each of `drift.heads`. The worst decides,
    and the reason names it. Outputs with NaN or infinity, and those that the candidate does not return, exceed every limit; a
    limit of NaN is exceeded by every drift.
    """
    reason = _why_one_exceeds(drift, max_drift)
    if reason is not None:
        return reason
    reasons = {name: why for name, head in drift.heads if (why := _why_one_exceeds(head, max_drift))}
    if not reasons:
        return None
    name, _ = worst_output(drift)
    return f"{name}: {reasons[name]}" if name in reasons else ": ".join(next(iter(reasons.items())))


def mean_exceeds(kl: float, max_drift: float) -> str | None:
    """Return why a mean KL is larger than `max_drift` allows, where there is no more than that to judge by; else None."""
    return _over("mean KL", kl, max_drift, " nats")


def worst_output(drift: Drift) -> tuple[str, Drift]:
    """Return the name and the drift of the output that lies nearest to its limit, or furthest beyond; "" is the main one."""
    return max([("", drift), *drift.heads], key=lambda output: figure_of(output[1]))


def limit_for(drift: Drift) -> float | None:
    """Return the least `max_drift` of two digits that `drift` is within; None where no limit is large enough."""
    figure = figure_of(worst_output(drift)[1])
    if not 0 < figure < math.inf:
        return None if figure else 0.0
    # As it is written: a quotient of floats may be a little above a whole number.
    limit = float(_TWO_DIGITS_UP.create_decimal(repr(figure)))
    return limit if exceeds(drift, limit) is None else None


def is_nearly_uniform(drift: Drift, max_drift: float) -> bool:
    """Whether the reference says so little that KL within `max_drift` tells nothing about what is chosen."""
    return drift.reference_nats is not None and drift.reference_nats <= _NEARLY_UNIFORM * max_drift < math.inf


def figure_of(drift: Drift) -> float:
    """Return what is held to `max_drift`, in its unit."""
    if not math.isfinite(drift.kl_mean):
        return math.inf
    if drift.kind == "pixels" and drift.miou is not None:
        return 1 - drift.miou
    if drift.kind == "values":
        return math.inf if math.isnan(drift.rel_rms) else drift.rel_rms
    return max(drift.kl_mean, drift.kl_p99 / _P99_OVER_MEAN)


def _why_one_exceeds(drift: Drift, max_drift: float) -> str | None:
    if not drift.positions:
        return "the candidate does not return it"
    if not math.isfinite(drift.kl_mean):
        return f"some of its {drift.positions} outputs hold NaN or infinity"
    if drift.kind == "pixels" and drift.miou is not None:
        within = drift.miou + max_drift >= 1  # in float64 1 - 0.98 is larger than 0.02, and their sum is 1
        return None if within else _reason("1 - mIoU", 1 - drift.miou, max_drift)
    if drift.kind == "values":
        return _over("relative RMS difference", drift.rel_rms, max_drift)
    return (
        _over("mean KL", drift.kl_mean, max_drift, " nats")
        or _over(
            f"KL at the worst 1 % of {drift.positions} positions", drift.kl_p99, _P99_OVER_MEAN * max_drift, " nats"
        )
        or _why_it_flips(drift, max_drift)
    )


def _why_it_flips(drift: Drift, max_drift: float) -> str | None:
    if drift.clear_flips is None or drift.clear_flips <= _MOST_FLIPS or not is_nearly_uniform(drift, max_drift):
        return None
    return (
        f"the reference is nearly uniform ({drift.reference_nats:.2g} nats), where KL says little, and "
        f"{drift.clear_flips:.2%} of the first choices differ by more than rounding, the limit is {_MOST_FLIPS:.0%}"
    )


def _over(name: str, value: float, limit: float, unit: str = "") -> str | None:
    return None if value <= limit else _reason(name, value, limit, unit)


def _reason(name: str, value: float, limit: float, unit: str = "") -> str:
    # As many digits as show that the two differ.
    value_text, limit_text = next(
        (texts for digits in (3, 6) if len(set(texts := (f"{value:.{digits}g}", f"{limit:.{digits}g}"))) == 2),
        (f"{value:.17g}", f"{limit:.17g}"),
    )
    return f"{name} is {value_text}{unit}, the limit is {limit_text}"
