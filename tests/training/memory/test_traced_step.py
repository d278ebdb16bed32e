"""The predicted peak of a training step: what it is made of, what makes it smaller, and that nothing is touched."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tiny_models import TINY
from torch import nn
from torch.utils.checkpoint import checkpoint

from safe_dtype import guard
from safe_dtype.facts import BFLOAT16
from safe_dtype.training.memory import Checkpointing, TracedStep, trace_step, traced_step

MODEL = TINY["qwen3"]
WEIGHTS = sum(4 * weight.numel() for weight in MODEL.make().parameters())


def batch(rows: int = 2) -> dict[str, torch.Tensor]:
    """Make a micro-batch."""
    tokens = torch.arange(3, 67)[None].expand(rows, -1).contiguous()
    return {"input_ids": tokens, "labels": tokens}


def test_what_it_is_made_of() -> None:
    """Weights in float32, two moments of each, and activations."""
    step = trace_step(MODEL.make(), batch())
    kinds = dict(step.kinds)
    assert (kinds["parameters"], step.device) == (WEIGHTS, "cpu")
    assert kinds["optimizer"] == pytest.approx(2 * WEIGHTS, rel=1e-2)
    assert kinds["activations"] > WEIGHTS
    assert sum(kinds.values()) == step.peak_bytes < step.needed_bytes


def test_what_makes_it_smaller() -> None:
    """Checkpointing, autocast, fewer rows, an optimizer with fewer moments; gradients that wait make it larger."""
    model = MODEL.make()
    plain = trace_step(model, batch(8)).peak_bytes
    assert trace_step(model, batch(8), checkpointing=Checkpointing()).peak_bytes < plain
    assert trace_step(model, batch(8), BFLOAT16).peak_bytes < plain
    assert trace_step(model, batch(4)).peak_bytes < plain
    assert trace_step(model, batch(8), make_optimizer=torch.optim.SGD).peak_bytes == pytest.approx(
        plain - 2 * WEIGHTS, rel=1e-2
    )
    assert trace_step(model, batch(8), accumulates=True).peak_bytes > plain


class Checkpointed(nn.Module):
    """Layers that are computed again on the way back."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(256, 256, bias=False) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute one after the other."""
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False)
        return x


def test_casts_of_checkpointed_layers() -> None:
    """Weights that such a layer casts on its way back are let go with it, and are none of what the optimizer's step holds."""
    step = trace_step(Checkpointed(), {0: torch.ones(1, 256)}, BFLOAT16)
    assert dict(step.kinds)["optimizer"] > 2 * 4 * 4 * 256 * 256
    assert dict(step.kinds).get("activations", 0) < 2 * 256 * 256


def test_nothing_is_touched() -> None:
    """The model, guarded or not, its gradients and random numbers are what they were."""
    model = guard(MODEL.make().train())
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    state = torch.get_rng_state()
    trace_step(model, batch(), checkpointing=Checkpointing())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
    assert not model.is_gradient_checkpointing


def test_adapters() -> None:
    """Only what is trained has gradients and moments."""
    lora = peft.get_peft_model(MODEL.make(), peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    trained = sum(4 * weight.numel() for weight in lora.parameters() if weight.requires_grad)
    assert dict(trace_step(lora, batch()).kinds)["optimizer"] == pytest.approx(2 * trained, rel=0.1)


def test_without_the_private_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where this torch has no MemTracker, what is saved for the backward pass is counted."""
    whole = trace_step(MODEL.make(), batch(8))
    monkeypatch.setattr(traced_step, "CAN_TRACK", False)
    saved = trace_step(MODEL.make(), batch(8))
    assert (whole.is_of_operations, saved.is_of_operations) == (True, False)
    assert saved.peak_bytes == pytest.approx(whole.peak_bytes, rel=0.3)


class Deciding(nn.Module):
    """A model whose way depends on a value."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> Any:
        """Return a loss, or no such thing."""
        return {"loss": (x * self.weight).sum()} if (x * self.weight).sum().item() > 0 else None


class Weightless(Deciding):
    """A model that computes nothing of its weights."""

    def forward(self, x: torch.Tensor) -> Any:
        """Return the input."""
        return {"x": x}


def test_what_cannot_be_followed() -> None:
    """A model whose way depends on values, and one without a loss, are refused with a reason."""
    with pytest.raises(RuntimeError):
        trace_step(Deciding(), {"x": torch.ones(2)})
    with pytest.raises(ValueError, match="without a tensor to compute one of"):
        trace_step(Weightless(), {"x": torch.ones(2)})


def test_a_loss_that_the_caller_computes() -> None:
    """A model that returns logits alone is followed as well: a loss of them takes about what its own would."""
    own, callers = trace_step(MODEL.make(), batch()), trace_step(MODEL.make(), {"input_ids": batch()["input_ids"]})
    assert callers.peak_bytes == pytest.approx(own.peak_bytes, rel=0.1)


def test_words() -> None:
    """How it is said."""
    assert str(Checkpointing()) == "activation checkpointing"
    assert str(Checkpointing(2, offload=True)) == "every 2 layers checkpointed, offloaded"


def test_what_was_measured(project_root: Path) -> None:
    """Each row of the results has the prediction of today; all but one are within 150 MiB of what their process took."""
    file = project_root / "benchmarks" / "results" / "training_memory.json"
    for row in json.loads(file.read_text(encoding="utf-8"))["figures"]:
        large = tuple(row.get("large", {}).items())
        step = TracedStep("cpu", row["predicted_bytes_of_tensors"], tuple(row["kinds"].items()), large=large)
        assert step.needed_bytes == row["predicted_bytes"], "run benchmarks/training_memory.py --predict"
        # The heap keeps more of many layers that are computed again than is known why: said in docs/training.md.
        most = 210 if (row["shape"], row["way"]) == ("deep", "float32 checkpointed") else 150
        assert abs(step.needed_bytes - row["measured_bytes"]) < most * 2**20


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of a process")
@pytest.mark.parametrize(
    ("shape", "way"),
    [
        ("fitted", "bfloat16"),
        ("fitted", "bfloat16 checkpointed"),
        ("fitted", "float32"),
        ("fitted", "float32 checkpointed"),
        ("wide", "float32, every second layer checkpointed"),
        ("wide", "float32, two micro-batches of half the rows"),
    ],
)
def test_it_is_near_the_peak_of_a_process(shape: str, way: str, project_root: Path) -> None:
    """What is needed is predicted within 10 % or 150 MiB of what a process of the benchmark really takes."""
    sys.path.insert(0, str(project_root / "benchmarks"))
    try:
        from training_memory import WAYS, model
        from training_memory import batch as real_batch
    finally:
        sys.path.pop(0)
    step = trace_step(
        model(shape), real_batch(WAYS[way].rows), WAYS[way].dtype, checkpointing=WAYS[way].checkpointing,
        accumulates=WAYS[way].micro_batches > 1,
    )  # fmt: skip
    script = str(project_root / "benchmarks" / "training_memory.py")
    command = [sys.executable, script, "--measure", shape, way]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(3)]
    measured = sorted(map(int, runs))[1]  # what an allocator keeps differs from run to run
    assert abs(step.needed_bytes - measured) < max(0.1 * measured, 150 * 2**20)
