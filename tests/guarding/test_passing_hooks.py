"""Hooks of ours are gone when a block ends, wherever an interrupt comes."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn

from safe_dtype.guarding import passing_hooks
from safe_dtype.guarding.passing_hooks import hooked


def test_hooked() -> None:
    """Both are called with keyword arguments, `before` first of all."""
    model, seen = nn.Sequential(nn.Linear(2, 2), nn.ReLU()), []
    model[0].register_forward_pre_hook(lambda *_: seen.append("caller's"))
    with hooked(model, before=lambda *_: seen.append("before"), after=lambda *_: seen.append("after")):
        model(torch.ones(1, 2))
    assert seen == ["before", "caller's", "after", "before", "after"]
    model(torch.ones(1, 2))
    assert seen[5:] == ["caller's"]


def _lines(at: int, raises: list[int]) -> Any:
    """Return a trace function that raises KeyboardInterrupt at the line number `at` of those run by the module."""

    def trace(frame: FrameType, event: str, _arg: Any) -> Any:
        inside = frame.f_code.co_filename in (passing_hooks.__file__, nn.modules.module.__file__)
        if not inside:
            return None
        if event == "line":
            raises[0] += 1
            if raises[0] == at:
                raise KeyboardInterrupt
        return trace

    return trace


@pytest.mark.parametrize("at", range(1, 60))
def test_interrupted(at: int) -> None:
    """While hooks are put on, or taken off."""
    model, lines = nn.Sequential(nn.Linear(2, 2), nn.ReLU()), [0]
    before = sys.gettrace()
    sys.settrace(_lines(at, lines))
    try:
        with hooked(model, before=lambda *_: None, after=lambda *_: None):
            pass
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    assert lines[0] >= at
    assert all(not module.__dict__[name] for module in model.modules() for name in passing_hooks._OF_A_MODULE)
