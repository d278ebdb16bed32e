"""`safe-dtype publish` and its verbs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ..errors import NotPublishableError
from .completion import complete_path
from .options import FORMAT, HTML, MAX_DRIFT, NewFolder, not_empty, warn_of_ignored, write_picture
from .progress_line import bars, steps
from .whole_summaries import WholeSummaries

# As errors of staging name what was passed, or is to be: license='mit'.
_ARGUMENT = re.compile(r"\b(base|license|dtype|max_drift|needs|folder)='?([^\s',;)]+)'?")
_OPTIONS = {"folder": "out", "max_drift": "max-drift"}
_STEPS = 6  # that staging tells of: the source, the base, saving, plain transformers, safe_dtype, writing
_FOLDER = click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
_REPO = click.option("--repo", required=True, metavar="ORG/NAME", help="Where it goes.")
_REVISION = click.option("--revision", default="main", show_default=True, metavar="BRANCH", help="The branch.")
_PUBLIC = click.option("--public", is_flag=True, help="Make a new repository public once it is verified.")
_STAGING = (
    click.option("--dtype", metavar="DTYPE", help="float16, bfloat16, float32.  [default: what `plan` chooses here]"),
    click.option("--base", metavar="ORG/NAME", help="The repository that SOURCE came from, where it is a folder."),
    click.option("--license", metavar="ID", help="The license, where the base's card names none."),
    click.option(
        "--needs", type=click.Choice(["safe_dtype"]),
        help="Publish it even though plain transformers computes something else with it; the card says so first.",
    ),
    click.option(
        "--text", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A text to measure on, in UTF-8.  [default: one of ours]"
    ),
    MAX_DRIFT,
    click.option("--source-revision", metavar="REV", help="A branch, tag or commit of SOURCE on the Hub."),
)  # fmt: skip


def _stages(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_STAGING):
        command = option(command)
    return command


@click.group(cls=WholeSummaries)
def publish() -> None:
    """Put a variant of a model on the Hub: measured, in one commit, and read back.

    `push` does everything. The other verbs are its steps, and what one wants to know before and after.
    """


@publish.command()
@click.argument("source", callback=not_empty, shell_complete=complete_path)
@click.option("--out", required=True, type=NewFolder(), metavar="DIR", help="Where to stage it.")
@_stages
def stage(*, source: str, out: Path, **options: Any) -> None:
    """Make a folder of SOURCE that can be published, and measure it.

    SOURCE is a repository, a folder, or what `optimize` made. Nothing is sent.
    """
    from ..publishing.staging.stage import stage as make

    asked = _asked(options)
    warn_of_ignored(source, asked["source_revision"], "--source-revision")
    with steps(f"staging {source}", of=_STEPS) as tell, _in_options():
        staged = make(source, out, revision=asked.pop("source_revision"), progress=tell, **asked)
    click.echo(f"staged in {staged.folder}: {staged.evidence.dtype}, {staged.evidence.bytes:,} bytes of weights")
    if problems := staged.evidence.problems():
        click.echo("\n".join(("not fit to be published yet:", *(f"  {_as_options(one)}" for one in problems))))
        click.echo("Next: stage it anew with these, into another folder or once this one is removed.")


@publish.command()
@_FOLDER
def check(*, folder: Path) -> None:
    """Check a staged FOLDER without sending anything. Exits with status 0 where all is well, 3 where not."""
    from ..publishing.staging.check import check as problems_of

    problems = [_as_options(problem) for problem in problems_of(folder)]
    click.echo("\n".join(problems) or f"{folder}: fit to be published")
    if problems:
        click.get_current_context().exit(3)


@publish.command()
@_FOLDER
@click.option("--repo", metavar="ORG/NAME", help="Where it is going: what the card tells people to load.")
@HTML
def card(*, folder: Path, repo: str | None, page: Path | None) -> None:
    """Render the card of a staged FOLDER into its README.md, and print it.

    A page belongs beside FOLDER, not into it: all that is in FOLDER is published.
    """
    from ..publishing.staging.card import write_card

    click.echo(write_card(folder, repo=repo))
    if page:
        from ..publishing.staging.card_page import card_page
        from ..publishing.staging.evidence import read_evidence

        write_picture(page, card_page(read_evidence(folder)))


@publish.command()
@_FOLDER
@_REPO
@_REVISION
@_PUBLIC
@FORMAT
def diff(*, folder: Path, repo: str, revision: str, public: bool, form: str) -> None:
    """Show what pushing a staged FOLDER would change. Nothing is written anywhere."""
    from ..hub.client import Hub
    from ..publishing.pushing.changes import changes_text
    from ..publishing.pushing.changes import diff as changes_of
    from ..publishing.release import Target

    changes = changes_of(folder, Target(repo, revision, public), api=Hub.connect())
    click.echo(json.dumps(changes.to_dict(), indent=2) if form == "json" else changes_text(changes))


@publish.command()
@click.argument("source", callback=not_empty, shell_complete=complete_path)
@_REPO
@_REVISION
@_PUBLIC
@click.option("--out", type=NewFolder(), metavar="DIR", help="Where to stage.  [default: in the cache]")
@click.option("--rebase", is_flag=True, help="Go on where somebody else's commit touched none of these files.")
@_stages
@FORMAT
def push(*, source: str, repo: str, revision: str, public: bool, out: Path | None, **staging: Any) -> None:
    """Stage SOURCE where it is not staged yet, check it, write its card, push it in one commit, and read it back.

    A second run goes on where the first one ended. Exits with status 0 where it is published, else with what the error
    says: 3 nothing was sent, 4 the revision is as it was, 5 somebody else moved it, 6 unknown, 7 published but not
    read back, 8 published and not what was staged, 9 published and still private.
    """
    from ..hub.client import Hub
    from ..publishing.publish_variant import prepare, staged_for
    from ..publishing.pushing.push import push as send
    from ..publishing.release import Target

    form, rebase = staging.pop("form"), staging.pop("rebase")
    target = Target(repo, revision, public)
    warn_of_ignored(source, staging["source_revision"], "--source-revision")
    hub = Hub.connect()
    with _in_options(), ExitStack() as stack:
        with steps(f"staging {source}", of=_STEPS) as step:
            staged = staged_for(source, target, folder=out, options=_asked(staging), tell=step, api=hub)
            folder = stack.enter_context(staged)
        prepare(folder, target, api=hub)
        with bars(f"publishing {target}") as tell:
            receipt = send(folder, target, api=hub, progress=tell, rebase=rebase)
    if form == "json":
        click.echo(json.dumps({**receipt.to_dict(), "folder": str(folder)}, indent=2))
    else:
        click.echo(f"{receipt.state}: {receipt.url} ({len(receipt.files)} files, staged in {folder})")


@publish.command()
@click.argument("target", metavar="ORG/NAME[@REV]")
@click.option(
    "--against",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A staged folder to compare with.  [default: its own safe_dtype.json]",
)
@click.option("--full", is_flag=True, help="Download every byte, and hash it.")
@FORMAT
def verify(*, target: str, against: Path | None, full: bool, form: str) -> None:
    """Check what a repository holds against a staged folder, or against its own safe_dtype.json.

    Exits with status 0 where it is right, 8 where not.
    """
    from ..hub.client import Hub
    from ..publishing.pushing.readback import verify as held_against
    from ..publishing.release import State

    with bars(f"verifying {target}") as tell:
        verification = held_against(_target(target), api=Hub.connect(), against=against, full=full, progress=tell)
    if form == "json":
        click.echo(json.dumps(verification.to_dict(), indent=2))
    else:
        verdict = (
            "\n".join(verification.problems)
            or f"right: {verification.files} files, held against {verification.against}"
        )
        click.echo(f"{verification.target} at {verification.oid[:12]}: {verdict}")
    if not verification.right:
        click.get_current_context().exit(State.BROKEN.exit_status)


@publish.command()
@_FOLDER
@FORMAT
def status(*, folder: Path, form: str) -> None:
    """Say how the publication of a staged FOLDER stands: by its receipt, and on the Hub now.

    Exits with the status of `push`.
    """
    from ..hub.client import Hub
    from ..publishing.pushing.status import status as standing_of

    standing = standing_of(folder, Hub.connect())
    if form == "json":
        click.echo(json.dumps(standing.to_dict(), indent=2))
    else:
        changed = "; the folder was changed since" if standing.changed_since else ""
        click.echo(f"{standing.state}: {standing.reason}{changed}")
    click.get_current_context().exit(standing.state.exit_status)


@publish.command()
@click.argument("target", metavar="ORG/NAME[@BRANCH]")
@click.option("--to", "oid", required=True, metavar="COMMIT", help="Whose files the branch is to hold again.")
def rollback(*, target: str, oid: str) -> None:
    """Make a branch hold the files of an earlier commit, by a new commit on top. No history is rewritten."""
    from ..hub.client import Hub
    from ..publishing.pushing.rollback import rollback as go_back

    receipt = go_back(_target(target), oid, api=Hub.connect())
    click.echo(f"{receipt.state}: {receipt.url}{f' ({receipt.note})' if receipt.note else ''}")


def _asked(options: dict[str, Any]) -> dict[str, Any]:
    asked = dict(options)
    # A default is no wish: what was staged earlier may have been held to another limit.
    if click.get_current_context().get_parameter_source("max_drift") is ParameterSource.DEFAULT:
        del asked["max_drift"]
    if asked.get("text") is not None:
        asked["text"] = Path(asked["text"]).read_text(encoding="utf-8")
    return asked


def _as_options(text: str) -> str:
    """Return a text that names arguments of Python with the command's options in their place."""
    return _ARGUMENT.sub(lambda match: f"--{_OPTIONS.get(match[1], match[1])} {match[2].replace('...', 'NAME')}", text)


@contextmanager
def _in_options() -> Iterator[None]:
    """Raise what keeps a model from being published in the words of the command."""
    try:
        yield
    except NotPublishableError as exc:
        words = (_as_options(exc.happened), exc.visible, _as_options(exc.advice))
        raise NotPublishableError(exc.state, exc.repo, *words) from exc


def _target(named: str) -> Any:
    from ..publishing.release import Target

    repo, _, revision = named.partition("@")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repo):
        raise click.BadParameter(f"{named!r} is no repository such as org/name or org/name@branch.")
    return Target(repo, revision or "main")
