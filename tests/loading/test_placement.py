"""How much of a model has room where `device_map` puts it."""

from __future__ import annotations

from typing import Any

import pytest
from factories import AMPERE

from safe_dtype.devices import detect_one
from safe_dtype.facts import FLOAT32, CheckpointFacts, MemoryFacts, TensorFacts
from safe_dtype.loading.placement import with_memory_as_placed
from safe_dtype.loading.request import Request

QUARTERS = tuple(TensorFacts(name, "float32", (5, 5), "file") for name in ("a.x", "a.y", "b.x", "c"))
FILES = CheckpointFacts("model", ("file",), "safetensors", QUARTERS, FLOAT32)


def memory(device_map: Any) -> MemoryFacts:
    """Return the memory of a model on a CPU that may take 900 bytes."""
    arguments = {"device_map": device_map, "max_memory": {"cpu": 900}}
    return with_memory_as_placed(detect_one("cpu"), Request("model", arguments), FILES).memory


@pytest.mark.parametrize(
    ("device_map", "free"),
    [
        pytest.param({"": "cpu"}, 900, id="all"),
        pytest.param({"a": "cpu", "b": "disk", "c": "disk"}, 1800, id="half"),
        pytest.param({"": "disk", "c": "cpu"}, 3600, id="the-longest-name-counts"),
        pytest.param({"a": "cpu", "a.x": "disk", "b": "disk", "c": "disk"}, 3600, id="inside-of-another"),
        pytest.param({"other": "cpu", "names": "disk"}, 1800, id="no-name-is-of-the-files"),
    ],
)
def test_places(device_map: dict[str, str], free: int) -> None:
    """What a place holds is the part of the numbers that goes there; what lies on disk takes no memory."""
    assert memory(device_map) == MemoryFacts(free, free, "device_map")


def test_all_on_disk() -> None:
    """Nothing is known to be short then."""
    assert memory({"": "disk"}) == MemoryFacts(0, 0, "device_map")


def test_one_place() -> None:
    """A device by its name is a place that the caller has named."""
    assert memory("cpu").limited_by == "device_map"


@pytest.mark.parametrize("device_map", [None, "auto", "balanced", "sequential"])
def test_left_open(device_map: str | None) -> None:
    """Where the caller names no place, the memory is that of the devices."""
    arguments = {} if device_map is None else {"device_map": device_map}
    assert with_memory_as_placed(AMPERE, Request("model", arguments), FILES) is AMPERE
