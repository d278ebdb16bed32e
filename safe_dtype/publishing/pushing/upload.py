"""Send the bytes, which nobody sees yet, and then make the one commit that shows all of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...errors import PublishError
from ...hub.client import Commit, Hub
from ...hub.errors import HubError
from ...hub.remote_files import Manifest, Progress, Tree
from ..publish_error import publish_error
from ..release import Changes, State, Target
from .changes import plan_changes
from .commit import Landed, Stranded, land
from .journal import Journal
from .readback import tree_problems

_REBASES = 3  # more often than that, somebody else is at work there


@dataclass(frozen=True, slots=True)
class Parcel:
    """What goes to the Hub, and who hears of it."""

    folder: Path
    manifest: Manifest
    target: Target  # as it was asked for, also where a temporary branch comes first
    rebase: bool
    tell: Progress


def send(api: Hub, parcel: Parcel, changes: Changes, journal: Journal) -> tuple[str, tuple[str, ...]]:
    """Make `changes`, and return the commit that holds them with what it deleted; the head, where all is there already.

    Raises:
        PublishError: If they are not made, or nobody can tell.
    """
    for left in reversed(range(_REBASES + 1)):
        if changes.head is not None and not (changes.add or changes.update or changes.delete):
            return changes.head, ()
        landing = _send_once(api, parcel, changes, journal)
        if isinstance(landing, Landed):
            return landing.oid, changes.delete
        if landing.state is State.CONFLICT and parcel.rebase and left:
            changes = _rebased(api, parcel, changes, landing)
            continue
        raise _unmade(api, parcel, changes, landing)
    raise AssertionError("unreachable: the last round returns or raises")


def as_it_was(target: Target, changes: Changes) -> str:
    """Say what others see of `target` as long as nothing was committed."""
    if changes.target.revision != target.revision:
        return f"no branch {target.revision}"
    return "an empty repository" if changes.blank else f"{target} as it was, at {(changes.head or 'its start')[:12]}"


def _send_once(api: Hub, parcel: Parcel, changes: Changes, journal: Journal) -> Landed | Stranded:
    repo, revision, parent = changes.target.repo, changes.target.revision, changes.head
    if parent is None:
        raise AssertionError("changes are sent to a branch that is there")
    journal.note(State.NOT_PUBLISHED)
    try:
        additions = api.additions(parcel.folder, (*changes.add, *changes.update), parcel.manifest)
        api.upload(repo, revision, additions, parcel.tell)
    except HubError as error:
        raise publish_error(
            api, error, State.NOT_PUBLISHED, parcel.target, as_it_was(parcel.target, changes)
        ) from error
    # From here on only the Hub knows.
    journal.note(State.UNKNOWN, note="the commit was being made")

    def holds(tree: Tree) -> bool:
        return not tree_problems(tree, parcel.manifest, changes.delete)

    title = f"safe-dtype: publish {changes.publish_id}"
    commit = Commit(repo, revision, title, parent, delete=changes.delete, additions=additions)
    return land(api, commit, holds=holds)


def _rebased(api: Hub, parcel: Parcel, changes: Changes, landing: Stranded) -> Changes:
    """Plan again on somebody else's commit, unless it touches a file of ours."""
    repo, visible = changes.target.repo, f"{parcel.target} as somebody else left it; nothing of ours"
    try:
        old, new = api.tree(repo, changes.head or ""), api.tree(repo, landing.head)
    except HubError as error:
        raise publish_error(api, error, State.CONFLICT, parcel.target, visible) from error
    changed = {path for path in old.keys() | new.keys() if old.get(path) != new.get(path)}
    if touched := sorted(changed & changes.paths):
        happened = f"somebody else changed {', '.join(touched)} in {(landing.head or '')[:12]}"
        advice = "look at it, then push again: what was planned then is put on top"
        raise PublishError(str(State.CONFLICT), str(parcel.target), happened, visible, advice)
    return plan_changes(api, parcel.manifest, changes.target)


def _unmade(api: Hub, parcel: Parcel, changes: Changes, landing: Stranded) -> PublishError:
    visible = as_it_was(parcel.target, changes)
    if landing.state is State.UNKNOWN:
        visible = "unknown: all of it or nothing"
    elif landing.state is State.CONFLICT:
        visible = f"{parcel.target} as somebody else left it; nothing of ours"
    return publish_error(api, landing.error, landing.state, parcel.target, visible)
