"""Take a rescale back out of a model: its own weights, bit for bit, in a dtype that holds what it computes."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import nn

from ...devices import shortage
from ...errors.warn import warn
from ...facts import FLOAT16, FLOAT32, Dtype
from ...models import block_layout
from ...models.islands import Island, islands_in
from ...models.origin import known_origin
from ...models.recast import growth, kept_in_float32, main_dtype, recast
from ...models.shift_hooks import norms_in_float32
from .rescaled import Rescaled, forget_rescaled
from .rounded_weights import RoundedWeights

_LEFT = "_safe_dtype_left"  # in the __dict__ of the model, until its guard has read it


class _Departures:
    """How often models of this process have left their dtype so: whoever asks at every step asks this first."""

    count = 0


departures = _Departures()


def take_back(rescaled: Rescaled, cause: str, *, own: Collection[str] = ()) -> tuple[torch.dtype, torch.dtype] | None:
    """Undo the rescale in force, because the model is about to be changed or was; warn where it leaves float16 by that.

    Without its rescale the model may overflow in float16: it goes to the next dtype of its plan that has a wider range,
    else to float32. In strict mode, and without memory for it, it stays in float16.

    Args:
        rescaled: What is in force.
        cause: What happened, for the warning.
        own: Names of weights and numbers that somebody has written over: they stay as they are.

    Returns:
        The dtype that the model has left, and the one that it has gone to; None where it stays in its own.

    Raises:
        RescaleError: If the model has not what was rescaled any more.
    """
    model = rescaled.fold.model
    if not rescaled.rescale.shifts:
        return None
    name = type(model).__name__
    if main_dtype(model) != torch.float16:
        leave_for(rescaled, None, own=own)
        warn(f"{cause}: the rescaling of {name} is taken back, its weights are its own again")
        return None
    wider, reason = _wider(model)
    leave_for(rescaled, wider, own=own)
    text = f"{cause}: the rescaling of {name} is taken back, its weights are its own again"
    if wider is None:
        warn(f"{text}. It stays in float16, where it may overflow: {reason}")
        return None
    model.__dict__[_LEFT] = torch.float16
    departures.count += 1
    warn(f"{text}, and it goes on in {wider}. Next: to train it or put hooks on it, load it with dtype='{wider}'")
    return torch.float16, getattr(torch, wider.name)


def leave_for(rescaled: Rescaled, wider: Dtype | None, *, own: Collection[str] = ()) -> None:
    """Undo the rescale in force, and bring a model in float16 to `wider`; None: it stays in the dtype that it is in.

    Args:
        rescaled: What is in force.
        wider: With a wider range than float16.
        own: Names of weights and numbers that stay as they are.
    """
    fold, model = rescaled.fold, rescaled.fold.model
    fold.unread.keep()
    was_half = main_dtype(model) == torch.float16
    norms, others = list(norms_in_float32(model)), list(_wide_in_float16(model))
    if wider is not None:
        _recast(model, wider, own)
    fold.leave(own)
    fold.undo()
    forget_rescaled(model)
    if was_half:
        _settle(model, norms, others, getattr(torch, (wider or FLOAT16).name))


def dtype_left(model: nn.Module) -> torch.dtype | None:
    """Return the dtype that `model` has left since this was asked last, because its rescale was taken back."""
    left: torch.dtype | None = model.__dict__.pop(_LEFT, None)
    return left


def _wider(model: nn.Module) -> tuple[Dtype | None, str]:
    """Return the dtype to go on in; None where it has to stay in float16, and why."""
    origin = known_origin(model)
    if origin is not None and origin.plan.policy.mode == "strict":
        return None, "in strict mode no dtype is changed"
    ladder = origin.plan.ladder if origin is not None else ()
    problem = ""
    for dtype in (*(one for one in ladder if one.largest > FLOAT16.largest), FLOAT32):
        needed = growth(model, {torch.float16}, getattr(torch, dtype.name))
        problem = shortage({str(device): more for device, more in needed.items()}) or ""
        if not problem:
            return dtype, ""
    return None, f"{FLOAT32} {problem}"


def _recast(model: nn.Module, wider: Dtype, own: Collection[str]) -> None:
    with RoundedWeights(model) as weights:
        recast(
            model,
            {torch.float16},
            getattr(torch, wider.name),
            original=lambda name, present: None if name in own else weights.restored(name, present),
        )
    if known_origin(model) is not None:
        weights.tell()


def _wide_in_float16(model: nn.Module) -> Iterator[str]:
    """Yield what the class keeps in float32 in a model in float16, as T5 its `wo`; of islands nothing."""
    is_kept, islands = kept_in_float32(model, torch.float16), tuple(f"{name}." for name in islands_in(model))
    for name, parameter in model.named_parameters():
        if parameter.dtype == torch.float32 and is_kept(name) and not name.startswith(islands):
            yield name


def _settle(model: nn.Module, norms: Collection[str], others: Collection[str], dtype: torch.dtype) -> None:
    """Bring along what is in float32 only because the model around it was rescaled, or in float16."""
    in_float32 = kept_in_float32(model, dtype)
    for name in norms:
        parameter: Any = model.get_parameter(name)
        if not in_float32(name):
            parameter.data = parameter.data.to(dtype)
    for name in others:
        parameter = model.get_parameter(name)
        narrow = parameter.data.to(dtype)
        if not in_float32(name) and torch.equal(narrow.float(), parameter.data.float()):
            parameter.data = narrow
    for module in model.modules():
        for hook in module._forward_hooks.values():
            if isinstance(hook, Island):
                hook.outside_is_now(dtype)
    block_layout.take_back(model)
