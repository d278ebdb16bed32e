"""A part of a model computes in another dtype for a moment, and is the same objects again afterwards."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from guarding.generators import tiny

from safe_dtype.guarding.diagnosis import weights_in as module_under_test
from safe_dtype.guarding.diagnosis.weights_in import NoRoomError, weights_in
from safe_dtype.models.recast import recast

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
IDS = torch.arange(3, 9)[None]


def objects(model: Any) -> list[int]:
    """Return the identity of every tensor of a model, and how many hooks it has."""
    tensors = [
        id(one) for module in model.modules() for one in (*module._parameters.values(), *module._buffers.values())
    ]
    return [*tensors, sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in model.modules())]


@torch.no_grad()
@pytest.mark.parametrize("at_once", [2**30, 0], ids=["at-once", "one-by-one"])
def test_computes_in_float32(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives what a recast model gives, whole or module by module; then every object is in its place."""
    monkeypatch.setattr(module_under_test, "_AT_ONCE", at_once)
    model, wide = tiny(), tiny()
    recast(wide, {BF16}, FP32)
    before, narrow = objects(model), model(input_ids=IDS).logits
    with weights_in(model, {BF16, FP16}, FP32):
        assert torch.equal(model(input_ids=IDS).logits, wide(input_ids=IDS).logits)
    assert objects(model) == before
    assert model.config.dtype == copy.deepcopy(model).config.dtype
    assert torch.equal(model(input_ids=IDS).logits, narrow)


@torch.no_grad()
@pytest.mark.parametrize("at_once", [2**30, 0], ids=["at-once", "one-by-one"])
@pytest.mark.parametrize("how", [KeyboardInterrupt, RuntimeError])
def test_interrupted(how: type[BaseException], at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends the run, everything is put back."""
    monkeypatch.setattr(module_under_test, "_AT_ONCE", at_once)
    model = tiny()

    def end(module: Any, args: Any) -> None:
        raise how

    handle = model.model.layers[1].mlp.down_proj.register_forward_pre_hook(end)
    before = objects(model)
    with pytest.raises(how), weights_in(model, {BF16}, FP32):
        model(input_ids=IDS)
    assert objects(model) == before
    handle.remove()


def test_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the weights of one module do not fit it is refused with both numbers, and nothing has changed."""
    from safe_dtype.facts import MemoryFacts

    monkeypatch.setattr(module_under_test, "memory_of", lambda device: MemoryFacts(200, 100, "test"))
    model = tiny()
    before = objects(model)
    with pytest.raises(NoRoomError, match="100 are free"), weights_in(model, {BF16}, FP32):
        pass
    assert objects(model) == before
