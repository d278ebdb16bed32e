"""What a guarded Trainer logs, and what its checkpoints hold."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ...facts import FLOAT16
from .training_record import TrainingRecord

logger = logging.getLogger(__name__)

_SCALER = "scaler.pt"  # as transformers names it


class PrecisionCallback(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Adds `precision`, `fallbacks` and `nonfinite_steps` to every row of losses."""

    def __init__(self, record: Callable[[], TrainingRecord], on_begin: Callable[[], None]) -> None:
        self._record, self._on_begin = record, on_begin

    def on_train_begin(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
        """Begin with a whole window: a run that was interrupted may have left a part of one."""
        self._on_begin()

    def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Say in which precision these steps were."""
        if logs is not None and "loss" in logs:
            row = self._record().for_logs
            logs.update(row)
            if state.log_history and "loss" in state.log_history[-1]:  # a subclass may keep its rows elsewhere
                state.log_history[-1].update(row)


def complete_checkpoint(trainer: Any, trial: Any, record: TrainingRecord) -> None:
    """Write `record`, the scaler in it, and leave a `scaler.pt` only where a plain run with these arguments reads it.

    To be called after each checkpoint of the Trainer, of `trial` in a search, and of a SIGTERM, which no callback is told of.
    """
    if not trainer.args.should_save:
        return
    folder = Path(trainer._get_output_dir(trial=trial))
    checkpoint = folder / f"{PREFIX_CHECKPOINT_DIR}-{trainer.state.global_step}"
    if not checkpoint.is_dir():  # rotated away, or saved elsewhere by a subclass
        return
    record.write(checkpoint)
    if not has_scaler(trainer.args):
        (checkpoint / _SCALER).unlink(missing_ok=True)


def has_scaler(args: Any) -> bool:
    """Whether a Trainer with these arguments has a scaler from the beginning, and so reads that of a checkpoint.

    Without one it fails on the file: `'NoneType' object has no attribute 'load_state_dict'`.
    """
    return bool(args.mixed_precision == "fp16" and args.device.type != "cpu")


def load_scaler(
    trainer: Any, checkpoint: str | None, record: TrainingRecord | None, original: Callable[..., Any]
) -> None:
    """Give the scaler of `trainer`, where it has one, the state that it had in the checkpoint."""
    scaler = trainer.accelerator.scaler
    if scaler is None:
        if checkpoint is not None and (Path(checkpoint) / _SCALER).exists():
            logger.info(
                "%s of %s is not used: this run is in %s", _SCALER, checkpoint, trainer.accelerator.mixed_precision
            )
    elif record is not None and record.precision == FLOAT16 and record.scaler:
        scaler.load_state_dict(dict(record.scaler))
    else:
        original(checkpoint)
