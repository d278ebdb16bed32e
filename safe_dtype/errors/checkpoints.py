"""Errors of the files of a model."""

from __future__ import annotations

from typing import ClassVar

from .base import SafeDtypeError


class CheckpointError(SafeDtypeError, OSError):
    """Something is wrong with a checkpoint. Always carries `source`: what the user asked for.

    With `policy="strict"` also: weights would stay random, since its files lack a layer, the embeddings or the head of their
    own class, or name them otherwise (else that is a warning; a new head on a base model is neither).
    """

    usual_advice: ClassVar[str] = "check the path, and that you may read it"  # where the raiser knows nothing better

    def __init__(self, source: str, problem: str, advice: str = "") -> None:
        super().__init__(source, problem, advice)
        self.source, self.problem, self.advice = source, problem, advice

    def __str__(self) -> str:
        return f"{self.source}: {self.problem}. Next: {self.advice or self.usual_advice}."

    def __reduce__(self) -> tuple[type[CheckpointError], tuple[str, str, str]]:
        # OSError.__reduce__ drops the third argument.
        return type(self), (self.source, self.problem, self.advice)


class CheckpointNotFoundError(CheckpointError):
    """No folder, file, cached or remote repository of that name, or no weights in it."""

    usual_advice = "check the name and the revision"


class GatedCheckpointError(CheckpointError):
    """The Hub asks for a login, or for access to be granted."""

    usual_advice = "ask for access on its page, then `hf auth login`"


class CorruptCheckpointError(CheckpointError):
    """A header or a file that contradicts itself: truncated, overlapping, not what its name says."""

    usual_advice = "download it again"


class MissingShardError(CheckpointError):
    """The index names files that are not there."""

    usual_advice = "download the missing files"


class UnsafeCheckpointError(CheckpointError):
    """Reading it would run code that the checkpoint carries."""

    usual_advice = "ask its author for safetensors"
