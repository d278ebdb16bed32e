"""The loss of a run whose precision fails: as it is plainly, switched by hand at that step, and guarded. About a minute.

    python benchmarks/training_loss.py

The run is that of examples/fine_tune.py, with the Trainer, on one process. The last two have to be equal, bit for bit.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from results_file import write_results
from transformers import TrainerCallback

import safe_dtype
from safe_dtype.facts import FLOAT16
from safe_dtype.rendering.svg import BLUE, BROWN, GREY, INK, LINE, curve, document, horizontal, legend, text, vertical
from safe_dtype.training import switch_precision

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
from fine_tune import STEPS, TURNS_FROM, rows_of, trainer_in

_LEFT, _TOP, _WIDTH, _HEIGHT = 46, 48, 470, 200


class SwitchByHand(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Changes the precision before the step that would fail."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_step_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Look whether it is that step."""
        if state.global_step == TURNS_FROM:
            switch_precision(self.trainer.accelerator, FLOAT16)


def losses(change: Callable[[Any], object]) -> tuple[list[float], torch.Tensor]:
    """Return the loss of every step of a run, and its weights at the end."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_in(folder)
        change(trainer)
        with suppress(RuntimeError):  # of the plain one
            trainer.train()
    weights = torch.cat([weight.detach().flatten() for weight in trainer.model.parameters()])
    return [row["loss"] for row in rows_of(trainer)], weights


def plot(plain: Sequence[float], by_hand: Sequence[float], guarded: Sequence[float]) -> str:
    """Return an SVG of the losses over the steps."""
    lowest, highest = min(by_hand) - 0.1, max(by_hand) + 0.1

    def points(values: Sequence[float]) -> list[tuple[float, float]]:
        return [
            (
                _LEFT + step / (STEPS - 1) * _WIDTH,
                _TOP + (highest - value) / (highest - lowest) * _HEIGHT,
            )
            for step, value in enumerate(values)
        ]

    bottom, fails = _TOP + _HEIGHT, points(by_hand)[TURNS_FROM][0]
    x, y = points(plain)[-1]
    elements = [
        horizontal(bottom, _LEFT, _LEFT + _WIDTH, LINE),
        vertical(_LEFT, _TOP, bottom, LINE),
        vertical(fails, _TOP, bottom, LINE, style="dashed"),
        text(fails + 4, bottom - 6, "no kernel for bfloat16 from here on", colour=LINE),
        curve(points(by_hand), GREY, width=6),
        curve(points(guarded), BLUE, width=2),
        curve(points(plain), BROWN, width=2),
        text(x, y + 4, "x", anchor="middle", bold=True, colour=BROWN),
        *legend(
            34,
            [
                (_LEFT, "plain: ends", BROWN),
                (_LEFT + 90, "switched to float16 by hand", GREY),
                (_LEFT + 265, "guarded", BLUE),
            ],
        ),
        *(
            text(_LEFT - 6, points([value])[0][1] + 4, f"{value:.1f}", anchor="end", colour=INK)
            for value in (lowest, (lowest + highest) / 2, highest)
        ),
        *(
            text(points(by_hand)[step - 1][0], bottom + 16, str(step), anchor="middle", colour=INK)
            for step in (1, TURNS_FROM, STEPS)
        ),
        text(_LEFT + _WIDTH / 2, bottom + 32, "step of the optimizer", anchor="middle", colour=INK),
    ]
    return document(_LEFT + _WIDTH + 20, bottom + 42, elements, title="Loss of the bundled model, fine-tuned")


if __name__ == "__main__":
    plain, _ = losses(lambda _: None)
    by_hand, expected = losses(lambda trainer: trainer.add_callback(SwitchByHand(trainer)))
    guarded, weights = losses(safe_dtype.attach)
    figures = {
        "plain": plain, "by_hand": by_hand, "guarded": guarded,
        "largest_difference_of_losses": max(abs(a - b) for a, b in zip(by_hand, guarded, strict=True)),
        "largest_difference_of_weights": float((weights - expected).abs().max()),
    }  # fmt: skip
    file = write_results("training_loss", figures)
    file.with_suffix(".svg").write_text(plot(plain, by_hand, guarded), encoding="utf-8")
