"""From a model to a published variant in one call: stage it, check it, write its card, push it, read it back."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..checkpoints.model_files import files_of
from ..errors import NotPublishableError
from ..facts import Where
from ..facts.variant import VARIANT_FILE
from ..hub.client import Hub
from ..hub.errors import HubError
from ..store import cache_folder
from .publish_error import publish_error
from .pushing.push import push
from .release import Receipt, State, Target
from .staging.card import write_card
from .staging.check import check
from .staging.stage import stage
from .staging.staged_files import CARD

Tell = Callable[[str], None]


def publish(
    source: str | os.PathLike[str],
    repo: str,
    *,
    revision: str = "main",
    public: bool = False,
    folder: str | os.PathLike[str] | None = None,
    api: Hub | None = None,
    **staging: Any,
) -> Receipt:
    """Make a variant of a model, measure it, and put it on the Hub in one commit that is read back.

    A second call goes on where the first one ended, and makes no second commit.

    Args:
        source: What load, rescue or optimize made or read: a repository, a folder, the output of `optimize`; or a
            folder that is staged already.
        repo: Where it goes, "org/model-fp16".
        revision: A branch, in place of main.
        public: Whether a new repository is made public once it was verified. It is private until then.
        folder: Where to stage; by default a folder of the user's cache that is named after source and target.
        api: The Hub; by default that of the environment, with the login of `hf auth login`.
        **staging: What `stage` takes: dtype, base, license, needs, text, max_drift, and the source's own revision as
            `source_revision`.

    Raises:
        NotPublishableError: If it must not be published as it is. Nothing was sent.
        PublishError: In every other case; `state` says how things stand, and nothing is lost locally.
        CheckpointError, PlanError, VerifyError: If it cannot be staged.
    """
    target = Target(repo, revision, public)
    staged = staged_folder(source, target, folder=folder, options=staging)
    hub = api or Hub.connect()
    prepare(staged, target, api=hub)
    return push(staged, target, api=hub)


def staged_folder(
    source: str | os.PathLike[str],
    target: Target,
    *,
    folder: str | os.PathLike[str] | None = None,
    options: Mapping[str, Any],
    tell: Tell | None = None,
) -> Path:
    """Return `source` itself where it is staged already, else where it is staged now, or was by an earlier run."""
    if (Path(source) / VARIANT_FILE).is_file():
        return Path(source)
    place = Path(folder) if folder is not None else staging_folder(source, target, options)
    if (place / VARIANT_FILE).is_file():
        return place
    asked = dict(options)
    revision = asked.pop("source_revision", None)
    stage(source, place, revision=revision, progress=tell, **asked)
    return place


def prepare(folder: Path, target: Target, *, api: Hub | None) -> None:
    """Write the card for `target` into a staged folder, into the README that is there already, and check it all.

    Raises:
        NotPublishableError: With every problem, where it must not be published as it is.
        PublishError: If the Hub cannot be read.
    """
    existing = None if api is None else _card_there(api, target)
    write_card(folder, repo=target.repo, existing=existing)
    if problems := check(folder):
        raise NotPublishableError(
            str(State.NOT_STARTED), str(target), "; ".join(problems), "what was there before",
            f"mend this, or stage it again; it is kept in {folder}",
        )  # fmt: skip


def _card_there(api: Hub, target: Target) -> str | None:
    try:
        head = api.head(target.repo, target.revision)
        if CARD not in api.tree(target.repo, head.oid):
            return None
        return api.fetch(target.repo, CARD, head.oid).decode("utf-8")
    except HubError as error:
        if error.missing in ("repository", "revision"):
            return None
        raise publish_error(api, error, State.NOT_STARTED, target, "what was there before") from error


def staging_folder(source: str | os.PathLike[str], target: Target, options: Mapping[str, Any]) -> Path:
    """Return a folder of its own for every source, state of it, target and wish."""
    path = Path(source)
    if not path.is_dir():  # a branch that moved is another source
        commit = files_of(Where(source, revision=options.get("source_revision"))).commit
        options = {**options, "source_revision": commit}
    listed = (
        sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in path.iterdir())
        if path.is_dir()
        else ()
    )
    what = json.dumps([os.fspath(source), listed, str(target), sorted(options.items())], default=str)
    name = re.sub(r"[^\w.-]+", "--", str(target))
    return cache_folder() / "stage" / f"{name}-{hashlib.sha256(what.encode()).hexdigest()[:12]}"
