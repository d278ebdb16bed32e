"""Errors of optimizing a model."""

from __future__ import annotations

from .base import SafeDtypeError


class OptimizeError(SafeDtypeError, RuntimeError):
    """A model cannot be optimized, or what was kept of it not be restored."""


class EnvironmentNotFitError(OptimizeError):
    """Something that is needed is missing on this machine."""

    def __init__(self, missing: str, advice: str) -> None:
        super().__init__(missing, advice)
        self.missing, self.advice = missing, advice

    def __str__(self) -> str:
        return f"Missing here: {self.missing}. Next: {self.advice}."


class BackupError(OptimizeError):
    """The original cannot be kept, or is kept already in another state. The source is as it was."""

    def __init__(self, problem: str, advice: str) -> None:
        super().__init__(problem, advice)
        self.problem, self.advice = problem, advice

    def __str__(self) -> str:
        return f"The original cannot be kept: {self.problem}. Next: {self.advice}."


class NotRestorableError(OptimizeError):
    """A backup cannot be restored. Nothing was written."""

    def __init__(self, problem: str, advice: str) -> None:
        super().__init__(problem, advice)
        self.problem, self.advice = problem, advice

    def __str__(self) -> str:
        return f"Nothing was restored: {self.problem}. Next: {self.advice}."


class NotOptimizableError(OptimizeError):
    """A model, or inputs, that no form can be judged with."""

    def __init__(self, problem: str, advice: str) -> None:
        super().__init__(problem, advice)
        self.problem, self.advice = problem, advice

    def __str__(self) -> str:
        return f"This cannot be optimized: {self.problem}. Next: {self.advice}."


class NotExportableError(OptimizeError):
    """A model that cannot be written in a format, or would be another model there. No file was left."""

    def __init__(self, problem: str, advice: str) -> None:
        super().__init__(problem, advice)
        self.problem, self.advice = problem, advice

    def __str__(self) -> str:
        return f"This cannot be exported: {self.problem}. Next: {self.advice}."


class NotOptimizedError(OptimizeError):
    """A folder that `optimize` did not write, or that was changed since."""

    def __init__(self, folder: str, problem: str) -> None:
        super().__init__(folder, problem)
        self.folder, self.problem = folder, problem

    def __str__(self) -> str:
        return (
            f"{self.folder}: {self.problem}. Next: make it again with `safe-dtype optimize MODEL --out {self.folder}`."
        )


class UntrustedFolderError(OptimizeError):
    """Loading what is in a folder would run code that was not made on this machine. Nothing was loaded."""

    def __init__(self, folder: str, what: str) -> None:
        super().__init__(folder, what)
        self.folder, self.what = folder, what

    def __str__(self) -> str:
        return (
            f"{self.folder} holds {self.what}, and it was not made on this machine. Next: if you know who made it, "
            "load_optimized(..., trust=True); else make it here with `safe-dtype optimize`."
        )
