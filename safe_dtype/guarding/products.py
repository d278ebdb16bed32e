"""In which dtype a step computes its products: in the plan's compute dtype where it has enough rows for that to pay."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from ..numerics import compute_in
from .guard import Guard

# Tensors beside what a step computes on.
_BESIDE = ("mask", "position", "past", "cache", "labels")


def in_planned_dtype(
    guard: Guard, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Callable[..., Any]:
    """Return `forward`, or where the plan says so for as many rows as it is given, `forward` inside `compute_in`.

    A step that the plan leaves in the storage dtype costs one comparison.
    """
    start, plan = guard.cast_from, guard.plan
    if start is None or plan is None or rows_of(args, kwargs) < start:
        return forward

    def computed(*args: Any, **kwargs: Any) -> Any:
        if guard.cast_from is None:  # the model has left the dtype that the plan was for
            return forward(*args, **kwargs)
        with compute_in(plan.compute, when=lambda _family, rows: rows >= start):
            return forward(*args, **kwargs)

    return computed


def rows_of(args: Iterable[Any], kwargs: dict[str, Any]) -> int:
    """Return how many rows the products of a call will have: the positions in its largest input."""
    given = [*args, *(value for name, value in kwargs.items() if not any(word in name for word in _BESIDE))]
    return max((_rows(one) for one in given if isinstance(one, torch.Tensor)), default=0)


def _rows(tensor: torch.Tensor) -> int:
    if not tensor.is_floating_point():
        return tensor.numel()
    return tensor.numel() // tensor.shape[-1] if tensor.dim() and tensor.shape[-1] else 0
