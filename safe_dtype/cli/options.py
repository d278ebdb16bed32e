"""What every command shares: options, and how progress and warnings are shown."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

FORMAT = click.option(
    "--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True, help="How to print."
)
ENVIRONMENT = 5  # the exit status where something is missing on this machine; 2 is click's own, for a wrong usage
DEVICE = click.option("--device", metavar="NAME", help="cpu, cuda:1, ...  [default: the first accelerator, else cpu]")

_NARROWEST, _IN_A_FILE, _WIDEST = 40, 110, 140  # columns; beyond the last, lines are hard to follow with the eye


@contextmanager
def progress(what: str) -> Iterator[None]:
    """Show on a terminal's stderr that something takes its time."""
    from rich.console import Console

    with Console(stderr=True).status(f"{what} ..."):
        yield


@contextmanager
def steps(what: str) -> Iterator[Callable[[str], None]]:
    """Show on a terminal's stderr what is being done: call what is yielded with each step."""
    from rich.console import Console

    with Console(stderr=True).status(f"{what} ...") as shown:
        yield lambda step: shown.update(f"{what}: {step} ...")


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show on a terminal's stderr how far something has come: call what is yielded with (done, of how many)."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)


def columns() -> int:
    """Return how wide a text may be: COLUMNS where it is set, else the terminal's width, or what suits a file."""
    asked = os.environ.get("COLUMNS", "")
    if asked.isdecimal() and int(asked):
        return max(int(asked), _NARROWEST)
    try:
        shown = os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError):  # a pipe, a file, or no stream of the system at all
        shown = 0
    return max(min(shown, _WIDEST), _NARROWEST) if shown else _IN_A_FILE


def print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Show a warning as one line on stderr, without the place in our code that raised it."""
    click.echo(f"warning: {message}", err=True)
