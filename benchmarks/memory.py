"""The memory that a plan predicts for loading and generating, beside what a process really takes for it.

    python benchmarks/memory.py [--only NAME]

A Qwen3 of 111 million parameters, saved in bfloat16, on the CPU: 512 tokens of prompt and 8 new ones. Each row is measured in
a process of its own, which has loaded a smaller model of the same widths in the same way before: libraries, compilers and what
torch allocates once are there ("once", and no plan counts them). Two figures, less what was there before:

- "needed": the most that anonymous memory and pages of files were together at one moment, sampled every millisecond; of the
  pages no more than the loaded model still lies in. It is what a limit has to leave room for.
- "resident": the highest resident size, with all pages of files that were read in passing: they count as long as the system has
  no better use for them.

"bfloat16 stored, float32 computed" is measured on a CPU that is held to AVX2. What another row of the table has left to remember
(the drift of 8 bits) is measured in a process before. "Footprint" is what transformers' `get_memory_footprint` tells; "storages"
counts each storage of the parameters and buffers once, those inside tensors of quantizers too. Rows of quantizers are left out where their package is absent. Only Linux tells it.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from safe_dtype.facts import BFLOAT16, FLOAT16, FLOAT32, Dtype, HalfRange
from safe_dtype.loading.plan_request import checkpoint_for, device_for, plan_request
from safe_dtype.loading.request import Request
from safe_dtype.planning import Candidate, Cost, Plan, Workload
from safe_dtype.planning.predict import predict

_STATUS, _RESET, _MAPS = Path("/proc/self/status"), Path("/proc/self/clear_refs"), Path("/proc/self/smaps")
_PROMPT, _NEW = 512, 8
_WORKLOAD = f"prompt={_PROMPT},new={_NEW}"
_ISLAND = "model.layers.0.mlp"
_ON_DISK = 0.54  # of the weights: as much of them may be in memory
_SAMPLE_SECONDS = 0.001


def save_model(folder: Path, layers: int = 8) -> None:
    """Save a model of so many layers, always the same."""
    torch.manual_seed(0)
    heads = {"num_hidden_layers": layers, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 64}
    config = transformers.Qwen3Config(
        vocab_size=16000, hidden_size=1024, intermediate_size=2816, tie_word_embeddings=True, **heads
    )
    torch.set_default_dtype(torch.bfloat16)
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)


def _planned(folder: Path, storage: Dtype, compute: Dtype) -> Plan:
    """Return the plan of the folder with these dtypes chosen."""
    made = plan_request(Request(folder, {}), _WORKLOAD)
    decision = next(one for one in made.decisions if one.candidate == Candidate(storage, compute))
    return replace(made, storage=storage, compute=compute, ladder=(storage, FLOAT32), routes=decision.routes)


def _cost(made: Plan, folder: Path) -> Cost | None:
    """Return what a plan predicts; with islands put into it as if they had been measured to be needed."""
    if not made.islands:
        return None if made.device_map else made.cost  # what accelerate leaves in memory, no plan says
    request = Request(folder, {})
    checkpoint = replace(checkpoint_for(request), half=HalfRange(0.0, 0.0, islands=made.islands))
    device = device_for(request, checkpoint)
    return predict(Candidate(made.storage, made.compute), None, device, checkpoint, Workload(_PROMPT, _NEW))


def _bitsandbytes(**options: Any) -> dict[str, Any]:
    return {"quantization_config": transformers.BitsAndBytesConfig(**options)}


def _torchao(name: str) -> dict[str, Any]:
    quantization = import_module("torchao.quantization")
    return {"quantization_config": transformers.TorchAoConfig(getattr(quantization, name)())}


ROWS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "float32": lambda _: {"dtype": "float32"},
    "bfloat16": lambda _: {"dtype": "bfloat16"},
    "bfloat16 stored, float32 computed": lambda folder: {"plan": _planned(folder, BFLOAT16, FLOAT32)},
    "float16 with an island": lambda folder: {
        "plan": replace(_planned(folder, FLOAT16, FLOAT16), islands=(_ISLAND,)),
    },
    "int8": lambda _: {"policy": f"int8,{_WORKLOAD}"},
    "bfloat16, half of it on disk": lambda folder: {
        "dtype": "bfloat16", "device_map": "auto", "max_memory": {"cpu": int(_ON_DISK * _file_bytes(folder))},
    },
    "torchao, 8 bit": lambda _: _torchao("Int8WeightOnlyConfig"),
    "bitsandbytes, 8 bit": lambda _: _bitsandbytes(load_in_8bit=True),
    "bitsandbytes, 4 bit": lambda _: _bitsandbytes(load_in_4bit=True),
}  # fmt: skip


_OLDER_CPU = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
SETTINGS = {"bfloat16 stored, float32 computed": _OLDER_CPU}


def measure(folder: Path, smaller: Path, name: str) -> dict[str, Any]:
    """Load and generate as the row says; return what was predicted and what was measured, in bytes."""
    bare = _status("RssAnon")
    _load_and_generate(smaller, name)
    once = _settled() - bare
    before, in_files, resident = _settled(), _status("RssFile"), _status("VmRSS")
    _RESET.write_text("5")  # the highest resident size is that of now
    with _sampled("RssAnon", "RssFile") as moments:
        model = _load_and_generate(folder, name)
    lies_in = _mapped_of(folder)
    loaded: Plan = plan_of(model)
    cost = _cost(loaded, folder)
    return {
        "plan": loaded.what,
        "predicted": cost.bytes if cost else None,
        "predicted weights": cost.weight_bytes if cost else None,
        "needed": max(anonymous - before + min(mapped - in_files, lies_in) for anonymous, mapped in moments),
        "in the files": lies_in,
        "resident": _status("VmHWM") - resident,
        "once": once,
        "footprint": model.get_memory_footprint(),
        "storages": stored_bytes(model),
    }


def _load_and_generate(folder: Path, name: str) -> Any:
    arguments = ROWS[name](folder)
    if "plan" not in arguments:
        arguments.setdefault("policy", _WORKLOAD)
    model = SafeAutoModelForCausalLM.from_pretrained(folder, **arguments)
    _generate(model, _PROMPT)
    return model


@contextmanager
def _sampled(*names: str) -> Iterator[list[tuple[int, ...]]]:
    """Yield a list that grows by these figures of the process's status, of one moment, every millisecond."""
    moments, over = [_statuses(names)], threading.Event()

    def sample() -> None:
        while not over.wait(_SAMPLE_SECONDS):
            moments.append(_statuses(names))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield moments
    finally:
        over.set()
        thread.join()


