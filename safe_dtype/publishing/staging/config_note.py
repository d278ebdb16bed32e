"""What is written down beside the figures: our key in config.json, the rescale, the device, the versions."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors
import torch
import transformers

from ...facts import COMPUTE, CheckpointFacts, DeviceFacts
from ...planning import Plan
from ...rescaling.folding.rescale_file import FILE as STORED
from ...rescaling.folding.rescale_file import KEY, NOTE, Stored, write_stored
from ...rescaling.for_plain import Folded


def note_in_config(folder: Path, needs: str | None) -> None:
    """Write our key into config.json: other tools keep it, and readers find there what the folder needs."""
    path = folder / "config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    config[KEY] = {"version": _version(), "needs": needs}
    if (folder / STORED).is_file():  # a base that was saved by us brings a note, and no file
        config[KEY][NOTE] = STORED
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8", newline="\n")


def store_rescue(folder: Path, plan: Plan, folded: Folded | None) -> None:
    """Write beside the weights what safe_dtype is to do to them, so that it is done without being measured again."""
    rescale = plan.rescale if folded is None else None
    if rescale or plan.islands:
        within = plan.chosen is not None and plan.chosen.accepted
        write_stored(Stored(rescale, plan.islands, plan.policy.max_drift if within else None), folder)


def rescale_to_dict(plan: Plan, folded: Folded | None) -> dict[str, Any] | None:
    """Return the moves, and whether the files hold them; None where nothing is rescaled."""
    if plan.rescale is None:
        return None
    if folded is None:
        return {**plan.rescale.to_dict(), "folded": False, "config": {}, "untied": False}
    return {
        **folded.rescale.to_dict(), "folded": True, "config": dict(folded.config), "untied": folded.untied,
    }  # fmt: skip


def bytes_of(facts: CheckpointFacts) -> int:
    """Return how many bytes the weights of a checkpoint take."""
    sizes = {one.name: one.itemsize for one in COMPUTE}
    return sum(one.numel * sizes.get(one.dtype, 1) for one in facts.tensors)


def device_to_dict(device: DeviceFacts) -> dict[str, Any]:
    """Return a device by its product's name, and what was found out about every dtype on it."""
    verdicts = [
        {"dtype": verdict.dtype.name, "op": verdict.op, "kind": str(verdict.kind), "reason": verdict.reason}
        for verdict in device.verdicts
    ]
    return {
        "name": device.name, "device": device.device, "capability": device.capability, "driver": device.driver,
        "verdicts": verdicts,
    }  # fmt: skip


def versions() -> dict[str, str]:
    """Return the versions that the figures are of."""
    return {
        "safe_dtype": _version(), "torch": torch.__version__, "transformers": transformers.__version__,
        "safetensors": safetensors.__version__, "python": sys.version.partition(" ")[0],
    }  # fmt: skip


def _version() -> str:
    return version("safe-dtype")
