"""Where a patched process connects with the other ranks of its job: it tells them of its device, and comes up after a restart."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch


def tell_devices_when_connected(is_on: Callable[[], bool]) -> Callable[[], None]:
    """Wrap `torch.distributed.init_process_group`, through which every rank passes; return what undoes it.

    A rank that loads a model later, alone or before the others, then knows their devices. Where the launcher keeps one store
    over restarts, as torchrun does by default, processes that come up again read nothing that those before have left in it
    (pytorch#135712). Nothing of both is done where `is_on` says no.
    """
    if not torch.distributed.is_available():
        return lambda: None
    original = torch.distributed.init_process_group

    @functools.wraps(original)
    def init_process_group(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **{**kwargs, **(_store_of_attempt(args, kwargs) if is_on() else {})})
        if torch.distributed.get_world_size() > 1 and is_on():
            from ..ranks import tell_devices  # imports the whole of transformers, which is here by now

            tell_devices()
        return result

    torch.distributed.init_process_group = init_process_group

    def undo() -> None:
        if torch.distributed.init_process_group is init_process_group:
            torch.distributed.init_process_group = original

    return undo


def _store_of_attempt(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a restarted process adds to a call that says no more than the environment does; else nothing.

    On several nodes it adds nothing: each of them counts its own restarts, so that they would not meet.
    """
    is_restarted = (os.environ.get("TORCHELASTIC_RESTART_COUNT") or "0") != "0"
    is_kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and os.environ.get("GROUP_WORLD_SIZE") == "1"
    says_where = len(args) > 1 or kwargs.get("init_method") not in (None, "env://")
    # accelerate passes both of these on CPUs, as the environment has them; -1 is torch's word for what is not said.
    says_who = any(
        str(kwargs.get(name.lower(), -1)) not in ("-1", os.environ.get(name)) for name in ("RANK", "WORLD_SIZE")
    )
    if not (is_restarted and is_kept) or says_where or says_who or kwargs.get("store") is not None:
        return {}
    from ..ranks.rendezvous import new_store  # imports the whole of transformers

    timeout = kwargs.get("timeout")
    return new_store(timeout.total_seconds()) if timeout else new_store()
