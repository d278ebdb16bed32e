"""What a step has counted in its Trainer is taken back, and nothing else."""

from __future__ import annotations

import copy
from collections import Counter, defaultdict, deque
from types import SimpleNamespace

import pytest
import torch

from safe_dtype.training.trainer.own_counters import OwnCounters


def counting() -> SimpleNamespace:
    """Return something that counts in every way that trainers do."""
    return SimpleNamespace(
        steps=3, flos=10, mode="train", metrics={"train": defaultdict(list, loss=[1.0])}, texts=deque(["a"]), new=None
    )


def test_what_a_step_counts_is_taken_back() -> None:
    """Numbers, texts, lists and what stands in dicts are as they were; containers stay the same objects."""
    owner, before = counting(), counting()
    metrics, counters = owner.metrics, OwnCounters(owner)
    with counters.counting():
        owner.steps += 1
        owner.mode = "eval"
        owner.metrics["train"]["loss"].append(2.0)
        owner.metrics["train"]["entropy"].append(0.5)
        owner.texts.append("b")
        owner.new = 7
        owner.newer = 8
    counters.take_back()
    assert owner == before
    assert owner.metrics is metrics


def test_what_others_count_stays() -> None:
    """What is counted between two micro-batches, by the loop around them, is not touched."""
    owner = counting()
    counters = OwnCounters(owner)
    for _ in range(2):
        with counters.counting():
            owner.steps += 1
        owner.flos += 5
    counters.take_back()
    assert (owner.steps, owner.flos) == (3, 20)


def test_a_step_that_raises() -> None:
    """What was counted before an error is taken back as well."""
    owner = counting()
    counters = OwnCounters(owner)

    def step() -> None:
        with counters.counting():
            owner.steps += 1
            raise KeyError

    with pytest.raises(KeyError):
        step()
    counters.take_back()
    assert owner == counting()


def test_each_window_for_itself() -> None:
    """Of a window that is through nothing is taken back."""
    owner = counting()
    counters = OwnCounters(owner)
    with counters.counting():
        owner.steps += 1
    counters.forget()
    with counters.counting():
        owner.steps += 1
    counters.take_back()
    assert owner.steps == 4


def test_counts_in_other_containers() -> None:
    """A Counter does not add what it is given back, a list keeps its first entries, and a set its members."""
    owner = SimpleNamespace(kinds=Counter(long=3), sums=[1, 2.0], seen={1}, names=["a", ["b"]], last=deque([1], 1))
    before, counters = copy.deepcopy(owner), OwnCounters(owner)
    with counters.counting():
        owner.kinds["long"] += 1
        owner.kinds["short"] += 1
        owner.sums[0] += 1
        owner.sums.append(3)
        owner.seen |= {2}
        owner.names[1].append("c")
        owner.last.append(2)
    counters.take_back()
    assert owner == before


@pytest.mark.parametrize("in_place", [False, True], ids=["new tensor", "in place"])
def test_running_tensors(in_place: bool) -> None:
    """A running mean that is a tensor forgets a loss that was NaN."""
    owner = SimpleNamespace(mean=torch.ones(2), by_kind={"long": torch.ones(())})
    counters = OwnCounters(owner)
    for _ in range(2):  # micro-batches
        with counters.counting():
            if in_place:
                owner.mean.mul_(float("nan"))
                owner.by_kind["long"].mul_(float("nan"))
            else:
                owner.mean = owner.mean * float("nan")
                owner.by_kind["long"] = owner.by_kind["long"] * float("nan")
    counters.take_back()
    assert owner.mean.tolist() == [1, 1]
    assert owner.by_kind["long"] == 1
