"""The base of all errors, and those of choosing, loading, running and measuring a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..guarding.failure import Attempt
    from ..planning.plan import Decision


class SafeDtypeError(Exception):
    """Base of all errors raised by safe_dtype."""


class SafeDtypeWarning(UserWarning):
    """Something the caller should change: a slow or wrong dtype that was ordered, a config that lies."""


class UnknownDtypeError(SafeDtypeError, ValueError):
    """There is no number format of this name."""

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        super().__init__(name, known)
        self.name, self.known = name, known

    def __str__(self) -> str:
        return f"No dtype is called {self.name!r}. Known: {', '.join(self.known)}, and bf16, fp16, fp32, fp8."


class PolicyError(SafeDtypeError, ValueError):
    """A policy that cannot be read."""

    def __init__(self, text: str, problem: str) -> None:
        super().__init__(text, problem)
        self.text, self.problem = text, problem

    def __str__(self) -> str:
        return f"Bad policy {self.text!r}: {self.problem}. Example: 'auto,prefer=memory'."


class DeviceError(SafeDtypeError, RuntimeError):
    """Something is wrong with a device."""


class NoSuchDeviceError(DeviceError):
    """The device asked for is not on this machine."""

    def __init__(self, device: str, found: tuple[str, ...]) -> None:
        super().__init__(device, found)
        self.device, self.found = device, found

    def __str__(self) -> str:
        return (
            f"No device {self.device!r} here. Found: {', '.join(self.found)}. "
            "Next: pass one of these, or the product name of a known device to `safe-dtype plan --device`."
        )


class ProbeError(DeviceError):
    """The measurement itself could not run."""

    def __init__(self, device: str, problem: str) -> None:
        super().__init__(device, problem)
        self.device, self.problem = device, problem

    def __str__(self) -> str:
        return f"Could not measure {self.device}: {self.problem}. Next: `safe-dtype doctor --refresh`."


class CheckpointError(SafeDtypeError, OSError):
    """Something is wrong with a checkpoint. Always carries `source`: what the user asked for."""

    def __init__(self, source: str, problem: str, advice: str = "") -> None:
        super().__init__(source, problem, advice)
        self.source, self.problem, self.advice = source, problem, advice

    def __str__(self) -> str:
        return f"{self.source}: {self.problem}." + (f" Next: {self.advice}." if self.advice else "")

    def __reduce__(self) -> tuple[type[CheckpointError], tuple[str, str, str]]:
        # OSError.__reduce__ drops the third argument.
        return type(self), (self.source, self.problem, self.advice)


class CheckpointNotFoundError(CheckpointError):
    """No folder, file, cached or remote repository of that name, or no weights in it."""


class GatedCheckpointError(CheckpointError):
    """The Hub asks for a login, or for access to be granted."""


class CorruptCheckpointError(CheckpointError):
    """A header or a file that contradicts itself: truncated, overlapping, not what its name says."""


class MissingShardError(CheckpointError):
    """The index names files that are not there."""


class UnsafeCheckpointError(CheckpointError):
    """Reading it would run code that the checkpoint carries."""


class PlanError(SafeDtypeError, ValueError):
    """No plan can be made."""


class NoSafeDtypeError(PlanError):
    """Every candidate was rejected."""

    def __init__(self, source: str, device: str, decisions: tuple[Decision, ...]) -> None:
        super().__init__(source, device, decisions)
        self.source, self.device, self.decisions = source, device, decisions

    def __str__(self) -> str:
        reasons = "\n".join(f"  {decision.candidate}: {decision.reason}" for decision in self.decisions)
        return (
            f"No safe dtype for {self.source} on {self.device}:\n{reasons}\n"
            "Next: free memory, pass device_map='auto' to spread the model, or order a dtype with dtype=..."
        )


class StrictModeError(PlanError):
    """The dtype that was ordered in strict mode does not do here; strict mode changes nothing by itself."""

    def __init__(self, ordered: str, reason: str, would_work: tuple[str, ...]) -> None:
        super().__init__(ordered, reason, would_work)
        self.ordered, self.reason, self.would_work = ordered, reason, would_work

    def __str__(self) -> str:
        others = ", ".join(self.would_work) or "none"
        return (
            f"{self.ordered} was ordered in strict mode and does not do here: {self.reason}. "
            f"Would work: {others}. Next: order one of these, or drop 'strict'."
        )


class ConflictError(PlanError):
    """The caller and the plan set the same thing to different values."""

    def __init__(self, what: str, caller: str, plan: str) -> None:
        super().__init__(what, caller, plan)
        self.what, self.caller, self.plan = what, caller, plan

    def __str__(self) -> str:
        return (
            f"{self.what} was given twice and differs: {self.caller} by the caller, {self.plan} in the plan. "
            "Next: pass only one of them."
        )


class NoPlanError(PlanError):
    """The model was not loaded by safe_dtype, so there is no plan."""

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.model = model

    def __str__(self) -> str:
        return (
            f"This {self.model} was not loaded by safe_dtype. Next: load it with SafeAutoModel.from_pretrained(...)."
        )


class GuardError(SafeDtypeError, RuntimeError):
    """A guarded model failed, and the guard could not go on. The failure itself is the `__cause__`."""


class NotGuardedError(GuardError):
    """The model has no guard, so there is nothing to report."""

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.model = model

    def __str__(self) -> str:
        return f"This {self.model} is not guarded. Next: `safe_dtype.guard(model)`, or load it with SafeAutoModel."


class NoDtypeLeft(GuardError):  # noqa: N818  (its public name from the beginning)
    """A step failed, and so did every remedy. The model stays usable, in the dtype that was tried last."""

    def __init__(self, failure: str, dtype: str, attempts: tuple[Attempt, ...]) -> None:
        super().__init__(failure, dtype, attempts)
        self.failure, self.dtype, self.attempts = failure, dtype, attempts

    def __str__(self) -> str:
        tried = "\n".join(f"  {attempt}" for attempt in self.attempts)
        return (
            f"{self.failure}. Nothing is left to try in {self.dtype}:\n{tried}\n"
            "Next: see the cause above. Not enough memory: free some, or load with device_map='auto'. The same failure "
            "in float32: look for it in the weights or the inputs."
        )


class CannotResumeError(GuardError):
    """The failing step cannot be run again, nor the call begun anew."""

    def __init__(self, failure: str, reason: str, dtype: str) -> None:
        super().__init__(failure, reason, dtype)
        self.failure, self.reason, self.dtype = failure, reason, dtype

    def __str__(self) -> str:
        return (
            f"{self.failure}. The call cannot go on: {self.reason}. "
            f"Next: call again; the model is in {self.dtype} now."
        )


class DeviceLostError(GuardError):
    """The process has lost its device: every further operation on it fails."""

    def __init__(self, device: str, dtype: str, failure: str) -> None:
        super().__init__(device, dtype, failure)
        self.device, self.dtype, self.failure = device, dtype, failure

    def __str__(self) -> str:
        return (
            f"{self.device} is lost to this process: {self.failure}. Nothing can be retried in it. "
            f"Next: start again; that {self.dtype} fails so on {self.device} is remembered, and planned around."
        )


class RescaleError(SafeDtypeError, RuntimeError):
    """An exact rescaling cannot be put into this model, or was not exact in it. The model is as it was."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return (
            f"No exact rescaling: {self.problem}. Next: load in bfloat16 or float32, or see the islands of the policy."
        )


