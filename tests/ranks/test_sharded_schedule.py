"""Guarded windows under FSDP2: a kernel that one rank lacks, in forward or backward, and all step down together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from safe_dtype.facts import Dtype, dtype_named
from safe_dtype.ranks.fsdp2 import dtype_computed_in
from safe_dtype.training import PrecisionGuard, TorchLoop
from safe_dtype.training.window import Window

from .processes import begin_case, run_ranks
from .test_fsdp2 import LADDER, MORE, PLACE, QUICK, SPELLED, WORDS, Failing, Words, sharded


def trained(
    case: Failing, *, fails: bool, switches_to: Dtype | None = None
) -> tuple[Tensor, list[float], list[str], list[str]]:
    """Return the weights, losses, dtypes and messages of a guarded run; it may be switched by hand, before the case's step."""
    model = sharded(case)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loop = TorchLoop(model, optimizer)
    precision = PrecisionGuard(loop, ladder=LADDER)
    draws = torch.Generator().manual_seed(dist.get_rank())
    torch.manual_seed(7 + dist.get_rank())
    losses: list[float] = []
    dtypes: list[str] = []
    PLACE.update(case=case if fails else None)
    batches = [
        torch.randint(0, WORDS, (2, 8 if step >= case.longer_from else 5), generator=draws)
        for step in range(case.steps)
        for _ in range(case.micro_batches)
    ]
    for step, window in enumerate(precision.windows(batches, case.micro_batches)):
        PLACE.update(step=step)
        if step == case.step and switches_to is not None:
            loop.switch(switches_to)
        for attempt in precision.attempts():
            with attempt:
                losses[step:] = [pass_through(loop, model, window, clips=case.clips)]
                optimizer.step()
                optimizer.zero_grad()
        dtypes.append(str(dtype_computed_in(model)).removeprefix("torch."))
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    weights = torch.cat([parameter.detach().full_tensor().flatten() for parameter in model.parameters()])
    return weights, losses, dtypes, [event.message for event in precision.events if event.before != event.after]


def pass_through(loop: TorchLoop, model: Words, window: Window, *, clips: bool) -> float:
    """Run the micro-batches of one step, and return the sum of their losses."""
    total = 0.0
    for number, words in enumerate(window):
        PLACE.update(micro_batch=number)
        with loop.accumulate():
            loss = model(words) / len(window)
            loop.backward(loss)
        total += loss.item()
    if clips:
        loop.clip_grad_norm_(model.parameters(), 0.1)
    return total


def step_down(cases: list[Failing]) -> dict[str, Any]:
    """Return what this rank has seen where a kernel failed, by case."""
    return {case.name: steps_down(case) for case in cases}


def steps_down(case: Failing) -> tuple[list[str], bool, bool]:
    """Return the dtypes, and whether weights and losses are those of a run that was switched by hand."""
    begin_case(case.name)
    weights, losses, dtypes, messages = trained(case, fails=True)
    expected = trained(case, fails=False, switches_to=dtype_named(dtypes[-1]))
    assert torch._C._len_torch_dispatch_stack() == 0
    return [*dtypes, *messages], torch.equal(weights, expected[0]), losses == expected[1]


@pytest.fixture(scope="module")
def seen() -> list[dict[str, Any]]:
    """What each of two ranks has seen."""
    return run_ranks(step_down, 2, QUICK)


@pytest.fixture(scope="module")
def seen_more() -> list[dict[str, Any]]:
    """What each of three ranks has seen of more cases."""
    return run_ranks(step_down, 3, MORE)


def lost_nothing(seen: list[dict[str, Any]], case: Failing) -> None:
    """All ranks went on as a run that was switched by hand at that step."""
    dtypes = ["bfloat16"] * case.step + [LADDER[len(case.dtypes)].name] * (case.steps - case.step)
    for of_rank in seen:
        (*in_dtypes, message), is_same, has_same_losses = of_rank[case.name]
        assert in_dtypes[: case.steps] == dtypes
        assert f"\"kernel\" not implemented for '{SPELLED[case.dtypes[-1]]}'" in message
        assert (is_same, has_same_losses) == (True, True)


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_all_step_down_together_and_lose_nothing(seen: list[dict[str, Any]], case: Failing) -> None:
    """Weights and losses are bit for bit those of a run that was switched by hand."""
    lost_nothing(seen, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", MORE, ids=lambda case: case.name)
def test_three_ranks(seen_more: list[dict[str, Any]], case: Failing) -> None:
    """Uneven shards, without resharding, and all in 16 bit as accelerate shards: bit for bit as well."""
    lost_nothing(seen_more, case)
