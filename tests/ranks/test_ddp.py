"""Ranks under DistributedDataParallel: one fails, nobody waits for it, and all go on together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks.processes import Launch, begin_case, run_ranks
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel
from training.loops import Fault, Run, run

from safe_dtype import FLOAT16
from safe_dtype.errors import RemoteFailure, TrainingLoopError
from safe_dtype.ranks.ddp import ddp_schedule
from safe_dtype.ranks.ddp.ddp_schedule import DdpSchedule
from safe_dtype.ranks.schedule import OutOfStepError
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
    "short": {"micro": 3, "syncs_always": True, "steps": 3, "batches": 8},
    "short, accumulation": {"micro": 3, "steps": 3, "batches": 8},
    "hook": {"hook": (default_hooks.fp16_compress_hook, lambda: dist.group.WORLD), "micro": 2},
    "accelerate": {"uses_accelerate": True, "micro": 2},
}


def recovers(names: list[str], kinds: list[str], rank: int = 1) -> list[str]:
    """Return what is not as in the run that switched there, for every kind of fault in every micro-batch."""
    wrong = []
    for name in names:
        case = {"steps": 4, **CASES[name]}
        for step in (0, 1, 2):
            begin_case(f"{name}, switch at {step}")
            switched = run(Run(switch=(step, FLOAT16), **case))
            for kind in kinds:
                for micro in range(min(case.get("micro", 1), case.get("batches", 99) - step * case.get("micro", 1))):
                    if case.get("syncs_always") and (step, micro, kind) == (0, 0, "before"):
                        continue  # nothing has shown yet how often gradients are reduced
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


@pytest.fixture
def group_of_one() -> Iterator[None]:
    """A process group in this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def with_powersgd(ddp: DistributedDataParallel) -> None:
    """Have gradients sent by PowerSGD."""
    ddp.register_comm_hook(powerSGD_hook.PowerSGDState(None, start_powerSGD_iter=2), powerSGD_hook.powerSGD_hook)


def with_synced_statistics(ddp: DistributedDataParallel) -> None:
    """Have statistics of all ranks in the model: DDP takes them on GPUs alone, and looks when it is made."""
    ddp.module.norm = nn.SyncBatchNorm(4)


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize(
    ("model", "change", "problem"),
    [
        pytest.param(
            nn.Linear(4, 4), with_synced_statistics, "SyncBatchNorm waits for the others", id="SyncBatchNorm"
        ),
        pytest.param(nn.Embedding(8, 4, sparse=True), lambda _: None, "sparse gradients are reduced", id="sparse"),
        pytest.param(nn.Linear(4, 4), with_powersgd, "PowerSGD sends depends on the steps", id="PowerSGD"),
    ],
)
def test_what_cannot_be_kept_in_step(model: nn.Module, change: Callable[[Any], None], problem: str) -> None:
    """It is known before anything fails, and a rank that fails says why it has to end."""
    ddp = DistributedDataParallel(model)
    change(ddp)
    schedule = DdpSchedule(ddp)
    assert problem in str(schedule.problem)
    schedule.begin()
    with pytest.raises(OutOfStepError, match=problem):
        schedule.keep(RuntimeError("not implemented for 'BFloat16'"))
    schedule.end(is_whole=False)


@pytest.mark.usefixtures("group_of_one")
def test_join_is_refused() -> None:
    """Ranks that have run out of data do not vote: nobody begins to wait for them."""
    model = DistributedDataParallel(nn.Linear(2, 2))
    schedule = DdpSchedule(model)
    with model.join(), pytest.raises(TrainingLoopError, match="join"):
        schedule.begin()


def sends_by_powersgd(kinds: list[str]) -> list[tuple[str, bool, torch.Tensor]]:
    """Return the messages, whether all is finite, and the weights of runs in which NaN goes into PowerSGD's errors."""
    outcomes = []
    for kind in kinds:
        begin_case(kind)
        hook = (powerSGD_hook.powerSGD_hook, lambda: powerSGD_hook.PowerSGDState(None, start_powerSGD_iter=2))
        # In one bucket: with more, PowerSGD by itself waits for ever on gloo's two threads.
        result = run(Run(fault=Fault(kind, 4, rank=1), steps=7, hook=hook, ddp={"bucket_cap_mb": 25}))
        weights = torch.cat([value.flatten() for name, value in result.values.items() if name.endswith("weight")])
        changes = " ".join(f"{event.before}>{event.after}" for event in result.events if event.before != event.after)
        outcomes.append((changes, bool(weights.isfinite().all()), weights))
    return outcomes


def test_nan_in_what_powersgd_remembers() -> None:
    """The window is run again without what PowerSGD keeps of the failed one, and weights stay the same on all ranks."""
    first, second = run_ranks(sends_by_powersgd, 2, ["nan", "inf"])
    for (changes, is_finite, weights), (_, _, others) in zip(first, second, strict=True):
        assert (changes, is_finite) == ("bfloat16>float16", True)
        assert torch.equal(weights, others)


def gathered(values: torch.Tensor) -> torch.Tensor:
    """Return the sum of what all ranks have, by a collective of the program."""
    total = values.detach().clone()
    dist.all_reduce(total)
    return total


def out_of_step(place: str, step: int) -> str:
    """Return how a window ends on this rank, where rank 1 fails and the others wait for more than its reductions."""
    ddp_schedule.SECONDS_AFTER_LAST_BUCKET = 0.5
    dist.init_process_group("gloo")
    first, second = (DistributedDataParallel(nn.Linear(3, 3)) for _ in range(2))
    models = [first, second] if place == "two models" else [second]
    loop = TorchLoop(models, torch.optim.SGD(second.parameters(), lr=0.1))
    guard = PrecisionGuard(loop)
    try:
        for number, _ in enumerate(guard.windows(range(2))):
            for attempt in guard.attempts():
                with attempt:
                    loss = second(first(torch.ones(3)) if place == "two models" else torch.ones(3)).sum()
                    if place == "before backward":
                        loss = loss + gathered(loss)
                    if (dist.get_rank(), number) == (1, step):
                        raise RuntimeError("\"ndtri\" not implemented for 'BFloat16'")
                    loop.backward(loss)
                    if place == "after backward":
                        gathered(loss)
                    loop.optimizers[0].step()
    except RuntimeError as exc:
        return " ".join([str(exc), *getattr(exc, "__notes__", ())])
    return "through"


@pytest.mark.parametrize(
    ("place", "step", "why"),
    [
        pytest.param("two models", 1, "several models reduce gradients in one window", id="two-models"),
        pytest.param(
            "before backward", 1, "not of DistributedDataParallel", id="own-collective", marks=pytest.mark.slow
        ),
        pytest.param("after backward", 1, "not of DistributedDataParallel", id="seen-before", marks=pytest.mark.slow),
        pytest.param("after backward", 0, "process ends: ", id="never-seen", marks=pytest.mark.slow),
    ],
)
def test_nobody_waits_for_what_a_rank_cannot_run(place: str, step: int, why: str) -> None:
    """Its own error comes out, which ends its process and so frees the others; nobody waits for a timeout."""
    theirs, ours = run_ranks(out_of_step, 2, place, step, launch=Launch(seconds=20, joins=False))
    assert "ndtri" in ours
    assert why in ours
    assert "onnection closed" in theirs or "onnection reset" in theirs


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
