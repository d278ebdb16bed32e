"""`benchmarks/gpu.py` where there is no GPU: parts run on what is here, and the ends of a part are written down.

The part "optimizing" is left out: it takes minutes here, and `tests/optimizing` holds what it calls.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(folder: Path, *arguments: str) -> dict[str, dict[str, Any]]:
    """Run the benchmark, and return its parts by name."""
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--out", folder, "--name", "here", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    table = (folder / "gpu-here.md").read_text()
    parts = json.loads((folder / "gpu-here.json").read_text())["figures"]["parts"]
    assert all(f"## {part['name']}" in table for part in parts)
    return {part["name"]: part for part in parts}


def rows_of(part: str, folder: Path) -> list[dict[str, Any]]:
    """Run one part on the rehearsal device to its end, and return its rows."""
    parts = run(folder, "--device", "rehearsal", "--parts", part, "--budget", "240")
    assert {name: each["outcome"] for name, each in parts.items()} == {part: "done"}
    assert parts[part]["rows"]
    return list(parts[part]["rows"])


@pytest.mark.slow
@pytest.mark.parametrize("part", ["probe", "lost", "own_tests"])
def test_a_part_runs(part: str, tmp_path: Path) -> None:
    """On the rehearsal device a part comes to its end."""
    rows_of(part, tmp_path)


@pytest.mark.slow
def test_graphs(tmp_path: Path) -> None:
    """What the rehearsal device has no compiler and no graphs for is said to be that, plain and guarded; nothing fails."""
    rows = rows_of("graphs", tmp_path)
    assert not [row for row in rows if "error" in row]
    assert {row["way"] for row in rows if "not_on_this_device" not in row} == {"static cache"}


@pytest.mark.slow
def test_decoding(tmp_path: Path) -> None:
    """A guarded token makes the host wait as often as a plain one."""
    decode = [row for row in rows_of("decoding", tmp_path) if row["phase"] == "decode"]
    assert decode
    assert all(row["plain_synchronizations"] == row["guarded_synchronizations"] for row in decode)


@pytest.mark.slow
def test_recovery(tmp_path: Path) -> None:
    """Whatever fails and wherever, the generation goes on in float32."""
    failed = [row for row in rows_of("recovery", tmp_path) if row["fault"] != "none"]
    assert failed
    assert all(row["now_in"] == "float32" for row in failed)


@pytest.mark.slow
def test_overflow(tmp_path: Path) -> None:
    """Rescaled into float16 a model is nearer to float32 than in bfloat16; plain float16 is not finite."""
    ways = {row["way"]: row for row in rows_of("overflow", tmp_path)}
    assert ways["float16"]["finite_share"] < 1
    assert ways["float16, safe_dtype"]["kl_median"] < ways["bfloat16"]["kl_median"]
    assert ways["float16, safe_dtype"]["rescale"]


@pytest.mark.slow
def test_how_a_part_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part beyond its limit is stopped, one that fails has its error, and one without time is skipped."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu

    (*_, stopped) = gpu.run_part("probe", "cpu", "tiny", 0.5)
    assert stopped.outcome.startswith("stopped at its limit of 0 s")
    (*_, failed) = gpu.run_part("nowhere", "cpu", "tiny", 60.0)
    assert failed.outcome.startswith("failed with status 1")
    assert "No module named 'gpu_parts.nowhere'" in failed.outcome
    (*_, [skipped]) = gpu.run_all(["probe"], "cpu", "tiny", 1.0)
    assert skipped.outcome == "skipped: 1 s of 1 s were left"
