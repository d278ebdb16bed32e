"""Errors of guarded and of rescaled models."""

from __future__ import annotations

from typing import Protocol

from .base import SafeDtypeError


class TriedRemedy(Protocol):
    """What an error tells of a remedy that was tried: `guarding.Attempt` is one. Its `str` is what is printed."""

    @property
    def remedy(self) -> str:
        """What was tried."""

    @property
    def outcome(self) -> str:
        """What came of it."""


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

    def __init__(
        self,
        failure: str,
        dtype: str,
        attempts: tuple[TriedRemedy, ...],
        *,
        optimizer_step: int | None = None,
        next_step: str = "",
    ) -> None:
        super().__init__(failure, dtype, attempts)
        self.failure, self.dtype, self.attempts = failure, dtype, attempts
        self.optimizer_step = optimizer_step  # of training, counted from 0; None: of a call
        self.next_step = next_step or _LOOK

    def __str__(self) -> str:
        tried = "\n".join(f"  {attempt}" for attempt in self.attempts)
        where = "" if self.optimizer_step is None else f" at optimizer step {self.optimizer_step}"
        return f"{self.failure}{where}. Nothing is left to try in {self.dtype}:\n{tried}\nNext: {self.next_step}."


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
    """The process has lost its device: every further operation on it fails.

    `dtype` is empty where the error that told of it blames none.
    """

    def __init__(self, device: str, dtype: str, failure: str) -> None:
        super().__init__(device, dtype, failure)
        self.device, self.dtype, self.failure = device, dtype, failure

    def __str__(self) -> str:
        lost = (
            f"{self.device} is lost to this process: {self.failure}. Nothing can be retried in it. Next: start again; "
        )
        if not self.dtype:
            return f"{lost}it blames no dtype, so nothing is remembered. CUDA_LAUNCH_BLOCKING=1 tells which operation it was."
        return f"{lost}that {self.dtype} fails so on {self.device} is remembered, and avoided from now on."


class RescaleError(SafeDtypeError, RuntimeError):
    """An exact rescaling cannot be put into this model, or was not exact in it. The model is as it was."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return (
            f"No exact rescaling: {self.problem}. Next: load it in another dtype, with dtype='float32' or 'bfloat16'."
        )


_LOOK = (
    "see the cause above. Not enough memory: free some, or load with device_map='auto'. The same failure in float32: look "
    "for it in the weights or the inputs"
)
