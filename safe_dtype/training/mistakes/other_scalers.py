"""A `GradScaler` of the program's own, in a loop that has one where it needs it: refused before it scales or drops a step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.amp import GradScaler

from ...errors import TrainingLoopError
from ..loop import Loop
from .watched_function import WatchedFunction

_STEP, _UNSCALE = WatchedFunction(GradScaler, "step"), WatchedFunction(GradScaler, "unscale_")


@contextmanager
def other_scalers_refused(loop: Loop) -> Iterator[None]:
    """Refuse in the block what scalers other than the loop's own are to do with its optimizers.

    Raises:
        TrainingLoopError: Where one would step, or take its scale from gradients. One that is not enabled may.
    """

    def look(scaler: Any, optimizer: Any, *_args: Any, **_kwargs: Any) -> None:
        own = getattr(optimizer, "optimizer", optimizer)  # inside of accelerate's
        if scaler.is_enabled() and scaler is not loop.scaler and any(own is one for one in loop.optimizers):
            raise TrainingLoopError(
                "a GradScaler of your own is in a guarded loop, which scales its loss itself where it is in float16, and "
                "runs a step again that such a scaler would leave out",
                "leave it out: `loop.backward(loss)`, with accelerate `accelerator.backward(loss)`, and `optimizer.step()`",
            )

    with _STEP.watched_by(look), _UNSCALE.watched_by(look):
        yield
