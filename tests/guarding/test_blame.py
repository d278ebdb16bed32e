"""The module in which a step went wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from guarding.generators import DOWN, tiny
from torch import nn

from safe_dtype.guarding.blame import Blame, largest_finite, module_raising, module_spoiling, name_of
from safe_dtype.testing import fault

IDS = torch.arange(3, 9)[None]
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def test_module_raising() -> None:
    """The innermost module that ran when an exception was raised, not the models around it, nor one of another model."""
    model = tiny()
    with fault(model, DOWN, "cublas"), pytest.raises(RuntimeError) as caught:
        model(input_ids=IDS)
    assert module_raising(model, caught.value.__traceback__) is model.get_submodule(DOWN)
    assert module_raising(tiny(), caught.value.__traceback__) is None
    assert module_raising(model, None) is None


@torch.no_grad()
def test_module_spoiling() -> None:
    """The first module that makes NaN of numbers is found, with the largest number that went in; no hook stays."""
    model = tiny()
    inputs: list[torch.Tensor] = []
    down = model.get_submodule(DOWN)
    with fault(model, DOWN, "nan"), down.register_forward_pre_hook(lambda module, args: inputs.append(args[0])):
        hooks = [len(module._forward_hooks) for module in model.modules()]
        blame = module_spoiling(model, lambda: model(input_ids=IDS))
        assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert blame.module is down
    assert blame.largest_input == float(inputs[0].float().abs().max())


@torch.no_grad()
def test_results_that_are_numbered() -> None:
    """What a module returns may be named by numbers."""

    class Numbered(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[int, torch.Tensor]:
            return {0: x, 1: x / 0}

    model = Numbered()
    assert module_spoiling(model, lambda: model(torch.ones(1))).module is model


@torch.no_grad()
def test_nobody_is_blamed() -> None:
    """A sound step, a NaN that came from outside, and a step that raises this time have no module to blame."""
    model = tiny()
    assert module_spoiling(model, lambda: model(input_ids=IDS)) == Blame()
    poisoned = torch.full((1, 3, model.config.hidden_size), torch.nan, dtype=BF16)
    assert module_spoiling(model, lambda: model(inputs_embeds=poisoned)) == Blame()
    with fault(model, DOWN, "cublas"):
        assert module_spoiling(model, lambda: model(input_ids=IDS)) == Blame()


@pytest.mark.parametrize(
    ("value", "largest"),
    [
        (torch.tensor([1.0, -3.0, torch.inf, torch.nan]), 3.0),
        ([torch.tensor([1.0]), {"deeper": (torch.tensor([2.0], dtype=FP16),)}], 2.0),
        (torch.tensor([torch.nan]), None),
        (torch.tensor([7]), None),
        (torch.empty(0), None),
        ("text", None),
    ],
)
def test_largest_finite(value: Any, largest: float | None) -> None:
    """The largest finite size anywhere in the arguments; None where no floating number is finite."""
    assert largest_finite(value) == largest


def test_name_of() -> None:
    """A module is named as in `named_modules`, the model itself by its class."""
    model = tiny()
    assert name_of(model, model.get_submodule(DOWN)) == DOWN
    assert name_of(model, model) == type(model).__name__
    assert name_of(model, None) is None
