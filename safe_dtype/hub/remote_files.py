"""Files by the names that the Hub gives them: what a folder holds, and what a commit holds. Imports no client."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Progress = Callable[[str, int, int], None]  # what is done, bytes so far, bytes in all; by one thread at a time


@dataclass(frozen=True, slots=True)
class FileDigest:
    """What a file holds, in the two ways the Hub can say it."""

    size: int  # bytes
    sha256: str  # of the bytes: how the Hub names a large file
    git: str  # SHA-1 of a git blob: how the Hub names a small one


Manifest = Mapping[str, FileDigest]  # by path in the repository, with "/"


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """What the Hub says of a file."""

    size: int  # bytes
    oid: str  # SHA-256 of the bytes of a large file, SHA-1 of the git blob of a small one
    large: bool  # whether it is in LFS or Xet

    def holds(self, digest: FileDigest) -> bool:
        """Whether it is the very file that `digest` was made of."""
        return self.size == digest.size and self.oid == (digest.sha256 if self.large else digest.git)


Tree = Mapping[str, RemoteFile]  # by path
