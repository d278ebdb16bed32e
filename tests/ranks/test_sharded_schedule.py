"""Guarded windows under FSDP2: a kernel that one rank lacks, in forward or backward, and all step down together."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from safe_dtype.facts import Dtype, dtype_named
from safe_dtype.training import PrecisionGuard, TorchLoop

from .processes import begin_case, run_ranks
from .test_fsdp2 import MORE, PLACE, QUICK, STEPS, WORDS, Failing, sharded


def trained(case: Failing, *, fails: bool, starts_in: dict[int, Dtype]) -> tuple[torch.Tensor, list[float], str]:
    """Return the weights, the losses and the last dtype of a guarded run; `starts_in` switches by hand, before a step."""
    model = sharded(case)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    draws = torch.Generator().manual_seed(dist.get_rank())
    torch.manual_seed(7 + dist.get_rank())
    PLACE.update(case=case if fails else None)
    loop = TorchLoop(model, optimizer, init_scale=256.0)
    guard = PrecisionGuard(loop)
    losses = []
    batches = [torch.randint(0, WORDS, (2, 5), generator=draws) for _ in range(case.micro_batches * STEPS)]
    for step, window in enumerate(guard.windows(batches, case.micro_batches)):
        if step in starts_in:
            loop.switch(starts_in[step])
        for attempt in guard.attempts():
            with attempt:
                total = 0.0
                for number, words in enumerate(window):
                    PLACE.update(step=step, micro_batch=number)
                    model.set_requires_gradient_sync(number == len(window) - 1)  # type: ignore[operator]
                    with loop.autocast():
                        loss = model(words) / len(window)
                    loop.backward(loss)
                    total += loss.item()
                if case.clips:
                    loop.clip_grad_norm_(model.parameters(), 0.1)
                optimizer.step()
                optimizer.zero_grad()
        losses.append(total)
    assert bool(guard.events) is fails
    weights = [parameter.detach().full_tensor().flatten() for parameter in model.parameters()]  # type: ignore[attr-defined]
    return torch.cat(weights), losses, guard.dtype.name


def step_down(cases: list[Failing]) -> list[tuple[str, str, bool, bool]]:
    """Return of each case the dtype at the end, and whether weights and losses are those of a run switched by hand."""
    results = []
    for case in cases:
        begin_case(case.name)
        weights, losses, dtype = trained(case, fails=True, starts_in={})
        expected = trained(case, fails=False, starts_in={case.step: dtype_named(dtype)})
        results.append((case.name, dtype, torch.equal(weights, expected[0]), losses == expected[1]))
    return results


@pytest.mark.parametrize(
    "cases", [pytest.param(QUICK, id="quick"), pytest.param(MORE, id="more", marks=pytest.mark.slow)]
)
def test_all_step_down_together(cases: list[Failing]) -> None:
    """The run is the one that was switched by hand at that step, on each rank."""
    for results in run_ranks(step_down, 2, cases):
        assert [(name, *equal) for name, _, *equal in results if not all(equal)] == []
        assert [dtype for _, dtype, *_ in results] == [_below(case.dtypes[-1]) for case in cases]


def _below(dtype: str) -> str:
    return {"bfloat16": "float16", "float16": "float32"}[dtype]
