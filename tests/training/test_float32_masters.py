"""Parameters of 16 bits under an optimizer: refused with the reason, and made float32."""

from __future__ import annotations

import pytest
import torch
from training.loops import Model

from safe_dtype.errors import HalfParametersError
from safe_dtype.training import PrecisionGuard, TorchLoop, float32_masters


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_pure_16_bit_is_refused_and_masters_are_offered(dtype: torch.dtype) -> None:
    """The guard says why, and float32_masters makes of the model what it asks for: no number changes."""
    model = Model().to(dtype)
    model.head.requires_grad_(requires_grad=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    model(torch.randn(4, 8, dtype=dtype)).sum().backward()
    optimizer.step()
    loop = TorchLoop(model, optimizer)
    with pytest.raises(HalfParametersError, match="float32_masters"):
        PrecisionGuard(loop)

    model = Model().to(dtype)
    model.head.requires_grad_(requires_grad=False)
    model.load_state_dict(dict(zip(dict(model.named_parameters()), before, strict=True)), strict=False)
    grown = float32_masters(model, optimizer)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert grown == 2 * sum(parameter.numel() for parameter in trained)
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    assert model.head.weight.dtype is dtype
    assert all(torch.equal(new, old.to(new.dtype)) for new, old in zip(model.parameters(), before, strict=True))
    assert {value.dtype for state in optimizer.state.values() for value in state.values()} == {torch.float32}
    PrecisionGuard(TorchLoop(model, torch.optim.AdamW(trained)))
