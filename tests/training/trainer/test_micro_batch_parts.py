"""Micro-batches of a Trainer that run in parts, whatever they are made of; and what is said of those that cannot."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from training.trainer_runs import Fault, Setting, run
from transformers import BatchEncoding, Trainer
from transformers.data.data_collator import default_data_collator

from safe_dtype import SafeDtypeWarning
from safe_dtype.errors import TrainingDoesNotFitError
from safe_dtype.facts import BFLOAT16, FLOAT16, FLOAT32
from safe_dtype.training.memory.fit_step_down import plan_of_call
from safe_dtype.training.memory.model_call import ModelCall
from safe_dtype.training.trainer.micro_batch_parts import MicroBatchParts, why_not_split

FAULT = Fault(1, dtypes=(BFLOAT16, FLOAT16))
COMMON: dict[str, Any] = {
    "steps": 2,
    "arguments": {"per_device_train_batch_size": 4, "remove_unused_columns": False},
}


class TakesDict(nn.Module):
    """A model that takes its texts as a dict inside of its inputs."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        for layer in inner.model.layers:
            layer.self_attn.attention_dropout = 0.0  # what is drawn differs with the parts
        self.inner = inner

    def forward(self, text: Any, labels: torch.Tensor, **kwargs: Any) -> Any:
        """Return what the model inside does."""
        return self.inner(**text, labels=labels, **kwargs)


def nested(rows: list[Any]) -> dict[str, Any]:
    """Collate into a BatchEncoding inside of a dict."""
    batch = default_data_collator(rows)
    return {"text": BatchEncoding({"input_ids": batch["input_ids"]}), "labels": batch["labels"]}


def with_names(rows: list[Any]) -> dict[str, Any]:
    """Collate with a list of texts beside the tensors."""
    batch = nested(rows)
    return {**batch, "text": {**batch["text"], "names": ["a", "b"]}}


class Nested(Trainer):  # type: ignore[misc]  # transformers is not typed
    """A Trainer with nested inputs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, data_collator=nested, **kwargs)


def needed() -> list[int]:
    """Return what a step in float32 takes as it is, in two parts, and in four: such a model checkpoints no layers."""
    trainer = run(Setting(trainer=Nested, change=TakesDict, **{**COMMON, "steps": 1})).trainer
    batch = nested([trainer.train_dataset[row] for row in range(4)])
    plan = plan_of_call(ModelCall(trainer.model, (), batch), FLOAT32, [trainer.optimizer.optimizer], {"cpu": 1})
    assert plan is not None
    assert [way.rows for way, _ in plan.tried] == [4, 2, 1]
    return [size for _, size in plan.tried]


@pytest.mark.slow
def test_nested_inputs() -> None:
    """What lies deeper is taken apart as well: the run is the same but for the order of the sums."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the order in bfloat16, before the first step
        with pytest.warns(SafeDtypeWarning, match=r"2 micro-batches of 2 needs .* Going on so"):
            ours = run(Setting(FAULT, trainer=Nested, change=TakesDict, max_memory={"cpu": needed()[1]}, **COMMON))
    whole = run(Setting(FAULT, trainer=Nested, change=TakesDict, **COMMON))
    assert ours.error is whole.error is None
    assert ours.passes == whole.passes + 1
    for name in ("losses", "norms"):
        assert ours.everything()[name] == pytest.approx(whole.everything()[name], rel=1e-4)


@pytest.mark.slow
def test_what_cannot_be_taken_apart_is_told() -> None:
    """A run that nothing makes fit ends with the reason for which its micro-batches are whole."""

    class Whole(Trainer):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, data_collator=with_names, **kwargs)

    class Nameless(TakesDict):
        def forward(self, text: Any, labels: torch.Tensor, **kwargs: Any) -> Any:
            return super().forward({name: value for name, value in text.items() if name != "names"}, labels, **kwargs)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = run(Setting(FAULT, trainer=Whole, change=Nameless, max_memory={"cpu": 1000}, **COMMON))
    assert isinstance(ours.error, TrainingDoesNotFitError)
    assert ours.error.whole == "'names' has a str in it of which nobody knows what belongs to which row"
    assert f"(micro-batches are not run in parts: {ours.error.whole})" in str(ours.error)


def test_a_later_one_that_is_whole() -> None:
    """It runs whole, and that is warned of once; one of a single row cannot be smaller, and nothing is said."""
    parts, whole = MicroBatchParts(), {"a": torch.ones(4), "b": torch.ones(2)}
    assert [len(part["a"]) for part in parts.of({"a": torch.ones(4)}, 2)] == [2, 2]
    assert parts.of({"a": torch.ones(1)}, 2) == [{"a": torch.ones(1)}]
    with pytest.warns(SafeDtypeWarning, match="its tensors have 2 to 4 rows"):
        assert parts.of(whole, 2) == [whole]
    assert parts.of(whole, 2) == [whole]
    assert MicroBatchParts().of(whole, 1) == [whole]


class Loss(Trainer):  # type: ignore[misc]
    """A Trainer with a loss of its own."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Return the loss."""
        return super().compute_loss(*args, **kwargs)


def test_whose_losses_add_up() -> None:
    """Those of the Trainer and its model do, by the tokens of a step; each other loss is named."""
    trainer = run(Setting(steps=1)).trainer
    batch, counted = {"a": torch.ones(4)}, {"num_items_in_batch": torch.tensor(3)}
    assert why_not_split(trainer, batch, (), counted) == why_not_split(trainer, batch, (torch.tensor(3),), {}) == ""
    assert why_not_split(trainer, {"a": torch.ones(1)}, (), counted) == "it has one row"
    assert "the mean of a micro-batch" in why_not_split(trainer, batch, (), {})
    trainer.model.config.output_router_logits = True
    assert "routers" in why_not_split(trainer, batch, (), counted)
    trainer.model.config.output_router_logits = False
    trainer.model.norm_of_batches = nn.BatchNorm1d(2)
    assert "batch normalization" in why_not_split(trainer, batch, (), counted)
    trainer.compute_loss_func = lambda *_: None
    assert "compute_loss_func" in why_not_split(trainer, batch, (), counted)
    trainer.__class__ = Loss
    assert "Loss computes its loss itself" in why_not_split(trainer, batch, (), counted)
