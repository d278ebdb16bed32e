"""What `optimize` found out of a model, for the card; and the ONNX file that it chose, for the repository."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ...optimizing.nouns.record import FormAttempt, Optimization, Outcome
from ...optimizing.serving.trust import require_trust
from .evidence import Forms, TriedForm

FOLDER = "onnx"  # where the Hub's users look for one
_ONNX = "onnx"  # the form


def forms_of(record: Optimization) -> Forms:
    """Return the verified forms, the chosen one marked, and how many others were tried."""
    tried = [
        TriedForm(
            attempt.form,
            attempt.dtype.name,
            max((stage.distance.relative for stage in attempt.stages), default=0.0),
            attempt.speedup,
            chosen=number == record.chosen,
        )
        for number, attempt in enumerate(record.attempts)
        if attempt.outcome is Outcome.VERIFIED
    ]
    processor: Any = record.environment.get("cpu") or {}
    device = str(processor.get("name") or record.device) if record.device == "cpu" else record.device
    return Forms(tuple(tried), len(record.attempts) - len(tried), device)


def require_onnx(out: Path, record: Optimization) -> None:
    """Raise unless the files of a chosen ONNX form are those that were verified.

    Raises:
        NotOptimizedError: If one was changed, is missing, or leads out of `out`.
    """
    if winner := _chosen_onnx(record):
        require_trust(out / winner.artifact, winner.artifact_files, trust=True)


def copy_onnx(out: Path, record: Optimization, folder: Path) -> None:
    """Copy the ONNX file that was chosen into `folder`/onnx; do nothing where another form was.

    Of the forms that are files it is the one that holds no code, and that other machines read.
    """
    winner = _chosen_onnx(record)
    if winner is None:
        return
    (folder / FOLDER).mkdir()
    for name in winner.artifact_files:
        shutil.copyfile(out / winner.artifact / name, folder / FOLDER / Path(name).name)


def _chosen_onnx(record: Optimization) -> FormAttempt | None:
    winner = record.winner
    return winner if winner is not None and winner.form == _ONNX and winner.artifact else None
