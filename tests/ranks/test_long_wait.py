"""Variables of a job that is over: a load says soon what it waits for, and how to stop that."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from safe_dtype.ranks import long_wait as module
from safe_dtype.ranks.long_wait import long_wait

from .processes import free_port

SCRIPT = """
import sys
from safe_dtype import SafeAutoModelForCausalLM
from safe_dtype.ranks.one_plan import board, meeting_of_ranks

board.SECONDS_TO_CONNECT = meeting_of_ranks.SECONDS_TO_MEET = 8.0
model = SafeAutoModelForCausalLM.from_pretrained(sys.argv[1])
SafeAutoModelForCausalLM.from_pretrained(sys.argv[1])
print(model.dtype)
"""


def test_it_says_so_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is quick says nothing, and what takes longer says it once."""
    monkeypatch.setattr(module, "SECONDS_IN_SILENCE", 0.05)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with long_wait(60):
        pass
    time.sleep(0.1)
    assert not caplog.messages
    for _ in range(2):
        with long_wait(60):
            time.sleep(0.2)
    (said,) = caplog.messages
    assert said.startswith("waiting for the other ranks, up to 60 s: by the variables ")
    assert "WORLD_SIZE=2" in said
    assert "unset WORLD_SIZE" in said


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_job_that_is_over(rank: int, tiny_qwen3: Path) -> None:
    """Whether it would be the rank that holds the store or another one: it says so on stderr, and goes on alone."""
    left_over = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tiny_qwen3)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **left_over}, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("torch.")
    assert done.stderr.count("unset WORLD_SIZE") == 1
    assert f"MASTER_PORT={left_over['MASTER_PORT']}" in done.stderr
