"""The command that writes what a maintainer needs to see."""

from __future__ import annotations

import click

from ..errors import CheckpointNotFoundError, SafeDtypeError
from .completion import complete_path
from .progress_line import progress


@click.command()
@click.argument("model", required=False, shell_complete=complete_path)
@click.option("--device", metavar="NAME", help="cpu, cuda:1, ...  [default: all devices of this machine]")
def report(*, model: str | None, device: str | None) -> None:
    """Write what a maintainer needs to see of this machine, and of MODEL on it, as the text of an issue.

    Versions, devices with what was measured and what failed before, and the plan of MODEL or its error. Your home and
    working folders are left out; read it before you post it. What happened to a model in a program of your own is in
    `safe_dtype.report(model).as_issue()`. Where MODEL is not found the status is 1, and a report is written all the same.
    """
    from ..commands.machine_issue import machine_issue
    from ..devices import detect, facts_of, learned_on

    devices = {}
    for name in [device] if device else [facts.device for facts in detect()]:
        with progress(f"measuring {name}"):
            facts = facts_of(name)
        devices[facts] = learned_on(facts)
    plan, error = _plan_text(model, device) if model else ("", None)
    click.echo(machine_issue(devices, model=model or "", plan=plan))
    if isinstance(
        error, CheckpointNotFoundError
    ):  # mistyped, most likely: seen on stderr where the report goes to a file
        raise error


def _plan_text(model: str, device: str | None) -> tuple[str, SafeDtypeError | None]:
    """Return the plan of `model`, or the text of the error in its place, and that error."""
    from ..loading import Request, plan_request
    from ..planning import Policy

    try:
        with progress(f"planning {model}"):
            return plan_request(Request(model, {"device_map": device}), Policy()).explain(), None
    except SafeDtypeError as error:
        return f"{type(error).__name__}: {error}", error
