"""Every test here starts with transformers as it is, and leaves it so."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import transformers

import safe_dtype
from safe_dtype.patching.import_hook import ImportHook

ORIGINAL = transformers.PreTrainedModel.__dict__["from_pretrained"]


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    yield
    safe_dtype.unpatch()
    assert transformers.PreTrainedModel.__dict__["from_pretrained"] is ORIGINAL
    assert not any(isinstance(one, ImportHook) for one in sys.meta_path)
