"""Small loops of training, with a fault at one step, or a switch of the precision there and no fault.

The runs of both kinds are compared whole: weights, statistics, optimizer, losses, rates and random numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from safe_dtype.facts import BFLOAT16, Dtype
from safe_dtype.training import PrecisionGuard, TorchLoop

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
OUTSIDE = ("before", "after")  # the model
NAMES = {"bfloat16": "bf16", "float16": "fp16", "float32": "no"}
_TEXT = "\"addmm_impl_cpu_\" not implemented for '{}'"
_SPELLED = {BF16: "BFloat16", FP16: "Half", FP32: "Float"}


@dataclass
class Fault:
    """What goes wrong, while a model computes in one of `dtypes`.

    Attributes:
        kind: "raise" in forward, "before" and "after" it in the loop, "backward", "nan", "inf" (gradients), "foreign".
        step: The window.
        micro: The micro-batch in it.
        rank: The only rank on which it goes wrong; -1: on all.
    """

    kind: str
    step: int = 3
    dtypes: tuple[torch.dtype, ...] = (BF16,)
    micro: int = 0
    rank: int = 0
    fired: int = 0

    def is_on(self, step: int, micro: int) -> bool:
        """Whether it shows here and now."""
        return (self.step, self.micro) == (step, micro) and self.rank in (-1, rank())


@dataclass
class Run:
    """A run to make: its fault, or the window at which it switches without one."""

    fault: Fault | None = None
    switch: tuple[int, Dtype] | None = None
    rescale: tuple[int, tuple[str, ...]] | None = (
        None  # at which window products are scaled by hand, and of which layers
    )
    first: Dtype = BFLOAT16
    steps: int = 6
    micro: int = 1
    batches: int | None = None  # of all windows together, where the last one is not whole
    clips: bool = True
    uses_accelerate: bool = False
    init_scale: float = 2.0**16
    factor: float = 1.0  # of the loss
    syncs_always: bool = False  # ranks reduce gradients with every micro-batch
    ddp: dict[str, Any] = field(default_factory=dict)  # arguments of DistributedDataParallel
    hook: Any = None  # its communication hook, and the state of that


@dataclass
class Result:
    """All that a run leaves."""

    values: dict[str, torch.Tensor]
    events: list[Any]
    calls: int  # of the model

    def differences(self, other: Result) -> list[str]:
        """Return what is not the same in both, to the bit."""
        return [
            name
            for name, value in self.values.items()
            if not torch.equal(value, other.values.get(name, torch.empty(0)))
        ]


class Model(nn.Module):
    """Linear layers, a normalization with statistics, dropout, and a place for a fault."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Linear(8, width)
        self.norm = nn.BatchNorm1d(width)
        self.inner = nn.Linear(width, width)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(width, 4)
        self.fault: Fault | None = None
        self.now = (0, 0)
        self.calls = 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits, or fail."""
        self.calls += 1
        hidden = self.drop(torch.relu(self.inner(self.norm(self.embedding(inputs)))))
        fault = self.fault
        if (
            fault is not None
            and fault.is_on(*self.now)
            and (computes_in() in fault.dtypes or fault.kind == "foreign")  # which no dtype cures
            and fault.kind not in OUTSIDE
        ):
            fault.fired += 1
            hidden = _spoiled(hidden, fault.kind)
        logits: torch.Tensor = self.head(hidden)
        return logits


class _Backward(torch.autograd.Function):
    """Raises in backward, or gives infinite gradients."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, kind: str, dtype: torch.dtype) -> torch.Tensor:
        ctx.kind, ctx.dtype = kind, dtype
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        if ctx.kind == "backward":
            raise RuntimeError(_TEXT.format(_SPELLED[ctx.dtype]))
        return gradient * float("inf"), None, None


def rank() -> int:
    """Return the rank of this process; 0 where it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def computes_in() -> torch.dtype:
    """Return what products are computed in here and now, of float32 weights."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else FP32


def _spoiled(hidden: torch.Tensor, kind: str) -> torch.Tensor:
    if kind == "raise":
        raise RuntimeError(_TEXT.format(_SPELLED[computes_in()]))
    if kind == "foreign":
        raise KeyError("labels")
    if kind == "nan":
        return hidden * float("nan")
    spoiled: torch.Tensor = _Backward.apply(hidden, kind, computes_in())
    return spoiled


def run(wanted: Run) -> Result:
    """Make a run; on several ranks under DistributedDataParallel, each with data and random numbers of its own."""
    torch.manual_seed(0)
    model = Model()
    model.fault = wanted.fault
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 20)
    generator = torch.Generator().manual_seed(1 + rank())
    count = wanted.batches or wanted.steps * wanted.micro
    batches = [
        {"inputs": torch.randn(6, 8, generator=generator), "targets": torch.randint(0, 4, (6,), generator=generator)}
        for _ in range(count)
    ]
    make = _with_accelerate if wanted.uses_accelerate else _in_plain_torch
    return make(wanted, model, optimizer, scheduler, batches)


