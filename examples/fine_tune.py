"""Fine-tune the bundled model in bfloat16, through an operation that has no bfloat16 kernel: no step is lost.

From the tenth step on the model turns its last hidden states in the complex plane, with `torch.complex`, which torch
has for float16 and float32 and not for bfloat16. Plainly the run ends there:

    python examples/fine_tune.py trainer --plain

Guarded it goes on from that very step in float16, with a loss scale; with the Trainer, with a loop on accelerate, and
with LoRA on a base in bfloat16. On any number of processes:

    python examples/fine_tune.py trainer
    python examples/fine_tune.py accelerate
    python examples/fine_tune.py lora
    ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 examples/fine_tune.py trainer
"""

from __future__ import annotations

import argparse
import pydoc_data.topics
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import safe_dtype

SOURCE = Path(__file__).parent / "tiny-qwen3"
STEPS, TURNS_FROM, BATCH, ACCUMULATION, TOKENS = 24, 10, 2, 2, 48
RATE = 1e-3


class Turn(nn.Module):
    """Turns pairs of channels by a learned angle, from the moment that `is_on`; before that it is not there."""

    def __init__(self, norm: nn.Module, channels: int) -> None:
        super().__init__()
        self.norm, self.angle, self.is_on = norm, nn.Parameter(torch.zeros(channels // 2)), False

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return hidden states of the same shape, (batch, tokens, channels)."""
        hidden = self.norm(hidden)
        if not self.is_on:
            return hidden
        hidden = hidden.to(self.dtype_now())
        turned = torch.complex(hidden[..., 0::2], hidden[..., 1::2]) * torch.polar(
            torch.ones_like(self.angle), self.angle
        )
        return torch.view_as_real(turned).flatten(-2)

    def dtype_now(self) -> torch.dtype:
        """Return the dtype of the autocast around it."""
        device = self.angle.device.type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32


def load() -> tuple[Any, Turn]:
    """Return the model, and the module in it that will have no kernel."""
    model = AutoModelForCausalLM.from_pretrained(SOURCE, dtype=torch.float32)
    turn = model.model.norm = Turn(model.model.norm, model.config.hidden_size)
    return model, turn


def texts() -> list[dict[str, torch.Tensor]]:
    """Return windows of the documentation inside Python, tokenized."""
    tokens = AutoTokenizer.from_pretrained(SOURCE)("\n".join(pydoc_data.topics.topics.values()), return_tensors="pt")
    windows = tokens["input_ids"][0].unfold(0, TOKENS, TOKENS)
    return [{"input_ids": window, "labels": window} for window in windows[: STEPS * BATCH * ACCUMULATION * 4]]


class TurnOn(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Begins to turn at a step."""

    def __init__(self, turn: Turn) -> None:
        self.turn = turn

    def on_step_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Look whether it is that step."""
        self.turn.is_on = state.global_step >= TURNS_FROM


def trainer_in(folder: str, prepare: Callable[[Any], Any] = lambda model: model) -> Any:
    """Return a Trainer that knows nothing of safe_dtype."""
    model, turn = load()
    arguments = TrainingArguments(
        folder, bf16=True, use_cpu=True, max_steps=STEPS, per_device_train_batch_size=BATCH, learning_rate=RATE,
        gradient_accumulation_steps=ACCUMULATION, logging_steps=1, save_strategy="no", report_to=[], disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(prepare(model), arguments, train_dataset=texts(), callbacks=[TurnOn(turn)])
    trainer.pop_callback(PrinterCallback)
    return trainer


def rows_of(trainer: Any) -> list[dict[str, Any]]:
    """Return the rows of losses in its log."""
    return [row for row in trainer.state.log_history if "loss" in row]


def with_trainer(*, plain: bool, prepare: Callable[[Any], Any] = lambda model: model) -> list[dict[str, Any]]:
    """Train with the Trainer; return the rows of its log."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_in(folder, prepare)
        if not plain:
            safe_dtype.attach(trainer)
        trainer.train()
    return rows_of(trainer)


def with_lora(*, plain: bool) -> list[dict[str, Any]]:
    """Train float32 adapters on a base in bfloat16; return the rows of the log."""
    from peft import LoraConfig, get_peft_model

    def adapted(model: Any) -> Any:
        return get_peft_model(
            model.bfloat16(), LoraConfig(r=8, target_modules="all-linear"), autocast_adapter_dtype=True
        )

    return with_trainer(plain=plain, prepare=adapted)


def with_accelerate(*, plain: bool) -> list[dict[str, Any]]:
    """Train with a loop of one's own on accelerate; return a row for each step."""
    unused = DistributedDataParallelKwargs(
        find_unused_parameters=True
    )  # the angles, at first; the Trainer sets it itself
    accelerator = Accelerator(
        mixed_precision="bf16", cpu=True, gradient_accumulation_steps=ACCUMULATION, kwargs_handlers=[unused]
    )
    torch.manual_seed(0)
    model, turn = load()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    batches: Any = DataLoader(texts(), BATCH, shuffle=True)  # type: ignore[arg-type]  # a list is a data set
    model, optimizer, batches = accelerator.prepare(model, optimizer, batches)
    guard = safe_dtype.PrecisionGuard(accelerator, model)
    rows: list[dict[str, Any]] = []
    for window in guard.windows(batches, ACCUMULATION):
        turn.is_on = len(rows) >= TURNS_FROM
        for attempt in [nullcontext()] if plain else guard.attempts():
            with attempt:
                losses = []
                for batch in window:
                    with accelerator.accumulate(model):
                        loss = model(**batch).loss
                        accelerator.backward(loss)
                        optimizer.step()
                        optimizer.zero_grad()
                        losses.append(loss.item())
        rows.append({"loss": sum(losses) / len(losses), "precision": guard.dtype.name})
        if len(rows) == STEPS:
            break
    return rows


WAYS = {"trainer": with_trainer, "accelerate": with_accelerate, "lora": with_lora}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--plain", action="store_true", help="without safe_dtype: the run ends at the missing kernel")
    options = parser.parse_args()
    table = WAYS[options.way](plain=options.plain)
    if Accelerator().is_main_process:
        for step, row in enumerate(table, 1):
            print(f"step {step:2}: loss {row['loss']:.3f} in {row.get('precision', 'bfloat16')}")  # noqa: T201
