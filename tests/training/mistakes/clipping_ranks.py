"""Runs of ranks that clip by functions of torch, under DDP and FSDP2: guarded, and by hand, without a guard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from ranks.processes import begin_case
from ranks.test_fsdp2 import PLACE, WORDS, Failing, Words, sharded
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, clip_grads_with_norm_, get_total_norm

from safe_dtype.facts import BFLOAT16, FLOAT16, Dtype
from safe_dtype.training import PrecisionGuard, TorchLoop

STEPS, MICRO_BATCHES, SCALE = 4, 2, 2.0**10
FAILING = (
    Failing("forward", "forward", at_micro_batch=1, micro_batches=MICRO_BATCHES),
    Failing("backward", "backward", micro_batches=MICRO_BATCHES),
)
Weights = list[nn.Parameter]


def each_half(weights: Weights) -> None:
    """Clip the first half of all parameters, and then the others."""
    half = len(weights) // 2
    clip_grad_norm_(weights[:half], 0.05)
    clip_grad_norm_(weights[half:], 0.1)


def by_one_norm(weights: Weights) -> None:
    """Clip by a norm that was looked at before."""
    clip_grads_with_norm_(weights, 0.1, get_total_norm([weight.grad for weight in weights if weight.grad is not None]))


CLIPS: dict[str, Callable[[Weights], Any]] = {
    "norm": lambda weights: clip_grad_norm_(weights, 0.1),
    "strict": lambda weights: clip_grad_norm_(weights, 0.1, error_if_nonfinite=True),
    "one by one": lambda weights: clip_grad_norm_(iter(weights), 0.1, foreach=False),
    "largest": lambda weights: clip_grad_norm_(weights, 0.01, norm_type=float("inf")),
    "value": lambda weights: clip_grad_value_(weights, 0.001),
    "halves": each_half,
    "by one norm": by_one_norm,
}


def model_under(engine: str, dtype: torch.dtype) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a model in its wrapper, the same on all ranks, and its optimizer; FSDP2 computes in `dtype`."""
    torch.manual_seed(0)
    if engine == "FSDP2":
        model: nn.Module = sharded(Failing("", policy=MixedPrecisionPolicy(dtype, torch.float32)))
    else:
        model = DistributedDataParallel(Words(), bucket_cap_mb=0.001)
    return model, torch.optim.AdamW(model.parameters(), 1e-2)


def batches() -> list[torch.Tensor]:
    """Return the micro-batches of this rank."""
    draws = torch.Generator().manual_seed(dist.get_rank())
    return [torch.randint(0, WORDS, (2, 5), generator=draws) for _ in range(STEPS * MICRO_BATCHES)]


def left_by(model: nn.Module, optimizer: torch.optim.Optimizer, losses: list[float]) -> list[torch.Tensor]:
    """Return all that a run leaves."""
    moments = [part for state in optimizer.state.values() for part in state.values()]
    parts = [getattr(part, "full_tensor", lambda part=part: part)() for part in (*model.parameters(), *moments)]
    return [torch.cat([part.detach().flatten() for part in parts]), torch.tensor(losses), torch.get_rng_state()]


def guarded(
    engine: str, clip: str, first: Dtype, *, case: Failing | None = None, switch_at: int = -1, scale: float = SCALE
) -> tuple[list[torch.Tensor], PrecisionGuard]:
    """Train under a guard; a kernel fails as `case` says, or the precision is switched to float16 by hand."""
    model, optimizer = model_under(engine, torch.bfloat16)
    loop = TorchLoop(model, optimizer, first, init_scale=scale)
    guard, losses = PrecisionGuard(loop), []
    torch.manual_seed(7 + dist.get_rank())
    PLACE.update(case=case)
    for step, window in enumerate(guard.windows(batches(), MICRO_BATCHES)):
        PLACE.update(step=step)
        if step == switch_at:
            loop.switch(FLOAT16)
        for attempt in guard.attempts():
            with attempt:
                total = 0.0
                for number, words in enumerate(window):
                    PLACE.update(micro_batch=number)
                    with loop.accumulate():
                        with loop.autocast():
                            loss = model(words) / len(window)
                        loop.backward(loss)
                    total += loss.item()
                CLIPS[clip](list(model.parameters()))
                optimizer.step()
                optimizer.zero_grad()
        losses.append(total)
    return left_by(model, optimizer, losses), guard


def by_hand(engine: str, clip: str, scale: float) -> list[torch.Tensor]:
    """Train in float16 by torch alone, gradients unscaled before they are clipped."""
    model, optimizer = model_under(engine, torch.float16)
    scaler, losses = torch.amp.GradScaler("cpu", init_scale=scale), []
    torch.manual_seed(7 + dist.get_rank())
    PLACE.update(case=None)
    data = batches()
    for step in range(STEPS):
        total = 0.0
        for number in range(MICRO_BATCHES):
            with reducing(model, is_last=number == MICRO_BATCHES - 1):
                with nullcontext() if engine == "FSDP2" else torch.autocast("cpu", torch.float16):
                    loss = model(data[step * MICRO_BATCHES + number]) / MICRO_BATCHES
                scaler.scale(loss).backward()
            total += loss.item()
        scaler.unscale_(optimizer)
        CLIPS[clip](list(model.parameters()))
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(total)
    return left_by(model, optimizer, losses)


def reducing(model: Any, *, is_last: bool) -> AbstractContextManager[Any]:
    """Return what has the ranks reduce gradients with the last micro-batch of a step alone."""
    if isinstance(model, DistributedDataParallel):
        return nullcontext() if is_last else model.no_sync()
    return _synced(model, is_last=is_last)


@contextmanager
def _synced(model: Any, *, is_last: bool) -> Iterator[None]:
    model.set_requires_gradient_sync(is_last)
    yield


def differences(engine: str, clip: str) -> list[str]:
    """Return what differs: from float16 by hand, after an overflow too, and from a run that was switched where another failed."""
    wrong = []

    def compare(name: str, ours: list[torch.Tensor], others: list[torch.Tensor]) -> None:
        parts = ("weights and moments", "losses", "random numbers")
        pairs = zip(parts, ours, others, strict=True)
        wrong.extend(f"{engine}, {clip}, {name}: {part}" for part, one, other in pairs if not torch.equal(one, other))

    begin_case(f"{engine}, {clip}: float16")
    ours, guard = guarded(engine, clip, FLOAT16)
    compare("float16", ours, by_hand(engine, clip, SCALE))
    wrong += [f"{engine}, {clip}: {event.message}" for event in guard.events]
    begin_case(f"{engine}, {clip}: overflow")
    ours, guard = guarded(engine, clip, FLOAT16, scale=2.0**24)
    if guard.loop.scaler is None or not guard.events:
        return [*wrong, f"{engine}, {clip}: {guard.dtype} after {[event.message for event in guard.events]}"]
    compare("overflow", ours, by_hand(engine, clip, guard.loop.scaler.get_scale()))
    for case in FAILING:
        begin_case(f"{engine}, {clip}: {case.name}")
        ours, guard = guarded(engine, clip, BFLOAT16, case=case)
        wrong += [f"{engine}, {clip}, {case.name}: it has not failed"] * (guard.dtype != FLOAT16)
        compare(case.name, ours, guarded(engine, clip, BFLOAT16, switch_at=case.step)[0])
    return wrong


def all_differences(engine: str, clips: list[str]) -> list[str]:
    """Return what differs for all of these ways to clip."""
    return [wrong for clip in clips for wrong in differences(engine, clip)]
