"""A run that comes down to float32 in flight is made to fit before the first pass there, or ends with the bytes."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks.processes import run_ranks
from tiny_models import TINY
from torch import nn
from training.trainer_runs import Fault, Setting, difference, run

from safe_dtype import SafeDtypeWarning
from safe_dtype.errors import TrainingDoesNotFitError
from safe_dtype.facts import BFLOAT16, FLOAT16, FLOAT32
from safe_dtype.ranks import current_world
from safe_dtype.training import PrecisionGuard, TorchLoop
from safe_dtype.training.memory.fit_step_down import ModelCall, fit_step_down, plan_of_call

FAULT = Fault(2, dtypes=(BFLOAT16, FLOAT16))
TOKENS = torch.arange(3, 67)[None].expand(4, -1).contiguous()
BATCH = {"input_ids": TOKENS, "labels": TOKENS}


def parts() -> tuple[Any, torch.optim.Optimizer]:
    """Make a model and its optimizer."""
    torch.manual_seed(0)
    model = TINY["qwen3"].make().train()
    return model, torch.optim.AdamW(model.parameters(), 1e-3)


def needs(call: ModelCall, optimizer: torch.optim.Optimizer) -> list[int]:
    """Return what a step in float32 takes as it is, with half of the layers checkpointed, with all, and with fewer rows."""
    plan = plan_of_call(call, FLOAT32, [optimizer], {"cpu": 1})
    assert plan is not None
    needed = [needed for _, needed in plan.tried]
    assert needed[3] < needed[2] < needed[1] < needed[0]
    return needed


ROWS = {"per_device_train_batch_size": 8}


def said_at_first() -> Any:
    """What is said of the order in bfloat16, whose step takes as much here: before it is made."""
    return pytest.warns(SafeDtypeWarning, match=r"a step in bfloat16 .* Nothing was changed")


def of_a_run() -> list[int]:
    """Return that of the model of `run`, and a batch of it."""
    trainer = run(Setting(steps=1, arguments=ROWS)).trainer
    rows = torch.stack([trainer.train_dataset.tokens[row] for row in range(8)])
    return needs(ModelCall(trainer.model, (), {"input_ids": rows, "labels": rows}), trainer.optimizer.optimizer)


@pytest.mark.needs("transformers>=5.23")  # older ones checkpoint all layers or none
def test_a_trainer_goes_on_with_checkpointing() -> None:
    """Layers are checkpointed from that step on, with one warning before it, and no bit of the run differs for it."""
    with said_at_first(), pytest.warns(SafeDtypeWarning, match="every 2 layers checkpointed needs .* Going on so"):
        ours = run(Setting(FAULT, max_memory={"cpu": of_a_run()[1]}, arguments=ROWS))
    assert ours.error is None
    assert ours.trainer.model.is_gradient_checkpointing
    assert difference(ours.everything(), run(Setting(FAULT, arguments=ROWS)).everything()) == ""


@pytest.mark.slow
def test_a_trainer_goes_on_with_parts_of_micro_batches() -> None:
    """Their losses add up to that of the whole: the run is the same but for the order of the sums."""
    with said_at_first(), pytest.warns(SafeDtypeWarning, match=r"2 micro-batches of 4, .* needs .* Going on so"):
        ours = run(Setting(FAULT, max_memory={"cpu": of_a_run()[3]}, arguments=ROWS))
    whole = run(Setting(FAULT, arguments=ROWS))
    assert ours.error is None
    assert (ours.passes, whole.passes) == (whole.passes + 3, 7)
    for name in ("losses", "norms"):
        assert ours.everything()[name] == pytest.approx(
            whole.everything()[name], rel=0.3
        )  # dropout is drawn otherwise
    assert ours.trainer.state.global_step == 5


def test_nothing_makes_it_fit() -> None:
    """The run ends with the bytes, before a pass in float32; weights and optimizer are those of the last good step."""
    with said_at_first():
        ours = run(Setting(FAULT, max_memory={"cpu": 1000}))
    assert isinstance(ours.error, TrainingDoesNotFitError)
    assert (ours.error.dtype, ours.error.free_bytes, ours.passes) == ("float32", 1000, 4)
    assert {int(state["step"]) for state in ours.trainer.optimizer.state.values()} == {2}
    assert sum(size for _, size in ours.error.kinds) == ours.error.needed_bytes
    weights = sum(weight.numel() * 4 for weight in ours.trainer.model.parameters())
    assert dict(ours.error.kinds)["weights"] == weights
    assert f"weights {weights:,}" in str(ours.error)
    assert dict(pickle.loads(pickle.dumps(ours.error)).kinds) == dict(ours.error.kinds)


@pytest.mark.slow
def test_an_order_that_does_not_fit_is_said() -> None:
    """Before the first step of a run whose precision nobody has changed: it is warned of, and the run is as it was ordered."""
    with pytest.warns(SafeDtypeWarning, match=r"a step in bfloat16 .* Nothing was changed"):
        ours = run(Setting(max_memory={"cpu": 1000}))
    assert (ours.error, ours.passes) == (None, 5)
    assert not ours.trainer.model.is_gradient_checkpointing


class Logits(nn.Module):
    """A model that leaves the loss to its caller, called without names; in 16 bits it fails."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("\"gate_cpu\" not implemented for 'BFloat16'")
        logits: torch.Tensor = self.inner(input_ids=tokens).logits
        return logits

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Hand it on."""
        self.inner.activation_checkpointing_enable(**options)


def in_a_loop(max_memory: Mapping[str, int]) -> tuple[Any, PrecisionGuard, list[int]]:
    """Train in plain torch; return the model, its guard, and what a step takes."""
    inner, _ = parts()
    model = Logits(inner)
    optimizer = torch.optim.SGD(model.parameters(), 1e-2, momentum=0.9)
    seen: list[Any] = []
    model.register_forward_hook(lambda *called: seen.append(called[2]))
    needed = needs(ModelCall(model, (TOKENS,), {}), optimizer)
    assert seen == []
    loop = TorchLoop(model, optimizer)
    guard = PrecisionGuard(loop, max_memory=max_memory or {"cpu": needed[1]})
    for window in guard.windows([TOKENS] * 2):
        for attempt in guard.attempts():
            with attempt:
                for tokens in window:
                    with loop.autocast():
                        loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
                    loop.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
    return model, guard, needed


@pytest.mark.needs("transformers>=5.23")  # older ones checkpoint all layers or none
def test_a_loop_goes_on_with_checkpointing() -> None:
    """Under the user's own loop, too; hooks of others are not called while a step is looked at."""
    with pytest.warns(SafeDtypeWarning, match="every 2 layers checkpointed"):
        model, guard, _ = in_a_loop({})
    assert model.inner.is_gradient_checkpointing
    assert (guard.windows_done, guard.dtype) == (2, FLOAT32)


