"""Does a candidate stay within the drift from float32 that the user allows? Measured by `verifying`, judged by `exceeds`.

Only a user's `max_drift` is judged here. Whether a form is exact, and whether a dtype only rounds, are other questions
with limits of their own: see `limits`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ...facts import FLOAT32, Dtype, exceeds
from ...verifying.output_kinds import as_compared
from ...verifying.outputs import Outputs
from ...verifying.positions import Alignment
from ...verifying.tally import Tally
from ..nouns.job import Job
from .limits import entries_problem, equal_entries
from .load_model import decides_by_sigmoid

Tensors = Mapping[str, Tensor]


class DriftFromFloat32:
    """Compares a candidate's outputs with those of eager in float32, batch by batch, and tells whether they drift too far.

    No outputs are kept.

    Every output is judged, in the unit of its kind (see `exceeds`): logits by what they decide, all others as values (see
    `kind_of`). Each batch must be within the limit, and so must all of them together: what
    `measure_drift` rejects on the same batches is rejected here too.

    Positions that `attention_mask` hides do not count. Integers and masks have no drift: as many of their entries must be
    equal as in any candidate of its dtype (see `entries_problem`).
    """

    def __init__(self, max_drift: float, *, dtype: Dtype = FLOAT32, by_sigmoid: bool = False) -> None:
        """Compare the outputs of a candidate in `dtype`; logits label by label where it decides each `by_sigmoid`."""
        self._max_drift, self._dtype, self._by_sigmoid = max_drift, dtype, by_sigmoid
        self._batches = 0
        self._entries = False  # integers or masks were compared
        self._not_comparable = ""
        self._together: dict[tuple[str, str], Tally] = {}  # by output and kind, which may differ from batch to batch
        self._reasons: dict[str, str] = {}  # of the first batch that is too far off, by output

    def add(self, inputs: Tensors, float32: Tensors, candidate: Tensors) -> None:
        """Compare the outputs of both on one batch of `inputs`; all three are tensors by name."""
        self._not_comparable = self._not_comparable or _difference_in_form(float32, candidate)
        if self._not_comparable:
            return
        alignment = _alignment(float32)
        for name, expected, output in _compared_outputs(float32, candidate, by_sigmoid=self._by_sigmoid):
            alone = Tally(alignment)
            for tally in (alone, self._together.setdefault((name, expected.kind), Tally(alignment))):
                tally.add(expected, output, inputs)
            if reason := self._reason(alone):
                self._reasons.setdefault(name, f"{reason}, in batch {self._batches}")
        for name, entries in float32.items():
            if not entries.is_floating_point():
                self._entries = True
                if reason := entries_problem(equal_entries(candidate[name], entries), self._dtype):
                    self._reasons.setdefault(name, f"{reason}, in batch {self._batches}")
        self._batches += 1

    def problem(self) -> str:
        """Return why the candidate drifts further than `max_drift` allows; empty where it does not."""
        if self._not_comparable:
            return f"it cannot be held to max_drift: {self._not_comparable}"
        if not self._entries and not any(tally.positions for tally in self._together.values()):
            return "it cannot be held to max_drift: no output was compared"
        # Where all batches together are too far off as well, their figure is reported: it is the one of `verify`.
        together = {name: reason for (name, _), tally in self._together.items() if (reason := self._reason(tally))}
        reasons = {**self._reasons, **together}
        if not reasons:
            return ""
        return f"it drifts from float32 by more than max_drift allows: {'; '.join(map(': '.join, reasons.items()))}"

    def _reason(self, tally: Tally) -> str | None:
        return exceeds(tally.drift(), self._max_drift) if tally.positions else None


def drift_of_job(job: Job, max_drift: float) -> DriftFromFloat32:
    """Return what compares the job's outputs with those in float32, as its model decides."""
    return DriftFromFloat32(max_drift, dtype=job.dtype, by_sigmoid=decides_by_sigmoid(job))


def _difference_in_form(float32: Tensors, candidate: Tensors) -> str:
    """Return how the outputs differ in names, shapes or dtypes of integers; empty where they do not."""
    if candidate.keys() != float32.keys():
        names, names_float32 = (", ".join(outputs) or "none" for outputs in (candidate, float32))
        return f"its outputs are {names}, those of float32 {names_float32}"
    for name, expected in float32.items():
        if (shape := candidate[name].shape) != expected.shape:
            return f"{name} has the shape {tuple(shape)}, in float32 {tuple(expected.shape)}"
        if expected.dtype != (dtype := candidate[name].dtype) and not (
            expected.is_floating_point() and dtype.is_floating_point
        ):
            return f"{name} is in {_name(dtype)}, in float32 in {_name(expected.dtype)}"
    return ""


def _alignment(float32: Tensors) -> Alignment:
    # Every encoder-decoder model of transformers returns this output of its encoder.
    return Alignment.DECODER if "encoder_last_hidden_state" in float32 else Alignment.NEXT_TOKEN


def _compared_outputs(
    float32: Tensors, candidate: Tensors, *, by_sigmoid: bool
) -> Iterator[tuple[str, Outputs, Outputs]]:
    for name, expected in float32.items():
        if expected.numel() and expected.is_floating_point():
            pair = (expected.detach().cpu(), candidate[name].detach().cpu())
            kind, reference, output = as_compared(name, *pair, by_sigmoid=by_sigmoid)
            yield name, Outputs(kind, reference), Outputs(kind, output)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
