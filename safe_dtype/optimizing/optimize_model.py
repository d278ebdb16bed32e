"""`safe_dtype.optimize`: prepare a model, then search for its fastest verified form."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from ..devices import default_device, detect_one, facts_of, memory_of
from ..errors import BackupError, EnvironmentNotFitError
from ..facts import FLOAT32, Dtype, dtype_named
from ..store.temporary import temporary_folder
from .backup import FOLDER, LOCK, RECORD, back_up
from .environment import environment
from .exporters import exporter_named
from .forms import form_named
from .inputs.batch_files import write_batches
from .model_source import ModelSource, source_of
from .nouns.form import FormTarget
from .nouns.goal import Goal
from .nouns.job import Dynamic
from .nouns.record import Optimization
from .nouns.record_file import FILE
from .search import ATTEMPTS, PAGE, PICTURE, REPORT, Climb, Tell

logger = logging.getLogger(__name__)

INPUTS = "inputs"
_WRITTEN = (ATTEMPTS, INPUTS, FILE, REPORT, PICTURE, PAGE)  # in the output folder, beside the original
_ROOM = 1.3  # times the weights: a child also needs memory for activations and for the files that it maps

Inputs = Mapping[str, torch.Tensor]


def _log(text: str) -> None:
    logger.info("%s", text)


def optimize(  # noqa: PLR0913  # each is a separate choice of the caller
    model: str | PathLike[str] | torch.nn.Module,
    inputs: Inputs | None = None,
    *,
    out: str | PathLike[str],
    form: str = "auto",
    dtype: Dtype | str = "auto",
    dynamic: Dynamic = Dynamic(),  # noqa: B008  # frozen
    held_out: Sequence[Inputs] = (),
    data: str | PathLike[str] | None = None,
    **options: Any,
) -> Optimization:
    """Find the fastest verified form of `model`, and leave it in `out` with a log of everything that was tried.

    The original is never changed, and kept in `out`/original. Every attempt runs in a process of its own. Load the
    result with `load_optimized(out)`; `out`/report.md and `out`/optimization.json describe it.

    Args:
        model: A folder, a repository on the Hub, or a model in memory, which stays as it is.
        inputs: Keyword tensors of its forward, at least two rows; None makes them from the model's config.
        out: The output folder. An earlier optimization of the same model in it is replaced.
        form: "aoti", "export", "onnx", "compile", "regional", "partial", "torchscript", "eager", "generate" for the step that
            `generate` makes, one that another package brings, or "auto" for the fastest of the others.
        dtype: A dtype, or "auto" for the fastest that passes.
        dynamic: Which dimensions of the inputs may vary, and how far: `Dynamic(batch=(1, 32))`.
        held_out: Further inputs to verify on, beside those that are made.
        data: Your own texts, images or tensors, a file or folder: the last stage of the verification.
        **options: The further fields of `Goal`: max_drift, seconds, device, threads, keep, torchscript, via, task, revision.

    Raises:
        CheckpointError: If there is no such model.
        NotOptimizableError: If nothing can be verified: no inputs, or a class that no other process can load.
        EnvironmentNotFitError: If what was asked for cannot be made on this machine, or memory is short.
        BackupError: If the original cannot be kept.
        ValueError: If no such form is installed.
    """
    goal = Goal(
        form=None if form == "auto" else form_named(form).name,
        dtype=(None if dtype == "auto" else dtype_named(dtype)) if isinstance(dtype, str) else dtype,
        dynamic=dynamic,
        **options,
    )
    return reach(goal, model, inputs, out=Path(out), held_out=held_out, data=data)


def reach(  # noqa: PLR0913
    goal: Goal,
    model: str | PathLike[str] | torch.nn.Module,
    inputs: Inputs | None = None,
    *,
    out: Path,
    held_out: Sequence[Inputs] = (),
    data: str | PathLike[str] | None = None,
    tell: Tell = _log,
) -> Optimization:
    """Optimize as `optimize` does, with a `Goal`; `tell` is called with a line of text at each step."""
    folder = out.resolve()
    device = detect_one(goal.device).device if goal.device else default_device()
    facts = environment()
    if goal.form and not goal.via and (missing := form_named(goal.form).lacks_to_build(FormTarget(facts, device))):
        raise EnvironmentNotFitError(missing, f"install it, or ask for another form than {goal.form}")
    if goal.via:
        exporter_named(goal.via).environment(goal.via, progress=tell)  # first: without it, nothing else is done
    with _nothing_half_made(folder):
        _require_ours(folder)
        with _workplace(folder) as work:
            tell("reading the model")
            source = source_of(model, work, revision=goal.revision)
            _require_memory(source, device)
            tell("keeping the original")
            backup = back_up(source.path, folder)
            _clear(folder, *_WRITTEN)
            original = folder / FOLDER / (source.path.name if source.path.is_file() else "")
        source = replace(source, path=original)
        tell("making inputs")
        goal = _with_one_row(goal, inputs)
        batches, dynamic = write_batches(
            source, folder / INPUTS, inputs=inputs, held_out=held_out, data=data, dynamic=goal.dynamic
        )
        goal = replace(goal, dynamic=dynamic)
        record = Optimization(
            source=source.name,
            model_class=source.model_class,
            device=device,
            asked_form=goal.form or "auto",
            asked_dtype=str(goal.dtype or "auto"),
            max_drift=goal.max_drift,
            saved_dtype=source.saved.name,
            parameters=source.parameters,
            loaded_with=source.loaded_with,
            original=original.relative_to(folder).as_posix(),
            environment=facts,
            verdicts=_verdicts(device),
            files={name: one.sha256 for name, one in backup.files.items()},
            batches=batches,
            dynamic=asdict(dynamic),
        )
        return Climb(source, folder, goal, device, tell).all_the_way(record)


def _with_one_row(goal: Goal, inputs: Inputs | None) -> Goal:
    """Return the goal with one row among the sizes of a batch, where nobody names any: most texts are generated alone."""
    if goal.form is None or not form_named(goal.form).serves_generate or goal.dynamic.batch is not None:
        return goal
    rows = max((len(one) for one in (inputs or {}).values() if one.dim()), default=2)
    return replace(goal, dynamic=replace(goal.dynamic, batch=(1, rows))) if rows > 1 else goal


def _verdicts(device: str) -> tuple[Mapping[str, Any], ...]:
    return tuple(
        {"dtype": verdict.dtype.name, "op": verdict.op, "kind": str(verdict.kind), "reason": verdict.reason}
        for verdict in facts_of(device).verdicts
    )


def _require_memory(source: ModelSource, device: str) -> None:
    needed = int(source.parameters * FLOAT32.itemsize * _ROOM)
    if not _fits(needed, device):
        raise EnvironmentNotFitError(
            f"{needed:,} bytes of memory on {device}, where {memory_of(device).free_bytes:,} are free: every form of "
            f"{source.name} is compared with float32",
            "free some, or use a machine with more",
        )


def _fits(needed: int, device: str) -> bool:
    return memory_of(device).has_room_for(needed)


@contextmanager
def _workplace(out: Path) -> Iterator[Path]:
    """Yield a temporary folder on the file system of `out`, so that files in it can be kept by links."""
    with temporary_folder(".optimize-", beside=out.resolve().parent) as folder:
        yield folder


@contextmanager
def _nothing_half_made(out: Path) -> Iterator[None]:
    """Make the output folder, and delete what was made in it where that ends before anything was tried.

    What an earlier run left in it stays, and so do the attempts of a run that is stopped later.
    """
    is_new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    is_empty = not any(out.iterdir())
    try:
        yield
    except BaseException:  # a signal as well
        if is_empty and not (out / FILE).exists():
            _clear(out, *_WRITTEN, FOLDER, RECORD, LOCK)
            if is_new and not any(out.iterdir()):
                out.rmdir()
        raise


def _require_ours(out: Path) -> None:
    """Refuse a folder that holds files with the names of ours, but no record of an earlier run."""
    taken = [name for name in _WRITTEN if (out / name).exists()]
    if taken and not (out / RECORD).exists():
        raise BackupError(f"{out} has {', '.join(taken)}, which no optimization wrote", "choose another output folder")


def _clear(out: Path, *names: str) -> None:
    """Delete what an earlier run left."""
    for name in names:
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
