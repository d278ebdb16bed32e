"""A rank that failed under FSDP2 (`fully_shard`) goes on with NaN through the collectives that are left in the window."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from .armed_poison import ArmedPoison, Arming
from .fsdp2 import forget_step

# For the others to come to the vote where this rank has raised: all may have done so, at the same place. Where they have
# not, they wait for this rank in a collective, and this one ends.
SECONDS_AFTER_AN_ERROR = 20.0


class ShardedSchedule:
    """The collectives of one model under FSDP2, which are in the middle of forward and backward.

    In the first windows after a start, a change of dtype and new shapes, an operation that fails for its dtype gives NaN in
    the place of raising; later ones are not watched, for which an operation costs nothing. What raises all the same is
    voted on where it raises on all ranks; on one alone it leaves the others waiting until the process ends.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._arming = Arming()
        self._poison = ArmedPoison()

    def sees(self, batches: Iterable[Any]) -> None:
        """Note the shapes of a window that is about to begin: what is new is armed."""
        self._arming.sees(tuple(_shapes(batches)))

    def begin(self) -> None:
        """Begin with nothing that has failed."""
        self._poison = ArmedPoison()

    def around(self) -> AbstractContextManager[Any]:
        """Return what is around the passes of a window: armed poison in the first ones, else nothing."""
        return self._poison if self._arming.is_due else nullcontext()

    def end(self, *, is_whole: bool) -> None:
        """Poison nothing more: the optimizer steps now, or the window begins anew."""
        self._poison.is_off = True
        if is_whole:
            self._arming.step_done()

    def backward_begins(self) -> None:
        """Nothing depends on it."""

    def backward_ended(self) -> None:
        """Nothing depends on it."""

    def program_ran(self) -> None:
        """Nothing depends on it."""

    def owes(self) -> bool:
        """Return no: what the others may wait for cannot be run without the model."""
        return False

    def hidden_error(self) -> Exception | None:
        """Return what an operation would have raised."""
        return self._poison.error

    def keep(self, error: BaseException) -> float:
        """Return for how long to wait for the others."""
        del error
        return SECONDS_AFTER_AN_ERROR

    def reset(self) -> None:
        """Bring FSDP2 to where a step begins, and arm again."""
        forget_step(self._model)
        self._arming.begin_anew()


def _shapes(batches: Iterable[Any]) -> Iterator[Any]:
    for value in tree_leaves([dict(batch) if hasattr(batch, "keys") else batch for batch in batches]):
        if isinstance(value, torch.Tensor):
            yield *value.shape, value.dtype
