"""A group of commands whose help lists them in the order of use, with the first sentence of each whole."""

from __future__ import annotations

import click

_LONGER_THAN_ANY = 1000  # characters: click shortens what is longer than its limit


class WholeSummaries(click.Group):
    """A group of commands; click's own sorts them by name, and cuts their summaries off at the end of the line."""

    def list_commands(self, _: click.Context) -> list[str]:
        """Return the names in the order in which the commands were added."""
        return list(self.commands)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, each with its first sentence."""
        commands = [(name, self.get_command(context, name)) for name in self.list_commands(context)]
        rows = [
            (name, command.get_short_help_str(limit=_LONGER_THAN_ANY))
            for name, command in commands
            if command is not None and not command.hidden
        ]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)
