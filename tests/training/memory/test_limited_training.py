"""Training in a control group whose memory the system limits for real: what is predicted to fit does, and no process is killed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from limited_memory import can_limit, run_limited

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not can_limit(), reason="no control group of memory can be made here"),
]

# Arguments: bytes, rows of a micro-batch, micro-batches of a step. Its first step fails in 16 bits, with all activations there.
_TRAIN = """
import json, warnings
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from safe_dtype import PrecisionGuard, TorchLoop
from safe_dtype.errors import TrainingDoesNotFitError

size, rows, micro_batches = map(int, sys.argv[2:])
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(
    hidden_size=384, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=6, num_key_value_heads=6,
    vocab_size=4000, max_position_embeddings=512, use_cache=False,
)).train()


class Gate(nn.Module):
    def forward(self, x):
        return torch.where(x < -1e30, torch.special.log_ndtr(x[:1]), x)  # in float32 alone


model.model.norm = nn.Sequential(model.model.norm, Gate())
leave_room(size)
optimizer = torch.optim.AdamW(model.parameters())
loop = TorchLoop(model, optimizer)
guard = PrecisionGuard(loop)
tokens = torch.randint(0, 4000, (2 * micro_batches, rows, 256))
said = {}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    try:
        for window in guard.windows(tokens, micro_batches):
            for attempt in guard.attempts():
                with attempt:
                    for batch in window:
                        with loop.autocast():
                            loss = model(input_ids=batch, labels=batch).loss / len(window)
                        loop.backward(loss)
                    optimizer.step()
                    optimizer.zero_grad()
    except TrainingDoesNotFitError as exc:
        said = {"needed": exc.needed_bytes, "free": exc.free_bytes, "rows": exc.rows, "parts": exc.parts, "text": str(exc)}
texts = [str(one.message) for one in caught if "Going on so" in str(one.message)]
print(json.dumps({"dtype": guard.dtype.name, "windows": guard.windows_done, "warnings": texts, **said}))
"""


def trained(megabytes: int, rows: int, micro_batches: int) -> Any:
    """Return how a run in a group of so much room has ended, and what it has said."""
    environment = {"OMP_NUM_THREADS": "1"}
    done = run_limited(_TRAIN, str(megabytes * 10**6), str(rows), str(micro_batches), environment=environment)
    assert done.returncode == 0, done.stderr  # -9: the system has killed it
    return json.loads(done.stdout.splitlines()[-1])


def test_layers_are_checkpointed() -> None:
    """Where float32 does not fit it is trained with activation checkpointing, and really fits."""
    run = trained(950, 8, 1)
    assert (run["dtype"], run["windows"]) == ("float32", 2)
    assert "checkpoint" in run["warnings"][0]


def test_the_advice_is_followed() -> None:
    """Where the loop's own micro-batches are too large, those that the error names really fit."""
    run = trained(530, 8, 1)
    assert (run["windows"], run["rows"] * run["parts"]) == (0, 8)
    again = trained(530, run["rows"], run["parts"])
    assert (again["dtype"], again["windows"]) == ("float32", 2)
