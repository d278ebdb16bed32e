"""Errors of the files of a model."""

from __future__ import annotations

from .base import SafeDtypeError


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
