"""What the loopback Hub keeps of one repository: commits, branches and the trees they stand for. No HTTP in here."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

LARGE_FILES = re.compile(r"\.(safetensors|bin|pt|onnx|gguf|msgpack|h5|npz|pkl)$|(^|/)tokenizer\.json$")
LARGE_FROM = 10 * 2**20  # bytes


class Refused(Exception):  # noqa: N818  (an answer, not a failure of the server)
    """A request that is answered with an error. `code` is what the client makes its exception types of."""

    def __init__(self, status: int, message: str, code: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(status, message, code, retry_after)
        self.status, self.message, self.code, self.retry_after = status, message, code, retry_after


def git_sha1(content: bytes) -> str:
    """Return the name that git gives to a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(path: str, size: int, sample: bytes) -> bool:
    """Whether a file is kept by its SHA-256 apart from the tree, judged by its name, its size and its first bytes."""
    return size > 0 and bool(LARGE_FILES.search(path) or size > LARGE_FROM or b"\0" in sample)


@dataclass(frozen=True, slots=True)
class Entry:
    """A file in a tree."""

    size: int
    git: str  # SHA-1 of the blob; for a large file that of its pointer
    content: bytes | None = None  # of a small file
    sha256: str | None = None  # of a large file

    @classmethod
    def small(cls, content: bytes) -> Entry:
        """Return the entry of a file that is kept in the tree itself."""
        return cls(len(content), git_sha1(content), content)

    @classmethod
    def large(cls, sha256: str, size: int) -> Entry:
        """Return the entry of a file that is kept by its SHA-256."""
        return cls(size, git_sha1(_pointer(sha256, size)), sha256=sha256)

    @property
    def oid(self) -> str:
        """What preupload answers as the name of the file that is there."""
        return self.sha256 or self.git

    @property
    def blob(self) -> dict[str, Any]:
        """What is said of it where a repository is described with its files."""
        lfs = {"sha256": self.sha256, "size": self.size, "pointerSize": len(_pointer(self.sha256 or "", self.size))}
        return {"size": self.size, "blobId": self.git, **({"lfs": lfs} if self.sha256 else {})}

    def listed(self, path: str, xet_hash: str | None) -> dict[str, Any]:
        """Return it as a listing of a tree gives it."""
        found: dict[str, Any] = {"type": "file", "path": path, "oid": self.git, "size": self.size}
        if self.sha256:
            pointer_size = len(_pointer(self.sha256, self.size))
            found["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": pointer_size}
            found |= {"xetHash": xet_hash} if xet_hash else {}
        return found


def _pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


@dataclass(frozen=True, slots=True)
class Commit:
    """One state of a repository. Never changed."""

    parent: str | None
    tree: Mapping[str, Entry]
    title: str
    message: str = ""


@dataclass
class Repository:
    """Commits by name, and the branches that point at them."""

    name: str
    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        attributes = Entry.small(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
        self.branches["main"] = self._keep(Commit(None, {".gitattributes": attributes}, "initial commit"))

    def resolve(self, revision: str) -> str:
        """Return the commit that a branch, or the beginning of a commit's own name, stands for."""
        if revision in self.branches:
            return self.branches[revision]
        if found := [oid for oid in self.commits if len(revision) >= 7 and oid.startswith(revision)]:
            return found[0]
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def tree(self, revision: str) -> Mapping[str, Entry]:
        """Return the files at a revision."""
        return self.commits[self.resolve(revision)].tree

    def head(self, branch: str) -> str:
        """Return the commit that a branch points at; a commit's own name is no branch."""
        if branch not in self.branches:
            raise Refused(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        return self.branches[branch]

    def commit(
        self, branch: str, add: Mapping[str, Entry], delete: Iterable[str], title: str, message: str = ""
    ) -> str:
        """Put one commit on a branch; return its name."""
        parent = self.head(branch)
        tree = {**self.commits[parent].tree}
        for path in delete:
            if path not in tree:
                raise Refused(404, f"A file with the name {path} doesn't exist", "EntryNotFound")  # a guess
            del tree[path]
        self.branches[branch] = self._keep(Commit(parent, {**tree, **add}, title, message))
        return self.branches[branch]

    def history(self, revision: str) -> list[tuple[str, Commit]]:
        """Return the commits that led to a revision, newest first."""
        found = []
        oid: str | None = self.resolve(revision)
        while oid is not None:
            found.append((oid, self.commits[oid]))
            oid = self.commits[oid].parent
        return found

    def ignores(self, revision: str, given: str | None) -> IgnoreRules:
        """Return the rules of the `.gitignore` that is `given`, else of the one in the tree.

        That an empty one counts as none is a guess.
        """
        kept = self.tree(revision).get(".gitignore")
        return IgnoreRules(given or ((kept.content or b"").decode() if kept else ""))

    def _keep(self, commit: Commit) -> str:
        files = sorted((path, entry.git) for path, entry in commit.tree.items())
        named = json.dumps([commit.parent, files, commit.title, commit.message, len(self.commits)])
        oid = hashlib.sha1(named.encode()).hexdigest()
        self.commits[oid] = commit
        return oid


@dataclass(frozen=True, slots=True)
class IgnoreRules:
    """A `.gitignore`: the last rule that matches a path, or a folder above it, decides."""

    text: str

    def cover(self, path: str) -> bool:
        """Whether `path` is ignored."""
        parts = path.split("/")
        above = ["/".join(parts[:depth]) + "/" for depth in range(1, len(parts))]
        return any(self._last_word(one) for one in (*above, path))

    def _last_word(self, path: str) -> bool:
        ignored = False
        for line in (raw.rstrip() for raw in self.text.splitlines()):
            rule = line.removeprefix("!")
            if line and not line.startswith("#") and re.fullmatch(_ignored_by(rule), path):
                ignored = rule == line
        return ignored


def _ignored_by(rule: str) -> str:
    """Return the regular expression of one rule; a folder's path ends in "/"."""
    anchored = "/" in rule.rstrip("/")
    tokens = re.split(r"(\*\*/|\*\*|\*|\?)", rule.strip("/"))
    regex = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    body = "".join(regex.get(token, re.escape(token)) for token in tokens)
    return ("" if anchored else "(?:.*/)?") + body + ("/" if rule.endswith("/") else "/?")
