"""A Trainer on two ranks, one of which fails: both run the window again, and the run is that which was switched by hand."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from ranks.processes import Launch, outcomes_of, run_ranks
from training.test_trainer_window import Stream
from training.trainer_ranks import CASES, MORE_CASES, Case, differences, second_runs
from training.trainer_runs import Fault, Setting, run
from transformers import Trainer


def assert_together(cases: tuple[Case, ...], failing: int) -> None:
    """Both ranks end every case with no bit of difference; an error of one comes out there, and as ours on the other."""
    first, second = run_ranks(differences, 2, cases, failing, launch=Launch(seconds=200))
    errors = [one.pop("KeyError") for one in (first, second)]
    assert first == second == {name: "" for name, *_ in cases}
    assert errors == ["KeyError" if rank == failing else "RemoteFailure" for rank in range(2)]


def test_one_rank_fails() -> None:
    """Whatever fails on one rank, in either micro-batch, no step is lost on any."""
    assert_together(CASES, failing=1)


@pytest.mark.slow
def test_the_first_rank_fails() -> None:
    """It makes no difference which rank it is."""
    assert_together(CASES + MORE_CASES, failing=0)


@pytest.mark.slow
def test_a_second_run(tmp_path: Path) -> None:
    """A Trainer that has trained before trains on, comes down in its second run, and is resumed in its precision."""
    first, second = run_ranks(second_runs, 2, str(tmp_path), launch=Launch(seconds=100))
    assert first == second == dict.fromkeys(["again", "resumed", "prepared again"], "")


class Streaming(Trainer):  # type: ignore[misc]
    """A Trainer of three micro-batches an epoch, on each of two ranks."""

    def __init__(self, *args: Any, train_dataset: Any, **kwargs: Any) -> None:
        super().__init__(*args, train_dataset=Stream(train_dataset, 12), **kwargs)


def fails_as_an_epoch_ends() -> None:
    """The second rank fails where an epoch ends in the middle of an accumulation."""
    error = run(Setting(Fault(1, micro=0) if dist.get_rank() == 1 else None, accumulation=2, trainer=Streaming)).error
    assert error is not None
    raise error


def test_a_failure_as_an_epoch_ends_early() -> None:
    """Others are in a reduction of that micro-batch, and then go on: the rank that failed ends, and they with it, at once."""
    first, failed = outcomes_of(fails_as_an_epoch_ends, 2, launch=Launch(seconds=40, group_seconds=100))
    assert "not implemented for 'BFloat16'" in str(failed.error)
    assert None not in (first.status, first.error)


def said() -> list[str]:
    """Return what is logged, from warnings up, of a run that fails on the second rank."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("safe_dtype").addHandler(handler)
    run(Setting(Fault(2) if dist.get_rank() == 1 else None))
    run(Setting(Fault(2, "nan") if dist.get_rank() == 1 else None))
    return messages


def test_said_once() -> None:
    """A change of precision is one line of the first rank, which names the rank that an exception was raised on."""
    (missing, spread), others = run_ranks(said, 2)
    assert missing.startswith("op_unsupported at optimizer step 2 in bfloat16: running it again in float16: rank 1: ")
    assert spread.startswith("nonfinite at optimizer step 2 in bfloat16: running it again in float16: ")
    assert others == []
