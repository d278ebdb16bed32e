"""What `optimize` would try on this machine, and why it would skip the rest. The model is not run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..checkpoints import read_checkpoint
from ..devices import default_device, detect_one
from ..facts import FLOAT32, Dtype, Where
from ..loading import Request, foreseen_in_all
from .attempts.dtype_axis import judged_dtypes
from .environment import environment
from .nouns.form import Form, FormTarget, GraphNeed
from .nouns.goal import Goal
from .order import forms_to_try

_WHOLE = (GraphNeed.EXPORTED, GraphNeed.WHOLE)  # those that need the model to capture as one graph
_IN_PIECES = (GraphNeed.REGIONS, GraphNeed.PIECES)


@dataclass(frozen=True, slots=True)
class DryRun:
    """The forms that would be tried, in order."""

    model: str
    device: str
    dtypes: tuple[Dtype, ...]  # float32 first: the others are compared with it
    # Each form, and what is missing to make it, by dtype; empty where nothing is.
    rungs: tuple[tuple[Form, Mapping[Dtype, str]], ...]
    saved: Dtype
    parameters: int
    warnings: tuple[str, ...] = ()

    def as_text(self) -> str:
        """Return one line for each form, then the dtypes."""
        lines = [
            f"{self.model} (saved in {self.saved}, {self.parameters:,} parameters) on {self.device}, each form in {', '.join(str(one) for one in self.dtypes)}:"
        ]
        for number, (form, missing) in enumerate(self.rungs):
            lines.append(f"  {number}  {form!s:<11} {_what_happens(form, missing)}")
        lines.append(
            "A form is tried in float32 first, and in 16 bit where it is verified in float32 and eager passes. "
            f"{', '.join(self._named(*_WHOLE))} need a model that captures as one graph, which is tried before; "
            f"{' and '.join(self._named(*_IN_PIECES))} are for those that do not. Nothing was run or written."
        )
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])

    def to_dict(self) -> dict[str, Any]:
        """Return the same as plain values."""
        return {
            "schema": 1, "model": self.model, "device": self.device, "dtypes": [one.name for one in self.dtypes],
            "rungs": [{"form": form.name, "missing": missing.get(FLOAT32, "")} for form, missing in self.rungs],
            "saved": self.saved.name, "parameters": self.parameters, "warnings": list(self.warnings),
        }  # fmt: skip

    def _named(self, *needs: GraphNeed) -> list[str]:
        return [form.name for form, _ in self.rungs if form.graph in needs]


def dry_run(model: str, goal: Goal) -> DryRun:
    """Return what `optimize` would try for `model`. Reads headers and configs, never weights.

    Raises:
        CheckpointError: If there is no such model.
        NoSuchDeviceError: If there is no such device.
    """
    device = detect_one(goal.device).device if goal.device else default_device()
    checkpoint = read_checkpoint(Where(model, revision=goal.revision))
    target = FormTarget(environment(), device)
    dtypes = tuple(dict.fromkeys((FLOAT32, *judged_dtypes(goal, device))))
    forms = forms_to_try(goal.form, torchscript=goal.torchscript)
    failures = foreseen_in_all(Request(model, {"revision": goal.revision}), checkpoint, reads_text=False)
    warnings = tuple(failure.warning for failure in failures)
    return DryRun(
        model, device, dtypes,
        tuple((form, _missing(form, target, dtypes)) for form in forms),
        checkpoint.saved, checkpoint.parameters, warnings,
    )  # fmt: skip


def _missing(form: Form, target: FormTarget, dtypes: tuple[Dtype, ...]) -> Mapping[Dtype, str]:
    return {dtype: missing for dtype in dtypes if (missing := form.lacks_to_build(target.of(dtype)))}


def _what_happens(form: Form, missing: Mapping[Dtype, str]) -> str:
    if FLOAT32 in missing:  # every form is tried in it first
        return f"not tried: it needs {missing[FLOAT32]}"
    return form.about + "".join(f"; not in {dtype}: it needs {reason}" for dtype, reason in missing.items())
