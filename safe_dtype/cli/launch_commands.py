"""`safe-dtype accelerate-config` and `safe-dtype launch`: adapters to accelerate."""

from __future__ import annotations

import os
from typing import Any

import click

from ..integrations.accelerate import (
    Engine,
    fleet_here,
    fleet_named,
    launch_config,
    launch_of,
    ready_config,
    ready_names,
)
from ..planning import Policy
from .completion import complete_path
from .progress_line import progress


@click.command("accelerate-config")
@click.option(
    "--devices", "names", multiple=True, metavar="NAME",
    help='For a device that is not here, as "NVIDIA Tesla T4"; once for each kind.  [default: those of this machine]',
)  # fmt: skip
@click.option(
    "--gpus", type=click.IntRange(min=1), metavar="N",
    help="Processes on each machine, one for each GPU.  [default: as many as are here; 1 for --devices and for a CPU]",
)  # fmt: skip
@click.option(
    "--nodes", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="How many machines."
)
@click.option(
    "--engine", type=click.Choice([str(engine) for engine in Engine]), default="ddp", show_default=True,
    help="Who holds the model: each process all of it, or parts by FSDP2 or DeepSpeed's ZeRO.",
)  # fmt: skip
@click.option("--ready", type=click.Choice(ready_names()), help="Print one of the configs that come with safe_dtype.")
def accelerate_config(*, names: tuple[str, ...], gpus: int | None, nodes: int, engine: str, ready: str | None) -> None:
    """Write a config for `accelerate launch`, with the reason for every setting, to stdout.

    What was measured on this machine decides mixed_precision: accelerate and torch accept bf16 on GPUs that only
    emulate it. Of several kinds of device the weakest decides.
    """
    if ready and (names or gpus or nodes > 1 or engine != "ddp"):
        raise click.UsageError("--ready prints a file as it is: it cannot be combined with other options.")
    if ready:
        click.echo(ready_config(ready).as_yaml(), nl=False)
        return
    if names:
        fleet = fleet_named(names, gpus or 1, nodes, Engine(engine))
    else:
        with progress("measuring this machine"):
            fleet = fleet_here(gpus, nodes, Engine(engine))
    click.echo(launch_config(fleet).as_yaml(), nl=False)


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--policy", metavar="TEXT", help="What you want: see `safe-dtype run --help`.")
@click.option("--explain", "tell", flag_value="--explain", help="Print the whole plan of each model.")
@click.option("--dry-run", is_flag=True, help="Print what would be started, and start nothing.")
@click.argument(
    "arguments", nargs=-1, required=True, type=click.UNPROCESSED, metavar="[ACCELERATE OPTIONS] SCRIPT [ARGS]...",
    shell_complete=complete_path,
)  # fmt: skip
def launch(*, policy: str | None, tell: str | None, dry_run: bool, arguments: tuple[str, ...]) -> None:
    """Start SCRIPT by `accelerate launch`, with every model that it loads planned and guarded, as by `run`.

    Takes all options of `accelerate launch`, after those below; --config_file also takes the name of a ready config
    (`accelerate-config --ready`). What they leave open is set: 3 restarts, a rendezvous that comes up again after
    one, and several processes on CPUs, of which accelerate alone starts one. On more than one machine run it on each,
    with --machine_rank and --main_process_ip.
    """
    options: list[Any] = [*(("--policy", str(Policy.parse(policy))) if policy else ()), *((tell,) if tell else ())]
    start = launch_of(arguments, os.environ, options)
    if dry_run:
        click.echo(str(start))
    else:
        start.become()
