"""How a staged folder stands: what its receipt says, and what the Hub says now."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...hub.client import Hub
from ...hub.errors import HubError
from ..publish_error import publish_error
from ..release import Receipt, State, publish_id
from ..staging.manifest import manifest_of
from .journal import read_receipt
from .readback import tree_problems


@dataclass(frozen=True, slots=True)
class Standing:
    """How a publication stands now."""

    receipt: Receipt | None  # as it was written
    state: State  # as it is
    reason: str  # why, in a sentence
    head: str | None = None  # of the revision
    private: bool | None = None
    changed_since: bool = False  # whether the folder is no longer what the receipt is about

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        receipt = None if self.receipt is None else self.receipt.to_dict()
        return {"receipt": receipt, "state": str(self.state), "said": self.reason, "head": self.head,
                "private": self.private, "changed_since": self.changed_since}  # fmt: skip


def status(folder: Path, api: Hub) -> Standing:
    """Compare the receipt of a staged folder with the Hub. Changes nothing, not even the receipt.

    Raises:
        NotPublishableError: If the folder or its receipt cannot be read.
        PublishError: If the Hub cannot be read.
    """
    changed = False
    receipt = read_receipt(folder)
    if receipt is None:
        return Standing(None, State.NOT_STARTED, "it was never pushed from here")
    changed = publish_id(manifest_of(folder)) != receipt.publish_id
    target = receipt.target
    try:
        head = api.head(target.repo, target.revision)
        tree = api.tree(target.repo, head.oid)
    except HubError as error:
        if error.missing not in ("repository", "revision"):
            raise publish_error(api, error, receipt.state, target, "not read") from error
        reason = f"the {error.missing} is not there"
        return Standing(receipt, State.NOT_PUBLISHED, reason, changed_since=changed)
    problems = tree_problems(tree, receipt.files, receipt.deleted)
    state, reason = _judged(receipt, head.oid, private=head.private, problems=problems)
    return Standing(receipt, state, reason, head.oid, head.private, changed)


def _judged(receipt: Receipt, head: str, *, private: bool, problems: list[str]) -> tuple[State, str]:
    if problems and receipt.oid is None:
        return State.NOT_PUBLISHED, f"the revision is at {head[:12]}, and does not hold it"
    if problems and head != receipt.oid:
        return State.CONFLICT, f"the revision has moved on to {head[:12]}: {'; '.join(problems)}"
    if problems:
        return State.BROKEN, "; ".join(problems)
    if receipt.state not in (State.PUBLISHED, State.PRIVATE):
        return State.UNVERIFIED, "it is all there, and was not read back: push again to do so"
    if private and receipt.created and receipt.target.public:
        return State.PRIVATE, "it is all there and verified, and still private: push again to show it"
    return State.PUBLISHED, f"it is all there, at {head[:12]}"
