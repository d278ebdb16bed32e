"""The command `safe-dtype`: parses, calls, prints. Data goes to stdout, everything else to stderr."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import click

from .. import __version__
from ..processes.termination import tidy_termination
from ..rendering.streams import accept_any_text
from .cache_commands import cache
from .completion import completion
from .doctor_command import doctor
from .endings import one_line_endings, one_line_interruption
from .export_commands import export
from .half_commands import audit, rescue
from .launch_commands import accelerate_config, launch
from .model_commands import generate, plan, run, verify
from .optimize_command import optimize
from .options import print_warning
from .progress_line import silence
from .publish_commands import publish
from .report_command import report
from .whole_summaries import WholeSummaries


class _Commands(WholeSummaries):
    """The commands, each ended by Ctrl-C as by any other signal."""

    def invoke(self, context: click.Context) -> object:
        with one_line_interruption():
            return super().invoke(context)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="safe-dtype")
@click.option(
    "-q", "--quiet", is_flag=True, help="Show no progress. It goes to stderr, and only where that is a terminal."
)
@click.pass_context
def cli(context: click.Context, *, quiet: bool) -> None:
    """Load and run models in the fastest dtype this machine really has.

    MODEL is a folder, a file, or a repository on the Hugging Face Hub.

    Begin with `safe-dtype plan MODEL`: it tells in which dtype MODEL would be loaded here, and why. `safe-dtype run
    yourscript.py` runs a program of yours so, as it is.
    """
    if context.invoked_subcommand not in ("run", "launch"):  # whose program shows what it likes
        context.with_resource(silence(wanted=quiet))


for command in (
    run, plan, generate, doctor, rescue, audit, verify, optimize, export, publish, launch, accelerate_config, cache, report,
    completion,
):  # fmt: skip
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; an error is one clear message and an exit status, never a traceback."""
    accept_any_text()
    warnings.showwarning = print_warning
    with tidy_termination(), one_line_endings():
        cli(arguments)
