"""What is called with the wrong thing says so at once, and what to pass in its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn

import safe_dtype
from safe_dtype import BFLOAT16, FLOAT32, PrecisionGuard, TorchLoop, attach, float32_masters

LAYER = nn.Linear(4, 1)
SGD = torch.optim.SGD(LAYER.parameters())


def loop(**settings: Any) -> TorchLoop:
    """Return what is right."""
    return TorchLoop(LAYER, SGD, **settings)


def accelerator() -> Accelerator:
    """Return one of its own."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    return Accelerator(cpu=True)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: attach(LAYER), TypeError, r"attach takes a Trainer.*not a Linear.*Next: .*PrecisionGuard"),
        (lambda: attach(safe_dtype.Policy()), TypeError, "attach takes a Trainer.*not a Policy"),
        (lambda: attach(nn.Module), TypeError, "attach takes a Trainer.*not a type"),
        (lambda: PrecisionGuard(LAYER), TypeError, r"not a Linear. Next: .*PrecisionGuard\(TorchLoop\(model, optimizer\)\)"),
        (lambda: PrecisionGuard(SGD), TypeError, "Accelerator or a TorchLoop.*not a SGD"),
        (lambda: PrecisionGuard(None), TypeError, "Accelerator or a TorchLoop.*not None"),
        (lambda: PrecisionGuard(accelerator(), [LAYER]), TypeError, r"not a list. Next: .*PrecisionGuard\(accelerator, model\)"),
        (lambda: PrecisionGuard(accelerator(), SGD), TypeError, r"not a SGD. Next: .*PrecisionGuard\(accelerator, model\)"),
        (lambda: PrecisionGuard(loop(), ladder=("bf16", "fp32")), TypeError, r"'bf16'. Next: .*safe_dtype.BFLOAT16"),
        (lambda: PrecisionGuard(loop(), ladder=[torch.bfloat16]), TypeError, r"torch.bfloat16. Next: .*safe_dtype.BFLOAT16"),
        (lambda: PrecisionGuard(loop(), ladder="bf16>fp32"), TypeError, r"'bf16>fp32'. Next: .*safe_dtype.BFLOAT16"),
        (lambda: PrecisionGuard(loop(), ladder=BFLOAT16), TypeError, r"ladder.*\(safe_dtype.BFLOAT16,"),
        (lambda: PrecisionGuard(loop(), ladder=()), ValueError, "begins in bfloat16.*ladder.*Next: "),
        (lambda: PrecisionGuard(loop(), ladder=(FLOAT32,)), ValueError, r"begins in bfloat16.*\(float32\). Next: "),
        (lambda: PrecisionGuard(loop(), ladder=(BFLOAT16, safe_dtype.INT8)), ValueError, "Nothing is trained in int8"),
        (lambda: PrecisionGuard(loop(), least_scale=0.0), ValueError, "least_scale.*above 0.*not 0.0"),
        (lambda: PrecisionGuard(loop(), least_scale="1"), TypeError, "least_scale.*not '1'"),
        (lambda: PrecisionGuard(accelerator(), LAYER, init_scale=-1.0), ValueError, "init_scale.*above 0.*not -1.0"),
        (lambda: loop(init_scale=float("inf")), ValueError, "init_scale.*not inf"),
        (lambda: loop(init_scale=None), TypeError, "init_scale.*not None"),
        (lambda: loop(dtype=torch.bfloat16), TypeError, r"dtype.*torch.bfloat16. Next: .*'bfloat16'"),
        (lambda: loop(dtype="int8"), ValueError, "Training begins in int8.*bfloat16, float16, float32"),
        (lambda: loop(dtype="float12"), ValueError, "No dtype is called 'float12'. Next: "),
        (lambda: TorchLoop(LAYER, LAYER.parameters()), TypeError, r"optimizer.*not a generator. Next: .*TorchLoop\(model, optimizer\)"),
        (lambda: TorchLoop(SGD, LAYER), TypeError, r"model.*not a SGD. Next: .*TorchLoop\(model, optimizer\)"),
        (lambda: TorchLoop([LAYER, SGD], SGD), TypeError, "model.*not a SGD"),
        (lambda: TorchLoop(LAYER, []), ValueError, "no optimizer"),
        (lambda: float32_masters(SGD), TypeError, r"not a SGD. Next: .*float32_masters\(model, optimizer\)"),
        (lambda: float32_masters(LAYER, LAYER.parameters()), TypeError, "optimizer.*not a generator"),
        (lambda: next(PrecisionGuard(loop()).windows(5)), TypeError, "batches.*not 5|iterable"),
        (lambda: next(PrecisionGuard(loop()).windows([1], "2")), TypeError, "micro-batches.*not '2'"),
        (lambda: PrecisionGuard(loop()).load_state_dict(None), TypeError, "state.*not None"),
        (lambda: PrecisionGuard(loop()).load_state_dict({"dtype": "float16", "rescaled": None}), TypeError, "names, not None"),
        (lambda: PrecisionGuard(loop()).rescale("lm_head"), TypeError, r"not 'lm_head'. Next: guard.rescale\(\['lm_head'\]\)"),
        (lambda: PrecisionGuard(loop()).rescale([LAYER]), TypeError, "names, not a Linear"),
        (lambda: PrecisionGuard(loop()).rescale(None), TypeError, "layers.*names, not None"),
    ],
)  # fmt: skip
def test_says_what_to_pass(call: Callable[[], Any], error: type[Exception], text: str) -> None:
    """Where it is called, and not with an AttributeError somewhere inside."""
    with pytest.raises(error, match=f"(?s){text}"):
        call()
