"""A config file for `accelerate launch`: every setting with the reason for it. Imports neither torch nor accelerate."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from .fleet import Engine, Fleet, check_fleet
from .mixed_precision import mixed_precision_for

_WIDTH = 110

Value = str | int | bool | tuple["Setting", ...]


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of the file; several in one where `value` is a tuple."""

    name: str
    value: Value
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LaunchConfig:
    """A config of accelerate: the keys of its `ClusterConfig`, in order."""

    heading: tuple[str, ...]
    settings: tuple[Setting, ...]

    def as_yaml(self) -> str:
        """Return the file. Texts are quoted: a plain `no` would be read as False."""
        heading = [line for paragraph in self.heading for line in _comment(paragraph, "")]
        return "\n".join([*heading, "", *_lines(self.settings, "")]) + "\n"

    def as_dict(self) -> dict[str, object]:
        """Return the settings as plain values."""
        return _values(self.settings)


def launch_config(fleet: Fleet) -> LaunchConfig:
    """Return the config for `fleet`; the verdicts on its devices decide `mixed_precision`.

    Raises:
        LaunchError: If accelerate cannot launch it.
    """
    check_fleet(fleet)
    settings = [Setting("compute_environment", "LOCAL_MACHINE"), *_processes(fleet), _precision(fleet)]
    if fleet.vendor == "cpu":
        settings.append(Setting("use_cpu", value=True, reasons=("It also divides the cores among the processes.",)))
    if fleet.engine is Engine.FSDP2:
        settings.append(Setting("fsdp_config", _FSDP2))
    elif fleet.distributed_type == "DEEPSPEED":
        settings.append(Setting("deepspeed_config", _deepspeed(fleet)))
    return LaunchConfig(_heading(fleet), tuple(settings))


def _heading(fleet: Fleet) -> tuple[str, ...]:
    basis = "measured" if all(device.measured for device in fleet.devices) else "published facts, not measured"
    everywhere = " --machine_rank RANK --main_process_ip ADDRESS" if fleet.machines > 1 else ""
    lines = [
        f"accelerate launch, for {fleet}. Verdicts: {basis}.",
        f"Start: safe-dtype launch --config_file THIS_FILE{everywhere} train.py",
    ]
    if fleet.machines > 1:
        lines.append("... on every machine; RANK counts them from 0, and ADDRESS is that of machine 0.")
    if fleet.processes > 1:
        lines.append(
            "Restarts and the rendezvous are not in here: accelerate takes max_restarts from the command line alone, and "
            "ignores rdzv_backend and same_network in a file. `safe-dtype launch` passes them."
        )
    return tuple(lines)


def _processes(fleet: Fleet) -> Iterator[Setting]:
    reasons: tuple[str, ...] = ()
    if fleet.vendor == "cpu" and fleet.processes > 1:
        reasons = (
            "Of MULTI_CPU accelerate starts one process, unless mpirun is there. It starts all of them where it is told "
            "of GPUs, and they use the CPU with ACCELERATE_USE_CPU=true, which `safe-dtype launch` sets.",
        )
    elif fleet.vendor == "apple":
        reasons = ("A Mac has one GPU, and torch has no collectives between those of several Macs.",)
    yield Setting("distributed_type", fleet.distributed_type, reasons)
    yield Setting("num_machines", fleet.machines)
    yield Setting(
        "num_processes",
        fleet.processes,
        ("Of all machines together; accelerate starts equally many on each.",) if fleet.machines > 1 else (),
    )


def _precision(fleet: Fleet) -> Setting:
    precision = mixed_precision_for(fleet.devices)
    reasons = list(precision.reasons)
    if len(fleet.devices) > 1:
        reasons.append("Ranks in different dtypes exchange garbage without an error: the weakest device decides.")
    if precision.name == "fp16" and fleet.distributed_type != "DEEPSPEED":  # which keeps float32 weights itself
        reasons.append(
            "fp16 needs a loss scaler, and that needs weights in float32: from_pretrained(..., dtype='float32')."
        )
        if fleet.vendor == "apple":
            reasons.append("torch has a loss scaler for Macs from 2.8 on. M3 and later have bf16.")
    if precision.name == "bf16" and fleet.engine is Engine.FSDP2:
        reasons.append("FSDP2 reduces gradients in bf16 as well; its weights stay in float32.")
    return Setting("mixed_precision", precision.name, tuple(reasons))


_FSDP2 = (
    Setting("fsdp_version", 2),
    Setting("fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP", ("One block of the model is gathered at a time.",)),
    Setting(
        "fsdp_reshard_after_forward", value=True, reasons=("Frees each block after it ran; false is faster and larger.",)
    ),
    Setting("fsdp_state_dict_type", "SHARDED_STATE_DICT", ("Every process saves its own part.",)),
    Setting("fsdp_offload_params", value=False),
    Setting("fsdp_activation_checkpointing", value=False, reasons=("True, where activations do not fit.",)),
    Setting(
        "fsdp_cpu_ram_efficient_loading", value=False,
        reasons=("Every process reads the weights, as they are planned for its own device.",),
    ),
)  # fmt: skip


def _deepspeed(fleet: Fleet) -> tuple[Setting, ...]:
    stage = 3 if fleet.engine is Engine.ZERO3 else 2
    parts = "weights, gradients and optimizer states" if stage == 3 else "gradients and optimizer states"
    settings = [
        Setting("zero_stage", stage, (f"Divides {parts} among the processes.",)),
        Setting("gradient_accumulation_steps", 1),
        Setting("offload_optimizer_device", "none"),
        Setting("offload_param_device", "none"),
        Setting("zero3_init_flag", value=stage == 3),
    ]
    if stage == 3:
        settings.append(Setting("zero3_save_16bit_model", value=True, reasons=("Gathers the weights to save them.",)))
    if fleet.machines > 1:
        launcher = "Of DeepSpeed's launchers the only one that restarts what ended."
        settings.append(Setting("deepspeed_multinode_launcher", "standard", (launcher,)))
    return tuple(settings)


def _lines(settings: tuple[Setting, ...], indent: str) -> Iterator[str]:
    for setting in settings:
        for reason in setting.reasons:
            yield from _comment(reason, indent)
        if isinstance(setting.value, tuple):
            yield f"{indent}{setting.name}:"
            yield from _lines(setting.value, f"{indent}  ")
        else:
            yield f"{indent}{setting.name}: {json.dumps(setting.value, ensure_ascii=False)}"


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=f"{indent}# ",
        subsequent_indent=f"{indent}#   ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _values(settings: tuple[Setting, ...]) -> dict[str, object]:
    return {
        setting.name: _values(setting.value) if isinstance(setting.value, tuple) else setting.value
        for setting in settings
    }
