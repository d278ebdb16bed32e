"""The drift of a checkpoint in one dtype from itself in another: `safe-dtype verify`."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..devices import default_device, detect_one
from ..errors import CheckpointError, UnknownDtypeError
from ..facts import (
    COMPUTE,
    FEW_POSITIONS,
    FLOAT16,
    Drift,
    Dtype,
    Where,
    drift_to_dict,
    dtype_named,
    exceeds,
    is_nearly_uniform,
    worst_output,
)
from ..loading import Request, SafeAutoModel, plan_request
from ..planning import Plan
from ..rendering.json_numbers import json_numbers
from ..store.temporary import temporary_folder
from ..verifying import Checkpoint, drift_from, record_outputs
from .rescue import Rescue, remembered_rescue

_FEW_BATCHES = 8  # of 8 tokens


@dataclass(frozen=True, slots=True)
class Question:
    """What to verify, as asked on the command line."""

    model: str
    dtype: str | None  # None: the candidate that the plan for `device` chooses
    against: str
    device: str | None  # None: the first accelerator, else the CPU
    revision: str | None
    text: str | None  # None: the built-in one
    tokens: int  # of the text, at most; above 128 rounded up to batches of 128
    max_drift: float  # in the unit of `safe_dtype.exceeds`
    gguf_file: str | None = None  # in the folder or repository; of a path to a GGUF file its name

    @property
    def place(self) -> Where:
        """Where the model is, as `from_pretrained` takes it."""
        return Where(self.model, revision=self.revision, gguf_file=self.gguf_file).in_folder()


@dataclass(frozen=True, slots=True)
class Verification:
    """A measured drift, and the verdict on it."""

    model: str
    candidate: str  # a dtype, or the plan's way to store and compute
    against: Dtype
    device: str
    drift: Drift
    max_drift: float
    beyond: str | None  # why the drift is too large; None where it is not
    gguf_file: str | None = None  # in the folder or repository
    other: Dtype | None = None  # to name instead: set where nobody named one, and the plan is to load the reference
    rescue: Rescue | None = None  # remembered of a checkpoint that plain float16 takes beyond the limit

    @property
    def nothing_to_compare(self) -> str | None:
        """Why the answer says nothing of another dtype: it is the reference that is planned; None where it is not."""
        if self.other is None:
            return None
        return (
            f"the plan for {self.device} loads {self.candidate}, which is the reference: there is nothing to compare. "
            f"Next: name a dtype, as --dtype {self.other}"
        )

    @property
    def rescued(self) -> str | None:
        """What safe_dtype makes of a checkpoint that fails in plain float16; None where no rescue of it is remembered."""
        if self.rescue is None or not self.rescue.mends:
            return None
        half = self.rescue.half
        how = "rescaled exactly" if half.rescale else "with some modules in float32"
        kl = "" if half.drift is None else f", measured: KL {half.drift.kl_mean:.2g} nats to {half.reference}"
        return f"plain float16 fails; safe_dtype loads it {how}{kl}"

    @property
    def next_step(self) -> str | None:
        """What to do about a drift that is too large; None where it is not."""
        if self.beyond is None:
            return None
        is_gguf = self.gguf_file is not None  # which no rescue takes
        if self.rescued:
            return f"load it in float16 with safe_dtype, never with transformers alone: `safe-dtype plan {self.model} --dtype float16`"
        if self.candidate == FLOAT16.name and not is_gguf and self.rescue is None:
            return f"`safe-dtype rescue {self.model}` looks for what keeps float16 within the limit"
        if self.candidate == self.against.name:
            return "run it once more on one thread (OMP_NUM_THREADS=1): the same dtype gives different outputs here"
        of_gguf = "" if self.gguf_file is None or self.model.endswith(".gguf") else f" --gguf-file {self.gguf_file}"
        return f"`safe-dtype plan {self.model}{of_gguf}` shows what else runs here; load it with dtype='{self.against}' until then"

    @property
    def too_few(self) -> str | None:
        """Why the answer says little: so few positions were compared; None where there are enough."""
        if self.drift.positions >= FEW_POSITIONS:
            return None
        counted = f"{self.drift.positions} {self.drift.kind} {'was' if self.drift.positions == 1 else 'were'} compared"
        return f"only {counted}, which is too little to judge by: pass a longer --text or more --tokens"

    def as_text(self) -> str:
        """Return a headline, a line for each figure that was measured, and the verdict."""
        drift = self.drift
        figures = {
            "mean KL": f"{drift.kl_mean:.3g} nats",
            "99 % of the KL up to": f"{drift.kl_p99:.3g} nats",
            "same top-1": f"{drift.top1_agreement:.2%}",
            "clear choices changed": self._changed_choices(),
            "largest difference": f"{drift.max_abs:.3g}",
            "relative RMS": f"{drift.rel_rms:.3g}",
            "perplexity ratio": None if drift.perplexity_ratio is None else f"{drift.perplexity_ratio:.6f}",
            "cosine of hidden states": None if drift.hidden_cosine is None else f"{drift.hidden_cosine:.7f}",
            "mIoU": None if drift.miou is None else f"{drift.miou:.4f}",
        }
        lines = [
            f"{self.model}: {self.candidate} against {self.against} on {self.device}, {drift.positions} {drift.kind}"
        ]
        if drift.heads:
            name, worst = worst_output(drift)
            figures["worst output"] = f"{name or 'the main one'} ({worst.kind}), of {len(drift.heads) + 1}"
        lines += [f"  {name:<26}{value}" for name, value in figures.items() if value is not None]
        lines += [f"  note: {self.too_few}"] if self.too_few else []
        lines += [f"  note: {self.rescued}"] if self.rescued else []
        if self.beyond:
            return "\n".join([*lines, f"BEYOND: {self.beyond}. Next: {self.next_step}."])
        if self.nothing_to_compare:
            return "\n".join([*lines, f"{self.nothing_to_compare}."])
        return "\n".join([*lines, f"within the limit of {self.max_drift:.3g}"])

    def _changed_choices(self) -> str | None:
        if self.drift.clear_flips is None or not is_nearly_uniform(self.drift, self.max_drift):
            return None
        return f"{self.drift.clear_flips:.2%} (the reference is nearly uniform: {self.drift.reference_nats:.2g} nats)"

    def to_dict(self) -> dict[str, Any]:
        """Return the answer as plain values of JSON."""
        return {
            "model": self.model, "candidate": self.candidate, "against": self.against.name, "device": self.device,
            "drift": json_numbers(drift_to_dict(self.drift)), "max_drift": self.max_drift, "within": self.beyond is None, "beyond": self.beyond,
            "next": self.next_step, "too_few": self.too_few, "nothing_to_compare": self.nothing_to_compare,
            "rescued": self.rescued,
        }  # fmt: skip


def verify(question: Question, progress: Callable[[int, int], None] | None = None) -> Verification:
    """Return the drift of a checkpoint in one dtype from itself in another, measured on a text, with the verdict.

    Only one of the two models is in memory at a time. The reference, and a candidate that is named by its dtype, are
    loaded by transformers alone, so that the drift is that of the dtype only. Without a dtype, the candidate is the
    model as its plan loads it.

    Args:
        question: What to verify.
        progress: Called after every batch with the number that is done and the number of all; each counts twice.

    Raises:
        CheckpointError: If the checkpoint, or its tokenizer, cannot be found or read.
        NoSuchDeviceError: If the device is not here.
        UnknownDtypeError: If models cannot compute in a dtype that is named.
        VerifyError: If the outputs cannot be compared.
    """
    device = question.device or default_device()
    detect_one(device)
    against = _computable(question.against)
    dtype = _computable(question.dtype) if question.dtype else None
    plan = None if dtype else plan_request(_request(question, device), drifts="measured")
    checkpoint = Checkpoint(question.place.name, device, _arguments(question))
    # A plan may compute few rows in another way than many.
    batches = checkpoint.batches(question.text, tokens=question.tokens, few=_FEW_BATCHES if plan else 0)

    def after(start: int) -> Callable[[int], None] | None:
        return (lambda done: progress(start + done, 2 * len(batches))) if progress else None

    with temporary_folder("safe_dtype-verify-") as folder:
        recording = record_outputs(checkpoint.load(against), batches, folder, progress=after(0))
        gc.collect()  # models of transformers refer to themselves, and the next one needs the room
        model = _as_planned(question, plan, device) if plan else checkpoint.load(dtype or against)
        drift = drift_from(recording, model, batches, progress=after(len(batches)))
    candidate = str(plan.chosen.candidate if plan and plan.chosen else dtype or against)
    beyond = exceeds(drift, question.max_drift)
    gguf_file = question.place.gguf_file
    fails_plainly = beyond is not None and dtype == FLOAT16 and gguf_file is None
    return Verification(
        question.model, candidate, against, device, drift, question.max_drift, beyond, gguf_file,
        other=_other_than(against, plan) if plan else None,
        rescue=_remembered(question, device) if fails_plainly else None,
    )  # fmt: skip


def _remembered(question: Question, device: str) -> Rescue | None:
    with suppress(CheckpointError):  # made in float16 itself: no rescue takes it
        return remembered_rescue(
            question.model, device=device, revision=question.revision, max_drift=question.max_drift
        )
    return None


def _other_than(against: Dtype, plan: Plan) -> Dtype | None:
    """Return a dtype to compare with the reference where the plan loads just that: the saved one, or a usual one."""
    same = plan.what == against.name and plan.rescale is None and not plan.quantization
    usual = (plan.saved, *plan.ladder, *COMPUTE)
    return next(dtype for dtype in usual if dtype in COMPUTE and dtype != against) if same else None


def _computable(name: str) -> Dtype:
    dtype = dtype_named(name)
    if dtype not in COMPUTE:
        raise UnknownDtypeError(name, tuple(one.name for one in COMPUTE))
    return dtype


def _request(question: Question, device: str) -> Request:
    return Request(question.place.name, {**_arguments(question), "device_map": device})


def _arguments(question: Question) -> dict[str, Any]:
    place = question.place
    of_gguf = {} if place.gguf_file is None else {"gguf_file": place.gguf_file}
    return {"revision": place.revision, **of_gguf}


def _as_planned(question: Question, plan: Plan, device: str) -> Any:
    arguments = _arguments(question) | ({} if plan.device_map else {"device_map": device})
    return SafeAutoModel.from_pretrained(question.place.name, plan=plan, **arguments).eval()