class VerifyError(SafeDtypeError, RuntimeError):
    """The drift of a candidate from its reference cannot be measured."""


class UnsteadyReferenceError(VerifyError):
    """The reference gave two answers to the same inputs, so no difference from it means anything."""

    def __init__(self, largest_difference: float) -> None:
        super().__init__(largest_difference)
        self.largest_difference = largest_difference

    def __str__(self) -> str:
        return (
            f"The reference does not repeat itself: run twice on the first batch, its outputs differ by up to "
            f"{self.largest_difference:.3g}. Next: look for dropout that is left on, sampling, or kernels that are "
            "not deterministic (torch.use_deterministic_algorithms)."
        )


class DegenerateReferenceError(VerifyError):
    """The reference says nothing that a candidate could be held to."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return (
            f"The reference is no reference: {self.problem}. Next: see whether its weights were loaded (a head that "
            "is missing in the checkpoint is made anew), and run it in float32."
        )


class IncomparableOutputsError(VerifyError):
    """The outputs of reference and candidate cannot be compared."""

    def __init__(self, problem: str, advice: str) -> None:
        super().__init__(problem, advice)
        self.problem, self.advice = problem, advice

    def __str__(self) -> str:
        return f"These outputs cannot be compared: {self.problem}. Next: {self.advice}."


class NothingToCompareError(VerifyError):
    """There are no batches, or none of their positions counts."""

    def __init__(self, problem: str, advice: str) -> None:
        super().__init__(problem, advice)
        self.problem, self.advice = problem, advice

    def __str__(self) -> str:
        return f"Nothing to compare: {self.problem}. Next: {self.advice}."
