"""Faults injected into jobs of ranks: each ends as it has to, on every rank, and no step is lost or made twice.

What has to come out is said by `faults.expected`, which knows the ladder and nothing of the guard, and by a run in plain
torch, without a guard and without faults, that computes each step in the dtype in which the guarded run has to make it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from . import ddp_trial, fsdp_trial, generation_trial, loops_trial, tensor_parallel_trial
from .ddp_trial import LAYERS
from .faults import PLACES, TEXTS, InjectedFault, expected
from .processes import Launch, outcomes_of, run_ranks

Trials = Callable[..., list[tuple[str, str, list[str], int]]]


def check(trials: Trials, size: int, *arguments: Any, seconds: float) -> int:
    """Run trials as `size` ranks; return how many there were, all of them as due and with faults that showed."""
    cases = list(zip(*run_ranks(trials, size, *arguments, launch=Launch(seconds=seconds)), strict=True))
    wrong = {
        ranks[0][0]: [differences for _, _, differences, _ in ranks]
        for ranks in cases
        if any(differences for _, _, differences, _ in ranks)
        or len({digest for _, digest, _, _ in ranks}) > 1
        or not any(fired for _, _, _, fired in ranks)
    }
    assert not wrong
    return len(cases)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model to generate with."""
    folder = str(tmp_path_factory.mktemp("checkpoint"))
    generation_trial.save_checkpoint(folder)
    return folder


def some_of_each(checkpoint: str) -> list[tuple[str, str, list[str], int]]:
    """Run cases of each engine, in one process group."""
    return [
        *ddp_trial.random_trials(17, 14),
        *fsdp_trial.random_trials(17, 5),
        *generation_trial.random_trials(checkpoint, 17, 3),
        *tensor_parallel_trial.random_trials(checkpoint, 17, 4),
    ]


def test_some_faults_of_each(checkpoint: str) -> None:
    """On 2 ranks: training under DistributedDataParallel and FSDP2, generation in lockstep and tensor parallel."""
    assert check(some_of_each, 2, checkpoint, seconds=100) == 26


@pytest.mark.slow
@pytest.mark.parametrize(("size", "seed", "count"), [(2, 1, 100), (2, 2, 100), (3, 3, 60), (4, 4, 40)], ids=str)
def test_random_faults_under_ddp(size: int, seed: int, count: int) -> None:
    """So it is with many more, on 2 to 4 ranks, several in one run among them."""
    assert check(ddp_trial.random_trials, size, seed, count, seconds=170) == count


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_systematic_faults_under_ddp(size: int) -> None:
    """Each kind in forward and in backward of each rank at each step."""
    assert check(ddp_trial.systematic_trials, size, seconds=170) > 50


@pytest.mark.slow
@pytest.mark.parametrize(("size", "seed", "count"), [(2, 1, 60), (3, 2, 25)], ids=str)
def test_random_faults_under_fsdp2(size: int, seed: int, count: int) -> None:
    """Ranks that are armed stay in step, whatever kernel fails between whichever collectives."""
    assert check(fsdp_trial.random_trials, size, seed, count, seconds=170) == count


@pytest.mark.slow
@pytest.mark.parametrize(("size", "seed", "count"), [(2, 1, 40), (3, 2, 30)], ids=str)
def test_random_faults_in_generation(size: int, seed: int, count: int, checkpoint: str) -> None:
    """Every answer comes from the dtype that no copy has failed in."""
    assert check(generation_trial.random_trials, size, checkpoint, seed, count, seconds=170) == count


@pytest.mark.slow
@pytest.mark.parametrize(("size", "seed", "count"), [(2, 1, 40), (4, 2, 20)], ids=str)
def test_random_faults_in_tensor_parallel_generation(size: int, seed: int, count: int, checkpoint: str) -> None:
    """Whichever kernel fails on whichever rank, all go on from that very step."""
    assert check(tensor_parallel_trial.random_trials, size, checkpoint, seed, count, seconds=170) == count


