"""What float16 with scaled products costs: a step with one, half and all linear layers scaled, and the passes until it begins.

    python benchmarks/training_rescaled.py       # 70 s

A Qwen3 of 7 million parameters, plain torch under a guard, gradients clipped. Steps of all kinds take turns, in another order in
each round; of each kind the median of its ratios to the plain float16 step of the same round, with quartiles. The last layers
are scaled first. A CPU without float16 arithmetic computes a float16 product slowly, so that ratios are smaller there than
where products are quick: the seconds are given too, and the steps in float32 that the scaled ones are in place of.

Passes: how often a window is run forward and backward until its step is made, less the one that it takes anyway.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from typing import Any

import click
import torch
from results_file import write_results
from torch import nn
from training import Training

from safe_dtype import BFLOAT16, FLOAT16, FLOAT32, PrecisionGuard
from safe_dtype.facts import Dtype

SHAPES = {"layers": 4, "hidden": 256, "vocabulary": 4000, "batch": 4, "tokens": 128}


class _Gate(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute what CPUs have in no 16 bits."""
        gated: torch.Tensor = x * torch.special.log_ndtr(x).exp()
        return gated


class Rescaled(Training):
    """One model in training under a guard, whose passes are counted."""

    guard: PrecisionGuard

    def __init__(self, dtype: Dtype = FLOAT16) -> None:
        super().__init__(shapes=SHAPES, ties_embeddings=False, dtype=dtype, init_scale=1024.0)
        self.passes = 0

    def names(self) -> list[str]:
        """Return the linear layers, the last one first."""
        return [name for name, module in self.inner.named_modules() if isinstance(module, nn.Linear)][::-1]

    def _body(self) -> None:
        self.passes += 1
        super()._body()


def cost(seconds: float) -> dict[str, Any]:
    """Return what a step of each kind takes beside the plain one."""
    torch.set_num_threads(2)
    trained = {dtype: Rescaled(dtype) for dtype in (FLOAT16, BFLOAT16, FLOAT32)}
    layers = trained[FLOAT16].names()
    scaled = {"float16": 0, "one layer scaled": 1, "half scaled": len(layers) // 2, "all scaled": len(layers)}
    times: dict[str, list[float]] = {name: [] for name in (*scaled, "bfloat16", "float32")}
    order, draw, end = [*times], random.Random(0), time.perf_counter() + seconds
    while time.perf_counter() < end:
        draw.shuffle(order)
        for name in order:
            if name in scaled:
                trained[FLOAT16].guard.rescale(layers[: scaled[name]])
                times[name].append(trained[FLOAT16].step())
            else:
                times[name].append(trained[BFLOAT16 if name == "bfloat16" else FLOAT32].step())
    assert not any(one.guard.events for one in trained.values())
    plain = times["float16"][1:]
    rows = {
        name: {
            "layers_scaled": scaled.get(name, 0),
            "step_ms": round(1e3 * statistics.median(taken[1:]), 1),
            "of_the_plain_step": round(statistics.median(a / b for a, b in zip(taken[1:], plain, strict=True)), 3),
            "quartiles": [
                round(ratio, 3)
                for ratio in statistics.quantiles([a / b for a, b in zip(taken[1:], plain, strict=True)], n=4)
            ],
        }
        for name, taken in times.items()
    }
    return {**SHAPES, "linear_layers": len(layers), "rounds": len(plain), "steps": rows}


def passes() -> dict[str, Any]:
    """Return how many more passes a window takes in which something fails."""
    counted = {}
    trained = Rescaled()
    trained.factor = 2.0**8
    trained.step()
    counted["gradients overflow with the loss scale"] = _counted(trained)
    trained = Rescaled()
    with torch.no_grad():
        trained.inner.lm_head.weight *= 1e6
    trained.step()
    counted["a product overflows in forward: it is scaled"] = _counted(trained)
    for dtype in (BFLOAT16, FLOAT16):
        trained = Rescaled(dtype)
        trained.inner.model.layers[1].mlp.act_fn = _Gate()
        trained.step()
        counted[f"an operation has no kernel in 16 bits, from {dtype}"] = _counted(trained)
    return counted


def _counted(trained: Rescaled) -> dict[str, Any]:
    guard = trained.guard
    remedies = [f"{event.before} {event.remedy}" for event in guard.events]
    return {"more_passes": trained.passes - guard.windows_done, "goes_on_in": str(guard.dtype), "remedies": remedies}


@click.command(help=__doc__)
@click.option("--seconds", default=60.0, show_default=True, help="Of steps.")
def main(seconds: float) -> None:
    """Measure both."""
    figures = {"passes": passes(), "cost": cost(seconds)}
    click.echo(json.dumps(figures))
    click.echo(write_results("training_rescaled", figures))


if __name__ == "__main__":
    main()
