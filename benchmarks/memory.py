"""The peak of memory that a plan predicts for loading and generating, beside the peak that a process really reaches.

    python benchmarks/memory.py [--only NAME]

A Qwen3 of 111 million parameters, saved in bfloat16, on the CPU: 512 tokens of prompt and 8 new ones. Each peak is measured in
a process of its own: the highest resident size from before the model is loaded until its last token, less that before. What
another row of the table has left to remember (the drift of 8 bits) is measured in a process before. Pages of mapped files
count as resident, as long as the system has no better use for them. "Footprint" is what transformers'
`get_memory_footprint` tells; "storages" counts each storage of the parameters and buffers once, those inside tensors of
quantizers too. Rows of quantizers are left out where their package is absent. Only Linux tells it.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from results_file import write_results
from torch import Tensor

from safe_dtype import SafeAutoModelForCausalLM, plan_of
from safe_dtype.facts import BFLOAT16, FLOAT16, FLOAT32
from safe_dtype.loading.plan_request import plan_request
from safe_dtype.loading.request import Request
from safe_dtype.planning import Candidate, Plan

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_PROMPT, _NEW = 512, 8
_WORKLOAD = f"prompt={_PROMPT},new={_NEW}"
_ISLAND = "model.layers.0.mlp"


def save_model(folder: Path) -> None:
    """Save the model, always the same."""
    torch.manual_seed(0)
    heads = {"num_hidden_layers": 8, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 64}
    config = transformers.Qwen3Config(
        vocab_size=16000, hidden_size=1024, intermediate_size=2816, tie_word_embeddings=True, **heads
    )
    torch.set_default_dtype(torch.bfloat16)
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)


def _with(folder: Path, **changes: Any) -> dict[str, Any]:
    """Return the arguments of a load by the plan of the folder with some of it replaced, and the cost of that."""
    made = plan_request(Request(folder, {}), _WORKLOAD)
    candidate = Candidate(changes["storage"], changes["compute"])
    decision = next(one for one in made.decisions if one.candidate == candidate)
    return {"plan": replace(made, ladder=(changes["storage"], FLOAT32), routes=decision.routes, **changes)}


def _bitsandbytes(**options: Any) -> dict[str, Any]:
    return {"quantization_config": transformers.BitsAndBytesConfig(**options)}


def _torchao(name: str) -> dict[str, Any]:
    quantization = import_module("torchao.quantization")
    return {"quantization_config": transformers.TorchAoConfig(getattr(quantization, name)())}


ROWS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "float32": lambda _: {"dtype": "float32"},
    "bfloat16": lambda _: {"dtype": "bfloat16"},
    "bfloat16 stored, float32 computed": lambda folder: _with(folder, storage=BFLOAT16, compute=FLOAT32),
    "float16 with an island": lambda folder: _with(folder, storage=FLOAT16, compute=FLOAT16, islands=(_ISLAND,)),
    "int8": lambda _: {"policy": f"int8,{_WORKLOAD}"},
    "bfloat16, half of it on disk": lambda _: {
        "dtype": "bfloat16", "device_map": "auto", "max_memory": {"cpu": "120MB"},
    },
    "torchao, 8 bit": lambda _: _torchao("Int8WeightOnlyConfig"),
    "bitsandbytes, 8 bit": lambda _: _bitsandbytes(load_in_8bit=True),
    "bitsandbytes, 4 bit": lambda _: _bitsandbytes(load_in_4bit=True),
}  # fmt: skip


def measure(folder: Path, name: str) -> dict[str, Any]:
    """Load and generate as the row says; return what was predicted and what was measured, in bytes."""
    arguments = ROWS[name](folder)
    if "plan" not in arguments:
        arguments.setdefault("policy", _WORKLOAD)
    _generate(SafeAutoModelForCausalLM.from_pretrained(Path(__file__).parents[1] / "examples" / "tiny-qwen3"), 8)
    gc.collect()
    before = _status("VmRSS")
    _RESET.write_text("5")  # the highest resident size is that of now
    model = SafeAutoModelForCausalLM.from_pretrained(folder, **arguments)
    loaded = _status("VmHWM") - before
    _generate(model, _PROMPT)
    made: Plan = plan_of(model)
    cost = made.cost
    return {
        "plan": made.what,
        "predicted": cost.bytes if cost else None,
        "predicted weights": cost.weight_bytes if cost else None,
        "peak of loading": loaded,
        "peak": _status("VmHWM") - before,
        "footprint": model.get_memory_footprint(),
        "storages": stored_bytes(model),
    }


def stored_bytes(model: torch.nn.Module) -> int:
    """Return the bytes of all storages that the model's parameters and buffers lie in, each once."""
    parts = [part for one in (*model.parameters(), *model.buffers()) for part in _plain(one)]
    storages = {
        part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in parts if not part.is_meta
    }
    return sum(storages.values())


def _plain(tensor: Tensor) -> Iterator[Tensor]:
    names = getattr(tensor, "__tensor_flatten__", None)
    if names is None:
        yield tensor
    else:
        for name in names()[0]:
            yield from _plain(getattr(tensor, name))


def _generate(model: Any, tokens: int) -> None:
    prompt = torch.arange(tokens)[None] % 90 + 3
    model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=_NEW, min_new_tokens=_NEW, do_sample=False
    )


def _status(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def _is_possible(name: str) -> bool:
    package = name.partition(",")[0]
    return package not in ("torchao", "bitsandbytes") or find_spec(package) is not None


def main() -> None:
    """Measure every row in a process of its own, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=ROWS, help="one row, and no file of results")
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "ROW"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(Path(options.child[0]), options.child[1])))  # noqa: T201  (a script)
        return
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        save_model(folder)
        for name in [options.only] if options.only else filter(_is_possible, ROWS):
            command = [sys.executable, __file__, "--child", str(folder), name]
            environment = {**os.environ, "SAFE_DTYPE_CACHE": f"{place}/cache"}
            for _ in range(2 if name == "int8" else 1):
                child = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if child.returncode:
                figures[name] = {"problem": child.stderr.strip().splitlines()[-1][:300]}
            else:
                row = json.loads(child.stdout.splitlines()[-1])
                row["ratio"] = round(row["predicted"] / row["peak"], 3) if row["predicted"] else None
                figures[name] = row
            print(name, json.dumps(figures[name]), flush=True)  # noqa: T201
    if not options.only:
        print(write_results("memory", figures))  # noqa: T201


if __name__ == "__main__":
    main()
