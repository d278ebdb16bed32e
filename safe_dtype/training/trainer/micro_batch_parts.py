"""A micro-batch of a Trainer that runs in parts, one after the other, where it would not fit into memory as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ...errors.warn import warn
from ...ranks import is_first_rank
from ..memory.batch_rows import parts_of, rows_of, why_whole


class MicroBatchParts:
    """The parts of the micro-batches of one Trainer. One that has to run whole is warned of once."""

    def __init__(self) -> None:
        self._is_told = False

    def of(self, inputs: Any, parts: int) -> list[Any]:
        """Return a micro-batch in so many parts, or whole."""
        if parts < 2:
            return [inputs]
        whole = why_whole(inputs)
        if not whole:
            return parts_of(inputs, parts)
        if rows_of(inputs) > 1 and not self._is_told and is_first_rank():
            self._is_told = True
            warn(
                f"A micro-batch runs whole where {parts} parts of one would fit into memory: {whole}. Next: order smaller "
                "micro-batches, and as many more of them"
            )
        return [inputs]


def why_not_split(trainer: Any, inputs: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Return why a micro-batch of `trainer` cannot be run in parts whose losses add up to its own; nothing where it can.

    They do where the loss is that of the Trainer and of its model, a sum over tokens that is divided by those of the whole step.

    Args:
        trainer: The Trainer.
        inputs: What its `training_step` is called with.
        args: What else it is called with.
        kwargs: What else by name.
    """
    from transformers import Trainer

    kind, count = type(trainer), (*args, kwargs.get("num_items_in_batch"))[0]
    if kind.compute_loss is not Trainer.compute_loss or kind.training_step is not Trainer.training_step:
        return f"{kind.__name__} computes its loss itself, and losses of parts may not add up to it"
    if trainer.compute_loss_func is not None or trainer.label_smoother is not None:
        return "losses of parts may not add up to that of compute_loss_func, or with smoothed labels"
    if not trainer.model_accepts_loss_kwargs or count is None:
        return "the loss is the mean of a micro-batch, and not by the tokens of the whole step"
    if getattr(getattr(trainer.model, "config", None), "output_router_logits", False):
        return "the loss of the routers of its experts is that of a whole micro-batch"
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in trainer.model.modules()):
        return "batch normalization is over a whole micro-batch"
    return why_whole(inputs)
