"""The bundled model, and a text for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from verifying.by_the_book import Batches

from safe_dtype.verifying import text_batches


@pytest.fixture(scope="module")
def qwen3(tiny_qwen3: Path) -> Callable[[torch.dtype], Any]:
    """Return a function that loads the bundled model."""
    return lambda dtype: tf.AutoModelForCausalLM.from_pretrained(tiny_qwen3, dtype=dtype)


@pytest.fixture(scope="module")
def text(tiny_qwen3: Path) -> Batches:
    """The built-in text in two batches."""
    return text_batches(tf.AutoTokenizer.from_pretrained(tiny_qwen3), tokens_per_batch=64, batches=2)
