"""Several devices as one."""

from __future__ import annotations

import factories as f
import pytest

from safe_dtype.facts import BFLOAT16, FLOAT16, FLOAT32, VerdictKind
from safe_dtype.planning import combine, make_plan


def test_one_device() -> None:
    """One device is itself."""
    assert combine([f.TURING]) is f.TURING


def test_weakest_verdict() -> None:
    """A dtype does only as well as on the device where it does worst, and the reason names that device."""
    both = combine([f.AMPERE, f.TURING])
    assert both.verdict(BFLOAT16).kind is VerdictKind.SLOW
    assert both.verdict(FLOAT16).kind is VerdictKind.NATIVE
    assert both.verdict(FLOAT32).prefill_flops_per_s == f.TURING.verdict(FLOAT32).prefill_flops_per_s
    assert f.TURING.device in both.verdict(BFLOAT16).reason


def test_memory_adds_up() -> None:
    """What fits on two devices together is accepted."""
    model = f.checkpoint(FLOAT16, billions=10)
    assert make_plan(f.TURING, model).device_map == "auto"
    assert make_plan(combine([f.TURING, f.TURING]), model).device_map is None


def test_names() -> None:
    """Equal devices are counted."""
    assert combine([f.TURING, f.TURING, f.AMPERE]).name == "2 x T4 + A100"


def test_mixed_devices_share_a_dtype() -> None:
    """Where bf16 kills one of the devices, the model gets a dtype that both run."""
    assert make_plan(combine([f.AMPERE, f.RDNA2]), f.checkpoint(BFLOAT16)).storage == FLOAT32


def test_no_device() -> None:
    """No devices are an error."""
    with pytest.raises(ValueError, match="at least one"):
        combine([])
