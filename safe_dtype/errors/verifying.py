"""Errors of measuring a drift."""

from __future__ import annotations

from .base import SafeDtypeError


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
