"""Between the micro-batches of one window a Trainer calls back, draws random numbers, ends an epoch: nothing differs for that."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from training.trainer_runs import Fault, Setting, Texts, difference, run
from transformers import Trainer, TrainerCallback

from safe_dtype.facts import BFLOAT16, FLOAT16, FLOAT32

SIXTEEN_BITS = (BFLOAT16, FLOAT16)


class Drawing(TrainerCallback):  # type: ignore[misc]
    """Draws from every generator between two micro-batches, and once a step from torch's."""

    def on_substep_end(self, *_: Any, **__: Any) -> None:
        """Draw."""
        torch.rand(5)
        random.random()
        np.random.rand(2)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Draw one."""
        torch.rand(1)


class Stream(torch.utils.data.IterableDataset[Any]):
    """Rows without a length, which begin anew where they end."""

    def __init__(self, texts: Texts, rows: int) -> None:
        self.texts, self.rows = texts, rows

    def __iter__(self) -> Iterator[Any]:
        for place in range(self.rows):
            yield self.texts[place]


class Streaming(Trainer):  # type: ignore[misc]
    """A Trainer of three micro-batches an epoch, which logs and evaluates as one ends."""

    def __init__(self, *args: Any, train_dataset: Any, **kwargs: Any) -> None:
        super().__init__(*args, train_dataset=Stream(train_dataset, 6), eval_dataset=train_dataset, **kwargs)


CASES = [
    pytest.param(Fault(2, kind, dtypes, micro), dtype, id=f"{kind}-{micro}-{dtype}")
    for kind, micro in (("raise", 0), ("raise", 1), ("backward", 1), ("nan", 0), ("raise", 2))
    for dtypes, dtype in (((BFLOAT16,), FLOAT16), (SIXTEEN_BITS, FLOAT32))
]


@pytest.mark.parametrize(("fault", "dtype"), CASES)
def test_numbers_that_are_drawn_between_micro_batches(fault: Fault, dtype: Any) -> None:
    """By a callback: those of the failed window are drawn once, and what comes after them is as it would be."""
    common: dict[str, Any] = {"accumulation": 3, "callbacks": (Drawing,)}
    ours = run(Setting(fault, **common))
    by_hand = run(Setting(by_hand=(fault.step, dtype), attached=False, **common))
    assert ours.error is by_hand.error is None
    assert difference(ours.everything(), by_hand.everything()) == ""
    assert ours.rows[-1]["fallbacks"] == (1 if dtype == FLOAT16 else 2)


@pytest.mark.parametrize("micro", [0, 1])
@pytest.mark.parametrize("kind", ["raise", "nan"])
@pytest.mark.parametrize("evaluates", [False, True])
def test_a_window_of_two_epochs(kind: str, micro: int, evaluates: bool) -> None:
    """What is left of one epoch is stepped with the first micro-batches of the next: each by its own share, and logged once."""
    common: dict[str, Any] = {
        "accumulation": 2, "trainer": Streaming, "steps": 4,
        "arguments": {"eval_strategy": "epoch" if evaluates else "no", "logging_steps": 1},
    }  # fmt: skip
    ours = run(Setting(Fault(1, kind, micro=micro), **common))
    by_hand = run(Setting(by_hand=(1, FLOAT16), attached=False, **common))
    assert ours.error is by_hand.error is None
    assert difference(ours.everything(), by_hand.everything()) == ""
    assert ours.rows[-1]["fallbacks"] == 1


class Logging(Trainer):  # type: ignore[misc]
    """Logs a row in each of its losses."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Return the loss, and log it."""
        loss = super().compute_loss(*args, **kwargs)
        self.log({"own": loss.item()})
        return loss


@pytest.mark.parametrize(("kind", "micro"), [("nan", 0), ("backward", 1)])
def test_rows_that_a_step_logs(kind: str, micro: int) -> None:
    """What a failed attempt has logged itself is not in the log, and what it logs again is there once."""
    ours = run(Setting(Fault(2, kind, micro=micro), accumulation=2, trainer=Logging))
    by_hand = run(Setting(by_hand=(2, FLOAT16), attached=False, accumulation=2, trainer=Logging))
    assert ours.error is by_hand.error is None
    own, right = ([row["own"] for row in one.trainer.state.log_history if "own" in row] for one in (ours, by_hand))
    assert own == right
