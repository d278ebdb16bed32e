"""A variant that is staged on a machine with an accelerator: it is measured there, and the card of the model names it."""

from __future__ import annotations

from pathlib import Path

from accelerator.rehearsal import Rehearsal
from engineered import saved

from safe_dtype.devices.unused_memory import free_unused_memory
from safe_dtype.publishing.staging.stage import stage


def test_measured_on_the_card(rehearsal: Rehearsal, tmp_path: Path) -> None:
    """Both loaders run on the device, and nothing is left on it."""
    rehearsal.insert("T4")
    source = saved("llama", tmp_path / "source")
    (source / "README.md").write_text("---\nlicense: mit\n---\n# Llama\n")
    with rehearsal.counting() as counting:
        staged = stage(source, tmp_path / "staged", dtype="float16", base="org/llama@" + 40 * "0")
    evidence = staged.evidence
    assert counting.counts.kernels > 100
    assert (evidence.device["device"], evidence.dtype) == ("musa:0", "float16")
    assert "T4" in evidence.device["name"]
    assert not evidence.plain.beyond
    assert not evidence.safe_dtype.beyond
    assert evidence.device["name"] in (staged.folder / "README.md").read_text()
    free_unused_memory()
    assert rehearsal.figure("allocated", 0) == 0
