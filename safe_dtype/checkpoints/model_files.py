"""The files of one checkpoint, in a local folder or in a repository on the Hub, behind the same few questions."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Protocol

from ..errors import CheckpointNotFoundError
from ..facts import TensorFacts, Where
from ..hub.headers import read_local_header
from ..hub.repository import HubRepository
from ..store.close_names import missing_part
from ..store.git_lfs import pulled


class Files(Protocol):
    """What reading a checkpoint asks of the place where it lies."""

    @property
    def commit(self) -> str | None:
        """The commit of a repository; None of a folder."""

    def on_disk(self, name: str) -> Path | None:
        """Return the path of `name`, without a download; None where it is not on this machine."""

    def blob(self, name: str) -> str | None:
        """Return the Hub's digest of the content of `name`; None of a local file."""

    def has(self, name: str) -> bool:
        """Whether there is a file called `name`."""

    def local(self, name: str) -> Path:
        """Return the path of `name`, downloaded where need be."""

    def header(self, name: str) -> tuple[TensorFacts, ...]:
        """Return the tensors of the safetensors file `name`, without reading them."""


class LocalFiles:
    """The files of a folder on this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    commit = None

    def blob(self, name: str) -> str | None:  # noqa: ARG002  (the Hub's files have one)
        """Return None: the Hub's digest of a local file would take reading it whole."""
        return None

    def on_disk(self, name: str) -> Path | None:
        """Return the path of `name`; None where there is no such file."""
        return self.local(name) if self.has(name) else None

    def has(self, name: str) -> bool:
        """Whether there is a file called `name`."""
        return (self._folder / name).is_file()

    def local(self, name: str) -> Path:
        """Return the path of `name`.

        Raises:
            CorruptCheckpointError: If a Git LFS pointer is in its place.
        """
        return pulled(self._folder / name)

    def header(self, name: str) -> tuple[TensorFacts, ...]:
        """Return the tensors of the safetensors file `name`."""
        return read_local_header(self.local(name))


class HubFiles:
    """The files of a repository: from the cache where they are there, else asked of the Hub."""

    def __init__(self, where: Where) -> None:
        self._where = where
        self._repository = HubRepository(where)

    @property
    def commit(self) -> str | None:
        """The commit that the revision means now; None offline where nothing is cached."""
        return self._repository.commit

    def on_disk(self, name: str) -> Path | None:
        """Return the path of `name` in the cache; None where it is not there."""
        return self._repository.cached(self._full(name))

    @cached_property
    def _blobs(self) -> Mapping[str, str]:
        return self._repository.blobs()

    def blob(self, name: str) -> str | None:
        """Return the Hub's digest of `name`: of a cached file the name of its blob, else as the Hub lists it."""
        cached = self.on_disk(name)
        if cached is None:
            return self._blobs.get(self._full(name))
        blob = cached.resolve()
        return blob.name if blob.parent.name == "blobs" else None  # a system without links keeps no blobs

    def _full(self, name: str) -> str:
        return f"{self._where.subfolder}/{name}" if self._where.subfolder else name

    def has(self, name: str) -> bool:
        """Whether the cache, else the repository, has a file called `name`."""
        return self.on_disk(name) is not None or self._full(name) in self._blobs

    def local(self, name: str) -> Path:
        """Return the path of `name` in the cache, downloaded where need be."""
        return self.on_disk(name) or self._repository.download(self._full(name))

    def header(self, name: str) -> tuple[TensorFacts, ...]:
        """Return the tensors of the safetensors file `name`: a range request, unless it is in the cache."""
        cached = self.on_disk(name)
        return read_local_header(cached) if cached else self._repository.header(self._full(name))


def files_of(where: Where) -> Files:
    """Return the files that `where` names.

    Raises:
        CheckpointNotFoundError: If it reads like a folder and none is there.
    """
    path = Path(where.source)
    if where.name and path.is_dir():
        folder = path / where.subfolder
        if not folder.is_dir():
            raise CheckpointNotFoundError(where.name, f"has no subfolder {where.subfolder!r}", "check the name")
        return LocalFiles(folder)
    if not _can_be_a_repository(where.name):
        problem = f"no such file or folder: {missing_part(path)}" if where.name else "no such file or folder"
        raise CheckpointNotFoundError(where.name or repr(""), problem, "check the path")
    return HubFiles(where)


def _can_be_a_repository(name: str) -> bool:
    looks_local = name.startswith((".", "/", "~", "\\")) or name.endswith("/") or Path(name).is_absolute()
    return bool(name) and not looks_local and name.count("/") <= 1 and "\\" not in name
