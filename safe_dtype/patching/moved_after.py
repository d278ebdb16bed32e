"""Where the library that loads a model moves it then: an argument of the library's own, not of `from_pretrained`."""

from __future__ import annotations

import sys
from typing import Any

import torch

from ..loading.request import device_name

# Functions that load a model, and move it to what their local variable `device` is. Each by module and name.
_MOVERS = (("transformers.pipelines", "pipeline"), ("sentence_transformers.base.model", "__init__"))


def device_moved_to() -> str | None:
    """Return torch's name of the device that a pipeline or SentenceTransformer, which loads now, was told to use.

    None: nobody names one. Looked up in the frames of this thread, since programs hold `pipeline` by name from before it
    could be wrapped.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if (frame.f_globals.get("__name__"), frame.f_code.co_name) in _MOVERS:
            return _named(frame.f_locals.get("device"))
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _named(device: Any) -> str | None:
    if not isinstance(device, int | str | torch.device):
        return None
    is_cpu = isinstance(device, int) and (device < 0 or not torch.accelerator.is_available())
    return "cpu" if is_cpu else device_name(device)
