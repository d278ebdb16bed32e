"""Where the milliseconds of a prompt and of one token go, in plain transformers and with safe_dtype.

    python benchmarks/profile_token.py           # random weights of Qwen3-0.6B's shape, about 3 minutes
    python benchmarks/profile_token.py avx2      # as an older CPU would run it

Every loader runs in a process of its own. Each group's time is its own: what another group does inside it is that
group's. Timers stand around functions of classes, so that modules are called as ever; they cost about a millisecond of
a token, which is in "rest". A layer that is computed in one go without them is computed module by module here.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from generation import CPUS, make_checkpoint, peak_bytes
from results_file import write_results

LOADERS = ("auto", "safe_dtype")
PROMPT, NEW_TOKENS, REPEATS = 512, 64, 1
GROUPS = ("products", "attention", "cache", "norms", "rotary", "rest", "guard", "generate")


class Stopwatches:
    """Seconds by group, each without those of the groups inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside = ["generate"]
        self._since = time.perf_counter()

    def turn(self) -> float:
        """Book the time since the last turn on the innermost group; return now."""
        now = time.perf_counter()
        self.seconds[self._inside[-1]] += now - self._since
        self._since = now
        return now

    def timed(self, group: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function` whose time is booked on `group`."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            self.turn()
            self._inside.append(group)
            try:
                return function(*args, **kwargs)
            finally:
                self.turn()
                self._inside.pop()

        return call

    def taken(self) -> dict[str, float]:
        """Return the milliseconds of each group since this was last asked."""
        self.turn()
        taken = {group: 1e3 * self.seconds.pop(group, 0.0) for group in GROUPS}
        assert not self.seconds, self.seconds
        return taken


class ByToken:
    """A streamer that asks the stopwatches when each token comes."""

    def __init__(self, watches: Stopwatches) -> None:
        self._watches = watches
        self.rows: list[dict[str, float]] = []

    def put(self, _value: Any) -> None:
        """Note what the token has taken."""
        self.rows.append(self._watches.taken())

    def end(self) -> None:
        """Nothing is left to write."""


def put_timers_on(watches: Stopwatches) -> None:
    """Have all that runs in a Qwen3 timed, before one is loaded."""
    from torch import nn
    from torch.nn import functional
    from transformers import cache_utils
    from transformers.models.qwen3 import modeling_qwen3 as qwen3

    # Not `forward`, for blocks are multiplied only where that is torch's own.
    nn.Linear.__call__ = watches.timed("products", nn.Module.__call__)  # type: ignore[method-assign]
    cache_utils.Cache.update = watches.timed("cache", cache_utils.Cache.update)
    functional.scaled_dot_product_attention = watches.timed("attention", functional.scaled_dot_product_attention)
    qwen3.Qwen3RMSNorm.__call__ = watches.timed("norms", nn.Module.__call__)
    qwen3.Qwen3RotaryEmbedding.__call__ = watches.timed("rotary", nn.Module.__call__)
    qwen3.apply_rotary_pos_emb = watches.timed("rotary", qwen3.apply_rotary_pos_emb)
    qwen3.Qwen3ForCausalLM.forward = watches.timed("rest", qwen3.Qwen3ForCausalLM.forward)


def profiled(folder: str, loader: str) -> dict[str, Any]:
    """Load once, generate, and return the median milliseconds of each group. Runs in a process of its own."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    watches = Stopwatches()
    put_timers_on(watches)
    if loader == "safe_dtype":
        from safe_dtype import SafeAutoModel

        entries = importlib.import_module("safe_dtype.guarding.entries.put_on")
        entries.guarded_step = watches.timed("guard", entries.guarded_step)  # type: ignore[attr-defined]
        attention = importlib.import_module("safe_dtype.guarding.entries.attention_of_steps")
        attention.attention_by_rows = watches.timed("attention", attention.attention_by_rows)  # type: ignore[attr-defined]
        model = SafeAutoModel.from_pretrained(folder).eval()
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=loader).eval()
    torch.manual_seed(1)
    prompt = torch.randint(100, model.config.vocab_size, (1, PROMPT))
    _generate(model, prompt[:, :32], 3, watches)
    runs = [_generate(model, prompt, NEW_TOKENS, watches) for _ in range(REPEATS)]
    tokens = [row for run in runs for row in run[2:]]
    return {
        "loader": loader,
        "threads": torch.get_num_threads(),
        "prompt_ms": _medians([run[1] for run in runs]),
        "token_ms": _medians(tokens),
        "peak_bytes": peak_bytes(),
    }


def _generate(model: Any, prompt: Any, new_tokens: int, watches: Stopwatches) -> list[dict[str, float]]:
    import torch

    by_token = ByToken(watches)
    watches.taken()
    with torch.inference_mode():
        model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new_tokens, min_new_tokens=new_tokens,
            do_sample=False, streamer=by_token, pad_token_id=0,
        )  # fmt: skip
    return by_token.rows


def _medians(rows: list[dict[str, float]]) -> dict[str, float]:
    medians = {group: round(statistics.median(row[group] for row in rows), 2) for group in GROUPS}
    return {**medians, "sum": round(statistics.median(sum(row.values()) for row in rows), 1)}


@contextlib.contextmanager
def checkpoint() -> Iterator[str]:
    """Give a folder with the checkpoint: that of the environment variable CHECKPOINT, or a new one."""
    if folder := os.environ.get("CHECKPOINT"):
        yield folder
        return
    with tempfile.TemporaryDirectory() as made:
        make_checkpoint(Path(made), "bfloat16")
        yield made


def main(cpu: str = "bare") -> None:
    """Profile every loader in a child, and write the result file."""
    rows = []
    with checkpoint() as folder:
        for loader in LOADERS:
            code = f"from profile_token import json, profiled; print(json.dumps(profiled({folder!r}, {loader!r})))"
            run = subprocess.run(
                [sys.executable, "-c", code], cwd=Path(__file__).parent, env={**os.environ, **CPUS[cpu]},
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            rows.append(json.loads(run.stdout.splitlines()[-1]))
            click.echo(rows[-1], err=True)
    load = os.getloadavg()[0] - rows[0]["threads"]
    write_results(f"profile_{cpu}", {"cpu": cpu, "load_of_others": round(max(0.0, load), 1), "rows": rows})


if __name__ == "__main__":
    main(*sys.argv[1:])