def _in_plain_torch(wanted: Run, model: Model, optimizer: Any, scheduler: Any, batches: list[Any]) -> Result:
    called: Any = model
    if dist.is_initialized():
        called = DistributedDataParallel(model, **{"bucket_cap_mb": 0.001, **wanted.ddp})
        if wanted.hook is not None:
            hook, state = wanted.hook
            called.register_comm_hook(state(), hook)
    torch.manual_seed(10 + rank())
    loop = TorchLoop(called, optimizer, wanted.first, init_scale=wanted.init_scale)
    guard = PrecisionGuard(loop)
    losses, rates = [], []
    for step, window in enumerate(guard.windows(batches, wanted.micro)):
        if wanted.switch is not None and wanted.switch[0] == step:
            loop.switch(wanted.switch[1])
        if wanted.rescale is not None and wanted.rescale[0] == step:
            guard.rescale(wanted.rescale[1])
        for attempt in guard.attempts():
            with attempt:
                total = 0.0
                for micro, batch in enumerate(window):
                    model.now = (step, micro)
                    _fail_outside("before", wanted.fault, (step, micro), loop)
                    with loop.accumulate() if not wanted.syncs_always else torch.enable_grad():
                        targets = batch.pop("targets")
                        with loop.autocast():
                            loss = nn.functional.cross_entropy(called(**batch), targets) / len(window)
                        loop.backward(loss * wanted.factor)
                    total += loss.item()
                    _fail_outside("after", wanted.fault, (step, micro), loop)
                if wanted.clips:
                    loop.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
        losses.append(total)
        rates.append(scheduler.get_last_lr()[0])
    return _result(model, optimizer, losses, rates, guard)


def _with_accelerate(wanted: Run, model: Model, optimizer: Any, scheduler: Any, batches: list[Any]) -> Result:
    AcceleratorState._reset_state()
    GradientState._reset_state()
    accelerator = Accelerator(
        mixed_precision=NAMES[wanted.first.name], cpu=True, gradient_accumulation_steps=wanted.micro,
        step_scheduler_with_optimizer=False,
        kwargs_handlers=[DistributedDataParallelKwargs(**{"bucket_cap_mb": 0.001, **wanted.ddp})],
    )  # fmt: skip
    everybodys = [batch for batch in batches for _ in range(accelerator.num_processes)]  # each rank gets its share
    loader = torch.utils.data.DataLoader(everybodys, batch_size=1, collate_fn=_only)
    called, optimizer, scheduler, loader = accelerator.prepare(model, optimizer, scheduler, loader)
    torch.manual_seed(10 + rank())
    guard = PrecisionGuard(accelerator, called, init_scale=wanted.init_scale)
    losses, rates = [], []
    for step, window in enumerate(guard.windows(loader, wanted.micro)):
        if wanted.switch is not None and wanted.switch[0] == step:
            guard.loop.switch(wanted.switch[1])
        if wanted.rescale is not None and wanted.rescale[0] == step:
            guard.rescale(wanted.rescale[1])
        for attempt in guard.attempts():
            with attempt:
                total = 0.0
                for micro, batch in enumerate(window):
                    model.now = (step, micro)
                    _fail_outside("before", wanted.fault, (step, micro), guard.loop)
                    with accelerator.accumulate(called):
                        targets = batch.pop("targets")
                        loss = nn.functional.cross_entropy(called(**batch), targets)
                        accelerator.backward(loss * wanted.factor)
                        _fail_outside("after", wanted.fault, (step, micro), guard.loop)
                        if accelerator.sync_gradients and wanted.clips:
                            accelerator.clip_grad_norm_(called.parameters(), 1.0)
                        optimizer.step()
                        if accelerator.sync_gradients:
                            scheduler.step()
                        optimizer.zero_grad()
                    total += loss.item() / len(window)
        losses.append(total)
        rates.append(scheduler.get_last_lr()[0])
    return _result(model, optimizer.optimizer, losses, rates, guard)


def _only(batches: list[Any]) -> Any:
    return batches[0]


def _fail_outside(kind: str, fault: Fault | None, now: tuple[int, int], loop: Any) -> None:
    """Fail before or after the model, as a part of the loop that is not trained would."""
    dtype = getattr(torch, loop.dtype.name)
    if fault is not None and fault.kind == kind and fault.is_on(*now) and dtype in fault.dtypes:
        fault.fired += 1
        raise RuntimeError(_TEXT.format(_SPELLED[dtype]))


def _result(
    model: Model, optimizer: torch.optim.Optimizer, losses: list[float], rates: list[float], guard: PrecisionGuard
) -> Result:
    values = {name: value.clone() for name, value in model.state_dict().items()}
    for place, state in enumerate(optimizer.state.values()):
        values |= {f"{name} {place}": value.clone() for name, value in state.items()}
    values |= {"losses": torch.tensor(losses), "rates": torch.tensor(rates), "random": torch.get_rng_state()}
    return Result(values, guard.events, model.calls)
