"""What tests of layers that are computed together work with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from decoding.stacked import attention_registered
from models.forwards.compiled import counted

from safe_dtype.decoding.stack_program import StackProgram


@pytest.fixture
def attention() -> Iterator[None]:
    """Let models find the attention of these tests in transformers."""
    with attention_registered():
        yield


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The programs that run from now on."""
    return counted(monkeypatch, StackProgram, "run")
