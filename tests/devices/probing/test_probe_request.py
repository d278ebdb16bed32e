"""What is asked of a probe survives the journey to another process."""

from __future__ import annotations

import pytest

from safe_dtype.devices.probing.probe_request import ProbeRequest, verdict_from_dict, verdict_to_dict
from safe_dtype.facts import BFLOAT16, FLOAT32, Timing, Verdict, VerdictKind


def request_for(*ops: str, ops_module: str = "deadly_ops") -> ProbeRequest:
    """Ask for `ops` in float32, briefly."""
    return ProbeRequest("cpu", tuple((FLOAT32, op) for op in ops), ((64, 64),), 0.05, threads=1, ops_module=ops_module)


@pytest.mark.parametrize(
    "verdict",
    [
        Verdict(
            BFLOAT16,
            "matmul",
            VerdictKind.SLOW,
            "why",
            1e9,
            2e9,
            3e-3,
            (Timing(1, (2, 3), 0.5), Timing(512, (2, 3), 1.0)),
        ),
        Verdict(BFLOAT16, "fft", VerdictKind.UNSUPPORTED, "Unsupported dtype BFloat16"),
    ],
    ids=lambda verdict: verdict.op,
)
def test_verdicts_survive_the_journey(verdict: Verdict) -> None:
    """What is sent is what arrives."""
    assert verdict_from_dict(verdict_to_dict(verdict)) == verdict


def test_requests_survive_the_journey() -> None:
    """What is asked is what arrives."""
    asked = request_for("softmax", "fft")
    assert ProbeRequest.from_dict(asked.to_dict()) == asked
