"""States of optimizers that follow their parameters into another dtype."""

from __future__ import annotations

from collections.abc import Collection, MutableMapping
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.weak import WeakTensorKeyDictionary

from ...models.needed import Needed, changing

# Of parameters that changed: the dtypes that they have left.
_former: MutableMapping[torch.Tensor, frozenset[torch.dtype]] = WeakTensorKeyDictionary()
_ATTRIBUTE = "_safe_dtype_former"  # of a DTensor, which takes another dtype only where no weak reference is to it
_looked_at: WeakSet[Optimizer] = WeakSet()  # since a parameter changed last
_hook: Needed | None = None


def keep_optimizers(model: nn.Module, former: Collection[torch.dtype]) -> None:
    """Have every optimizer of `model` go on after its parameters left the dtypes in `former`.

    Parameters stay the same objects, so an optimizer still has them; but AdamW and others refuse a gradient that is in
    another dtype than their moments. These are cast when that optimizer makes its next step. Nobody tells which
    optimizers there are: a hook of torch's on all of them looks at each once, for as long as `model` lives.

    Args:
        model: The model, or a part of it, after its change.
        former: The dtypes that its parameters were in.
    """
    global _hook
    with changing():
        if _hook is None or _hook.is_out:
            _hook = Needed(register_optimizer_step_pre_hook(_cast_states).remove)
        _hook.add(model)
    for parameter in model.parameters():
        if parameter.dtype not in former:
            _note(parameter, frozenset(former) | _former_of(parameter))
    _looked_at.clear()


def _note(parameter: torch.Tensor, former: frozenset[torch.dtype]) -> None:
    if hasattr(parameter, "_local_tensor"):
        setattr(parameter, _ATTRIBUTE, former)
    else:
        _former[parameter] = former


def _former_of(parameter: torch.Tensor) -> frozenset[torch.dtype]:
    if hasattr(parameter, "_local_tensor"):
        return getattr(parameter, _ATTRIBUTE, frozenset())
    return _former.get(parameter, frozenset())


def _cast_states(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
    if optimizer in _looked_at:
        return
    _looked_at.add(optimizer)
    for parameter, state in list(optimizer.state.items()):
        former = _former_of(parameter)
        for name, value in state.items():
            # What an optimizer keeps in a dtype of its own, such as the count of its steps, stays in that.
            if isinstance(value, torch.Tensor) and value.dtype in former and value.dtype != parameter.dtype:
                state[name] = value.to(parameter.dtype)
