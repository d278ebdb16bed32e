"""`safe-dtype cache` and its verbs."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from .options import FORMAT, columns, not_empty
from .whole_summaries import WholeSummaries

if TYPE_CHECKING:
    from ..commands.cache_listing import CacheFilter

_UNITS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}  # seconds
_TORCH_NAME = re.compile(r"(cpu|cuda|mps|xpu|npu|mlu|hpu)(:\d+)?")


def _seconds(_context: click.Context, _option: click.Parameter, age: str | None) -> float | None:
    if age is None:
        return None
    match = re.fullmatch(r"(\d+)([mhdw])", age.strip().lower())
    if match is None:
        raise click.BadParameter(f"{age!r} is no age: write 30m, 12h, 7d or 4w.")
    return float(match[1]) * _UNITS[match[2]]


_FILTERS = (
    click.option(
        "--device",
        metavar="NAME",
        callback=not_empty,
        help="Only of this device: a part of its name, or cpu, cuda:0, ...",
    ),
    click.option(
        "--model", metavar="MODEL", callback=not_empty, help="Only of this model: a folder, or a part of its name."
    ),
    click.option("--older-than", metavar="AGE", callback=_seconds, help="Only what is older: 30m, 12h, 7d, 4w."),
    click.option("--damaged", is_flag=True, help="Only what cannot be read."),
)


def _filters(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` the options that choose entries, handed over as one `CacheFilter`."""

    @wraps(command)
    def with_filter(
        *, device: str | None, model: str | None, older_than: float | None, damaged: bool, **options: Any
    ) -> None:
        from ..commands.cache_listing import CacheFilter

        command(CacheFilter(_product(device), model, older_than, damaged), **options)

    for option in reversed(_FILTERS):
        with_filter = option(with_filter)
    return with_filter


@click.group(cls=WholeSummaries)
def cache() -> None:
    """Show and clear what was measured and is remembered: for which device and model, how old, how big.

    Whatever is cleared is measured again when it is needed. Only the note that an optimized folder was made here does
    not come back: without it `load_optimized` asks for trust=True.
    """


@cache.command("list")
@_filters
@FORMAT
def list_entries(wanted: CacheFilter, *, form: str) -> None:
    """List what is remembered, the newest first."""
    from ..commands.cache_listing import cache_text, cache_to_dict, listed

    chosen = listed(wanted)
    if form == "json":
        click.echo(json.dumps({"schema": 1, **cache_to_dict(chosen)}, indent=2))
    else:
        click.echo(cache_text(chosen, width=columns()))


@cache.command()
@_filters
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@FORMAT
def clear(wanted: CacheFilter, *, yes: bool, form: str) -> None:
    """Delete what is remembered: all of it, or what the options name.

    Asks first, and without a terminal to ask on needs --yes. Only files of the cache itself are deleted; what is staged
    for publishing stays.
    """
    from ..commands.cache_listing import cache_to_dict, count_text, listed
    from ..commands.cache_listing import clear as clear_entries

    chosen = listed(wanted)
    if chosen and not yes:
        if sys.stdin is None or not sys.stdin.isatty():
            raise click.UsageError(
                f"This deletes {count_text(chosen)} and there is no terminal to ask on: pass --yes."
            )
        click.confirm(f"Delete {count_text(chosen)} of what was measured?", abort=True, err=True)
    gone = clear_entries(chosen)
    if form == "json":
        click.echo(json.dumps({"schema": 1, **cache_to_dict(gone)}, indent=2))
    else:
        staying = f"; {len(chosen) - len(gone)} measured anew meanwhile stay" if len(gone) < len(chosen) else ""
        click.echo(f"deleted: {count_text(gone).rstrip(',')}{staying}")


@cache.command()
def path() -> None:
    """Print the folder: SAFE_DTYPE_CACHE, else one in the user's cache."""
    from ..store import cache_folder

    click.echo(cache_folder())


def _product(device: str | None) -> str | None:
    """Return the product's name of a device of this machine that is given by torch's name; else what was given."""
    if device is None or not _TORCH_NAME.fullmatch(device):
        return device
    from ..devices import detect_one

    return detect_one(device).name
