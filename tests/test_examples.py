"""The examples run as they are, and print what they promise."""

from __future__ import annotations

import re
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


# One line that each of the ten jobs ends with, on any machine; the jobs themselves compare their results with plain ones.
ENDS = {
    "chat": r"stored in \w+, 0 steps were repeated",
    "pipelines": r"audio-classification: Wav2Vec2ForSequenceClassification in torch\.\w+: .*LABEL_\d.*",
    "embeddings": r"planned: stored in \w+",
    "lora": r"loss 2\.\d\d -> 0\.\d\d; merged and loaded again: 0\.\d\d in torch\.bfloat16",
    "train": r"saved in torch\.bfloat16, as it was",
    "launch": r"2 processes, 20 steps: loss 2\.\d\d -> 0\.\d\d; their weights are equal: True",
    "plan": r"NVIDIA Tesla T4: float16",
    "rescue": r"torch\.float16: The argument is the name of the file\.",
    "optimize": r"export in \w+: a mask of \(1, 56, 56\)",
    "publish": r"plain transformers, torch\.float16: The argument is the name of the file\.",
}


QUICK = {"chat"}  # the others take 10 to 60 s: `.ci/run` runs them by themselves


@pytest.mark.parametrize("job", [pytest.param(job, marks=[pytest.mark.slow] * (job not in QUICK)) for job in ENDS])
def test_ten_jobs(job: str) -> None:
    """What somebody new does in the first hour works, and every job ends as the documents say."""
    done = run("ten_jobs.py", job)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(rf"^{ENDS[job]}$", done.stdout, re.MULTILINE), done.stdout + done.stderr


def test_ten_jobs_are_all_named() -> None:
    """A job that is not there is named, with those that are: the ten of the documents."""
    done = run("ten_jobs.py", "sing")
    assert done.returncode == 1
    assert done.stderr.strip() == f"no such job: sing. There are: {', '.join(ENDS)}"
    assert {file.stem for file in (EXAMPLES / "ten_jobs").iterdir()} == set(ENDS)


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
