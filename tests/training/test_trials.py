"""Each trial of a search for hyperparameters begins in the precision that was asked for, and loses no step either."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState
from training.trainer_runs import Fault, Injector, SwitchByHand, Texts, difference
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainingArguments
from transformers.trainer_utils import HPSearchBackend

import safe_dtype
from safe_dtype.facts import BFLOAT16, FLOAT16, FLOAT32


def make(*_: Any) -> LlamaForCausalLM:
    """Make a tiny model."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 64}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2))


@dataclass
class Trial:
    """A trial as those of Optuna are, which is not installed here."""

    number: int
    params: dict[str, float]


def test_each_trial_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure in one trial is none of the next, which fails by itself; rates are those of the trials."""
    arguments = TrainingArguments(
        str(tmp_path), bf16=True, use_cpu=True, max_steps=3, logging_steps=1, report_to=[], save_strategy="no",
        disable_tqdm=True, per_device_train_batch_size=2, lr_scheduler_type="constant",
    )  # fmt: skip
    trainer = Trainer(args=arguments, model_init=make, train_dataset=Texts())
    trainer.pop_callback(PrinterCallback)
    safe_dtype.attach(trainer)
    trainer.hp_search_backend, trainer.hp_space = HPSearchBackend.OPTUNA, lambda trial: trial.params
    monkeypatch.setattr("transformers.integrations.hp_params", lambda trial: trial.params)  # it asks Optuna
    seen = []
    for number, rate in enumerate((1e-3, 2e-3)):
        injectors: list[Injector] = []
        call_model_init = type(trainer).call_model_init

        def with_fault(trial: Any, make_model: Any = call_model_init, put: list[Injector] = injectors) -> Any:
            trainer.model = make_model(trainer, trial)
            put.append(Injector(trainer, Fault(1)))
            return trainer.model

        trainer.call_model_init = with_fault
        trainer.train(trial=Trial(number, {"learning_rate": rate}))
        rows = [row for row in trainer.state.log_history if "loss" in row]
        seen.append([(row["precision"], row["fallbacks"], row["learning_rate"]) for row in rows])
    rows = [("bfloat16", 0), ("float16", 1), ("float16", 1)]
    assert seen == [[(*row, rate) for row in rows] for rate in (1e-3, 2e-3)]


class MadeAnew(Trainer):  # type: ignore[misc]
    """A Trainer whose model is made as each run of it begins, with a fault in it or without."""

    fault: Fault | None = None

    def call_model_init(self, trial: Any = None) -> Any:
        """Make it."""
        self.model = super().call_model_init(trial)
        Injector(self, self.fault)
        return self.model


def test_a_model_that_is_made_as_training_begins(tmp_path: Path) -> None:
    """Both runs of a Trainer of `model_init`, each with a model of its own, are those of one that was switched by hand."""
    runs: list[list[Any]] = []
    for is_attached in (True, False):
        AcceleratorState._reset_state(True)
        arguments = TrainingArguments(
            str(tmp_path), bf16=True, use_cpu=True, max_steps=2, logging_steps=1, report_to=[], save_strategy="no",
            disable_tqdm=True, per_device_train_batch_size=2,
        )  # fmt: skip
        trainer = MadeAnew(args=arguments, model_init=make, train_dataset=Texts())
        trainer.pop_callback(PrinterCallback)
        if is_attached:
            safe_dtype.attach(trainer)
            trainer.fault = Fault(1, dtypes=(BFLOAT16, FLOAT16))
        else:
            trainer.add_callback(SwitchByHand(trainer, 1, FLOAT32))
        runs.append([])
        for _ in range(2):
            trainer.train()
            runs[-1].append(trainer.model.state_dict())
            runs[-1].append([row["loss"] for row in trainer.state.log_history if "loss" in row])
    assert difference(runs[0], runs[1]) == ""
