"""What a variant may not do to the model that it was made of: take its place, or open what is gated."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import NotPublishableError
from ...facts.variant import VARIANT_FILE
from ...hub.client import Hub
from ...hub.errors import HubError
from ..publish_error import publish_error
from ..release import State, Target


def refuse_for_base(folder: Path, target: Target, api: Hub) -> None:
    """Do nothing, unless the base of the staged `folder` speaks against publishing it at `target`.

    Raises:
        NotPublishableError: If `target` is the very model that it was made of, or would show to everybody what its base
            shows only to those who asked for it.
        PublishError: If the Hub cannot be read.
    """
    file = folder / VARIANT_FILE
    base = evidence_of(file.read_bytes() if file.is_file() else b"").get("base")
    repo = base.get("repo") if isinstance(base, dict) else None
    if not isinstance(repo, str):
        return
    _refuse(repo, target, api)


def refuse_before_staging(
    source: str | os.PathLike[str], options: Mapping[str, Any], target: Target, api: Hub
) -> None:
    """Do nothing, unless the base of what is yet to be staged speaks against it: staging loads and measures the model.

    Args:
        source: What is to be staged: a repository is its own base.
        options: What `stage` takes; a folder's base is named there.
        target: Where it is to go.
        api: The Hub.

    Raises:
        NotPublishableError, PublishError: As `refuse_for_base`.
    """
    base = options.get("base") if Path(source).exists() else os.fspath(source)
    if base:
        _refuse(str(base).partition("@")[0], target, api)


def _refuse(repo: str, target: Target, api: Hub) -> None:
    if repo == target.repo and target.revision == "main":
        advice = "name another repository, or a branch with --revision"
        raise refused(target, "it is the model that this variant was made of, and would be overwritten", advice)
    if repo == target.repo or not target.public:
        return
    try:
        if _is_gated(api, repo) and not _is_gated(api, target.repo):
            happened = f"access to its base {repo} must be asked for, and this would be open to everybody"
            advice = (
                "push it without --public, turn on access requests in the settings of the new repository, then push "
                "it with --public"
            )
            raise refused(target, happened, advice)
    except HubError as error:
        raise publish_error(api, error, State.NOT_STARTED, target, "what was there before") from error


def evidence_of(text: bytes) -> dict[str, object]:
    """Read a safe_dtype.json that somebody else may have written: empty where it is none."""
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def refused(target: Target, happened: str, advice: str) -> NotPublishableError:
    """Return the error for a target that something must not be published at. Nothing was sent."""
    return NotPublishableError(str(State.NOT_STARTED), str(target), happened, "what was there before", advice)


def _is_gated(api: Hub, repo: str) -> bool:
    """Whether the files of `repo` are shown only to those who asked; a repository that is not there shows none."""
    try:
        return api.head(repo, "main").gated
    except HubError as error:
        if error.missing:
            return False
        raise
