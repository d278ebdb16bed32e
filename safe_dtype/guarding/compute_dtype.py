"""In which dtype a step computes: in the plan's compute dtype where it has enough rows, under autocast where it must."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch

from ..numerics import compute_in
from .state import Guard

# Arguments that a step does not multiply by weights, by a part of their name.
_BESIDE = ("mask", "position", "past", "cache", "labels")


def as_planned(
    guard: Guard, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Callable[..., Any]:
    """Return `forward`, or where the plan or a remedy says so for this call, `forward` in another compute dtype.

    A step that computes in the dtype of its weights costs three comparisons.
    """
    start = guard.cast_from
    if guard.autocast is None and guard.override is None and (start is None or rows_of(args, kwargs) < start):
        return forward

    def computed(*args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            if guard.override is not None:
                stack.enter_context(guard.override.in_force())
            if guard.autocast is not None:
                stack.enter_context(torch.autocast(*guard.autocast))
            # Asked again: meanwhile the model may have left the dtype that the plan was for.
            elif guard.plan is not None and guard.cast_from is not None and rows_of(args, kwargs) >= guard.cast_from:
                least = guard.cast_from
                stack.enter_context(compute_in(guard.plan.compute, when=lambda _family, rows: rows >= least))
            return forward(*args, **kwargs)

    return computed


def rows_of(args: Iterable[Any], kwargs: dict[str, Any]) -> int:
    """Return how many rows the products of a call will have: the positions in its largest input."""
    named = [(name, value) for name, value in kwargs.items() if not any(word in name for word in _BESIDE)]
    inputs = [*(("", value) for value in args), *named]
    return max((_rows(name, value) for name, value in inputs if isinstance(value, torch.Tensor)), default=0)


def _rows(name: str, tensor: torch.Tensor) -> int:
    if not tensor.is_floating_point():
        return tensor.numel()
    rows = tensor.numel() // tensor.shape[-1] if tensor.dim() and tensor.shape[-1] else 0
    # The last dimension of a wave (batch, samples) is time: convolutions make rows of it.
    is_wave = rows == tensor.shape[0] if tensor.dim() > 1 else False
    return tensor.numel() if is_wave and "embed" not in name else rows
