"""A tiny model that generates, and what tests of its compiled step share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from guarding.generators import BOTH_ROWS
from optimizing.made import optimized

from safe_dtype.facts import FLOAT32, Dtype
from safe_dtype.optimizing.graphs import static_steps
from safe_dtype.optimizing.serving.optimized import Optimized, load_optimized

_SHAPE = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 32, "eos_token_id": None,
    "initializer_range": 0.3,
}  # fmt: skip


def tiny_generator(dtype: torch.dtype = torch.float32) -> Any:
    """Return a Qwen3 for texts of up to 32 tokens, which never ends one by itself."""
    torch.manual_seed(0)
    return tf.Qwen3ForCausalLM(tf.Qwen3Config(**_SHAPE)).eval().to(dtype)


@pytest.fixture
def captured_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let steps be captured as for a compiler, and run without one: seconds in place of minutes."""
    monkeypatch.setattr(static_steps, "BACKEND", "eager")
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch.compiler.reset()


def graphs() -> int:
    """Return how many graphs were captured since the test began."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def made(out: Path, dtype: Dtype = FLOAT32) -> Optimized:
    """Return a loaded optimization of the tiny model for `generate`, for batches of one and two rows."""
    optimized(tiny_generator(), out, "generate", dtype=dtype, inputs=BOTH_ROWS, batch=(1, 2))
    return load_optimized(out)
