"""Training under DistributedDataParallel with injected faults, against a run in plain torch that knows of no guard."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from safe_dtype.errors import NoDtypeLeft, RemoteFailure
from safe_dtype.training import PrecisionGuard, TorchLoop

from .faults import Expected, InjectedFault, Injection, expected, inject, random_faults, systematic_faults
from .processes import begin_case

STEPS, LAYERS, WIDTH, CLASSES = 4, 3, 12, 5
INIT_SCALE = 2.0**10


@dataclass(frozen=True, slots=True)
class Engine:
    """How a model is trained.

    Attributes:
        micros: Micro-batches of an optimizer step; all but the last under `no_sync`.
        finds_unused: DDP looks for parameters without a gradient, and which they are differs from rank to rank.
        has_statistics: The model has running statistics, which DDP broadcasts.
    """

    micros: int = 1
    finds_unused: bool = False
    has_statistics: bool = False
    clips: bool = False

    def __str__(self) -> str:
        flags = [name for name in ("finds_unused", "has_statistics", "clips") if getattr(self, name)]
        return f"DDP, {self.micros} micro-batches, {' '.join(flags) or 'plain'}"


ENGINES = tuple(
    Engine(micros, finds_unused, has_statistics, clips)
    for number, (micros, finds_unused, has_statistics) in enumerate(
        (micros, finds, statistics) for micros in (1, 2, 3) for finds in (False, True) for statistics in (False, True)
    )
    for clips in [number % 3 == 0]
)


class Layer(nn.Module):
    """A product, the kernel that may fail, and random numbers."""

    def __init__(self, number: int, has_statistics: bool) -> None:
        super().__init__()
        self.number = number
        self.norm = nn.BatchNorm1d(WIDTH) if has_statistics else nn.LayerNorm(WIDTH)
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.drop = nn.Dropout(0.2)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return what comes out, of the shape that came in: (batch, width)."""
        inner = torch.ops.safe_dtype_ranks.kernel(self.inner(self.norm(hidden)), self.number)
        return hidden + self.drop(torch.nn.functional.gelu(inner))


