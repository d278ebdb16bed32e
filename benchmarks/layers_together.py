"""A token by layers that are computed together, and by the same layers each by itself, in turn in one process.

    python benchmarks/layers_together.py FOLDER [--cpu bare] [--policy int8] [--sizes 128 40 5]

FOLDER holds a checkpoint; where there is none, one of Qwen3-0.6B's shape is made there, random, in bfloat16. Before and after, the
process measures how fast it reads memory: what a token reads at that speed is the limit.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import click
from cast_up import answer
from generation import CPUS, in_child, limits, make_checkpoint
from of_limits import read_for_a_token
from results_file import RESULTS, write_results

WAYS = {"together": True, "each by itself": False}


def in_turn(folder: str, policy: str, length: int, new: int, turns: int) -> dict[str, Any]:
    """Let both ways answer in turn; return milliseconds a token."""
    import torch
    import transformers

    from safe_dtype import SafeAutoModelForCausalLM, plan_of
    from safe_dtype.decoding.decoder_stack import DecoderStack

    transformers.utils.logging.disable_progress_bar()
    workload = ",".join([policy, f"prompt={length}", f"new={new}"]).strip(",")
    model = SafeAutoModelForCausalLM.from_pretrained(folder, policy=workload).eval()
    torch.manual_seed(1)
    prompt = torch.randint(100, model.config.vocab_size, (1, length))
    together = DecoderStack.computed
    milliseconds: dict[str, list[float]] = {way: [] for way in WAYS}
    tokens = set()
    sooner = limits()["read_bytes_per_s"]
    for turn in range(turns + 1):
        for way, is_together in WAYS.items():
            DecoderStack.computed = together if is_together else lambda *_: None  # type: ignore[method-assign]
            _, seconds, answered = answer(model, prompt, new)
            tokens.add(tuple(answered))
            if turn:  # the first compiles what is needed
                milliseconds[way].append(1e3 * seconds)
    best = max(sooner, limits()["read_bytes_per_s"])
    limit = 1e3 * read_for_a_token(model, length + new // 2) / best
    ratios = [one / other for one, other in zip(*milliseconds.values(), strict=True)]
    return {
        "plan": plan_of(model).what,
        **{way: {"median": statistics.median(of_way), "least": min(of_way)} for way, of_way in milliseconds.items()},
        "ratio": statistics.median(ratios),
        "same tokens": len(tokens) == 1,
        "read_bytes_per_s": best,
        "limit_ms": limit,
        "of_limit": limit / statistics.median(milliseconds["together"]),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
    }


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--cpu", type=click.Choice(list(CPUS)), default="bare", show_default=True)
@click.option("--policy", default="", help="Beside the workload.")
@click.option("--sizes", type=(int, int, int), default=(128, 40, 5), show_default=True, help="Prompt, new, turns.")
def main(*, folder: Path, cpu: str, policy: str, sizes: tuple[int, int, int]) -> None:
    """Measure, and write a row beside those that the file of results holds already."""
    if not (folder / "config.json").exists():
        make_checkpoint(folder, "bfloat16")
    file = RESULTS / "layers_together.json"
    rows = json.loads(file.read_text())["figures"] if file.exists() else {}
    rows[f"{cpu}, {policy or 'as saved'}"] = row = in_child(__file__, cpu, folder, policy, *sizes)
    click.echo(json.dumps(row, indent=1))
    click.echo(write_results("layers_together", rows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        sys.stdout.write(json.dumps(in_turn(sys.argv[2], sys.argv[3], *map(int, sys.argv[4:]))) + "\n")
    else:
        main()
