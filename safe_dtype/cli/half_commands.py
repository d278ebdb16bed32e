"""The commands that tell what float16 makes of a model: of its weights, and of what it computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import (
    DEVICE,
    FORMAT,
    HTML,
    MAX_DRIFT,
    MODEL,
    PLOT,
    REVISION,
    columns,
    not_empty,
    warn_of_ignored,
    write_picture,
)
from .progress_line import bar, progress
from .whole_texts import explained, text_of

if TYPE_CHECKING:
    from ..commands.rescue import Rescue
    from ..publishing.share_recipe import Shared


@click.command()
@MODEL
@REVISION
@PLOT
@FORMAT
def audit(*, model: str, revision: str | None, plot: Path | None, form: str) -> None:
    """Tell whether float16 can hold the weights of MODEL, and how much room is left.

    Reads every weight of its safetensors files. Exits with status 0 if all fit, 3 if any overflows.
    """
    from ..checkpoints import audit
    from ..checkpoints.audit.audit_page import audit_svg, audit_text
    from ..facts import Where

    warn_of_ignored(model, revision)
    with bar(f"auditing {model}") as tell:
        report = audit(Where(model, revision=revision), progress=tell)
    if plot:
        write_picture(plot, audit_svg(report))
    if form == "json":
        click.echo(json.dumps({"schema": 1, **report.to_dict()}, indent=2))
    else:
        click.echo(audit_text(report, width=columns()))
    if not report.fits:
        click.get_current_context().exit(3)


@click.command()
@MODEL
@DEVICE
@click.option(
    "--text",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Measure on this text, in UTF-8, also where a result is remembered.  [default: a text of ours, once]",
)
@MAX_DRIFT
@REVISION
@click.option(
    "--share", metavar="ORG/NAME", callback=not_empty,
    help="Put what was found into this repository of recipes on the Hub, for all who have the same weights.",
)  # fmt: skip
@PLOT
@HTML
@FORMAT
def rescue(*, model: str, text: Path | None, share: str | None, form: str, **options: Any) -> None:
    """Make MODEL fit for float16: measure how large its numbers become, and find the rescale that it needs.

    For a model that was made in bfloat16 or float32. Loads it, looks at its activations, rescales it exactly by
    powers of two, and measures the drift. Its files stay as they are; what was found is remembered for every later
    load in float16. Exits with status 0 where float16 works, 3 where it does not.
    """
    words, plot, page = text_of(text) if text else None, options.pop("plot"), options.pop("page")
    warn_of_ignored(model, options["revision"])
    with progress(f"running {model}"), explained(model, options["revision"]):
        from ..commands.rescue import rescue

        outcome = rescue(model, text=words, **options)
    if plot:
        write_picture(plot, outcome.as_svg())
    if page:
        from ..commands.rescue_page import rescue_page

        write_picture(page, rescue_page(outcome))
    if form == "text":
        click.echo(outcome.as_text())
    shared = _shared(outcome, share, options["revision"]) if share else None
    if form == "json":
        values = {"schema": 1, **outcome.to_dict(), **({"shared": shared.to_dict()} if shared else {})}
        click.echo(json.dumps(values, indent=2))
    elif shared:
        click.echo(str(shared))
    if outcome.beyond:
        click.get_current_context().exit(3)


def _shared(outcome: Rescue, repo: str, revision: str | None) -> Shared:
    from ..commands.rescue_recipe import recipe_of
    from ..hub.client import Hub
    from ..publishing.share_recipe import share_recipe

    with progress(f"sharing with {repo}"):
        return share_recipe(recipe_of(outcome, revision=revision), repo, api=Hub.connect())
