"""A rank that cannot go on ends with a status that says why, and the job comes up again in a dtype that works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import nn

from safe_dtype.errors import DeviceLostError, NoDtypeLeft
from safe_dtype.ranks import FAILED_IN_DTYPE, PEER_LOST, restarting
from safe_dtype.ranks.restart import status_of

from .generation_trial import save_checkpoint
from .processes import Launch, begin_case, free_port, outcomes_of, output_of, run_program, start_launcher

SCRIPT = Path(__file__).with_name("train_sharded.py")


class Ended(NamedTuple):
    """How a job ended."""

    ranks: list[dict[str, Any]]  # what each said at the end
    log: str
    status: int  # of torchrun


def launched(
    folder: Path, *, agents: int = 1, restarts: int = 3, script: Sequence[str] = (str(SCRIPT),), **settings: str
) -> Ended:
    """Run the job of two ranks by torchrun. With two agents each is a node of its own, with a cache of its own."""
    options = [*_rendezvous(agents, free_port()), "--max-restarts", str(restarts)]
    started = [_agent(folder, number, [*options, *_conf(number)], script, settings) for number in range(agents)]
    outputs = [output_of(agent) for agent in started]
    ranks = [json.loads(file.read_text()) for file in sorted(folder.glob("end *"))]
    return Ended(ranks, "\n".join(outputs), max(agent.returncode for agent in started))


def _rendezvous(agents: int, port: int) -> list[str]:
    return [
        "--nproc-per-node", str(2 // agents), "--nnodes", str(agents), "--monitor-interval", "0.2",
        "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "job", "--local-addr", "127.0.0.1",
    ]  # fmt: skip


def _conf(number: int) -> list[str]:
    return ["--rdzv-conf", f"is_host={str(number == 0).lower()}"]


def _agent(
    folder: Path, number: int, options: list[str], script: Sequence[str], settings: dict[str, str]
) -> subprocess.Popen[str]:
    arguments = ["-m", "torch.distributed.run", *options, "-m", "safe_dtype.run", *script]
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "JOB_FOLDER": str(folder),
        "SAFE_DTYPE_CACHE": str(folder / f"cache {number}"), "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        **settings,
    }  # fmt: skip
    return start_launcher(arguments, environment)


def verdicts(folder: Path) -> list[Path]:
    """Return the files of verdicts of training that are below a folder."""
    return [file for file in folder.rglob("*.json") if '"training ' in file.read_text(encoding="utf-8")]


def test_who_fails_and_who_loses_it(tmp_path: Path) -> None:
    """The rank that failed ends with 75 and a verdict of its own node, the one that waits for it with 76 and none, at once."""
    caches = {rank: {"SAFE_DTYPE_CACHE": str(tmp_path / f"cache {rank}")} for rank in range(2)}
    outcomes = outcomes_of(fails_between_collectives, 2, launch=Launch(environments=caches, group_seconds=600))
    assert [outcome.status for outcome in outcomes] == [76, 75], "\n".join(map(str, outcomes))
    assert [file.parent.name for file in verdicts(tmp_path)] == ["cache 1"]
    assert "bfloat16 has failed for good on this rank, in Failing: it ends with status 75" in outcomes[1].output
    assert "another rank has ended: this one ends with status 76" in outcomes[0].output


def fails_between_collectives() -> None:
    """Rank 1 fails in a step while rank 0 waits for it in a collective."""
    begin_case("a failure between two collectives", seconds=40)
    if dist.get_rank() == 1:
        assert status_of(DeviceLostError("cuda:0", "bfloat16", "device-side assert")) == FAILED_IN_DTYPE
        assert status_of(DeviceLostError("cuda:0", "", "an index")) is None
        assert status_of(torch.OutOfMemoryError("no room")) is None
        assert status_of(NoDtypeLeft("op", "float32", ())) is None
        assert status_of(RuntimeError("Connection closed by peer")) == PEER_LOST
    with restarting():
        if dist.get_rank() == 1:
            Failing(torch.bfloat16)(torch.ones(2, 4))
        dist.all_reduce(torch.ones(1))


class Failing(nn.Sequential):
    """A model for which a dtype has no kernel."""

    def __init__(self, bad: torch.dtype, text: str = "\"addmm_impl_cpu_\" not implemented for 'BFloat16'") -> None:
        super().__init__(nn.Linear(4, 4))
        self.bad, self.text = bad, text
        self[0].register_forward_pre_hook(self.fail)
        self.to(bad)

    def fail(self, module: nn.Module, _args: object) -> None:
        """Raise in the bad dtype."""
        if next(module.parameters()).dtype == self.bad:
            raise RuntimeError(self.text)


def test_other_errors_stay_what_they_are() -> None:
    """In a job of one rank, and where no dtype is at fault, an exception comes through `restarting`."""
    for error in (
        KeyError("a"),
        RuntimeError("\"x\" not implemented for 'BFloat16'"),
        torch.OutOfMemoryError("no room"),
    ):
        with pytest.raises(type(error)), restarting():
            raise error


@pytest.mark.slow
def test_it_comes_up_in_the_next_dtype(tmp_path: Path) -> None:
    """One restart for each dtype that fails; training goes on from the checkpoint, and the verdict names the rank."""
    ended = launched(tmp_path, BAD="bfloat16")
    assert ended.status == 0, ended.log
    assert [(end["attempt"], end["dtype"], end["first"]) for end in ended.ranks] == [(1, "float16", 3)] * 2
    assert ended.ranks[0]["failed"]["bfloat16"].startswith(
        "rank 0: training of Net raised RuntimeError: FlashAttention"
    )
    assert len(verdicts(tmp_path)) == 1
    assert ended.log.count("ends with status 75") == 1


@pytest.mark.slow
def test_tensor_parallel_generation_comes_up_in_the_next_dtype(tmp_path: Path) -> None:
    """A rank that fails between two collectives ends with its verdict, and the next attempt loads the model without that dtype.

    In float32: whether float16 holds a model that is split is measured by nobody.
    """
    checkpoint = str(tmp_path / "checkpoint")
    save_checkpoint(checkpoint, torch.bfloat16)
    program = str(SCRIPT.with_name("generate_sharded.py"))
    ended = launched(tmp_path, script=["--policy", "ladder=bf16>fp16>fp32", program, checkpoint])
    assert ended.status == 0, ended.log
    assert [(end["attempt"], end["dtype"]) for end in ended.ranks] == [(1, "torch.float32")] * 2, ended.log
    assert ended.ranks[0]["tokens"] == ended.ranks[1]["tokens"]
    assert ended.log.count("ends with status 75") == 1


@pytest.mark.slow
def test_a_plain_loop_of_accelerate(tmp_path: Path) -> None:
    """`safe-dtype launch` of a program that knows nothing of it: the second attempt is given another precision."""
    arguments = [
        "-m", "safe_dtype", "launch", "--cpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "bf16", str(SCRIPT.with_name("train_plainly.py")),
    ]  # fmt: skip
    ends, log = run_program(arguments, tmp_path, 2, SAFE_DTYPE_CACHE=str(tmp_path / "cache"))
    assert ends == [{"attempt": 1, "precision": "no", "first": 2}] * 2
    assert "a step of training in bfloat16 has failed: training of Net raised RuntimeError" in log


@pytest.mark.slow
def test_two_nodes_with_caches_of_their_own(tmp_path: Path) -> None:
    """What one node has written counts for both: two dtypes that fail are two restarts, and the others write nothing."""
    ended = launched(tmp_path, agents=2, BAD="bfloat16,float16")
    assert ended.status == 0, ended.log
    assert [(end["dtype"], end["first"]) for end in ended.ranks] == [("float32", 3)] * 2
    assert {end["attempt"] for end in ended.ranks} <= {1, 2}  # each agent counts its own
    assert set(ended.ranks[0]["failed"]) == {"bfloat16", "float16"}
    assert ended.ranks[0]["failed"] == ended.ranks[1]["failed"]
    assert [file.parent.name for file in verdicts(tmp_path)] == ["cache 1"]
    # How its peers end is in `test_who_fails_and_who_loses_it`: here the agent may end them before they can say so.
    assert ended.log.count("ends with status 75") == 2


@pytest.mark.slow
def test_a_killed_rank_leaves_no_verdict(tmp_path: Path) -> None:
    """The job comes up in the same dtype, and ends with the weights of one that nobody has disturbed."""
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    killed.mkdir()
    undisturbed.mkdir()
    ended = launched(killed, KILLED="1")
    assert ended.status == 0, ended.log
    assert [(end["attempt"], end["dtype"], end["first"]) for end in ended.ranks] == [(1, "bfloat16", 3)] * 2
    assert ended.ranks[0]["sum"] == launched(undisturbed).ranks[0]["sum"]
    assert verdicts(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("text", ["CUDA out of memory. Tried to allocate 20.00 MiB", "a fault of the program"])
def test_what_is_no_verdict(tmp_path: Path, text: str) -> None:
    """Memory and the program's own errors are no verdicts: each attempt begins in the same dtype."""
    ended = launched(tmp_path, restarts=1, BAD="bfloat16", TEXT=text)
    assert (ended.status, ended.ranks) == (1, [])
    assert verdicts(tmp_path) == []
    assert "ends with status 75" not in ended.log
