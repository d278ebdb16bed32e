"""Whether a drift is too large."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from safe_dtype import Drift, Policy, exceeds
from safe_dtype.facts import limit_for, worst_output

TOKENS = Drift("tokens", 500, kl_mean=0.01, kl_p99=0.1, top1_agreement=0.9, max_abs=1.0, rel_rms=0.5)
CLASSES = replace(TOKENS, kind="classes")
PIXELS = replace(TOKENS, kind="pixels", kl_mean=3.0, miou=0.99)
VALUES = replace(TOKENS, kind="values", kl_mean=0.0, kl_p99=0.0, rel_rms=0.01)
SAME = replace(TOKENS, kl_mean=0.0, kl_p99=0.0, top1_agreement=1.0, max_abs=0.0, rel_rms=0.0)


@pytest.mark.parametrize(
    ("drift", "reason"),
    [
        pytest.param(TOKENS, None, id="tokens"),
        pytest.param(replace(TOKENS, kl_mean=0.02, kl_p99=0.4), None, id="at-the-limit"),
        pytest.param(replace(TOKENS, kl_mean=0.03), "mean KL is 0.03 nats, the limit is 0.02", id="mean"),
        pytest.param(
            replace(TOKENS, kl_mean=0.0200004),
            "mean KL is 0.0200004 nats, the limit is 0.02",
            id="just-over-the-limit",
        ),
        pytest.param(
            replace(TOKENS, kl_p99=0.5), "worst 1 % of 500 positions is 0.5 nats, the limit is 0.4", id="p99"
        ),
        pytest.param(replace(TOKENS, rel_rms=9.0, max_abs=99.0), None, id="tokens-are-not-held-to-their-size"),
        pytest.param(CLASSES, None, id="classes"),
        pytest.param(replace(CLASSES, kl_mean=0.03), "mean KL is 0.03", id="classes-mean"),
        pytest.param(replace(CLASSES, kl_p99=0.5), "is 0.5 nats, the limit is 0.4", id="classes-p99"),
        pytest.param(PIXELS, None, id="pixels"),
        pytest.param(replace(PIXELS, miou=0.98), None, id="miou-at-the-limit"),
        pytest.param(replace(PIXELS, miou=0.9), "1 - mIoU is 0.1, the limit is 0.02", id="miou"),
        pytest.param(replace(PIXELS, kl_p99=99.0), None, id="pixels-are-not-held-to-their-kl"),
        pytest.param(VALUES, None, id="values"),
        pytest.param(replace(VALUES, rel_rms=0.1), "relative RMS difference is 0.1, the limit is 0.02", id="rel-rms"),
        pytest.param(replace(VALUES, top1_agreement=0.0), None, id="values-are-not-held-to-their-largest-element"),
        pytest.param(replace(VALUES, rel_rms=math.inf), "relative RMS difference is inf", id="reference-of-zeros"),
    ],
)
def test_default_limit(drift: Drift, reason: str | None) -> None:
    """Each kind of drift is held to its own figure, and the reason names it with its limit."""
    answer = exceeds(drift, Policy().max_drift)
    assert answer is None if reason is None else reason in str(answer)


@pytest.mark.parametrize("limit", [0.0, 0.02, 1e9, math.inf, math.nan])
@pytest.mark.parametrize("kl", [math.inf, math.nan])
@pytest.mark.parametrize("drift", [TOKENS, CLASSES, PIXELS, VALUES], ids=lambda drift: drift.kind)
def test_not_finite(drift: Drift, kl: float, limit: float) -> None:
    """Outputs with NaN or infinity exceed every limit, whatever their kind."""
    assert "some of its 500 outputs hold NaN or infinity" in str(exceeds(replace(drift, kl_mean=kl), limit))


@pytest.mark.parametrize(
    ("same", "other"),
    [
        pytest.param(SAME, replace(SAME, kl_mean=1e-9), id="tokens"),
        pytest.param(SAME, replace(SAME, kl_p99=1e-9), id="p99"),
        pytest.param(replace(SAME, kind="classes"), replace(SAME, kind="classes", kl_mean=1e-9), id="classes"),
        pytest.param(replace(SAME, kind="pixels", miou=1.0), replace(SAME, kind="pixels", miou=1 - 1e-9), id="pixels"),
        pytest.param(replace(SAME, kind="values"), replace(SAME, kind="values", rel_rms=1e-9), id="values"),
    ],
)
def test_extreme_limits(same: Drift, other: Drift) -> None:
    """A limit of zero lets equal outputs through, and nothing else; one of NaN not even those; infinity all finite."""
    assert exceeds(same, 0.0) is None
    assert exceeds(other, 0.0)
    assert exceeds(same, math.nan)
    assert exceeds(other, math.inf) is None


def test_a_share_at_its_limit() -> None:
    """A mean IoU of exactly the limit is within it, for every limit of two decimals: nothing is lost to rounding."""
    for hundredths in range(101):
        drift = replace(PIXELS, miou=(100 - hundredths) / 100)
        assert exceeds(drift, hundredths / 100) is None
        assert hundredths == 0 or exceeds(drift, (hundredths - 1) / 100)


def test_the_worst_head_decides() -> None:
    """Each output is held to the limit in its own unit, and the one that lies furthest beyond is named."""
    boxes, masks = replace(VALUES, rel_rms=0.5), replace(PIXELS, miou=0.7)
    drift = replace(SAME, heads=(("logits_per_image", SAME), ("masks", masks), ("boxes", boxes)))
    assert exceeds(drift, 0.02) == "boxes: relative RMS difference is 0.5, the limit is 0.02"
    assert exceeds(replace(drift, kl_mean=0.1), 0.02) == "mean KL is 0.1 nats, the limit is 0.02"
    assert exceeds(drift, 0.5) is None
    assert worst_output(drift) == ("boxes", boxes)
    assert worst_output(replace(drift, kl_mean=0.9))[0] == ""
    spoiled = replace(drift, heads=(*drift.heads, ("depth", replace(VALUES, kl_mean=math.inf))))
    assert exceeds(spoiled, math.inf) == "depth: some of its 500 outputs hold NaN or infinity"


@pytest.mark.parametrize(
    ("drift", "limit"),
    [
        pytest.param(replace(TOKENS, kl_mean=0.0312), 0.032, id="rounded-up"),
        pytest.param(replace(TOKENS, kl_mean=0.03, kl_p99=0.1), 0.03, id="two-digits"),
        pytest.param(replace(TOKENS, kl_mean=0.07, kl_p99=0.1), 0.07, id="two-digits-of-a-float-above"),
        pytest.param(replace(TOKENS, kl_mean=0.01, kl_p99=2.41), 0.13, id="the-worst-positions"),
        pytest.param(replace(VALUES, rel_rms=2.04), 2.1, id="values"),
        pytest.param(replace(PIXELS, miou=0.9), 0.1, id="pixels"),
        pytest.param(SAME, 0.0, id="same"),
        pytest.param(replace(TOKENS, kl_mean=math.inf), None, id="not-finite"),
    ],
)
def test_the_limit_that_takes_it(drift: Drift, limit: float | None) -> None:
    """The least limit of two digits that a drift is within, and it is."""
    assert limit_for(drift) == limit
    assert limit is None or exceeds(drift, limit) is None
