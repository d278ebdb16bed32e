"""What the README says, happens."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pytest_examples import CodeExample, EvalExample, find_examples

README = Path(__file__).resolve().parent.parent / "README.md"


def bash_blocks() -> list[str]:
    """Return the fenced bash blocks, in order."""
    return [part.partition("```")[0] for part in README.read_text(encoding="utf-8").split("```bash\n")[1:]]


@pytest.mark.parametrize("example", [one for one in find_examples(README) if one.prefix == "python"], ids=str)
def test_python_runs(example: CodeExample, eval_example: EvalExample, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Python block runs from the project's root, and prints what it says it prints."""
    monkeypatch.chdir(README.parent)
    eval_example.set_config(line_length=119)
    eval_example.run_print_check(example)


@pytest.mark.parametrize("block", bash_blocks()[2:])
def test_commands_run(block: str) -> None:
    """Every shell block after the two that install runs from the project's root."""
    found = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=README.parent, env=os.environ | found, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_two_commands_come_first() -> None:
    """The first two shell blocks install with the pins; one generates, one runs the tests."""
    first, second = bash_blocks()[:2]
    assert "-c constraints.txt" in first
    assert "safe-dtype generate examples/tiny-qwen3" in first
    assert "-c constraints.txt" in second
    assert "pytest" in second


def test_help_texts_are_fresh() -> None:
    """The help texts in the README are those of the command."""
    done = subprocess.run(
        [sys.executable, "-m", "cogapp", "--check", str(README)],
        cwd=README.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for command in ("doctor", "plan", "generate"):
        assert f"$ safe-dtype {command} --help\nUsage: " in README.read_text(encoding="utf-8")
