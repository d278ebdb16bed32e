"""Make one commit, and find out whether it landed: after an error it may be there all the same, and reads can lag."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from ...hub.client import Commit, Hub
from ...hub.errors import HubError
from ...hub.remote_files import Tree
from ..release import State

logger = logging.getLogger(__name__)

_AGAIN = "do it again: it finds out first whether it landed"


@dataclass(frozen=True, slots=True)
class Landed:
    """A commit that is there."""

    oid: str


@dataclass(frozen=True, slots=True)
class Stranded:
    """One that is not, or is not seen to be."""

    state: State  # NOT_PUBLISHED, CONFLICT or UNKNOWN
    error: HubError
    head: str  # of the branch, as it was seen last


def land(api: Hub, commit: Commit, *, holds: Callable[[Tree], bool]) -> Landed | Stranded:
    """Make one commit, look whether it is there where that is in doubt, and try again only if it is not.

    Trying again cannot make two of it: once one has landed, its parent is not the head any more, and the Hub refuses
    the other. `holds` says of a tree whether it is what the commit was to make.
    """
    doubt = False  # whether one of the tries may have landed, or may yet
    for wait in (*api.patience.waits, None):
        try:
            return Landed(api.commit(commit))
        except HubError as failed:
            error = failed
        doubt = doubt or not error.definite
        last = wait is None or error.definite or error.status == 412
        if doubt:
            logger.info("%s: %s; looking whether the commit landed", commit.repo, error.happened)
            if landing := _look(api, commit, error, holds, polls=api.patience.polls if last else ()):
                return landing
        if wait is None or last:
            break
        api.wait(wait, error)
    if error.status == 412:
        error = replace(error, happened="somebody else's commit came first, and cannot be seen yet")
        return Stranded(State.CONFLICT, error, commit.parent)
    return Stranded(State.NOT_PUBLISHED, error, commit.parent)


def _look(
    api: Hub, commit: Commit, error: HubError, holds: Callable[[Tree], bool], *, polls: tuple[float, ...]
) -> Landed | Stranded | None:
    """Look for our commit until the branch is seen to have moved; None where it has not."""
    for wait in (*polls, None):
        try:
            landing = _seen(api, commit, holds, last=wait is None)
        except HubError as unread:
            happened = f"{error.happened}, and whether it landed cannot be read ({unread.happened})"
            unknown = replace(error, happened=happened, advice=_AGAIN)
            return Stranded(State.UNKNOWN, unknown, commit.parent)
        if landing is not None:
            return landing
        if wait is not None:
            api.wait(wait)
    return None


def _seen(api: Hub, commit: Commit, holds: Callable[[Tree], bool], *, last: bool) -> Landed | Stranded | None:
    head = api.head(commit.repo, commit.revision).oid
    if head == commit.parent:
        return None
    since = _since(api, commit)
    for oid, title in since:
        if title == commit.title:
            return Landed(oid)
    if holds(api.tree(commit.repo, head)):
        return Landed(head)  # under another title: squashed, or made by somebody else
    if not last and head not in {oid for oid, _ in since}:
        return None  # the list of commits is older than the head
    others = ", ".join(repr(title) for _, title in since[:3]) or "a commit that is not listed yet"
    happened = f"somebody else moved {commit.revision} from {commit.parent[:12]} to {head[:12]}: {others}"
    advice = "look at it, then push again; --rebase does so by itself where it touches other files"
    return Stranded(State.CONFLICT, HubError(happened, advice), head)


def _since(api: Hub, commit: Commit) -> list[tuple[str, str]]:
    """Return the commits after the one that ours was planned on, the newest first."""
    since = []
    for oid, title in api.commits(commit.repo, commit.revision):
        if oid == commit.parent:
            break
        since.append((oid, title))
    return since
