"""What a guarded Trainer logs and saves, and how a run goes on from what was saved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from training.test_attach import NoLabels
from training.trainer_runs import Fault, Run, Setting, difference, run
from transformers import Trainer, TrainerCallback

from safe_dtype.facts import BFLOAT16, FLOAT16, FLOAT32
from safe_dtype.training.trainer.training_record import StepDown, TrainingRecord

SAVING = {"save_strategy": "steps", "save_steps": 3}


def saved_at_3(folder: Path, **setting: Any) -> Run:
    """Return a whole run of 5 steps, and leave its checkpoint of step 3 alone in `folder`."""
    whole = run(Setting(folder=str(folder), arguments=SAVING, **setting))
    assert whole.error is None
    shutil.rmtree(folder / "checkpoint-5")
    return whole


def resumed(folder: Path, **setting: Any) -> Run:
    """Return a run that goes on from the checkpoint there."""
    return run(Setting(folder=str(folder), resume=True, arguments=SAVING, **setting))


@pytest.mark.parametrize("dtypes", [(BFLOAT16,), (BFLOAT16, FLOAT16)], ids=["float16", "float32"])
def test_resumes_in_its_precision(dtypes: Any, tmp_path: Path) -> None:
    """A run that goes on from a checkpoint is the run that was not interrupted, in the precision that it had come to."""
    whole = saved_at_3(tmp_path, fault=Fault(1, dtypes=dtypes))
    again = resumed(tmp_path)
    assert again.error is None
    for part in ("weights", "states", "losses", "rates", "norms", "global_step", "random"):
        assert difference(again.everything()[part], whole.everything()[part]) == ""
    assert again.rows[-1]["precision"] == whole.rows[-1]["precision"] == ("float16" if len(dtypes) == 1 else "float32")
    assert again.rows[-1]["fallbacks"] == len(dtypes)


def test_record(tmp_path: Path) -> None:
    """Beside a checkpoint lies what has happened, with the scaler, and no `scaler.pt` that a plain run would fail on."""
    saved_at_3(tmp_path, fault=Fault(1, "nan"))
    checkpoint = tmp_path / "checkpoint-3"
    assert not (checkpoint / "scaler.pt").exists()
    entry = json.loads((checkpoint / "safe_dtype.json").read_text())
    assert entry["scaler"]["scale"] == 65536.0
    assert TrainingRecord.read(checkpoint) == TrainingRecord(
        FLOAT16, BFLOAT16, (StepDown(1, "bfloat16", "float16", "the loss is not finite"),), 1, entry["scaler"]
    )


def test_plain_trainer_reads_it(tmp_path: Path) -> None:
    """A Trainer without safe_dtype goes on from it, in the precision of its own arguments."""
    saved_at_3(tmp_path, fault=Fault(1))
    plain = resumed(tmp_path, attached=False)
    assert plain.error is None
    assert plain.trainer.state.global_step == 5


def test_foreign_scaler(tmp_path: Path) -> None:
    """A `scaler.pt` of a run that safe_dtype had no part in does not end one in bfloat16, as it does without us."""
    saved_at_3(tmp_path, attached=False)
    torch.save(torch.amp.GradScaler("cpu").state_dict(), tmp_path / "checkpoint-3" / "scaler.pt")
    again = resumed(tmp_path)
    assert again.error is None
    assert again.rows[-1]["precision"] == "bfloat16"
    shutil.rmtree(tmp_path / "checkpoint-5")
    assert isinstance(resumed(tmp_path, attached=False).error, AttributeError)


def test_asked_for_less(tmp_path: Path) -> None:
    """A run that is resumed in float32 stays there, whatever it was in: only down."""
    saved_at_3(tmp_path, fault=Fault(1))
    again = resumed(tmp_path, dtype=FLOAT32)
    assert again.error is None
    assert again.rows[-1]["precision"] == "float32"


def test_damaged_record(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A record that cannot be read is named in the log, and the run begins as it was asked to."""
    saved_at_3(tmp_path, fault=Fault(1))
    (tmp_path / "checkpoint-3" / "safe_dtype.json").write_text('{"precision": "float12"')
    again = resumed(tmp_path)
    assert again.error is None
    assert again.rows[-1]["precision"] == "bfloat16"
    assert "safe_dtype.json is not read" in caplog.text


class Reporting(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Keeps what it is to report."""

    rows: ClassVar[list[dict[str, Any]]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Keep a row as it is now."""
        self.rows.append(dict(logs))


def test_rows_that_others_report() -> None:
    """What reports to others reads the precision, too, though it was there before."""
    Reporting.rows.clear()
    run(Setting(Fault(1), callbacks=(Reporting,)))
    assert [row["precision"] for row in Reporting.rows if "loss" in row] == ["bfloat16", *["float16"] * 4]


def test_a_pardon_is_kept(tmp_path: Path) -> None:
    """Losses that no dtype makes finite, of gradients that are, are not tried in all of them again by a resumed run."""
    whole = saved_at_3(tmp_path, trainer=NoLabels)
    again = resumed(tmp_path, trainer=NoLabels)
    assert (again.error, whole.passes, again.passes) == (None, 5 + 3, 2)


class SavingItself(Trainer):  # type: ignore[misc]
    """Saves at step 3 without a callback that is told of it, as transformers does on SIGTERM."""

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Log, and save."""
        super().log(*args, **kwargs)
        if self.state.global_step == 3:
            self._save_checkpoint(self.model, trial=None)


def test_a_checkpoint_that_no_callback_is_told_of(tmp_path: Path) -> None:
    """It has the record too, and no `scaler.pt`: a run goes on from it as the one did that saved it."""
    whole = run(Setting(Fault(1), folder=str(tmp_path), trainer=SavingItself))
    assert not (tmp_path / "checkpoint-3" / "scaler.pt").exists()
    again = run(Setting(folder=str(tmp_path), resume=True))
    assert again.error is None
    assert [row["precision"] for row in again.rows] == [row["precision"] for row in whole.rows]
    assert difference(again.everything()["weights"], whole.everything()["weights"]) == ""


class NoHistory(Trainer):  # type: ignore[misc]
    """Reports its rows, and keeps none."""

    def log(self, logs: dict[str, float], *_: Any) -> None:
        """Report a row."""
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)


def test_rows_that_are_not_kept() -> None:
    """A subclass that keeps no history of its rows trains, and what reports them reads the precision."""
    Reporting.rows.clear()
    assert run(Setting(Fault(1), trainer=NoHistory, callbacks=(Reporting,))).error is None
    assert [row["precision"] for row in Reporting.rows if "loss" in row] == ["bfloat16", *["float16"] * 4]
