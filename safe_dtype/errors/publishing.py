"""Errors of publishing a model."""

from __future__ import annotations

from .base import SafeDtypeError


class PublishError(SafeDtypeError, RuntimeError):
    """Something was not published, or not seen to be published. Nothing is lost locally.

    Attributes:
        state: How things stand, in the words of `safe_dtype.publishing.State`: "not-published", "unknown", ...
        repo: The repository, with the revision where it is not main.
        happened: What went wrong.
        visible: What others see in the repository now.
        advice: The next step.
    """

    def __init__(self, state: str, repo: str, happened: str, visible: str, advice: str) -> None:
        super().__init__(state, repo, happened, visible, advice)
        self.state, self.repo, self.happened, self.visible, self.advice = state, repo, happened, visible, advice

    def __str__(self) -> str:
        return f"{self.repo}: {self.happened}. Now visible: {self.visible}. Next: {self.advice}. [{self.state}]"


class NotPublishableError(PublishError):
    """A staged folder must not be published as it is. Nothing was sent."""
