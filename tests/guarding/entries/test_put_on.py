"""Whichever way a model is entered, it is guarded: what its dtype cannot do is computed as in float32."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from guarding.entries.doors import DOORS

from safe_dtype import FLOAT32, guard, report
from safe_dtype.models.recast import recast
from safe_dtype.testing import fault

BF16, FP32 = torch.bfloat16, torch.float32


def tensors(output: Any) -> list[torch.Tensor]:
    """Return every tensor of an output, in order."""
    if isinstance(output, torch.Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output if isinstance(output, (tuple, list)) else ()
    return [tensor for value in values for tensor in tensors(value)]


@pytest.mark.parametrize("kind", ["not_implemented", "nan"])
@pytest.mark.parametrize("name", DOORS)
def test_every_door(name: str, kind: str) -> None:
    """A module that fails inside a method that is called by its name: the result is that of float32, once recovered."""
    door = DOORS[name]
    model = door.made()
    truth = copy.deepcopy(model)
    recast(truth, {BF16}, FP32)
    guard(model)
    with torch.no_grad(), fault(model, door.module, kind) as put:
        output = door.through(model)
        wanted = door.through(truth, FP32)
    assert put.fired
    (event,) = report(model).events
    assert event.after == FLOAT32
    assert model.get_submodule(event.module or "") is model.get_submodule(door.module)
    assert tensors(wanted)
    for mine, theirs in zip(tensors(output), tensors(wanted), strict=True):
        assert torch.equal(mine, theirs)
