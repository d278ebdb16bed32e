"""What would fit where a checkpoint does not."""

from __future__ import annotations

import json
from dataclasses import replace

import factories as f
import pytest

from safe_dtype.devices import prior_facts
from safe_dtype.facts import BFLOAT16, FLOAT16, FLOAT32, MemoryFacts
from safe_dtype.planning import Plan, Policy, make_plan
from safe_dtype.planning.plan import WayToFit

GB = 10**9


def plan_of_8b(device: str = "NVIDIA Tesla T4", policy: str = "auto", *, billions: float = 8.2) -> Plan:
    """Return the plan of a model that does not fit."""
    return make_plan(prior_facts(device), f.checkpoint(BFLOAT16, billions=billions), Policy.parse(policy))


def named(plan: Plan, start: str) -> WayToFit:
    """Return the one way whose name begins so."""
    (way,) = (way for way in plan.ways if way.name.startswith(start))
    return way


def test_none_where_it_fits() -> None:
    """A plan that fits needs no other way, and of a device of unknown size nobody knows."""
    assert plan_of_8b(billions=0.6).ways == ()
    assert plan_of_8b("Apple M2").ways == ()


def test_every_dtype_is_listed() -> None:
    """What is right and too large stands there with the bytes that were judged."""
    plan = plan_of_8b()
    for dtype in (FLOAT32, BFLOAT16, FLOAT16):
        decision = next(one for one in plan.decisions if one.candidate.storage == dtype)
        way = next(way for way in plan.ways if way.name == dtype.name)
        assert (way.weight_bytes, way.cache_bytes) == (decision.cost.weight_bytes, decision.cost.cache_bytes)
        assert (way.total_bytes, way.fits) == (decision.cost.bytes, False)


@pytest.mark.parametrize(("name", "bits"), [("int8", 8), ("int4", 4.5)])
def test_fewer_bits(name: str, bits: float) -> None:
    """Quantized linear weights take their bits; what is not linear stays in 16."""
    checkpoint = f.checkpoint(BFLOAT16, billions=8.2)
    head = replace(checkpoint.linears[0], count=1, per_position=False)
    with_head = replace(
        checkpoint, linears=(replace(checkpoint.linears[0], count=checkpoint.linears[0].count - 1), head)
    )
    plan = make_plan(prior_facts("NVIDIA Tesla T4"), with_head)
    way = named(plan, name)
    assert way.weight_bytes == round(with_head.linears[0].numel * bits / 8) + head.numel * 2
    assert way.fits


def test_offloaded() -> None:
    """With device_map the device is full, and the rest is said to lie elsewhere."""
    plan = plan_of_8b()
    way = named(plan, "float16, device_map")
    assert way.total_bytes == 16 * GB
    assert f"{(plan.cost.weight_bytes - way.weight_bytes) / 1e6:.0f} MB" in way.note
    assert way.fits


def test_several_devices() -> None:
    """So many devices as hold it, each with its share."""
    way = named(plan_of_8b(billions=30), "float16, 4 devices")
    assert way.weight_bytes == pytest.approx(60 * GB / 4, rel=0.01)
    assert way.total_bytes <= 16 * GB
    assert "4 x NVIDIA Tesla T4" in way.note


@pytest.mark.parametrize("device", ["Raspberry Pi 5 8 GB", "Apple M2 8 GB"])
def test_one_main_memory(device: str) -> None:
    """What main memory does not hold is left on disk: there is no second one for device_map to fill."""
    plan = plan_of_8b(device)
    assert [way.name for way in plan.ways if "devices" in way.name] == []
    (way,) = (way for way in plan.ways if "device_map" in way.name)
    assert "of the weights on disk, and every step" in way.note
    assert plan.warnings[-1].endswith("device_map='auto' leaves the rest on disk, and every step waits for it")


def test_smaller_context() -> None:
    """Where only the cache is too large, the longest context that fits, and the policy to ask for it."""
    asked = "prompt=32000,new=1000"
    way = named(plan_of_8b(policy=asked, billions=7), "float16, 1")
    assert way.fits
    shorter = way.note.partition("--policy ")[2]
    again = plan_of_8b(policy=shorter, billions=7)
    assert again.device_map is None
    assert again.cost is not None
    assert again.cost.bytes == way.total_bytes > 15.7 * GB
    assert not [way for way in plan_of_8b().ways if "tokens" in way.name]  # weights alone are too large


def test_nothing_left_for_the_weights() -> None:
    """Where activations alone fill the device, no way is made up."""
    tiny = replace(prior_facts("NVIDIA Tesla T4"), memory=MemoryFacts(1000, 1000, "device"))
    plan = make_plan(tiny, f.checkpoint(BFLOAT16))
    assert not [way for way in plan.ways if way.fits]


def test_in_text_and_json() -> None:
    """The table stands below the plan, and the same in its JSON and HTML."""
    plan = plan_of_8b()
    text = plan.explain(width=140)
    assert "to make it fit" in text
    assert "KV cache" in text
    assert "int4 weights" in text
    assert "int4 weights" in plan._repr_html_()
    ways = json.loads(plan.to_json())["ways"]
    assert [way["name"] for way in ways] == [way.name for way in plan.ways]
    assert ways[0]["fits"] is False


def test_memory_that_is_not_known() -> None:
    """A device of unknown memory says so and asks for it; with it in the name the question is gone."""
    (warning,) = plan_of_8b("Apple M2").warnings
    assert "how much memory Apple M2 has is not known" in warning
    assert "--device 'Apple M2 24 GB'" in warning
    assert plan_of_8b("Apple M2 24 GB").warnings == ()
    assert plan_of_8b("Apple M2 8 GB").device_map == "auto"


def test_experts_are_no_linear_modules() -> None:
    """What is one tensor of many experts is quantized by nobody, so no fewer bits of it are promised."""
    checkpoint = f.checkpoint(BFLOAT16, billions=8.2)
    experts = replace(checkpoint.linears[0], active=0.25)
    plan = make_plan(prior_facts("NVIDIA Tesla T4"), replace(checkpoint, linears=(experts,)))
    assert not [way for way in plan.ways if way.name.startswith("int")]
