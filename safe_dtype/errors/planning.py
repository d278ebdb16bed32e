"""Errors of policies and plans."""

from __future__ import annotations

from typing import Protocol

from .base import SafeDtypeError

_FAIL = ("unsupported", "crashes", "wrong")  # grounds on which an order is not obeyed, or should not be
_LOADED = ("bfloat16", "float16", "float32")


class JudgedCandidate(Protocol):
    """What an error tells of a candidate that was judged: `planning.Decision` is one."""

    @property
    def candidate(self) -> object:
        """The pair of dtypes, as text that a person reads."""

    @property
    def ground(self) -> object:
        """On what ground it was rejected, as text that is one word; None where it was accepted."""

    @property
    def reason(self) -> str:
        """Why it was rejected or accepted."""


class PolicyError(SafeDtypeError, ValueError):
    """A policy that cannot be read."""

    def __init__(self, text: str, problem: str, *, example: str = "auto,prefer=memory") -> None:
        super().__init__(text, problem)
        self.text, self.problem = text, problem
        self.example = example  # what may have been meant, as it is written

    def __str__(self) -> str:
        return f"Bad policy {self.text!r}: {self.problem}. Next: write it like {self.example!r}."


class PlanError(SafeDtypeError, ValueError):
    """No plan can be made."""


class NoSafeDtypeError(PlanError):
    """Every candidate was rejected."""

    def __init__(self, source: str, device: str, decisions: tuple[JudgedCandidate, ...]) -> None:
        super().__init__(source, device, decisions)
        self.source, self.device, self.decisions = source, device, decisions

    def __str__(self) -> str:
        reasons = "\n".join(f"  {decision.candidate}: {decision.reason}" for decision in self.decisions)
        return f"No safe dtype for {self.source} on {self.device}:\n{reasons}\nNext: {self._next_step()}."

    def _next_step(self) -> str:
        """Return what helps against the reasons that there are; memory alone is never one, for a model is spread then."""
        rejected = [(str(one.ground), str(one.candidate), one.reason) for one in self.decisions]
        steps = []
        if any(ground == "ladder" for ground, _, _ in rejected):
            steps.append("leave out the policy's ladder, or put another dtype on it")
        if any(ground == "unknown" and "no memory" in reason for ground, _, reason in rejected):
            steps.append("free memory on this device, and load again")
        doubted = [name for ground, name, _ in rejected if ground not in (*_FAIL, "ladder") and name in _LOADED]
        if doubted:
            steps.append(f"order {' or '.join(doubted)} with dtype=..., which is loaded with a warning")
        return "; or ".join(steps) or "take another device: device_map='cpu' loads it into main memory"


class NothingFitsError(NoSafeDtypeError):
    """No dtype fits into main memory, and not even the largest weight does where the others wait on disk."""

    def __str__(self) -> str:
        reasons = "\n".join(f"  {decision.candidate}: {decision.reason}" for decision in self.decisions)
        return f"{self.source} does not fit on {self.device}:\n{reasons}\nNext: free memory, or take a smaller model."


class StrictModeError(PlanError):
    """The dtype that was ordered in strict mode was rejected or failed; or, in any mode, no model computes in it."""

    def __init__(  # noqa: PLR0913  (facts, as they are pickled)
        self,
        ordered: str,
        reason: str,
        would_work: tuple[str, ...],
        *,
        next_step: str = "",
        only_stores: bool = False,
        kept_as: str = "",
        are_untried: bool = False,
    ) -> None:
        super().__init__(ordered, reason, would_work)
        self.ordered, self.reason, self.would_work = ordered, reason, would_work
        self.kept_as = kept_as  # why it is this dtype where nobody ordered one: "as saved"
        self.next_step = next_step  # of a model that failed when it ran; empty: it is about what is to be loaded
        self.are_untried = are_untried  # True: nobody knows of `would_work` whether it works
        self.only_stores = only_stores  # True: `ordered` is a format of files, in any mode no dtype to load in

    def __str__(self) -> str:
        others = ", ".join(self.would_work) or "none"
        if self.only_stores:
            return (
                f"{self.ordered} is no dtype to load a model in: {self.reason}. "
                f"Would work: {others}. Next: order one of these, or leave the dtype to the plan."
            )
        if self.next_step:
            known = "Not tried" if self.are_untried else "Would work"
            return (
                f"In strict mode this model stays in {self.ordered}, and it failed: {self.reason}. "
                f"{known}: {others}. Next: {self.next_step}."
            )
        whose = f"is kept in strict mode, {self.kept_as}" if self.kept_as else "was ordered"
        order = "order one of these with dtype=..., or " if self.would_work else ""
        return (
            f"{self.ordered} {whose}, and nothing else may be loaded in its place; it is rejected: {self.reason}. "
            f"Would work: {others}. Next: {order}leave the dtype to the plan, without 'strict'."
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


class StalePlanError(ConflictError):
    """A plan is passed for another checkpoint, device or software than it was made for."""

    def __str__(self) -> str:
        return (
            f"The plan was made for another {self.what}: it is for {self.plan}, and this call is for {self.caller}. "
            "Next: make the plan again, or load without plan=; to follow it anyway, pass "
            "plan=dataclasses.replace(plan, made_for=None)."
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


class NotServableError(PlanError):
    """vLLM would compute something else than the model, and could not step down as a guarded model does."""

    def __init__(self, source: str, dtype: str, reason: str, next_step: str) -> None:
        super().__init__(source, dtype, reason, next_step)
        self.source, self.dtype, self.reason, self.next_step = source, dtype, reason, next_step

    def __str__(self) -> str:
        return (
            f"vLLM cannot serve {self.source} in the dtype {self.dtype!r} on this machine: {self.reason}. "
            f"Next: {self.next_step}; VLLM_PLUGINS='' serves it without this check."
        )


class QuantizerPackageError(SafeDtypeError, ImportError):
    """A quantized model needs packages that are not installed. What transformers raised is the `__cause__`."""

    def __init__(self, source: str, method: str, packages: tuple[str, ...]) -> None:
        super().__init__(source, method, packages)
        self.source, self.method, self.packages = source, method, packages

    def __str__(self) -> str:
        what = f"package{'s' * (len(self.packages) > 1)} {' and '.join(self.packages)}"
        return (
            f"{self.source} is quantized with {self.method}, which needs the {what}, not installed here. "
            f"Next: `python -m pip install {' '.join(self.packages)}`; or load the model that it was quantized from."
        )