@pytest.mark.slow
@pytest.mark.parametrize("trials", [loops_trial.accelerate_trials, loops_trial.trainer_trials])
def test_random_faults_in_loops_of_others(trials: Trials) -> None:
    """The Trainer and loops of accelerate end with the bits of a run that was switched by hand."""
    assert check(trials, 2, 1, 30, seconds=170) == 30


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["exception", "foreign", "out of memory"])
def test_a_rank_that_leaves_a_step_in_its_middle(kind: str, tmp_path: Path) -> None:
    """Where nothing keeps it in step, all ranks end, at once; only a failure of its dtype becomes a verdict, on its node."""
    lasting = {0, 1, 3, 4, 5, 6}  # of the curable texts: what a device lacks; the rest may come from data or program
    for number, (place, rank, step) in enumerate(product(PLACES, range(2), range(2))):
        texts = range(len(TEXTS[kind]))
        injected = InjectedFault(rank, step, 0, number % LAYERS, place, kind, texts[number % len(texts)])
        caches = {one: {"SAFE_DTYPE_CACHE": str(tmp_path / f"{number} {one}")} for one in range(2)}
        launch = Launch(environments=caches, group_seconds=600)
        outcomes = outcomes_of(fsdp_trial.unarmed, 2, injected, launch=launch)
        becomes_verdict = kind == "exception" and injected.text in lasting
        statuses = [76, 76]
        is_of_communication = "Watchdog caught collective operation timeout" in TEXTS[kind][injected.text][1]
        statuses[rank] = 75 if becomes_verdict else 76 if is_of_communication else 1
        assert [outcome.status for outcome in outcomes] == statuses, "\n".join([str(injected), *map(str, outcomes)])
        verdicts = [file for file in tmp_path.glob(f"{number} */**/*.json") if '"training ' in file.read_text("utf-8")]
        assert [file.relative_to(tmp_path).parts[0] for file in verdicts] == [f"{number} {rank}"] * becomes_verdict


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["foreign", "out of memory"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_leaves_a_generation_of_all(kind: str, rank: int, checkpoint: str, tmp_path: Path) -> None:
    """What no dtype cures ends the rank with its own error, and the others, which wait for it, at once; nobody writes a verdict."""
    launch = Launch(environments={None: {"SAFE_DTYPE_CACHE": str(tmp_path)}}, group_seconds=600)
    injected = InjectedFault(rank, 0, 0, 1, "forward", kind, 0)
    outcomes = outcomes_of(tensor_parallel_trial.leaves, 2, checkpoint, injected, launch=launch)
    statuses = [1 if one == rank else 76 for one in range(2)]
    assert [outcome.status for outcome in outcomes] == statuses, "\n".join(map(str, outcomes))
    assert not [file for file in tmp_path.rglob("*.json") if TEXTS[kind][0][1] in file.read_text("utf-8")]


@pytest.mark.parametrize(
    ("faults", "dtypes", "ending"),
    [
        pytest.param([("exception", 0, 1)], "bff", "done", id="down-from-there-on"),
        pytest.param([("exception", 0, 2)], "bb-", "done", id="as-far-as-it-fails"),
        pytest.param([("exception", 0, 3)], "", "no dtype left", id="nothing-below"),
        pytest.param([("nan", 0, 1), ("foreign", 1, 1)], "", "foreign", id="the-worst-of-all-ranks"),
    ],
)
def test_what_is_expected(faults: list[tuple[str, int, int]], dtypes: str, ending: str) -> None:
    """The oracle by itself."""
    ladder = ("bfloat16", "float16", "float32")
    step = {"bff": 1, "bb-": 2}.get(dtypes, 0)
    injected = [InjectedFault(rank, step, 0, 0, "forward", kind, 0, ladder[:count]) for kind, rank, count in faults]
    outcome = expected(injected, 3)
    names = {"b": "bfloat16", "f": "float16", "-": "float32"}
    assert (outcome.dtypes, outcome.ending) == (tuple(names[letter] for letter in dtypes), ending)