@pytest.mark.slow
def test_a_loop_is_told_what_would_fit() -> None:
    """Its micro-batches are its own: the error says how many rows would fit, and how many of them make one of now."""
    model = Logits(parts()[0])
    optimizer = torch.optim.SGD(model.parameters(), 1e-2, momentum=0.9)
    least = needs(ModelCall(model, (TOKENS,), {}), optimizer)[-1]
    with pytest.raises(TrainingDoesNotFitError, match="micro-batches of 1 fit, 4 in the place of each") as raised:
        in_a_loop({"cpu": least})
    assert raised.value.args[-2:] == (1, 4)
    assert sum(size for _, size in raised.value.kinds) == raised.value.needed_bytes


def on_ranks() -> tuple[bool, str]:
    """Make a step fit of which the first rank alone says that it does not; then one that fits on the second one nowhere."""
    model, optimizer = parts()
    call = ModelCall(model, (), BATCH)
    needed = needs(call, optimizer)[1]
    world, is_first = current_world(), dist.get_rank() == 0
    with pytest.warns(SafeDtypeWarning) if is_first else nullcontext():  # once for all ranks
        fit_step_down(call, FLOAT32, [optimizer], world=world, max_memory={"cpu": needed} if is_first else None)
    is_on = model.is_gradient_checkpointing
    try:
        fit_step_down(call, FLOAT32, [optimizer], world=world, max_memory=None if is_first else {"cpu": 1000})
    except TrainingDoesNotFitError as exc:
        return is_on, str(exc)
    return is_on, ""


@pytest.mark.slow
def test_all_ranks_do_the_same() -> None:
    """What one rank needs all do, and where it does not fit on one it ends all, with the same bytes."""
    first, second = run_ranks(on_ranks, 2)
    assert first == second
    assert first[0]
    assert "Next: train on a device with more memory" in first[1]  # shared out, it would not fit either
