"""What every command shares: options, and how pictures and warnings are shown."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any

import click

from ..facts import DEFAULT_MAX_DRIFT
from ..rendering.streams import columns as columns_of
from ..store import write_whole
from .completion import complete_path
from .progress_line import say

FORMAT = click.option(
    "--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True, help="How to print."
)
ENVIRONMENT = 5  # the exit status where something is missing on this machine; 2 is click's own, for a wrong usage
_EMPTY = "is empty. Is a variable of your shell not set?"
DEVICE = click.option("--device", metavar="NAME", help="cpu, cuda:1, ...  [default: the first accelerator, else cpu]")


def not_empty(_: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Refuse an empty name: a variable of the shell that is not set, mostly."""
    if value is not None and not value.strip():
        raise click.BadParameter(_EMPTY, param=parameter)
    return value


class FiniteLimit(click.FloatRange):
    """A number from 0 on, as `Policy.max_drift` takes it: neither NaN nor infinity."""

    def __init__(self) -> None:
        super().__init__(min=0)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number."""
        limit = float(super().convert(value, param, ctx))
        if not math.isfinite(limit):
            self.fail(f"{value} is not a number from 0 on.", param, ctx)
        return limit


class NewFolder(click.Path):
    """A folder to write, which has a name: Python takes the empty one for the present folder."""

    def __init__(self) -> None:
        super().__init__(file_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        if not os.fspath(value).strip():
            self.fail(_EMPTY, param, ctx)
        return super().convert(value, param, ctx)


MODEL = click.argument("model", callback=not_empty, shell_complete=complete_path)
MAX_DRIFT = click.option(
    "--max-drift", type=FiniteLimit(), default=DEFAULT_MAX_DRIFT, show_default=True,
    help="How far from float32 is accepted, in the unit of `verify`: nats of mean KL for a language model.",
)  # fmt: skip


def is_text(_: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Refuse bytes that are no text in the shell's encoding."""
    if value is not None and any("\ud800" <= sign <= "\udfff" for sign in value):
        raise click.BadParameter(
            "is no text: it holds bytes that your shell's encoding does not have.", param=parameter
        )
    return value


def _picture(_: click.Context, parameter: click.Parameter, value: Path | None) -> Path | None:
    """Refuse a file that cannot be written before what it shows is measured."""
    if value is None or str(value) == "-":
        return value
    folder = value.parent
    if value.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        problem = "is a folder." if value.is_dir() else f"{folder} is no folder that can be written."
        raise click.BadParameter(f"{value}: {problem}", param=parameter)
    return value


PLOT = click.option(
    "--plot", type=click.Path(path_type=Path), callback=_picture, metavar="FILE", help="Draw a picture, as SVG."
)


HTML = click.option(
    "--html", "page", type=click.Path(path_type=Path), callback=_picture, metavar="FILE",
    help="Write a page with pictures as well: one file, which loads nothing.",
)  # fmt: skip


def write_picture(file: Path, text: str) -> None:
    """Write a picture or a page, whole or not at all; to stdout where the file is called "-"."""
    if str(file) == "-":
        click.echo(text)
    elif file.exists() and not file.is_file():  # a pipe, a device
        file.write_text(text, encoding="utf-8")
    else:
        write_whole(file, text)


def columns() -> int:
    """Return how wide a text on stdout may be."""
    return columns_of(sys.stdout)


REVISION = click.option("--revision", metavar="REV", help="A branch, tag or commit on the Hub.")


def ignored_revision(model: str, revision: str | None, option: str = "--revision") -> str | None:
    """Return that a revision is ignored, since a file or folder has none; None where it is not."""
    if revision is None or not Path(model).exists():
        return None
    return f"{option} {revision} is ignored: {model} is on this machine, not on the Hub"


def warn_of_ignored(model: str, revision: str | None, option: str = "--revision") -> None:
    """Say on stderr that a revision is ignored, where it is."""
    if text := ignored_revision(model, revision, option):
        print_warning(text)


def print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Show a warning as one line on stderr, without the place in our code that raised it."""
    say(f"warning: {message}")
