"""A Trainer that has evaluated before it trains, on several ranks: it trains in DistributedDataParallel all the same."""

from __future__ import annotations

import logging
from typing import Any

from torch.nn.parallel import DistributedDataParallel

from ...ranks import is_first_rank

logger = logging.getLogger(__name__)

_PREPARED = "_is_accelerate_prepared"


def prepare_for_training(trainer: Any) -> None:
    """Have accelerate prepare a model for training that it has prepared for evaluation alone. To be called as `train()` begins.

    accelerate prepares no model twice, and `evaluate` or `predict` before `train` prepare it without DistributedDataParallel.
    Of transformers 5.23 and accelerate 1.15 each rank then trains a model of its own, without a word: after five steps the
    weights of two ranks differed.
    """
    accelerator, model = trainer.accelerator, trainer.model
    if not (accelerator.multi_device or accelerator.distributed_type.name == "MULTI_CPU"):
        return
    wrapped = getattr(trainer.model_wrapped, "_orig_mod", trainer.model_wrapped)
    is_reduced = isinstance(wrapped, DistributedDataParallel) or getattr(
        trainer, "is_distributed_loading_by_transformers", False
    )
    if is_reduced or not vars(model).get(_PREPARED, False):
        return
    del vars(model)[_PREPARED]
    trainer.model_wrapped = model
    if is_first_rank():
        logger.warning(
            "%s has evaluated before it trains: its model is put into DistributedDataParallel now, where transformers would "
            "have each rank train its own",
            type(trainer).__name__,
        )
