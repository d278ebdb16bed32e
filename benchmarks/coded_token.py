"""Measure one token by 8- and by 4-bit codes beside the plain layout: milliseconds taken in turns, and memory.

    python benchmarks/coded_token.py FOLDER [--codes int8 --codes int4] [--prompt 64] [--new 16] [--turns 5]

FOLDER holds a checkpoint; where there is none, one of Qwen3-0.6B's shape is made there, random, in bfloat16. The same process
holds the model as it was saved and once for each kind of codes, and asks each in turn for the same tokens: read the ratios.
Anonymous memory is what the process has more of once a model is loaded and its weights are rounded, and cannot give back; the
pages of files it can. `--held-to-avx2` is for another CPU, `--without-llvmlite` for torch's own products.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

_AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
_PLAIN = "as saved"


def anonymous() -> int:
    """Return the bytes of this process that lie in no file."""
    kilobytes = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(kilobytes[1]) * 1024 if kilobytes else 0


def loaded(folder: Path, codes: str) -> tuple[Any, dict[str, Any]]:
    """Return the model that multiplies so, and what it took to load it."""
    import transformers

    from safe_dtype.facts import dtype_named
    from safe_dtype.guarding import guard
    from safe_dtype.models.block_layout import lay_out_in_codes
    from safe_dtype.models.forwards.compiled_products import compile_products

    before, begun = anonymous(), time.perf_counter()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    read = time.perf_counter()
    codes_bytes = 0
    if codes == _PLAIN:
        compile_products(model, model.dtype, 16)
    else:
        codes_bytes = lay_out_in_codes(model, dtype_named(codes)).bytes
    rounded = time.perf_counter()
    guard(model)
    gc.collect()
    return model, {
        "load_seconds": round(read - begun, 2),
        "rounding_seconds": round(rounded - read, 2) if codes_bytes else None,
        "anonymous_mb": round((anonymous() - before) / 1e6),
        "codes_mb": round(codes_bytes / 1e6),
    }


def seconds(model: Any, prompt: int, new: int) -> float:
    """Return the time of one answer."""
    import torch

    ids = torch.arange(3, 3 + prompt)[None]
    begun = time.perf_counter()
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False)
    return time.perf_counter() - begun


def measure(folder: Path, kinds: list[str], prompt: int, new: int, turns: int) -> dict[str, Any]:
    """Return the figures of each kind; times are the least of all turns."""
    models = {kind: loaded(folder, kind) for kind in [_PLAIN, *kinds]}
    times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in models}
    for turn in range(turns + 1):
        for kind, (model, _) in models.items():
            one = seconds(model, prompt, 1)
            token = (seconds(model, prompt, 1 + new) - one) / new
            if turn:  # the first loads and compiles
                times[kind].append((one, token))
    rows = {}
    plain = [min(each) for each in zip(*times[_PLAIN], strict=True)]
    for kind, (_, figures) in models.items():
        one, token = (min(each) for each in zip(*times[kind], strict=True))
        rows[kind] = {
            **figures,
            "prompt_seconds": round(one, 3),
            "token_ms": round(token * 1e3, 1),
            "prompt_of_plain": round(one / plain[0], 2),
            "token_of_plain": round(token / plain[1], 2),
        }
    return rows


def main() -> None:
    """Measure, and write the row of this CPU beside the others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--codes", action="append", choices=("int8", "int4"))
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--new", type=int, default=16)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--held-to-avx2", action="store_true")
    parser.add_argument("--without-llvmlite", action="store_true")
    options = parser.parse_args()
    if options.held_to_avx2 and _AVX2.items() - os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **_AVX2})
    if options.without_llvmlite:
        sys.modules["llvmlite"] = None  # type: ignore[assignment]  # an import of it fails
    import torch
    from generation import make_checkpoint
    from results_file import RESULTS, write_results

    if not (options.folder / "config.json").exists():
        make_checkpoint(options.folder, "bfloat16")
    rows = measure(options.folder, options.codes or ["int8", "int4"], options.prompt, options.new, options.turns)
    name = ", ".join(
        filter(
            None,
            [
                "held to AVX2" if options.held_to_avx2 else "bare",
                "" if import_module("safe_dtype.kernels.target").target() else "torch's own products",
            ],
        )
    )
    file = RESULTS / "coded_token.json"
    figures = json.loads(file.read_text())["figures"] if file.exists() else {}
    figures[name] = {
        "prompt": options.prompt,
        "new": options.new,
        "threads": torch.get_num_threads(),
        "busy": os.getloadavg()[0],
        "rows": rows,
    }
    print(write_results("coded_token", figures), json.dumps(rows, indent=1))  # noqa: T201  (a script)


if __name__ == "__main__":
    main()
