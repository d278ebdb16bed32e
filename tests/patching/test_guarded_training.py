"""A Trainer that a patched program makes goes on where its precision fails, without a word of code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from training.trainer_runs import Fault, Setting, difference, run
from transformers import Trainer

import safe_dtype
from safe_dtype.errors import HalfParametersError, StrictModeError
from safe_dtype.facts import BFLOAT16, FLOAT16

PLAIN = Trainer.__dict__["train"]


def test_attached_as_it_trains(capfd: pytest.CaptureFixture[str]) -> None:
    """The run is that of a Trainer that was attached by hand, and one line says what is guarded."""
    with safe_dtype.patched(tell="line"):
        patched = run(Setting(Fault(2), attached=False))
    assert patched.error is None
    assert difference(patched.everything(), run(Setting(Fault(2))).everything()) == ""
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("safe_dtype: Trainer")]
    assert line.endswith("bfloat16, then float16 with a GradScaler, then float32")


def test_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    """With nothing to be told nothing is said of it, and it is guarded."""
    with safe_dtype.patched(tell="nothing"):
        patched = run(Setting(Fault(2), attached=False))
    assert [row["precision"] for row in patched.rows][-1] == "float16"
    assert "safe_dtype: " not in capfd.readouterr().err


def test_strict() -> None:
    """The strict policy of the program is that of its training: nothing is changed, and a bad step is not applied."""
    with safe_dtype.patched("strict", tell="nothing"):
        patched = run(Setting(Fault(2, "nan"), attached=False))
    assert type(patched.error) is StrictModeError
    assert {int(state["step"]) for state in patched.trainer.optimizer.state.values()} == {2}


def test_own_attach_is_not_doubled() -> None:
    """A Trainer that the program itself has attached keeps its own policy."""
    with safe_dtype.patched(tell="nothing"):
        patched = run(Setting(Fault(2), policy="ladder=bf16>fp32"))
    assert [row["precision"] for row in patched.rows][-1] == "float32"
    assert patched.passes == 6


def test_what_cannot_be_guarded_trains(caplog: pytest.LogCaptureFixture) -> None:
    """A program that trains parameters in bfloat16 trains as without us, and the log says why it is not guarded."""
    half = Setting(attached=False, dtype=safe_dtype.FLOAT32, change=lambda model: model.bfloat16())
    with safe_dtype.patched(tell="nothing"):
        patched = run(half)
    assert patched.error is None
    assert difference(patched.everything(), run(half).everything()) == ""
    assert "trains unguarded" in caplog.text
    assert str(HalfParametersError("bfloat16")) in caplog.text


def test_nothing_is_said_to_be_guarded_that_is_not(capfd: pytest.CaptureFixture[str]) -> None:
    """Adapters in bfloat16 are trained as without us: one line says so, and none the contrary."""
    with safe_dtype.patched(tell="line"):
        run(Setting(attached=False, dtype=safe_dtype.FLOAT32, change=lambda model: model.bfloat16()))
    assert "steps that fail or are not finite" not in capfd.readouterr().err


def test_a_second_run_says_nothing_more(capfd: pytest.CaptureFixture[str]) -> None:
    """That its steps are guarded is said once for a Trainer, as its first run begins."""
    with safe_dtype.patched(tell="line"):
        trainer = run(Setting(attached=False)).trainer
        trainer.train()
    assert capfd.readouterr().err.count("steps that fail or are not finite are not applied") == 1


def test_unpatched_again() -> None:
    """Afterwards the class has its own method again."""
    with safe_dtype.patched():
        assert Trainer.__dict__["train"] is not PLAIN
    assert Trainer.__dict__["train"] is PLAIN


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from training.trainer_runs import Fault, Setting, run
ours = run(Setting(Fault(2), attached=False))
print([row.get("precision") for row in ours.rows], ours.error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--quiet",), ("--policy", "strict")], ids=str)
def test_run(options: tuple[str, ...], tmp_path: Path) -> None:
    """`safe-dtype run` guards the Trainer of a script, says so unless it is to be quiet, and is strict where asked."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).resolve().parent.parent)))
    command = [sys.executable, "-m", "safe_dtype.run", *options, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    dtypes = [str(BFLOAT16)] * 2 + [str(FLOAT16)] * 3
    assert done.stdout.startswith(f"{dtypes if 'strict' not in options else dtypes[:2]}"), done.stderr
    assert ("safe_dtype: Trainer" in done.stderr) == (not options or "strict" in options)
    assert ("end the run (strict)" in done.stderr) == ("strict" in options)
