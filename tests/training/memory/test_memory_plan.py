"""In which order things are tried to make a step fit; facts in, plan out."""

from __future__ import annotations

from typing import Any

import pytest

from safe_dtype.errors import TrainingDoesNotFitError
from safe_dtype.facts import FLOAT32, MemoryFacts
from safe_dtype.training.memory import Checkpointing, MemoryPlan, TrainingWay, plan_memory

GB = 10**9
ORDERED = TrainingWay(8, 2)


def needs(way: TrainingWay) -> int:
    """Return 4 GB of weights, and 1 GB of activations a row, of which checkpointing leaves half, or an eighth."""
    left = {None: 8, Checkpointing(2): 4, Checkpointing(): 1, Checkpointing(offload=True): 0}[way.checkpointing]
    return 4 * GB + way.rows * left * GB // 8


def plan(free: float, ordered: TrainingWay = ORDERED, **options: Any) -> MemoryPlan:
    """Plan for so many GB, of which 0.9 may be used."""
    size = int(free * GB / 0.9) + 1
    return plan_memory(FLOAT32, ordered, needs, MemoryFacts(size, size, "device"), **options)


@pytest.mark.parametrize(
    ("free", "options", "way"),
    [
        pytest.param(12.1, {}, ORDERED, id="it-fits"),
        pytest.param(8.1, {}, TrainingWay(8, 2, Checkpointing(2)), id="every-second-layer"),
        pytest.param(5.1, {}, TrainingWay(8, 2, Checkpointing()), id="all-layers"),
        pytest.param(4.9, {"offloads": True}, TrainingWay(8, 2, Checkpointing(offload=True)), id="offloaded"),
        pytest.param(4.6, {}, TrainingWay(4, 4, Checkpointing()), id="half-the-rows"),
        pytest.param(4.2, {}, TrainingWay(1, 16, Checkpointing()), id="row-by-row"),
        pytest.param(4.0, {}, None, id="nothing-fits"),
        pytest.param(4.6, {"splits": False}, None, id="rows-stay"),
        pytest.param(1.1, {"held_bytes": 4 * GB}, TrainingWay(8, 2, Checkpointing()), id="weights-are-there-already"),
        pytest.param(4.6, {"ordered": TrainingWay(8, 2, Checkpointing())}, TrainingWay(4, 4, Checkpointing()), id="it-is-on"),
        pytest.param(4.4, {"ordered": TrainingWay(6, 1)}, TrainingWay(3, 2, Checkpointing()), id="six-rows"),
    ],
)  # fmt: skip
def test_the_first_way_that_fits(free: float, options: dict[str, Any], way: TrainingWay | None) -> None:
    """What costs least time comes first; the global batch stays what it is."""
    made = plan(free, **options)
    assert made.way == way
    ordered = options.get("ordered", ORDERED)
    assert {tried.rows * tried.accumulation for tried, _ in made.tried} == {ordered.rows * ordered.accumulation}
    assert made.is_as_ordered == (way == ordered)


def test_a_device_that_does_not_tell() -> None:
    """Where nobody knows what is free, the order stands."""
    assert plan_memory(FLOAT32, ORDERED, needs, MemoryFacts(0, 0, "device")).is_as_ordered


def test_a_model_without_checkpointing() -> None:
    """It goes on to smaller micro-batches, where there is such a way."""

    def only_plain(way: TrainingWay) -> int:
        if way.checkpointing is not None:
            raise ValueError("it has none")
        return needs(way)

    made = plan_memory(FLOAT32, ORDERED, only_plain, MemoryFacts(10 * GB, 10 * GB, "device"))
    assert made.way == TrainingWay(4, 4)


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        pytest.param({"ranks": 4}, "share the weights out among the 4 ranks with FSDP2", id="ranks"),
        pytest.param({"devices": 2}, "spread the model over the 2 devices with device_map='auto'", id="devices"),
        pytest.param({}, "train adapters alone, as with LoRA or use shorter rows", id="alone"),
    ],
)
def test_it_is_refused_with_the_bytes(options: dict[str, int], advice: str) -> None:
    """What is needed at least, what there is, and what would help here."""
    with pytest.raises(TrainingDoesNotFitError, match=advice) as caught:
        plan(4.0).require(**options)
    assert (caught.value.needed_bytes, caught.value.free_bytes) == (4_125_000_000, 4_000_000_000)


def test_what_is_said() -> None:
    """The order, its bytes, and the way that fits with its own."""
    assert str(plan(12.1)) == "a step in float32 (2 micro-batches of 8) needs 12 GB, 12.1 GB may be used"
    assert str(plan(4.6)).endswith("; 4 micro-batches of 4, activation checkpointing needs 4.5 GB")
    assert str(plan(4.0)).endswith("; and so does nothing that was tried: 16 micro-batches of 1, activation checkpointing needs 4.12 GB")  # fmt: skip


KINDS = (("weights", 4 * GB), ("gradients", 4 * GB), ("optimizer", 8 * GB), ("activations", 2 * GB), ("kernels", GB))


@pytest.mark.parametrize(
    ("free", "ranks", "offered", "left_out"),
    [
        pytest.param(
            17.5, 4, ("FSDP2 (at least 7,000,000,000 bytes)", "LoRA (at least 7,000,000,000", "rows"), (), id="all"
        ),
        pytest.param(17.5, 1, ("LoRA", "shorter rows"), ("FSDP2",), id="one-rank"),
        pytest.param(12, 2, ("FSDP2 (at least 11,000,000,000", "LoRA"), ("rows",), id="rows-are-not-enough"),
        pytest.param(10, 2, ("LoRA (at least 7,000,000,000",), ("FSDP2", "rows"), id="two-ranks-are-not-enough"),
        pytest.param(6, 8, (), ("LoRA", "rows"), id="frozen-weights-are-too-much"),
        pytest.param(2, 8, (), ("FSDP2", "LoRA", "rows"), id="nothing"),
    ],
)
def test_only_what_may_fit_is_advised(
    free: float, ranks: int, offered: tuple[str, ...], left_out: tuple[str, ...]
) -> None:
    """Weights, gradients and moments can be shared out, the latter two left out for adapters, activations made shorter."""
    error = TrainingDoesNotFitError("float32", 19 * GB, int(free * GB), ranks, kinds=KINDS)
    assert all(part in str(error) for part in offered)
    assert not any(part in str(error) for part in left_out)
    assert str(error).endswith("train on a device with more memory.")
