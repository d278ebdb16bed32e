"""Ranks under DistributedDataParallel: one fails, nobody waits for it, and all go on together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks.processes import Launch, begin_case, run_ranks
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel
from training.loops import Fault, Run, run

from safe_dtype import FLOAT16
from safe_dtype.errors import RemoteFailure
from safe_dtype.training import PrecisionGuard, TorchLoop

KINDS = ["raise", "before", "after", "backward", "nan", "inf"]
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"micro": 2},
    "unused": {"ddp": {"find_unused_parameters": True}},
    "views": {"ddp": {"gradient_as_bucket_view": True}, "micro": 2},
    "static": {"ddp": {"static_graph": True}},
    "unused static": {"ddp": {"static_graph": True, "find_unused_parameters": True}},
    "no buffers": {"ddp": {"broadcast_buffers": False}},
    "every micro-batch": {"micro": 2, "syncs_always": True},
    "hook": {"hook": (default_hooks.fp16_compress_hook, lambda: dist.group.WORLD), "micro": 2},
    "accelerate": {"uses_accelerate": True, "micro": 2},
}


def recovers(names: list[str], kinds: list[str], rank: int = 1) -> list[str]:
    """Return what is not as in the run that switched there, for every kind of fault in every micro-batch."""
    wrong = []
    for name in names:
        case = {"steps": 4, **CASES[name]}
        for step in (1, 2) if name == "every micro-batch" else (0, 1, 2):
            begin_case(f"{name}, switch at {step}")
            switched = run(Run(switch=(step, FLOAT16), **case))
            for kind in kinds:
                for micro in range(case.get("micro", 1)):
                    begin_case(f"{name}, {kind} at {step}, micro-batch {micro}")
                    failed = run(Run(fault=Fault(kind, step, micro=micro, rank=rank), **case))
                    if differing := failed.differences(switched):
                        wrong.append(f"{name}, {kind} at {step}, micro-batch {micro}: {differing}")
    return wrong


def fails_otherwise(kind: str) -> list[str]:
    """Return how the error of rank 1 comes out here, whether it raises in a window or its gradients were whole."""
    errors = []
    for case in ({}, {"micro": 2}, {"uses_accelerate": True}):
        begin_case(f"{kind}, {case}")
        with pytest.raises((KeyError, RemoteFailure)) as raised:
            run(Run(fault=Fault(kind, 1, rank=1), **case))
        errors.append(f"{type(raised.value).__name__}: {raised.value}")
    return errors


def test_all_go_on_together() -> None:
    """Every kind of fault, in two of the ways in which gradients are reduced: nothing differs from a run that switched."""
    assert run_ranks(recovers, 2, ["accumulation", "unused"], KINDS) == [[], []]


@pytest.mark.slow
def test_however_gradients_are_reduced() -> None:
    """The same in every way that DistributedDataParallel has."""
    assert run_ranks(recovers, 2, list(CASES), KINDS, launch=Launch(seconds=300)) == [[], []]


def test_another_error_comes_out_on_every_rank() -> None:
    """As it is on its rank, and on the other as one that names it."""
    ours, theirs = run_ranks(fails_otherwise, 2, "foreign")
    assert theirs == ["KeyError: 'labels'"] * 3
    assert ours == ["RemoteFailure: Rank 1 failed: KeyError: 'labels'. Next: look at the log of rank 1."] * 3


def raise_after(loop: TorchLoop, model: nn.Module, error: BaseException) -> None:
    """Leave a window after its backward pass."""
    loop.backward(model(torch.ones(2)).sum())
    raise error


def is_left(error: BaseException) -> list[str]:
    """Return what is still around a model after a window was left by `error`."""
    model = DistributedDataParallel(nn.Linear(2, 2))
    loop = TorchLoop(model, torch.optim.SGD(model.parameters(), lr=0.1))
    guard = PrecisionGuard(loop)
    attempt = next(guard.attempts())
    with pytest.raises(KeyboardInterrupt), attempt:
        raise_after(loop, model, error)
    return sorted({"_pre_forward", "_post_forward"} & set(vars(model)))


def test_a_window_that_is_left_leaves_nothing_around_the_model() -> None:
    """An interruption is not voted on, and what watched the passes is gone."""
    assert run_ranks(is_left, 2, KeyboardInterrupt()) == [[], []]
