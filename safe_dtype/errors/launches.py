"""Errors of launches: what accelerate is to start cannot be configured, or cannot be started."""

from __future__ import annotations

from .base import SafeDtypeError


class LaunchError(SafeDtypeError, ValueError):
    """A launch that cannot be configured or started as it was asked for."""

    def __init__(self, problem: str, advice: str) -> None:
        super().__init__(problem, advice)
        self.problem, self.advice = problem, advice

    def __str__(self) -> str:
        return f"{self.problem}. Next: {self.advice}."
