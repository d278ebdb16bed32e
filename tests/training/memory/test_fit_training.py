"""A Trainer that would not fit in another dtype is made to, before it starts; and a step down is looked at in flight."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from tiny_models import TINY
from transformers import Trainer, TrainingArguments

from safe_dtype import SafeDtypeWarning
from safe_dtype.errors import TrainingDoesNotFitError
from safe_dtype.facts import FLOAT32, MemoryFacts
from safe_dtype.training.memory import Checkpointing, TrainingWay, trace_step
from safe_dtype.training.memory.fit_training import fit_trainer, plan_step_down

ROWS = [{"input_ids": torch.arange(3, 3 + 8 + row), "labels": torch.arange(3, 3 + 8 + row)} for row in range(8)]
LONGEST = {"input_ids": ROWS[7]["input_ids"].expand(4, -1), "labels": ROWS[7]["labels"].expand(4, -1)}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that says how much memory this machine has, as a cgroup would limit it."""

    def limit(size: float) -> None:
        memory = MemoryFacts(int(size / 0.9) + 8, int(size / 0.9) + 8, "cgroup")
        monkeypatch.setattr("safe_dtype.training.memory.fit_training.memory_of", lambda _: memory)

    return limit


def trainer(folder: Path, **options: Any) -> Any:
    """Make a Trainer of a tiny model: two rounds of four rows."""
    torch.manual_seed(0)
    args = TrainingArguments(
        str(folder), use_cpu=True, max_steps=2, per_device_train_batch_size=4, report_to=[], save_strategy="no",
        disable_tqdm=True, logging_steps=1, **options,
    )  # fmt: skip
    return Trainer(model=TINY["qwen3"].make(), args=args, train_dataset=ROWS, data_collator=padded)


def padded(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Pad to the longest."""
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad([row["input_ids"] for row in rows], batch_first=True),
        "labels": pad([row["labels"] for row in rows], batch_first=True, padding_value=-100),
    }


def held(model: Any) -> int:
    """Return the bytes of a model's weights and buffers."""
    return sum(
        {one.data_ptr(): one.numel() * one.itemsize for one in (*model.parameters(), *model.buffers())}.values()
    )


def losses(run: Any) -> list[float]:
    """Return the losses of a run."""
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def test_what_fits_is_left_alone(tmp_path: Path, free: Any) -> None:
    """Nothing is changed and nothing drawn; the longest of the first rows was looked at."""
    run = trainer(tmp_path)
    step = trace_step(run.model, LONGEST)
    free(step.needed_bytes - held(run.model))
    state = torch.get_rng_state()
    plan = fit_trainer(run, FLOAT32)
    assert plan is not None
    assert plan.tried == ((TrainingWay(4, 1), step.needed_bytes),)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.needs("transformers>=5.23")  # older ones checkpoint all layers or none
@pytest.mark.parametrize(
    ("way", "is_on"),
    [
        pytest.param(TrainingWay(4, 1, Checkpointing(2)), True, id="every-second-layer"),
        pytest.param(TrainingWay(2, 2, Checkpointing()), True, id="half-the-rows", marks=pytest.mark.slow),
    ],
)
def test_it_is_made_to_fit(way: TrainingWay, is_on: bool, tmp_path: Path, free: Any) -> None:
    """The Trainer trains so, on the same rows in the same order: losses and weights come near the plain ones."""
    plain = trainer(tmp_path)
    plain.train()
    AcceleratorState._reset_state(True)
    run = trainer(tmp_path)
    batch = {name: value[: way.rows] for name, value in LONGEST.items()}
    needed = trace_step(run.model, batch, checkpointing=way.checkpointing, accumulates=way.accumulation > 1)
    free(needed.needed_bytes - held(run.model))
    with pytest.warns(SafeDtypeWarning, match=f"{way} needs .* Training so"):
        fit_trainer(run, FLOAT32)
    args = run.args
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (way.rows, way.accumulation)
    run.train()
    assert run.model.is_gradient_checkpointing == is_on
    assert losses(run) == pytest.approx(losses(plain), abs=1e-3)


@pytest.mark.slow
def test_nothing_makes_it_fit(tmp_path: Path, free: Any) -> None:
    """It is refused before it starts, with the bytes, and the Trainer is as it was."""
    run = trainer(tmp_path)
    free(1000)
    with pytest.raises(TrainingDoesNotFitError, match="Next: train on a device with more memory"):
        fit_trainer(run, FLOAT32)
    assert (run.args.per_device_train_batch_size, run.args.gradient_checkpointing) == (4, False)


def test_data_that_cannot_be_looked_at(tmp_path: Path, free: Any) -> None:
    """A stream of rows is left to the Trainer: nobody knows, and nothing is consumed."""
    run = trainer(tmp_path)
    run.train_dataset = iter(ROWS)
    free(1000)
    assert fit_trainer(run, FLOAT32) is None
    assert len(list(run.train_dataset)) == 8


@pytest.mark.needs("transformers>=5.23")  # older ones checkpoint all layers or none
def test_a_step_down_in_flight(free: Any) -> None:
    """What the process holds already counts as free; rows are as they are, and checkpointing may help."""
    model = TINY["qwen3"].make()
    optimizer = torch.optim.AdamW(model.parameters())
    model(**LONGEST).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    moments = sum(one.numel() * 4 for state in optimizer.state.values() for one in state.values())
    needed = trace_step(model, LONGEST).needed_bytes - held(model) - moments
    free(needed)
    assert plan_step_down(model, LONGEST, FLOAT32, optimizer).is_as_ordered
    free(needed - 100)
    assert plan_step_down(model, LONGEST, FLOAT32, optimizer).way == TrainingWay(4, 1, Checkpointing(2))
