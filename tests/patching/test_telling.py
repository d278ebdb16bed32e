"""What a patched program says of each model that it loads, and where."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

import safe_dtype
from safe_dtype.errors import PolicyError

Saved = Callable[..., Path]

LOAD = "import sys; from transformers import AutoModelForCausalLM as M; M.from_pretrained(sys.argv[1]);"
IN_CHILDREN = """
import multiprocessing, sys
from transformers import AutoModelForCausalLM
def load(): assert hasattr(AutoModelForCausalLM.from_pretrained(sys.argv[1]), "_safe_dtype_origin")
if __name__ == "__main__":
    load()
    child = multiprocessing.get_context(sys.argv[2]).Process(target=load)
    child.start(); child.join()
    assert child.exitcode == 0
"""


def lines_of(stderr: str) -> list[str]:
    """Return the lines that name safe_dtype."""
    return [line for line in stderr.splitlines() if line.startswith("safe_dtype: ")]


def test_one_line_a_model(saved: Saved, capsys: pytest.CaptureFixture[str]) -> None:
    """Every model that is loaded gets one line on stderr, with what was chosen and why; stdout is the program's own."""
    folder = saved()
    with safe_dtype.patched():
        for _ in range(2):
            model = AutoModelForCausalLM.from_pretrained(folder)
        AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    plan = safe_dtype.plan_of(model)
    out, err = capsys.readouterr()
    assert lines_of(err) == [f"safe_dtype: {folder} in {plan.what} on {plan.where}: {plan.reason}"] * 3
    assert "safe_dtype" not in out


def test_all_and_nothing(saved: Saved, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`tell="all"` prints the whole plan, "nothing" prints none of it, and another word is an error."""
    monkeypatch.setenv("COLUMNS", "300")
    folder = saved()
    with safe_dtype.patched(tell="all"):
        model = AutoModelForCausalLM.from_pretrained(folder)
    shown = capsys.readouterr().err
    assert len(lines_of(shown)) == 1
    assert all(decision.reason.split("; ")[-1] in shown for decision in safe_dtype.plan_of(model).decisions)
    with safe_dtype.patched(tell="nothing"):
        AutoModelForCausalLM.from_pretrained(folder)
    assert not lines_of(capsys.readouterr().err)
    with pytest.raises(PolicyError, match="tell='loud'"):
        safe_dtype.patch(tell="loud")


@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING])
def test_a_program_with_a_log(
    level: int, saved: Saved, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Where the program's log shows such events it is an event there, with fields; else it stands on stderr. Never both."""
    folder = saved()
    with caplog.at_level(level, "safe_dtype"), safe_dtype.patched():
        AutoModelForCausalLM.from_pretrained(folder)
    records = [record for record in caplog.records if getattr(record, "model", None) == str(folder)]
    lines = lines_of(capsys.readouterr().err)
    assert (len(records), len(lines)) == ((1, 0) if level == logging.INFO else (0, 1))
    assert all(record.levelno == logging.INFO and record.name.startswith("safe_dtype.") for record in records)


def test_safe_auto_is_quiet(
    saved: Saved, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """`SafeAutoModel` prints nothing, also in a patched program, and logs the same line once."""
    folder = saved()
    with caplog.at_level(logging.INFO, "safe_dtype"), safe_dtype.patched():
        model = safe_dtype.SafeAutoModelForCausalLM.from_pretrained(folder)
    assert not lines_of(capsys.readouterr().err)
    summary = safe_dtype.plan_of(model).summary
    assert [record.getMessage() for record in caplog.records].count(summary) == 1


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK"])
def test_one_rank_speaks(
    name: str, saved: Saved, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the ranks of a job only the first one says what all of them load."""
    folder = saved()
    for rank, count in (("1", 0), ("0", 1)):
        monkeypatch.setenv(name, rank)
        with safe_dtype.patched():
            AutoModelForCausalLM.from_pretrained(folder)
        assert len(lines_of(capsys.readouterr().err)) == count


@pytest.mark.parametrize(
    ("options", "method", "count"),
    [
        ((), "fork", 1),
        pytest.param((), "spawn", 1, marks=pytest.mark.slow),
        pytest.param(("--quiet",), "", 0, marks=pytest.mark.slow),
        pytest.param(("--explain",), "", 1, marks=pytest.mark.slow),
    ],
)
def test_run(options: tuple[str, ...], method: str, count: int, saved: Saved, tmp_path: Path) -> None:
    """Under `safe-dtype run` the program says it, and none of its workers, which plan as well; `--explain` and `--quiet` as they say."""
    script = tmp_path / "script.py"
    script.write_text(IN_CHILDREN if method else LOAD)
    command = [sys.executable, "-m", "safe_dtype", "run", *options, str(script), str(saved()), method]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(lines_of(done.stderr)) == count, done.stderr
    assert ("because:" in done.stderr) == (options == ("--explain",))
    assert "\\u2500" not in done.stderr
    assert not done.stdout
