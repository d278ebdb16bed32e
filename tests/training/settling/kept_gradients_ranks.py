"""Runs of ranks whose gradients outlive a window, under DDP, accelerate and FSDP2: guarded, and by hand, without a guard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from ranks.processes import begin_case
from ranks.test_fsdp2 import PLACE, WORDS, Failing, Words, sharded
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from training.mistakes.clipping_ranks import left_by, reducing

from safe_dtype.facts import BFLOAT16, FLOAT16, FLOAT32, Dtype
from safe_dtype.training import PrecisionGuard, TorchLoop

STEPS, MICRO_BATCHES, SCALE, LARGE_SCALE = 6, 2, 2.0**10, 2.0**24
OVERFLOWS_AT = (1, 3)  # windows that begin with gradients, where any does
ENGINES = ("DDP", "DDP with views", "accelerate", "FSDP2")
Optimizers = Sequence[Any]
Ends = Callable[
    [int, list[nn.Parameter], Optimizers], None
]  # how a window ends: its number, all weights, both optimizers


def in_pairs(step: int, weights: list[nn.Parameter], optimizers: Optimizers) -> None:
    """Have the second optimizer step with every second window, and keep its gradients until then."""
    every, second = optimizers
    every.step()
    every.zero_grad()
    if step % 2:
        second.step()
        second.zero_grad()


def in_pairs_clipped(step: int, weights: list[nn.Parameter], optimizers: Optimizers) -> None:
    """Clip those of both, some of them twice: what is kept is clipped again by the next window."""
    half = len(weights) // 2
    clip_grad_norm_(weights[:half], 0.05)
    clip_grad_norm_(weights, 0.1)
    in_pairs(step, weights, optimizers)


def never_zeroed(step: int, weights: list[nn.Parameter], optimizers: Optimizers) -> None:
    """Step with the sum of all gradients since the run began."""
    for optimizer in optimizers:
        optimizer.step()


def some_dropped(step: int, weights: list[nn.Parameter], optimizers: Optimizers) -> None:
    """Drop the gradients of every third window, and make no step there."""
    for optimizer in optimizers:
        if step % 3 != 1:
            optimizer.step()
        optimizer.zero_grad()


def zeroed_in_place(step: int, weights: list[nn.Parameter], optimizers: Optimizers) -> None:
    """Leave zeros."""
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)


WAYS: dict[str, Ends] = {
    one.__name__: one for one in (in_pairs, in_pairs_clipped, never_zeroed, some_dropped, zeroed_in_place)
}


def model_under(engine: str, dtype: torch.dtype) -> tuple[Any, list[Any]]:
    """Return a model in its wrapper, the same on all ranks, and two optimizers; accelerate wraps it itself."""
    torch.manual_seed(0)
    if engine == "FSDP2":
        model: Any = sharded(Failing("", policy=MixedPrecisionPolicy(dtype, torch.float32)))
    else:
        model = Words()
    parts = (nn.ModuleList([model.embedding, model.blocks[0]]), nn.ModuleList([model.blocks[1], model.head]))
    if engine.startswith("DDP"):
        model = DistributedDataParallel(model, bucket_cap_mb=0.001, gradient_as_bucket_view=engine != "DDP")
    return model, [torch.optim.AdamW(part.parameters(), 1e-2) for part in parts]


def micro_batches() -> list[torch.Tensor]:
    """Return those of this rank."""
    draws = torch.Generator().manual_seed(dist.get_rank())
    return [torch.randint(0, WORDS, (2, 5), generator=draws) for _ in range(STEPS * MICRO_BATCHES)]


def prepared(engine: str, first: Dtype) -> tuple[PrecisionGuard, Any, Any, list[Any], Callable[[], Any]]:
    """Return a guard, its loop, the model, the optimizers, and what is around each micro-batch."""
    model, optimizers = model_under(engine, getattr(torch, first.name))
    if engine != "accelerate":
        loop = TorchLoop(model, optimizers, first, init_scale=SCALE)
        return PrecisionGuard(loop), loop, model, optimizers, loop.accumulate
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    accelerator = Accelerator(
        mixed_precision={BFLOAT16: "bf16", FLOAT16: "fp16"}[first], cpu=True, gradient_accumulation_steps=MICRO_BATCHES
    )
    model, *optimizers = accelerator.prepare(model, *optimizers)
    guard = PrecisionGuard(accelerator, model, init_scale=SCALE)
    return guard, accelerator, model, optimizers, lambda: accelerator.accumulate(model)


def guarded(
    engine: str,
    ends: Ends,
    first: Dtype,
    *,
    case: Failing | None = None,
    overflows: bool = False,
    is_nan: bool = False,
) -> tuple[list[torch.Tensor], PrecisionGuard]:
    """Train under a guard; a kernel fails as `case` says, or the loss is NaN there, or some windows begin with a large scale."""
    guard, loop, model, optimizers, accumulate = prepared(engine, first)
    weights, losses = list(model.parameters()), []
    torch.manual_seed(7 + dist.get_rank())
    PLACE.update(case=None if is_nan else case)
    for step, window in enumerate(guard.windows(micro_batches(), MICRO_BATCHES)):
        PLACE.update(step=step)
        if overflows and step in OVERFLOWS_AT:
            guard.loop.scaler.load_state_dict({**guard.loop.scaler.state_dict(), "scale": LARGE_SCALE})
        for attempt in guard.attempts():
            with attempt:
                total = 0.0
                for number, words in enumerate(window):
                    PLACE.update(micro_batch=number)
                    with accumulate():
                        with loop.autocast():
                            loss = model(words)
                        total += loss.item()
                        if engine != "accelerate":  # which does so itself
                            loss = loss / MICRO_BATCHES
                        is_bad = is_nan and case is not None and _is_here(case, step, guard.dtype)
                        loop.backward(loss * float("nan") if is_bad else loss)
                ends(step, weights, optimizers)
        losses.append(total)
    return left_by(model, _Both(optimizers), losses), guard


def _is_here(case: Failing, step: int, dtype: Dtype) -> bool:
    return (case.step, case.rank) == (step, dist.get_rank()) and dtype.name in case.dtypes


class _Both:
    """The states of both optimizers, as of one."""

    def __init__(self, optimizers: Sequence[Any]) -> None:
        own = [getattr(optimizer, "optimizer", optimizer) for optimizer in optimizers]
        self.state = {weight: state for optimizer in own for weight, state in optimizer.state.items()}


def by_hand(engine: str, ends: Ends, first: Dtype, *, switch: tuple[int, Dtype] | None = None) -> list[torch.Tensor]:
    """Train without a guard, and switch at a step; gradients that are there have the scale before others are added to them."""
    engine = "DDP" if engine == "accelerate" else engine
    model, optimizers = model_under(engine, getattr(torch, first.name))
    loop = TorchLoop(model, optimizers, first, init_scale=SCALE)
    weights, losses, data = list(model.parameters()), [], micro_batches()
    torch.manual_seed(7 + dist.get_rank())
    PLACE.update(case=None)
    for step in range(STEPS):
        if switch is not None and step == switch[0]:
            loop.switch(switch[1])
        total = 0.0
        if loop.scaler is not None:
            for gradient in (weight.grad for weight in weights if weight.grad is not None):
                gradient.mul_(SCALE)
        for number in range(MICRO_BATCHES):
            with reducing(model, is_last=number == MICRO_BATCHES - 1):
                with loop.autocast():
                    loss = model(data[step * MICRO_BATCHES + number])
                loop.backward(loss / MICRO_BATCHES)
            total += loss.item()
        if loop.scaler is not None:
            for optimizer in optimizers:
                loop.scaler.unscale_(optimizer)
        ends(step, weights, optimizers)
        if loop.scaler is not None:
            loop.scaler.update()
        losses.append(total)
    return left_by(model, _Both(optimizers), losses)


def failures() -> list[tuple[Failing, bool, Dtype, Dtype]]:
    """Return what fails, whether by NaN, and the dtypes before and after: in the second of two windows, and in a first one.

    Both are among the windows in which collectives of FSDP2 are watched.
    """
    found = []
    for step in (1, 2):
        for phase in ("forward", "backward"):
            case = Failing(
                f"{phase} at {step}", phase, step=step, micro_batches=MICRO_BATCHES, at_micro_batch=step % 2
            )
            found.append((case, False, BFLOAT16, FLOAT16))
        both = Failing(f"both at {step}", "backward", ("bfloat16", "float16"), step=step, micro_batches=MICRO_BATCHES)
        found.append((both, False, BFLOAT16, FLOAT32))
        found.append((Failing(f"NaN at {step}", step=step), True, BFLOAT16, FLOAT16))
        found.append((Failing(f"float16 at {step}", dtypes=("float16",), step=step), False, FLOAT16, FLOAT32))
    return found


def differences(engine: str, way: str) -> list[str]:
    """Return what differs from the run by hand: in float16, after an overflow, and where a kernel fails on one rank."""
    wrong, ends = [], WAYS[way]

    def compare(name: str, ours: list[torch.Tensor], others: list[torch.Tensor]) -> None:
        parts = ("weights and moments", "losses", "random numbers")
        for part, one, other in zip(parts, ours, others, strict=True):
            if not torch.equal(one, other):
                far = (one.double() - other.double()).abs().max()
                wrong.append(f"{engine}, {way}, {name}: {part}, by {far}")

    begin_case(f"{engine}, {way}: float16")
    plain = by_hand(engine, ends, FLOAT16)
    ours, guard = guarded(engine, ends, FLOAT16)
    compare("float16", ours, plain)
    wrong += [f"{engine}, {way}: {event.message}" for event in guard.events]
    begin_case(f"{engine}, {way}: overflow")
    ours, guard = guarded(engine, ends, FLOAT16, overflows=True)
    compare("overflow", ours, plain)
    if not {event.step for event in guard.events} or guard.dtype != FLOAT16:
        wrong.append(f"{engine}, {way}: {guard.dtype} after {[event.message for event in guard.events]}")
    for case, is_nan, first, then in failures():
        begin_case(f"{engine}, {way}: {case.name}")
        ours, guard = guarded(engine, ends, first, case=case, is_nan=is_nan)
        if guard.dtype != then:
            wrong.append(f"{engine}, {way}, {case.name}: {guard.dtype}")
        compare(case.name, ours, by_hand(engine, ends, first, switch=(case.step, then)))
    return wrong


def all_differences(engine: str, ways: list[str]) -> list[str]:
    """Return what differs for all of these ways to keep gradients."""
    torch.set_num_threads(1)
    return [wrong for way in ways for wrong in differences(engine, way)]
