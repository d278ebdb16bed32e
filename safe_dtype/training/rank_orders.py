"""What the ranks of one job were asked to train in, and what their devices were measured to do: one decision for all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from ..devices.memory import UNKNOWN_MEMORY
from ..devices.probing.probe_request import verdict_from_dict, verdict_to_dict
from ..facts import FLOAT32, DeviceFacts, Dtype, dtype_named
from ..planning import combine
from ..ranks import World, gather_texts
from .training_precision import TrainingPrecision, choose_precision


@dataclass(frozen=True, slots=True)
class TrainingOrder:
    """What one rank was asked for, and where it trains."""

    asked: Dtype
    device: DeviceFacts  # without verdicts, where it could not be measured
    scales_float16: bool = True

    def to_text(self) -> str:
        """Return it as a message to other ranks: what a decision takes, and no more."""
        device = self.device
        return json.dumps(
            {
                "asked": self.asked.name,
                "scales_float16": self.scales_float16,
                "device": [device.device, device.name, device.vendor],
                "verdicts": [verdict_to_dict(verdict) for verdict in device.verdicts],
            }
        )

    @classmethod
    def from_text(cls, text: str) -> TrainingOrder:
        """Read what `to_text` wrote."""
        values = json.loads(text)
        name, product, vendor = values["device"]
        verdicts = tuple(verdict_from_dict(verdict) for verdict in values["verdicts"])
        device = DeviceFacts(name, product, UNKNOWN_MEMORY, verdicts, vendor=vendor)
        return cls(dtype_named(values["asked"]), device, values["scales_float16"])


def orders_of(world: World | None, mine: TrainingOrder) -> tuple[TrainingOrder, ...]:
    """Return the orders of all ranks, in their order: `mine` alone where there are no others. Every rank calls it."""
    if world is None:
        return (mine,)
    return tuple(TrainingOrder.from_text(text) for text in gather_texts(world, mine.to_text()))


def decide_for_all(orders: Sequence[TrainingOrder], ladder: Sequence[Dtype] = ()) -> TrainingPrecision:
    """Return what all ranks train in: the same on each, for it depends on nothing else.

    Where they were asked for different dtypes, that is float32: gradients in several cannot be added up.
    """
    asked = {order.asked for order in orders}
    first = orders[0]
    if len(asked) > 1:
        reason = f"the ranks were asked for different dtypes ({', '.join(sorted(map(str, asked)))})"
        return TrainingPrecision(first.asked, FLOAT32, first.device.name, reason)
    device = combine([order.device for order in orders])
    scales = all(order.scales_float16 for order in orders)
    return choose_precision(first.asked, device, ladder=ladder, scales_float16=scales)
