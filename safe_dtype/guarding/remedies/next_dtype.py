"""Bring the whole model into another dtype: the last remedy, and the one that every failure ends with."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...facts import FLOAT16, FLOAT32, Dtype
from ...models.block_layout import take_back
from ...models.islands import Island
from ...models.offloaded import on_disk
from ...models.recast import left_over, main_dtype, may_change, peak_growth, recast, refusal
from ...rescaling.folding.rounded_weights import RoundedWeights
from ..failure import FailureKind
from ..incident import Incident
from ..state import Guard, dtype_of, torch_dtype
from .attention import attention_as_it_is, leave_flash_attention
from .autocast import leave_callers_autocast
from .free_memory import require_free
from .optimizer_states import keep_optimizers
from .remedy import NotPossible


@dataclass(frozen=True)
class ChangeDtype:
    """Bring the whole model into another dtype."""

    dtype: Dtype
    changes_dtype = True

    def __str__(self) -> str:
        return self.dtype.name

    def apply(self, incident: Incident) -> int:
        """Recast in place; weights that lost bits when loaded are read again where that is possible."""
        guard, model = incident.guard, incident.model
        now, new = main_dtype(model), torch_dtype(self.dtype)
        former = {torch.bfloat16, torch.float16} if self.dtype == FLOAT32 else {now} - {None}
        former = {dtype for dtype in former if dtype is not None and dtype != new}
        if reason := refusal(model):
            raise NotPossible(reason)
        if reason := _too_wide(model, former, self.dtype):
            raise NotPossible(reason)
        require_free(peak_growth(model, former, new))
        if self.dtype == FLOAT32:
            incident.log.add(attention_as_it_is(model))
            leave_flash_attention(model)
        with RoundedWeights(model) as weights:
            changed = recast(model, former, new, original=weights.restored, log=incident.log)
            for name, dtype in on_disk(model):
                weights.leave(name, dtype)
        weights.tell()
        remaining = left_over(model, former, new)
        if not changed.tensors or remaining:
            raise NotPossible(f"it changed {changed.tensors} tensors and left {remaining} as they were")
        for hooks in list(_island_hooks(model)):
            incident.log.add(functools.partial(setattr, hooks, "outside", hooks.outside))
            hooks.outside_is_now(new)
        keep_optimizers(model, former)
        if self.dtype == FLOAT32 and incident.findings is not None and incident.findings.without_autocast:
            leave_callers_autocast(incident)
        guard.cast_from = guard.autocast = None
        take_back(model)
        guard.left |= former
        guard.left.discard(new)
        return changed.grown_bytes

    def undo(self, incident: Incident) -> None:
        """Leave it so: the way back would bring the failure back, and may lose bits."""


def propose(incident: Incident) -> Iterator[ChangeDtype]:
    """Yield the dtypes below the model's own on the ladder that this failure leaves open."""
    model, failure = incident.model, incident.failure
    main = main_dtype(model)
    now = dtype_of(main) if main is not None else None
    for dtype in dtypes_left(incident.guard, model):
        # float32 for a model in float32: parts of it, such as adapters, are in another dtype.
        if (dtype == failure.dtype and dtype != now) or (failure.allowed and dtype not in failure.allowed):
            continue
        if incident.findings is not None and not incident.findings.may_work(dtype):
            continue
        if failure.kind is FailureKind.NONFINITE and now is not None and dtype.largest < now.largest:
            continue
        yield ChangeDtype(dtype)


def dtypes_left(guard: Guard, model: nn.Module) -> Iterator[Dtype]:
    """Yield the dtypes that the whole model may go to, best first."""
    main = main_dtype(model)
    now = dtype_of(main) if main is not None else None
    mixed = any(weight.dtype in (torch.bfloat16, torch.float16) for weight in model.parameters())
    for dtype in guard.ladder():
        # float32 for a model in float32 that has parts in other dtypes brings them together.
        if torch_dtype(dtype) not in guard.left and (dtype != now or (dtype == FLOAT32 and mixed)):
            yield dtype


def _too_wide(model: nn.Module, former: set[torch.dtype], new: Dtype) -> str | None:
    if new != FLOAT16:
        return None
    for name, weight in model.named_parameters():
        # Codes of a quantizer reach what their scales say, in a class that need not know `amax`.
        if weight.dtype not in former or weight.is_meta or not may_change(weight):
            continue
        if weight.abs().amax().item() > FLOAT16.largest:
            return f"{name} holds numbers beyond {FLOAT16.largest:.0f}, where float16 ends"
    return None


def _island_hooks(model: nn.Module) -> Iterator[Any]:
    for module in model.modules():
        yield from (hook for hook in module._forward_hooks.values() if isinstance(hook, Island))
