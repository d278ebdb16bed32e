"""Publish a staged folder: plan, bytes, one commit, read back, visibility. Run again, it goes on where it stopped."""

from __future__ import annotations

import logging
from pathlib import Path

from ...errors import PublishError
from ...hub.client import Hub
from ...hub.errors import HubError
from ...hub.remote_files import Manifest, Progress
from ..publish_error import publish_error
from ..release import Changes, Receipt, State, Target, publish_id
from ..staging.manifest import manifest_of
from .changes import plan_changes
from .journal import Journal, receipt_for
from .new_branch import send_on_new_branch, tidy
from .readback import Expected, read_back
from .refuse_for_base import refuse_for_base
from .upload import Parcel, send

logger = logging.getLogger(__name__)


def push(folder: Path, target: Target, *, api: Hub, progress: Progress | None = None, rebase: bool = False) -> Receipt:
    """Put the files of `folder` on the Hub in one commit, read them back, and return the receipt.

    Others see nothing of it or all of it, whatever fails. `folder` is only read; its receipt is beside it (see
    `receipt_path`) and says how far things have come, also after the process was killed. The same call again sends
    what has not arrived, and makes no second commit. A new repository is private until everything was read back.

    Args:
        folder: What is to be in the repository, files for files.
        target: Where. A revision that is not there is made, through a temporary branch.
        api: The Hub.
        progress: Hears of ("hash" | "upload" | "read back", done, total), the first two in bytes.
        rebase: Whether to go on where somebody else's commit came first and touches none of these files.

    Raises:
        NotPublishableError: If the folder must not be published there. Nothing was sent.
        PublishError: In every other case; `state` says how things stand.
    """
    manifest = manifest_of(folder, progress=progress)
    refuse_for_base(folder, target, api)
    previous = receipt_for(folder, target)
    name = publish_id(manifest)
    parcel = Parcel(folder, manifest, target, rebase, progress or _nobody)
    journal = Journal(folder, Receipt(target, name, State.NOT_STARTED, files=manifest))
    with journal.closing():
        changes = _planned(api, manifest, target, previous)
        created = changes.blank or (previous is not None and previous.created)
        journal.note(State.NOT_PUBLISHED, created=created)
        if changes.creates_branch:
            oid, deleted = send_on_new_branch(api, parcel, name, journal)
        else:
            oid, deleted = send(api, parcel, changes, journal)
            journal.note(State.UNVERIFIED, oid=oid, deleted=deleted, note="")
            _verified(api, parcel, oid, deleted)
        note = tidy(api, target, name) if target.revision != "main" else ""
        if target.public and changes.private and created:
            journal.note(State.PRIVATE, note="verified")
            _shown(api, target, oid)
        elif target.public and changes.private:
            note = note or "the repository was private before, and still is"
        logger.info(
            "Published %s at %s", target, oid, extra={"repo": target.repo, "revision": target.revision, "oid": oid}
        )
        return journal.note(State.PUBLISHED, note=note, created=False)


def _planned(api: Hub, manifest: Manifest, target: Target, previous: Receipt | None) -> Changes:
    """Plan on a repository that is there and may be written to; make it, private, where it is not."""
    changes = plan_changes(api, manifest, target, previous=previous)
    if not changes.creates_repo:
        if not changes.empty:
            try:
                api.require_write(target.repo)
            except HubError as error:
                raise publish_error(api, error, State.NOT_STARTED, target, "what was there before") from error
        return changes
    try:
        api.create_repo(target.repo)
        api.head(target.repo, "main", just_made=True)
    except HubError as error:
        raise publish_error(
            api, error, State.NOT_STARTED, target, "nothing, or an empty private repository"
        ) from error
    # Again: it may have been there all the time, somebody else's and hidden, or made by somebody else just now.
    changes = plan_changes(api, manifest, target, previous=previous)
    if changes.creates_repo:
        happened = "the Hub has made the repository, and does not find it"
        raise PublishError(str(State.NOT_STARTED), str(target), happened, "an empty private repository", "push again")
    return changes


def _verified(api: Hub, parcel: Parcel, oid: str, deleted: tuple[str, ...]) -> None:
    target, visible = parcel.target, f"the new commit {oid[:12]}"
    try:
        problems = read_back(api, target.repo, oid, Expected(parcel.folder, parcel.manifest, deleted), parcel.tell)
    except HubError as error:
        raise publish_error(
            api, error, State.UNVERIFIED, target, f"{visible}, which could not be read back"
        ) from error
    if problems:
        happened = f"what the Hub gives back is not what was sent: {'; '.join(problems)}"
        advice = "push again, or go back with `safe-dtype publish rollback`"
        raise PublishError(str(State.BROKEN), str(target), happened, visible, advice)


def _shown(api: Hub, target: Target, oid: str) -> None:
    try:
        api.make_public(target.repo)
    except HubError as error:
        visible = f"nothing: the repository is private; {oid[:12]} is in it, whole and verified"
        raise publish_error(api, error, State.PRIVATE, target, visible) from error


def _nobody(what: str, done: int, total: int) -> None:
    """Hear of no progress."""
