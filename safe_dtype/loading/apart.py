"""A checkpoint loaded beside the caller's own call, to be measured."""

from __future__ import annotations

from typing import Any

from ..devices.verdicts import measured_while_busy
from ..dtypes import Dtype
from ..facts import CheckpointFacts, DeviceFacts
from ..planning import Plan
from ..verifying import Checkpoint
from .one_at_a_time import one_at_a_time
from .request import Request
from .turn import with_plan

# What decides which kernels run, and what may overflow between them.
_HOW = ("attn_implementation", "experts_implementation")
# What decides where transformers finds the files, and nothing about how it loads them.
_WHERE = ("revision", "cache_dir", "token", "subfolder", "local_files_only", "trust_remote_code", "code_revision")


def can_be_loaded_apart(request: Request, device: DeviceFacts, checkpoint: CheckpointFacts) -> bool:
    """Whether the checkpoint can be loaded a second time by its name alone."""
    given = request.arguments
    return (
        request.source is not None
        and given.get("config") is None
        and given.get("state_dict") is None
        and given.get("gguf_file") is None
        and checkpoint.adapter is None
        and device.memory.limited_by != "ranks"  # each would ask for itself, and they might not agree
    )


def rates_are_sure(device: DeviceFacts) -> bool:
    """Whether the rates of the device are worth trusting: nothing else ran while they were measured."""
    return not any(measured_while_busy(one) for one in device.verdicts)


def apart(request: Request, device: DeviceFacts, plan: Plan) -> Checkpoint:
    """Return the request's checkpoint, on the device that is planned for."""
    where = {name: request.arguments[name] for name in _WHERE if request.arguments.get(name) is not None}
    return Checkpoint(str(request.source), device.device.partition(",")[0], where, how_it_runs(request, plan))


def how_it_runs(request: Request, plan: Plan) -> dict[str, Any]:
    """Return the arguments of the call that choose kernels, the plan's attention where the call names none."""
    found = {name: request.arguments[name] for name in _HOW if request.arguments.get(name) is not None}
    return {"attn_implementation": plan.attention, **found} if plan.attention else found


def load_apart(checkpoint: Checkpoint, dtype: Dtype) -> Any:
    """Load as plain transformers does, where it is patched, too."""
    with one_at_a_time(), with_plan():
        return checkpoint.load(dtype)
