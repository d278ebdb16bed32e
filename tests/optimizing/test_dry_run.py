"""What `optimize` would try, without running the model."""

from __future__ import annotations

from pathlib import Path

import pytest

from safe_dtype.errors import CheckpointError
from safe_dtype.facts import BFLOAT16, FLOAT16, FLOAT32
from safe_dtype.optimizing.dry_run import DryRun, dry_run
from safe_dtype.optimizing.forms import form_named
from safe_dtype.optimizing.nouns.goal import Goal


def test_order(tiny_qwen3: Path) -> None:
    """The form that is asked for comes right after eager, the dtype right after float32."""
    run = dry_run(str(tiny_qwen3), Goal(form="compile", dtype=FLOAT16, device="cpu"))
    assert [form.name for form, _ in run.rungs][:3] == ["eager", "compile", "export"]
    assert (run.device, run.dtypes, run.saved, run.parameters) == ("cpu", (FLOAT32, FLOAT16), BFLOAT16, 2_115_520)


def test_missing_compiler(tiny_qwen3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A form that cannot be made on this machine has what is missing."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    run = dry_run(str(tiny_qwen3), Goal(dtype=FLOAT32, device="cpu"))
    missing = {form.name: reasons.get(FLOAT32, "") for form, reasons in run.rungs}
    assert missing["aoti"] == missing["compile"] == "a C++ compiler"
    assert missing["eager"] == missing["export"] == ""


def test_no_model(tmp_path: Path) -> None:
    """A folder without a model is the error that it is everywhere."""
    with pytest.raises(CheckpointError):
        dry_run(str(tmp_path), Goal(device="cpu"))


def test_text() -> None:
    """A form has a line: what it is, and what is missing in float32 or in another dtype."""
    export, compiled, regional = map(form_named, ("export", "compile", "regional"))
    rungs = ((export, {BFLOAT16: "a kernel"}), (compiled, {FLOAT32: "a C++ compiler"}), (regional, {}))
    run = DryRun("tiny", "cpu", (FLOAT32, BFLOAT16), rungs, BFLOAT16, 12_345)
    first, *forms, last = run.as_text().splitlines()
    assert first == "tiny (saved in bfloat16, 12,345 parameters) on cpu, each form in float32, bfloat16:"
    assert forms == [
        f"  0  export      {export.about}; not in bfloat16: it needs a kernel",
        "  1  compile     not tried: it needs a C++ compiler",
        f"  2  regional    {regional.about}",
    ]
    assert "compile need a model that captures as one graph" in last
    assert run.to_dict()["rungs"] == [
        {"form": "export", "missing": ""}, {"form": "compile", "missing": "a C++ compiler"}, {"form": "regional", "missing": ""},
    ]  # fmt: skip
