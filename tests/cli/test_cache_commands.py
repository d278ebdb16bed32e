"""`safe-dtype cache`: what is remembered, listed and cleared as users do it."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from pathlib import Path

import pytest
from command_run import Run

from safe_dtype.devices import remember_learned
from safe_dtype.facts import LearnedFailure
from safe_dtype.store import cache_folder, remember

LEARNED = LearnedFailure(
    "qwen3", "VendorLinear.forward", "bfloat16", "cpu", "layer", "RuntimeError", "code 7", ("float32",),
    checkpoint="/models/one",
)  # fmt: skip
T4 = {"name": "NVIDIA T4", "dtypes": ["float32"], "widths": [[256, 512]], "ops": ["matmul"]}
HALF = {"half_of": "digest", "device": "Some GPU"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with verdicts on a T4, what float16 does to a model, a lesson on the CPU, and a damaged file."""
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path / "cache"))
    remember(T4, {"verdicts": []})
    remember(HALF, {"half": {}, "checkpoint": "org/tiny"})
    remember_learned(LEARNED)
    (cache_folder() / f"{'0' * 32}.json").write_text('{"schema": 1, "key')
    return cache_folder()


def files(folder: Path) -> int:
    """Return how many entries the folder holds."""
    return len([*folder.glob("*.json")])


class Terminal(io.StringIO):
    """A person who types."""

    def isatty(self) -> bool:
        """Say that it is one."""
        return True


def test_list(run: Run, folder: Path) -> None:
    """One row an entry: what, for which device and model, how old, how big; damaged files as such, and the sum."""
    text = " ".join(run("cache", "list").stdout.split())
    for words in ("float16's range", "Some GPU", "org/tiny", "NVIDIA T4", "speed and errors of float32 at 256x512",
                  "failures met", "/models/one", "damaged: Unterminated", "4 entries", str(folder)):  # fmt: skip
        assert words in text


def test_list_json(run: Run, folder: Path) -> None:
    """The same as JSON, with bytes and seconds."""
    listed = json.loads(run("cache", "list", "--format", "json").stdout)
    assert (listed["schema"], listed["folder"]) == (1, str(folder))
    by_kind = {entry["kind"]: entry for entry in listed["entries"]}
    assert set(by_kind) == {"speed and errors", "float16's range", "failures met", "damaged"}
    half = by_kind["float16's range"]
    assert (half["device"], half["models"], half["problem"]) == ("Some GPU", ["org/tiny"], None)
    assert half["bytes"] == (folder / half["file"]).stat().st_size
    assert abs(half["measured_at"] - time.time()) < 300
    assert by_kind["damaged"]["problem"]


def test_path(run: Run, folder: Path) -> None:
    """`cache path` is the folder, ready for a shell."""
    assert run("cache", "path").stdout == f"{folder}\n"


@pytest.mark.parametrize(
    ("words", "left"),
    [
        pytest.param((), 0, id="all"),
        pytest.param(("--device", "t4"), 3, id="device"),
        pytest.param(("--device", "cpu"), 3, id="device-by-torch-name"),
        pytest.param(("--model", "tiny"), 3, id="model"),
        pytest.param(("--model", "/models/one"), 3, id="model-by-folder"),
        pytest.param(("--older-than", "1h"), 3, id="age"),
        pytest.param(("--damaged",), 3, id="damaged"),
        pytest.param(("--model", "tiny", "--device", "t4"), 4, id="both"),
    ],
)
def test_clear(run: Run, folder: Path, words: tuple[str, ...], left: int) -> None:
    """All of it, or what the options name."""
    damaged = folder / f"{'0' * 32}.json"
    os.utime(damaged, (time.time() - 7200,) * 2)
    done = run("cache", "clear", "--yes", *words)
    assert (done.returncode, files(folder)) == (0, left), done.stdout + done.stderr


@pytest.mark.parametrize("option", ["--model", "--device"])
def test_empty_name(run: Run, folder: Path, option: str) -> None:
    """A variable of the shell that is not set clears nothing."""
    done = run("cache", "clear", "--yes", option, "")
    assert (done.returncode, files(folder)) == (2, 4)
    assert "is empty" in done.stderr


def test_asks_first(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal it asks, and only "yes" deletes; without one it needs --yes."""
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    refused = run("cache", "clear")
    assert "Delete 4 entries" in refused.stderr
    assert (refused.returncode, files(folder)) == (1, 4)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    piped = run("cache", "clear")
    assert (piped.returncode, files(folder)) == (2, 4)
    assert "--yes" in piped.stderr
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    agreed = run("cache", "clear")
    assert "deleted: 4 entries" in agreed.stdout
    assert (agreed.returncode, files(folder)) == (0, 0)


def test_stdin_closed(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was started without stdin cannot be asked either."""
    monkeypatch.setattr(sys, "stdin", None)
    assert (run("cache", "clear").returncode, files(folder)) == (2, 4)


@pytest.mark.parametrize("width", ["\N{SUPERSCRIPT TWO}", "-5", "0", "wide"])
def test_width_that_is_none(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, width: str) -> None:
    """Tables are drawn whatever COLUMNS says."""
    monkeypatch.setenv("COLUMNS", width)
    assert run("cache", "list").returncode == 0


def test_nothing_to_clear(run: Run, folder: Path) -> None:
    """An empty cache is no question and no error; the JSON says what is gone."""
    cleared = json.loads(run("cache", "clear", "--yes", "--format", "json").stdout)
    assert len(cleared["entries"]) == 4
    assert "0 entries" in run("cache", "clear").stdout


def test_bad_age(run: Run) -> None:
    """An age that cannot be read is a wrong usage, and deletes nothing."""
    done = run("cache", "clear", "--yes", "--older-than", "soon")
    assert (done.returncode, "30m" in done.stderr) == (2, True)
