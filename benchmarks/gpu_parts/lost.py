"""A device-side assert in a guarded model: it ends in DeviceLostError; what a dtype is to blame for is planned around."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

from safe_dtype import SafeAutoModelForCausalLM, make_plan, read_checkpoint
from safe_dtype.devices import facts_of
from safe_dtype.errors import DeviceLostError
from safe_dtype.testing import fault

from .place import Place, Row, generate, prompt_of

MODEL = Path(__file__).resolve().parents[2] / "examples" / "tiny-qwen3"


def rows(place: Place) -> Iterator[Row]:
    """Yield how the process ends that loses its device, and what a later one decides."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"SAFE_DTYPE_CACHE": folder}
        for what in ("loses its device", "plans afterwards"):
            done = subprocess.run(
                [sys.executable, Path(__file__).resolve().parents[1] / "gpu.py", "--in-child", what, place.device],
                capture_output=True, text=True, check=False, env=environment,
            )  # fmt: skip
            lines = [*done.stdout.splitlines(), *done.stderr.splitlines()[-3:]]
            yield {"process": what, "exit_status": done.returncode, "output": lines}


def lose(place: Place) -> str:
    """Have the device assert in a guarded generation, and return what is raised."""
    model = SafeAutoModelForCausalLM.from_pretrained(MODEL, dtype="bfloat16", device_map=place.device)
    prompt = prompt_of(place, model, 4)
    if place.device != "cpu":
        prompt[0, 2] = model.config.vocab_size + 100_000  # beyond the embedding: its kernel asserts
    try:
        with fault(model, "model.layers.1.mlp.down_proj", "sticky") if place.device == "cpu" else nullcontext():
            generate(model, prompt, 8)
    except DeviceLostError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def plan_afterwards(place: Place) -> str:
    """Return what a process decides that starts after another has lost this device."""
    plan = make_plan(facts_of(place.device), read_checkpoint(str(MODEL)))
    return "; ".join(f"{decision.candidate}: {decision.reason}" for decision in plan.decisions)


CHILDREN = {"loses its device": lose, "plans afterwards": plan_afterwards}
