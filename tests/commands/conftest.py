"""The command, run in this process."""

from command_run import run

__all__ = ["run"]
