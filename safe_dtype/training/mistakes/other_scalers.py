"""A `GradScaler` of the program's own, in a loop that has one where it needs it: refused before it scales or drops a step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.amp import GradScaler

from ...errors import TrainingLoopError
from ..loop import Loop

_LOOKED_AT = ("step", "unscale_")  # each has the optimizer as its first argument


@contextmanager
def other_scalers_refused(loop: Loop) -> Iterator[None]:
    """Refuse in the block what scalers other than the loop's own are to do with its optimizers.

    Raises:
        TrainingLoopError: Where one would step, or take its scale from gradients. One that is not enabled may.
    """
    originals = {name: vars(GradScaler)[name] for name in _LOOKED_AT}
    for name, original in originals.items():
        setattr(GradScaler, name, _refusing(original, loop))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(GradScaler, name, original)


def _refusing(original: Callable[..., Any], loop: Loop) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(scaler: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        own = getattr(optimizer, "optimizer", optimizer)  # inside of accelerate's
        if scaler.is_enabled() and scaler is not loop.scaler and any(own is one for one in loop.optimizers):
            raise TrainingLoopError(
                "a GradScaler of your own is in a guarded loop, which scales its loss itself where it is in float16, and "
                "runs a step again that such a scaler would leave out",
                "leave it out: `loop.backward(loss)`, with accelerate `accelerator.backward(loss)`, and `optimizer.step()`",
            )
        return original(scaler, optimizer, *args, **kwargs)

    return call
