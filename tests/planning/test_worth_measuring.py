"""What is worth measuring before a model is loaded."""

from __future__ import annotations

import factories as f
import pytest

from safe_dtype.facts import BFLOAT16, FLOAT16, FLOAT32, DeviceFacts, Dtype, HalfRange
from safe_dtype.planning import Policy, make_plan, range_worth_measuring


@pytest.mark.parametrize(
    ("device", "saved", "policy", "ordered", "wanted"),
    [
        pytest.param(f.TURING, BFLOAT16, "auto", None, True, id="t4-float16-would-be-much-faster"),
        pytest.param(f.AMPERE, BFLOAT16, "auto", None, False, id="a100-gains-nothing"),
        pytest.param(f.AMPERE, BFLOAT16, "auto", FLOAT16, True, id="an-order-for-float16"),
        pytest.param(f.AMPERE, FLOAT32, "auto", FLOAT16, True, id="an-order-for-float16-from-float32"),
        pytest.param(f.AMPERE, FLOAT16, "auto", FLOAT16, False, id="it-was-made-in-float16"),
        pytest.param(f.TURING, BFLOAT16, "auto", FLOAT32, False, id="an-order-for-something-else"),
        pytest.param(f.TURING, BFLOAT16, "strict", FLOAT16, False, id="strict-changes-nothing"),
        pytest.param(f.TURING, BFLOAT16, "auto,prefer=fidelity", None, False, id="fidelity-is-float32"),
        pytest.param(f.TURING, BFLOAT16, "auto,ladder=fp16>fp32", None, True, id="first-on-the-ladder"),
        pytest.param(f.AMPERE, BFLOAT16, "auto,ladder=bf16>fp16>fp32", None, False, id="later-on-the-ladder"),
        pytest.param(f.AMPERE, FLOAT32, "auto,ladder=fp16>fp32", BFLOAT16, False, id="an-order-beside-the-ladder"),
    ],
)
def test_range(device: DeviceFacts, saved: Dtype, policy: str, ordered: Dtype | None, *, wanted: bool) -> None:
    """Activations are looked at where float16 would be the plan, or is by order, and only their range is unknown."""
    checkpoint = f.checkpoint(saved)
    plan = make_plan(device, checkpoint, Policy.parse(policy), ordered=ordered)
    assert range_worth_measuring(plan, checkpoint) is wanted


def test_range_is_measured_once() -> None:
    """What was measured, whatever came of it, is not measured again."""
    checkpoint = f.checkpoint(BFLOAT16, half=HalfRange(1e9, 1e9, problem="no gauge reaches it"))
    assert not range_worth_measuring(make_plan(f.TURING, checkpoint), checkpoint)
