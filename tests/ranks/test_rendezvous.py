"""`init_process_group` under torchrun: ranks that are started again come up, and agree anew."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import safe_dtype
from safe_dtype.errors import LaunchError

from .processes import Launch, free_port, run_ranks

SCRIPT = """
import os, sys
import torch
import safe_dtype
from safe_dtype.ranks import Vote, cast_vote

torch.set_num_threads(1)
ranks = safe_dtype.init_process_group(seconds=60)
assert cast_vote(ranks, Vote.OK).ok
model = safe_dtype.SafeAutoModelForCausalLM.from_pretrained(sys.argv[1])
assert cast_vote(ranks, Vote.OK).ok
if ranks.attempt == 0:
    os._exit(3 * ranks.rank)
torch.distributed.barrier()
print(f"rank {ranks.rank} of {ranks.size} is up at attempt {ranks.attempt} in {model.dtype}", flush=True)
torch.distributed.destroy_process_group()
"""


def test_without_a_launcher() -> None:
    """A job of one needs no process group."""
    assert safe_dtype.init_process_group() is None


def test_half_a_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job of several that cannot meet is told what is missing."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(LaunchError, match="WORLD_SIZE is 2, and MASTER_ADDR, MASTER_PORT not set"):
        safe_dtype.init_process_group()


def comes_up(attempt: int, says_who: bool) -> int:
    """Connect by torch's own function in a program that is patched; return a sum over the ranks."""
    os.environ["TORCHELASTIC_RESTART_COUNT"] = str(attempt)
    safe_dtype.patch()
    who = {name.lower(): int(os.environ[name]) for name in ("RANK", "WORLD_SIZE")} if says_who else {}
    dist.init_process_group("gloo", timeout=timedelta(seconds=10), **who)
    total = torch.ones(1)
    dist.all_reduce(total)
    return int(total)


@pytest.mark.parametrize("says_who", [False, pytest.param(True, id="as accelerate calls it")])
def test_a_patched_program_comes_up_again(says_who: bool) -> None:
    """Processes that are started anew, with the store of those before, do not read in it where those were to be reached."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    names = {"TORCHELASTIC_USE_AGENT_STORE": "True", "GROUP_WORLD_SIZE": "1", "MASTER_PORT": str(server.port)}
    launch = Launch(joins=False, environments={None: names})
    assert [run_ranks(comes_up, 2, attempt, says_who, launch=launch) for attempt in range(3)] == [[2, 2]] * 3


@pytest.mark.slow
def test_restart(tiny_qwen3: Path, tmp_path: Path) -> None:
    """With torchrun's own rendezvous, whose store outlives a restart, both ranks come up at the first one."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--max_restarts", "2"]
    done = subprocess.run(
        [*command, "--master_port", str(free_port()), str(script), str(tiny_qwen3)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        assert f"rank {rank} of 2 is up at attempt 1 in torch." in done.stdout
