"""What a guarded run has learned is known to loads of the same checkpoint, until the device is measured anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from guarding.generators import DOWN

from safe_dtype.devices import detect_one, learned_on, lessons_for, remember_learned
from safe_dtype.facts import LearnedFailure

BF16, FP32 = torch.bfloat16, torch.float32
LEARNED = LearnedFailure(
    "qwen3",
    "Linear.forward",
    "bfloat16",
    "cpu",
    DOWN,
    "RuntimeError",
    "opcode 7",
    ("float32",),
    ("in float32: passed",),
    "/models/one",
)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path / "cache"))


def test_remembered_once() -> None:
    """The same failure is kept once, others beside it, and what was kept comes back as it was."""
    cpu = detect_one("cpu")
    assert learned_on(cpu) == ()
    other = replace(LEARNED, text="opcode 8")
    for failure in (LEARNED, other, LEARNED):
        remember_learned(failure)
    assert learned_on(cpu) == (other, LEARNED)


def test_only_its_checkpoint() -> None:
    """It counts for the checkpoint it was learned with, as long as that is of the same family."""
    remember_learned(LEARNED)
    assert lessons_for(["cpu"], "/models/one", "qwen3") == (LEARNED,)
    assert lessons_for(["cpu"], "/models/other", "qwen3") == ()
    assert lessons_for(["cpu"], "/models/one", "llama") == ()


def test_what_nothing_cures_is_no_lesson() -> None:
    """Where no other dtype works, nothing is planned around."""
    remember_learned(replace(LEARNED, works_in=()))
    assert lessons_for(["cpu"], "/models/one", "qwen3") == ()


def test_old_caches() -> None:
    """What was written before checkpoints were named can be read, and counts for none."""
    entry = LEARNED.as_dict()
    del entry["checkpoint"]
    remember_learned(LearnedFailure.from_dict(entry))
    assert learned_on(detect_one("cpu")) == (replace(LEARNED, checkpoint=None),)
    assert lessons_for(["cpu"], "/models/one", "qwen3") == ()
