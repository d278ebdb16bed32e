"""The harness of several ranks: values come back, and whatever goes wrong ends, with the stacks of all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist

from .processes import OLDER_CPU, Launch, begin_case, outcomes_of, run_ranks


def adds_up(addend: int) -> tuple[int, int, int]:
    """Two cases of one launch: a sum over all ranks, and the rank."""
    begin_case("a sum")
    total = torch.tensor([dist.get_rank() + addend])
    dist.all_reduce(total)
    begin_case("a rank")
    return int(total), dist.get_rank(), torch.get_num_threads()


def waits_in_vain() -> None:
    """A deadlock: the last rank never comes to the collective."""
    begin_case("one rank stays away")
    if dist.get_rank() == 0:
        dist.all_reduce(torch.ones(1))
    else:
        stays_away()


def stays_away() -> None:
    """A name for the stack."""
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    time.sleep(600)


def raises_on_one() -> str:
    """One rank raises before the collective in which the other waits."""
    if dist.get_rank() == 1:
        raise KeyError("of rank 1")
    dist.all_reduce(torch.ones(1))
    return "not reached"


def dies() -> str:
    """One rank is killed, and the other sees it."""
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(RuntimeError):
        dist.all_reduce(torch.ones(1))
    os._exit(76)


def settings() -> tuple[str | None, str]:
    """What a rank has in its environment, and what torch makes of it."""
    return os.environ.get("OF_THE_TEST"), torch.backends.cpu.get_cpu_capability()


def test_values_come_back_in_the_order_of_ranks() -> None:
    """Each rank is in one group with the others, has one thread, and gives back what the function returned."""
    assert run_ranks(adds_up, 2, 5) == [(11, 0, 1), (11, 1, 1)]


def test_a_deadlock_shows_the_stacks_of_all_ranks() -> None:
    """It ends at the limit, with the case, both stacks, and nothing left running."""
    started = time.monotonic()
    with pytest.raises(AssertionError) as raised:
        run_ranks(waits_in_vain, 2, launch=Launch(seconds=4))
    text = str(raised.value)
    assert time.monotonic() - started < 30
    assert text.count("was killed at the limit") == 2
    assert text.count("case one rank stays away") == 2
    assert "in all_reduce" in text
    assert "in stays_away" in text
    assert not [command for command in _commands() if "time.sleep(600)" in command]


def test_an_error_of_one_rank_fails_soon() -> None:
    """The traceback is shown, and the others are not waited for until the limit."""
    started = time.monotonic()
    with pytest.raises(AssertionError, match=r"KeyError: 'of rank 1'"):
        run_ranks(raises_on_one, 2, launch=Launch(seconds=100, patience=1))
    assert time.monotonic() - started < 40


def test_ranks_may_die_where_that_is_the_test() -> None:
    """Outcomes tell how each ended."""
    assert [outcome.status for outcome in outcomes_of(dies, 2)] == [76, -signal.SIGKILL]


@pytest.mark.slow
@pytest.mark.needs("x86")
def test_one_rank_may_have_an_older_cpu() -> None:
    """Settings that torch reads when it is imported are there before, on the rank that they are for."""
    environments = {None: {"OF_THE_TEST": "all"}, 1: OLDER_CPU}
    first, second = run_ranks(settings, 2, launch=Launch(environments=environments))
    assert (first[0], second) == ("all", ("all", "AVX2"))


@pytest.mark.slow
def test_a_script_runs_as_ranks(tmp_path: Path) -> None:
    """A path is run as the script of each rank, which makes its own group."""
    script = tmp_path / "train.py"
    script.write_text(
        "import sys, torch.distributed as dist\n"
        "dist.init_process_group('gloo')\n"
        "print('argument', sys.argv[1], 'rank', dist.get_rank())\n"
    )
    outcomes = outcomes_of(script, 2, "five", launch=Launch(joins=False))
    assert [outcome.output.strip().splitlines()[-1] for outcome in outcomes] == [
        "argument five rank 0",
        "argument five rank 1",
    ]


def _commands() -> list[str]:
    return [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
