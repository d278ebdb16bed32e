"""What `optimize` would try on this machine, and why not the rest: from facts alone, without running the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..checkpoints import read_checkpoint
from ..devices import default_device, detect_one
from ..facts import FLOAT32, Dtype, Where
from .attempts.dtype_axis import judged_dtypes
from .environment import environment, missing_for
from .nouns.goal import Goal
from .nouns.record import Form
from .order import IN_PIECES, WHOLE, forms_to_try

_ABOUT = {
    Form.EAGER: "as it is: what all others are held against",
    Form.EXPORT: "a program of torch.export, for this version of torch",
    Form.AOTI: "native code for this machine, from the exported program",
    Form.ONNX: "for onnxruntime, on any machine",
    Form.COMPILE: "torch.compile, as one graph; compiled again by whoever loads it",
    Form.REGIONAL: "torch.compile of the parts that capture, where the whole does not",
    Form.PARTIAL: "torch.compile, graph by graph, where the whole does not capture",
    Form.TORCHSCRIPT: "a trace: deprecated, and blind to branches; verified on other inputs",
}


@dataclass(frozen=True, slots=True)
class DryRun:
    """The ladder as it would be climbed."""

    model: str
    device: str
    dtypes: tuple[Dtype, ...]  # float32 first: what the others are held against
    rungs: tuple[tuple[Form, str], ...]  # each form with what it misses here; "" where it would be tried
    saved: Dtype
    parameters: int

    def as_text(self) -> str:
        """Return one line for each form, then the dtypes."""
        lines = [
            f"{self.model} (saved in {self.saved}, {self.parameters:,} parameters) on {self.device}, each form in {', '.join(str(one) for one in self.dtypes)}:"
        ]
        for number, (form, missing) in enumerate(self.rungs):
            about = f"not tried: it needs {missing}" if missing else _ABOUT[form]
            lines.append(f"  {number}  {form!s:<12}{about}")
        lines.append(
            "A form is tried in float32 first, and in 16 bit where it is right there and eager passes. "
            f"{', '.join(map(str, WHOLE[1:]))} need a model that captures as one graph, which is attempted before; "
            f"{' and '.join(map(str, IN_PIECES))} are for those that do not. Nothing was run or written."
        )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the same as plain values."""
        return {
            "schema": 1, "model": self.model, "device": self.device, "dtypes": [one.name for one in self.dtypes],
            "rungs": [{"form": str(form), "missing": missing} for form, missing in self.rungs],
            "saved": self.saved.name, "parameters": self.parameters,
        }  # fmt: skip


def dry_run(model: str, goal: Goal) -> DryRun:
    """Return what `optimize` would try for `model`. Reads headers and configs, never weights.

    Raises:
        CheckpointError: If there is no such model.
        NoSuchDeviceError: If there is no such device.
    """
    device = detect_one(goal.device).device if goal.device else default_device()
    checkpoint = read_checkpoint(Where(model, revision=goal.revision))
    facts = environment()
    wanted = judged_dtypes(goal, device)
    forms = forms_to_try(goal.form, torchscript=goal.torchscript)
    return DryRun(
        model, device, tuple(dict.fromkeys((FLOAT32, *wanted))),
        tuple((form, missing_for(form, facts, on_cpu=device == "cpu")) for form in forms),
        checkpoint.saved, checkpoint.parameters,
    )  # fmt: skip
