"""A checkpoint loaded beside the caller's own call, to be measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import transformers

from ...checkpoints.config import without_dtypes
from ...checkpoints.known_config import known_config
from ...devices import detect_one
from ...devices.probing.verdicts import measured_while_busy
from ...facts import BFLOAT16, CheckpointFacts, DeviceFacts, Dtype
from ...models.load_lock import one_at_a_time
from ...planning import Plan
from ...verifying import Checkpoint
from ..planned_once import already_planned
from ..quiet_load import no_progress_bar
from ..request import Request

# What decides which kernels run, and what may overflow between them.
KERNEL_ARGUMENTS = ("attn_implementation", "experts_implementation")
_ROOM = 1.1  # of the weights' bytes
# What decides where transformers finds the files, and nothing about how it loads them.
_WHERE = ("revision", "cache_dir", "token", "subfolder", "local_files_only", "trust_remote_code", "code_revision")


def can_be_loaded_apart(
    request: Request, device: DeviceFacts, checkpoint: CheckpointFacts, *, is_asked: bool = False
) -> bool:
    """Whether the checkpoint can be loaded a second time by its name alone. `is_asked`: for a dtype that is ordered."""
    arguments = request.arguments
    return (
        request.source is not None
        # An Auto class hands one on in a patched program, where nothing is rounded unless somebody asks for it.
        and (
            arguments.get("config") is None
            or ((request.ordered is not None or is_asked) and _is_its_own(arguments["config"], request))
        )
        and arguments.get("state_dict") is None
        and arguments.get("gguf_file") is None
        and checkpoint.adapter is None
        and device.memory.limited_by != "ranks"  # each would ask for itself, and they might not agree
    )


def room_for_a_copy(plan: Plan, device: DeviceFacts, checkpoint: CheckpointFacts) -> DeviceFacts | None:
    """Return where a second copy has room: the device that is planned for, else main memory; None where neither has.

    How large activations become does not depend on where they are computed. A device that is not here has the room that
    its plan says.
    """
    if not plan.device_map or not device.measured:
        return device
    return main_memory_for(device, checkpoint)


def main_memory_for(device: DeviceFacts, checkpoint: CheckpointFacts) -> DeviceFacts | None:
    """Return main memory where a copy that `device` has no room for fits into it; None where it is what has none."""
    if device.vendor == "cpu" or not device.measured:
        return None
    main = detect_one("cpu")
    needed = checkpoint.parameters * max(BFLOAT16.itemsize, checkpoint.saved.itemsize)
    return main if main.memory.has_room_for(needed * _ROOM) else None


def reads_text(checkpoint: CheckpointFacts) -> bool:
    """Whether the checkpoint's class takes text, as what is measured of it needs; one that is not known is taken to."""
    return read_in_place_of_text(checkpoint) is None


def read_in_place_of_text(checkpoint: CheckpointFacts) -> str | None:
    """Return the main input of the checkpoint's class where that is no text; None for a class that is not known."""
    model_class = getattr(transformers, checkpoint.architecture or "", None)
    name = getattr(model_class, "main_input_name", "input_ids")
    return None if name == "input_ids" else str(name)


def rates_are_sure(device: DeviceFacts) -> bool:
    """Whether the rates of the device are worth trusting: nothing else ran while they were measured."""
    return not any(measured_while_busy(one) for one in device.verdicts)


def second_copy_of(request: Request, device: DeviceFacts, plan: Plan) -> Checkpoint:
    """Return the request's checkpoint, on the device that is planned for."""
    return replace(second_copy_at(request, plan), device=device.device.partition(",")[0])


def second_copy_at(request: Request, plan: Plan) -> Checkpoint:
    """Return the request's checkpoint, on the device of the plan."""
    return Checkpoint(str(request.source), plan.device.partition(",")[0], _where(request), how_it_runs(request, plan))


def how_it_runs(request: Request, plan: Plan) -> dict[str, Any]:
    """Return the arguments of the call that choose kernels, the plan's attention where the call names none."""
    # An Auto class writes them into the config that it hands on.
    written = {name: getattr(request.arguments.get("config"), f"_{name}_internal", None) for name in KERNEL_ARGUMENTS}
    chosen = {
        name: implementation
        for name in KERNEL_ARGUMENTS
        if (implementation := request.arguments.get(name) or written[name]) is not None
    }
    return {"attn_implementation": plan.attention, **chosen} if plan.attention else chosen


def load_apart(checkpoint: Checkpoint, dtype: Dtype) -> Any:
    """Load as plain transformers does, also in a program where transformers is patched, without a progress bar."""
    with one_at_a_time(), already_planned(), no_progress_bar():
        return checkpoint.load(dtype)


def _where(request: Request) -> dict[str, Any]:
    return {name: request.arguments[name] for name in _WHERE if request.arguments.get(name) is not None}


def _is_its_own(config: Any, request: Request) -> bool:
    """Whether a config equals the checkpoint's own, dtypes apart: an Auto class hands that on."""
    if not isinstance(config, transformers.PreTrainedConfig):
        return False
    try:
        own = known_config(request.source, **_where(request))
    except (OSError, ValueError):
        return False
    return type(own) is type(config) and without_dtypes(own.to_dict()) == without_dtypes(config.to_dict())
