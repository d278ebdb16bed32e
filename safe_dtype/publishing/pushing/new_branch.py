"""Publish to a branch that does not exist yet. Made the usual way, it would show main's weights until the commit."""

from __future__ import annotations

from dataclasses import replace

from ...errors import PublishError
from ...hub.client import Hub
from ...hub.errors import HubError
from ..publish_error import publish_error
from ..release import Changes, State, Target
from .changes import plan_changes
from .journal import Journal
from .readback import Expected, read_back
from .upload import Parcel, send


def send_on_new_branch(api: Hub, parcel: Parcel, name: str, journal: Journal) -> tuple[str, tuple[str, ...]]:
    """Commit on a temporary branch, read that back, and only then give the commit the name of `parcel.target`.

    Returns:
        The commit, verified, and what it deleted of main's files.

    Raises:
        PublishError: If the branch was not made, or nobody can tell.
    """
    target, visible = parcel.target, f"no branch {parcel.target.revision}"
    try:
        changes = _on_temporary_branch(api, parcel, replace(target, revision=temporary(name)))
    except HubError as error:
        raise publish_error(api, error, State.NOT_PUBLISHED, target, visible) from error
    oid, deleted = send(api, parcel, changes, journal)
    journal.note(State.NOT_PUBLISHED, oid=oid, deleted=deleted, note="committed, and not named yet")
    try:
        problems = read_back(api, target.repo, oid, Expected(parcel.folder, parcel.manifest, deleted), parcel.tell)
    except HubError as error:
        raise publish_error(api, error, State.NOT_PUBLISHED, target, visible) from error
    if problems:
        happened = f"what the Hub gives back is not what was sent: {'; '.join(problems)}"
        raise PublishError(str(State.NOT_PUBLISHED), str(target), happened, visible, "push again")
    journal.note(State.UNKNOWN, note="the branch was being made")
    try:
        _name(api, target, oid)
    except PublishError as error:
        if error.state == State.CONFLICT:  # the next push goes to the branch that is there now
            tidy(api, target, name)
        raise
    journal.note(State.UNVERIFIED)
    return oid, deleted


def temporary(name: str) -> str:
    """Return the temporary branch of a publication."""
    return f"safe-dtype/tmp-{name}"


def tidy(api: Hub, target: Target, name: str) -> str:
    """Delete the temporary branch; return what is to be said where that fails, else ""."""
    try:
        api.delete_branch(target.repo, temporary(name))
    except HubError as error:
        return f"the branch {temporary(name)} is left over, and does no harm: {error.happened}"
    return ""


def _on_temporary_branch(api: Hub, parcel: Parcel, work: Target) -> Changes:
    """Plan on the temporary branch: a new one, or one that an earlier run left with the very commit."""
    main = api.head(work.repo, "main").oid
    api.create_branch(work.repo, work.revision, main)
    api.head(work.repo, work.revision, just_made=True)
    changes = plan_changes(api, parcel.manifest, work)
    if (changes.add or changes.update or changes.delete) and changes.head != main:
        # An earlier run left it, and main has moved since.
        api.delete_branch(work.repo, work.revision)
        api.create_branch(work.repo, work.revision, main)
        api.head(work.repo, work.revision, just_made=True)
        changes = plan_changes(api, parcel.manifest, work)
    return changes


def _name(api: Hub, target: Target, oid: str) -> None:
    failed: HubError | None = None
    try:
        api.create_branch(target.repo, target.revision, oid)
    except HubError as error:
        failed = error
    try:
        head = api.head(target.repo, target.revision, just_made=failed is None).oid
    except HubError as error:
        if failed is not None and error.missing == "revision":
            visible = f"no branch {target.revision}"
            raise publish_error(api, failed, State.NOT_PUBLISHED, target, visible) from failed
        raise publish_error(api, failed or error, State.UNKNOWN, target, "unknown: all of it or nothing") from error
    if head != oid:
        happened = f"somebody else made the branch {target.revision} meanwhile, at {head[:12]}"
        visible = f"{target} as somebody else made it; nothing of ours"
        raise PublishError(str(State.CONFLICT), str(target), happened, visible, "look at it, then push again")
