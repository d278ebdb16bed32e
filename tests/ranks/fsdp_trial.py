"""Training under FSDP2 with injected faults, against runs that are sharded anew in each dtype and know of no guard."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from safe_dtype.devices.random_states import RandomStates
from safe_dtype.facts import dtype_named
from safe_dtype.ranks import Vote, cast_vote, current_world, restarting
from safe_dtype.ranks.armed_poison import ArmedPoison
from safe_dtype.ranks.fsdp2 import forget_step, gradients_here, switch_policy

from .ddp_trial import CLASSES, LAYERS, Engine, Net, Record
from .faults import LADDER, InjectedFault, Injection, expected, inject, random_faults
from .processes import begin_case

STEPS = 3


@dataclass(frozen=True, slots=True)
class Sharding:
    """How a model is sharded: micro-batches of a step, and whether parameters are freed after forward."""

    micros: int = 1
    frees: bool = True


SHARDINGS = tuple(Sharding(micros, frees) for micros in (1, 2) for frees in (True, False))


def _sharded(sharding: Sharding, dtype: str) -> Net:
    torch.manual_seed(0)
    model = Net(Engine())
    policy = MixedPrecisionPolicy(getattr(torch, dtype), torch.float32)
    for module in (*model.layers, model):
        fully_shard(module, mp_policy=policy, reshard_after_forward=sharding.frees)
    return model


def _weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().full_tensor().flatten() for parameter in model.parameters()])


def _batches(sharding: Sharding) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    draw = torch.Generator().manual_seed(100 + dist.get_rank())
    return [
        [
            (torch.randn(6, 8, generator=draw), torch.randint(0, CLASSES, (6,), generator=draw))
            for _ in range(sharding.micros)
        ]
        for _ in range(STEPS)
    ]


def _passes(model: Net, window: Sequence[tuple[torch.Tensor, torch.Tensor]], injection: Injection) -> float:
    total = 0.0
    for injection.micro, (inputs, targets) in enumerate(window):
        model.set_requires_gradient_sync(injection.micro == len(window) - 1)
        loss = nn.functional.cross_entropy(model(inputs, uses_spare=False).float(), targets) / len(window)
        loss.backward()
        total += loss.item()
    return total


def guarded(sharding: Sharding, faults: Sequence[InjectedFault]) -> Record:
    """Train with an armed rank, a vote on each step, and a switch in place."""
    world, model, rung = current_world(), _sharded(sharding, LADDER[0]), 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    record, injection = Record(weights=[_weights(model)]), Injection(faults)
    torch.manual_seed(1000 + dist.get_rank())
    inject(injection)
    for injection.step, window in enumerate(_batches(sharding)):
        before = RandomStates()
        while True:
            with ArmedPoison() as poison:
                loss = _passes(model, window, injection)
            is_fit = not poison.poisoned and all(bool(one.isfinite().all()) for one in gradients_here(model))
            if cast_vote(world, Vote.OK if is_fit else Vote.FALL_BACK).ok:
                break
            forget_step(model)
            optimizer.zero_grad()
            rung += 1
            if rung == len(LADDER):
                inject(None)
                return replace(record, fired=injection.fired)
            switch_policy(model, dtype_named(LADDER[rung]))
            before.set_again()
        optimizer.step()
        optimizer.zero_grad()
        record.losses.append(loss)
        record.weights.append(_weights(model))
    inject(None)
    return _finished(record, model, optimizer, injection)


def plain(sharding: Sharding, dtypes: Sequence[str]) -> Record:
    """Train without faults; for another dtype the model is made and sharded anew, and takes over weights and moments."""
    model = _sharded(sharding, dtypes[0] if dtypes else LADDER[0])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    record, nothing = Record(weights=[_weights(model)]), Injection(())
    torch.manual_seed(1000 + dist.get_rank())
    for step, (dtype, window) in enumerate(zip(dtypes, _batches(sharding), strict=False)):
        if step and dtype != dtypes[step - 1]:
            state, former, draws = optimizer.state_dict(), model, torch.get_rng_state()
            model = _sharded(sharding, dtype)
            torch.set_rng_state(draws)
            with torch.no_grad():
                for new, old in zip(model.parameters(), former.parameters(), strict=True):
                    new.to_local().copy_(old.to_local())
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
            optimizer.load_state_dict(state)
        record.losses.append(_passes(model, window, nothing))
        optimizer.step()
        optimizer.zero_grad()
        record.weights.append(_weights(model))
    return _finished(record, model, optimizer, nothing)


def _finished(record: Record, model: Net, optimizer: torch.optim.Optimizer, injection: Injection) -> Record:
    record.counts = {int(optimizer.state[one]["step"]) for one in model.head.parameters() if optimizer.state[one]}
    record.draws, record.fired = torch.get_rng_state(), injection.fired
    return record


def random_trials(seed: int, count: int) -> list[tuple[str, str, list[str], int]]:
    """Run cases that are drawn at random, the same on every rank: of faults that a rank stays in step after."""
    chance, results = random.Random(seed), []
    truths: dict[Any, Record] = {}
    while len(results) < count:
        sharding = chance.choice(SHARDINGS)
        faults = random_faults(chance, dist.get_world_size(), STEPS, sharding.micros, LAYERS)
        if any(fault.ends_the_job for fault in faults):
            continue  # between two collectives: the process has to end
        name = f"FSDP2 {seed}/{len(results)}: {sharding}: {'; '.join(map(str, faults))}"
        begin_case(name)
        wanted = expected(faults, STEPS)
        key = (sharding, wanted.dtypes)
        truth = truths[key] = truths.get(key) or plain(sharding, wanted.dtypes)
        run = guarded(sharding, faults)
        checks = {
            f"{len(run.losses)} steps": len(run.losses) == len(wanted.dtypes),
            "losses": run.losses == truth.losses,
            "weights": len(run.weights) == len(truth.weights) and all(map(torch.equal, run.weights, truth.weights)),
            "optimizer counts": wanted.ending != "done" or run.counts == truth.counts,
            "random numbers": wanted.ending != "done" or torch.equal(run.draws, truth.draws),
        }
        results.append((name, run.digest, [what for what, is_as_due in checks.items() if not is_as_due], run.fired))
    return results


def unarmed(fault: InjectedFault) -> str:
    """Train with ranks that are not armed any more: one leaves a step in its middle, while the others wait for it."""
    with restarting():
        model, injection = _sharded(Sharding(), LADDER[0]), Injection([fault])
        begin_case(str(fault), seconds=40)
        inject(injection)
        for injection.step, window in enumerate(_batches(Sharding())):
            _passes(model, window, injection)
    return "went on"
