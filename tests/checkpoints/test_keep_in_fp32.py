"""Weights that transformers keeps in float32."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_models import TINY

from safe_dtype.checkpoints import read_checkpoint


def test_kept_in_float32(tmp_path: Path) -> None:
    """The class's own list of modules kept in float32 is read."""
    assert read_checkpoint(TINY["t5"].save(tmp_path, torch.float16)).keep_in_fp32 == ("wo",)
