"""The device in cache keys: what stands in there decides whether what is on users' disks is still found."""

from __future__ import annotations

from safe_dtype.facts import DeviceFacts, MemoryFacts
from safe_dtype.store.keys import hardware_key, results_key, verdicts_key

DEVICE = DeviceFacts(
    "cuda:0", "NVIDIA A100", MemoryFacts(1, 1, "device"), capability="8.0", driver="550.1",
    versions=(("torch", "2.13.0"),), settings=(("threads", "2"),),
)  # fmt: skip


def test_hardware() -> None:
    """What belongs to one piece of hardware leaves the settings of the process out."""
    assert hardware_key(DEVICE, "GPU-1") == {
        "name": "NVIDIA A100", "uuid": "GPU-1", "driver": "550.1", "versions": {"torch": "2.13.0"},
    }  # fmt: skip


def test_verdicts() -> None:
    """Verdicts depend on the settings as well."""
    assert verdicts_key(DEVICE, "GPU-1") == {
        **hardware_key(DEVICE, "GPU-1"), "capability": "8.0", "settings": {"threads": "2"},
    }  # fmt: skip


def test_results() -> None:
    """A model's numbers are the same on every piece of one product."""
    assert results_key(DEVICE) == {
        "device": "NVIDIA A100", "driver": "550.1", "versions": {"torch": "2.13.0"}, "settings": {"threads": "2"},
    }  # fmt: skip
