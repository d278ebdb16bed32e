"""Adapters in float32 on a base in bfloat16: the last step down is one for the base, too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from safe_dtype import FLOAT32
from safe_dtype.training import PrecisionGuard, TorchLoop

PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)


class Adapted(nn.Module):
    """A frozen product and a trained one beside it, as LoRA has them."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(8, 8).to(torch.bfloat16).requires_grad_(requires_grad=False)
        self.down, self.up = nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the sum of both."""
        hidden = inputs.to(self.base.weight.dtype)
        return self.base(hidden).float() + self.up(self.down(hidden.float()))


class LacksBfloat16(TorchDispatchMode):
    """A device that has no product in 16 bits."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Refuse it as a CPU would."""
        dtype = args[0].dtype if func in PRODUCTS else torch.float32
        if dtype is not torch.float32:
            raise RuntimeError(
                f"\"addmm\" not implemented for '{ {torch.bfloat16: 'BFloat16', torch.float16: 'Half'}[dtype] }'"
            )
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("uses_accelerate", [False, True], ids=["torch", "accelerate"])
def test_the_base_is_computed_with_in_float32(uses_accelerate: bool) -> None:
    """Where no product in 16 bits is there, a window passes in float32, with the base as it was stored."""
    torch.manual_seed(0)
    model = Adapted()
    optimizer: Any = torch.optim.AdamW((model.down.weight, model.up.weight), lr=0.1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loop: Any = None
    if uses_accelerate:
        AcceleratorState._reset_state()
        GradientState._reset_state()
        loop = Accelerator(mixed_precision="bf16", cpu=True)
        called, optimizer = loop.prepare(model, optimizer)
        guard = PrecisionGuard(loop, called)
    else:
        called, loop = model, TorchLoop(model, optimizer)
        guard = PrecisionGuard(loop)
    for attempt in guard.attempts():
        with attempt:
            with LacksBfloat16(), loop.autocast():
                loss = called(torch.randn(4, 8)).square().mean()
            loop.backward(loss)
            optimizer.step()
    assert guard.dtype is FLOAT32
    assert torch.equal(model.base.weight, before["base.weight"])
    assert model.base.weight.dtype is torch.bfloat16
    assert not torch.equal(model.down.weight, before["down.weight"])
