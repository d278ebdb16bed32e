"""Where a patched process connects with the other ranks of its job, it tells them of its device."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch


def tell_devices_when_connected(is_on: Callable[[], bool]) -> Callable[[], None]:
    """Wrap `torch.distributed.init_process_group`, through which every rank passes; return what undoes it.

    A rank that loads a model later, alone or before the others, then knows their devices. Nothing is told where `is_on`
    says no.
    """
    if not torch.distributed.is_available():
        return lambda: None
    original = torch.distributed.init_process_group

    @functools.wraps(original)
    def init_process_group(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if torch.distributed.get_world_size() > 1 and is_on():
            from ..ranks import tell_devices  # imports the whole of transformers, which is here by now

            tell_devices()
        return result

    torch.distributed.init_process_group = init_process_group

    def undo() -> None:
        if torch.distributed.init_process_group is init_process_group:
            torch.distributed.init_process_group = original

    return undo