def _mapped_of(folder: Path) -> int:
    """Return the bytes of pages that this process maps of the files in a folder."""
    size, is_inside = 0, False
    for line in _MAPS.read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            is_inside = str(folder.resolve()) in line
        elif is_inside and line.startswith("Rss:"):
            size += int(line.split()[1]) * 1024
    return size


def _file_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _settled() -> int:
    """Return the anonymous memory when all that is garbage went back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return _status("RssAnon")


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
    return _statuses((name,))[0]


def _statuses(names: tuple[str, ...]) -> tuple[int, ...]:
    """Return figures of this process's status as of one moment, in bytes."""
    rows = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return tuple(int(rows[name].split()[0]) * 1024 for name in names)


def _is_possible(name: str) -> bool:
    package = name.partition(",")[0]
    return package not in ("torchao", "bitsandbytes") or find_spec(package) is not None


def main() -> None:
    """Measure every row in a process of its own, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=ROWS, help="one row, and no file of results")
    parser.add_argument("--child", nargs=3, metavar=("FOLDER", "SMALLER", "ROW"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(Path(options.child[0]), Path(options.child[1]), options.child[2])))  # noqa: T201  (a script)
        return
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        folder, smaller = Path(place) / "model", Path(place) / "smaller"
        save_model(folder)
        save_model(smaller, layers=2)
        for name in [options.only] if options.only else filter(_is_possible, ROWS):
            command = [sys.executable, __file__, "--child", str(folder), str(smaller), name]
            environment = {**os.environ, "SAFE_DTYPE_CACHE": f"{place}/cache", **SETTINGS.get(name, {})}
            for _ in range(2 if name == "int8" else 1):
                child = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if child.returncode:
                figures[name] = {"problem": child.stderr.strip().splitlines()[-1][:300]}
            else:
                row = json.loads(child.stdout.splitlines()[-1])
                row["ratio"] = round(row["predicted"] / row["needed"], 3) if row["predicted"] else None
                figures[name] = row
            print(name, json.dumps(figures[name]), flush=True)  # noqa: T201
    if not options.only:
        print(write_results("memory", figures))  # noqa: T201


if __name__ == "__main__":
    main()
