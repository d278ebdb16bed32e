"""Everything about a device at once: measured the first time, remembered after that."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from safe_dtype.devices import facts_of
from safe_dtype.devices.probing.timing import one_thread
from safe_dtype.facts import BFLOAT16, FLOAT32, DeviceFacts

LITTLE = {"dtypes": (FLOAT32, BFLOAT16), "widths": ((256, 256),), "ops": ("matmul",)}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path))
    return tmp_path


def ask(**more: object) -> DeviceFacts:
    """Ask for little, so that it is quick."""
    return facts_of("cpu", **{**LITTLE, **more})  # type: ignore[arg-type]


def files(folder: Path) -> int:
    """Count the files of verdicts."""
    return len(list(folder.glob("*.json")))


def test_second_time_is_remembered(folder: Path) -> None:
    """The same question gets the same figures, which no second measurement would give."""
    first, second = ask(), ask()
    assert second.verdicts == first.verdicts
    assert second.measured
    assert files(folder) == 1


def test_refresh(folder: Path) -> None:
    """`refresh` measures in any case, and what it finds is remembered."""
    first = ask()
    fresh = ask(refresh=True)
    assert fresh.verdicts != first.verdicts
    assert ask().verdicts == fresh.verdicts


@pytest.mark.parametrize(
    "other",
    [{"widths": ((128, 256),)}, {"ops": ("softmax",)}, {"dtypes": (FLOAT32,)}],
    ids=["widths", "ops", "dtypes"],
)
def test_another_question_is_measured(folder: Path, other: dict[str, object]) -> None:
    """Another question has an answer of its own."""
    ask()
    ask(**other)
    assert files(folder) == 2


def test_threads_are_part_of_the_question(folder: Path) -> None:
    """What was measured with other threads does not count."""
    ask()
    with one_thread():
        ask()
    assert files(folder) == (2 if torch.get_num_threads() > 1 else 1)


def test_environment_is_part_of_the_question(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was measured with other kernels does not count, and the report shows the setting."""
    ask()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert dict(ask().settings)["ONEDNN_MAX_CPU_ISA"] == "AVX2"
    assert files(folder) == 2


def test_max_memory_is_not(folder: Path) -> None:
    """Memory is read each time and changes no verdict."""
    ask()
    limited = ask(max_memory={"cpu": "1MiB"})
    assert limited.memory.free_bytes == 2**20
    assert limited.memory.limited_by == "max_memory"
    assert files(folder) == 1


def test_broken_cache(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A broken file is measured anew, with a line in the log."""
    ask()
    next(folder.glob("*.json")).write_text("{")
    with caplog.at_level(logging.WARNING):
        assert ask().verdicts
    assert "measuring again" in caplog.text
    caplog.clear()
    ask()
    assert not caplog.text


def test_no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without a folder to write to, verdicts are measured each time."""
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path / "file" / "cache"))
    assert ask().verdicts
    assert "cannot be written" in caplog.text


@pytest.mark.needs("no_bf16_cpu")
def test_claims_stand_beside_verdicts() -> None:
    """Where no instruction is claimed and bf16 is slow, claim and measurement agree."""
    facts = facts_of("cpu", widths=((1024, 1024),), ops=("matmul",))
    assert facts.claims
    assert not [claim for claim in facts.claims if "bf16" in claim.question and claim.disagreement]
