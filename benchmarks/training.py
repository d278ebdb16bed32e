"""What the guard of a window of training costs when nothing fails.

    python benchmarks/training.py              # both parts, about 6 minutes
    python benchmarks/training.py single       # one part: single, ranks

The guard's own time is that of windows in which the loop computes nothing, but has all its gradients. Steps are whole ones
of a real model, plain and guarded in turn; of the difference between neighbours the median is given, with its quartiles.
Ranks: two processes under DistributedDataParallel on one machine, connected by gloo, one thread each; the vote is a part
of it.

What whole steps take, more exactly: benchmarks/training_steps.py.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import click
import torch
import torch.distributed as dist
import transformers
from results_file import write_results
from torch.nn.parallel import DistributedDataParallel

from safe_dtype import BFLOAT16, PrecisionGuard, TorchLoop
from safe_dtype.facts import Dtype

ROUNDS, WINDOWS = 6, 100
SHAPES = {"layers": 6, "hidden": 512, "vocabulary": 8000, "batch": 8, "tokens": 256}


class Still(torch.optim.Optimizer):
    """An optimizer whose step computes nothing."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})

    def step(self, closure: Any = None) -> Any:
        """Do nothing."""


class Training:
    """One model in training, a step at a time.

    Args:
        is_guarded: Whether by a guard.
        clips: Whether gradients are clipped.
        tokens: The shape of their rows, (batch, length); None: as `shapes` says.
        shapes: Of the model and a batch, as in `SHAPES`.
        ties_embeddings: Whether the last layer has the weight of the first.
        dtype: To train in.
        init_scale: Of float16's loss.

    Attributes:
        factor: Of the loss.
    """

    def __init__(  # noqa: PLR0913  (by name)
        self, *, is_guarded: bool = True, clips: bool = True, tokens: tuple[int, int] | None = None,
        shapes: Mapping[str, int] = SHAPES, ties_embeddings: bool = True, dtype: Dtype = BFLOAT16,
        init_scale: float = 2.0**16,
    ) -> None:  # fmt: skip
        torch.manual_seed(0)
        hidden = shapes["hidden"]
        config = transformers.Qwen3Config(
            vocab_size=shapes["vocabulary"], hidden_size=hidden, intermediate_size=3 * hidden,
            num_hidden_layers=shapes["layers"], num_attention_heads=hidden // 64, num_key_value_heads=hidden // 64,
            head_dim=64, tie_word_embeddings=ties_embeddings,
        )  # fmt: skip
        self.inner = transformers.Qwen3ForCausalLM(config)
        self.model: Any = DistributedDataParallel(self.inner) if dist.is_initialized() else self.inner
        self.optimizer = torch.optim.AdamW(self.inner.parameters(), lr=1e-4)
        self.loop = TorchLoop(self.model, self.optimizer, dtype, init_scale=init_scale)
        self.guard = PrecisionGuard(self.loop) if is_guarded else None
        self.clips, self.factor = clips, 1.0
        self.tokens = torch.randint(0, shapes["vocabulary"], tokens or (shapes["batch"], shapes["tokens"]))

    def step(self) -> float:
        """Make a step; return its seconds."""
        begin = time.perf_counter()
        if self.guard is None:
            self._body()
        else:
            for attempt in self.guard.attempts():
                with attempt:
                    self._body()
        return time.perf_counter() - begin

    def _body(self) -> None:
        with self.loop.autocast():
            loss = self.model(input_ids=self.tokens, labels=self.tokens).loss
        self.loop.backward(loss * self.factor)
        if self.clips:
            self.loop.clip_grad_norm_(self.inner.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def own_seconds(self) -> float:
        """Return the seconds that the guard takes for a window by itself: gradients are there, and nothing is computed."""
        parameters = list(self.inner.parameters())
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        still = Still(parameters)
        loop = TorchLoop(self.model, still)
        guard = PrecisionGuard(loop)
        norm = torch.tensor(1.0)
        begin = time.perf_counter()
        for _ in range(WINDOWS):
            for attempt in guard.attempts():
                with attempt:
                    attempt.loss(norm)
                    if self.clips:
                        attempt.norm(norm, parameters)
                    still.step()
        return (time.perf_counter() - begin) / WINDOWS


def measured(*, clips: bool) -> dict[str, Any]:
    """Return the guard's own time, a step's, and the difference that it makes to a step."""
    torch.set_num_threads(1)
    plain, guarded = Training(is_guarded=False, clips=clips), Training(is_guarded=True, clips=clips)
    rows = []
    for _ in range(ROUNDS):
        rows.append((plain.step(), guarded.step()))
        after = guarded.step()  # first in every other pair
        rows.append((plain.step(), after))
    rows = rows[2:]
    own = statistics.median(guarded.own_seconds() for _ in range(5))
    step = statistics.median(row[0] for row in rows)
    differences = [(after - before) / before for before, after in rows]
    return {
        **SHAPES, "parameters": sum(p.numel() for p in plain.inner.parameters()), "clips": clips, "steps": len(rows),
        "step_ms": round(step * 1e3, 1), "own_ms": round(own * 1e3, 3), "own_percent": round(100 * own / step, 3),
        "difference_percent": round(100 * statistics.median(differences), 2),
        "difference_percent_quartiles": [round(100 * one, 2) for one in statistics.quantiles(differences, n=4)],
    }  # fmt: skip


def single() -> list[dict[str, Any]]:
    """Return both kinds of loops, in one process."""
    return [measured(clips=clips) for clips in (True, False)]


def ranks() -> list[dict[str, Any]]:
    """Return both kinds of loops, on two ranks of this machine."""
    figures: list[dict[str, Any]] = start_ranks([sys.executable, __file__, "rank"])
    return figures


def start_ranks(command: list[str]) -> Any:
    """Run a command on two ranks of this machine; return what the first one prints, from json."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(command, env={**os.environ, **job, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit("a rank has failed")
    return json.loads(outputs[0].strip().splitlines()[-1])


PARTS: dict[str, Callable[[], Any]] = {"single": single, "ranks": ranks}


@click.command()
@click.argument("part", required=False, type=click.Choice([*PARTS, "rank"]))
def main(part: str | None) -> None:
    """Measure one part, or all of them."""
    if part == "rank":
        dist.init_process_group("gloo")
        click.echo(json.dumps(single()))
        dist.destroy_process_group()
        return
    for name in PARTS if part is None else (part,):
        click.echo(write_results(f"training_{name}", PARTS[name]()))


if __name__ == "__main__":
    main()
