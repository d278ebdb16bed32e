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


def overflowing() -> Any:
    """Return a model in float16 whose second MLP goes beyond 65504."""
    model = generator(dtype=FP32)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight *= 300
        model.model.layers[1].mlp.gate_proj.weight *= 300
    recast(model, {FP32}, torch.float16)
    return model


def test_a_real_overflow() -> None:
    """Activations beyond 65504 make NaN in float16: the layer is named with its largest input; rescaled it is right."""
    plain, model = overflowing(), guard(overflowing())
    with torch.no_grad():
        assert not plain(**BOTH_ROWS).logits.isfinite().all()
    recast(plain, {torch.float16}, FP32)
    ours, right = generate(model, **BOTH_ROWS), generate(plain, **BOTH_ROWS)
    assert torch.equal(ours.tensors[0], right.tensors[0])  # the tokens
    for mine, truth in zip(ours.tensors[1:], right.tensors[1:], strict=True):
        torch.testing.assert_close(mine.float(), truth, rtol=0, atol=0.02)  # bfloat16 is off by 0.1
    (event,) = report(model).events
    assert (event.kind, event.before, event.after) == (FailureKind.NONFINITE, FLOAT16, FLOAT16)
    assert event.remedy == "an exact rescaling"
    assert event.module in ("model.layers.1.mlp", DOWN)
    assert event.largest_input is not None


def test_a_real_overflow_out_of_reach() -> None:
    """Where no rescaling reaches what overflows, all comes out of float32, bit for bit."""

    def made() -> Any:
        model = overflowing()
        model.model.layers[1].mlp = lossy(lambda hidden: hidden * 1e5)(model.model.layers[1].mlp)
        return model

    plain, model = made(), guard(made())
    recast(plain, {torch.float16}, FP32)
    assert generate(model, **BOTH_ROWS).differs(generate(plain, **BOTH_ROWS)) == []
    (event,) = report(model).events
    assert (event.kind, event.before, event.after) == (FailureKind.NONFINITE, FLOAT16, FLOAT32)
    assert event.module is not None
    assert event.module.startswith("model.layers.1.mlp")
