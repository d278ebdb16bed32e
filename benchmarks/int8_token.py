"""Measure one token by 8-bit codes beside the plain layout, at a given checkpoint: milliseconds, and bytes at the peak.

    python benchmarks/int8_token.py FOLDER [--int8] [--wide float32] [--prompt 512] [--new 32]

Each call measures one layout in a process of its own. Anonymous memory is what the process cannot give back; the pages of
files, which the peak counts too, it can.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers

from safe_dtype.guarding import guard
from safe_dtype.models.block_layout import lay_out_in_int8
from safe_dtype.models.forwards.compiled_products import compile_products


def memory(line: str) -> int:
    """Return bytes that Linux tells of this process: `VmHWM` or `RssAnon`."""
    kilobytes = re.search(rf"{line}:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(kilobytes[1]) * 1024 if kilobytes else 0


def main() -> None:
    """Write one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--int8", action="store_true")
    parser.add_argument(
        "--wide", choices=("float32", "bfloat16"), default="float32", help="what prompts by codes are computed in"
    )
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=32)
    options = parser.parse_args()
    started = time.perf_counter()
    model = transformers.AutoModelForCausalLM.from_pretrained(options.folder, dtype="auto").eval()
    loaded = time.perf_counter()
    codes = 0
    if options.int8:
        codes = lay_out_in_int8(model, wide=getattr(torch, options.wide)).bytes
    elif find_spec("llvmlite"):
        compile_products(model, torch.bfloat16, 8)
    coded = time.perf_counter()
    guard(model)
    ids = torch.arange(3, 3 + options.prompt)[None]
    seconds = []
    for new in (1, 1 + options.new):
        begun = time.perf_counter()
        model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False
        )
        seconds.append(time.perf_counter() - begun)
    figures = {
        "layout": "int8" if options.int8 else "plain",
        "wide": options.wide if options.int8 else None,
        "compiled": find_spec("llvmlite") is not None,
        "threads": torch.get_num_threads(),
        "load_seconds": round(loaded - started, 2),
        "coding_seconds": round(coded - loaded, 2),
        "prompt_seconds": round(seconds[0], 2),
        "token_ms": round((seconds[1] - seconds[0]) / options.new * 1e3, 1),
        "peak_mb": round(memory("VmHWM") / 1e6),
        "anonymous_mb": round(memory("RssAnon") / 1e6),
        "codes_mb": round(codes / 1e6),
    }
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
