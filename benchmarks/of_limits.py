"""How near a whole model comes to the limits of its machine: a prompt, a token, and the peak of memory.

    python benchmarks/of_limits.py FOLDER [--part "bare, as saved"] [--prompt 512] [--new 32] [--repeats 3]

FOLDER holds a checkpoint; where there is none, one of Qwen3-0.6B's shape is made there, random, in bfloat16. Each part runs in
a process of its own, which measures the limits right before and right after: how fast it reads memory, and the best rate of a
product in any dtype. Peaks are those of the process from before the load until the last token, less what it had before, so that
Python, torch and transformers do not count. A part writes its row beside those that the file of results holds already.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from generation import in_child, limits, make_checkpoint, peak_bytes, timed
from results_file import RESULTS, write_results

_RESET = Path("/proc/self/clear_refs")
PARTS = {
    f"{cpu}, {what}": (cpu, policy)
    for cpu in ("bare", "avx2")
    for what, policy in (("as saved", ""), ("int8", "int8"))
}


def measure(folder: str, policy: str, prompt: int, new: int, repeats: int) -> dict[str, Any]:
    """Load and generate; return the figures of one part."""
    import torch
    import transformers

    from safe_dtype import SafeAutoModelForCausalLM, plan_of

    transformers.utils.logging.disable_progress_bar()
    workload = ",".join([policy, f"prompt={prompt}", f"new={new}"]).strip(",")
    tiny = Path(__file__).resolve().parent.parent / "examples" / "tiny-qwen3"
    timed(SafeAutoModelForCausalLM.from_pretrained(tiny), 32, 4, 1)  # what every process does once
    sooner = limits()
    before = _resident()
    _RESET.write_text("5")  # the peak is that of now
    begun = time.perf_counter()
    model = SafeAutoModelForCausalLM.from_pretrained(folder, policy=workload).eval()
    loaded, peak_of_load = time.perf_counter() - begun, peak_bytes() - before
    figures = timed(model, prompt, new, repeats)
    later = limits()
    best = {name: max(sooner[name], later[name]) for name in sooner}
    plan = plan_of(model)
    bytes_read = read_for_a_token(model, prompt + new // 2)
    cost = plan.cost
    files = sum(one.stat().st_size for one in Path(folder).glob("*.safetensors"))
    peak = figures["peak_bytes"] - before
    return {
        "plan": plan.what,
        "load_seconds": loaded,
        "prompt_seconds": figures["prefill_seconds"],
        "token_seconds": figures["seconds_per_token"],
        "prompt_of_limit": flops_of_a_prompt(model, prompt)
        / max(rate for name, rate in best.items() if name.endswith("flop_per_s"))
        / figures["prefill_seconds"],
        "token_of_limit": bytes_read / best["read_bytes_per_s"] / figures["seconds_per_token"],
        "token_bytes": bytes_read,
        "file_bytes": files,
        "peak_bytes": peak,
        "peak_of_files": peak / files,
        "peak_of_load_bytes": peak_of_load,
        "predicted_bytes": cost.bytes if cost else None,
        "predicted_of_peak": cost.bytes / peak if cost else None,
        "process_before_bytes": before,
        "limits": best,
        "threads": torch.get_num_threads(),
        "busy": os.getloadavg()[0],
    }


def flops_of_a_prompt(model: Any, prompt: int) -> float:
    """Return the multiplications and additions of a prompt: products of weights, the last one of one row, and attention."""
    import torch

    head = model.get_output_embeddings()
    products = sum(
        2 * one.weight.numel() * (1 if one is head else prompt)
        for one in model.modules()
        if isinstance(one, torch.nn.Linear)
    )
    config = model.config
    # Each position attends to half of the others: scores, then values.
    width = config.num_attention_heads * config.head_dim
    return float(products + config.num_hidden_layers * 2 * 2 * prompt * prompt / 2 * width)


def read_for_a_token(model: Any, positions: int) -> int:
    """Return the bytes that a token reads: the weights that it is multiplied by, and keys and values of 2 bytes."""
    import torch

    from safe_dtype.models.block_layout import codes_of

    weights = sum(
        codes.nbytes if (codes := codes_of(one)) else one.weight.nbytes
        for one in model.modules()
        if isinstance(one, torch.nn.Linear)
    )
    config = model.config
    of_a_layer = 2 * positions * config.num_key_value_heads * config.head_dim * 2
    return int(weights + config.num_hidden_layers * of_a_layer)


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Measure the parts that were asked for, and write them beside the others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--part", action="append", choices=PARTS)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dry", action="store_true", help="run once, so that all is remembered, and write nothing")
    options = parser.parse_args()
    if not (options.folder / "config.json").exists():
        make_checkpoint(options.folder, "bfloat16")
    file = RESULTS / "of_limits.json"
    rows = json.loads(file.read_text())["figures"] if file.exists() else {}
    for part in options.part or PARTS:
        cpu, policy = PARTS[part]
        rows[part] = in_child(__file__, cpu, options.folder, policy, options.prompt, options.new, options.repeats)
        print(part, json.dumps(rows[part], indent=1), flush=True)  # noqa: T201  (a script)
    if not options.dry:
        print(write_results("of_limits", rows))  # noqa: T201


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        sys.stdout.write(json.dumps(measure(sys.argv[2], sys.argv[3], *map(int, sys.argv[4:]))) + "\n")
    else:
        main()
