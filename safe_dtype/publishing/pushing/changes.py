"""What one commit would change: the dry run. Reads the Hub, and changes nothing."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from ...errors import PublishError
from ...facts.variant import VARIANT_FILE
from ...hub.client import Hub
from ...hub.errors import HubError
from ...hub.remote_files import Manifest, Progress, RemoteFile, Tree
from ..publish_error import publish_error
from ..release import Changes, Receipt, State, Target, publish_id
from ..staging.manifest import manifest_of
from .journal import receipt_for
from .refuse_for_base import evidence_of, refuse_for_base, refused

# What from_pretrained looks for, in its order: a model.safetensors that was left over is loaded instead of the shards
# that were just published, and nobody is told.
_WEIGHTS = re.compile(
    r"(model|pytorch_model)(-\d{5}-of-\d{5})?\.(safetensors|bin)|(model\.safetensors|pytorch_model\.bin)\.index\.json"
)
_VARIANT = re.compile(
    r"(model|pytorch_model)\.[^./]+\.(safetensors|bin)|(model\.safetensors|pytorch_model\.bin)\.index\.[^./]+\.json"
)
_MADE_BY_THE_HUB = frozenset({".gitattributes"})
_REPO = re.compile(r"[\w.-]+/[\w.-]+")


def diff(folder: Path, target: Target, *, api: Hub, progress: Progress | None = None) -> Changes:
    """Return what publishing `folder` would change at `target`.

    Raises:
        NotPublishableError: If it must not be published there.
        PublishError: If the Hub cannot be read.
    """
    manifest = manifest_of(folder, progress=progress)
    try:
        refuse_for_base(folder, target, api)
        return plan_changes(api, manifest, target, previous=receipt_for(folder, target))
    except PublishError as error:
        visible = "what was there before, for diff sends nothing"
        raise type(error)(error.state, error.repo, error.happened, visible, error.advice) from error


def plan_changes(api: Hub, manifest: Manifest, target: Target, *, previous: Receipt | None = None) -> Changes:
    """Return the changes that make `target` hold the files of `manifest`, planned on the commit it is at now.

    Deleted are weights that from_pretrained would take for ours, and what an earlier publication of ours brought
    (by its receipt `previous`, or the evidence in the repository) and this one does not have. Nothing else.

    Raises:
        NotPublishableError: If the target is no name of a repository, is public and was not meant to be, or would
            hold weights of several dtypes beside one config.json.
        PublishError: If the Hub cannot be read.
    """
    if not _REPO.fullmatch(target.repo):
        raise refused(target, f"{target.repo!r} is no name of a repository", "name it as org/name")
    _refuse_variants(target, manifest)
    try:
        return _plan(api, manifest, target, previous)
    except HubError as error:
        raise publish_error(api, error, State.NOT_STARTED, target, "what was there before") from error


def changes_text(changes: Changes) -> str:
    """Return the changes for people: a line for each file, and what becomes of the repository."""
    target = changes.target
    there = f"at {changes.head[:12]}" if changes.head else "which is made for it"
    shown = "private" if changes.creates_repo or changes.private else "public"
    if changes.creates_repo and target.public:
        shown = "private until it is verified, then public"
    lines = [f"{target}, {there}, {shown}: safe-dtype: publish {changes.publish_id}"]
    for sign, paths in (("+", changes.add), ("~", changes.update), ("-", changes.delete), ("=", changes.keep)):
        lines += [f"  {sign} {path}" for path in paths]
    if changes.empty:
        return "\n".join([*lines, "Everything is there already."])
    counts = f"{len(changes.add)} added, {len(changes.update)} updated, {len(changes.delete)} deleted"
    return "\n".join([*lines, f"{counts}, {len(changes.keep)} there already; {changes.bytes:,} bytes to send."])


def shadowing(there: Iterable[str], published: Iterable[str]) -> set[str]:
    """Return the weights among `there` that from_pretrained may take for those that are published with them."""
    ours = {path for path in published if _WEIGHTS.fullmatch(path)}
    return {path for path in there if _WEIGHTS.fullmatch(path)} - ours if ours else set()


def _plan(api: Hub, manifest: Manifest, target: Target, previous: Receipt | None) -> Changes:
    name = publish_id(manifest)
    sent = sum(digest.size for digest in manifest.values())
    try:
        main = api.head(target.repo, "main")
    except HubError as error:
        if error.missing == "repository":
            return Changes(target, name, None, creates_repo=True, creates_branch=target.revision != "main",
                           add=tuple(sorted(manifest)), bytes=sent)  # fmt: skip
        raise
    if not main.private and not target.public:
        advice = "make it private in its settings, or push with --public if everybody may see it"
        raise refused(target, "the repository is public, and this was not to be published to everybody", advice)
    head, missing = main, False
    if target.revision != "main":
        try:
            head = api.head(target.repo, target.revision)
        except HubError as error:
            if error.missing != "revision":
                raise
            missing = True
    tree = api.tree(target.repo, head.oid)
    _refuse_variants(target, {*manifest, *tree} if "config.json" in manifest else manifest)
    add = sorted(path for path in manifest if path not in tree)
    update = sorted(path for path, file in tree.items() if path in manifest and not file.holds(manifest[path]))
    return Changes(
        target,
        name,
        None if missing else head.oid,
        creates_branch=missing,
        private=main.private,
        blank=(missing or target.revision == "main") and not tree.keys() - _MADE_BY_THE_HUB,
        add=tuple(add),
        update=tuple(update),
        keep=tuple(sorted(manifest.keys() - set(add) - set(update))),
        delete=_stale(api, target, head.oid, tree, manifest, previous),
        bytes=sum(manifest[path].size for path in (*add, *update)),
    )


def _stale(
    api: Hub, target: Target, oid: str, tree: Tree, manifest: Manifest, previous: Receipt | None
) -> tuple[str, ...]:
    others = tree.keys() - manifest.keys() - _MADE_BY_THE_HUB
    weights = shadowing(tree, manifest)
    # A file that somebody changed since is theirs.
    ours = {path for path in others if previous and path in previous.files and tree[path].holds(previous.files[path])}
    if others - weights - ours and VARIANT_FILE in tree:
        listed = evidence_of(api.fetch(target.repo, VARIANT_FILE, oid)).get("files")
        records: dict[str, object] = listed if isinstance(listed, dict) else {}
        named = sorted(others & records.keys())
        ours |= {path for path in named if _is_as_listed(api, target, oid, path, tree[path], records[path])}
    return tuple(sorted(weights | ours))


def _is_as_listed(  # one file at one commit, and what is said of it
    api: Hub, target: Target, oid: str, path: str, file: RemoteFile, listed: object
) -> bool:
    """Whether a file is still what the evidence in the repository says: what somebody changed since is theirs."""
    if not isinstance(listed, dict) or listed.get("size") != file.size:
        return False
    sha256 = file.oid if file.large else hashlib.sha256(api.fetch(target.repo, path, oid)).hexdigest()
    return bool(sha256 == listed.get("sha256"))


def _refuse_variants(target: Target, paths: Iterable[str]) -> None:
    if variants := sorted(path for path in paths if _VARIANT.fullmatch(re.sub(r"-\d{5}-of-\d{5}", "", path))):
        raise refused(
            target,
            f"{', '.join(variants)} would share one config.json with the other weights, and transformers casts all of "
            "them to the dtype in it",
            "publish every dtype in a repository or a branch of its own",
        )
