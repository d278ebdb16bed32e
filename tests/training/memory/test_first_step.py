"""The first step of a run is looked at before it is made, in the precision that was ordered: what does not fit is said."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from limited_memory import can_limit, run_limited
from torch import nn

from safe_dtype import PrecisionGuard, SafeDtypeWarning, TorchLoop
from safe_dtype.errors import TrainingDoesNotFitError
from safe_dtype.facts import BFLOAT16, FLOAT32, MemoryFacts
from safe_dtype.training.memory.fit_step_down import plan_of_call
from safe_dtype.training.memory.model_call import ModelCall


class Wide(nn.Module):
    """A model of many weights, which returns its own loss. `passes` counts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)))
        self.passes = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a loss."""
        self.passes += 1
        return self.layers(x).float().square().mean()


FEW, MANY = torch.ones(2, 64), torch.ones(509, 64)  # a prime number of rows: there are two ways to divide them


def needs(rows: torch.Tensor, dtype: Any, optimizer: Any = torch.optim.AdamW, micro_batches: int = 1) -> int:
    """Return what a step with these rows in each micro-batch takes, as it is."""
    model = Wide()
    plan = plan_of_call(
        ModelCall(model, (rows,), {}), dtype, [optimizer(model.parameters())], {"cpu": 1}, micro_batches
    )
    assert plan is not None
    return plan.tried[0][1]


def train(
    rows: torch.Tensor,
    dtype: str = "bfloat16",
    before: Callable[[Any], None] = lambda _: None,
    make_optimizer: Any = torch.optim.AdamW,
    micro_batches: int = 1,
    **limits: Any,
) -> Any:
    """Train two steps in plain torch; return the model."""
    model = Wide()
    optimizer = make_optimizer(model.parameters())
    loop = TorchLoop(model, optimizer, dtype)

    def run(batch: torch.Tensor) -> None:
        with loop.autocast():
            before(model)
            loss = model(batch)
        loop.backward(loss)

    run_windows(PrecisionGuard(loop, **limits), [rows] * micro_batches, run, optimizer)
    return model


def run_windows(
    guard: PrecisionGuard, window_of: list[torch.Tensor], run: Callable[[torch.Tensor], None], optimizer: Any
) -> None:
    """Make two steps."""
    for window in guard.windows(window_of * 2, len(window_of)):
        for attempt in guard.attempts():
            with attempt:
                for batch in window:
                    run(batch)
                optimizer.step()
                optimizer.zero_grad()
    assert guard.windows_done == 2


def test_what_fits_is_not_spoken_of() -> None:
    """Nothing is said, and the model runs as often as it is called."""
    assert train(FEW, max_memory={"cpu": needs(FEW, BFLOAT16)}).passes == 2


def test_said_before_the_first_step() -> None:
    """What does not fit in any precision is warned of, once and before a pass, and no bit of the run differs for it."""
    with pytest.warns(
        SafeDtypeWarning, match="in float16 and float32 it does not fit either. Nothing was changed"
    ) as said:
        model = train(MANY, max_memory={"cpu": 1000})
    assert len(said) == 1
    assert model.passes == 2
    plain = train(MANY)
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), plain.parameters(), strict=True))


def test_another_precision_that_fits() -> None:
    """With few rows in many micro-batches bfloat16 takes more than float32, for copies of the weights: the warning says so."""
    float32 = needs(FEW, FLOAT32, torch.optim.SGD, 2)
    assert float32 < needs(FEW, BFLOAT16, torch.optim.SGD, 2)
    with pytest.warns(SafeDtypeWarning, match=r"a step in bfloat16 .*; in float32 it needs .*, and fits. Nothing"):
        train(FEW, make_optimizer=torch.optim.SGD, micro_batches=2, max_memory={"cpu": float32})


@pytest.mark.slow
def test_float32_is_looked_at_too() -> None:
    """Where a run begins in it."""
    with pytest.warns(SafeDtypeWarning, match=r"a step in float32 .* Nothing was changed"):
        train(MANY, "float32", max_memory={"cpu": 1000})


def test_a_pass_without_gradients_is_no_step() -> None:
    """The first call that gradients are asked of is the one that is looked at."""

    def evaluate(model: Any) -> None:
        with torch.no_grad():
            model(torch.ones(4096, 64))

    assert train(FEW, before=evaluate, max_memory={"cpu": needs(FEW, BFLOAT16)}).passes == 4


@pytest.mark.slow
def test_a_loop_with_accelerate() -> None:
    """It is looked at as well."""
    AcceleratorState._reset_state(True)
    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    model = Wide()
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    guard = PrecisionGuard(accelerator, model, max_memory={"cpu": 1000})
    with pytest.warns(SafeDtypeWarning, match="a step in bfloat16 .* Nothing was changed"):
        run_windows(guard, [FEW], lambda batch: accelerator.backward(model(batch)), optimizer)
    AcceleratorState._reset_state(True)


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a machine of 100,000 bytes, without swap."""
    for module in ("fit_training", "fit_step_down"):
        facts = MemoryFacts(100_000, 100_000, "cgroup")
        monkeypatch.setattr(f"safe_dtype.training.memory.{module}.memory_of", lambda _, facts=facts: facts)
    monkeypatch.setattr("safe_dtype.training.memory.fit_training.free_at_last", lambda: 100_000)


