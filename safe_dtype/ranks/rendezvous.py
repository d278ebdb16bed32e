"""`init_process_group`: torch's, for processes that may be started again, with time limits that end."""

from __future__ import annotations

import os
from datetime import timedelta
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore

from ..errors import LaunchError
from .long_wait import long_wait
from .one_plan.board import store_of_launch
from .one_plan.started import tell_devices
from .world import World, attempt_prefix, current_world

SECONDS = 1800.0  # that a collective of the model waits: transformers' own default is two hours
_groups = count()  # what an earlier one has left in the store of a launcher must not be read again


def init_process_group(backend: str | None = None, *, seconds: float = SECONDS) -> World | None:
    """Connect the ranks of this job: torch's default process group, and beside it what safe_dtype needs.

    Call it on every rank, before the first model is loaded. Under `torchrun --max_restarts` processes that come up again do
    not read what those before have left in the store. Where a default group is there already, it stays as it is.

    Args:
        backend: Torch's name; None: gloo for the CPU, and beside it what torch uses for the accelerator that is here,
            as in "cpu:gloo,cuda:nccl".
        seconds: How long a collective waits for other ranks.

    Returns:
        The ranks; None in a job of one.

    Raises:
        LaunchError: If the launcher has left out a variable.
        PeerLostError: If not all ranks come.
        RuntimeError: If torch cannot connect them.
    """
    if not dist.is_initialized():
        size_said = os.environ.get("WORLD_SIZE") or "1"
        if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]:
            if size_said == "1":
                return None  # started without a launcher
            raise LaunchError(
                f"WORLD_SIZE is {size_said}, and {', '.join(missing)} not set",
                "start it with torchrun or `safe-dtype launch`",
            )
        _bind_device()
        with long_wait(seconds):
            dist.init_process_group(
                backend or backend_here(), timeout=timedelta(seconds=seconds), **new_store(seconds)
            )
    world = current_world()
    tell_devices()
    return world


def new_store(seconds: float = SECONDS) -> dict[str, Any]:
    """Return arguments of torch's `init_process_group`: this rank, all of them, and a store in which nothing is left.

    The environment is that of a launcher.
    """
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = store_of_launch(rank, size, address, port, seconds=seconds)
    return {"store": PrefixStore(f"{attempt_prefix()}/group {next(_groups)}", store), "rank": rank, "world_size": size}


def _bind_device() -> None:
    """Make the accelerator that the launcher gives this rank the current one, where the script has chosen none."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    local = os.environ.get("LOCAL_RANK", "")
    if accelerator is None or not local.isdecimal() or int(local) >= torch.accelerator.device_count():
        return
    if torch.accelerator.current_device_index() == 0:
        getattr(torch, accelerator.type).set_device(int(local))


def backend_here() -> str:
    """Return torch's backends for the devices that are here: gloo for the CPU, and that of the accelerator."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    backend = accelerator and dist.Backend.default_device_backend_map.get(accelerator.type)
    return f"cpu:gloo,{accelerator.type}:{backend}" if accelerator and backend else "gloo"
