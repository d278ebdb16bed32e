"""The command that measures this machine."""

from __future__ import annotations

import json
from pathlib import Path

import click

from .options import FORMAT, HTML, columns, write_picture
from .progress_line import progress


@click.command()
@click.option("--device", metavar="NAME", help="cpu, cuda:1, ...  [default: all devices of this machine]")
@click.option("--refresh", is_flag=True, help="Measure again, and forget what failed here before.")
@HTML
@FORMAT
def doctor(*, device: str | None, refresh: bool, page: Path | None, form: str) -> None:
    """Measure this machine: every device, every dtype, and what torch claims about them."""
    from ..commands.doctor import device_text, device_to_dict, learned_text
    from ..devices import detect, facts_of, learned_on

    measured = []
    for name in [device] if device else [facts.device for facts in detect()]:
        with progress(f"measuring {name}"):
            measured.append(facts_of(name, refresh=refresh))
    if page:
        from ..commands.device_page import devices_page

        write_picture(page, devices_page((facts, learned_on(facts)) for facts in measured))
    if form == "json":
        devices = [device_to_dict(facts, learned_on(facts)) for facts in measured]
        click.echo(json.dumps({"schema": 1, "devices": devices}, indent=2))
    else:
        pages = [
            text
            for facts in measured
            for text in (device_text(facts, width=columns()), learned_text(learned_on(facts)))
            if text
        ]
        click.echo("\n\n".join(pages))
