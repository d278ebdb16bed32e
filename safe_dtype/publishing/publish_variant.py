"""From a model to a published variant in one call: stage it, check it, write its card, push it, read it back."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import NotPublishableError
from ..facts.variant import VARIANT_FILE
from ..hub.client import Hub
from ..hub.errors import HubError
from ..store import cache_folder
from .publish_error import publish_error
from .pushing.push import push
from .pushing.refuse_for_base import refuse_before_staging
from .release import Receipt, State, Target
from .staging.card import write_card
from .staging.check import check
from .staging.evidence import not_publishable
from .staging.reuse import SourceState, is_intact, outdated, require_asked, source_state
from .staging.stage import stage
from .staging.staged_files import CARD

logger = logging.getLogger(__name__)

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
        folder: Where to stage; by default a folder of the user's cache that is named after source and target. What was
            staged there earlier is what is asked for now, or refused; where its base has moved on, it is staged anew.
        api: The Hub; by default that of the environment, with the login of `hf auth login`.
        **staging: What `stage` takes: dtype, base, license, needs, text, max_drift, and the source's own revision as
            `source_revision`.

    Raises:
        NotPublishableError: If it must not be published as it is. Nothing was sent.
        PublishError: In every other case; `state` says how things stand, and nothing is lost locally.
        CheckpointError, PlanError, VerifyError: If it cannot be staged.
    """
    target = Target(repo, revision, public)
    hub = api or Hub.connect()
    with staged_for(source, target, folder=folder, options=staging, api=hub) as staged:
        prepare(staged, target, api=hub)
        return push(staged, target, api=hub)


@contextmanager
def staged_for(
    source: str | os.PathLike[str],
    target: Target,
    *,
    folder: str | os.PathLike[str] | None = None,
    options: Mapping[str, Any],
    tell: Tell | None = None,
    api: Hub | None = None,
) -> Iterator[Path]:
    """Yield `source` itself where it is staged already, else where it is staged now, or was by an earlier run.

    A folder that was staged earlier is what is asked for now, or refused. Where its base has moved on it is staged anew.
    Until the block ends it is written to by nobody else: another publication that wants the same folder waits.

    Raises:
        NotPublishableError: If it is another variant than the one that is asked for; with an `api` also where its base
            speaks against publishing it there, before it is staged.
        PublishError: If the Hub cannot be read.
        CheckpointError, PlanError, VerifyError: If it cannot be staged.
    """
    if (Path(source) / VARIANT_FILE).is_file():
        with _alone_with(Path(source)):
            require_asked(Path(source), options)
            yield Path(source)
        return
    origin = source_state(source, options)
    if api is not None:
        refuse_before_staging(source, options, target, api)
    place = Path(folder) if folder is not None else staging_folder(source, target, options, origin)
    with _alone_with(place):
        if (place / VARIANT_FILE).is_file():
            _renew(place, source, origin, options, ours=folder is None, tell=tell)
        else:
            _make(place, source, origin, options, tell)
        yield place


def _renew(  # what a stage takes, and whose folder it is
    place: Path,
    source: str | os.PathLike[str],
    origin: SourceState,
    options: Mapping[str, Any],
    *,
    ours: bool,
    tell: Tell | None,
) -> None:
    """Stage anew what was staged of something that is no longer there; `ours`: in a folder that nobody named."""
    intact = is_intact(place)
    if ours and not intact:
        why = "its files were changed since it was staged"
    elif not (why := outdated(place, origin, options)):
        return
    elif not intact:
        raise not_publishable(place, f"{why}; and its files were changed since it was staged", "name another folder")
    logger.info("%s is staged anew: %s", place, why)
    fresh = place.with_name(f".{place.name}.anew")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        _make(fresh, source, origin, options, tell)
        shutil.rmtree(place)
        fresh.rename(place)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _make(
    place: Path, source: str | os.PathLike[str], origin: SourceState, options: Mapping[str, Any], tell: Tell | None
) -> None:
    asked = dict(options)
    revision = asked.pop("source_revision", None)
    # By the commit that was looked at: the branch may move on meanwhile.
    stage(source, place, revision=origin.commit if origin.sha256 is None else revision, progress=tell, **asked)


@contextmanager
def _alone_with(place: Path) -> Iterator[None]:
    """Wait until no other process or thread of this user stages or publishes `place`."""
    from filelock import FileLock, Timeout  # slow to import

    name = hashlib.sha256(os.fsencode(place.resolve())).hexdigest()[:16]
    lock = FileLock(cache_folder() / "stage" / f".{name}.lock")
    try:
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.warning("%s is being published already: waiting for that", place)
            lock.acquire()
    except OSError as exc:  # nobody else can have it either
        logger.info("%s: without a lock, since none can be made (%s)", place, exc)
    try:
        yield
    finally:
        lock.release()


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
            f"mend this in {folder}, or remove that folder and stage it again",
        )  # fmt: skip


def _card_there(api: Hub, target: Target) -> str | None:
    try:
        head = api.head(target.repo, target.revision)
        if CARD not in api.tree(target.repo, head.oid):
            return None
        return api.fetch(target.repo, CARD, head.oid).decode("utf-8")
    except UnicodeDecodeError as exc:
        happened = f"the {CARD} that is there is no UTF-8"
        raise not_publishable(Path(CARD), happened, "save it as UTF-8 on the Hub first") from exc
    except HubError as error:
        if error.missing in ("repository", "revision"):
            return None
        raise publish_error(api, error, State.NOT_STARTED, target, "what was there before") from error


def staging_folder(
    source: str | os.PathLike[str], target: Target, options: Mapping[str, Any], origin: SourceState
) -> Path:
    """Return a folder of its own for every source, state of it, target and wish."""
    wishes = sorted(
        (name, value) for name, value in options.items() if value is not None and name != "source_revision"
    )
    what = json.dumps([os.fspath(source), origin.commit, origin.sha256, str(target), wishes], default=str)
    name = re.sub(r"[^\w.-]+", "--", str(target))
    return cache_folder() / "stage" / f"{name}-{hashlib.sha256(what.encode()).hexdigest()[:12]}"
