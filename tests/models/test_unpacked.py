"""Weights that the first forward would unpack are unpacked as a model is guarded."""

from __future__ import annotations

from typing import Any

import torch
from tiny_models import TINY
from torch import nn

from safe_dtype import guard, report
from safe_dtype.facts import BFLOAT16, FLOAT32
from safe_dtype.testing import fault

IDS = torch.arange(3, 10)[None]


def packed() -> tuple[Any, list[nn.Module]]:
    """Return a model that changes its weights in the first forward, as compressed-tensors has it, and a note of that."""
    torch.manual_seed(0)
    model: Any = TINY["qwen3"].make().eval().to(torch.bfloat16)
    unpacked: list[nn.Module] = []

    def unpack(module: Any, _args: Any) -> None:
        for weight in module.parameters():
            weight.data.mul_(1)  # written into: there is no copy of it
        module.ct_decompress_hook.remove()
        del module.ct_decompress_hook
        unpacked.append(module)

    model.ct_decompress_hook = model.register_forward_pre_hook(unpack)
    return model, unpacked


def test_a_fault_in_the_first_step() -> None:
    """The step can be repeated in another dtype, for nothing is unpacked in it."""
    model, unpacked = packed()
    guard(model)
    assert unpacked == [model]
    with fault(model, "model.layers.1.mlp.down_proj", "cublas") as put:
        model(input_ids=IDS)
    assert put.fired
    assert [(event.before, event.after) for event in report(model).events] == [(BFLOAT16, FLOAT32)]
    assert unpacked == [model]
