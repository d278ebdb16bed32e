"""Trainers of TRL lose no step through a real failure: their losses, metrics and counters are those of a run without one.

TRL is no dependency of the tests: `nox -s "tool(trl)"`.
"""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn
from training.trainer_runs import SwitchByHand, difference
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

import safe_dtype
from safe_dtype.facts import FLOAT16

# None where TRL is absent: there all tests of this file are skipped, or fail by `--must-have`.
trl, datasets = (import_module(name) if find_spec(name) else None for name in ("trl", "datasets"))

pytestmark = [
    pytest.mark.needs("trl"),
    pytest.mark.filterwarnings("default"),  # those of TRL and of what it brings along are no business of ours
    pytest.mark.slow,
]

HERE = Path(__file__).resolve().parent
MODEL = HERE.parents[1] / "examples" / "tiny-qwen3"
TEXTS = [
    "a ship on the sea",
    "an old house",
    "the north wind",
    "two small birds",
    "rain in the night",
    "a long road",
] * 2
FAILS_AT = 2


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


class Gate(nn.Module):
    """An activation that from some step on uses what torch has for float16 and float32, and not for bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.fails = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sigmoid-weighted input."""
        if self.fails and self.training:
            x = torch.complex(x, torch.zeros_like(x)).real.to(x.dtype)
        return nn.functional.silu(x)


class Failing(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Turns the failure on as a step begins."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Turn it on."""
        self.gate.fails = state.global_step >= FAILS_AT


def trainer_of(kind: str, folder: Path) -> tuple[Any, Gate]:
    """Make a Trainer of TRL for the bundled model: four steps of two micro-batches."""
    common: dict[str, Any] = {
        "output_dir": str(folder), "bf16": True, "use_cpu": True, "max_steps": 4, "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2, "logging_steps": 1, "report_to": "none", "save_strategy": "no",
        "disable_tqdm": True, "max_length": 24, "learning_rate": 1e-3, "gradient_checkpointing": False, "seed": 3,
    }  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    gate = model.model.layers[2].mlp.act_fn = Gate()
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if kind == "SFT":
        rows = datasets.Dataset.from_dict({"text": TEXTS})
        made = trl.SFTTrainer(model, trl.SFTConfig(**common), train_dataset=rows, processing_class=tokenizer)
    else:
        pairs = {"prompt": TEXTS, "chosen": [f"{text} is here" for text in TEXTS], "rejected": TEXTS[::-1]}
        rows = datasets.Dataset.from_dict(pairs)
        made = trl.DPOTrainer(model, args=trl.DPOConfig(**common), train_dataset=rows, processing_class=tokenizer)
    return made, gate


def everything(trainer: Any) -> dict[str, Any]:
    """Return weights, and all rows of the log but for what is of the clock or of us."""
    left_out = ("runtime", "per_second", "precision", "fallbacks", "nonfinite_steps")
    rows = [
        {name: value for name, value in row.items() if not any(word in name for word in left_out)}
        for row in trainer.state.log_history
    ]
    return {"weights": {name: weight.detach() for name, weight in trainer.model.named_parameters()}, "rows": rows}


@pytest.mark.parametrize("kind", ["SFT", "DPO"])
def test_as_switched_by_hand(kind: str, tmp_path: Path) -> None:
    """Every metric of every row, and every weight, is that of the run that was switched where the other one failed."""
    gc.freeze()
    ours, gate = trainer_of(kind, tmp_path)
    ours.add_callback(Failing(gate))
    safe_dtype.attach(ours)
    ours.train()
    precisions = [row["precision"] for row in ours.state.log_history if "loss" in row]
    assert precisions == ["bfloat16"] * FAILS_AT + ["float16"] * (4 - FAILS_AT)
    AcceleratorState._reset_state(True)
    by_hand, gate = trainer_of(kind, tmp_path)
    by_hand.add_callback(Failing(gate))
    by_hand.add_callback(SwitchByHand(by_hand, FAILS_AT, FLOAT16))
    by_hand.train()
    assert difference(everything(ours), everything(by_hand)) == ""
    gc.unfreeze()


@pytest.mark.parametrize("kind", ["SFT", "DPO"])
def test_without_a_word_of_code(kind: str, tmp_path: Path) -> None:
    """`safe-dtype run` does the same for a script that knows nothing of it."""
    script = tmp_path / "train.py"
    script.write_text(
        f"import sys\nfrom pathlib import Path\nsys.path[:0] = {[str(HERE), str(HERE.parent)]}\n"
        "from test_trl import Failing, trainer_of\n"
        f"trainer, gate = trainer_of({kind!r}, Path({str(tmp_path)!r}))\n"
        "trainer.add_callback(Failing(gate))\ntrainer.train()\n"
        "print([row.get('precision') for row in trainer.state.log_history if 'loss' in row])\n"
    )
    command = [sys.executable, "-m", "safe_dtype.run", "--quiet", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(["bfloat16"] * FAILS_AT + ["float16"] * (4 - FAILS_AT)), done.stderr
