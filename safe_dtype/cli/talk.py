"""A conversation on a terminal or through pipes: lines in, answers out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from io import TextIOWrapper
from typing import TYPE_CHECKING

import click

from ..processes.interruption import first_interrupt_stops

if TYPE_CHECKING:
    from ..commands.chat import Chat
    from ..commands.generate_text import Answer

_PROMPT = "> "


def talk(chat: Chat, *, streams: bool) -> list[Answer]:
    """Answer every line of stdin until it ends; return the answers. With `streams` they go to stdout as they come.

    The first Ctrl-C stops an answer after its present token, the second one drops it; neither ends the conversation.
    """
    answers = []
    for line in _lines():
        left_out = chat.turns_left_out
        with first_interrupt_stops() as stop:
            try:
                answer = chat.reply(line, stream=sys.stdout if streams else None, stop=stop)
            except KeyboardInterrupt:
                click.echo("\n[dropped]", err=True)
                continue
        if chat.turns_left_out > left_out:
            click.echo("[the oldest turns are left out: the model reads no more at once]", err=True)
        click.echo(f"[{answer.speed}]", err=True)
        answers.append(answer)
    return answers


def _lines() -> Iterator[str]:
    """Yield what is typed or piped in, without empty lines."""
    if sys.stdin is None:  # closed from the start
        return
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    typed = sys.stdin.isatty()
    if typed:
        with suppress(ImportError):  # not on every system; without it lines are typed without arrow keys
            import_module("readline")
    while True:
        try:
            line = _typed_line() if typed else sys.stdin.readline()
        except KeyboardInterrupt:
            if not typed:
                raise
            click.echo("\n[Ctrl-D ends the chat]", err=True)
            continue
        if not line:
            return
        if line.strip():
            yield line.strip()


def _typed_line() -> str:
    """Return a line with its end, as `readline` does; nothing at the end of all."""
    if not sys.stdout.isatty():  # only answers go there
        click.echo(_PROMPT, err=True, nl=False)
        return sys.stdin.readline()
    try:
        return f"{input(_PROMPT)}\n"
    except EOFError:
        click.echo(err=True)
        return ""
