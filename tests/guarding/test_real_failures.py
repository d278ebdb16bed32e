"""No fault is put in: kernels that torch does not have, and numbers that float16 does not hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from guarding.generators import BOTH_ROWS, DOWN, generate, generator
from torch import nn

from safe_dtype import FLOAT16, FLOAT32, guard, report
from safe_dtype.guarding import FailureKind
from safe_dtype.models.recast import recast

BF16, FP32 = torch.bfloat16, torch.float32


def lossy(operation: Callable[[torch.Tensor], torch.Tensor]) -> type[nn.Module]:
    """Return an MLP that also does `operation`."""

    class Lossy(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return self.inner(hidden) + 0 * operation(hidden)

    return Lossy


REAL = {
    "fft": lossy(lambda hidden: torch.fft.fft(hidden).real),
    "cdist": lossy(lambda hidden: torch.cdist(hidden, hidden).sum(-1, keepdim=True)),
    "inverse": lossy(lambda hidden: torch.linalg.inv(torch.eye(32, dtype=hidden.dtype))[0]),
    "float8": lossy(
        lambda hidden: (hidden.to(torch.float8_e4m3fn) + 1 if hidden.dtype == BF16 else hidden).to(hidden)
    ),
}


@pytest.mark.parametrize("name", REAL)
def test_kernels_that_are_not_there(name: str) -> None:
    """Operations that torch really has no 16-bit kernel for: no fault is put in, and all comes out in float32."""

    def made() -> Any:
        model = generator()
        model.model.layers[1].mlp = REAL[name](model.model.layers[1].mlp)
        return model

    plain, model = made(), guard(made())
    recast(plain, {BF16}, FP32)
    assert generate(model, **BOTH_ROWS).differs(generate(plain, **BOTH_ROWS)) == []
    (event,) = report(model).events
    assert (event.kind, event.step, event.after) == (FailureKind.OP_UNSUPPORTED, 0, FLOAT32)
    assert event.module == "model.layers.1.mlp"


def test_a_real_overflow() -> None:
    """Activations beyond 65504 make NaN in float16: the layer is named with its largest input, float32 is right."""

    def made() -> Any:
        model = generator(dtype=FP32)
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight *= 300
            model.model.layers[1].mlp.gate_proj.weight *= 300
        recast(model, {FP32}, torch.float16)
        return model

    plain, model = made(), guard(made())
    with torch.no_grad():
        assert not plain(**BOTH_ROWS).logits.isfinite().all()
    recast(plain, {torch.float16}, FP32)
    assert generate(model, **BOTH_ROWS).differs(generate(plain, **BOTH_ROWS)) == []
    (event,) = report(model).events
    assert (event.kind, event.before, event.after) == (FailureKind.NONFINITE, FLOAT16, FLOAT32)
    assert event.module in ("model.layers.1.mlp", DOWN)
    assert event.largest_input is not None
