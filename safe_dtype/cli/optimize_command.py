"""`safe-dtype optimize`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from ..errors import UnknownDtypeError
from ..facts import dtype_named
from ..optimizing.exporters import exporter_names
from ..optimizing.forms import form_names
from ..optimizing.nouns.goal import Goal
from ..optimizing.nouns.job import Dynamic, Range
from ..optimizing.nouns.record import Status
from .completion import complete_path
from .options import DEVICE, FORMAT, REVISION, FiniteLimit, NewFolder, not_empty, warn_of_ignored
from .progress_line import progress, say

import_module("safe_dtype.integrations")  # they register the exporters that --via offers

_ONNX = "onnx"  # the form that --via makes
_FORMS = ["auto", *(name for name in form_names() if name != "torchscript")]  # that one has an option of its own

# Which dimensions --size and --length mean, of transformers' inputs. Masks and types follow.
_SIZE, _LENGTH = ("pixel_values", (2, 3)), ("input_ids", (1,))


class _Ends(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """LOW..HIGH, both included."""

    name = "LOW..HIGH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Range:
        """Return the range as (low, high)."""
        if isinstance(value, tuple):
            return value
        low, dots, high = str(value).partition("..")
        if not (dots and low.isdecimal() and high.isdecimal() and 0 < int(low) <= int(high)):
            self.fail(f"{value!r} is no range such as 1..32.", param, ctx)
        return int(low), int(high)


@click.command()
@click.argument("model", required=False, callback=not_empty, shell_complete=complete_path)
@click.option(
    "--out",
    type=NewFolder(),
    metavar="DIR",
    help="The folder to write; only --dry-run needs none.",
)
@click.option(
    "--form", "wanted", type=click.Choice(_FORMS), default="auto", show_default=True,
    help="The form to make: --dry-run says what each is. auto: every one, and the fastest is kept.",
)  # fmt: skip
@click.option(
    "--dtype", default="auto", show_default=True, metavar="DTYPE", help="The dtype to make it in. auto: every one."
)
@click.option("--batch", type=_Ends(), help="How many rows a call may have.  [default: as many as the inputs]")
@click.option("--size", type=_Ends(), help="How high and wide images may be, in pixels.")
@click.option("--length", type=_Ends(), help="How long token sequences may be.")
@click.option(
    "--inputs", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
    help="A safetensors file with the inputs of one call, by name.  [default: made from the config]",
)  # fmt: skip
@click.option(
    "--data", type=click.Path(exists=True, path_type=Path), metavar="PATH",
    help="Your texts, images or tensors, a file or a folder: what is chosen is verified on them as well.",
)  # fmt: skip
@click.option(
    "--max-drift", type=FiniteLimit(),
    help="Most drift from float32 of any dtype and form, in the unit of `verify`.  [default: rounding alone]",
)  # fmt: skip
@click.option(
    "--allow-torchscript", is_flag=True, help="Try a TorchScript trace as well: deprecated, and blind to branches."
)
@click.option("--via", type=click.Choice(exporter_names()), help="Let another exporter make the ONNX file.")
@click.option("--task", metavar="TEXT", help="optimum's name of the task.  [default: from the config]")
@click.option("--keep", is_flag=True, help="Keep the files of every verified form, not only of the chosen one.")
@click.option(
    "--timeout", type=click.FloatRange(min=1), default=900, show_default=True, help="Seconds for each attempt."
)
@click.option("--threads", type=click.IntRange(min=1), help="How many threads torch uses.  [default: its own choice]")
@REVISION
@DEVICE
@click.option("--dry-run", is_flag=True, help="Show what would be tried here, and run nothing.")
@click.option("--restore", is_flag=True, help="Bring back the original that --out holds; nothing else is done.")
@FORMAT
def optimize(*, model: str | None, restore: bool, dry_run: bool, form: str, **options: Any) -> None:
    """Find the fastest form of MODEL that computes the same: compiled, exported, ONNX, or as it is.

    Every form and dtype is tried in a process of its own and compared with eager float32: on the traced inputs, on
    others that take other branches and shapes, loaded again in a fresh process, and on your data. MODEL is never
    changed, and kept in DIR/original. DIR/report.md says what was tried; load the result with
    safe_dtype.load_optimized(DIR).

    Exits with status 0 where the form that was asked for is reached, 3 where it fell back to another one that is
    verified, 4 where no dtype passed, 5 where this machine lacks something, 2 for a wrong usage.
    """
    if restore:
        _restore(options["out"])
        return
    if model is None:
        raise click.UsageError("Missing argument 'MODEL'.")
    warn_of_ignored(model, options["revision"])
    goal = _goal(options)
    if dry_run:
        _dry_run(model, goal, form)
        return
    if options["out"] is None:
        raise click.UsageError("Missing option '--out'.")
    from ..optimizing.inputs.synthetic import read_inputs
    from ..optimizing.nouns.record_file import to_dict
    from ..optimizing.optimize_model import reach
    from ..optimizing.report.report import summary_text

    inputs = read_inputs(options["inputs"]) if options["inputs"] else None
    with progress(f"optimizing {model}"):
        optimization = reach(goal, model, inputs, out=options["out"], data=options["data"], tell=say)
    click.echo(json.dumps(to_dict(optimization), indent=2) if form == "json" else summary_text(optimization))
    if optimization.status is not Status.REACHED:
        click.get_current_context().exit(int(optimization.status))


def _goal(options: Mapping[str, Any]) -> Goal:
    try:
        dtype = None if options["dtype"] == "auto" else dtype_named(options["dtype"])
    except UnknownDtypeError as exc:
        raise click.BadParameter(str(exc), param_hint="--dtype") from exc
    dims: dict[str, dict[int, Range]] = {}
    for ends, (name, places) in ((options["size"], _SIZE), (options["length"], _LENGTH)):
        if ends:
            dims[name] = dict.fromkeys(places, ends)
    if options["via"] and options["wanted"] not in ("auto", _ONNX):
        raise click.UsageError(f"--via makes an ONNX file: it cannot be combined with --form {options['wanted']}.")
    form = None if options["wanted"] == "auto" else options["wanted"]
    return Goal(
        form=_ONNX if options["via"] else form,
        dtype=dtype,
        dynamic=Dynamic(options["batch"], dims),
        torchscript=options["allow_torchscript"],
        max_drift=options["max_drift"],
        seconds=options["timeout"],
        device=options["device"],
        threads=options["threads"],
        keep=options["keep"],
        via=options["via"] or "",
        task=options["task"] or "",
        revision=options["revision"],
    )


def _restore(out: Path | None) -> None:
    if out is None:
        raise click.UsageError("--restore needs --out DIR: the folder that an earlier run wrote.")
    from ..optimizing.backup import restore

    click.echo(str(restore(out)))


def _dry_run(model: str, goal: Goal, form: str) -> None:
    from ..optimizing.dry_run import dry_run

    outlook = dry_run(model, goal)
    click.echo(json.dumps(outlook.to_dict(), indent=2) if form == "json" else outlook.as_text())
