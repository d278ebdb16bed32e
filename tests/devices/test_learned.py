"""What a guarded run has learned is planned around by models of the same family, until the device is measured anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from guarding.generators import DOWN
from tiny_models import TINY

from safe_dtype import SafeAutoModel, SafeDtypeWarning, report
from safe_dtype.devices import detect_one, facts_of, learned_on, remember_learned, with_learned
from safe_dtype.facts import BFLOAT16, FLOAT32, LearnedFailure, VerdictKind

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


def test_only_its_family() -> None:
    """Verdicts change for the family and the dtype that failed, and for no others."""
    facts = facts_of("cpu")
    remember_learned(LEARNED)
    changed = with_learned(facts, "qwen3")
    assert changed.verdict(BFLOAT16).kind is VerdictKind.UNSUPPORTED
    assert "opcode 7" in changed.verdict(BFLOAT16).reason
    assert changed.verdict(FLOAT32) == facts.verdict(FLOAT32)
    assert with_learned(facts, "llama") is facts


def test_what_nothing_cures_is_no_verdict() -> None:
    """Where no other dtype works, nothing is planned around."""
    remember_learned(replace(LEARNED, works_in=()))
    facts = facts_of("cpu")
    assert with_learned(facts, "qwen3") is facts


def test_the_next_load(tmp_path: Path) -> None:
    """A load after a failure that nobody knew gets another dtype; measured anew, it is forgotten."""
    folder = TINY["qwen3"].save(tmp_path / "model", BF16)
    model = SafeAutoModel.from_pretrained(folder, dtype=BF16)

    def fail(module: Any, args: Any) -> None:
        if module.weight.dtype == BF16:
            raise RuntimeError("opcode 7")

    model.get_submodule(DOWN).register_forward_pre_hook(fail)
    with pytest.warns(SafeDtypeWarning, match="Going on in float32"):
        model(input_ids=torch.arange(3, 9)[None])
    (learned,) = report(model).learned
    assert (learned.family, learned.op, learned.text, learned.works_in) == (
        "qwen3", "Linear.fail", "opcode 7", ("float32",),
    )  # fmt: skip
    with pytest.warns(SafeDtypeWarning, match=r"opcode 7.*Loading float32 instead|Loading float32 instead"):
        assert SafeAutoModel.from_pretrained(folder, dtype=BF16).dtype == FP32
    facts_of("cpu", refresh=True)
    assert learned_on(detect_one("cpu")) == ()
