"""The help of a group of commands shows every summary whole, however narrow the terminal is."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from safe_dtype.cli import cli


@pytest.mark.parametrize("columns", [40, 80, 200])
@pytest.mark.parametrize("group", [(), ("publish",), ("cache",)], ids=["all", "publish", "cache"])
def test_nothing_is_cut_off(group: tuple[str, ...], columns: int) -> None:
    """No summary ends in dots, each is the first sentence of its command's help, and no line is too long."""
    shown = CliRunner().invoke(cli, [*group, "--help"], terminal_width=columns).output
    assert "..." not in shown.partition("Commands:")[2]
    assert max(map(len, shown.splitlines())) <= columns
    context = cli.make_context("safe-dtype", [*group, "x"], resilient_parsing=True)
    parent = cli.get_command(context, group[0]) if group else cli
    words = " ".join(shown.split())
    for command in parent.commands.values():  # type: ignore[union-attr]
        sentence = " ".join(str(command.help).split()).partition(". ")[0].rstrip(".")
        assert sentence in words
