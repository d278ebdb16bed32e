"""The Trainer and loops of accelerate with injected faults, against runs that were switched by hand and in which nothing fails."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from training import loops, trainer_runs

from safe_dtype.errors import RemoteFailure
from safe_dtype.facts import BFLOAT16, FLOAT16, FLOAT32, Dtype

from .processes import begin_case

STEPS = 4
Outcome = tuple[str, list[str], int]


def accelerate_trials(seed: int, count: int) -> list[tuple[str, str, list[str], int]]:
    """Run loops of accelerate, drawn at random: the same on every rank."""
    chance, results = random.Random(seed), []
    for number in range(count):
        kind = chance.choice(("raise", "before", "after", "backward", "nan", "inf", "foreign"))
        micro, rank, step = chance.choice((1, 2)), chance.randrange(dist.get_world_size()), chance.randrange(STEPS)
        dtypes = chance.choice(((loops.BF16,), (loops.BF16, loops.FP16)))
        fault = loops.Fault(kind, step, dtypes, chance.randrange(micro), rank)
        name = f"accelerate {seed}/{number}: {micro} micro-batches: {fault}"
        begin_case(name)
        results.append((name, *_in_accelerate(fault, micro)))
    return results


def _in_accelerate(fault: loops.Fault, micro: int) -> Outcome:
    case: dict[str, Any] = {"steps": STEPS, "micro": micro, "uses_accelerate": True}
    if fault.kind == "foreign":
        try:
            loops.run(loops.Run(fault=fault, **case))
        except (KeyError, RemoteFailure) as exc:
            return _ended_by(exc, fault.rank, fault.fired)
        return "", ["an error was lost"], fault.fired
    dtype = FLOAT16 if len(fault.dtypes) == 1 else FLOAT32
    failed = loops.run(loops.Run(fault=fault, **case))
    switched = loops.run(loops.Run(switch=(fault.step, dtype), **case))
    own = {"random", "losses", *(name for name in failed.values if "running" in name or "num_batches" in name)}
    weights = (value for name, value in failed.values.items() if name not in own)
    return _digest(weights), failed.differences(switched), fault.fired


def trainer_trials(seed: int, count: int) -> list[tuple[str, str, list[str], int]]:
    """Run the Trainer, with cases drawn at random: the same on every rank."""
    chance, results = random.Random(seed), []
    for number in range(count):
        kind = chance.choice(("raise", "backward", "nan", "inf", "key"))
        accumulation, rank = chance.choice((1, 2)), chance.randrange(dist.get_world_size())
        dtypes = chance.choice(((BFLOAT16,), (BFLOAT16, FLOAT16)))
        if kind == "key":
            dtypes = (BFLOAT16, FLOAT16, FLOAT32)  # what a dtype further down cures is no error of the program
        fault = trainer_runs.Fault(chance.randrange(STEPS), kind, dtypes, chance.randrange(accumulation))
        other = {"accumulation": accumulation, "steps": STEPS}
        if chance.random() < 0.25:
            other["arguments"] = {"activation_checkpointing": True}
        name = f"Trainer {seed}/{number}: rank {rank}, {other}: {fault}"
        begin_case(name, 60)
        results.append((name, *_in_trainer(fault, rank, other)))
    return results


def _in_trainer(fault: trainer_runs.Fault, rank: int, other: Mapping[str, Any]) -> Outcome:
    fails_here = dist.get_rank() == rank
    ours = trainer_runs.run(trainer_runs.Setting(fault if fails_here else None, **other))
    if fault.kind == "key":
        return _ended_by(ours.error, rank, int(fails_here))
    dtype: Dtype = FLOAT16 if len(fault.dtypes) == 1 else FLOAT32
    scale = ours.scale if dtype == FLOAT16 else None
    by_hand = trainer_runs.run(
        trainer_runs.Setting(by_hand=(fault.step, dtype), attached=False, init_scale=scale, **other)
    )
    everything = ours.everything()
    wrong = trainer_runs.difference(everything, by_hand.everything())
    steps = {int(state["step"]) for state in ours.trainer.optimizer.state.values()}
    problems = [wrong] * bool(wrong) + [f"ended with {ours.error!r}"] * (ours.error is not None)
    problems += [f"{steps} steps of the optimizer"] * (steps != {STEPS})
    return _digest(everything["weights"].values()), problems, ours.passes - by_hand.passes


def _ended_by(error: Exception | None, rank: int, fired: int) -> Outcome:
    """Say whether an error that no dtype cures has come out as it is on its rank, and as ours on the others."""
    kind = KeyError if dist.get_rank() == rank else RemoteFailure
    return "", [] if isinstance(error, kind) else [f"ended with {error!r}"], fired


def _digest(values: Iterable[torch.Tensor]) -> str:
    return hashlib.sha256(b"".join(value.detach().double().numpy().tobytes() for value in values)).hexdigest()[:16]
