"""What a guard knows of the memory of its steps: its first one is looked at before it is made, and so is a step down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from ...devices.memory import limits_of
from ...facts import FLOAT32, Dtype
from ...ranks import World
from ...ranks.fsdp2 import is_sharded
from ..ladder import LADDER
from ..loop import Loop
from .first_step import look_at_first_step
from .fit_step_down import NOT_OURS, fit_step_down, has_room
from .model_call import LatestCall, ModelCall


class StepMemory:
    """Whether the steps of one guard fit into memory.

    Of weights that ranks share out nobody knows how much of them a step holds at once: those are not looked at.

    Args:
        loop: Of the guard.
        world: Its ranks.
        max_memory: Bytes that this process may hold, by device, as accelerate takes them.

    Attributes:
        parts: In how many parts the caller is to run each micro-batch.
        accumulation: Micro-batches in one step.
        why_not_split: Returns why the caller cannot run a micro-batch in parts; nothing where it can.

    Raises:
        ValueError: If `max_memory` is no table of sizes.
    """

    def __init__(self, loop: Loop, world: World | None, max_memory: Mapping[Any, Any] | None) -> None:
        self._loop, self._world, self._max_memory = loop, world, limits_of(max_memory)
        self._is_followed = not any(map(is_sharded, loop.models))
        self._latest, self._has_stepped = LatestCall(loop.models, self._look), False
        self.parts = self.accumulation = 1
        self.why_not_split: Callable[[], str] = lambda: NOT_OURS

    def around(self, dtype: Dtype) -> list[AbstractContextManager[None]]:
        """Return what is to be around an attempt in `dtype`."""
        needs_calls = self._is_followed and (dtype != FLOAT32 or self._latest.is_looked_for)
        return [self._latest.noted()] if needs_calls else []

    def window_ended(self, *, has_stepped: bool) -> None:
        """Let go of the inputs of a window that is through, with a step or without."""
        self._has_stepped |= has_stepped
        self._latest.forget()

    def fit(self, call: ModelCall | None = None) -> None:
        """Have a step in the dtype of now fit, before it is made, on every rank: with these inputs, or those of the last attempt.

        Raises:
            TrainingDoesNotFitError: If nothing makes it fit, on any rank.
        """
        self._latest.look_no_more()
        call = (call or self._latest.call) if self._is_followed else None
        parts = fit_step_down(
            call, self._loop.dtype, self._loop.optimizers, world=self._world, max_memory=self._max_memory,
            why_not_split=self.why_not_split, has_stepped=self._has_stepped, accumulation=self.accumulation,
        )  # fmt: skip
        self.parts = max(self.parts, parts)

    def has_room(self) -> bool:
        """Whether a step in float32 would fit on this rank as it is."""
        call, optimizers = self._latest.call, self._loop.optimizers
        return has_room(call, FLOAT32, optimizers, self._max_memory, has_stepped=self._has_stepped)

    def _look(self, call: ModelCall) -> None:
        dtype = self._loop.dtype
        others = [other for other in LADDER if other != dtype]
        look_at_first_step(
            call, dtype, others, self._loop.optimizers, max_memory=self._max_memory, accumulation=self.accumulation
        )
