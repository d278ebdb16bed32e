"""The Hub that is written to: repositories, branches, uploads and commits, tried again where a fault may pass."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    get_session,
    hf_hub_url,
    hf_raise_for_status,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # public, and exported lazily

from ..store.installed import installed_version
from .errors import CLIENT_ERRORS, HubError, translated
from .remote_files import Manifest, Progress, RemoteFile, Tree

logger = logging.getLogger(__name__)
Addition = CommitOperationAdd  # a file that a commit adds or updates; knows whether its bytes are on the Hub
T = TypeVar("T")

_LARGE_BYTES = 10 * 2**20  # from here on a file is sent in a call of its own group, so that progress is what arrived
_AT_ONCE = 4  # large files in one call of the client, which sends them side by side
_NOTHING_IGNORED = "# everything that was staged\n"  # an empty text may count as none
_TIMEOUT_SECONDS = 30.0
_LONGEST_WAIT_SECONDS = 300.0  # the Hub counts its limits over five minutes


@dataclass(frozen=True, slots=True)
class HubPatience:
    """How long to wait for the Hub, in seconds between one try and the next."""

    waits: tuple[float, ...] = (1, 2, 4)  # before the 2nd, 3rd and 4th try of what may be tried again
    polls: tuple[float, ...] = (1, 2, 4, 8, 8, 8)  # looks for a commit that may have landed: what is read can lag


@dataclass(frozen=True, slots=True)
class Head:
    """A revision as it is now."""

    oid: str
    private: bool
    gated: bool = False  # whether each reader must ask, or agree to terms, before the files are shown


@dataclass(frozen=True, slots=True)
class Commit:
    """What one commit is to do."""

    repo: str
    revision: str
    title: str
    parent: str  # the head that it was planned on
    delete: Sequence[str] = ()  # paths
    copy: Sequence[str] = ()  # paths that get the files that they have in `copy_from`
    copy_from: str = ""  # an earlier commit
    additions: Sequence[Addition] = ()  # uploaded before


class Hub:
    """One Hub and one login. Every method raises HubError and nothing else.

    What reads, and what can be done twice with one effect, is tried again after passing faults; `commit` never is.
    """

    def __init__(self, client: HfApi, patience: HubPatience | None = None) -> None:
        self._client, self.patience = client, patience or HubPatience()

    @staticmethod
    def connect(*, endpoint: str | None = None, token: str | None = None) -> Hub:
        """Return the Hub of the environment, with the login of `hf auth login`, unless told otherwise."""
        ours = installed_version("safe-dtype") or "0"  # run from a folder that was never installed
        return Hub(HfApi(endpoint=endpoint, token=token, library_name="safe-dtype", library_version=ours))

    def head(self, repo: str, revision: str, *, just_made: bool = False) -> Head:
        """Return where a branch is. `just_made` waits for one that is not seen at once."""

        def read() -> Head:
            described = self._client.model_info(repo, revision=revision, timeout=_TIMEOUT_SECONDS)
            return Head(str(described.sha), bool(described.private), bool(described.gated))

        return self._again(f"the head of {revision}", read, also_missing=just_made)

    def tree(self, repo: str, oid: str, *, just_made: bool = False) -> Tree:
        """Return every file at a commit. `just_made` waits for one that is not seen at once."""

        def read() -> Tree:
            entries = list(self._client.list_repo_tree(repo, revision=oid, recursive=True))
            return {entry.path: _remote(entry) for entry in entries if isinstance(entry, RepoFile)}

        return self._again("the list of files", read, also_missing=just_made)

    def commits(self, repo: str, revision: str) -> list[tuple[str, str]]:
        """Return (commit, title), the newest first."""
        listed = self._again("the commits", lambda: self._client.list_repo_commits(repo, revision=revision))
        return [(commit.commit_id, commit.title) for commit in listed]

    def fetch(self, repo: str, path: str, oid: str, *, just_made: bool = False) -> bytes:
        """Return the bytes of a small file. `just_made` waits for one that is not seen at once."""
        url = hf_hub_url(repo, path, revision=oid, endpoint=self._client.endpoint)

        def read() -> bytes:
            headers = build_hf_headers(token=self._client.token)
            answer = get_session().get(url, headers=headers, timeout=_TIMEOUT_SECONDS, follow_redirects=True)
            hf_raise_for_status(answer)
            return bytes(answer.content)

        return self._again(path, read, also_missing=just_made)

    def header(self, repo: str, path: str, oid: str) -> dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]]:
        """Return dtype, shape and place of every tensor of a safetensors file of a new commit, from its first bytes."""

        def read() -> dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]]:
            parsed = self._client.parse_safetensors_file_metadata(repo, path, revision=oid, timeout=_TIMEOUT_SECONDS)
            return {
                name: (str(tensor.dtype), tuple(tensor.shape), tuple(tensor.data_offsets))
                for name, tensor in parsed.tensors.items()
            }

        return self._again(f"the header of {path}", read, also_missing=True)

    def download(self, repo: str, path: str, oid: str, folder: Path) -> Path:
        """Download one file into a folder of its own, past every cache."""

        def read() -> Path:
            return Path(self._client.hf_hub_download(repo, path, revision=oid, local_dir=folder, force_download=True))

        return self._again(path, read)

    def require_write(self, repo: str) -> None:
        """Do nothing where this login may write to `repo`. A server that cannot say so counts as one that allows it."""
        try:
            self._again("the right to write", lambda: self._client.auth_check(repo, write=True))
        except HubError as fault:
            if fault.status != 404 or fault.missing:
                raise

    def create_repo(self, repo: str) -> None:
        """Make a private repository; one that is there already stays as it is."""
        self._again("the new repository", lambda: self._client.create_repo(repo, private=True, exist_ok=True))

    def make_public(self, repo: str) -> None:
        """Let everybody see a repository."""
        self._again("its visibility", lambda: self._client.update_repo_settings(repo, private=False))

    def create_branch(self, repo: str, branch: str, oid: str) -> None:
        """Give a commit a branch. One that is there already stays where it is: look at its head."""
        self._again(
            f"the branch {branch}",
            lambda: self._client.create_branch(repo, branch=branch, revision=oid, exist_ok=True),
        )

    def delete_branch(self, repo: str, branch: str) -> None:
        """Delete a branch, if it is there."""
        try:
            self._again(f"the branch {branch}", lambda: self._client.delete_branch(repo, branch=branch))
        except HubError as fault:
            if fault.missing != "revision":
                raise

    def additions(self, folder: Path, paths: Iterable[str], manifest: Manifest | None = None) -> list[Addition]:
        """Return what adds or updates `paths`. Reads the files, and refuses one that is not what `manifest` says."""
        additions = translated("the staged files", lambda: [Addition(path, folder / path) for path in paths])
        for addition in additions:
            path = addition.path_in_repo
            if manifest is not None and addition.upload_info.sha256.hex() != manifest[path].sha256:
                happened = f"{path} was changed while it was being published"
                raise HubError(happened, "stage it anew, and let nothing write to it", definite=True)
        return additions

    def upload(self, repo: str, revision: str, additions: Sequence[Addition], progress: Progress) -> None:
        """Send the bytes, where nobody sees them; those that the Hub has already are not sent again.

        `progress` hears of what has arrived, not of what was sent.

        Raises:
            HubError: If they did not all arrive, or the repository's .gitignore would keep one of them out.
        """
        total, done = sum(one.upload_info.size for one in additions), 0
        for group in _groups(additions):
            self._send(repo, revision, group)
            if ignored := [one.path_in_repo for one in group if _is_ignored(one)]:
                happened = f"the .gitignore of the repository keeps {', '.join(ignored)} out"
                raise HubError(happened, "remove these patterns from it, then push again", definite=True)
            done += sum(one.upload_info.size for one in group)
            progress("upload", done, total)

    def _send(self, repo: str, revision: str, group: list[Addition]) -> None:
        # What the repository's own .gitignore names is dropped without a word, so another one is given.
        translated(
            "the upload",
            lambda: self._client.preupload_lfs_files(
                repo, group, revision=revision, free_memory=False, gitignore_content=_NOTHING_IGNORED
            ),
        )

    def commit(self, commit: Commit) -> str:
        """Make one commit, once, and return its name. A failure that is not `definite` may have landed all the same."""
        made = translated(
            "the commit",
            lambda: self._client.create_commit(
                commit.repo,
                _operations_of(commit),
                commit_message=commit.title,
                revision=commit.revision,
                parent_commit=commit.parent,
            ),
        )
        return str(made.oid)

    def wait(self, seconds: float, error: HubError | None = None) -> None:
        """Wait, longer where the Hub asks for it."""
        asked = 0.0 if error is None else error.retry_after_seconds
        time.sleep(min(max(seconds, asked), _LONGEST_WAIT_SECONDS))

    def describe(self, fault: HubError) -> str:
        """Return what happened, for people: without the token, and with the account where a login decides."""
        who = f" (as {self._account()})" if fault.status in (401, 403, 404) else ""
        return self._without_token(fault.happened + who)

    def _account(self) -> str:
        try:
            return f"the account {self._client.whoami()['name']}"
        except (*CLIENT_ERRORS, TypeError):
            return "nobody: there is no login, or the Hub does not know it"

    def _without_token(self, text: str) -> str:
        token = build_hf_headers(token=self._client.token).get("authorization", "").removeprefix("Bearer ")
        return text.replace(token, "<token>") if token else text

    def _again(self, what: str, call: Callable[[], T], *, also_missing: bool = False) -> T:
        for wait in self.patience.waits:
            try:
                return translated(what, call)
            except HubError as error:  # noqa: PERF203
                if not (error.passing or (also_missing and error.missing)):
                    raise
                logger.debug("%s; trying again", error.happened)
                self.wait(wait, error)
        return translated(what, call)


def _operations_of(commit: Commit) -> list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete]:
    return [
        *(CommitOperationDelete(path, is_folder=False) for path in commit.delete),
        *(CommitOperationCopy(path, path, src_revision=commit.copy_from) for path in commit.copy),
        *commit.additions,
    ]


def _remote(entry: RepoFile) -> RemoteFile:
    if entry.lfs is None:
        return RemoteFile(entry.size, entry.blob_id, large=False)
    return RemoteFile(entry.size, entry.lfs.sha256, large=True)


def _is_ignored(addition: Addition) -> bool:
    # Private, and there is no other way: a commit leaves such a file out and reports success. A client in which it has
    # another name must fail here, not publish half of a model.
    return bool(cast("Any", addition)._should_ignore)


def _groups(additions: Sequence[Addition]) -> list[list[Addition]]:
    small = [one for one in additions if one.upload_info.size < _LARGE_BYTES]
    large = [one for one in additions if one.upload_info.size >= _LARGE_BYTES]
    groups = [small, *(large[at : at + _AT_ONCE] for at in range(0, len(large), _AT_ONCE))]
    return [group for group in groups if group]
