"""Go back to an earlier commit with a new one: what others pinned stays, and the history is not rewritten."""

from __future__ import annotations

from dataclasses import replace

from ...errors import PublishError
from ...hub.client import Commit, Hub
from ...hub.errors import HubError
from ...hub.remote_files import Tree
from ...store.temporary import temporary_folder
from ..publish_error import publish_error
from ..release import Receipt, State, Target
from .commit import Landed, Stranded, land

# What a server answers that copies nothing within a commit.
_NO_COPIES = (400, 404, 422, 501)


def rollback(target: Target, to: str, *, api: Hub) -> Receipt:
    """Make the files of a branch those of the commit `to`, by one new commit on top, and read that back.

    The bytes are on the Hub already: it is told to copy. Only where it will not, they are downloaded and sent.

    Raises:
        PublishError: If the branch is not seen to hold them; `state` says how things stand.
    """
    try:
        head, past = api.head(target.repo, target.revision).oid, api.head(target.repo, to).oid
        now, then = api.tree(target.repo, head), api.tree(target.repo, past)
    except HubError as error:
        raise publish_error(api, error, State.NOT_STARTED, target, "what was there before") from error
    deleted = tuple(sorted(now.keys() - then.keys()))
    back = tuple(sorted(path for path in then if now.get(path) != then[path]))
    if not deleted and not back:
        return Receipt(target, past[:16], State.PUBLISHED, head, note=f"it holds the files of {past} already")
    title = f"safe-dtype: roll back to {past[:12]}"
    commit = Commit(target.repo, target.revision, title, head, delete=deleted, copy=back, copy_from=past)
    landing = land(api, commit, holds=lambda tree: tree == then)
    if isinstance(landing, Stranded) and landing.error.status in _NO_COPIES:
        landing = _landed_with_bytes(api, replace(commit, copy=()), target, past, then)
    if isinstance(landing, Stranded):
        visible = "unknown: all of it or nothing" if landing.state is State.UNKNOWN else "what was there before"
        raise publish_error(api, landing.error, landing.state, target, visible)
    _same(api, target, landing.oid, then)
    return Receipt(target, past[:16], State.PUBLISHED, landing.oid, deleted=deleted, note=f"rolled back to {past}")


def _landed_with_bytes(api: Hub, commit: Commit, target: Target, past: str, then: Tree) -> Landed | Stranded:
    """Download all files of an earlier commit, send them, and make `commit` with them."""
    with temporary_folder("safe_dtype-rollback-") as folder:
        try:
            for path in then:
                api.download(target.repo, path, past, folder)
            additions = api.additions(folder, then)
            api.upload(target.repo, target.revision, additions, lambda *_: None)
        except HubError as error:
            raise publish_error(api, error, State.NOT_PUBLISHED, target, "what was there before") from error
        again = replace(commit, additions=additions)
        return land(api, again, holds=lambda tree: tree == then)


def _same(api: Hub, target: Target, oid: str, then: Tree) -> None:
    try:
        tree = api.tree(target.repo, oid, just_made=True)
    except HubError as error:
        visible = f"the new commit {oid[:12]}, which could not be read back"
        raise publish_error(api, error, State.UNVERIFIED, target, visible) from error
    if tree != then:
        wrong = sorted(path for path in tree.keys() | then.keys() if tree.get(path) != then.get(path))
        happened = f"the new commit differs from the earlier one in {', '.join(wrong)}"
        raise PublishError(str(State.BROKEN), str(target), happened, f"the new commit {oid[:12]}", "roll back again")
