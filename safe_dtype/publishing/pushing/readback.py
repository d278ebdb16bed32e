"""Whether a published revision holds what it should: compared by the list of files, their bytes and their headers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...facts.variant import VARIANT_FILE
from ...hub.client import Hub
from ...hub.errors import HubError
from ...hub.remote_files import Manifest, Progress, Tree
from ...store.hashing import sha256_of
from ...store.temporary import temporary_folder
from ..publish_error import publish_error
from ..release import State, Target
from ..staging.manifest import manifest_of
from .changes import shadowing
from .refuse_for_base import evidence_of


@dataclass(frozen=True, slots=True)
class RemoteVerification:
    """What was found of a published revision."""

    target: Target
    oid: str
    against: str  # what it was held against
    files: int  # that were checked
    full: bool  # whether every byte was downloaded
    problems: tuple[str, ...]

    @property
    def right(self) -> bool:
        """Whether everything is as it should be."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {**asdict(self), "problems": list(self.problems), "right": self.right}


def verify(
    target: Target, *, api: Hub, against: Path | None = None, full: bool = False, progress: Progress | None = None
) -> RemoteVerification:
    """Check a published revision (`target.revision`: a branch, a tag or a commit).

    It is held against the staged folder `against`, else against the hashes in its own safe_dtype.json. `full` downloads
    every file into a fresh folder and hashes it: the client itself compares no hash of what it downloads over HTTP.

    Raises:
        NotPublishableError: If `against` cannot be read.
        PublishError: If the Hub cannot be read.
    """
    tell = progress or _nobody
    expected = None if against is None else manifest_of(against, progress=progress)
    try:
        oid = api.head(target.repo, target.revision).oid
        tree = api.tree(target.repo, oid)
        if against is not None and expected is not None:
            problems = read_back(api, target.repo, oid, Expected(against, expected), progress)
            names: Mapping[str, str] = {path: digest.sha256 for path, digest in expected.items()}
            source = "the staged folder"
        else:
            names, problems = _of_itself(api, target.repo, oid, tree)
            source = VARIANT_FILE
        if full:
            problems += _downloaded(api, target.repo, oid, tree, names, tell)
    except HubError as error:
        raise publish_error(api, error, State.UNKNOWN, target, "what is there was not read") from error
    return RemoteVerification(target, oid, source, len(names), full, tuple(dict.fromkeys(problems)))


def tree_problems(tree: Tree, expected: Manifest, deleted: tuple[str, ...] = ()) -> list[str]:
    """Return in what a tree is not what was published, a text for each file."""
    return [
        *(f"{path} is missing" for path in expected if path not in tree),
        *(f"{path} is another file" for path, digest in expected.items() if path in tree and not tree[path].holds(digest)),
        *(f"{path} was not deleted" for path in deleted if path in tree),
        *_shadows(tree, expected),
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Expected:
    """What a commit should hold."""

    folder: Path
    manifest: Manifest
    deleted: tuple[str, ...] = ()


def read_back(api: Hub, repo: str, oid: str, expected: Expected, progress: Progress | None = None) -> list[str]:
    """Compare a commit with the staged folder: the hashes of all files, the bytes of small ones, headers of weights.

    The commit may have been made just now: what is not seen yet is waited for.

    Raises:
        HubError: If something cannot be read.
    """
    manifest, tree = expected.manifest, api.tree(repo, oid, just_made=True)
    problems = tree_problems(tree, manifest, expected.deleted)
    there = [path for path in manifest if path in tree]
    for at, path in enumerate(there, 1):
        if not tree[path].large:
            if hashlib.sha256(api.fetch(repo, path, oid, just_made=True)).hexdigest() != manifest[path].sha256:
                problems.append(f"{path} is another file when it is downloaded")
        elif path.endswith(".safetensors") and api.header(repo, path, oid) != _local_header(expected.folder / path):
            problems.append(f"{path} has another header when it is downloaded")
        (progress or _nobody)("read back", at, len(there))
    return problems


def _of_itself(api: Hub, repo: str, oid: str, tree: Tree) -> tuple[dict[str, str], list[str]]:
    listed = evidence_of(api.fetch(repo, VARIANT_FILE, oid)).get("files") if VARIANT_FILE in tree else None
    if not isinstance(listed, dict) or not listed:
        return {}, [f"it has no {VARIANT_FILE} that lists its files: nothing says what they should be"]
    names = {str(path): str(entry.get("sha256", "")) for path, entry in listed.items() if isinstance(entry, dict)}
    problems = [*(f"{path} is missing" for path in names if path not in tree), *_shadows(tree, names)]
    for path in (path for path in names if path in tree):
        large = tree[path].large
        digest = tree[path].oid if large else hashlib.sha256(api.fetch(repo, path, oid)).hexdigest()
        if digest != names[path]:
            problems.append(f"{path} is another file")
    return names, problems


def _shadows(tree: Tree, published: Iterable[str]) -> list[str]:
    return [f"{path} may be loaded instead of the published weights" for path in sorted(shadowing(tree, published))]


def _downloaded(api: Hub, repo: str, oid: str, tree: Tree, names: Mapping[str, str], progress: Progress) -> list[str]:
    problems = []
    there = [path for path in names if path in tree]
    total, done = sum(tree[path].size for path in there), 0
    for path in there:
        # One at a time: it is looked at once, and need not fit on the disk together with the rest.
        with temporary_folder("safe_dtype-verify-") as fresh:
            if sha256_of(api.download(repo, path, oid, fresh)) != names[path]:
                problems.append(f"{path} is another file when it is downloaded")
        done += tree[path].size
        progress("download", done, total)
    return problems


def _local_header(file: Path) -> dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """Read the header as `Hub.header` does; empty where the file has none that is whole."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        try:
            header = json.loads(opened.read(length) if length < file.stat().st_size else b"")
        except ValueError:
            return {}
    return {
        name: (str(tensor["dtype"]), tuple(tensor["shape"]), tuple(tensor["data_offsets"]))
        for name, tensor in header.items()
        if name != "__metadata__"
    }


def _nobody(what: str, done: int, total: int) -> None:
    """Hear of no progress."""
