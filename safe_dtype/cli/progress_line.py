"""Progress on a terminal's stderr, with the time to go. Nothing is shown in the first second, in a pipe, or where it is not wanted."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

# The Hub's and transformers' own name for it, so that one setting silences all.
SILENT = "HF_HUB_DISABLE_PROGRESS_BARS"

_TRUE = ("1", "ON", "YES", "TRUE")
_FROM = 1.0  # second
_EVERY = 0.5  # seconds, for the clock
_KNOWN = "{desc} |{bar:24}| {percentage:3.0f}%, {elapsed} so far, {remaining} to go"
_UNKNOWN = "{desc} ... {elapsed}"


@contextmanager
def silence(*, wanted: bool) -> Iterator[None]:
    """Show no progress inside, of ours and of the libraries, where that is `wanted` or stderr is no terminal."""
    before = os.environ.get(SILENT)
    if wanted or not _is_terminal():
        os.environ[SILENT] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(SILENT, None)
        else:
            os.environ[SILENT] = before


@contextmanager
def progress(what: str) -> Iterator[None]:
    """Show how far what is done inside has come, as it is told by the library."""
    from ..rendering.progress import listening

    with _Line(what) as line, listening(lambda step, share: line.show(f"{what}: {step}", share)):
        yield


@contextmanager
def steps(what: str, of: int) -> Iterator[Callable[[str], None]]:
    """Show which of about `of` steps is being done: call what is yielded with the name of each that begins."""
    from ..rendering.progress import listening

    with _Line(what) as line:
        names = [""]

        def inside(_: str, share: float) -> None:
            line.show(f"{what}: {names[-1]}", min(max(len(names) - 2, 0) + share, of) / of)

        def begin(step: str) -> None:
            names.append(step)
            inside(step, 0.0)

        with listening(inside):
            yield begin


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show how far something has come: call what is yielded with (done, of how many)."""
    with _Line(what) as line:
        yield lambda done, total: line.show(what, done / total if total else 0.0)


@contextmanager
def bars(what: str) -> Iterator[Callable[[str, int, int], None]]:
    """Show how far each of several steps has come: call what is yielded with (step, done, of how many)."""
    with _Line(what) as line:
        yield lambda step, done, total: line.show(f"{what}: {step}", done / total if total else 0.0)


def say(text: str) -> None:
    """Write a line on stderr, above what is shown of the progress."""
    tqdm = sys.modules.get("tqdm")
    if tqdm is not None and _is_terminal():
        tqdm.tqdm.write(text, file=sys.stderr)
    else:
        click.echo(text, err=True)


class _Line:
    """One line at the bottom of a terminal, from the first second on."""

    def __init__(self, what: str) -> None:
        self._bar: Any = None
        self._done = threading.Event()
        if _is_terminal() and os.environ.get(SILENT, "").upper() not in _TRUE:
            from tqdm import tqdm

            self._bar = tqdm(
                desc=what, total=1.0, leave=False, delay=_FROM, smoothing=0, dynamic_ncols=True, bar_format=_UNKNOWN
            )

    def __enter__(self) -> _Line:
        if self._bar is not None:
            threading.Thread(target=self._tick, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._bar is not None:
            self._bar.close()

    def show(self, what: str, share: float) -> None:
        """Show that a share of the whole is done, from 0 to 1, and what is being done now."""
        if self._bar is not None:
            if share < self._bar.n:  # another step, which is a whole of its own
                self._bar.reset()
            if share:
                self._bar.bar_format = _KNOWN
            self._bar.set_description_str(what, refresh=False)
            self._bar.update(share - self._bar.n)

    def _tick(self) -> None:
        """Let the clock go on where nothing is told."""
        wait = _FROM
        while not self._done.wait(wait):
            self._bar.delay, wait = 0, _EVERY
            self._bar.refresh()


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()
