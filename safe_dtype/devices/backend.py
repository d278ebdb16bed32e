"""torch's module of a kind of device ("cuda", "npu"), asked for what not every plugin has or can answer."""

from __future__ import annotations

from typing import Any

import torch

# What a lost device raises (torch 2.8 and later): it answers nothing more, which is no answer to any question.
_LOST: tuple[type[Exception], ...] = tuple(
    error for error in (getattr(torch, "AcceleratorError", None),) if error is not None
)


def answer_of(kind: str, question: str, *args: object) -> Any | None:
    """Return what `torch.<kind>.<question>(*args)` does; None where there is no such function, or it cannot answer.

    `kind` may be "accelerator": what torch asks of every kind, of which older versions have less.

    Raises:
        torch.AcceleratorError: If the device is lost.
    """
    ask = getattr(getattr(torch, kind, None), question, None)
    if ask is None:
        return None
    try:
        return ask(*args)
    except _LOST:
        raise
    except (AttributeError, RuntimeError):  # NotImplementedError too: XPU under WSL2 cannot tell its free memory
        return None
