"""The rung between a smaller loss scale and float32: float16, with those products scaled that overflow."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ...ranks import Vote, World, gather_texts
from ..judge_numbers import Judgement
from .rescaled_products import Overflow, RescaledProducts


class RescaleRung:
    """Finds the products that overflow, on all ranks together.

    Where a window is not finite in float16, and a smaller loss scale no help, it runs once with all products scaled, and is
    not applied: from the largest numbers in that attempt every rank knows which of its products overflow. Those are
    scaled on all ranks, and the window runs again, with as much of the loss scale that it began with as the others allow.

    Args:
        products: Of the loop's models.
        world: The ranks.
        least_scale: Of the loss.
    """

    def __init__(self, products: RescaledProducts, world: World | None, least_scale: float) -> None:
        self.products = products
        self._world, self._least_scale = world, least_scale
        self._overflow: Overflow | None = None  # on this rank, in an attempt that was finite
        self._counts_gradients = False

    def is_taken(self, scaler: Any, has_room: Callable[[], bool]) -> bool:
        """Whether the next attempt shows which products overflow. Every rank has to call it.

        Args:
            scaler: Of the loss; None outside of float16, where the rung is not.
            has_room: Whether an attempt with all products scaled fits here.
        """
        if scaler is None or not self.products.can_be_scaled() or not all(self._of_all_ranks(has_room())):
            return False
        self._counts_gradients = scaler.get_scale() * scaler.get_backoff_factor() < self._least_scale
        self.products.watch()
        return True

    def judged(self, judgement: Judgement, reason: str) -> Judgement:
        """Return the vote on an attempt that was watched for `reason`: it is never applied."""
        if judgement.vote is not Vote.OK:
            self._overflow = None
            return judgement
        self._overflow = self.products.overflow(of_gradients=self._counts_gradients)
        return Judgement(Vote.RETRY, reason)

    def settle(self, scaler: Any, first_scale: float | None) -> tuple[str, ...] | None:
        """Scale what overflows on any rank, and return what was not scaled before. Every rank has to call it.

        None where gradients have overflowed all the same, outside of all products: a smaller loss scale is to be watched.

        Args:
            scaler: Of the loss.
            first_scale: What the window began with, where it was halved since.
        """
        everybodys = self._of_all_ranks(self._overflow and [self._overflow.names, self._overflow.room])
        if None in everybodys:
            return None
        before = self.products.names
        self.products.scale({*before, *(name for names, _ in everybodys for name in names)})
        if first_scale is not None and self.products.names != before:
            scaler.update(min(first_scale, scaler.get_scale() * 2.0 ** min(room for _, room in everybodys)))
        return tuple(name for name in self.products.names if name not in before)

    def _of_all_ranks(self, own: Any) -> list[Any]:
        if self._world is None:
            return [own]
        return [json.loads(text) for text in gather_texts(self._world, json.dumps(own))]
