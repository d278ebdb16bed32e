"""Whatever goes wrong, the command ends with one clear line and a status."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_run import Run
from safetensors import SafetensorError

from safe_dtype.cli.endings import one_line_endings
from safe_dtype.errors import CheckpointError, EnvironmentNotFitError

FULL = "the disk is full, or your share of it. Next: free some space, or name a folder elsewhere."

ERRORS = {
    "ours": (CheckpointError("model", "is broken", "mend it"), 1, "model: is broken. Next: mend it."),
    "missing-here": (EnvironmentNotFitError("a compiler", "install it"), 5, "install it"),
    "not-writable": (
        PermissionError(errno.EACCES, "Permission denied", "/out"),
        1,
        "/out: Permission denied. Next: check the path, and that you may read and write there.",
    ),
    "full": (OSError(errno.ENOSPC, "No space left on device", "/out/x"), 1, f"/out/x: {FULL}"),
    "full-quota": (OSError(errno.EDQUOT, "Disk quota exceeded"), 1, FULL),
    "full-in-safetensors": (SafetensorError("I/O error: No space left on device (os error 28)"), 1, FULL),
    "no-memory": (MemoryError(), 1, "no memory is left."),
    "foreign": (ValueError("Unrecognized model.\n  Look\n\nhere"), 1, "ValueError: Unrecognized model. Look here ("),
    "foreign-and-long": (RuntimeError("x" * 10_000), 1, f"RuntimeError: {'x' * 600}... ("),
}  # fmt: skip


@pytest.mark.parametrize(("error", "status", "words"), ERRORS.values(), ids=ERRORS)
def test_one_line(error: Exception, status: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each kind of error is one line with what to do next, and a status; nothing is on stdout."""
    with pytest.raises(SystemExit) as ended, one_line_endings():
        raise error
    captured = capsys.readouterr()
    assert ended.value.code == status
    assert captured.err.startswith("safe-dtype: ")
    assert words in captured.err
    assert (captured.err.count("\n"), captured.out) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device")
def test_full_disk_below_torch(capsys: pytest.CaptureFixture[str]) -> None:
    """What torch says where it cannot write is told as what it is."""
    with pytest.raises(SystemExit), one_line_endings():
        torch.save({"a": torch.zeros(2**20)}, "/dev/full")
    assert FULL in capsys.readouterr().err


def test_traceback_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who wants to see where it happened, can."""
    monkeypatch.setenv("SAFE_DTYPE_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError), one_line_endings():
        _ = 1 // 0


PRINTS = """
import click
from safe_dtype.cli import endings
with endings.one_line_endings():
    for _ in range(10_000):
        click.echo({text!r})
"""


def printing(text: str, stdout: int, **environment: str) -> tuple[int, str]:
    """Print a text many times to `stdout`; return how that ended, and what was on stderr."""
    done = subprocess.run(
        [sys.executable, "-c", PRINTS.format(text=text)],
        stdout=stdout, stderr=subprocess.PIPE, check=False, env=os.environ | environment,
    )  # fmt: skip
    return done.returncode, done.stderr.decode()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device")
def test_full_device() -> None:
    """Where stdout is full, it is said once, and Python does not say it again."""
    with Path("/dev/full").open("w") as full:
        assert printing("line", full.fileno()) == (1, f"safe-dtype: {FULL}\n")


@pytest.mark.skipif(sys.platform == "win32", reason="pipes")
def test_closed_pipe() -> None:
    """Where nobody reads on, as after `| head -1`, it ends without a word."""
    reads, writes = os.pipe()
    os.close(reads)
    try:
        assert printing("line", writes) == (1, "")
    finally:
        os.close(writes)


STOPPED = """
import signal
import click
from safe_dtype.cli import cli, main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background has it ignored
@cli.command()
def stopped():
    click.echo("begun")
    signal.raise_signal(signal.{name})
main(["stopped"])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(("name", "words"), [("SIGINT", "safe-dtype: interrupted.\n"), ("SIGTERM", "")])
def test_stopped(name: str, words: str) -> None:
    """Ctrl-C and SIGTERM end a command with the status of shells, and no traceback."""
    done = subprocess.run(
        [sys.executable, "-c", STOPPED.format(name=name)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.Signals[name], "begun\n", words)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_interrupted_traceback() -> None:
    """Who wants to see where Ctrl-C met a command, can."""
    environment = os.environ | {"SAFE_DTYPE_TRACEBACK": "1"}
    command = [sys.executable, "-c", STOPPED.format(name="SIGINT")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 128 + signal.SIGINT
    assert "in stopped\n" in done.stderr
    assert done.stderr.endswith("KeyboardInterrupt\nsafe-dtype: interrupted.\n")


@pytest.mark.parametrize("place", ["no/such/folder/x.svg", "."])
def test_picture_that_cannot_be_written(place: str, run: Run, tiny_qwen3: Path, tmp_path: Path) -> None:
    """A picture that cannot be written is refused before anything is measured."""
    done = run("audit", tiny_qwen3, "--plot", tmp_path / place)
    assert done.returncode == 2
    assert str(tmp_path) in done.stderr
    assert not done.stdout


@pytest.mark.parametrize(
    "arguments", [("plan", ""), ("generate", " ", "x"), ("optimize", ""), ("publish", "stage", "")]
)
def test_empty_name(arguments: tuple[str, ...], run: Run, tmp_path: Path) -> None:
    """An empty name is no folder: least of all the one that the shell is in."""
    done = run(*arguments, *(["--out", tmp_path / "out"] if arguments[0] in ("optimize", "publish") else []))
    assert done.returncode == 2
    assert "is empty. Is a variable of your shell not set?" in done.stderr


def test_empty_prompt(run: Run, tiny_qwen3: Path) -> None:
    """A prompt without a token is refused before the model runs on nothing."""
    done = run("generate", tiny_qwen3, "")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(
        "its tokenizer makes no token of this prompt. Next: pass a prompt with words in it."
    )


def test_prompt_that_is_no_text(run: Run, tiny_qwen3: Path) -> None:
    """Bytes that are no text, as the system hands them over, are a wrong usage."""
    done = run("generate", tiny_qwen3, "a\udcff")
    assert done.returncode == 2
    assert "is no text" in done.stderr
