"""What a model takes at the least, however it is spread: less room than that ends in an error, and not in a killed process."""

from __future__ import annotations

from dataclasses import dataclass

from ..devices import memory_of
from ..errors import NothingFitsError
from ..planning import Ground, Plan
from ..rendering.units import bytes_text
from .plan_request import checkpoint_for
from .request import Request


@dataclass(frozen=True, slots=True)
class JudgedSpread:
    """The verdict on weights that lie on disk until they are multiplied, as an error lists it."""

    candidate: str
    reason: str
    ground: Ground = Ground.MEMORY


def require_least_room(plan: Plan, request: Request) -> None:
    """Raise where main memory does not hold even the largest weight, which a step needs whole wherever the others are.

    How long the texts will be nobody knows, so keys, values and activations do not count. Other devices raise by themselves
    what they cannot hold; a process that takes too much main memory is ended by the system.

    Raises:
        NothingFitsError: With the bytes of every way that was looked at.
    """
    chosen = plan.chosen
    if chosen is None or chosen.ground is not Ground.MEMORY or plan.device_map is None or plan.device != "cpu":
        return
    memory = memory_of(plan.device, request.arguments.get("max_memory"))
    largest = max((one.numel for one in checkpoint_for(request).tensors), default=0) * plan.storage.itemsize
    if memory.has_room_for(largest):
        return
    why = f"its largest weight takes {bytes_text(largest)}, {bytes_text(memory.free_bytes)} are free"
    spread = JudgedSpread(f"{chosen.candidate}, device_map='auto'", why)
    raise NothingFitsError(plan.source, plan.device_name, (*plan.decisions, spread))
