"""Every test here starts with transformers as it is, and leaves it so."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import transformers
from tiny_models import TINY

import safe_dtype
from safe_dtype.patching.import_hook import ImportHook

ORIGINAL = transformers.PreTrainedModel.__dict__["from_pretrained"]


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    yield
    safe_dtype.unpatch()
    assert transformers.PreTrainedModel.__dict__["from_pretrained"] is ORIGINAL
    assert not any(isinstance(one, ImportHook) for one in sys.meta_path)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that gives the folder of a tiny bfloat16 checkpoint, made once."""
    made: dict[str, Path] = {}

    def folder(name: str = "qwen3") -> Path:
        if name not in made:
            made[name] = TINY[name].save(tmp_path_factory.mktemp(name) / "model", torch.bfloat16)
        return made[name]

    return folder
