"""Backends that lack functions which CUDA has, or whose functions cannot answer: devices are known, and planned for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerator.rehearsal import Rehearsal

from safe_dtype import SafeAutoModelForCausalLM, plan_of
from safe_dtype.devices import facts_of, measure, memory_of, shortage
from safe_dtype.facts import BFLOAT16, FLOAT32, MemoryFacts, VerdictKind

LIMIT = 1 << 30
HELD = 1 << 20  # bytes of a tensor that is there all the time
UNKNOWN = MemoryFacts(0, 0, "device")


@pytest.mark.parametrize(
    ("names", "memory"),
    [
        pytest.param((), MemoryFacts(LIMIT, LIMIT - HELD, "device"), id="none"),
        pytest.param(("memory_reserved",), MemoryFacts(LIMIT, LIMIT - 3 * HELD, "device"), id="memory_reserved"),
        pytest.param(("memory_allocated",), MemoryFacts(LIMIT, LIMIT - 3 * HELD, "device"), id="memory_allocated"),
        pytest.param(("mem_get_info",), MemoryFacts(LIMIT, LIMIT - HELD, "device"), id="mem_get_info"),
        pytest.param(("mem_get_info", "memory_reserved", "memory_allocated"), UNKNOWN, id="how-much-is-used"),
        pytest.param(("mem_get_info", "get_device_properties"), UNKNOWN, id="how-much-there-is"),
    ],
)
@pytest.mark.parametrize("how", ["withhold", "break_"])
def test_memory(rehearsal: Rehearsal, names: tuple[str, ...], memory: MemoryFacts, how: str) -> None:
    """What cannot be asked is worked out, or not known. Where it lacks only the cache, that counts as used."""
    rehearsal.limit(LIMIT)
    held = torch.zeros(HELD, dtype=torch.uint8, device=rehearsal.device(1))
    del held
    held = [torch.zeros(HELD, dtype=torch.uint8, device=rehearsal.device(1)) for _ in range(3)]
    del held[1:]
    getattr(rehearsal, how)(*names)
    assert memory_of("musa:1") == memory


def test_what_is_not_known_is_no_shortage(rehearsal: Rehearsal) -> None:
    """Nothing is refused for want of memory that nobody knows of; a device that is full to the last byte refuses."""
    rehearsal.limit(HELD, device=0)
    held = torch.zeros(HELD, dtype=torch.uint8, device=rehearsal.device(0))
    assert shortage({"musa:0": 1}) == "needs 1 bytes more on musa:0, 0 are free"
    rehearsal.withhold("mem_get_info", "get_device_properties")
    assert shortage({"musa:0": 1}) is None
    assert memory_of("musa:0", {0: LIMIT}) == MemoryFacts(LIMIT, LIMIT, "max_memory")
    assert held.numel()


@pytest.mark.parametrize(
    "name", ["get_device_name", "get_device_capability", "is_bf16_supported", "mem_get_info", "get_device_properties"]
)
@pytest.mark.parametrize("how", ["withhold", "break_"])
def test_devices_are_described(rehearsal: Rehearsal, name: str, how: str) -> None:
    """A device has a name and verdicts whatever its backend does not tell."""
    getattr(rehearsal, how)(name)
    facts = facts_of("musa:1")
    assert facts.name == ("musa" if name == "get_device_name" else "Rehearsal accelerator")
    assert facts.verdict(BFLOAT16).kind is VerdictKind.NATIVE


def test_a_model_is_loaded_where_nothing_is_told(rehearsal: Rehearsal, tiny_qwen3: Path) -> None:
    """A plan is made, and the model generates, on a device that tells neither its name nor its memory."""
    rehearsal.withhold(
        "mem_get_info", "get_device_properties", "memory_allocated", "memory_reserved", "get_device_name",
        "get_device_capability", "is_bf16_supported", "empty_cache",
    )  # fmt: skip
    model = SafeAutoModelForCausalLM.from_pretrained(str(tiny_qwen3), device_map={"": "musa:1"})
    assert plan_of(model).device == "musa:1"
    assert model.generate(torch.tensor([[5, 6, 7]], device="musa:1"), max_new_tokens=2).shape == (1, 5)


def test_measuring(rehearsal: Rehearsal) -> None:
    """A device is measured without what makes it current, and without what empties its cache."""
    rehearsal.withhold("device", "empty_cache", "mem_get_info")
    (verdict,) = measure("musa:1", (FLOAT32,), ((32, 32),), ops=("softmax",))
    assert verdict.kind is VerdictKind.NATIVE
