"""`safe-dtype export` and its formats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import FORMAT, MAX_DRIFT, MODEL, REVISION, NewFolder, warn_of_ignored
from .progress_line import bar, steps
from .whole_summaries import WholeSummaries

if TYPE_CHECKING:
    from ..integrations.llama_cpp import ExportedGguf
    from ..integrations.openvino import ExportedOpenvino

_STEPS = 2  # that an export to OpenVINO tells of: the reference, and OpenVINO


def _stored_as(what: str, *kinds: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the option that names the type in which `what` is written."""
    return click.option(
        "--type", "kind", type=click.Choice(kinds, case_sensitive=False),
        help=f"What {what} are stored as.  [default: the dtype that `plan` chooses here]",
    )  # fmt: skip


@click.group(cls=WholeSummaries)
def export() -> None:
    """Write a model in another format, in its verified dtype, and measure the file."""


@export.command()
@MODEL
@click.option(
    "--out", required=True, type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="The file."
)
@_stored_as("matrices", "F32", "BF16", "F16", "Q8_0")
@click.option(
    "--llama-cpp", type=click.Path(exists=True, dir_okay=False), metavar="PYTHON",
    help="An interpreter with the package xllamacpp: measure with llama.cpp as well.",
)  # fmt: skip
@MAX_DRIFT
@REVISION
@FORMAT
def gguf(*, model: str, out: Path, kind: str | None, form: str, **options: Any) -> None:
    """Write MODEL, a language model with its tokenizer, as a GGUF file for llama.cpp.

    The file is read back by transformers, and with --llama-cpp run by llama.cpp, and compared with MODEL in float32. Exits
    with status 3, and leaves no file, where it drifts beyond the limit.
    """
    from ..integrations.llama_cpp import export_gguf

    warn_of_ignored(model, options["revision"])
    with bar(f"writing {out}") as tell:
        exported = export_gguf(model, out, kind=kind, progress=tell, **options)
    _tell(exported, form)


@export.command()
@MODEL
@click.option("--out", required=True, type=NewFolder(), metavar="DIR", help="The folder, which must not be there.")
@_stored_as("weights", "FP32", "BF16", "FP16", "INT8")
@click.option(
    "--compute", type=click.Choice(["default", "f32", "bf16", "f16"]), default="default", show_default=True,
    help="What OpenVINO is to compute in: its INFERENCE_PRECISION_HINT; \"default\" leaves that to OpenVINO.",
)  # fmt: skip
@click.option(
    "--python", type=click.Path(exists=True, dir_okay=False), metavar="PYTHON",
    help="An interpreter with optimum-intel.  [default: that of an environment which is made once, with pip]",
)  # fmt: skip
@MAX_DRIFT
@REVISION
@FORMAT
def openvino(*, model: str, out: Path, form: str, **options: Any) -> None:
    """Write MODEL, a language model with its tokenizer, as a folder for OpenVINO.

    It is run by OpenVINO on this CPU, and compared with MODEL in float32. Exits with status 3, and leaves no folder, where it
    drifts beyond the limit.
    """
    from ..integrations.openvino import export_openvino

    warn_of_ignored(model, options["revision"])
    with steps(f"exporting {model}", of=_STEPS) as tell:
        exported = export_openvino(model, out, progress=tell, **options)
    _tell(exported, form)


def _tell(exported: ExportedGguf | ExportedOpenvino, form: str) -> None:
    """Print what was written and measured, and end with status 3 where it drifts beyond the limit."""
    click.echo(json.dumps({"schema": 1, **exported.to_dict()}, indent=2) if form == "json" else exported.as_text())
    if exported.beyond:
        click.get_current_context().exit(3)
