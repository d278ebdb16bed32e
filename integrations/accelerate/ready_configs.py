"""Configs that are ready to use: YAML files that are installed with the package, each written by `launch_config`."""

from __future__ import annotations

from pathlib import Path

from safe_dtype.devices.priors import prior_facts
from safe_dtype.errors import LaunchError

from .fleet import Engine, Fleet
from .launch_config import LaunchConfig, launch_config

_FOLDER = Path(__file__).resolve().parent / "configs"

# name -> devices by the names of the prior table, processes on a machine, machines, engine
_READY: dict[str, tuple[tuple[str, ...], int, int, Engine]] = {
    "one-t4": (("NVIDIA Tesla T4",), 1, 1, Engine.DDP),
    "v100s": (("NVIDIA Tesla V100",), 4, 1, Engine.DDP),
    "a100-or-h100-node": (("NVIDIA A100", "NVIDIA H100"), 8, 1, Engine.DDP),
    "t4s-and-a100s": (("NVIDIA Tesla T4", "NVIDIA A100"), 1, 2, Engine.DDP),
    # Not a newer CPU: float32 on one that has bf16 is slower, bf16 on one that lacks it is 10 times slower.
    "cpu-cluster": (("x86-64 CPU with AVX2",), 2, 2, Engine.DDP),
    "mac": (("Apple M2",), 1, 1, Engine.DDP),
    "fsdp2": (("NVIDIA A100", "NVIDIA H100"), 8, 1, Engine.FSDP2),
    "zero2": (("NVIDIA A100", "NVIDIA H100"), 8, 1, Engine.ZERO2),
    "zero3": (("NVIDIA A100", "NVIDIA H100"), 8, 1, Engine.ZERO3),
}


def ready_names() -> tuple[str, ...]:
    """Return the names of the ready configs."""
    return tuple(_READY)


def ready_config(name: str) -> LaunchConfig:
    """Return what the file of this name is written from.

    Raises:
        LaunchError: If there is none of this name.
    """
    if name not in _READY:
        raise LaunchError(f"There is no ready config {name!r}", f"use one of {', '.join(_READY)}")
    names, per_machine, machines, engine = _READY[name]
    return launch_config(Fleet(tuple(map(prior_facts, names)), per_machine, machines, engine))


def config_file(name: str) -> Path:
    """Return the installed file of the ready config `name`, for `accelerate launch --config_file`.

    Raises:
        LaunchError: If there is none of this name.
    """
    ready_config(name)
    return _FOLDER / f"{name}.yaml"


def write_ready_configs() -> None:
    """Write every file anew, in the tree that this module lies in."""
    for name in _READY:
        (_FOLDER / f"{name}.yaml").write_text(ready_config(name).as_yaml(), encoding="utf-8")
