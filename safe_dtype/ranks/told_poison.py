"""Poison that reaches the peers by itself: NaN in the next sum or gathering that the model makes with them anyway."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .armed_poison import ArmedPoison

# What gives every rank something of every other one. The input of the first kind is overwritten by the result; that of the
# others may be a weight, so a copy goes in its place.
_OVERWRITTEN = frozenset({"allreduce_", "allreduce_coalesced_", "all_reduce_", "all_reduce_coalesced_"})
_READ = frozenset({
    "all_reduce", "all_reduce_coalesced", "all_gather_into_tensor", "all_gather_into_tensor_coalesced",
    "reduce_scatter_tensor", "reduce_scatter_tensor_coalesced", "all_to_all_single",
})  # fmt: skip


class ToldPoison(ArmedPoison):  # type: ignore[no-untyped-call]
    """Armed poison for ranks that compute one result together, as under tensor parallelism.

    From the first failure on, the next collective takes NaN with it, so that all ranks see NaN in the results of the same
    step, and nobody has to ask. It stays armed until it was told.

    Attributes:
        is_told: Whether a collective has taken the latest failure to the peers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_told = False

    @property
    def is_waiting(self) -> bool:
        """Whether this rank has failed, and the others cannot have seen it yet."""
        return bool(self.poisoned) and not self.is_told

    def forget(self) -> None:
        """Begin anew: all ranks have settled what had failed."""
        self.poisoned, self.error, self.refusal, self.is_told = (), None, "", False

    def run_collective(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run it, with NaN where this rank has failed."""
        name = func._schema.name.rpartition("::")[2]
        if self.is_waiting and name in _OVERWRITTEN | _READ:
            first = args[0]
            args = (_spoiled(first) if name in _READ else _spoil(first), *args[1:])
            self.is_told = True
        return func(*args, **kwargs)


def _spoiled(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_spoiled(part) for part in value]
    is_number = isinstance(value, Tensor) and value.is_floating_point()
    return torch.full_like(value, math.nan) if is_number else value


def _spoil(value: Any) -> Any:
    for tensor in value if isinstance(value, list | tuple) else [value]:
        if tensor.is_floating_point():
            tensor.fill_(math.nan)
    return value
