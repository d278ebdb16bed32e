"""The examples run as they are, and print what they promise."""

from __future__ import annotations

import json
import os
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


@pytest.mark.slow  # 10 to 60 s each: `.ci/run` runs them by themselves
@pytest.mark.parametrize("job", ENDS)
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


# What each job on an older card shows, whatever its times are, in the documents as in a run of today.
ON_OLDER_CARDS = {
    "claims": r"Tesla T4: is_bf16_supported\(\) says True\ndtype='auto': torch\.bfloat16, \d+ ms",
    "measured": r"is_bf16_supported\(\) says True +<- disagrees: bfloat16 was measured slow",
    "plan": r"on Tesla T4 \(musa:0\): float16\nbecause: fastest here: .*; its activations are measured at the first load",
    "overflow": r"finite: False",
    "first_load": r"(?s)rescaled exactly.*in torch\.float16 on musa\n.*name of the file.*repeated: 0",
    "second_load": r"\Aloaded in [\d.]+ s, in torch\.float16: mlp\.up_proj / mlp\.down_proj 2\^-8\n'The argument is the name",
    "script": r"(?s)\$ python .*torch\.bfloat16: The argument is the name of.*policy ladder=fp16>fp32 asks for it.*"
    r"in float16 on Tesla T4.*torch\.float16: The argument is the name of",
    "v100": r"(?s)CUBLAS_STATUS_NOT_SUPPORTED.*name of the file.*now in torch\.float32.*V100-SXM2-16GB \(musa:0\): float16",
    "rtx_20": r"RTX 2080 Ti \(musa:0\): float16\nbecause: fastest here",
}


def test_older_cards_in_the_documents() -> None:
    """What was recorded of each job shows what it is there for."""
    shown = {file.stem: file.read_text(encoding="utf-8") for file in (EXAMPLES / "t4").iterdir()}
    assert shown.keys() == ON_OLDER_CARDS.keys()
    assert [job for job, text in shown.items() if not re.search(ON_OLDER_CARDS[job], text)] == []


@pytest.mark.slow
@pytest.mark.skipif("PYTEST_XDIST_WORKER" in os.environ, reason="measures speeds: run it alone")
def test_older_cards() -> None:
    """On rehearsal cards the same is seen now as when the documents were made."""
    code = "import json, sys; import t4; json.dump(t4.recorded(), sys.stdout)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=EXAMPLES, capture_output=True, text=True, check=False, timeout=1200,
        env=os.environ | {"COLUMNS": "110"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert [shown[job] for job, seen in ON_OLDER_CARDS.items() if not re.search(seen, shown[job])] == []


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


@pytest.mark.slow
@pytest.mark.parametrize("way", ["trainer", "accelerate", "lora"])
def test_fine_tune(way: str) -> None:
    """Fine-tuning goes on in float16 from the step in which bfloat16 has no kernel, on one process and on two."""
    for launch in ([], ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29737"]):
        done = subprocess.run(
            [sys.executable, *launch, EXAMPLES / "fine_tune.py", way], capture_output=True, text=True, check=False,
            timeout=600, env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        steps = re.findall(r"^step +(\d+): loss \d\.\d+ in (\w+)$", done.stdout, re.MULTILINE)
        assert [dtype for _, dtype in steps] == ["bfloat16"] * 10 + ["float16"] * 14, done.stdout + done.stderr


def test_fine_tune_in_the_picture() -> None:
    """The plain run ends at the tenth step; the guarded one is that which was switched by hand, to the last digit."""
    file = EXAMPLES.parent / "benchmarks" / "results" / "training_loss.json"
    losses = json.loads(file.read_text(encoding="utf-8"))["figures"]
    assert losses["guarded"] == losses["by_hand"]
    assert losses["plain"] == losses["by_hand"][:10]
    assert len(losses["by_hand"]) == 24


@pytest.mark.slow
def test_fine_tune_plainly() -> None:
    """Without safe_dtype the same run ends at that kernel."""
    done = run("fine_tune.py", "trainer", "--plain")
    assert done.returncode == 1
    assert "Expected both inputs to be Half, Float or Double tensors but got BFloat16" in done.stderr