@pytest.mark.usefixtures("little_memory")
def test_what_would_end_the_process_is_refused() -> None:
    """Where the tensors of the step alone are more than there is: before a pass, with what they are, and no other dtype is tried."""
    models: list[Any] = []
    with pytest.raises(
        TrainingDoesNotFitError, match=r"as it is ordered, .*: the system would end the process"
    ) as raised:
        train(MANY, before=models.append)
    error = raised.value
    assert (error.dtype, error.instead) == ("bfloat16", ())
    assert sum(size for _, size in error.kinds) == error.needed_bytes
    assert models[0].passes == 0
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


class OfNobodyKnown(torch.optim.AdamW):
    """An optimizer that is none of torch's own."""


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize(
    "why", ["max_memory", *(pytest.param(why, marks=pytest.mark.slow) for why in ("compiled", "another optimizer"))]
)
def test_what_nobody_knows_for_sure_is_warned_of(why: str) -> None:
    """What may be held is the caller's to say; a compiler keeps fewer activations, and another optimizer may have no moments."""
    limits = {"max_memory": {"cpu": 10**6}} if why == "max_memory" else {}
    make_optimizer = OfNobodyKnown if why == "another optimizer" else torch.optim.AdamW

    def compiled(model: Any) -> None:
        if why == "compiled" and model.layers._compiled_call_impl is None:
            model.layers.compile(backend="eager")

    with pytest.warns(SafeDtypeWarning, match="Nothing was changed"):
        assert train(MANY, before=compiled, make_optimizer=make_optimizer, **limits).passes == 2


@pytest.mark.slow
def test_what_the_system_can_free_counts(monkeypatch: pytest.MonkeyPatch, little_memory: None) -> None:
    """Where the system drops files from memory or swaps, the step is slow, and nobody ends the process."""
    monkeypatch.setattr("safe_dtype.training.memory.fit_training.free_at_last", lambda: 2**30)
    with pytest.warns(SafeDtypeWarning, match="Nothing was changed"):
        train(MANY)


_LIMITED = """
import tempfile
import torch
from torch import nn
from safe_dtype import PrecisionGuard, TorchLoop, attach
from safe_dtype.errors import TrainingDoesNotFitError

torch.set_num_threads(1)

class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Sequential(nn.Linear(512, 512), nn.GELU()) for _ in range(16)))

    def forward(self, input_ids, labels=None):
        x = input_ids.float().unsqueeze(-1).expand(*input_ids.shape, 512).contiguous()
        return {"loss": self.layers(x).float().square().mean()}

how, room, tokens = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
model = Deep()
optimizer = torch.optim.AdamW(model.parameters())
rows = torch.ones(4, tokens // 4, dtype=torch.long)

def trainer():
    from transformers import Trainer, TrainingArguments
    args = TrainingArguments(folder.name, use_cpu=True, bf16=True, max_steps=2, per_device_train_batch_size=4, report_to=[],
                             save_strategy="no", disable_tqdm=True)
    data = [{"input_ids": row, "labels": row} for row in rows]
    return attach(Trainer(model, args, train_dataset=data))

def plain():
    for _ in range(2):
        model(rows)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()

def guarded():
    loop = TorchLoop(model, optimizer, "bfloat16")
    guard = PrecisionGuard(loop)
    for window in guard.windows([rows] * 2):
        for attempt in guard.attempts():
            with attempt:
                for batch in window:
                    with loop.autocast():
                        loss = model(batch)["loss"]
                    loop.backward(loss)
                optimizer.step()
                optimizer.zero_grad()

folder = tempfile.TemporaryDirectory()
run = trainer().train if how == "trainer" else {"plain": plain, "guarded": guarded}[how]
leave_room(room)
try:
    run()
    print("trained")
except TrainingDoesNotFitError as exc:
    print(exc)
"""


@pytest.mark.slow
@pytest.mark.skipif(not can_limit(), reason="no control group of memory can be made here")
@pytest.mark.parametrize(
    ("how", "room", "outcome"),
    [
        pytest.param("plain", 200, "killed", id="plain-is-killed"),
        pytest.param("guarded", 200, "refused", id="a-loop-is-not"),
        pytest.param("trainer", 200, "refused", id="a-Trainer-is-not"),
        pytest.param("guarded", 900, "trained", id="with-room-a-loop-trains"),
        pytest.param("trainer", 900, "trained", id="with-room-a-Trainer-trains"),
    ],
)
def test_a_real_limit(how: str, room: int, outcome: str) -> None:
    """In a control group the system kills a plain loop; one that is guarded ends with the bytes, before its first step."""
    done = run_limited(_LIMITED, how, str(room * 2**20), "8192", environment={"MALLOC_ARENA_MAX": "1"})
    if outcome == "killed":
        assert done.returncode == -9, done.stderr
        return
    assert done.returncode == 0, done.stderr
    assert ("the system would end the process" in done.stdout) == (outcome == "refused"), done.stdout
    assert ("trained" in done.stdout) == (outcome == "trained"), done.stdout
