"""One repository on the Hub, through huggingface_hub, its errors turned into ours."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, CheckpointNotFoundError, CorruptCheckpointError, GatedCheckpointError
from ..facts import TensorFacts, Where
from ..store.close_names import missing_part
from .headers import TORCH_NAMES

logger = logging.getLogger(__name__)

# One of these is in the cache of every model that was ever used.
_TELLTALES = ("config.json", "adapter_config.json", "model.safetensors", "model.safetensors.index.json")
_LOG_IN = "log in with `hf auth login`, and ask for access on the model's page"


class HubRepository:
    """One repository at one revision. Nothing is asked of the network before a method needs it."""

    def __init__(self, where: Where) -> None:
        self._where = where

    @cached_property
    def commit(self) -> str | None:
        """The commit that the revision means now: one request, as transformers makes; offline that of the cache.

        Where the Hub does not answer, and the cache knows the revision, it is that of the cache as well: so transformers
        loads it. None offline where nothing is cached.

        Raises:
            CheckpointNotFoundError: If there is no such repository or revision.
            GatedCheckpointError: If the Hub wants a login or access to be granted.
            CheckpointError: If the Hub cannot be reached.
        """
        from huggingface_hub.file_download import REGEX_COMMIT_HASH

        if REGEX_COMMIT_HASH.fullmatch(self._revision):
            return self._revision
        cached = self._cached_commit()
        if self._is_offline:
            return cached
        try:
            return self._asked_commit()
        except CheckpointError as exc:
            if cached is None:
                raise
            logger.info("%s: %s; going on with commit %.7s of the cache", self._where.name, exc.problem, cached)
            return cached

    @property
    def _revision(self) -> str:
        from huggingface_hub import constants

        return self._where.revision or constants.DEFAULT_REVISION

    @property
    def _is_offline(self) -> bool:
        from huggingface_hub import constants

        return self._where.local_files_only or constants.is_offline_mode()

    def _asked_commit(self) -> str | None:
        from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
        from huggingface_hub.errors import EntryNotFoundError

        with self._translated("its commit"):
            try:
                url = hf_hub_url(self._where.name, _TELLTALES[0], revision=self._where.revision)
                return get_hf_file_metadata(url, token=self._where.token).commit_hash
            except EntryNotFoundError as exc:  # the revision exists, and says which commit it is
                headers = getattr(getattr(exc, "response", None), "headers", {})
                commit: str | None = headers.get(constants.HUGGINGFACE_HEADER_X_REPO_COMMIT)
                return commit

    def _cached_commit(self) -> str | None:
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        folder = repo_folder_name(repo_id=self._where.name, repo_type="model")
        try:
            ref = (self._cache_dir or Path(constants.HF_HUB_CACHE)) / folder / "refs" / self._revision
            return ref.read_text(encoding="utf-8").strip() or None
        except OSError:
            return None

    def blobs(self) -> Mapping[str, str]:
        """Return the names of all files, each with the digest of its content; offline none: nothing is listed there.

        The digest is the file's name among the blobs of the cache: SHA-256 of a large file, git's of a small one.

        Raises:
            CheckpointNotFoundError: If there is no such repository or revision; offline, if nothing of it is cached.
            GatedCheckpointError: If the Hub wants a login or access to be granted.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        if self._is_offline:
            self._require_cached()
            return {}
        with self._translated("a list of files"):
            entries = HfApi().list_repo_tree(self._where.name, recursive=True, **self._at())
            files = [entry for entry in entries if isinstance(entry, RepoFile)]
        return {file.path: file.lfs.sha256 if file.lfs else file.blob_id for file in files}

    def _require_cached(self) -> None:
        prefix = f"{self._where.subfolder}/" if self._where.subfolder else ""
        if not any(self.cached(prefix + name) for name in _TELLTALES):
            problem = f"{self._no_folder}, and not in the cache of the Hub; offline, nothing was asked"
            advice = "check the path, or go online once to download it"
            raise CheckpointNotFoundError(self._where.name, problem, advice)

    def cached(self, name: str) -> Path | None:
        """Return the path of `name` in the cache, as of the commit; None where it is not there."""
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            cached = try_to_load_from_cache(
                self._where.name, name, cache_dir=self._cache_dir, revision=self.commit or self._where.revision
            )
        except HFValidationError as exc:
            raise CheckpointNotFoundError(
                self._where.name, f"is neither a folder nor a repository's name ({exc})"
            ) from exc
        return Path(cached) if isinstance(cached, str) else None

    def download(self, name: str) -> Path:
        """Download one file into the cache, as transformers would, and return its path."""
        from huggingface_hub import hf_hub_download

        with self._translated(name):
            return Path(hf_hub_download(self._where.name, name, cache_dir=self._cache_dir, **self._as_asked()))

    def snapshot(self, *, only: list[str] | None = None, without: list[str] | None = None) -> Path:
        """Download the files of one revision into the cache, and return their folder, which is named by the commit.

        Args:
            only: Patterns such as "*.json": of these files nothing else; by default all.
            without: Patterns of files that are left out.

        Raises:
            CheckpointError: If they cannot all be downloaded.
        """
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        with self._translated("its files"):
            try:
                folder = snapshot_download(
                    self._where.name, **self._as_asked(), cache_dir=self._cache_dir,
                    local_files_only=self._where.local_files_only, allow_patterns=only, ignore_patterns=without,
                )  # fmt: skip
                return Path(folder)
            except OSError as exc:
                if isinstance(exc, HfHubHTTPError) and not isinstance(exc, LocalEntryNotFoundError):
                    raise
                problem = f"cannot be downloaded ({type(exc).__name__})"
                advice = "see to the network and the disk, then try again"
                raise CheckpointError(self._where.name, problem, advice) from exc

    def header(self, name: str) -> tuple[TensorFacts, ...]:
        """Return the tensors of a safetensors file by range requests of its first bytes."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import SafetensorsParsingError

        with self._translated(name):
            try:
                parsed = HfApi().parse_safetensors_file_metadata(self._where.name, name, **self._at())
            except SafetensorsParsingError as exc:
                raise CorruptCheckpointError(self._where.name, f"{name} has no readable header ({exc})") from exc
        return tuple(
            TensorFacts(key, TORCH_NAMES.get(tensor.dtype, tensor.dtype.lower()), tuple(tensor.shape), name)
            for key, tensor in parsed.tensors.items()
        )

    @property
    def _no_folder(self) -> str:
        """Say that no folder of this name is here; with where its path ends, where a folder may have been meant."""
        path = Path(self._where.name)
        part = missing_part(path)
        is_meant = part.close or (path.parent.name and path.parent.is_dir())
        return f"is no folder here ({part})" if is_meant else "is no folder here"

    @property
    def _cache_dir(self) -> Path | None:
        return None if self._where.cache_dir is None else Path(self._where.cache_dir)

    def _as_asked(self) -> dict[str, Any]:
        """Return the arguments of a download: it notes in the cache which commit the revision is, as transformers does."""
        return {"revision": self._where.revision, "token": self._where.token}

    def _at(self) -> dict[str, Any]:
        """Return the arguments of a question about the commit."""
        return {"revision": self.commit or self._where.revision, "token": self._where.token}

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        """Turn the client's errors into ours. Texts of the client are not shown: they may carry a token."""
        from huggingface_hub import errors as hub

        from .errors import TRANSPORT_ERROR

        name, revision = self._where.name, self._where.revision or "main"
        try:
            yield
        except hub.GatedRepoError as exc:
            raise GatedCheckpointError(name, "is gated, and access was not granted to you", _LOG_IN) from exc
        except hub.RevisionNotFoundError as exc:
            raise CheckpointNotFoundError(name, f"has no revision {revision!r}", "check --revision") from exc
        except hub.EntryNotFoundError as exc:
            raise CheckpointNotFoundError(name, f"has no file {what!r} at revision {revision!r}") from exc
        except hub.RepositoryNotFoundError as exc:
            advice = f"check the name; if it is private, {_LOG_IN}"
            raise CheckpointNotFoundError(name, f"{self._no_folder}, and no repository on the Hub", advice) from exc
        except hub.HFValidationError as exc:
            raise CheckpointNotFoundError(name, "is neither a folder nor a repository's name", "check it") from exc
        except hub.HfHubHTTPError as exc:
            status = getattr(exc.response, "status_code", "no status")
            if status in (401, 403):
                raise GatedCheckpointError(name, f"the Hub answered {status} for {what}", _LOG_IN) from exc
            raise CheckpointError(name, f"the Hub answered {status} for {what}", "try again later") from exc
        except TRANSPORT_ERROR as exc:
            problem = f"{self._no_folder}, and the Hub cannot be reached for {what} ({type(exc).__name__})"
            raise CheckpointError(name, problem, "check the connection, or pass a folder") from exc
