"""Whether a folder that was staged earlier is what is asked for now, or was made of what is no longer there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...checkpoints.model_files import files_of
from ...errors import NotPublishableError
from ...facts import Where, dtype_named
from .check import file_problems
from .evidence import Evidence, not_publishable, read_evidence
from .measure import sha256_of_text
from .source import source_of

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class SourceState:
    """What a variant would be made of now."""

    name: str  # of the repository, or of the folder without the places of this machine
    repo: str | None = None  # on the Hub: the source itself, or the base that was named for a folder
    commit: str | None = None  # ... and its commit, where that is known
    sha256: str | None = None  # of everything in a folder
    dtype: str | None = None  # that `optimize` chose


def source_state(source: str | os.PathLike[str], options: Mapping[str, Any]) -> SourceState:
    """Look at a source as it is now: a repository by its commit, a folder by the hashes of its files.

    Raises:
        CheckpointError, NotOptimizedError, NotPublishableError: If it cannot be read, as `source_of` says.
    """
    if not Path(source).is_dir():
        repo = os.fspath(source)
        return SourceState(repo, repo, _commit_of(repo, options.get("source_revision")))
    of_folder = source_of(source, revision=None, base=options.get("base"), license=options.get("license"))
    base = of_folder.base
    return SourceState(of_folder.name, base.repo, base.revision, of_folder.sha256(), of_folder.dtype)


def require_asked(folder: Path, options: Mapping[str, Any]) -> None:
    """Raise unless the staged `folder` is what `options` ask for. What they leave open may be anything.

    Raises:
        NotPublishableError: With everything in which it differs.
        UnknownDtypeError: If a dtype is asked for that does not exist.
        CheckpointError: If `source_revision` is no revision of its base.
    """
    evidence = read_evidence(folder)
    differences = list(_differences(evidence, options))
    revision = options.get("source_revision") or _parted(options)[1]
    if revision and evidence.base.repo:
        commit = _commit_of(evidence.base.repo, revision)
        if commit != evidence.base.revision:
            differences.append(f"it was made of the commit {evidence.base.revision}, and {revision} is asked for")
    _refuse(folder, differences)


def outdated(folder: Path, origin: SourceState, options: Mapping[str, Any]) -> str:
    """Return why the staged `folder`, which is of this source, must be made anew; empty where it need not.

    Raises:
        NotPublishableError: If it is another variant than the one that is asked for, so that it must stay.
        UnknownDtypeError: If a dtype is asked for that does not exist.
    """
    evidence = read_evidence(folder)
    differences = list(_differences(evidence, {"dtype": origin.dtype, **_passed(options)}))
    if evidence.needs and not options.get("needs"):
        differences.append(f"it was staged with needs={evidence.needs!r}, which is not asked for")
    made_of = evidence.base.repo if origin.sha256 is None else evidence.plan.get("source")
    if made_of != origin.name:
        differences.append(f"it was made of {made_of}, and not of {origin.name}")
    _refuse(folder, differences)
    if origin.repo is not None and origin.commit != evidence.base.revision:
        return f"{origin.repo} was at {evidence.base.revision}, and is at {origin.commit}"
    if origin.sha256 != evidence.source_sha256:
        return f"the files of {origin.name} are not those that it was made of"
    return ""


def is_intact(folder: Path) -> bool:
    """Whether every file of a staged folder is the one that was staged, and none was added."""
    try:
        evidence = read_evidence(folder)
    except NotPublishableError:
        return False
    return not any(file_problems(folder, evidence))


def _passed(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _differences(evidence: Evidence, options: Mapping[str, Any]) -> Iterator[str]:
    asked = _passed(options)
    if "dtype" in asked and dtype_named(asked["dtype"]).name != evidence.dtype:
        yield f"it is in {evidence.dtype}, and dtype={asked['dtype']!r} is asked for"
    if "license" in asked and asked["license"] != evidence.base.license:
        yield f"its license is {evidence.base.license!r}, and license={asked['license']!r} is asked for"
    if "max_drift" in asked and asked["max_drift"] < evidence.max_drift:
        yield f"its drift was held to {evidence.max_drift}, and max_drift={asked['max_drift']} is asked for"
    if "text" in asked and sha256_of_text(asked["text"]) != evidence.measured_on.sha256:
        yield f"it was measured on another text ({evidence.measured_on.kind})"
    if (repo := _parted(options)[0]) and repo != evidence.base.repo:
        yield f"its base is {evidence.base.repo}, and base={repo!r} is asked for"


def _parted(options: Mapping[str, Any]) -> tuple[str, str]:
    """Return repository and commit of the base that is asked for, each empty where it is left open."""
    repo, _, commit = (options.get("base") or "").partition("@")
    return repo, commit


def _refuse(folder: Path, differences: list[str]) -> None:
    if differences:
        happened = f"it was staged before, and is not what is asked for: {'; '.join(differences)}"
        raise not_publishable(folder, happened, "stage into another folder, or leave out what it should not have")


def _commit_of(repo: str, revision: str | None) -> str | None:
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    return files_of(Where(repo, revision=revision)).commit
