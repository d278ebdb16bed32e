"""What is published, where, and how far that has come. Nouns only, as JSON on the way. Imports no torch and no client."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from ..hub.remote_files import FileDigest, Manifest

SCHEMA = "safe_dtype.receipt/1"
CHANGES_SCHEMA = "safe_dtype.changes/1"


class State(str, Enum):
    """How a publication stands. Every failure is one of these; the command's exit status says which."""

    PUBLISHED = "published"  # it landed, and was read back
    NOT_STARTED = "not-started"  # nothing was sent: stage, card, login or plan is not fit
    NOT_PUBLISHED = "not-published"  # bytes may be there, the revision is as it was
    CONFLICT = "conflict"  # somebody else moved the revision
    UNKNOWN = "unknown"  # the commit failed, and nothing can be read back
    UNVERIFIED = "published-unverified"  # it landed, reading back failed
    BROKEN = "published-broken"  # it landed, and what is there is not what was staged
    PRIVATE = "published-private"  # it landed and was verified, and is still private

    def __str__(self) -> str:
        return self.value

    @property
    def exit_status(self) -> int:
        """The exit status of the command: 0, or 3 to 9."""
        return {State.PUBLISHED: 0}.get(self, 2 + list(State).index(self))


def publish_id(manifest: Manifest) -> str:
    """Return the identity of a staged folder, 16 hexadecimal digits: the same files give the same one."""
    listed = sorted((path, digest.sha256) for path, digest in manifest.items())
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Target:
    """Where a folder goes."""

    repo: str  # "org/name"
    revision: str = "main"  # a branch
    public: bool = False  # whether a new repository is made public once it is verified

    def __str__(self) -> str:
        return self.repo if self.revision == "main" else f"{self.repo}@{self.revision}"


@dataclass(frozen=True, slots=True)
class Changes:
    """What one commit would change at a target: the dry run."""

    target: Target
    publish_id: str
    head: str | None  # the commit that it was planned on; None where the repository or the branch is to be made
    creates_repo: bool = False
    creates_branch: bool = False
    private: bool | None = None  # of the repository as it is; None where there is none
    blank: bool = False  # whether the repository holds nothing yet but what the Hub puts into a new one
    add: tuple[str, ...] = ()
    update: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    delete: tuple[str, ...] = ()
    bytes: int = 0  # of what is added and updated

    @property
    def empty(self) -> bool:
        """Whether everything is there already."""
        return not (self.add or self.update or self.delete or self.creates_repo or self.creates_branch)

    @property
    def paths(self) -> frozenset[str]:
        """Every path that is ours: sent, there already, or deleted."""
        return frozenset((*self.add, *self.update, *self.keep, *self.delete))

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        record = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {"schema": CHANGES_SCHEMA, **record, "empty": self.empty}


@dataclass(frozen=True, slots=True)
class Receipt:
    """What came of a publication. Kept as receipt.json beside the staged folder."""

    target: Target
    publish_id: str
    state: State
    oid: str | None = None  # the commit
    files: Manifest = field(default_factory=dict)
    deleted: tuple[str, ...] = ()
    note: str = ""
    created: bool = False  # whether the repository was made for it, and is to be made public in the end

    @property
    def url(self) -> str:
        """The path of the published revision below the Hub's address."""
        return f"{self.target.repo}/tree/{self.oid or self.target.revision}"

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {"schema": SCHEMA, **asdict(self), "state": str(self.state), "deleted": list(self.deleted)}

    @staticmethod
    def from_dict(record: Mapping[str, Any]) -> Receipt:
        """Read it back."""
        files = {path: FileDigest(**digest) for path, digest in record["files"].items()}
        return Receipt(
            target=Target(**record["target"]), publish_id=record["publish_id"], state=State(record["state"]),
            oid=record["oid"], files=files, deleted=tuple(record["deleted"]), note=record["note"],
            created=bool(record.get("created", False)),
        )  # fmt: skip
