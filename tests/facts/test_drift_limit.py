"""Whether a drift is too large."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from safe_dtype import Drift, Policy, exceeds

TOKENS = Drift("tokens", 500, kl_mean=0.01, kl_p99=0.1, top1_agreement=0.9, max_abs=1.0, rel_rms=0.5)
PIXELS = replace(TOKENS, kind="pixels", kl_mean=3.0, miou=0.99)
VALUES = replace(TOKENS, kind="values", kl_mean=0.0, kl_p99=0.0, rel_rms=0.01)


@pytest.mark.parametrize(
    ("drift", "reason"),
    [
        pytest.param(TOKENS, None, id="tokens"),
        pytest.param(replace(TOKENS, kl_mean=0.02, kl_p99=0.4), None, id="at-the-limit"),
        pytest.param(replace(TOKENS, kl_mean=0.03), "mean KL is 0.03 nats, the limit is 0.02", id="mean"),
        pytest.param(
            replace(TOKENS, kl_p99=0.5), "worst 1 % of 500 positions is 0.5 nats, the limit is 0.4", id="p99"
        ),
        pytest.param(replace(TOKENS, kind="classes", kl_mean=0.03), "mean KL is 0.03", id="classes"),
        pytest.param(PIXELS, None, id="pixels"),
        pytest.param(replace(PIXELS, miou=0.9), "1 - mIoU is 0.1, the limit is 0.02", id="miou"),
        pytest.param(VALUES, None, id="values"),
        pytest.param(replace(VALUES, rel_rms=0.1), "relative RMS difference is 0.1", id="rel-rms"),
        pytest.param(replace(VALUES, kl_mean=math.inf), "NaN or infinity", id="values-not-finite"),
        pytest.param(replace(PIXELS, kl_mean=math.inf), "NaN or infinity", id="pixels-not-finite"),
    ],
)
def test_default_limit(drift: Drift, reason: str | None) -> None:
    """Each kind of drift is held to its own figure, and the reason names it with its limit."""
    found = exceeds(drift, Policy().max_drift)
    assert found is None if reason is None else reason in str(found)


def test_no_drift_allowed() -> None:
    """A limit of zero lets equal outputs through, and nothing else; one of NaN not even those."""
    assert exceeds(replace(TOKENS, kl_mean=0.0, kl_p99=0.0), 0.0) is None
    assert exceeds(replace(TOKENS, kl_mean=1e-9, kl_p99=0.0), 0.0)
    assert exceeds(replace(TOKENS, kl_mean=0.0, kl_p99=0.0), math.nan)
