"""What a step has counted in its Trainer is taken back, and nothing else."""

from __future__ import annotations

from collections import defaultdict, deque
from types import SimpleNamespace

import pytest

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
