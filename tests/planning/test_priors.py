"""Plans for devices that nobody can measure here, from the prior table."""

from __future__ import annotations

import factories as f
import pytest

from safe_dtype.devices import prior_facts
from safe_dtype.facts import BFLOAT16, FLOAT16, FLOAT32, Dtype
from safe_dtype.planning import Policy, make_plan


@pytest.mark.parametrize(
    ("name", "bf16", "fp16", "fp32"),
    [
        pytest.param("NVIDIA A100 80GB", BFLOAT16, FLOAT16, FLOAT16, id="a100"),
        pytest.param("NVIDIA Tesla T4", FLOAT16, FLOAT16, FLOAT16, id="t4"),
        pytest.param("Tesla V100-SXM2-32GB", FLOAT16, FLOAT16, FLOAT16, id="v100"),
        pytest.param("NVIDIA GeForce GTX 1660", FLOAT32, FLOAT32, FLOAT32, id="gtx1660"),
        pytest.param("Tesla P40", FLOAT32, FLOAT32, FLOAT32, id="p40"),
        pytest.param("Apple M1", FLOAT16, FLOAT16, FLOAT16, id="m1"),
        pytest.param("Apple M3", BFLOAT16, FLOAT16, FLOAT16, id="m3"),
        pytest.param("AMD Instinct MI210", BFLOAT16, FLOAT16, FLOAT16, id="mi210"),
        pytest.param("AMD Radeon RX 6800", FLOAT16, FLOAT16, FLOAT16, id="rdna2"),
        pytest.param("Intel Arc A770", FLOAT16, FLOAT16, FLOAT16, id="arc-a770"),
        pytest.param("Intel Arc B580", FLOAT32, FLOAT32, FLOAT32, id="arc-b580"),
        pytest.param("AVX2 CPU", FLOAT32, FLOAT32, FLOAT32, id="avx2-cpu"),
        pytest.param("AMX CPU", BFLOAT16, BFLOAT16, BFLOAT16, id="amx-cpu"),
    ],
)
def test_known_devices(name: str, bf16: Dtype, fp16: Dtype, fp32: Dtype) -> None:
    """A checkpoint saved in bf16, fp16 and fp32 gets the dtype that the family is known to be good at."""
    device = prior_facts(name)
    found = [make_plan(device, f.checkpoint(saved)) for saved in (BFLOAT16, FLOAT16, FLOAT32)]
    assert [plan.storage for plan in found] == [bf16, fp16, fp32]
    assert not any(plan.measured for plan in found)


def test_too_small_for_float32() -> None:
    """On a T4 a bf16 model too large for float32 is expected in float16, as it will be loaded there; it is never slow."""
    plan = make_plan(prior_facts("NVIDIA Tesla T4"), f.checkpoint(BFLOAT16, billions=5))
    assert (plan.storage, plan.pending, plan.device_map) == (FLOAT16, True, None)


def test_too_small_for_anything() -> None:
    """Where nothing fits, the smallest that is native is spread: not 16 bit that is emulated, not float32."""
    plan = make_plan(prior_facts("NVIDIA Tesla T4"), f.checkpoint(BFLOAT16, billions=8.2))
    assert (plan.storage, plan.pending, plan.device_map) == (FLOAT16, True, "auto")


def test_rescue_that_is_known() -> None:
    """What was measured stands in the plan, and nothing is pending; a model that cannot be rescued stays out of float16."""
    t4 = prior_facts("NVIDIA Tesla T4")
    rescued = make_plan(t4, f.checkpoint(BFLOAT16, half=f.rescued()))
    assert (rescued.storage, rescued.pending) == (FLOAT16, False)
    assert rescued.rescale is not None
    lost = make_plan(t4, f.checkpoint(BFLOAT16, half=f.rescued(problem="no gauge reaches it")))
    assert (lost.storage, lost.pending) == (FLOAT32, False)


def test_half_the_bytes() -> None:
    """Where float32 does not fit, float16 is tried on a card that gains nothing else by it: it holds the model whole."""
    plan = make_plan(prior_facts("NVIDIA Tesla K80"), f.checkpoint(BFLOAT16, billions=4))
    assert (plan.storage, plan.pending, plan.device_map) == (FLOAT16, True, None)
    assert (
        make_plan(prior_facts("NVIDIA Tesla K80"), f.checkpoint(BFLOAT16, billions=2)).storage == FLOAT32
    )  # fits, and is exact


def test_what_is_spread_is_not_rescaled() -> None:
    """A pending plan that is spread does not promise the rescale which a load would refuse."""
    spread = make_plan(prior_facts("NVIDIA Tesla T4"), f.checkpoint(BFLOAT16, billions=8.2))
    assert "which a model that is spread cannot have, another dtype is loaded" in spread.reason
    assert "rescaled where" not in spread.reason
    assert (
        "rescaled where float16 needs that" in make_plan(prior_facts("NVIDIA Tesla T4"), f.checkpoint(BFLOAT16)).reason
    )


def test_rescue_that_cannot_be_offloaded() -> None:
    """A model that has to be rescaled is not spread in float16: what is offloaded cannot be rescaled."""
    plan = make_plan(prior_facts("NVIDIA Tesla T4"), f.checkpoint(BFLOAT16, billions=8.2, half=f.rescued()))
    assert (plan.storage, plan.device_map) == (BFLOAT16, "auto")


def test_pending_says_what_measures_it() -> None:
    """The reason names the ratios that are known, what is still to be measured, and the command that measures it now."""
    checkpoint = f.checkpoint(BFLOAT16)
    plan = make_plan(prior_facts("NVIDIA Tesla T4"), checkpoint)
    assert "half the bytes" in plan.reason
    assert "up to 8 times" in plan.reason
    assert "bfloat16 is slow" in plan.reason
    assert f"safe-dtype rescue {checkpoint.source}" in plan.reason
    assert plan.to_dict()["pending"] is True


def test_order_for_float16() -> None:
    """An order for float16 is expected to be rescued, as a load would do it, and no wrong results are threatened."""
    plan = make_plan(prior_facts("NVIDIA Tesla T4"), f.checkpoint(BFLOAT16), ordered=FLOAT16)
    assert (plan.storage, plan.pending, plan.warnings) == (FLOAT16, True, ())
    strict = make_plan(prior_facts("NVIDIA Tesla T4"), f.checkpoint(BFLOAT16), Policy(mode="strict"), ordered=FLOAT16)
    assert not strict.pending
    assert "may be wrong" in strict.warnings[0]


@pytest.mark.parametrize("name", ["RX 7900 XTX", "MI60", "gaudi2", "Graviton2 16 GB"])
def test_saved_in_float16(name: str) -> None:
    """A model made in float16 stays in it where no source tells how fast that is, and float32 does not fit."""
    plan = make_plan(prior_facts(name), f.checkpoint(FLOAT16, billions=7))
    assert plan.storage == FLOAT16


def test_strict() -> None:
    """In strict mode a prior counts like a measurement."""
    plan = make_plan(prior_facts("NVIDIA Tesla T4"), f.checkpoint(FLOAT16), Policy(mode="strict"))
    assert plan.storage == FLOAT16
