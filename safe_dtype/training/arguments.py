"""What a program asks of accelerate and of the Trainer, made what the device was measured to train in.

accelerate takes the precision once, in the state that all Accelerators of a process share, from an argument or from the
environment; the Trainer hands its own there. So it is decided there. transformers refuses some orders before that.
"""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn

from ..devices import default_device
from ..devices.memory import UNKNOWN_MEMORY
from ..errors import DeviceError
from ..errors.warn import warn
from ..facts import BFLOAT16, FLOAT16, DeviceFacts
from ..planning import Policy
from ..ranks import current_world, failed_dtypes, is_first_rank
from .memory.fit_training import fit_trainer
from .rank_orders import TrainingOrder, decide_for_all, orders_of
from .switch_precision import DTYPE_OF_NAME, NAME_OF_DTYPE
from .training_precision import TrainingPrecision, measure_training, with_failed

_CHANGED = "_safe_dtype_changed"  # in the __dict__ of arguments whose precision is not what was asked for
_ENVIRONMENT = "ACCELERATE_MIXED_PRECISION"
# Engines that have the precision in their own configuration.
_ENGINES = {"ACCELERATE_USE_DEEPSPEED": "deepspeed_plugin", "ACCELERATE_USE_MEGATRON_LM": "megatron_lm_plugin"}


class _Here(threading.local):
    model: nn.Module | None = None  # that this thread makes an Accelerator for


_here = _Here()
_settled: dict[str, str] = {}  # what was asked of accelerate's state -> what it became


@contextmanager
def accelerating(trainer: Any) -> Iterator[None]:
    """Have the Accelerator that the block makes for `trainer` decide by the widths of its model, and tell its arguments."""
    outer, _here.model = _here.model, trainer.model if isinstance(trainer.model, nn.Module) else None
    try:
        yield
    finally:
        _here.model = outer
    args, name = trainer.args, trainer.accelerator.mixed_precision
    if name in DTYPE_OF_NAME and not getattr(trainer, "is_deepspeed_enabled", False):
        if args.bf16 or args.fp16:
            vars(args)[_CHANGED] = not (args.bf16 if name == "bf16" else args.fp16 and name == "fp16")
            args.bf16, args.fp16 = name == "bf16", name == "fp16"
        args.mixed_precision = name


def fit_before_training(trainer: Any) -> None:
    """Have a Trainer fit into memory that is about to train in another dtype than its arguments had asked for.

    Raises:
        TrainingDoesNotFitError: If nothing makes it fit.
    """
    is_shared = any(getattr(trainer, name, False) for name in ("is_deepspeed_enabled", "is_fsdp_enabled"))
    if vars(trainer.args).get(_CHANGED) and not is_shared:
        fit_trainer(trainer, DTYPE_OF_NAME[trainer.accelerator.mixed_precision])


def settle_arguments(args: Any, policy: Policy) -> None:
    """Change those `TrainingArguments` that transformers would refuse: bf16=True where no accelerator claims to have it.

    To be called before they are checked. A machine without an accelerator trains on its CPU, as it does without bf16.
    """
    from transformers.utils import is_torch_bf16_gpu_available, is_torch_xla_available

    if policy.mode == "strict" or not args.bf16 or args.use_cpu:
        return
    if is_torch_bf16_gpu_available() or is_torch_xla_available():
        return
    device = default_device()
    order = _order("bf16", device)
    if not order.device.verdicts:
        return
    choice = decide_for_all((order,), policy.ladder)
    args.use_cpu = device == "cpu"
    args.bf16, args.fp16 = choice.chosen == BFLOAT16, choice.chosen == FLOAT16
    vars(args)[_CHANGED] = not args.bf16
    if not is_first_rank():
        return
    if choice.is_as_asked:
        warn(f"bf16=True was asked for, and no accelerator is here: training on {choice.device}. Next: use_cpu=True")
    else:
        _tell("bf16=True", choice)


def settled_precision(mixed_precision: str | None, cpu: bool, others: Mapping[str, Any], policy: Policy) -> str | None:  # noqa: FBT001  (accelerate's own signature)
    """Return what accelerate's state is to be made with in the place of `mixed_precision`.

    Args:
        mixed_precision: What was asked for; None: whatever the environment says.
        cpu: Whether the CPU was asked for.
        others: The other arguments of the state, by name.
        policy: In strict mode nothing is changed.
    """
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import parse_flag_from_env

    if "_mixed_precision" in AcceleratorState._shared_state:
        # One more Accelerator: it gets what the first one got.
        asked = str(mixed_precision).lower()
        is_settled = _settled.get(asked) == AcceleratorState._shared_state["_mixed_precision"]
        return _settled[asked] if is_settled else mixed_precision
    _settled.clear()
    asked = (mixed_precision or os.environ.get(_ENVIRONMENT) or "no").lower()
    if asked not in DTYPE_OF_NAME or policy.mode == "strict" or _is_of_an_engine(others):
        return mixed_precision
    state = PartialState(cpu or parse_flag_from_env("ACCELERATE_USE_CPU"), **_of_process_group(others))
    world = current_world()
    if world is None and asked == "no":
        return mixed_precision
    choice = decide_for_all(orders_of(world, _order(asked, str(state.device))), policy.ladder)
    if choice.chosen == DTYPE_OF_NAME[asked]:
        return mixed_precision
    _settled[asked] = NAME_OF_DTYPE[choice.chosen]
    if state.is_main_process:
        _tell(f"mixed_precision={asked!r}", choice)
    return _settled[asked]


def _order(asked: str, device: str) -> TrainingOrder:
    model, facts = _here.model, DeviceFacts(device, device, UNKNOWN_MEMORY)
    if asked != "no":
        with suppress(DeviceError):  # what cannot be measured is left as it was ordered
            # What an earlier attempt of this job has failed in is no better than what is not there.
            facts = with_failed(measure_training(device, model), failed_dtypes(None, device, model))
    trained = [weight for weight in model.parameters() if weight.requires_grad] if model is not None else []
    return TrainingOrder(DTYPE_OF_NAME[asked], facts, not any(weight.dtype is torch.float16 for weight in trained))


def _is_of_an_engine(others: Mapping[str, Any]) -> bool:
    return any(
        others.get(plugin) is not None or os.environ.get(name, "").lower() == "true"
        for name, plugin in _ENGINES.items()
    )


def _of_process_group(others: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that are for torch.distributed, as accelerate's state tells them apart."""
    from accelerate.state import AcceleratorState

    own = inspect.signature(AcceleratorState.__init__).parameters
    return {name: value for name, value in others.items() if name not in own}


def _tell(order: str, choice: TrainingPrecision) -> None:
    scaled = " with a GradScaler" if choice.chosen == FLOAT16 else ""
    warn(
        f"{order} was asked for, and {choice.reason}. Training in {choice.chosen}{scaled}. "
        f"Next: ask for mixed_precision={NAME_OF_DTYPE[choice.chosen]!r}, or use the policy 'strict' to keep the order"
    )
