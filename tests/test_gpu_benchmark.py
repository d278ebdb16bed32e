"""`benchmarks/gpu.py` where there is no GPU: every part runs on what is here, and the ends of a part are written down."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("probe", "decoding", "recovery", "lost", "overflow", "graphs", "own_tests", "optimizing")


def run(folder: Path, *arguments: str) -> dict[str, dict]:
    """Run the benchmark, and return its parts by name."""
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--out", folder, "--name", "here", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    table = (folder / "gpu-here.md").read_text()
    parts = json.loads((folder / "gpu-here.json").read_text())["figures"]["parts"]
    assert all(f"## {part['name']}" in table for part in parts)
    return {part["name"]: part for part in parts}


@pytest.mark.slow
def test_every_part_runs(tmp_path: Path) -> None:
    """On the rehearsal device every part comes to its end, and shows what the device can show."""
    parts = run(tmp_path, "--device", "rehearsal", "--budget", "3000")
    assert {name: part["outcome"] for name, part in parts.items()} == dict.fromkeys(PARTS, "done")
    decode = [row for row in parts["decoding"]["rows"] if row["phase"] == "decode"]
    assert decode
    assert all(row["plain_synchronizations"] == row["guarded_synchronizations"] for row in decode)
    assert all(row["now_in"] == "float32" for row in parts["recovery"]["rows"] if row["fault"] != "none")
    ways = {row["way"]: row for row in parts["overflow"]["rows"]}
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