class Net(nn.Module):
    """Layers, and a second head that only some batches use."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.embedding = nn.Linear(8, WIDTH)
        self.layers = nn.ModuleList(Layer(number, engine.has_statistics) for number in range(LAYERS))
        self.head = nn.Linear(WIDTH, CLASSES)
        self.spare = nn.Linear(WIDTH, CLASSES) if engine.finds_unused else None

    def forward(self, inputs: torch.Tensor, uses_spare: bool) -> torch.Tensor:
        """Return logits of shape (batch, classes)."""
        hidden = self.embedding(inputs)
        for layer in self.layers:
            hidden = layer(hidden)
        logits = self.head(hidden)
        return logits + self.spare(hidden) if self.spare is not None and uses_spare else logits


@dataclass
class Record:
    """What a run has left, on this rank.

    Attributes:
        weights: The parameters after each step.
        fired: How often a fault has shown.
    """

    weights: list[torch.Tensor] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    buffers: list[torch.Tensor] = field(default_factory=list)
    counts: set[int] = field(
        default_factory=set
    )  # steps that the optimizer has counted for the parameters of the head
    draws: torch.Tensor | None = None
    error: Exception | None = None
    fired: int = 0

    @property
    def digest(self) -> str:
        """Of the weights in the end, to compare ranks by."""
        return hashlib.sha256(self.weights[-1].numpy().tobytes()).hexdigest()[:16]


class _Job:
    """A model, its optimizer and its data: the same each time that it is made."""

    def __init__(self, engine: Engine, steps: int) -> None:
        torch.manual_seed(0)
        self.model = Net(engine)
        options = {"find_unused_parameters": engine.finds_unused, "bucket_cap_mb": 0.001}
        self.ddp = DistributedDataParallel(self.model, **options)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        draw = torch.Generator().manual_seed(100 + dist.get_rank())
        self.batches = [
            (torch.randn(6, 8, generator=draw), torch.randint(0, CLASSES, (6,), generator=draw))
            for _ in range(steps * engine.micros)
        ]
        self.record = Record(weights=[self.flat()])
        torch.manual_seed(1000 + dist.get_rank())

    def flat(self) -> torch.Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in self.model.parameters()])

    def loss(self, batch: tuple[torch.Tensor, torch.Tensor], step: int, micros: int) -> torch.Tensor:
        uses_spare = (step + dist.get_rank()) % 2 == 0
        return nn.functional.cross_entropy(self.ddp(batch[0], uses_spare).float(), batch[1]) / micros

    def note_step(self, loss: float) -> None:
        self.record.losses.append(loss)
        self.record.weights.append(self.flat())

    def finished(self) -> Record:
        self.record.buffers = [buffer.clone() for buffer in self.model.buffers()]
        self.record.counts = {
            int(self.optimizer.state[p]["step"]) for p in self.model.head.parameters() if self.optimizer.state[p]
        }
        self.record.draws = torch.get_rng_state()
        return self.record


def guarded(engine: Engine, faults: Sequence[InjectedFault], steps: int = STEPS) -> Record:
    """Train with the guard, while faults are injected."""
    job = _Job(engine, steps)
    loop = TorchLoop(job.ddp, job.optimizer, "bfloat16", init_scale=INIT_SCALE)
    guard = PrecisionGuard(loop)
    injection = Injection(faults)
    inject(injection)
    try:
        for step, window in enumerate(guard.windows(job.batches, engine.micros)):
            injection.step = step
            for attempt in guard.attempts():
                with attempt:
                    total = 0.0
                    for injection.micro, batch in enumerate(window):
                        with loop.accumulate():
                            with loop.autocast():
                                loss = job.loss(batch, step, engine.micros)
                            loop.backward(loss)
                        total += loss.item()
                    if engine.clips:
                        loop.clip_grad_norm_(job.model.parameters(), 1.0)
                    job.optimizer.step()
                    job.optimizer.zero_grad()
            job.note_step(total)
    except Exception as exc:  # noqa: BLE001  (which one it is, is compared)
        job.record.error = exc
    finally:
        inject(None)
    job.record.fired = injection.fired
    return job.finished()


def plain(engine: Engine, dtypes: Sequence[str], steps: int = STEPS) -> Record:
    """Train without faults and without a guard, each step in the dtype that is said."""
    job, scaler = _Job(engine, steps), None
    for step, dtype in enumerate(dtypes):
        if dtype == "float16" and scaler is None:
            scaler = torch.amp.GradScaler("cpu", init_scale=INIT_SCALE)
        scaler = scaler if dtype == "float16" else None
        total = 0.0
        for micro in range(engine.micros):
            is_last = micro == engine.micros - 1
            with nullcontext() if is_last else job.ddp.no_sync():
                autocast: dict[str, Any] = (
                    {"enabled": False} if dtype == "float32" else {"dtype": getattr(torch, dtype)}
                )
                with torch.autocast("cpu", **autocast):
                    loss = job.loss(job.batches[step * engine.micros + micro], step, engine.micros)
                (loss if scaler is None else scaler.scale(loss)).backward()
            total += loss.item()
        if scaler is not None:
            scaler.unscale_(job.optimizer)
        if engine.clips:
            nn.utils.clip_grad_norm_(job.model.parameters(), 1.0)
        job.optimizer.step() if scaler is None else scaler.step(job.optimizer)
        if scaler is not None:
            scaler.update()
        job.optimizer.zero_grad()
        job.note_step(total)
    return job.finished()


def differences(run: Record, truth: Record, wanted: Expected, tolerance: float) -> list[str]:
    """Return what of a guarded run is not as it has to be."""
    rank, ending = dist.get_rank(), wanted.ending
    kinds = {"done": type(None), "no dtype left": NoDtypeLeft}
    if ending == "foreign" and rank in wanted.raising:
        is_right = run.error is not None and not isinstance(run.error, (RemoteFailure, NoDtypeLeft))
    elif ending == "foreign":
        is_right = isinstance(run.error, RemoteFailure) and run.error.rank == wanted.raising[0]
    else:
        is_right = isinstance(run.error, kinds[ending])
    steps = len(wanted.dtypes)
    checks = {
        f"ended with {run.error!r}": is_right,
        f"{len(run.losses)} steps, not {steps}": len(run.losses) == steps,
        f"optimizer counts {run.counts}, not {truth.counts}": run.counts == truth.counts,
        "losses": _near(torch.tensor(run.losses), torch.tensor(truth.losses), tolerance),
        "weights": all(map(_near, run.weights, truth.weights, [tolerance] * (steps + 1))),
        "statistics": ending == "foreign"
        or all(map(_near, run.buffers, truth.buffers, [tolerance] * len(truth.buffers))),
        "random numbers": ending != "done" or torch.equal(run.draws, truth.draws),
    }
    return [what for what, is_as_due in checks.items() if not is_as_due]


def _near(values: torch.Tensor, truth: torch.Tensor, tolerance: float) -> bool:
    return values.shape == truth.shape and bool(((values - truth).abs() <= tolerance).all())


def trial(
    name: str, engine: Engine, faults: Sequence[InjectedFault], truths: dict[Any, Record]
) -> tuple[str, str, list[str], int]:
    """Run one case; return its name, a digest of this rank's weights, what was not as due, and how often a fault showed."""
    begin_case(name)
    wanted = expected(faults, STEPS)
    key = (engine, wanted.dtypes)
    if key not in truths:
        truths[key] = plain(engine, wanted.dtypes)
    run = guarded(engine, faults)
    # gloo adds the numbers of three ranks in an order that depends on where a bucket begins.
    tolerance = 0.0 if dist.get_world_size() <= 2 else 1e-5
    return name, run.digest, differences(run, truths[key], wanted, tolerance), run.fired


def random_trials(seed: int, count: int) -> list[tuple[str, str, list[str], int]]:
    """Run cases that are drawn at random, the same on every rank."""
    chance, size, truths = random.Random(seed), dist.get_world_size(), {}
    results = []
    for number in range(count):
        engine = chance.choice(ENGINES)
        faults = random_faults(chance, size, STEPS, engine.micros, LAYERS)
        name = f"{seed}/{number}: {engine}: {'; '.join(map(str, faults))}"
        results.append(trial(name, engine, faults, truths))
    return results


def systematic_trials(every: int = 1) -> list[tuple[str, str, list[str], int]]:
    """Run every `every`-th case of the grid, with the engines in turn."""
    truths: dict[Any, Record] = {}
    results = []
    for number, faults in enumerate(systematic_faults(dist.get_world_size(), STEPS, 3, LAYERS)):
        engine = ENGINES[number // every % len(ENGINES)]
        if number % every == 0 and faults[0].micro < engine.micros:
            results.append(trial(f"{number}: {engine}: {faults[0]}", engine, faults, truths))
    return results
