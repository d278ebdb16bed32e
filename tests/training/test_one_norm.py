"""The norm that is computed for the vote is that which the Trainer clips by, and no other."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from safe_dtype.training.trainer.one_norm import OneNorm


def clipped(change: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the norm that a clipping returns after `change` of a weight, what it should be, and the gradient afterwards."""
    model, accelerator = nn.Linear(4, 1, bias=False), Accelerator(cpu=True)
    model.weight.grad = torch.full((1, 4), 3.0)
    norm = OneNorm(accelerator)
    norm.compute(model)
    change(model.weight)
    right = model.weight.grad.norm()
    return accelerator.clip_grad_norm_(model.parameters(), 1.0), right, model.weight.grad


def test_gradients_that_were_changed_since() -> None:
    """Where somebody has written to the gradients, or replaced them, they are clipped by their norm of now."""

    def replace(weight: nn.Parameter) -> None:
        weight.grad = torch.full((1, 4), 5.0)

    for change in (lambda _: None, lambda weight: weight.grad.mul_(2.0), replace):
        norm, right, gradient = clipped(change)
        assert torch.equal(norm, right)
        assert torch.allclose(gradient.norm(), torch.ones(()))


def test_clipping_of_the_program() -> None:
    """What the program itself has put in the place of accelerate's clipping is there again when a run has ended."""
    accelerator: Any = Accelerator(cpu=True)
    own = accelerator.clip_grad_norm_ = lambda *_: torch.zeros(())
    norm = OneNorm(accelerator)
    assert accelerator.clip_grad_norm_ is not own
    norm.remove()
    assert accelerator.clip_grad_norm_ is own
    assert "unscale_gradients" not in vars(accelerator)


def test_clipping_of_the_program_in_a_run() -> None:
    """It is that which clips, though the norm is known."""
    model, accelerator = nn.Linear(4, 1, bias=False), Accelerator(cpu=True)
    model.weight.grad = torch.full((1, 4), 3.0)
    accelerator.clip_grad_norm_ = lambda *_: torch.tensor(-1.0)
    norm = OneNorm(accelerator)
    norm.compute(model)
    assert accelerator.clip_grad_norm_(model.parameters(), 1.0) == -1.0
    assert torch.equal(model.weight.grad, torch.full((1, 4), 3.0))


def test_clipping_that_wraps_ours() -> None:
    """What the program puts around it in a run stays when that has ended, and clips as accelerate does."""
    model, accelerator = nn.Linear(4, 1, bias=False), Accelerator(cpu=True)
    norm = OneNorm(accelerator)
    inner = accelerator.clip_grad_norm_
    wrapper = accelerator.clip_grad_norm_ = lambda *given: inner(*given) + 1.0
    norm.remove()
    assert accelerator.clip_grad_norm_ is wrapper
    model.weight.grad = torch.full((1, 4), 3.0)
    assert accelerator.clip_grad_norm_(model.parameters(), 1.0) == 7.0
