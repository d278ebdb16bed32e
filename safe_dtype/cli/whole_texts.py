"""What commands that run a model share: a text of the user's own, and errors that say what the files lack."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import click


def explained(model: str, revision: str | None, gguf_file: str | None = None) -> AbstractContextManager[None]:
    """Return a context in which an error of loading a model says what its files lack."""
    from ..loading import Request, explained

    return explained(Request(model, {"revision": revision, "gguf_file": gguf_file}), reads_text=True)


def text_of(file: Path) -> str:
    """Return what a file of text holds; refuse one that is not UTF-8, or is empty."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as exc:
        raise click.BadParameter(
            f"{file} is not UTF-8: {exc.reason} at byte {exc.start}.", param_hint="--text"
        ) from exc
    if not text.strip():
        raise click.BadParameter(f"{file} is empty.", param_hint="--text")
    return text
