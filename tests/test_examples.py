"""The examples run as they are, and print what they promise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one example in a process of its own."""
    return subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments], capture_output=True, text=True, check=False, timeout=600
    )


@pytest.mark.slow
def test_publish_variant() -> None:
    """The bundled model is published in float16, with a card, and plain transformers loads it."""
    done = run("publish_variant.py")
    assert done.returncode == 0, done.stderr
    assert "published: org/tiny-qwen3-fp16/tree/" in done.stdout
    assert "base_model: org/tiny-qwen3" in done.stdout
    assert "plain transformers, torch.float16: The argument is" in done.stdout


@pytest.mark.slow
def test_optimize_sapiens(tmp_path: Path) -> None:
    """A Sapiens2 becomes an exported program in bfloat16, and segments with it."""
    done = run("optimize_sapiens.py", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("status 0: export in bfloat16 was asked for")
    assert "export in bfloat16: masks of (2, 16, 16)" in done.stdout
    assert (tmp_path / "out" / "report.md").exists()
