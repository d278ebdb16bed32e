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
        pytest.param("NVIDIA A100 80GB", BFLOAT16, FLOAT16, FLOAT32, id="a100"),
        pytest.param("NVIDIA Tesla T4", FLOAT32, FLOAT16, FLOAT32, id="t4"),
        pytest.param("Tesla V100-SXM2-32GB", FLOAT32, FLOAT16, FLOAT32, id="v100"),
        pytest.param("NVIDIA GeForce GTX 1660", FLOAT32, FLOAT32, FLOAT32, id="gtx1660"),
        pytest.param("Tesla P40", FLOAT32, FLOAT32, FLOAT32, id="p40"),
        pytest.param("Apple M1", FLOAT32, FLOAT16, FLOAT32, id="m1"),
        pytest.param("Apple M3", BFLOAT16, FLOAT16, FLOAT32, id="m3"),
        pytest.param("AMD Instinct MI210", BFLOAT16, FLOAT16, FLOAT32, id="mi210"),
        pytest.param("AMD Radeon RX 6800", FLOAT32, FLOAT16, FLOAT32, id="rdna2"),
        pytest.param("Intel Arc A770", FLOAT32, FLOAT16, FLOAT32, id="arc-a770"),
        pytest.param("Intel Arc B580", FLOAT32, FLOAT32, FLOAT32, id="arc-b580"),
        pytest.param("AVX2 CPU", FLOAT32, FLOAT32, FLOAT32, id="avx2-cpu"),
        pytest.param("AMX CPU", BFLOAT16, FLOAT32, FLOAT32, id="amx-cpu"),
    ],
)
def test_known_devices(name: str, bf16: Dtype, fp16: Dtype, fp32: Dtype) -> None:
    """A checkpoint saved in bf16, fp16 and fp32 gets the dtype that the family is known to be good at."""
    device = prior_facts(name)
    found = [make_plan(device, f.checkpoint(saved)) for saved in (BFLOAT16, FLOAT16, FLOAT32)]
    assert [plan.storage for plan in found] == [bf16, fp16, fp32]
    assert not any(plan.measured for plan in found)


def test_too_small_for_float32() -> None:
    """On a T4 a bf16 model too large for float32 stays in bf16, slow as that is, and is not put into float16."""
    plan = make_plan(prior_facts("NVIDIA Tesla T4"), f.checkpoint(BFLOAT16, billions=5))
    assert plan.storage == BFLOAT16
    assert plan.device_map is None


def test_strict() -> None:
    """In strict mode a prior counts like a measurement."""
    plan = make_plan(prior_facts("NVIDIA Tesla T4"), f.checkpoint(FLOAT16), Policy(mode="strict"))
    assert plan.storage == FLOAT16
