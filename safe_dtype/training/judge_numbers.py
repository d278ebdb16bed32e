"""Are the numbers of a window fit for a step? Answered here alone, and where it costs least."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.amp.grad_scaler import OptState

from ..ranks import Vote


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a rank says of its part of a window, and why."""

    vote: Vote
    reason: str = ""
    is_loss_alone: bool = False  # the loss is not finite, and all gradients are


@dataclass(slots=True)
class Numbers:
    """What a loop has shown of a window's numbers. Nothing here waits for a device."""

    losses: list[torch.Tensor] = field(default_factory=list)  # whether each is finite
    norms: list[torch.Tensor] = field(default_factory=list)
    covered: set[int] = field(default_factory=set)  # ids of the parameters whose gradients are in a norm

    def add_loss(self, loss: torch.Tensor) -> None:
        """Note a loss of a micro-batch: gradients are others after its backward pass."""
        self.norms.clear()
        self.covered.clear()
        self.losses.append(torch.isfinite(loss.detach()).all())

    def add_norm(self, norm: torch.Tensor, parameters: Iterable[torch.Tensor]) -> None:
        """Note a norm that the loop has computed for clipping: where it is finite, so are the gradients."""
        self.norms.append(norm.detach())
        self.covered.update(map(id, parameters))


def judge(numbers: Numbers, optimizers: Sequence[torch.optim.Optimizer], scaler: Any, least_scale: float) -> Judgement:
    """Return OK where every loss and every gradient is finite. One wait for the device.

    In float16 the scaler looks at the gradients while it unscales them, which it would do in any case. Else the norm for
    clipping tells. What neither covers is read once.
    """
    if scaler is not None:
        return _judge_scaled(numbers, optimizers, scaler, least_scale)
    rest = [
        local_part(parameter.grad)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None and id(parameter) not in numbers.covered
    ]
    norms = [torch.isfinite(local_part(norm)) for norm in (*numbers.norms, *_norms(rest))]
    if _all([*numbers.losses, *norms]):
        return Judgement(Vote.OK)
    are_finite = _all(_finite_gradients(optimizers))  # squares overflow before the numbers do
    return _judged(numbers, are_finite=are_finite, has_optimizers=len(optimizers) > 0)


def _judge_scaled(
    numbers: Numbers, optimizers: Sequence[torch.optim.Optimizer], scaler: Any, least_scale: float
) -> Judgement:
    if scaler._scale is None and any(map(has_gradients, optimizers)):
        return Judgement(Vote.FALL_BACK, "the loss was not scaled: its backward pass is not that of the loop")
    _unscale(scaler, optimizers)
    are_finite = _are_found_finite(scaler, optimizers)
    if not are_finite and _all(numbers.losses):
        return _judge_overflow(scaler, least_scale)
    return _judged(numbers, are_finite=are_finite, has_optimizers=len(optimizers) > 0)


def judge_raised(
    numbers: Numbers, optimizers: Sequence[torch.optim.Optimizer], scaler: Any, least_scale: float
) -> Judgement | None:
    """Return what is wrong with the numbers so far of an attempt in which the program has raised; None where nothing is.

    Each rank looks at its own part: gradients that have their loss scale yet lose it by a collective where they are sharded.
    """
    are_finite = _all(_finite_gradients(optimizers)) and (scaler is None or _are_found_finite(scaler, optimizers))
    if not _all(numbers.losses) or are_finite:
        judged = _judged(numbers, are_finite=are_finite, has_optimizers=len(optimizers) > 0)
        return None if judged.vote is Vote.OK else judged
    return _judge_overflow(scaler, least_scale)


def _judge_overflow(scaler: Any, least_scale: float) -> Judgement:
    """Return RETRY where gradients that are not finite may be with half of their loss scale."""
    if scaler is None or (scale := scaler.get_scale()) * scaler.get_backoff_factor() < least_scale:
        return Judgement(Vote.FALL_BACK, "gradients are not finite")
    return Judgement(Vote.RETRY, f"gradients overflow with the loss scale {scale:g}")


def _judged(numbers: Numbers, *, are_finite: bool, has_optimizers: bool) -> Judgement:
    if not _all(numbers.losses):
        return Judgement(Vote.FALL_BACK, "the loss is not finite", is_loss_alone=are_finite and has_optimizers)
    return Judgement(Vote.OK) if are_finite else Judgement(Vote.FALL_BACK, "gradients are not finite")


def _unscale(scaler: Any, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    for optimizer in optimizers:
        if has_gradients(optimizer) and scaler._per_optimizer_states[id(optimizer)]["stage"] is OptState.READY:
            scaler.unscale_(optimizer)


def forget_gradients(models: Iterable[nn.Module], optimizers: Iterable[torch.optim.Optimizer], scaler: Any) -> None:
    """Have everything as before the passes of a window."""
    for model in models:
        for parameter in model.parameters():
            parameter.grad = None
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    forget_unscaled(scaler, optimizers)


def forget_unscaled(scaler: Any, optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Have the scaler, where there is one, take the next gradients of these optimizers for scaled ones."""
    for optimizer in optimizers:
        if scaler is not None:
            scaler._per_optimizer_states.pop(id(optimizer), None)


def has_gradients(optimizer: torch.optim.Optimizer) -> bool:
    """Whether any of its weights has one."""
    return any(p.grad is not None for group in optimizer.param_groups for p in group["params"])


def _are_found_finite(scaler: Any, optimizers: Sequence[torch.optim.Optimizer]) -> bool:
    states = (scaler._per_optimizer_states[id(optimizer)] for optimizer in optimizers)
    return _all([local_part(flag) == 0 for state in states for flag in state["found_inf_per_device"].values()])


def _finite_gradients(optimizers: Sequence[torch.optim.Optimizer]) -> list[torch.Tensor]:
    gradients = (p.grad for optimizer in optimizers for group in optimizer.param_groups for p in group["params"])
    return [torch.isfinite(local_part(gradient)).all() for gradient in gradients if gradient is not None]


def _norms(gradients: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [torch.nn.utils.get_total_norm(gradients)] if gradients else []


def local_part(tensor: Any) -> torch.Tensor:
    """Return this rank's part of a tensor: each looks at its own, and the vote unites them."""
    local: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local.coalesce().values() if local.is_sparse else local


def _all(flags: Sequence[torch.Tensor]) -> bool:
    if not flags:
        return True
    device = flags[0].device
    return bool(torch.stack([flag.reshape(()).to(device) for flag in flags]).all())
